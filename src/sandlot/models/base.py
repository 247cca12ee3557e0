"""The model seam: messages and tools in, one completion out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from sandlot.core.types import Message, TokenRecord, Usage


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A tool as a model sees it; `parameters` is a JSON schema of an object."""

    name: str
    description: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample. `None` leaves the server's own default.

    `reply_tokens` bounds one reply; `extra_body` is merged into the request as it is.
    """

    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    reply_tokens: int | None = None
    extra_body: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Completion:
    """One reply. `finish_reason` is stop, tool_calls, length or content_filter.

    `waiting_s` is time spent waiting for a retry (rate limits, outages); it is not model time.
    """

    message: Message
    usage: Usage = field(default_factory=Usage)
    finish_reason: str = "stop"
    waiting_s: float = 0.0
    retries: int = 0
    raw: Mapping[str, Any] = field(default_factory=dict)
    tokens: TokenRecord | None = None


OnDelta = Callable[[str, str], None]
"""Called with (text, reasoning) pieces while a reply streams."""


class Model(Protocol):
    """A language model. Implementations keep no conversation: `messages` is the whole of it."""

    @property
    def name(self) -> str: ...

    @property
    def sees_images(self) -> bool: ...

    async def complete(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolSpec] = (),
        sampling: Sampling | None = None,
        on_delta: OnDelta | None = None,
    ) -> Completion:
        """One reply to the messages. Streams only when `on_delta` is given.

        Raises:
            ContextOverflow: the request does not fit the model's context.
            ModelError: no usable reply, after the retries that make sense.
        """
        ...

    async def close(self) -> None: ...
