"""Whole experiments: many rollouts at once behind a slow server, and scoring them again.

As a program (`experiment_rows.py URL N WORK IMAGE`) it is the harness that is measured, alone in
its process; the server, the clock of the floor and the reading of memory are outside.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from computer import Place, descendants, pss_bytes
from measure import MIB, Row, Sample

from sandlot.bench.arms import arms_of
from sandlot.bench.plan import BenchPlan
from sandlot.bench.records import Episode, EpisodeRecord, Meters
from sandlot.bench.runner import BenchWatch, run_bench
from sandlot.bench.store import BenchDirectory
from sandlot.core.codec import to_json
from sandlot.core.redact import Redactor
from sandlot.core.types import StopReason, Task
from sandlot.settings import resolve
from sandlot.tasks.base import LoadedSet, Source, TaskSet

TURNS, DELAY_S = 20, 2.0
_CALL = {"name": "execute_bash", "arguments": {"command": "echo hi"}}
_USAGE = {"prompt_tokens": 100, "completion_tokens": 10}
_PUBLISHED = ("llm-in-sandbox==0.2.0", "mcp")
_QUOTED = "17 to 25 ms of CPU a turn, measured once on another day with its containers"


@asynccontextmanager
async def fake_server(work: Path, delay_s: float) -> AsyncIterator[str]:
    """The fake server in a process of its own, the same call at every turn; its base URL."""
    script = work / "turns.jsonl"
    script.write_text(json.dumps({"tool_calls": [_CALL], "usage": _USAGE}) + "\n")
    words = [sys.executable, "-m", "sandlot.models.fake_server", "--script", str(script), "--loop"]
    words += ["--delay-s", str(delay_s)]
    process = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(await process.stdout.readline())}/v1"
    finally:
        process.terminate()
        await process.wait()


async def rollouts(
    place: Place, work: Path, n: int, published: Path | None = None, delay_s: float = DELAY_S
) -> list[Row]:
    """`n` rollouts at once, behind a server that thinks for `delay_s` at each turn.

    `published` is the Python of a venv that holds the package.
    """
    folder = Path(tempfile.mkdtemp(prefix="rollouts-", dir=work))
    ideal_s = TURNS * delay_s
    async with fake_server(folder, delay_s) as url:
        told, memory = await _harness(url, n, folder, place.image, ideal_s)
    async with fake_server(folder, 0.0) as url:
        peer = None if published is None else await asyncio.to_thread(_peer, published, url)
    share = ideal_s / told["wall_s"]
    detail = {
        "wall_s": round(told["wall_s"], 2),
        "allowed_by_the_delay_s": ideal_s,
        "turns_a_second": round(told["turns"] / told["wall_s"], 1),
        "failed": told["failed"],
    }
    whole = told["turns"] == n * TURNS and not told["failed"]
    cpu = told["cpu_s"] / max(told["turns"], 1) * 1e3
    quoted = {} if peer is not None else {"published_package": f"not installed here; {_QUOTED}"}
    return [
        _row(
            f"{n} rollouts of {TURNS} turns at once: rate, of what the server's delay allows",
            Sample.of([share * 100], "%"),
            "≥ 80 %",
            whole and share >= 0.8,
            detail,
        ),
        _row(
            f"memory of that run, its {n} sandboxes included",
            Sample.of([memory / MIB], "MiB"),
            "≤ 600 MB",
            memory <= 600e6,
            {"measured_by": "PSS of the harness and everything below it, highest of the readings"},
        ),
        Row(
            "harness CPU a turn in that run, sandbox starts included",
            Sample.of([cpu], "ms"),
            None if peer is None else Sample.of([peer], "ms"),
            "" if peer is None else "llm-in-sandbox 0.2.0, one rollout, its containers left out",
            "≤ 8 ms",
            whole and cpu <= 8,
            None if peer is None else round(cpu / peer, 2),
            quoted,
        ),
    ]


def _row(name: str, value: Sample, mark: str, met: bool, detail: dict[str, Any]) -> Row:
    return Row(name, value, None, "", mark, met, None, detail)


async def _harness(
    url: str, n: int, folder: Path, image: str, ideal_s: float
) -> tuple[dict[str, Any], int]:
    """What the harness tells of itself, and the most memory that was seen below it."""
    words = [sys.executable, __file__, url, str(n), str(folder), image]
    process = await asyncio.create_subprocess_exec(
        *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    seen: list[int] = []
    reading = asyncio.create_task(_read_memory(process.pid, ideal_s, seen))
    out, err = await process.communicate()
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    if process.returncode != 0:
        raise RuntimeError(f"the measured harness failed: {err.decode()[-2000:]}")
    return json.loads(out.splitlines()[-1]), max(seen, default=0)


async def _read_memory(pid: int, ideal_s: float, seen: list[int]) -> None:
    """Only three times, at the middle of the run and after: reading takes the run's own time."""
    for part in (0.5, 0.25, 0.2):
        await asyncio.sleep(part * ideal_s)
        seen.append(await asyncio.to_thread(_memory_below, pid))


def _memory_below(pid: int) -> int:
    total = 0
    for each in (pid, *descendants(pid)):
        try:
            total += pss_bytes([each])
        except OSError:  # it has just ended
            continue
    return total


def _peer(python: Path, url: str) -> float:
    script = Path(__file__).with_name("published_turns.py")
    environ = {**os.environ, "OPENAI_API_KEY": "bench", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    done = subprocess.run(
        [str(python), str(script), url, str(TURNS)],
        capture_output=True, text=True, check=True, env=environ, timeout=300,
    )  # fmt: skip
    return float(done.stdout.split()[-1])


def install_published(work: Path) -> Path:
    """A venv with the published package and what it needs to work today; gives its Python.

    Raises:
        subprocess.CalledProcessError: it cannot be installed here.
    """
    venv = work / "published"
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    python = venv / "bin/python"
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "-qq", "install"]
    subprocess.run([*pip, *_PUBLISHED], check=True, capture_output=True)
    return python


# The harness that is measured.


async def _run(url: str, n: int, work: Path, image: str) -> dict[str, Any]:
    environ = {**os.environ, "XDG_STATE_HOME": str(work / "state")}
    arguments = {
        "model": "openai/bench",
        "base_url": url,
        "api_key": "bench",
        "backend": "bubblewrap",
        "image": image,
        "network": "none",
        "max_turns": TURNS,
        "runs": str(work / "runs"),
    }
    settings = resolve(arguments, environ=environ, directory=work)
    row = TaskSet("echo", "bench", Source("file", "echo.jsonl"), "text")
    tasks = tuple(Task(f"echo-{number}", "Run echo hi.", target="hi") for number in range(n))
    loaded = LoadedSet(row, tasks, "echo")
    plan = BenchPlan(
        (loaded,), arms_of("sandbox"), settings, concurrency=n, attempts=1, reference=False
    )
    cpu, began = time.process_time(), time.perf_counter()
    directory = await run_bench(plan, BenchWatch(_tell), environ=environ)
    wall_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu
    records = directory.episodes().values()
    return {
        "wall_s": wall_s,
        "cpu_s": cpu_s,
        "turns": sum(record.meters.turns for record in records),
        "failed": sum(record.failure is not None for record in records),
    }


def _tell(text: str) -> None:
    print(text, file=sys.stderr)


# Scoring again.


async def scoring(work: Path, n: int) -> list[Row]:
    """`sandlot score` on a stored run of `n` episodes, one half choice and the other text."""
    folder = await asyncio.to_thread(_stored_run, Path(tempfile.mkdtemp(dir=work)), n)
    words = [sys.executable, "-m", "sandlot.cli.main", "score", str(folder), "--no-reference"]
    began = time.perf_counter()
    process = await asyncio.create_subprocess_exec(*words, stderr=asyncio.subprocess.PIPE)
    _, err = await process.communicate()
    took = time.perf_counter() - began
    if process.returncode != 0:
        raise RuntimeError(f"scoring failed: {err.decode()[-2000:]}")
    scores = [record.score.value for record in BenchDirectory.open(folder).scores().values()]
    right = sum(value == 1.0 for value in scores)
    whole = len(scores) == n and None not in scores and right == n // 2
    detail = {"right": right, "a_score_ms": round(took / n * 1e3, 3)}
    value = Sample.of([took], "s")
    name = f"scoring {n} choice and text items again, `sandlot score` from start to end"
    return [_row(name, value, "≤ 20 s", whole and took <= 20, detail)]


_CHOICES = "Which of these?\n\nA. helium\nB. neon\nC. argon\nD. krypton"


def _stored_run(parent: Path, n: int) -> Path:
    """Every second answer is right."""
    directory = BenchDirectory.create(parent, "stored", datetime(2026, 1, 1, tzinfo=UTC))
    directory.writing(Redactor())
    rows = {
        "choice": TaskSet("choice", "chem", Source("file", "c.jsonl"), "choice"),
        "text": TaskSet("text", "bench", Source("file", "t.jsonl"), "text"),
    }
    sets = {name: {"digest": name, "items": n // 2, "row": to_json(row)}
            for name, row in rows.items()}  # fmt: skip
    directory.write_manifest({"model": "scripted:none", "sets": sets})
    tasks = {}
    for number in range(n):
        name = ("choice", "text")[number // 2 % 2]
        if name == "choice":
            question, truth, wrong = _CHOICES, "B", "C"
        else:
            question, truth, wrong = "How many?", f"{number} metres", f"{number + 1} metres"
        task = Task(f"{name}-{number}", question, target=truth, domain=rows[name].domain)
        tasks[name, task.id] = task
        answer = f"Some thoughts first.\nANSWER: {(truth, wrong)[number % 2]}"
        directory.add_episode(
            EpisodeRecord(
                Episode(name, task.id, "llm", 0), f"key {number}", 1, StopReason.ANSWERED, "",
                answer, None, Meters(turns=1),
            )
        )  # fmt: skip
    directory.write_tasks(tasks)
    directory.close()
    return directory.path


if __name__ == "__main__":
    url, count, folder, image = sys.argv[1:]
    print(json.dumps(asyncio.run(_run(url, int(count), Path(folder), image))))
