"""Any server that speaks OpenAI's chat completions: vLLM, SGLang, llama.cpp, Ollama, cloud APIs.

The official client carries the requests, but with a body of our own: its typed call walks the
whole conversation again at each turn. Here each message is encoded once.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

import anyio

from sandlot.core.errors import ModelError, unknown_name
from sandlot.core.types import TOOL_CALLS, ImagePart, Message, ToolCallForm
from sandlot.models.base import Completion, OnDelta, Sampling, ToolSpec
from sandlot.models.openai_wire import (
    CallIds,
    MessageEncoder,
    SseLines,
    StreamedReply,
    dump,
    encode_tools,
    read_finish,
    read_message,
    read_tokens,
    read_usage,
)
from sandlot.models.refusals import Endpoint, Refusal, usable_key
from sandlot.models.retry import RetryPolicy, TransientError, Waiter, with_retries
from sandlot.models.text_form import FORMS

if TYPE_CHECKING:
    from openai import AsyncOpenAI

DEFAULT_BASE_URL = "https://api.openai.com/v1"
_OWN_FIELDS = frozenset(("model", "messages", "stream"))


class OpenAIChatModel:
    """A model behind an OpenAI-compatible server.

    `tool_calls` says how tools are offered: `native` by the API, `text` and `fenced` in the prompt,
    `auto` natively until the server says that it knows none. What was found out about the server
    on the way is written to `notes`, a sentence each. `timeout_s` bounds one attempt.
    """

    def __init__(
        self,
        name: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        key_variable: str = "OPENAI_API_KEY",
        tool_calls: ToolCallForm = "auto",
        sees_images: bool = True,
        timeout_s: float = 600.0,
        max_retries: int = 6,
        retry_policy: RetryPolicy | None = None,
        client: AsyncOpenAI | None = None,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        if tool_calls not in TOOL_CALLS:
            raise unknown_name("form of tool calls", tool_calls, TOOL_CALLS)
        self.name = name
        self.sees_images = sees_images
        self.tool_calls: ToolCallForm = tool_calls
        self.notes: list[str] = []
        key = usable_key(api_key, key_variable)
        self._endpoint = Endpoint(name, base_url or DEFAULT_BASE_URL, key, key_variable)
        self._timeout_s = timeout_s
        self._policy = retry_policy or RetryPolicy(max_retries=max_retries)
        self._waiter = Waiter(sleep, clock, jitter)
        self._client = client
        self._owns_client = client is None
        self._encoder = MessageEncoder()
        self._reply_limit_field = "max_tokens"
        self._stream_usage = True

    async def complete(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolSpec] = (),
        sampling: Sampling | None = None,
        on_delta: OnDelta | None = None,
    ) -> Completion:
        sampling = sampling or Sampling()

        async def attempt() -> dict[str, Any]:
            return await self._attempt(messages, tools, sampling, on_delta)

        done = await with_retries(attempt, self._policy, self._waiter)
        return self._completion(done.value, messages, tools, done.retries, done.waiting_s)

    async def close(self) -> None:
        if self._client is not None and self._owns_client:
            await self._client.close()
            self._client = None

    # One attempt

    async def _attempt(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolSpec],
        sampling: Sampling,
        on_delta: OnDelta | None,
    ) -> dict[str, Any]:
        """Ask once; what the server turns out not to know is left out and asked again at once.

        Each adaptation happens once in a model's life, so the loop ends.
        """
        while True:
            form = self._form()
            body = self._body(messages, tools, sampling, stream=on_delta is not None)
            try:
                with anyio.fail_after(self._timeout_s):
                    return await self._ask(body, on_delta)
            except TimeoutError:
                raise TransientError(
                    f"{self._endpoint.shown_url} gave no whole reply in {self._timeout_s:g} s"
                ) from None
            except Refusal as refusal:
                # Another rollout may have adapted this model while the request was under way.
                if self._form() == form and not self._adapt(refusal, messages, tools):
                    # The refusal's cause may quote the request; it is cut off with its secrets.
                    raise self._endpoint.to_error(refusal) from None

    def _body(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolSpec],
        sampling: Sampling,
        *,
        stream: bool,
    ) -> bytes:
        """The request. The messages come right after the model and only ever grow at their end."""
        form = FORMS.get(self.tool_calls)
        self._encoder.set(form=form, with_images=self.sees_images)
        encoded = self._encoder.encode(messages, tools)
        rest = self._settings(sampling, stream)
        if tools and form is None:
            rest["tools"] = encode_tools(tools)
        rest.update((k, v) for k, v in sampling.extra_body.items() if k not in _OWN_FIELDS)
        tail = b"," + dump(rest)[1:] if rest else b"}"
        return b'{"model":' + dump(self.name) + b',"messages":[' + encoded + b"]" + tail

    def _settings(self, sampling: Sampling, stream: bool) -> dict[str, Any]:
        given = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": sampling.seed,
            self._reply_limit_field: sampling.reply_tokens,
            "stream": True if stream else None,
            "stream_options": {"include_usage": True} if stream and self._stream_usage else None,
        }
        return {name: value for name, value in given.items() if value is not None}

    async def _ask(self, body: bytes, on_delta: OnDelta | None) -> dict[str, Any]:
        import httpx2
        import openai

        try:
            if on_delta is None:
                response = await self._post(body)
                return self._read_whole(response.content, response.status_code)
            return await self._ask_streaming(body, on_delta)
        except openai.APIStatusError as exc:
            reply = exc.response
            raise self._endpoint.refusal(reply.status_code, reply.content, reply.headers) from None
        except openai.APITimeoutError as exc:
            raise self._endpoint.unreachable("timed out") from exc
        except openai.APIConnectionError as exc:
            raise self._endpoint.unreachable(str(exc.__cause__ or exc)) from exc
        except httpx2.TransportError as exc:
            raise TransientError(
                f"the connection to {self._endpoint.shown_url} broke in the middle of a reply "
                f"({type(exc).__name__})"
            ) from exc

    async def _post(self, body: bytes) -> Any:
        import httpx2

        return await self._connected().post(
            "/chat/completions",
            cast_to=httpx2.Response,
            content=body,
            options={"headers": {"Content-Type": "application/json"}, "max_retries": 0},
        )

    async def _ask_streaming(self, body: bytes, on_delta: OnDelta) -> dict[str, Any]:
        from openai import AsyncStream

        stream = await self._connected().post(
            "/chat/completions",
            cast_to=object,
            content=body,
            options={"headers": {"Content-Type": "application/json"}, "max_retries": 0},
            stream=True,
            stream_cls=AsyncStream[object],
        )
        # The stream's own decoder costs several times what ours does; only its response is used.
        response = stream.response
        try:
            if "json" in response.headers.get("content-type", ""):
                reply = self._read_whole(await response.aread(), response.status_code)
                _show_at_once(reply, on_delta)
                return reply
            return await self._read_stream(response.aiter_bytes(), on_delta)
        finally:
            await response.aclose()

    async def _read_stream(self, chunks: AsyncIterator[bytes], on_delta: OnDelta) -> dict[str, Any]:
        lines, reply = SseLines(), StreamedReply(on_delta)
        async for data in chunks:
            for payload in lines.feed(data):
                self._add_event(reply, payload)
        for payload in lines.finish():
            self._add_event(reply, payload)
        if reply.finish_reason is None and not reply.done:
            raise TransientError(f"{self._endpoint.shown_url} ended a stream before its reply did")
        return reply.whole()

    def _add_event(self, reply: StreamedReply, payload: bytes) -> None:
        if payload in (b"", b"[DONE]"):
            reply.done = reply.done or bool(payload)
            return
        try:
            chunk = json.loads(payload)
        except ValueError:
            raise TransientError(
                f"{self._endpoint.shown_url} sent a stream event that is not JSON: "
                f"{self._endpoint.redact(payload[:200].decode('utf-8', 'replace'))}"
            ) from None
        if isinstance(chunk, dict) and chunk.get("error"):
            code = chunk["error"].get("code") if isinstance(chunk["error"], dict) else None
            raise self._endpoint.refusal(code if isinstance(code, int) else None, payload, {})
        if isinstance(chunk, dict):
            reply.add(chunk)

    def _read_whole(self, content: bytes, status: int) -> dict[str, Any]:
        try:
            reply = json.loads(content)
        except ValueError:
            shown = self._endpoint.redact(content[:200].decode("utf-8", "replace"))
            raise TransientError(
                f"{self._endpoint.shown_url} answered {status} with something that is not JSON "
                f"({shown!r}). Is the base URL right?"
            ) from None
        if isinstance(reply, dict) and reply.get("error"):
            raise self._endpoint.refusal(None, content, {})
        if not isinstance(reply, dict) or not reply.get("choices"):
            raise TransientError(
                f"{self._endpoint.shown_url} answered {status} without any choice: "
                f"{self._endpoint.redact(content[:200].decode('utf-8', 'replace'))}"
            )
        return reply

    # What a server does not know

    def _form(self) -> tuple[object, ...]:
        """All that `_adapt` may change."""
        return self.tool_calls, self.sees_images, self._reply_limit_field, self._stream_usage

    def _adapt(
        self, refusal: Refusal, messages: Sequence[Message], tools: Sequence[ToolSpec]
    ) -> bool:
        """Leave out what the server refused. True: the request is worth another try as it is."""
        if refusal.is_about_context:
            return False
        if self._reply_limit_field == "max_tokens" and "max_completion_tokens" in refusal.text:
            self._reply_limit_field = "max_completion_tokens"
            return True
        if self._stream_usage and "stream_options" in refusal.text:
            self._stream_usage = False
            return True
        if self.tool_calls == "auto" and tools and refusal.is_about_tools:
            self.tool_calls = "text"
            return self._note(f"the server knows no tools ({refusal.text}); they go as text")
        if self.sees_images and refusal.is_about_images and _has_pictures(messages):
            self.sees_images = False
            return self._note(f"the server takes no pictures ({refusal.text}); they are left out")
        return False

    def _note(self, text: str) -> bool:
        self.notes.append(f"{self.name}: {text}")
        return True

    # The reply

    def _completion(
        self,
        reply: dict[str, Any],
        messages: Sequence[Message],
        tools: Sequence[ToolSpec],
        retries: int,
        waiting_s: float,
    ) -> Completion:
        choice = reply["choices"][0]
        wire = choice.get("message") if isinstance(choice, dict) else None
        if not isinstance(wire, dict):
            raise ModelError(f"{self._endpoint.shown_url} sent a choice without a message")
        message = self._read_message(wire, CallIds.after(messages), tools)
        return Completion(
            message,
            read_usage(reply.get("usage")),
            read_finish(choice.get("finish_reason"), bool(message.tool_calls)),
            waiting_s,
            retries,
            raw=reply,
            tokens=read_tokens(reply, choice),
        )

    def _read_message(
        self, wire: dict[str, Any], ids: CallIds, tools: Sequence[ToolSpec]
    ) -> Message:
        as_tags = bool(tools) and self.tool_calls == "auto"
        message = read_message(wire, ids, calls_in_text=as_tags)
        form = FORMS.get(self.tool_calls)
        if form is None or message.tool_calls:
            return message
        content = message.extra.get("content", message.text)
        parsed = form.read(str(content), tools, ids.make)
        extra = {**message.extra, **parsed.extra}
        reasoning = message.reasoning or parsed.reasoning
        return Message(
            parsed.role, parsed.parts, parsed.tool_calls, reasoning=reasoning, extra=extra
        )

    def _connected(self) -> AsyncOpenAI:
        """The client, made at the first request: importing the SDK takes most of a second."""
        if self._client is None:
            import httpx2
            from openai import AsyncOpenAI, DefaultAsyncHttpxClient

            # A proxy of the environment is not meant for servers on this machine.
            direct = (
                DefaultAsyncHttpxClient(trust_env=False) if self._endpoint.is_loopback else None
            )
            self._client = AsyncOpenAI(
                api_key=self._endpoint.api_key or "none",
                base_url=self._endpoint.base_url,
                max_retries=0,
                timeout=httpx2.Timeout(self._timeout_s, connect=min(self._timeout_s, 15.0)),
                http_client=direct,
            )
        return self._client


def _has_pictures(messages: Sequence[Message]) -> bool:
    return any(isinstance(part, ImagePart) for message in messages for part in message.parts)


def _show_at_once(reply: dict[str, Any], on_delta: OnDelta) -> None:
    message = reply["choices"][0].get("message") or {}
    text, thought = message.get("content"), message.get("reasoning_content")
    on_delta(text if isinstance(text, str) else "", thought if isinstance(thought, str) else "")
