"""`sandlot report` and `compare`, called in this process over invented runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from sandlot.bench.bundle import unpack_bundle
from sandlot.bench.sample import write_sample
from sandlot.cli.main import app


def call(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_sample(tmp_path / "runs", items=2, arms=("llm", "sandbox")).path


def test_a_report_is_shown_and_written_beside_the_records(run: Path) -> None:
    done = call("report", run)
    assert done.exit_code == 0
    assert "What it bought (points)" in done.output
    assert json.loads((run / "report.json").read_text("utf-8"))["version"] == 1
    assert (run / "report.html").read_text("utf-8").startswith("<!doctype html>")


def test_json_is_the_whole_report_and_nothing_else(run: Path, tmp_path: Path) -> None:
    done = call("report", run, "--json", "--html", tmp_path / "page.html")
    assert json.loads(done.stdout)["main"] == ["llm", "sandbox"]
    assert (tmp_path / "page.html").exists()


def test_a_bundle_holds_the_report_too(run: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "run.tar.gz"
    done = call("report", run, "--bundle", bundle, "--display", "none")
    assert done.exit_code == 0
    assert done.stdout == ""
    unpack_bundle(bundle, tmp_path / "there")
    assert (tmp_path / "there" / "report.html").exists()


def test_measuring_again_keeps_what_cannot_be_read(run: Path) -> None:
    before = json.loads(call("report", run, "--json").stdout)
    after = json.loads(call("report", run, "--json", "--measure-again").stdout)
    assert after == before


def test_a_folder_that_is_no_bench_run_is_a_usage_error(tmp_path: Path) -> None:
    done = call("report", tmp_path)
    assert done.exit_code == 2
    assert "not a run directory" in done.output


def test_a_run_is_found_by_its_name(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANDLOT_RUNS", str(run.parent))
    assert call("report", "last", "--display", "none").exit_code == 0
    missing = call("report", "nowhere")
    assert missing.exit_code == 2
    assert "was not found" in missing.output


def test_two_runs_are_compared(run: Path, tmp_path: Path) -> None:
    other = write_sample(tmp_path / "others", items=2, arms=("llm",), model="sample/other").path
    done = call("compare", run, other)
    assert done.exit_code == 0
    assert "sample/other" in done.output
    assert json.loads(call("compare", run, other, "--json").stdout)["version"] == 1


def test_control_characters_of_a_record_do_not_reach_the_terminal(run: Path) -> None:
    manifest = run / "run.toml"
    text = manifest.read_text("utf-8").replace("sample/invented", "evil\\u001b[31m")
    manifest.write_text(text, "utf-8")
    other = write_sample(run.parent / "more", items=2, arms=("llm",)).path
    done = call("compare", run, other)
    assert "evil\\x1b" in done.output
    assert "\x1b" not in done.output
