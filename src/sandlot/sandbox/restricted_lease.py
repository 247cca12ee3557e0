"""Private folders of the backend `restricted`, each with its lease, and their removal."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import signal
import stat
import subprocess
from pathlib import Path

from sandlot.core.errors import SandboxUnavailable
from sandlot.sandbox.host import Lease, _ticks, list_leases
from sandlot.sandbox.restricted_ground import Ground, is_public


def private_folders(state: Path, ground: Ground) -> Path:
    """Where private folders are made: below the state folder, if the sandbox's id can get there."""
    inside = state / "restricted"
    if not ground.own_id:
        return inside
    state.mkdir(parents=True, exist_ok=True)
    return inside if is_public(state) else _elsewhere(state)


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


def make_folder(folder: Path) -> None:
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
            clear(lease.folder)
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


def clear(folder: Path) -> None:
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


def write_lease(folder: Path) -> int:
    partial = folder / "lease.partial"
    fd = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)
    record = {"pid": os.getpid(), "backend": "restricted", "cgroups": []}
    os.write(fd, json.dumps(record).encode())
    partial.rename(folder / "lease.json")
    return fd
