"""The small commands: what they say where there is nothing, and what they remove."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sandlot.cli.outcome import code_of_error, code_of_stop
from sandlot.cli.text import clean, excerpt, one_line
from sandlot.core.errors import (
    ConfigError,
    DeathCause,
    ImageError,
    ModelError,
    SandboxDied,
    SandlotError,
)
from sandlot.core.types import StopReason

from .conftest import ANSWER, Command, Script


def test_with_nothing_there_each_says_so(sandlot: Command) -> None:
    assert "no sandbox runs" in sandlot("ps").stderr
    assert json.loads(sandlot("ps", "--json").stdout) == []
    assert "nothing to reap" in sandlot("reap").stderr
    assert "no image yet" in sandlot("image", "list").stderr


def test_an_image_that_is_not_there_is_named(sandlot: Command) -> None:
    done = sandlot("image", "rm", "nowhere")
    assert done.returncode == 4
    assert "nowhere" in done.stderr
    done = sandlot("image", "import", "absent.tar")
    assert done.returncode == 2
    assert "absent.tar does not exist" in done.stderr


def test_shell_of_a_run_that_was_not_kept_is_refused(sandlot: Command, script: Script) -> None:
    sandlot("run", "x", "-m", script(ANSWER))
    done = sandlot("shell", "last")
    assert done.returncode == 2
    assert "--keep" in done.stderr


def test_clean_frees_kept_sandboxes_and_spares_the_rest(
    tmp_path: Path, sandlot: Command, script: Script
) -> None:
    sandlot("run", "x", "-m", script(ANSWER), "--keep")
    (run,) = (tmp_path / "runs").iterdir()
    sandlot("clean")
    assert (run / "sandbox.state").is_file()
    done = sandlot("clean", "--kept")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in run.iterdir()) == ["files", "run.toml", "trajectory.jsonl"]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("x"), 2),
        (ModelError("x"), 3),
        (ImageError("x"), 4),
        (SandboxDied(DeathCause.KILLED), 4),
    ],
)
def test_each_kind_of_error_has_its_exit_code(error: SandlotError, code: int) -> None:
    assert code_of_error(error) == code


def test_every_stop_reason_has_an_exit_code_and_only_answers_are_zero() -> None:
    zero = {reason for reason in StopReason if code_of_stop(reason) == 0}
    assert zero == {StopReason.SUBMITTED, StopReason.ANSWERED}
    assert code_of_stop(StopReason.SANDBOX_DIED) == 4


def test_long_text_is_shown_by_its_start_and_its_end() -> None:
    lines = excerpt("\n".join(map(str, range(100))), 5)
    assert lines == ["0", "1", "… 96 lines …", "98", "99"]
    assert len(one_line("x" * 1000, 20)) == 20
    assert clean("a\r\nb\rc\x1b[0m") == "a\nb\nc\\x1b[0m"
