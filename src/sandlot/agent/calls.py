"""One tool call of a reply: answered whatever it looks like, so that a history never wedges."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from typing import Any

from sandlot.core.types import Message, Part, TextPart, ToolCall, ToolResult
from sandlot.tools.arguments import BadCall, parse_arguments
from sandlot.tools.base import Observation, Tool, ToolContext
from sandlot.tools.text import capped

NOT_RUN = "not run: "
RAW_ARGUMENTS = "sandlot_raw_arguments"


async def carry_out(
    call: ToolCall, raw: str, tools: Mapping[str, Tool], context: ToolContext
) -> Observation:
    """The observation of a call; an unusable one gets advice. `raw` is what the model wrote.

    Raises:
        SandboxDied: the sandbox is gone.
    """
    tool = tools.get(call.name)
    if tool is None:
        return _capped(_unknown_tool(call.name, tools), context)
    try:
        arguments = parse_arguments(tool.spec, raw)
    except BadCall as exc:
        return _capped(Observation.of(f"Error: {exc}", ok=False), context)
    return await tool.run(arguments, context)


def _unknown_tool(name: str, tools: Mapping[str, Tool]) -> Observation:
    near = get_close_matches(name, tools, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    text = f"Error: there is no tool {name[:80]!r} (have: {', '.join(tools)}).{hint}"
    return Observation.of(text, ok=False)


def _capped(observation: Observation, context: ToolContext) -> Observation:
    (part,) = observation.parts
    assert isinstance(part, TextPart)
    return replace(observation, parts=(TextPart(capped(part.text, context.observation_chars)),))


def sendable(reply: Message, turn: int) -> Message:
    """The reply as it may be sent back: every call with its own id and a valid JSON object.

    Servers refuse a history with broken arguments for ever after, so those are wrapped; what
    the model wrote stays in `extra`.
    """
    if not reply.tool_calls:
        return reply
    seen: set[str] = set()
    raw: dict[str, str] = {}
    calls = []
    for number, call in enumerate(reply.tool_calls):
        call_id = call.id if call.id and call.id not in seen else f"call_{turn}_{number}"
        seen.add(call_id)
        arguments = call.arguments if call.arguments.strip() else "{}"
        if not _is_json_object(arguments):
            raw[call_id] = call.arguments
            arguments = json.dumps({"invalid_arguments": call.arguments})
        calls.append(replace(call, id=call_id, arguments=arguments))
    extra = {**reply.extra, RAW_ARGUMENTS: raw} if raw else reply.extra
    return replace(reply, tool_calls=tuple(calls), extra=extra)


def raw_arguments(reply: Message, call: ToolCall) -> str:
    """What the model wrote as the arguments of one of the reply's calls."""
    found: Mapping[str, Any] = reply.extra.get(RAW_ARGUMENTS, {})
    return str(found.get(call.id, call.arguments))


def same_observation(recorded: ToolResult, now: Observation) -> bool:
    """Whether a repeated command told the model the same; what was added to it is ignored."""
    parts = recorded.message.parts
    old = parts[: len(now.parts)]
    return recorded.ok == now.ok and old == now.parts and _only_added(parts[len(old) :])


def _only_added(parts: tuple[Part, ...]) -> bool:
    return all(isinstance(part, TextPart) and "[turns left:" in part.text for part in parts)


def _is_json_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False
