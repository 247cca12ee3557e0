from __future__ import annotations

import json
from pathlib import Path

import pytest
from hand_made import Shot, pair, run_of

from sandlot.bench.compare import compare_runs, summary, tables, to_document
from sandlot.bench.report import Section
from sandlot.bench.sample import write_sample
from sandlot.bench.stats import Difference
from sandlot.bench.terminal import plain
from sandlot.core.errors import RecordError


def gain(section: Section) -> Difference:
    found = section.comparison("A", "B")
    assert found is not None
    assert found.difference is not None
    return found.difference


def test_two_models_are_paired_by_item_in_each_arm_that_both_have(tmp_path: Path) -> None:
    before = [*pair("a", 0.0, 0.0), *pair("b", 1.0, 0.0), Shot("only-here", "llm", 1.0)]
    after = [*pair("a", 0.0, 1.0), *pair("b", 1.0, 1.0)]
    first = run_of(tmp_path, before, {"model": "small"}, "before")
    second = run_of(tmp_path, after, {"model": "large"}, "after")
    found = compare_runs(first, second)
    assert {arm.arm: gain(arm.overall).value for arm in found.arms} == {"llm": 0, "sandbox": 1}
    assert [gain(arm.overall).items for arm in found.arms] == [2, 2]
    assert ("model", "small", "large") in found.differs
    assert [flip.item for flip in found.arms[1].flips] == ["a", "b"]


def test_a_run_compared_with_itself_differs_in_nothing(tmp_path: Path) -> None:
    run = write_sample(tmp_path, items=3, arms=("llm", "sandbox")).path
    found = compare_runs(run, run)
    assert found.differs == ()
    assert all(gain(arm.overall).value == 0 for arm in found.arms)
    assert "The manifests do not differ" in plain(tables(found))


def test_runs_that_share_nothing_are_refused_with_what_each_holds(tmp_path: Path) -> None:
    first = run_of(tmp_path, [Shot("a", "llm", 1.0)], name="one")
    second = run_of(tmp_path, [Shot("a", "sandbox", 1.0)], name="two")
    with pytest.raises(RecordError, match=r"share no item.*math \(llm\).*math \(sandbox\)"):
        compare_runs(first, second)


def test_problems_that_changed_under_their_name_are_left_out(tmp_path: Path) -> None:
    first = write_sample(tmp_path / "1", items=2, arms=("llm",)).path
    second = write_sample(tmp_path / "2", items=2, arms=("llm",)).path
    tasks = (second / "tasks.jsonl").read_text("utf-8")
    (second / "tasks.jsonl").write_text(tasks.replace('"target":"7"', '"target":"8"', 1), "utf-8")
    found = compare_runs(first, second)
    assert found.arms[0].overall.items == 11
    assert any("1 items have one name" in note for note in found.notes)


def test_scores_by_different_scorers_are_warned_about(tmp_path: Path) -> None:
    first = run_of(tmp_path, [Shot("a", "llm", 1.0, scorer="text")], name="one")
    second = run_of(tmp_path, [Shot("a", "llm", 0.0, scorer="judge")], name="two")
    assert any("sandlot score" in note for note in compare_runs(first, second).notes)


def test_a_comparison_reads_in_words_and_as_json(tmp_path: Path) -> None:
    first = run_of(tmp_path, [Shot(str(n), "llm", 0.0) for n in range(8)], name="one")
    second = run_of(tmp_path, [Shot(str(n), "llm", 1.0) for n in range(8)], name="two")
    found = compare_runs(first, second)
    assert "B − A = +100.0" in summary(found)[2]
    document = json.loads(json.dumps(to_document(found)))
    assert document["arms"][0]["overall"]["comparisons"][0]["difference"]["value"] == 1.0
