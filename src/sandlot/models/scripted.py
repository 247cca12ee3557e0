"""A model that plays a script: a shipped double for tests, demos and replays."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anyio

from sandlot.core.errors import ConfigError, ContextOverflow, ModelError
from sandlot.core.types import Message, Role, TextPart, ToolCall, Usage
from sandlot.models.base import Completion, OnDelta, Sampling, ToolSpec


@dataclass(frozen=True, slots=True)
class ScriptedRequest:
    """What the model was asked, as it was asked."""

    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...]
    sampling: Sampling | None


Answer = Message | str | Completion
Reply = Answer | Exception | Callable[[ScriptedRequest], Answer]


@dataclass(frozen=True, slots=True)
class _Step:
    reply: Reply
    delay_s: float = 0.0


class ScriptedModel:
    """Gives its replies in order; an exception among them is raised in its turn.

    Usage is what the script says and nothing where it says nothing. A call without an id, or
    with one that the conversation already used, gets `call_TURN_N`.
    """

    sees_images = True

    def __init__(
        self,
        *replies: Reply,
        name: str = "scripted",
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        self.name = name
        self.requests: list[ScriptedRequest] = []
        self._steps = [_Step(reply) for reply in replies]
        self._next = 0
        self._skip_played = False
        self._sleep = sleep

    @classmethod
    def from_file(
        cls, path: Path, *, sleep: Callable[[float], Awaitable[None]] = anyio.sleep
    ) -> ScriptedModel:
        """The script of a JSONL file, one reply a line.

        Fields: `text`, `reasoning`, `tool_calls` (objects with `name` and `arguments`, an object
        or raw text), `usage`, `finish_reason`, `delay_s`; or `error` (`message`, `status`, `type`
        either `model` or `context_overflow`). Replies that the first request's history already
        holds are not played again, so that a resumed run goes on where it stopped.

        Raises:
            ConfigError: an unreadable file or line; the message names file, line and field.
        """
        model = cls(name=f"scripted:{path}", sleep=sleep)
        model._steps = _read_script(path)
        model._skip_played = True
        return model

    async def complete(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolSpec] = (),
        sampling: Sampling | None = None,
        on_delta: OnDelta | None = None,
    ) -> Completion:
        request = ScriptedRequest(tuple(messages), tuple(tools), sampling)
        self.requests.append(request)
        step = self._take(request)
        if step.delay_s:
            await self._sleep(step.delay_s)
        completion = _with_ids(_answer(step.reply, request), request.messages)
        if on_delta is not None:
            on_delta(completion.message.text, completion.message.reasoning or "")
        return completion

    async def close(self) -> None:
        pass

    def _take(self, request: ScriptedRequest) -> _Step:
        if self._skip_played:
            self._skip_played = False
            self._next = _count_played(self._steps, request.messages)
        if self._next >= len(self._steps):
            raise ModelError(
                f"{self.name}: the script has {len(self._steps)} replies and all were played; "
                "add a reply or end the script with a submit"
            )
        self._next += 1
        return self._steps[self._next - 1]


def say(text: str, *, reasoning: str | None = None) -> Message:
    """A reply of text alone."""
    return Message.assistant(text, reasoning=reasoning)


def bash(command: str, *, text: str = "") -> Message:
    """A reply that runs one command."""
    return call("execute_bash", {"command": command}, text=text)


def edit(command: str, path: str, *, text: str = "", **parameters: Any) -> Message:
    """A reply that calls the editor, e.g. `edit("create", "/a.txt", file_text="x")`."""
    arguments = {"command": command, "path": path, **parameters}
    return call("str_replace_editor", arguments, text=text)


def submit(*, text: str = "") -> Message:
    """A reply that ends the rollout."""
    return call("submit", {}, text=text)


def call(name: str, arguments: Mapping[str, Any] | str, *, text: str = "") -> Message:
    """A reply with one tool call; arguments given as text are sent raw."""
    return Message.assistant(text, _tool_call(0, name, arguments))


def calls(*messages: Message, text: str = "") -> Message:
    """One reply with the tool calls of several, in order: `calls(bash("a"), bash("b"))`."""
    found = [item for message in messages for item in message.tool_calls]
    numbered = (replace(item, id=f"call_{n}") for n, item in enumerate(found))
    return Message.assistant(text, *numbered)


def _tool_call(index: int, name: str, arguments: Mapping[str, Any] | str) -> ToolCall:
    raw = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return ToolCall(f"call_{index}", name, raw)


def _answer(reply: Reply, request: ScriptedRequest) -> Completion:
    if isinstance(reply, Exception):
        raise reply
    answer = reply if isinstance(reply, Message | str | Completion) else reply(request)
    if isinstance(answer, Completion):
        return answer
    message = Message.assistant(answer) if isinstance(answer, str) else answer
    return Completion(message, finish_reason="tool_calls" if message.tool_calls else "stop")


def _with_ids(completion: Completion, history: Sequence[Message]) -> Completion:
    """Make call ids unique in the conversation, the same ones each time it is played."""
    message = completion.message
    if not message.tool_calls:
        return completion
    used = {item.id for past in history for item in past.tool_calls} | {""}
    turn = sum(past.role is Role.ASSISTANT for past in history)
    fixed = []
    for number, item in enumerate(message.tool_calls):
        unique = item if item.id not in used else replace(item, id=f"call_{turn}_{number}")
        used.add(unique.id)
        fixed.append(unique)
    return replace(completion, message=replace(message, tool_calls=tuple(fixed)))


def _count_played(steps: Sequence[_Step], history: Sequence[Message]) -> int:
    """How many steps the conversation already holds, errors in between included."""
    played = 0
    index = 0
    past = [message for message in history if message.role is Role.ASSISTANT]
    while index < len(steps) and played < len(past):
        reply = steps[index].reply
        if isinstance(reply, Completion):
            if _content(reply.message) != _content(past[played]):
                break
            played += 1
        index += 1
    return index if played == len(past) else 0


def _content(message: Message) -> tuple[Any, ...]:
    return message.text, tuple((item.name, item.arguments) for item in message.tool_calls)


def _read_script(path: Path) -> list[_Step]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path}: the script cannot be read: {exc}") from exc
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    return [_read_line(f"{path}:{number}", line) for number, line in numbered]


_FIELDS = frozenset(
    ("text", "tool_calls", "reasoning", "usage", "finish_reason", "error", "delay_s")
)


def _read_line(where: str, line: str) -> _Step:
    try:
        data = json.loads(line)
    except ValueError as exc:
        raise ConfigError(f"{where}: not a JSON object ({exc})") from exc
    if not isinstance(data, dict):
        raise ConfigError(f"{where}: expected a JSON object, found {type(data).__name__}")
    for unknown in sorted(data.keys() - _FIELDS):
        raise ConfigError(f"{where}:{unknown}: no such field (have: {', '.join(sorted(_FIELDS))})")
    delay_s = float(_field(where, data, "delay_s", (int, float), 0.0))
    if "error" in data:
        return _Step(_read_error(f"{where}:error", data["error"]), delay_s)
    return _Step(_read_completion(where, data), delay_s)


def _field(where: str, data: Mapping[str, Any], name: str, kinds: Any, default: Any) -> Any:
    value = data.get(name, default)
    if value is not default and (not isinstance(value, kinds) or isinstance(value, bool)):
        raise ConfigError(f"{where}:{name}: has the wrong type ({type(value).__name__})")
    return value


def _read_completion(where: str, data: Mapping[str, Any]) -> Completion:
    text = _field(where, data, "text", str, "")
    reasoning = _field(where, data, "reasoning", str, None)
    raw_calls = _field(where, data, "tool_calls", list, [])
    found = tuple(_read_call(f"{where}:tool_calls[{n}]", n, c) for n, c in enumerate(raw_calls))
    parts = (TextPart(text),) if text else ()
    message = Message(Role.ASSISTANT, parts, found, reasoning=reasoning)
    usage = _read_usage(f"{where}:usage", _field(where, data, "usage", dict, {}))
    finish = _field(where, data, "finish_reason", str, "tool_calls" if found else "stop")
    return Completion(message, usage, finish)


def _read_call(where: str, index: int, data: Any) -> ToolCall:
    if not isinstance(data, dict) or not isinstance(data.get("name"), str):
        raise ConfigError(f"{where}.name: missing; a call is {{'name': …, 'arguments': …}}")
    arguments = data.get("arguments", {})
    if not isinstance(arguments, dict | str):
        raise ConfigError(f"{where}.arguments: must be an object or raw text")
    return _tool_call(index, data["name"], arguments)


def _read_usage(where: str, data: Mapping[str, Any]) -> Usage:
    for name, value in data.items():
        if name not in Usage.__dataclass_fields__:
            have = ", ".join(Usage.__dataclass_fields__)
            raise ConfigError(f"{where}.{name}: no such count (have: {have})")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(f"{where}.{name}: must be a number")
    return Usage(**data)


def _read_error(where: str, data: Any) -> ModelError:
    if not isinstance(data, dict):
        raise ConfigError(f"{where}: must be an object with a message")
    kind = data.get("type", "model")
    if kind not in ("model", "context_overflow"):
        raise ConfigError(f"{where}.type: {kind!r} is neither 'model' nor 'context_overflow'")
    cls = ContextOverflow if kind == "context_overflow" else ModelError
    return cls(str(data.get("message", "scripted error")), status=data.get("status"))
