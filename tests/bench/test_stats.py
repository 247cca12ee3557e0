"""Statistics against known answers, by hand and from the literature."""

from __future__ import annotations

import math
import random

import pytest

from sandlot.bench.stats import (
    holm,
    item_means,
    mean_of,
    paired,
    smallest_gain,
)


def named(values: list[float]) -> dict[str, float]:
    return {f"i{n:03d}": value for n, value in enumerate(values)}


def test_repeats_are_averaged_and_missing_ones_are_left_out() -> None:
    assert item_means({"a": [1.0, 0.0, None, 1.0], "b": [None], "c": []}) == {"a": 2 / 3}


def test_a_mean_says_what_missing_items_could_have_made_of_it() -> None:
    mean = mean_of(named([1.0, 1.0, 0.0]), missing=1)
    assert mean.value == pytest.approx(2 / 3)
    assert mean.bounds == (0.5, 0.75)


def test_a_single_item_has_no_interval() -> None:
    assert mean_of({"a": 1.0}).interval is None
    difference = paired({"a": 0.0}, {"a": 1.0})
    assert difference is not None
    assert difference.interval is None
    assert difference.smallest is None


def test_the_interval_of_a_proportion_is_near_the_textbook_one() -> None:
    values = named([1.0] * 40 + [0.0] * 60)
    interval = mean_of(values).interval
    assert interval is not None
    half = 1.96 * math.sqrt(0.4 * 0.6 / 100)
    assert interval.low == pytest.approx(0.4 - half, abs=0.015)
    assert interval.high == pytest.approx(0.4 + half, abs=0.015)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = random.Random(5)
    covered = 0
    for seed in range(200):
        values = named([float(rng.random() < 0.3) for _ in range(60)])
        interval = mean_of(values, seed=seed, draws=400).interval
        assert interval is not None
        covered += interval.low <= 0.3 <= interval.high
    assert 178 <= covered <= 199


def test_items_that_share_a_document_make_the_interval_wider() -> None:
    values = named([1.0] * 50 + [0.0] * 50)
    shared = {item: str(n // 10) for n, item in enumerate(values)}
    alone, together = mean_of(values).interval, mean_of(values, clusters=shared).interval
    assert alone is not None
    assert together is not None
    assert together.high - together.low > 2 * (alone.high - alone.low)


def test_mcnemar_gives_the_exact_binomial_value() -> None:
    first = named([0.0] * 9 + [1.0] + [1.0] * 20)
    second = named([1.0] * 9 + [0.0] + [1.0] * 20)
    difference = paired(first, second, single=True)
    assert difference is not None
    assert (difference.better, difference.worse) == (9, 1)
    assert difference.test == "McNemar, exact"
    assert difference.p_value == pytest.approx(2 * (1 + 10) / 1024)


def test_sign_flips_of_few_items_are_counted_exactly() -> None:
    difference = paired(named([0.0] * 5), named([0.5, 0.5, 0.5, 0.5, 0.5]))
    assert difference is not None
    assert difference.test == "sign flips, exact"
    assert difference.p_value == pytest.approx(2 / 32)


def test_drawn_sign_flips_agree_with_exact_ones() -> None:
    rng = random.Random(1)
    changes = [rng.gauss(0.2, 0.5) for _ in range(14)]
    exact = paired(named([0.0] * 14), named(changes))
    drawn = paired(named([0.0] * 30), named([*changes, *[0.0] * 16]))
    more = paired(named([0.0] * 16), named([*changes, 1e-9, -1e-9]))
    assert exact is not None
    assert drawn is not None
    assert more is not None
    assert more.test == "sign flips, drawn"
    assert drawn.p_value == exact.p_value, "items without a change say nothing"
    assert more.p_value == pytest.approx(exact.p_value, abs=0.02)


def test_no_change_at_all_is_no_evidence() -> None:
    same = named([1.0, 0.0, 1.0])
    for single in (True, False):
        difference = paired(same, same, single=single)
        assert difference is not None
        assert difference.value == 0
        assert difference.p_value == 1


def test_only_items_that_both_arms_have_are_compared() -> None:
    difference = paired({"a": 0.0, "b": 1.0}, {"b": 1.0, "c": 0.0})
    assert difference is not None
    assert difference.items == 1
    assert paired({"a": 1.0}, {"b": 1.0}) is None


def test_the_order_of_the_items_changes_nothing() -> None:
    values = [0.3, 0.9, 0.1, 0.5, 0.7]
    forward, backward = named(values), dict(reversed(list(named(values).items())))
    assert mean_of(forward) == mean_of(backward)


def test_a_true_difference_is_found_as_often_as_the_smallest_gain_says() -> None:
    rng = random.Random(3)
    gain = smallest_gain(100, 0.4)
    found = 0
    for seed in range(100):
        first = named([0.0] * 100)
        second = named([rng.gauss(gain, 0.4) for _ in range(100)])
        difference = paired(first, second, seed=seed, draws=200)
        assert difference is not None
        assert difference.p_value is not None
        found += difference.p_value <= 0.05
    assert 68 <= found <= 92


def test_holm_gives_the_published_steps() -> None:
    given = {"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005, "e": None}
    assert holm(given) == {
        "a": pytest.approx(0.03),
        "b": pytest.approx(0.06),
        "c": pytest.approx(0.06),
        "d": pytest.approx(0.02),
        "e": None,
    }


def test_a_large_run_is_computed_in_a_moment() -> None:
    rng = random.Random(0)
    values = named([rng.random() for _ in range(1000)])
    assert mean_of(values, draws=2000).interval is not None


def test_a_mean_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one item"):
        mean_of({})


def test_an_interval_does_not_depend_on_how_its_clusters_are_drawn() -> None:
    """Few kinds of clusters are drawn by bytes, many by choosing: the same spread comes of both."""
    by_bytes = mean_of({f"{n:03d}": float(n % 5 < 2) for n in range(300)}).interval
    chosen = mean_of({f"{n:03d}": (n % 5 < 2) + n * 1e-9 for n in range(300)}).interval
    assert by_bytes is not None
    assert chosen is not None
    assert by_bytes.low == pytest.approx(chosen.low, abs=0.008)
    assert by_bytes.high == pytest.approx(chosen.high, abs=0.008)


def test_every_kind_is_drawn_as_often_as_it_is_there() -> None:
    """Kinds whose edges lie inside a byte's 256th, one of them far smaller than that."""
    values = {f"{n:04d}": 0.0 if n < 333 else 5.0 if n == 333 else 1.0 for n in range(1000)}
    interval = mean_of(values, draws=4000).interval
    assert interval is not None
    middle = (interval.low + interval.high) / 2
    assert middle == pytest.approx(0.671, abs=0.003)


def test_clusters_of_unequal_size_are_drawn_whole() -> None:
    values = {f"{n}": float(n < 6) for n in range(9)}
    clusters = {f"{n}": "large" for n in range(6)}
    interval = mean_of(values, clusters=clusters).interval
    assert interval is not None
    assert (interval.low, interval.high) == (0.0, pytest.approx(18 / 19, abs=0.05))
