"""The seams of training: a chat format turns messages into tokens, an engine draws tokens.

    messages -> ChatFormat.render -> ids -> TokenEngine.sample -> ids -> ChatFormat.read -> message

Tokens are recorded where they are drawn (`models.base.Completion.tokens`) and never made again
from messages; `core.tokens.rows_of` reads them out of a trajectory. No torch here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from sandlot.core.tokens import TokenRow
from sandlot.core.types import Message
from sandlot.models.base import ToolSpec

Ids = tuple[int, ...]

SAMPLED_IDS = "sampled_ids"
"""Key in `Message.extra` of a reply: the ids that the policy drew for it, end of turn included."""


@dataclass(frozen=True, slots=True)
class Draw:
    """How to draw one reply. `temperature` 0 takes the likeliest token; `top_k` 0 means all.

    Drawing ends at the first of `stop_ids` (kept in the reply) or after `max_tokens`.
    """

    max_tokens: int
    stop_ids: frozenset[int]
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Drawn:
    """One reply in tokens; `logprobs` (nats) are those of the distribution that was drawn from."""

    ids: Ids
    logprobs: tuple[float, ...]
    finish: Literal["stop", "length"]


class TokenEngine(Protocol):
    """Draws tokens from the policy. Calls may overlap; an engine batches them as it can."""

    context_tokens: int

    async def sample(self, prompt: Sequence[int], draw: Draw) -> Drawn:
        """Raises:
        ContextOverflow: prompt and reply do not fit.
        ModelError: the engine or its server failed.
        """
        ...

    async def close(self) -> None: ...


class ChatFormat(Protocol):
    """A model's own way to write a conversation, both ways."""

    stop_ids: frozenset[int]

    def render(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> Ids:
        """The prompt of the next reply.

        A reply that carries `SAMPLED_IDS` enters as those ids, whatever its text says; other
        messages as the model's template writes them. Appending messages only appends ids.
        """
        ...

    def read(self, ids: Sequence[int], tools: Sequence[ToolSpec], *, cut: bool = False) -> Message:
        """The assistant message of drawn ids; calls that cannot be read become malformed calls.

        A reply that was cut at its length limit calls nothing.
        """
        ...


@dataclass(frozen=True, slots=True)
class Episode:
    """One rollout as training sees it.

    `group` names the task and step whose rollouts share a baseline. `reward` is in [0, 1], or None
    (missing, with the reason) where a failure of ours leaves nothing to learn from. `figures` are
    what the curves show (turns, tokens, seconds in model and sandbox, capabilities).
    """

    group: str
    task_id: str
    rows: tuple[TokenRow, ...]
    reward: float | None
    missing: str | None = None
    stop_reason: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)


Note = Callable[[str], None]
"""Gets a line about what takes time or was passed over."""
