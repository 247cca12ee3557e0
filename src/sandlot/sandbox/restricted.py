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
import io
import json
import os
import platform
import re
import secrets
import socket
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
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
from sandlot.sandbox.host import _ticks
from sandlot.sandbox.launch import settle
from sandlot.sandbox.policy import Enforcement, NetworkMode, Policy, settle_enforcement
from sandlot.sandbox.restricted_filter import build_restricted_filter, call_numbers
from sandlot.sandbox.restricted_ground import (
    Ground,
    enforcement_of,
    find_python,
    own_id,
    rlimits_of,
    rules_of,
    survey,
)
from sandlot.sandbox.restricted_lease import (
    clear,
    make_folder,
    private_folders,
    reap,
    write_lease,
)
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
        if self._closing is not None:
            raise SandboxDied(DeathCause.CLOSED, "it was closed")
        if self._life is not None:
            return
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
            ground=replace(self._ground, uid=own_id() if self._ground.own_id else None),
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

        make_folder(self._folder)
        self._lock = write_lease(self._folder)
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
            await asyncio.to_thread(clear, self._folder)
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
            "rules": [*rules_of(reading, ground), (str(self._base), landlock.OWN)],
            "filters": [build_filter(machine).hex(), second.hex()],
            "calls": call_numbers(machine),
            "rlimits": rlimits_of(self._policy, ground),
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


def _named(rows: Iterable[Enforcement]) -> str:
    return "; ".join(
        f"{row.promise} ({row.note or row.means})" if row.note or row.means else row.promise
        for row in rows
    )


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
