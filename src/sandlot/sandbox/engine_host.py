"""What all containers of one harness share: the engine's client, the lease, what images can do."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from sandlot.core.errors import ConfigError, ImageError, SandboxError, SandboxUnavailable
from sandlot.sandbox import host as _host
from sandlot.sandbox.engine_api import (
    AttachedStream,
    EngineClient,
    EngineLost,
    EngineRefusal,
    parse_address,
)
from sandlot.sandbox.engine_container import (
    EngineFacts,
    Form,
    container_body,
    read_facts,
    stage_request,
    stage_source,
    wall_profile,
)
from sandlot.sandbox.engine_images import EngineImage
from sandlot.sandbox.policy import MIB, Limits, Network, NetworkMode, Policy

ENGINES = ("docker", "podman")
LEASE_LABEL, OWNER_LABEL = "sandlot.lease", "sandlot.owner"
_TRY_S = 60.0
_REAP_S = 20.0
_AGAIN_S = 0.02
_REPORT_BYTES = 256 * 1024
_PYTHON = (3, 8)
_TRIAL = Policy(
    Limits(memory_bytes=256 * MIB, processes=64, disk_bytes=16 * MIB, open_files=None),
    Network(NetworkMode.NONE),
)


@dataclass(slots=True)
class EngineHost:
    """Opened once for an engine, used by all its sandboxes, closed after the last of them."""

    backend: str
    client: EngineClient
    facts: EngineFacts
    lease_dir: Path
    lock: int
    owner: str
    forms: FormStore
    runtime: str | None = None
    preparing: asyncio.Lock = field(default_factory=asyncio.Lock)
    _trying: asyncio.Lock = field(default_factory=asyncio.Lock)
    _starting: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(16))
    _next: int = 0

    @classmethod
    def open(
        cls,
        backend: str,
        client: EngineClient,
        runtime_dir: Path,
        runtime: str | None,
        facts: EngineFacts,
        forms: FormStore,
    ) -> EngineHost:
        """Take a lease."""
        lease_dir, lock = _take_lease(runtime_dir, backend, client.address.text)
        return cls(backend, client, facts, lease_dir, lock, owner_of(runtime_dir), forms, runtime)

    @property
    def labels(self) -> dict[str, str]:
        return {LEASE_LABEL: self.lease_dir.name, OWNER_LABEL: self.owner}

    @property
    def starting(self) -> asyncio.Semaphore:
        """Engines slow down for everybody where too many containers start at once."""
        return self._starting

    def new_folder(self) -> Path:
        self._next += 1
        folder = self.lease_dir / f"{self._next:05d}"
        folder.mkdir(mode=0o755)
        return folder

    def name_of(self, folder: Path) -> str:
        return f"sandlot-{self.lease_dir.name}-{folder.name}"

    def seccomp(self) -> str | None:
        """A profile that lets the stage build its walls; None where the engine takes none.

        Docker takes its text, Podman the path of a file that it can see.
        """
        if self.backend == "docker":
            return wall_profile()
        if not self.facts.local:
            return None
        path = self.lease_dir / "seccomp.json"
        if not path.exists():
            path.write_text(wall_profile())
        return str(path)

    async def form(self, image: EngineImage) -> Form:
        """What a container of this image can do here: tried once, by a container that ends at once.

        Raises:
            ImageError: the image has no python3 or no bash.
        """
        async with self._trying:
            key = f"{image.id} {self.runtime}"
            form = self.forms.get(key)
            if form is None:
                form = await self._try_forms(image)
                self.forms.put(key, form)
            return form

    async def _try_forms(self, image: EngineImage) -> Form:
        profile = self.seccomp()
        report = {} if profile is None else await self._try(image, profile)
        if report and "error" not in report:
            return Form(_check_programs(image, report), True)
        reason = str(report.get("error", "the engine takes no filter of ours"))[:200]
        report = await self._try(image, None)
        if "error" in report:
            raise SandboxUnavailable(
                f"a container of {self.backend} cannot be confined: {report['error']!s:.200}"
            )
        return Form(_check_programs(image, report), False, reason)

    async def _try(self, image: EngineImage, profile: str | None) -> dict[str, Any]:
        body = container_body(
            image.id,
            _TRIAL,
            self.facts,
            labels=self.labels,
            environment={},
            binds=(),
            seccomp=profile,
            runtime=self.runtime,
        )
        request = stage_request(
            _TRIAL, self.facts, walls=profile is not None, files={}, mounts=(), command=()
        )
        container = self.name_of(self.new_folder())
        try:
            await create(self.client, container, body)
            async with asyncio.timeout(_TRY_S):
                stream = await begin(self.client, container, image)
                try:
                    return await talk(stream, request)
                finally:
                    await stream.close()
        except TimeoutError as exc:
            raise SandboxUnavailable(
                f"a first container of image {image.reference!r} did not answer in {_TRY_S:g} s"
            ) from exc
        finally:
            await remove(self.client, container)

    def forget_form(self, image: EngineImage) -> None:
        """What was found out does not hold any more: the next start tries again."""
        self.forms.drop(f"{image.id} {self.runtime}")

    async def close(self) -> None:
        await self.client.close()
        shutil.rmtree(self.lease_dir, ignore_errors=True)
        os.close(self.lock)


async def ask_facts(client: EngineClient, backend: str) -> tuple[EngineFacts, str]:
    """What an engine says of itself, and a word that changes when it is another one.

    Raises:
        EngineLost: nobody answers there, or no engine.
    """
    info = await client.call("describe itself", "GET", "/info")
    if not isinstance(info, dict) or "Driver" not in info:
        raise EngineLost(
            f"{client.address.text} answers, but not as a container engine; "
            "name the socket of Docker's or Podman's API with --engine"
        )
    local = client.address.socket is not None and sys.platform == "linux"
    parts = [str(info.get(name)) for name in ("DockerRootDir", "ServerVersion", "KernelVersion")]
    return read_facts(backend, info, local=local), " ".join((client.address.text, *parts))


def check_runtime(facts: EngineFacts, asked: str | None) -> None:
    """Podman's API takes the name of another runtime and starts its own without a word.

    Raises:
        SandboxUnavailable: containers would run in another runtime than the one that was asked for.
    """
    own = PurePath(facts.runtime).name
    if facts.backend == "podman" and asked is not None and PurePath(asked).name != own:
        raise SandboxUnavailable(
            f"runtime {asked!r} was asked for, but this podman starts containers with {own!r}, and "
            f"its API takes no other; start its service with one "
            f"(podman --runtime {asked} system service …), or leave --runtime out"
        )


class FormStore:
    """Forms that were tried, in a file for each engine: a first container costs a start.

    Only walls that were built are kept: a reason why not may have gone by the next time.
    """

    def __init__(self, folder: Path, engine: str) -> None:
        key = hashlib.sha256(f"{engine} {stage_source()}".encode()).hexdigest()[:24]
        self._path = folder / f"{key}.json"
        self._forms: dict[str, Form] = {}

    def get(self, key: str) -> Form | None:
        if key in self._forms:
            return self._forms[key]
        version = self._read().get(key)
        return None if version is None else Form(str(version), True)

    def put(self, key: str, form: Form) -> None:
        self._forms[key] = form
        if form.walls:
            self._write({**self._read(), key: form.python})

    def drop(self, key: str) -> None:
        self._forms.pop(key, None)
        self._write({name: value for name, value in self._read().items() if name != key})

    def _read(self) -> dict[str, str]:
        try:
            found = json.loads(self._path.read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _write(self, forms: Mapping[str, str]) -> None:
        """A cache that cannot be written costs a second try, no more."""
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            draft = self._path.with_name(f".{self._path.name}.{os.getpid()}")
            draft.write_text(json.dumps(forms))
            draft.replace(self._path)


async def create(client: EngineClient, name: str, body: Mapping[str, Any]) -> str:
    """Make a container; returns its id. By its name it is found where the answer was lost."""
    try:
        made = await client.call(
            "create a container", "POST", "/containers/create", query={"name": name}, body=body
        )
        return str(made["Id"])
    except (KeyError, TypeError) as exc:
        raise EngineLost("the engine made a container without an id") from exc


async def begin(client: EngineClient, container: str, image: EngineImage) -> AttachedStream:
    """Attach to a container and start it; Podman prepares it at the attaching already.

    Raises:
        ImageError: the image has no python3.
        SandboxUnavailable: the engine cannot start it.
    """
    stream = None
    try:
        stream = await client.attach(container)
        await client.call("start a container", "POST", f"/containers/{container}/start")
        return stream
    except BaseException as exc:
        if stream is not None:
            await stream.close()
        if isinstance(exc, EngineRefusal):
            raise _not_started(image, exc.reason) from exc
        raise


def _not_started(image: EngineImage, reason: str) -> SandboxError | ImageError:
    if "python3" in reason and ("not found" in reason or "no such file" in reason):
        return _no_program(image, "python3")
    return SandboxUnavailable(f"a container of image {image.reference!r} did not start: {reason}")


async def talk(stream: AttachedStream, request: bytes) -> dict[str, Any]:
    """Send the stage its request and read its one line.

    Raises:
        SandboxUnavailable: it ended without one; the message holds what it said on stderr.
    """
    try:
        await stream.write(request)
        report = json.loads(await stream.read_line(_REPORT_BYTES))
    except (OSError, ValueError) as exc:
        said = stream.errors.decode("utf-8", "replace").strip()[-500:]
        raise SandboxUnavailable(
            f"the first process of a container ended before it was ready ({said or exc})"
        ) from exc
    if not isinstance(report, dict):
        raise SandboxUnavailable("the first process of a container said something unknown")
    return report


async def remove(client: EngineClient, container: str, deadline_s: float = _REAP_S) -> None:
    """Kill and remove it, and return when it is gone; one that is gone already is no error.

    A container that is just ending refuses to be removed, in words that differ between engines.

    Raises:
        EngineLost: the engine does not answer.
        EngineRefusal: it was still there at the deadline.
    """
    until = time.monotonic() + deadline_s
    while True:
        try:
            await client.call(
                "remove a container",
                "DELETE",
                f"/containers/{container}",
                query={"force": "1", "v": "1"},
                deadline_s=deadline_s,
            )
        except EngineRefusal as exc:
            if exc.status == 404:
                return
            if time.monotonic() > until:
                raise
            await asyncio.sleep(_AGAIN_S)
        else:
            return


def _check_programs(image: EngineImage, report: Mapping[str, Any]) -> str:
    """The version of the image's Python. Raises ImageError: too old, or no bash."""
    version = str(report.get("python", ""))
    numbers = tuple(int(part) for part in version.split(".") if part.isdigit())
    if numbers < _PYTHON:
        raise ImageError(
            f"image {image.reference!r} has Python {version}; the guest needs "
            f"{_PYTHON[0]}.{_PYTHON[1]} or newer"
        )
    if not report.get("bash"):
        raise _no_program(image, "bash")
    return version


def _no_program(image: EngineImage, name: str) -> ImageError:
    return ImageError(
        f"image {image.reference!r} has no {name}, which the sandbox needs inside. Install it in "
        f"the image (Debian, Ubuntu: apt-get install {name}; Alpine: apk add {name}), or use "
        "another image"
    )


# --- leases ---------------------------------------------------------------------------------------


def owner_of(runtime_dir: Path) -> str:
    """Who may reap: whoever sees this folder of leases, and so knows which of them are alive.

    By a random name that is kept there. Users, host names and paths can be the same twice behind
    one engine, and the other's living containers would then look like dead ones of ours.
    """
    kept = runtime_dir / "owner"
    draft = runtime_dir / f"owner.{secrets.token_hex(4)}"
    draft.write_text(secrets.token_hex(16))
    try:
        os.link(draft, kept)  # the first one to come names it, in one step
    except FileExistsError:
        pass
    finally:
        draft.unlink()
    return kept.read_text()


async def reap_engines(runtime_dir: Path, environ: Mapping[str, str]) -> list[str]:
    """Remove the containers and leases of dead owners; returns a line for each.

    A lease whose engine cannot be asked stays, for it is what finds its containers later.
    """
    said = []
    for lease in _host.list_leases(runtime_dir):
        if lease.alive or lease.backend not in ENGINES:
            continue
        try:
            address = json.loads((lease.folder / "lease.json").read_text())["engine"]
            client = EngineClient(parse_address(address), environ)
            try:
                removed = await reap_containers(client, runtime_dir)
            finally:
                await client.close()
        except (SandboxError, ConfigError, OSError, ValueError, KeyError) as exc:
            said.append(f"lease {lease.id} stays: its engine cannot be asked ({exc})")
            continue
        shutil.rmtree(lease.folder, ignore_errors=True)
        counted = f"{len(removed)} containers, its folder"
        said.append(f"lease {lease.id} of process {lease.pid}: {counted}")
    return said


async def reap_containers(client: EngineClient, runtime_dir: Path) -> list[str]:
    """Remove our containers whose lease is dead, by their labels alone; returns their ids."""
    filters = json.dumps({"label": [f"{OWNER_LABEL}={owner_of(runtime_dir)}"]})
    found = await client.call(
        "list containers", "GET", "/containers/json", query={"all": "1", "filters": filters}
    )
    alive = {lease.id for lease in _host.list_leases(runtime_dir) if lease.alive}
    dead = [
        str(entry["Id"])
        for entry in found or []
        if (entry.get("Labels") or {}).get(LEASE_LABEL, "") not in alive
    ]
    await asyncio.gather(*(remove(client, container) for container in dead))
    return dead


def _take_lease(runtime_dir: Path, backend: str, engine: str) -> tuple[Path, int]:
    folder = runtime_dir / secrets.token_hex(6)
    folder.mkdir(mode=0o700)
    record = {"pid": os.getpid(), "backend": backend, "cgroups": [], "engine": engine}
    partial = folder / "lease.partial"
    lock = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    os.write(lock, json.dumps(record).encode())
    partial.rename(folder / "lease.json")  # seen only when it is written and locked
    return folder, lock
