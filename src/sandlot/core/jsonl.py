"""Append-only JSON lines. A torn last line (kill -9, full disk) is dropped, never fatal."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sandlot.core.errors import RecordError


class JsonlWriter:
    """Appends one JSON object a line, each by a single write of the whole line.

    Opening repairs a torn tail first: bytes after the last newline are cut off, so that a
    continued file never joins half a record to a new one.
    Raises RecordError when the file cannot be opened or the disk is full.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            _cut_torn_tail(self._fd)
        except OSError as exc:
            raise RecordError(f"{path}: cannot be opened for appending: {exc.strerror}") from exc

    def append(self, record: Any) -> None:
        line = json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n"
        data = memoryview(line.encode("utf-8", "surrogatepass"))
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError as exc:
            raise RecordError(f"{self.path}: cannot be written: {exc.strerror}") from exc

    def sync(self) -> None:
        """Bring what was appended to the disk (blocking: call it from a worker thread)."""
        if self._fd < 0:
            return
        try:  # some file systems find out only now that they are full
            os.fdatasync(self._fd)
        except OSError as exc:
            raise RecordError(f"{self.path}: cannot be written: {exc.strerror}") from exc

    def close(self) -> None:
        fd, self._fd = self._fd, -1  # first: another thread may close too, and numbers are reused
        if fd >= 0:
            os.close(fd)


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Yield each whole record. A torn last line ends the stream without an error.

    Raises:
        RecordError: an unreadable file, or a broken line that is not the last one.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as exc:
        raise RecordError(f"{path}: cannot be read: {exc.strerror}") from exc
    lines.pop()  # after the final newline: empty, or a torn record
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield _record(path, number, line)


def stream_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Like `read_jsonl`, with one line in memory at a time, each after its number."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.endswith(b"\n") and line.strip():
                    yield number, _record(path, number, line)
    except OSError as exc:
        raise RecordError(f"{path}: cannot be read: {exc.strerror}") from exc


def _record(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line.decode("utf-8", "surrogatepass"))
    except ValueError as exc:
        raise RecordError(f"{path.name}:{number}: not a JSON record ({exc})") from exc
    if not isinstance(record, dict):
        raise RecordError(f"{path.name}:{number}: expected an object")
    return record


def _cut_torn_tail(fd: int) -> None:
    size = os.fstat(fd).st_size
    end = size
    while end > 0:
        start = max(0, end - 65536)
        newline = os.pread(fd, end - start, start).rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    if end < size:
        os.ftruncate(fd, end)
