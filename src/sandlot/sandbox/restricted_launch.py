"""The supervisor of one `restricted` sandbox: starts the confined guest, answers for it, ends it.

Run as a program of its own, `python -I -S restricted_launch.py REQUEST_FD`, with the guest's stdin
and stdout as its own. Only the standard library and `landlock.py` beside it are used. It stays
outside of the confinement, and does four things until its control socket ends:

* it gives descriptors and answers to the system calls that the filter hands over (`_Broker`);
* it is the subreaper, so that every process inside is below it, and reaps those that are left;
* it watches the summed memory and the disk use of the private folder, as a best effort;
* at the end it kills everything below it and removes the private folder.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import resource
import select
import signal
import socket
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import module_from_spec, spec_from_file_location
from types import ModuleType
from typing import Any, NoReturn

_PR_SET_PDEATHSIG, _PR_CAPBSET_DROP, _PR_SET_CHILD_SUBREAPER = 1, 24, 36
_CAPSET = {"x86_64": 126, "aarch64": 91}
_SECCOMP = {"x86_64": 317, "aarch64": 277}
_TGKILL = {"x86_64": 234, "aarch64": 131}
_CAPABILITY_VERSION_3 = 0x20080522
_SET_MODE_FILTER, _NEW_LISTENER = 1, 8
# ioctl numbers of uapi linux/seccomp.h
_NOTIF_RECV, _NOTIF_SEND, _NOTIF_ID_VALID = 0xC0502100, 0xC0182101, 0x40082102
_NOTIF_ADDFD = 0x40182103
_NOTIF = struct.Struct("=QIIiIQ6Q")
_ANSWER = struct.Struct("=QqiI")
_ADD_FD = struct.Struct("=QIIII")
_SETFD, _CONTINUE = 1, 1
_AT_FDCWD, _AT_SYMLINK_NOFOLLOW = -100, 0x100
_PATH_BYTES = 4096
_WATCH_S = 0.25
_KILL_ROUNDS = 2000

libc = ctypes.CDLL(None, use_errno=True)
_PAGE = os.sysconf("SC_PAGE_SIZE")


def checked(value: int, what: str) -> int:
    if value < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return value


def sibling(name: str) -> ModuleType:
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), f"{name}.py")
    spec = spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- processes below the supervisor -------------------------------------------------------------


def status_of(pid: int) -> tuple[str, int]:
    """State and parent of a process; nothing and 0 where it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            state, parent = file.read().rpartition(b")")[2].split()[:2]
    except (OSError, ValueError):
        return "", 0
    return state.decode(), int(parent)


def parent_of(pid: int) -> int:
    return status_of(pid)[1]


def process_of(thread: int) -> int:
    """The process that a thread belongs to, 0 where it is gone."""
    try:
        with open(f"/proc/{thread}/status", "rb") as file:
            return int(file.read().split(b"Tgid:")[1].split()[0])
    except (OSError, IndexError):
        return 0


def inside() -> dict[int, int]:
    """Every process below this one, and its parent."""
    parents = {int(name): parent_of(int(name)) for name in os.listdir("/proc") if name.isdigit()}
    children: dict[int, list[int]] = {}
    for pid, parent in parents.items():
        children.setdefault(parent, []).append(pid)
    found: dict[int, int] = {}
    queue = [os.getpid()]
    while queue:
        here = queue.pop()
        for pid in children.get(here, ()):
            found[pid] = here
            queue.append(pid)
    return found


def is_inside(pid: int) -> bool:
    own = os.getpid()
    while pid > 1:
        pid = parent_of(pid)
        if pid == own:
            return True
    return False


def send(pid: int, parent: int, number: int) -> None:
    """Signal a process only while it is the one that was seen below `parent` or below us."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        pin = os.pidfd_open(pid)
        try:
            if parent_of(pid) in (parent, os.getpid()):
                signal.pidfd_send_signal(pin, number)
        finally:
            os.close(pin)


def kill_all(reap: Callable[[], bool]) -> None:
    """Kill what is below until `reap` says that nothing is; bombs are refused new processes."""
    for _ in range(_KILL_ROUNDS):
        found = inside()
        for pid, parent in found.items():
            with contextlib.suppress(OSError):
                resource.prlimit(pid, resource.RLIMIT_NPROC, (0, 0))
            send(pid, parent, signal.SIGKILL)
        if not reap():
            return
        time.sleep(0.001)


def resident_bytes(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            words = file.read().split()
    except OSError:
        return 0
    return int(words[1]) * _PAGE


def disk_bytes(folder: str) -> int:
    """Blocks in use below a folder, each file once; what vanishes meanwhile is not counted."""
    total = 0
    seen: set[int] = set()
    folders = [folder]
    while folders:
        try:
            entries = os.scandir(folders.pop())
        except OSError:  # gone, closed, or deeper than a path can name
            continue
        with entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    status = entry.stat(follow_symlinks=False)
                    if stat.S_ISDIR(status.st_mode):
                        folders.append(entry.path)
                    elif status.st_nlink == 1 or status.st_ino not in seen:
                        seen.add(status.st_ino)
                        total += status.st_blocks * 512
    return total


def remove_tree(folder: str) -> None:
    """Remove a folder, whatever modes were set below it and however deep it is."""
    open_up = ["-type", "d", "!", "-perm", "-0700", "-execdir", "chmod", "u+rwx", "{}", ";"]
    for words in (open_up, ["-delete"]):
        with contextlib.suppress(OSError):
            subprocess.run(
                ["find", folder, "-xdev", *words],
                check=False,
                env={"PATH": "/usr/bin:/bin"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )


# --- becoming confined --------------------------------------------------------------------------


def become(uid: int) -> None:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def bound_capabilities() -> None:
    """None can come back by an exec. Refused where this process holds none anyway."""
    for capability in range(64):
        libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)


def drop_capabilities(machine: str) -> None:
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    call = (ctypes.c_long(_CAPSET[machine]), header, bytes(24))
    checked(libc.syscall(*call), "capset")


def install_filter(machine: str, program: bytes, *, listen: bool) -> int:
    """Install a filter; with `listen`, the descriptor on which its questions come."""
    code = ctypes.create_string_buffer(program, len(program))
    packed = struct.pack("@HP", len(program) // 8, ctypes.addressof(code))
    flags = _NEW_LISTENER if listen else 0
    call = (ctypes.c_long(_SECCOMP[machine]), ctypes.c_uint(_SET_MODE_FILTER))
    return checked(libc.syscall(*call, ctypes.c_uint(flags), packed), "seccomp")


def close_all_but(kept: set[int]) -> None:
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in kept:
            with contextlib.suppress(OSError):
                os.close(int(name))


def set_limits(limits: dict[str, int]) -> None:
    for name, value in limits.items():
        number = getattr(resource, name)
        _, hard = resource.getrlimit(number)
        most = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(number, (most, most))


def confined(request: dict[str, Any], uid: int | None, line: socket.socket) -> NoReturn:
    """Between fork and exec of the guest: take every right away, in this order, and begin.

    Raises:
        OSError: a step was refused; the guest must not run then.
    """
    machine = request["machine"]
    os.setsid()
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    os.umask(0o022)
    close_all_but({0, 1, 2, line.fileno()})
    os.chdir(request["working_dir"])
    set_limits(request["rlimits"])
    bound_capabilities()
    if uid is not None:
        become(uid)
    drop_capabilities(machine)
    checked(libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")
    rules = [(path, access) for path, access in request["rules"]]
    sibling("landlock").confine(rules, request["abi"])
    install_filter(machine, bytes.fromhex(request["filters"][0]), listen=False)
    listener = install_filter(machine, bytes.fromhex(request["filters"][1]), listen=True)
    socket.send_fds(line, [b"listener"], [listener])
    os.execve(request["argv"][0], request["argv"], request["environment"])


def start_guest(request: dict[str, Any], uid: int | None) -> tuple[int, int]:
    """The guest's process id and the descriptor of its questions.

    Raises:
        OSError: a step of the confinement was refused.
    """
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        try:
            near.close()
            confined(request, uid, far)
        except BaseException as exc:  # noqa: BLE001  told to the parent, whatever it is
            far.send(f"{type(exc).__name__}: {exc}".encode())
        finally:
            os._exit(127)
    far.close()
    said, fds, _, _ = socket.recv_fds(near, 4096, 1)
    if said == b"listener" and fds:
        # The socket closes with the exec; what comes instead is why there was none.
        said = near.recv(4096)
        if not said:
            near.close()
            return pid, fds[0]
    near.close()
    os.waitpid(pid, 0)
    raise OSError(errno.EPERM, said.decode("utf-8", "replace") or "the confined child died")


@contextlib.contextmanager
def as_user(uid: int | None) -> Iterator[None]:
    """/proc shows another user's memory and descriptors only to that user."""
    if uid is None:
        yield
        return
    libc.setfsgid(uid)
    libc.setfsuid(uid)
    try:
        yield
    finally:
        libc.setfsuid(0)
        libc.setfsgid(0)


# --- questions ----------------------------------------------------------------------------------


class _Question:
    """One system call that waits for an answer."""

    def __init__(self, listener: int, guest: int, guest_memory: int) -> None:
        buffer = bytearray(_NOTIF.size)
        fcntl.ioctl(listener, _NOTIF_RECV, buffer)
        fields = _NOTIF.unpack(buffer)
        self.id, self.pid, self.call = fields[0], fields[1], fields[3]
        self.arguments = fields[6:]
        self._listener = listener
        self._kept = guest_memory if process_of(self.pid) == guest else None

    def valid(self) -> bool:
        """Whether the asking thread still waits: then its number was not given to another."""
        try:
            fcntl.ioctl(self._listener, _NOTIF_ID_VALID, struct.pack("=Q", self.id))
        except OSError:
            return False
        return True

    def number(self, n: int) -> int:
        """An argument as a C int."""
        value = int(self.arguments[n]) & 0xFFFFFFFF
        return value - (1 << 32) if value >= 1 << 31 else value

    def memory(self, n: int, length: int) -> bytes:
        """Bytes that argument `n` points to, fewer where its memory ends."""
        if self._kept is not None:
            return os.pread(self._kept, length, self.arguments[n])
        with open(f"/proc/{self.pid}/mem", "rb", buffering=0) as file:
            if not self.valid():
                raise OSError(errno.ESRCH, "gone")
            return os.pread(file.fileno(), length, self.arguments[n])

    def path(self, n: int) -> str:
        page = _PATH_BYTES - self.arguments[n] % _PATH_BYTES
        data = self.memory(n, page)
        if b"\0" not in data:
            data = self.memory(n, page + _PATH_BYTES)
        text, end, _ = data.partition(b"\0")
        if not end:
            raise OSError(errno.ENAMETOOLONG, "too long")
        return os.fsdecode(text)

    def answer(self, error: int, *, go_on: bool = False) -> None:
        """`go_on` lets the kernel run the call itself, for calls whose registers say it all."""
        words = _ANSWER.pack(self.id, 0, -error, _CONTINUE if go_on else 0)
        with contextlib.suppress(OSError):  # the caller was killed meanwhile
            fcntl.ioctl(self._listener, _NOTIF_SEND, words)

    def give(self, source: int, target: int) -> None:
        """Put a descriptor of ours in the place of one of the caller's."""
        with open(f"/proc/{self.pid}/fdinfo/{target}", "rb") as file:
            flags = int(file.read().split(b"flags:")[1].split()[0], 8)
        if flags & os.O_NONBLOCK:
            os.set_blocking(source, False)
        words = _ADD_FD.pack(self.id, _SETFD, source, target, flags & os.O_CLOEXEC)
        fcntl.ioctl(self._listener, _NOTIF_ADDFD, words)


class _Broker:
    """Does for the inside what the filter does not let it do itself, where that harms nobody."""

    def __init__(
        self,
        listener: int,
        request: dict[str, Any],
        guest: int,
        guest_memory: int,
    ) -> None:
        self.listener = listener
        self._base: str = request["base"]
        self._proxy: tuple[str, int] | None = tuple(request["proxy"]) if request["proxy"] else None
        self._machine: str = request["machine"]
        self._uid: int | None = request["uid"]
        self._guest = guest
        self._guest_memory = guest_memory
        table: dict[str, Callable[[_Question], None]] = {
            "connect": self._connect,
            "chmod": lambda asked: self._chmod(asked, _AT_FDCWD, 0, 0),
            "fchmodat": lambda asked: self._chmod(asked, asked.number(0), 1, 0),
            "fchmodat2": lambda asked: self._chmod(asked, asked.number(0), 1, asked.number(3)),
            "utimensat": self._utime,
            "prlimit64": self._limit,
            "kill": self._kill,
            "tkill": lambda asked: self._thread_kill(asked, 0, asked.number(1)),
            "tgkill": lambda asked: self._thread_kill(asked, 1, asked.number(2)),
        }
        calls: dict[str, int] = request["calls"]
        self._table = {calls[name]: does for name, does in table.items() if name in calls}
        self._go_on = {calls["prlimit64"]}

    def serve(self) -> None:
        """Answer one question. Whatever the inside asks, this must not end the supervisor."""
        try:
            asked = _Question(self.listener, self._guest, self._guest_memory)
        except OSError:  # it went away before it was read
            return
        try:
            with as_user(self._uid):
                self._table[asked.call](asked)
            asked.answer(0, go_on=asked.call in self._go_on)
        except OSError as exc:
            asked.answer(exc.errno or errno.EACCES)
        except (KeyError, ValueError, IndexError, OverflowError):
            asked.answer(errno.EACCES)

    def _connect(self, asked: _Question) -> None:
        """A connection of ours to the egress proxy, whose address alone may be named."""
        target = asked.number(0)
        if not os.readlink(f"/proc/{asked.pid}/fd/{target}").startswith("socket:"):
            raise OSError(errno.ENOTSOCK, "no socket")
        address = asked.memory(1, 8)
        if len(address) < 8:
            raise OSError(errno.EFAULT, "its memory ends")
        family, port = struct.unpack("=H", address[:2])[0], struct.unpack(">H", address[2:4])[0]
        where = (socket.inet_ntoa(address[4:8]), port)
        if family != socket.AF_INET or where != self._proxy:
            raise OSError(errno.EACCES, "not the proxy")
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as ours:
            ours.settimeout(2)
            ours.connect(where)
            ours.setblocking(True)
            if not asked.valid():
                raise OSError(errno.ESRCH, "gone")
            asked.give(ours.fileno(), target)

    def _chmod(self, asked: _Question, folder: int, first: int, flags: int) -> None:
        mode = asked.number(first + 1)
        with self._own_file(asked, folder, first, flags) as path:
            os.chmod(path, mode & 0o1777)

    def _utime(self, asked: _Question) -> None:
        times = asked.memory(2, 32) if asked.arguments[2] else None
        if times is not None and len(times) < 32:
            raise OSError(errno.EFAULT, "its memory ends")
        with self._own_file(asked, asked.number(0), 1, asked.number(3)) as path:
            name = os.fsencode(path)
            call = libc.utimensat(ctypes.c_int(_AT_FDCWD), name, times, ctypes.c_int(0))
            checked(call, "utimensat")

    @contextlib.contextmanager
    def _own_file(self, asked: _Question, folder: int, argument: int, flags: int) -> Iterator[str]:
        """A path of ours to the file that the caller names, if it lies in the private folder.

        What was opened is what is checked and changed, so that no swap of links in between helps;
        and nothing in the private folder can be moved out of it.
        """
        path = asked.path(argument)
        if path.startswith("/proc/self/"):
            path = path.replace("self", str(asked.pid), 1)
        if not path:
            raise OSError(errno.ENOENT, "empty")
        place = "cwd" if folder == _AT_FDCWD else f"fd/{folder}"
        origin = "/" if path.startswith("/") else f"/proc/{asked.pid}/{place}"
        start = os.open(origin, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            follow = os.O_NOFOLLOW if flags & _AT_SYMLINK_NOFOLLOW else 0
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC | follow, dir_fd=start)
        finally:
            os.close(start)
        try:
            if not asked.valid():
                raise OSError(errno.ESRCH, "gone")
            ours = f"/proc/self/fd/{fd}"
            if not (os.readlink(ours) + "/").startswith(self._base + "/"):
                raise OSError(errno.EPERM, "outside")
            yield ours
        finally:
            os.close(fd)

    def _limit(self, asked: _Question) -> None:
        if not is_inside(asked.number(0)):
            raise OSError(errno.EPERM, "outside")

    def _kill(self, asked: _Question) -> None:
        number, target = asked.number(1), asked.number(0)
        if target > 0:
            if not is_inside(target):
                raise OSError(errno.EPERM, "outside")
            os.kill(target, number)
            return
        group = os.getpgid(asked.pid) if target == 0 else -target
        found = inside()
        chosen = [
            pid
            for pid in found
            if (pid not in (self._guest, asked.pid) if target == -1 else _group(pid) == group)
        ]
        if not chosen:
            raise OSError(errno.ESRCH, "none")
        for pid in chosen:
            send(pid, found[pid], number) if number else None

    def _thread_kill(self, asked: _Question, argument: int, number: int) -> None:
        thread = asked.number(argument)
        process = process_of(thread)
        if not is_inside(process):
            raise OSError(errno.EPERM, "outside")
        words = (ctypes.c_int(process), ctypes.c_int(thread), ctypes.c_int(number))
        checked(libc.syscall(ctypes.c_long(_TGKILL[self._machine]), *words), "tgkill")


def _group(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return 0


# --- the supervisor -----------------------------------------------------------------------------


class _Supervisor:
    def __init__(self, control: socket.socket, request: dict[str, Any]) -> None:
        self._control = control
        self._request = request
        self._base: str = request["base"]
        self._guest = 0
        self._next_disk = 0.0
        self._said = False

    def run(self) -> None:
        checked(libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "prctl")
        try:
            broker = self._begin()
        except (OSError, KeyError) as exc:
            self._say({"error": str(exc)})
            remove_tree(self._base)
            return
        try:
            self._serve(broker)
        finally:
            kill_all(self._reap)
            remove_tree(self._base)
            self._say({"ended": True})

    def _begin(self) -> _Broker:
        uid: int | None = self._request["uid"]
        for path in (self._base, *self._request["folders"]):
            os.makedirs(path, mode=0o755, exist_ok=True)
            if uid is not None:
                os.chown(path, uid, uid)
        self._guest, listener = start_guest(self._request, uid)
        for fd in (0, 1):  # they are the guest's now, whose end must be seen
            os.close(fd)
        # It becomes unreadable as soon as it is told its program, which waits for the next line.
        with as_user(uid):
            memory = os.open(f"/proc/{self._guest}/mem", os.O_RDONLY | os.O_CLOEXEC)
        self._say({"guest": self._guest})
        return _Broker(listener, self._request, self._guest, memory)

    def _serve(self, broker: _Broker) -> None:
        children, wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wake)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        poll = select.poll()
        for fd in (self._control.fileno(), broker.listener, children):
            poll.register(fd, select.POLLIN)
        next_watch = 0.0
        while True:
            wait = max(0.0, next_watch - time.monotonic())
            events = dict(poll.poll(wait * 1000 + 1))
            if events.get(broker.listener, 0) & select.POLLIN:
                broker.serve()
            elif events.get(broker.listener):
                poll.unregister(broker.listener)  # nobody is left that could ask
            if children in events:
                with contextlib.suppress(BlockingIOError):
                    os.read(children, 4096)
                self._reap()
                if self._guest == 0:
                    return
            if self._control.fileno() in events and not self._obey():
                return
            if time.monotonic() >= next_watch:
                next_watch = time.monotonic() + _WATCH_S
                if not self._watch():
                    return

    def _obey(self) -> bool:
        """One order of the harness; False at the end, which is also that of a killed harness."""
        try:
            data = self._control.recv(65536)
        except OSError:
            return False
        if not data:
            return False
        order = json.loads(data)["op"]
        if order == "usage":
            found = inside()
            self._say(
                {
                    "processes": len(found),
                    "memory_bytes": sum(map(resident_bytes, found)),
                    "disk_bytes": disk_bytes(self._base),
                }
            )
        elif order in ("hold", "go"):
            number = signal.SIGSTOP if order == "hold" else signal.SIGCONT
            for pid, parent in inside().items():
                if pid != self._guest:
                    send(pid, parent, number)
            self._say({"done": order})
        elif order == "end":
            return False
        return True

    def _reap(self) -> bool:
        """Take the status of whatever ended; False when no child is left."""
        while True:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                self._guest = 0
                return False
            if pid == 0:
                return True
            if pid == self._guest:
                self._guest = 0

    def _watch(self) -> bool:
        """Best effort between two looks: the largest process ends, a full folder ends it all."""
        if status_of(self._guest)[0] == "T":  # what runs inside has its user, and may stop it
            send(self._guest, os.getpid(), signal.SIGCONT)
        limit = self._request["memory_bytes"]
        if limit is not None:
            self._watch_memory(limit)
        most = self._request["disk_bytes"]
        began = time.monotonic()
        if most is None or began < self._next_disk:
            return True
        used = disk_bytes(self._base)
        # A folder of a million files must not cost the machine a processor.
        self._next_disk = began + max(1.0, 10 * (time.monotonic() - began))
        if used <= most:
            return True
        self._say({"died": "disk_full", "detail": f"{used} bytes were written, limit {most}"})
        return False

    def _watch_memory(self, limit: int) -> None:
        found = inside()
        sizes = {pid: resident_bytes(pid) for pid in found}
        spared = {self._guest, *(pid for pid, parent in found.items() if parent == self._guest)}
        if sum(sizes.values()) <= limit:
            return
        candidates = [pid for pid in found if pid not in spared] or [
            pid for pid in found if pid != self._guest
        ]
        if candidates:
            largest = max(candidates, key=lambda pid: sizes[pid])
            send(largest, found[largest], signal.SIGKILL)

    def _say(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # the harness is gone
            self._control.send(json.dumps(message).encode())


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # a terminal's Ctrl-C is not ours
        signal.signal(number, signal.SIG_IGN)
    os.setsid() if os.getpgrp() != os.getpid() else None
    control = socket.socket(fileno=int(sys.argv[1]))
    os.set_inheritable(control.fileno(), False)
    request = json.loads(control.recv(1 << 20))
    _Supervisor(control, request).run()


if __name__ == "__main__":
    main()
