"""Numbers and verdicts of a report in plain words, the same on the page and in the terminal."""

from __future__ import annotations

from dataclasses import dataclass

from sandlot.bench.report import ArmReport, Comparison, Report, Section, Tally
from sandlot.bench.stats import Difference, Interval, Mean

UNKNOWN = "unknown"
CAPABILITY = {
    "external": "external resources (the network)",
    "files": "file management",
    "computation": "code execution",
    "documents as files": "documents as files, not in the prompt",
}
_PLAIN_ARM = {"llm": "from its head", "sandbox": "in the sandbox"}
_SIGNIFICANT = 0.05


@dataclass(frozen=True, slots=True)
class Headline:
    """`verdict` is one short sentence; `figure` the difference; `sentences` say the rest."""

    verdict: str
    figure: str
    interval: str
    sentences: tuple[str, ...]


def percent(value: float | None) -> str:
    return UNKNOWN if value is None else f"{100 * value:.1f}"


def points(value: float | None) -> str:
    """A difference of scores in percentage points, with its sign."""
    if value is None:
        return UNKNOWN
    shown = f"{100 * value:+.1f}"
    return "0.0" if shown in ("+0.0", "-0.0") else shown.replace("-", "−")


def between(interval: Interval | None) -> str:
    if interval is None:
        return "no interval"
    return f"{points(interval.low)} to {points(interval.high)}"


def least(smallest: float | None) -> str:
    """The least gain that would show, in points; no gain is larger than 100."""
    if not smallest:
        return "–"
    return "over 100" if smallest > 1 else f"{100 * smallest:.1f}"


def p_value(p: float | None) -> str:
    if p is None:
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def score(mean: Mean | None) -> str:
    """A mean with its interval and the number of items it stands on."""
    if mean is None:
        return "no score"
    return f"{percent(mean.value)}{_around(mean.interval)}, n={mean.items}"


def _around(interval: Interval | None) -> str:
    if interval is None:
        return ""
    if interval.low == interval.high:
        return " (all alike)"
    return f" ({percent(interval.low)} to {percent(interval.high)})"


def difference(found: Difference | None) -> str:
    if found is None:
        return "no item in common"
    return f"{points(found.value)} ({spread(found)}), n={found.items}"


def spread(found: Difference) -> str:
    """The interval; where nothing changed, how rare a change may still be.

    A bootstrap of equal values has no width and would read as certainty. Source of the bound: the
    exact binomial one, near 3/n (Hanley and Lippman-Hand 1983).
    """
    if found.interval is not None and found.interval.low == found.interval.high:
        if found.better == found.worse == 0:
            return f"none changed, so below ±{100 * nothing_seen(found):.0f}"
        return "all changed alike"
    return between(found.interval)


def nothing_seen(found: Difference) -> float:
    """The share of problems that may change although none of these did, at 95 %."""
    return 1.0 - float(0.05 ** (1.0 / found.clusters))


def clear(found: Difference | None) -> bool:
    """Whether interval and test both tell the difference from chance."""
    if found is None or found.interval is None or found.p_value is None:
        return False
    outside = found.interval.low > 0 or found.interval.high < 0
    return outside and found.p_value < _SIGNIFICANT


def amount(value: float | None) -> str:
    """A count or a mean of counts: three digits or so, thousands parted."""
    if value is None:
        return UNKNOWN
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:,.1f}"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return UNKNOWN
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def money(dollars: float | None) -> str:
    if dollars is None:
        return UNKNOWN
    if 0 < dollars < 0.0001:
        return "< $0.0001"
    return f"${dollars:,.2f}" if dollars >= 1 or dollars == 0 else f"${dollars:.4f}"


def size(count: float | None) -> str:
    if count is None:
        return UNKNOWN
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:,.0f} {unit}" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1024
    return f"{count:,.1f} GiB"


def part_known(tally: Tally) -> str:
    """What to say beside a figure that covers only some of the episodes."""
    return f" (of {tally.known}, {tally.unknown} unknown)" if tally.known and tally.unknown else ""


def arm_words(arm: str) -> str:
    return _PLAIN_ARM.get(arm, f"in the arm {arm}")


def missing(arm: ArmReport) -> str:
    """Like `scored 188 of 200 (12 sandbox_died)`."""
    reasons = ", ".join(f"{count} {reason}" for reason, count in arm.missing.items())
    return f"scored {arm.scored} of {arm.planned}" + (f" ({reasons})" if reasons else "")


def headline(report: Report) -> Headline:
    """What the computer bought, for somebody who has never seen such a report."""
    if report.main is None:
        return Headline("One arm: nothing to compare", "–", "", _lone_arm(report))
    first, second = report.main
    found = report.overall.comparison(first, second)
    if found is None or found.difference is None:
        text = f"No problem has a score both {arm_words(first)} and {arm_words(second)}."
        return Headline("Nothing to compare yet", "–", "", (text,))
    sentences = [
        _scores_sentence(report.overall, found.difference, first, second),
        _chance_sentence(found.difference),
        *_attribution_sentences(report.overall),
        *_price_sentences(report.overall, first, second),
    ]
    return Headline(
        verdict=_verdict(found.difference, second),
        figure=points(found.difference.value),
        interval=spread(found.difference),
        sentences=tuple(sentences),
    )


def _lone_arm(report: Report) -> tuple[str, ...]:
    return tuple(f"{arm.arm}: {score(arm.score)}." for arm in report.overall.arms)


def _verdict(found: Difference, second: str) -> str:
    what = "The computer" if second == "sandbox" else f"The arm {second}"
    if clear(found):
        return f"{what} helped" if found.value > 0 else f"{what} did harm"
    if found.interval is None:
        return "Too few problems to say"
    return "No difference that could not be chance"


def _scores_sentence(section: Section, found: Difference, first: str, second: str) -> str:
    left, right = section.arm(first), section.arm(second)
    means = [arm.score.value if arm and arm.score else None for arm in (left, right)]
    return (
        f"The same model scored {percent(means[1])} % {arm_words(second)} and "
        f"{percent(means[0])} % {arm_words(first)}; on {_problems(found.items)} scored both ways "
        f"the difference is {points(found.value)} percentage points. The change won "
        f"{_problems(found.better)} and lost {found.worse}."
    )


def _problems(count: int) -> str:
    return "1 problem" if count == 1 else f"{count:,} problems"


def _chance_sentence(found: Difference) -> str:
    if found.interval is None:
        return "With fewer than two independent problems no uncertainty can be given."
    told = [_interval_words(found, found.interval)]
    if found.p_value is not None and (found.better or found.worse):
        told.append(
            "If the change made no difference, chance alone would give one this large "
            f"{_how_often(found.p_value)} ({found.test}, p {_equals(found.p_value)})."
        )
    if found.smallest:
        told.append(_power_words(found.smallest))
    return " ".join(told)


def _interval_words(found: Difference, interval: Interval) -> str:
    if interval.low < interval.high:
        return f"The 95 % interval is {spread(found)} points."
    if found.better or found.worse:
        return "All changed alike, so that no interval can be drawn from them."
    return (
        f"No problem changed its score; so few could miss a true difference of up to "
        f"{100 * nothing_seen(found):.0f} points either way (95 % bound)."
    )


def _power_words(smallest: float) -> str:
    if smallest > 1:
        return "This is too few problems to show even the largest gain in 4 of 5 such runs."
    shown = f"{100 * smallest:.1f}"
    return f"This many problems show a true gain of {shown} points or more in 4 of 5 such runs."


def _equals(p: float) -> str:
    return p_value(p) if p < 0.001 else f"= {p_value(p)}"


def _how_often(p: float) -> str:
    if p < 0.001:
        return "less than once in 1,000 runs"
    if p > 0.3:
        return f"in {100 * p:.0f} of 100 runs"
    return f"about once in {1 / p:,.0f} runs"


def ablations(section: Section) -> list[Comparison]:
    """The comparisons that take a capability away, the dearest loss first."""
    found = [each for each in section.comparisons if each.takes is not None]
    return sorted(found, key=lambda c: -(c.difference.value if c.difference else -2.0))


def _attribution_sentences(section: Section) -> list[str]:
    found = [
        each for each in ablations(section) if each.takes in ("external", "files", "computation")
    ]
    if not found:
        return ["Which capability bought it was not measured: the run has no arm that lacks one."]
    bought = [each for each in found if _lost(each.difference)]
    if not bought:
        return ["No single capability's share can be told from chance in this run."]
    parts = [f"{CAPABILITY[str(c.takes)]} {difference(c.difference)}" for c in bought]
    return [f"Points lost where one capability is taken away: {'; '.join(parts)}."]


def _lost(found: Difference | None) -> bool:
    return found is not None and found.value > 0 and clear(found)


def _price_sentences(section: Section, first: str, second: str) -> list[str]:
    left, right = section.arm(first), section.arm(second)
    if left is None or right is None:
        return []
    tokens = [billed(arm) for arm in (left, right)]
    walls = [arm.use.meters["wall_s"].mean for arm in (left, right)]
    turns = right.use.meters["turns"].mean
    ratio = f" ({tokens[1] / tokens[0]:.1f} times as many)" if tokens[0] and tokens[1] else ""
    return [
        f"A problem took {amount(turns)} turns, {amount(tokens[1])} billed tokens against "
        f"{amount(tokens[0])}{ratio}, and {duration(walls[1])} against {duration(walls[0])}."
    ]


def billed(arm: ArmReport) -> float | None:
    """Mean billed tokens of an episode, prompt and completion."""
    prompt = arm.use.meters["billed_prompt_tokens"].mean
    completion = arm.use.meters["billed_completion_tokens"].mean
    return None if prompt is None or completion is None else prompt + completion
