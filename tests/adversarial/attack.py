"""What the attacks share: small limits in place before, and what must hold after."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

from sandlot.core.errors import DeathCause, SandboxDied
from sandlot.sandbox.base import ExecResult, Sandbox
from sandlot.sandbox.contract import MakeSandbox, opened, small_policy
from sandlot.sandbox.policy import MIB, Policy

ANSWER_S = 25.0
"""The longest that an attack with a timeout of three seconds may keep the harness waiting."""


def tiny_policy(**limits: object) -> Policy:
    """64 MiB, 64 processes, 32 MiB of disk, 256 open files, three seconds."""
    chosen = {
        "memory_bytes": 64 * MIB,
        "processes": 64,
        "disk_bytes": 32 * MIB,
        "open_files": 256,
        "command_timeout_s": 3.0,
        **limits,
    }
    return small_policy(**chosen)


def asked_policy() -> Policy:
    """The same, with what every machine can enforce asked for: a refusal fails the test."""
    return replace(tiny_policy(), asked=frozenset({"disk_bytes", "open_files"}))


@contextlib.asynccontextmanager
async def tiny(make: MakeSandbox) -> AsyncIterator[Sandbox]:
    async with opened(make, tiny_policy()) as box:
        yield box


def holds(box: Sandbox, promise: str) -> bool:
    """Whether this backend promises it here; where not, only the harness's own safety is asked."""
    return any(row.promise == promise and row.holds for row in box.enforcement)


async def usable(box: Sandbox) -> None:
    result = await asyncio.wait_for(box.exec("echo usable"), 10)
    assert (result.exit_code, result.stdout) == (0, "usable\n")


async def usable_or_dead(box: Sandbox, command: str) -> ExecResult | None:
    """What the attack gave; None where it cost the sandbox its life, typed and in time."""
    began = time.monotonic()
    try:
        result = await asyncio.wait_for(box.exec(command), ANSWER_S)
        await usable(box)
    except SandboxDied as died:
        if died.cause is DeathCause.CLOSED:
            raise
        return None
    finally:
        assert time.monotonic() - began < ANSWER_S
    return result


def python(code: str) -> str:
    """A shell command that runs Python; the code may use `sys.argv`."""
    return f"python3 -I -c {shlex.quote(code)}"


def until_said(command: str, file: str = "said") -> str:
    """A shell line that leaves `command` running and shows the first thing it wrote."""
    return f"{command} > {file} 2>&1 & until [ -s {file} ]; do sleep 0.05; done; cat {file}"


def marked_processes(marker: str) -> list[int]:
    """Host ids of processes with `marker` in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if marker.encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return found


def first_process_above(pid: int) -> int:
    """The host's id of process 1 of the namespace in which a process runs."""
    while (inside := _status(pid, "NSpid")[-1]) != 1:
        assert inside, f"process {pid} has no first process above it"
        (pid,) = _status(pid, "PPid")
    return pid


def _status(pid: int, field: str) -> list[int]:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return [int(word) for word in value.split()]
    raise AssertionError(f"process {pid} has no {field}")
