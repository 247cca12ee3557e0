"""Files in and out of a running sandbox, by descriptors that the launcher opens inside its root.

The host never joins a name of the sandboxed side to a path of its own: names go to `openat2` with
the sandbox's root, and what comes back is checked by `fstat`. Bytes are copied here, from
descriptor to descriptor.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Protocol, TypeVar

from sandlot.core.errors import InputError, SandboxFileError
from sandlot.core.types import CollectedFile, SkippedFile
from sandlot.sandbox.base import FileInfo
from sandlot.sandbox.launch import Channel, LauncherReply

_IDLE_S = 2.0
_INLINE_BYTES = 256 * 1024
_COPY_BYTES = 1 << 20
_MAX_DEPTH = 64
_MAX_PATH_BYTES = 4096  # the kernel's own; a longer one would not fit a request
_NAME_ERRORS = frozenset(
    (errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ELOOP, errno.EILSEQ)
)

OpenSession = Callable[[], Channel]
T = TypeVar("T")


class InnerSource(Protocol):
    """A regular file inside, open for reading; `size_bytes` is what it was at its opening."""

    size_bytes: int

    async def copy_to(self, target_fd: int, most: int, update: Callable[[bytes], None]) -> int:
        """Copy up to `most` bytes. A source that cannot be read raises SandboxFileError."""
        ...


class InnerFiles(Protocol):
    """What copying files in and out needs of a sandbox, whichever way it reaches them.

    Every method raises SandboxFileError where the inside has no such thing or refuses.
    """

    async def stat(self, path: str) -> FileInfo: ...

    async def list_dir(self, path: str, most: int | None) -> list[FileInfo]:
        """Entries sorted by name; it may stop once there are more than `most`."""
        ...

    async def make_dir(self, path: str) -> None: ...

    async def make_link(self, path: str, target: str) -> None: ...

    def reading(self, path: str) -> AbstractAsyncContextManager[InnerSource]: ...

    async def write_from(self, path: str, source_fd: int, mode: int) -> None:
        """Copy a host descriptor from where it stands; `mode` is that of a new file."""
        ...


async def upload_tree(inside: InnerFiles, source: Path, target: str) -> int:
    """Copy a host file or folder in; see `Sandbox.upload`."""
    if not source.is_dir():
        await _upload_file(inside, source, target)
        return 1
    await inside.make_dir(target)
    count = 0
    for path, inner in _walk_host(source, target):
        count += await _upload_entry(inside, source, path, inner)
    return count


class SandboxFiles:
    """The file half of a sandbox. A helper is kept for a moment between operations."""

    def __init__(self, open_session: OpenSession) -> None:
        self._open_session = open_session
        self._lock = asyncio.Lock()
        self._channel: Channel | None = None
        self._idle: asyncio.TimerHandle | None = None

    def close(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    async def read(self, path: str, limit_bytes: int | None) -> bytes:
        async with self._session() as session:
            fd = await session.open_file(path)
        try:
            size = os.fstat(fd).st_size
            if limit_bytes is not None and size > limit_bytes:
                raise SandboxFileError(path, f"holds {size} bytes, more than {limit_bytes}")
            with _file_errors(path):
                data = await _in_thread_if(
                    size or _COPY_BYTES, lambda: _read_at_most(fd, limit_bytes)
                )
        finally:
            os.close(fd)
        if limit_bytes is not None and len(data) > limit_bytes:
            raise SandboxFileError(path, f"holds more than {limit_bytes} bytes")
        return data

    async def write(self, path: str, data: bytes, exclusive: bool) -> None:
        async with self._session() as session:
            fd = await session.open_for_writing(path, exclusive=exclusive)
        with _file_errors(path):
            try:
                await _in_thread_if(len(data), lambda: _write_all(fd, data))
            finally:
                os.close(fd)

    async def write_from(self, path: str, source_fd: int) -> None:
        """Copy a host descriptor, from its start, to a file inside."""
        async with self._session() as session:
            fd = await session.open_for_writing(path)
        os.lseek(source_fd, 0, os.SEEK_SET)
        with _file_errors(path):
            try:
                await _in_thread(lambda: _copy(source_fd, fd, None))
            finally:
                os.close(fd)

    async def stat(self, path: str) -> FileInfo:
        async with self._session() as session:
            return await session.stat(path)

    async def list_dir(self, path: str) -> list[FileInfo]:
        async with self._session() as session:
            return await session.list_dir(path, None)

    async def make_dir(self, path: str) -> None:
        async with self._session() as session:
            await session.make_dir(path)

    async def upload(self, source: Path, target: str) -> int:
        async with self._session() as session:
            return await upload_tree(session, source, target)

    async def collect(
        self, paths: Sequence[str], into: Path, *, max_bytes: int, max_files: int
    ) -> tuple[list[CollectedFile], list[SkippedFile]]:
        collector = Collector(into, max_bytes, max_files)
        for path in paths:
            async with self._session() as session:
                await collector.take(session, path)
        return collector.collected, collector.skipped

    @contextlib.asynccontextmanager
    async def _session(self) -> AsyncIterator[_Session]:
        """One operation at a time; the helper ends when nothing is asked for a while."""
        async with self._lock:
            if self._idle is not None:
                self._idle.cancel()
                self._idle = None
            if self._channel is None:
                channel = self._open_session()
                try:
                    await channel.receive()
                except BaseException:
                    channel.close()
                    raise
                self._channel = channel
            try:
                yield _Session(self._channel)
            except (asyncio.CancelledError, LauncherReply):
                self.close()  # an answer may still be on its way: never reuse this channel
                raise
            self._idle = asyncio.get_running_loop().call_later(_IDLE_S, self.close)


class _Session:
    """`InnerFiles` by descriptors."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    async def ask(self, op: str, path: str, **more: Any) -> tuple[dict[str, Any], list[int]]:
        check_path(path)
        try:
            return await self._channel.ask({"op": op, "path": path, **more})
        except LauncherReply as exc:
            if exc.lost:  # an answer may come later still: this channel is of no more use
                raise
            raise SandboxFileError(path, exc.strerror or str(exc)) from exc

    async def stat(self, path: str) -> FileInfo:
        answer, _ = await self.ask("stat", path)
        return _info(answer["info"])

    async def make_dir(self, path: str) -> None:
        await self.ask("mkdir", path)

    async def make_link(self, path: str, target: str) -> None:
        await self.ask("symlink", path, target=target)

    @contextlib.asynccontextmanager
    async def reading(self, path: str) -> AsyncIterator[InnerSource]:
        fd = await self.open_file(path)
        try:
            yield _Descriptor(fd)
        finally:
            os.close(fd)

    async def write_from(self, path: str, source_fd: int, mode: int) -> None:
        size = os.fstat(source_fd).st_size
        target = await self.open_for_writing(path, mode=mode)
        with _file_errors(path):
            try:
                await _in_thread_if(size, lambda: _copy(source_fd, target, None))
            finally:
                os.close(target)

    async def open_file(self, path: str) -> int:
        """A descriptor of a regular file, proved by what it is and not by its name."""
        _, fds = await self.ask("read", path)
        return _regular(fds, path)

    async def open_for_writing(self, path: str, exclusive: bool = False, mode: int = 0o644) -> int:
        _, fds = await self.ask("write", path, parents=True, exclusive=exclusive, mode=mode)
        return _regular(fds, path)

    async def list_dir(self, path: str, most: int | None) -> list[FileInfo]:
        found: list[FileInfo] = []
        offset = 0
        while True:
            answer, _ = await self.ask("list", path, offset=offset)
            found += [_info(entry) for entry in answer["entries"]]
            offset += answer["taken"]
            if offset >= answer["total"] or not answer["taken"]:
                return found
            if most is not None and len(found) > most:
                return found


class _Descriptor:
    """`InnerSource` by a descriptor."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.size_bytes = os.fstat(fd).st_size

    async def copy_to(self, target_fd: int, most: int, update: Callable[[bytes], None]) -> int:
        return await _in_thread_if(most, lambda: _copy(self._fd, target_fd, most, update))


class Collector:
    """Copies out of the sandbox into one host folder that nobody inside can reach."""

    def __init__(self, into: Path, max_bytes: int, max_files: int) -> None:
        self.collected: list[CollectedFile] = []
        self.skipped: list[SkippedFile] = []
        self._into = into
        self._bytes_left = max_bytes
        self._files_left = max_files

    async def take(self, inside: InnerFiles, path: str) -> None:
        try:
            found = await inside.stat(path)
        except SandboxFileError:
            return  # not there: nothing was promised
        if found.kind == "directory":
            await self._folder(inside, path, "", 0)
        else:
            await self._file(inside, path, os.path.basename(path))

    async def _folder(self, inside: InnerFiles, path: str, relative: str, depth: int) -> None:
        if depth > _MAX_DEPTH:
            self._skip(relative, f"deeper than {_MAX_DEPTH} folders")
            return
        try:
            entries = await inside.list_dir(path, self._files_left + 1)
        except SandboxFileError as exc:
            self._skip(relative, exc.reason)
            return
        for entry in entries:
            inner = os.path.join(path, entry.path)
            name = os.path.join(relative, entry.path)
            if entry.kind == "directory":
                await self._folder(inside, inner, name, depth + 1)
            elif entry.kind in ("file", "link"):
                await self._file(inside, inner, name)
            else:
                self._skip(name, f"a {entry.kind}")
            if self._files_left <= 0:
                self._skip(name, "too many files: the rest was left")
                return

    async def _file(self, inside: InnerFiles, path: str, name: str) -> None:
        """A link gives the content of the file it leads to *inside*; one to a folder is skipped."""
        self._files_left -= 1
        try:
            async with inside.reading(path) as source:
                size = source.size_bytes
                if size > self._bytes_left:
                    self._skip(name, f"{size} bytes are more than the {self._bytes_left} left")
                    return
                copied, digest = await self._store(source, name, size)
        except SandboxFileError as exc:
            self._skip(name, exc.reason)
            return
        except OSError as exc:
            if exc.errno in _NAME_ERRORS:  # the name is the sandbox's choice, and no host's fault
                self._skip(name, f"cannot be stored: {exc.strerror}")
                return
            raise InputError(f"{self._into / name}: cannot be written: {exc.strerror}") from exc
        self._bytes_left -= copied
        self.collected.append(CollectedFile(name, copied, digest))

    async def _store(self, source: InnerSource, name: str, size: int) -> tuple[int, str]:
        """Copy what `fstat` promised: a file that grows, or one of /proc without an end, stops."""
        target = self._into / name
        target.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        out = os.open(target, flags, 0o644)
        digest = hashlib.sha256()
        try:
            copied = await source.copy_to(out, size, digest.update)
        finally:
            os.close(out)
        return copied, digest.hexdigest()

    def _skip(self, name: str, reason: str) -> None:
        if len(self.skipped) < 1000:
            self.skipped.append(SkippedFile(name, reason))


def check_path(path: str) -> None:
    """Refuse what no request could carry. Raises SandboxFileError, which shows it shortened."""
    if "\0" in path:
        raise SandboxFileError(path[:200], "a path cannot hold a NUL byte")
    try:
        size = len(os.fsencode(path))
    except UnicodeEncodeError:
        shown = path[:200].encode("utf-8", "replace").decode()
        raise SandboxFileError(shown, "a path cannot hold half a character") from None
    if size >= _MAX_PATH_BYTES:
        raise SandboxFileError(f"{path[:200]}…", f"a path of {size} bytes is too long")


def _info(entry: dict[str, Any]) -> FileInfo:
    return FileInfo(entry["path"], entry["kind"], entry["size"], entry["mode"])


def _regular(fds: list[int], path: str) -> int:
    if len(fds) == 1 and stat.S_ISREG(os.fstat(fds[0]).st_mode):
        return fds[0]
    for fd in fds:
        os.close(fd)
    raise SandboxFileError(path, "is not a regular file")


def _walk_host(source: Path, target: str) -> Iterator[tuple[Path, str]]:
    def stop(error: OSError) -> None:
        raise InputError(f"{error.filename}: cannot be read: {error.strerror}") from error

    for folder, folders, names in os.walk(source, onerror=stop):
        folders.sort()
        inside = os.path.join(target, os.path.relpath(folder, source))
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        for name in sorted(names + folders):
            if name in folders and name not in links:
                yield Path(folder, name), os.path.normpath(os.path.join(inside, name)) + "/"
            else:
                yield Path(folder, name), os.path.normpath(os.path.join(inside, name))


async def _upload_entry(inside: InnerFiles, source: Path, path: Path, inner: str) -> int:
    if inner.endswith("/"):
        await inside.make_dir(inner)
        return 0
    if path.is_symlink():
        if not path.resolve().is_relative_to(source.resolve()) or path.readlink().is_absolute():
            raise InputError(
                f"{path}: is a link that leads outside {source}; copy the file in its place"
            )
        await inside.make_link(inner, str(path.readlink()))
        return 1
    await _upload_file(inside, path, inner)
    return 1


async def _upload_file(inside: InnerFiles, path: Path, inner: str) -> None:
    try:
        source = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as exc:
        raise InputError(f"{path}: cannot be read: {exc.strerror}") from exc
    try:
        status = os.fstat(source)
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path}: is not a regular file or folder")
        await inside.write_from(inner, source, 0o755 if status.st_mode & 0o111 else 0o644)
    finally:
        os.close(source)


async def _in_thread_if(size: int, work: Callable[[], T]) -> T:
    """Small files are quicker done at once than handed to a thread."""
    return work() if size <= _INLINE_BYTES else await _in_thread(work)


async def _in_thread(work: Callable[[], T]) -> T:
    """A cancelled caller waits too: it closes descriptors whose numbers the thread still uses."""
    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise


def _read_at_most(fd: int, limit: int | None) -> bytes:
    """Up to one byte more than `limit`, so that the caller sees that there was more."""
    chunks = []
    left = None if limit is None else limit + 1
    while left is None or left > 0:
        data = os.read(fd, _COPY_BYTES if left is None else min(left, _COPY_BYTES))
        if not data:
            break
        chunks.append(data)
        left = None if left is None else left - len(data)
    return b"".join(chunks)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _copy(
    source: int, target: int, most: int | None, update: Callable[[bytes], None] | None = None
) -> int:
    """Copy up to `most` bytes. A source that cannot be read raises SandboxFileError."""
    copied = 0
    while most is None or copied < most:
        want = _COPY_BYTES if most is None else min(_COPY_BYTES, most - copied)
        with _file_errors(f"/proc/self/fd/{source}"):
            data = os.read(source, want)
        if not data:
            break
        _write_all(target, data)
        if update is not None:
            update(data)
        copied += len(data)
    return copied


@contextlib.contextmanager
def _file_errors(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise SandboxFileError(path, exc.strerror or str(exc)) from exc
