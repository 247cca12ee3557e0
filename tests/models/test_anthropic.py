"""Anthropic's wire format, against the fake server."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from sandlot.core.errors import ContextOverflow, ModelError
from sandlot.core.types import ImagePart, Message, TextPart, ToolCall
from sandlot.models.base import Sampling, ToolSpec
from sandlot.models.fake_server import Answer, FakeOpenAIServer, Hang, Status, Stream, failure

pytest.importorskip("anthropic", reason="the extra 'anthropic' is not installed")

from sandlot.models.anthropic import AnthropicModel

KEY = "sk-ant-canary-0123456789"
ASK = [Message.system("Be brief."), Message.user("What is 2+2?")]
BASH = ToolSpec("execute_bash", "Run a command.", {"type": "object", "properties": {}})
THINKING = {"type": "thinking", "thinking": "hm", "signature": "c2ln"}
CALL = {"type": "tool_use", "id": "t1", "name": "execute_bash", "input": {"command": "ls"}}


@asynccontextmanager
async def talking(
    *answers: Answer, **options: Any
) -> AsyncIterator[tuple[AnthropicModel, FakeOpenAIServer]]:
    async def sleep(seconds: float) -> None:
        await anyio.lowlevel.checkpoint()

    async with FakeOpenAIServer(answers) as server:
        # The server's base URL ends in /v1, which the client adds itself.
        model = AnthropicModel("m", base_url=server.base_url, api_key=KEY, sleep=sleep, **options)
        try:
            yield model, server
        finally:
            await model.close()


def whole(*blocks: Mapping[str, Any], stop_reason: str = "end_turn", **usage: int) -> Status:
    body = {
        "type": "message",
        "role": "assistant",
        "content": list(blocks),
        "stop_reason": stop_reason,
        "usage": {"input_tokens": 10, "output_tokens": 5, **usage},
    }
    return Status(200, body)


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def events(*pieces: Mapping[str, Any], stop: bool = True) -> Stream:
    start = {"type": "message_start", "message": {"usage": {"input_tokens": 3}}}
    tail: Sequence[Mapping[str, Any]] = (
        {
            "type": "message_delta",
            "delta": {"stop_reason": "tool_use"},
            "usage": {"output_tokens": 9},
        },
        {"type": "message_stop"},
    )
    return Stream([start, *pieces, *(tail if stop else ())], done=False)


def block(index: int, start: Mapping[str, Any], *deltas: Mapping[str, Any]) -> list[Any]:
    head = {"type": "content_block_start", "index": index, "content_block": start}
    body = [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
    return [head, *body, {"type": "content_block_stop", "index": index}]


async def test_a_request_has_the_wire_form_of_the_api() -> None:
    async with talking(whole(text("4"))) as (model, server):
        completion = await model.complete(ASK, [BASH], Sampling(reply_tokens=99))
    request = server.requests[0]
    assert request.path == "/v1/messages"
    assert any(KEY in value for value in request.headers.values())
    assert request.json == {
        "model": "m",
        "max_tokens": 99,
        "messages": [{"role": "user", "content": [text("What is 2+2?")]}],
        "cache_control": {"type": "ephemeral"},
        "system": "Be brief.",
        "tools": [
            {
                "name": "execute_bash",
                "description": "Run a command.",
                "input_schema": {"type": "object", "properties": {}},
            }
        ],
    }
    assert (completion.message.text, completion.finish_reason) == ("4", "stop")


async def test_blocks_with_signatures_are_sent_back_as_they_were_received() -> None:
    async with talking(
        whole(THINKING, text("Look."), CALL, stop_reason="tool_use"), whole(text("ok"))
    ) as (model, server):
        completion = await model.complete(ASK, [BASH])
        result = Message.tool("t1", TextPart("a.txt"), ImagePart(b"x", "image/png"))
        await model.complete([*ASK, completion.message, result], [BASH])
    message = completion.message
    assert (message.reasoning, message.text) == ("hm", "Look.")
    assert message.tool_calls == (ToolCall("t1", "execute_bash", '{"command": "ls"}'),)
    assert completion.finish_reason == "tool_calls"
    sent = server.requests[1].json["messages"]
    assert sent[1]["content"] == [THINKING, text("Look."), CALL]
    assert sent[2]["content"][0]["tool_use_id"] == "t1"
    assert [part["type"] for part in sent[2]["content"][0]["content"]] == ["text", "image"]


async def test_all_results_of_a_reply_go_into_one_user_message() -> None:
    calls = (ToolCall("a", "t", "{}"), ToolCall("b", "t", "{oops"))
    history = [*ASK, Message.assistant("", *calls), Message.tool("a"), Message.tool("b")]
    async with talking(whole(text("ok"))) as (model, server):
        await model.complete([*history, Message.user("go on")])
    sent = server.requests[0].json["messages"]
    assert [message["role"] for message in sent] == ["user", "assistant", "user"]
    assert [part["type"] for part in sent[2]["content"]] == ["tool_result", "tool_result", "text"]
    assert sent[1]["content"][1]["input"] == {"malformed_arguments": "{oops"}


async def test_cached_tokens_are_part_of_the_prompt() -> None:
    answer = whole(text("4"), cache_read_input_tokens=100, cache_creation_input_tokens=20)
    async with talking(answer) as (model, _):
        usage = (await model.complete(ASK)).usage
    assert (usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens) == (130, 100, 5)


async def test_a_stream_is_put_together_from_its_events() -> None:
    seen: list[tuple[str, str]] = []
    stream = events(
        *block(
            0,
            {"type": "thinking", "thinking": "", "signature": ""},
            {"type": "thinking_delta", "thinking": "h"},
            {"type": "thinking_delta", "thinking": "m"},
            {"type": "signature_delta", "signature": "c2ln"},
        ),
        {"type": "ping"},
        *block(1, text(""), {"type": "text_delta", "text": "Look."}),
        *block(
            2,
            {**CALL, "input": {}},
            {"type": "input_json_delta", "partial_json": '{"command"'},
            {"type": "input_json_delta", "partial_json": ': "ls"}'},
        ),
    )
    async with talking(stream) as (model, server):
        completion = await model.complete(ASK, [BASH], on_delta=lambda t, r: seen.append((t, r)))
    message = completion.message
    assert seen == [("", "h"), ("", "m"), ("Look.", "")]
    assert message.extra["anthropic_blocks"] == [THINKING, text("Look."), CALL]
    assert json.loads(message.tool_calls[0].arguments) == {"command": "ls"}
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (3, 9)
    assert completion.finish_reason == "tool_calls"
    assert server.requests[0].json["stream"] is True


async def test_a_truncated_stream_is_asked_for_again() -> None:
    cut = events(*block(0, text(""), {"type": "text_delta", "text": "fo"}), stop=False)
    rest = events(*block(0, text(""), {"type": "text_delta", "text": "four"}))
    async with talking(cut, rest) as (model, _):
        completion = await model.complete(ASK, on_delta=lambda _text, _thought: None)
    assert (completion.message.text, completion.retries) == ("four", 1)


async def test_an_overloaded_server_is_retried_and_a_hanging_one_given_up_on() -> None:
    overloaded = failure(529, "Overloaded", retry_after="1")
    async with talking(overloaded, whole(text("4"))) as (model, _):
        assert (await model.complete(ASK)).retries == 1
    async with talking(Hang(), timeout_s=0.2, max_retries=0) as (model, _):
        with pytest.raises(ModelError, match=r"0\.2 s|timed out"):
            await model.complete(ASK)


async def test_a_prompt_that_is_too_long_is_a_full_context() -> None:
    refused = failure(400, "prompt is too long: 210000 tokens > 200000 maximum")
    async with talking(refused) as (model, _):
        with pytest.raises(ContextOverflow):
            await model.complete(ASK)


async def test_a_wrong_key_is_an_error_that_does_not_show_it() -> None:
    async with talking(failure(401, f"invalid x-api-key {KEY}")) as (model, _):
        with pytest.raises(ModelError, match="ANTHROPIC_API_KEY was refused") as caught:
            await model.complete(ASK)
    assert KEY not in str(caught.value)


async def test_settings_that_the_api_does_not_know_are_noted_once() -> None:
    async with talking(whole(text("4")), whole(text("4"))) as (model, server):
        for _ in range(2):
            await model.complete(ASK, sampling=Sampling(temperature=0.5, seed=3))
    assert "temperature" not in server.requests[0].json
    assert len(model.notes) == 2
