"""What one rollout may spend."""

from __future__ import annotations

from dataclasses import dataclass

from sandlot.core.errors import ConfigError
from sandlot.core.types import Usage


@dataclass(frozen=True, slots=True)
class Budget:
    """Ceilings of one rollout; `None` for no ceiling.

    `max_tokens` bounds what the server bills: prompt and completion tokens summed over all
    turns, by its own usage figures. `time_limit_s` is wall time less the time spent waiting for
    retries or paused. `reminders` is how many replies in a row may lack a tool call and still
    get another chance.
    """

    max_turns: int = 100
    max_tokens: int | None = None
    time_limit_s: float | None = None
    reminders: int = 3

    def __post_init__(self) -> None:
        for name in ("max_turns", "max_tokens", "time_limit_s"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ConfigError(f"{name} must be above zero, found {value}")
        if self.reminders < 0:
            raise ConfigError(f"reminders must not be negative, found {self.reminders}")


def billed_tokens(usage: Usage) -> int | None:
    """Prompt plus completion tokens, or None where the server reported neither."""
    if usage.prompt_tokens is None and usage.completion_tokens is None:
        return None
    return (usage.prompt_tokens or 0) + (usage.completion_tokens or 0)
