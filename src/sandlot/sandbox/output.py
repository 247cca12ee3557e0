"""One output stream of one command: read without blocking, kept within bounds."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

_CHUNK = 256 * 1024
_LATE_CHUNK = 64 * 1024
_LATE_PAUSE_S = 0.05  # a background flood costs the host at most 1.3 MB/s of reading


class OutputStream:
    """Reads a non-blocking descriptor on the event loop.

    Keeps the first and the last half of `capture_bytes` in memory. Once there is more, the whole,
    up to `saved_bytes`, goes to an unlinked file in `spool_dir`. Calls `on_flood` when the stream
    passes `flood_bytes`.
    """

    def __init__(
        self,
        fd: int,
        *,
        capture_bytes: int,
        saved_bytes: int,
        flood_bytes: int,
        spool_dir: Path,
        on_flood: Callable[[], None],
    ) -> None:
        self.total = 0
        self._fd = fd
        self._half = max(1, capture_bytes // 2)
        self._saved_bytes = saved_bytes
        self._flood_bytes = flood_bytes
        self._spool_dir = spool_dir
        self._on_flood = on_flood
        self._head = bytearray()
        self._tail = bytearray()
        self._spool: IO[bytes] | None = None
        self._loop = asyncio.get_running_loop()
        self._late: asyncio.TimerHandle | None = None
        self._loop.add_reader(fd, self._read_some)

    @property
    def truncated(self) -> bool:
        return self.total > len(self._head) + len(self._tail)

    @property
    def spool(self) -> IO[bytes] | None:
        """The whole stream, up to its cap; only where something was left out."""
        return self._spool if self.truncated else None

    def text(self) -> str:
        """UTF-8 with undecodable bytes replaced, and a line in the place of what was left out."""
        return bounded_text(self._head, self._tail, self.total)

    def finish(self) -> None:
        """Take what is there now; whatever a background child writes later is dropped."""
        if self._fd < 0:
            return
        self._loop.remove_reader(self._fd)
        while self._fd >= 0 and self._take():
            if self.total > self._flood_bytes:
                break
        if self._fd >= 0:
            self._drop_late()

    def close(self) -> None:
        if self._late is not None:
            self._late.cancel()
        self._drop_spool()
        self._close_fd()

    def release(self) -> None:
        """Give what was kept back, go on dropping late output: a job may hold the pipe for ever."""
        self._drop_spool()
        self._head = bytearray()
        self._tail = bytearray()

    def _drop_spool(self) -> None:
        spool, self._spool = self._spool, None
        if spool is not None:
            with contextlib.suppress(OSError):  # what is still buffered may not fit the disk
                spool.close()

    @property
    def open(self) -> bool:
        return self._fd >= 0

    def _read_some(self) -> None:
        self._take()

    def _take(self) -> bool:
        """Read one chunk; False when there is nothing now or nothing more."""
        try:
            data = os.read(self._fd, _CHUNK)
        except BlockingIOError:
            return False
        if not data:
            self._close_fd()
            return False
        self._keep(data)
        return True

    def _keep(self, data: bytes) -> None:
        before = self.total
        self.total += len(data)
        if self.total > 2 * self._half:
            self._save(data, before)
        room = self._half - len(self._head)
        if room > 0:
            self._head += data[:room]
            data = data[room:]
        if data:
            self._tail += data[-self._half :]
            del self._tail[: max(0, len(self._tail) - self._half)]
        if before <= self._flood_bytes < self.total:
            self._on_flood()

    def _save(self, data: bytes, before: int) -> None:
        """Write to the spool; a host without room for it costs the whole, not what is kept."""
        if before >= self._saved_bytes:
            return
        try:
            if self._spool is None:
                self._spool = tempfile.TemporaryFile(dir=self._spool_dir)  # noqa: SIM115
                self._spool.write(self._head + self._tail)
            self._spool.write(data[: self._saved_bytes - before])
        except OSError:
            self._saved_bytes = 0
            self._drop_spool()

    def _drop_late(self) -> None:
        self._late = None
        try:
            if not os.read(self._fd, _LATE_CHUNK):
                self._close_fd()
                return
        except BlockingIOError:
            self._loop.add_reader(self._fd, self._wake_late)
            return
        self._late = self._loop.call_later(_LATE_PAUSE_S, self._drop_late)

    def _wake_late(self) -> None:
        self._loop.remove_reader(self._fd)
        self._drop_late()

    def _close_fd(self) -> None:
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1


def bounded_text(head: bytes | bytearray, tail: bytes | bytearray, total: int) -> str:
    """What was kept of `total` bytes, undecodable ones replaced.

    A line stands in the place of what was left out and says how much that was.
    """
    left_out = total - len(head) - len(tail)
    if left_out <= 0:
        return (head + tail).decode("utf-8", "replace")
    return (
        head.decode("utf-8", "ignore")
        + f"\n[... {left_out} bytes left out ...]\n"
        + tail.decode("utf-8", "ignore")
    )
