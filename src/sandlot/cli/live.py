"""The view of a rollout while it happens: listeners on its events, writing to stderr.

Everything that the model or its sandbox wrote is hostile: it is cleaned of control characters,
bounded, and never read as markup.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from sandlot.cli.text import clean, excerpt, one_line
from sandlot.core.events import (
    Event,
    FilesCollected,
    MessageAdded,
    ModelCalled,
    ModelDelta,
    ReplyReceived,
    RolloutContinued,
    SandboxStarted,
    ToolFinished,
    ToolStarted,
)
from sandlot.core.types import Message, TextPart, ToolCall, ToolResult, Turn

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status


class View(Protocol):
    """`note` shows a line of ours; `close` takes down whatever moves."""

    streams: bool

    def __call__(self, event: Event, /) -> None: ...
    def note(self, text: str) -> None: ...
    def close(self) -> None: ...


class SilentView:
    """Shows nothing but what went wrong elsewhere."""

    streams = False

    def __call__(self, event: Event, /) -> None: ...
    def note(self, text: str) -> None: ...
    def close(self) -> None: ...


class PlainView:
    """Lines without colour or movement, for pipes, logs and screen readers."""

    streams = False

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def __call__(self, event: Event, /) -> None:
        for _, line in lines_of(event):
            print(line, file=self._out, flush=True)

    def note(self, text: str) -> None:
        print(clean(text), file=self._out, flush=True)

    def close(self) -> None: ...


_STYLES = {
    "turn": "bold blue",
    "thought": "default",
    "reasoning": "italic dim",
    "command": "bold green",
    "output": "dim",
    "bad": "red",
    "note": "dim",
}


class RichView:
    """Colour, and a moving line that says what is being waited for."""

    streams = True

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status: Status | None = None
        self._streamed = ""

    def __call__(self, event: Event, /) -> None:
        if isinstance(event, ModelDelta):
            self._show_delta(event)
            return
        self._rest()
        for style, line in lines_of(event):
            self._print(line, _STYLES[style])
        if isinstance(event, ModelCalled):
            self._streamed = ""
            self._wait(f"turn {event.turn + 1}: the model is thinking")
        elif isinstance(event, ToolStarted):
            self._wait(f"running {one_line(describe_call(event.call), 80)}")

    def note(self, text: str) -> None:
        self._rest()
        self._print(clean(text), _STYLES["note"])

    def close(self) -> None:
        self._rest()

    def _print(self, line: str, style: str) -> None:
        from rich.text import Text

        self._console.print(Text(line, style=style), highlight=False, soft_wrap=True)

    def _show_delta(self, event: ModelDelta) -> None:
        self._streamed = (self._streamed + (event.text or event.reasoning))[-400:]
        if self._status is not None:
            from rich.text import Text

            tail = clean(self._streamed).rstrip().rpartition("\n")[2][-80:]
            self._status.update(Text(f"turn {event.turn + 1}: {tail}"))

    def _wait(self, text: str) -> None:
        from rich.text import Text

        self._status = self._console.status(Text(text))
        self._status.start()

    def _rest(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None


def choose_view(display: str, *, environ: Mapping[str, str], out: TextIO | None = None) -> View:
    """`auto` is rich on a terminal that is not a build log, plain elsewhere."""
    out = sys.stderr if out is None else out
    if display == "auto":
        moving = out.isatty() and not environ.get("CI") and environ.get("TERM") != "dumb"
        display = "rich" if moving else "plain"
    if display == "none":
        return SilentView()
    if display == "plain":
        return PlainView(out)
    from rich.console import Console

    return RichView(Console(file=out, highlight=False, markup=False, emoji=False))


Lines = list[tuple[str, str]]


def lines_of(event: Event) -> Lines:
    """What an event looks like, as (style, cleaned line)."""
    show: Callable[[Any], Lines] | None = _SHOWN.get(type(event))
    return show(event) if show is not None else []


def _sandbox_started(event: SandboxStarted) -> Lines:
    missing = [
        f"{entry.get('promise')}{' (accepted)' if entry.get('accepted') else ''}"
        for entry in event.enforcement
        if not entry.get("holds")
    ]
    lines = [("note", f"sandbox {event.backend} started in {event.duration_s * 1000:,.0f} ms")]
    if missing:
        lines.append(("bad", clean(f"not enforced on this machine: {', '.join(missing)}")))
    return lines


def _reply(event: ReplyReceived) -> Lines:
    turn = event.turn
    lines = [("turn", f"── turn {turn.index + 1} · {_cost(turn)}")]
    lines += [("reasoning", line) for line in excerpt(turn.reply.reasoning or "", 6)]
    return lines + [("thought", line) for line in excerpt(turn.reply.text, 20)]


def _cost(turn: Turn) -> str:
    usage = turn.usage
    parts = [f"{turn.model_s:.1f} s"]
    if usage.prompt_tokens is not None:
        cached = f" ({usage.cached_tokens:,} cached)" if usage.cached_tokens else ""
        parts.append(f"{usage.prompt_tokens:,}{cached} + {usage.completion_tokens or 0:,} tokens")
    if turn.waiting_s >= 0.1:
        parts.append(f"waited {turn.waiting_s:.1f} s")
    return " · ".join(parts)


def _tool(event: ToolFinished) -> Lines:
    result = event.result
    command = [f"$ {line}" if i == 0 else f"  {line}" for i, line in enumerate(_call_lines(result))]
    style = "output" if result.ok else "bad"
    output = [(style, f"  {line}") for line in excerpt(_text(result.message))]
    return [*(("command", line) for line in command), *output, ("note", f"  {_verdict(result)}")]


def _verdict(result: ToolResult) -> str:
    meter = result.command
    if meter is None:
        return f"({result.duration_s:.2f} s)"
    state = "timed out" if meter.timed_out else f"exit {meter.exit_code}"
    return f"({state}, {meter.duration_s:.2f} s)"


def _call_lines(result: ToolResult) -> list[str]:
    return excerpt(describe_call(result.call), 8)


def describe_call(call: ToolCall) -> str:
    """The command of a bash call; name and arguments of any other."""
    try:
        arguments = json.loads(call.arguments or "{}")
    except ValueError:
        return f"{call.name} {call.arguments}"
    if not isinstance(arguments, dict):
        return f"{call.name} {call.arguments}"
    if isinstance(arguments.get("command"), str) and len(arguments) == 1:
        return str(arguments["command"])
    shown = " ".join(
        f"{key}={one_line(str(value), 60)}" if key not in ("command", "path") else str(value)
        for key, value in arguments.items()
    )
    return f"{call.name} {shown}".rstrip()


def _text(message: Message) -> str:
    return "".join(
        part.text if isinstance(part, TextPart) else f"[{part.type}]" for part in message.parts
    )


def _message(event: MessageAdded) -> Lines:
    if event.origin == "prompt":
        return []
    return [("note", f"{event.origin}: {line}") for line in excerpt(event.message.text, 4)]


def _collected(event: FilesCollected) -> Lines:
    return [
        ("bad", f"not collected: {one_line(skipped.path)} ({one_line(skipped.reason)})")
        for skipped in event.skipped[:20]
    ]


def _continued(event: RolloutContinued) -> Lines:
    return [("note", clean(f"{event.how}: {event.detail}".rstrip(": ")))]


_SHOWN: dict[type, Callable[[Any], Lines]] = {
    SandboxStarted: _sandbox_started,
    ReplyReceived: _reply,
    ToolFinished: _tool,
    MessageAdded: _message,
    FilesCollected: _collected,
    RolloutContinued: _continued,
}
