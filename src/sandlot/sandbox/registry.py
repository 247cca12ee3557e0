"""Backends by name, and the default one put together from its parts for this machine."""

from __future__ import annotations

import asyncio
import shutil
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING

from sandlot.core.errors import ConfigError, ImageError, unknown_name
from sandlot.sandbox import host as _host
from sandlot.sandbox import restricted_lease as _restricted
from sandlot.sandbox.base import Sandbox
from sandlot.sandbox.host import BubblewrapHost, Lease
from sandlot.sandbox.policy import NetworkMode, Policy

if TYPE_CHECKING:
    from sandlot.sandbox.bubblewrap import MakeEgress, RootFilesystem
    from sandlot.sandbox.credentials import CredentialWall
    from sandlot.sandbox.hostconfig import HostConfig

Progress = Callable[[str], None]
BUILT_IN = ("bubblewrap", "docker", "podman", "restricted", "fake")


@dataclass(slots=True)
class _SharedHost:
    """One host object for each event loop and lease folder, counted by its sandboxes.

    The launcher behind it is a process: five hundred sandboxes must share one, and the last one
    to close must end it. Nothing else in the package is shared between callers.
    """

    users: int = 0
    host: BubblewrapHost | None = None
    config: HostConfig | None = None
    roots: dict[tuple[str, Path], RootFilesystem] = field(default_factory=dict)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def prepare(self, runtime_dir: Path, environ: Mapping[str, str]) -> HostConfig:
        """Once for all sandboxes: remove dead owners' leavings, read the package settings."""
        from sandlot.sandbox.hostconfig import read_host

        async with self.lock:
            if self.config is None:
                await _host.reap(runtime_dir)
                home = Path(environ.get("HOME", "/"))
                self.config = await asyncio.to_thread(read_host, environ, home)
            return self.config

    async def acquire(self, runtime_dir: Path) -> BubblewrapHost:
        async with self.lock:
            if self.host is not None and not self.host.usable:
                dead, self.host = self.host, None
                self.roots.clear()
                await dead.close()
            if self.host is None:
                self.host = await BubblewrapHost.open(runtime_dir)
            self.users += 1
            return self.host

    async def release(self) -> None:
        async with self.lock:
            self.users -= 1
            if self.users == 0 and self.host is not None:
                host, self.host = self.host, None
                self.roots.clear()  # its layers go with the host's folder
                await host.close()


_shared: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Path, _SharedHost]] = (
    weakref.WeakKeyDictionary()
)


async def open_sandbox(
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
) -> Sandbox:
    """A sandbox that is ready to be started; its image is made first if it can be.

    `engine` is the address of a container engine (`unix:///…`, `tcp://…`), `runtime` the OCI
    runtime that it is asked to use; both are for the backends `docker` and `podman`.

    Raises:
        ConfigError: an unknown backend, or a runtime for one that has none.
        ImageError: the image is not there and cannot be built.
        SandboxUnavailable: this machine cannot run the backend.
    """
    if runtime is not None and backend in ("bubblewrap", "restricted"):
        raise ConfigError(
            f"runtime {runtime!r} was asked for, but backend {backend!r} starts no containers; "
            "name one that does (--backend docker or podman), or leave --runtime out"
        )
    if backend == "bubblewrap":
        return await _open_bubblewrap(policy, image, cache, state, environ, progress)
    if backend in ("docker", "podman"):
        from sandlot.sandbox.engine import open_engine_sandbox

        return await open_engine_sandbox(
            backend,
            policy=policy,
            image=image,
            cache=cache,
            state=state,
            environ=environ,
            progress=progress,
            engine=engine,
            runtime=runtime,
        )
    if backend == "restricted":
        return await _open_restricted(policy, image, state, environ, progress)
    if backend == "fake":
        from sandlot.sandbox.fake import FakeSandbox

        return FakeSandbox(policy=policy)
    for entry in entry_points(group="sandlot.sandboxes"):
        if entry.name == backend:
            made: Sandbox = entry.load()(policy=policy, image=image)
            return made
    known = {entry.name for entry in entry_points(group="sandlot.sandboxes")}
    raise unknown_name("sandbox backend", backend, known | set(BUILT_IN))


async def reap(state: Path, environ: Mapping[str, str] | None = None) -> list[str]:
    """Remove what dead owners left behind, containers included; returns a line for each."""
    folder = _host.runtime_dir(environ or {}, state)
    removed = await _host.reap(folder)
    if any(lease.backend in ("docker", "podman") for lease in _host.list_leases(folder)):
        from sandlot.sandbox.engine_host import reap_engines

        removed += await reap_engines(folder, environ or {})
    return removed + await asyncio.to_thread(_restricted.reap, state)


def list_leases(state: Path, environ: Mapping[str, str] | None = None) -> list[Lease]:
    leases = _host.list_leases(_host.runtime_dir(environ or {}, state))
    return leases + _restricted.all_leases(state)


async def _open_bubblewrap(
    policy: Policy,
    image: str,
    cache: Path,
    state: Path,
    environ: Mapping[str, str],
    progress: Progress,
) -> Sandbox:
    from sandlot.sandbox.bubblewrap import BubblewrapSandbox, refuse_unenforceable
    from sandlot.sandbox.credentials import wall_for

    runtime = _host.runtime_dir(environ, state)
    state.mkdir(parents=True, exist_ok=True)
    shared = _shared.setdefault(asyncio.get_running_loop(), {}).setdefault(runtime, _SharedHost())
    config = await shared.prepare(runtime, environ)
    wall = wall_for(policy.network, config)
    roots = _Roots(image, cache, config, progress)
    if policy.asked and not roots.ready:  # a refusal must not wait for minutes of building
        host = await shared.acquire(runtime)
        try:
            refuse_unenforceable(policy, host, state)
        finally:
            await shared.release()
    await roots.prepare()

    async def root_for(host: BubblewrapHost) -> RootFilesystem:
        async with shared.lock:
            root = shared.roots.get((image, cache))
            if root is None:
                root = shared.roots[image, cache] = await roots.root_for(host)
            return root if wall is None else _trusting(host, root, wall, config)

    return BubblewrapSandbox(
        policy,
        host=lambda: shared.acquire(runtime),
        release=shared.release,
        root=root_for,
        make_egress=_egress_maker(policy, config, wall),
        environment=_network_environment(policy, config, wall),
        spool_dir=state,
    )


async def _open_restricted(
    policy: Policy, image: str, state: Path, environ: Mapping[str, str], progress: Progress
) -> Sandbox:
    from sandlot.sandbox.credentials import wall_for
    from sandlot.sandbox.restricted import open_restricted

    runtime = _host.runtime_dir(environ, state)
    shared = _shared.setdefault(asyncio.get_running_loop(), {}).setdefault(runtime, _SharedHost())
    config = await shared.prepare(runtime, environ)
    wall = wall_for(policy.network, config)
    return await open_restricted(policy, image, state, config, progress, wall=wall)


def _trusting(
    host: BubblewrapHost, root: RootFilesystem, wall: CredentialWall, config: HostConfig
) -> RootFilesystem:
    """The root with the wall's authority among those that are trusted, while the wall lives."""
    from sandlot.sandbox.layers import trusting_root

    files = wall.trust(config.ca_bundle).files
    made, layer = trusting_root(host, root, f"trust-{wall.name}", files)
    weakref.finalize(wall, shutil.rmtree, layer, ignore_errors=True)
    return made


def _egress_maker(
    policy: Policy, config: HostConfig, wall: CredentialWall | None
) -> MakeEgress | None:
    if policy.network.mode is NetworkMode.NONE:
        return None
    from sandlot.sandbox.egress import EgressProxy

    return lambda listener: EgressProxy(listener, policy.network, config.package_hosts, wall=wall)


def _network_environment(
    policy: Policy, config: HostConfig, wall: CredentialWall | None
) -> dict[str, str]:
    from sandlot.sandbox.hostconfig import proxy_environment
    from sandlot.sandbox.launcher import PROXY_PORT

    if policy.network.mode is NetworkMode.NONE:
        return dict(config.environment)
    trust = wall.trust(config.ca_bundle).environment if wall else {}
    return {**config.environment, **trust, **proxy_environment(PROXY_PORT)}


class _Roots:
    """Turns an image name into the layers of a sandbox's root on this machine."""

    def __init__(self, image: str, cache: Path, config: HostConfig, progress: Progress) -> None:
        self._image = image
        self._cache = cache
        self._config = config
        self._progress = progress

    @property
    def ready(self) -> bool:
        """Whether nothing needs to be built first."""
        from sandlot.sandbox.images import ImageStore

        if self._image == "host":
            return True
        try:
            ImageStore(self._cache).resolve(self._image)
        except ImageError:
            return False
        return True

    async def prepare(self) -> None:
        """Build a standard image that is not there yet; any other must have been imported."""
        if self._image == "host":
            return
        from sandlot.sandbox.images import ImageStore

        await ImageStore(self._cache).ensure(self._image, self._progress)

    async def root_for(self, host: BubblewrapHost) -> RootFilesystem:
        from sandlot.sandbox.bubblewrap import RootFilesystem
        from sandlot.sandbox.layers import config_layer, host_skeleton

        if self._image == "host":
            from sandlot.sandbox.images import host_layers

            plan = host_layers()
            skeleton = host_skeleton(host, plan)
            extra = config_layer(host, self._config, "etc")
            overlays = {
                top: (Path(top), extra) if top == "/etc" else (Path(top),) for top in plan.overlays
            }
            return RootFilesystem("host", (skeleton,), overlays, plan.masks)
        from sandlot.sandbox.images import ImageStore

        store = ImageStore(self._cache)
        info = store.resolve(self._image)
        rootfs = await store.rootfs(
            info.digest, host.idmap.key, host.unpack, remove_tree=host.remove_tree
        )
        return RootFilesystem(info.name, (rootfs, config_layer(host, self._config, "")))


async def terminal(sandbox: Sandbox) -> int:
    """See `sandbox.terminal`."""
    from sandlot.sandbox import terminal as _terminal

    return await _terminal.terminal(sandbox)
