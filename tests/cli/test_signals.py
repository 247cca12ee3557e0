"""A run that is interrupted, ended or killed keeps what it had, and goes on."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandlot.core.store import RunDirectory
from sandlot.core.types import StopReason

from .conftest import ANSWER, Command, Script, call

SLOW = [ANSWER[0], {**call("submit"), "delay_s": 30}]
Start = subprocess.Popen[str]


@pytest.fixture
def running(
    tmp_path: Path, environment: dict[str, str], script: Script
) -> Iterator[subprocess.Popen[str]]:
    """A run whose first turn is recorded and whose second reply is awaited."""
    model = script(SLOW)
    command = ["run", "Find it", "-m", model, "--output", "out"]
    process = subprocess.Popen(
        [sys.executable, "-m", "sandlot.cli.main", *command],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for_record(tmp_path, "tool_finished")
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for_record(tmp_path: Path, word: str) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if any(word in path.read_text() for path in tmp_path.glob("runs/*/trajectory.jsonl")):
            return
        time.sleep(0.02)
    raise AssertionError(f"no {word} was recorded in time")


def the_run(tmp_path: Path) -> RunDirectory:
    (path,) = (tmp_path / "runs").iterdir()
    return RunDirectory.open(path)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_run_and_keeps_files_and_trajectory(
    tmp_path: Path, running: subprocess.Popen[str], signum: signal.Signals, code: int
) -> None:
    running.send_signal(signum)
    stdout, stderr = running.communicate(timeout=20)
    assert running.returncode == code, stderr
    assert "Traceback" not in stderr
    assert "stopped: cancelled" in stderr
    assert "--resume" in stderr
    assert stdout == "forty-two\n"
    assert (tmp_path / "out/answer.txt").read_text() == "forty-two\n"
    trajectory = the_run(tmp_path).trajectory()
    assert trajectory.stop_reason is StopReason.CANCELLED
    assert len(trajectory.turns) == 1


def test_impatient_signals_do_not_cut_the_clean_up_short(
    tmp_path: Path, running: subprocess.Popen[str]
) -> None:
    for _ in range(3):
        running.send_signal(signal.SIGINT)
    _, stderr = running.communicate(timeout=20)
    assert running.returncode == 130, stderr
    assert the_run(tmp_path).trajectory().stop_reason is StopReason.CANCELLED


def test_a_killed_run_is_readable_and_resume_finishes_it(
    tmp_path: Path, running: subprocess.Popen[str], sandlot: Command, script: Script
) -> None:
    running.kill()
    running.communicate(timeout=20)
    killed = the_run(tmp_path)
    assert killed.trajectory().stop_reason is None
    assert len(killed.trajectory().turns) == 1
    script([ANSWER[0], call("submit")])  # the same script, without the wait
    done = sandlot("run", "--resume", str(killed.path), "--output", "again")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "forty-two\n"
    assert (tmp_path / "again/answer.txt").read_text() == "forty-two\n"
    trajectory = the_run(tmp_path).trajectory()
    assert trajectory.stop_reason is StopReason.SUBMITTED
    assert [len(turn.tool_results) for turn in trajectory.turns] == [1, 1]


def test_an_interrupt_while_the_program_still_loads_is_130_too(tmp_path: Path) -> None:
    code = (
        "from sandlot.cli import main\n"
        "@main.app.command('early')\ndef early() -> None: raise KeyboardInterrupt\n"
        "import sys; sys.argv = ['sandlot', 'early']; main.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 130
    assert "Traceback" not in done.stderr
