"""A bench run killed at a random moment and resumed, many times: nothing is lost or done twice.

The program itself is killed (SIGKILL), with a scripted model and the sandbox double, so that each
round takes seconds; what is under test is what reaches the disk.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from measure import Row, Sample

from sandlot.bench.records import Episode, EpisodeRecord
from sandlot.bench.store import BenchDirectory
from sandlot.core.events import RolloutStopped

_ITEMS, _AT_ONCE, _DELAY_S = 12, 3, 0.05
_WRITE = {
    "name": "str_replace_editor",
    "arguments": {
        "command": "create",
        "path": "/testbed/answer.txt",
        "file_text": "ANSWER: 42\n",
    },
}
_LOOK = {"name": "str_replace_editor", "arguments": {"command": "view", "path": "/testbed"}}
_SUBMIT = {"name": "submit", "arguments": {}}


@dataclass(slots=True)
class _Tally:
    """Over all rounds. `unaccounted`: unfinished episodes that neither went on nor began anew."""

    lost: int = 0
    twice: int = 0
    unaccounted: int = 0
    finished_at_kill: list[float] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)


async def resume(work: Path, n: int) -> list[Row]:
    """`n` rounds; the moments come from a seeded generator."""
    folder = Path(tempfile.mkdtemp(prefix="resume-", dir=work))
    _write_set(folder)
    rng, tally = random.Random(1), _Tally()
    length_s = await _unharmed(folder)
    for number in range(n):
        await _round(folder / f"round-{number}", folder, rng.uniform(0, length_s), tally)
    bad = tally.lost + tally.twice + tally.unaccounted
    detail: dict[str, Any] = {
        "finished_items_lost": tally.lost,
        "finished_items_run_twice": tally.twice,
        "unfinished_not_accounted_for": tally.unaccounted,
        "unfinished": dict(tally.outcomes),
        "finished_when_killed_of_24": Sample.of(tally.finished_at_kill or [0.0], "episodes"),
        "notes": tally.notes[:5],
    }
    name = f"kill -9 at a random moment and resume, {n} times: finished items lost or run twice"
    value = Sample.of([float(bad)], "items")
    return [Row(name, value, None, "", "0", bad == 0, None, detail)]


def _write_set(folder: Path) -> None:
    rows = [
        {"id": f"q{n}", "problem_statement": f"What is {n}?", "ground_truth": "42",
         "domain": "math", "input_files": {}}
        for n in range(_ITEMS)
    ]  # fmt: skip
    _jsonl(folder / "tiny.jsonl", rows)
    scorer = 'domain = "math"\nscorer = "text"\n[source]\nkind = "file"\npath = "tiny.jsonl"\n'
    (folder / "tiny.toml").write_text(scorer)
    _jsonl(folder / "llm.jsonl", [{"text": "ANSWER: 42", "delay_s": _DELAY_S}])
    calls = ([_LOOK], [_WRITE], [_SUBMIT])
    _jsonl(folder / "sandbox.jsonl", [{"tool_calls": c, "delay_s": _DELAY_S} for c in calls])


def _jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


async def _start(runs: Path, folder: Path, *words: str) -> asyncio.subprocess.Process:
    command = [sys.executable, "-m", "sandlot.cli.main", "bench", *words]
    command += ["--runs", str(runs), "--backend", "fake", "-c", str(_AT_ONCE)]
    command += ["-m", f"scripted:{folder}/{{mode}}.jsonl", "--no-reference", "--display", "none"]
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe)


async def _unharmed(folder: Path) -> float:
    """Seconds from the first record to the last episode's end, in a run that nobody kills."""
    runs = folder / "whole"
    process = await _start(runs, folder, str(folder / "tiny.toml"))
    await _first_record(runs, process)
    began = time.monotonic()
    while _episodes(runs) < 2 * _ITEMS and process.returncode is None:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    length_s = time.monotonic() - began
    await _ended(process)
    return length_s


def _episodes(runs: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in runs.glob("*/episodes.jsonl"))


async def _ended(process: asyncio.subprocess.Process) -> None:
    _, err = await process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"sandlot bench left with {process.returncode}: {err.decode()[-1500:]}")


async def _first_record(runs: Path, process: asyncio.subprocess.Process) -> None:
    """Wait until a run can be resumed at all: its manifest is there."""
    while not list(runs.glob("*/run.toml")) and process.returncode is None:  # noqa: ASYNC110
        await asyncio.sleep(0.01)


async def _round(runs: Path, folder: Path, after_s: float, tally: _Tally) -> None:
    process = await _start(runs, folder, str(folder / "tiny.toml"))
    await _first_record(runs, process)
    await asyncio.sleep(after_s)
    if process.returncode is None:
        process.kill()
    await process.communicate()
    (path,) = (each.parent for each in runs.glob("*/run.toml"))
    before = BenchDirectory.open(path)
    finished, marks = before.episodes(), _trajectories(before)
    begun = _begun(before, finished)
    await _ended(await _start(runs, folder, "--resume", str(path)))
    _judge(BenchDirectory.open(path), finished, marks, begun, tally, f"{after_s:.3f} s")


def _trajectories(directory: BenchDirectory) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.trajectories.glob("*.jsonl")}


def _begun(directory: BenchDirectory, finished: dict[Episode, EpisodeRecord]) -> set[str]:
    """Stems of episodes with at least a turn on disk, neither finished nor at their end."""
    stems = {episode.stem for episode in finished}
    found = set()
    for path in directory.trajectories.glob("*.jsonl"):
        lines = path.read_bytes().count(b'"reply_received"')
        ended = f'"{RolloutStopped.kind}"'.encode() in path.read_bytes()
        if path.stem not in stems and lines and not ended:
            found.add(path.stem)
    return found


def _judge(
    after: BenchDirectory,
    finished: dict[Episode, EpisodeRecord],
    marks: dict[str, bytes],
    begun: set[str],
    tally: _Tally,
    when: str,
) -> None:
    attempts = Counter(record.episode for record in after.attempts())
    records, now, scores = after.episodes(), _trajectories(after), after.scores()
    scored = {episode for episode, _ in scores}
    tally.finished_at_kill.append(float(len(finished)))
    for episode, record in finished.items():
        if records.get(episode) != record or episode not in scored:
            tally.lost += 1
            tally.notes.append(f"lost {episode.stem}, killed after {when}")
        name = f"{episode.stem}.jsonl"
        if attempts[episode] != 1 or now.get(name) != marks.get(name):
            tally.twice += 1
            tally.notes.append(f"twice {episode.stem}, killed after {when}")
    missing = 2 * _ITEMS - len(records)
    if missing:
        tally.lost += missing
        tally.notes.append(f"{missing} episodes never ended, killed after {when}")
    for episode, record in records.items():
        if episode.stem in begun:
            tally.outcomes["continued"] += record.continued
            tally.outcomes["restarted"] += record.restarted
            tally.unaccounted += record.continued + record.restarted == 0
