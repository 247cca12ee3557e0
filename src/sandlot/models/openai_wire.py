"""The OpenAI chat-completions wire format: messages to bytes, replies to messages."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sandlot.core.types import (
    FilePart,
    ImagePart,
    Message,
    Part,
    Role,
    TextPart,
    TokenRecord,
    ToolCall,
    Usage,
)
from sandlot.models.base import OnDelta, ToolSpec
from sandlot.models.hermes import (
    CONTENT_AS_SENT,
    parse_reply,
    split_reasoning,
)
from sandlot.models.text_form import TextForm

CALL_FIELDS = "tool_call_fields"
"""Key in `Message.extra`: a provider's own fields of each call (signatures), by call id."""

_REASONING_FIELDS = ("reasoning_content", "reasoning", "reasoning_details", "thinking_blocks")
_CACHE_BYTES = 64 << 20
_NAME = re.compile(r"[^A-Za-z0-9_-]")


@dataclass(frozen=True, slots=True)
class _Encoded:
    """A message's JSON; `pictures` is a user message that follows the run of tool results."""

    body: bytes
    pictures: bytes | None = None


@dataclass(slots=True)
class MessageEncoder:
    """Encodes each message once. The same message always becomes the same bytes.

    `form` writes tools, calls and results as text. The cache is keyed by identity (a message holds
    mappings and has no hash) and keeps its messages alive; it is emptied when it holds 64 MiB.
    """

    form: TextForm | None = None
    with_images: bool = True
    _cache: dict[int, tuple[Message, _Encoded]] = field(default_factory=dict)
    _held_bytes: int = 0

    def set(self, *, form: TextForm | None, with_images: bool) -> None:
        if (form, with_images) != (self.form, self.with_images):
            self.form, self.with_images = form, with_images
            self._cache.clear()
            self._held_bytes = 0

    def encode(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> bytes:
        """The elements of the `messages` array, joined by commas.

        Pictures of tool results follow the last result of their run, since most servers take
        only text in a tool message and want all the results of a reply in a row.
        """
        pieces: list[bytes] = []
        waiting: list[bytes] = []
        start = 0 if self.form is None else 1
        if self.form is not None:
            head = self.form.to_text_messages(messages[:1], tools)
            pieces.extend(_dump(_message(item, self.with_images)) for item in head)
        for message in messages[start:]:
            if waiting and message.role is not Role.TOOL:
                pieces.extend(waiting)
                waiting.clear()
            encoded = self._encode_one(message)
            pieces.append(encoded.body)
            if encoded.pictures is not None:
                waiting.append(encoded.pictures)
        return b",".join(pieces + waiting)

    def _encode_one(self, message: Message) -> _Encoded:
        hit = self._cache.get(id(message))
        if hit is not None:
            return hit[1]
        encoded = self._render(message)
        self._held_bytes += len(encoded.body) + len(encoded.pictures or b"")
        if self._held_bytes > _CACHE_BYTES:
            self._cache.clear()
            self._held_bytes = len(encoded.body)
        self._cache[id(message)] = (message, encoded)
        return encoded

    def _render(self, message: Message) -> _Encoded:
        if self.form is not None:
            plain = self.form.to_text_message(message)
            return _Encoded(_dump(_message(plain, self.with_images)))
        if message.role is not Role.TOOL:
            return _Encoded(_dump(_message(message, self.with_images)))
        pictures = tuple(part for part in message.parts if isinstance(part, ImagePart))
        if not pictures or not self.with_images:
            return _Encoded(_dump(_message(message, with_images=False)))
        note = TextPart("\n[The picture follows in the next user message.]")
        others = tuple(part for part in message.parts if not isinstance(part, ImagePart))
        result = Message(Role.TOOL, (*others, note), tool_call_id=message.tool_call_id)
        caption = TextPart(f"Picture from tool call {message.tool_call_id}:")
        follow = Message(Role.USER, (caption, *pictures))
        return _Encoded(_dump(_message(result, False)), _dump(_message(follow, True)))


def encode_tools(tools: Sequence[ToolSpec]) -> list[dict[str, Any]]:
    return [
        {
            "type": "function",
            "function": {
                "name": tool.name,
                "description": tool.description,
                "parameters": tool.parameters,
            },
        }
        for tool in tools
    ]


def dump(value: Any) -> bytes:
    """Compact JSON. Lone surrogates (from damaged file names) become question marks."""
    return _dump(value)


def _dump(value: Any) -> bytes:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "replace")


def _message(message: Message, with_images: bool) -> dict[str, Any]:
    if message.role is Role.ASSISTANT:
        return _assistant(message)
    content = _content(message.parts, with_images)
    if message.role is Role.TOOL:
        return {"role": "tool", "tool_call_id": message.tool_call_id, "content": content}
    return {"role": message.role.value, "content": content}


def _assistant(message: Message) -> dict[str, Any]:
    content = message.extra.get(CONTENT_AS_SENT, message.text)
    wire: dict[str, Any] = {"role": "assistant", "content": content}
    if message.tool_calls:
        wire["content"] = content or None
        fields = message.extra.get(CALL_FIELDS, {})
        wire["tool_calls"] = [_call(call, fields.get(call.id, {})) for call in message.tool_calls]
    for name in _REASONING_FIELDS:
        if name in message.extra:
            wire[name] = message.extra[name]
    return wire


def _call(call: ToolCall, fields: Mapping[str, Any]) -> dict[str, Any]:
    name = _NAME.sub("_", call.name)[:64] or "unnamed"
    function = {"name": name, "arguments": _sendable_arguments(call.arguments)}
    return {"id": call.id, "type": "function", "function": function, **fields}


def _sendable_arguments(raw: str) -> str:
    """Arguments as they were written, or wrapped where they are not a JSON object.

    Chat templates decode the arguments of earlier calls; a broken one left as it is would make
    the server refuse every later request.
    """
    try:
        if isinstance(json.loads(raw), dict):
            return raw
    except (ValueError, RecursionError):
        pass
    return json.dumps({"malformed_arguments": raw}, ensure_ascii=False)


def _content(parts: Sequence[Part], with_images: bool) -> str | list[dict[str, Any]]:
    if with_images and any(isinstance(part, ImagePart) for part in parts):
        return [_rich_part(part) for part in parts]
    return "".join(part_text(part) for part in parts)


def _rich_part(part: Part) -> dict[str, Any]:
    if isinstance(part, ImagePart):
        url = f"data:{part.media_type};base64,{base64.b64encode(part.data).decode('ascii')}"
        return {"type": "image_url", "image_url": {"url": url}}
    return {"type": "text", "text": part_text(part)}


def part_text(part: Part) -> str:
    """A part in words, for where only text can stand."""
    if isinstance(part, TextPart):
        return part.text
    if isinstance(part, FilePart):
        return f"[file: {part.path}]"
    return f"[a picture, {part.media_type}, {len(part.data)} bytes; this model sees no pictures]"


# Replies


@dataclass(slots=True)
class CallIds:
    """Gives each call of a reply an id that is unique in the conversation, the same each time."""

    turn: int
    used: set[str]
    _count: int = 0

    @classmethod
    def after(cls, messages: Iterable[Message]) -> CallIds:
        past = [message for message in messages if message.role is Role.ASSISTANT]
        return cls(len(past), {call.id for message in past for call in message.tool_calls})

    def make(self) -> str:
        return self.keep("")

    def keep(self, wanted: Any) -> str:
        """`wanted` where it is usable and new, else `call_TURN_N`."""
        number, self._count = self._count, self._count + 1
        name = wanted if isinstance(wanted, str) else ""
        if not name or name in self.used:
            name = f"call_{self.turn}_{number}"
        while name in self.used:
            name += "_"
        self.used.add(name)
        return name


def read_message(wire: Mapping[str, Any], ids: CallIds, *, calls_in_text: bool) -> Message:
    """A reply's message. `calls_in_text` also reads `<tool_call>` blocks where there are no calls.

    Thinking that a server left inside the content is split off; what has to be sent back is kept
    in `extra` as it came.
    """
    content = _plain_text(wire.get("content"))
    extra = {name: wire[name] for name in _REASONING_FIELDS if wire.get(name)}
    calls, fields = _read_calls(wire.get("tool_calls") or (), ids)
    if fields:
        extra[CALL_FIELDS] = fields
    thought, said = split_reasoning(content)
    sent_back = content
    if calls_in_text and not calls:
        said, calls = parse_reply(said, ids.make)
        if calls:
            sent_back = said if thought is None else f"<think>\n{thought}\n</think>\n\n{said}"
    if sent_back != said:
        extra[CONTENT_AS_SENT] = sent_back
    parts = (TextPart(said),) if said else ()
    reasoning = _reasoning_text(wire) or thought
    return Message(Role.ASSISTANT, parts, calls, reasoning=reasoning, extra=extra)


def read_usage(wire: Any) -> Usage:
    """Token counts as far as the server gave them, in the field names of several providers."""
    if not isinstance(wire, Mapping):
        return Usage()
    prompt, completion = wire.get("prompt_tokens_details"), wire.get("completion_tokens_details")
    cached = _count(prompt, "cached_tokens")
    cost = wire.get("cost")
    return Usage(
        prompt_tokens=_count(wire, "prompt_tokens"),
        completion_tokens=_count(wire, "completion_tokens"),
        cached_tokens=cached if cached is not None else _count(wire, "prompt_cache_hit_tokens"),
        reasoning_tokens=_count(completion, "reasoning_tokens"),
        cost_usd=float(cost) if isinstance(cost, int | float) else None,
    )


_FINISH = {
    "length": "length",
    "max_tokens": "length",
    "model_length": "length",
    "content_filter": "content_filter",
    "safety": "content_filter",
    "refusal": "content_filter",
}


def read_finish(reason: Any, has_calls: bool) -> str:
    """A server's finish reason as one of stop, tool_calls, length, content_filter."""
    known = _FINISH.get(str(reason).lower())
    if known is not None:
        return known
    return "tool_calls" if has_calls else "stop"


def read_tokens(reply: Mapping[str, Any], choice: Mapping[str, Any]) -> TokenRecord | None:
    """Token ids where the server was asked for them (vLLM's `return_token_ids`)."""
    prompt = reply.get("prompt_token_ids") or choice.get("prompt_token_ids")
    completion = choice.get("token_ids")
    if not prompt or completion is None:
        return None
    entries = (choice.get("logprobs") or {}).get("content") or ()
    logprobs = tuple(float(entry["logprob"]) for entry in entries)
    same = len(logprobs) == len(completion)
    return TokenRecord(tuple(prompt), tuple(completion), logprobs if same else None)


def _count(wire: Any, name: str) -> int | None:
    value = wire.get(name) if isinstance(wire, Mapping) else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _plain_text(content: Any) -> str:
    """Content as text; some servers send a list of parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = (part.get("text") for part in content if isinstance(part, Mapping))
        return "".join(text for text in parts if isinstance(text, str))
    return ""


def _reasoning_text(wire: Mapping[str, Any]) -> str | None:
    for name in _REASONING_FIELDS[:2]:
        if isinstance(wire.get(name), str) and wire[name]:
            return str(wire[name])
    details = wire.get("reasoning_details")
    if not isinstance(details, list):
        return None
    items = (item for item in details if isinstance(item, Mapping))
    texts = (item.get("text") or item.get("summary") for item in items)
    return "".join(text for text in texts if isinstance(text, str)) or None


def _read_calls(
    wire: Iterable[Any], ids: CallIds
) -> tuple[tuple[ToolCall, ...], dict[str, dict[str, Any]]]:
    calls, fields = [], {}
    for item in wire:
        if not isinstance(item, Mapping):
            continue
        function = item.get("function")
        function = function if isinstance(function, Mapping) else {}
        call_id = ids.keep(item.get("id"))
        arguments = function.get("arguments")
        raw = arguments if isinstance(arguments, str) else json.dumps(arguments or {})
        calls.append(ToolCall(call_id, str(function.get("name") or ""), raw or "{}"))
        own = {k: v for k, v in item.items() if k not in ("id", "type", "function", "index") and v}
        if own:
            fields[call_id] = own
    return tuple(calls), fields


# Streams


@dataclass(slots=True)
class StreamedReply:
    """Puts the pieces of a streamed reply together, into the shape of one that came whole."""

    on_delta: OnDelta
    message: dict[str, Any] = field(default_factory=dict)
    finish_reason: str | None = None
    done: bool = False
    usage: Any = None
    head: dict[str, Any] = field(default_factory=dict)
    _calls: list[dict[str, Any]] = field(default_factory=list)
    _by_index: dict[int, dict[str, Any]] = field(default_factory=dict)

    def add(self, chunk: Mapping[str, Any]) -> None:
        if chunk.get("usage"):
            self.usage = chunk["usage"]
        for name in ("id", "model"):
            if name in chunk:
                self.head.setdefault(name, chunk[name])
        for choice in chunk.get("choices") or ():
            if choice.get("index", 0) == 0:
                self._add_delta(choice.get("delta") or {})
                self.finish_reason = choice.get("finish_reason") or self.finish_reason

    def whole(self) -> dict[str, Any]:
        message = dict(self.message)
        if self._calls:
            message["tool_calls"] = self._calls
        choice = {"message": message, "finish_reason": self.finish_reason}
        return {**self.head, "choices": [choice], "usage": self.usage}

    def _add_delta(self, delta: Mapping[str, Any]) -> None:
        text = self._append("content", _plain_text(delta.get("content")))
        thought = ""
        for name in _REASONING_FIELDS:
            value = delta.get(name)
            if isinstance(value, str):
                thought = self._append(name, value) or thought
            elif isinstance(value, list):
                merge_details(self.message.setdefault(name, []), value)
        for piece in delta.get("tool_calls") or ():
            self._add_call(piece)
        if text or thought:
            self.on_delta(text, thought)

    def _append(self, name: str, piece: str) -> str:
        if piece:
            self.message[name] = self.message.get(name, "") + piece
        return piece

    def _add_call(self, piece: Mapping[str, Any]) -> None:
        call = self._call_for(piece)
        for name, value in piece.items():
            if name not in ("index", "function") and value:
                call[name] = value
        function = call.setdefault("function", {"name": "", "arguments": ""})
        news = piece.get("function") or {}
        # Some servers repeat the whole name in every piece.
        if news.get("name") and not function["name"].endswith(news["name"]):
            function["name"] += news["name"]
        arguments = news.get("arguments")
        if arguments:
            function["arguments"] += arguments if isinstance(arguments, str) else dump_text(news)

    def _call_for(self, piece: Mapping[str, Any]) -> dict[str, Any]:
        """The call that a piece belongs to: by index, else a new id opens a new call."""
        index = piece.get("index")
        if isinstance(index, int):
            if index not in self._by_index:
                self._by_index[index] = self._open_call()
            return self._by_index[index]
        last = self._calls[-1] if self._calls else None
        if last is None or (piece.get("id") and piece["id"] != last.get("id")):
            return self._open_call()
        return last

    def _open_call(self) -> dict[str, Any]:
        self._calls.append({})
        return self._calls[-1]


def dump_text(function: Mapping[str, Any]) -> str:
    return json.dumps(function["arguments"], ensure_ascii=False)


def merge_details(held: list[Any], news: Iterable[Any]) -> None:
    """Join pieces of `reasoning_details` that continue the last item (same type and index)."""
    for item in news:
        last: Any = held[-1] if held else None
        if not _continues(last, item):
            held.append(dict(item) if isinstance(item, Mapping) else item)
            continue
        for name, value in item.items():
            grows = name in ("text", "summary", "data") and isinstance(value, str)
            last[name] = (last.get(name) or "") + value if grows else value or last.get(name)


def _continues(last: Any, item: Any) -> bool:
    if not isinstance(last, dict) or not isinstance(item, Mapping):
        return False
    same = last.get("type") == item.get("type") and last.get("index") == item.get("index")
    return same and item.get("index") is not None


class SseLines:
    """Splits the bytes of an event stream into the payloads of its `data:` lines.

    Only newline bytes end a line: a text decoder would also split at U+2028, which JSON allows
    inside a string.
    """

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [line[5:].strip() for line in lines if line.startswith(b"data:")]

    def finish(self) -> list[bytes]:
        """The payload of a last line that no newline ended."""
        return self.feed(b"\n")
