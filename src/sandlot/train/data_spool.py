"""Contexts on disk between reading and writing, so that memory does not grow with the sources."""

from __future__ import annotations

import json
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from sandlot.core.codec import from_json, to_json
from sandlot.core.errors import RecordError
from sandlot.train.data_rows import Context
from sandlot.train.data_words import hash64

_CACHE_KIB = 64 * 1024
_TABLES = """
CREATE TABLE seen (key INTEGER PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE ids (id TEXT PRIMARY KEY, place TEXT) WITHOUT ROWID;
CREATE TABLE contexts (
    number INTEGER PRIMARY KEY, pool TEXT, rank INTEGER, digest TEXT, draw INTEGER, asked INTEGER,
    body TEXT
);
CREATE UNIQUE INDEX ranks ON contexts (pool, rank);
"""


@dataclass(frozen=True, slots=True)
class Spooled:
    """A stored context. `rank` counts those of its pool, `number` all of them."""

    number: int
    rank: int
    digest: str
    context: Context


class Spool:
    """A database in a file without a name beside the output: it is gone whatever ends the process.

    Every method raises RecordError where the disk is full.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pools: dict[str, int] = {}
        self._number = 0
        with self._told():
            handle, path = tempfile.mkstemp(prefix=".sandlot-data-", dir=folder)
            os.close(handle)
            self._database = sqlite3.connect(path, isolation_level=None)
            try:
                self._database.execute("PRAGMA journal_mode = OFF").fetchall()
                self._database.execute("PRAGMA synchronous = OFF")
                self._database.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
                self._database.executescript(_TABLES)
                self._database.execute("BEGIN")
            except BaseException:
                self._database.close()
                raise
            finally:
                os.unlink(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._database.close()

    def __len__(self) -> int:
        return self._number

    def pool_size(self, pool: str) -> int:
        return self._pools.get(pool, 0)

    def is_new(self, key: str) -> bool:
        """Whether this is the first time that the key is asked about."""
        with self._told():
            done = self._database.execute(
                "INSERT OR IGNORE INTO seen VALUES (?)", (hash64(key) >> 1,)
            )
            return done.rowcount == 1

    def claim(self, name: str, place: str) -> str | None:
        """Take an id; where it is taken, the place of whoever has it."""
        with self._told():
            done = self._database.execute("INSERT OR IGNORE INTO ids VALUES (?, ?)", (name, place))
            if done.rowcount == 1:
                return None
            found = self._database.execute("SELECT place FROM ids WHERE id = ?", (name,))
            return str(found.fetchone()[0])

    def add(self, context: Context, digest: str, *, draw: int, asked: int) -> None:
        """Store a context; `draw` orders the contexts where some are picked."""
        rank = self._pools.get(context.pool, 0)
        body = json.dumps(to_json(context), ensure_ascii=False)
        row = (self._number, context.pool, rank, digest, draw >> 1, asked, body)
        with self._told():
            self._database.execute("INSERT INTO contexts VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        self._pools[context.pool] = rank + 1
        self._number += 1

    def at(self, pool: str, rank: int) -> Spooled:
        with self._told():
            found = self._database.execute(
                "SELECT number, rank, digest, body FROM contexts WHERE pool = ? AND rank = ?",
                (pool, rank),
            )
            return _spooled(found.fetchone())

    def digest_at(self, pool: str, rank: int) -> str:
        with self._told():
            found = self._database.execute(
                "SELECT digest FROM contexts WHERE pool = ? AND rank = ?", (pool, rank)
            )
            return str(found.fetchone()[0])

    def contexts(self) -> Iterator[Spooled]:
        """All of them, in the order in which they came."""
        for number in range(self._number):
            with self._told():
                found = self._database.execute(
                    "SELECT number, rank, digest, body FROM contexts WHERE number = ?", (number,)
                )
                row = found.fetchone()
            yield _spooled(row)

    def picked(self, tasks: int) -> dict[int, int]:
        """Number of each context that is picked for so many tasks, with how many it gives."""
        picked: dict[int, int] = {}
        with self._told():
            rows = self._database.execute(
                "SELECT number, asked FROM contexts ORDER BY draw, number"
            )
            for number, asked in rows:
                if tasks <= 0:
                    break
                picked[number] = min(asked, tasks)
                tasks -= asked
        return picked

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.OperationalError) as exc:
            raise RecordError(
                f"{self._folder}: the working copy of the sources cannot be written: {exc} "
                "(it needs about as much room as the sources)"
            ) from exc


def _spooled(row: tuple[int, int, str, str]) -> Spooled:
    number, rank, digest, body = row
    return Spooled(number, rank, digest, from_json(Context, json.loads(body)))
