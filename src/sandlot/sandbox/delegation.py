"""A part of the version 2 tree that is ours to divide, as an ordinary user too.

In this order: the harness's own group, where it is delegated and holds nobody else; a scope that
systemd makes for the launcher (`systemd-run --scope -p Delegate=yes`), whose children the sandboxes
are; for root, the top of the tree. A process cannot be moved into a scope from outside of the
user's manager (from a login session, say): so the launcher is started in it, and nothing moves.
Rules: kernel documentation, cgroup-v2.rst (delegation); systemd's CGROUP_DELEGATION.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

LEAF = "sandlot-harness"
WANTED = ("memory", "pids", "cpu")
NEEDED = frozenset({"memory", "pids"})
_SCOPE_S = 10.0
_POLL_S = 0.005


def own_folder(mounts: Path, proc: Path = Path("/proc/self")) -> Path | None:
    """The version 2 group that a process lives in, where it can be seen."""
    with contextlib.suppress(OSError):
        for line in (proc / "cgroup").read_text().splitlines():
            hierarchy, _, path = line.split(":", 2)
            folder = mounts / path.lstrip("/")
            if hierarchy == "0" and ".." not in path.split("/") and folder.is_dir():
                return folder
    return None


def delegated_folder(
    mounts: Path, *, systemd: bool, proc: Path = Path("/proc/self")
) -> Path | None:
    """The own group, or its parent if we moved into a leaf before; None where it is not ours.

    What we may write to was delegated if we may not write to the folder above it. Else systemd,
    where it runs, may have kept the group for itself: `Delegate=yes` marks those that it gave away.
    """
    own = own_folder(mounts, proc)
    if own is None or (own == mounts and not (own / "cgroup.type").exists()):
        return None  # the real top of the tree is nobody's to be delegated
    folder = own.parent if own.name == LEAF else own
    if systemd and os.access(folder.parent, os.W_OK) and not _is_marked(folder):
        return None
    files = ("", "cgroup.procs", "cgroup.subtree_control")
    return folder if all(os.access(folder / name, os.W_OK) for name in files) else None


def divide(folder: Path) -> tuple[str, ...]:
    """Pass the controllers on to the groups below, and return which.

    A group with processes cannot pass any on, so those move to a leaf, if all are ours.

    Raises:
        OSError: the kernel refuses, a controller is missing, or others live there.
    """
    have = set(_words(folder / "cgroup.controllers"))
    passed = tuple(name for name in WANTED if name in have)
    if NEEDED - have:
        raise OSError(95, f"{folder} has no controllers for memory and processes")
    control = folder / "cgroup.subtree_control"
    if set(passed) <= set(_words(control)):
        return passed
    moved = _move_to_leaf(folder)
    try:
        control.write_text(" ".join(f"+{name}" for name in passed))
    except OSError:
        _move(moved, folder)
        with contextlib.suppress(OSError):
            (folder / LEAF).rmdir()
        raise
    return passed


def scope_prefix(lease: str, *, uid: int, root: Path = Path("/")) -> tuple[str, ...]:
    """Words that start a command in a scope of its own; empty where no systemd takes orders.

    systemd-run becomes the command, so process id and descriptors stay.
    """
    program = shutil.which("systemd-run")
    bus = Path(f"/run/user/{uid}")
    listens = "run/systemd/private" if uid == 0 else f"run/user/{uid}/systemd/private"
    if program is None or not (root / listens).exists():
        return ()
    words = [program, "--scope", "--collect", "--quiet", "-p", "Delegate=yes"]
    words += [f"--unit={_unit(lease)}", f"--description=sandlot {lease}"]
    if uid == 0:
        return (*words, "--")
    # A shell begun by su or cron does not know where its user's manager listens.
    return ("/usr/bin/env", f"XDG_RUNTIME_DIR={bus}", *words, "--user", "--")


async def scope_folder(
    lease: str, mounts: Path, proc: Path, alive: Callable[[], bool]
) -> Path | None:
    """The folder of the scope that a process was started in by `scope_prefix`.

    None where systemd refused: the process has ended, or did not arrive within ten seconds.
    `proc` is the folder of the process, `/proc/PID`.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _SCOPE_S
    while alive() and loop.time() < deadline:
        folder = own_folder(mounts, proc)
        if folder is not None and folder.name == _unit(lease):
            return folder
        await asyncio.sleep(_POLL_S)
    return None


def _unit(lease: str) -> str:
    return f"sandlot-{lease}.scope"


def _is_marked(folder: Path) -> bool:
    for name in ("trusted.delegate", "user.delegate"):
        with contextlib.suppress(OSError):
            if os.getxattr(folder, name) == b"1":
                return True
    return False


def _move_to_leaf(folder: Path) -> list[int]:
    """Returns the processes that were moved; the real top of the tree needs no move.

    Raises:
        OSError: somebody else lives there, or the kernel refuses.
    """
    if not (folder / "cgroup.type").exists():
        return []
    pids = [int(word) for word in _words(folder / "cgroup.procs")]
    strangers = [pid for pid in pids if not _is_ours(pid)]
    if strangers:
        raise OSError(16, f"{folder} holds processes that are not ours ({strangers[0]})")
    if pids:
        (folder / LEAF).mkdir(exist_ok=True)
        _move(pids, folder / LEAF)
    return pids


def _move(pids: Iterable[int], folder: Path) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            (folder / "cgroup.procs").write_text(str(pid))


def _is_ours(pid: int) -> bool:
    """This process, or a descendant of it. One outside of our process namespace reads as 0."""
    while pid > 1:
        if pid == os.getpid():
            return True
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError, ValueError):
            return False
    return pid == 1 and os.getpid() == 1


def _words(path: Path) -> list[str]:
    """A file's words; none where it is missing."""
    try:
        return path.read_text().split()
    except FileNotFoundError:
        return []
