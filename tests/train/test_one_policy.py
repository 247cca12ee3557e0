"""The same policy over the OpenAI-compatible route and in this process: the same tokens."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from chat_gateway import ChatGateway, HashPolicy
from small_chat import REASON, family_tokenizer, template_text, tokenizer

from sandlot.agent.budget import Budget
from sandlot.agent.rollout import run_rollout
from sandlot.core.codec import from_json, to_json
from sandlot.core.tokens import TokenRow, rows_of
from sandlot.core.types import Message, Role, StopReason, Task, TextPart, Trajectory
from sandlot.models.base import Completion, Model, OnDelta, Sampling, ToolSpec
from sandlot.models.fake_server import FakeOpenAIServer
from sandlot.models.openai_chat import OpenAIChatModel
from sandlot.sandbox.fake import FakeSandbox
from sandlot.train.chat import TemplateFormat
from sandlot.train.session import TokenModel

pytest.importorskip("transformers", reason=REASON)

TASK = Task("count", "Count the lines of input/a.txt.", input_files={"a.txt": b"1\n2\n3\n"})
REPLY_TOKENS = 220
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + "
    "message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def hermes(call: str) -> str:
    return f"<tool_call>\n{call}\n</tool_call>"


HERMES_REPLIES = (
    hermes('{"name": "execute_bash", "arguments": {"command": "wc -l input/a.txt"}}'),
    hermes('{ "arguments":{"command":"ls  -a"}, "name":"execute_bash" }'),
    "I look twice.\n"
    + hermes('{"name": "execute_bash", "arguments": {"command": "pwd"}}')
    + "\n"
    + hermes('{"name": "execute_bash", "arguments": {"command": "date \\"+%s\\""}}'),
    hermes('{"name": "execute_bash", "arguments": {"command": '),
    hermes('{"name": "no_such_tool", "arguments": {}}'),
    "What should I do now?",
    "Again and again, " * 80,
)
THOUGHTFUL = tuple(f"<think>\nStep by step.\n</think>\n\n{reply}" for reply in HERMES_REPLIES)
LLAMA_REPLIES = (
    '{"name": "execute_bash", "parameters": {"command": "wc -l input/a.txt"}}',
    '{"parameters":{"command":"ls  -a"},"name":"execute_bash"}',
    '{"name": "execute_bash", "parameters": {"command": "pwd"}}; '
    '{"name": "execute_bash", "parameters": {"command": "date"}}',
    '{"name": "execute_bash", "parameters": {"command": ',
    "What should I do now?",
    "Again and again, " * 80,
)
FENCED_REPLIES = (
    "```bash\nwc -l input/a.txt\n```",
    "I look.\n```bash\nls  -a\n```\n```bash\npwd\n```",
    "```python\nprint()\n```",
    "What should I do now?",
    "```bash\n" + "echo again; " * 80,
)


@dataclass(frozen=True, slots=True)
class Kind:
    """A chat format, and what its policy says."""

    make: Callable[[], TemplateFormat]
    replies: tuple[str, ...]
    last: str


def real(name: str) -> Callable[[], TemplateFormat]:
    return lambda: TemplateFormat(family_tokenizer(name), template=template_text(name))


SUBMIT = hermes('{"name": "submit", "arguments": {}}')
KINDS = {
    "qwen2_5": Kind(real("qwen2_5"), HERMES_REPLIES, SUBMIT),
    "qwen3": Kind(real("qwen3"), THOUGHTFUL, SUBMIT),
    "qwen3_instruct_2507": Kind(real("qwen3_instruct_2507"), HERMES_REPLIES, SUBMIT),
    "llama3_1": Kind(real("llama3_1"), LLAMA_REPLIES, '{"name": "submit", "parameters": {}}'),
    "fenced": Kind(
        lambda: TemplateFormat(tokenizer(), "fenced", template=CHATML),
        FENCED_REPLIES,
        "```submit\n```",
    ),
}


async def play(model: Model, seed: int, extra: dict[str, Any] | None = None) -> Trajectory:
    """One rollout; the seed is part of the task, so each takes another way."""
    sandbox = FakeSandbox(lambda command: f"ran {command!r}\n" * (len(command) % 4))
    trajectory = await run_rollout(
        replace(TASK, prompt=f"{TASK.prompt} Attempt {seed}."),
        model=model,
        sandbox=sandbox,
        budget=Budget(max_turns=20, reminders=8),
        sampling=Sampling(1.0, reply_tokens=REPLY_TOKENS, extra_body=extra or {}),
    )
    return from_json(Trajectory, to_json(trajectory))


async def both_ways(
    kind: Kind, seed: int, around: Callable[[Model], Model] = lambda model: model
) -> tuple[Trajectory, Trajectory]:
    """The same rollout in this process, and through the gateway over loopback HTTP."""
    chat = kind.make()
    policy = HashPolicy(chat, kind.replies, kind.last)
    here = await play(around(TokenModel(policy, chat, "policy")), seed)
    async with FakeOpenAIServer(ChatGateway(kind.make(), policy)) as server:
        url = f"http://127.0.0.1:{server.port}/s/{seed}/v1"
        model = OpenAIChatModel("policy", base_url=url, tool_calls="native")
        there = await play(around(model), seed, {"return_token_ids": True, "logprobs": True})
        await model.close()
    return here, there


def texts(trajectory: Trajectory) -> list[str]:
    return [message.text for message in trajectory.messages if message.role is not Role.ASSISTANT]


def drawn_by_the_policy(row: TokenRow) -> list[tuple[int, ...]]:
    """The runs of sampled tokens of a row."""
    marked = zip(row.ids, row.sampled, strict=True)
    runs = itertools.groupby(marked, key=lambda pair: pair[1])
    return [tuple(token for token, _ in run) for sampled, run in runs if sampled]


@pytest.mark.parametrize("name", KINDS)
async def test_both_routes_give_identical_ids_masks_and_logprobs(name: str) -> None:
    shapes = set()
    for seed in range(6):
        here, there = await both_ways(KINDS[name], seed)
        assert here.stop_reason is there.stop_reason is StopReason.SUBMITTED
        assert texts(here) == texts(there)
        rows = rows_of(here)
        assert rows == rows_of(there)
        assert len(rows) == 1
        assert rows[0].logprobs is not None
        replies = [turn.tokens.completion_ids for turn in here.turns if turn.tokens]
        assert drawn_by_the_policy(rows[0]) == replies
        shapes |= {turn.finish_reason for turn in here.turns}
    assert shapes == {"tool_calls", "stop", "length"}


@dataclass(slots=True)
class Rewriting:
    """A model whose client rewrites what was said, from some call on."""

    inner: Model
    rewrite: Callable[[list[Message]], list[Message]]
    after: int = 3
    sees_images: bool = False
    calls: int = field(default=0)

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
        self.calls += 1
        given = list(messages) if self.calls <= self.after else self.rewrite(list(messages))
        return await self.inner.complete(given, tools, sampling, on_delta)

    async def close(self) -> None:
        await self.inner.close()


def shorten_the_first_result(messages: list[Message]) -> list[Message]:
    return [
        replace(message, parts=(TextPart("(left out)"),)) if at == 3 else message
        for at, message in enumerate(messages)
    ]


def reword_the_first_reply(messages: list[Message]) -> list[Message]:
    """Another command: no longer what the policy drew."""
    (call,) = messages[2].tool_calls
    other = replace(call, arguments='{"command": "true"}')
    return [*messages[:2], Message.assistant("", other), *messages[3:]]


@pytest.mark.parametrize("rewrite", [shorten_the_first_result, reword_the_first_reply])
@pytest.mark.parametrize("name", ["qwen2_5", "qwen3_instruct_2507", "llama3_1"])
async def test_a_rewritten_history_begins_a_new_row_on_both_routes(
    name: str, rewrite: Callable[[list[Message]], list[Message]]
) -> None:
    kind = replace(KINDS[name], replies=KINDS[name].replies[:2])
    for seed in range(3):
        here, there = await both_ways(kind, seed, lambda model: Rewriting(model, rewrite))
        rows = rows_of(here)
        assert rows == rows_of(there)
        assert len(rows) == 2
        drawn = [len(drawn_by_the_policy(row)) for row in rows]
        assert drawn == [3, len(here.turns) - 3]
        before = here.turns[0].tokens
        assert before is not None
        at = len(before.prompt_ids)
        assert rows[1].ids[:at] == before.prompt_ids
        kept = rows[1].ids[at : at + len(before.completion_ids)] == before.completion_ids
        assert kept == (rewrite is shorten_the_first_result)


async def test_a_reply_that_is_drawn_byte_by_byte_stays_so_on_both_routes() -> None:
    """Most text has many tokenisations; put into tokens anew, a row would hold another one."""
    kind = KINDS["qwen2_5"]
    chat = kind.make()
    canonical = {tuple(chat.tokenizer.encode(each)) for each in kind.replies}
    found = 0
    for seed in range(4):
        here, there = await both_ways(kind, seed)
        assert rows_of(here) == rows_of(there)
        for turn in here.turns:
            assert turn.tokens is not None
            ids = turn.tokens.completion_ids
            whole = ids[-1] == chat.end_of_turn
            found += whole and ids[:-1] not in canonical
    assert found > 0
