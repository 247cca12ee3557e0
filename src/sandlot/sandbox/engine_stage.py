"""What a container runs before its guest: it builds the walls that the engine cannot.

Sent as text to the image's own Python (3.8 or newer, standard library only) and never imported by
it from a file. It reads one request from stdin (four bytes of length, then JSON), makes a user
namespace that leaves it no right over the machine, puts a disk of a fixed size over the image,
drops capabilities, loads the system-call filter and becomes the guest. Before that it writes one
line of JSON to stdout: what it did, or why it could not.
"""

from __future__ import annotations

import base64
import ctypes
import errno
import json
import os
import resource
import stat
import struct
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_NEWNS, _NEWUSER = 0x00020000, 0x10000000
_RDONLY, _NOSUID, _NODEV, _NOEXEC, _REMOUNT, _BIND, _REC = 1, 2, 4, 8, 32, 4096, 16384
_PRIVATE = 1 << 18
_DETACH = 2
_PR_SET_SECCOMP, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 22, 24, 38
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_PLACE = "/run/sandlot-walls"  # the engine makes this mount point
_COPIED = ("/etc", "/run")  # the engine mounts files of its own there: no overlay can be laid over
_KERNEL = ("/proc", "/sys", "/dev")
_COPY_BYTES = 256 * 1024 * 1024
_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    request = read_request()
    report: dict[str, Any] = {
        "python": ".".join(str(part) for part in sys.version_info[:2]),
        "bash": has_bash(),
    }
    try:
        if request["walls"]:
            report.update(build_walls(request))
        else:
            write_files("", request["files"])
        os.makedirs(request["working_dir"], exist_ok=True)
        confine(request)
    except OSError as exc:
        report["error"] = f"{exc.strerror or exc} ({exc.filename})"
    os.write(1, json.dumps(report).encode() + b"\n")
    if request["command"] and "error" not in report:
        os.execvp(request["command"][0], request["command"])


def has_bash() -> bool:
    folders = [*os.environ.get("PATH", "").split(":"), "/bin", "/usr/bin", "/usr/local/bin"]
    return any(os.access(folder + "/bash", os.X_OK) for folder in folders if folder)


def read_request() -> dict[str, Any]:
    (size,) = struct.unpack("!I", read_exactly(4))
    found: dict[str, Any] = json.loads(read_exactly(size).decode())
    return found


def read_exactly(size: int) -> bytes:
    parts = []
    while size:
        part = os.read(0, min(size, 1 << 20))
        if not part:
            sys.exit(1)
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


# --- walls ----------------------------------------------------------------------------------------


def build_walls(request: dict[str, Any]) -> dict[str, Any]:
    """Returns what `report` says of them: each overlay's folder for changes, the names in `/`."""
    enter_namespaces()
    mount("none", "/", None, _REC | _PRIVATE)
    mounted = mount_points()
    mount("tmpfs", _PLACE, "tmpfs", 0, f"mode=755,size={request['disk_bytes']}")
    walls = Walls(mounted, request["files"])
    walls.copies = _PLACE + "/copies"
    os.mkdir(walls.copies)
    mount("tmpfs", walls.copies, "tmpfs", 0, f"mode=755,size={_COPY_BYTES}")
    os.mkdir(walls.root)
    mount(walls.root, walls.root, None, _BIND)
    names = sorted(os.listdir("/"))
    for name in names:
        walls.place("/" + name)
    for source, target in request["mounts"]:
        walls.bind(source, target)
    write_files(walls.root, walls.files)
    walls.show_changes()
    os.chdir(walls.root)
    call("syscall", _PIVOT_ROOT[os.uname().machine], b".", b".")
    call("umount2", b".", _DETACH)
    os.chdir("/")
    for path in ("/dev", "/sys/fs/cgroup"):
        protect(path)
    return {"layers": walls.layers, "names": names}


def protect(path: str) -> None:
    """Take the right to write from a tmpfs of the engine's, which is outside of our disk's size."""
    try:
        mount("none", path, None, _BIND | _REMOUNT | _RDONLY | _NOSUID | _NOEXEC)
    except OSError:  # on some machines it is another file system, and cannot be written anyway
        mount("none", path, None, _BIND | _REMOUNT | _RDONLY | _NOSUID | _NOEXEC | _NODEV)


def enter_namespaces() -> None:
    """A user namespace with the ids of the container, each mapped to itself.

    Its owner may map them only from outside, so a child that stays there does it.
    """
    maps = [(name, own_map(name)) for name in ("uid_map", "gid_map")]
    ready, go = os.pipe()
    me = os.getpid()
    child = os.fork()
    if child == 0:
        os.close(go)
        os._exit(write_maps(me, maps) if os.read(ready, 1) else 1)
    try:
        call("unshare", _NEWUSER | _NEWNS)
        os.write(go, b"1")
    finally:
        os.close(go)
        os.close(ready)
        status = os.waitpid(child, 0)[1]
    if status != 0:
        raise OSError(errno.EPERM, "ids cannot be mapped", "uid_map")


def own_map(name: str) -> str:
    with open("/proc/self/" + name) as file:
        rows = [[int(word) for word in line.split()] for line in file]
    return "".join(
        f"{first} {first} {min(count, 65536 - first)}\n"
        for first, _, count in rows
        if first < 65536
    )


def write_maps(pid: int, maps: list[tuple[str, str]]) -> int:
    try:
        for name, text in maps:
            with open(f"/proc/{pid}/{name}", "w") as file:
                file.write(text)
    except OSError:
        return 1
    return 0


def mount_points() -> list[str]:
    with open("/proc/self/mountinfo") as file:
        return [os.fsdecode(unescaped(line.split()[4])) for line in file]


def unescaped(word: str) -> bytes:
    return word.encode("utf-8", "surrogateescape").decode("unicode_escape").encode("latin-1")


class Walls:
    """The new root: a tmpfs of the disk's size, with an overlay over each folder of the image."""

    def __init__(self, mounted: list[str], files: dict[str, str]) -> None:
        self.mounted = mounted
        self.files = dict(files)
        self.layers: dict[str, str] = {}
        self.root = _PLACE + "/root"
        self.copies = ""
        self.count = 0

    def place(self, path: str) -> None:
        status = os.lstat(path)
        target = self.root + path
        if stat.S_ISLNK(status.st_mode):
            os.symlink(os.readlink(path), target)
        elif stat.S_ISREG(status.st_mode):
            copy_file(path, target, status)
        elif stat.S_ISDIR(status.st_mode):
            os.mkdir(target)
            keep_attributes(target, status)
            self.place_folder(path, target)

    def place_folder(self, path: str, target: str) -> None:
        if path in _KERNEL:
            mount(path, target, None, _BIND | _REC)
        elif not any(point.startswith(path + "/") for point in self.mounted):
            self.overlay(path, target)
        elif path in _COPIED:
            copy = self.copies + path
            copy_tree(path, copy, (_PLACE,))
            below = [name for name in self.files if name.startswith(path + "/")]
            write_files(self.copies, {name: self.files.pop(name) for name in below})
            self.overlay(copy, target)
        else:
            for name in os.listdir(path):
                self.place(path + "/" + name)

    def overlay(self, lower: str, target: str) -> None:
        self.count += 1
        upper, work = (f"{_PLACE}/{kind}{self.count}" for kind in ("upper", "work"))
        os.mkdir(upper)
        os.mkdir(work)
        keep_attributes(upper, os.lstat(lower))
        layers = f"lowerdir={escaped(lower)},upperdir={upper},workdir={work}"
        mount("overlay", target, "overlay", 0, f"{layers},userxattr")
        self.layers[target[len(self.root) :]] = upper

    def show_changes(self) -> None:
        """What was changed can be read inside, for snapshots; only the overlays write there."""
        inside = self.root + _PLACE
        os.makedirs(inside, 0o700, exist_ok=True)
        mount(_PLACE, inside, None, _BIND)
        mount("none", inside, None, _BIND | _REMOUNT | _RDONLY)

    def bind(self, source: str, target: str) -> None:
        inside = self.root + target
        if os.path.isdir(source):
            os.makedirs(inside, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(inside), exist_ok=True)
            open(inside, "a").close()
        mount(source, inside, None, _BIND | _REC)


def escaped(path: str) -> str:
    return path.replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,")


def copy_tree(source: str, target: str, left_out: tuple[str, ...]) -> None:
    os.mkdir(target)
    for entry in os.scandir(source):
        status = entry.stat(follow_symlinks=False)
        copy = target + "/" + entry.name
        if entry.path in left_out or entry.path.startswith("/run/sandlot-"):
            continue
        if entry.is_symlink():
            os.symlink(os.readlink(entry.path), copy)
            os.lchown(copy, status.st_uid, status.st_gid)
        elif entry.is_dir():
            copy_tree(entry.path, copy, left_out)
        elif entry.is_file():
            copy_file(entry.path, copy, status)
    keep_attributes(target, os.lstat(source))


def copy_file(source: str, target: str, status: os.stat_result) -> None:
    with open(source, "rb", 0) as reader, open(target, "wb", 0) as writer:
        for data in iter(lambda: reader.read(1 << 20), b""):
            writer.write(data)
    keep_attributes(target, status)


def keep_attributes(path: str, status: os.stat_result) -> None:
    if status.st_uid or status.st_gid:
        os.chown(path, status.st_uid, status.st_gid)
    os.chmod(path, stat.S_IMODE(status.st_mode))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


# --- files, rights, calls ---------------------------------------------------------------------


def write_files(root: str, files: dict[str, str]) -> None:
    """Files of the harness: package settings, names. A folder that is a link is not followed."""
    for path, data in files.items():
        parent = os.path.dirname(root + path)
        os.makedirs(parent, exist_ok=True)
        replace_file(root + path, base64.b64decode(data))


def replace_file(path: str, data: bytes) -> None:
    if os.path.islink(path):
        os.unlink(path)
    with open(path, "wb") as file:
        file.write(data)
    os.chmod(path, 0o644)


def confine(request: dict[str, Any]) -> None:
    for name, value in request["rlimits"].items():
        resource.setrlimit(getattr(resource, name), (value, value))
    if request["walls"]:
        for number in range(64):
            if number not in request["capabilities"]:
                _libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0)
    call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    code = base64.b64decode(request["filter"])
    if code:
        load_filter(code)


def load_filter(code: bytes) -> None:
    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))

    program = Program(len(code) // 8, code)
    call("prctl", _PR_SET_SECCOMP, 2, ctypes.byref(program), 0, 0)


def mount(source: str, target: str, kind: str | None, flags: int, data: str = "") -> None:
    words = [os.fsencode(source), os.fsencode(target), kind.encode() if kind else None]
    if _libc.mount(*words, ctypes.c_ulong(flags), os.fsencode(data) or None) < 0:
        number = ctypes.get_errno()
        raise OSError(number, "mount: " + os.strerror(number), target)


def call(name: str, *arguments: object) -> None:
    if getattr(_libc, name)(*arguments) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}", name)


if __name__ == "__main__":
    main()
