"""Experiments without a computer: fake sandboxes, scripted models, and a run directory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sandlot.bench.arms import arms_of
from sandlot.bench.episodes import Job, LocalExecutor
from sandlot.bench.grading import Grader, GradingOptions
from sandlot.bench.plan import BenchPlan, Condition
from sandlot.bench.records import Episode
from sandlot.bench.runner import BenchWatch, Ground, run_bench
from sandlot.bench.store import BenchDirectory
from sandlot.core.redact import Redactor
from sandlot.core.types import Message, Score, Task, Usage
from sandlot.models.base import Completion, Model
from sandlot.models.scripted import Reply, ScriptedModel, edit, submit
from sandlot.sandbox.fake import FakeSandbox
from sandlot.scoring.base import Candidate, ScoringTools
from sandlot.settings import resolve
from sandlot.tasks.base import LoadedSet, Source, TaskSet

ANSWER_FILE = "/testbed/answer.txt"


def task(name: str, target: str = "42", **fields: Any) -> Task:
    return Task(name, f"What is {name}?", target=target, domain="math", **fields)


def task_set(*tasks: Task, name: str = "tiny", **fields: Any) -> LoadedSet:
    row = TaskSet(name, "math", Source("file", "set.jsonl"), fields.pop("scorer", "text"), **fields)
    return LoadedSet(row, tasks or (task("a"), task("b")), f"digest of {name}")


def plan(folder: Path, *sets: LoadedSet, arms: str = "both", **fields: Any) -> BenchPlan:
    arguments = {"model": "scripted:none.jsonl", "backend": "fake", "runs": str(folder / "runs")}
    settings = resolve(
        {**arguments, **fields.pop("settings", {})},
        environ={"HOME": str(folder)},
        directory=folder,
    )
    fields.setdefault("reference", False)
    return BenchPlan(sets or (task_set(),), arms_of(arms), settings, **fields)


def answering(text: str) -> list[Reply]:
    """Writes an answer file and submits, 110 and 120 tokens."""
    return [used(edit("create", ANSWER_FILE, file_text=text)), used(submit(), 110)]


def used(message: Message | str, prompt: int = 100, completion: int = 10, **fields: Any) -> Reply:
    said = Message.assistant(message) if isinstance(message, str) else message
    finish = "tool_calls" if said.tool_calls else "stop"
    return Completion(said, Usage(prompt, completion, **fields), finish)


Script = Callable[[Job], Sequence[Reply]]


def perfect(job: Job) -> Sequence[Reply]:
    """Gives the truth in every arm."""
    truth = str(job.item.task.target)
    if job.condition.arm.mode == "sandbox":
        return answering(f"ANSWER: {truth}\n")
    return [used(f"Because.\nANSWER: {truth}")] * 9


@dataclass(slots=True)
class Experiment:
    """A run on fake ground. `scripts` gives the replies of an episode, `made` its models."""

    plan: BenchPlan
    script: Script = perfect
    box: Callable[[Condition], FakeSandbox] = lambda condition: FakeSandbox(policy=condition.policy)
    load: Callable[..., Any] | None = None
    score_s: float = 60.0
    models: dict[Episode, list[ScriptedModel]] = field(default_factory=dict)
    boxes: list[FakeSandbox] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    states: list[Any] = field(default_factory=list)
    controlled: list[str] = field(default_factory=list)
    wrapped: Callable[[Job, Model], Model] = lambda job, model: model

    async def run(self, resume: BenchDirectory | None = None, **fields: Any) -> BenchDirectory:
        watch = BenchWatch(self.notes.append, self.states.append)
        made = replace(self.plan, **fields)
        return await run_bench(made, watch, resume=resume, environ={}, ground=self.ground)

    def ground(self, plan: BenchPlan, directory: BenchDirectory, redactor: Redactor) -> Ground:
        tools = ScoringTools(cache_dir=directory.path / "cache", environ={})
        load = {} if self.load is None else {"load": self.load}
        rows = [loaded.row for loaded in plan.sets]
        options = GradingOptions(reference=False, timeout_s=self.score_s)
        grader = Grader(rows, tools, options, **load)
        executor = LocalExecutor(self.model, self.open_box, redactor, lambda: 0.0)
        return Ground(executor, grader, self.controls, self.preflight)

    def model(self, job: Job) -> Model:
        """A script is played anew for each attempt; one that goes on is where it was."""
        model = ScriptedModel(*self.script(job))
        if job.history is not None:
            model._next = len(job.history.turns)
        self.models.setdefault(job.item.episode, []).append(model)
        return self.wrapped(job, model)

    async def open_box(self, condition: Condition) -> FakeSandbox:
        box = self.box(condition)
        self.boxes.append(box)
        return box

    async def controls(
        self, conditions: Sequence[Condition], scratch: Path
    ) -> list[dict[str, Any]]:
        self.controlled += [condition.arm.name for condition in conditions]
        return [{"arm": name} for name in self.controlled]

    async def preflight(self, conditions: Sequence[Condition]) -> dict[str, Any]:
        return {}

    def asked(self, episode: Episode) -> int:
        """How many replies an episode's models gave in this process."""
        return sum(len(model.requests) for model in self.models.get(episode, []))


def values(directory: BenchDirectory) -> dict[tuple[str, str, int], float | None]:
    return {
        (episode.item, episode.arm, episode.repeat): record.score.value
        for (episode, _), record in directory.scores().items()
    }


@dataclass(slots=True)
class StubScorer:
    """Scores by a function; what it raises is raised."""

    verdict: Callable[[Candidate], float]
    name: str = "stub"
    version: str = "1"

    async def score(self, candidate: Candidate) -> Score:
        return Score(candidate.task.id, self.name, self.version, self.verdict(candidate))

    async def close(self) -> None: ...


def stub(verdict: Callable[[Candidate], float]) -> Callable[..., StubScorer]:
    return lambda name, options, tools: StubScorer(verdict)
