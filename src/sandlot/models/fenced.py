"""Tool calls as fenced blocks, for models so small that the words of a JSON call crowd them out.

A reply is one block, whose info string names the tool (`bash` for `execute_bash`) and whose body
is the tool's one text argument, just as it is: nothing is quoted or escaped.

    ```bash
    wc -l input/log.txt > output/answer.txt
    ```

A tool that takes no argument has an empty body; a tool that needs more than one is not offered.
Every message is rendered by itself, so a longer conversation never changes how it began.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from sandlot.core.types import Message, Role, TextPart, ToolCall
from sandlot.models.base import ToolSpec
from sandlot.models.hermes import AS_WRITTEN, MALFORMED_NAME

SHORT_NAMES = {"execute_bash": "bash"}
_LONG_NAMES = {short: name for name, short in SHORT_NAMES.items()}
_FENCE = "```"
_BLOCK = re.compile(r"```([A-Za-z_][\w-]*)[ \t]*\n(.*?)(?:(?:^|\n)```|\Z)", re.DOTALL)


def offered_tools(tools: Sequence[ToolSpec]) -> list[ToolSpec]:
    """The tools that this form can call: at most one required parameter, and that a text."""
    return [tool for tool in tools if _fits(tool)]


def _fits(tool: ToolSpec) -> bool:
    properties = tool.parameters.get("properties", {})
    required = list(tool.parameters.get("required", ()))
    if len(properties) > max(1, len(required)) or len(required) > 1:
        return False
    return all(_is_text(properties[name]) for name in required)


def _is_text(schema: Any) -> bool:
    return schema.get("type", "string") == "string" and "enum" not in schema


def parameter_of(tool: ToolSpec) -> str | None:
    """The name of the one text argument, or None for a tool without any."""
    required = list(tool.parameters.get("required", ()))
    return required[0] if required else None


def render_tools(tools: Sequence[ToolSpec]) -> str:
    """The offered tools, one example block each. Empty without tools."""
    if not tools:
        return ""
    blocks = [
        _block(tool.name, "..." if parameter_of(tool) else "") for tool in offered_tools(tools)
    ]
    return "\n".join(["Reply with one block only:", *blocks])


def parse_message(text: str, tools: Sequence[ToolSpec], make_id: Callable[[], str]) -> Message:
    """An assistant message of a reply: what stands outside of blocks, and a call for each block.

    A block that names no offered tool is a malformed call, so that the rollout can say so.
    """
    named = {tool.name: tool for tool in offered_tools(tools)}
    calls = tuple(
        _call(match.group(1), match.group(2), named, make_id) for match in _BLOCK.finditer(text)
    )
    said = _BLOCK.sub("", text).strip() if calls else text
    parts = (TextPart(said),) if said else ()
    return Message(Role.ASSISTANT, parts, calls, extra={AS_WRITTEN: text} if calls else {})


def _call(word: str, body: str, tools: dict[str, ToolSpec], make_id: Callable[[], str]) -> ToolCall:
    tool = tools.get(_LONG_NAMES.get(word, word))
    if tool is None:
        return ToolCall(make_id(), word or MALFORMED_NAME, json.dumps({}))
    name = parameter_of(tool)
    arguments = {} if name is None else {name: body}
    return ToolCall(make_id(), tool.name, json.dumps(arguments, ensure_ascii=False))


def to_text_message(message: Message) -> Message:
    """One message in its text form; a message that needs none is returned as it is."""
    if message.role is Role.TOOL:
        return Message(Role.USER, message.parts)
    if message.role is not Role.ASSISTANT or not (
        message.tool_calls or AS_WRITTEN in message.extra
    ):
        return message
    return Message(Role.ASSISTANT, (TextPart(_as_written(message)),), reasoning=message.reasoning)


def _as_written(message: Message) -> str:
    if AS_WRITTEN in message.extra:
        return str(message.extra[AS_WRITTEN])
    blocks = [_block(call.name, _argument(call)) for call in message.tool_calls]
    return "\n".join([message.text, *blocks] if message.text else blocks)


def _argument(call: ToolCall) -> str:
    try:
        values = json.loads(call.arguments)
    except ValueError:
        return call.arguments
    if not isinstance(values, dict):
        return call.arguments
    return "\n".join(str(value) for value in values.values())


def _block(tool: str, body: str) -> str:
    middle = f"{body}\n" if body else ""
    return f"{_FENCE}{SHORT_NAMES.get(tool, tool)}\n{middle}{_FENCE}"
