"""What was changed in a container since its image: what a snapshot stores, and what is gone."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from sandlot.core.errors import SandboxFileError
from sandlot.sandbox.base import FileInfo
from sandlot.sandbox.engine_api import EngineClient
from sandlot.sandbox.guest_session import GuestSession

_NOT_STORED = ("/dev", "/proc", "/sys", "/run/sandlot-", "/run/.sandlot-", "/tmp/.sandlot")
_ADDED, _DELETED = 1, 2  # of the Engine API; 0 is a change
_MOST = 200_000


@dataclass(slots=True)
class Changes:
    """`paths` are stored with all that is below them; `removed` go before those are put back."""

    paths: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)


async def changes_behind_walls(
    session: GuestSession, layers: Mapping[str, str], names: Sequence[str]
) -> Changes:
    """From the overlays' own folders. `layers` maps a folder to its folder of changes, `names` are
    the entries of `/` at the start.

    A deleted file of the image is a device there. A folder that shows nothing of the image is
    stored whole, in place of the image's, so that it need not be known whether it replaced it.
    """
    found = Changes()
    now = {entry.path for entry in await session.list_dir("/")}
    found.paths += [f"/{name}" for name in sorted(now - set(names))]
    found.removed += [f"/{name}" for name in sorted(set(names) - now)]
    for folder, layer in layers.items():
        await _add_layer(session, folder, layer, found)
    return found


async def _add_layer(session: GuestSession, folder: str, layer: str, found: Changes) -> None:
    waiting = [(folder, layer)]
    while waiting:
        folder, layer = waiting.pop()
        if len(found.paths) + len(found.removed) + len(waiting) > _MOST:
            raise SandboxFileError(folder, f"more than {_MOST} changed files cannot be stored")
        async for path, entry in _entries(session, folder, layer):
            if entry.kind == "device":
                found.removed.append(path)
            elif entry.kind != "directory":
                found.paths.append(path)
            elif await _is_all_new(session, path, f"{layer}/{entry.path}"):
                found.removed.append(path)
                found.paths.append(path)
            else:
                waiting.append((path, f"{layer}/{entry.path}"))


async def _entries(
    session: GuestSession, folder: str, layer: str
) -> AsyncIterator[tuple[str, FileInfo]]:
    for entry in await session.list_dir(layer):
        path = f"{folder}/{entry.path}"
        if entry.kind != "socket" and not path.startswith(_NOT_STORED):
            yield path, entry


async def _is_all_new(session: GuestSession, folder: str, layer: str) -> bool:
    shown = {entry.path for entry in await session.list_dir(folder)}
    own = {entry.path for entry in await session.list_dir(layer) if entry.kind != "device"}
    return shown <= own


async def changes_of_container(
    client: EngineClient, session: GuestSession, container: str, ours: Sequence[str]
) -> Changes:
    """As the engine counts them; `ours` are files that the harness itself put there."""
    rows = await client.call(
        "list what changed in a container", "GET", f"/containers/{container}/changes"
    )
    found = Changes()
    for path, kind in sorted(_rows(rows)):
        if path.startswith(_NOT_STORED) or path in ours or _is_below(path, found.paths):
            continue
        if kind == _DELETED:
            found.removed.append(path)
        elif kind == _ADDED or await _is_file(session, path):
            found.paths.append(path)
    return found


def _rows(rows: Any) -> list[tuple[str, int]]:
    return [(str(row["Path"]), int(row["Kind"])) for row in rows or []]


def _is_below(path: str, folders: Sequence[str]) -> bool:
    parents = {str(parent) for parent in PurePosixPath(path).parents}
    return not parents.isdisjoint(folders)


async def _is_file(session: GuestSession, path: str) -> bool:
    try:
        return (await session.stat(path)).kind != "directory"
    except SandboxFileError:
        return False
