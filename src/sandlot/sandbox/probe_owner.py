"""The owner of a sandbox, to be killed: `sandlot doctor` looks for what it left.

Run as a program it reads an order on its standard input, starts a sandbox, says `ready` and waits.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sandlot.sandbox import registry
from sandlot.sandbox.base import Sandbox
from sandlot.sandbox.engine_host import ENGINES
from sandlot.sandbox.host import Lease
from sandlot.sandbox.probe_attempts import Attempt, Bench, Seen, small

OWNER = (sys.executable, "-c", "from sandlot.sandbox.probe_owner import main; main()")
_READY_S, _SEEN_S = 30.0, 2.0


def main() -> None:
    asyncio.run(_hold(json.loads(sys.stdin.readline())))


async def _hold(order: Mapping[str, Any]) -> None:
    box = await registry.open_sandbox(
        order["backend"],
        policy=small(),
        image=order["image"],
        cache=Path(order["cache"]),
        state=Path(order["state"]),
        environ=order["environ"],
        progress=lambda _: None,
        engine=order["engine"],
        runtime=order["runtime"],
    )
    print("opened", flush=True)  # noqa: T201  for whoever waits for `ready` in vain
    await box.start()
    print("started", flush=True)  # noqa: T201
    await box.exec(f"setsid sleep {order['marker']} >/dev/null 2>&1 &")
    print("ready", flush=True)  # noqa: T201  the word that the other side waits for
    await asyncio.sleep(120)


async def killed_owner(_: Sandbox, bench: Bench) -> Seen:
    """SIGKILL to a harness with a sandbox, then a look for processes, leases and cgroups."""
    if not bench.owner:
        return Seen(None, "no owner to kill was given")
    marker = f"300.{secrets.randbelow(10**12):012d}"
    owner = await asyncio.create_subprocess_exec(
        *bench.owner,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        failure = await _ready(owner, _order(bench, marker))
        if failure:
            return Seen(None, f"the owner could not start a sandbox: {failure}")
        visible = await _within(min(_SEEN_S, bench.patience_s), lambda: bool(running(marker)))
        cgroups = [path for lease in _leases(bench, owner.pid) for path in lease.cgroups]
    finally:
        if owner.returncode is None:
            owner.send_signal(signal.SIGKILL)
        await owner.communicate()
    return await _look(bench, owner.pid, marker, cgroups, visible)


def _order(bench: Bench, marker: str) -> dict[str, object]:
    setup = asdict(bench.setup)
    setup |= {name: str(setup[name]) for name in ("cache", "state")}
    if bench.backend not in ENGINES:
        setup["runtime"] = None
    return {"backend": bench.backend, "marker": marker, **setup}


async def _ready(owner: asyncio.subprocess.Process, order: Mapping[str, object]) -> str:
    """Why it is not ready, or nothing."""
    assert owner.stdin is not None
    assert owner.stdout is not None
    assert owner.stderr is not None
    owner.stdin.write(json.dumps(order).encode() + b"\n")
    word = b"nothing"
    try:
        async with asyncio.timeout(_READY_S):
            while line := await owner.stdout.readline():
                word = line.strip()
                if word == b"ready":
                    return ""
            said = (await owner.stderr.read()).decode("utf-8", "replace").strip()
    except TimeoutError:
        return f"it was not ready within {_READY_S:g} s (last it said {word.decode()})"
    return said[-200:] or "it ended"


async def _look(bench: Bench, pid: int, marker: str, cgroups: list[str], visible: bool) -> Seen:
    ended = await _within(bench.patience_s, lambda: not running(marker))
    how = "its process ended by itself" if visible else "its processes cannot be seen from here"
    # Some backends remove a dead owner's lease at once, others at the next start: a moment tells.
    if not ended or not await _within(min(1.0, bench.patience_s), lambda: not _leases(bench, pid)):
        await registry.reap(bench.setup.state, bench.setup.environ)
        how += ", the rest went by the reaping of the next start"
        await _within(bench.patience_s, lambda: not running(marker) and not _leases(bench, pid))
    left = [f"process {found}" for found in running(marker)]
    left += [f"lease {lease.id}" for lease in _leases(bench, pid)]
    left += [f"cgroup {path}" for path in cgroups if os.path.exists(path)]
    for found in running(marker):
        os.kill(found, signal.SIGKILL)  # ours by its marker: the evidence must not stay
    if left:
        return Seen(False, f"left after SIGKILL of the owner: {', '.join(left)}")
    return Seen(True, f"nothing is left after SIGKILL of the owner: {how}")


async def _within(seconds: float, done: Callable[[], bool]) -> bool:
    deadline = asyncio.get_running_loop().time() + seconds
    while not done():
        if asyncio.get_running_loop().time() > deadline:
            return False
        await asyncio.sleep(0.05)
    return True


def running(marker: str) -> list[int]:
    """Processes of this machine that have the marker as an argument of their own."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue  # it ended, or belongs to somebody else
        if words[:1] == [b"sleep"] and marker.encode() in words:
            found.append(int(folder.name))
    return found


def _leases(bench: Bench, pid: int) -> list[Lease]:
    leases = registry.list_leases(bench.setup.state, bench.setup.environ)
    return [lease for lease in leases if lease.pid == pid]


ATTEMPTS = (Attempt("leavings", "the owner is killed", killed_owner, small()),)
