"""`sandlot doctor`: rows as they come, one JSON object, an exit code for the default backend."""

from __future__ import annotations

import json

from cli.conftest import Command
from sandlot.cli.doctor import _default
from sandlot.sandbox.probe import Finding, Result


def test_json_is_one_object_with_a_row_for_each_thing_tried(sandlot: Command) -> None:
    done = sandlot("doctor", "--json", "--backend", "fake")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["ok"], said["backend"]) == (True, "fake")
    keys = {"backend", "promise", "result", "because", "means", "evidence", "remedy"}
    assert all(set(row) == keys for row in said["checks"])
    assert {row["result"] for row in said["checks"]} <= {"kept", "not kept", "not tried"}
    assert [row["promise"] for row in said["checks"] if row["backend"] == "fake"] == [
        "start",
        "everything else",
    ]
    assert any(row["backend"] == "machine" for row in said["checks"])


def test_rows_come_as_lines_and_end_with_a_summary(sandlot: Command) -> None:
    done = sandlot("doctor", "--backend", "fake")
    lines = done.stdout.splitlines()
    assert any(line.startswith("kept       fake  start: made ready in") for line in lines)
    assert any(line.startswith("not tried  fake  everything else: (it says") for line in lines)
    assert lines[-1] == "a run would take fake, which starts here"


def test_the_table_holds_the_same_rows(sandlot: Command) -> None:
    done = sandlot("doctor", "--backend", "fake", "--display", "rich")
    assert done.returncode == 0, done.stderr
    assert "promise" in done.stdout
    assert "a run would take fake, which starts here" in done.stdout


def test_a_default_backend_that_cannot_run_is_exit_code_1_with_reason(sandlot: Command) -> None:
    done = sandlot("doctor", "--backend", "podman", "--engine", "unix:///nowhere/podman.sock")
    assert done.returncode == 1
    assert "not tried  podman  start: (" in done.stdout
    assert done.stdout.splitlines()[-1] == "a run would take podman, which does not start here"


def test_a_backend_that_nobody_knows_is_an_error_with_the_nearest_name(sandlot: Command) -> None:
    done = sandlot("doctor", "--backend", "bubblewarp")
    assert done.returncode == 2
    assert "Did you mean 'bubblewrap'?" in done.stderr


def test_the_default_is_the_strongest_backend_that_starts() -> None:
    def row(backend: str, result: Result) -> Finding:
        return Finding(backend, "start", result)

    found = [row("bubblewrap", Result.NOT_TRIED), row("restricted", Result.KEPT)]
    assert _default(found, "auto") == ("auto", False)
    found.append(row("podman", Result.KEPT))
    assert _default(found, "auto") == ("podman", True)
    assert _default(found, "restricted") == ("restricted", True)
    assert _default(found, "bubblewrap") == ("bubblewrap", False)
