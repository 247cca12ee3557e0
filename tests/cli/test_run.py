"""`sandlot run` and `continue`, as a program, with a scripted model in the fake sandbox."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from sandlot.core.store import RunDirectory
from sandlot.core.types import StopReason

from .conftest import ANSWER, Command, Script, call, write


def the_run(tmp_path: Path) -> RunDirectory:
    (path,) = (tmp_path / "runs").iterdir()
    return RunDirectory.open(path)


def test_the_answer_is_all_of_stdout_and_files_reach_the_output_folder(
    tmp_path: Path, sandlot: Command, script: Script
) -> None:
    done = sandlot("run", "Find it", "-m", script(ANSWER), "--output", "out")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "forty-two\n"
    assert (tmp_path / "out/answer.txt").read_text() == "forty-two\n"
    directory = the_run(tmp_path)
    assert directory.trajectory().stop_reason is StopReason.SUBMITTED
    assert directory.path.name.endswith("-find-it")
    for line in ("stopped: submitted", "file: out/answer.txt", f"run: runs/{directory.path.name}"):
        assert line in done.stderr


def test_json_is_one_object_and_nothing_else(
    tmp_path: Path, sandlot: Command, script: Script
) -> None:
    done = sandlot("run", "Find it", "-m", script(ANSWER), "--json")
    shown = json.loads(done.stdout)
    assert shown["answer"] == "forty-two\n"
    assert shown["stop_reason"] == "submitted"
    assert shown["turns"] == 2
    assert (tmp_path / shown["files"][0]).read_text() == "forty-two\n"
    assert (tmp_path / shown["directory"] / "run.toml").is_file()
    assert set(shown["usage"]) >= {"prompt_tokens", "completion_tokens", "cost_usd"}


def test_the_manifest_says_how_the_run_was_made(
    tmp_path: Path, sandlot: Command, script: Script
) -> None:
    flags = ("--seed", "7", "--memory", "1GiB", "--network", "allow:example.org")
    done = sandlot("run", "x", "-m", script(ANSWER), *flags)
    assert done.returncode == 0, done.stderr
    manifest = the_run(tmp_path).manifest
    assert manifest["model"] == "scripted:script.jsonl"
    assert manifest["seed"] == manifest["sampling"]["seed"] == 7
    assert manifest["policy"]["limits"]["memory_bytes"] == 2**30
    assert manifest["policy"]["asked"] == ["memory_bytes", "network"]
    assert manifest["policy"]["network"]["hosts"] == ["example.org"]
    assert len(manifest["profile"]["digest"]) == 64
    assert "{problem_statement}" in manifest["profile"]["instance_prompt"]


def test_no_control_character_of_the_models_reaches_the_terminal(
    sandlot: Command, script: Script
) -> None:
    hostile = "\x1b]0;owned\x07\x1b[2J\x9b31m[red]\u202egnp.exe\x00\r\b"
    replies = [
        {"text": hostile, **call("execute_bash", command=f"echo {hostile}")},
        write("/testbed/output/answer.txt", hostile),
        write(f"/testbed/output/{hostile[:12]}", "x"),
        call("submit"),
    ]
    done = sandlot("run", hostile.replace("\x00", ""), "-m", script(replies), "--display", "plain")
    assert done.returncode == 0, done.stderr
    shown = (done.stdout + done.stderr).replace("\n", "").replace("\t", "")
    assert not [char for char in shown if ord(char) < 32 or 127 <= ord(char) < 160]
    assert "\u202e" not in shown
    assert "[red]" in shown


def test_rich_display_never_reads_the_models_text_as_markup(
    sandlot: Command, script: Script
) -> None:
    replies = [{"text": "[bold]loud[/bold] \x1b[2J [link=x]y[/link]", **call("submit")}]
    done = sandlot("run", "x", "-m", script(replies), "--display", "rich")
    assert done.returncode == 0, done.stderr
    assert "[bold]loud[/bold]" in done.stderr
    assert "\x1b[2J" not in done.stderr


def test_display_none_shows_the_answer_alone(sandlot: Command, script: Script) -> None:
    done = sandlot("run", "x", "-m", script(ANSWER), "--display", "none")
    assert (done.stdout, done.stderr) == ("forty-two\n", "")


def test_a_prompt_comes_from_stdin_or_a_file_braces_and_a_megabyte_included(
    tmp_path: Path, sandlot: Command, script: Script
) -> None:
    prompt = "{input_dir} {} {0!r} " + "x" * 1_000_000
    done = sandlot("run", "-", "-m", script(ANSWER), stdin=prompt)
    assert done.returncode == 0, done.stderr
    directory = the_run(tmp_path)
    assert directory.trajectory().task.prompt == prompt
    (tmp_path / "task.txt").write_text(prompt)
    done = sandlot("run", "@task.txt", "-m", script(ANSWER), "--runs", "others")
    assert done.returncode == 0, done.stderr
    (other,) = (tmp_path / "others").iterdir()
    assert RunDirectory.open(other).trajectory().task.prompt == prompt


def test_no_answer_and_a_failing_model_have_exit_codes_of_their_own(
    tmp_path: Path, sandlot: Command, script: Script
) -> None:
    wandering = [call("execute_bash", command="true")] * 3
    done = sandlot("run", "x", "-m", script(wandering), "--max-turns", "2")
    assert done.returncode == 1
    assert "max_turns" in done.stderr
    failing = [ANSWER[0], {"error": {"message": "503 from provider", "status": 503}}]
    done = sandlot("run", "x", "-m", script(failing), "--output", "out", "--runs", "r2")
    assert done.returncode == 3
    assert "503 from provider" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "out/answer.txt").read_text() == "forty-two\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input", "missing"], "input folder missing does not exist"),
        (["--input", "script.jsonl"], "is a file"),
        (["--output", "script.jsonl"], "output folder script.jsonl cannot be written"),
        (["--extra-body", "[1]"], "must be a JSON object"),
        (["--extra-body", "{'a': 1}"], "is not JSON"),
        (["--profile", "generel"], "Did you mean 'general'"),
        (["--backend", "bubblewarp"], "Did you mean 'bubblewrap'"),
        (["-m", "opnai/x"], "Did you mean 'openai'"),
        (["-m", "openai/x"], "no key"),
        (["-m", "scripted:absent.jsonl"], "absent.jsonl"),
        (["--network", "sometimes"], "network 'sometimes' is not known"),
        (["--private-hosts", "http://x"], "is not a host name"),
        (["--memory", "much"], "size 'much'"),
        (["--display", "fancy"], "not known (have: auto, none, plain, rich)"),
        (["--prompt", "absent.toml"], "absent.toml cannot be read"),
        (["--resume", "absent"], "give neither"),
    ],
)
def test_bad_input_is_one_clear_message_before_anything_is_made(
    tmp_path: Path, sandlot: Command, script: Script, arguments: list[str], message: str
) -> None:
    model = script(ANSWER)
    chosen = arguments if "-m" in arguments else ["-m", model, *arguments]
    done = sandlot("run", "x", *chosen)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "runs").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads and writes everything")
def test_folders_that_cannot_be_read_or_written_are_refused(
    tmp_path: Path, sandlot: Command, script: Script
) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o000)
    try:
        for flag in ("--input", "--output"):
            done = sandlot("run", "x", "-m", script(ANSWER), flag, "locked")
            assert done.returncode == 2
            assert "Permission denied" in done.stderr or "is not readable" in done.stderr
            assert "locked" in done.stderr
    finally:
        locked.chmod(0o700)


def test_an_empty_or_missing_prompt_is_refused(sandlot: Command, script: Script) -> None:
    assert sandlot("run", "-m", script(ANSWER)).returncode == 2
    done = sandlot("run", "  ", "-m", script(ANSWER))
    assert done.returncode == 2
    assert "the prompt is empty" in done.stderr


def test_continue_goes_on_in_the_same_directory_with_the_runs_own_settings(
    tmp_path: Path, sandlot: Command, script: Script
) -> None:
    more = [write("/testbed/output/chart.svg", "<svg/>"), call("submit")]
    done = sandlot("run", "x", "-m", script([*ANSWER, *more]), "--seed", "7", "--keep")
    assert done.returncode == 0, done.stderr
    directory = the_run(tmp_path)
    assert directory.state_path.is_file()
    done = sandlot("continue", "last", "now as a chart", "--output", "out")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/chart.svg").read_text() == "<svg/>"
    trajectory = the_run(tmp_path).trajectory()
    assert any("now as a chart" in message.text for message in trajectory.messages)
    manifest = the_run(tmp_path).manifest
    assert manifest["seed"] == 7
    assert manifest["continued"][0].startswith("continue ")


def test_a_finished_run_is_not_resumed_but_continued(sandlot: Command, script: Script) -> None:
    sandlot("run", "x", "-m", script(ANSWER))
    done = sandlot("run", "--resume", "last")
    assert done.returncode == 2
    assert "sandlot continue" in done.stderr


def test_a_run_that_is_not_there_is_named(sandlot: Command) -> None:
    done = sandlot("continue", "nowhere", "more")
    assert done.returncode == 2
    assert "'nowhere' was not found" in done.stderr
    assert sandlot("continue", "last", "more").returncode == 2


def test_keys_in_the_environment_never_reach_the_run_directory(
    tmp_path: Path, sandlot: Command, script: Script
) -> None:
    secret = "correct-horse-battery"
    replies = [write("/testbed/output/answer.txt", "x"), {"text": secret, **call("submit")}]
    done = sandlot("run", f"use {secret}", "-m", script(replies), variables={"MY_TOKEN": secret})
    assert done.returncode == 0, done.stderr
    directory = the_run(tmp_path)
    for file in (directory.trajectory_path, directory.path / "run.toml"):
        assert secret not in file.read_text()


def test_a_bug_of_ours_shows_its_traceback_and_exits_with_70(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = (
        "from sandlot.cli import main, upkeep\n"
        "@main.app.command('broken')\ndef broken() -> None: raise ZeroDivisionError('ours')\n"
        "import sys; sys.argv = ['sandlot', 'broken']; main.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 70
    assert "Traceback" in done.stderr
    assert "ZeroDivisionError: ours" in done.stderr


def test_exit_codes_stand_in_the_help(sandlot: Command) -> None:
    done = sandlot("run", "--help")
    assert done.returncode == 0
    for word in ("Exit codes", "130 Ctrl-C", "143 SIGTERM", "70 a bug"):
        assert word in " ".join(done.stdout.split())


def test_the_version_is_told(sandlot: Command) -> None:
    from sandlot import __version__

    assert sandlot("--version").stdout == f"sandlot {__version__}\n"
