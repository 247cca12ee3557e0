"""Files of rollouts to learn from: training records, and conversations that were exported.

A line is one rollout: a training record, of a training run or of `sandlot export --format training`
(`records.py`), or chat messages with the tools that were offered (`sandlot export --format
messages`, and what most programs call OpenAI messages).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sandlot.core.errors import InputError, RecordError
from sandlot.core.tokens import TokenRow, joined
from sandlot.core.types import Message, Role, TextPart, TokenRecord
from sandlot.models.base import ToolSpec
from sandlot.models.openai_wire import CallIds, read_message
from sandlot.train.base import SAMPLED_IDS, Episode
from sandlot.train.chat import TemplateFormat
from sandlot.train.records import recorded_of


def read_rollouts(path: Path, chat: TemplateFormat) -> Iterator[Episode]:
    """The rollouts of a file. Conversations are written into tokens as `chat` has them.

    Raises:
        InputError: the file cannot be read, or a line is in none of the forms; names the line.
        ConfigError: the model's template cannot write such a conversation.
    """
    try:  # not `stream_jsonl`, which takes a last line without its newline for a torn one
        with path.open(encoding="utf-8", errors="surrogatepass") as file:
            for number, text in enumerate(file, 1):
                if text.strip():
                    where = f"{path.name}:{number}"
                    yield _episode(_object(text, where), chat, where)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error


def _object(text: str, where: str) -> Mapping[str, Any]:
    try:
        line = json.loads(text)
    except ValueError as error:
        raise InputError(f"{where}: not JSON ({error})") from error
    if not isinstance(line, dict):
        raise InputError(f"{where}: expected an object, found {type(line).__name__}")
    return line


def _episode(line: Mapping[str, Any], chat: TemplateFormat, where: str) -> Episode:
    if "messages" not in line and "segments" not in line:
        raise InputError(
            f"{where}: no rollout to learn from: neither messages nor segments are there "
            f"(found: {', '.join(line) or 'nothing'})"
        )
    try:
        if "segments" in line:
            return _with_logprobs(recorded_of(line).episode)
        return _conversation(line, chat, where)
    except RecordError as error:
        raise InputError(f"{where}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{where}: damaged: {type(error).__name__}: {error}") from error


def _with_logprobs(episode: Episode) -> Episode:
    """Rows that were recorded without log probabilities get some: fine-tuning reads none."""
    rows = (
        row if row.logprobs is not None else replace(row, logprobs=(0.0,) * len(row.ids))
        for row in episode.rows
    )
    return replace(episode, rows=tuple(rows))


def _conversation(line: Mapping[str, Any], chat: TemplateFormat, where: str) -> Episode:
    about = line.get("metadata") or {}
    name = str(about.get("id") or line.get("id") or where)
    tools = [_tool(each["function"]) for each in line.get("tools") or ()]
    rows = written_rows(_messages(line["messages"], where), tools, chat)
    if not rows:
        raise InputError(f"{where}: no assistant message, so there is nothing to learn")
    return Episode(name, name, rows, _score(about.get("score", line.get("reward"))))


def _score(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RecordError(f"the score or reward must be a number, found {value!r:.80}")
    return float(value)


def written_rows(
    messages: Sequence[Message], tools: Sequence[ToolSpec], chat: TemplateFormat
) -> tuple[TokenRow, ...]:
    """A conversation in tokens, with every reply of its assistant as if the policy had drawn it."""
    so_far: list[Message] = []
    records = []
    for message in messages:
        if message.role is Role.ASSISTANT:
            prompt, ids = chat.render(so_far, tools), chat.write(message, tools)
            records.append(TokenRecord(prompt, ids, (0.0,) * len(ids)))
            message = replace(message, extra={**message.extra, SAMPLED_IDS: list(ids)})
        so_far.append(message)
    return joined(records)


def _tool(function: Mapping[str, Any]) -> ToolSpec:
    return ToolSpec(
        str(function["name"]), str(function.get("description", "")), function.get("parameters", {})
    )


def _messages(wire: Sequence[Mapping[str, Any]], where: str) -> list[Message]:
    read: list[Message] = []
    for each in wire:
        role = str(each["role"])
        if role == "assistant":
            ids = CallIds.after(read)
            read.append(read_message(each, ids, calls_in_text=False))
        elif role == "tool":
            read.append(Message.tool(str(each.get("tool_call_id", "")), _text(each)))
        elif role in ("system", "developer", "user"):
            read.append(Message.user(_text(each).text) if role == "user" else _system(each))
        else:
            raise InputError(f"{where}: a message has the unknown role {role!r}")
    return read


def _system(each: Mapping[str, Any]) -> Message:
    return Message.system(_text(each).text)


def _text(each: Mapping[str, Any]) -> TextPart:
    """The content in words; pictures are left out, no policy here sees them."""
    content = each.get("content")
    if isinstance(content, str):
        return TextPart(content)
    parts = content if isinstance(content, list) else []
    return TextPart("".join(str(part.get("text", "")) for part in parts))
