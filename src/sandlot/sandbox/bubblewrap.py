"""The default backend: bubblewrap, an overlay over a shared image, a bash driven by the host.

A sandbox is four processes: bubblewrap outside, `sh` as process 1 inside, bash, and what bash runs.
Everything that is shared between sandboxes of one harness is in `host.BubblewrapHost`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import platform
import shlex
import shutil
import signal
import socket
import tarfile
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

from sandlot.core.errors import (
    DeathCause,
    SandboxDied,
    SandboxFileError,
    SandboxUnavailable,
)
from sandlot.core.types import CollectedFile, EgressRecord, SkippedFile
from sandlot.sandbox.base import (
    ExecResult,
    FileInfo,
    Sandbox,
    SandboxStats,
    absolute,
    base_environment,
)
from sandlot.sandbox.cgroups import Cgroup
from sandlot.sandbox.disk import (
    Disk,
    choose_disk,
    disk_row,
    machine_memory,
    make_image,
    tmpfs_bytes,
)
from sandlot.sandbox.files import SandboxFiles
from sandlot.sandbox.host import BubblewrapHost, _ticks
from sandlot.sandbox.launch import Channel, LauncherReply, settle
from sandlot.sandbox.meters import CommandGauge, MemoryWatchdog, Use
from sandlot.sandbox.output import OutputStream
from sandlot.sandbox.policy import (
    GIB,
    MIB,
    Enforcement,
    Limits,
    NetworkMode,
    Policy,
    settle_enforcement,
)
from sandlot.sandbox.processes import ProcessTree
from sandlot.sandbox.seccomp import build_filter
from sandlot.sandbox.shell import CONTROL_DIR, Shell

T = TypeVar("T")
_START_S = 30.0
_STOP_S = 10.0
_AHEAD_S = 0.003
_STATE_NAME = "sandlot-state.json"
_OUTPUT_DIR = "/tmp/.sandlot"
_OVER_AND_OVER = "its processes took more than the memory limit over and over"
# What root needs to install packages and drop to other users; nothing that reaches the machine.
_CAPABILITIES = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_MKNOD",
    "CAP_AUDIT_WRITE",
    "CAP_SETFCAP",
)


@dataclass(frozen=True, slots=True)
class RootFilesystem:
    """What a sandbox's root is made of.

    `lowers` are folders below `/`, the lowest first. `overlays` are host folders that get an
    overlay of their own (image `host`); `hidden` are paths inside such a folder that must not show.
    """

    name: str
    lowers: tuple[Path, ...]
    overlays: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)
    hidden: tuple[str, ...] = ()


class Egress(Protocol):
    """What the backend needs of the egress proxy."""

    async def start(self) -> None: ...

    def drain_records(self) -> list[EgressRecord]: ...

    async def close(self) -> None: ...


MakeEgress = Callable[[socket.socket], Egress]


class BubblewrapSandbox:
    """See `sandbox.base` for the contract.

    Isolated: processes, files, network, ids, System V objects, host name. Not isolated: the kernel
    itself, CPU caches, time, and what the policy mounts.
    """

    backend = "bubblewrap"

    def __init__(
        self,
        policy: Policy,
        *,
        host: Callable[[], Awaitable[BubblewrapHost]],
        release: Callable[[], Awaitable[None]],
        root: Callable[[BubblewrapHost], Awaitable[RootFilesystem]],
        make_egress: MakeEgress | None,
        environment: Mapping[str, str] | None = None,
        spool_dir: Path | None = None,
    ) -> None:
        self.policy = policy
        self._get_host = host
        self._release_host = release
        self._get_root = root
        self._make_egress = make_egress
        self._environment = environment or {}
        self._spool_dir = spool_dir
        self._queue = asyncio.Lock()
        self._host: BubblewrapHost | None = None
        self._inner: _Inner | None = None
        self._death: SandboxDied | None = None
        self._closing: asyncio.Task[None] | None = None
        self._calls = 0
        self._old_records: list[EgressRecord] = []

    @property
    def enforcement(self) -> tuple[Enforcement, ...]:
        return () if self._inner is None else self._inner.enforcement

    async def start(self, restore: Path | None = None) -> None:
        """`restore` is a snapshot to begin from, in place of a fresh image."""
        if self._closing is not None:
            raise SandboxDied(DeathCause.CLOSED, "it was closed")
        if self._inner is not None:
            return
        self._host = await self._get_host()
        try:
            await self._start_inner(restore)
        except BaseException:
            await asyncio.shield(self.close())
            raise

    async def exec(self, command: str, timeout_s: float | None = None) -> ExecResult:
        async with self._queue:
            return await self._exec(command, timeout_s)

    async def _exec(self, command: str, timeout_s: float | None = None) -> ExecResult:
        inner = self._alive()
        self._calls += 1
        number = self._calls
        started = time.monotonic()
        limit = self.policy.limits.command_timeout_s if timeout_s is None else timeout_s
        try:
            run = await inner.run(command, limit)
        except SandboxDied as exc:
            raise await self._die(exc) from exc
        except OSError as exc:
            raise await self._die(_exhausted(exc)) from exc
        took = time.monotonic() - started
        files = [
            await self._save_whole(stream, f"{number:04d}.{name}")
            for stream, name in ((run.stdout, "stdout"), (run.stderr, "stderr"))
        ]
        result = ExecResult(
            exit_code=run.exit_code,
            stdout=run.stdout.text(),
            stderr=run.stderr.text(),
            duration_s=took,
            timed_out=run.timed_out,
            flooded=run.flooded,
            truncated=run.stdout.truncated or run.stderr.truncated,
            stdout_bytes=run.stdout.total,
            stderr_bytes=run.stderr.total,
            stdout_file=files[0],
            stderr_file=files[1],
            shell_restarted=run.shell_restarted,
            **asdict(inner.use),
        )
        run.stdout.release()
        run.stderr.release()
        return result

    async def read_file(self, path: str, *, limit_bytes: int | None = None) -> bytes:
        return await self._file_op(lambda files: files.read(self._absolute(path), limit_bytes))

    async def write_file(self, path: str, data: bytes, *, exclusive: bool = False) -> None:
        await self._file_op(lambda files: files.write(self._absolute(path), data, exclusive))

    async def stat(self, path: str) -> FileInfo:
        return await self._file_op(lambda files: files.stat(self._absolute(path)))

    async def list_dir(self, path: str) -> list[FileInfo]:
        return await self._file_op(lambda files: files.list_dir(self._absolute(path)))

    async def upload(self, source: Path, target: str) -> int:
        return await self._file_op(lambda files: files.upload(source, self._absolute(target)))

    async def collect(
        self, paths: Sequence[str], into: Path
    ) -> tuple[list[CollectedFile], list[SkippedFile]]:
        limits = self.policy.limits
        return await self._file_op(
            lambda files: files.collect(
                [self._absolute(path) for path in paths],
                into,
                max_bytes=limits.collect_bytes,
                max_files=limits.collect_files,
            )
        )

    async def snapshot(self, target: Path) -> None:
        target = Path(target)
        async with self._queue:
            exports = await self._exec("export -p")
            where = await self._exec("pwd -P")
            if exports.truncated or where.truncated or exports.exit_code != 0:
                raise SandboxFileError(
                    str(target), "the exported variables are too large to be kept"
                )
            inner, host = self._alive(), self._host
            assert host is not None
            state = {"working_dir": where.stdout.rstrip("\n"), "exports": exports.stdout}
            await inner.save(host, target, state)

    async def restore(self, source: Path) -> None:
        """The upper layer cannot change under a mounted overlay: the inside is started anew."""
        state = _read_state(source)
        async with self._queue:
            before = self._alive()
            try:
                await self._start_inner(source)
            except SandboxUnavailable as exc:
                await asyncio.shield(self._go_back_to(before))
                raise SandboxFileError(str(source), f"it cannot be restored: {exc}") from exc
            except BaseException:
                await asyncio.shield(self._go_back_to(before))
                raise
            self._old_records += before.drain_egress()
            await before.stop()
            await self._take_up(state)

    async def fork(self) -> Sandbox:
        twin = BubblewrapSandbox(
            self.policy,
            host=self._get_host,
            release=self._release_host,
            root=self._get_root,
            make_egress=self._make_egress,
            environment=self._environment,
            spool_dir=self._spool_dir,
        )
        with tempfile.TemporaryDirectory(dir=self._spool_dir, prefix="fork-") as folder:
            source = Path(folder, "state")
            await self.snapshot(source)
            await twin.start(source)
            try:
                async with twin._queue:
                    await twin._take_up(_read_state(source))
            except BaseException:
                await asyncio.shield(twin.close())
                raise
        return twin

    def egress(self) -> list[EgressRecord]:
        records, self._old_records = self._old_records, []
        return records + ([] if self._inner is None else self._inner.drain_egress())

    async def stats(self) -> SandboxStats:
        inner = self._alive()
        life = inner.life()
        group, tree = inner.cgroup, inner.tree
        counted = None if group is None else group.processes()
        if counted is None and tree is not None:
            counted = len(tree.pids())
        return SandboxStats(
            memory_peak_bytes=life.memory_peak_bytes,
            cpu_s=life.cpu_s,
            throttled_s=life.throttled_s,
            processes=counted,
            disk_bytes=inner.disk_bytes(),
        )

    async def close(self) -> None:
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close())
        await asyncio.shield(self._closing)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    @property
    def control_folder(self) -> Path:
        """The host folder that the inside sees read-only (for terminals)."""
        return self._alive().control

    # --- inside ---------------------------------------------------------------------------------

    async def _start_inner(self, restore: Path | None) -> None:
        host = self._host
        assert host is not None
        root = await self._get_root(host)
        environment = {**base_environment(self.policy), **self._environment}
        spool = self._spool_dir or host.lease_dir
        inner = _Inner(host, self.policy, root, environment, self._make_egress, spool)
        self._inner = inner
        await inner.start(restore)
        self._death = None

    async def _take_up(self, state: Mapping[str, str]) -> None:
        await self._exec(f"{state['exports']}\ncd -- {shlex.quote(state['working_dir'])}")

    async def _go_back_to(self, before: _Inner) -> None:
        failed, self._inner = self._inner, before
        if failed is not None and failed is not before:
            await failed.stop()

    async def _close(self) -> None:
        if self._death is None:
            self._death = SandboxDied(DeathCause.CLOSED, "it was closed")
        if self._inner is not None:
            self._old_records += self._inner.drain_egress()
            await self._inner.stop()
        if self._host is not None:
            self._host = None
            await self._release_host()

    async def _die(self, death: SandboxDied) -> SandboxDied:
        """Remember the first cause, and make sure that nothing inside runs on."""
        if self._death is None:
            self._death = death
            if self._inner is not None:
                await self._inner.stop()
        return self._death

    def _alive(self) -> _Inner:
        if self._death is not None:
            raise self._death
        if self._inner is None:
            raise SandboxDied(DeathCause.CLOSED, "it was not started")
        return self._inner

    async def _file_op(self, work: Callable[[SandboxFiles], Awaitable[T]]) -> T:
        inner = self._alive()
        try:
            return await work(inner.files)
        except (LauncherReply, SandboxUnavailable) as exc:
            raise self._death or SandboxDied(DeathCause.KILLED, str(exc)) from exc

    def _absolute(self, path: str) -> str:
        return absolute(path, self.policy.working_dir)

    async def _save_whole(self, stream: OutputStream, name: str) -> str | None:
        """Put a stream that was cut into a file inside; a full disk inside costs only that file."""
        if stream.spool is None:
            return None
        path = f"{_OUTPUT_DIR}/{name}"
        stream.spool.flush()
        try:
            await self._alive().files.write_from(path, stream.spool.fileno())
        except (SandboxFileError, LauncherReply):
            return None
        return path


class _Inner:
    """One life of the computer: from the launcher's start to the last process gone."""

    def __init__(
        self,
        host: BubblewrapHost,
        policy: Policy,
        root: RootFilesystem,
        environment: Mapping[str, str],
        make_egress: MakeEgress | None,
        spool_dir: Path,
    ) -> None:
        self._host = host
        self._policy = policy
        self._root = root
        self._environment = environment
        self._make_egress = make_egress
        self._spool_dir = spool_dir
        self._name, self._folder = host.new_folder()
        self.control = self._folder / "control"
        self.control.mkdir(mode=0o755)
        self._died: asyncio.Future[SandboxDied] = asyncio.get_running_loop().create_future()
        self._fds: dict[str, int] = {}
        self._shell: Shell | None = None
        self._egress: Egress | None = None
        self._stopped = False
        self._end: asyncio.TimerHandle | None = None
        self._disk = Disk.MEMORY
        self._gauge: CommandGauge | None = None
        self._watchdog: MemoryWatchdog | None = None
        self.use = Use()
        self._ahead = ""
        self.tree: ProcessTree | None = None
        self.cgroup: Cgroup | None = None
        self.enforcement: tuple[Enforcement, ...] = ()
        self.files = SandboxFiles(self._open_files)

    async def start(self, restore: Path | None) -> None:
        limits = self._policy.limits
        self.cgroup, self._ahead = self._host.take_cgroup(self._name, limits)
        self._disk = choose_disk(limits, self._spool_dir, by_root=self._host.idmap.kind == "root")
        rows = _enforcement(self._policy, self.cgroup, self._host, self._disk)
        self.enforcement = settle_enforcement(self._policy, rows)
        launch = asyncio.ensure_future(self._launch(restore))
        try:
            await asyncio.shield(launch)
        except asyncio.CancelledError:
            # A bubblewrap that dies of our closed pipe leaves a first process that waits for ever:
            # take its id first (a moment, at most the deadline of a start), `stop` then kills it.
            await asyncio.wait({launch})
            raise
        shell = self._shell
        assert shell is not None
        await shell.begin(self._policy.working_dir)
        root = os.open(f"/proc/{self._fds['init_pid']}/root", os.O_PATH | os.O_CLOEXEC)
        self._fds["root"] = root
        self.tree = ProcessTree(root)
        shell.watch(self.tree)
        self._meter(limits.memory_bytes)
        # Not at once: the fork would take the processor from the first command.
        asyncio.get_running_loop().call_later(_AHEAD_S, self._host.prepare_ahead)
        if limits.wall_s is not None:
            loop = asyncio.get_running_loop()
            self._end = loop.call_later(limits.wall_s, self._expire, limits.wall_s)

    async def run(self, command: str, timeout_s: float) -> Any:
        assert self._shell is not None
        assert self._gauge is not None
        self._gauge.begin()
        run = await self._shell.run(command, timeout_s)
        self.use = self._gauge.end()
        return run

    def life(self) -> Use:
        """What was used since the start."""
        return Use() if self._gauge is None else self._gauge.life()

    async def save(self, host: BubblewrapHost, target: Path, state: Mapping[str, str]) -> None:
        """One tar: the state as its first member, then what GNU tar makes of the upper layers."""
        tree = self.tree
        assert tree is not None
        assert self._shell is not None
        data = json.dumps(state).encode()
        info = tarfile.TarInfo(_STATE_NAME)
        info.size = len(data)
        partial = target.with_name(target.name + ".partial")
        out = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.write(out, info.tobuf() + data + bytes(-len(data) % 512))
            words = ["tar", "-c", "--sparse", "--xattrs", "--xattrs-include=*", "--numeric-owner"]
            words += ["--anchored", "--no-wildcards-match-slash", "--exclude=./*/work"]
            words += ["--exclude=./lost+found"]  # of an ext4 image: the inside has no id to read it
            words += [f"--exclude=./root/upper{_OUTPUT_DIR}", "-f", "-", "."]
            disk = Path(f"/proc/self/fd/{self._fds['disk']}")
            with tree.held_still({1, self._shell.pid}):
                status, complaint = await host.launcher.run_mapped(
                    words, disk, stdin=null, stdout=out, userns=self._fds["userns"]
                )
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        finally:
            os.close(out)
            os.close(null)
        if status not in (0, 1):  # 1: a file changed while it was read
            partial.unlink(missing_ok=True)
            raise SandboxFileError(str(target), f"the sandbox was not kept: {complaint[-300:]}")
        partial.replace(target)

    def drain_egress(self) -> list[EgressRecord]:
        return [] if self._egress is None else self._egress.drain_records()

    def disk_bytes(self) -> int | None:
        fd = self._fds.get("disk")
        if fd is None:
            return None
        return _written_bytes(fd)

    async def stop(self) -> None:
        """Kill by the first process, wait until it is gone, and remove every trace."""
        if self._stopped:
            return
        self._stopped = True
        loop = asyncio.get_running_loop()
        if self._end is not None:
            self._end.cancel()
        if not self._died.done():
            self._died.set_result(SandboxDied(DeathCause.CLOSED, "it was closed"))
        pidfd = self._fds.get("init")
        if pidfd is not None:
            loop.remove_reader(pidfd)
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            # Only a process stuck in the kernel outlives this; it must not hang a close.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(_until_readable(pidfd), _STOP_S)
        if self._egress is not None:
            await self._egress.close()
        if self._watchdog is not None:
            await self._watchdog.close()
        if self._gauge is not None:
            self._gauge.close()
        self.files.close()
        if self._shell is not None:
            self._shell.close()
        if self.tree is not None:
            self.tree.close()
        for name, fd in self._fds.items():
            if name != "init_pid":
                os.close(fd)
        self._fds = {}
        if self.cgroup is not None:
            if self._ahead:  # it never got its request
                self._host.launcher.tell({"op": "leave", "ahead": self._ahead})
            await self.cgroup.remove()
        shutil.rmtree(self._folder, ignore_errors=True)

    # --- starting -------------------------------------------------------------------------------

    async def _launch(self, restore: Path | None) -> None:
        opened = _Descriptors()
        try:
            info, channel = await self._send_request(restore, opened)
            try:
                await self._take_what_was_made(channel, info)
            finally:
                channel.close()
        except (LauncherReply, OSError, ValueError, TimeoutError) as exc:
            raise _start_failure(exc, self._fds.get("errors", -1)) from exc
        finally:
            opened.close()

    async def _send_request(
        self, restore: Path | None, opened: _Descriptors
    ) -> tuple[int, Channel]:
        """Ask the launcher for a start; returns where bubblewrap reports, and the channel."""
        limits = self._policy.limits
        info_r, info_w = opened.pipe()
        commands_r, commands_w = opened.pipe()
        keeper_r, keeper_w = opened.pipe()
        errors_r, errors_w = opened.pipe()
        filter_fd = opened.add(_memory_file(build_filter(platform.machine())))
        handed = [info_w, commands_r, keeper_r, filter_fd, errors_w]
        if restore is not None:
            handed.append(opened.add(os.open(restore, os.O_RDONLY | os.O_CLOEXEC)))
        if self._disk is Disk.IMAGE:
            assert limits.disk_bytes is not None
            handed.append(opened.add(await make_image(self._spool_dir, limits.disk_bytes)))
        self._shell = Shell(self.control, self._spool_dir, commands_w, keeper_w, limits, self._died)
        opened.give(commands_w, keeper_w)
        self._fds["errors"] = errors_r
        opened.give(errors_r)
        channel = self._host.launcher.request(self._request(restore is not None), handed)
        self._ahead = ""
        for fd in handed:
            opened.give(fd)
            os.close(fd)
        return info_r, channel

    async def _take_what_was_made(self, channel: Channel, info: int) -> None:
        _, fds = await channel.receive(_START_S)
        self._fds["disk"] = fds[0]
        if len(fds) > 1 and self._make_egress is not None:
            self._egress = self._make_egress(socket.socket(fileno=fds[1]))
            await self._egress.start()
        pid = await asyncio.wait_for(_child_pid(info), _START_S)
        self._fds["init"] = os.pidfd_open(pid)
        self._fds["init_pid"] = pid
        self._fds["userns"] = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        asyncio.get_running_loop().add_reader(self._fds["init"], self._on_init_gone)
        self._record_init(pid)

    def _request(self, restoring: bool) -> dict[str, Any]:
        limits = self._policy.limits
        binds = {"control": str(self.control)}
        if not self._host.bwrap_is_of_system:
            binds["bwrap"] = str(Path(self._host.bwrap).parents[2])
        binds |= {f"lower{n}": str(path) for n, path in enumerate(self._root.lowers)}
        for n, (_, folders) in enumerate(self._root.overlays.items()):
            binds |= {f"over{n}-{m}": str(path) for m, path in enumerate(folders)}
        binds |= {f"mount{n}": mount.source for n, mount in enumerate(self._policy.mounts)}
        uppers = ["root", *(f"over{n}" for n in range(len(self._root.overlays)))]
        return {
            "op": "start",
            "idmap": asdict(self._host.idmap),
            "own_user_namespace": not _has(self.cgroup, "pids"),
            "cgroup_procs": [] if self.cgroup is None or self._ahead else self.cgroup.procs,
            "ahead": self._ahead,
            "binds": binds,
            "uppers": uppers,
            "whiteouts": self._whiteouts(),
            "mount_points": self._mount_points(),
            "disk_bytes": None
            if self._disk is Disk.IMAGE
            else tmpfs_bytes(limits, counted=_has(self.cgroup, "memory")),
            "disk_image": self._disk is Disk.IMAGE,
            "listen": self._policy.network.mode is not NetworkMode.NONE,
            "rlimits": _rlimits(limits, self.cgroup),
            "restore": restoring,
            "argv": self._argv(),
        }

    def _mount_points(self) -> list[str]:
        made = ["/proc", "/dev", CONTROL_DIR, self._policy.working_dir]
        return made + [mount.target for mount in self._policy.mounts] + list(self._root.overlays)

    def _whiteouts(self) -> list[str]:
        return [
            f"over{n}/upper/{path.removeprefix(top + '/')}"
            for n, top in enumerate(self._root.overlays)
            for path in self._root.hidden
            if path.startswith(top + "/")
        ]

    def _argv(self) -> list[str]:
        program = self._host.bwrap
        if not self._host.bwrap_is_of_system:  # with its libraries beside it, as the wheel has it
            program = "/".join(("/tmp/bwrap", *Path(program).parts[-3:]))
        argv = [program, "--unshare-ipc", "--unshare-pid", "--unshare-uts"]
        argv += ["--unshare-cgroup-try", "--as-pid-1", "--new-session", "--die-with-parent"]
        argv += ["--hostname", "sandlot", "--clearenv"]
        for name, value in self._environment.items():
            argv += ["--setenv", name, value]
        for n in range(len(self._root.lowers)):
            argv += ["--overlay-src", f"/tmp/lower{n}"]
        argv += ["--overlay", "/tmp/disk/root/upper", "/tmp/disk/root/work", "/"]
        for n, (top, folders) in enumerate(self._root.overlays.items()):
            for m in range(len(folders)):
                argv += ["--overlay-src", f"/tmp/over{n}-{m}"]
            argv += ["--overlay", f"/tmp/disk/over{n}/upper", f"/tmp/disk/over{n}/work", top]
        argv += ["--proc", "/proc", "--dev", "/dev"]
        argv += ["--size", str(_shared_memory_bytes(self._policy.limits))]
        argv += ["--tmpfs", "/dev/shm", "--remount-ro", "/dev"]
        for n, mount in enumerate(self._policy.mounts):
            argv += ["--bind" if mount.writable else "--ro-bind", f"/tmp/mount{n}", mount.target]
        argv += ["--ro-bind", "/tmp/control", CONTROL_DIR, "--dir", self._policy.working_dir]
        argv += ["--cap-drop", "ALL"]
        for capability in _CAPABILITIES:
            argv += ["--cap-add", capability]
        argv += ["--seccomp", "5", "--info-fd", "4", "--chdir", "/"]
        return [*argv, "--", "/bin/sh", f"{CONTROL_DIR}/keeper"]

    def _record_init(self, pid: int) -> None:
        record = json.dumps({"pid": pid, "ticks": _ticks(pid)})
        (self._folder / "init.json").write_text(record)

    # --- living ---------------------------------------------------------------------------------

    def _open_files(self) -> Channel:
        if "root" not in self._fds:
            raise SandboxDied(DeathCause.CLOSED, "it was closed")
        fds = [self._fds["root"], self._fds["userns"]]
        return self._host.launcher.request({"op": "files"}, fds)

    def _on_init_gone(self) -> None:
        asyncio.get_running_loop().remove_reader(self._fds["init"])
        if self._died.done():
            return
        # Since the last command began: an earlier kill is no cause of this death.
        oom = self._gauge is not None and self._gauge.end().memory_kills > 0
        cause = DeathCause.OUT_OF_MEMORY if oom else DeathCause.KILLED
        detail = "the memory limit was reached" if oom else "its first process ended"
        self._died.set_result(SandboxDied(cause, detail))

    def _expire(self, wall_s: float) -> None:
        self._end_life(DeathCause.TIME_LIMIT, f"its {wall_s:g} s of wall time are over")

    def _end_life(self, cause: DeathCause, detail: str) -> None:
        if not self._died.done():
            self._died.set_result(SandboxDied(cause, detail))
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._fds["init"], signal.SIGKILL)

    def _meter(self, memory_bytes: int | None) -> None:
        """Measure by the control group; where none counts memory, watch the processes' sum."""
        shell, tree, root = self._shell, self.tree, self._fds["root"]
        assert shell is not None
        assert tree is not None
        if memory_bytes is not None and not _has(self.cgroup, "memory"):
            shm = self._fds["shm"] = os.open("dev/shm", os.O_PATH | os.O_CLOEXEC, dir_fd=root)
            self._watchdog = MemoryWatchdog(
                root,
                tree,
                memory_bytes,
                files_bytes=lambda: _written_bytes(shm),  # the rest has the disk limit
                spared=lambda: {1, shell.pid},
                exhausted=lambda: self._end_life(DeathCause.OUT_OF_MEMORY, _OVER_AND_OVER),
            )
            self._watchdog.start()
        self._gauge = CommandGauge(self.cgroup, self._watchdog)


class _Descriptors:
    """Open descriptors that are closed together, but for those that were given away."""

    def __init__(self) -> None:
        self._fds: list[int] = []

    def add(self, fd: int) -> int:
        self._fds.append(fd)
        return fd

    def pipe(self) -> tuple[int, int]:
        read_end, write_end = os.pipe()
        return self.add(read_end), self.add(write_end)

    def give(self, *fds: int) -> None:
        for fd in fds:
            self._fds.remove(fd)

    def close(self) -> None:
        for fd in self._fds:
            os.close(fd)
        self._fds = []


def refuse_unenforceable(policy: Policy, host: BubblewrapHost, spool_dir: Path) -> None:
    """What a start would refuse of the policy, before anything is built for it.

    Raises:
        PolicyNotEnforceable: see `settle_enforcement`.
    """
    tops = host.cgroups
    group = None if tops is None else Cgroup(tops.version, dict(tops.tops))
    disk = choose_disk(policy.limits, spool_dir, by_root=host.idmap.kind == "root")
    settle_enforcement(policy, _enforcement(policy, group, host, disk))


def _read_state(source: Path) -> dict[str, str]:
    """The first member of a kept sandbox; the rest of the tar is not looked at."""
    try:
        with tarfile.open(source, "r:") as tar:
            first = tar.next()
            member = tar.extractfile(first) if first and first.name == _STATE_NAME else None
            state = json.load(member) if member else {}
            return {name: str(state[name]) for name in ("working_dir", "exports")}
    except (OSError, KeyError, ValueError, tarfile.TarError) as exc:
        raise SandboxFileError(str(source), "is not a kept sandbox, or is damaged") from exc


def _has(group: Cgroup | None, controller: str) -> bool:
    return group is not None and group.controls(controller)


def _shared_memory_bytes(limits: Limits) -> int:
    """Small beside the memory limit, which it counts to: filling it must not end the sandbox."""
    most = 64 * MIB
    return most if limits.memory_bytes is None else min(most, limits.memory_bytes // 4)


def _rlimits(limits: Limits, group: Cgroup | None) -> dict[str, int]:
    # Queued signals and message queues are counted for each user of the machine, not inside.
    values = {"RLIMIT_CORE": 0, "RLIMIT_SIGPENDING": 1024, "RLIMIT_MSGQUEUE": 819_200}
    if limits.open_files is not None:
        values["RLIMIT_NOFILE"] = limits.open_files
    if limits.file_bytes is not None:
        values["RLIMIT_FSIZE"] = limits.file_bytes
    if limits.memory_bytes is not None and not _has(group, "memory"):
        values["RLIMIT_DATA"] = limits.memory_bytes
    if limits.processes is not None and not _has(group, "pids"):
        values["RLIMIT_NPROC"] = limits.processes
    return values


def _enforcement(
    policy: Policy, group: Cgroup | None, host: BubblewrapHost, disk: Disk
) -> tuple[Enforcement, ...]:
    limits, version = policy.limits, None if group is None else group.version
    own = f"cgroup v{version}"
    rows = [
        Enforcement("files", "mount namespace, overlay", True),
        Enforcement("ids", f"user namespace, {host.idmap.count} ids", True, "; ".join(host.notes)),
        Enforcement("system calls", "seccomp, capabilities, no_new_privs", True),
        Enforcement("network", f"network namespace, {policy.network.mode.value}", True),
    ]
    if limits.memory_bytes is not None:
        if limits.memory_bytes > machine_memory():
            note = f"this machine has {machine_memory() / GIB:.1f} GiB in all"
            rows.append(
                Enforcement("memory", own if _has(group, "memory") else "none", False, note)
            )
        elif _has(group, "memory"):
            rows.append(Enforcement("memory", own, True, "files written inside count too"))
        else:
            rows.append(
                Enforcement(
                    "memory",
                    "rlimit for each process, watchdog for the sum",
                    False,
                    "best effort: memory outside of processes is not seen",
                )
            )
    if limits.processes is not None:
        means = own if _has(group, "pids") else "rlimit in its own user namespace"
        holds = _has(group, "pids") or os.getuid() != 0
        rows.append(Enforcement("processes", means, holds))
    if limits.cpus is not None:
        holds = _has(group, "cpu")
        rows.append(Enforcement("cpus", own if holds else "none", holds))
    if limits.disk_bytes is not None:
        rows.append(disk_row(disk, limits, counted=_has(group, "memory")))
    if limits.open_files is not None:
        rows.append(Enforcement("open files", "rlimit for each process", True))
    if limits.file_bytes is not None:
        rows.append(Enforcement("file size", "rlimit for each process", True))
    if limits.wall_s is not None:
        rows.append(Enforcement("wall time", "timer of the host", True))
    rows.append(Enforcement("output", "bounded while read", True))
    return tuple(rows)


def _exhausted(exc: OSError) -> SandboxDied:
    """The host could not carry a command: out of descriptors, or its disk is full."""
    full = exc.errno in (errno.ENOSPC, errno.EDQUOT)
    cause = DeathCause.DISK_FULL if full else DeathCause.HOST_EXHAUSTED
    where = f" at {exc.filename}" if exc.filename else ""
    return SandboxDied(cause, f"this machine refused: {exc.strerror}{where}")


def _memory_file(data: bytes) -> int:
    fd = os.memfd_create("sandlot-filter", os.MFD_CLOEXEC)
    os.write(fd, data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _written_bytes(fd: int) -> int:
    status = os.fstatvfs(fd)
    return (status.f_blocks - status.f_bfree) * status.f_frsize


async def _until_readable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(fd, settle, ready)
    try:
        await ready
    finally:
        loop.remove_reader(fd)


async def _child_pid(fd: int) -> int:
    """bubblewrap writes its JSON in pieces: read to the closing brace."""
    text = b""
    while b"}" not in text:
        await _until_readable(fd)
        data = os.read(fd, 4096)
        if not data:
            raise ValueError("bubblewrap ended before the sandbox began")
        text += data
    return int(json.loads(text)["child-pid"])


def _start_failure(exc: BaseException, errors_fd: int) -> SandboxUnavailable:
    said = ""
    if errors_fd >= 0:
        os.set_blocking(errors_fd, False)
        with contextlib.suppress(BlockingIOError):
            said = os.read(errors_fd, 4096).decode("utf-8", "replace").strip()
    reason = said or (exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc))
    return SandboxUnavailable(
        f"bubblewrap could not start a sandbox: {reason}. `sandlot doctor` names the remedy"
    )
