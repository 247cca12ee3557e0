"""The published figures as data, and a report of ours beside them."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sandlot.bench.arms import arms_of
from sandlot.bench.paper import (
    VERSIONS,
    against,
    beside,
    data,
    lines,
    paper_model,
    protocol,
    published,
    table,
)
from sandlot.bench.records import Episode, EpisodeRecord, Meters, ScoreRecord
from sandlot.bench.report import Report, build_report
from sandlot.bench.store import BenchDirectory
from sandlot.cli.main import app
from sandlot.core.errors import ConfigError
from sandlot.core.redact import Redactor
from sandlot.core.types import Score, StopReason, Task
from sandlot.settings import resolve
from sandlot.tasks.base import LoadedSet
from sandlot.tasks.registry import load_row


@pytest.mark.parametrize(
    ("version", "model", "domain", "head", "sandbox", "gain"),
    [
        ("v1", "Qwen3-Coder-30B-A3B", "math", 17.9, 42.1, 24.2),
        ("v3", "Qwen3-Coder-30B-A3B", "math", 26.0, 41.5, 15.5),
        ("v3", "GPT-5", "biomed", 55.8, 49.0, -6.8),
        ("v1", "Kimi-K2-Think", "physics", 55.9, 54.5, -1.4),
        ("v3", "MiniMax-M2", "instruct_follow", 73.0, 61.3, -11.7),
        ("v1", "Qwen3-4B-Instruct-2507", "math", 41.3, 35.4, -5.9),
    ],
)
def test_a_published_cell_is_found_by_version_model_and_domain(
    version: str, model: str, domain: str, head: float, sandbox: float, gain: float
) -> None:
    cell = published(version, model, domain)
    assert cell is not None
    assert (cell.llm, cell.sandbox, cell.difference) == (head, sandbox, gain)


def test_between_the_versions_only_physics_and_one_model_changed() -> None:
    cells = [{(c.model, c.domain): c.difference for c in table(v)} for v in VERSIONS]
    shared = cells[0].keys() & cells[1].keys()
    changed = {key for key in shared if cells[0][key] != cells[1][key]}
    expected = {key for key in shared if key[1] == "physics" or "Coder" in key[0]}
    assert changed - {("Qwen3-4B-Instruct-2507", "math")} == expected


def test_what_was_not_found_is_not_there() -> None:
    assert published("v3", "Qwen3-4B-Instruct-2507", "biomed") is None
    cell = published("v3", "Qwen3-4B-Instruct-2507", "math")
    assert cell is not None
    assert (cell.llm, cell.sandbox, cell.difference, cell.grade) == (None, None, -13.5, "C")


def test_every_row_of_the_data_has_a_known_grade() -> None:
    rows = [row for value in data().values() if isinstance(value, list) for row in value]
    graded = [row["grade"] for row in rows if "here" not in row]
    assert len(graded) > 30
    assert set(graded) <= data()["grades"].keys()
    assert {protocol(version).grade for version in VERSIONS} == {"A", "derived"}


def test_the_long_context_mean_is_that_of_its_rows() -> None:
    rows = [row for row in data()["long_context"] if row["version"] == "v1"]
    *models, mean = rows
    for name in ("in_prompt", "in_files"):
        assert mean[name] == pytest.approx(sum(row[name] for row in models) / 7, abs=0.06)


@pytest.mark.parametrize(
    ("written", "known"),
    [
        ("openai/gpt-5", "GPT-5"),
        ("openai/gpt-5-2025-08-07", "GPT-5"),
        ("openai/gpt-5-mini", None),
        ("openai/gpt-5.1", None),
        ("openai/Qwen/Qwen3-Coder-30B-A3B-Instruct", "Qwen3-Coder-30B-A3B"),
        ("anthropic/claude-sonnet-4-5-20250929", "Claude-Sonnet-4.5-Think"),
        ("openai/Qwen/Qwen3-4B", None),
        ("local", None),
    ],
)
def test_another_size_or_family_is_another_model(written: str, known: str | None) -> None:
    assert paper_model(written) == known


def test_an_unknown_version_is_named_with_those_that_are_known() -> None:
    with pytest.raises(ConfigError, match=r"'v2' is not known \(have: v1, v3\)"):
        protocol("v2")


def test_the_protocols_sets_are_shipped_rows_with_its_items_and_repeats() -> None:
    asked = protocol("v3")
    for name in asked.sets:
        row = load_row(name)
        assert (row.domain, row.repeats) == (name, asked.repeats[name])
        assert row.source.options["items"] == asked.items[name]


def test_flags_override_the_protocol_and_are_listed() -> None:
    given = resolve({"model": "openai/Qwen3-4B", "max_turns": 30}, environ={})
    settings, overridden = protocol("v1").settled(given)
    assert (settings.temperature, settings.max_turns) == (0.7, 30)
    assert settings.sources["temperature"] == "paper v1"
    assert overridden == ["max_turns: 100 in the paper, 30 here"]
    other, _ = protocol("v1").settled(resolve({"model": "openai/gpt-5"}, environ={}))
    assert (other.temperature, other.max_turns) == (1.0, 100)


def test_judged_sets_take_the_published_number_of_judgements() -> None:
    asked = protocol("v3")
    physics = LoadedSet(load_row("physics"), (Task("a", "b"),), "d" * 64)
    changed = asked.judged_as_published(physics)
    assert changed.row.scorer_options["judgements"] == 4
    assert changed.digest != physics.digest
    chem = LoadedSet(load_row("chem"), (Task("a", "b"),), "d" * 64)
    assert asked.judged_as_published(chem) is chem


@pytest.fixture
def report(tmp_path: Path) -> Report:
    return build_report([_run(tmp_path, "openai/gpt-5").path])


def _run(folder: Path, model: str, **manifest: Any) -> BenchDirectory:
    """Four items of math, of which the sandbox won two."""
    directory = BenchDirectory.create(folder, "paper", datetime(2026, 1, 1, tzinfo=UTC))
    directory.writing(Redactor())
    row = {"scorer_options": {}, "source": {"revision": "main"}}
    directory.write_manifest(
        {
            "model": model,
            "sets": {"math": {"items": 4, "repeats": 1, "row": row}},
            "sampling": {"temperature": 1.0, "reply_tokens": None},
            "identity": {"max_turns of math, sandbox": 100},
            **manifest,
        }
    )
    for number in range(4):
        for arm in arms_of("both"):
            episode = Episode("math", f"m{number}", arm.name, 0)
            won = number < 1 or (arm.name == "sandbox" and number < 3)
            directory.add_episode(_record(episode))
            score = Score(episode.item, "math", "1", float(won))
            directory.add_score(ScoreRecord(episode, score))
    directory.close()
    return directory


def _record(episode: Episode) -> EpisodeRecord:
    return EpisodeRecord(
        episode, "k", 1, StopReason.ANSWERED, "", "1", None, Meters(), domain="math"
    )


def test_our_difference_stands_beside_that_of_the_same_model(report: Report) -> None:
    (row,) = against(report, "v3")
    assert row.same_model
    assert [cell.difference for cell in row.published] == [10.1]
    assert row.ours is not None
    assert row.ours.value == 0.5
    assert lines((row,), "v3")[0].startswith("math: paper v3 +10.1 [A]; ours +50.0 (95% ")


def test_every_difference_in_protocol_is_in_words(report: Report) -> None:
    (row,) = against(report, "v3")
    told = "\n".join(row.differences)
    assert "items: 30 in the paper, 4 here" in told
    assert "repeats: 16 in the paper, 1 here" in told
    assert "65536 in the paper, not set or not recorded here" in told
    assert "temperature" not in told.split("\n")[0]
    assert not any(line.startswith(("temperature:", "turns", "judge:")) for line in row.differences)
    assert any(line.startswith("prompts: in the paper") for line in row.differences)


def test_a_model_that_the_paper_has_not_stands_beside_all_of_its_models(tmp_path: Path) -> None:
    report = build_report([_run(tmp_path, "local").path])
    (row,) = against(report, "v1")
    assert not row.same_model
    assert len(row.published) == 7
    assert row.differences[0] == "model: local is not among the paper's"


def test_a_report_without_the_two_arms_says_what_it_lacks(report: Report) -> None:
    (section,) = report.sets
    (row,) = against(replace(report, sets=(replace(section, comparisons=()),)), "v3")
    assert lines((row,), "v3")[0].endswith("not measured (needs the arms llm and sandbox)")


def test_only_a_run_by_the_protocol_is_put_beside_the_paper(tmp_path: Path) -> None:
    plain = build_report([_run(tmp_path, "openai/gpt-5").path])
    assert beside(plain) == []
    by_protocol = build_report([_run(tmp_path, "openai/gpt-5", protocol="v1").path])
    assert beside(by_protocol)[0].startswith("math: paper v1 +10.1")


def test_a_run_by_the_protocol_is_reported_beside_the_paper(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "llm.jsonl").write_text('{"text": "ANSWER: 1"}\n')
    (tmp_path / "sandbox.jsonl").write_text('{"tool_calls": [{"name": "submit"}]}\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    words = ["-m", "scripted:{mode}.jsonl", "--backend", "fake", "--no-reference"]
    words += ["--protocol", "v1", "--limit", "2", "--max-turns", "3", "--display", "none"]
    ran = CliRunner().invoke(app, ["bench", "mini-math", *words])
    assert ran.exit_code == 0, ran.output
    assert "not as in the paper (v1): max_turns: 100 in the paper, 3 here" in ran.output
    (run,) = (tmp_path / "runs").iterdir()
    manifest = BenchDirectory.open(run).manifest
    assert manifest["protocol"] == "v1"
    assert manifest["sampling"]["temperature"] == 1.0
    reported = CliRunner().invoke(app, ["report", str(run)])
    assert "mini-math: paper v1 Claude-Sonnet-4.5-Think +6.6 [A]" in reported.output
    assert "turns at most: 100 in the paper, 3 here" in reported.output
    resumed = CliRunner().invoke(app, ["bench", "--resume", str(run), *words[2:5]])
    assert resumed.exit_code == 0, resumed.output


def test_the_word_paper_stands_for_its_six_sets() -> None:
    from sandlot.cli.bench import _by_protocol

    settings = resolve({"model": "openai/gpt-5"}, environ={})
    words, settled, _ = _by_protocol("v3", ("paper", "mini"), settings)
    assert words == (*protocol("v3").sets, "mini")
    assert settled.judge == "openai/Qwen3-235B-A22B-Instruct-2507"
