"""The run of an experiment: many episodes at once, each recorded the moment it ends.

Nothing that was paid for is lost: a trajectory is on disk event by event, an episode's end and its
score line by line. A run that was stopped or killed goes on from there (`resume`).
"""

from __future__ import annotations

import asyncio
import os
import platform
import shutil
import time
import traceback
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sandlot.agent.prompts import digest
from sandlot.api import check_backend, model_of, open_computer, secrets_of, settle_backend
from sandlot.bench.arms import REFERENCE
from sandlot.bench.contamination import check_sandbox_view, marks
from sandlot.bench.controls import check_controls
from sandlot.bench.episodes import (
    Executor,
    Job,
    LocalExecutor,
    models_of_settings,
    opener,
)
from sandlot.bench.grading import JUDGED, Grader, GradingOptions, score_episode
from sandlot.bench.limits import Throttle
from sandlot.bench.meters import measure
from sandlot.bench.plan import (
    BenchPlan,
    Condition,
    Item,
    conditions_of,
    differences,
    identity_of,
    items_of,
)
from sandlot.bench.records import Episode, EpisodeRecord, Meters, ScoreRecord
from sandlot.bench.store import BenchDirectory
from sandlot.core.codec import to_json
from sandlot.core.errors import (
    ConfigError,
    ImageError,
    InputError,
    RecordError,
    SandboxUnavailable,
    SandlotError,
    unknown_name,
)
from sandlot.core.events import Event, ReplyReceived, RolloutContinued
from sandlot.core.redact import Redactor
from sandlot.core.store import slugify
from sandlot.core.types import StopReason, Task, Trajectory
from sandlot.models.base import Model
from sandlot.scoring.base import ScoringTools
from sandlot.settings import Settings
from sandlot.tasks.base import LoadedSet

FAILURES = {
    StopReason.MODEL_ERROR: "model_error",
    StopReason.SANDBOX_DIED: "sandbox_died",
    StopReason.CANCELLED: "cancelled",
}
CONTINUED_AFTER = ("model_error", "deadline", "cancelled")
"""Failures after which the trajectory goes on; after the others it starts over."""

FINAL = ("input_error", "config_error")
"""Failures that another attempt would only repeat."""

CLASSES = (
    *FAILURES.values(),
    *FINAL,
    "crash",
    "deadline",
    "sandbox_error",
    "unavailable",
    "unmatched",
)
"""All classes of failures that keep an episode from a score, as `retry` names them."""

EXECUTORS = ("local", "ray")

_IN_A_ROW = 20
_TICK_S = 1.0
_TELL_S = 0.25  # what is told is summed over all episodes each time


@dataclass(frozen=True, slots=True)
class ArmSoFar:
    """The mean score of an arm's scored episodes up to now, unpaired, and how many they are."""

    mean: float | None
    scored: int


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is. `done` counts taken-over episodes; `failed` those without a score for now.

    `tokens` are billed ones and `cost_usd` is None until some cost is known. `per_minute` and
    `left_s` are of this process's own pace.
    """

    done: int
    total: int
    failed: int
    running: int
    limit: int
    arms: Mapping[str, ArmSoFar]
    tokens: int
    cost_usd: float | None
    per_minute: float
    left_s: float | None


def _ignore(*_: object) -> None:
    """For a watcher that does not care."""


@dataclass(frozen=True, slots=True)
class BenchWatch:
    """Who looks on. `note` gets lines, `progress` the state after each episode and each second."""

    note: Callable[[str], None] = _ignore
    progress: Callable[[Progress], None] = _ignore
    opened: Callable[[BenchDirectory], None] = _ignore


Controls = Callable[[Sequence[Condition], Path], Awaitable[list[dict[str, Any]]]]


@dataclass(frozen=True, slots=True)
class Ground:
    """What a run stands on, handed in. `controls` proves that the arms' walls hold."""

    executor: Executor
    grader: Grader
    controls: Controls
    preflight: Callable[[Sequence[Condition]], Awaitable[dict[str, Any]]]
    clock: Callable[[], float] = time.time
    now: Callable[[], float] = time.monotonic


async def run_bench(
    plan: BenchPlan,
    watch: BenchWatch = BenchWatch(),
    *,
    resume: BenchDirectory | None = None,
    environ: Mapping[str, str] | None = None,
    clock: Callable[[], float] = time.time,
    ground: Callable[[BenchPlan, BenchDirectory, Redactor], Ground] | None = None,
) -> BenchDirectory:
    """Run every episode of the plan that is not there yet, score it, and return the run directory.

    Args:
        resume: a run directory that goes on; its finished episodes are taken over.
        ground: builds what the run stands on instead of what the settings say (tests, Ray).
    Raises:
        ConfigError: a setting, set, scorer or arm cannot be used, or a resumed run's settings
            differ and `plan.force` is not set; nothing was started.
        SandboxUnavailable, ImageError: no sandbox can be had here; nothing was paid for.
        RecordError: the run directory cannot be written, or is another process's.
        asyncio.CancelledError: after everything that ran was wound up and recorded.
    """
    environ = os.environ if environ is None else environ
    for word in plan.retry:
        if word not in CLASSES:
            raise unknown_name("failure class", word, CLASSES)
    plan = await _settled(plan, environ, watch.note)
    conditions = conditions_of(plan, environ)
    identity = identity_of(plan, conditions)
    if resume is not None:
        _check_same(resume, identity, plan, watch.note)
    _check_tasks(plan)
    redactor = Redactor(_secrets(plan.settings, environ, conditions))
    directory = (resume or _new_directory(plan, clock)).writing(redactor)
    try:
        build = ground or _Grounds(environ, clock, watch.note)
        made = _made(build, plan, directory, redactor, is_new=resume is None)
        try:
            _write_manifest(plan, directory, conditions, identity, clock)
            watch.opened(directory)
            await _Run(plan, directory, conditions, made, watch, redactor).play()
        finally:
            await made.executor.close()
            await made.grader.close()
    finally:
        await asyncio.to_thread(directory.close)
    return directory


def _made(
    build: Callable[[BenchPlan, BenchDirectory, Redactor], Ground],
    plan: BenchPlan,
    directory: BenchDirectory,
    redactor: Redactor,
    *,
    is_new: bool,
) -> Ground:
    """What the run stands on; a plan that cannot be run leaves no folder behind."""
    try:
        return build(plan, directory, redactor)
    except SandlotError:
        if is_new:
            shutil.rmtree(directory.path, ignore_errors=True)
        raise


async def _settled(
    plan: BenchPlan, environ: Mapping[str, str], note: Callable[[str], None]
) -> BenchPlan:
    """The plan with a backend in place of `auto`, where an arm has a sandbox at all."""
    if all(arm.mode == "llm" for arm in plan.arms):
        return plan
    check_backend(plan.settings.backend)
    settings, _ = await settle_backend(plan.settings, environ, note)
    return replace(plan, settings=settings)


def _check_same(
    directory: BenchDirectory,
    identity: Mapping[str, Any],
    plan: BenchPlan,
    note: Callable[[str], None],
) -> None:
    found = differences(directory.manifest.get("identity", {}), identity)
    if not found:
        return
    shown = "\n  ".join(found)
    if not plan.force:
        raise ConfigError(
            f"{directory.path} was begun with other settings:\n  {shown}\n"
            "Resume it with its own, begin a new run, or pass --force to run again what they change"
        )
    note(f"resumed with other settings (--force):\n  {shown}")


def _check_tasks(plan: BenchPlan) -> None:
    """No truth and no name of a data set may enter a sandbox."""
    if all(arm.mode == "llm" for arm in plan.arms):
        return
    for loaded in plan.sets:
        for task in loaded.tasks[: plan.limit]:
            check_sandbox_view(task, loaded.row)


def _secrets(
    settings: Settings,
    environ: Mapping[str, str],
    conditions: Mapping[tuple[str, str], Condition],
) -> list[str]:
    walls = {
        item.secret
        for condition in conditions.values()
        for item in condition.policy.network.credentials
    }
    return [*secrets_of(settings, environ), *walls]


def _new_directory(plan: BenchPlan, clock: Callable[[], float]) -> BenchDirectory:
    name = slugify(plan.name or " ".join(loaded.row.name for loaded in plan.sets), 24)
    arms = [arm.name for arm in plan.arms]
    mode = "both" if arms == ["llm", "sandbox"] else arms[0] if len(arms) == 1 else "arms"
    now = datetime.fromtimestamp(clock()).astimezone()
    return BenchDirectory.create(Path(plan.settings.runs), f"{name} {mode}", now)


def _write_manifest(
    plan: BenchPlan,
    directory: BenchDirectory,
    conditions: Mapping[tuple[str, str], Condition],
    identity: Mapping[str, Any],
    clock: Callable[[], float],
) -> None:
    from sandlot import __version__

    now = datetime.fromtimestamp(clock(), UTC).isoformat(timespec="seconds")
    before = directory.manifest
    resumed = [*before.get("resumed", ()), now] if before else []
    profiles = {c.profile.name: c.profile for c in conditions.values()}
    directory.write_tasks(_problems(plan))
    directory.write_manifest(
        {
            "name": plan.name,
            "created": before.get("created", now),
            "resumed": resumed,
            "model": plan.settings.model,
            "seed": plan.settings.seed,
            "repeats": plan.repeats,
            "limit": plan.limit,
            "concurrency": plan.concurrency,
            "attempts": plan.attempts,
            "deadline_s": plan.deadline_s,
            "max_cost_usd": plan.max_cost_usd,
            "judge": plan.settings.judge,
            "words": list(plan.words),
            "protocol": plan.protocol or None,
            "executor": plan.executor,
            "backend": plan.settings.backend,
            "versions": {
                "sandlot": __version__,
                "python": platform.python_version(),
                "kernel": platform.release(),
            },
            "identity": dict(identity),
            "sampling": to_json(next(iter(conditions.values())).sampling),
            "arms": {arm.name: to_json(arm) for arm in plan.arms},
            "sets": {s.row.name: _set_record(plan, s) for s in plan.sets},
            "profiles": {
                name: {"digest": digest(profile), **to_json(profile)}
                for name, profile in profiles.items()
            },
            "policies": {
                f"{name}, {arm}": to_json(condition.policy)
                for (name, arm), condition in conditions.items()
                if condition.arm.mode == "sandbox"
            },
            "settings": plan.settings.public(),
            "sources": dict(plan.settings.sources),
            "controls": list(before.get("controls", ())),
            "sandbox": before.get("sandbox"),
        }
    )


def _set_record(plan: BenchPlan, loaded: LoadedSet) -> dict[str, Any]:
    items = len(loaded.tasks[: plan.limit])
    return {"digest": loaded.digest, "items": items, "row": to_json(loaded.row)}


def _problems(plan: BenchPlan) -> dict[tuple[str, str], Task]:
    return {
        (loaded.row.name, task.id): bare(task)
        for loaded in plan.sets
        for task in loaded.tasks[: plan.limit]
    }


def bare(task: Task) -> Task:
    """The problem without its documents, as it is stored for scoring."""
    return replace(task, input_files={}, input_dir=None)


@dataclass(frozen=True, slots=True)
class _Grounds:
    """Builds what a run stands on from its settings."""

    environ: Mapping[str, str]
    clock: Callable[[], float]
    note: Callable[[str], None]

    def __call__(self, plan: BenchPlan, directory: BenchDirectory, redactor: Redactor) -> Ground:
        open_box = opener(self.environ, self.note)
        tools = ScoringTools(
            cache_dir=plan.settings.cache_dir / "judgements",
            judge_model=judge_of(plan.settings),
            judge_address=plan.settings.base_url or "",
            environ=self.environ,
            on_judgement=directory.add_judgement,
        )
        rows = [loaded.row for loaded in plan.sets]
        judged = [row.name for row in rows if row.scorer in JUDGED]
        if judged and plan.settings.judge is None:
            self.note(
                f"{', '.join(judged)}: what only a judge can score stays missing; name one by "
                "--judge now, or later by: sandlot score --judge"
            )
        grader = Grader(rows, tools, GradingOptions(reference=plan.reference))

        async def controls(conditions: Sequence[Condition], scratch: Path) -> list[dict[str, Any]]:
            return await check_controls(conditions, open_box, scratch)

        async def preflight(conditions: Sequence[Condition]) -> dict[str, Any]:
            return await _bring_up(conditions, self.environ, self.note)

        models = models_of_settings(plan.concurrency)
        models.check(plan.settings)
        if plan.executor == "ray":
            from sandlot.bench.ray_executor import RayExecutor

            spread = RayExecutor(redactor, self.clock)
            return Ground(spread, grader, controls, preflight, self.clock)
        if plan.executor != "local":
            raise unknown_name("executor", plan.executor, EXECUTORS)
        executor = LocalExecutor(models, open_box, redactor, self.clock)
        return Ground(executor, grader, controls, preflight, self.clock)


def judge_of(settings: Settings) -> Callable[[], Model] | None:
    """Builds the judge's model, if one is named; its server and keys are those of the run."""
    if settings.judge is None:
        return None
    judging = replace(settings, model=settings.judge, tool_calls="auto")
    return lambda: model_of(judging)


async def _bring_up(
    conditions: Sequence[Condition], environ: Mapping[str, str], note: Callable[[str], None]
) -> dict[str, Any]:
    """Start one sandbox for each image: it is built once, and what cannot start is known first."""
    found: dict[str, Any] = {}
    by_image = {condition.settings.image: condition for condition in conditions}
    for asked, condition in by_image.items():
        box, image = await open_computer(condition.settings, condition.policy, environ, note)
        async with box:
            promises = [to_json(item) for item in box.enforcement]
            found[asked] = {"backend": box.backend, "image": image, "promises": promises}
    return found


@dataclass(slots=True)
class _Run:
    """The state of a run in this process."""

    plan: BenchPlan
    directory: BenchDirectory
    conditions: Mapping[tuple[str, str], Condition]
    ground: Ground
    watch: BenchWatch
    redactor: Redactor
    items: list[Item] = field(default_factory=list)
    records: dict[Episode, EpisodeRecord] = field(default_factory=dict)
    scores: dict[Episode, ScoreRecord] = field(default_factory=dict)
    queue: deque[Item] = field(default_factory=deque)
    waiting: dict[Episode, list[Item]] = field(default_factory=dict)
    pending: set[Episode] = field(default_factory=set)
    tries: Counter[Episode] = field(default_factory=Counter)
    active: dict[asyncio.Task[None], Item] = field(default_factory=dict)
    throttle: Throttle = field(init=False)
    began: float = 0.0
    told: float = float("-inf")
    finished_here: int = 0
    failed_in_a_row: int = 0
    tokens: int = 0
    cost_usd: float | None = None
    stopped: str | None = None

    async def play(self) -> None:
        self.throttle = Throttle(self.plan.concurrency, clock=self.ground.now)
        self.began = self.ground.now()
        self.items = items_of(self.plan, self.conditions)
        scratch = self.directory.path / ".scratch"
        scratch.mkdir(exist_ok=True)
        try:
            unscored = self._take_over()
            if self.queue:
                await self._prove_walls(scratch)
            await self._score_all(unscored)
            await self._work()
        finally:
            await self._wind_up()
            shutil.rmtree(scratch, ignore_errors=True)
        self._report()

    # What is there already.

    def _take_over(self) -> list[EpisodeRecord]:
        """Fill the queue with what is missing or failed; gives what ended without a score."""
        scores = self.directory.scores()
        old: dict[Episode, EpisodeRecord] = {}
        for ended in self.directory.attempts():
            old[ended.episode] = ended
            self._count(ended.meters)
        unscored = []
        for item in self.items:
            record = old.get(item.episode)
            if record is None or record.content_key != item.content_key:
                self.queue.append(item)
                continue
            self.records[item.episode] = record
            if record.failure is not None and self._is_retried(record.failure):
                self.queue.append(item)
                continue
            score = scores.get((item.episode, self._scorer_name(item)))
            if score is None or (score.score.missing is not None and record.failure is None):
                unscored.append(record)
            else:
                self.scores[item.episode] = score
        self.pending = {item.episode for item in self.queue}
        return unscored

    def _is_retried(self, failure: str) -> bool:
        return not self.plan.retry or failure in self.plan.retry

    def _scorer_name(self, item: Item) -> str:
        return self.ground.grader.scorer_of(item.episode.task_set).name

    async def _score_all(self, records: Sequence[EpisodeRecord]) -> None:
        tasks = {item.episode: item.task for item in self.items}
        limit = asyncio.Semaphore(max(self.plan.concurrency, 1))

        async def one(record: EpisodeRecord) -> None:
            async with limit:
                await self._score(tasks[record.episode], record)

        await asyncio.gather(*map(one, records))

    async def _prove_walls(self, scratch: Path) -> None:
        """Before anything is paid for: a sandbox starts, and what arms take away is gone."""
        wanted = {(item.episode.task_set, item.episode.arm) for item in self.queue}
        boxed = [
            condition
            for key, condition in self.conditions.items()
            if key in wanted and condition.arm.mode == "sandbox"
        ]
        if not boxed:
            return
        found = await self.ground.preflight(boxed)
        evidence = await self.ground.controls(boxed, scratch)
        manifest = {k: v for k, v in self.directory.manifest.items() if k != "format"}
        manifest |= {"sandbox": found, "controls": [*manifest.get("controls", ()), *evidence]}
        self.directory.write_manifest(manifest)

    # The loop.

    async def _work(self) -> None:
        self._tell()
        while self.queue or self.active:
            self._start_some()
            if not self.active:
                break
            done, _ = await asyncio.wait(
                self.active, timeout=_TICK_S, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                del self.active[task]
                task.result()
            self._tell()

    def _start_some(self) -> None:
        why = self.throttle.look_at_host()
        if why is not None:
            self.watch.note(f"{why}; at most {self.throttle.limit} episodes run at once for now")
        while self.queue and len(self.active) < self.throttle.limit and self._may_start():
            item = self.queue.popleft()
            if self._must_wait(item):
                continue
            self.active[asyncio.create_task(self._episode(item))] = item

    def _may_start(self) -> bool:
        self.stopped = self.stopped or self._why_stop()
        if self.stopped is not None:
            self.queue.clear()
        return self.stopped is None

    def _why_stop(self) -> str | None:
        limit = self.plan.max_cost_usd
        if self.failed_in_a_row >= max(_IN_A_ROW, 2 * self.plan.concurrency):
            return f"the last {self.failed_in_a_row} episodes all failed"
        if limit is None or not self.tokens:
            return None
        if self.cost_usd is None:
            return "the server tells no cost and no price is known, so --max-cost cannot be kept"
        if self.cost_usd < limit:
            return None
        return f"${self.cost_usd:.2f} of ${limit:.2f} are spent (a higher --max-cost lifts it)"

    def _must_wait(self, item: Item) -> bool:
        """A voting arm needs to know what the sandbox arm of the same repeat used."""
        arm = self.conditions[item.episode.task_set, item.episode.arm].arm
        if not arm.votes:
            return False
        other = replace(item.episode, arm=REFERENCE)
        if other not in self.pending:
            return False
        self.waiting.setdefault(other, []).append(item)
        return True

    # One episode.

    async def _episode(self, item: Item) -> None:
        began_before = self.records.get(item.episode)
        attempt = (began_before.attempt if began_before else 0) + 1
        heard = _Heard(self.throttle)
        failure, detail, trajectory = await self._attempt(item, attempt, heard)
        if trajectory is None:
            trajectory = await self._recorded(item)
        record = self._record(item, attempt, trajectory, failure, detail, heard)
        self.directory.add_episode(record)
        self.records[item.episode] = record
        self._count(record.meters)
        if record.failure == "model_error":
            self.throttle.failed()
        await self._score(item.task, record)
        self._settle(item, record)

    async def _attempt(
        self, item: Item, attempt: int, heard: _Heard
    ) -> tuple[str | None, str, Trajectory | None]:
        """Play it. Gives the class of a failure, what is to be said of it, and the trajectory."""
        limit = asyncio.timeout(self.plan.deadline_s)
        try:
            async with limit:
                history = await self._history(item, heard)
                if history is not None and _is_whole(history):
                    return None, "", history
                job = self._job(item, attempt, history)
                trajectory = await self.ground.executor.play(job, heard)
        except RecordError:
            raise  # nothing can be written any more: the run must not go on
        except SandlotError as exc:
            return _class_of(exc), str(exc), None
        except Exception as exc:  # noqa: BLE001 - the one guard around a rollout; it is recorded
            if isinstance(exc, TimeoutError) and limit.expired():
                return "deadline", f"not done within {self.plan.deadline_s:g} s", None
            self.watch.note(f"{item.episode.stem}: {type(exc).__name__}: {exc}")
            return "crash", traceback.format_exc()[-4000:], None
        assert trajectory.stop_reason is not None
        return FAILURES.get(trajectory.stop_reason), trajectory.stop_detail, trajectory

    async def _history(self, item: Item, heard: _Heard) -> Trajectory | None:
        """An unfinished trajectory that may go on; None where it begins anew."""
        trajectory = await self._recorded(item)
        if trajectory is None:
            return None
        last = self.records.get(item.episode)
        failed_for_good = last is not None and last.failure not in (None, *CONTINUED_AFTER)
        if failed_for_good and not _is_whole(trajectory):
            return None
        if not trajectory.turns:
            heard.restarted += 1
            return None
        return trajectory

    async def _recorded(self, item: Item) -> Trajectory | None:
        path = self.directory.trajectory_path(item.episode)
        if not path.exists():
            return None
        try:
            trajectory = await asyncio.to_thread(self.directory.trajectory, item.episode)
        except RecordError:
            if path.stat().st_size:
                path.rename(path.with_suffix(".damaged"))
            return None
        same = trajectory.metadata.get("content_key") == item.content_key
        return trajectory if same else None

    def _job(self, item: Item, attempt: int, history: Trajectory | None) -> Job:
        condition = self.conditions[item.episode.task_set, item.episode.arm]
        return Job(
            item=item,
            condition=condition,
            attempt=attempt,
            record=self.directory.trajectory_path(item.episode),
            files=self.directory.files_path(item.episode),
            scratch=self.directory.path / ".scratch",
            history=history,
            tokens=self._tokens_to_match(item) if condition.arm.votes else None,
        )

    def _tokens_to_match(self, item: Item) -> int:
        other = replace(item.episode, arm=REFERENCE)
        record = self.records.get(other)
        if record is None or record.failure is not None:
            raise _Unmatched(f"the {REFERENCE} arm of this item failed, so there is no budget")
        billed = _billed(record.meters)
        if billed is None:
            raise _Unmatched(f"the tokens of the {REFERENCE} arm are not known")
        return billed

    def _record(
        self,
        item: Item,
        attempt: int,
        trajectory: Trajectory | None,
        failure: str | None,
        detail: str,
        heard: _Heard,
    ) -> EpisodeRecord:
        row = self.conditions[item.episode.task_set, item.episode.arm].row
        cluster = item.task.metadata.get(row.cluster) if row.cluster else None
        answer = trajectory.answer if trajectory is not None else None
        return EpisodeRecord(
            episode=item.episode,
            content_key=item.content_key,
            attempt=attempt,
            stop_reason=trajectory.stop_reason if trajectory is not None else None,
            stop_detail=self.redactor.text(detail),
            answer=None if answer is None else self.redactor.text(answer),
            failure=failure,
            meters=Meters() if trajectory is None else measure(trajectory, self.plan.price),
            marks=() if trajectory is None else marks(item.task, trajectory, row),
            label=item.task.metadata.get("label"),
            cluster=None if cluster is None else str(cluster),
            domain=item.task.domain or row.domain,
            continued=heard.continued,
            restarted=heard.restarted,
        )

    async def _score(self, task: Task, record: EpisodeRecord) -> None:
        score = await score_episode(self.ground.grader, self.directory, bare(task), record)
        self.directory.add_score(score)
        self.scores[record.episode] = score
        await asyncio.to_thread(self.directory.sync)

    def _settle(self, item: Item, record: EpisodeRecord) -> None:
        """Try a failed episode again, at the end of the queue; let those go on that waited."""
        self.tries[item.episode] += 1
        failed = record.failure is not None
        self.failed_in_a_row = self.failed_in_a_row + 1 if failed else 0
        again = failed and record.failure not in (*FINAL, "unmatched")
        if again and self.tries[item.episode] < self.plan.attempts and self.stopped is None:
            self.queue.append(item)
            return
        self.pending.discard(item.episode)
        self.finished_here += 1
        if self.stopped is None:
            self.queue.extendleft(self.waiting.pop(item.episode, ()))

    async def _wind_up(self) -> None:
        """Cancel what still runs; each collects its files and records its end first."""
        for task in self.active:
            task.cancel()
        await asyncio.gather(*self.active, return_exceptions=True)
        self.active.clear()

    # Telling.

    def _count(self, meters: Meters) -> None:
        self.tokens += _billed(meters) or 0
        if meters.cost_usd is not None:
            self.cost_usd = (self.cost_usd or 0.0) + meters.cost_usd

    def _tell(self, *, at_once: bool = False) -> None:
        now = self.ground.now()
        if at_once or now >= self.told + _TELL_S:
            self.told = now
            self.watch.progress(self.so_far())

    def so_far(self) -> Progress:
        elapsed_s = max(self.ground.now() - self.began, 1e-6)
        done = len(self.items) - len(self.pending)
        pace = self.finished_here / elapsed_s
        return Progress(
            done=done,
            total=len(self.items),
            failed=sum(record.failure is not None for record in self.records.values()),
            running=len(self.active),
            limit=self.throttle.limit,
            arms=self._means(),
            tokens=self.tokens,
            cost_usd=self.cost_usd,
            per_minute=pace * 60.0,
            left_s=(len(self.items) - done) / pace if pace > 0 else None,
        )

    def _means(self) -> dict[str, ArmSoFar]:
        values: dict[str, list[float]] = {arm.name: [] for arm in self.plan.arms}
        for episode, record in self.scores.items():
            if record.score.value is not None:
                values[episode.arm].append(record.score.value)
        return {
            name: ArmSoFar(sum(found) / len(found) if found else None, len(found))
            for name, found in values.items()
        }

    def _report(self) -> None:
        if self.stopped is not None:
            self.watch.note(f"stopped: {self.stopped}; go on with --resume {self.directory.path}")
        self._tell(at_once=True)


class _Unmatched(SandlotError):
    """A voting arm has no budget to match."""


@dataclass(slots=True)
class _Heard:
    """Listens to one episode: how its model fares, and whether it was continued."""

    throttle: Throttle
    continued: int = 0
    restarted: int = 0

    def __call__(self, event: Event, /) -> None:
        if isinstance(event, ReplyReceived):
            self.throttle.replied(event.turn.waiting_s)
        elif isinstance(event, RolloutContinued):
            self.continued += event.how == "resume"
            self.restarted += event.how == "restart"


def _is_whole(trajectory: Trajectory) -> bool:
    """Whether it had ended, so that only its line among the episodes is missing."""
    return trajectory.stop_reason is not None and trajectory.stop_reason not in FAILURES


def _class_of(error: SandlotError) -> str:
    if isinstance(error, _Unmatched):
        return "unmatched"
    if isinstance(error, SandboxUnavailable | ImageError):
        return "unavailable"
    if isinstance(error, InputError):
        return "input_error"
    if isinstance(error, ConfigError):
        return "config_error"
    return "sandbox_error"


def _billed(meters: Meters) -> int | None:
    prompt, completion = meters.billed_prompt_tokens, meters.billed_completion_tokens
    if prompt is None and completion is None:
        return None
    return (prompt or 0) + (completion or 0)
