"""Bench runs written by hand: scores in, a directory out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sandlot.bench.records import Episode, EpisodeRecord, Meters, ScoreRecord
from sandlot.bench.store import BenchDirectory
from sandlot.core.redact import Redactor
from sandlot.core.types import Score, StopReason


@dataclass(frozen=True)
class Shot:
    """One episode. `value` None with a `failure` is a failure of ours; without one, unscored."""

    item: str
    arm: str
    value: float | None
    repeat: int = 0
    task_set: str = "math"
    failure: str | None = None
    answer: str | None = "42"
    label: str | None = None
    cluster: str | None = None
    marks: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    reference: float | None = None
    meters: Meters = field(default_factory=Meters)
    scorer: str = "text"
    attempt: int = 1


def run_of(
    parent: Path,
    shots: Iterable[Shot],
    manifest: Mapping[str, Any] | None = None,
    name: str = "hand",
) -> Path:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    directory = BenchDirectory.create(parent, name, now).writing(Redactor())
    directory.write_manifest({"model": "scripted", **(manifest or {})})
    for shot in shots:
        episode = Episode(shot.task_set, shot.item, shot.arm, shot.repeat)
        directory.add_episode(_record(episode, shot))
        if shot.value is not None:
            score = Score(shot.item, shot.scorer, "1", shot.value, details=shot.details)
            directory.add_score(ScoreRecord(episode, score, shot.reference))
    directory.close()
    return directory.path


def _record(episode: Episode, shot: Shot) -> EpisodeRecord:
    return EpisodeRecord(
        episode=episode,
        content_key=episode.stem,
        attempt=shot.attempt,
        stop_reason=StopReason.SUBMITTED,
        stop_detail="",
        answer=shot.answer,
        failure=shot.failure,
        meters=shot.meters,
        marks=shot.marks,
        label=shot.label,
        cluster=shot.cluster,
        domain=shot.task_set,
    )


def pair(item: str, head: float | None, computer: float | None, **more: Any) -> list[Shot]:
    """One item in the two arms of `--mode both`."""
    return [Shot(item, "llm", head, **more), Shot(item, "sandbox", computer, **more)]
