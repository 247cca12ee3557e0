"""A sandbox made of a guest alone, for tests: process 1 of bubblewrap's namespaces."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from sandlot.core.errors import SandboxDied
from sandlot.core.types import CollectedFile, EgressRecord, SkippedFile
from sandlot.sandbox.base import ExecResult, FileInfo, Sandbox, SandboxStats, base_environment
from sandlot.sandbox.guest_session import GUEST_COMMAND, GuestSession, ProcessStream
from sandlot.sandbox.host import find_bwrap
from sandlot.sandbox.policy import Enforcement, Policy

_CAPABILITIES = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_MKNOD",
)

KEPT = ("/testbed", "/opt", "/root")


def jail(*binds: str) -> list[str]:
    """A command line that gives its program an own root, processes, network and user ids."""
    words = [find_bwrap(), "--unshare-all", "--unshare-user", "--uid", "0", "--gid", "0"]
    words += ["--as-pid-1", "--new-session", "--die-with-parent", "--hostname", "sandlot"]
    words += ["--clearenv", "--setenv", "PATH", "/usr/local/bin:/usr/bin:/bin"]
    words += ["--ro-bind", "/usr", "/usr", "--ro-bind", "/etc/passwd", "/etc/passwd"]
    for name in ("bin", "sbin", "lib", "lib64"):
        words += ["--symlink", f"usr/{name}", f"/{name}"]
    words += ["--proc", "/proc", "--dev", "/dev", "--size", "1000000"]
    words += ["--tmpfs", "/dev/shm", "--remount-ro", "/dev"]
    for name in ("/root", "/testbed", "/tmp", "/opt", "/run", "/var/tmp", "/mnt"):
        words += ["--dir", name]
    words += ["--chdir", "/", "--cap-drop", "ALL"]
    for bind in binds:
        words += ["--bind", bind, bind]
    for capability in _CAPABILITIES:
        words += ["--cap-add", capability]
    return [*words, "--"]


def have_bwrap() -> bool:
    return shutil.which(find_bwrap()) is not None


class GuestSandbox:
    """The contract by nothing but a `GuestSession`. No policy but the guest's own part is kept."""

    backend = "guest"

    def __init__(
        self,
        policy: Policy,
        *,
        proxy_socket: Path | None = None,
        command: Sequence[str] = GUEST_COMMAND,
    ) -> None:
        self.policy = policy
        self.death: asyncio.Future[SandboxDied] = asyncio.get_running_loop().create_future()
        self._proxy_socket = proxy_socket
        self._command = command
        self._session: GuestSession | None = None
        self.process: asyncio.subprocess.Process | None = None
        self._folder = Path(tempfile.mkdtemp(prefix="sandlot-guest-"))

    @property
    def enforcement(self) -> tuple[Enforcement, ...]:
        return ()

    @property
    def session(self) -> GuestSession:
        if self._session is None:
            raise self.death.result()
        return self._session

    async def start(self) -> None:
        if self.death.done():
            raise self.death.result()
        if self._session is not None:
            return
        proxy = self._proxy_socket
        binds = [] if proxy is None else [str(proxy.parent)]
        self.process = await asyncio.create_subprocess_exec(
            *jail(*binds),
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=1 << 20,
        )
        self._session = GuestSession(
            ProcessStream(self.process),
            self.policy,
            base_environment(self.policy),
            spool_dir=self._folder,
            died=self.death,
            proxy_socket=None if proxy is None else str(proxy),
        )
        await self._session.start()

    async def exec(self, command: str, timeout_s: float | None = None) -> ExecResult:
        return await self.session.exec(command, timeout_s)

    async def read_file(self, path: str, *, limit_bytes: int | None = None) -> bytes:
        return await self.session.read_file(path, limit_bytes=limit_bytes)

    async def write_file(self, path: str, data: bytes, *, exclusive: bool = False) -> None:
        await self.session.write_file(path, data, exclusive=exclusive)

    async def stat(self, path: str) -> FileInfo:
        return await self.session.stat(path)

    async def list_dir(self, path: str) -> list[FileInfo]:
        return await self.session.list_dir(path)

    async def upload(self, source: Path, target: str) -> int:
        return await self.session.upload(source, target)

    async def collect(
        self, paths: Sequence[str], into: Path
    ) -> tuple[list[CollectedFile], list[SkippedFile]]:
        return await self.session.collect(paths, into)

    async def snapshot(self, target: Path) -> None:
        await self.session.snapshot(target, KEPT)

    async def restore(self, source: Path) -> None:
        await self.session.restore(source, clear=KEPT)

    async def fork(self) -> Sandbox:
        twin = GuestSandbox(self.policy)
        await self.snapshot(self._folder / "state")
        await twin.start()
        await twin.restore(self._folder / "state")
        return twin

    def egress(self) -> list[EgressRecord]:
        return []

    async def stats(self) -> SandboxStats:
        return await self.session.usage()

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                if self.process.returncode is None:
                    await _ended_or_killed(self.process)
        shutil.rmtree(self._folder, ignore_errors=True)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()


async def _ended_or_killed(process: asyncio.subprocess.Process) -> None:
    try:
        await asyncio.wait_for(process.wait(), 5)
    except TimeoutError:
        os.kill(process.pid, 9)
        await process.wait()
        raise
