"""Control groups: hard limits and meters where this machine lets us make groups.

Version 1 as root, version 2 as root or by delegation; elsewhere rlimits stand in.
Paths and meanings: kernel documentation, cgroup-v1/{memory,pids}.txt and cgroup-v2.rst.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from sandlot.sandbox.delegation import delegated_folder, divide, scope_folder, scope_prefix
from sandlot.sandbox.policy import Limits

_PERIOD_US = 100_000
_MOST_PIDS = 4_194_304  # PID_MAX_LIMIT of the kernel
_MOUNTS = Path("/sys/fs/cgroup")
# Missing where the kernel does not count swap, or has none.
_OPTIONAL = frozenset({"memory.swap.max", "memory.memsw.limit_in_bytes"})


@dataclass(slots=True)
class Cgroup:
    """The group of one sandbox: one folder in version 2, one for each controller in version 1."""

    version: int
    folders: dict[str, Path]

    @property
    def procs(self) -> list[str]:
        return [str(folder / "cgroup.procs") for folder in dict.fromkeys(self.folders.values())]

    def controls(self, controller: str) -> bool:
        return controller in self.folders

    def limit(self, limits: Limits) -> None:
        """Write the limits that this group has controllers for. Raises OSError if refused."""
        for controller, file, value in _settings(self.version, limits):
            if controller in self.folders:
                _write(self.folders[controller] / file, value)

    def throttled_s(self) -> float | None:
        """Time for which the CPU limit held it back, summed over processors."""
        folder = self.folders.get("cpu")
        if self.version == 1:
            nanoseconds = _keyed(folder, "cpu.stat", "throttled_time")
            return None if nanoseconds is None else nanoseconds / 1e9
        microseconds = _keyed(folder, "cpu.stat", "throttled_usec")
        return None if microseconds is None else microseconds / 1e6

    def oom_kills(self) -> int:
        name = "memory.oom_control" if self.version == 1 else "memory.events"
        return _keyed(self.folders.get("memory"), name, "oom_kill") or 0

    def memory_peak_bytes(self) -> int | None:
        name = "memory.max_usage_in_bytes" if self.version == 1 else "memory.peak"
        return _number(self.folders.get("memory"), name)

    def memory_bytes(self) -> int | None:
        name = "memory.usage_in_bytes" if self.version == 1 else "memory.current"
        return _number(self.folders.get("memory"), name)

    def cpu_s(self) -> float | None:
        if self.version == 1:
            nanoseconds = _number(self.folders.get("cpuacct"), "cpuacct.usage")
            return None if nanoseconds is None else nanoseconds / 1e9
        # Counted even where the `cpu` controller is not ours.
        folder = next(iter(self.folders.values()), None)
        microseconds = _keyed(folder, "cpu.stat", "usage_usec")
        return None if microseconds is None else microseconds / 1e6

    def processes(self) -> int | None:
        return _number(self.folders.get("pids"), "pids.current")

    def kill(self) -> bool:
        """End every process in it at once (Linux 5.14, version 2); False where that cannot be."""
        file = self.folders.get("pids", Path()) / "cgroup.kill"
        if self.version == 1 or not file.exists():
            return False
        try:
            file.write_text("1")
        except OSError:
            return False
        return True

    async def remove(self, within_s: float = 5.0) -> bool:
        """Remove the folders; the kernel refuses for a moment while the last process exits."""
        self.kill()
        deadline = asyncio.get_running_loop().time() + within_s
        left = list(dict.fromkeys(self.folders.values()))
        while left:
            left = [folder for folder in left if not _rmdir(folder)]
            if left and asyncio.get_running_loop().time() > deadline:
                return False
            if left:
                await asyncio.sleep(0.001)
        return True


@dataclass(slots=True)
class CgroupRoot:
    """Where the groups of one harness live: `<root>/sandlot-<lease>` for each controller."""

    version: int
    tops: dict[str, Path] = field(default_factory=dict)

    def create(self, name: str, limits: Limits) -> Cgroup:
        """Make a group with the limits in place. Raises OSError where the kernel refuses."""
        unused = {"cpu"} if self.version == 1 and limits.cpus is None else set()
        folders = {key: top / name for key, top in self.tops.items() if key not in unused}
        group = Cgroup(self.version, folders)
        try:
            for folder in dict.fromkeys(folders.values()):
                folder.mkdir()
            group.limit(limits)
        except OSError:
            for folder in dict.fromkeys(folders.values()):
                _rmdir(folder)
            raise
        return group

    def remove(self) -> None:
        for top in dict.fromkeys(self.tops.values()):
            _rmdir(top)


def open_root(
    lease: str, mounts: Path = _MOUNTS, *, systemd: Path = Path("/run/systemd/system")
) -> CgroupRoot | None:
    """Make this harness's own top groups, or None where that is not allowed.

    In version 2 below a group that is delegated to us, or, as root of a machine that systemd does
    not run, at the top. Where there is neither, `scope_prefix` and `open_scope` may help.
    """
    try:
        if (mounts / "cgroup.controllers").exists():
            return _open_v2(lease, mounts, systemd.exists())
        return _open_v1(lease, mounts)
    except OSError:
        return None


def launcher_prefix(lease: str, mounts: Path = _MOUNTS) -> tuple[str, ...]:
    """How the launcher is to be started where `open_root` gave None, so that `open_scope` works."""
    if not (mounts / "cgroup.controllers").exists():
        return ()
    return scope_prefix(lease, uid=os.getuid())


async def open_scope(
    lease: str, launcher: int, alive: Callable[[], bool], mounts: Path = _MOUNTS
) -> CgroupRoot | None:
    """The top group in the scope of a launcher that was started with `launcher_prefix`.

    None where systemd made no such scope or passes no controllers into it.
    """
    folder = await scope_folder(lease, mounts, Path(f"/proc/{launcher}"), alive)
    return None if folder is None else _open_below(lease, folder)


def open_top(lease: str, mounts: Path = _MOUNTS) -> CgroupRoot | None:
    """At the top of a version 2 tree, which only root may write to: the last resort of root."""
    allowed = (mounts / "cgroup.controllers").exists() and os.access(mounts, os.W_OK)
    return _open_below(lease, mounts) if allowed else None


def _open_v1(lease: str, mounts: Path) -> CgroupRoot | None:
    tops = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in {"memory", "pids", "cpu", "cpuacct"} & set(controllers.split(",")):
            base = mounts / controller / path.lstrip("/")
            base = base if base.is_dir() else mounts / controller
            if os.access(base, os.W_OK):
                tops[controller] = base / f"sandlot-{lease}"
    return _make_tops(CgroupRoot(1, tops))


def _open_v2(lease: str, mounts: Path, systemd: bool) -> CgroupRoot | None:
    root = os.getuid() == 0
    folder = delegated_folder(mounts, systemd=systemd)
    found = None if folder is None else _open_below(lease, folder)
    if found is None and not (root and systemd):
        found = open_top(lease, mounts)
    return found


def _open_below(lease: str, folder: Path) -> CgroupRoot | None:
    top = folder / f"sandlot-{lease}"
    try:
        controllers = divide(folder)
        top.mkdir(exist_ok=True)
        control = top / "cgroup.subtree_control"
        control.write_text(" ".join(f"+{name}" for name in controllers))
    except OSError:
        _rmdir(top)
        return None
    return CgroupRoot(2, dict.fromkeys(controllers, top))


def _make_tops(root: CgroupRoot) -> CgroupRoot | None:
    if not {"memory", "pids"} <= set(root.tops):
        return None
    for top in dict.fromkeys(root.tops.values()):
        top.mkdir(exist_ok=True)
    return root


def _settings(version: int, limits: Limits) -> Iterable[tuple[str, str, str]]:
    """(controller, file, value) of each limit that is set."""
    if limits.memory_bytes is not None:
        file = "memory.limit_in_bytes" if version == 1 else "memory.max"
        yield "memory", file, str(limits.memory_bytes)
        if version == 1:
            yield "memory", "memory.memsw.limit_in_bytes", str(limits.memory_bytes)
        else:
            yield "memory", "memory.swap.max", "0"
    if limits.processes is not None:
        yield "pids", "pids.max", str(min(limits.processes, _MOST_PIDS))
    if limits.cpus is not None:
        # More than there are is no limit, and the kernel refuses numbers far beyond.
        quota = max(1000, int(min(limits.cpus, os.cpu_count() or 1) * _PERIOD_US))
        if version == 1:
            yield "cpu", "cpu.cfs_period_us", str(_PERIOD_US)
            yield "cpu", "cpu.cfs_quota_us", str(quota)
        else:
            yield "cpu", "cpu.max", f"{quota} {_PERIOD_US}"


def _write(file: Path, value: str) -> None:
    try:
        file.write_text(value)
    except OSError:
        if file.name not in _OPTIONAL:
            raise


def _rmdir(folder: Path) -> bool:
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _number(folder: Path | None, name: str) -> int | None:
    if folder is None:
        return None
    try:
        return int((folder / name).read_text())
    except (OSError, ValueError):
        return None


def _keyed(folder: Path | None, name: str, key: str) -> int | None:
    if folder is None:
        return None
    try:
        lines = (folder / name).read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        words = line.split()
        if len(words) == 2 and words[0] == key:
            return int(words[1])
    return None
