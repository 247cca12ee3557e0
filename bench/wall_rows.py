"""What the walls cost: the policy's share of a start, and snapshots against a plain copy."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import struct
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest import mock

import soak
from computer import Place
from measure import MIB, Row, Sample, ratio, timed

from sandlot.sandbox import bubblewrap
from sandlot.sandbox.base import Sandbox
from sandlot.sandbox.host import BubblewrapHost
from sandlot.sandbox.policy import Network, Policy

_FILES = 200
_LET_ALL_PASS = struct.pack("HBBI", 0x06, 0, 0, 0x7FFF0000)  # BPF: return ALLOW


async def overhead(place: Place, n: int) -> list[Row]:
    """Starts with all walls of the policy and starts without them take turns."""
    full, bare = [], []
    policy = replace(place.policy(), network=Network.parse("open"))
    async with await place.open(policy):
        for _ in range(n):
            full.append(await _start_ms(place, policy))
            with _without_walls():
                bare.append(await _start_ms(place, place.policy()))
    value, floor = Sample.of(full, "ms"), Sample.of(bare, "ms")
    cost = round(value.median - floor.median, 2)
    detail = {"over_bare": cost}
    named = "no filter, no control group, no listener"
    mark = "≤ 6 ms more"
    name = "start with the policy's walls"
    return [Row(name, value, floor, named, mark, cost <= 6, ratio(value, floor), detail)]


async def _start_ms(place: Place, policy: Policy) -> float:
    sandbox = await place.open(policy)

    async def begin() -> None:
        await sandbox.start()
        await sandbox.exec("echo hi")

    try:
        return await timed(begin)
    finally:
        await sandbox.close()
        await asyncio.sleep(0.01)  # the next one's process enters its group meanwhile


@contextmanager
def _without_walls() -> Iterator[None]:
    """The same start with a filter that lets all pass and without a control group."""
    with (
        mock.patch.object(bubblewrap, "build_filter", return_value=_LET_ALL_PASS),
        mock.patch.object(BubblewrapHost, "take_cgroup", return_value=(None, "")),
        mock.patch.object(bubblewrap, "_has", return_value=True),  # nor what stands in for a group
    ):
        yield


async def states(place: Place, n: int) -> list[Row]:
    """Snapshot, restore and fork of 10 MiB in 200 files and one; the floor is `cp -a` of it."""
    saves, loads, forks, copies = [], [], [], []
    with tempfile.TemporaryDirectory(prefix="sandlot-bench-") as name:
        folder = Path(name)
        _write_files(folder / "upper")
        async with place.started() as box:
            await box.upload(folder / "upper", "/testbed/upper")
            for _ in range(n):
                copies.append(_copy_ms(folder))
                saves.append(await timed(lambda: box.snapshot(folder / "state")))
                loads.append(await timed(lambda: box.restore(folder / "state")))
                forks.append(await _fork_ms(box))
    floor = Sample.of(copies, "ms")
    rows = []
    for what, times in (("snapshot", saves), ("restore", loads), ("fork", forks)):
        value = Sample.of(times, "ms")
        kept = value.median <= 50 or ratio(value, floor) <= 2
        mark = "≤ 50 ms or 2 × copy"
        name = f"{what} of a 10 MB upper layer"
        rows.append(Row(name, value, floor, "cp -a", mark, kept, ratio(value, floor)))
    return rows


def _write_files(folder: Path) -> None:
    folder.mkdir()
    (folder / "large").write_bytes(os.urandom(9 * MIB))
    for n in range(_FILES):
        (folder / f"small-{n}").write_bytes(os.urandom(MIB // _FILES))


def _copy_ms(folder: Path) -> float:
    began = time.perf_counter()
    # The program that a person would copy with, its start included, as ours includes tar's.
    os.waitpid(
        os.posix_spawnp("cp", ["cp", "-a", f"{folder}/upper", f"{folder}/copy"], os.environ), 0
    )
    took = (time.perf_counter() - began) * 1e3
    shutil.rmtree(folder / "copy")
    return took


async def _fork_ms(box: Sandbox) -> float:
    began = time.perf_counter()
    twin = await box.fork()
    took = (time.perf_counter() - began) * 1e3
    await twin.close()
    return took


async def soak_row(work: Path, seconds: float) -> list[Row]:
    """Ill treatment in a process of its own, whose memory is what is watched."""
    target = work / "soak.json"
    program = str(Path(__file__).with_name("soak.py"))
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        program,
        *("--seconds", str(seconds)),
        *("--json", str(target)),
        stdout=asyncio.subprocess.DEVNULL,
    )
    await process.wait()
    return [soak.row(json.loads(target.read_text()))]
