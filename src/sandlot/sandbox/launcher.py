"""The launcher: one small helper process per harness that does what threads may not do.

Entering a user namespace needs a process with one thread, so the harness cannot do it itself.
The launcher is started once (`python -I -S launcher.py SOCKET LEASE_DIR LOCK`), imports only the
standard library, and gives each request to a child of its own:

`start`   enters the id map, makes the mount and network namespaces, the sized upper layer and the
          egress listener, and becomes bubblewrap.
`files`   enters a sandbox's user namespace (not its mount namespace) and opens files below its
          root for the harness; descriptors travel back, bytes never pass through here.
`run`     runs one program of the host inside the id map (tar, to unpack or remove an image).
`ahead`   a child enters control groups and waits there for the `start` that names it; `leave`
          ends one that will not be needed.

Requests are JSON in single SOCK_SEQPACKET packets with descriptors attached; the first descriptor
of each is the socket on which the child answers. When the harness is gone (end of file), every
sandbox is killed by its first process, and the lease's folder and cgroups are removed.

Nothing here trusts the sandboxed side: paths are opened by openat2 with RESOLVE_IN_ROOT, and
only what `fstat` shows to be of the asked kind is handed on.
"""

from __future__ import annotations

import array
import ctypes
import errno
import fcntl
import gc
import json
import os
import resource
import signal
import socket
import stat
import struct
import sys
import time
import warnings  # noqa: F401  nothing can be imported any more once the id map is entered

TYPE_CHECKING = False  # not from `typing`, whose import would make every launcher start later
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    Message = dict[str, Any]
    Answer = tuple[Message, list[int]]

CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWNET = 0x00020000, 0x10000000, 0x40000000
MS_BIND, MS_REC, MS_PRIVATE, MS_NOSUID, MS_NODEV = 0x1000, 0x4000, 0x40000, 2, 4
PR_SET_CHILD_SUBREAPER, PR_SET_DUMPABLE = 36, 4
SYS_OPENAT2 = 437
RESOLVE_NO_MAGICLINKS, RESOLVE_IN_ROOT = 0x02, 0x10
KERNEL_FILE_SYSTEMS = (0x9FA0, 0x62656572, 0x63677270, 0x27E0EB)  # proc, sysfs, cgroup v2 and v1
PACKET_BYTES = 1 << 20
PAGE_BYTES = 100_000  # an answer must fit the default send buffer of a socket
STAGE = "/tmp"  # inside the child's own mount namespace only; every system has it
PROXY_PORT = 3128
LOOP_CTL_GET_FREE, LOOP_CONFIGURE = 0x4C82, 0x4C0A
LO_FLAGS_AUTOCLEAR, LOOP_CONFIG_BYTES = 4, 304

libc = ctypes.CDLL(None, use_errno=True)


def check(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def unshare(flags: int, what: str) -> None:
    check(libc.unshare(flags), what)


def setns(fd: int, kind: int, what: str) -> None:
    check(libc.setns(fd, kind), what)


def mount(
    source: str | None, target: str, kind: str | None, flags: int, options: str | None, what: str
) -> None:
    words = [None if text is None else os.fsencode(text) for text in (source, target, kind)]
    data = None if options is None else os.fsencode(options)
    check(libc.mount(*words, flags, data), what)


def openat2(root: int, path: str, flags: int, mode: int = 0) -> int:
    """Open `path` with `root` as the root folder: links and `..` cannot leave it."""
    how = struct.pack("QQQ", flags | os.O_CLOEXEC, mode, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
    try:
        name = os.fsencode(path)
    except UnicodeEncodeError:
        raise OSError(errno.EILSEQ, "a path cannot hold half a character") from None
    if b"\0" in name:
        raise OSError(errno.EINVAL, "a path cannot hold a NUL byte")
    while True:
        fd: int = libc.syscall(SYS_OPENAT2, root, name, how, len(how))
        if fd >= 0:
            return fd
        code = ctypes.get_errno()
        if code not in (errno.EAGAIN, errno.EINTR):  # EAGAIN: a rename raced with a `..`
            raise OSError(code, os.strerror(code))


def reopen(fd: int, flags: int) -> int:
    """Open what an O_PATH descriptor pins; no name is looked up again."""
    return os.open(f"/proc/self/fd/{fd}", flags | os.O_CLOEXEC | os.O_NOCTTY)


def is_of_kernel(fd: int) -> bool:
    """Whether a file shows the kernel: /proc and the like.

    Those answer by who asks: to this process they would show the host's own name and settings, and
    take settings of the user namespace that all sandboxes share, as the inside itself may not.
    """
    about = ctypes.create_string_buffer(256)  # struct statfs, whose first member is the type
    check(libc.fstatfs(fd, about), "fstatfs")
    return struct.unpack_from("l", about)[0] in KERNEL_FILE_SYSTEMS


# --- messages -----------------------------------------------------------------------------------


def receive(sock: socket.socket, max_fds: int = 16) -> tuple[Message | None, list[int]]:
    data, ancillary, _flags, _addr = sock.recvmsg(
        PACKET_BYTES, socket.CMSG_SPACE(max_fds * 4), socket.MSG_CMSG_CLOEXEC
    )
    fds: array.array[int] = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) - len(payload) % 4])
    return (json.loads(data) if data else None), list(fds)


def send(sock: socket.socket, message: Message, fds: Sequence[int] = ()) -> None:
    payload = json.dumps(message).encode()
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([payload], ancillary)


def send_if_heard(sock: socket.socket, message: Message) -> None:
    """A harness that is gone hears nothing; its launcher must live on to clean up."""
    try:
        send(sock, message)
    except OSError:
        pass


# --- id maps ------------------------------------------------------------------------------------


def write_text(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def make_user_namespace(idmap: Message) -> int:
    """A namespace with the 64k map, made once; returns a descriptor of it."""
    ready_r, ready_w = os.pipe()
    done_r, done_w = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(done_w)
            unshare(CLONE_NEWUSER, "unshare user namespace")
            os.write(ready_w, b"1")
            os.read(done_r, 1)
        except OSError as exc:
            os.write(ready_w, str(exc).encode())
        os._exit(0)
    os.close(ready_w)
    os.close(done_r)
    try:
        said = os.read(ready_r, 4096)
        if said != b"1":
            raise OSError(errno.EPERM, said.decode() or "the namespace helper died")
        write_maps(pid, idmap)
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(ready_r)
        os.close(done_w)
        os.waitpid(pid, 0)


def write_maps(pid: int, idmap: Message) -> None:
    if idmap["kind"] == "root":
        for name in ("uid_map", "gid_map"):
            write_text(f"/proc/{pid}/{name}", f"0 {idmap['base']} {idmap['count']}\n")
        return
    for program, own, base in (
        ("newuidmap", os.getuid(), idmap["base"]),
        ("newgidmap", os.getgid(), idmap["gid_base"]),
    ):
        words = [program, str(pid), "0", str(own), "1", "1", str(base), str(idmap["count"] - 1)]
        child = os.posix_spawnp(program, words, os.environ)
        if os.waitpid(child, 0)[1] != 0:
            raise OSError(
                errno.EPERM, f"{program} refused the map; see /etc/subuid and /etc/subgid"
            )


def become_inner_root() -> None:
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def enter_single_map() -> None:
    """One id: uid 0 inside is the caller outside."""
    uid, gid = os.getuid(), os.getgid()
    unshare(CLONE_NEWUSER, "unshare user namespace")
    write_text("/proc/self/setgroups", "deny")
    write_text("/proc/self/uid_map", f"0 {uid} 1\n")
    write_text("/proc/self/gid_map", f"0 {gid} 1\n")


# In the pieces of the outer map: the kernel refuses a row that crosses a border between two of its.
NESTED_MAP = "0 0 1\n1 1 65535\n"


def nest_user_namespace() -> None:
    """A namespace of its own for one sandbox, so that its process limit counts only itself.

    A child writes the map from the outer one. A parent that ended then would do it too, but
    bubblewrap dies with its parent, and on a busy machine it may have begun before that end.
    """
    # A change of the real user closes /proc/PID to everybody but root; the map is written there.
    libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)
    own = os.getpid()
    ready_r, ready_w = os.pipe()
    writer = os.fork()
    if writer == 0:
        status = 1
        try:
            os.close(ready_w)
            if os.read(ready_r, 1):
                for name in ("uid_map", "gid_map"):
                    write_text(f"/proc/{own}/{name}", NESTED_MAP)
                status = 0
        finally:
            os._exit(status)
    os.close(ready_r)
    unshare(CLONE_NEWUSER, "unshare nested user namespace")
    os.write(ready_w, b"1")
    os.close(ready_w)
    if os.waitpid(writer, 0)[1] != 0:
        raise OSError(errno.EPERM, "the nested id map could not be written")


# --- start --------------------------------------------------------------------------------------


def start(request: Message, fds: list[int], reply: socket.socket, userns: int | None) -> None:
    """Become bubblewrap. `fds` are info, stdin, keeper control, seccomp, errors, in this order;

    then a kept sandbox where one is restored, then a disk image where there is one.
    """
    enter_cgroups(request["cgroup_procs"])
    owner = request["idmap"]
    image = fds[-1] if request["disk_image"] else None
    if owner["kind"] == "root":  # folders of root are closed to the mapped ids: bind them first
        assert userns is not None, "a `map` request comes before the first `start`"
        prepare_mounts(request, owner["base"], image)
        setns(userns, CLONE_NEWUSER, "enter the id map")
        become_inner_root()
    else:
        if userns is None:
            enter_single_map()
        else:
            setns(userns, CLONE_NEWUSER, "enter the id map")
            become_inner_root()
    if request["own_user_namespace"] and userns is not None:
        nest_user_namespace()
    if owner["kind"] != "root":
        prepare_mounts(request, None, image)
    if request["restore"]:
        unpack_upper(fds[5])
    refuse_planted_links(request["mount_points"])
    make_whiteouts(request["whiteouts"])
    handed = [upper_descriptor()]
    unshare(CLONE_NEWNET, "unshare network namespace")
    bring_loopback_up()
    if request["listen"]:
        handed.append(listen())
    send(reply, {"ok": True}, handed)
    become_bubblewrap(request, fds)


def enter_cgroups(procs: list[str]) -> None:
    for path in procs:
        write_text(path, "0")


def prepare_mounts(request: Message, chown_to: int | None, image: int | None) -> None:
    """The stage: a sized place for the upper layers, and binds of what bubblewrap will read.

    `image` is a file with an ext4 file system that takes the place of the tmpfs below `disk`.
    """
    unshare(CLONE_NEWNS, "unshare mount namespace")
    mount(None, "/", None, MS_REC | MS_PRIVATE, None, "make mounts private")
    sources = {
        name: os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        for name, path in request["binds"].items()
    }
    most = request["disk_bytes"]
    # An inode takes kernel memory beyond the blocks, so their number needs a ceiling too.
    size = f",size={most},nr_inodes={max(4096, most // 8192)}" if most else ""
    mount("sandlot", STAGE, "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755" + size, "mount upper layer")
    os.mkdir(f"{STAGE}/disk", 0o755)
    if image is not None:
        mount_image(image, f"{STAGE}/disk")
    made = []
    for name in request["uppers"]:
        made += [f"disk/{name}", f"disk/{name}/upper", f"disk/{name}/work"]
    for name in made:
        os.mkdir(f"{STAGE}/{name}", 0o755)
    if chown_to is not None:
        for name in ("disk", *made):
            os.chown(f"{STAGE}/{name}", chown_to, chown_to)
    for name, fd in sources.items():
        os.mkdir(f"{STAGE}/{name}", 0o755)
        mount(
            f"/proc/self/fd/{fd}", f"{STAGE}/{name}", None, MS_BIND | MS_REC, None, f"bind {name}"
        )
        os.close(fd)


def mount_image(image: int, target: str) -> None:
    """Mount a file through a loop device, which the kernel frees with the last mount."""
    device, path = attach_loop(image)
    try:
        options = "noinit_itable,errors=continue"
        mount(path, target, "ext4", MS_NOSUID | MS_NODEV, options, "mount the disk image")
    finally:
        os.close(device)


def attach_loop(image: int) -> tuple[int, str]:
    """A free loop device over `image`: (descriptor, path). See loop(4), LOOP_CONFIGURE."""
    config = struct.pack("II", image, 0) + bytes(52) + struct.pack("I", LO_FLAGS_AUTOCLEAR)
    config = config.ljust(LOOP_CONFIG_BYTES, b"\0")
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(100):
            path = f"/dev/loop{fcntl.ioctl(control, LOOP_CTL_GET_FREE)}"
            device = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.ioctl(device, LOOP_CONFIGURE, config)
                return device, path
            except OSError as exc:
                os.close(device)
                if exc.errno != errno.EBUSY:  # another sandbox took it between the two calls
                    raise
    finally:
        os.close(control)
    raise OSError(errno.EBUSY, "no loop device could be had for the disk image")


def is_replaced(folder: str) -> bool:
    """Whether a restored upper layer hides all of the layers below there (an opaque folder)."""
    while len(folder) > len(STAGE):
        try:
            if os.getxattr(folder, "user.overlay.opaque") == b"y":
                return True
        except OSError:
            pass  # no such attribute, or a file system without them
        folder = os.path.dirname(folder)
    return False


def make_whiteouts(names: list[str]) -> None:
    """Hide files of the layers below: a 0:0 character device in the upper layer."""
    for name in names:
        path = f"{STAGE}/disk/{name}"
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if os.path.lexists(path) or is_replaced(os.path.dirname(path)):
            continue  # restored with the layer
        os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(0, 0))


def unpack_upper(tar_fd: int) -> None:
    """Fill the upper layers from a kept sandbox, before anything is mounted over them."""
    words = ["tar", "-x", "-p", "--xattrs", "--xattrs-include=*", "--numeric-owner"]
    words += ["--anchored", "--exclude=sandlot-state.json", "-f", "-"]
    pid = os.fork()
    if pid == 0:
        os.dup2(tar_fd, 0, inheritable=True)
        os.chdir(f"{STAGE}/disk")
        os.execvpe(words[0], words, {"PATH": "/usr/bin:/bin"})
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0:
        raise OSError(errno.EIO, "the kept sandbox could not be unpacked")


def refuse_planted_links(points: list[str]) -> None:
    """bubblewrap follows links on its way to a mount point, and the host's files lie at /oldroot.

    So no folder on the way to one may be a link, neither of the image nor of a kept upper layer.
    """
    layers = [f"{STAGE}/disk/root/upper"]
    layers += [f"{STAGE}/{name}" for name in os.listdir(STAGE) if name.startswith("lower")]
    for point in points:
        parts = point.strip("/").split("/")
        for depth in range(1, len(parts) + 1):
            name = "/".join(parts[:depth])
            for layer in layers:
                if os.path.islink(f"{layer}/{name}"):
                    raise OSError(errno.ELOOP, f"the image or kept sandbox has a link at /{name}")


def upper_descriptor() -> int:
    return os.open(f"{STAGE}/disk", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def bring_loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = struct.pack("16sh14x", b"lo", 1)  # IFF_UP
        fcntl.ioctl(sock, 0x8914, request)  # SIOCSIFFLAGS


def listen() -> int:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((b"127.0.0.1", PROXY_PORT))  # bytes: text would import a codec
    sock.listen(512)
    return sock.detach()


def set_limits(limits: dict[str, int]) -> None:
    for name, value in limits.items():
        kind = getattr(resource, name)
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def become_bubblewrap(request: Message, fds: list[int]) -> None:
    """Descriptors go to fixed numbers: 0 commands, 3 keeper control, 4 info, 5 seccomp."""
    null = os.open("/dev/null", os.O_RDWR)
    wanted = {0: fds[1], 1: null, 2: fds[4], 3: fds[2], 4: fds[0], 5: fds[3]}
    high = {number: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 64) for number, fd in wanted.items()}
    for number, fd in high.items():
        os.dup2(fd, number, inheritable=True)
    set_limits(request["rlimits"])  # last: a small limit on descriptors would stop the above
    os.execve(request["argv"][0], request["argv"], {"PATH": "/usr/bin:/bin"})


# --- files --------------------------------------------------------------------------------------


def serve_files(request: Message, fds: list[int], reply: socket.socket) -> None:
    """Answer file requests below one root until the harness closes the socket.

    `fds` are the root folder (O_PATH) and the sandbox's user namespace.
    """
    root = fds[0]
    setns(fds[1], CLONE_NEWUSER, "enter the sandbox's user namespace")
    become_inner_root_if_mapped()
    send(reply, {"ok": True})
    os.umask(0o022)
    while True:
        message, _ = receive(reply)
        if message is None:
            return
        try:
            answer, handed = FILE_OPS[message["op"]](root, message)
        except OSError as exc:
            answer, handed = (
                {"errno": exc.errno or errno.EIO, "error": exc.strerror or str(exc)},
                [],
            )
        send(reply, answer, handed)
        for fd in handed:
            os.close(fd)


def become_inner_root_if_mapped() -> None:
    try:
        os.setgroups([])
    except OSError:
        pass  # a map of one id denies setgroups; the id is root already
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def kind_of(mode: int) -> str:
    for test, kind in (
        (stat.S_ISREG, "file"),
        (stat.S_ISDIR, "directory"),
        (stat.S_ISLNK, "link"),
        (stat.S_ISFIFO, "fifo"),
        (stat.S_ISSOCK, "socket"),
    ):
        if test(mode):
            return kind
    return "device"


def describe(name: str, status: os.stat_result) -> Message:
    return {
        "path": name,
        "kind": kind_of(status.st_mode),
        "size": status.st_size,
        "mode": stat.S_IMODE(status.st_mode),
    }


def op_stat(root: int, message: Message) -> Answer:
    fd = openat2(root, message["path"], os.O_PATH | os.O_NOFOLLOW)
    try:
        return {"info": describe(message["path"], os.fstat(fd))}, []
    finally:
        os.close(fd)


def refuse_irregular(fd: int) -> None:
    kind = kind_of(os.fstat(fd).st_mode)
    if kind != "file":
        raise OSError(errno.EINVAL, f"is a {kind}, not a regular file")
    if is_of_kernel(fd):
        raise OSError(errno.EINVAL, "is a file of the kernel: use it from the shell")


def op_read(root: int, message: Message) -> Answer:
    fd = openat2(root, message["path"], os.O_PATH)
    try:
        refuse_irregular(fd)
        return {"ok": True}, [reopen(fd, os.O_RDONLY | os.O_NONBLOCK)]
    finally:
        os.close(fd)


def op_write(root: int, message: Message) -> Answer:
    """Open for writing, made with its parents if missing. An existing file keeps its mode."""
    path = message["path"]
    if message.get("parents"):
        make_parents(root, os.path.dirname(path))
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        return {"ok": True, "created": True}, [
            openat2(root, path, flags, message.get("mode", 0o644))
        ]
    except FileExistsError:
        if message.get("exclusive"):
            raise
    try:
        fd = openat2(root, path, os.O_PATH)
    except FileNotFoundError:  # a link whose target is missing: make the target, inside the root
        flags = os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK
        made = openat2(root, path, flags, message.get("mode", 0o644))
        try:
            refuse_irregular(made)  # the link may lead elsewhere by now
        except OSError:
            os.close(made)
            raise
        return {"ok": True, "created": True}, [made]
    try:
        refuse_irregular(fd)
        return {"ok": True, "created": False}, [
            reopen(fd, os.O_WRONLY | os.O_TRUNC | os.O_NONBLOCK)
        ]
    finally:
        os.close(fd)


def make_parents(root: int, folder: str) -> None:
    """Make each missing folder, one step at a time below a pinned descriptor.

    Never by name from the host's side: a link that the sandbox plants half-way is resolved
    inside its own root by openat2, and mkdir does not follow a link in its last part.
    """
    parts = [part for part in folder.split("/") if part]
    for depth in range(1, len(parts) + 1):
        path = "/" + "/".join(parts[:depth])
        try:
            os.close(openat2(root, path, os.O_PATH | os.O_DIRECTORY))
        except FileNotFoundError:
            parent = openat2(root, "/" + "/".join(parts[: depth - 1]), os.O_PATH | os.O_DIRECTORY)
            try:
                os.mkdir(parts[depth - 1], 0o755, dir_fd=parent)
            except FileExistsError:
                pass  # made meanwhile, or a link to a missing target: the next step tells
            finally:
                os.close(parent)


def op_mkdir(root: int, message: Message) -> Answer:
    make_parents(root, message["path"])
    os.close(openat2(root, message["path"], os.O_PATH | os.O_DIRECTORY))
    return {"ok": True}, []


def op_symlink(root: int, message: Message) -> Answer:
    folder, name = os.path.split(message["path"])
    make_parents(root, folder)
    parent = openat2(root, folder or "/", os.O_PATH | os.O_DIRECTORY)
    try:
        os.symlink(message["target"], name, dir_fd=parent)
    finally:
        os.close(parent)
    return {"ok": True}, []


listed: dict[str, list[str]] = {}


def op_list(root: int, message: Message) -> Answer:
    """A page of a folder's entries, in the order of the names; `taken` is where to go on.

    The names are kept between the pages: read and sorted for each, a large folder would take hours.
    """
    path, offset = message["path"], message.get("offset", 0)
    fd = openat2(root, path, os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK)
    entries: list[Message] = []
    taken, room = 0, PAGE_BYTES
    try:
        if offset == 0 or path not in listed:
            listed.clear()
            listed[path] = sorted(os.listdir(fd))
        names = listed[path]
        while offset + taken < len(names):
            name = names[offset + taken]
            room -= 6 * len(name) + 80  # the worst that JSON makes of it
            if room < 0 and taken:
                break
            taken += 1
            try:
                entries.append(describe(name, os.stat(name, dir_fd=fd, follow_symlinks=False)))
            except FileNotFoundError:
                continue
        if offset + taken >= len(names):
            listed.clear()
        return {"entries": entries, "taken": taken, "total": len(names)}, []
    finally:
        os.close(fd)


FILE_OPS = {
    "stat": op_stat,
    "read": op_read,
    "write": op_write,
    "mkdir": op_mkdir,
    "symlink": op_symlink,
    "list": op_list,
}


# --- run ----------------------------------------------------------------------------------------


def run(request: Message, fds: list[int], reply: socket.socket, userns: int | None) -> None:
    """Run a host program inside the id map: `fds` are folder, stdin, stdout, stderr."""
    if len(fds) > 4:
        setns(fds[4], CLONE_NEWUSER, "enter the sandbox's user namespace")
        become_inner_root_if_mapped()
    elif userns is not None:
        setns(userns, CLONE_NEWUSER, "enter the id map")
        become_inner_root()
    else:
        enter_single_map()
    pid = os.fork()
    if pid == 0:
        os.fchdir(fds[0])
        for number, fd in enumerate(fds[1:4]):
            os.dup2(fd, number, inheritable=True)
        os.execvpe(request["argv"][0], request["argv"], {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"})
    send(reply, {"exit": os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])})


# --- the loop -----------------------------------------------------------------------------------


def fork_spare(
    control: socket.socket, namespaces: dict[str, int], cgroup_procs: Sequence[str] = ()
) -> socket.socket:
    """A child made ahead of its request: the fork is a tenth of what a sandbox's start takes,

    and entering a version 1 control group waits for the kernel, milliseconds on a busy machine.
    Returns the socket on which it waits for its one request; it ends when that is closed.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork():
        theirs.close()
        return ours
    try:
        ours.close()
        control.close()
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_DFL)  # an ignored one would stay ignored inside
        enter_cgroups(list(cgroup_procs))
        request, fds = receive(theirs)
        theirs.close()
        if request is not None:
            handle(request, fds, namespaces)
    finally:
        os._exit(0)


def handle(request: Message, fds: list[int], namespaces: dict[str, int]) -> None:
    reply = socket.socket(fileno=fds[0])
    try:
        userns = namespaces.get("fd")
        if request["op"] == "start":
            start(request, fds[1:], reply, userns)
        elif request["op"] == "files":
            serve_files(request, fds[1:], reply)
        elif request["op"] == "run":
            run(request, fds[1:], reply, userns)
    except Exception as exc:  # noqa: BLE001  the child's last act: whatever it was, tell the harness
        code = getattr(exc, "errno", None) or errno.EIO
        send_if_heard(reply, {"errno": code, "error": getattr(exc, "strerror", None) or repr(exc)})


def map_namespace(request: Message, fds: list[int], namespaces: dict[str, int]) -> None:
    """Make the shared user namespace; answers in place, for it must live in the launcher."""
    reply = socket.socket(fileno=fds[0])
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        namespaces["fd"] = make_user_namespace(request["idmap"])
        send_if_heard(reply, {"ok": True})
    except OSError as exc:
        send_if_heard(reply, {"errno": exc.errno or errno.EIO, "error": exc.strerror or str(exc)})
    finally:
        signal.signal(signal.SIGCHLD, reap_children)
        reply.close()


def reap_children(*_: object) -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def children_of(pid: int) -> list[int]:
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            return [int(word) for word in file.read().split()]
    except OSError:
        return []


def kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def end_everything(lease_dir: str) -> None:
    """The harness is gone: kill each sandbox by its first process, then remove what it left."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for outer in children_of(os.getpid()):
        for init in children_of(outer):
            kill(init)
        kill(outer)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(0.005)
        except ChildProcessError:
            break
    remove_leavings(lease_dir)


def remove_leavings(lease_dir: str) -> None:
    try:
        with open(os.path.join(lease_dir, "lease.json")) as file:
            lease = json.load(file)
    except (OSError, ValueError):
        lease = {}
    for top in lease.get("cgroups", []):
        for folder, _, _ in os.walk(top, topdown=False):
            try:
                os.rmdir(folder)
            except OSError:
                pass  # still busy: the next start's reaping finds the lease again
    import shutil  # only here: it is heavy, and every sandbox start forks this process

    shutil.rmtree(lease_dir, ignore_errors=True)


def main() -> None:
    control = socket.socket(fileno=int(sys.argv[1]))
    lease_dir = sys.argv[2]
    os.set_inheritable(int(sys.argv[3]), False)  # the lease's lock: ours, not the sandboxes'
    os.setsid()  # a Ctrl-C in the terminal is the harness's to answer
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signal.signal(signal.SIGCHLD, reap_children)
    gc.disable()  # nothing here makes cycles, and a collection would touch every shared page
    gc.freeze()
    namespaces: dict[str, int] = {}
    spare: socket.socket | None = None
    ahead: dict[str, socket.socket] = {}
    while True:
        request, fds = receive(control)
        if request is None:
            break
        if request["op"] == "map":
            map_namespace(request, fds, namespaces)
            continue
        if request["op"] == "ahead":
            name, procs = request["name"], request["cgroup_procs"]
            ahead[name] = fork_spare(control, namespaces, procs)
            continue
        waiting = ahead.pop(request.get("ahead", ""), None)
        if request["op"] == "leave":
            if waiting is not None:
                waiting.close()
            continue
        child = waiting or spare or fork_spare(control, namespaces)
        send(child, request, fds)
        child.close()
        for fd in fds:
            os.close(fd)
        if waiting is None:
            spare = fork_spare(control, namespaces)
    for child in (*ahead.values(), *([spare] if spare else [])):
        child.close()
    end_everything(lease_dir)


if __name__ == "__main__":
    main()
