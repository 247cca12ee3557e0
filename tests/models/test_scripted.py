"""The scripted model: a double that is itself tested."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandlot.core.errors import ConfigError, ContextOverflow, ModelError
from sandlot.core.types import Message, Usage
from sandlot.models.base import Completion
from sandlot.models.scripted import ScriptedModel, bash, calls, edit, say, submit

ASK = [Message.user("go")]


def write(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "script.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


async def test_replies_come_in_order_and_requests_are_recorded() -> None:
    model = ScriptedModel(bash("echo 4"), "four", say("bye"))
    first = await model.complete(ASK)
    second = await model.complete([*ASK, first.message])
    assert first.message.tool_calls[0].arguments == '{"command": "echo 4"}'
    assert first.finish_reason == "tool_calls"
    assert (second.message.text, second.finish_reason) == ("four", "stop")
    assert [len(request.messages) for request in model.requests] == [1, 2]


async def test_usage_is_unknown_unless_the_script_says_it() -> None:
    model = ScriptedModel("a", Completion(say("b"), Usage(prompt_tokens=3)))
    assert (await model.complete(ASK)).usage == Usage()
    assert (await model.complete(ASK)).usage.prompt_tokens == 3


async def test_an_exception_is_raised_in_its_turn() -> None:
    model = ScriptedModel(ModelError("503 from provider"), "back")
    with pytest.raises(ModelError, match="503"):
        await model.complete(ASK)
    assert (await model.complete(ASK)).message.text == "back"


async def test_a_callable_sees_the_request() -> None:
    model = ScriptedModel(lambda request: request.messages[-1].text.upper())
    assert (await model.complete(ASK)).message.text == "GO"


async def test_running_out_of_replies_says_so() -> None:
    with pytest.raises(ModelError, match="0 replies and all were played"):
        await ScriptedModel().complete(ASK)


async def test_call_ids_are_unique_in_a_conversation_and_the_same_each_time() -> None:
    async def play() -> list[str]:
        model = ScriptedModel(bash("a"), calls(bash("b"), bash("c")), submit())
        history = list(ASK)
        for _ in range(3):
            history.append((await model.complete(history)).message)
        return [call.id for message in history for call in message.tool_calls]

    ids = await play()
    assert len(set(ids)) == 4
    assert await play() == ids


async def test_deltas_carry_text_and_reasoning() -> None:
    seen: list[tuple[str, str]] = []
    model = ScriptedModel(say("hi", reasoning="hm"))
    await model.complete(ASK, on_delta=lambda text, thought: seen.append((text, thought)))
    assert seen == [("hi", "hm")]


def test_edit_passes_its_parameters_on() -> None:
    message = edit("create", "/a b.txt", file_text="x")
    expected = '{"command": "create", "path": "/a b.txt", "file_text": "x"}'
    assert message.tool_calls[0].arguments == expected


async def test_a_file_is_played_with_all_its_fields(tmp_path: Path) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    path = write(
        tmp_path,
        '{"text": "t", "reasoning": "r", "usage": {"prompt_tokens": 7}, "delay_s": 0.5}',
        "",
        '{"tool_calls": [{"name": "submit"}, {"name": "x", "arguments": "{raw"}]}',
        '{"text": "cut", "finish_reason": "length"}',
        '{"error": {"message": "full", "type": "context_overflow", "status": 400}}',
    )
    model = ScriptedModel.from_file(path, sleep=sleep)
    first = await model.complete(ASK)
    assert (first.message.text, first.message.reasoning) == ("t", "r")
    assert first.usage == Usage(prompt_tokens=7)
    assert slept == [0.5]
    second = (await model.complete([*ASK, first.message])).message.tool_calls
    assert [call.arguments for call in second] == ["{}", "{raw"]
    assert (await model.complete(ASK)).finish_reason == "length"
    with pytest.raises(ContextOverflow, match="full"):
        await model.complete(ASK)


async def test_a_resumed_conversation_goes_on_in_the_script_where_it_stopped(
    tmp_path: Path,
) -> None:
    path = write(tmp_path, '{"text": "one"}', '{"text": "two"}', '{"text": "three"}')
    history = [*ASK, say("one"), say("two")]
    assert (await ScriptedModel.from_file(path).complete(history)).message.text == "three"


async def test_a_script_that_the_conversation_never_played_starts_at_its_beginning(
    tmp_path: Path,
) -> None:
    path = write(tmp_path, '{"text": "more"}')
    history = [*ASK, say("other"), Message.user("and now")]
    assert (await ScriptedModel.from_file(path).complete(history)).message.text == "more"


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("{", r":2: not a JSON object"),
        ("[]", r":2: expected a JSON object"),
        ('{"txt": "a"}', r":2:txt: no such field"),
        ('{"text": 3}', r":2:text: has the wrong type"),
        ('{"tool_calls": [{"arguments": {}}]}', r":2:tool_calls\[0\].name: missing"),
        ('{"tool_calls": [{"name": "a", "arguments": 1}]}', r":2:tool_calls\[0\].arguments"),
        ('{"usage": {"tokens": 1}}', r":2:usage.tokens: no such count"),
        ('{"error": {"type": "x"}}', r":2:error.type"),
        ('{"delay_s": "long"}', r":2:delay_s"),
    ],
)
def test_a_bad_line_is_named_by_file_line_and_field(tmp_path: Path, line: str, named: str) -> None:
    path = write(tmp_path, '{"text": "fine"}', line)
    with pytest.raises(ConfigError, match=r"script\.jsonl" + named):
        ScriptedModel.from_file(path)


def test_a_missing_script_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        ScriptedModel.from_file(tmp_path / "none.jsonl")
