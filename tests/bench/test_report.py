from __future__ import annotations

import json
from pathlib import Path

import pytest
from hand_made import Shot, pair, run_of

from sandlot.bench.gather import NOT_RUN, NOT_SCORED
from sandlot.bench.records import Meters
from sandlot.bench.report import (
    build_report,
    document_text,
    from_document,
    to_document,
    write_report,
)
from sandlot.bench.sample import write_sample
from sandlot.bench.terminal import plain, rich_tables, summary, tables
from sandlot.bench.words import headline
from sandlot.core.errors import RecordError

ARMS = ("llm", "sandbox", "sandbox-no-exec")


def test_the_difference_is_paired_over_the_items_that_both_arms_scored(tmp_path: Path) -> None:
    shots = [
        *pair("a", 0.0, 1.0),
        *pair("b", 0.0, 1.0),
        *pair("c", 1.0, 0.0),
        *pair("d", 1.0, 1.0),
        Shot("e", "llm", 1.0),
        Shot("e", "sandbox", None, failure="sandbox_died"),
    ]
    report = build_report([run_of(tmp_path, shots)])
    found = report.overall.comparison("llm", "sandbox")
    assert found is not None
    assert found.difference is not None
    assert found.difference.value == pytest.approx(0.25)
    assert (found.difference.items, found.difference.better, found.difference.worse) == (4, 2, 1)
    assert found.difference.test == "McNemar, exact"
    assert found.difference.p_value == 1.0  # 2 of 3 changes: no less likely than any other split
    assert found.bounds == pytest.approx((0.0, 0.2))  # e lost, or kept


def test_a_failure_of_ours_is_missing_with_its_class_and_never_a_wrong_answer(
    tmp_path: Path,
) -> None:
    shots = [
        *pair("a", 1.0, 1.0),
        Shot("b", "sandbox", None, failure="model_error"),
        Shot("c", "sandbox", None),
        Shot("b", "llm", 1.0),
    ]
    report = build_report([run_of(tmp_path, shots)])
    sandbox, llm = report.overall.arm("sandbox"), report.overall.arm("llm")
    assert sandbox is not None
    assert llm is not None
    assert sandbox.missing == {"model_error": 1, NOT_SCORED: 1}
    assert llm.missing == {NOT_RUN: 1}
    assert sandbox.score is not None
    assert (sandbox.score.value, sandbox.score.items) == (1.0, 1)
    assert sandbox.score.bounds == pytest.approx((1 / 3, 1.0))


def test_the_bounds_of_a_mean_count_missing_repeats_too(tmp_path: Path) -> None:
    shots = [
        Shot("a", "sandbox", 1.0, repeat=0),
        Shot("a", "sandbox", None, repeat=1, failure="unavailable"),
    ]
    arm = build_report([run_of(tmp_path, shots)]).overall.arm("sandbox")
    assert arm is not None
    assert arm.score is not None
    assert (arm.score.value, arm.score.missing) == (1.0, 0)
    assert arm.score.bounds == (0.5, 1.0)
    assert arm.planned == 2


def test_planned_repeats_and_items_that_never_ran_are_missing(tmp_path: Path) -> None:
    manifest = {"repeats": 3, "sets": {"math": {"items": 1, "row": {"repeats": 1}}}}
    arm = build_report([run_of(tmp_path, [Shot("a", "llm", 1.0)], manifest)]).overall.arm("llm")
    assert arm is not None
    assert arm.missing == {NOT_RUN: 2}


def test_repeats_of_an_item_count_once_and_flip_signs_instead_of_mcnemar(tmp_path: Path) -> None:
    shots = [
        Shot(item, arm, value, repeat=repeat)
        for item in ("a", "b")
        for arm, values in (("llm", (0.0, 1.0)), ("sandbox", (1.0, 1.0)))
        for repeat, value in enumerate(values)
    ]
    found = build_report([run_of(tmp_path, shots)]).overall.comparison("llm", "sandbox")
    assert found is not None
    assert found.difference is not None
    assert (found.difference.value, found.difference.items) == (0.5, 2)
    assert found.difference.test == "sign flips, exact"


def test_items_that_share_a_document_are_drawn_together(tmp_path: Path) -> None:
    shots = [shot for n in range(6) for shot in pair(f"i{n}", 0.0, 1.0, cluster=f"doc{n // 3}")]
    found = build_report([run_of(tmp_path, shots)]).overall.comparison("llm", "sandbox")
    assert found is not None
    assert found.difference is not None
    assert (found.difference.items, found.difference.clusters) == (6, 2)


def test_an_ablation_is_compared_with_the_sandbox_and_shows_its_control(tmp_path: Path) -> None:
    shots = [*pair("a", 0.0, 1.0), Shot("a", "sandbox-no-network", 0.0)]
    control = {"arm": "sandbox-no-network", "act": "ask", "without": "yes", "under": "no"}
    path = run_of(tmp_path, shots, {"controls": [{**control, "bites": True}]})
    report = build_report([path])
    found = report.overall.comparison("sandbox-no-network", "sandbox")
    assert found is not None
    assert found.takes == "external"
    assert found.difference is not None
    assert found.difference.value == 1.0
    assert report.controls["sandbox-no-network"]["under"] == "no"
    assert not report.notes


def test_an_ablation_without_a_positive_control_is_noted(tmp_path: Path) -> None:
    shots = [*pair("a", 0.0, 1.0), Shot("a", "sandbox-no-exec", 0.0)]
    report = build_report([run_of(tmp_path, shots)])
    assert any("sandbox-no-exec" in note and "positive control" in note for note in report.notes)


def test_marked_items_are_left_out_of_the_second_difference(tmp_path: Path) -> None:
    shots = [*pair("a", 0.0, 1.0, marks=("truth seen",)), *pair("b", 1.0, 1.0)]
    report = build_report([run_of(tmp_path, shots)])
    found = report.overall.comparison("llm", "sandbox")
    assert found is not None
    assert found.difference is not None
    assert found.unmarked is not None
    assert (found.difference.value, found.unmarked.value) == (0.5, 0.0)
    assert report.marks == {"math/a": ("truth seen",)}
    llm = report.overall.arm("llm")
    assert llm is not None
    assert llm.score is not None
    assert llm.unmarked is not None
    assert (llm.score.value, llm.unmarked.value, llm.unmarked.items) == (0.5, 1.0, 1)
    assert "Marked by the contamination guard" in plain(tables(report))


def test_the_gain_is_given_for_each_label(tmp_path: Path) -> None:
    shots = [
        *pair("a", 0.0, 1.0, label="computer-favouring"),
        *pair("b", 1.0, 0.0, label="computer-hostile"),
    ]
    labels = build_report([run_of(tmp_path, shots)]).overall.labels
    gains = {each.label: each.difference.value for each in labels if each.difference}
    assert gains == {"computer-favouring": 1.0, "computer-hostile": -1.0}


def test_p_values_are_adjusted_over_the_sets(tmp_path: Path) -> None:
    shots = [
        shot
        for name in ("math", "chem")
        for n in range(6)
        for shot in pair(f"{n}", 0.0, 1.0, task_set=name)
    ]
    report = build_report([run_of(tmp_path, shots)])
    for section in report.sets:
        found = section.comparison("llm", "sandbox")
        assert found is not None
        assert found.difference is not None
        assert found.difference.p_value == pytest.approx(2 / 64)
        assert found.adjusted_p == pytest.approx(4 / 64)


def test_the_flips_name_both_answers_and_what_was_won_comes_first(tmp_path: Path) -> None:
    shots = [
        Shot("a", "llm", 1.0, answer="right"),
        Shot("a", "sandbox", 0.0, answer=None),
        *pair("b", 0.0, 1.0),
        *pair("c", 1.0, 1.0),
    ]
    flips = build_report([run_of(tmp_path, shots)]).flips
    assert [(flip.item, flip.first, flip.second) for flip in flips] == [("b", 0, 1), ("a", 1, 0)]
    assert (flips[1].first_answer, flips[1].second_answer) == ("right", None)


def test_what_nobody_measured_is_unknown_and_never_zero(tmp_path: Path) -> None:
    shots = [
        Shot("a", "sandbox", 1.0, meters=Meters(turns=2, cost_usd=0.5)),
        Shot("b", "sandbox", 1.0, meters=Meters(turns=4)),
    ]
    arm = build_report([run_of(tmp_path, shots)]).overall.arm("sandbox")
    assert arm is not None
    cost, tokens = arm.use.meters["cost_usd"], arm.use.meters["billed_prompt_tokens"]
    assert (cost.known, cost.unknown, cost.mean) == (1, 1, 0.5)
    assert (tokens.known, tokens.mean) == (0, None)
    assert arm.use.per_minute is None
    assert "unknown" in plain(tables(build_report([next(tmp_path.iterdir())])))


def test_capability_shares_are_of_turns(tmp_path: Path) -> None:
    meters = Meters(turns=4, turns_with={"files": 3, "computation": 1})
    arm = build_report([run_of(tmp_path, [Shot("a", "sandbox", 1.0, meters=meters)])]).overall.arms
    assert arm[0].use.capabilities == {"external": 0.0, "files": 0.75, "computation": 0.25}


def test_the_last_attempt_counts_and_the_earlier_ones_are_told(tmp_path: Path) -> None:
    first = Shot("a", "llm", None, failure="model_error", meters=Meters(cost_usd=0.25))
    report = build_report([run_of(tmp_path, [first, Shot("a", "llm", 1.0, attempt=2)])])
    assert report.overall.arms[0].missing == {}
    assert report.runs[0].dropped == {"model_error": 1}
    assert report.runs[0].dropped_cost_usd == 0.25


def test_the_scorer_that_was_used_last_counts(tmp_path: Path) -> None:
    shots = [Shot("a", "llm", 0.0, scorer="choice"), Shot("a", "llm", 1.0, scorer="judge")]
    report = build_report([run_of(tmp_path, shots)])
    assert report.sets[0].scorer == "judge 1"
    assert report.overall.arms[0].score is not None
    assert report.overall.arms[0].score.value == 1.0
    assert any("choice" in note for note in report.notes)


def test_the_reference_column_is_there_only_where_a_reference_is(tmp_path: Path) -> None:
    without = run_of(tmp_path, pair("a", 1.0, 1.0), name="without")
    with_it = run_of(tmp_path, pair("a", 1.0, 1.0, reference=0.0), name="with")
    assert "reference" not in plain(tables(build_report([without])))
    assert "reference %" in plain(tables(build_report([with_it])))


def test_runs_of_other_sets_are_joined_and_of_the_same_are_refused(tmp_path: Path) -> None:
    first = run_of(tmp_path, pair("a", 0.0, 1.0), name="one")
    second = run_of(tmp_path, pair("a", 0.0, 1.0, task_set="chem"), name="two")
    third = run_of(tmp_path, pair("a", 0.0, 1.0), name="three")
    assert [section.name for section in build_report([first, second]).sets] == ["math", "chem"]
    with pytest.raises(RecordError, match="sandlot compare"):
        build_report([first, third])
    with pytest.raises(RecordError, match="sandlot compare"):
        build_report([first, first])


def test_an_arm_is_not_blamed_for_sets_that_it_was_not_part_of(tmp_path: Path) -> None:
    first = run_of(tmp_path, pair("a", 0.0, 1.0), name="one")
    second = run_of(tmp_path, [Shot("a", "sandbox", 1.0, task_set="chem")], name="two")
    arm = build_report([first, second]).overall.arm("llm")
    assert arm is not None
    assert (arm.planned, arm.missing) == (1, {})


def test_an_empty_run_says_that_there_is_nothing_to_report(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="no episode has ended"):
        build_report([run_of(tmp_path, [])])


def test_a_report_read_back_is_the_same_report(tmp_path: Path) -> None:
    run = write_sample(tmp_path, items=2, arms=ARMS).path
    report = build_report([run])
    write_report(report, run / "report.json")
    document = json.loads((run / "report.json").read_text("utf-8"))
    assert to_document(from_document(document)) == document
    with pytest.raises(RecordError, match="report version 99"):
        from_document({**document, "version": 99})


def test_a_report_is_the_same_to_the_digit_whatever_the_order_of_its_records(
    tmp_path: Path,
) -> None:
    run = write_sample(tmp_path, items=2, arms=ARMS).path
    before = document_text(build_report([run]))
    lines = (run / "episodes.jsonl").read_text("utf-8").splitlines(keepends=True)
    (run / "episodes.jsonl").write_text("".join(reversed(lines)), "utf-8")
    assert document_text(build_report([run])) == before


def test_perfect_and_wrong_answers_bracket_the_scores_and_claim_no_certainty(
    tmp_path: Path,
) -> None:
    shots = [shot for n in range(5) for shot in pair(str(n), 0.0, 1.0)]
    report = build_report([run_of(tmp_path, shots)])
    text = plain(tables(report))
    assert "0.0 (all alike), n=5" in text
    assert "100.0 (all alike), n=5" in text
    assert "+100.0 (all changed alike), n=5" in text


def test_an_item_that_never_changed_is_no_proof_that_none_would(tmp_path: Path) -> None:
    shots = [shot for n in range(10) for shot in pair(str(n), 1.0, 1.0)]
    text = plain(tables(build_report([run_of(tmp_path, shots)])))
    assert "none changed, so below ±26" in text  # 1 - 0.05 ** (1 / 10)


@pytest.mark.parametrize(
    ("wins", "losses", "verdict"),
    [
        (12, 0, "The computer helped"),
        (0, 12, "The computer did harm"),
        (3, 3, "No difference that could not be chance"),
    ],
)
def test_the_verdict_says_no_more_than_the_interval_and_the_test(
    tmp_path: Path, wins: int, losses: int, verdict: str
) -> None:
    shots = [
        *(shot for n in range(wins) for shot in pair(f"w{n}", 0.0, 1.0)),
        *(shot for n in range(losses) for shot in pair(f"l{n}", 1.0, 0.0)),
        *(shot for n in range(8) for shot in pair(f"s{n}", 1.0, 1.0)),
    ]
    assert headline(build_report([run_of(tmp_path, shots)])).verdict == verdict


def test_a_single_item_is_too_few_to_say(tmp_path: Path) -> None:
    report = build_report([run_of(tmp_path, pair("a", 0.0, 1.0))])
    assert headline(report).verdict == "Too few problems to say"


def test_a_single_arm_is_reported_without_a_comparison(tmp_path: Path) -> None:
    report = build_report([run_of(tmp_path, [Shot("a", "sandbox", 1.0)])])
    assert report.main is None
    assert summary(report)[0] == "One arm: nothing to compare"


def test_rich_draws_what_looks_like_markup_as_text(tmp_path: Path) -> None:
    from io import StringIO

    from rich.console import Console

    report = build_report([run_of(tmp_path, pair("[red]a[/red]", 0.0, 1.0))])
    out = StringIO()
    Console(file=out, width=200).print(*rich_tables(tables(report)))
    assert "math/[red]a[/red]" in out.getvalue()


def test_broken_unicode_of_a_model_or_a_task_reaches_every_form_of_the_report(
    tmp_path: Path,
) -> None:
    run = run_of(tmp_path, pair("x\ud800", 0.25, 0.5, answer="\udcff" * 1000))
    report = build_report([run])
    write_report(report, run / "report.json")
    document = json.loads((run / "report.json").read_text("utf-8"))
    assert from_document(document).flips[0].item.startswith("x")
    assert len(report.flips[0].first_answer or "") < 500
