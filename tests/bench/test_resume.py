"""Going on with a run: nothing finished is lost or run twice, whatever ended it."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from experiments import Experiment, perfect, plan, stub, task, task_set, used, values

from sandlot.bench.grading import Grader, GradingOptions, rescore
from sandlot.bench.records import Episode
from sandlot.bench.store import BenchDirectory
from sandlot.core.errors import ConfigError, ModelError
from sandlot.core.jsonl import read_jsonl
from sandlot.core.redact import Redactor
from sandlot.core.types import StopReason
from sandlot.models.base import Completion, Model
from sandlot.models.scripted import edit, submit
from sandlot.scoring.base import ScoringTools

A_LLM, A_BOX = Episode("tiny", "a", "llm", 0), Episode("tiny", "a", "sandbox", 0)


def reopened(directory: BenchDirectory) -> BenchDirectory:
    return BenchDirectory.open(directory.path)


async def test_a_finished_run_has_nothing_left_to_do(tmp_path: Path) -> None:
    experiment = Experiment(plan(tmp_path))
    directory = await experiment.run()
    before = {file: file.read_bytes() for file in directory.path.glob("*.jsonl")}
    again = Experiment(plan(tmp_path))
    await again.run(reopened(directory))
    assert again.models == {}
    assert again.controlled == []
    assert {file: file.read_bytes() for file in directory.path.glob("*.jsonl")} == before


async def test_only_what_failed_is_run_again(tmp_path: Path) -> None:
    def script(job):  # type: ignore[no-untyped-def]
        return [ModelError("down")] if job.item.episode == A_LLM else perfect(job)

    directory = await Experiment(plan(tmp_path, attempts=1), script).run()
    again = Experiment(plan(tmp_path))
    await again.run(reopened(directory))
    assert list(again.models) == [A_LLM]
    assert set(values(directory).values()) == {1.0}
    assert directory.episodes()[A_LLM].attempt == 2


async def test_failures_are_run_again_by_class(tmp_path: Path) -> None:
    def script(job):  # type: ignore[no-untyped-def]
        if job.item.episode.arm == "llm":
            return [ModelError("down")]
        raise ZeroDivisionError

    directory = await Experiment(plan(tmp_path, attempts=1), script).run()
    again = Experiment(plan(tmp_path, retry=("crash",)))
    await again.run(reopened(directory))
    assert {episode.arm for episode in again.models} == {"sandbox"}


async def test_a_changed_problem_is_run_again_with_force_and_the_rest_is_kept(
    tmp_path: Path,
) -> None:
    directory = await Experiment(plan(tmp_path)).run()
    loaded = replace(task_set(task("a", "43"), task("b")), digest="another digest")
    changed = plan(tmp_path, loaded)
    with pytest.raises(ConfigError, match=r"set tiny: was digest of t, now another dig|set tiny"):
        await Experiment(changed).run(reopened(directory))
    again = Experiment(changed)
    await again.run(reopened(directory), force=True)
    assert {episode.item for episode in again.models} == {"a"}
    assert any("resumed with other settings" in note for note in again.notes)
    assert "43" in (directory.episodes()[A_LLM].answer or "")


async def test_other_settings_are_refused_and_named_before_anything_starts(
    tmp_path: Path,
) -> None:
    directory = await Experiment(plan(tmp_path)).run()
    other = plan(tmp_path, arms="sandbox", settings={"temperature": 0.7})
    with pytest.raises(ConfigError) as raised:
        await Experiment(other).run(reopened(directory))
    assert "temperature: was the server's own, now 0.7" in str(raised.value)
    assert "arms: was ['llm', 'sandbox'], now ['sandbox']" in str(raised.value)
    assert "--force" in str(raised.value)


class Interrupting:
    """Cancels the run when a reply is asked for in a certain episode."""

    def __init__(self, model: Model, run: asyncio.Task[object]) -> None:
        self.name, self.sees_images = model.name, False
        self._run = run

    async def complete(self, *args: object, **fields: object) -> Completion:
        self._run.cancel()
        await asyncio.sleep(3600)
        raise AssertionError("unreachable")

    async def close(self) -> None: ...


class After:
    """The first replies of one model, then another."""

    def __init__(self, first: Model, count: int, then: Model) -> None:
        self.name, self.sees_images = first.name, False
        self._first, self._count, self._then = first, count, then

    async def complete(self, *args: object, **fields: object) -> Completion:
        self._count -= 1
        model = self._first if self._count >= 0 else self._then
        return await model.complete(*args, **fields)  # type: ignore[arg-type]

    async def close(self) -> None: ...


async def interrupted(experiment: Experiment, episode: Episode, replies: int) -> BenchDirectory:
    """Run it until an episode has had so many replies, then cancel."""
    task = asyncio.current_task()
    assert task is not None

    def wrapped(job, model):  # type: ignore[no-untyped-def]
        if job.item.episode != episode:
            return model
        return After(model, replies, Interrupting(model, work))

    experiment.wrapped = wrapped
    work = asyncio.ensure_future(experiment.run())
    with pytest.raises(asyncio.CancelledError):
        await work
    (path,) = Path(experiment.plan.settings.runs).iterdir()
    return BenchDirectory.open(path)


async def test_ctrl_c_keeps_what_is_finished_and_the_rest_goes_on_by_replay(
    tmp_path: Path,
) -> None:
    made = plan(tmp_path, concurrency=1)
    directory = await interrupted(Experiment(made), A_BOX, 1)
    assert set(directory.episodes()) == {A_LLM}
    partial = directory.trajectory(A_BOX)
    assert (len(partial.turns), partial.stop_reason) == (1, StopReason.CANCELLED)
    again = Experiment(made)
    await again.run(directory)
    assert A_LLM not in again.models
    assert again.asked(A_BOX) == 1  # only the submit that was missing
    record = directory.episodes()[A_BOX]
    assert (record.continued, record.restarted, record.meters.turns) == (1, 0, 2)
    assert set(values(directory).values()) == {1.0}


async def test_what_differs_on_replay_starts_over_and_is_counted(tmp_path: Path) -> None:
    made = plan(tmp_path, task_set(task("a")), arms="sandbox")
    directory = await interrupted(Experiment(made), A_BOX, 1)
    file = directory.trajectory_path(A_BOX)
    assert "reated" in file.read_text()
    lines = file.read_text().splitlines(True)
    changed = [x.replace("reated", "REATED") if "tool_finished" in x else x for x in lines]
    file.write_text("".join(changed))
    skipped = used("the reply that was recorded")
    again = Experiment(made, lambda job: [skipped, *perfect(job)])
    await again.run(directory)
    record = directory.episodes()[A_BOX]
    assert (record.continued, record.restarted, record.meters.turns) == (0, 1, 2)
    assert len(again.boxes) == 2  # the repeated commands left their traces in the first
    assert values(directory) == {("a", "sandbox", 0): 1.0}


async def test_an_interrupted_vote_goes_on_after_its_replies(tmp_path: Path) -> None:
    made = plan(tmp_path, task_set(task("a")), arms="both,llm-token-matched", concurrency=1)
    votes = Episode("tiny", "a", "llm-token-matched", 0)
    directory = await interrupted(Experiment(made), votes, 1)
    again = Experiment(made)
    await again.run(directory)
    assert again.asked(votes) == 2  # 110 tokens each: three replies reach the sandbox arm's 230
    assert directory.episodes()[votes].meters.turns == 3
    assert directory.episodes()[votes].continued == 1


async def test_an_episode_that_had_ended_is_recorded_without_its_model(tmp_path: Path) -> None:
    """Killed between the last event and the line that says so."""
    made = plan(tmp_path)
    directory = await Experiment(made).run()
    for name in ("episodes.jsonl", "scores.jsonl"):
        file = directory.path / name
        kept = [line for line in file.read_text().splitlines(True) if '"a"' not in line]
        file.write_text("".join(kept))
    again = Experiment(made)
    await again.run(reopened(directory))
    assert again.models == {}
    assert directory.episodes()[A_BOX].answer == "ANSWER: 42\n"
    assert set(values(directory).values()) == {1.0}
    assert len(values(directory)) == 4


async def test_a_missing_score_alone_is_made_up_for(tmp_path: Path) -> None:
    made = plan(tmp_path)
    directory = await Experiment(made).run()
    (directory.path / "scores.jsonl").unlink()
    again = Experiment(made)
    await again.run(reopened(directory))
    assert again.models == {}
    assert set(values(directory).values()) == {1.0}


async def test_a_damaged_trajectory_is_set_aside_and_the_episode_starts_over(
    tmp_path: Path,
) -> None:
    made = plan(tmp_path, concurrency=1)
    directory = await interrupted(Experiment(made), A_BOX, 1)
    file = directory.trajectory_path(A_BOX)
    file.write_bytes(b"\x00garbage\n" + file.read_bytes())
    again = Experiment(made)
    await again.run(directory)
    assert directory.episodes()[A_BOX].failure is None
    assert file.with_suffix(".damaged").is_file()


async def test_scoring_again_needs_neither_model_nor_sandbox(tmp_path: Path) -> None:
    def script(job):  # type: ignore[no-untyped-def]
        if job.item.episode == A_LLM:
            return [ModelError("down")]
        return perfect(job)

    directory = await Experiment(plan(tmp_path, attempts=1), script, load=stub(lambda c: 0.0)).run()
    rows = [task_set().row]
    tools = ScoringTools(tmp_path / "cache")
    grader = Grader(rows, tools, GradingOptions(reference=False), stub(lambda c: 0.25))
    opened = reopened(directory).writing(Redactor())
    done = await rescore(opened, grader)
    await grader.close()
    opened.close()
    assert done == 4
    found = values(directory)
    assert found.pop(("a", "llm", 0)) is None
    assert set(found.values()) == {0.25}
    assert directory.scores()[A_LLM, "stub"].score.missing == "model_error"


# Killed for real.

_ITEMS, _REPLIES = 6, {"llm": 1, "sandbox": 3}


def write_experiment(folder: Path) -> None:
    rows = [{"id": f"i{n}", "prompt": "What is 6 * 7?", "target": "42"} for n in range(_ITEMS)]
    (folder / "set.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = '[source]\nkind = "file"\npath = "set.jsonl"\n'
    (folder / "set.toml").write_text(f'name = "tiny"\ndomain = "math"\nscorer = "text"\n{source}')
    steps = [
        edit("create", "/testbed/notes.txt", file_text="6 * 7"),
        edit("create", "/testbed/answer.txt", file_text="ANSWER: 42\n"),
        submit(),
    ]
    lines = [
        {"tool_calls": [{"name": c.name, "arguments": c.arguments} for c in step.tool_calls]}
        for step in steps
    ]
    for name, script in (("sandbox", lines), ("llm", [{"text": "ANSWER: 42"}])):
        shown = [{**line, "delay_s": 0.06} for line in script]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in shown))


def started(folder: Path, *more: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "sandlot.cli.main", "bench", "-c", "2", "--display", "none", *more],
        cwd=folder,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "XDG_RUNTIME_DIR": str(folder),
            "SANDLOT_BACKEND": "fake",
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def first_run(folder: Path) -> Path | None:
    found = list((folder / "runs").glob("*/run.toml"))
    return found[0].parent if found else None


@pytest.mark.slow
def test_kill_9_at_a_random_moment_loses_no_finished_item_and_runs_none_twice(
    tmp_path: Path,
) -> None:
    write_experiment(tmp_path)
    dice = random.Random(9)
    process = started(tmp_path, "set.toml", "-m", "scripted:{mode}.jsonl", "--no-reference")
    deadline = time.monotonic() + 30
    while first_run(tmp_path) is None and time.monotonic() < deadline:
        time.sleep(0.02)
    run = first_run(tmp_path)
    assert run is not None
    finished: set[Episode] = set()
    for _ in range(5):
        time.sleep(dice.uniform(0.0, 0.35))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        now = set(BenchDirectory.open(run).episodes())
        assert finished <= now, "a finished episode is gone"
        finished = now
        records = len(list(BenchDirectory.open(run).attempts()))
        process = started(tmp_path, "--resume", str(run), "--no-reference")
        busy = time.monotonic() + 10
        while process.poll() is None and time.monotonic() < busy:
            if len(list(BenchDirectory.open(run).attempts())) > records:
                break
            time.sleep(0.01)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said.decode()
    directory = BenchDirectory.open(run)
    ends = Counter(record.episode for record in directory.attempts())
    assert len(ends) == 2 * _ITEMS
    assert set(ends.values()) == {1}, "an episode was run twice"
    assert set(values(directory).values()) == {1.0}
    for episode, record in directory.episodes().items():
        replies = [
            line
            for line in read_jsonl(directory.trajectory_path(episode))
            if line["event"] == "reply_received"
        ]
        expected = _REPLIES[episode.arm]
        assert len(replies) == expected or record.restarted, "a reply was paid for twice"
