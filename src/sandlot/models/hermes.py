"""Tool calls as text, for models and servers that know no tools.

The tags are those of the Hermes function-calling format, which many open models were trained on.
Every message is rendered by itself, so a longer conversation never changes how its beginning
reads and a server's prefix cache keeps hitting.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sandlot.core.types import Message, Part, Role, TextPart, ToolCall
from sandlot.models.base import ToolSpec

MALFORMED_NAME = "malformed_tool_call"
"""The tool name of a call whose own name could not be read; no tool is called so."""

AS_WRITTEN = "hermes_text"
"""Key in `Message.extra`: a reply's text as the model wrote it, tags and thinking included."""

CONTENT_AS_SENT = "content"
"""Key in `Message.extra`: content to send back where it differs from the message's text."""

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_THINK, _END_THINK = "<think>", "</think>"
_NAME = re.compile(r'"name"\s*:\s*"([A-Za-z0-9_.-]{1,64})"')
# Models write raw newlines inside JSON strings; `strict=False` reads them as meant.
_DECODER = json.JSONDecoder(strict=False)


def render_tools(tools: Sequence[ToolSpec]) -> str:
    """System-prompt text that lists the tools and says how to call one. Empty without tools."""
    if not tools:
        return ""
    listing = "\n".join(_compact(_schema(tool)) for tool in tools)
    return (
        "You can call these tools, one JSON description a line:\n"
        f"<tools>\n{listing}\n</tools>\n"
        "To call one, write a single JSON object between tags, exactly in this form:\n"
        f'{_OPEN}{{"name": "TOOL", "arguments": {{"PARAMETER": "VALUE"}}}}{_CLOSE}\n'
        "For several calls, write several such blocks; they are carried out in order. After your "
        "last block stop and wait: each result arrives between <tool_response> tags. "
        "Never write a <tool_response> yourself."
    )


def split_reasoning(text: str) -> tuple[str | None, str]:
    """A leading thinking block and the text after it, both stripped; None without a block.

    Some chat templates open the block in the prompt, so a closing tag alone counts too; a block
    that never closes (a reply cut by length) is thinking to its end.
    """
    stripped = text.lstrip()
    if stripped.startswith(_THINK):
        thought, _, rest = stripped[len(_THINK) :].partition(_END_THINK)
        return thought.strip() or None, rest.strip()
    end = text.find(_END_THINK)
    if end >= 0 and _THINK not in text[:end]:
        return text[:end].strip() or None, text[end + len(_END_THINK) :].strip()
    return None, text


def parse_reply(text: str, make_id: Callable[[], str]) -> tuple[str, tuple[ToolCall, ...]]:
    """The text outside the call tags, and the calls in order.

    A block that is not a proper call becomes a `ToolCall` with the block's raw text as its
    arguments, so that the rollout can tell the model what was wrong. Calls inside a leading
    thinking block are only thoughts. Text without a tag comes back unchanged.
    """
    cursor = _after_thinking(text)
    if _OPEN not in text[cursor:]:
        return text, ()
    pieces, calls = [text[:cursor]], []
    while (start := text.find(_OPEN, cursor)) >= 0:
        pieces.append(text[cursor:start])
        call, cursor = _read_block(text, start + len(_OPEN), make_id)
        calls.append(call)
    pieces.append(text[cursor:])
    return "".join(pieces).strip(), tuple(calls)


def parse_message(text: str, make_id: Callable[[], str]) -> Message:
    """An assistant message of a reply: thinking, text and calls apart, the original in `extra`."""
    reasoning, rest = split_reasoning(text)
    said, calls = parse_reply(rest, make_id)
    parts = (TextPart(said),) if said else ()
    extra = {AS_WRITTEN: text} if calls or reasoning else {}
    return Message(Role.ASSISTANT, parts, calls, reasoning=reasoning, extra=extra)


def to_text_message(message: Message) -> Message:
    """One message in its text form; a message that needs none is returned as it is."""
    if message.role is Role.TOOL:
        return Message(Role.USER, _tool_response(message.parts))
    if message.role is not Role.ASSISTANT:
        return message
    if AS_WRITTEN in message.extra:
        text = str(message.extra[AS_WRITTEN])
    elif message.tool_calls:
        said = str(message.extra.get(CONTENT_AS_SENT, message.text))
        blocks = "\n".join(_render_call(call) for call in message.tool_calls)
        text = f"{said}\n{blocks}" if said else blocks
    else:
        return message
    extra = {key: value for key, value in message.extra.items() if key != CONTENT_AS_SENT}
    return Message(Role.ASSISTANT, (TextPart(text),), reasoning=message.reasoning, extra=extra)


def _schema(tool: ToolSpec) -> Mapping[str, Any]:
    return {"name": tool.name, "description": tool.description, "parameters": tool.parameters}


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _after_thinking(text: str) -> int:
    end = text.find(_END_THINK)
    if end >= 0 and (text.lstrip().startswith(_THINK) or _THINK not in text[:end]):
        return end + len(_END_THINK)
    return len(text) if text.lstrip().startswith(_THINK) else 0


def _read_block(text: str, start: int, make_id: Callable[[], str]) -> tuple[ToolCall, int]:
    """The call whose block begins at `start`, and where the text goes on."""
    value, after_json = _decode_at(text, start)
    close = text.find(_CLOSE, start if value is None else after_json)
    stop = close if close >= 0 else len(text)
    after = close + len(_CLOSE) if close >= 0 else len(text)
    raw = text[start:stop].strip()
    if value is None or text[after_json:stop].strip():
        return _malformed(raw, make_id), after
    return _to_call(value, raw, make_id), after


def _decode_at(text: str, start: int) -> tuple[Any, int]:
    """The JSON value at `start` and its end; (None, start) where there is none.

    Decoding comes before the search for the closing tag, since a command may contain the tag.
    """
    begin = start
    while begin < len(text) and text[begin].isspace():
        begin += 1
    try:
        return _DECODER.raw_decode(text, begin)
    except (ValueError, RecursionError):
        return None, start


def _to_call(value: Any, raw: str, make_id: Callable[[], str]) -> ToolCall:
    fits = isinstance(value, dict) and isinstance(value.get("name"), str) and value["name"]
    if not fits or not value.keys() <= {"name", "arguments", "id"}:
        return _malformed(raw, make_id)
    arguments = value.get("arguments", {})
    text = arguments if isinstance(arguments, str) else _compact(arguments)
    return ToolCall(make_id(), value["name"], text)


def _malformed(raw: str, make_id: Callable[[], str]) -> ToolCall:
    found = _NAME.search(raw)
    return ToolCall(make_id(), found.group(1) if found else MALFORMED_NAME, raw)


def _render_call(call: ToolCall) -> str:
    try:
        arguments = json.loads(call.arguments)
    except ValueError:
        # What the model wrote is shown to it unchanged: the error observation speaks of it.
        return f"{_OPEN}{call.arguments}{_CLOSE}"
    return f"{_OPEN}{_compact({'name': call.name, 'arguments': arguments})}{_CLOSE}"


def _tool_response(parts: tuple[Part, ...]) -> tuple[Part, ...]:
    text = "".join(part.text for part in parts if isinstance(part, TextPart))
    others = tuple(part for part in parts if not isinstance(part, TextPart))
    return (TextPart(f"<tool_response>\n{text}\n</tool_response>"), *others)
