"""A report over many stored rollouts: from their records, and from their trajectories anew."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path

from measure import Row, Sample

from sandlot.bench.records import Episode
from sandlot.bench.sample import write_sample
from sandlot.core.events import (
    MessageAdded,
    ReplyReceived,
    RolloutStarted,
    RolloutStopped,
    ToolFinished,
    encode_event,
)
from sandlot.core.types import (
    Message,
    StopReason,
    Task,
    TextPart,
    ToolCall,
    ToolResult,
    Turn,
    Usage,
)

_ARMS = ("llm", "sandbox")
_SETS = 6
_TURN_BYTES = 1024
_REPORT = """\
import json, resource, sys, time
from pathlib import Path
from sandlot.bench.html import page
from sandlot.bench.report import build_report, write_report, write_text
run, again = Path(sys.argv[1]), sys.argv[2] == "again"
began = time.perf_counter()
report = build_report([run], measure_again=again)
write_report(report, run / "report.json")
write_text(run / "report.html", page(report))
took = time.perf_counter() - began
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps([took, time.process_time(), peak]))
"""


async def report(work: Path, rollouts: int = 10_000, turns: int = 20) -> list[Row]:
    """Reports of `rollouts` stored rollouts, each in a process of its own."""
    run, kib = await asyncio.to_thread(_write, work / "report", rollouts, turns)
    stored = await asyncio.to_thread(_measured, run, "stored")
    again = await asyncio.to_thread(_measured, run, "again")
    detail = {"rollouts": rollouts, "turns": turns, "a_turn_on_disk_kib": round(kib, 2)}
    return [
        _row("report from records", stored, detail),
        _row("report, every trajectory measured again", again, detail),
    ]


def _row(name: str, found: tuple[float, float, float], detail: dict[str, float]) -> Row:
    took, cpu, peak = found
    return Row(
        name=f"{name}, {detail['rollouts']:,} rollouts",
        value=Sample.of([took], "s"),
        floor=None,
        floor_is="none",
        mark="≤ 60 s, ≤ 1024 MiB",
        met=took <= 60 and peak <= 1024 if detail["rollouts"] >= 10_000 else None,
        detail={**detail, "cpu_s": round(cpu, 2), "memory_mib": round(peak)},
    )


def _measured(run: Path, how: str) -> tuple[float, float, float]:
    words = [sys.executable, "-c", _REPORT, str(run), how]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    took, cpu, peak = json.loads(done.stdout)
    return took, cpu, peak


def _write(parent: Path, rollouts: int, turns: int) -> tuple[Path, float]:
    """A sample run with a trajectory for each episode; and KiB a turn."""
    parent.mkdir(parents=True, exist_ok=True)
    directory = write_sample(parent, items=max(1, rollouts // _SETS // len(_ARMS)), arms=_ARMS)
    text = _trajectory(turns)
    for episode in list(directory.episodes()):
        directory.trajectory_path(episode).write_text(_named(text, episode), "utf-8")
    return directory.path, len(text) / turns / 1024


def _named(text: str, episode: Episode) -> str:
    return text.replace("rollout-id", episode.stem)


def _trajectory(turns: int) -> str:
    """The lines of one rollout: a command of a few lines and a page of output each turn."""
    call = ToolCall("c", "execute_bash", json.dumps({"command": "grep -n total *.txt | head"}))
    output = "report.txt:12: total 34,567\n" * (_TURN_BYTES // 28 + 1)
    observation = Message.tool("c", TextPart(output))
    events = [
        RolloutStarted("rollout-id", Task("t", "What is the total?"), "sandbox", "sample"),
        MessageAdded(Message.user("What is the total?")),
    ]
    lines = [encode_event(event, 0.0) for event in events]
    for index in range(turns):
        reply = Message.assistant("I look for it.", call)
        turn = Turn(index, reply, Usage(1000, 50), "tool_calls", 1.0, 0.0)
        result = ToolResult(call, observation, True, 0.1)
        lines += [encode_event(e, 0.0) for e in (ReplyReceived(turn), ToolFinished(index, result))]
    lines.append(encode_event(RolloutStopped(StopReason.SUBMITTED), 1.0))
    return "".join(json.dumps(line) + "\n" for line in lines)


if __name__ == "__main__":
    import tempfile

    import table

    many = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    with tempfile.TemporaryDirectory(prefix="sandlot-bench-") as folder:
        began = time.perf_counter()
        for row in asyncio.run(report(Path(folder), many)):
            print(table.line(row), row.detail)
        print(f"{time.perf_counter() - began:.1f} s in all")
