"""Tool calls as text: what a model wrote, what it is shown."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from sandlot.core.types import ImagePart, Message, Role, TextPart, ToolCall
from sandlot.models.base import ToolSpec
from sandlot.models.hermes import (
    MALFORMED_NAME,
    parse_message,
    parse_reply,
    render_tools,
    split_reasoning,
)
from sandlot.models.text_form import FORMS

to_text_messages = FORMS["text"].to_text_messages

BASH = ToolSpec(
    "execute_bash",
    "Run a command.",
    {"type": "object", "properties": {"command": {"type": "string"}}},
)


def numbered() -> Callable[[], str]:
    numbers = itertools.count()
    return lambda: f"id_{next(numbers)}"


def test_one_call_is_read_and_the_text_before_it_kept() -> None:
    block = '<tool_call>{"name": "execute_bash", "arguments": {"command": "ls"}}</tool_call>'
    text, calls = parse_reply(f"Let me look.\n{block}", numbered())
    assert text == "Let me look."
    assert calls == (ToolCall("id_0", "execute_bash", '{"command": "ls"}'),)


def test_several_calls_come_in_their_order_with_ids_of_their_own() -> None:
    text = '<tool_call>{"name": "a"}</tool_call> then <tool_call>{"name": "b"}</tool_call>'
    said, calls = parse_reply(text, numbered())
    assert said == "then"
    assert [(call.id, call.name, call.arguments) for call in calls] == [
        ("id_0", "a", "{}"),
        ("id_1", "b", "{}"),
    ]


def test_text_without_a_tag_comes_back_unchanged() -> None:
    assert parse_reply('  {"name": "a"} \n', numbered()) == ('  {"name": "a"} \n', ())


def test_a_closing_tag_inside_the_command_does_not_end_the_call() -> None:
    arguments = {"command": "echo '</tool_call>'"}
    body = json.dumps({"name": "execute_bash", "arguments": arguments})
    said, calls = parse_reply(f"<tool_call>{body}</tool_call>", numbered())
    assert said == ""
    assert json.loads(calls[0].arguments) == arguments


def test_raw_newlines_inside_a_string_are_read_as_meant() -> None:
    text = '<tool_call>{"name": "t", "arguments": {"command": "a\nb\tc"}}</tool_call>'
    _, calls = parse_reply(text, numbered())
    assert json.loads(calls[0].arguments) == {"command": "a\nb\tc"}


def test_broken_json_becomes_a_call_with_its_raw_text() -> None:
    raw = '{"name": "execute_bash", "arguments": {"command": "ls"'
    _, calls = parse_reply(f"<tool_call>{raw}</tool_call>", numbered())
    assert calls == (ToolCall("id_0", "execute_bash", raw),)


def test_a_block_without_a_name_gets_a_name_that_no_tool_has() -> None:
    _, calls = parse_reply("<tool_call>ls -l</tool_call>", numbered())
    assert calls == (ToolCall("id_0", MALFORMED_NAME, "ls -l"),)


def test_text_after_the_json_makes_the_block_malformed() -> None:
    raw = '{"name": "execute_bash", "arguments": {}}}'
    _, calls = parse_reply(f"<tool_call>{raw}</tool_call>", numbered())
    assert calls[0].arguments == raw


def test_a_call_whose_closing_tag_was_cut_off_still_counts() -> None:
    _, calls = parse_reply('<tool_call>{"name": "submit", "arguments": {}}', numbered())
    assert calls == (ToolCall("id_0", "submit", "{}"),)


def test_a_call_inside_the_thinking_block_is_only_a_thought() -> None:
    thought = 'I could <tool_call>{"name": "rm"}</tool_call>'
    message = parse_message(f"<think>{thought}</think>No.", numbered())
    assert (message.reasoning, message.text, message.tool_calls) == (thought, "No.", ())
    assert parse_reply(f"<think>{thought}</think>No.", numbered())[1] == ()


def test_thinking_is_split_off_before_a_call() -> None:
    text = '<think>\nhm\n</think>\n\nOn it. <tool_call>{"name": "submit"}</tool_call>'
    message = parse_message(text, numbered())
    assert message.reasoning == "hm"
    assert message.text == "On it."
    assert [call.name for call in message.tool_calls] == ["submit"]


def test_a_closing_tag_alone_and_a_block_cut_short_are_thinking_too() -> None:
    assert split_reasoning("so\n</think>\nyes") == ("so", "yes")
    assert split_reasoning("<think>and then I") == ("and then I", "")
    assert split_reasoning("plain") == (None, "plain")


def test_a_reply_goes_back_exactly_as_the_model_wrote_it() -> None:
    text = '<think>a</think>  x <tool_call>\n{"name":"submit"}\n</tool_call>\n'
    message = parse_message(text, numbered())
    assert to_text_messages([message])[0].text == text


def test_native_calls_and_results_become_text() -> None:
    call = ToolCall("c1", "execute_bash", '{"command": "ls"}')
    history = [Message.assistant("Look.", call), Message.tool("c1", TextPart("a.txt"))]
    said, result = to_text_messages(history)
    assert said.text == (
        'Look.\n<tool_call>{"name": "execute_bash", "arguments": {"command": "ls"}}</tool_call>'
    )
    assert said.tool_calls == ()
    assert (result.role, result.text) == (
        Role.USER,
        "<tool_response>\na.txt\n</tool_response>",
    )


def test_a_picture_in_a_result_stays_a_picture() -> None:
    picture = ImagePart(b"x", "image/png")
    (result,) = to_text_messages([Message.tool("c", TextPart("see"), picture)])
    assert result.parts[-1] == picture


def test_a_malformed_call_is_shown_back_as_it_was_written() -> None:
    (said,) = to_text_messages([Message.assistant("", ToolCall("c", "t", "{oops"))])
    assert said.text == "<tool_call>{oops</tool_call>"


def test_the_tool_list_joins_the_system_message_or_becomes_one() -> None:
    with_system = to_text_messages([Message.system("Be brief."), Message.user("hi")], [BASH])
    assert with_system[0].text.startswith("Be brief.\n\n")
    assert "execute_bash" in with_system[0].text
    without = to_text_messages([Message.user("hi")], [BASH])
    assert [message.role for message in without] == [Role.SYSTEM, Role.USER]
    assert render_tools(()) == ""


words = st.text(max_size=40)
messages = st.one_of(
    st.builds(Message.user, words),
    st.builds(lambda text: Message.tool("c", TextPart(text)), words),
    st.builds(lambda text, raw: Message.assistant(text, ToolCall("c", "t", raw)), words, words),
    st.builds(lambda text: parse_message(text, lambda: "c"), words),
)


@given(st.lists(messages, max_size=6), st.lists(messages, max_size=3))
def test_later_messages_never_change_how_earlier_ones_read(
    first: list[Message], later: list[Message]
) -> None:
    before = to_text_messages([Message.system("s"), *first], [BASH])
    after = to_text_messages([Message.system("s"), *first, *later], [BASH])
    assert after[: len(before)] == before


@given(st.text(alphabet='<>/tool_cal{}":, \nanmergus', max_size=200))
def test_no_text_breaks_the_parser(text: str) -> None:
    said, calls = parse_reply(text, numbered())
    assert isinstance(said, str)
    assert all(call.name for call in calls)


@given(words, st.dictionaries(st.text(min_size=1), words, max_size=3))
def test_what_is_rendered_is_read_back(text: str, arguments: dict[str, str]) -> None:
    call = ToolCall("id_0", "some_tool", json.dumps(arguments))
    (shown,) = to_text_messages([Message.assistant("", call)])
    _, calls = parse_reply(shown.text, numbered())
    assert json.loads(calls[0].arguments) == arguments
