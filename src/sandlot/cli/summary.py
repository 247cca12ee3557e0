"""What stands at the end of a run: the answer, the files, the refusals, the cost, what next."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sandlot.api import RunResult
from sandlot.cli.live import View
from sandlot.cli.text import clean
from sandlot.core.codec import to_json
from sandlot.core.types import StopReason, Usage

MEANINGS = {
    StopReason.SUBMITTED: "the model submitted its work",
    StopReason.ANSWERED: "the model answered",
    StopReason.MAX_TURNS: "all turns were used (--max-turns)",
    StopReason.TOKEN_BUDGET: "the token budget was used up (--max-tokens)",
    StopReason.CONTEXT_FULL: "the model's context is full",
    StopReason.TIME_LIMIT: "the time limit was reached (--time-limit)",
    StopReason.NO_TOOL_CALL: "the model stopped calling tools, reminders notwithstanding",
    StopReason.CLIENT_TOOL_CALL: "the model called a tool of the client's",
    StopReason.MODEL_ERROR: "the model failed",
    StopReason.SANDBOX_DIED: "the sandbox died",
    StopReason.CANCELLED: "it was cancelled",
}


def show_result(result: RunResult, *, view: View, output: Path | None, as_json: bool) -> None:
    """The answer goes to stdout and all else to the view; or one JSON object to stdout."""
    for line in summary_lines(result, output):
        view.note(line)
    view.close()
    if as_json:
        print(json.dumps(as_object(result, output)), flush=True)
    elif result.answer is not None:
        print(clean(result.answer).rstrip("\n"), flush=True)
    sys.stdout.flush()


def summary_lines(result: RunResult, output: Path | None) -> Iterator[str]:
    yield ""
    yield f"stopped: {_why(result)}"
    if result.answer is None:
        yield "answer: none was left"
    for file in shown_files(result, output)[:50]:
        yield f"file: {file}"
    if len(result.files) > 50:
        yield f"file: … and {len(result.files) - 50:,} more in {result.directory / 'files'}"
    for refused in result.refused[:20]:
        remedy = f"; {refused.flag} would allow it" if refused.flag else ""
        yield f"refused: {refused.host} ({refused.reason}){remedy}"
    if len(result.refused) > 20:
        yield f"refused: … and {len(result.refused) - 20:,} more hosts"
    for line in _unenforced(result):
        yield f"not enforced: {line}"
    yield f"used: {_used(result)}"
    yield f"run: {result.directory}"
    yield from _next_steps(result)


def _why(result: RunResult) -> str:
    if result.stop_reason is None:
        return "before its end (unfinished)"
    meaning = MEANINGS[result.stop_reason]
    if result.stop_detail.startswith("sandbox died"):  # the detail says it again, with the cause
        return f"{result.stop_reason.value}, the {result.stop_detail}"
    detail = f": {result.stop_detail}" if result.stop_detail else ""
    return f"{result.stop_reason.value}, {meaning}{detail}"


def shown_files(result: RunResult, output: Path | None) -> list[Path]:
    """Where the produced files lie: in the output folder where there is one."""
    if output is None:
        return list(result.files)
    return [output / file.relative_to(result.directory / "files") for file in result.files]


def _used(result: RunResult) -> str:
    turns = len(result.trajectory.turns)
    parts = [f"{turns} turn{'' if turns == 1 else 's'}", *_tokens(result.usage)]
    if result.cost_usd is not None:
        parts.append(f"${result.cost_usd:.4f}")
    meter = result.trajectory.meter
    if meter is not None and meter.cpu_s is not None:
        parts.append(f"{meter.cpu_s:.1f} s of CPU inside")
    if meter is not None and meter.memory_peak_bytes is not None:
        parts.append(f"{meter.memory_peak_bytes / 2**20:,.0f} MiB at most")
    if result.trajectory.duration_s is not None:
        parts.append(f"{result.trajectory.duration_s:.1f} s")
    return ", ".join(parts)


def _unenforced(result: RunResult) -> Iterator[str]:
    """The promises of the policy that did not hold for this run, in every report of it."""
    for row in result.trajectory.enforcement:
        if not row.get("holds"):
            accepted = ", accepted" if row.get("accepted") else ""
            yield f"{row.get('promise')} ({row.get('means')}{accepted})"


def _tokens(usage: Usage) -> list[str]:
    if usage.prompt_tokens is None and usage.completion_tokens is None:
        return ["tokens not reported"]
    cached = f" ({usage.cached_tokens:,} cached)" if usage.cached_tokens else ""
    written = f"{usage.completion_tokens or 0:,} completion tokens"
    return [f"{usage.prompt_tokens or 0:,}{cached} prompt and {written}"]


def _next_steps(result: RunResult) -> Iterator[str]:
    finished = (StopReason.SUBMITTED, StopReason.ANSWERED)
    if result.stop_reason is StopReason.MAX_TURNS:
        yield f"go on: sandlot run --resume {result.directory} --max-turns N (more than before)"
    elif result.stop_reason not in finished:
        yield f"go on: sandlot run --resume {result.directory}"
    else:
        yield f'continue: sandlot continue {result.directory} "MORE"'
    if (result.directory / "sandbox.state").exists():
        yield f"look inside: sandlot shell {result.directory}"


def as_object(result: RunResult, output: Path | None) -> dict[str, Any]:
    """The result as one JSON object; `error` stands beside it where the command failed."""
    return {
        "answer": result.answer,
        "stop_reason": result.stop_reason.value if result.stop_reason else None,
        "stop_detail": result.stop_detail,
        "files": [str(file) for file in shown_files(result, output)],
        "directory": str(result.directory),
        "turns": len(result.trajectory.turns),
        "usage": to_json(result.usage),
        "duration_s": result.trajectory.duration_s,
        "sandbox": {
            "backend": result.trajectory.backend,
            "promises": list(result.trajectory.enforcement),
            "meter": to_json(result.trajectory.meter),
        },
        "refused": [to_json(refused) for refused in result.refused],
    }
