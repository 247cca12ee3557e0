"""The policy as a model: the rollout speaks messages to it, and its tokens are recorded."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count

from sandlot.core.errors import ConfigError
from sandlot.core.types import Message, TokenRecord, Usage
from sandlot.models.base import Completion, OnDelta, Sampling, ToolSpec
from sandlot.train.base import ChatFormat, Draw, TokenEngine

DEFAULT_REPLY_TOKENS = 1024


@dataclass(slots=True)
class TokenModel:
    """A `Model` over a chat format and a token engine; keeps no conversation of its own.

    The ids of each reply travel in its message (`SAMPLED_IDS`), so the next prompt holds them just
    as they were drawn. `seed` makes the draws of one rollout repeatable: each call takes the next
    of a sequence of its own. `model_s` sums the seconds spent waiting for the engine.
    """

    engine: TokenEngine
    chat: ChatFormat
    name: str = "policy"
    seed: int | None = None
    sees_images: bool = False
    clock: Callable[[], float] = time.perf_counter
    model_s: float = 0.0
    _calls: count[int] = field(default_factory=count)

    async def complete(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolSpec] = (),
        sampling: Sampling | None = None,
        on_delta: OnDelta | None = None,
    ) -> Completion:
        """One reply with its tokens.

        Raises:
            ContextOverflow: prompt and reply do not fit the engine.
            ModelError: the engine failed.
        """
        began = self.clock()
        prompt = self.chat.render(messages, tools)
        drawn = await self.engine.sample(prompt, self._draw(sampling or Sampling()))
        cut = drawn.finish == "length"
        message = self.chat.read(drawn.ids, tools, cut=cut)
        self.model_s += self.clock() - began
        if on_delta is not None and message.text:
            on_delta(message.text, "")
        return Completion(
            message,
            Usage(prompt_tokens=len(prompt), completion_tokens=len(drawn.ids)),
            "length" if cut else "tool_calls" if message.tool_calls else "stop",
            tokens=TokenRecord(prompt, drawn.ids, drawn.logprobs),
        )

    def _draw(self, sampling: Sampling) -> Draw:
        body = sampling.extra_body
        unknown = sorted(body.keys() - {"top_k"})
        if unknown:
            raise ConfigError(f"the policy takes no extra field {unknown[0]!r} (have: top_k)")
        seed = sampling.seed if self.seed is None else self.seed
        return Draw(
            max_tokens=sampling.reply_tokens or DEFAULT_REPLY_TOKENS,
            stop_ids=self.chat.stop_ids,
            temperature=1.0 if sampling.temperature is None else sampling.temperature,
            top_p=1.0 if sampling.top_p is None else sampling.top_p,
            top_k=int(body.get("top_k", 0)),
            seed=None if seed is None else seed * 1_000_003 + next(self._calls),
        )

    async def close(self) -> None:
        """The engine is shared and outlives the rollout; whoever made it closes it."""
