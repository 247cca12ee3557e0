"""Scoring beside the rollouts: on a thread and loop of its own, with a deadline for each score.

A scorer that computes for long must not hold up two hundred rollouts, and one that hangs or raises
must cost its own score and nothing else.
"""

from __future__ import annotations

import asyncio
import threading
import traceback
from collections.abc import Callable, Coroutine, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from sandlot.bench.records import Episode, EpisodeRecord, ScoreRecord
from sandlot.bench.store import BenchDirectory
from sandlot.core.errors import SandlotError
from sandlot.core.types import Score, Task
from sandlot.scoring.base import Candidate, Scorer, ScoringTools
from sandlot.scoring.reference import Reference
from sandlot.scoring.registry import load_scorer
from sandlot.tasks.base import TaskSet

T = TypeVar("T")

SCORE_S = 900.0
JUDGED = ("judge", "cascade")
"""Scorers that may ask a model."""

_ANSWERS_S = 5.0  # a loop that lives turns within this


class _Loop:
    """An event loop on a daemon thread, so that a wedged one does not keep the program alive."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="sandlot-scoring", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()
        self.loop.close()

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    async def alive(self) -> bool:
        try:
            await asyncio.wait_for(asyncio.wrap_future(self.submit(asyncio.sleep(0))), _ANSWERS_S)
        except TimeoutError:
            return False
        return True

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(_ANSWERS_S)


@dataclass(frozen=True, slots=True)
class GradingOptions:
    """`reference` asks the published package too, where installed. `timeout_s` is for a score."""

    reference: bool = True
    timeout_s: float = SCORE_S


class Grader:
    """The scorers of a run's sets. Built at once, so that a wrong option costs nothing.

    Raises:
        ConfigError: a scorer that does not exist, or an option that it does not take.
        MissingExtra: a scorer's library is not installed.
    """

    def __init__(
        self,
        rows: Iterable[TaskSet],
        tools: ScoringTools,
        options: GradingOptions = GradingOptions(),
        load: Callable[[str, Mapping[str, Any], ScoringTools], Scorer] = load_scorer,
    ) -> None:
        self._rows = {row.name: row for row in rows}
        self._tools = tools
        self._options = options
        self._load = load
        self._build()
        self._loop: _Loop | None = None

    def _build(self) -> None:
        self._scorers = {
            name: self._load(row.scorer, row.scorer_options, self._tools)
            for name, row in self._rows.items()
        }
        self._reference = Reference(self._tools) if self._options.reference else None

    def knows(self, task_set: str) -> bool:
        """Whether it scores this set."""
        return task_set in self._scorers

    def scorer_of(self, task_set: str) -> Scorer:
        return self._scorers[task_set]

    async def grade(self, candidate: Candidate, episode: Episode) -> ScoreRecord:
        """The score of one episode; whatever goes wrong is a missing score with its reason."""
        scorer = self._scorers[episode.task_set]
        if self._loop is None:
            self._loop = _Loop()
        work = self._loop.submit(self._grade(scorer, candidate, episode))
        try:
            return await asyncio.wait_for(asyncio.wrap_future(work), self._options.timeout_s)
        except TimeoutError:
            await self._recover()
            why = f"the scorer gave nothing within {self._options.timeout_s:g} s"
            return missing(scorer, candidate.task, episode, why)

    async def _grade(self, scorer: Scorer, candidate: Candidate, episode: Episode) -> ScoreRecord:
        try:
            score = await scorer.score(candidate)
        except SandlotError as exc:
            return missing(scorer, candidate.task, episode, str(exc))
        except Exception as exc:  # noqa: BLE001 - a scorer's bug costs one score and is recorded
            why = f"the scorer failed: {type(exc).__name__}: {exc}"
            trace = {"traceback": traceback.format_exc()[-4000:]}
            return missing(scorer, candidate.task, episode, why, trace)
        try:
            theirs = await self._reference_score(candidate, episode)
        except Exception:  # noqa: BLE001 - it stands beside our score, and must not cost it
            theirs = None
        return ScoreRecord(episode, score, theirs)

    async def _reference_score(self, candidate: Candidate, episode: Episode) -> float | None:
        if self._reference is None:
            return None
        domain = candidate.task.domain or self._rows[episode.task_set].domain
        return await self._reference.score(candidate.task, candidate.answer, domain)

    async def _recover(self) -> None:
        """Leave a thread that does not answer any more behind, with new scorers on a new one."""
        if self._loop is not None and not await self._loop.alive():
            self._loop = None
            self._build()

    async def close(self) -> None:
        if self._loop is None:
            return
        if await self._loop.alive():
            closing = self._loop.submit(self._close())
            await asyncio.wait_for(asyncio.wrap_future(closing), 30.0)
            self._loop.stop()
        self._loop = None

    async def _close(self) -> None:
        for scorer in self._scorers.values():
            await scorer.close()
        if self._reference is not None:
            await self._reference.close()


def missing(
    scorer: Scorer,
    task: Task,
    episode: Episode,
    why: str,
    details: Mapping[str, Any] | None = None,
) -> ScoreRecord:
    score = Score(task.id, scorer.name, scorer.version, None, why, details or {})
    return ScoreRecord(episode, score)


def candidate_of(task: Task, record: EpisodeRecord, directory: BenchDirectory) -> Candidate:
    """What is scored: the problem without its documents, and what the episode left."""
    files = directory.files_path(record.episode)
    return Candidate(task, record.answer, files if files.is_dir() else None)


async def score_episode(
    grader: Grader, directory: BenchDirectory, task: Task, record: EpisodeRecord
) -> ScoreRecord:
    """Score a finished episode; a failed one has a missing score that names the failure."""
    if record.failure is not None:
        scorer = grader.scorer_of(record.episode.task_set)
        return missing(scorer, task, record.episode, record.failure)
    return await grader.grade(candidate_of(task, record, directory), record.episode)


async def rescore(
    directory: BenchDirectory,
    grader: Grader,
    *,
    together: int = 32,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Score the recorded episodes of the grader's sets again, without a model or a sandbox.

    Gives how many.

    The new scores are appended as they come, so that the last one counts.
    """
    tasks = directory.tasks()
    records = [r for r in directory.episodes().values() if grader.knows(r.episode.task_set)]
    limit, done = asyncio.Semaphore(together), 0

    async def one(record: EpisodeRecord) -> None:
        nonlocal done
        async with limit:
            task = tasks[record.episode.task_set, record.episode.item]
            directory.add_score(await score_episode(grader, directory, task, record))
        done += 1
        progress(done, len(records))

    await asyncio.gather(*map(one, records))
    await asyncio.to_thread(directory.sync)
    return done
