"""The program that runs inside a container: one bash, files and a forwarder over two pipes.

Its source is sent over its standard input (`guest_session` has the other side), so an image needs
nothing of ours, only a Python >= 3.8 and a bash. It keeps to few imports: its start is measured.

Every frame is a header (kind, request id, length of the body) and a body of bytes or of fields
(each a length and its bytes). Nothing is pickled or evaluated. Bodies are at most FRAME_BYTES.

Threads: the main one reads frames and serves files, `Runner` drives the shell, `reap` collects
children, and one each forwards connections, packs and unpacks where asked. Output of commands
is bounded here and crosses only when the command has ended, so a flood never fills the pipe.

It ends at the end of its input and takes everything inside along. As process 1 of a pid namespace
nothing inside can kill or stop it, and it cannot be traced or read (PR_SET_DUMPABLE 0). Where it is
an ordinary child it shares its user with what it runs: SIGKILL and SIGSTOP from there end or halt
it, which the other side sees as a death. It then adopts orphans (PR_SET_CHILD_SUBREAPER).
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import _thread
import errno
import fcntl
import os
import select
import stat
import struct
import sys
import time

TYPE_CHECKING = False  # not from `typing`, whose import would make every start later
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import IO, Any

HEADER = struct.Struct("!BII")
LENGTH = struct.Struct("!I")
CHUNK_BYTES = 256 * 1024
FRAME_BYTES = CHUNK_BYTES + 64 * 1024
# What the host asks. CREDIT and INPUT belong to the PACK or UNPACK of the same id, TEXT to a RUN.
CONFIGURE, TEXT, RUN, ABORT, STAT, LIST, MKDIR, SYMLINK = range(1, 9)
OPEN, READ, CREATE, WRITE, CLOSE, USAGE, RESET, PACK, CREDIT, UNPACK, INPUT = range(9, 20)
# What the guest answers.
HELLO, OK, ERROR, DATA, OUTPUT, DONE = range(64, 70)

PROXY_PORT = 3128
OWN_PREFIX = "/.sandlot"  # folders of ours: pipes, saved output. They are never packed
_NAMES = "SANDLOT.names"
_STATUS_FD = 12
_ABORT_SIGNAL = _signal.SIGRTMAX - 5
_GRACE_S = 1.0
_START_S = 20.0
_KILL_S = 5.0
_STATUS_LINE_BYTES = 256
_READ_BYTES = 256 * 1024
_LATE_BYTES = 64 * 1024
_LATE_PAUSE_S = 0.05  # a background flood costs at most 1.3 MB/s of reading
_LATE_STREAMS = 64
_SAMPLE_S = 0.1
_LISTS = 50
_FIRST_BYTES = 64 * 1024
_PIPE_BYTES = 256 * 1024
_PAGE_BYTES = 100_000
_SIGNALS = _signal.valid_signals() - {_signal.SIGKILL, _signal.SIGSTOP}

SETUP = b"""\
set +H +o history; PS1= PS2= PROMPT_COMMAND=; unset HISTFILE MAILCHECK TMOUT
shopt -s expand_aliases checkwinsize
__sandlot_status() { return "$1"; }
trap 'trap - INT; kill -INT $$' RTMAX-5
"""


# --- frames -------------------------------------------------------------------------------------


def join_fields(parts: Iterable[bytes | int | None]) -> bytes:
    """Fields as one body; a number goes as its digits, None as no bytes."""
    out = bytearray()
    for part in parts:
        data = part if isinstance(part, bytes) else b"" if part is None else b"%d" % part
        out += LENGTH.pack(len(data)) + data
    return bytes(out)


def split_fields(body: bytes) -> list[bytes]:
    """Raises ValueError where the body is not whole fields."""
    fields = []
    at = 0
    while at < len(body):
        if at + 4 > len(body):
            raise ValueError("half a length")
        (size,) = LENGTH.unpack_from(body, at)
        at += 4 + size
        if at > len(body):
            raise ValueError("a field beyond the body")
        fields.append(body[at - size : at])
    return fields


def write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            wait_for(fd, select.POLLOUT)


def wait_for(fd: int, event: int) -> None:
    poll = select.poll()
    poll.register(fd, event)
    poll.poll()


class Wire:
    """Frames in from `source` and out to `sink`; many threads may send."""

    def __init__(self, source: int, sink: int) -> None:
        self._source = source
        self._sink = sink
        self._lock = _thread.allocate_lock()
        self._buffer = bytearray()

    def send(self, kind: int, ident: int, body: bytes = b"") -> None:
        data = HEADER.pack(kind, ident, len(body)) + body
        with self._lock:
            write_all(self._sink, data)

    def answer(self, ident: int, *parts: bytes | int | None) -> None:
        self.send(OK, ident, join_fields(parts))

    def refuse(self, ident: int, error: OSError) -> None:
        code = error.errno or errno.EIO
        text = (error.strerror or str(error)).encode("utf-8", "replace")[:500]
        self.send(ERROR, ident, join_fields((code, text)))

    def receive(self) -> tuple[int, int, bytes] | None:
        """The next frame; None at the end of the input."""
        if not self._fill(HEADER.size):
            return None
        kind, ident, size = HEADER.unpack_from(self._buffer)
        if size > FRAME_BYTES or not self._fill(HEADER.size + size):
            return None
        body = bytes(memoryview(self._buffer)[HEADER.size : HEADER.size + size])
        del self._buffer[: HEADER.size + size]
        return kind, ident, body

    def _fill(self, size: int) -> bool:
        while len(self._buffer) < size:
            try:
                data = os.read(self._source, _READ_BYTES)
            except BlockingIOError:
                wait_for(self._source, select.POLLIN)
                continue
            if not data:
                return False
            self._buffer += data
        return True


# --- this process -------------------------------------------------------------------------------


def library_call(name: str, *arguments: int) -> int:
    """A function of the C library by its name; -1 where there is no way to call it.

    Not through `ctypes`, whose import takes a third of the guest's start.
    """
    try:
        import _ctypes

        everything: Any = None
        found = _ctypes.dlsym(_ctypes.dlopen(everything, 0), name)
        result: int = _ctypes.call_function(found, arguments)
    except (ImportError, OSError):
        return -1
    return result


def harden() -> bool:
    """Undumpable, adopting orphans, deaf to signals. Whether it is undumpable now."""
    pr_set_pdeathsig, pr_get_dumpable, pr_set_dumpable, pr_set_child_subreaper = 1, 3, 4, 36
    library_call("prctl", pr_set_dumpable, 0, 0, 0, 0)
    for number in _SIGNALS - {_signal.SIGCHLD}:
        _signal.signal(number, _signal.SIG_IGN)
    if os.getpid() != 1:
        parent = os.getppid()

        def on_death_of_parent(*_: object) -> None:
            if os.getppid() != parent:  # anybody inside may send this signal as well
                end_everything()

        _signal.signal(_signal.SIGHUP, on_death_of_parent)
        library_call("prctl", pr_set_child_subreaper, 1, 0, 0, 0)
        library_call("prctl", pr_set_pdeathsig, _signal.SIGHUP, 0, 0, 0)
    return library_call("prctl", pr_get_dumpable, 0, 0, 0, 0) == 0


def end_everything() -> None:
    """Kill all that was begun here and end. As process 1 the kernel does that."""
    if os.getpid() != 1:
        tree = Tree()
        deadline = time.monotonic() + _KILL_S
        while time.monotonic() < deadline:
            victims = tree.descendants()
            if not victims:
                break
            kill(victims, _signal.SIGSTOP)
            kill(victims, _signal.SIGKILL)
            time.sleep(0.001)
    os._exit(0)


def start_thread(work: Callable[..., None], *arguments: Any) -> None:
    def guarded() -> None:
        try:
            work(*arguments)
        except BrokenPipeError:  # nobody hears the answers any more
            end_everything()
        except BaseException as exc:  # noqa: BLE001  a bug: end loudly, never limp on
            fail(exc)

    _thread.start_new_thread(guarded, ())


def fail(exc: BaseException) -> None:
    sys.excepthook(type(exc), exc, exc.__traceback__)
    os._exit(70)


# --- processes ----------------------------------------------------------------------------------


def read_text(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 4096)
    finally:
        os.close(fd)


def kill(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except OSError:
            pass  # it ended meanwhile, which is what was wanted


class Tree:
    """The processes below the guest. They may fork and die while they are looked at."""

    def __init__(self) -> None:
        self._own = os.getpid()
        self._children: list[int] = []

    def watch_children(self) -> None:
        """Keep the child lists of the guest's threads open: their reading is each command's."""
        try:
            for task in os.listdir("/proc/self/task"):
                name = f"/proc/self/task/{task}/children"
                self._children.append(os.open(name, os.O_RDONLY | os.O_CLOEXEC))
        except OSError:
            pass  # a kernel without these lists: every look is a whole one

    def only(self, shell: int) -> bool:
        """Whether nothing is below the guest but an idle shell."""
        try:
            found = b" ".join(os.pread(fd, 4096, 0) for fd in self._children).split()
            return found == [b"%d" % shell] and not read_text(
                f"/proc/{shell}/task/{shell}/children"
            )
        except OSError:
            return False

    def states(self) -> tuple[dict[int, str], bool]:
        """State of each descendant, and whether all chains of parents could be followed."""
        everyone = self._everyone()
        self._parents = {pid: parent for pid, (_, parent) in everyone.items()}
        whole = True
        found = {}
        for pid, (state, _) in everyone.items():
            end = (self._line(pid) or [pid])[-1]
            if end == self._own and pid != self._own:
                found[pid] = state
            elif end not in self._parents:
                whole = False
        return found, whole

    def _everyone(self) -> dict[int, tuple[str, int]]:
        """State and parent of each process, those included that began during the look.

        One that ends between the list and its reading may have forked one that is not in the
        list, so the list is taken until it names nobody new, or as often as is reasonable.
        """
        seen: set[str] = set()
        found = {}
        for _ in range(_LISTS):
            begun = {name for name in os.listdir("/proc") if name.isdigit()} - seen
            if not begun:
                break
            seen |= begun
            for name in begun:
                try:
                    fields = read_text(f"/proc/{name}/stat").rpartition(b")")[2].split()
                    found[int(name)] = (fields[0].decode(), int(fields[1]))
                except (OSError, IndexError, ValueError):
                    continue
        return found

    def _line(self, pid: int) -> list[int]:
        """The ancestors of a process up to the guest, the nearest first."""
        line: list[int] = []
        while pid in self._parents and pid != self._own:
            pid = self._parents[pid]
            if pid in line or pid == 0:
                break
            line.append(pid)
        return line

    def descendants(self) -> list[int]:
        for _ in range(3):
            found, whole = self.states()
            if whole:
                break
        return [pid for pid, state in found.items() if state != "Z"]

    def since(self, before: set[int], shell: int) -> list[int]:
        """Processes that began after `before` was taken and belong to no job of that time."""
        jobs = before - {shell}
        found = [pid for pid in self.descendants() if pid != shell and pid not in jobs]
        return [pid for pid in found if not jobs.intersection(self._line(pid))]


# --- output -------------------------------------------------------------------------------------


class Limits:
    """What the host configured once."""

    def __init__(self, fields: Sequence[bytes]) -> None:
        self.half, self.saved_bytes, self.flood_bytes = (int(field) for field in fields[:3])
        self._open_files, self._file_bytes = fields[3:5]
        self.output_dir = os.fsdecode(fields[5])
        self.working_dir = fields[6]
        self.control_dirs = [os.fsdecode(part) for part in split_fields(fields[7])]
        pairs = split_fields(fields[8])
        self.environment = dict(zip(pairs[::2], pairs[1::2]))  # noqa: B905  `strict` is of 3.10
        self.proxy_socket = fields[9]

    def apply(self, pid: int) -> None:
        """Ceilings of a shell and of all that it starts; the guest itself keeps its own."""
        import resource

        for kind, field in (
            (resource.RLIMIT_NOFILE, self._open_files),
            (resource.RLIMIT_FSIZE, self._file_bytes),
            (resource.RLIMIT_CORE, b"0"),
        ):
            if field:
                hard = resource.prlimit(pid, kind)[1]
                value = int(field)
                value = value if hard == resource.RLIM_INFINITY else min(value, hard)
                resource.prlimit(pid, kind, (value, value))


class Capture:
    """One output stream of one command: its start, its end, and the whole in a file."""

    def __init__(self, path: str, saved: str, limits: Limits) -> None:
        self.fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self.total = 0
        self.head = bytearray()
        self.tail = bytearray()
        self.saved = ""
        self._wanted = saved
        self._limits = limits
        self._spool = -1
        self._due = 0.0

    @property
    def flooded(self) -> bool:
        return self.total > self._limits.flood_bytes

    def take(self) -> bool:
        """Read one piece; False when there is nothing now or nothing more."""
        try:
            data = os.read(self.fd, _READ_BYTES)
        except BlockingIOError:
            return False
        if not data:
            self.close()
            return False
        self._keep(data)
        return True

    def finish(self) -> None:
        """Take what is there now; what a background child prints later is dropped."""
        while self.fd >= 0 and self.take() and not self.flooded:
            pass
        if self._spool >= 0:
            os.close(self._spool)
            self._spool = -1

    def release(self) -> None:
        """Give back what was kept: a job may hold the pipe, and so this, for ever."""
        self.head = bytearray()
        self.tail = bytearray()

    def drop(self, now: float) -> None:
        self._due = now + _LATE_PAUSE_S
        try:
            if not os.read(self.fd, _LATE_BYTES):
                self.close()
        except BlockingIOError:
            pass

    def due(self, now: float) -> bool:
        return now >= self._due

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _keep(self, data: bytes) -> None:
        before, half = self.total, self._limits.half
        self.total += len(data)
        if self.total > 2 * half:
            if before <= 2 * half:
                self._open_spool()
            if before < self._limits.saved_bytes:
                self._save(data[: self._limits.saved_bytes - before])
        room = half - len(self.head)
        if room > 0:
            self.head += data[:room]
            data = data[room:]
        if data:
            self.tail += data[-half:]
            del self.tail[: max(0, len(self.tail) - half)]

    def _open_spool(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        folder = os.path.dirname(self._wanted)
        try:
            os.makedirs(folder, 0o755, exist_ok=True)
            if os.path.lexists(self._wanted):
                os.unlink(self._wanted)
            self._spool = os.open(self._wanted, flags, 0o644)
        except OSError:
            return  # the inside made this place its own: that costs only this file
        self.saved = self._wanted
        self._save(bytes(self.head + self.tail)[: self._limits.saved_bytes])

    def _save(self, data: bytes) -> None:
        if self._spool < 0:
            return
        try:
            write_all(self._spool, data)
        except OSError:  # a full disk inside costs only this file
            os.close(self._spool)
            self._spool = -1
            self.saved = ""
            unlink(self._wanted)


def unlink(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass


# --- meters -------------------------------------------------------------------------------------


class Meters:
    """The container's own cgroup, where process 1 can read it; version 2, then version 1."""

    _FILES = {  # noqa: RUF012  typing.ClassVar would cost an import
        "peak": ("memory.peak", "memory/memory.max_usage_in_bytes"),
        "memory": ("memory.current", "memory/memory.usage_in_bytes"),
        "cpu": ("cpu.stat", "cpuacct/cpuacct.usage", "cpu,cpuacct/cpuacct.usage"),
        "throttled": ("cpu.stat", "cpu/cpu.stat", "cpu,cpuacct/cpu.stat"),
        "processes": ("pids.current", "pids/pids.current"),
        "kills": ("memory.events", "memory/memory.oom_control"),
    }

    _ROWS: dict[str, Sequence[tuple[bytes, int]]] = {  # noqa: RUF012
        "cpu": ((b"usage_usec", 1),),
        "throttled": ((b"throttled_usec", 1), (b"throttled_time", 1000)),
        "kills": ((b"oom_kill", 1),),
        "peak": (),
        "memory": (),
        "processes": (),
    }

    def __init__(self, folder: str) -> None:
        self._fds = {name: self._first(folder, paths) for name, paths in self._FILES.items()}

    def _first(self, folder: str, paths: Sequence[str]) -> int:
        for path in paths:
            try:
                return os.open(f"{folder}/{path}", os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                continue
        return -1

    def read(self, name: str) -> int | None:
        """Bytes, microseconds or a count."""
        try:
            text = os.pread(self._fds.get(name, -1), 4096, 0)
        except OSError:
            return None
        if text.strip().isdigit():
            return int(text) // 1000 if name == "cpu" else int(text)
        words = text.split()
        rows = dict(zip(words[::2], words[1::2]))  # noqa: B905  `strict` is of 3.10
        for key, unit in self._ROWS[name]:
            if key in rows:
                return int(rows[key]) // unit
        return None


class Meter:
    """What one command used: CPU exactly, memory by the counter or by looking now and then."""

    def __init__(self, meters: Meters) -> None:
        self._meters = meters
        self._cpu = meters.read("cpu")
        self._throttled = meters.read("throttled")
        self._kills = meters.read("kills")
        self._peak = meters.read("peak")
        self._seen = meters.read("memory")
        self._next = time.monotonic() + _SAMPLE_S

    def sample(self, now: float) -> None:
        if self._seen is not None and now >= self._next:
            self._next = now + _SAMPLE_S
            self._seen = max(self._seen, self._meters.read("memory") or 0)

    def results(self) -> tuple[int | None, ...]:
        """Highest memory in bytes, CPU and held-back time in microseconds, memory kills."""
        self.sample(self._next)
        peak = self._meters.read("peak")
        if peak is None or self._peak is None or peak <= self._peak:
            peak = self._seen
        before = {"cpu": self._cpu, "throttled": self._throttled, "kills": self._kills}
        return (peak, *(self._more(name, value) for name, value in before.items()))

    def _more(self, name: str, before: int | None) -> int | None:
        now = self._meters.read(name)
        return None if now is None or before is None else max(0, now - before)


# --- the shell ----------------------------------------------------------------------------------


class ShellLost(Exception):
    """The shell cannot be told anything any more."""


class Job:
    def __init__(self, ident: int, timeout_s: float, text: bytes) -> None:
        self.ident = ident
        self.timeout_s = timeout_s
        self.text = text


class Runner:
    """One persistent bash, driven through pipes by a thread of its own.

    For each command there are two named pipes and a file with its text; the shell reports status
    on a pipe that it keeps from its children. An interactive bash goes back to its prompt, state
    intact, on SIGINT; a real-time signal whose trap resets INT and raises it makes that certain.
    """

    def __init__(self, wire: Wire, limits: Limits) -> None:
        self._wire = wire
        self._limits = limits
        self._tree = Tree()
        # Elsewhere than in process 1 these files would be of somebody else's cgroup.
        self._meters = Meters("/sys/fs/cgroup" if os.getpid() == 1 else "/nonexistent")
        self._lock = _thread.allocate_lock()
        self._jobs: list[Job] = []
        self._cancelled: set[int] = set()
        self._awaited = b""
        self._answer: int | None = None
        self._late: list[Capture] = []
        self._partial = b""
        self._last_status = 0
        self._count = 0
        self._working_dir = limits.working_dir
        self.control = ""
        self._meter: Meter | None = None
        self._wake_r, self._wake_w = os.pipe()
        os.set_blocking(self._wake_r, False)
        os.set_blocking(self._wake_w, False)
        self._status_r = self._commands_w = -1
        self.shell = 0
        self._exit_status: int | None = None

    def submit(self, job: Job) -> None:
        self._jobs.append(job)
        self._wake()

    def cancel(self, ident: int) -> None:
        self._cancelled.add(ident)
        self._wake()

    def usage(self) -> tuple[int | None, ...]:
        processes = self._meters.read("processes")
        if processes is None:
            processes = len(Tree().descendants()) + 1
        names = ("peak", "cpu", "throttled")
        return (*(self._meters.read(name) for name in names), processes)

    def loop(self, ident: int) -> None:
        """The runner's thread. Answers `ident` when the first shell is up."""
        start_thread(self._reap)
        try:
            self._begin()
        except OSError as exc:
            self._wire.refuse(ident, exc)
            return
        except ShellLost:
            self._wire.refuse(ident, OSError(errno.EIO, "the shell did not start"))
            return
        self._tree.watch_children()
        self._wire.answer(ident, self.shell)
        while True:
            while not self._jobs:
                self._wait(None, [])
            job = self._jobs.pop(0)
            try:
                if job.timeout_s < 0:
                    self._reset(job)
                else:
                    self._run(job)
            except ShellLost as exc:
                self._wire.refuse(job.ident, OSError(errno.EIO, str(exc)))
            except BrokenPipeError:
                raise
            except OSError as exc:
                self._wire.refuse(job.ident, exc)
            self._cancelled.discard(job.ident)

    # --- one command ----------------------------------------------------------------------------

    def _run(self, job: Job) -> None:
        deadline = time.monotonic() + job.timeout_s
        restarted = self._exit_status is not None
        if restarted:
            self._replace()
        name = os.urandom(6).hex()
        self._count += 1
        streams = self._open_streams(name, job.text)
        self._meter = meter = Meter(self._meters)
        try:
            before = {self.shell}
            if not self._tree.only(self.shell):
                before = set(self._tree.descendants())
            self._remember_folder()
            self._tell(self._line(name))
            status = self._await_end(
                name.encode(), deadline, streams, lambda: self._is_stopped(job.ident, streams)
            )
            if status is not None:
                self._last_status = status
            elif self._exit_status is not None:
                status, restarted = self._exit_status, True
                self._replace()
            else:
                restarted = self._abort(before, streams) or restarted
        finally:
            self._meter = None
            self._settle(name, streams)
        self._report(job.ident, status, restarted, streams, meter)

    def _line(self, name: str) -> bytes:
        # `||` keeps `set -e` from ending the shell where $? of the last command is given back.
        prefix = f"__sandlot_status {self._last_status} || " if self._last_status else ""
        here = f"{self.control}/{name}"
        run = f"{{ . {here}.c; }} </dev/null >{here}.o 2>{here}.e {_STATUS_FD}>&-"
        tell = f"builtin printf '{name} %s\\n' \"$?\" >&{_STATUS_FD}\n"
        return (prefix + run + "; " + tell).encode()

    def _await_end(
        self,
        name: bytes,
        deadline: float,
        streams: list[Capture],
        stopped: Callable[[], bool] = lambda: False,
    ) -> int | None:
        """The status; None at the deadline, when stopped, or at the shell's own end."""
        self._awaited, self._answer = name, None
        while self._answer is None:
            left = deadline - time.monotonic()
            if left <= 0 or self._exit_status is not None or stopped():
                self._wait(0, streams)  # what was said last
                break
            self._wait(left, streams)
        return self._answer

    def _is_stopped(self, ident: int, streams: list[Capture]) -> bool:
        return ident in self._cancelled or any(stream.flooded for stream in streams)

    def _report(
        self,
        ident: int,
        status: int | None,
        restarted: bool,
        streams: list[Capture],
        meter: Meter,
    ) -> None:
        flooded = status is None and any(stream.flooded for stream in streams)
        for number, stream in enumerate(streams):
            for part, data in ((0, stream.head), (1, stream.tail)):
                for at in range(0, len(data), CHUNK_BYTES):
                    piece = bytes(data[at : at + CHUNK_BYTES])
                    self._wire.send(OUTPUT, ident, bytes((2 * number + part,)) + piece)
        fields: list[bytes | int | None] = [status, flooded, restarted]
        for stream in streams:
            fields += [stream.total, os.fsencode(stream.saved)]
            stream.release()
        self._wire.send(DONE, ident, join_fields(fields + list(meter.results())))

    def _remember_folder(self) -> None:
        try:
            folder = os.readlink(b"/proc/%d/cwd" % self.shell)
        except OSError:
            return
        if folder.startswith(b"/") and not folder.endswith(b" (deleted)"):
            self._working_dir = folder

    def _open_streams(self, name: str, text: bytes) -> list[Capture]:
        """Make the pipes and the file of a command; where the folder is gone or full, elsewhere."""
        try:
            self._write_control(name + ".c", text + b"\n")
        except OSError:
            self._choose_control(len(text))
            self._write_control(name + ".c", text + b"\n")
        streams = []
        for end, word in (("o", "stdout"), ("e", "stderr")):
            path = f"{self.control}/{name}.{end}"
            os.mkfifo(path)
            os.chmod(path, 0o622)
            saved = f"{self._limits.output_dir}/{self._count:04d}.{word}"
            streams.append(Capture(path, saved, self._limits))
        return streams

    def _settle(self, name: str, streams: list[Capture]) -> None:
        for stream in streams:
            stream.finish()
            if stream.fd >= 0:
                self._late.append(stream)
        for stream in self._late[:-_LATE_STREAMS]:
            stream.close()  # who still writes there meets a broken pipe: descriptors are finite
        self._late = [stream for stream in self._late[-_LATE_STREAMS:] if stream.fd >= 0]
        for end in "coe":
            unlink(f"{self.control}/{name}.{end}")

    # --- interruption ---------------------------------------------------------------------------

    def _abort(self, before: set[int], streams: list[Capture]) -> bool:
        """End the running command and all its processes; True if the shell was replaced."""
        self._last_status = 0
        kill([self.shell], _signal.SIGCONT)
        kill([self.shell], _ABORT_SIGNAL)
        self._kill_since(before, streams)
        name = os.urandom(6).hex()
        try:
            self._tell(b"builtin printf '%s 0\\n' >&%d\n" % (name.encode(), _STATUS_FD))
        except ShellLost:
            pass
        else:
            deadline = time.monotonic() + _GRACE_S
            if self._await_end(name.encode(), deadline, streams) is not None:
                self._kill_since(before, streams)  # what a loop began before it was thrown out
                return False
        self._kill_shell()
        self._kill_since(before, streams)
        self._replace()
        return True

    def _kill_since(self, before: set[int], streams: list[Capture]) -> None:
        """Kill until none is left; stop them first, so that a fork bomb cannot outrun it."""
        deadline = time.monotonic() + _KILL_S
        while True:
            victims = self._tree.since(before, self.shell)
            if not victims:
                return
            kill(victims, _signal.SIGSTOP)
            kill(victims, _signal.SIGKILL)
            if time.monotonic() > deadline:
                raise ShellLost("processes outlive SIGKILL")
            self._wait(0.001, streams)

    def _kill_shell(self) -> None:
        deadline = time.monotonic() + _KILL_S
        while self._exit_status is None:
            with self._lock:
                if self._exit_status is None:
                    kill([self.shell], _signal.SIGKILL)
            if time.monotonic() > deadline:
                raise ShellLost("the shell could not be killed")
            self._wait(0.05, [])

    def _reset(self, job: Job) -> None:
        """End everything inside and begin again with a new shell."""
        self._kill_shell()
        self._kill_since(set(), [])
        self._working_dir = self._limits.working_dir
        self._replace()
        self._wire.answer(job.ident)

    def _replace(self) -> None:
        self._last_status = 0
        try:
            self._begin()
        except OSError as exc:
            raise ShellLost(f"no new shell could be started: {exc.strerror}") from exc

    # --- the shell's start ----------------------------------------------------------------------

    def _begin(self) -> None:
        """Start a bash and wait until it answers."""
        if not self.control:
            self._choose_control()
        self._spawn()
        raise_oom_score(b"/proc/%d/oom_score_adj" % self.shell)
        self._limits.apply(self.shell)
        self._write_control("setup", SETUP + b"cd -- " + quoted(self._working_dir) + b"\n")
        name = os.urandom(6).hex().encode()
        control = os.fsencode(self.control)
        self._tell(b". %s/setup; builtin printf '%s 0\\n' >&%d\n" % (control, name, _STATUS_FD))
        if self._await_end(name, time.monotonic() + _START_S, []) is None:
            raise ShellLost("the shell did not start")

    def _choose_control(self, room: int = 0) -> None:
        """A folder of our own for pipes and texts, in the first place that has room for them."""
        complaint = OSError(errno.ENOENT, "no folder for the shell's pipes")
        for top in self._limits.control_dirs:
            path = f"{top.rstrip('/')}/.sandlot-{os.urandom(6).hex()}"
            try:
                os.mkdir(path, 0o711)
                os.chmod(path, 0o711)
                self.control = path
                self._write_control("try", bytes(room + 4096))
                unlink(path + "/try")
                return
            except OSError as exc:
                remove_tree(path)
                complaint = OSError(exc.errno, f"{top}: {exc.strerror}")
        raise complaint

    def _write_control(self, name: str, data: bytes) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        path = f"{self.control}/{name}"
        fd = os.open(path, flags, 0o600)
        try:
            write_all(fd, data)
        except OSError:
            unlink(path)
            raise
        finally:
            os.close(fd)

    def _spawn(self) -> None:
        for fd in (self._status_r, self._commands_w):
            if fd >= 0:
                os.close(fd)
        commands_r, self._commands_w = high_pipe()
        self._status_r, status_w = high_pipe()
        os.set_blocking(self._commands_w, False)
        os.set_blocking(self._status_r, False)
        actions: list[tuple[Any, ...]] = [
            (os.POSIX_SPAWN_DUP2, commands_r, 0),
            (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_RDWR, 0),
            (os.POSIX_SPAWN_DUP2, 1, 2),
            (os.POSIX_SPAWN_DUP2, status_w, _STATUS_FD),
        ]
        self._partial = b""
        try:
            with self._lock:
                self.shell = spawn_bash(actions, self._limits.environment)
                self._exit_status = None
        finally:
            os.close(commands_r)
            os.close(status_w)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, 0)
            except ChildProcessError:
                time.sleep(0.01)
                continue
            with self._lock:
                if pid == self.shell:
                    ended = os.WIFSIGNALED(status)
                    code = 128 + os.WTERMSIG(status) if ended else os.WEXITSTATUS(status)
                    self._exit_status = code
                    self._wake()

    # --- waiting --------------------------------------------------------------------------------

    def _wake(self) -> None:
        try:
            os.write(self._wake_w, b"x")
        except BlockingIOError:
            pass  # full of wake-ups

    def _tell(self, line: bytes) -> None:
        """The shell reads a line only when it is idle, so an honest pipe always has room."""
        try:
            if os.write(self._commands_w, line) == len(line):
                return
        except (BrokenPipeError, BlockingIOError):
            pass
        if self._exit_status is None:
            self._wait(0.05, [])  # a shell that just ended is known in a moment
        if self._exit_status is None:
            raise ShellLost("the shell's input is full or closed")

    def _wait(self, seconds: float | None, streams: list[Capture]) -> None:
        """Until something happens: read output, statuses and wake-ups, drop late output."""
        now = time.monotonic()
        poll = select.poll()
        poll.register(self._wake_r, select.POLLIN)
        if self._status_r >= 0:
            poll.register(self._status_r, select.POLLIN)
        owners = {stream.fd: stream for stream in streams if stream.fd >= 0}
        late = {stream.fd: stream for stream in self._late if stream.fd >= 0 and stream.due(now)}
        for fd in (*owners, *late):
            poll.register(fd, select.POLLIN)
        for fd, _ in poll.poll(self._patience(seconds, late)):
            if fd == self._wake_r:
                os.read(fd, 4096)
            elif fd == self._status_r:
                self._read_status()
            elif fd in owners:
                owners[fd].take()
            else:
                late[fd].drop(now)
        if self._meter is not None:
            self._meter.sample(time.monotonic())

    def _patience(self, seconds: float | None, late: dict[int, Capture]) -> int | None:
        if len(late) < len(self._late):
            seconds = _LATE_PAUSE_S if seconds is None else min(seconds, _LATE_PAUSE_S)
        if self._meter is not None and seconds is not None:
            seconds = min(seconds, _SAMPLE_S)
        return None if seconds is None else int(min(seconds, 3600.0) * 1000) + 1

    def _read_status(self) -> None:
        """Parse `NAME NUMBER` lines. Who writes them is hostile: anything else is ignored."""
        try:
            data = os.read(self._status_r, 65536)
        except BlockingIOError:
            return
        if not data:  # every holder of its other end is gone, so the shell is as well
            os.close(self._status_r)
            self._status_r = -1
            return
        *lines, rest = (self._partial + data).split(b"\n")
        self._partial = rest[:_STATUS_LINE_BYTES]
        for line in lines:
            name, _, number = line.partition(b" ")
            if name == self._awaited and number.isdigit() and len(number) < 10:
                self._answer = int(number)
        if len(lines) > 100:
            time.sleep(0.01)  # a flood costs little of the container's time


def high_pipe() -> tuple[int, int]:
    """A pipe whose numbers are none of those that the shell will get."""
    ends = []
    for fd in os.pipe():
        ends.append(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _STATUS_FD + 1))
        os.close(fd)
    return ends[0], ends[1]


def spawn_bash(actions: list[tuple[Any, ...]], environment: dict[bytes, bytes]) -> int:
    """An interactive bash without a terminal; at the limit of processes it is tried again."""
    words = ["bash", "--noprofile", "--norc", "--noediting", "-i", "-s"]
    deadline = time.monotonic() + 2.0
    while True:
        try:
            return os.posix_spawn(
                find_bash(environment),
                words,
                environment,
                file_actions=actions,
                setsigdef=_SIGNALS,
                setsigmask=[],
                setsid=True,
            )
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def find_bash(environment: dict[bytes, bytes]) -> str:
    for folder in [*os.fsdecode(environment.get(b"PATH", b"")).split(":"), "/bin", "/usr/bin"]:
        if folder and os.access(folder + "/bash", os.X_OK):
            return folder + "/bash"
    raise FileNotFoundError(errno.ENOENT, "this image has no bash")


def raise_oom_score(path: bytes) -> None:
    """What the model runs goes first when memory is short, not the guest."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        os.write(fd, b"500")
    except OSError:
        pass  # a limit of the container's: the guest is no worse than before
    finally:
        os.close(fd)


def quoted(text: bytes) -> bytes:
    return b"'" + text.replace(b"'", b"'\\''") + b"'"


# --- files --------------------------------------------------------------------------------------


def kind_of(mode: int) -> bytes:
    for test, kind in (
        (stat.S_ISREG, b"file"),
        (stat.S_ISDIR, b"directory"),
        (stat.S_ISLNK, b"link"),
        (stat.S_ISFIFO, b"fifo"),
        (stat.S_ISSOCK, b"socket"),
    ):
        if test(mode):
            return kind
    return b"device"


def describe(status: os.stat_result) -> tuple[bytes, int, int]:
    return kind_of(status.st_mode), status.st_size, stat.S_IMODE(status.st_mode)


class Files:
    """Files by path inside. What a name leads to is pinned and looked at before it is opened."""

    def __init__(self) -> None:
        self._open: dict[int, int] = {}

    def stat(self, _: int, path: bytes) -> Sequence[bytes | int]:
        return describe(os.stat(path, follow_symlinks=False))

    def list(self, _: int, path: bytes, offset: bytes) -> Sequence[bytes | int]:
        """A page of a folder's entries, in the order of the names: total, taken, then fours."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            names = sorted(os.fsencode(name) for name in os.listdir(fd))
            fields: list[bytes | int] = []
            taken, room = 0, _PAGE_BYTES
            for name in names[int(offset) :]:
                room -= len(name) + 64
                if room < 0 and taken:
                    break
                taken += 1
                try:
                    found = os.stat(name, dir_fd=fd, follow_symlinks=False)
                except FileNotFoundError:
                    continue
                fields += [name, *describe(found)]
            return [len(names), taken, *fields]
        finally:
            os.close(fd)

    def mkdir(self, _: int, path: bytes) -> Sequence[bytes | int]:
        make_folders(path)
        return ()

    def symlink(self, _: int, path: bytes, target: bytes) -> Sequence[bytes | int]:
        make_folders(os.path.dirname(path))
        os.symlink(target, path)
        return ()

    def open(self, ident: int, path: bytes) -> Sequence[bytes | int]:
        """Size, whether there may be more than comes along, and the first bytes."""
        fd = open_regular(path, os.O_RDONLY)
        size = os.fstat(fd).st_size
        self._open[ident] = fd
        data = self._read(ident, _FIRST_BYTES)
        return size, int(ident in self._open), data

    def _read(self, ident: int, most: int) -> bytes:
        """Up to `most` bytes; the file is closed at its end or its failure."""
        fd = self._open[ident]
        try:
            data = b""
            while len(data) < most:
                more = os.read(fd, most - len(data))
                data += more
                if not more:
                    self.forget(ident)
                    break
        except OSError:
            self.forget(ident)
            raise
        return data

    def read(self, _: int, handle: bytes) -> bytes:
        """One piece; an empty one at the end."""
        return self._read(int(handle), CHUNK_BYTES) if int(handle) in self._open else b""

    def create(self, ident: int, path: bytes, exclusive: bytes, mode: bytes) -> Sequence[int]:
        """Open for writing, made with its parents if missing. An existing file keeps its mode."""
        make_folders(os.path.dirname(path))
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            self._open[ident] = os.open(path, flags | os.O_EXCL | os.O_NOFOLLOW, int(mode))
            return ()
        except FileExistsError:
            if exclusive != b"0":
                raise
        try:
            self._open[ident] = open_regular(path, os.O_WRONLY | os.O_TRUNC)
        except FileNotFoundError:  # a link whose target is missing: make the target
            self._open[ident] = os.open(path, flags, int(mode))
        return ()

    def write(self, handle: int, data: bytes) -> None:
        fd = self._open.get(handle)
        if fd is not None:
            try:
                write_all(fd, data)
            except OSError:
                self.forget(handle)
                raise

    def forget(self, handle: int) -> None:
        fd = self._open.pop(handle, None)
        if fd is not None:
            os.close(fd)


def make_folders(path: bytes) -> None:
    """As os.makedirs, but not one call deep for each folder: a path may have two thousand."""
    if len(path) > 4095:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    if os.path.isdir(path):
        return
    parts = path.split(b"/")
    for depth in range(2, len(parts) + 1):
        folder = b"/".join(parts[:depth])
        try:
            os.mkdir(folder, 0o755)
        except FileExistsError:
            continue
    os.stat(path + b"/")  # raises where a file or a link to nothing is in the way


def open_regular(path: bytes, flags: int) -> int:
    """Never waits for a pipe and never touches a device: what is there is pinned and proved."""
    pin = os.open(path, os.O_PATH | os.O_CLOEXEC | flags & os.O_NOFOLLOW)
    try:
        kind = kind_of(os.fstat(pin).st_mode)
        if kind != b"file":
            raise OSError(errno.EINVAL, f"is a {kind.decode()}, not a regular file")
        flags = flags & ~os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
        return os.open(f"/proc/self/fd/{pin}", flags)
    finally:
        os.close(pin)


# --- packing ------------------------------------------------------------------------------------


class Credit:
    """How many bytes the host takes now; a thread that has none waits."""

    def __init__(self) -> None:
        self._bytes = 0
        self._stopped = False
        self._gate = _thread.allocate_lock()
        self._gate.acquire()

    def grant(self, size: int) -> None:
        self._bytes += size
        if self._gate.locked():
            self._gate.release()

    def stop(self) -> None:
        self._stopped = True
        self.grant(0)

    def take(self, size: int) -> None:
        while self._bytes < size and not self._stopped:
            self._gate.acquire()
        if self._stopped:
            raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
        self._bytes -= size


class TarSink:
    """A file for `tarfile` that sends what is written to it, no faster than it is taken."""

    def __init__(self, wire: Wire, ident: int, credit: Credit) -> None:
        self._wire = wire
        self._ident = ident
        self._credit = credit

    def write(self, data: bytes) -> int:
        for at in range(0, len(data), CHUNK_BYTES):
            piece = data[at : at + CHUNK_BYTES]
            self._credit.take(len(piece))
            self._wire.send(DATA, self._ident, piece)
        return len(data)


def pack(wire: Wire, ident: int, credit: Credit, exact: bool, paths: list[bytes]) -> None:
    """Send a tar of `paths`, each with what is below it, then how many could not be read.

    `exact` takes each path alone, and with a folder the names in it: what else a later folder of
    that name holds is removed when it comes back, so deletions need not be listed.

    What runs inside is held still meanwhile; what was stopped before stays so.
    """
    import tarfile

    tree = Tree()
    running = [pid for pid, state in tree.states()[0].items() if state not in "TtZ"]
    kill(running, _signal.SIGSTOP)
    lost = 0
    try:
        sink: Any = TarSink(wire, ident, credit)
        with tarfile.open(
            fileobj=sink, mode="w|", format=tarfile.PAX_FORMAT, bufsize=CHUNK_BYTES
        ) as tar:
            for path in paths:
                lost += add_path(tar, os.fsdecode(path), exact)
    except OSError as exc:
        if isinstance(exc, BrokenPipeError):
            raise
        wire.refuse(ident, exc)
        return
    finally:
        kill(running, _signal.SIGCONT)
    wire.answer(ident, lost)


def add_path(tar: Any, path: str, exact: bool) -> int:
    """Add one path, and what is below it unless `exact`; returns how many could not be read."""
    lost = 0
    waiting = [path]
    while waiting:
        name = waiting.pop()
        if OWN_PREFIX in name:
            continue
        try:
            info = tar.gettarinfo(name)
            if info is None:  # a socket
                continue
            info.uname = info.gname = ""
            if info.isreg():
                fd = open_regular(os.fsencode(name), os.O_RDONLY | os.O_NOFOLLOW)
                with os.fdopen(fd, "rb") as file:
                    add_file(tar, info, file)
                continue
            names = sorted(os.listdir(name), reverse=True) if info.isdir() else []
            if exact and info.isdir():
                info.pax_headers = {_NAMES: "/".join(names)}
            tar.addfile(info)
            if not exact:
                waiting += [os.path.join(name, inner) for inner in names]
        except (FileNotFoundError, PermissionError, NotADirectoryError):
            lost += 1
    return lost


def add_file(tar: Any, info: Any, file: IO[bytes]) -> None:
    """As long as its header says, whatever happens to it meanwhile."""
    tar.addfile(info, Padded(file, info.size))


class Padded:
    """A file that gives zeros where it has become shorter."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file = file
        self._left = size

    def read(self, size: int) -> bytes:
        size = min(size, self._left)
        self._left -= size
        data = self._file.read(size)
        return data + bytes(size - len(data))


def unpack(wire: Wire, ident: int, source: int, remove: list[bytes]) -> None:
    """Remove paths, then put back what `pack` made, read from the pipe `source`."""
    import tarfile

    error = None
    try:
        with os.fdopen(source, "rb", 0) as file:
            for path in remove:
                remove_tree(os.fsdecode(path))
            with tarfile.open(fileobj=file, mode="r|", bufsize=CHUNK_BYTES) as tar:
                folders = [info for info in tar if put_back(tar, info)]
            for info in reversed(folders):
                finish_entry(info)
            while file.read(CHUNK_BYTES):
                pass
    except (tarfile.TarError, ValueError, KeyError) as exc:
        error = OSError(errno.EBADMSG, f"the archive is damaged: {exc}")
    except OSError as exc:
        error = exc
    if error is None:
        wire.answer(ident)
    else:
        wire.refuse(ident, error)


def put_back(tar: Any, info: Any) -> bool:
    """Make one entry in the place of whatever is there; True for a folder, finished later."""
    path = "/" + info.name.lstrip("/")
    if not (info.isdir() and os.path.isdir(path) and not os.path.islink(path)):
        remove_tree(path)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if info.isdir():
            os.mkdir(path)
        elif info.issym():
            os.symlink(info.linkname, path)
        elif info.islnk():
            os.link("/" + info.linkname.lstrip("/"), path, follow_symlinks=False)
            return False
        elif info.isfifo():
            os.mkfifo(path)
        elif info.isreg():
            copy_file(tar.extractfile(info), path)
        else:
            try_to(os.mknod, path, 0o600 | (stat.S_IFCHR if info.ischr() else stat.S_IFBLK),
                   os.makedev(info.devmajor, info.devminor))  # fmt: skip
    if not info.isdir():
        finish_entry(info)
    elif _NAMES in info.pax_headers:
        prune(path, info.pax_headers[_NAMES].split("/"))
    return bool(info.isdir())


def prune(folder: str, names: list[str]) -> None:
    """Remove what has another name; folders of the guest's own stay."""
    for name in set(os.listdir(folder)).difference(names):
        if OWN_PREFIX not in "/" + name:
            remove_tree(os.path.join(folder, name))


def finish_entry(info: Any) -> None:
    path = "/" + info.name.lstrip("/")
    try_to(os.chown, path, info.uid, info.gid, follow_symlinks=False)
    if not info.issym():
        try_to(os.chmod, path, info.mode)
    try_to(os.utime, path, (info.mtime, info.mtime), follow_symlinks=False)


def copy_file(source: Any, path: str) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    fd = os.open(path, flags, 0o600)
    try:
        while True:
            data = source.read(CHUNK_BYTES)
            if not data:
                return
            write_all(fd, data)
    finally:
        os.close(fd)


def try_to(work: Callable[..., object], *arguments: Any, **more: Any) -> None:
    try:
        work(*arguments, **more)
    except OSError:
        pass  # an owner or a device that this container may not make


def remove_tree(path: str) -> None:
    """Remove whatever is at a path; mount points stay."""
    if not os.path.isdir(path) or os.path.islink(path):
        unlink(path)
        return
    for folder, folders, names in os.walk(path, topdown=False):
        for name in names:
            unlink(os.path.join(folder, name))
        for name in folders:
            inner = os.path.join(folder, name)
            try_to(os.unlink if os.path.islink(inner) else os.rmdir, inner)
    try_to(os.rmdir, path)


# --- the forwarder ------------------------------------------------------------------------------


def bring_loopback_up(sock: Any) -> None:
    """Engines do it; where the network namespace is bare and we may, we do."""
    try:
        fcntl.ioctl(sock, 0x8914, struct.pack("16sh14x", b"lo", 1))  # SIOCSIFFLAGS, IFF_UP
    except OSError:
        pass


def raise_open_files() -> None:
    """Each connection takes six descriptors."""
    import resource

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def listen() -> Any:
    import _socket

    probe = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM)
    bring_loopback_up(probe)
    probe.close()
    sock = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
    sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", PROXY_PORT))
    sock.listen(512)
    return sock


class Flow:
    """Bytes one way, from a socket into a pipe and out of it, without a copy where possible."""

    def __init__(self, source: Any, target: Any) -> None:
        self.source = source
        self.shut = False
        self._target = target
        self._held = 0
        self._ended = False
        self._pipe_r, self._pipe_w = os.pipe()
        for fd in (self._pipe_r, self._pipe_w):
            os.set_blocking(fd, False)
        try:
            fcntl.fcntl(self._pipe_w, 1031, _PIPE_BYTES)  # F_SETPIPE_SZ
        except OSError:
            pass  # more than this user may have: the usual 64 KiB do as well

    def move(self) -> None:
        """Take and give what goes now. Raises OSError where either side is broken."""
        while self._take() | self._give():
            pass
        if self._ended and not self._held and not self.shut:
            self.shut = True
            self._target.shutdown(1)  # SHUT_WR

    def _take(self) -> bool:
        if self._ended or self._held >= _PIPE_BYTES:
            return False
        try:
            size = splice(self.source.fileno(), self._pipe_w)
        except BlockingIOError:
            return False
        self._ended = size == 0
        self._held += size
        return size > 0

    def _give(self) -> bool:
        if not self._held:
            return False
        try:
            size = splice(self._pipe_r, self._target.fileno())
        except BlockingIOError:
            return False
        self._held -= size
        return size > 0

    def close(self) -> None:
        os.close(self._pipe_r)
        os.close(self._pipe_w)


def splice(source: int, target: int) -> int:
    if not hasattr(os, "splice"):  # before Python 3.10
        return copy_some(source, target)
    return os.splice(source, target, _PIPE_BYTES, flags=3)  # SPLICE_F_MOVE, SPLICE_F_NONBLOCK


def copy_some(source: int, target: int) -> int:
    """What `splice` does, with a copy. Only what the target takes without waiting is read."""
    poll = select.poll()
    poll.register(target, select.POLLOUT)
    if not poll.poll(0):
        raise BlockingIOError
    data = os.read(source, 4096)
    write_all(target, data)
    return len(data)


class Forwarder:
    """Connections to the loopback's proxy port, carried to a Unix socket, in one thread."""

    def __init__(self, listener: Any, target: bytes) -> None:
        self._listener = listener
        self._target = target
        self._epoll = select.epoll()
        self._flows: dict[int, tuple[Flow, Flow]] = {}

    def loop(self) -> None:
        self._listener.setblocking(False)
        self._epoll.register(self._listener.fileno(), select.EPOLLIN)
        while True:
            for fd, _ in self._epoll.poll():
                if fd == self._listener.fileno():
                    self._accept()
                elif fd in self._flows:
                    self._move(fd)

    def _accept(self) -> None:
        import _socket

        try:
            fd, _ = self._listener._accept()
        except OSError:
            time.sleep(0.01)  # out of descriptors, or gone again
            return
        inner = _socket.socket(fileno=fd)
        outer = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        try:
            for sock in (inner, outer):
                sock.setblocking(False)
            outer.connect(self._target)
            flows = (Flow(inner, outer), Flow(outer, inner))
        except OSError:  # nobody listens there, or too many wait: the client sees an end
            inner.close()
            outer.close()
            return
        for sock in (inner, outer):
            self._flows[sock.fileno()] = flows
            events = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
            self._epoll.register(sock.fileno(), events)

    def _move(self, fd: int) -> None:
        flows = self._flows[fd]
        try:
            for flow in flows:
                flow.move()
        except OSError:
            self._close(flows)
            return
        if all(flow.shut for flow in flows):
            self._close(flows)

    def _close(self, flows: tuple[Flow, Flow]) -> None:
        for flow in flows:
            del self._flows[flow.source.fileno()]
            flow.close()
            flow.source.close()


# --- the loop -----------------------------------------------------------------------------------


class Guest:
    """Reads frames and does what they ask until its input ends."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._files = Files()
        self._runner: Runner | None = None
        self._texts: dict[int, bytearray] = {}
        self._credits: dict[int, Credit] = {}
        self._pipes: dict[int, int] = {}
        self._asked: dict[int, Callable[..., Sequence[bytes | int | None]]] = {
            STAT: self._files.stat,
            LIST: self._files.list,
            MKDIR: self._files.mkdir,
            SYMLINK: self._files.symlink,
            OPEN: self._files.open,
            CREATE: self._files.create,
        }
        self._told: dict[int, Callable[[int, bytes], None]] = {
            CONFIGURE: self._configure,
            TEXT: self._text,
            RUN: self._run,
            ABORT: self._abort,
            READ: self._read,
            WRITE: self._files.write,
            CLOSE: self._close,
            USAGE: self._usage,
            RESET: self._reset,
            PACK: self._pack,
            CREDIT: self._credit,
            UNPACK: self._unpack,
            INPUT: self._input,
        }

    def serve(self) -> None:
        while True:
            frame = self._wire.receive()
            if frame is None:
                return
            kind, ident, body = frame
            try:
                if kind in self._asked:
                    self._wire.answer(ident, *self._asked[kind](ident, *split_fields(body)))
                else:
                    self._told[kind](ident, body)
            except BrokenPipeError:
                return
            except OSError as exc:
                self._wire.refuse(ident, exc)
            except (ValueError, RuntimeError) as exc:  # a NUL byte in a path; no thread to be had
                self._wire.refuse(ident, OSError(errno.EINVAL, str(exc)))

    def _configure(self, ident: int, body: bytes) -> None:
        limits = Limits(split_fields(body))
        if limits.proxy_socket:
            raise_open_files()
            start_thread(Forwarder(listen(), limits.proxy_socket).loop)
        self._runner = Runner(self._wire, limits)
        start_thread(self._runner.loop, ident)

    def _text(self, ident: int, body: bytes) -> None:
        self._texts.setdefault(ident, bytearray()).extend(body)

    def _run(self, ident: int, body: bytes) -> None:
        milliseconds = int(split_fields(body)[0])
        text = bytes(self._texts.pop(ident, b""))
        self._shell().submit(Job(ident, milliseconds / 1000, text))

    def _abort(self, ident: int, _: bytes) -> None:
        if ident in self._credits:
            self._credits[ident].stop()
        else:
            self._shell().cancel(ident)

    def _reset(self, ident: int, _: bytes) -> None:
        self._shell().submit(Job(ident, -1.0, b""))

    def _usage(self, ident: int, _: bytes) -> None:
        self._wire.answer(ident, *self._shell().usage())

    def _read(self, ident: int, body: bytes) -> None:
        self._wire.send(DATA, ident, self._files.read(ident, body))

    def _close(self, ident: int, body: bytes) -> None:
        self._files.forget(int(body))
        self._wire.answer(ident)

    def _pack(self, ident: int, body: bytes) -> None:
        paths = bytes(self._texts.pop(ident, b"")) + body
        credit = self._credits[ident] = Credit()
        exact, *names = split_fields(paths)
        start_thread(pack, self._wire, ident, credit, exact == b"1", names)

    def _credit(self, ident: int, body: bytes) -> None:
        if ident in self._credits:
            self._credits[ident].grant(int(body))

    def _unpack(self, ident: int, body: bytes) -> None:
        remove = bytes(self._texts.pop(ident, b"")) + body
        source, self._pipes[ident] = os.pipe()
        start_thread(unpack, self._wire, ident, source, split_fields(remove))

    def _input(self, ident: int, body: bytes) -> None:
        """Bytes for an UNPACK; none at their end. One that failed takes no more."""
        pipe = self._pipes.get(ident)
        if pipe is None:
            return
        try:
            write_all(pipe, body)
            ended = not body
        except BrokenPipeError:
            ended = True
        if ended:
            os.close(self._pipes.pop(ident))

    def tidy(self) -> None:
        if self._runner is not None:
            remove_tree(self._runner.control)

    def _shell(self) -> Runner:
        if self._runner is None:
            raise OSError(errno.EINVAL, "not configured")
        return self._runner


def main() -> None:
    hardened = harden()
    ends = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _STATUS_FD + 1) for fd in (0, 1)]
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    for fd in (0, 1):
        os.dup2(null, fd)
    os.chdir("/")
    os.umask(0o022)
    if hasattr(sys, "setswitchinterval"):
        sys.setswitchinterval(0.0005)  # a flood that is read must not hold up a file
    wire = Wire(*ends)
    ids = (os.getpid(), os.getuid(), os.getgid(), int(hardened))
    wire.send(HELLO, 0, join_fields((b"%d.%d.%d" % sys.version_info[:3], *ids)))
    guest = Guest(wire)
    try:
        guest.serve()
    except BrokenPipeError:
        pass  # nobody is there any more
    except BaseException as exc:  # noqa: BLE001  a bug: end loudly, and take all along
        sys.excepthook(type(exc), exc, exc.__traceback__)
    if os.getpid() != 1:
        guest.tidy()
    end_everything()


if __name__ == "__main__":
    main()
