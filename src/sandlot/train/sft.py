"""Supervised fine-tuning on token rows: the warm start, and distillation from good trajectories."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from sandlot.core.tokens import TokenRow
from sandlot.core.types import Message, TokenRecord, Usage
from sandlot.models.base import Completion, Model, OnDelta, Sampling, ToolSpec
from sandlot.train.base import SAMPLED_IDS
from sandlot.train.chat import TemplateFormat
from sandlot.train.objective import batches, model_logprobs, pad
from sandlot.train.weights import MasterAdamW


@dataclass(slots=True)
class WrittenModel:
    """A policy without tokens (a clerk, a recorded conversation), written in a model's own format.

    What it says enters the record as if the policy had drawn it, at log probability 0.
    """

    inner: Model
    chat: TemplateFormat

    @property
    def sees_images(self) -> bool:
        return False

    @property
    def name(self) -> str:
        return self.inner.name

    async def complete(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolSpec] = (),
        sampling: Sampling | None = None,
        on_delta: OnDelta | None = None,
    ) -> Completion:
        said = await self.inner.complete(messages, tools, sampling, on_delta)
        prompt = self.chat.render(messages, tools)
        ids = self.chat.write(said.message, tools)
        message = replace(said.message, extra={**said.message.extra, SAMPLED_IDS: list(ids)})
        tokens = TokenRecord(prompt, ids, (0.0,) * len(ids))
        usage = Usage(prompt_tokens=len(prompt), completion_tokens=len(ids))
        return replace(said, message=message, usage=usage, tokens=tokens)

    async def close(self) -> None:
        await self.inner.close()


@dataclass(frozen=True, slots=True)
class SftSettings:
    """`rows_a_step` rows make one optimiser step, in passes of at most `token_budget` tokens.

    The rate rises over `warmup` of the steps and falls as a cosine to a tenth.
    """

    epochs: int = 1
    rows_a_step: int = 8
    token_budget: int = 4096
    lr: float = 3e-4
    warmup: float = 0.1


@dataclass(frozen=True, slots=True)
class SftStep:
    """`loss` is the mean over sampled tokens (nats); `tokens` counts those."""

    number: int
    of: int
    loss: float
    tokens: int
    lr: float
    norm: float


def plan_steps(rows: int, settings: SftSettings, seed: int) -> list[list[int]]:
    """Which rows each step takes: every epoch all of them, in an order of its own."""
    steps = []
    for epoch in range(settings.epochs):
        order = list(range(rows))
        Random(f"sandlot sft {seed} {epoch}").shuffle(order)
        size = settings.rows_a_step
        steps += [order[at : at + size] for at in range(0, rows, size)]
    return steps


def plan_stages(
    kinds: Sequence[str],
    stages: Sequence[tuple[int, Mapping[str, float]]],
    size: int,
    seed: int,
) -> list[list[int]]:
    """Which rows each step takes where a warm start goes in stages.

    Args:
        kinds: of each row.
        stages: how many steps, and the share of each kind; a kind with a share has rows.
        size: rows a step. All rows of a kind have been taken before one comes again.
    """
    rng = Random(f"sandlot stages {seed}")
    rows = {kind: [at for at, each in enumerate(kinds) if each == kind] for kind in {*kinds}}
    left: dict[str, list[int]] = {kind: [] for kind in rows}

    def take(kind: str) -> int:
        if not left[kind]:
            left[kind] = rng.sample(rows[kind], len(rows[kind]))
        return left[kind].pop()

    return [
        [take(kind) for kind in rng.choices(list(shares), list(shares.values()), k=size)]
        for steps, shares in stages
        for _ in range(steps)
    ]


def rate(step: int, of: int, settings: SftSettings) -> float:
    """The learning rate of a step, counted from 0."""
    rising = max(1, round(of * settings.warmup))
    if step < rising:
        return settings.lr * (step + 1) / rising
    done = (step - rising) / max(1, of - rising)
    return settings.lr * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done)))


def fine_tune(
    model: Any,
    optimiser: MasterAdamW,
    rows: Sequence[TokenRow],
    settings: SftSettings,
    *,
    seed: int,
    start: int = 0,
    steps: Sequence[Sequence[int]] | None = None,
) -> Iterator[SftStep]:
    """Raise the likelihood of the sampled tokens of `rows`; yields after each optimiser step.

    `start` skips steps that were already made (of a run that goes on). `steps` says which rows
    each takes, in place of `plan_steps`.
    """
    steps = plan_steps(len(rows), settings, seed) if steps is None else steps
    model.train()
    for number in range(start, len(steps)):
        chosen = [rows[index] for index in steps[number]]
        tokens = sum(row.sampled_tokens for row in chosen)
        total = 0.0
        for part in batches([len(row.ids) for row in chosen], settings.token_budget):
            batch = pad([chosen[index] for index in part], need_logprobs=False)
            loss = -model_logprobs(model, batch.to(_device(model))).sum() / tokens
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        lr = rate(number, len(steps), settings)
        norm = optimiser.step(lr)
        yield SftStep(number + 1, len(steps), total, tokens, lr, norm)


def _device(model: Any) -> Any:
    return next(model.parameters()).device
