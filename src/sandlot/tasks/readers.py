"""Files of rows: JSONL, JSON, CSV and Parquet, each row with the place where it stands."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandlot.core.errors import InputError, MissingExtra

ROW_BYTES = 100_000_000
"""No row is larger: a document of 100 MB is a mistake of whoever made the file."""

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".parquet")


@dataclass(frozen=True, slots=True)
class Row:
    """One row as it was read. `fields` is None where it cannot be used, and `problem` says why."""

    place: str
    fields: Mapping[str, Any] | None
    problem: str | None = None


def read_rows(path: Path, *, row_bytes: int = ROW_BYTES) -> Iterator[Row]:
    """Each row of a file, by its suffix.

    Raises:
        InputError: the file is missing, unreadable as a whole, or of an unknown kind.
        MissingExtra: a Parquet file without the library that reads it.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(
            f"{path}: files of problems are {', '.join(SUFFIXES)}, found {path.suffix or 'none'!r}"
        )
    try:
        for row in reader(path, row_bytes):
            yield row if row.fields is None else _sized(row, row_bytes)
    except OSError as exc:
        raise InputError(f"{path}: cannot be read: {exc.strerror or exc}") from exc


def _sized(row: Row, row_bytes: int) -> Row:
    size = _size(row.fields)
    return row if size <= row_bytes else _too_large(row.place, row_bytes)


def _size(value: Any) -> int:
    """Characters of all texts in a value: near enough to its bytes to find a monstrous one."""
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, Mapping):
        return sum(_size(key) + _size(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return sum(_size(item) for item in value)
    return 8


def _too_large(place: str, row_bytes: int) -> Row:
    problem = f"the row is larger than {row_bytes / 1e6:,.0f} MB; split its documents"
    return Row(place, None, problem)


def _jsonl(path: Path, row_bytes: int) -> Iterator[Row]:
    with path.open("rb") as file:
        for number, line in enumerate(_lines(file, row_bytes), 1):
            place = f"{path.name}:{number}"
            if len(line) > row_bytes:
                yield _too_large(place, row_bytes)
            elif line.strip():
                yield _parsed(place, line.removeprefix(b"\xef\xbb\xbf"))


def _lines(file: io.BufferedReader, row_bytes: int) -> Iterator[bytes]:
    """Lines; of one that is too long only its start, so that none fills the memory."""
    while line := file.readline(row_bytes + 2):
        yield line
        while not line.endswith(b"\n") and (line := file.readline(row_bytes + 2)):
            pass


def _parsed(place: str, line: bytes) -> Row:
    try:
        fields = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as exc:
        return Row(place, None, f"not UTF-8 text ({exc.reason} at byte {exc.start})")
    except ValueError as exc:
        return Row(place, None, f"not JSON ({exc})")
    except RecursionError:
        return Row(place, None, "not JSON that can be read (nested too deeply)")
    return _as_row(place, fields)


def _as_row(place: str, fields: Any) -> Row:
    if isinstance(fields, dict):
        return Row(place, fields)
    return Row(place, None, f"expected an object with fields, found {type(fields).__name__}")


def _json(path: Path, row_bytes: int) -> Iterator[Row]:
    """A list of rows, or an object that holds the list in `data`."""
    text = _text_of(path)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise InputError(f"{path}: not JSON ({exc})") from exc
    start = text.find("[")
    if isinstance(value, dict) and isinstance(value.get("data"), list):
        value = value["data"]
        opening = re.search(r'"data"\s*:\s*\[', text)
        start = opening.end() - 1 if opening else -1
    if not isinstance(value, list):
        raise InputError(
            f'{path}: expected a list of rows, or {{"data": [rows]}}, found {type(value).__name__}'
        )
    lines = _lines_of_items(text, start + 1)
    for number, fields in enumerate(value, 1):
        line = f":{lines[number - 1]}" if len(lines) == len(value) else ""
        yield _as_row(f"{path.name}{line} (row {number})", fields)


def _text_of(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise InputError(
            f"{path}: not UTF-8 text ({exc.reason} at byte {exc.start}); save it as UTF-8"
        ) from exc


def _lines_of_items(text: str, at: int) -> list[int]:
    """The line where each item of the list that opens before `at` begins; empty without a list."""
    decoder = json.JSONDecoder()
    lines: list[int] = []
    line = text.count("\n", 0, at) + 1
    while at:
        begin = _skip(text, at)
        if begin >= len(text) or text[begin] == "]":
            return lines
        line += text.count("\n", at, begin)
        lines.append(line)
        try:
            _, at = decoder.raw_decode(text, begin)
        except ValueError:
            return []
        line += text.count("\n", begin, at)
    return lines


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n,":
        at += 1
    return at


def _csv(path: Path, row_bytes: int) -> Iterator[Row]:
    """Rows under a header line. An empty cell is a field that is not there."""
    before = csv.field_size_limit(row_bytes)
    try:
        reader = csv.DictReader(io.StringIO(_text_of(path), newline=""), strict=True)
        counts = Counter(reader.fieldnames or ())
        twice = sorted(name for name, count in counts.items() if name and count > 1)
        if twice:
            raise InputError(f"{path.name}:1: two columns are named {', '.join(twice)}")
        yield from _csv_rows(path, reader)
    except csv.Error as exc:
        raise InputError(f"{path.name}:{reader.line_num}: not CSV ({exc})") from exc
    finally:
        csv.field_size_limit(before)


def _csv_rows(path: Path, reader: csv.DictReader[str]) -> Iterator[Row]:
    while True:
        line = reader.line_num + 1
        fields = next(reader, None)
        if fields is None:
            return
        place = f"{path.name}:{max(line, 2)}"
        if None in fields:
            yield Row(place, None, f"more cells than the header's {len(reader.fieldnames or ())}")
        else:
            yield Row(place, {name: cell for name, cell in fields.items() if cell})


def _parquet(path: Path, row_bytes: int) -> Iterator[Row]:
    try:
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    except ImportError as exc:
        raise MissingExtra(f"reading {path.name}", "parquet") from exc
    try:
        number = 0
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=64):
                for fields in batch.to_pylist():
                    number += 1
                    present = {key: value for key, value in fields.items() if value is not None}
                    yield Row(f"{path.name} (row {number})", present)
    except arrow.ArrowException as exc:
        raise InputError(f"{path}: not a Parquet file that can be read ({exc})") from exc


_READERS: dict[str, Callable[[Path, int], Iterator[Row]]] = {
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
}
