"""Start, commands, close, memory and density of sandboxes."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from computer import (
    Place,
    cgroup_memory_bytes,
    cgroups_of,
    descendants,
    launcher_pid,
    open_files,
    pss_bytes,
)
from floor import Floor
from measure import MIB, Row, Sample, ratio, timed

from sandlot.sandbox.base import Sandbox

_BATCH = 5


async def starts(place: Place, floor: Floor, n: int) -> list[Row]:
    """Start to first output, and close; control program and sandboxes take turns in the run."""
    first, closes, bare, ends, bare_bash = [], [], [], [], []
    async with place.started():
        lower = place.lower()
        for begin in range(0, n, _BATCH):
            count = min(_BATCH, n - begin)
            for spoke, ended in floor.rounds(lower, count):
                bare.append(spoke)
                ends.append(ended - spoke)
            bare_bash += [spoke for spoke, _ in floor.rounds(lower, count, "/bin/bash")]
            for _ in range(count):
                start_ms, close_ms = await _one_life(place)
                first.append(start_ms)
                closes.append(close_ms)
    fresh = [(await _one_life(place))[0] for _ in range(n)]
    value, under = Sample.of(first, "ms"), Sample.of(bare, "ms")
    bash = Sample.of(bare_bash, "ms")
    detail = {
        "image": place.image,
        "with_a_fresh_launcher": Sample.of(fresh, "ms"),
        "floor_with_bash": bash,
        "ratio_to_floor_with_bash": ratio(value, bash),
    }
    times = ratio(value, under)
    close, end = Sample.of(closes, "ms"), Sample.of(ends, "ms")
    named = f"all namespaces, tmpfs overlay, exec sh ({floor.kind})"
    reached = times <= 6 if floor.kind == "C" else None  # the stand-in's ratio would flatter
    return [
        Row("start to first output", value, under, named, "≤ 6 × floor", reached, times, detail),
        Row(
            "close",
            close,
            end,
            "control program: output to reaped",
            "≤ 5 ms",
            close.median <= 5,
            ratio(close, end),
        ),
    ]


async def _one_life(place: Place) -> tuple[float, float]:
    """(ms from start to the first command's output, ms to close) of one sandbox."""
    sandbox = await place.open()

    async def begin() -> None:
        await sandbox.start()
        await sandbox.exec("echo hi")

    try:
        took = await timed(begin)
    finally:
        close = await timed(sandbox.close)
    return took, close


async def round_trips(place: Place, n: int) -> list[Row]:
    async with place.started() as sandbox:
        for command in ("echo hi", "/bin/true"):
            await _calls(sandbox, command, 10)
        echo: list[float] = []
        true: list[float] = []
        spawned: list[float] = []
        with _PlainBash() as bash:
            bashed: list[float] = []
            for _ in range(n):
                echo += await _calls(sandbox, "echo hi", _BATCH)
                bashed += [bash.echo() for _ in range(_BATCH)]
                true += await _calls(sandbox, "/bin/true", _BATCH)
                spawned += [_spawn() for _ in range(_BATCH)]
    one, plain = Sample.of(echo, "ms"), Sample.of(bashed, "ms")
    two, bare = Sample.of(true, "ms"), Sample.of(spawned, "ms")
    floor = "the same through pipes to a bash without a sandbox"
    return [
        Row(
            "`echo hi` round trip",
            one,
            plain,
            floor,
            "≤ 0.5 ms",
            one.median <= 0.5,
            ratio(one, plain),
        ),
        Row(
            "`/bin/true` round trip",
            two,
            bare,
            "posix_spawn and wait of /bin/true",
            "≤ 3 × floor",
            ratio(two, bare) <= 3,
            ratio(two, bare),
        ),
    ]


async def _calls(sandbox: Sandbox, command: str, n: int) -> list[float]:
    took = []
    for _ in range(n):
        began = time.perf_counter()
        result = await sandbox.exec(command)
        took.append((time.perf_counter() - began) * 1e3)
        if result.exit_code != 0:
            raise RuntimeError(f"{command!r} gave {result}")
    return took


def _spawn() -> float:
    began = time.perf_counter()
    os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)
    return (time.perf_counter() - began) * 1e3


class _PlainBash:
    """A bash on two pipes, read by blocking calls: the least that a persistent shell can cost."""

    def __enter__(self) -> _PlainBash:
        self._process = subprocess.Popen(
            ["bash", "--noprofile", "--norc", "-s"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        self.echo()
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.communicate()

    @property
    def pid(self) -> int:
        return self._process.pid

    def echo(self) -> float:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        began = time.perf_counter()
        self._process.stdin.write(b"echo hi\n")
        self._process.stdout.read(3)
        return (time.perf_counter() - began) * 1e3


async def idle_memory(place: Place, n: int) -> list[Row]:
    """Of `n` sandboxes that ran one command each and wait."""
    charged: list[float] = []
    shares: list[float] = []
    with _PlainBash() as bash:
        async with place.started():
            boxes = [await place.open() for _ in range(n)]
            try:
                for box in boxes:
                    await box.start()
                    await box.exec("echo hi")
                launcher = launcher_pid(boxes[0])
                await asyncio.sleep(0.2)
                shares = [pss_bytes(descendants(launcher)) / (n + 1) / MIB]
                found = [cgroup_memory_bytes(box) for box in boxes]
                charged = [size / MIB for size in found if size is not None]
                plain = pss_bytes([bash.pid]) / MIB
            finally:
                await asyncio.gather(*(box.close() for box in boxes))
    pss = Sample.of(shares, "MiB")
    value = Sample.of(charged, "MiB") if charged else pss
    floor = Sample.of([plain], "MiB")
    by = "cgroup, kernel memory included" if charged else "PSS (no cgroup here)"
    detail = {"measured_by": by, "pss_of_its_processes": pss, "sandboxes": n + 1}
    met = value.median <= 1.5
    floor_is = "PSS of one bash without a sandbox"
    return [
        Row(
            "memory of an idle sandbox",
            value,
            floor,
            floor_is,
            "≤ 1.5 MiB",
            met,
            ratio(value, floor),
            detail,
        )
    ]


async def density(place: Place, n: int, at_once: int = 8) -> list[Row]:
    """`n` idle sandboxes on one launcher; what is left when they are closed."""
    _raise_open_files()
    files_before = open_files()
    async with place.started() as keeper:
        await asyncio.sleep(1)  # until the process that waits for the next start is there
        lease, launcher = place.leases()[0], launcher_pid(keeper)
        alone, folders = len(descendants(launcher)), _folders(lease.folder)
        groups = _groups_below(lease.cgroups)
        gate = asyncio.Semaphore(at_once)
        boxes = [await place.open() for _ in range(n)]
        memory_before = _available_bytes()

        async def start(box: Sandbox) -> float:
            async with gate:
                began = time.perf_counter()
                await box.start()
                await box.exec("echo hi")
                return (time.perf_counter() - began) * 1e3

        began = time.perf_counter()
        outcomes = await asyncio.gather(*map(start, boxes), return_exceptions=True)
        start_s = time.perf_counter() - began
        failed = [repr(outcome) for outcome in outcomes if isinstance(outcome, BaseException)]
        times = [outcome for outcome in outcomes if isinstance(outcome, float)]
        used = (memory_before - _available_bytes()) / n / MIB
        processes = len(descendants(launcher))
        echo = await _each(boxes)
        began = time.perf_counter()
        await asyncio.gather(*(box.close() for box in boxes))
        close_s = time.perf_counter() - began
        left = {"processes": await _settled(lambda: len(descendants(launcher)), alone) - alone}
        left["folders"] = _folders(lease.folder) - folders
        left["cgroups"] = _groups_below(lease.cgroups) - groups
        del boxes
    gc.collect()
    left["leases_after_all"] = len(place.leases())
    left["cgroups_after_all"] = len(cgroups_of([lease]))
    left["launcher_after_all"] = int(Path(f"/proc/{launcher}").exists())
    left["open_files"] = open_files() - files_before
    detail: dict[str, Any] = {
        "sandboxes": n,
        "failures": len(failed),
        "first_failures": failed[:3],
        "left_behind": left,
        "start_all_s": round(start_s, 2),
        "starts_per_s": round(n / start_s, 1),
        "close_all_s": round(close_s, 2),
        "available_memory_each_mib": round(used, 2),
        "processes_each": round((processes - alone) / n, 2),
        "echo_with_all_alive": Sample.of(echo, "ms"),
    }
    met = not failed and not any(left.values())
    value = Sample.of(times or [0.0], "ms")
    name = f"{n} idle sandboxes at once: start of each, {at_once} at a time"
    return [Row(name, value, None, "", "0 failures, all closed clean", met, None, detail)]


async def _settled(count: Callable[[], int], most: int) -> int:
    """The count, when the last processes have had a moment to end: longer on a busy machine."""
    await asyncio.sleep(0.2)
    for _ in range(50):
        if count() <= most:
            break
        await asyncio.sleep(0.1)
    return count()


async def _each(boxes: list[Sandbox]) -> list[float]:
    took = []
    for box in boxes:
        took += await _calls(box, "echo hi", 1)
    return took


def _folders(folder: Path) -> int:
    return sum(1 for path in folder.iterdir() if path.is_dir())


def _groups_below(tops: tuple[str, ...]) -> int:
    return sum(1 for top in tops for path in Path(top).rglob("*") if path.is_dir())


def _available_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/meminfo has no MemAvailable")


def _raise_open_files() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
