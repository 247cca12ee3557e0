"""Playing one episode: a condition and a problem in, a recorded trajectory out."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from sandlot.agent.resume import resume_rollout
from sandlot.agent.rollout import run_rollout
from sandlot.api import fan_out, model_of, open_computer, relocated
from sandlot.bench.arms import WHOLE_TEXT, task_for, tools_of
from sandlot.bench.plan import Condition, Item
from sandlot.bench.votes import vote
from sandlot.core.events import EventSink, RolloutStopped
from sandlot.core.redact import Redactor
from sandlot.core.store import Recorder
from sandlot.core.types import StopReason, Trajectory
from sandlot.models.base import Model, Sampling
from sandlot.sandbox.base import Sandbox
from sandlot.settings import Settings

EPISODES_A_CLIENT = 12
SERVERS = ("openai/", "anthropic/")
PLACEHOLDERS = ("set", "item", "arm", "mode", "repeat")


def _seed_of(*parts: object) -> int:
    """Thirty bits, since some servers take no more than 32, and votes count up from it."""
    digest = hashlib.sha256("\0".join(map(str, parts)).encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:4]) >> 2


@dataclass(frozen=True, slots=True)
class Job:
    """One attempt at an episode. It can be pickled and played on another host that sees `folder`.

    `history` is an unfinished trajectory that goes on. `tokens` is what a voting arm may use.
    """

    item: Item
    condition: Condition
    attempt: int
    record: Path
    files: Path
    scratch: Path
    history: Trajectory | None = None
    tokens: int | None = None

    @property
    def sampling(self) -> Sampling:
        """The condition's, with a seed of its own for each item and repeat, the same in every arm.

        With one seed for all, chance would do the same to all items: they would go right and wrong
        together, and an interval over items would be far too narrow.
        """
        given = self.condition.sampling
        if given.seed is None:
            return given
        episode = self.item.episode
        seed = _seed_of(given.seed, episode.task_set, episode.item, episode.repeat)
        return replace(given, seed=seed)

    @property
    def metadata(self) -> dict[str, Any]:
        episode = self.item.episode
        return {
            "set": episode.task_set,
            "arm": episode.arm,
            "repeat": episode.repeat,
            "attempt": self.attempt,
            "content_key": self.item.content_key,
        }


class Executor(Protocol):
    """Where episodes are played: in this process, or spread over others."""

    async def play(self, job: Job, sink: EventSink) -> Trajectory:
        """Play to the end, everything recorded. `sink` hears the events, as far as they reach here.

        Raises:
            SandboxUnavailable, ImageError: no sandbox could be brought up.
            InputError: the problem's files cannot be used.
            RecordError: the record cannot be written.
            asyncio.CancelledError: after everything was collected, recorded and closed.
        """
        ...

    async def close(self) -> None: ...


OpenBox = Callable[[Condition], Awaitable[Sandbox]]
ModelFor = Callable[[Job], Model]


@dataclass(slots=True)
class Models:
    """Clients of a model, shared by its episodes; a script is played anew for each.

    A server gets one client for every `EPISODES_A_CLIENT` episodes: an HTTP client looks at all of
    its connections at each request, so that one for 200 would spend its time on that. In
    `scripted:FILE` the words {set}, {item}, {arm}, {mode} and {repeat} are filled in.
    """

    build: Callable[[Settings], Model]
    clients: int = 1
    _shared: dict[tuple[str, int], Model] = field(default_factory=dict)
    _given: int = 0

    def __call__(self, job: Job) -> Model:
        settings = job.condition.settings
        spec = settings.model or ""
        if not spec.startswith("scripted:"):
            return self._of(settings)
        episode, arm = job.item.episode, job.condition.arm
        words = (episode.task_set, episode.item, episode.arm, arm.mode, str(episode.repeat))
        for name, word in zip(PLACEHOLDERS, words, strict=True):
            spec = spec.replace(f"{{{name}}}", word)
        return self.build(replace(settings, model=spec))

    def check(self, settings: Settings) -> None:
        """Refuse a model that cannot be had before anything is begun."""
        spec = settings.model or ""
        if not spec.startswith("scripted:"):
            self._of(settings)
        elif not any(f"{{{name}}}" in spec for name in PLACEHOLDERS):
            self.build(settings)

    def _of(self, settings: Settings) -> Model:
        number = 0
        if (settings.model or "").startswith(SERVERS):
            number = self._given % self.clients
            self._given += 1
        key = settings.tool_calls, number
        if key not in self._shared:
            self._shared[key] = self.build(settings)
        return self._shared[key]

    async def close(self) -> None:
        for model in self._shared.values():
            await model.close()
        self._shared.clear()


def models_of_settings(concurrency: int = 1) -> Models:
    return Models(model_of, clients=-(-concurrency // EPISODES_A_CLIENT))


def opener(environ: Mapping[str, str], note: Callable[[str], None]) -> OpenBox:
    """Opens sandboxes as the conditions' settings say."""

    async def open_box(condition: Condition) -> Sandbox:
        box, _ = await open_computer(condition.settings, condition.policy, environ, note)
        return box

    return open_box


@dataclass(frozen=True, slots=True)
class LocalExecutor:
    """Plays episodes in this process. `clock` gives seconds since the epoch."""

    models: ModelFor
    open_box: OpenBox
    redactor: Redactor
    clock: Callable[[], float]

    async def play(self, job: Job, sink: EventSink) -> Trajectory:
        model = self.models(job)
        recorder = Recorder(job.record, redactor=self.redactor, clock=self.clock)
        try:
            return await self._play(job, model, recorder, sink)
        except asyncio.CancelledError:
            if not recorder.stopped:
                recorder(RolloutStopped(StopReason.CANCELLED))
            raise
        finally:
            await asyncio.to_thread(recorder.close)

    async def close(self) -> None:
        close = getattr(self.models, "close", None)
        if close is not None:
            await close()

    async def _play(
        self, job: Job, model: Model, recorder: Recorder, sink: EventSink
    ) -> Trajectory:
        condition, both = job.condition, fan_out(recorder, sink)
        task = task_for(condition.arm, job.item.task)
        if condition.arm.votes:
            return await vote(
                task,
                model=model,
                profile=condition.profile,
                sampling=_filled(job),
                tokens=job.tokens or 0,
                whole_text=condition.row.scorer in WHOLE_TEXT,
                sink=both,
                history=job.history,
                rollout_id=job.item.episode.stem,
                metadata=job.metadata,
            )
        common: dict[str, Any] = {
            "model": model,
            "profile": condition.profile,
            "budget": condition.budget,
            "sampling": job.sampling,
            "sink": both,
        }
        if condition.arm.mode == "llm":
            return await _roll(job, task, common)
        return await self._in_sandbox(job, task, common)

    async def _in_sandbox(self, job: Job, task: Any, common: dict[str, Any]) -> Trajectory:
        condition = job.condition
        await asyncio.to_thread(shutil.rmtree, job.files, ignore_errors=True)
        box = await self.open_box(condition)
        profile = relocated(condition.profile, box)
        state = job.scratch / f"{job.item.episode.stem}.state"
        common |= {
            "sandbox": box,
            "profile": profile,
            "tools": tools_of(condition.arm, profile, condition.row, state),
            "output_dir": job.files,
        }
        if job.history is not None:
            common["spare"] = lambda: self.open_box(condition)
        try:
            return await _roll(job, task, common)
        finally:
            await box.close()
            with suppress(OSError):  # only a forgetting arm has one
                state.unlink()


async def _roll(job: Job, task: Any, common: dict[str, Any]) -> Trajectory:
    if job.history is not None:
        return await resume_rollout(job.history, **common)
    stem = job.item.episode.stem
    return await run_rollout(task, rollout_id=stem, metadata=job.metadata, **common)


def _filled(job: Job) -> Sampling:
    """The sampling with what the profile fills in, as the rollout does it."""
    given, profile = job.sampling, job.condition.profile
    return replace(
        given,
        temperature=profile.temperature if given.temperature is None else given.temperature,
        reply_tokens=profile.reply_tokens if given.reply_tokens is None else given.reply_tokens,
    )
