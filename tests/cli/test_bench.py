"""`sandlot bench` and `score`, as programs, with scripted models in the fake sandbox."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from sandlot.bench.records import Episode
from sandlot.bench.store import BenchDirectory

from .conftest import Command, Script, call, write

USAGE = {"prompt_tokens": 100, "completion_tokens": 10}
RIGHT = [{**write("/testbed/answer.txt", "ANSWER: 42\n"), "usage": USAGE}, call("submit")]


@pytest.fixture
def experiment(tmp_path: Path, script: Script) -> list[str]:
    """Arguments for a set of two problems, right in the sandbox and wrong from the head."""
    rows = [{"id": name, "prompt": f"What is {name}?", "target": "42"} for name in ("a", "b")]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = '[source]\nkind = "file"\npath = "own.jsonl"\n'
    (tmp_path / "own.toml").write_text(f'name = "own"\ndomain = "math"\nscorer = "text"\n{source}')
    script(RIGHT, "sandbox.jsonl")
    script([{"text": "ANSWER: 41", "usage": USAGE}], "llm.jsonl")
    return ["own.toml", "-m", "scripted:{mode}.jsonl", "--no-reference"]


def the_run(tmp_path: Path) -> BenchDirectory:
    (path,) = (tmp_path / "runs").iterdir()
    return BenchDirectory.open(path)


def shown(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_both_modes_are_run_scored_and_reported(
    tmp_path: Path, sandlot: Command, experiment: list[str]
) -> None:
    done = sandlot("bench", *experiment, "--mode", "both")
    assert done.returncode == 0, done.stderr
    directory = the_run(tmp_path)
    assert directory.path.name.endswith("-own-both")
    scores = {e.arm: record.score.value for (e, _), record in directory.scores().items()}
    assert scores == {"llm": 0.0, "sandbox": 1.0}
    assert "sandbox − llm" in done.stdout
    assert f"run: runs/{directory.path.name}" in done.stdout
    assert "4/4 done; llm 0.00 (2), sandbox 1.00 (2)" in done.stderr
    assert (directory.path / "report.json").is_file()
    assert (directory.path / "report.html").is_file()


def test_json_is_one_object_and_nothing_else(
    tmp_path: Path, sandlot: Command, experiment: list[str]
) -> None:
    found = shown(sandlot("bench", *experiment, "--json", "--limit", "1", "--repeats", "2"))
    assert (found["done"], found["total"], found["failed"]) == (4, 4, 0)
    assert found["arms"]["sandbox"] == {"mean": 1.0, "scored": 2}
    assert (tmp_path / found["directory"] / "run.toml").is_file()


def test_the_plan_is_shown_and_nothing_is_run(
    tmp_path: Path, sandlot: Command, experiment: list[str]
) -> None:
    (tmp_path / "prices.toml").write_text(
        '["scripted:{mode}.jsonl"]\nprompt = 1.0\ncompletion = 2.0\n'
    )
    done = sandlot("bench", *experiment, "--plan", "--prices", "prices.toml")
    assert done.returncode == 0, done.stderr
    assert "4 episodes, about" in done.stdout
    assert "money: $0." in done.stdout
    assert not (tmp_path / "runs").exists()
    rows = json.loads(sandlot("bench", *experiment, "--plan", "--json").stdout)
    assert [row["arm"] for row in rows] == ["llm", "sandbox"]
    assert rows[0]["cost_usd"] is None


def test_a_run_goes_on_with_its_own_sets_arms_and_settings(
    tmp_path: Path, sandlot: Command, experiment: list[str], script: Script
) -> None:
    script([{"error": {"message": "down"}}], "llm.jsonl")
    flags = ("--attempts", "1", "--seed", "3", "--memory", "none", "--limit", "1")
    failed = sandlot("bench", *experiment, *flags)
    assert failed.returncode == 1
    assert "1 failed" in failed.stderr
    script([{"text": "ANSWER: 42", "usage": USAGE}], "llm.jsonl")
    found = shown(sandlot("bench", "--resume", "last", "--no-reference", "--json"))
    assert (found["done"], found["failed"]) == (2, 0)
    assert found["arms"]["llm"] == {"mean": 1.0, "scored": 1}
    record = the_run(tmp_path).episodes()[Episode("own", "a", "llm", 0)]
    assert record.attempt == 2


def test_a_run_goes_on_at_its_own_pace_and_within_its_own_limit(
    tmp_path: Path, sandlot: Command, experiment: list[str]
) -> None:
    flags = ("-c", "1", "--deadline", "9m", "--max-cost", "0", "--attempts", "3")
    assert sandlot("bench", *experiment, *flags, "--mode", "llm").returncode == 1
    done = sandlot("bench", "--resume", "last", "--no-reference")
    assert done.returncode == 1
    assert "so --max-cost cannot be kept" in done.stderr
    kept = the_run(tmp_path).manifest
    limits = {name: kept[name] for name in ("concurrency", "deadline_s", "attempts")}
    assert limits == {"concurrency": 1, "deadline_s": 540.0, "attempts": 3}
    lifted = sandlot("bench", "--resume", "last", "--no-reference", "--max-cost", "inf", "-c", "2")
    assert lifted.returncode == 0, lifted.stderr
    assert the_run(tmp_path).manifest["concurrency"] == 2


def test_resuming_with_other_settings_names_them_and_exits_with_2(
    sandlot: Command, experiment: list[str]
) -> None:
    shown(sandlot("bench", *experiment, "--json"))
    done = sandlot("bench", "--resume", "last", "--temperature", "0.3", "--network", "none")
    assert done.returncode == 2
    assert "temperature: was the server's own, now 0.3" in done.stderr
    assert "policy of own, sandbox: was" in done.stderr


def test_scoring_again_appends_and_the_last_score_counts(
    tmp_path: Path, sandlot: Command, experiment: list[str]
) -> None:
    shown(sandlot("bench", *experiment, "--json"))
    for file in tmp_path.glob("*.jsonl"):
        file.unlink()  # neither the problems nor the scripts are needed any more
    done = sandlot("score", "last", "--no-reference")
    assert done.returncode == 0, done.stderr
    assert "scored 4 episodes again" in done.stderr
    directory = the_run(tmp_path)
    assert len(list(directory.all_scores())) == 8
    assert len(directory.scores()) == 4


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere.toml"], "no such file"),
        (["mini-mat"], "Did you mean 'mini-math'"),
        (["own.toml", "--arms", "sandbox-no-exce"], "Did you mean 'sandbox-no-exec'"),
        (["own.toml", "--executor", "rya"], "Did you mean 'ray'"),
        (["own.toml", "-m", "scripted:none.jsonl"], "the script cannot be read"),
        (["own.toml", "-m", "opneai/x"], "Did you mean 'openai'"),
        ([], "what is to be measured?"),
        (["own.toml", "--retry", "model_eror"], "Did you mean 'model_error'"),
        (["--resume", "nothing"], "run 'nothing' was not found"),
    ],
)
def test_what_cannot_be_run_exits_with_2_and_leaves_no_folder(
    tmp_path: Path, sandlot: Command, experiment: list[str], arguments: list[str], said: str
) -> None:
    model = [] if "-m" in arguments else ["-m", "scripted:{mode}.jsonl"]
    done = sandlot("bench", *arguments, *model)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert not list((tmp_path / "runs").glob("*")) if (tmp_path / "runs").exists() else True


def test_ctrl_c_keeps_what_is_finished_and_exits_with_130(
    tmp_path: Path, environment: dict[str, str], experiment: list[str], script: Script
) -> None:
    script([{**RIGHT[0], "delay_s": 0.05}, {**call("submit"), "delay_s": 30}], "sandbox.jsonl")
    process = subprocess.Popen(
        [sys.executable, "-m", "sandlot.cli.main", "bench", *experiment, "-c", "1"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        runs = list((tmp_path / "runs").glob("*/trajectories/own.a.sandbox.0.jsonl"))
        if runs and "tool_finished" in runs[0].read_text():
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130, said
    assert "go on with: sandlot bench --resume runs/" in said
    directory = the_run(tmp_path)
    assert set(directory.episodes()) == {Episode("own", "a", "llm", 0)}
    assert directory.trajectory(Episode("own", "a", "sandbox", 0)).stop_reason == "cancelled"
