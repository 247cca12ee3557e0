"""Samples, rows and the machine they were taken on."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Sample:
    """The figures of one repeated measurement, all in `unit`."""

    unit: str
    n: int
    median: float
    p10: float
    p90: float
    min: float

    @classmethod
    def of(cls, values: Sequence[float], unit: str) -> Sample:
        ordered = sorted(values)
        return cls(
            unit,
            len(ordered),
            round(statistics.median(ordered), 4),
            round(_quantile(ordered, 0.1), 4),
            round(_quantile(ordered, 0.9), 4),
            round(ordered[0], 4),
        )


def _quantile(ordered: Sequence[float], part: float) -> float:
    return ordered[min(len(ordered) - 1, round(part * (len(ordered) - 1)))]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: what was measured, its floor in the same run, and its mark.

    `ratio` is value over floor. `met` is None where the table sets no mark. `detail` holds
    further figures; the load averages are those of one minute before and after the row.
    """

    name: str
    value: Sample
    floor: Sample | None
    floor_is: str
    mark: str
    met: bool | None
    ratio: float | None = None
    detail: dict[str, Any] = field(default_factory=dict)
    load_before: float = 0.0
    load_after: float = 0.0
    took_s: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def ratio(value: Sample, floor: Sample) -> float:
    return round(value.median / floor.median, 2)


def machine() -> dict[str, Any]:
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_mib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // MIB,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "root": os.getuid() == 0,
        "nice": os.getpriority(os.PRIO_PROCESS, 0),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **_commit(),
    }


def load() -> float:
    return round(os.getloadavg()[0], 2)


async def timed(work: Callable[[], Awaitable[Any]]) -> float:
    """Milliseconds that `work` takes."""
    began = time.perf_counter()
    await work()
    return (time.perf_counter() - began) * 1e3


def timed_process(argv: Sequence[str]) -> float:
    """Milliseconds from the start of a program to its end; it must succeed."""
    began = time.perf_counter()
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
    return (time.perf_counter() - began) * 1e3


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _commit() -> dict[str, Any]:
    def git(*words: str) -> str:
        try:
            done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True)
        except FileNotFoundError:
            return ""
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "src")
    return {"commit": git("rev-parse", "HEAD"), "source_changed": bool(changed)}
