"""Means, paired differences and their uncertainty, over items and never over repeats.

The repeats of one item are averaged first: sixteen tries at one problem are one fact about it.
Where items share documents or a subject, whole clusters are drawn and flipped together. Seeded, so
that a report can be made again to the digit.

Sources: percentile bootstrap, Efron and Tibshirani 1993 (ch. 13); sign-flip test, Fisher 1935;
exact McNemar test, McNemar 1947; Holm 1979; normal power formula, Cohen 1988.
"""

from __future__ import annotations

import itertools
import math
import random
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import mul
from statistics import NormalDist, fmean, stdev
from typing import Literal

Values = Mapping[str, float]
"""Item id to its score, repeats averaged."""

DRAWS = 10_000
_EXACT_FLIPS = 14  # 2 ** 14 sign patterns are fewer than the draws that would stand for them
_BYTE, _FEW_KINDS = 256, 32
_NORMAL = NormalDist()
_BITS = bytes.maketrans(b"01", b"\x00\x01")


@dataclass(frozen=True, slots=True)
class Interval:
    """`level` is the share of draws inside, 0.95 by default."""

    low: float
    high: float
    level: float = 0.95


@dataclass(frozen=True, slots=True)
class Mean:
    """`interval` is None where fewer than two clusters are known: there is nothing to draw from.

    `bounds` are the means if every missing item had been worth 0, and 1.
    """

    value: float
    interval: Interval | None
    items: int
    clusters: int
    missing: int
    bounds: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Difference:
    """`value` is the mean of (second − first) over the items that both have.

    `p_value` is two-sided. `better` and `worse` count items that changed hands towards the second
    and the first arm. `smallest` is the least true gain that so many items, with the spread that
    was seen, would show in four of five such experiments (None below two clusters).
    """

    value: float
    interval: Interval | None
    p_value: float | None
    test: Literal["McNemar, exact", "sign flips, exact", "sign flips, drawn", "none"]
    items: int
    clusters: int
    better: int
    worse: int
    smallest: float | None


def item_means(scores: Mapping[str, Iterable[float | None]]) -> dict[str, float]:
    """Average the repeats of each item. What has no score is left out: a repeat, or an item."""
    known = {item: [v for v in values if v is not None] for item, values in scores.items()}
    return {item: fmean(values) for item, values in known.items() if values}


def mean_of(
    values: Values,
    *,
    missing: int = 0,
    clusters: Mapping[str, str] | None = None,
    seed: int = 0,
    draws: int = DRAWS,
) -> Mean:
    """The mean over items with a bootstrap interval.

    Raises:
        ValueError: there is no item.
    """
    if not values:
        raise ValueError("a mean needs at least one item")
    groups = _grouped(values, clusters)
    total, whole = math.fsum(values.values()), len(values) + missing
    return Mean(
        value=total / len(values),
        interval=_bootstrap(groups, seed, draws),
        items=len(values),
        clusters=len(groups),
        missing=missing,
        bounds=(total / whole, (total + missing) / whole),
    )


def paired(
    first: Values,
    second: Values,
    *,
    clusters: Mapping[str, str] | None = None,
    single: bool = False,
    seed: int = 0,
    draws: int = DRAWS,
) -> Difference | None:
    """What the second arm bought over the first, on the items that both answered; None without any.

    `single` says that each value is one try scored 0 or 1: then, and without clusters, McNemar's
    exact test is used; else signs are flipped.
    """
    common = sorted(first.keys() & second.keys())
    if not common:
        return None
    changes = {item: second[item] - first[item] for item in common}
    groups = _grouped(changes, clusters)
    better = sum(change > 0 for change in changes.values())
    worse = sum(change < 0 for change in changes.values())
    p_value: float | None
    test: Literal["McNemar, exact", "sign flips, exact", "sign flips, drawn", "none"]
    if single and len(groups) == len(changes):
        p_value, test = _mcnemar(better, worse), "McNemar, exact"
    else:
        p_value, test = _sign_flips([math.fsum(group) for group in groups], seed, draws)
    return Difference(
        value=fmean(changes.values()),
        interval=_bootstrap(groups, seed, draws),
        p_value=p_value,
        test=test,
        items=len(changes),
        clusters=len(groups),
        better=better,
        worse=worse,
        smallest=_smallest(groups),
    )


def holm(p_values: Mapping[str, float | None]) -> dict[str, float | None]:
    """Adjusted p-values over a family of tests; those that were not made stay None."""
    made = sorted((p, name) for name, p in p_values.items() if p is not None)
    adjusted: dict[str, float | None] = dict.fromkeys(p_values)
    highest = 0.0
    for rank, (p, name) in enumerate(made):
        highest = max(highest, min(1.0, p * (len(made) - rank)))
        adjusted[name] = highest
    return adjusted


def smallest_gain(items: int, spread: float, *, power: float = 0.8, level: float = 0.95) -> float:
    """The least true mean difference that `items` pairs with this standard deviation would show.

    For planning before a run, 0.5 is a cautious spread for single tries scored 0 or 1.

    Raises:
        ValueError: no items.
    """
    if items < 1:
        raise ValueError("a plan needs at least one item")
    z = _NORMAL.inv_cdf(0.5 + level / 2) + _NORMAL.inv_cdf(power)
    return z * spread / math.sqrt(items)


def _grouped(values: Values, clusters: Mapping[str, str] | None) -> list[list[float]]:
    """The values by cluster, in an order that does not depend on the order of the input."""
    groups: dict[str, list[float]] = {}
    for item in sorted(values):
        name = item if clusters is None else clusters.get(item, item)
        groups.setdefault(name, []).append(values[item])
    return list(groups.values())


def _bootstrap(groups: Sequence[Sequence[float]], seed: int, draws: int) -> Interval | None:
    """Percentiles of the mean over items when whole clusters are drawn with replacement."""
    if len(groups) < 2:
        return None
    rng = random.Random(seed)
    pairs = [(math.fsum(group), len(group)) for group in groups]
    kinds = sorted(set(pairs))
    if len(kinds) <= _FEW_KINDS:
        means = list(_means_by_bytes(pairs, kinds, rng, draws))
    elif len({size for _, size in pairs}) == 1:
        totals, drawn = [total for total, _ in pairs], sum(size for _, size in pairs)
        means = [sum(rng.choices(totals, k=len(totals))) / drawn for _ in range(draws)]
    else:
        means = [_mean_of_pairs(rng.choices(pairs, k=len(pairs))) for _ in range(draws)]
    means.sort()
    edge = int(draws * 0.025)
    return Interval(means[edge], means[draws - 1 - edge])


def _means_by_bytes(
    pairs: Sequence[tuple[float, int]],
    kinds: Sequence[tuple[float, int]],
    rng: random.Random,
    draws: int,
) -> Iterator[float]:
    """Means of whole draws, by how many clusters of each kind are in them.

    Clusters with the same total and size need not be told apart. A random byte stands for a 256th
    of the line on which the kinds lie one after the other; nearly every byte lies within one kind,
    and the few that lie across an edge draw a number within it. Exact, and ten times faster than
    choosing from a list.
    """
    n, numbers = len(pairs), range(len(kinds))
    each = Counter(pairs)
    edges = list(itertools.accumulate(each[kind] for kind in kinds))
    firsts = [bisect_right(edges, n * byte / _BYTE) for byte in range(_BYTE)]
    across = {
        byte: len(kinds) + number
        for number, byte in enumerate(
            byte for byte in range(_BYTE) if edges[firsts[byte]] < n * (byte + 1) / _BYTE
        )
    }
    table = bytes(across.get(byte, firsts[byte]) for byte in range(_BYTE))
    totals, sizes = zip(*kinds, strict=True)
    drawn, at = b"", 0
    for _ in range(draws):
        if len(drawn) < at + n:
            drawn, at = rng.randbytes(64 * n).translate(table), 0
        counts = [drawn.count(number, at, at + n) for number in numbers]
        for byte, code in across.items():
            for _ in range(drawn.count(code, at, at + n)):
                place = bisect_right(edges, n * (byte + rng.random()) / _BYTE)
                counts[min(place, len(kinds) - 1)] += 1  # the sum may be rounded up to the end
        yield sum(map(mul, counts, totals)) / sum(map(mul, counts, sizes))
        at += n


def _mean_of_pairs(pairs: Sequence[tuple[float, int]]) -> float:
    totals, sizes = zip(*pairs, strict=True)
    return float(math.fsum(totals) / sum(sizes))


def _mcnemar(better: int, worse: int) -> float:
    """Two-sided exact binomial test of the items that changed hands."""
    changed = better + worse
    if changed == 0:
        return 1.0
    tail = sum(math.comb(changed, k) for k in range(min(better, worse) + 1))
    return min(1.0, 2.0 * tail / float(2**changed))


def _sign_flips(
    sums: Sequence[float], seed: int, draws: int
) -> tuple[float | None, Literal["sign flips, exact", "sign flips, drawn", "none"]]:
    """How often random signs give a sum at least as far from 0.

    Clusters without a change say nothing and are left out.
    """
    changed = [value for value in sums if value]
    if not sums:
        return None, "none"
    seen = abs(math.fsum(changed)) - 1e-9
    if len(changed) <= _EXACT_FLIPS:
        signs = itertools.product((1, -1), repeat=len(changed))
        hits = sum(
            abs(sum(s * v for s, v in zip(sign, changed, strict=True))) >= seen for sign in signs
        )
        return hits / 2 ** len(changed), "sign flips, exact"
    rng = random.Random(seed)
    hits = 0
    whole, n = math.fsum(changed), len(changed)
    for _ in range(draws):
        kept = f"{rng.getrandbits(n):0{n}b}".encode().translate(_BITS)  # one byte a sign
        flipped = 2 * sum(itertools.compress(changed, kept)) - whole
        hits += abs(flipped) >= seen
    return (hits + 1) / (draws + 1), "sign flips, drawn"


def _smallest(groups: Sequence[Sequence[float]]) -> float | None:
    """By the spread of the cluster means, weighted by their sizes."""
    if len(groups) < 2:
        return None
    items = sum(len(group) for group in groups)
    scale = len(groups) / items
    mean = math.fsum(value for group in groups for value in group) / items
    # What varies is a cluster's part beyond its size: unequal sizes alone are no spread.
    spread = stdev((math.fsum(group) - mean * len(group)) * scale for group in groups)
    # No spread at all says that nothing was seen, not that everything would be.
    return smallest_gain(len(groups), spread) if spread > 1e-12 else None
