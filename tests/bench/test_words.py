"""The sentences over a report: whole and true in the odd cases too."""

from __future__ import annotations

from pathlib import Path

import pytest
from hand_made import Shot, run_of

from sandlot.bench.report import build_report
from sandlot.bench.words import headline, least, money


def sentences(folder: Path, *pairs: tuple[float, float]) -> tuple[str, ...]:
    shots = [
        Shot(f"item{number}", arm, value)
        for number, pair in enumerate(pairs)
        for arm, value in zip(("llm", "sandbox"), pair, strict=True)
    ]
    return headline(build_report([run_of(folder, shots)])).sentences


def test_what_changed_hands_is_counted_in_plain_numbers(tmp_path: Path) -> None:
    scores, chance, *_ = sentences(tmp_path, (0, 1), (0, 1), (1, 0), (1, 1))
    assert "on 4 problems scored both ways" in scores
    assert scores.endswith("The change won 2 problems and lost 1.")
    assert chance.startswith("The 95 % interval is −50.0 to +100.0 points. If the change made no")


def test_where_nothing_changed_the_bound_is_said_and_no_empty_test(tmp_path: Path) -> None:
    _, chance, *_ = sentences(tmp_path, *[(1.0, 1.0)] * 10)
    assert chance == (
        "No problem changed its score; so few could miss a true difference of up to 26 points "
        "either way (95 % bound)."
    )


def test_where_all_changed_alike_no_interval_is_claimed(tmp_path: Path) -> None:
    _, chance, *_ = sentences(tmp_path, *[(0.0, 1.0)] * 3)
    assert chance.startswith("All changed alike, so that no interval can be drawn from them. If")
    assert "p = 0.250" in chance


def test_a_single_problem_is_one_problem(tmp_path: Path) -> None:
    scores, chance, *_ = sentences(tmp_path, (0.0, 1.0))
    assert "on 1 problem scored" in scores
    assert "The change won 1 problem and lost 0." in scores
    assert "no uncertainty can be given" in chance


@pytest.mark.parametrize(("smallest", "said"), [(None, "–"), (0.404, "40.4"), (1.4, "over 100")])
def test_no_gain_over_a_hundred_points_is_promised_to_show(
    smallest: float | None, said: str
) -> None:
    assert least(smallest) == said


def test_a_price_that_is_paid_is_never_shown_as_nothing() -> None:
    assert [money(x) for x in (None, 0.0, 4e-5, 0.0123, 2.5)] == [
        "unknown",
        "$0.00",
        "< $0.0001",
        "$0.0123",
        "$2.50",
    ]
