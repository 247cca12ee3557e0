"""A bench run on disk: what `records` says, written so that nothing finished is ever lost."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Self, TypeVar

from sandlot.bench.records import Episode, EpisodeRecord, ScoreRecord
from sandlot.core.codec import from_json, to_json
from sandlot.core.errors import RecordError
from sandlot.core.events import Event, decode_event, fold
from sandlot.core.jsonl import JsonlWriter, read_jsonl
from sandlot.core.redact import Redactor
from sandlot.core.store import MANIFEST, RunDirectory
from sandlot.core.types import Task, Trajectory

FORMAT = 1
"""Of the records of a bench run, in its manifest as `bench`."""

T = TypeVar("T")


class BenchDirectory:
    """One bench run. Reading needs no lock; `writing` takes one, so that no two processes append.

    A line that was appended reaches the kernel before the call returns, so that a killed process
    loses nothing; `sync` brings it to the disk.
    """

    def __init__(self, run: RunDirectory, redactor: Redactor | None = None) -> None:
        self._run = run
        self._redactor = redactor or Redactor()
        self._writers: dict[str, JsonlWriter] = {}
        self._lock: int | None = None

    @classmethod
    def create(cls, parent: Path, slug: str, now: datetime) -> Self:
        """Make `parent/2026-11-22T14-30-00-slug`.

        Raises:
            RecordError: the folder cannot be made.
        """
        directory = cls(RunDirectory.create(parent, slug, now))
        directory.trajectories.mkdir()
        directory.files.mkdir()
        return directory

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read an existing bench run.

        Raises:
            RecordError: there is none, it is damaged, or its format is not this version's.
        """
        run = RunDirectory.open(path)
        found = run.manifest.get("bench")
        if found is None:
            raise RecordError(
                f"{path} is a single run, not a bench run: its {MANIFEST} holds no 'bench'"
            )
        if found != FORMAT:
            age = "an older" if isinstance(found, int) and found < FORMAT else "a newer"
            raise RecordError(
                f"{path / MANIFEST}: bench format {found!r} is of {age} sandlot; this one reads "
                f"{FORMAT}. Use the version that wrote it, or run the bench again"
            )
        return cls(run)

    @property
    def path(self) -> Path:
        return self._run.path

    @property
    def manifest(self) -> Mapping[str, Any]:
        return self._run.manifest

    @property
    def trajectories(self) -> Path:
        return self.path / "trajectories"

    @property
    def files(self) -> Path:
        return self.path / "files"

    @property
    def judge_path(self) -> Path:
        return self.path / "judge.jsonl"

    def trajectory_path(self, episode: Episode) -> Path:
        return self.trajectories / f"{episode.stem}.jsonl"

    def files_path(self, episode: Episode) -> Path:
        """The folder of an episode's collected files; it exists only where some were."""
        return self.files / episode.stem

    # Reading.

    def attempts(self) -> Iterator[EpisodeRecord]:
        """Every recorded attempt, in the order in which they ended."""
        yield from self._read("episodes.jsonl", EpisodeRecord)

    def episodes(self) -> dict[Episode, EpisodeRecord]:
        """The last attempt of each episode."""
        return {record.episode: record for record in self.attempts()}

    def tasks(self) -> dict[tuple[str, str], Task]:
        """The problems by set and id, without their documents: what scorers read."""
        path = self.path / "tasks.jsonl"
        if not path.exists():
            return {}
        rows = read_jsonl(path)
        return {(row["set"], row["task"]["id"]): from_json(Task, row["task"]) for row in rows}

    def all_scores(self) -> Iterator[ScoreRecord]:
        yield from self._read("scores.jsonl", ScoreRecord)

    def scores(self) -> dict[tuple[Episode, str], ScoreRecord]:
        """The last score of each episode by each scorer's name."""
        return {(record.episode, record.score.scorer): record for record in self.all_scores()}

    def events(self, episode: Episode) -> Iterator[Event]:
        for record in read_jsonl(self.trajectory_path(episode)):
            event = decode_event(record)
            if event is not None:
                yield event

    def trajectory(self, episode: Episode) -> Trajectory:
        """What was recorded of an episode's last attempt.

        Raises:
            RecordError: nothing was, or the record is damaged before its end.
        """
        return fold(self.events(episode))

    def _read(self, name: str, cls: type[T]) -> Iterator[T]:
        path = self.path / name
        if not path.exists():
            return
        for number, record in enumerate(read_jsonl(path), 1):
            try:
                yield from_json(cls, record)
            except RecordError as exc:
                raise RecordError(f"{path}:{number}: {exc}") from exc

    # Writing.

    def writing(self, redactor: Redactor) -> Self:
        """Take the run for this process. Released by `close`, or when the process ends.

        Raises:
            RecordError: another process writes to it now.
        """
        self._redactor = redactor
        lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            os.close(lock)
            raise RecordError(f"{self.path}: another process is at work on this run") from exc
        self._lock = lock
        return self

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        content = self._redactor.value({"bench": FORMAT, **manifest})
        self._run = self._run.with_manifest(content)

    def write_tasks(self, tasks: Mapping[tuple[str, str], Task]) -> None:
        """Store the problems, in one step."""
        draft = self.path / ".tasks.jsonl.new"
        draft.unlink(missing_ok=True)
        writer = JsonlWriter(draft)
        for (name, _), task in tasks.items():
            writer.append({"set": name, "task": to_json(task)})
        writer.sync()
        writer.close()
        draft.replace(self.path / "tasks.jsonl")

    def add_episode(self, record: EpisodeRecord) -> None:
        self._append("episodes.jsonl", record)

    def add_score(self, record: ScoreRecord) -> None:
        self._append("scores.jsonl", record)

    def add_judgement(self, reply: Mapping[str, Any]) -> None:
        self._append("judge.jsonl", reply)

    def _append(self, name: str, record: Any) -> None:
        if name not in self._writers:
            self._writers[name] = JsonlWriter(self.path / name)
        self._writers[name].append(self._redactor.value(to_json(record)))

    def sync(self) -> None:
        """Bring everything appended to the disk (blocking)."""
        for writer in list(self._writers.values()):
            writer.sync()

    def close(self) -> None:
        """Let go of the files. Safe to call twice."""
        for writer in self._writers.values():
            writer.sync()
            writer.close()
        self._writers.clear()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
