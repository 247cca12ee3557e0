"""Opening sandboxes for the benchmark, and what is left of them afterwards."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandlot.core.errors import ImageError
from sandlot.sandbox import host as bubblewrap_host
from sandlot.sandbox.base import Sandbox
from sandlot.sandbox.images import ImageStore
from sandlot.sandbox.policy import Limits, Network, Policy
from sandlot.sandbox.registry import list_leases, open_sandbox


@dataclass(frozen=True, slots=True)
class Place:
    """Where images are cached and state is kept, and which image is measured."""

    cache: Path
    state: Path
    image: str

    def policy(self) -> Policy:
        """Without network rules and with a short upper layer: what a bare sandbox costs."""
        return Policy(network=Network.parse("none"), limits=Limits(disk_bytes=256 * 1024 * 1024))

    async def open(self, policy: Policy | None = None) -> Sandbox:
        return await open_sandbox(
            "bubblewrap",
            policy=policy or self.policy(),
            image=self.image,
            cache=self.cache,
            state=self.state,
            environ=os.environ,
            progress=print,
        )

    @asynccontextmanager
    async def started(self) -> AsyncIterator[Sandbox]:
        async with await self.open() as sandbox:
            yield sandbox

    def lower(self) -> str:
        """The folder that lies below a sandbox's root, for the control program."""
        if self.image == "host":
            return "host"
        digest = ImageStore(self.cache).resolve(self.image).digest
        found = sorted((self.cache / "rootfs").glob(f"{digest}*/"))
        folders = [path for path in found if path.is_dir()]
        return str(folders[-1]) if folders else "host"

    def leases(self) -> list[bubblewrap_host.Lease]:
        mine = os.getpid()
        return [lease for lease in list_leases(self.state, os.environ) if lease.pid == mine]


def find_place(state: Path) -> Place:
    """The image `base` where it was built before, else the host itself."""
    base = os.environ.get("XDG_CACHE_HOME")
    cache = (Path(base) if base else Path.home() / ".cache") / "sandlot"
    try:
        ImageStore(cache).resolve("base")
    except ImageError:
        return Place(cache, state, "host")
    return Place(cache, state, "base")


def descendants(pid: int) -> list[int]:
    found: list[int] = []
    for child in _children(pid):
        found += [child, *descendants(child)]
    return found


def _children(pid: int) -> list[int]:
    try:
        words = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [int(word) for word in words]


def pss_bytes(pids: list[int]) -> int:
    """Memory of processes, shared pages divided among those that share them."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
    return total


def cgroups_of(leases: list[bubblewrap_host.Lease]) -> list[str]:
    return [folder for lease in leases for folder in lease.cgroups if Path(folder).exists()]


def cgroup_memory_bytes(sandbox: Sandbox) -> int | None:
    """Charged memory, the kernel's own included; None where no group counts."""
    inner: Any = getattr(sandbox, "_inner", None)
    group = getattr(inner, "cgroup", None)
    return None if group is None else group.memory_bytes()


def launcher_pid(sandbox: Sandbox) -> int:
    """The process below which all of a harness's sandboxes run."""
    host: Any = getattr(sandbox, "_host")  # noqa: B009  no part of the contract has it
    return int(host.launcher.pid)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))
