"""Helper processes that answer one JSON line with another, and are killed when they hang."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

START_TIMEOUT_S = 120.0
"""A helper imports its library first; that is not the item's time."""

_LINE_BYTES = 1 << 20
_CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Failed:
    """No answer: the helper ran out of time, or it died. `cpu_s` is what it spent on the item."""

    reason: str
    cpu_s: float = 0.0
    out_of_time: bool = False


@dataclass(slots=True)
class _Child:
    process: asyncio.subprocess.Process

    def kill(self) -> None:
        """End the helper and whatever it started."""
        if self.process.returncode is None:
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass  # it ended by itself a moment ago

    def cpu_s(self) -> float:
        """Processor seconds so far; 0 where the machine does not say."""
        try:
            fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / _CLOCK_TICKS


class ChildPool:
    """Up to `size` helpers of one module, started when needed, one question at a time each.

    A helper first says a line of its own (`{"ready": …}`, or `{"unusable": reason}`), then answers
    each line by one. It is a process of its own because the libraries behind it use alarms,
    recursion and memory in ways that no thread survives.
    """

    def __init__(
        self, module: str, *, timeout_s: float, size: int = 2, environ: Mapping[str, str]
    ) -> None:
        self._module = module
        self._timeout_s = timeout_s
        self._environ = dict(environ)
        self._slots = asyncio.Semaphore(size)
        self._idle: list[_Child] = []
        self._all: list[_Child] = []
        self._unusable: Failed | None = None
        self.greeting: Mapping[str, Any] = {}

    async def ask(self, question: Mapping[str, Any]) -> Mapping[str, Any] | Failed:
        async with self._slots:
            child = await self._ready_child()
            if isinstance(child, Failed):
                return child
            before = child.cpu_s()
            try:
                answer = await asyncio.wait_for(_exchange(child, question), self._timeout_s)
            except TimeoutError:
                spent = round(child.cpu_s() - before, 2)
                await self._discard(child)
                limit = f"no answer within {self._timeout_s:g} s ({spent:g} s of processor time)"
                return Failed(limit, spent, out_of_time=True)
            except BaseException:
                await self._discard(child)  # cancelled in the middle of an exchange
                raise
            if answer is None:
                await self._discard(child)
                return Failed("the helper process died")
            self._idle.append(child)
            return answer

    async def usable(self) -> bool:
        """Whether a helper starts at all. A started one is kept for the first question."""
        async with self._slots:
            child = await self._ready_child()
            if isinstance(child, Failed):
                return False
            self._idle.append(child)
            return True

    async def close(self) -> None:
        for child in list(self._all):
            await self._discard(child)
        self._idle.clear()

    async def _ready_child(self) -> _Child | Failed:
        if self._unusable is not None:
            return self._unusable
        if self._idle:
            return self._idle.pop()
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",  # nothing of the folder that the user happens to stand in
            "-m",
            self._module,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=self._environ,
            limit=_LINE_BYTES,
            start_new_session=True,
        )
        child = _Child(process)
        self._all.append(child)
        try:
            greeting = await asyncio.wait_for(_read(child), START_TIMEOUT_S)
        except TimeoutError:
            await self._discard(child)
            return Failed(f"the helper process did not start within {START_TIMEOUT_S:g} s")
        except BaseException:
            await self._discard(child)
            raise
        if greeting is None:
            await self._discard(child)
            return Failed("the helper process did not start")
        if "unusable" in greeting:
            await self._discard(child)
            self._unusable = Failed(str(greeting["unusable"]))  # so it would be the next time
            return self._unusable
        self.greeting = greeting
        return child

    async def _discard(self, child: _Child) -> None:
        child.kill()
        if child.process.stdin is not None:
            child.process.stdin.close()
        await child.process.wait()
        if child in self._all:
            self._all.remove(child)


async def _exchange(child: _Child, question: Mapping[str, Any]) -> Mapping[str, Any] | None:
    stdin = child.process.stdin
    assert stdin is not None
    try:
        stdin.write(json.dumps(question).encode() + b"\n")
        await stdin.drain()
        return await _read(child)
    except (BrokenPipeError, ConnectionResetError):
        return None


async def _read(child: _Child) -> Mapping[str, Any] | None:
    stdout = child.process.stdout
    assert stdout is not None
    line = await stdout.readline()
    if not line.endswith(b"\n"):
        return None
    answer: Mapping[str, Any] = json.loads(line)
    return answer
