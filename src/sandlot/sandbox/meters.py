"""Meters of one sandbox: what each command used, and a watchdog where no control group counts.

Readings come from the files of its control group; where there is none they are None, for a sum
over processes misses those that ended between two looks.
Meanings: kernel documentation, cgroup-v1/memory.txt, cgroup-v2.rst, proc_pid_smaps(5).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sandlot.sandbox.cgroups import Cgroup

_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Use:
    """What a sandbox used over a command, or over its life; None where nothing counts it.

    `memory_peak_bytes` is the highest sum of all its processes and of the files that it keeps in
    memory. `throttled_s` is the time for which the CPU limit held it back, summed over processors.
    `memory_kills` counts processes that were killed at the memory limit (or as the machine ran
    out of memory).
    """

    memory_peak_bytes: int | None = None
    cpu_s: float | None = None
    throttled_s: float | None = None
    memory_kills: int = 0


class CommandGauge:
    """Reads a group's meters before and after each command, from files that stay open.

    `begin` and `end` enclose one command. A reading takes some microseconds for each file.
    `watchdog` adds its kills. Close it before the group is removed.
    """

    def __init__(self, group: Cgroup | None, watchdog: MemoryWatchdog | None = None) -> None:
        self._watchdog = watchdog
        folders = {} if group is None else group.folders
        first = 2 if group is None else group.version
        self._memory: _Memory = (
            _MemoryV1(folders.get("memory")) if first == 1 else _MemoryV2(folders.get("memory"))
        )
        self._cpu = _CpuV1(folders) if first == 1 else _CpuV2(folders)
        self._before = Use()

    def begin(self) -> None:
        self._memory.restart_peak()
        self._before = Use(None, self._cpu.used_s(), self._cpu.throttled_s(), self._kills())

    def end(self) -> Use:
        """The use since `begin`."""
        before = self._before
        return Use(
            memory_peak_bytes=self._memory.peak_since_restart(),
            cpu_s=_difference(self._cpu.used_s(), before.cpu_s),
            throttled_s=_difference(self._cpu.throttled_s(), before.throttled_s),
            memory_kills=max(0, self._kills() - before.memory_kills),  # 0 is read of a dead group
        )

    def life(self) -> Use:
        """The use since the group was made."""
        return Use(
            memory_peak_bytes=self._memory.life_peak(),
            cpu_s=self._cpu.used_s(),
            throttled_s=self._cpu.throttled_s(),
            memory_kills=self._kills(),
        )

    def memory_bytes(self) -> int | None:
        """In use now."""
        return self._memory.now()

    def close(self) -> None:
        self._memory.close()
        self._cpu.close()

    def _kills(self) -> int:
        return self._memory.kills() + (0 if self._watchdog is None else self._watchdog.kills)


# --- files of a control group -------------------------------------------------------------------


class _File:
    """A kernel file that is kept open; one that is missing reads as None."""

    def __init__(self, folder: Path | None, name: str, flags: int = os.O_RDONLY) -> None:
        self._fd = -1
        if folder is not None:
            with contextlib.suppress(OSError):
                self._fd = os.open(folder / name, flags | os.O_CLOEXEC)

    def number(self) -> int | None:
        text = self._text()
        return int(text) if text.strip().isdigit() else None

    def keyed(self, key: bytes) -> int | None:
        for line in self._text().splitlines():
            name, _, value = line.partition(b" ")
            if name == key:
                return int(value)
        return None

    def write(self, data: bytes) -> bool:
        if self._fd < 0:
            return False
        try:
            os.pwrite(self._fd, data, 0)
        except OSError:
            return False
        return True

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def _text(self) -> bytes:
        if self._fd < 0:
            return b""
        try:
            return os.pread(self._fd, 4096, 0)
        except OSError:  # the group is gone
            return b""


class _Memory(Protocol):
    def restart_peak(self) -> None: ...
    def peak_since_restart(self) -> int | None: ...
    def life_peak(self) -> int | None: ...
    def now(self) -> int | None: ...
    def kills(self) -> int: ...
    def close(self) -> None: ...


class _MemoryV1:
    """Version 1 has one mark, which any write lowers to the use of now: the life's is kept here."""

    def __init__(self, folder: Path | None) -> None:
        self._peak = _File(folder, "memory.max_usage_in_bytes", os.O_RDWR)
        self._now = _File(folder, "memory.usage_in_bytes")
        self._control = _File(folder, "memory.oom_control")
        self._highest = 0

    def restart_peak(self) -> None:
        self.life_peak()
        self._peak.write(b"0")

    def peak_since_restart(self) -> int | None:
        return self._peak.number()

    def life_peak(self) -> int | None:
        peak = self._peak.number()
        self._highest = max(self._highest, peak or 0)
        return None if peak is None else self._highest

    def now(self) -> int | None:
        return self._now.number()

    def kills(self) -> int:
        return self._control.keyed(b"oom_kill") or 0

    def close(self) -> None:
        for file in (self._peak, self._now, self._control):
            file.close()


class _MemoryV2:
    """A write to an open `memory.peak` starts a mark for that opening (Linux 6.12).

    Before, only a command that raised the mark of the whole life has a known peak.
    """

    def __init__(self, folder: Path | None) -> None:
        self._peak = _File(folder, "memory.peak")
        self._own = _File(folder, "memory.peak", os.O_RDWR)
        self._now = _File(folder, "memory.current")
        self._events = _File(folder, "memory.events")
        self._restarted = False
        self._before: int | None = None

    def restart_peak(self) -> None:
        self._restarted = self._own.write(b"0")
        if not self._restarted:
            self._before = self._peak.number()

    def peak_since_restart(self) -> int | None:
        if self._restarted:
            return self._own.number()
        peak = self._peak.number()
        return peak if peak is not None and peak != self._before else None

    def life_peak(self) -> int | None:
        return self._peak.number()

    def now(self) -> int | None:
        return self._now.number()

    def kills(self) -> int:
        return self._events.keyed(b"oom_kill") or 0

    def close(self) -> None:
        for file in (self._peak, self._own, self._now, self._events):
            file.close()


class _CpuV1:
    def __init__(self, folders: dict[str, Path]) -> None:
        self._usage = _File(folders.get("cpuacct"), "cpuacct.usage")
        self._stat = _File(folders.get("cpu"), "cpu.stat")

    def used_s(self) -> float | None:
        return _scaled(self._usage.number(), 1e9)

    def throttled_s(self) -> float | None:
        return _scaled(self._stat.keyed(b"throttled_time"), 1e9)

    def close(self) -> None:
        self._usage.close()
        self._stat.close()


class _CpuV2:
    """`cpu.stat` counts the use even where the `cpu` controller is not delegated."""

    def __init__(self, folders: dict[str, Path]) -> None:
        self._stat = _File(next(iter(folders.values()), None), "cpu.stat")

    def used_s(self) -> float | None:
        return _scaled(self._stat.keyed(b"usage_usec"), 1e6)

    def throttled_s(self) -> float | None:
        return _scaled(self._stat.keyed(b"throttled_usec"), 1e6)

    def close(self) -> None:
        self._stat.close()


def _scaled(value: int | None, units: float) -> float | None:
    return None if value is None else value / units


def _difference(after: float | None, before: float | None) -> float | None:
    return None if after is None or before is None else after - before


# --- the watchdog -------------------------------------------------------------------------------


class Processes(Protocol):
    """What the watchdog needs of a sandbox's processes (`processes.ProcessTree`)."""

    def kill(self, pids: Sequence[int]) -> None: ...


class MemoryWatchdog:
    """Best effort where no control group counts memory: above the sum, the largest process ends.

    It looks four times a second, less often where a look is dear, from the start of the sandbox
    until `close`. A look is cheap first: the resident pages of each process, shared ones counted in
    each, and the files in memory. Only above the limit are the shared pages divided among their
    owners. After `patience` looks in a row above the limit `exhausted` is called, once.

    Not seen: memory that grows and is used up between two looks (the rlimit of each process bounds
    that), files that have no name and are not mapped, the kernel's own memory.

    `root_fd` is the sandbox's root folder (borrowed until `close`), `files_bytes` says what its
    file systems in memory hold, `spared` which processes (as numbered inside) are never killed.
    """

    def __init__(
        self,
        root_fd: int,
        processes: Processes,
        limit_bytes: int,
        *,
        files_bytes: Callable[[], int],
        spared: Callable[[], Set[int]],
        exhausted: Callable[[], None],
        period_s: float = 0.25,
        patience: int = 8,
    ) -> None:
        self.kills = 0
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        self._proc = os.open("proc", flags, dir_fd=root_fd)
        self._processes = processes
        self._limit = limit_bytes
        self._files_bytes = files_bytes
        self._spared = spared
        self._exhausted = exhausted
        self._period_s = period_s
        self._patience = patience
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.ensure_future(self._watch())

    async def close(self) -> None:
        """Safe to call twice, and before `start`."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})
        if self._proc >= 0:
            os.close(self._proc)
            self._proc = -1

    async def _watch(self) -> None:
        breaches = 0
        while breaches < self._patience:
            began = time.perf_counter()
            try:
                breached = self._rough_bytes() > self._limit and await self._is_over()
            except OSError:  # out of descriptors, or all has ended: the next look tells
                breached = False
            breaches = breaches + 1 if breached else 0
            took = time.perf_counter() - began
            # A look takes at most a hundredth of the time, as long as it takes less than 20 ms.
            pause = self._period_s / 5 if breached else self._period_s
            await asyncio.sleep(max(pause, min(100 * took, 8 * self._period_s)))
        self._exhausted()

    def _rough_bytes(self) -> int:
        """At least the sum: pages that processes share count in each."""
        pages = sum(_page_counts(self._proc, pid)[0] for pid in _numbered(self._proc))
        return pages * _PAGE + self._files_bytes()

    async def _is_over(self) -> bool:
        """Whether the exact sum is above the limit; if so the largest process is killed."""
        # A process that maps memory holds the lock that these files need: not in the event loop.
        shares = await _finished(asyncio.to_thread(_shares, self._proc))
        private = sum(share.private_bytes for share in shares)
        shared = sum(share.shared_bytes for share in shares)
        # Mapped files in memory are in both figures: the larger one holds, never their sum.
        if private + max(shared, self._files_bytes()) <= self._limit:
            return False
        spared = self._spared()
        mortal = [share for share in shares if share.pid not in spared]
        if mortal:
            self._processes.kill([max(mortal, key=lambda share: share.total_bytes).pid])
            self.kills += 1
        return True


@dataclass(frozen=True, slots=True)
class _Share:
    """A process's part of the memory: pages divided by the number of processes that map them."""

    pid: int
    private_bytes: int
    shared_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.private_bytes + self.shared_bytes


async def _finished(work: Coroutine[None, None, list[_Share]]) -> list[_Share]:
    """Wait for a thread even if we are cancelled: it reads from a folder that is closed then."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise


def _numbered(proc: int) -> Iterator[int]:
    return (int(name) for name in os.listdir(proc) if name.isdigit())


def _page_counts(proc: int, pid: int) -> tuple[int, int]:
    """(resident, of these not private) pages of a process."""
    words = _read(proc, f"{pid}/statm").split()
    return (int(words[1]), int(words[2])) if len(words) > 2 else (0, 0)


def _shares(proc: int) -> list[_Share]:
    return [_share(proc, pid) for pid in _numbered(proc)]


def _share(proc: int, pid: int) -> _Share:
    """From smaps_rollup; where the kernel refuses that, resident pages that are not of files."""
    found = {}
    for line in _read(proc, f"{pid}/smaps_rollup").splitlines():
        words = line.split()
        if len(words) == 3 and words[1].isdigit():
            found[words[0]] = int(words[1]) * 1024
    if b"Pss_Anon:" in found:
        return _Share(pid, found[b"Pss_Anon:"], found.get(b"Pss_Shmem:", 0))
    resident, shared = _page_counts(proc, pid)
    return _Share(pid, (resident - shared) * _PAGE, 0)


def _read(proc: int, name: str) -> bytes:
    """The file's text; empty where the process is gone or may not be looked at."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
    except OSError:
        return b""
    try:
        return os.read(fd, 4096)
    except OSError:
        return b""
    finally:
        os.close(fd)
