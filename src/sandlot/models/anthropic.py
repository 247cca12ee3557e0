"""Anthropic's messages API, by its official client with a body of our own.

Thinking blocks carry signatures and must come back exactly as they were received, so a reply's
blocks are kept whole in `Message.extra` and sent again as they are.
"""

from __future__ import annotations

import base64
import json
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import anyio

from sandlot.core.errors import MissingExtra, ModelError
from sandlot.core.types import ImagePart, Message, Part, Role, TextPart, ToolCall, Usage
from sandlot.models.base import Completion, OnDelta, Sampling, ToolSpec
from sandlot.models.openai_wire import CallIds, SseLines, dump, part_text
from sandlot.models.refusals import Endpoint, Refusal, usable_key
from sandlot.models.retry import RetryPolicy, TransientError, Waiter, with_retries

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic

DEFAULT_BASE_URL = "https://api.anthropic.com"
BLOCKS = "anthropic_blocks"
"""Key in `Message.extra`: a reply's content blocks as they were received."""

_REPLY_TOKENS = 16_384
_OWN_FIELDS = frozenset(("model", "messages", "stream", "system"))


class AnthropicModel:
    """A model behind Anthropic's API. `timeout_s` bounds one attempt.

    The API demands a bound on every reply: 16,384 tokens where the sampling names none. It knows
    no seed, and this client's API no temperature or top_p; such settings are noted in `notes`
    and not sent. `extra_body` reaches whatever else a model takes.
    """

    sees_images = True

    def __init__(
        self,
        name: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        timeout_s: float = 600.0,
        max_retries: int = 6,
        retry_policy: RetryPolicy | None = None,
        client: AsyncAnthropic | None = None,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        _require_sdk()
        self.name = name
        self.notes: list[str] = []
        key = usable_key(api_key, "ANTHROPIC_API_KEY")
        self._endpoint = Endpoint(name, base_url or DEFAULT_BASE_URL, key, "ANTHROPIC_API_KEY")
        self._timeout_s = timeout_s
        self._policy = retry_policy or RetryPolicy(max_retries=max_retries)
        self._waiter = Waiter(sleep, clock, jitter)
        self._client = client
        self._owns_client = client is None

    async def complete(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolSpec] = (),
        sampling: Sampling | None = None,
        on_delta: OnDelta | None = None,
    ) -> Completion:
        body = dump(self._body(messages, tools, sampling or Sampling(), on_delta is not None))

        async def attempt() -> dict[str, Any]:
            return await self._attempt(body, on_delta)

        done = await with_retries(attempt, self._policy, self._waiter)
        message = read_message(done.value, CallIds.after(messages))
        return Completion(
            message,
            read_usage(done.value.get("usage")),
            _FINISH.get(str(done.value.get("stop_reason")), "stop"),
            done.waiting_s,
            done.retries,
            raw=done.value,
        )

    async def close(self) -> None:
        if self._client is not None and self._owns_client:
            await self._client.close()
            self._client = None

    def _body(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolSpec],
        sampling: Sampling,
        stream: bool,
    ) -> dict[str, Any]:
        self._note_what_is_not_sent(sampling)
        body: dict[str, Any] = {
            "model": self.name,
            "max_tokens": sampling.reply_tokens or _REPLY_TOKENS,
            "messages": encode_messages(messages),
            # Lets the server move its cache mark along as the conversation grows.
            "cache_control": {"type": "ephemeral"},
        }
        system = "\n\n".join(m.text for m in messages if m.role is Role.SYSTEM)
        if system:
            body["system"] = system
        if tools:
            body["tools"] = [_tool(tool) for tool in tools]
        if stream:
            body["stream"] = True
        body.update((k, v) for k, v in sampling.extra_body.items() if k not in _OWN_FIELDS)
        return body

    def _note_what_is_not_sent(self, sampling: Sampling) -> None:
        for name in ("temperature", "top_p", "seed"):
            note = f"{self.name}: {name} is not a setting of this API and was not sent"
            if getattr(sampling, name) is not None and note not in self.notes:
                self.notes.append(note)

    async def _attempt(self, body: bytes, on_delta: OnDelta | None) -> dict[str, Any]:
        try:
            with anyio.fail_after(self._timeout_s):
                return await self._ask(body, on_delta)
        except TimeoutError:
            raise TransientError(
                f"{self._endpoint.shown_url} gave no whole reply in {self._timeout_s:g} s"
            ) from None
        except Refusal as refusal:
            raise self._endpoint.to_error(refusal) from None

    async def _ask(self, body: bytes, on_delta: OnDelta | None) -> dict[str, Any]:
        import anthropic
        import httpx2

        try:
            if on_delta is None:
                return self._read_whole((await self._post(body)).content)
            return await self._ask_streaming(body, on_delta)
        except anthropic.APIStatusError as exc:
            reply = exc.response
            raise self._endpoint.refusal(reply.status_code, reply.content, reply.headers) from None
        except anthropic.APITimeoutError as exc:
            raise self._endpoint.unreachable("timed out") from exc
        except anthropic.APIConnectionError as exc:
            raise self._endpoint.unreachable(str(exc.__cause__ or exc)) from exc
        except httpx2.TransportError as exc:
            raise TransientError(
                f"the connection to {self._endpoint.shown_url} broke in the middle of a reply "
                f"({type(exc).__name__})"
            ) from exc

    async def _post(self, body: bytes) -> Any:
        import httpx2

        return await self._connected().post(
            "/v1/messages",
            cast_to=httpx2.Response,
            content=body,
            options={"headers": {"Content-Type": "application/json"}, "max_retries": 0},
        )

    async def _ask_streaming(self, body: bytes, on_delta: OnDelta) -> dict[str, Any]:
        from anthropic import AsyncStream

        stream = await self._connected().post(
            "/v1/messages",
            cast_to=object,
            content=body,
            options={"headers": {"Content-Type": "application/json"}, "max_retries": 0},
            stream=True,
            stream_cls=AsyncStream[object],
        )
        response = stream.response
        try:
            return await self._read_stream(response.aiter_bytes(), on_delta)
        finally:
            await response.aclose()

    async def _read_stream(self, chunks: AsyncIterator[bytes], on_delta: OnDelta) -> dict[str, Any]:
        lines, reply = SseLines(), _StreamedReply(on_delta)
        async for data in chunks:
            for payload in lines.feed(data):
                self._add_event(reply, payload)
        if not reply.ended:
            raise TransientError(f"{self._endpoint.shown_url} ended a stream before its reply did")
        return reply.whole()

    def _add_event(self, reply: _StreamedReply, payload: bytes) -> None:
        event = self._decoded(payload)
        if event.get("type") == "error":
            raise self._endpoint.refusal(None, payload, {})
        reply.add(event)

    def _read_whole(self, content: bytes) -> dict[str, Any]:
        reply = self._decoded(content)
        if not isinstance(reply.get("content"), list):
            raise ModelError(f"{self._endpoint.shown_url} sent a reply without content")
        return reply

    def _decoded(self, content: bytes) -> dict[str, Any]:
        try:
            value = json.loads(content)
        except ValueError:
            value = None
        if isinstance(value, dict):
            return value
        shown = self._endpoint.redact(content[:200].decode("utf-8", "replace"))
        raise TransientError(
            f"{self._endpoint.shown_url} sent something that is not a JSON object ({shown!r}). "
            "Is the base URL right?"
        )

    def _connected(self) -> AsyncAnthropic:
        if self._client is None:
            import httpx2
            from anthropic import AsyncAnthropic, DefaultAsyncHttpxClient

            # A proxy of the environment is not meant for servers on this machine.
            direct = (
                DefaultAsyncHttpxClient(trust_env=False) if self._endpoint.is_loopback else None
            )
            self._client = AsyncAnthropic(
                api_key=self._endpoint.api_key or "none",
                base_url=self._endpoint.base_url.rstrip("/").removesuffix("/v1"),
                max_retries=0,
                timeout=httpx2.Timeout(self._timeout_s, connect=min(self._timeout_s, 15.0)),
                http_client=direct,
            )
        return self._client


def _require_sdk() -> None:
    from importlib.util import find_spec

    if find_spec("anthropic") is None:
        raise MissingExtra("the model provider 'anthropic'", "anthropic")


# Requests


def encode_messages(messages: Iterable[Message]) -> list[dict[str, Any]]:
    """The conversation without its system messages; neighbours of one role become one message.

    The API wants all the results of a reply in the one user message after it.
    """
    wire: list[dict[str, Any]] = []
    for message in messages:
        if message.role is Role.SYSTEM:
            continue
        role = "assistant" if message.role is Role.ASSISTANT else "user"
        blocks = _blocks(message)
        if wire and wire[-1]["role"] == role:
            wire[-1]["content"].extend(blocks)
        elif blocks:
            wire.append({"role": role, "content": blocks})
    return wire


def _blocks(message: Message) -> list[dict[str, Any]]:
    if message.role is Role.TOOL:
        result = {"type": "tool_result", "tool_use_id": message.tool_call_id}
        return [{**result, "content": _content(message.parts)}]
    if message.role is not Role.ASSISTANT:
        return _content(message.parts)
    if BLOCKS in message.extra:
        return list(message.extra[BLOCKS])
    return [*_content(message.parts), *(_tool_use(call) for call in message.tool_calls)]


def _content(parts: Sequence[Part]) -> list[dict[str, Any]]:
    """Content blocks; the API refuses empty text, so it is left out."""
    blocks = []
    for part in parts:
        if isinstance(part, ImagePart):
            data = base64.b64encode(part.data).decode("ascii")
            source = {"type": "base64", "media_type": part.media_type, "data": data}
            blocks.append({"type": "image", "source": source})
        elif (text := part_text(part)).strip():
            blocks.append({"type": "text", "text": text})
    return blocks


def _tool_use(call: ToolCall) -> dict[str, Any]:
    try:
        arguments = json.loads(call.arguments)
    except ValueError:
        arguments = None
    if not isinstance(arguments, dict):
        arguments = {"malformed_arguments": call.arguments}
    return {"type": "tool_use", "id": call.id, "name": call.name, "input": arguments}


def _tool(tool: ToolSpec) -> dict[str, Any]:
    return {"name": tool.name, "description": tool.description, "input_schema": tool.parameters}


# Replies

_FINISH = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "tool_use": "tool_calls",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "refusal": "content_filter",
}


def read_message(reply: Mapping[str, Any], ids: CallIds) -> Message:
    """A reply's message; its blocks are kept in `extra`, with unusable call ids repaired."""
    blocks = [dict(block) for block in reply["content"] if isinstance(block, Mapping)]
    calls = []
    for block in blocks:
        if block.get("type") == "tool_use":
            block["id"] = ids.keep(block.get("id"))
            raw = block.get("input")
            if not isinstance(raw, dict):
                # A call cut off in a stream: shown to the rollout raw, sent back wrapped.
                block["input"] = {"malformed_arguments": str(raw)}
            text = json.dumps(raw, ensure_ascii=False) if isinstance(raw, dict) else str(raw)
            calls.append(ToolCall(block["id"], str(block.get("name", "")), text))
    text = _joined(blocks, "text", "text")
    parts = (TextPart(text),) if text else ()
    reasoning = _joined(blocks, "thinking", "thinking") or None
    sendable = [b for b in blocks if b.get("type") != "text" or str(b.get("text")).strip()]
    extra = {BLOCKS: sendable} if sendable else {}
    return Message(Role.ASSISTANT, parts, tuple(calls), reasoning=reasoning, extra=extra)


def read_usage(wire: Any) -> Usage:
    """Token counts; the API counts cached prompt tokens apart, here they are part of the prompt."""
    if not isinstance(wire, Mapping) or not isinstance(wire.get("input_tokens"), int):
        return Usage()
    cached = wire.get("cache_read_input_tokens")
    written = wire.get("cache_creation_input_tokens")
    details = wire.get("output_tokens_details") or {}
    return Usage(
        prompt_tokens=wire["input_tokens"] + (cached or 0) + (written or 0),
        completion_tokens=wire.get("output_tokens"),
        cached_tokens=cached,
        reasoning_tokens=details.get("thinking_tokens"),
    )


def _joined(blocks: Iterable[Mapping[str, Any]], kind: str, name: str) -> str:
    return "".join(str(block.get(name, "")) for block in blocks if block.get("type") == kind)


@dataclass(slots=True)
class _StreamedReply:
    """Puts the events of a stream together into the shape of a whole reply."""

    on_delta: OnDelta
    ended: bool = False
    _reply: dict[str, Any] = field(default_factory=dict)
    _usage: dict[str, Any] = field(default_factory=dict)
    _blocks: dict[int, dict[str, Any]] = field(default_factory=dict)
    _arguments: dict[int, str] = field(default_factory=dict)

    def add(self, event: Mapping[str, Any]) -> None:
        kind = event.get("type")
        if kind == "message_start":
            self._reply.update(event["message"])
            self._usage.update(event["message"].get("usage") or {})
        elif kind == "content_block_start":
            self._blocks[event["index"]] = dict(event["content_block"])
        elif kind == "content_block_delta":
            self._add_delta(event["index"], event["delta"])
        elif kind == "message_delta":
            self._reply.update(event.get("delta") or {})
            self._usage.update(event.get("usage") or {})
        elif kind == "message_stop":
            self.ended = True

    def whole(self) -> dict[str, Any]:
        for index, raw in self._arguments.items():
            self._blocks[index]["input"] = _object_or_text(raw)
        blocks = [self._blocks[index] for index in sorted(self._blocks)]
        return {**self._reply, "content": blocks, "usage": self._usage}

    def _add_delta(self, index: int, delta: Mapping[str, Any]) -> None:
        block = self._blocks[index]
        kind = delta.get("type")
        if kind == "input_json_delta":
            self._arguments[index] = self._arguments.get(index, "") + delta["partial_json"]
            return
        name = {"text_delta": "text", "thinking_delta": "thinking"}.get(
            str(kind), "signature" if kind == "signature_delta" else ""
        )
        if not name:
            return
        block[name] = block.get(name, "") + delta[name]
        if name != "signature":
            self.on_delta(
                delta[name] if name == "text" else "", delta[name] if name == "thinking" else ""
            )


def _object_or_text(raw: str) -> Any:
    try:
        return json.loads(raw) if raw else {}
    except ValueError:
        return raw
