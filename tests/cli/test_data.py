"""`sandlot data build`: the example of its page, and a bench over what it wrote."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from sandlot.bench.store import BenchDirectory
from sandlot.cli.main import app

from .conftest import Command, Script, call, write

PAGE = Path(__file__).resolve().parents[2] / "docs" / "data.md"
BUILD = ("data", "build", "harbour.jsonl", "--out", "train.jsonl", "--against", "none")


def block(language: str, number: int = 0) -> str:
    fence = re.compile(rf"^```{language}\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    return str(fence.findall(PAGE.read_text("utf-8"))[number])


def run(*words: str) -> Result:
    """The command in this process, in the folder of the test."""
    return CliRunner().invoke(app, words)


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The rows of the page."""
    path = tmp_path / "harbour.jsonl"
    path.write_text(block("text"), "utf-8")
    monkeypatch.chdir(tmp_path)
    return path


@pytest.mark.usefixtures("rows")
def test_the_example_of_the_page_gives_what_the_page_shows(
    tmp_path: Path, sandlot: Command
) -> None:
    line, *shown = block("console").splitlines()
    done = sandlot(*line.removeprefix("$ sandlot ").split())
    assert done.returncode == 0, done.stderr
    assert (done.stderr + done.stdout).splitlines() == shown
    assert done.stdout == "train.jsonl\n"
    listed = run("tasks", "show", "train.toml", "--truth")
    assert "3 items, scorer qa" in listed.stdout
    assert "= 184 m" in listed.stdout
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {
        "harbour.jsonl",
        "train.jsonl",
        "train.toml",
        "train.manifest.json",
    }


@pytest.mark.usefixtures("rows")
def test_json_is_one_object_with_the_manifest_and_nothing_else(tmp_path: Path) -> None:
    done = run(*BUILD, "--json", "--ask", "0", "--seed", "3")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["tasks"] == "train.jsonl"
    assert found["manifest"]["counts"]["tasks"] == 4
    assert found["manifest"]["options"]["seed"] == 3
    assert found["manifest"] == json.loads((tmp_path / "train.manifest.json").read_text("utf-8"))


@pytest.mark.usefixtures("rows")
@pytest.mark.parametrize("name", ["train.jsonl", "train.toml"])
def test_what_was_built_is_benched_by_the_name_of_either_file(
    tmp_path: Path, sandlot: Command, script: Script, name: str
) -> None:
    assert run(*BUILD).exit_code == 0
    model = script([write("/testbed/answer.txt", "ANSWER: 184 m\n"), call("submit")])
    done = sandlot(
        "bench", name, "-m", model, "--mode", "sandbox", "--no-reference", "--limit", "2"
    )
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "runs").iterdir()
    records = BenchDirectory.open(path).scores().values()
    # Of the one question that this answers, and of the other; whichever ended first.
    assert sorted(record.score.value for record in records) == [0.0, 1.0]


@pytest.mark.usefixtures("rows")
def test_files_that_are_there_are_kept_unless_forced(tmp_path: Path) -> None:
    assert run(*BUILD).exit_code == 0
    before = (tmp_path / "train.jsonl").read_bytes()
    again = run(*BUILD, "--distractors", "0")
    assert again.exit_code == 2
    assert "there already: train.jsonl, train.toml, train.manifest.json; --force" in again.stderr
    assert (tmp_path / "train.jsonl").read_bytes() == before
    assert run(*BUILD, "--distractors", "0", "--force").exit_code == 0
    assert (tmp_path / "train.jsonl").read_bytes() != before


def test_bad_rows_are_named_by_file_line_and_field(tmp_path: Path, rows: Path) -> None:
    with rows.open("a") as file:
        file.write('{"context": "x", "QA_list": [{"Q": "Why?"}]}\n{"context": ""}\n')
    done = run(*BUILD)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert "harbour.jsonl:4: field 'QA_list[0].A' is missing" in done.stderr
    assert "harbour.jsonl:5: field 'context' is empty" in done.stderr
    assert not (tmp_path / "train.jsonl").exists()
    skipped = run(*BUILD, "--skip-bad")
    assert skipped.exit_code == 0
    assert "left out 2: cannot be used" in skipped.stderr


@pytest.mark.usefixtures("rows")
def test_sets_are_named_one_by_one_to_compare_with(tmp_path: Path) -> None:
    exam = {"id": "1", "prompt": "x", "documents": {"a.txt": "The light of Wiek burns seal oil. It "
            "was lit on 4 May 1760."}, "answer": "y"}  # fmt: skip
    (tmp_path / "exam.jsonl").write_text(json.dumps(exam) + "\n")
    words = list(BUILD)
    words[-1:] = ["exam.jsonl", "--against", "mini-math"]
    done = run(*words)
    assert done.exit_code == 0, done.stderr
    assert "left out 1: documents of exam" in done.stderr
    assert "compared with no task set" not in done.stderr
    manifest = json.loads((tmp_path / "train.manifest.json").read_text("utf-8"))
    assert [one["name"] for one in manifest["compared"]] == ["exam", "mini-math"]
    unknown = run(*BUILD[:-1], "mini-maths", "--force")
    assert unknown.exit_code == 2
    assert "Did you mean 'mini-math'" in unknown.stderr


def test_help_needs_no_torch() -> None:
    import subprocess
    import sys

    code = (
        "import sys; from sandlot.cli.main import app\n"
        "try: app(['data', 'build', '--help'])\nexcept SystemExit: pass\n"
        "print([m for m in ('torch', 'sandlot.train.data', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith("[]")
