"""The backends `docker` and `podman`: a container for each sandbox, driven by a guest inside.

The engine is asked for a container without a network whose first process is ours; everything after
its start goes over the one stream of that process. What ends the stream ends the container, so a
killed harness leaves none running.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import socket
import tempfile
import time
import weakref
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from sandlot.core.errors import (
    DeathCause,
    SandboxDied,
    SandboxError,
    SandboxUnavailable,
)
from sandlot.core.types import CollectedFile, EgressRecord, SkippedFile
from sandlot.sandbox import host as _host
from sandlot.sandbox.base import (
    ExecResult,
    FileInfo,
    Sandbox,
    SandboxStats,
    base_environment,
)
from sandlot.sandbox.engine_api import (
    AttachedStream,
    EngineAddress,
    EngineClient,
    EngineLost,
    EngineRefusal,
    find_address,
)
from sandlot.sandbox.engine_changes import changes_behind_walls, changes_of_container
from sandlot.sandbox.engine_container import (
    MOUNTS_DIR,
    PROXY_DIR,
    PROXY_SOCKET,
    EngineFacts,
    Form,
    container_body,
    enforcement,
    network_is_open,
    stage_request,
)
from sandlot.sandbox.engine_host import (
    EngineHost,
    FormStore,
    ask_facts,
    begin,
    check_runtime,
    create,
    reap_containers,
    reap_engines,
    remove,
    talk,
)
from sandlot.sandbox.engine_images import EngineImage, Progress, prepare_image
from sandlot.sandbox.guest_session import GUEST_COMMAND, GuestSession, read_state
from sandlot.sandbox.hostconfig import HostConfig, apt_settings, proxy_environment, read_host
from sandlot.sandbox.policy import Enforcement, Policy, settle_enforcement

if TYPE_CHECKING:
    from sandlot.sandbox.credentials import CredentialWall
    from sandlot.sandbox.egress import EgressProxy

T = TypeVar("T")
_ASK_S = 5.0
_ENDING_S = 1.5
_CLOSE_S = 10.0
_START_S = 60.0
_PROXY_PORT = 3128


@dataclass(slots=True)
class _SharedEngine:
    """One engine for each event loop, address and lease folder, counted by its sandboxes.

    What was found out about images stays when the last sandbox closes.
    """

    backend: str
    address: EngineAddress
    runtime_dir: Path
    environ: Mapping[str, str]
    runtime: str | None
    cache: Path
    users: int = 0
    facts: EngineFacts | None = None
    forms: FormStore | None = None
    host: EngineHost | None = None
    config: HostConfig | None = None
    images: dict[str, EngineImage] = field(default_factory=dict)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def acquire(self) -> EngineHost:
        async with self.lock:
            if self.host is None:
                client = EngineClient(self.address, self.environ)
                try:
                    self.host = await self._open(client)
                except BaseException:
                    await client.close()
                    raise
            self.users += 1
            return self.host

    async def _open(self, client: EngineClient) -> EngineHost:
        """The first time in a harness the engine is asked what it is, and cleared of leavings."""
        if self.facts is None or self.forms is None:
            facts, engine = await ask_facts(client, self.backend)
            check_runtime(facts, self.runtime)
            await reap_containers(client, self.runtime_dir)
            self.facts, self.forms = facts, FormStore(self.cache / "engines", engine)
        return EngineHost.open(
            self.backend, client, self.runtime_dir, self.runtime, self.facts, self.forms
        )

    async def release(self) -> None:
        async with self.lock:
            self.users -= 1
            if self.users == 0 and self.host is not None:
                host, self.host = self.host, None
                await host.close()

    async def prepare(self, reference: str, progress: Progress) -> tuple[EngineImage, HostConfig]:
        """The image, known to the engine and able to run the guest; the package settings."""
        host = await self.acquire()
        try:
            async with host.preparing:
                if reference not in self.images:
                    from sandlot.sandbox.images import ImageStore

                    self.images[reference] = await prepare_image(
                        host.client, reference, ImageStore(self.cache), progress
                    )
                if self.config is None:
                    home = Path(self.environ.get("HOME", "/"))
                    self.config = await asyncio.to_thread(read_host, self.environ, home)
            await host.form(self.images[reference])
            return self.images[reference], self.config
        finally:
            await self.release()


_Key = tuple[str, str, Path, str | None]
_shared: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[_Key, _SharedEngine]] = (
    weakref.WeakKeyDictionary()
)


async def open_engine_sandbox(
    backend: str,
    *,
    policy: Policy,
    image: str,
    cache: Path,
    state: Path,
    environ: Mapping[str, str],
    progress: Progress,
    engine: str | None = None,
    runtime: str | None = None,
) -> EngineSandbox:
    """A sandbox of Docker or Podman that is ready to be started; its image is pulled or imported.

    Raises:
        ConfigError: an engine address that cannot be read.
        ImageError: the image is not to be had, or has no python3 or bash.
        SandboxUnavailable: no engine answers, or it cannot keep the policy's network.
    """
    from sandlot.sandbox.credentials import wall_for

    address = find_address(backend, engine, environ)
    runtime_dir = _host.runtime_dir(environ, state)
    state.mkdir(parents=True, exist_ok=True)
    known = _shared.setdefault(asyncio.get_running_loop(), {})
    key = (backend, address.text, runtime_dir, runtime)
    if key not in known:
        known[key] = _SharedEngine(backend, address, runtime_dir, environ, runtime, cache)
        await _host.reap(runtime_dir)
        await reap_engines(runtime_dir, environ)
    shared = known[key]
    prepared, config = await shared.prepare(image, progress)
    wall = wall_for(policy.network, config)
    return EngineSandbox(
        policy,
        backend=backend,
        host=shared.acquire,
        release=shared.release,
        image=prepared,
        config=config if wall is None else wall.trusting(config),
        spool_dir=state,
        wall=wall,
    )


class EngineSandbox:
    """See `sandbox.base` for the contract.

    Isolated: processes, files, network, ids, host name. Not isolated: the kernel itself, CPU
    caches, time, and what the policy mounts. `image_digest` is what is recorded of the image.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        backend: str,
        host: Callable[[], Awaitable[EngineHost]],
        release: Callable[[], Awaitable[None]],
        image: EngineImage,
        config: HostConfig,
        spool_dir: Path,
        wall: CredentialWall | None = None,
    ) -> None:
        self.policy = policy
        self.backend = backend
        self.image_digest = image.digest
        self._get_host = host
        self._release_host = release
        self._image = image
        self._config = config
        self._spool_dir = spool_dir
        self._wall = wall
        self._host: EngineHost | None = None
        self._life: _Life | None = None
        self._closing: asyncio.Task[None] | None = None
        self._closed = False
        self._began = 0.0
        self._old_records: list[EgressRecord] = []

    @property
    def enforcement(self) -> tuple[Enforcement, ...]:
        return () if self._life is None else self._life.enforcement

    async def start(self) -> None:
        if self._closing is not None:
            raise SandboxDied(DeathCause.CLOSED, "it was closed")
        if self._life is not None:
            return
        self._host = await self._get_host()
        self._began = time.monotonic()
        life = self._life = self._new_life()
        starting = asyncio.ensure_future(life.start())
        try:
            await asyncio.shield(starting)
        except BaseException:
            starting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({starting})  # its error, if any, is the one raised below
            await asyncio.shield(self.close())
            raise

    async def exec(self, command: str, timeout_s: float | None = None) -> ExecResult:
        life = self._alive()
        result = await life.call(lambda session: session.exec(command, timeout_s))
        if life.is_metered:
            return result
        return replace(result, memory_peak_bytes=None, cpu_s=None, throttled_s=None)

    async def read_file(self, path: str, *, limit_bytes: int | None = None) -> bytes:
        return await self._call(lambda session: session.read_file(path, limit_bytes=limit_bytes))

    async def write_file(self, path: str, data: bytes, *, exclusive: bool = False) -> None:
        await self._call(lambda session: session.write_file(path, data, exclusive=exclusive))

    async def stat(self, path: str) -> FileInfo:
        return await self._call(lambda session: session.stat(path))

    async def list_dir(self, path: str) -> list[FileInfo]:
        return await self._call(lambda session: session.list_dir(path))

    async def upload(self, source: Path, target: str) -> int:
        return await self._call(lambda session: session.upload(source, target))

    async def collect(
        self, paths: Sequence[str], into: Path
    ) -> tuple[list[CollectedFile], list[SkippedFile]]:
        return await self._call(lambda session: session.collect(paths, into))

    async def snapshot(self, target: Path) -> None:
        await self._alive().snapshot(target)

    async def restore(self, source: Path) -> None:
        """Into a new container, which then takes the place of the old one."""
        old = self._alive()
        await asyncio.to_thread(read_state, source)
        new = self._new_life()
        try:
            await new.start()
            await new.call(lambda session: session.restore(source))
        except BaseException:
            await asyncio.shield(new.stop())
            raise
        self._life = new
        self._old_records += old.drain_egress()
        await old.stop()

    async def fork(self) -> Sandbox:
        twin = EngineSandbox(
            self.policy,
            backend=self.backend,
            host=self._get_host,
            release=self._release_host,
            image=self._image,
            config=self._config,
            spool_dir=self._spool_dir,
            wall=self._wall,
        )
        with tempfile.TemporaryDirectory(dir=self._spool_dir, prefix="fork-") as folder:
            source = Path(folder, "state")
            await self.snapshot(source)
            await twin.start()
            try:
                await twin.restore(source)
            except BaseException:
                await asyncio.shield(twin.close())
                raise
        return twin

    def egress(self) -> list[EgressRecord]:
        records, self._old_records = self._old_records, []
        return records + ([] if self._life is None else self._life.drain_egress())

    async def stats(self) -> SandboxStats:
        life = self._alive()
        found = await life.call(lambda session: session.usage())
        return found if life.is_metered else SandboxStats(processes=found.processes)

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
        self._closed = True
        try:
            if self._life is not None:
                await self._life.stop()
        finally:
            if self._host is not None:
                self._host = None
                await self._release_host()

    def _new_life(self) -> _Life:
        assert self._host is not None
        return _Life(
            self._host,
            self.policy,
            self._image,
            self._config,
            self._spool_dir,
            self._wall,
            self._began,
        )

    async def _call(self, work: Callable[[GuestSession], Awaitable[T]]) -> T:
        return await self._alive().call(work)

    def _alive(self) -> _Life:
        if self._life is None:
            what = "it was closed" if self._closed else "it was not started"
            raise SandboxDied(DeathCause.CLOSED, what)
        if self._life.death is not None:
            raise self._life.death
        if self._closed:
            raise SandboxDied(DeathCause.CLOSED, "it was closed")
        return self._life


class _Life:
    """One container, from its making to its removal."""

    def __init__(
        self,
        host: EngineHost,
        policy: Policy,
        image: EngineImage,
        config: HostConfig,
        spool_dir: Path,
        wall: CredentialWall | None,
        began: float,
    ) -> None:
        self._began = began  # of the sandbox, whose wall time a restored container goes on with
        self._host = host
        self._policy = policy
        self._image = image
        self._config = config
        self._spool_dir = spool_dir
        self._wall = wall
        self._folder = host.new_folder()
        self._died: asyncio.Future[SandboxDied] = asyncio.get_running_loop().create_future()
        self._container = ""
        self._layers: dict[str, str] | None = None
        self._names: list[str] = []
        self._stream: AttachedStream | None = None
        self._session: GuestSession | None = None
        self._egress: EgressProxy | None = None
        self._end: asyncio.TimerHandle | None = None
        self._killing: asyncio.Task[None] | None = None
        self._token = secrets.token_urlsafe(24)
        self.enforcement: tuple[Enforcement, ...] = ()

    @property
    def is_metered(self) -> bool:
        """Without a control group of its own a container reads the meters of the whole machine."""
        return self._host.facts.memory

    @property
    def death(self) -> SandboxDied | None:
        return self._died.result() if self._died.done() else None

    async def start(self) -> None:
        """Raises SandboxUnavailable, PolicyNotEnforceable, SandboxDied as `Sandbox.start` does."""
        form = await self._host.form(self._image)
        rows = enforcement(self._policy, self._host.facts, form)
        self.enforcement = settle_enforcement(self._policy, rows)
        self._refuse_unreachable()
        if network_is_open(self._policy):
            await self._start_egress()
        try:
            async with self._host.starting, asyncio.timeout(_START_S):
                await self._start_container(form)
        except TimeoutError as exc:
            raise SandboxUnavailable(
                f"the container did not answer within {_START_S:g} s of its start"
            ) from exc
        if (wall_s := self._policy.limits.wall_s) is not None:
            left_s = max(0.0, self._began + wall_s - time.monotonic())
            self._end = asyncio.get_running_loop().call_later(left_s, self._expire, wall_s)

    async def call(self, work: Callable[[GuestSession], Awaitable[T]]) -> T:
        if self.death is not None:
            raise self.death
        session = self._session
        if session is None:
            raise SandboxDied(DeathCause.CLOSED, "it was not started")
        try:
            return await work(session)
        except SandboxDied as exc:
            self.die(exc)
            raise self._died.result() from exc
        except OSError as exc:  # the stream broke under the session
            await self._learn_cause(str(exc))
            raise self._died.result() from exc

    async def snapshot(self, target: Path) -> None:
        async def store(session: GuestSession) -> None:
            if self._layers is not None:
                found = await changes_behind_walls(session, self._layers, self._names)
            else:
                ours = list(_files(self._config))
                client = self._host.client
                found = await changes_of_container(client, session, self._container, ours)
            await session.snapshot(target, found.paths, found.removed)

        await self.call(store)

    def drain_egress(self) -> list[EgressRecord]:
        return [] if self._egress is None else self._egress.drain_records()

    def die(self, death: SandboxDied) -> None:
        """Remember the first cause; what runs inside is ended by `stop` or by its stream."""
        if not self._died.done():
            self._died.set_result(death)
            if self._container:
                self._killing = asyncio.ensure_future(self._kill())

    async def stop(self) -> None:
        """Kill, wait until it is gone, and remove every trace; an engine that is lost has lost."""
        if self._end is not None:
            self._end.cancel()
        if not self._died.done():
            self._died.set_result(SandboxDied(DeathCause.CLOSED, "it was closed"))
        with contextlib.suppress(SandboxError, TimeoutError):
            async with asyncio.timeout(_CLOSE_S):
                await self._remove_container()
        if self._killing is not None:
            await asyncio.wait({self._killing})
        if self._session is not None:
            await self._session.close()
        if self._stream is not None:
            await self._stream.close()
        if self._egress is not None:
            await self._egress.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    # --- starting -------------------------------------------------------------------------------

    def _refuse_unreachable(self) -> None:
        """What needs this machine's files cannot be had of an engine that runs elsewhere."""
        if self._host.facts.local:
            return
        address = self._host.client.address.text
        if network_is_open(self._policy):
            raise SandboxUnavailable(
                f"the engine at {address} runs on another machine, whose containers cannot reach "
                "the proxy here. Use --network none, or an engine of this machine"
            )
        if self._policy.mounts:
            raise SandboxUnavailable(
                f"the engine at {address} runs on another machine and cannot mount "
                f"{self._policy.mounts[0].source}; upload it instead"
            )

    async def _start_egress(self) -> None:
        from sandlot.sandbox.egress import EgressProxy

        folder = self._folder / "proxy"
        folder.mkdir(mode=0o711)
        listener = _listen(folder / Path(PROXY_SOCKET).name)
        proxy = EgressProxy(
            listener,
            self._policy.network,
            self._config.package_hosts,
            token=self._token,
            wall=self._wall,
        )
        self._egress = proxy
        await proxy.start()

    async def _start_container(self, form: Form) -> None:
        client = self._host.client
        self._container = self._host.name_of(self._folder)
        self._record()
        await create(client, self._container, self._body(form))
        stream = self._stream = await begin(client, self._container, self._image)
        report = await talk(stream, self._request(form))
        if "error" in report:
            self._host.forget_form(self._image)
            raise SandboxUnavailable(
                f"the container could not be confined: {str(report['error'])[:300]}. Try again: "
                "the next start finds out anew what this engine can do"
            )
        if form.walls:
            self._layers, self._names = _read_layers(report)
        session = self._session = GuestSession(
            _Watched(stream, self._learn_cause, self._died),
            self._policy,
            self._environment(),
            spool_dir=self._spool_dir,
            died=self._died,
            proxy_socket=PROXY_SOCKET if self._egress is not None else None,
        )
        await session.start()

    def _body(self, form: Form) -> dict[str, Any]:
        return container_body(
            self._image.id,
            self._policy,
            self._host.facts,
            labels=self._host.labels,
            environment={},
            binds=self._binds(form),
            seccomp=self._host.seccomp() if form.walls else None,
            runtime=self._host.runtime,
        )

    def _binds(self, form: Form) -> list[tuple[str, str, bool]]:
        """Behind walls a mount is put at its place by the stage, from a place of the engine's."""
        binds = [
            (mount.source, f"{MOUNTS_DIR}/{n}" if form.walls else mount.target, mount.writable)
            for n, mount in enumerate(self._policy.mounts)
        ]
        if self._egress is not None:
            binds.append((str(self._folder / "proxy"), PROXY_DIR, False))
        return binds

    def _request(self, form: Form) -> bytes:
        mounts = [(f"{MOUNTS_DIR}/{n}", m.target) for n, m in enumerate(self._policy.mounts)]
        if self._egress is not None:
            mounts.append((PROXY_DIR, PROXY_DIR))
        return stage_request(
            self._policy,
            self._host.facts,
            walls=form.walls,
            files=_files(self._config),
            mounts=mounts,
            command=GUEST_COMMAND,
        )

    def _environment(self) -> dict[str, str]:
        """The image's own variables, then ours; its PATH is kept, for its programs lie there."""
        own = base_environment(self._policy)
        path = self._image.environment.get("PATH")
        if path and "PATH" not in self._policy.environment:
            own["PATH"] = path
        found = {**self._image.environment, **own, **self._config.environment}
        if self._egress is not None:
            words = proxy_environment(_PROXY_PORT)
            user = f"://sandlot:{self._token}@"
            found |= {name: value.replace("://", user) for name, value in words.items()}
        return found

    def _record(self) -> None:
        record = {"pid": 0, "ticks": 0, "container": self._container}
        (self._folder / "init.json").write_text(json.dumps(record))

    # --- ending ---------------------------------------------------------------------------------

    def _expire(self, wall_s: float) -> None:
        detail = f"its {wall_s:g} s of wall time are over"
        self.die(SandboxDied(DeathCause.TIME_LIMIT, detail))

    async def _kill(self) -> None:
        with contextlib.suppress(SandboxError):
            await self._host.client.call(
                "kill a container",
                "POST",
                f"/containers/{self._container}/kill",
                query={"signal": "KILL"},
                deadline_s=_ASK_S,
            )

    async def _remove_container(self) -> None:
        if self._container:
            await remove(self._host.client, self._container, _CLOSE_S)

    async def _learn_cause(self, said: str) -> SandboxDied:
        """The stream is over: ask the engine why, and let the answer be the cause of death."""
        if not self._died.done():
            death = await self._ask_cause(said)
            self.die(death)
        return self._died.result()

    async def _ask_cause(self, said: str) -> SandboxDied:
        """An ended container is soon removed, so it is asked at once, and may be gone already."""
        for _ in range(int(_ENDING_S / 0.05)):
            try:
                found = await self._host.client.call(
                    "describe a container",
                    "GET",
                    f"/containers/{self._container}/json",
                    deadline_s=_ASK_S,
                )
            except EngineLost as exc:
                return SandboxDied(DeathCause.ENGINE_LOST, str(exc))
            except EngineRefusal:
                return SandboxDied(DeathCause.KILLED, "its container ended and is gone")
            state = found.get("State") or {}
            if state.get("OOMKilled"):
                return SandboxDied(DeathCause.OUT_OF_MEMORY, "the memory limit was reached")
            if not state.get("Running"):
                code = state.get("ExitCode")
                return SandboxDied(DeathCause.KILLED, f"its first process ended with {code}")
            await asyncio.sleep(0.05)
        detail = f"the engine closed the stream of a container that runs ({said})"
        return SandboxDied(DeathCause.ENGINE_LOST, detail)


class _Watched:
    """The stream as the guest session sees it: its end is a death with a cause."""

    def __init__(
        self,
        stream: AttachedStream,
        learn_cause: Callable[[str], Awaitable[SandboxDied]],
        died: asyncio.Future[SandboxDied],
    ) -> None:
        self._stream = stream
        self._learn_cause = learn_cause
        self._died = died

    async def read(self) -> bytes:
        try:
            data = await self._stream.read()
        except OSError as exc:
            raise await self._learn_cause(str(exc)) from exc
        if not data:
            errors = self._stream.errors.decode("utf-8", "replace").strip()[-300:]
            raise await self._learn_cause(errors or "no more output")
        return data

    async def write(self, data: bytes) -> None:
        if self._died.done():
            raise self._died.result()
        try:
            await self._stream.write(data)
        except OSError as exc:
            raise await self._learn_cause(str(exc)) from exc

    async def close(self) -> None:
        await self._stream.close()


def _read_layers(report: Mapping[str, Any]) -> tuple[dict[str, str], list[str]]:
    """What the stage says of its overlays: by the image's own Python, so it may be anything."""
    layers, names = report.get("layers"), report.get("names")
    if not (isinstance(layers, dict) and isinstance(names, list)):
        raise SandboxUnavailable("the first process of a container did not say what it built")
    return {str(key): str(value) for key, value in layers.items()}, [str(name) for name in names]


def _files(config: HostConfig) -> dict[str, bytes]:
    return {
        **config.files,
        "/etc/apt/apt.conf.d/90sandlot": apt_settings(False),
        "/etc/hosts": b"127.0.0.1 localhost sandlot\n::1 localhost\n",
        "/etc/resolv.conf": b"",
        "/etc/hostname": b"sandlot\n",
    }


def _listen(path: Path) -> socket.socket:
    """A listener at a path of any length: the kernel's own limit is about a hundred bytes."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        listener.bind(f"/proc/self/fd/{folder}/{path.name}")
    except BaseException:
        listener.close()
        raise
    finally:
        os.close(folder)
    path.chmod(0o666)
    listener.setblocking(False)
    listener.listen(128)
    return listener
