"""The scorer seam: a candidate in, a score or a missing one out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from sandlot.core.types import Score, Task
from sandlot.models.base import Model


@dataclass(frozen=True, slots=True)
class Candidate:
    """What is scored. It holds no trajectory, so that every arm is read alike.

    `answer` is the text as the model left it: of the answer file where there was a sandbox, of the
    last reply where there was none; None where it left none. `files` is the host folder with the
    collected output files (answer file included), for scorers of files.
    """

    task: Task
    answer: str | None
    files: Path | None = None


@dataclass(frozen=True, slots=True)
class ScoringTools:
    """What scorers may be built with. Nothing is opened or started before it is needed.

    `cache_dir` holds what may be thrown away and made again (judgements already paid for);
    `judge_model` builds the judge's model, None where the run names none, and `judge_address` is
    its server, for two may serve different models under one name; `environ` is what child
    processes and searches for data folders see. `on_judgement` gets each raw reply of a judge as
    one JSON object, replies from the cache included (`cached` tells them apart).
    """

    cache_dir: Path
    judge_model: Callable[[], Model] | None = None
    judge_address: str = ""
    environ: Mapping[str, str] = field(default_factory=dict)
    on_judgement: Callable[[Mapping[str, Any]], None] | None = None


class Scorer(Protocol):
    """Turns candidates into scores. The version changes whenever a verdict may."""

    name: str
    version: str

    async def score(self, candidate: Candidate) -> Score:
        """A value in [0, 1], or None with the reason in `missing`.

        An answer that is empty or cannot be read is worth 0, with `details["no_answer"]` set; a
        failure of the scorer's own (a checker that is not installed, a judge that does not answer,
        a child process out of time) is missing, never 0. Raises nothing but ConfigError for a task
        that it cannot score at all (a ground truth of the wrong type), which names the task.
        """
        ...

    async def close(self) -> None:
        """End helper processes and clients. Safe to call twice."""
        ...
