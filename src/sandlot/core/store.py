"""The run directory: `run.toml`, `trajectory.jsonl`, `files/`, and the sandbox if it was kept."""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Self

from sandlot.core.errors import RecordError
from sandlot.core.events import (
    LIVE_ONLY,
    Event,
    FilesCollected,
    ReplyReceived,
    RolloutStopped,
    ToolFinished,
    decode_event,
    encode_event,
    fold,
)
from sandlot.core.jsonl import JsonlWriter, read_jsonl
from sandlot.core.redact import Redactor
from sandlot.core.types import Trajectory

FORMAT = 1
MANIFEST = "run.toml"


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """One run on disk. `manifest` is what `run.toml` holds."""

    path: Path
    manifest: Mapping[str, Any]

    @classmethod
    def create(cls, parent: Path, slug: str, now: datetime) -> Self:
        """Make `parent/2026-11-22T14-30-00-slug`, with a number behind it where that is taken.

        Raises:
            RecordError: the folder cannot be made.
        """
        name = f"{now:%Y-%m-%dT%H-%M-%S}-{slugify(slug)}"
        for number in range(1, 1000):
            path = parent / (name if number == 1 else f"{name}-{number}")
            try:
                path.mkdir(parents=True)
            except FileExistsError:
                continue
            except OSError as exc:
                raise RecordError(f"run directory {path} cannot be made: {exc.strerror}") from exc
            return cls(path, {})
        raise RecordError(f"run directory {parent / name} cannot be made: too many of that name")

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read an existing run.

        Raises:
            RecordError: no run is there, its manifest is damaged, or a newer sandlot wrote it.
        """
        file = path / MANIFEST
        try:
            manifest = tomllib.loads(file.read_text("utf-8"))
        except FileNotFoundError as exc:
            raise RecordError(f"{path} is not a run directory: it holds no {MANIFEST}") from exc
        except OSError as exc:
            raise RecordError(f"{file}: cannot be read: {exc.strerror}") from exc
        except ValueError as exc:
            raise RecordError(f"{file}: damaged: {exc}") from exc
        version = manifest.get("format")
        if not isinstance(version, int) or version > FORMAT:
            raise RecordError(
                f"{file}: format {version!r} is not one that this sandlot reads (up to {FORMAT})"
            )
        return cls(path, manifest)

    @property
    def trajectory_path(self) -> Path:
        return self.path / "trajectory.jsonl"

    @property
    def files(self) -> Path:
        """Where collected output files lie."""
        return self.path / "files"

    @property
    def state_path(self) -> Path:
        """Where a kept sandbox is stored."""
        return self.path / "sandbox.state"

    def with_manifest(self, manifest: Mapping[str, Any]) -> Self:
        """Write `run.toml` anew, in one step, and return the directory with it."""
        content = {"format": FORMAT, **manifest}
        draft = self.path / f".{MANIFEST}.new"
        try:
            draft.write_text(to_toml(content), "utf-8")
            draft.replace(self.path / MANIFEST)
        except OSError as exc:
            raise RecordError(f"{self.path / MANIFEST}: cannot be written: {exc.strerror}") from exc
        return type(self)(self.path, content)

    def events(self) -> Iterator[Event]:
        """The recorded events; kinds that this version does not know are passed over."""
        for record in read_jsonl(self.trajectory_path):
            event = decode_event(record)
            if event is not None:
                yield event

    def trajectory(self) -> Trajectory:
        """What was recorded; a torn last line is left out.

        Raises:
            RecordError: nothing was recorded, or the record is damaged before its end.
        """
        return fold(self.events())


class Recorder:
    """Writes each event that is not live-only to the trajectory file, redacted, at once.

    A line reaches the kernel before the call returns, so that a killed process loses nothing; it
    is brought to the disk after each turn by a thread of its own, so that the loop never waits.
    Raises RecordError when the disk is full, from the event that finds out.
    """

    def __init__(self, path: Path, *, redactor: Redactor, clock: Callable[[], float]) -> None:
        self._writer = JsonlWriter(path)
        self._redactor = redactor
        self._clock = clock
        self._unanswered = 0
        self._syncing = ThreadPoolExecutor(1, thread_name_prefix="sandlot-record")
        self._last_sync: Future[None] | None = None
        self.stopped = False

    def __call__(self, event: Event) -> None:
        if isinstance(event, LIVE_ONLY):
            return
        self._writer.append(self._redactor.value(encode_event(event, self._clock())))
        self.stopped = isinstance(event, RolloutStopped)
        if self._ends_a_step(event):
            self._sync_soon()

    def _ends_a_step(self, event: Event) -> bool:
        if isinstance(event, ReplyReceived):
            self._unanswered = len(event.turn.reply.tool_calls)
        elif isinstance(event, ToolFinished):
            self._unanswered -= 1
        else:
            return isinstance(event, FilesCollected | RolloutStopped)
        return self._unanswered <= 0

    def _sync_soon(self) -> None:
        if self._last_sync is not None and self._last_sync.done():
            self._check(self._last_sync)
        self._last_sync = self._syncing.submit(self._writer.sync)

    def _check(self, sync: Future[None]) -> None:
        try:
            sync.result()
        except OSError as exc:
            raise RecordError(f"{self._writer.path}: cannot be written: {exc.strerror}") from exc

    def close(self) -> None:
        """Wait until everything is on the disk and let go of the file. Safe to call twice."""
        self._syncing.shutdown(wait=True)
        self._writer.close()
        if self._last_sync is not None:
            self._check(self._last_sync)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def slugify(text: str, longest: int = 40) -> str:
    """A short, plain name for a folder out of any text."""
    words = re.findall(r"[a-z0-9]+", text[:1000].lower())
    slug = ""
    for word in words:
        if slug and len(slug) + 1 + len(word) > longest:
            break
        slug = f"{slug}-{word}" if slug else word[:longest]
    return slug or "run"


def newest_run(parent: Path) -> Path | None:
    """The run directory made last, by its name."""
    try:
        runs = [entry for entry in parent.iterdir() if (entry / MANIFEST).is_file()]
    except OSError:
        return None
    return max(runs, key=lambda path: path.name, default=None)


def to_toml(table: Mapping[str, Any]) -> str:
    """A TOML document of strings, numbers, booleans, lists and nested tables; None is left out."""
    return "\n".join(_table_lines(table, ())).lstrip("\n") + "\n"


def _table_lines(table: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    if path:
        yield ""
        yield f"[{'.'.join(map(_toml_key, path))}]"
    inner = {key: value for key, value in table.items() if isinstance(value, Mapping)}
    for key, value in table.items():
        if key not in inner and value is not None:
            yield f"{_toml_key(key)} = {_toml_value(value)}"
    for key, value in inner.items():
        yield from _table_lines(value, (*path, key))


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml_string(key)


def _toml_string(text: str) -> str:
    # A JSON string is a TOML basic string, but for lone surrogates and the bare DEL character.
    whole = text.encode("utf-8", "replace").decode("utf-8")
    return json.dumps(whole, ensure_ascii=False).replace("\x7f", "\\u007f")


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str | os.PathLike):
        return _toml_string(os.fspath(value))
    if isinstance(value, Mapping):
        pairs = (f"{_toml_key(k)} = {_toml_value(v)}" for k, v in value.items() if v is not None)
        return "{ " + ", ".join(pairs) + " }"
    if isinstance(value, list | tuple | set | frozenset):
        items = sorted(value) if isinstance(value, set | frozenset) else value
        return "[" + ", ".join(_toml_value(item) for item in items if item is not None) + "]"
    raise RecordError(f"a manifest cannot hold a {type(value).__name__}: {value!r:.60}")
