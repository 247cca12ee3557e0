"""A training run on disk: what a kill, a full disk or a second process cannot spoil."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from sandlot.core.errors import ConfigError, InputError, RecordError
from sandlot.core.events import (
    Event,
    FilesCollected,
    MessageAdded,
    ReplyReceived,
    RolloutStarted,
    RolloutStopped,
    ToolFinished,
    decode_event,
    fold,
)
from sandlot.core.jsonl import read_jsonl
from sandlot.core.types import (
    Message,
    StopReason,
    Task,
    TextPart,
    ToolCall,
    ToolResult,
    Trajectory,
    Turn,
    Usage,
)
from sandlot.train.base import Episode
from sandlot.train.config import TrainConfig, load_config, read_config
from sandlot.train.directory import KEPT_TRAJECTORIES, TrainDirectory

NOW = datetime(2026, 1, 2, 3, 4, 5)


def config(steps: int = 4) -> TrainConfig:
    table = {
        "name": "a run",
        "model": {"source": "local"},
        "tasks": {"train": {"generator": "errands"}, "scorer": "text"},
        "train": {"steps": steps},
    }
    return read_config(table, "test")


def made(parent: Path) -> TrainDirectory:
    return TrainDirectory.create(parent, config(), {"versions": {"python": "3"}}, NOW)


def trajectory(task_id: str = "t1") -> Trajectory:
    call = ToolCall("call_0", "execute_bash", '{"command": "ls"}')
    result = ToolResult(call, Message.tool("call_0", TextPart("a.txt\n")), True, 0.5)
    reply = Message.assistant("", call, reasoning=None)
    events: list[Event] = [
        RolloutStarted("r1", Task(task_id, "List.", target="a.txt"), "sandbox", "policy"),
        MessageAdded(Message.user("List.")),
        ReplyReceived(Turn(0, reply, Usage(3, 2), "tool_calls", 0.25, 0.0)),
        ToolFinished(0, result),
        FilesCollected((), (), "a.txt"),
        RolloutStopped(StopReason.SUBMITTED, "", 1.0),
    ]
    return fold(events)


def episode(group: str, task_id: str = "t1", reward: float | None = 1.0) -> Episode:
    return Episode(group, task_id, (), reward, None if reward is not None else "deadline")


# --- manifest and configuration ----------------------------------------------------------------


def test_a_run_holds_its_configuration_for_people_and_for_going_on(tmp_path: Path) -> None:
    run = made(tmp_path)
    assert run.path.name == "2026-01-02T03-04-05-a-run"
    assert load_config(run.path / "config.toml") == config()
    assert run.manifest()["versions"] == {"python": "3"}
    assert TrainDirectory.open(run.path, config()).path == run.path
    assert made(tmp_path).path.name == "2026-01-02T03-04-05-a-run-2"


def test_a_run_does_not_go_on_with_another_configuration_unless_forced(tmp_path: Path) -> None:
    run = made(tmp_path)
    with pytest.raises(ConfigError, match=r"train\.steps: was 4, is 9.*--force"):
        TrainDirectory.open(run.path, config(9))
    forced = TrainDirectory.open(run.path, config(9), force=True)
    forced.adopt(config(9), {"started": "later"})
    manifest = run.manifest()
    assert manifest["config"]["train"]["steps"] == 9
    assert manifest["changes"] == [{"values": ["train.steps: was 4, is 9"], "started": "later"}]
    assert load_config(run.path / "config.toml").train.steps == 9
    forced.adopt(config(9), {"started": "last"})
    assert len(run.manifest()["changes"]) == 1


def test_a_folder_that_is_no_run_or_of_another_version_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no training run"):
        TrainDirectory.open(tmp_path, None)
    run = made(tmp_path)
    (run.path / "manifest.json").write_text('{"version": 99}')
    with pytest.raises(InputError, match="another version"):
        TrainDirectory.open(run.path, None)
    for other in ("[]", '{"name": "an adapter", "base": {}}'):
        (run.path / "manifest.json").write_text(other)
        with pytest.raises(InputError, match=r"is no training run: its manifest\.json"):
            TrainDirectory.open(run.path, None)


def test_only_one_process_trains_in_a_run(tmp_path: Path) -> None:
    run = made(tmp_path)
    with run.alone(), pytest.raises(RecordError, match="another process"), run.alone():
        pass
    with run.alone():
        pass


# --- figures -----------------------------------------------------------------------------------


def test_figures_of_steps_that_no_checkpoint_holds_are_forgotten(tmp_path: Path) -> None:
    run = made(tmp_path)
    for phase, step in (("warmstart", 1), ("warmstart", 2), ("train", 1), ("train", 2)):
        run.add_step(phase, step, {"loss": float(step)})
    run.cut_after("train", 1)
    assert [(line["phase"], line["step"]) for line in run.steps()] == [
        ("warmstart", 1),
        ("warmstart", 2),
        ("train", 1),
    ]
    run.cut_after("warmstart", 1)
    assert [line["step"] for line in run.steps()] == [1]


def test_each_step_says_how_much_memory_the_process_has_had(tmp_path: Path) -> None:
    run = made(tmp_path)
    told: list[tuple[str, int]] = []
    run.told = lambda phase, step, figures: told.append((phase, step))
    run.add_step("train", 1, {"reward": 0.5})
    (line,) = run.steps("train")
    assert line["figures"]["reward"] == 0.5
    assert 1 < line["figures"]["memory_mib"] < 1e6
    assert told == [("train", 1)]


def test_a_torn_last_line_of_figures_is_passed_over(tmp_path: Path) -> None:
    run = made(tmp_path)
    run.add_step("train", 1, {"reward": 0.5})
    with (run.path / "steps.jsonl").open("a") as file:
        file.write('{"phase": "train", "st')
    assert [line["step"] for line in run.steps()] == [1]
    run.add_step("train", 2, {"reward": 0.5})
    assert [line["step"] for line in run.steps()] == [1, 2]


# --- rollouts to look at -----------------------------------------------------------------------


def test_a_kept_rollout_is_the_same_trajectory_with_what_it_was_worth(tmp_path: Path) -> None:
    """The form is that of a run's trajectory.jsonl, so whatever reads those reads these."""
    run = made(tmp_path)
    run.keep_trajectory(trajectory(), episode("3.0.t1", reward=0.5))
    lines = list(read_jsonl(run.path / "trajectories" / "step-000003.1.jsonl"))
    read = fold(event for line in lines if (event := decode_event(line)) is not None)
    assert read.metadata == {"group": "3.0.t1", "reward": 0.5, "missing": None}
    assert replace(read, metadata={}) == trajectory()
    times = [line["at"] for line in lines]
    assert times == sorted(times)
    assert 0.7 < times[-1] - times[0] < 0.8  # a quarter second of model and a half of the tool


def test_of_each_step_a_few_rollouts_are_kept_one_a_task(tmp_path: Path) -> None:
    run = made(tmp_path)
    for task in range(KEPT_TRAJECTORIES + 3):
        for _ in range(2):
            run.keep_trajectory(trajectory(f"t{task}"), episode(f"1.{task}.t{task}", f"t{task}"))
    run.keep_trajectory(trajectory(), episode("held-out"))
    run.keep_trajectory(trajectory(), episode("efficient"))
    names = sorted(path.name for path in (run.path / "trajectories").iterdir())
    kept = [f"step-000001.{number + 1}.jsonl" for number in range(KEPT_TRAJECTORIES)]
    assert names == ["efficient.1.jsonl", "held-out-000000.1.jsonl", *kept]


def test_rollouts_of_evaluations_are_told_apart_by_the_steps_before_them(tmp_path: Path) -> None:
    run = made(tmp_path)
    run.add_step("train", 10, {})
    run.keep_trajectory(trajectory(), episode("held-out"))
    again = TrainDirectory(run.path)
    again.cut_after("train", 5)
    again.keep_trajectory(trajectory(), episode("held-out"))
    names = sorted(path.name for path in (run.path / "trajectories").iterdir())
    assert names == ["held-out-000005.1.jsonl", "held-out-000010.1.jsonl"]


def test_whoever_watches_hears_of_every_rollout(tmp_path: Path) -> None:
    run = made(tmp_path)
    rewards: list[float | None] = []
    run.told = lambda phase, step, figures: rewards.append(figures["reward"])
    run.keep_trajectory(trajectory(), episode("1.0.t1"))
    run.keep_trajectory(trajectory(), episode("1.0.t1", reward=None))
    assert rewards == [1.0, None]


def test_what_cannot_be_made_in_a_run_is_told_as_such(tmp_path: Path) -> None:
    run = made(tmp_path)
    (run.path / "records").touch()
    (run.path / ".lock").mkdir()
    with pytest.raises(RecordError, match=r"records: cannot be written: File exists"):
        run.add_records(1, [])
    with pytest.raises(RecordError, match=r"\.lock: cannot be written"), run.alone():
        pass


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    run = made(tmp_path)
    before = (run.path / "manifest.json").read_text()
    (run.path / ".manifest.json.draft").mkdir()
    with pytest.raises(RecordError, match=r"manifest\.json: cannot be written"):
        run.adopt(config(9), {})
    assert json.loads((run.path / "manifest.json").read_text()) == json.loads(before)
