"""What a model is told of a command."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandlot.sandbox.base import ExecResult
from sandlot.sandbox.fake import FakeSandbox
from sandlot.tools.base import ToolContext
from sandlot.tools.bash import ExecuteBash, describe
from sandlot.tools.text import capped, visible


def shown(stdout: str = "", stderr: str = "", exit_code: int | None = 0, **more: object) -> str:
    limit = int(str(more.pop("limit", 16_000)))
    result = ExecResult(exit_code, stdout, stderr, 0.1, **more)  # type: ignore[arg-type]
    return describe(result, 120.0, limit)


def test_plain_output_stands_alone() -> None:
    assert shown("4\n") == "4"
    assert shown() == "(no output)"


def test_errors_and_the_exit_code_are_labelled_only_where_there_are_any() -> None:
    assert shown("out\n", "err\n", 3) == "out\n[stderr]\nerr\n[exit code 3]"
    assert shown(exit_code=1) == "[exit code 1]"


def test_a_timeout_is_said_plainly() -> None:
    text = shown("half", exit_code=None, timed_out=True)
    assert text.startswith("half\n[stopped after 120 s;")
    assert "background jobs of earlier commands still run" in text


def test_a_timeout_without_output_does_not_point_to_any() -> None:
    assert "no output" in shown(exit_code=None, timed_out=True)


def test_a_restarted_shell_and_a_flood_are_said() -> None:
    assert "shell was restarted" in shown(exit_code=3, shell_restarted=True)
    assert "printed far too much" in shown("y\n", exit_code=None, flooded=True)


def test_a_death_without_a_status_is_said() -> None:
    assert "without an exit code" in shown(exit_code=None)


def test_cut_output_names_the_file_that_holds_all_of_it() -> None:
    text = shown("x" * 5000, truncated=True, stdout_file="/tmp/o1", limit=300)
    assert len(text) <= 300
    assert "the full output is in /tmp/o1" in text


def test_the_exit_code_survives_the_smallest_observations() -> None:
    text = shown("x" * 5000, exit_code=2, limit=100)
    assert len(text) <= 100
    assert text.endswith("[exit code 2]")


def test_terminal_escapes_and_progress_bars_are_reduced_to_what_stays() -> None:
    assert visible("\x1b[1;31mred\x1b[0m\x1b]0;title\x07") == "red"
    assert visible(" 10%\r 50%\r100%\ndone\r\n") == "100%\ndone\n"
    assert visible("a\x00b\x7f\x9b") == "a\\x00b\\x7f\\x9b"
    assert visible("[bold]x[/bold] \t é") == "[bold]x[/bold] \t é"


@given(st.text(max_size=400), st.integers(20, 300), st.text(max_size=80))
def test_capped_text_never_exceeds_its_limit(text: str, limit: int, advice: str) -> None:
    short = capped(text, max(limit, 40), advice.replace("{", "").replace("}", ""))
    assert len(short) <= max(limit, 40) or short == text


@given(st.text(max_size=300))
def test_no_control_character_reaches_the_model(text: str) -> None:
    assert not any(ord(char) < 32 and char not in "\t\n" for char in visible(text))


async def test_the_meter_holds_what_the_sandbox_measured() -> None:
    result = ExecResult(3, "a", "", 1.5, truncated=True, stdout_bytes=9, shell_restarted=True)
    async with FakeSandbox({"x": result}) as box:
        observation = await ExecuteBash().run({"command": "x"}, ToolContext(box))
    meter = observation.command
    assert meter is not None
    assert (meter.exit_code, meter.duration_s, meter.stdout_bytes) == (3, 1.5, 9)
    assert meter.truncated
    assert meter.shell_restarted


@pytest.mark.parametrize("limit", [40, 100, 1000])
def test_head_and_tail_are_kept(limit: int) -> None:
    short = capped("HEAD" + "x" * 5000 + "TAIL", limit)
    assert short.startswith("HEAD"[: max(limit // 30, 1)])
    assert "left out" in short
