"""Commands of a record, run again; and other models that go on from one of its turns."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from sandlot.agent.prompts import load_profile
from sandlot.agent.rollout import run_rollout
from sandlot.bench.replay import branch, check_branch, replay
from sandlot.cli.main import app
from sandlot.core.errors import ConfigError, DeathCause, SandboxDied
from sandlot.core.events import (
    MessageAdded,
    RolloutContinued,
    RolloutStarted,
    ToolFinished,
    encode_event,
)
from sandlot.core.redact import Redactor
from sandlot.core.store import Recorder, RunDirectory
from sandlot.core.types import Message, Task, Trajectory
from sandlot.models.scripted import ScriptedModel, bash, call, calls, edit, say, submit
from sandlot.sandbox.fake import FakeSandbox, Response
from sandlot.tools import default_tools

PROFILE = load_profile("general")
OUTPUTS: dict[str, Response] = {"one": "1\n", "two": "2\nand\n3\n", "cat in/a": "A\n"}
NOW = datetime(2026, 11, 22, 14, 30)


def script() -> ScriptedModel:
    return ScriptedModel(
        calls(bash("one"), edit("create", "/testbed/n.txt", file_text="N\n")),
        say("thinking"),
        call("execute_bash", "{broken"),
        calls(bash("two"), edit("view", "/testbed/n.txt")),
        calls(submit(), bash("one")),
    )


async def recorded(path: Path | None = None, **options: Any) -> Trajectory:
    task = Task("t1", "Do it.", {"a": b"A\n"})
    options = {"model": script(), "sandbox": FakeSandbox(OUTPUTS), **options}
    if path is None:
        return await run_rollout(task, rollout_id="old", **options)
    with Recorder(path, redactor=Redactor(), clock=lambda: 1.0) as recorder:
        return await run_rollout(task, rollout_id="old", sink=recorder, **options)


async def again(trajectory: Trajectory, outputs: dict[str, Response], **options: Any) -> Any:
    box = FakeSandbox(outputs)
    done = await replay(trajectory, sandbox=box, tools=default_tools(), profile=PROFILE, **options)
    return done, box


async def test_the_same_commands_that_tell_the_same_are_the_same() -> None:
    trajectory = await recorded()
    done, box = await again(trajectory, OUTPUTS)
    assert (done.turns, done.calls, done.not_run) == (5, 6, 1)
    assert done.difference is None
    assert box.commands == ["one", "two"]


async def test_the_first_observation_that_differs_is_shown_as_a_diff() -> None:
    trajectory = await recorded()
    done, box = await again(trajectory, {"one": "1\n", "two": "2\nor\n3\n"})
    found = done.difference
    assert (found.turn, found.call, found.tool) == (3, 0, "execute_bash")
    assert json.loads(found.arguments) == {"command": "two"}
    lines = found.unified().splitlines()
    assert lines[:2] == ["--- recorded", "+++ now"]
    assert [line for line in lines[2:] if line[0] in "+-"] == ["-and", "+or"]
    assert (done.turns, done.calls) == (3, 4)
    assert box.commands == ["one", "two"]


async def test_the_turns_left_of_a_record_are_no_part_of_the_diff() -> None:
    trajectory = await recorded(model=ScriptedModel(bash("one"), submit()))
    done, _ = await again(trajectory, {"one": "9\n"})
    assert "turns left" in trajectory.turns[0].tool_results[0].message.text
    assert "turns left" not in done.difference.recorded


async def test_a_call_that_worked_and_now_fails_differs_though_its_text_does_not() -> None:
    trajectory = await recorded()
    first = trajectory.turns[0]
    failed = replace(first.tool_results[0], ok=False)
    changed = replace(first, tool_results=(failed, *first.tool_results[1:]))
    done, _ = await again(replace(trajectory, turns=(changed,)), OUTPUTS)
    lines = done.difference.unified().splitlines()
    assert lines[-2:] == ["-[the call failed]", "+[the call worked]"]


async def test_a_sandbox_that_dies_on_the_way_is_a_difference() -> None:
    trajectory = await recorded()
    died = SandboxDied(DeathCause.OUT_OF_MEMORY)
    done, _ = await again(trajectory, {**OUTPUTS, "two": died})
    assert "out_of_memory" in done.difference.now


async def test_it_stops_before_the_turn_that_is_named() -> None:
    trajectory = await recorded()
    seen: list[int] = []
    done, box = await again(
        trajectory, {"one": "1\n"}, until=3, on_turn=lambda turn: seen.append(turn.index)
    )
    assert done.difference is None
    assert seen == [0, 1, 2]
    assert box.commands == ["one"]


async def test_a_branch_holds_what_was_before_its_turn_and_says_where_it_is_from(
    tmp_path: Path,
) -> None:
    record = tmp_path / "old.jsonl"
    trajectory = await recorded(record, metadata={"seed": 7})
    directory = branch(trajectory, record, 3, model="new", parent=tmp_path, now=NOW)
    new = RunDirectory.open(directory.path).trajectory()
    assert new.id == directory.path.name
    assert new.model == "new"
    assert dict(new.metadata) == {
        "seed": 7,
        "branched_from": "old",
        "branch_turn": 3,
        "branch_model": "scripted",
        "branches": 1,
    }
    assert new.turns == trajectory.turns[:3]
    assert new.messages == trajectory.messages[: len(new.messages)]
    assert trajectory.messages[len(new.messages)] == trajectory.turns[3].reply
    assert new.stop_reason is None
    second = branch(new, directory.trajectory_path, 1, model="x", parent=tmp_path, now=NOW)
    assert second.trajectory().metadata["branches"] == 2


async def test_a_branch_keeps_nothing_of_before_a_new_start(tmp_path: Path) -> None:
    record = tmp_path / "old.jsonl"
    trajectory = await recorded(record)
    start = encode_event(RolloutContinued("restart"), 2.0)
    asked = encode_event(MessageAdded(Message.user("anew")), 2.0)
    with record.open("a") as out:
        out.write(json.dumps(start) + "\n" + json.dumps(asked) + "\n")
    whole = replace(trajectory, messages=(Message.user("anew"),), turns=())
    directory = branch(whole, record, 0, model="new", parent=tmp_path, now=NOW)
    events = list(directory.events())
    assert isinstance(events[0], RolloutStarted)
    assert not any(isinstance(event, ToolFinished) for event in events)
    assert [message.text for message in directory.trajectory().messages] == ["anew"]


async def test_a_turn_from_which_nothing_can_go_on_is_refused() -> None:
    trajectory = await recorded()
    check_branch(trajectory, 0)
    check_branch(trajectory, 4)
    with pytest.raises(ConfigError, match="had submitted before"):
        check_branch(trajectory, 5)
    for turn in (-1, 6):
        with pytest.raises(ConfigError, match="has turns 0 to 4"):
            check_branch(trajectory, turn)
    with pytest.raises(ConfigError, match="had no sandbox"):
        check_branch(replace(trajectory, mode="llm"), 0)


# The command, on the double: every command gives 127 there, files are real to it.


def write_script(path: Path, *commands: str) -> Path:
    replies = [{"name": "execute_bash", "arguments": {"command": each}} for each in commands]
    answer = {"command": "create", "path": "/testbed/output/answer.txt", "file_text": path.stem}
    last = [{"name": "str_replace_editor", "arguments": answer}, {"name": "submit"}]
    lines = [{"tool_calls": [reply]} for reply in replies] + [{"tool_calls": last}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


Command = Callable[..., Result]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    runs = ["--runs", str(tmp_path / "runs"), "--display", "none"]

    def invoke(*words: str) -> Result:
        return CliRunner().invoke(app, [*words, *runs])

    script = write_script(tmp_path / "first.jsonl", "a", "b", "c")
    done = invoke(
        "run", "Do it.", "-m", f"scripted:{script}", "--backend", "fake", "--image", "host"
    )
    assert done.exit_code == 0, done.output
    return invoke


def newest(tmp_path: Path) -> RunDirectory:
    return RunDirectory.open(
        max((tmp_path / "runs").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    )


def test_the_command_tells_that_all_is_the_same(command: Command) -> None:
    done = command("replay", "last")
    assert done.exit_code == 0, done.output
    assert done.stdout == "the same: 5 calls in 4 turns\n"
    assert json.loads(command("replay", "last", "--json").stdout)["same"] is True


def test_the_command_shows_the_difference_and_exits_with_1(
    command: Command, tmp_path: Path
) -> None:
    record = newest(tmp_path).trajectory_path
    lines = record.read_text().splitlines(keepends=True)
    first = next(n for n, line in enumerate(lines) if '"tool_finished"' in line)
    lines[first] = lines[first].replace("[exit code 127]", "[exit code 3]")
    record.write_text("".join(lines))
    done = command("replay", "last")
    assert done.exit_code == 1
    assert "-[exit code 3]\n+[exit code 127]" in done.stdout
    assert "turn 0, call 0 (execute_bash) gave something else" in done.stderr
    told = json.loads(command("replay", "last", "--json").stdout)
    assert (told["same"], told["difference"]["turn"]) == (False, 0)
    # Nothing is asked of a model where the way to its turn is another one.
    other = write_script(tmp_path / "other.jsonl")
    refused = command("replay", "last", "--from", "2", "-m", f"scripted:{other}")
    assert refused.exit_code == 1
    assert "no branch was made" in refused.stderr
    assert len(list((tmp_path / "runs").iterdir())) == 1


def test_a_difference_in_a_continued_run_is_explained(command: Command, tmp_path: Path) -> None:
    look = {"command": "view", "path": "/testbed/n.txt"}
    made = [{"name": "str_replace_editor", "arguments": look}, {"name": "submit"}]
    note = {"command": "create", "path": "/testbed/n.txt", "file_text": "N"}
    script = tmp_path / "first.jsonl"
    lines = script.read_text().splitlines()
    lines.insert(0, json.dumps({"tool_calls": [{"name": "str_replace_editor", "arguments": note}]}))
    (tmp_path / "noted.jsonl").write_text("\n".join(lines) + "\n")
    fake = ("--backend", "fake", "--image", "host")
    assert command("run", "Note.", "-m", "scripted:noted.jsonl", *fake).exit_code == 0
    lines.append(json.dumps({"tool_calls": made}))
    (tmp_path / "look.jsonl").write_text("\n".join(lines) + "\n")
    assert command("continue", "last", "Look.", "-m", "scripted:look.jsonl").exit_code == 0
    done = command("replay", "last")
    assert done.exit_code == 1, done.output
    assert "this run was continued" in done.stderr


@pytest.mark.parametrize("turn", [0, 2])
def test_another_model_goes_on_from_a_turn_in_a_run_of_its_own(
    command: Command, tmp_path: Path, turn: int
) -> None:
    old = newest(tmp_path)
    before = old.trajectory_path.read_bytes()
    other = write_script(tmp_path / "other.jsonl", "d")
    done = command("replay", old.path.name, "--from", str(turn), "-m", f"scripted:{other}")
    assert done.exit_code == 0, done.output
    assert done.stdout == "other\n"
    assert old.trajectory_path.read_bytes() == before
    new = newest(tmp_path)
    trajectory = new.trajectory()
    assert trajectory.turns[:turn] == old.trajectory().turns[:turn]
    made = [item.call.arguments for each in trajectory.turns for item in each.tool_results]
    assert made[turn] == '{"command": "d"}'
    assert trajectory.model == f"scripted:{other}"
    assert trajectory.metadata["branch_turn"] == turn
    assert trajectory.metadata["branched_from"] == old.path.name


def test_a_branch_and_its_model_are_asked_for_together(command: Command) -> None:
    alone = command("replay", "last", "--from", "1")
    assert (alone.exit_code, "name it with -m" in alone.stderr) == (2, True)
    alone = command("replay", "last", "-m", "scripted:x")
    assert (alone.exit_code, "name it with --from" in alone.stderr) == (2, True)
    far = command("replay", "last", "--from", "9", "-m", "scripted:x")
    assert (far.exit_code, "has turns 0 to 3" in far.stderr) == (2, True)
    single = command("replay", "last", "--episode", "a")
    assert (single.exit_code, "is a single run" in single.stderr) == (2, True)


# Episodes of a bench run.


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """A bench run of one problem in two arms, in the folder `runs`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    runs = ["--runs", str(tmp_path / "runs"), "--display", "none"]

    def invoke(*words: str) -> Result:
        return CliRunner().invoke(app, [*words, *runs])

    (tmp_path / "q.jsonl").write_text('{"id": "a", "prompt": "How many?", "answer": "42"}\n')
    row = 'name = "q"\ndomain = "math"\nscorer = "text"\n'
    row += '[source]\nkind = "file"\npath = "q.jsonl"\n'
    (tmp_path / "q.toml").write_text(row)
    (tmp_path / "llm.jsonl").write_text('{"text": "42"}\n')
    write_script(tmp_path / "sandbox.jsonl", "a")
    words = ("-m", "scripted:{arm}.jsonl", "--backend", "fake", "--image", "host")
    done = invoke("bench", "q.toml", *words)
    assert done.exit_code == 0, done.output
    return invoke


def told_of_another_arm(directory: RunDirectory, arm: str) -> str:
    """Have the run say that its sandbox episode was one of another arm; its name."""
    old, new = "q.a.sandbox.0", f"q.a.{arm}.0"
    episodes = directory.path / "episodes.jsonl"
    lines = episodes.read_text().splitlines()
    (line,) = [line for line in lines if '"arm":"sandbox"' in line]
    episodes.write_text("\n".join([*lines, line.replace('"sandbox"', f'"{arm}"', 1), ""]))
    folder = directory.path / "trajectories"
    (folder / f"{new}.jsonl").write_bytes((folder / f"{old}.jsonl").read_bytes())
    return new


def test_an_episode_is_repeated(bench: Command) -> None:
    done = bench("replay", "last", "--episode", "q.a.sandbox.0")
    assert done.exit_code == 0, done.output
    assert done.stdout == "the same: 3 calls in 2 turns\n"


def test_an_episode_is_repeated_with_the_tools_of_its_arm(bench: Command, tmp_path: Path) -> None:
    name = told_of_another_arm(newest(tmp_path), "sandbox-no-exec")
    done = bench("replay", "last", "--episode", name)
    assert done.exit_code == 1
    assert "+Error: there is no tool 'execute_bash'" in done.stdout
    refused = bench("replay", "last", "--episode", name, "--from", "0", "-m", "scripted:llm.jsonl")
    assert (refused.exit_code, "an arm with fewer tools" in refused.stderr) == (2, True)


def test_an_episode_that_cannot_be_repeated_is_named(bench: Command) -> None:
    told = {
        (): "name one of its episodes",
        ("--episode", "q.b.sandbox.0"): "has no episode 'q.b.sandbox.0' (it has 2: q.a.llm.0",
        ("--episode", "q.a.llm.0"): "there are no commands to repeat",
    }
    for words, message in told.items():
        done = bench("replay", "last", *words)
        assert (done.exit_code, message in done.stderr) == (2, True), done.output


def test_an_episode_can_be_branched_from_in_a_run_of_its_own(
    bench: Command, tmp_path: Path
) -> None:
    write_script(tmp_path / "other.jsonl", "d")
    words = ("--episode", "q.a.sandbox.0", "--from", "1", "-m", "scripted:other.jsonl")
    done = bench("replay", "last", *words)
    assert done.exit_code == 0, done.output
    new = newest(tmp_path)
    assert "bench" not in new.manifest
    assert new.manifest["profile"]["name"] == "benchmark"
    trajectory = new.trajectory()
    assert trajectory.metadata["branched_from"] == "q.a.sandbox.0"
    assert trajectory.metadata["arm"] == "sandbox"
    assert [turn.tool_results[0].call.arguments for turn in trajectory.turns[:2]] == [
        '{"command": "a"}',
        '{"command": "d"}',
    ]
