"""The policy as a model: its tokens are recorded as drawn, and come back as drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from small_chat import TOOLS, family_tokenizer, template_text

from sandlot.agent.prompts import Profile
from sandlot.agent.rollout import run_rollout
from sandlot.core.errors import ConfigError, ContextOverflow, ModelError
from sandlot.core.tokens import rows_of
from sandlot.core.types import Message, StopReason, Task
from sandlot.models.base import Sampling
from sandlot.sandbox.fake import FakeSandbox
from sandlot.train.base import SAMPLED_IDS, Draw, Drawn
from sandlot.train.chat import TemplateFormat
from sandlot.train.session import DEFAULT_REPLY_TOKENS, TokenModel

LS = '<tool_call>\n{"name": "execute_bash", "arguments": {"command":  "ls"}}\n</tool_call>'
SUBMIT = '<tool_call>\n{"arguments": {}, "name": "submit"}\n</tool_call>'


@dataclass(slots=True)
class WrittenEngine:
    """Draws what it was told, and keeps what it was asked."""

    replies: list[Sequence[int] | Exception]
    finish: str = "stop"
    context_tokens: int = 4096
    asked: list[tuple[tuple[int, ...], Draw]] = field(default_factory=list)

    async def sample(self, prompt: Sequence[int], draw: Draw) -> Drawn:
        self.asked.append((tuple(prompt), draw))
        reply = self.replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        logprobs = tuple(-0.5 - at / 100 for at in range(len(reply)))
        return Drawn(tuple(reply), logprobs, self.finish)  # type: ignore[arg-type]

    async def close(self) -> None:
        raise AssertionError("a rollout must not close the engine that others use")


@pytest.fixture(scope="module")
def chat() -> TemplateFormat:
    return TemplateFormat(family_tokenizer("qwen3"), template=template_text("qwen3_instruct_2507"))


def ids_of(chat: TemplateFormat, text: str) -> list[int]:
    ids: list[int] = chat.tokenizer.encode(text, add_special_tokens=False)
    return [*ids, chat.end_of_turn]


def model_of(chat: TemplateFormat, *texts: str, **more: Any) -> tuple[TokenModel, WrittenEngine]:
    engine = WrittenEngine([ids_of(chat, text) for text in texts])
    return TokenModel(engine, chat, **more), engine


async def test_what_was_drawn_is_recorded_and_stands_in_the_next_prompt(
    chat: TemplateFormat,
) -> None:
    """Calls in a form that no template would write: they are never written again from messages."""
    model, engine = model_of(chat, f"I look.\n{LS}", LS, SUBMIT, seed=4)
    trajectory = await run_rollout(
        Task("t", "List the files."),
        model=model,
        sandbox=FakeSandbox({"ls": "a.txt\n"}),
        profile=Profile("p", "{problem_statement}"),
    )
    assert trajectory.stop_reason is StopReason.SUBMITTED
    (row,) = rows_of(trajectory)
    at, drawn = 0, []
    for (prompt, _), turn in zip(engine.asked, trajectory.turns, strict=True):
        assert turn.tokens is not None
        assert prompt == turn.tokens.prompt_ids == row.ids[: len(prompt)]
        at = len(prompt) + len(turn.tokens.completion_ids)
        assert row.ids[len(prompt) : at] == turn.tokens.completion_ids
        drawn += turn.tokens.logprobs or ()
    assert at == len(row.ids)
    assert row.logprobs is not None
    assert [each for each, own in zip(row.logprobs, row.sampled, strict=True) if own] == drawn
    assert row.sampled_tokens == sum(len(ids_of(chat, x)) for x in (f"I look.\n{LS}", LS, SUBMIT))
    assert trajectory.turns[0].usage.prompt_tokens == len(engine.asked[0][0])
    assert trajectory.turns[0].usage.completion_tokens == len(ids_of(chat, f"I look.\n{LS}"))


async def test_each_call_of_a_rollout_draws_from_a_seed_of_its_own(chat: TemplateFormat) -> None:
    seeds = []
    for seed in (1, 1, 2):
        model, engine = model_of(chat, "a", "b", "c", seed=seed)
        for _ in range(3):
            await model.complete([Message.user("x")])
        seeds.append([draw.seed for _, draw in engine.asked])
    assert seeds[0] == seeds[1]
    assert len({*seeds[0], *seeds[2]}) == 6


async def test_sampling_reaches_the_engine(chat: TemplateFormat) -> None:
    model, engine = model_of(chat, "a", "b", "c")
    sampling = Sampling(
        temperature=0.7, top_p=0.8, reply_tokens=33, seed=5, extra_body={"top_k": 20}
    )
    await model.complete([Message.user("x")], TOOLS, sampling)
    await model.complete([Message.user("x")])
    await model.complete([Message.user("x")], (), Sampling(temperature=0.0))
    draws = [draw for _, draw in engine.asked]
    assert draws[0] == Draw(33, chat.stop_ids, 0.7, 0.8, 20, seed=5 * 1_000_003)
    assert draws[1] == Draw(DEFAULT_REPLY_TOKENS, chat.stop_ids)
    assert draws[2].temperature == 0.0


async def test_a_field_that_no_engine_takes_is_refused(chat: TemplateFormat) -> None:
    model, _ = model_of(chat, "a")
    with pytest.raises(ConfigError, match="no extra field 'min_p'"):
        await model.complete([Message.user("x")], (), Sampling(extra_body={"min_p": 0.1}))


@pytest.mark.parametrize(
    ("text", "finish", "said"),
    [
        ("a", "length", "length"),
        ("a", "stop", "stop"),
        (LS, "stop", "tool_calls"),
        (LS, "length", "length"),
    ],
)
async def test_a_reply_says_how_it_ended(
    chat: TemplateFormat, text: str, finish: str, said: str
) -> None:
    model, engine = model_of(chat, text)
    engine.finish = finish
    heard: list[str] = []
    completion = await model.complete(
        [Message.user("x")], TOOLS, on_delta=lambda text, _: heard.append(text)
    )
    assert completion.finish_reason == said
    assert bool(completion.message.tool_calls) == (said == "tool_calls")
    assert completion.message.extra[SAMPLED_IDS] == ids_of(chat, text)
    assert heard == ([] if said == "tool_calls" else [text])


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ContextOverflow("too long"), StopReason.CONTEXT_FULL),
        (ModelError("drawing failed"), StopReason.MODEL_ERROR),
    ],
)
async def test_what_the_engine_raises_ends_the_rollout_as_of_any_model(
    chat: TemplateFormat, error: Exception, reason: StopReason
) -> None:
    model = TokenModel(WrittenEngine([ids_of(chat, LS), error]), chat)
    trajectory = await run_rollout(
        Task("t", "x"),
        model=model,
        sandbox=FakeSandbox({"ls": ""}),
        profile=Profile("p", "{problem_statement}"),
    )
    assert trajectory.stop_reason is reason
    assert len(trajectory.turns) == 1


async def test_seconds_at_the_engine_are_summed(chat: TemplateFormat) -> None:
    ticks = iter((10.0, 12.5, 20.0, 21.0))
    model, _ = model_of(chat, "a", "b", clock=lambda: next(ticks))
    await model.complete([Message.user("x")])
    await model.complete([Message.user("x")])
    assert model.model_s == 3.5
    await model.close()
