"""The sandbox contract, in words. `contract.py` is the same in tests; every backend passes it.

A sandbox is one isolated computer with one persistent bash. Its owner builds it with a policy and
an image, starts it, uses it and closes it. Everything inside is hostile: output, files, names.

*Shell.* Working directory, variables, functions, aliases, shell options and background jobs
survive from call to call. stdin is /dev/null, there is no terminal, pagers and prompts are off.
A call ends when its command ends, even if a background child still holds its output; what such a
child prints later is dropped. Calls on one sandbox are queued: one command runs at a time, in the
order of the calls. A shell that ends (`exit 3`) gives its exit status and is replaced by a new one
in the directory where the command began; `shell_restarted` says so.

*Timeout.* The command's whole process tree ends, daemons that it forked twice included; jobs of
earlier commands live on; what it printed is kept; the shell keeps its state. Where the shell
itself cannot be interrupted it is replaced. The host holds a second deadline: a sandbox that
cannot be brought back under control is killed, and the call raises `SandboxDied(unresponsive)`.

*Output.* Each stream is bounded while it is read, keeping its start and its end. When something
was left out, `truncated` is set and the whole stream, up to a cap, lies in the file that
`stdout_file` or `stderr_file` names (a path inside).

*Files.* Every path is resolved inside the sandbox's own root, links and `..` included: a link
planted inside never reads or writes the host. A relative path starts at the policy's working
directory. Only regular files are read and written; anything else raises `SandboxFileError`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

from sandlot.core.types import CollectedFile, EgressRecord, SkippedFile
from sandlot.sandbox.policy import Enforcement, Policy


@dataclass(frozen=True, slots=True)
class ExecResult:
    """What one command did.

    `exit_code` is None only where no status exists (timeout, flood, shell killed); a death by
    signal N is 128 + N, as bash gives it. Text is UTF-8 with undecodable bytes replaced and holds
    a line that says how much was left out where `truncated`. Sizes are of the whole stream.
    The last four are meters of the sandbox over the command, background jobs included; None
    where nothing here counts them. `memory_peak_bytes` is the highest sum while it ran,
    `memory_kills` the processes that were killed at the memory limit.
    """

    exit_code: int | None
    stdout: str
    stderr: str
    duration_s: float
    timed_out: bool = False
    flooded: bool = False
    truncated: bool = False
    stdout_bytes: int = 0
    stderr_bytes: int = 0
    stdout_file: str | None = None
    stderr_file: str | None = None
    shell_restarted: bool = False
    memory_peak_bytes: int | None = None
    cpu_s: float | None = None
    throttled_s: float | None = None
    memory_kills: int = 0


@dataclass(frozen=True, slots=True)
class FileInfo:
    """`kind` is file, directory, link, fifo, socket, device. Mode bits as in `stat`."""

    path: str
    kind: str
    size_bytes: int
    mode: int


@dataclass(frozen=True, slots=True)
class SandboxStats:
    """Measured use so far; None where this machine cannot tell.

    `throttled_s` is the time for which the CPU limit held it back; `disk_bytes` is written now.
    """

    memory_peak_bytes: int | None = None
    cpu_s: float | None = None
    throttled_s: float | None = None
    processes: int | None = None
    disk_bytes: int | None = None


class Sandbox(Protocol):
    """One isolated computer. Not isolated: the kernel, CPU caches and timing are shared."""

    backend: str
    policy: Policy

    @property
    def enforcement(self) -> tuple[Enforcement, ...]:
        """How each promise of the policy is kept; known after `start`."""
        ...

    async def start(self) -> None:
        """Bring the computer up. Nothing happens if it was started before, as a fork was.

        Raises:
            PolicyNotEnforceable: a limit that was asked for cannot be enforced here.
            SandboxUnavailable: this machine cannot run such a sandbox.
            SandboxDied: it broke during the start, or was closed before.
        """
        ...

    async def exec(self, command: str, timeout_s: float | None = None) -> ExecResult:
        """Run a command in the persistent shell; `timeout_s` defaults to the policy's.

        Raises:
            SandboxDied: the sandbox is gone, now or before.
        """
        ...

    async def read_file(self, path: str, *, limit_bytes: int | None = None) -> bytes:
        """A regular file's bytes. More than `limit_bytes` raises `SandboxFileError`."""
        ...

    async def write_file(self, path: str, data: bytes, *, exclusive: bool = False) -> None:
        """Write a regular file, its missing parent folders included.

        An existing file keeps its mode. `exclusive` refuses an existing one.
        """
        ...

    async def stat(self, path: str) -> FileInfo:
        """What is at a path, without following a link in its last part."""
        ...

    async def list_dir(self, path: str) -> list[FileInfo]:
        """The entries of a folder, sorted by name; `path` of each is its name."""
        ...

    async def upload(self, source: Path, target: str) -> int:
        """Copy a host file or folder to `target`; returns the number of files.

        Links inside the folder that stay inside are kept; one that leads out raises InputError.
        """
        ...

    async def collect(
        self, paths: Sequence[str], into: Path
    ) -> tuple[list[CollectedFile], list[SkippedFile]]:
        """Copy files and folders out. A folder's content lands under `into` directly.

        Missing paths are skipped without a word; what cannot be copied is reported as skipped.
        """
        ...

    async def snapshot(self, target: Path) -> None:
        """Store files, working directory and exported variables in one host file.

        Files are all that was changed inside since the image, deletions and replaced folders
        included; processes, functions and unexported variables are not stored. What runs inside is
        held still meanwhile.

        Raises:
            SandboxFileError: it cannot be stored (no room at `target`, too many variables).
        """
        ...

    async def restore(self, source: Path) -> None:
        """Bring back what `snapshot` stored. Everything that runs inside ends.

        Raises:
            SandboxFileError: `source` is no snapshot, or is damaged; the sandbox is as it was.
        """
        ...

    async def fork(self) -> Sandbox:
        """A started sandbox of its own, with the same policy and image, that goes on from the

        files, working directory and exported variables of this one; not from its processes.
        The caller closes both.
        """
        ...

    def egress(self) -> list[EgressRecord]:
        """Requests through the egress proxy since the last call."""
        ...

    async def stats(self) -> SandboxStats: ...

    async def close(self) -> None:
        """End it and leave no process, mount, cgroup, socket or file. Safe to call twice."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *exc: object) -> None: ...


def base_environment(policy: Policy) -> dict[str, str]:
    """The variables of the shell: pagers, prompts and colours off, then the policy's own."""
    environment: Mapping[str, str] = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
        "USER": "root",
        "LOGNAME": "root",
        "SHELL": "/bin/bash",
        "LANG": "C.UTF-8",
        "TERM": "dumb",
        "PAGER": "cat",
        "GIT_PAGER": "cat",
        "MANPAGER": "cat",
        "SYSTEMD_PAGER": "cat",
        "GIT_TERMINAL_PROMPT": "0",
        "DEBIAN_FRONTEND": "noninteractive",
        "NO_COLOR": "1",
        "PIP_NO_INPUT": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_ROOT_USER_ACTION": "ignore",
        "PIP_BREAK_SYSTEM_PACKAGES": "1",
        "PYTHONUNBUFFERED": "1",
        "MPLBACKEND": "Agg",
        **policy.environment,
    }
    return dict(environment)


def absolute(path: str, working_dir: str) -> str:
    """An absolute path inside; a relative one starts at the working directory."""
    return path if path.startswith("/") else os.path.join(working_dir, path)
