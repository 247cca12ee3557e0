"""Our side of the guest: one persistent bash and files, over one stream of bytes.

The other end is the container's first process and all of it may be hostile: a frame that was not
asked for, is too large or cannot be parsed ends the session with `SandboxDied(unresponsive)`.
What can cross unasked is bounded: a command's output by its capture, a packed tree by the credit
that we gave, everything else by one frame for each request.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib.util
import json
import marshal
import os
import shlex
import tarfile
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from sandlot.core.errors import (
    DeathCause,
    SandboxDied,
    SandboxFileError,
    SandboxUnavailable,
)
from sandlot.core.types import CollectedFile, SkippedFile
from sandlot.sandbox import guest
from sandlot.sandbox.base import ExecResult, FileInfo, SandboxStats, absolute
from sandlot.sandbox.files import Collector, check_path, upload_tree
from sandlot.sandbox.output import bounded_text
from sandlot.sandbox.policy import Policy
from sandlot.sandbox.shell import _encode

T = TypeVar("T")
_START_S = 30.0
_ANSWER_S = 30.0
_PACK_S = 600.0
_PACK_SLACK = 64 * 1024 * 1024
_GRACE_S = 10.0  # beyond a command's timeout: the guest has ended it by then, or never will
_LAST_WORD_S = 1.0
_WINDOW = 6  # chunks under way of one file
_CREDIT_BYTES = 16 * guest.CHUNK_BYTES
_TAR_BLOCK = 512
_MOST_ENTRIES = 1_000_000  # of one folder, and ...
_MOST_BYTES = 4 << 30  # ... of one file in memory: a guest could go on for ever
_STATE_NAME = "sandlot-state.json"
_KINDS = frozenset(("file", "directory", "link", "fifo", "socket", "device"))

_BOOTSTRAP = """\
import os, marshal, _frozen_importlib_external as e
def r(n):
    b = b""
    while len(b) < n:
        d = os.read(0, n - len(b))
        if not d:
            os._exit(0)
        b += d
    return b
os.write(1, e.MAGIC_NUMBER[:4])
k = r(1)
c = r(int(r(8)))
exec(marshal.loads(c) if k == b"m" else compile(c, "guest", "exec"), {"__name__": "__main__"})
"""
GUEST_COMMAND: tuple[str, ...] = ("python3", "-I", "-S", "-u", "-c", _BOOTSTRAP)
"""What to run inside: it says which Python it is, then reads its own program from stdin."""

CONTROL_DIRS = ("/dev/shm", "/run", "/tmp", "/var/tmp")
OUTPUT_DIR = "/tmp/.sandlot"


class ByteStream(Protocol):
    """Ordered bytes to and from the guest's standard input and output."""

    async def read(self) -> bytes:
        """Some bytes; none at the end. Raises OSError or SandboxDied where it is lost."""
        ...

    async def write(self, data: bytes) -> None:
        """Take all of `data`; returns when there is room for more."""
        ...

    async def close(self) -> None: ...


class ProcessStream:
    """The stream of a child process whose stdin and stdout are pipes."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None, "the guest's stdin must be a pipe"
        assert process.stdout is not None, "the guest's stdout must be a pipe"
        self._stdin, self._stdout = process.stdin, process.stdout

    async def read(self) -> bytes:
        return await self._stdout.read(guest.FRAME_BYTES)

    async def write(self, data: bytes) -> None:
        self._stdin.write(data)
        await self._stdin.drain()

    async def close(self) -> None:
        self._stdin.close()
        with contextlib.suppress(OSError):
            await self._stdin.wait_closed()


class _Broken(Exception):
    """The guest sent what it may not."""


class _Refused(Exception):
    """The guest answered a request with an error."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class _Call:
    """One request that waits for one answer of the kinds it names."""

    def __init__(self, *kinds: int) -> None:
        self._kinds = kinds
        self.future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def accept(self, kind: int, body: bytes) -> bool:
        """Take a frame; True when no more may come. Raises _Broken on any other frame."""
        if kind == guest.ERROR:
            self.fail(_refusal(body))
            return True
        if kind not in self._kinds:
            raise _Broken(f"frame {kind} in answer to a request for {self._kinds}")
        _settle(self.future, body)
        return True

    def fail(self, error: Exception) -> None:
        _spoil(self.future, error)


class _CommandCall(_Call):
    """A command: its output in bounded pieces, then its end."""

    def __init__(self, capture_bytes: int) -> None:
        super().__init__(guest.DONE)
        self.parts = [bytearray() for _ in range(4)]
        self._half = max(1, capture_bytes // 2)

    def accept(self, kind: int, body: bytes) -> bool:
        if kind != guest.OUTPUT:
            return super().accept(kind, body)
        if not body or body[0] >= len(self.parts):
            raise _Broken("output of no stream")
        part = self.parts[body[0]]
        part += body[1:]
        if len(part) > self._half:
            raise _Broken("more output than was asked for")
        return False


class _FileCall(_Call):
    """A file opened for writing: an answer to its making, later perhaps a failure to write."""

    def __init__(self) -> None:
        super().__init__(guest.OK)
        self.failed: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def accept(self, kind: int, body: bytes) -> bool:
        if not self.future.done():
            super().accept(kind, body)
            return False
        if kind != guest.ERROR or self.failed.done():
            raise _Broken(f"frame {kind} about a file that is being written")
        _spoil(self.failed, _refusal(body))
        return False

    def fail(self, error: Exception) -> None:
        super().fail(error)
        _spoil(self.failed, error)


class _PackCall(_Call):
    """A tree being packed: pieces as far as there is credit, then the end."""

    def __init__(self) -> None:
        super().__init__(guest.OK)
        self.credit = 0
        self.dropping = False
        self.pieces: asyncio.Queue[bytes | None] = asyncio.Queue()

    def accept(self, kind: int, body: bytes) -> bool:
        if kind != guest.DATA:
            super().accept(kind, body)
            self.pieces.put_nowait(None)
            return True
        self.credit -= len(body)
        if not body or self.credit < 0:
            raise _Broken("more of a packed tree than there was credit for")
        if not self.dropping:
            self.pieces.put_nowait(body)
        return False

    def fail(self, error: Exception) -> None:
        super().fail(error)
        self.pieces.put_nowait(None)


class GuestSession:
    """The contract of `sandbox.base` over a stream whose other end runs `GUEST_COMMAND`.

    `died` is completed here or by the owner, with the first cause; every call then raises it.
    `environment` is that of the shell. `output_dir` is where the whole of long output goes and
    `control_dirs` are where the guest may make its own folder, the first that works.
    """

    def __init__(
        self,
        stream: ByteStream,
        policy: Policy,
        environment: Mapping[str, str],
        *,
        spool_dir: Path,
        died: asyncio.Future[SandboxDied],
        proxy_socket: str | None = None,
        output_dir: str = OUTPUT_DIR,
        control_dirs: Sequence[str] = CONTROL_DIRS,
    ) -> None:
        self.python_version = ""
        self.pid = self.uid = self.gid = self.shell_pid = 0
        self.undumpable = False
        self._stream = stream
        self._policy = policy
        self._environment = environment
        self._spool_dir = spool_dir
        self._died = died
        self._proxy_socket = proxy_socket
        self._output_dir = output_dir
        self._control_dirs = control_dirs
        self._queue = asyncio.Lock()
        self._sending = asyncio.Lock()
        self._calls: dict[int, _Call] = {}
        self._last_ident = 0
        self._reader: asyncio.Task[None] | None = None
        self._buffer = bytearray()
        died.add_done_callback(self._on_death)

    # --- life -----------------------------------------------------------------------------------

    async def start(self) -> None:
        """Send the guest its program and wait until its shell answers.

        Raises:
            SandboxUnavailable: the image lacks what the guest needs.
            SandboxDied: it broke during the start.
        """
        try:
            async with asyncio.timeout(_START_S):
                await self._boot()
        except TimeoutError as exc:
            raise self._die(DeathCause.START_FAILED, "the guest did not answer in time") from exc
        except _Refused as exc:
            raise SandboxUnavailable(
                f"the shell inside could not be started: {exc.reason}; the image needs bash"
            ) from exc
        except OSError as exc:
            raise self._die(DeathCause.START_FAILED, f"the guest's stream: {exc}") from exc

    async def close(self) -> None:
        """Ask the guest to end, by the end of its input. Safe to call twice."""
        self._die(DeathCause.CLOSED, "it was closed")
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.wait({self._reader})
            self._reader = None
        with contextlib.suppress(OSError, SandboxDied, TimeoutError):
            await asyncio.wait_for(self._stream.close(), _LAST_WORD_S)

    async def exec(self, command: str, timeout_s: float | None = None) -> ExecResult:
        async with self._queue:
            limit = self._policy.limits.command_timeout_s if timeout_s is None else timeout_s
            started = time.monotonic()
            call = _CommandCall(self._policy.limits.capture_bytes)
            body = await self._run(call, _encode(command), limit)
            took = time.monotonic() - started
            with self._parsing():
                return _result(call.parts, guest.split_fields(body), took)

    async def reset(self) -> None:
        """End everything that runs inside and begin a new shell in the policy's folder."""
        async with self._queue:
            with self._or_dead():
                await self._ask(guest.RESET)

    async def usage(self) -> SandboxStats:
        """What the guest reads in its own cgroup; None where it cannot."""
        body = await self._ask(guest.USAGE)
        with self._parsing():
            peak, cpu, throttled, processes = (_optional(f) for f in guest.split_fields(body))
            return SandboxStats(peak, _seconds(cpu), _seconds(throttled), processes)

    # --- files ----------------------------------------------------------------------------------

    async def read_file(self, path: str, *, limit_bytes: int | None = None) -> bytes:
        data = bytearray()
        limit_bytes = _MOST_BYTES if limit_bytes is None else limit_bytes
        async with self._inside.reading(self._absolute(path)) as source:
            if source.size_bytes > limit_bytes:
                raise SandboxFileError(
                    path, f"holds {source.size_bytes} bytes, more than {limit_bytes}"
                )
            async for piece in source.pieces():
                data += piece
                if len(data) > limit_bytes:
                    raise SandboxFileError(path, f"holds more than {limit_bytes} bytes")
        return bytes(data)

    async def write_file(self, path: str, data: bytes, *, exclusive: bool = False) -> None:
        view = memoryview(data)
        size = guest.CHUNK_BYTES
        pieces = (bytes(view[at : at + size]) for at in range(0, len(data), size))
        await self._inside.put(self._absolute(path), pieces, exclusive=exclusive)

    async def stat(self, path: str) -> FileInfo:
        return await self._inside.stat(self._absolute(path))

    async def list_dir(self, path: str) -> list[FileInfo]:
        return await self._inside.list_dir(self._absolute(path), None)

    async def upload(self, source: Path, target: str) -> int:
        return await upload_tree(self._inside, source, self._absolute(target))

    async def collect(
        self, paths: Sequence[str], into: Path
    ) -> tuple[list[CollectedFile], list[SkippedFile]]:
        limits = self._policy.limits
        collector = Collector(into, limits.collect_bytes, limits.collect_files)
        for path in paths:
            await collector.take(self._inside, self._absolute(path))
        return collector.collected, collector.skipped

    # --- state ----------------------------------------------------------------------------------

    async def snapshot(
        self,
        target: Path,
        paths: Sequence[str] | None = None,
        removed: Sequence[str] = (),
        *,
        exact: bool = False,
    ) -> None:
        """Store `paths` (default: the working directory), the directory and exported variables.

        What changed since the image cannot be seen from inside: the owner says it, in `paths` the
        files and folders that are new or changed, in `removed` those that are gone. An engine's
        list of changes names every path, and the folder of a deleted file as changed: with `exact`
        each is stored alone, folders with the names in them, and `removed` is not needed.
        """
        exports = await self.exec("export -p")
        where = await self.exec("pwd -P")
        if exports.truncated or where.truncated or exports.exit_code != 0:
            raise SandboxFileError(str(target), "the exported variables are too large to be kept")
        state = {
            "working_dir": where.stdout.rstrip("\n"),
            "exports": exports.stdout,
            "removed": list(removed),
        }
        async with self._queue:
            await self._store(
                target, [self._policy.working_dir] if paths is None else paths, state, exact
            )

    async def restore(self, source: Path, *, clear: Sequence[str] = ()) -> None:
        """Bring back what `snapshot` stored; what runs inside ends. `clear` is removed before.

        Raises:
            SandboxFileError: `source` is no snapshot or is damaged; then nothing was changed.
        """
        state = await asyncio.to_thread(read_state, source)
        await self.reset()
        async with self._queue:
            await self.unpack(source, [*state.removed, *clear])
        ours = proxy_exports(self._environment)
        await self.exec(f"{state.exports}\n{ours}cd -- {shlex.quote(state.working_dir)}")

    async def pack(self, paths: Sequence[str], into: Path, *, exact: bool = False) -> None:
        """Append a tar of absolute paths inside to a host file; folders whole unless `exact`.

        What runs inside is held still meanwhile. Raises SandboxFileError.
        """
        try:
            with into.open("ab") as file:
                await self._pack(paths, exact, file.write)
        except OSError as exc:
            raise SandboxFileError(str(into), exc.strerror or str(exc)) from exc

    async def unpack(self, source: Path, remove: Sequence[str]) -> None:
        """Remove paths inside, then put back the tree of a snapshot or of `pack`."""
        call = _Call(guest.OK)
        ident = self._register(call)
        names = guest.join_fields(_path_bytes(path) for path in remove)
        await self._send_text(ident, names, guest.UNPACK, b"")
        try:
            with source.open("rb") as file:
                file.seek(_tree_offset(source))
                while not call.future.done() and (data := file.read(guest.CHUNK_BYTES)):
                    await self._send(guest.INPUT, ident, data)
        finally:
            await self._send(guest.INPUT, ident, b"")
        with _file_errors(str(source)):
            await self._await(call, _PACK_S)

    async def _store(
        self, target: Path, paths: Sequence[str], state: Mapping[str, object], exact: bool
    ) -> None:
        partial = target.with_name(target.name + ".partial")
        data = json.dumps(state).encode()
        info = tarfile.TarInfo(_STATE_NAME)
        info.size = len(data)
        try:
            partial.write_bytes(info.tobuf() + data + bytes(-len(data) % _TAR_BLOCK))
            partial.chmod(0o600)
            await self.pack([self._absolute(path) for path in paths], partial, exact=exact)
            partial.replace(target)
        except OSError as exc:
            raise SandboxFileError(str(target), exc.strerror or str(exc)) from exc
        finally:
            partial.unlink(missing_ok=True)

    async def _pack(
        self, paths: Sequence[str], exact: bool, write: Callable[[bytes], object]
    ) -> None:
        call = _PackCall()
        ident = self._register(call)
        names = guest.join_fields((int(exact), *map(_path_bytes, paths)))
        await self._send_text(ident, names, guest.PACK, b"")
        await self._grant(call, ident, _CREDIT_BYTES)
        most, size = self._most_packed(), 0
        try:
            while (piece := await asyncio.wait_for(call.pieces.get(), _ANSWER_S)) is not None:
                size += len(piece)
                if most is not None and size > most:
                    raise SandboxFileError("the files inside", f"are more than {most} bytes")
                await asyncio.to_thread(write, piece)
                await self._grant(call, ident, len(piece))
        except TimeoutError as exc:
            raise self._die(DeathCause.UNRESPONSIVE, "packing files came to a halt") from exc
        except BaseException:
            call.dropping = True  # what is on its way is dropped
            if not self._died.done():
                await self._send(guest.ABORT, ident, b"")
            raise
        with _file_errors("the files inside"):
            await self._await(call, _ANSWER_S)

    def _most_packed(self) -> int | None:
        """A sparse file without end must not fill the host's disk."""
        disk = self._policy.limits.disk_bytes
        return None if disk is None else 2 * disk + _PACK_SLACK

    async def _grant(self, call: _PackCall, ident: int, size: int) -> None:
        call.credit += size
        await self._send(guest.CREDIT, ident, b"%d" % size)

    # --- one command ----------------------------------------------------------------------------

    async def _run(self, call: _CommandCall, text: bytes, limit: float) -> bytes:
        ident = self._register(call)
        # An endless timeout is a year: the guest counts in milliseconds.
        milliseconds = int(max(0.0, min(limit, 3e7)) * 1000)
        body = guest.join_fields((milliseconds,))
        try:
            # Shielded as a whole: the guest answers only what it was told to the end.
            await asyncio.shield(self._send_text(ident, text, guest.RUN, body))
            with self._or_dead():
                return await self._await(call, limit + _GRACE_S)
        except asyncio.CancelledError:
            if not self._died.done():
                await asyncio.shield(self._stop(call, ident))
            raise

    async def _stop(self, call: _CommandCall, ident: int) -> None:
        with contextlib.suppress(SandboxDied, _Refused):
            await self._send(guest.ABORT, ident, b"")
            await self._await(call, _GRACE_S)

    @contextlib.contextmanager
    def _or_dead(self) -> Iterator[None]:
        """A shell that cannot be brought back is the end of the sandbox."""
        try:
            yield
        except _Refused as exc:
            full = exc.code in (28, 122)  # ENOSPC, EDQUOT
            cause = DeathCause.DISK_FULL if full else DeathCause.UNRESPONSIVE
            raise self._die(cause, exc.reason) from exc

    # --- requests -------------------------------------------------------------------------------

    @functools.cached_property
    def _inside(self) -> _Inside:
        return _Inside(self)

    def _absolute(self, path: str) -> str:
        check_path(path)
        return absolute(path, self._policy.working_dir)

    def _register(self, call: _Call) -> int:
        if self._died.done():
            raise self._died.result()
        if self._reader is None:
            raise SandboxDied(DeathCause.CLOSED, "it was not started")
        self._last_ident += 1
        self._calls[self._last_ident] = call
        return self._last_ident

    async def _ask(self, kind: int, *parts: bytes | int) -> bytes:
        call = _Call(guest.OK)
        await self._send(kind, self._register(call), guest.join_fields(parts))
        return await self._await(call, _ANSWER_S)

    async def _await(self, call: _Call, seconds: float) -> bytes:
        """The answer. None in time ends the sandbox: it cannot be trusted any more."""
        future = call.future
        if not future.done():
            await asyncio.wait({future}, timeout=seconds)
        if not future.done():
            raise self._die(DeathCause.UNRESPONSIVE, f"no answer within {seconds:g} s")
        return future.result()

    async def _send_text(self, ident: int, text: bytes, kind: int, body: bytes) -> None:
        """`text` in as many frames as it takes, then the frame that makes use of it."""
        size = guest.CHUNK_BYTES
        for at in range(0, len(text) - size, size):
            await self._send(guest.TEXT, ident, text[at : at + size])
        at = max(0, (len(text) - 1) // size * size)
        last = _frame(guest.TEXT, ident, text[at:]) + _frame(kind, ident, body)
        await asyncio.shield(self._write(last))

    async def _send(self, kind: int, ident: int, body: bytes) -> None:
        # Shielded: half a frame would make nonsense of every later one.
        await asyncio.shield(self._write(_frame(kind, ident, body)))

    async def _write(self, data: bytes) -> None:
        if self._died.done():
            raise self._died.result()
        try:
            async with asyncio.timeout(_ANSWER_S), self._sending:
                await self._stream.write(data)
        except TimeoutError as exc:
            raise self._die(DeathCause.UNRESPONSIVE, "the guest takes no more requests") from exc
        except OSError as exc:
            raise await self._lost() from exc

    # --- answers --------------------------------------------------------------------------------

    async def _boot(self) -> None:
        magic = await self._exactly(4)
        await self._stream.write(_program(magic))
        hello = _Call(guest.HELLO)
        self._calls[0] = hello
        self._reader = asyncio.ensure_future(self._read())
        self._reader.add_done_callback(self._on_reader_end)
        with self._parsing():
            fields = guest.split_fields(await hello.future)
            self.python_version = fields[0].decode("ascii")
            self.pid, self.uid, self.gid, undumpable = map(_number, fields[1:5])
            self.undumpable = undumpable == 1
        answer = _Call(guest.OK)
        await self._send(guest.CONFIGURE, self._register(answer), self._configuration())
        with self._parsing():
            self.shell_pid = _number(guest.split_fields(await answer.future)[0])

    def _configuration(self) -> bytes:
        limits = self._policy.limits
        variables = [part for pair in self._environment.items() for part in map(os.fsencode, pair)]
        return guest.join_fields(
            (
                max(1, limits.capture_bytes // 2),
                limits.saved_bytes,
                limits.flood_bytes,
                limits.open_files,
                limits.file_bytes,
                os.fsencode(self._output_dir),
                os.fsencode(self._policy.working_dir),
                guest.join_fields(map(os.fsencode, self._control_dirs)),
                guest.join_fields(variables),
                os.fsencode(self._proxy_socket or ""),
            )
        )

    async def _exactly(self, size: int) -> bytes:
        while len(self._buffer) < size:
            data = await self._stream.read()
            if not data:
                raise self._die(
                    DeathCause.START_FAILED,
                    "the guest ended before it began; the image needs python3, 3.8 or later",
                )
            self._buffer += data
        found = bytes(self._buffer[:size])
        del self._buffer[:size]
        return found

    async def _read(self) -> None:
        try:
            while data := await self._stream.read():
                self._buffer += data
                self._take_frames()
        except _Broken as exc:
            self._die(DeathCause.UNRESPONSIVE, f"the guest broke the protocol: {exc}")
            with contextlib.suppress(OSError, SandboxDied):
                await self._stream.close()
            return
        except SandboxDied as exc:
            _settle(self._died, exc)
        except OSError:
            pass  # as if it had ended
        await self._lost()

    def _take_frames(self) -> None:
        header = guest.HEADER.size
        at = 0
        view = memoryview(self._buffer)
        try:
            while len(view) - at >= header:
                kind, ident, size = guest.HEADER.unpack_from(view, at)
                if size > guest.FRAME_BYTES:
                    raise _Broken(f"a frame of {size} bytes")
                if len(view) - at < header + size:
                    break
                body = bytes(view[at + header : at + header + size])
                at += header + size
                self._accept(kind, ident, body)
        finally:
            view.release()
            del self._buffer[:at]

    def _accept(self, kind: int, ident: int, body: bytes) -> None:
        call = self._calls.get(ident)
        if call is None:
            raise _Broken(f"frame {kind} with the unknown id {ident}")
        if call.accept(kind, body):
            self._calls.pop(ident, None)

    @contextlib.contextmanager
    def _parsing(self) -> Iterator[None]:
        try:
            yield
        except (ValueError, IndexError, _Broken) as exc:
            raise self._die(
                DeathCause.UNRESPONSIVE, "the guest broke the protocol: an answer makes no sense"
            ) from exc

    async def _lost(self) -> SandboxDied:
        """The stream ended. Its owner may know why: give it a moment to say so."""
        if not self._died.done():
            await asyncio.wait({self._died}, timeout=_LAST_WORD_S)
        return self._die(DeathCause.KILLED, "its first process ended")

    def _die(self, cause: DeathCause, detail: str) -> SandboxDied:
        if not self._died.done():
            self._died.set_result(SandboxDied(cause, detail))
            self._on_death(self._died)
        return self._died.result()

    def _on_reader_end(self, reader: asyncio.Task[None]) -> None:
        """Only a bug here or in the stream ends it with an error: nobody may wait in vain then."""
        error = None if reader.cancelled() else reader.exception()
        if error is not None:
            self._die(DeathCause.KILLED, f"its stream cannot be read: {error!r}")

    def _on_death(self, died: asyncio.Future[SandboxDied]) -> None:
        if died.cancelled():
            return
        calls, self._calls = self._calls, {}
        for call in calls.values():
            call.fail(died.result())


class _Source:
    """`InnerSource` by requests: several chunks are under way at once."""

    def __init__(self, session: GuestSession, handle: int, fields: Sequence[bytes]) -> None:
        self.size_bytes = _number(fields[0])
        self.more = fields[1] == b"1"
        self._first = fields[2]
        self._session = session
        self._handle = handle

    async def copy_to(self, target_fd: int, most: int, update: Callable[[bytes], None]) -> int:
        copied = 0

        def keep(piece: bytes) -> None:
            view = memoryview(piece)
            while view:
                view = view[os.write(target_fd, view) :]
            update(piece)

        if most == 0:
            return 0
        async for piece in self.pieces():
            piece = piece[: most - copied]
            if self.more:
                await asyncio.to_thread(keep, piece)
            else:
                keep(piece)
            copied += len(piece)
            if copied >= most:
                break
        return copied

    async def pieces(self) -> AsyncIterator[bytes]:
        if self._first:
            yield self._first
        calls: list[_Call] = []
        body = b"%d" % self._handle
        while self.more:
            while len(calls) < _WINDOW:
                call = _Call(guest.DATA)
                ident = self._session._register(call)
                calls.append(call)
                await self._session._send(guest.READ, ident, body)
            piece = await self._session._await(calls.pop(0), _ANSWER_S)
            self.more = bool(piece)
            if piece:
                yield piece


class _Inside:
    """`InnerFiles` by requests to the guest."""

    def __init__(self, session: GuestSession) -> None:
        self._session = session

    async def stat(self, path: str) -> FileInfo:
        with self._session._parsing():
            kind, size, mode = await self._ask(guest.STAT, path)
            return _info(path, kind, size, mode)

    async def list_dir(self, path: str, most: int | None) -> list[FileInfo]:
        found: list[FileInfo] = []
        offset = 0
        while True:
            with self._session._parsing():
                total, taken, *fields = await self._ask(guest.LIST, path, offset)
                for at in range(0, len(fields), 4):
                    name, kind, size, mode = fields[at : at + 4]
                    found.append(_info(_entry_name(name), kind, size, mode))
                offset += _number(taken)
            if offset >= _number(total) or not _number(taken):
                return found
            if most is not None and len(found) > most:
                return found
            if offset > _MOST_ENTRIES:
                raise SandboxFileError(path, f"has more than {_MOST_ENTRIES} entries")

    async def make_dir(self, path: str) -> None:
        await self._ask(guest.MKDIR, path)

    async def make_link(self, path: str, target: str) -> None:
        await self._ask(guest.SYMLINK, path, os.fsencode(target))

    @contextlib.asynccontextmanager
    async def reading(self, path: str) -> AsyncIterator[_Source]:
        session = self._session
        call = _Call(guest.OK)
        name = guest.join_fields((_path_bytes(path),))
        handle = session._register(call)
        await session._send(guest.OPEN, handle, name)
        try:
            with _file_errors(path), session._parsing():
                answer = await session._await(call, _ANSWER_S)
                source = _Source(session, handle, guest.split_fields(answer))
        except asyncio.CancelledError:
            await self._forget(handle)
            raise
        try:
            with _file_errors(path):
                yield source
        finally:
            if source.more and not session._died.done():
                await self._forget(handle)

    async def write_from(self, path: str, source_fd: int, mode: int) -> None:
        def pieces() -> Iterator[bytes]:
            while data := os.read(source_fd, guest.CHUNK_BYTES):
                yield data

        await self.put(path, pieces(), mode=mode)

    async def put(
        self, path: str, pieces: Iterable[bytes], *, exclusive: bool = False, mode: int = 0o644
    ) -> None:
        """Make or replace a file. A small one takes a single exchange."""
        session = self._session
        call = _FileCall()
        body = guest.join_fields((_path_bytes(path), int(exclusive), mode))
        handle = session._register(call)
        await session._send(guest.CREATE, handle, body)
        try:
            for number, piece in enumerate(pieces):
                if call.failed.done():
                    break
                if number == 1:
                    await session._await(call, _ANSWER_S)
                await session._send(guest.WRITE, handle, piece)
        except _Refused:
            pass  # said below
        finally:
            closed = await self._forget(handle)
            closed.future.add_done_callback(lambda _: session._calls.pop(handle, None))
        with _file_errors(path):
            await session._await(call, _ANSWER_S)
            await session._await(closed, _ANSWER_S)
            if call.failed.done():
                call.failed.result()

    async def _forget(self, handle: int) -> _Call:
        call = _Call(guest.OK)
        ident = self._session._register(call)
        await self._session._send(guest.CLOSE, ident, b"%d" % handle)
        return call

    async def _ask(self, kind: int, path: str, *more: bytes | int) -> list[bytes]:
        with _file_errors(path):
            return guest.split_fields(await self._session._ask(kind, _path_bytes(path), *more))


# --- state files ----------------------------------------------------------------------------------


class _State:
    def __init__(self, fields: Mapping[str, object]) -> None:
        self.working_dir = str(fields["working_dir"])
        self.exports = str(fields["exports"])
        removed = fields.get("removed", [])
        self.removed = [str(path) for path in removed] if isinstance(removed, list) else []


def read_state(source: Path) -> _State:
    """The first member of a snapshot, once the whole archive was found sound."""
    try:
        with tarfile.open(source, "r:") as tar:
            first = tar.next()
            member = tar.extractfile(first) if first and first.name == _STATE_NAME else None
            state = _State(json.load(member) if member else {})
            for _ in tar:
                pass
            if source.stat().st_size < tar.offset:
                raise ValueError("it is cut short")
            return state
    except (OSError, KeyError, ValueError, TypeError, tarfile.TarError) as exc:
        raise SandboxFileError(str(source), "is not a kept sandbox, or is damaged") from exc


def _tree_offset(source: Path) -> int:
    """Where the tree begins: after the state, where there is one."""
    with contextlib.suppress(tarfile.TarError), tarfile.open(source, "r:") as tar:
        first = tar.next()
        if first is not None and first.name == _STATE_NAME:
            return int(tar.offset)
    return 0


# --- parts of answers -----------------------------------------------------------------------------


def proxy_exports(environment: Mapping[str, str]) -> str:
    """Shell lines that set the proxy's address again.

    A stored one belongs to the proxy of another sandbox, which knows another token.
    """
    names = [name for name in environment if name.lower() in ("http_proxy", "https_proxy")]
    return "".join(f"export {name}={shlex.quote(environment[name])}\n" for name in names)


def _frame(kind: int, ident: int, body: bytes) -> bytes:
    return guest.HEADER.pack(kind, ident, len(body)) + body


@functools.cache
def _program(magic: bytes) -> bytes:
    """The guest's program for a Python: compiled already where it is of our own version."""
    data = source = Path(guest.__file__).read_bytes()
    kind = b"s"
    if magic == importlib.util.MAGIC_NUMBER:
        code = compile(source, "guest", "exec", dont_inherit=True, optimize=2)
        kind, data = b"m", marshal.dumps(code)
    return kind + b"%08d" % len(data) + data


def _settle(future: asyncio.Future[T], value: T) -> None:
    if not future.done():
        future.set_result(value)


def _spoil(future: asyncio.Future[bytes], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
        future.exception()  # known: who waits for it may have been cancelled


def _refusal(body: bytes) -> _Refused:
    try:
        code, text = guest.split_fields(body)
        reason = text.decode("utf-8", "replace")
        return _Refused(_number(code), reason if reason.isprintable() else "an error")
    except ValueError as exc:
        raise _Broken("an error that makes no sense") from exc


@contextlib.contextmanager
def _file_errors(path: str) -> Iterator[None]:
    try:
        yield
    except _Refused as exc:
        raise SandboxFileError(path, exc.reason) from exc


def _path_bytes(path: str) -> bytes:
    if "\0" in path:
        raise SandboxFileError(path, "a path cannot hold a NUL byte")
    try:
        return os.fsencode(path)
    except UnicodeEncodeError as exc:
        raise SandboxFileError(path, "a path cannot hold half a character") from exc


def _number(field: bytes) -> int:
    if not field.isdigit() or len(field) > 19:
        raise _Broken("a number that is none")
    return int(field)


def _optional(field: bytes) -> int | None:
    return _number(field) if field else None


def _seconds(microseconds: int | None) -> float | None:
    return None if microseconds is None else microseconds / 1e6


def _info(path: str, kind: bytes, size: bytes, mode: bytes) -> FileInfo:
    name = kind.decode("ascii")
    if name not in _KINDS:
        raise _Broken("a kind of file that is none")
    return FileInfo(path, name, _number(size), _number(mode))


def _entry_name(name: bytes) -> str:
    """The name of an entry becomes part of a host path in `collect`: only a plain one may pass."""
    if not name or name in (b".", b"..") or b"/" in name or b"\0" in name:
        raise _Broken("a name that no entry can have")
    return os.fsdecode(name)


def _result(parts: Sequence[bytearray], fields: Sequence[bytes], took: float) -> ExecResult:
    status, flooded, restarted, out, out_file, err, err_file, *metered = fields
    memory, cpu, throttled, kills = (_optional(field) for field in metered)
    sizes = (_number(out), _number(err))
    kept = (len(parts[0]) + len(parts[1]), len(parts[2]) + len(parts[3]))
    if kept[0] > sizes[0] or kept[1] > sizes[1]:
        raise _Broken("more output than there was")
    code = _optional(status)
    return ExecResult(
        exit_code=code,
        stdout=bounded_text(parts[0], parts[1], sizes[0]),
        stderr=bounded_text(parts[2], parts[3], sizes[1]),
        duration_s=took,
        timed_out=code is None and flooded == b"0",
        flooded=flooded == b"1",
        truncated=kept != sizes,
        stdout_bytes=sizes[0],
        stderr_bytes=sizes[1],
        stdout_file=os.fsdecode(out_file) or None,
        stderr_file=os.fsdecode(err_file) or None,
        shell_restarted=restarted == b"1",
        memory_peak_bytes=memory,
        cpu_s=_seconds(cpu),
        throttled_s=_seconds(throttled),
        memory_kills=kills or 0,
    )
