"""The backend `restricted`: where namespaces are denied and no engine answers, and only if asked.

The guest program of the container backends runs as an ordinary process of this machine, confined by
Landlock, two system-call filters and rlimits below a supervisor (`restricted_launch`). It is weaker
than every other backend, and says so in `enforcement`, by `progress` at the start and in reports.

There is no root of its own: what other backends show as `/testbed`, `/root` and `/tmp` are folders
of one private folder, and `RestrictedSandbox.relocated` gives the real path of each.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import io
import json
import os
import platform
import pwd
import re
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from sandlot.core.errors import (
    DeathCause,
    ImageError,
    PolicyNotEnforceable,
    SandboxDied,
    SandboxUnavailable,
)
from sandlot.core.types import CollectedFile, EgressRecord, SkippedFile
from sandlot.sandbox import landlock
from sandlot.sandbox.base import (
    ExecResult,
    FileInfo,
    Sandbox,
    SandboxStats,
    absolute,
    base_environment,
)
from sandlot.sandbox.host import Lease, _ticks, list_leases
from sandlot.sandbox.launch import settle
from sandlot.sandbox.policy import Enforcement, NetworkMode, Policy, settle_enforcement
from sandlot.sandbox.restricted_filter import build_restricted_filter, call_numbers
from sandlot.sandbox.seccomp import build_filter

if TYPE_CHECKING:
    from sandlot.sandbox.credentials import CredentialWall
    from sandlot.sandbox.egress import EgressProxy
    from sandlot.sandbox.guest_session import GuestSession
    from sandlot.sandbox.hostconfig import HostConfig

_LAUNCH = Path(__file__).with_name("restricted_launch.py")
_START_S = 30.0
_STOP_S = 15.0
_MOVED = ("/testbed", "/root", "/tmp")
_PROGRAMS = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_READABLE = ("/proc", "/sys/devices/system/cpu")
_DEVICES = ("null", "zero", "full", "random", "urandom")
_OWN_IDS = ((0x70000000, 1 << 24), (40_000, 20_000))  # first and number, tried in this order
_CAP_CHOWN, _CAP_SETGID, _CAP_SETUID = 0, 6, 7


@dataclass(frozen=True, slots=True)
class Ground:
    """What this machine allows: the Landlock version, and a user id of the sandbox's own or None.

    `abi` may be set lower than the kernel's, to try what an older kernel would hold.
    """

    abi: int
    uid: int | None

    @property
    def own_id(self) -> bool:
        return self.uid is not None

    @property
    def brokers_signals(self) -> bool:
        return self.abi < 6 and not self.own_id


def survey(*, most_abi: int | None = None) -> Ground:
    """Raises SandboxUnavailable: a kernel without Landlock, or an architecture without a table."""
    call_numbers(platform.machine())
    found = landlock.abi() if sys.platform == "linux" else 0
    if found == 0:
        raise SandboxUnavailable(
            "backend 'restricted' needs Landlock, which this kernel lacks or has switched off "
            "(Linux 5.13 or newer; `landlock` must stand in /sys/kernel/security/lsm)"
        )
    return Ground(found if most_abi is None else min(found, most_abi), _own_id())


class RestrictedSandbox:
    """See `sandbox.base` for the contract, and `enforcement` for what of it does not hold.

    Isolated: writing outside of the private folder, reading home folders and other processes'
    memory, every network connection but those through the egress proxy, signals to others.
    Not isolated: programs and configuration of this machine that its user may read, names and
    sizes of all files, command lines of all processes, the process table, host name and time.
    """

    backend = "restricted"

    def __init__(
        self,
        policy: Policy,
        *,
        ground: Ground,
        state: Path,
        config: HostConfig,
        progress: Callable[[str], None],
        wall: CredentialWall | None = None,
    ) -> None:
        self._lease_dir = private_folders(state, ground) / secrets.token_hex(6)
        self.base = self._lease_dir / "files"
        self._inside = dict.fromkeys((policy.working_dir, *_MOVED))
        self.policy = replace(policy, working_dir=self.relocated(policy.working_dir))
        self._asked_policy = policy
        self._ground = ground
        self._state = state
        self._config = config
        self._progress = progress
        self._wall = wall
        self._life: _Life | None = None
        self._death: SandboxDied | None = None
        self._closing: asyncio.Task[None] | None = None
        self._enforcement: tuple[Enforcement, ...] = ()
        self._old_records: list[EgressRecord] = []

    @property
    def _folders(self) -> list[str]:
        return [self.relocated(top) for top in self._inside]

    @property
    def enforcement(self) -> tuple[Enforcement, ...]:
        return self._enforcement

    def relocated(self, path: str) -> str:
        """Where something lies that other backends have below /testbed, /root or /tmp."""
        if path == str(self.base) or path.startswith(f"{self.base}/"):
            return path
        for top in self._inside:
            if path == top or path.startswith(top.rstrip("/") + "/"):
                return f"{self.base}{path}"
        return path

    async def start(self) -> None:
        if self.policy.mounts:
            raise PolicyNotEnforceable(
                "backend 'restricted' cannot show mounted folders; copy them in with --input"
            )
        rows = enforcement_of(self.policy, self._ground)
        self._enforcement = settle_enforcement(self.policy, rows)
        weak = [row for row in self._enforcement if not row.holds]
        self._progress(f"backend 'restricted' does not hold: {_named(weak)}")
        try:
            self._life = _Life(
                self.policy, self._ground, self._lease_dir, self._state, self._environment()
            )
            await self._life.start(self._config, self._folders, self._wall)
        except BaseException:
            await asyncio.shield(self.close())
            raise

    async def exec(self, command: str, timeout_s: float | None = None) -> ExecResult:
        return await self._session().exec(command, timeout_s)

    async def read_file(self, path: str, *, limit_bytes: int | None = None) -> bytes:
        return await self._session().read_file(self._absolute(path), limit_bytes=limit_bytes)

    async def write_file(self, path: str, data: bytes, *, exclusive: bool = False) -> None:
        await self._session().write_file(self._absolute(path), data, exclusive=exclusive)

    async def stat(self, path: str) -> FileInfo:
        return await self._session().stat(self._absolute(path))

    async def list_dir(self, path: str) -> list[FileInfo]:
        return await self._session().list_dir(self._absolute(path))

    async def upload(self, source: Path, target: str) -> int:
        return await self._session().upload(source, self._absolute(target))

    async def collect(
        self, paths: Sequence[str], into: Path
    ) -> tuple[list[CollectedFile], list[SkippedFile]]:
        return await self._session().collect([self._absolute(path) for path in paths], into)

    async def snapshot(self, target: Path) -> None:
        await self._session().snapshot(target, self._folders)

    async def restore(self, source: Path) -> None:
        """Paths are rewritten to this sandbox's folder; what files hold of the old one is not."""
        with tempfile.TemporaryDirectory(dir=self._state, prefix="restore-") as folder:
            moved = Path(folder, "state")
            await asyncio.to_thread(move_state, source, moved, str(self.base))
            await self._session().restore(moved, clear=self._folders)

    async def fork(self) -> Sandbox:
        twin = RestrictedSandbox(
            self._asked_policy,
            ground=replace(self._ground, uid=_own_id() if self._ground.own_id else None),
            state=self._state,
            config=self._config,
            progress=lambda _: None,
            wall=self._wall,
        )
        kept = self._lease_dir / f"fork-{secrets.token_hex(4)}"
        try:
            await self.snapshot(kept)
            await twin.start()
            await twin.restore(kept)
        except BaseException:
            await asyncio.shield(twin.close())
            raise
        finally:
            kept.unlink(missing_ok=True)
        return twin

    def egress(self) -> list[EgressRecord]:
        records, self._old_records = self._old_records, []
        return records + ([] if self._life is None else self._life.drain_egress())

    async def stats(self) -> SandboxStats:
        return await self._alive().stats()

    async def close(self) -> None:
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close())
        await asyncio.shield(self._closing)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def _close(self) -> None:
        if self._life is not None:
            await self._life.stop()
            self._old_records += self._life.drain_egress()

    def _alive(self) -> _Life:
        if self._life is None or self._closing is not None:
            detail = "it was not started" if self._closing is None else "it was closed"
            raise SandboxDied(DeathCause.CLOSED, detail)
        return self._life

    def _session(self) -> GuestSession:
        session = self._alive().session
        if session is None:
            raise SandboxDied(DeathCause.CLOSED, "it was not started")
        return session

    def _absolute(self, path: str) -> str:
        return self.relocated(absolute(path, self.policy.working_dir))

    def _environment(self) -> dict[str, str]:
        home = self.relocated("/root")
        base = base_environment(self.policy)
        own = {"HOME": home, "TMPDIR": self.relocated("/tmp"), "USER": "sandlot"}
        own |= {"LOGNAME": "sandlot", "PATH": f"{home}/.local/bin:{base['PATH']}"}
        carried = {
            name: f"{self.base}{value}" if value in self._config.files else value
            for name, value in self._config.environment.items()
        }
        if "/etc/pip.conf" in self._config.files:
            carried["PIP_CONFIG_FILE"] = f"{self.base}/etc/pip.conf"
        return {**base, **own, **carried, **self.policy.environment}


class _Life:
    """One run of the supervisor: from its start to the last process and file gone."""

    def __init__(
        self,
        policy: Policy,
        ground: Ground,
        lease_dir: Path,
        spool_dir: Path,
        environment: dict[str, str],
    ) -> None:
        self._policy = policy
        self._ground = ground
        self._folder = lease_dir
        self._base = lease_dir / "files"
        self._spool_dir = spool_dir
        self._environment = environment
        self._died: asyncio.Future[SandboxDied] = asyncio.get_running_loop().create_future()
        self._died.add_done_callback(lambda _: self._tell_the_end())
        self._control: _Control | None = None
        self._stream: _Pipes | None = None
        self._egress: EgressProxy | None = None
        self._supervisor: subprocess.Popen[bytes] | None = None
        self._lock = -1
        self._end: asyncio.TimerHandle | None = None
        self._stopped = False
        self.session: GuestSession | None = None

    async def start(
        self, config: HostConfig, folders: Sequence[str], wall: CredentialWall | None
    ) -> None:
        from sandlot.sandbox.guest_session import GUEST_COMMAND, GuestSession

        _make_folder(self._folder)
        self._lock = _write_lease(self._folder)
        proxy = await self._open_proxy(config, wall)
        program, reading = find_python()
        argv = [program, *GUEST_COMMAND[1:]]
        request = self._request(argv, folders, proxy, reading)
        self._write_config(config)
        self._begin(request)
        assert self._control is not None
        assert self._stream is not None
        answer = await self._control.ask(request, _START_S)
        if "guest" not in answer:
            reason = answer.get("error", "its supervisor ended")
            raise SandboxUnavailable(f"no restricted sandbox could be started: {reason}")
        self._record(answer["guest"])
        self.session = GuestSession(
            self._stream,
            self._policy,
            self._environment,
            spool_dir=self._spool_dir,
            died=self._died,
            output_dir=f"{self._environment['TMPDIR']}/.sandlot",
            control_dirs=(str(self._base),),
        )
        self._control.watch(self._on_message)
        await self.session.start()
        if self._policy.limits.wall_s is not None:
            wall_s = self._policy.limits.wall_s
            self._end = asyncio.get_running_loop().call_later(wall_s, self._expire, wall_s)

    async def stats(self) -> SandboxStats:
        assert self._control is not None
        use = await self._control.ask({"op": "usage"}, _STOP_S)
        return SandboxStats(processes=use.get("processes"), disk_bytes=use.get("disk_bytes"))

    def drain_egress(self) -> list[EgressRecord]:
        return [] if self._egress is None else self._egress.drain_records()

    async def stop(self) -> None:
        """End the supervisor, which ends everything inside; then look whether it did."""
        if self._stopped:
            return
        self._stopped = True
        if self._end is not None:
            self._end.cancel()
        self._die(DeathCause.CLOSED, "it was closed")
        if self.session is not None:
            await self.session.close()
        if self._control is not None:
            self._control.close()
        if self._supervisor is not None:
            await self._await_supervisor(self._supervisor)
        if self._stream is not None:
            await self._stream.close()
        if self._egress is not None:
            await self._egress.close()
        if self._lock >= 0:
            await asyncio.to_thread(_clear, self._folder)
            os.close(self._lock)

    # --- starting -------------------------------------------------------------------------------

    async def _open_proxy(
        self, config: HostConfig, wall: CredentialWall | None
    ) -> tuple[str, int] | None:
        from sandlot.sandbox.egress import EgressProxy
        from sandlot.sandbox.hostconfig import proxy_environment

        network = self._policy.network
        if network.mode is NetworkMode.NONE:
            return None
        listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        token = secrets.token_urlsafe(24)
        hosts = config.package_hosts
        self._egress = EgressProxy(listener, network, hosts, token=token, wall=wall)
        await self._egress.start()
        where: tuple[str, int] = listener.getsockname()
        plain, secret = f"//{where[0]}:{where[1]}", f"//sandlot:{token}@{where[0]}:{where[1]}"
        for name, value in proxy_environment(where[1]).items():
            self._environment.setdefault(name, value.replace(plain, secret))
        return where

    def _write_config(self, config: HostConfig) -> None:
        """The machine's package settings, in the private folder and pointing into it."""
        self._base.mkdir(mode=0o755)
        places = {path: f"{self._base}{path}" for path in config.files}
        for path, content in config.files.items():
            for old, new in places.items():
                content = content.replace(old.encode(), new.encode())
            target = Path(places[path])
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)

    def _begin(self, request: Mapping[str, Any]) -> None:
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (near, far):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        inner_in, our_out = os.pipe()
        our_in, inner_out = os.pipe()
        self._control = _Control(near)
        self._stream = _Pipes(our_in, our_out)
        errors = os.open(self._folder / "errors", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            self._supervisor = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_LAUNCH), str(far.fileno())],
                stdin=inner_in,
                stdout=inner_out,
                stderr=errors,
                pass_fds=(far.fileno(), self._lock),
                start_new_session=True,
                env={"PATH": os.defpath},
            )
        finally:
            far.close()
            for fd in (inner_in, inner_out, errors):
                os.close(fd)

    def _request(
        self,
        argv: Sequence[str],
        folders: Sequence[str],
        proxy: tuple[str, int] | None,
        reading: Sequence[str],
    ) -> dict[str, Any]:
        machine, limits, ground = platform.machine(), self._policy.limits, self._ground
        second = build_restricted_filter(
            machine,
            inet=proxy is not None,
            own_id=ground.own_id,
            signals=ground.brokers_signals,
            truncate=ground.abi < 3,
        )
        return {
            "base": str(self._base),
            "folders": list(folders),
            "working_dir": self._policy.working_dir,
            "machine": machine,
            "uid": ground.uid,
            "abi": ground.abi,
            "rules": [*_rules(reading, ground), (str(self._base), landlock.OWN)],
            "filters": [build_filter(machine).hex(), second.hex()],
            "calls": call_numbers(machine),
            "rlimits": _rlimits(self._policy, ground),
            "memory_bytes": limits.memory_bytes,
            "disk_bytes": limits.disk_bytes,
            "proxy": proxy,
            "argv": list(argv),
            "environment": {"PATH": self._environment["PATH"], "HOME": self._environment["HOME"]},
        }

    def _record(self, guest: int) -> None:
        """For reaping where the supervisor was killed too; the guest ends with it by itself."""
        box = self._folder / "box"
        box.mkdir(mode=0o700)
        record = {"pid": guest, "ticks": _ticks(guest), "uid": self._ground.uid}
        (box / "init.json").write_text(json.dumps(record))

    # --- living ---------------------------------------------------------------------------------

    def _on_message(self, message: Mapping[str, Any]) -> None:
        if "died" in message:
            self._die(DeathCause(message["died"]), message.get("detail", ""))
        elif not message:
            self._die(DeathCause.KILLED, "its guest or its supervisor ended")

    def _expire(self, wall_s: float) -> None:
        self._die(DeathCause.TIME_LIMIT, f"its {wall_s:g} s of wall time are over")

    def _die(self, cause: DeathCause, detail: str) -> None:
        """The cause for those who wait; whoever sets it, the supervisor then ends it all."""
        if not self._died.done():
            self._died.set_result(SandboxDied(cause, detail))

    def _tell_the_end(self) -> None:
        if self._control is not None:
            self._control.tell({"op": "end"})

    async def _await_supervisor(self, supervisor: subprocess.Popen[bytes]) -> None:
        try:
            await asyncio.to_thread(supervisor.wait, _STOP_S)
        except subprocess.TimeoutExpired:  # only processes stuck in the kernel hold it up
            supervisor.kill()
            await asyncio.to_thread(supervisor.wait)


class _Control:
    """Messages to and from the supervisor. An empty message is its end."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._waiting: asyncio.Future[dict[str, Any]] | None = None
        self._listener: Callable[[Mapping[str, Any]], None] = lambda _: None
        self._lock = asyncio.Lock()
        self._open = True
        asyncio.get_running_loop().add_reader(sock, self._read)

    def watch(self, listener: Callable[[Mapping[str, Any]], None]) -> None:
        """Who is told what was not asked for."""
        self._listener = listener
        if not self._open:
            listener({})

    def tell(self, message: Mapping[str, Any]) -> None:
        if self._open:
            with contextlib.suppress(OSError):  # it is gone, which its end will tell
                self._sock.send(json.dumps(message).encode())

    async def ask(self, message: Mapping[str, Any], within_s: float) -> dict[str, Any]:
        """The next message after this one; an empty one where none comes any more."""
        async with self._lock:
            if not self._open:
                return {}
            self._waiting = asyncio.get_running_loop().create_future()
            self.tell(message)
            try:
                return await asyncio.wait_for(self._waiting, within_s)
            except TimeoutError:
                return {}
            finally:
                self._waiting = None

    def close(self) -> None:
        if self._open:
            self._open = False
            asyncio.get_running_loop().remove_reader(self._sock)
        self._sock.close()

    def _read(self) -> None:
        try:
            data = self._sock.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        message: dict[str, Any] = json.loads(data) if data else {}
        if not data:
            self._open = False
            asyncio.get_running_loop().remove_reader(self._sock)
        if self._waiting is not None and not self._waiting.done() and "died" not in message:
            self._waiting.set_result(message)
        else:
            self._listener(message)


class _Pipes:
    """The guest's stdin and stdout as a `ByteStream`."""

    def __init__(self, source: int, sink: int) -> None:
        for fd in (source, sink):
            os.set_blocking(fd, False)
        self._source = source
        self._sink = sink
        self._writing = asyncio.Lock()

    async def read(self) -> bytes:
        while self._source >= 0:
            try:
                return os.read(self._source, 1 << 18)
            except BlockingIOError:
                await _ready(self._source, writing=False)
        return b""

    async def write(self, data: bytes) -> None:
        view = memoryview(data)
        async with self._writing:
            while view:
                if self._sink < 0:
                    raise BrokenPipeError("closed")
                try:
                    view = view[os.write(self._sink, view) :]
                except BlockingIOError:
                    await _ready(self._sink, writing=True)

    async def close(self) -> None:
        loop = asyncio.get_running_loop()
        for fd in {self._source, self._sink} - {-1}:
            loop.remove_reader(fd)
            loop.remove_writer(fd)
            os.close(fd)
        self._source = self._sink = -1


async def _ready(fd: int, *, writing: bool) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    add, remove = (
        (loop.add_writer, loop.remove_writer) if writing else (loop.add_reader, loop.remove_reader)
    )
    add(fd, settle, ready)
    try:
        await ready
    finally:
        remove(fd)


# --- snapshots ----------------------------------------------------------------------------------


def move_state(source: Path, target: Path, base: str) -> None:
    """Rewrite a snapshot of another private folder into one of `base`.

    Raises:
        SandboxFileError: `source` is no snapshot, or is damaged.
    """
    from sandlot.sandbox.guest_session import read_state

    read_state(source)  # proves that the archive is whole
    with tarfile.open(source, "r:") as old, tarfile.open(target, "w:") as new:
        state, *members = old
        before = _base_of(member.name for member in members)
        data = old.extractfile(state)
        assert data is not None
        text = json.dumps(json.load(data))
        moved = text.replace(json.dumps(before)[1:-1], json.dumps(base)[1:-1]) if before else text
        state.size = len(moved.encode())
        new.addfile(state, io.BytesIO(moved.encode()))
        for member in members:
            content = old.extractfile(member) if member.isreg() else None
            if before:
                member.name = _under(member.name, before, base)
                member.linkname = _under(member.linkname, before, base)
                member.pax_headers = {}
            new.addfile(member, content)


def _base_of(names: Iterable[str]) -> str:
    for name in names:
        found = re.match(r"/?(.*/[0-9a-f]{12}/files)/", f"{name}/")
        if found:
            return "/" + found[1]
    return ""


def _under(path: str, before: str, base: str) -> str:
    slash = path.startswith("/")
    whole = path if slash else f"/{path}"
    if whole != before and not whole.startswith(before + "/"):
        return path
    return (base + whole[len(before) :])[0 if slash else 1 :]


# --- what the machine gives ---------------------------------------------------------------------


def enforcement_of(policy: Policy, ground: Ground) -> list[Enforcement]:
    """Each promise as this backend keeps it; most of those of other backends do not hold."""
    limits = policy.limits
    open_to = "files of /usr and /etc, names and sizes of all files, and command lines are seen"
    files = "; ".join((open_to, *landlock.lacking(ground.abi)))
    rows = [
        Enforcement("files", f"Landlock ABI {ground.abi}, one writable folder", False, files),
        _ids(ground),
        Enforcement("system calls", "two seccomp filters, no capabilities, no_new_privs", True),
        Enforcement(
            "network",
            f"seccomp: no socket but TCP to the egress proxy, {policy.network.mode.value}",
            True,
            "no namespace: addresses and open connections of this machine can be listed",
        ),
    ]
    if limits.memory_bytes is not None:
        means = "rlimit for each process, watchdog for the sum"
        rows.append(Enforcement("memory", means, False, "best effort, looked at 4 times a second"))
    if limits.cpus is not None:
        rows.append(Enforcement("cpus", "none", False))
    if limits.processes is not None:
        note = "" if ground.own_id else "counted with all other processes of this user"
        if not ground.own_id and os.geteuid() == 0:
            note = "the kernel does not count those of root"
        rows.append(Enforcement("processes", "rlimit of the user id", ground.own_id, note))
    if limits.disk_bytes is not None:
        note = "best effort: measured about once a second, then the sandbox ends"
        rows.append(Enforcement("disk", "watchdog, rlimit for each file", False, note))
    if limits.open_files is not None:
        rows.append(Enforcement("open files", "rlimit for each process", True))
    if limits.file_bytes is not None:
        rows.append(Enforcement("file size", "rlimit for each process", True))
    if limits.wall_s is not None:
        rows.append(Enforcement("wall time", "timer of the host", True))
    rows.append(Enforcement("output", "bounded while read", True))
    return rows


def _ids(ground: Ground) -> Enforcement:
    if ground.own_id:
        return Enforcement("ids", "a user id that nobody else has", True)
    if os.geteuid() == 0:
        note = (
            "it runs as root without capabilities: modes of files that it can read may be changed"
        )
        return Enforcement("ids", "none", False, note)
    return Enforcement("ids", "none", False, "it runs as this user")


def _named(rows: Iterable[Enforcement]) -> str:
    return "; ".join(
        f"{row.promise} ({row.note or row.means})" if row.note or row.means else row.promise
        for row in rows
    )


def _own_id() -> int | None:
    """A user id that nobody has, where this process may take one."""
    if os.geteuid() != 0 or not _may_change_ids():
        return None
    for first, number in _OWN_IDS:
        if _mapped("uid_map", first, number) and _mapped("gid_map", first, number):
            for _ in range(100):
                candidate = first + secrets.randbelow(number)
                try:
                    pwd.getpwuid(candidate)
                except KeyError:
                    return candidate
    return None


def _may_change_ids() -> bool:
    status = Path("/proc/self/status").read_text()
    effective = int(status.split("CapEff:")[1].split()[0], 16)
    needed = sum(1 << capability for capability in (_CAP_CHOWN, _CAP_SETGID, _CAP_SETUID))
    try:
        groups = Path("/proc/self/setgroups").read_text().strip()
    except OSError:
        groups = "allow"
    return effective & needed == needed and groups == "allow"


def _mapped(name: str, first: int, number: int) -> bool:
    for line in Path(f"/proc/self/{name}").read_text().splitlines():
        inside, _, count = map(int, line.split())
        if inside <= first and first + number <= inside + count:
            return True
    return False


def find_python() -> tuple[str, tuple[str, ...]]:
    """A Python for the guest, and the folders beyond /usr that it is made of.

    Raises:
        SandboxUnavailable: none that a confined process could run.
    """
    found = shutil.which("python3", path="/usr/local/bin:/usr/bin:/bin")
    if found is not None and os.path.realpath(found).startswith(("/usr/", "/bin/")):
        return found, ()
    own = os.path.realpath(sys.executable)
    folders = (sys.base_prefix, sys.base_exec_prefix)
    if all(_is_public(Path(folder)) for folder in folders):
        return own, folders
    raise SandboxUnavailable(
        "backend 'restricted' needs a python3 in /usr/bin or /usr/local/bin for its guest "
        "(found none). On Debian or Ubuntu: apt-get install python3"
    )


def _is_public(folder: Path) -> bool:
    """Whether every user may pass through to it."""
    return all(part.stat().st_mode & 0o001 for part in (folder, *folder.parents))


def _rules(reading: Sequence[str], ground: Ground) -> list[tuple[str, int]]:
    rules = [(path, landlock.RUN) for path in (*_PROGRAMS, *reading)]
    rules += [(path, landlock.READ) for path in _READABLE]
    rules += [(f"/dev/{name}", landlock.DEVICE) for name in _DEVICES]
    if os.geteuid() != 0 or ground.own_id:
        return [*rules, ("/etc", landlock.RUN)]
    return [*rules, ("/etc", landlock.READ_DIR), *((path, landlock.READ) for path in _public_etc())]


def _public_etc() -> list[str]:
    """The files of /etc that every user may read: root without an id of its own owns the others."""
    found = []
    for folder, _, names in os.walk("/etc"):
        if not os.lstat(folder).st_mode & stat.S_IXOTH:
            continue
        for name in names:
            path = os.path.join(folder, name)
            status = os.lstat(path)
            if stat.S_ISREG(status.st_mode) and status.st_mode & stat.S_IROTH:
                found.append(path)
    return found


def _rlimits(policy: Policy, ground: Ground) -> dict[str, int]:
    limits = policy.limits
    values = {"RLIMIT_CORE": 0, "RLIMIT_MSGQUEUE": 0}
    if limits.open_files is not None:
        values["RLIMIT_NOFILE"] = limits.open_files
    sizes = [size for size in (limits.file_bytes, limits.disk_bytes) if size is not None]
    if sizes:
        values["RLIMIT_FSIZE"] = min(sizes)
    if limits.memory_bytes is not None:
        values["RLIMIT_DATA"] = limits.memory_bytes
    if limits.processes is not None:
        others = 0 if ground.own_id else _threads_of_this_user()
        values["RLIMIT_NPROC"] = limits.processes + others
    return values


def _threads_of_this_user() -> int:
    count = 0
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                if os.stat(f"/proc/{name}").st_uid == os.getuid():
                    count += len(os.listdir(f"/proc/{name}/task"))
    return count


# --- leases -------------------------------------------------------------------------------------


def private_folders(state: Path, ground: Ground) -> Path:
    """Where private folders are made: below the state folder, if the sandbox's id can get there."""
    inside = state / "restricted"
    if not ground.own_id:
        return inside
    state.mkdir(parents=True, exist_ok=True)
    return inside if _is_public(state) else _elsewhere(state)


def _elsewhere(state: Path) -> Path:
    return _shared_top() / hashlib.sha256(bytes(state)).hexdigest()[:12]


def _shared_top() -> Path:
    return Path(f"/var/tmp/sandlot-{os.getuid()}")


def _make_top(top: Path) -> None:
    """Make the folder of private folders; another user may have made its name before.

    Raises:
        SandboxUnavailable: it belongs to somebody else.
    """
    for folder in (top.parent, top):
        folder.mkdir(mode=0o711, parents=True, exist_ok=True)
        status = folder.lstat()
        if status.st_uid != os.getuid() or not stat.S_ISDIR(status.st_mode):
            raise SandboxUnavailable(f"{folder} belongs to somebody else; remove it")


def _make_folder(folder: Path) -> None:
    """The last sandbox of a top removes it, perhaps just now."""
    for last in (False, False, True):
        _make_top(folder.parent)
        try:
            folder.mkdir(mode=0o711)
        except FileNotFoundError:
            if last:
                raise
        else:
            return


def all_leases(state: Path) -> list[Lease]:
    return [
        lease
        for folder in (state / "restricted", _elsewhere(state))
        if folder.is_dir() and folder.stat().st_uid == os.getuid()
        for lease in list_leases(folder)
    ]


def reap(state: Path) -> list[str]:
    """Remove what dead owners left. A supervisor does this itself; this is where it died too."""
    removed = []
    for lease in all_leases(state):
        if not lease.alive:
            killed = _kill_left(lease.folder)
            _clear(lease.folder)
            removed.append(
                f"lease {lease.id} of process {lease.pid}: {killed} processes, its folder"
            )
    return removed


def _kill_left(folder: Path) -> int:
    """The guest by its record; then what has the sandbox's own id, or works in its folder."""
    try:
        record = json.loads((folder / "box" / "init.json").read_text())
    except (OSError, ValueError):
        record = {}
    victims = set()
    if record and _ticks(record["pid"]) == record["ticks"] != 0:
        victims.add(record["pid"])
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            with contextlib.suppress(OSError):
                of_its_id = record.get("uid") == os.stat(f"/proc/{name}").st_uid
                if of_its_id or _works_in(name, folder):
                    victims.add(int(name))
    for pid in victims:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    return len(victims)


def _works_in(pid: str, folder: Path) -> bool:
    base = f"{folder}/files"
    for link in ("cwd", "exe"):
        with contextlib.suppress(OSError):
            if (os.readlink(f"/proc/{pid}/{link}") + "/").startswith(f"{base}/"):
                return True
    return False


def _clear(folder: Path) -> None:
    """Remove a lease's folder, whatever modes were set inside, and its top if it is empty."""
    for words in (
        ["-type", "d", "!", "-perm", "-0700", "-execdir", "chmod", "u+rwx", "{}", ";"],
        ["-delete"],
    ):
        with contextlib.suppress(OSError):
            subprocess.run(
                ["find", str(folder), "-xdev", *words],
                check=False,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
    for top in (folder.parent, _shared_top()):
        with contextlib.suppress(OSError):  # it holds others
            top.rmdir()


def _write_lease(folder: Path) -> int:
    partial = folder / "lease.partial"
    fd = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)
    record = {"pid": os.getpid(), "backend": "restricted", "cgroups": []}
    os.write(fd, json.dumps(record).encode())
    partial.rename(folder / "lease.json")
    return fd


async def open_restricted(
    policy: Policy,
    image: str,
    state: Path,
    config: HostConfig,
    progress: Callable[[str], None],
    *,
    wall: CredentialWall | None = None,
    most_abi: int | None = None,
) -> RestrictedSandbox:
    """A sandbox that is ready to be started.

    Raises:
        SandboxUnavailable: this kernel has no Landlock.
        ImageError: any image but `host`, which alone this backend can show.
    """
    ground = survey(most_abi=most_abi)
    if image != "host":
        raise ImageError(
            f"backend 'restricted' shows this machine's own programs; image {image!r} cannot be "
            "used (--image host)"
        )
    await asyncio.to_thread(reap, state)
    if wall is not None:
        trust = wall.trust(config.ca_bundle)
        config = replace(
            config,
            files={**config.files, **trust.files},
            environment={**config.environment, **trust.environment},
        )
    return RestrictedSandbox(
        policy, ground=ground, state=state, config=config, progress=progress, wall=wall
    )
