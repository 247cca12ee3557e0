"""The tool seam: parsed arguments and a sandbox in, an observation out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from sandlot.core.types import CommandMeter, Part, TextPart
from sandlot.models.base import ToolSpec
from sandlot.sandbox.base import Sandbox


@dataclass(frozen=True, slots=True)
class ToolContext:
    """What a tool may know of the rollout. `observation_chars` caps the text of one result."""

    sandbox: Sandbox
    observation_chars: int = 16_000
    sees_images: bool = False


@dataclass(frozen=True, slots=True)
class Observation:
    """What the model is told. `ok` is False for a call that could not be carried out as written.

    `submitted` ends the rollout after the reply's other calls were answered.
    """

    parts: tuple[Part, ...]
    ok: bool = True
    submitted: bool = False
    command: CommandMeter | None = None

    @classmethod
    def of(cls, text: str, *, ok: bool = True) -> Observation:
        return cls((TextPart(text),), ok=ok)


class Tool(Protocol):
    spec: ToolSpec

    async def run(self, arguments: Mapping[str, Any], context: ToolContext) -> Observation:
        """Carry out a call whose arguments already fit `spec.parameters`.

        Raises:
            SandboxDied: the sandbox is gone. Every other failure is an observation.
        """
        ...
