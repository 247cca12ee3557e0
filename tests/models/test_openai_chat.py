"""The wire format and the troubles of OpenAI-compatible servers, against the fake one."""

from __future__ import annotations

import json
import traceback
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any

import anyio
import pytest

from sandlot.core.errors import ConfigError, ContextOverflow, ModelError
from sandlot.core.types import FilePart, ImagePart, Message, Role, TextPart, ToolCall
from sandlot.models.base import Sampling, ToolSpec
from sandlot.models.fake_server import (
    Answer,
    Dropped,
    FakeOpenAIServer,
    FakeRequest,
    Hang,
    Status,
    Stream,
    as_events,
    failure,
    reply,
    tool_call,
)
from sandlot.models.openai_chat import OpenAIChatModel
from sandlot.models.retry import RetryPolicy

KEY = "canary0123456789abcdef"  # of a form that only its own value gives away
ASK = [Message.system("Be brief."), Message.user("What is 2+2?")]
BASH = ToolSpec(
    "execute_bash",
    "Run a command.",
    {"type": "object", "properties": {"command": {"type": "string"}}},
)


class Clock:
    """Time that passes only by sleeping."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.naps: list[float] = []

    def __call__(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        self.naps.append(seconds)
        self.now_s += seconds


@asynccontextmanager
async def talking(
    *answers: Answer, script: Callable[[FakeRequest], Answer] | None = None, **options: Any
) -> AsyncIterator[tuple[OpenAIChatModel, FakeOpenAIServer]]:
    """A model and the fake server that it talks to."""
    clock = Clock()
    settings = {"sleep": clock.sleep, "clock": clock, "jitter": lambda: 0.0, **options}
    async with FakeOpenAIServer(script or answers) as server:
        model = OpenAIChatModel("m", base_url=server.base_url, api_key=KEY, **settings)
        try:
            yield model, server
        finally:
            await model.close()


def chunks() -> tuple[list[tuple[str, str]], Callable[[str, str], None]]:
    seen: list[tuple[str, str]] = []
    return seen, lambda text, thought: seen.append((text, thought))


def messages_bytes(request: FakeRequest) -> bytes:
    """The bytes of the `messages` array without its closing bracket."""
    start = request.body.index(b'"messages":[') + len(b'"messages":[')
    decoder = json.JSONDecoder()
    text = request.body[start - 1 :].decode()
    _, end = decoder.raw_decode(text)
    return text[1 : end - 1].encode()


# Requests


async def test_a_request_says_what_was_asked_and_nothing_else() -> None:
    async with talking(reply("4")) as (model, server):
        await model.complete(ASK)
    request = server.requests[0]
    assert request.path == "/v1/chat/completions"
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert request.headers["content-type"] == "application/json"
    assert request.json == {
        "model": "m",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "What is 2+2?"},
        ],
    }


async def test_sampling_tools_and_extra_body_are_sent() -> None:
    sampling = Sampling(0.5, 0.9, 7, 100, {"top_k": 20, "model": "smuggled"})
    async with talking(reply("4")) as (model, server):
        await model.complete(ASK, [BASH], sampling)
    body = server.requests[0].json
    assert body["model"] == "m"
    assert (body["temperature"], body["top_p"], body["seed"]) == (0.5, 0.9, 7)
    assert (body["max_tokens"], body["top_k"]) == (100, 20)
    assert body["tools"][0]["function"]["name"] == "execute_bash"
    assert "parallel_tool_calls" not in body


async def test_consecutive_requests_grow_only_at_their_end_byte_for_byte() -> None:
    """A server's prefix cache hits only when nothing before the new messages has changed."""
    answers = [
        reply("é", tool_calls=[tool_call("execute_bash", {"command": f"echo {n}"}, f"c{n}")])
        for n in range(5)
    ]
    for form in ("native", "text"):
        async with talking(*answers, tool_calls=form) as (model, server):
            history = list(ASK)
            for n in range(5):
                completion = await model.complete(history, [BASH])
                history.append(completion.message)
                for call in completion.message.tool_calls:
                    picture = (ImagePart(b"png", "image/png"),) if n == 2 else ()
                    history.append(Message.tool(call.id, TextPart(f"{n}\n"), *picture))
        bodies = [messages_bytes(request) for request in server.requests]
        assert len(bodies) == 5
        for earlier, later in pairwise(bodies):
            assert later.startswith(earlier)
            assert len(later) > len(earlier)


async def test_pictures_of_tool_results_follow_the_last_result_as_a_user_message() -> None:
    picture = ImagePart(b"\x89PNG", "image/png")
    history = [
        *ASK,
        Message.assistant("", ToolCall("a", "view", "{}"), ToolCall("b", "view", "{}")),
        Message.tool("a", TextPart("one"), picture),
        Message.tool("b", TextPart("two")),
    ]
    async with talking(reply("ok")) as (model, server):
        await model.complete(history)
    sent = server.requests[0].json["messages"][2:]
    assert [message["role"] for message in sent] == ["assistant", "tool", "tool", "user"]
    assert isinstance(sent[1]["content"], str)
    assert sent[3]["content"][1]["image_url"]["url"] == "data:image/png;base64,iVBORw=="


async def test_a_file_reference_is_sent_as_its_path() -> None:
    message = Message(Role.USER, (TextPart("see "), FilePart("/testbed/a.pdf")))
    async with talking(reply("ok")) as (model, server):
        await model.complete([message])
    assert server.requests[0].json["messages"][0]["content"] == "see [file: /testbed/a.pdf]"


async def test_a_broken_call_of_the_history_is_sent_in_a_form_that_servers_can_read() -> None:
    """A call left as it was written makes chat templates fail at every later request."""
    call = ToolCall("c", "no such tool!", '{"command": ')
    history = [*ASK, Message.assistant("", call), Message.tool("c", TextPart("not JSON"))]
    async with talking(reply("ok")) as (model, server):
        await model.complete(history)
    function = server.requests[0].json["messages"][2]["tool_calls"][0]["function"]
    assert json.loads(function["arguments"]) == {"malformed_arguments": '{"command": '}
    assert function["name"] == "no_such_tool_"


async def test_lone_surrogates_do_not_break_a_request() -> None:
    async with talking(reply("ok")) as (model, server):
        await model.complete([Message.user("name: \udcff")])
    assert server.requests[0].json["messages"][0]["content"] == "name: ?"


# Replies


async def test_a_reply_is_read_with_its_usage() -> None:
    usage = {
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 8},
        "completion_tokens_details": {"reasoning_tokens": 2},
        "cost": 0.25,
    }
    async with talking(reply("4", usage=usage), reply("4")) as (model, _):
        completion = await model.complete(ASK)
        silent = await model.complete(ASK)
    found = completion.usage
    assert completion.message.text == "4"
    assert (found.prompt_tokens, found.completion_tokens) == (10, 5)
    assert (found.cached_tokens, found.reasoning_tokens, found.cost_usd) == (8, 2, 0.25)
    assert silent.usage.prompt_tokens is None


@pytest.mark.parametrize("streaming", [False, True])
async def test_parallel_calls_come_in_order(streaming: bool) -> None:
    wire = [tool_call("execute_bash", {"command": str(n) * 20}, f"c{n}") for n in range(3)]
    on_delta = chunks()[1] if streaming else None
    async with talking(reply("go", tool_calls=wire)) as (model, _):
        completion = await model.complete(ASK, [BASH], on_delta=on_delta)
    calls = completion.message.tool_calls
    assert [call.id for call in calls] == ["c0", "c1", "c2"]
    assert [json.loads(call.arguments)["command"][0] for call in calls] == ["0", "1", "2"]
    assert completion.finish_reason == "tool_calls"


async def test_missing_empty_and_repeated_call_ids_are_repaired_the_same_way_each_time() -> None:
    wire = [tool_call("t", {}, call_id) for call_id in (None, "", "x", "x", "old")]
    history = [*ASK, Message.assistant("", ToolCall("old", "t", "{}")), Message.tool("old")]
    async with talking(reply(tool_calls=wire), reply(tool_calls=wire)) as (model, _):
        first = await model.complete(history, [BASH])
        second = await model.complete(history, [BASH])
    ids = [call.id for call in first.message.tool_calls]
    assert ids == ["call_1_0", "call_1_1", "x", "call_1_3", "call_1_4"]
    assert second.message.tool_calls == first.message.tool_calls


async def test_arguments_sent_as_an_object_are_turned_into_text() -> None:
    call = {"id": "c", "function": {"name": "t", "arguments": {"a": 1}}}
    async with talking(reply(tool_calls=[call])) as (model, _):
        completion = await model.complete(ASK, [BASH])
    assert completion.message.tool_calls[0].arguments == '{"a": 1}'


@pytest.mark.parametrize("streaming", [False, True])
async def test_reasoning_is_kept_and_sent_back_as_it_came(streaming: bool) -> None:
    details = [{"type": "reasoning.text", "index": 0, "text": "I think", "signature": "abc"}]
    answer = reply("4", reasoning_content="I think so", reasoning_details=details)
    on_delta = chunks()[1] if streaming else None
    async with talking(answer, reply("ok")) as (model, server):
        completion = await model.complete(ASK, on_delta=on_delta)
        await model.complete([*ASK, completion.message])
    assert completion.message.reasoning == "I think so"
    sent = server.requests[1].json["messages"][2]
    assert sent["reasoning_content"] == "I think so"
    assert sent["reasoning_details"] == details


async def test_thinking_inside_the_content_is_split_off_and_sent_back_as_it_came() -> None:
    async with talking(reply("<think>hm</think>\n4"), reply("ok")) as (model, server):
        completion = await model.complete(ASK)
        await model.complete([*ASK, completion.message])
    assert (completion.message.reasoning, completion.message.text) == ("hm", "4")
    assert server.requests[1].json["messages"][2]["content"] == "<think>hm</think>\n4"


async def test_a_providers_own_fields_of_a_call_are_sent_back() -> None:
    signed = {**tool_call("t", {}, "c"), "extra_content": {"google": {"thought_signature": "s"}}}
    async with talking(reply(tool_calls=[signed]), reply("ok")) as (model, server):
        completion = await model.complete(ASK, [BASH])
        await model.complete([*ASK, completion.message], [BASH])
    sent = server.requests[1].json["messages"][2]["tool_calls"][0]
    assert sent["extra_content"] == {"google": {"thought_signature": "s"}}


@pytest.mark.parametrize(
    ("said", "meant"),
    [("length", "length"), ("content_filter", "content_filter"), ("eos", "stop"), ("stop", "stop")],
)
async def test_finish_reasons_are_normalised(said: str, meant: str) -> None:
    async with talking(reply("4", finish_reason=said)) as (model, _):
        assert (await model.complete(ASK)).finish_reason == meant


async def test_token_ids_are_recorded_where_a_server_gives_them() -> None:
    answer = reply("4")
    answer["prompt_token_ids"] = [1, 2]
    answer["choices"][0]["token_ids"] = [3]
    answer["choices"][0]["logprobs"] = {"content": [{"logprob": -0.5}]}
    async with talking(answer) as (model, _):
        tokens = (await model.complete(ASK)).tokens
    assert tokens is not None
    assert (tokens.prompt_ids, tokens.completion_ids, tokens.logprobs) == ((1, 2), (3,), (-0.5,))


# Streams


async def test_a_stream_is_shown_as_it_comes_and_ends_as_the_same_reply() -> None:
    answer = reply("The answer is four.", reasoning_content="2+2", usage={"prompt_tokens": 3})
    seen, on_delta = chunks()
    async with talking(answer, answer) as (model, server):
        streamed = await model.complete(ASK, on_delta=on_delta)
        whole = await model.complete(ASK)
    assert "".join(text for text, _ in seen) == "The answer is four."
    assert "".join(thought for _, thought in seen) == "2+2"
    assert len(seen) > 2
    assert (streamed.message, streamed.usage) == (whole.message, whole.usage)
    assert server.requests[0].json["stream_options"] == {"include_usage": True}
    assert "stream" not in server.requests[1].json


async def test_a_line_separator_inside_a_streamed_text_does_not_cut_it() -> None:
    _, on_delta = chunks()
    async with talking(reply("a\u2028b\x85c")) as (model, _):
        assert (await model.complete(ASK, on_delta=on_delta)).message.text == "a\u2028b\x85c"


@pytest.mark.parametrize("dropped", [False, True])
async def test_a_truncated_stream_is_asked_for_again(dropped: bool) -> None:
    cut = Stream(as_events(reply("The answer is four."))[:-1], done=False, dropped=dropped)
    _, on_delta = chunks()
    async with talking(cut, reply("4")) as (model, server):
        completion = await model.complete(ASK, on_delta=on_delta)
    assert (completion.message.text, completion.retries) == ("4", 1)
    assert len(server.requests) == 2


async def test_a_stream_that_says_it_is_done_needs_no_finish_reason() -> None:
    _, on_delta = chunks()
    async with talking(Stream(as_events(reply("4"))[:-1])) as (model, _):
        completion = await model.complete(ASK, on_delta=on_delta)
    assert (completion.message.text, completion.finish_reason) == ("4", "stop")


async def test_a_server_that_ignores_streaming_is_understood() -> None:
    seen, on_delta = chunks()
    async with talking(Status(200, reply("4"))) as (model, _):
        assert (await model.complete(ASK, on_delta=on_delta)).message.text == "4"
    assert seen == [("4", "")]


async def test_an_error_inside_a_stream_is_an_error() -> None:
    event = {"error": {"message": "maximum context length exceeded", "code": 400}}
    _, on_delta = chunks()
    async with talking(Stream([event])) as (model, _):
        with pytest.raises(ContextOverflow):
            await model.complete(ASK, on_delta=on_delta)


async def test_a_server_without_stream_options_is_asked_without_them() -> None:
    refused = failure(400, "Unrecognized request argument supplied: stream_options")
    _, on_delta = chunks()
    async with talking(refused, reply("4")) as (model, server):
        await model.complete(ASK, on_delta=on_delta)
    assert "stream_options" not in server.requests[1].json


# Retries


async def test_a_rate_limit_is_waited_out_as_long_as_the_server_asks() -> None:
    limited = failure(429, "slow down", retry_after="7")
    async with talking(limited, failure(429, "slow", retry_after_ms="2500"), reply("4")) as (
        model,
        _,
    ):
        completion = await model.complete(ASK)
    assert (completion.retries, completion.waiting_s) == (2, 9.5)


async def test_an_absurd_retry_after_is_capped() -> None:
    async with talking(failure(429, "slow", retry_after="86400"), reply("4")) as (model, _):
        assert (await model.complete(ASK)).waiting_s == 120.0


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504, 529])
async def test_a_passing_status_is_retried(status: int) -> None:
    async with talking(failure(status, "busy"), reply("4")) as (model, _):
        assert (await model.complete(ASK)).retries == 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 418, 422])
async def test_a_lasting_status_is_not_retried(status: int) -> None:
    async with talking(failure(status, "no"), reply("4")) as (model, server):
        with pytest.raises(ModelError) as caught:
            await model.complete(ASK)
    assert caught.value.status == status
    assert len(server.requests) == 1


async def test_retries_end_and_the_error_says_how_many_there_were() -> None:
    async with talking(script=lambda _: failure(500, "broken"), max_retries=3) as (model, server):
        with pytest.raises(ModelError, match=r"500: broken \(gave up after 3 retries and 3.5 s"):
            await model.complete(ASK)
    assert len(server.requests) == 4


async def test_the_waiting_budget_ends_retries_early() -> None:
    policy = RetryPolicy(max_retries=100, budget_s=10.0)
    async with talking(
        script=lambda _: failure(429, "slow", retry_after="4"), retry_policy=policy
    ) as (model, server):
        with pytest.raises(ModelError, match="gave up after 2 retries"):
            await model.complete(ASK)
    assert len(server.requests) == 3


async def test_a_connection_dropped_in_the_middle_of_a_reply_is_retried() -> None:
    async with talking(Dropped(reply("lost")), reply("4")) as (model, _):
        completion = await model.complete(ASK)
    assert (completion.message.text, completion.retries) == ("4", 1)


@pytest.mark.parametrize("streaming", [False, True])
async def test_a_server_that_hangs_is_given_up_on_after_the_timeout(streaming: bool) -> None:
    on_delta = chunks()[1] if streaming else None
    async with talking(Hang(), Hang(), timeout_s=0.2, max_retries=1) as (model, server):
        with pytest.raises(ModelError, match=r"0\.2 s|timed out"):
            await model.complete(ASK, on_delta=on_delta)
    assert len(server.requests) == 2


async def test_an_unreachable_server_is_named() -> None:
    async with FakeOpenAIServer() as server:
        url = server.base_url
    model = OpenAIChatModel("m", base_url=url, api_key=KEY, max_retries=0)
    with pytest.raises(ModelError, match=f"server at {url} cannot be reached"):
        await model.complete(ASK)
    await model.close()


async def test_a_server_on_this_machine_is_reached_past_the_proxy_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    async with talking(reply("4"), max_retries=0) as (model, _):
        assert (await model.complete(ASK)).message.text == "4"


async def test_a_page_instead_of_a_reply_asks_whether_the_base_url_is_right() -> None:
    page = Status(200, b"<html>hello</html>", {"Content-Type": "text/html"})
    async with talking(page, max_retries=0) as (model, _):
        with pytest.raises(ModelError, match=r"not JSON.*base URL"):
            await model.complete(ASK)


# Refusals


async def test_an_unknown_model_is_an_error_with_the_servers_words() -> None:
    async with talking(failure(404, "The model `m` does not exist.")) as (model, _):
        with pytest.raises(ModelError, match=r"'m' was not found at .*does not exist"):
            await model.complete(ASK)


async def test_a_missing_key_is_told_from_a_wrong_one() -> None:
    denied = failure(401, "Unauthorized")
    async with talking(denied, denied) as (model, server):
        with pytest.raises(ModelError, match="key from OPENAI_API_KEY was refused"):
            await model.complete(ASK)
        bare = OpenAIChatModel("m", base_url=server.base_url)
        with pytest.raises(ModelError, match=r"none was given \(set OPENAI_API_KEY"):
            await bare.complete(ASK)
        await bare.close()


async def test_an_empty_account_is_not_waited_for() -> None:
    async with talking(failure(429, "quota", code="insufficient_quota")) as (model, server):
        with pytest.raises(ModelError, match="no quota left"):
            await model.complete(ASK)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("too much", "context_length_exceeded"),
        (
            "This model's maximum context length is 4096 tokens. However, you requested 5000",
            None,
        ),
        ("the request exceeds the available context size. try increasing it", None),
        ("The input (99 tokens) is longer than the model's context length (10 tokens).", None),
        ("Requested token count exceeds the model's maximum context length of 10 tokens.", None),
        ("input length exceeds maximum context length", None),
    ],
)
async def test_a_full_context_is_an_error_of_its_own(text: str, code: str | None) -> None:
    async with talking(failure(400, text, code=code)) as (model, _):
        with pytest.raises(ContextOverflow, match="longer than the context holds"):
            await model.complete(ASK, [BASH])


NO_TOOLS = [
    (400, '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'),
    (400, "registry.example/library/tiny:latest does not support tools"),
    (500, "tools param requires --jinja flag"),
    (404, "No endpoints found that support tool use."),
    (422, "`tool calling` is not supported with this model"),
    (501, "function calling is not implemented here"),
]


@pytest.mark.parametrize(("status", "text"), NO_TOOLS)
async def test_a_server_that_knows_no_tools_gets_them_as_text(status: int, text: str) -> None:
    said = '<tool_call>{"name": "execute_bash", "arguments": {"command": "ls"}}</tool_call>'

    def answer(request: FakeRequest) -> Answer:
        return failure(status, text) if "tools" in request.json else reply(said)

    async with talking(script=answer) as (model, server):
        completion = await model.complete(ASK, [BASH])
        await model.complete([*ASK, completion.message, Message.tool("x")], [BASH])
    assert [call.name for call in completion.message.tool_calls] == ["execute_bash"]
    assert completion.finish_reason == "tool_calls"
    assert len(server.requests) == 3  # asked natively only once
    sent = server.requests[2].json["messages"]
    assert "<tools>" in sent[0]["content"]
    assert sent[2] == {"role": "assistant", "content": said}
    assert len(model.notes) == 1
    assert text in model.notes[0]


@pytest.mark.parametrize(
    "text",
    [
        "messages with role 'tool' must be a response to a preceding message with 'tool_calls'",
        "Invalid schema for function 'execute_bash'",
        "temperature is not supported with this model",
    ],
)
async def test_other_refusals_that_speak_of_tools_do_not_switch_to_text(text: str) -> None:
    async with talking(failure(400, text)) as (model, _):
        with pytest.raises(ModelError):
            await model.complete(ASK, [BASH])
    assert model.tool_calls == "auto"


async def test_rollouts_that_share_a_model_all_survive_the_switch_to_text() -> None:
    """The refusals of requests already under way arrive after the first one has switched."""

    def answer(request: FakeRequest) -> Answer:
        refused = "tools" in request.json
        return failure(400, "m does not support tools") if refused else reply("done")

    async with talking(script=answer) as (model, _):
        async with anyio.create_task_group() as group:
            for _ in range(4):
                group.start_soon(model.complete, ASK, [BASH])
        assert len(model.notes) == 1


async def test_native_only_reports_the_refusal_instead() -> None:
    async with talking(failure(400, "does not support tools"), tool_calls="native") as (model, _):
        with pytest.raises(ModelError, match="does not support tools"):
            await model.complete(ASK, [BASH])


async def test_calls_written_as_text_are_read_though_tools_were_offered_natively() -> None:
    """A server whose tool parser is off passes the model's own tags through."""
    said = '<think>hm</think>Go. <tool_call>{"name": "execute_bash"}</tool_call>'
    async with talking(reply(said), reply("ok")) as (model, server):
        completion = await model.complete(ASK, [BASH])
        await model.complete([*ASK, completion.message], [BASH])
    message = completion.message
    assert (message.reasoning, message.text) == ("hm", "Go.")
    assert [call.name for call in message.tool_calls] == ["execute_bash"]
    sent = server.requests[1].json["messages"][2]
    assert "<tool_call>" not in sent["content"]
    assert sent["tool_calls"][0]["function"]["name"] == "execute_bash"


async def test_fenced_blocks_carry_tools_calls_and_results() -> None:
    bash = replace(BASH, parameters={**BASH.parameters, "required": ["command"]})
    said = "<think>```bash\nno\n```</think>\n```bash\nls -l | wc -l\n```"
    async with talking(reply(said), reply("4"), tool_calls="fenced") as (model, server):
        completion = await model.complete(ASK, [bash])
        message = completion.message
        after = await model.complete([*ASK, message, Message.tool("x", TextPart("7"))], [bash])
    (call,) = message.tool_calls
    assert (call.name, json.loads(call.arguments)) == ("execute_bash", {"command": "ls -l | wc -l"})
    assert message.reasoning == "```bash\nno\n```"
    assert completion.finish_reason == "tool_calls"
    assert "tools" not in server.requests[0].json
    head, _, again, result = server.requests[1].json["messages"]
    assert head["content"] == ("Be brief.\n\nReply with one block only:\n```bash\n...\n```")
    assert again == {"role": "assistant", "content": said}
    assert result == {"role": "user", "content": "7"}
    assert (after.message.text, after.finish_reason) == ("4", "stop")


async def test_text_mode_never_sends_tools() -> None:
    async with talking(reply("hi"), tool_calls="text") as (model, server):
        await model.complete(ASK, [BASH])
    assert "tools" not in server.requests[0].json


async def test_a_conversation_begun_natively_goes_on_as_text() -> None:
    first = reply(tool_calls=[tool_call("execute_bash", {"command": "ls"}, "c")])
    answers = [first, failure(400, "m does not support tools"), reply("done")]
    async with talking(*answers) as (model, server):
        completion = await model.complete(ASK, [BASH])
        history = [*ASK, completion.message, Message.tool("c", TextPart("a.txt"))]
        await model.complete(history, [BASH])
    sent = server.requests[2].json["messages"]
    assert '"command": "ls"' in sent[2]["content"]
    assert sent[3] == {"role": "user", "content": "<tool_response>\na.txt\n</tool_response>"}


async def test_the_reply_limit_goes_by_its_new_name_where_the_old_one_is_refused() -> None:
    text = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
    async with talking(failure(400, text), reply("4"), reply("4")) as (model, server):
        await model.complete(ASK, sampling=Sampling(reply_tokens=9))
        await model.complete(ASK, sampling=Sampling(reply_tokens=9))
    assert [
        (request.json.get("max_tokens"), request.json.get("max_completion_tokens"))
        for request in server.requests
    ] == [(9, None), (None, 9), (None, 9)]


async def test_a_server_that_takes_no_pictures_gets_a_note_instead() -> None:
    picture = Message(Role.USER, (TextPart("see"), ImagePart(b"x", "image/png")))
    answers = [failure(400, "image input is not supported"), reply("4")]
    async with talking(*answers) as (model, server):
        await model.complete([picture])
    assert "sees no pictures" in server.requests[1].json["messages"][0]["content"]
    assert model.sees_images is False


def leaking(key: str) -> Sequence[Answer]:
    text = f"Incorrect API key provided: {key}; header was Bearer {key}"
    return [failure(status, text) for status in (401, 400, 404, 403, 422)]


async def test_the_key_never_appears_in_an_error_even_when_the_server_repeats_it() -> None:
    answers = leaking(KEY)
    async with talking(*answers, max_retries=0) as (model, _):
        for _ in answers:
            with pytest.raises(ModelError) as caught:
                await model.complete(ASK)
            shown = "".join(traceback.format_exception(caught.value))
            assert KEY not in shown
            assert "[key]" in shown
    assert KEY not in repr(model)


async def test_another_key_that_the_server_quotes_is_taken_out_too() -> None:
    async with talking(failure(401, "Incorrect API key provided: sk-proj-abc***wxyz.")) as (
        model,
        _,
    ):
        with pytest.raises(ModelError) as caught:
            await model.complete(ASK)
    assert "wxyz" not in str(caught.value)


async def test_user_and_password_of_the_base_url_never_appear_in_an_error() -> None:
    async with FakeOpenAIServer() as server:
        url = server.base_url.replace("127", "user:hunter22@127", 1)
    model = OpenAIChatModel("m", base_url=url, api_key=KEY, max_retries=0)
    with pytest.raises(ModelError) as caught:
        await model.complete(ASK)
    assert "hunter22" not in "".join(traceback.format_exception(caught.value))
    await model.close()


def test_a_key_that_no_header_can_carry_is_refused_without_being_shown() -> None:
    with pytest.raises(ConfigError, match="key in OPENAI_API_KEY holds") as caught:
        OpenAIChatModel("m", api_key="canary\nsecond line")
    assert "canary" not in str(caught.value)


async def test_a_newline_after_the_key_is_not_part_of_it() -> None:
    async with FakeOpenAIServer([reply("4")]) as server:
        model = OpenAIChatModel("m", base_url=server.base_url, api_key=f"{KEY}\n")
        await model.complete(ASK)
        await model.close()
    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"


def test_an_unknown_form_of_tool_calls_is_refused() -> None:
    with pytest.raises(ConfigError, match="have: auto, fenced, native, text"):
        OpenAIChatModel("m", tool_calls="magic")  # type: ignore[arg-type]
