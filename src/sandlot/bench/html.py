"""A report as one page that needs no network and no script, for a stranger to read.

What a model or a task set wrote reaches the page only through `text`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from typing import Any

from sandlot.bench import plots, words
from sandlot.bench.arms import ARMS
from sandlot.bench.gather import manifest_sets
from sandlot.bench.plots import Dot, Row, Scale, Span, text
from sandlot.bench.report import (
    CAPABILITIES,
    ArmReport,
    Comparison,
    Flip,
    LabelGain,
    Report,
    RunInfo,
    Section,
    lacks,
)
from sandlot.bench.stats import Difference

_FLIPS_SHOWN, _FLIPS_OPEN = 300, 60
_TURNS_LEAST, _TURNS_SHOWN = 8, 30
_SET_COLUMNS = ("task set", "items", "scorer", "source", "licence", "digest")
_UNIT, _NO_BREAK = re.compile(r"(?<=\d) (?=(?:s|min|h|%|points)\b|%)"), "\u00a0"
_UNITS = {
    "turns": words.amount,
    "tool_calls": words.amount,
    "billed_prompt_tokens": words.amount,
    "billed_cached_tokens": words.amount,
    "billed_completion_tokens": words.amount,
    "context_tokens": words.amount,
    "observation_tokens": words.amount,
    "cost_usd": words.money,
    "wall_s": words.duration,
    "model_s": words.duration,
    "tool_s": words.duration,
    "waiting_s": words.duration,
    "cpu_s": words.duration,
    "memory_peak_bytes": words.size,
}
_METER_NAMES = {
    "turns": "turns",
    "tool_calls": "tool calls",
    "billed_prompt_tokens": "prompt tokens, billed",
    "billed_cached_tokens": "of them cached",
    "billed_completion_tokens": "completion tokens, billed",
    "context_tokens": "context of the last request",
    "observation_tokens": "of it from tools",
    "cost_usd": "money",
    "wall_s": "wall time",
    "model_s": "of it the model",
    "tool_s": "of it tools",
    "waiting_s": "of it waiting",
    "cpu_s": "CPU time in the sandbox",
    "memory_peak_bytes": "memory, peak",
}


def page(report: Report) -> str:
    """The whole document."""
    style = files("sandlot.bench").joinpath("data/report.css").read_text("utf-8")
    title = f"What did the computer buy? {', '.join(_models(report))}"
    body = "\n".join(part for part in _parts(report) if part)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{text(title)}</title><style>{style}</style></head>\n"
        f"<body><main>\n{body}\n</main></body></html>\n"
    )


def _parts(report: Report) -> Iterable[str]:
    yield _top(report)
    yield _gains(report)
    yield _attribution(report)
    yield _by_label(report)
    yield _scores(report)
    yield _flips(report)
    yield _tokens(report)
    yield _turns(report)
    yield _capabilities(report)
    yield _costs(report)
    yield _uncertainty(report)
    yield _marks(report)
    yield _paper(report)
    yield _protocol(report)


def _models(report: Report) -> list[str]:
    return sorted({str(run.manifest.get("model", "unknown model")) for run in report.runs})


def _top(report: Report) -> str:
    top = words.headline(report)
    overall = report.overall
    sets = f"{len(report.sets)} task sets" if len(report.sets) > 1 else report.sets[0].name
    facts = f"{', '.join(_models(report))} · {overall.items} problems · {sets}"
    figure = ""
    if top.figure != "–":
        figure = (
            f'<p class="figure-large"><strong>{text(top.figure)}</strong> points'
            f"<span>95 % interval: {text(top.interval)}</span></p>"
        )
    sentences = "".join(f"<p>{_UNIT.sub(_NO_BREAK, text(each))}</p>" for each in top.sentences)
    notes = "".join(f'<p class="warning">{text(note)}</p>' for note in report.notes)
    return (
        f'<header><p class="kicker">What did the computer buy?</p><h1>{text(top.verdict)}</h1>'
        f'<p class="facts">{text(facts)}</p>{figure}<div class="lead">{sentences}</div>'
        f"{notes}</header>"
    )


def _section(title: str, why: str, content: str) -> str:
    return f'<section><h2>{text(title)}</h2><p class="why">{text(why)}</p>{content}</section>'


def _with_all(report: Report) -> list[Section]:
    """The sets, and all of them together where there are several."""
    return [*report.sets, report.overall] if len(report.sets) > 1 else list(report.sets)


def _gains(report: Report) -> str:
    if report.main is None:
        return ""
    found = [(section, section.comparison(*report.main)) for section in _with_all(report)]
    rows = [
        _gain_row(_name_of(section), each.difference, "c1", strong=section is report.overall)
        for section, each in found
        if each is not None and each.difference is not None
    ]
    others = "".join(_other_gains(report, second) for second in _other_arms(report))
    return _section(
        "The difference in each domain",
        f"Each problem's score {words.arm_words(report.main[1])} minus its score "
        f"{words.arm_words(report.main[0])}, averaged; the line is the 95 % interval. Right of 0, "
        "the computer helped. A line that crosses 0 may be chance.",
        _forest(rows, "percentage points") + others + _gain_table(report, found),
    )


def _name_of(section: Section) -> str:
    return "all problems" if section.name == "all" else section.name


def _other_arms(report: Report) -> list[str]:
    """Arms beside the main pair that were compared with the head and lack no capability."""
    assert report.main is not None
    return [arm for arm in report.arms if arm not in report.main and lacks(arm) not in CAPABILITIES]


def _other_gains(report: Report, second: str) -> str:
    assert report.main is not None
    first = report.main[0]
    rows = [
        _gain_row(_name_of(section), each.difference, "c2", strong=section is report.overall)
        for section in _with_all(report)
        if (each := section.comparison(first, second)) is not None and each.difference is not None
    ]
    if not rows:
        return ""
    return f"<h3>{text(second)} minus {text(first)}</h3>{_forest(rows, 'percentage points')}"


def _gain_row(label: str, found: Difference, css: str, *, strong: bool = False) -> Row:
    interval = found.interval
    span = Span(
        found.value,
        interval.low if interval else None,
        interval.high if interval else None,
        css,
        words.difference(found),
    )
    note = f"n = {found.items}, {found.better} won, {found.worse} lost"
    return Row(label, note, (span,), f"{words.points(found.value)} ({words.spread(found)})", strong)


def _forest(rows: Sequence[Row], caption: str) -> str:
    if not rows:
        return '<p class="none">No problem was scored in both arms.</p>'
    return plots.intervals(rows, plots.around_zero(rows), caption, zero=True)


def _gain_table(report: Report, found: Sequence[tuple[Section, Comparison | None]]) -> str:
    """The numbers under the plot: test, Holm, smallest gain, bounds."""
    rows = [
        (
            _name_of(section),
            words.p_value(each.difference.p_value),
            words.p_value(each.adjusted_p),
            each.difference.test,
            words.least(each.difference.smallest),
            _bounds(each.bounds),
        )
        for section, each in found
        if each is not None and each.difference is not None
    ]
    head = ("", "p", "p, Holm over domains", "test", "least gain that would show", "bounds")
    return _details("Tests, power and bounds", _table(head, rows))


def _bounds(bounds: tuple[float, float] | None) -> str:
    if bounds is None:
        return words.UNKNOWN
    low, high = (words.points(each) for each in bounds)
    return low if low == high else f"{low} to {high}"


def _attribution(report: Report) -> str:
    found = words.ablations(report.overall)
    why = (
        "The score of the whole sandbox minus that of the same sandbox with one capability taken "
        "away at the wall, paired by problem. Far right of 0: this capability bought the gain."
    )
    if not found:
        return _section(
            "Which capability bought it", why, '<p class="none">No such arm was run.</p>'
        )
    rows = [
        _gain_row(words.CAPABILITY[str(each.takes)], each.difference, "c3")
        for each in found
        if each.difference is not None
    ]
    controls = "".join(
        f"<li><b>{text(each.first)}</b>: {text(_control(report, each.first))}</li>"
        for each in found
        if each.takes in CAPABILITIES
    )
    proof = (
        f'<h3>Does each ablation bite?</h3><ul class="controls">{controls}</ul>' if controls else ""
    )
    per_set = _details("By domain", _attribution_table(report, found))
    return _section(
        "Which capability bought it",
        why,
        _forest(rows, "percentage points lost without it") + proof + per_set,
    )


def _control(report: Report, arm: str) -> str:
    found = report.controls.get(arm)
    if found is None:
        return "no positive control was recorded"
    verdict = "it bites" if found.get("bites") else "IT DOES NOT BITE"
    return (
        f"{verdict}. {found.get('act', 'The forbidden act')}: without the ablation, "
        f"“{found.get('without', words.UNKNOWN)}”; under it, “{found.get('under', words.UNKNOWN)}”."
    )


def _attribution_table(report: Report, found: Sequence[Comparison]) -> str:
    head = ("", *(words.CAPABILITY[str(each.takes)] for each in found))
    rows = [
        (
            _name_of(section),
            *(_difference_cell(section.comparison(each.first, each.second)) for each in found),
        )
        for section in _with_all(report)
    ]
    return _table(head, rows)


def _difference_cell(comparison: Comparison | None) -> str:
    return "–" if comparison is None else words.difference(comparison.difference)


def _by_label(report: Report) -> str:
    if not report.overall.labels:
        return ""
    rows = [
        _gain_row(gain.label, gain.difference, "c1")
        for gain in report.overall.labels
        if gain.difference is not None
    ]
    body = [
        (
            _name_of(section),
            *(_label_cell(section.labels, gain.label) for gain in report.overall.labels),
        )
        for section in report.sets
    ]
    head = ("", *(gain.label for gain in report.overall.labels))
    return _section(
        "The gain by what was expected",
        "Every problem was labelled before any run: would a computer help, make no difference, or "
        "mislead? A gain that comes from the first kind alone says what the problems were like.",
        _forest(rows, "percentage points") + _details("By domain", _table(head, body)),
    )


def _label_cell(labels: Sequence[LabelGain], name: str) -> str:
    found = next((gain for gain in labels if gain.label == name), None)
    return "–" if found is None else words.difference(found.difference)


def _css(report: Report, arm: str) -> str:
    """The colour of an arm, the same in every plot."""
    order = [*ARMS, *(name for name in report.arms if name not in ARMS)]
    return f"c{order.index(arm) % 8}"


def _scores(report: Report) -> str:
    rows = [
        Row(
            _name_of(section),
            f"{section.items} problems",
            tuple(_score_span(report, arm) for arm in section.arms if arm.score is not None),
            _score_text(report, section),
            strong=section is report.overall,
        )
        for section in _with_all(report)
    ]
    plot = plots.intervals(rows, Scale(0, 1), "score, percent", zero=False)
    return _section(
        "Scores",
        "The mean score of each arm with its 95 % interval over problems. The intervals of two "
        "arms overlap more than their difference is uncertain, since both answer the same "
        "problems: read differences above.",
        _legend(report, report.arms) + plot + _details("As a table", _score_table(report)),
    )


def _score_text(report: Report, section: Section) -> str:
    shown = report.main or report.arms
    means = [arm.score for arm in section.arms if arm.arm in shown]
    return " → ".join(words.percent(mean.value if mean else None) for mean in means)


def _score_span(report: Report, arm: ArmReport) -> Span:
    assert arm.score is not None
    interval = arm.score.interval
    return Span(
        arm.score.value,
        interval.low if interval else None,
        interval.high if interval else None,
        _css(report, arm.arm),
        f"{arm.arm}: {words.score(arm.score)}",
    )


def _legend(report: Report, arms: Iterable[str]) -> str:
    marks = "".join(
        f'<li class="{_css(report, arm)}"><svg width="14" height="12" aria-hidden="true">'
        f'<circle cx="7" cy="6" r="5"/></svg>{text(arm)}</li>'
        for arm in arms
    )
    return f'<ul class="legend">{marks}</ul>'


def _score_table(report: Report) -> str:
    reference = any(arm.reference for section in report.sets for arm in section.arms)
    head = ["set", "arm", "score, %", "scored", "bounds, %", "no answer"]
    rows = []
    for section in _with_all(report):
        for arm in section.arms:
            bounds = arm.score.bounds if arm.score else (0.0, 1.0)
            row = [
                _name_of(section),
                arm.arm,
                words.score(arm.score),
                words.missing(arm),
                f"{words.percent(bounds[0])} to {words.percent(bounds[1])}",
                str(arm.no_answer),
            ]
            rows.append([*row, words.score(arm.reference)] if reference else row)
    return _table([*head, "reference_score, %"] if reference else head, rows)


def _flips(report: Report) -> str:
    if report.main is None:
        return ""
    won = sum(flip.second > flip.first for flip in report.flips)
    shown = report.flips[:_FLIPS_SHOWN]
    left_out = len(report.flips) - len(shown)
    rows = "".join(_flip_row(flip) for flip in shown)
    first, second = report.main
    table = (
        '<div class="scroll"><table class="flips"><thead><tr><th>problem</th><th>label</th>'
        f"<th>{text(first)}</th><th>{text(second)}</th></tr></thead><tbody>{rows}</tbody></table></div>"
        if rows
        else '<p class="none">None.</p>'
    )
    more = f"<p>{left_out} more are in report.json.</p>" if left_out else ""
    return _section(
        "Problems that changed hands",
        f"{won} won and {len(report.flips) - won} lost by {second} against {first}, with the "
        "answers as the models left them (cut where long).",
        f"<details{' open' if len(shown) <= _FLIPS_OPEN else ''}><summary>{len(report.flips)} "
        f"problems</summary>{table}{more}</details>",
    )


def _flip_row(flip: Flip) -> str:
    won = flip.second > flip.first
    mark = f' <span class="mark" title="{text(", ".join(flip.marks))}">marked</span>'
    return (
        f'<tr class="{"won" if won else "lost"}"><td>{"▲" if won else "▼"} '
        f"<b>{text(flip.task_set)}</b> {text(flip.item)}{mark if flip.marks else ''}</td>"
        f"<td>{text(flip.label or '–')}</td>"
        f"{_answer_cell(flip.first, flip.first_answer)}"
        f"{_answer_cell(flip.second, flip.second_answer)}</tr>"
    )


def _answer_cell(score: float, answer: str | None) -> str:
    shown = "<i>no answer</i>" if answer is None else f"<code>{text(answer)}</code>"
    return f'<td><span class="worth">{score:g}</span> {shown}</td>'


def _tokens(report: Report) -> str:
    shown = report.main or report.arms
    dots: dict[tuple[str, str], Dot] = {}
    for section in report.sets:
        for arm in section.arms:
            tokens = words.billed(arm)
            if arm.arm in shown and arm.score is not None and tokens:
                label = section.name if arm.arm == (report.main or ("", ""))[1] else ""
                title = f"{section.name}, {arm.arm}: {words.amount(tokens)} tokens, "
                dots[section.name, arm.arm] = Dot(
                    tokens,
                    arm.score.value,
                    _css(report, arm.arm),
                    label,
                    title + words.score(arm.score),
                )
    if not dots:
        return _section(
            "Tokens against score",
            "What the score cost in tokens.",
            '<p class="none">No server reported token counts: unknown.</p>',
        )
    first, second = report.main or ("", "")
    arrows = [
        (dots[name, first], dots[name, second])
        for name in dict.fromkeys(name for name, _ in dots)
        if (name, first) in dots and (name, second) in dots
    ]
    return _section(
        "Tokens against score",
        "Each point is an arm on a task set; a line leads from the head to the sandbox. Up is "
        "better, left is cheaper. Tokens are billed ones: prompt and completion summed over all "
        "requests, cached prompt tokens included.",
        _legend(report, dict.fromkeys(arm for _, arm in dots))
        + plots.scatter(list(dots.values()), arrows, "billed tokens a problem", "score, percent"),
    )


def _turns(report: Report) -> str:
    arms = [arm for arm in report.overall.arms if any(int(n) > 1 for n in arm.use.turn_counts)]
    if not arms:
        return ""
    longest = max(int(n) for arm in arms for n in arm.use.turn_counts)
    bins = min(_TURNS_SHOWN, max(_TURNS_LEAST, longest))
    peak = max(_highest_bar(arm.use.turn_counts, bins) for arm in arms)
    strips = "".join(
        f"<div><h3>{text(arm.arm)}<br><small>{_turn_figures(arm)}</small></h3>"
        + plots.histogram(
            arm.use.turn_counts, _css(report, arm.arm), bins, f"turns of {arm.arm}", peak
        )
        + "</div>"
        for arm in arms
    )
    stops = _table(
        ("arm", "stopped because"),
        [
            (arm.arm, ", ".join(f"{n} {reason}" for reason, n in arm.stops.items()))
            for arm in report.overall.arms
        ],
    )
    return _section(
        "Turns",
        "How many replies of the model a rollout took, as the share of rollouts.",
        f'<div class="strips">{strips}</div>' + _details("Why they stopped", stops),
    )


def _turn_figures(arm: ArmReport) -> str:
    turns = arm.use.meters["turns"]
    return f"mean {words.amount(turns.mean)}, median {words.amount(turns.median)}, n = {arm.ended}"


def _highest_bar(counts: Mapping[str, int], bins: int) -> float:
    total = sum(counts.values())
    tail = sum(n for at, n in counts.items() if int(at) >= bins)
    return max([tail, *(n for at, n in counts.items() if int(at) < bins)], default=0) / total


def _capabilities(report: Report) -> str:
    """The paper's shares of turns, and what the boundary saw, for the arm in the sandbox."""
    second = report.main[1] if report.main else report.arms[0]
    rows = []
    for section in _with_all(report):
        arm = section.arm(second)
        if arm is None or not arm.use.meters["tool_calls"].total:
            continue
        use = arm.use
        cells = "".join(
            f"<td>{plots.bar(share, f'c{3 + n}', _share(share))}</td>"
            for n, share in enumerate(use.capabilities[name] for name in CAPABILITIES)
        )
        rows.append(
            f"<tr><th>{text(_name_of(section))}</th>{cells}<td>{_share(use.went_out)}</td>"
            f"<td>{words.size(sum(use.hosts.values()) / arm.ended if arm.ended else None)}</td>"
            f"<td>{_share(use.left_files)}</td>"
            f"<td>{words.duration(use.meters['cpu_s'].mean)}</td></tr>"
        )
    if not rows:
        return ""
    head = "".join(
        f"<th>{name}</th>"
        for name in (
            "",
            "external resources",
            "files",
            "computation",
            "went out",
            "bytes",
            "left files",
            "CPU",
        )
    )
    arm = report.overall.arm(second)
    return _section(
        "What the computer was used for",
        f"Arm {second}. Left: the share of turns whose commands match the patterns of each "
        "capability, as the paper counts them. Right: what was measured at the boundary: rollouts "
        "with an allowed request, bytes over the network, rollouts that left files, CPU time.",
        f'<div class="scroll"><table class="uses"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>{_hosts(arm)}",
    )


def _share(value: float | None) -> str:
    return words.UNKNOWN if value is None else f"{100 * value:.1f} %"


def _hosts(arm: ArmReport | None) -> str:
    """Who was reached, and what was installed and then used."""
    if arm is None:
        return ""
    hosts = [(host, words.size(count)) for host, count in list(arm.use.hosts.items())[:50]]
    tools = [(name, str(count)) for name, count in arm.use.installed_and_used.items()][:50]
    found = _details("Hosts reached", _table(("host", "bytes"), hosts)) if hosts else ""
    if tools:
        table = _table(("package", "rollouts"), tools)
        found += _details("Installed by the model and then used", table)
    return found


def _costs(report: Report) -> str:
    arms = report.overall.arms
    rows = [
        (name, *(_tally_cell(arm, meter, show) for arm in arms))
        for meter, name in _METER_NAMES.items()
        for show in (_UNITS[meter],)
        if any(arm.use.meters[meter].known for arm in arms) or meter == "cost_usd"
    ]
    rates = [words.UNKNOWN if a.use.per_minute is None else f"{a.use.per_minute:.2f}" for a in arms]
    totals = [words.money(arm.use.meters["cost_usd"].total) for arm in arms]
    rows += [("problems a minute, one slot", *rates), ("money, all episodes", *totals)]
    head = ("mean of a rollout", *(arm.arm for arm in arms))
    return _section(
        "What it cost",
        "Means over all rollouts. Billed tokens are summed over requests, so that a long "
        "conversation pays for its history again and again, unless it is cached.",
        _table(head, rows) + _dropped(report),
    )


def _tally_cell(arm: ArmReport, meter: str, show: Any) -> str:
    tally = arm.use.meters[meter]
    return f"{show(tally.mean)}{words.part_known(tally)}"


def _dropped(report: Report) -> str:
    lines = [
        f"{run.name}: {sum(run.dropped.values())} attempts were run again "
        f"({', '.join(f'{n} {why}' for why, n in run.dropped.items())}); known cost beside the "
        f"table: {words.money(run.dropped_cost_usd)}."
        for run in report.runs
        if run.dropped
    ]
    return "".join(f"<p>{text(line)}</p>" for line in lines)


def _uncertainty(report: Report) -> str:
    rows = [
        (_name_of(section), arm.arm, words.missing(arm), str(arm.continued), str(arm.restarted))
        for section in _with_all(report)
        for arm in section.arms
        if arm.missing or arm.continued or arm.restarted
    ]
    head = ("set", "arm", "scored", "continued", "started over")
    odd = _table(head, rows) if rows else '<p class="none">Every score is there.</p>'
    how = (
        "<ul><li>Problems are what is drawn, never repeats: the repeats of a problem are averaged "
        "first. Problems that share documents or a subject are drawn together.</li>"
        "<li>Intervals are 95 % percentile bootstraps. Tests: McNemar's exact one for single tries "
        "scored 0 or 1, else random flips of signs; Holm's correction over the domains.</li>"
        "<li>A failure of the machinery is a missing score, never a wrong answer. Bounds show the "
        "mean, or the difference, if all that is missing had told one way and the other.</li>"
        "<li>“All problems” counts each problem once, so that a large set weighs more.</li></ul>"
    )
    return _section(
        "How sure is this?", "What the figures stand on.", how + "<h3>Missing</h3>" + odd
    )


def _marks(report: Report) -> str:
    why = (
        "Items are marked where a tool's output held the answer from outside the inputs, or a "
        "rollout reached a host that is known to hold the data set."
    )
    if not report.marks:
        return _section("Contamination", why, '<p class="none">No item was marked.</p>')
    rows = [row for section in _with_all(report) if section.marked for row in _unmarked(section)]
    if report.main is not None:
        rows += [row for section in _with_all(report) for row in _unmarked_gain(report, section)]
    listed = [(key, ", ".join(marks)) for key, marks in report.marks.items()]
    return _section(
        "Contamination",
        why,
        _table(("set", "marked", "", "all items", "without the marked"), rows)
        + _details(f"{len(listed)} marked items", _table(("item", "why"), listed)),
    )


def _unmarked(section: Section) -> Iterable[tuple[str, ...]]:
    for arm in section.arms:
        means = (words.score(arm.score), words.score(arm.unmarked))
        yield _name_of(section), str(section.marked), arm.arm, *means


def _unmarked_gain(report: Report, section: Section) -> Iterable[tuple[str, ...]]:
    assert report.main is not None
    found = section.comparison(*report.main)
    if found is not None and section.marked:
        name = f"{found.second} − {found.first}"
        gains = (words.difference(found.difference), words.difference(found.unmarked))
        yield _name_of(section), str(section.marked), name, *gains


def _paper(report: Report) -> str:
    from sandlot.bench.paper import beside

    told = "".join(f"<li>{text(line.strip())}</li>" for line in beside(report))
    if not told:
        return ""
    return _section(
        "Beside the paper",
        "Published differences with the grade of their evidence, ours, and every difference in "
        "how they were come by.",
        f"<ul>{told}</ul>",
    )


def _protocol(report: Report) -> str:
    parts = [
        f"<h3>{text(run.name)}</h3>{_table(('', ''), [*_chosen(run.manifest)])}"
        f"{_table(_SET_COLUMNS, [*_set_rows(run)])}"
        f"{_details('The whole manifest', _table(('', ''), [*_flat(run.manifest)]))}"
        for run in report.runs
    ]
    return _section(
        "Protocol",
        "The run as its manifest records it: model, sampling, arms, task sets with digests.",
        "".join(parts),
    )


def _chosen(manifest: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """What decides a run, in a few lines."""
    for name in ("model", "created", "seed", "repeats", "limit", "judge", "executor", "backend"):
        if manifest.get(name) is not None:
            yield name, str(manifest[name])
    yield "arms", ", ".join(manifest.get("arms", ()))
    for part in ("sampling", "versions"):
        table = manifest.get(part)
        if isinstance(table, Mapping):
            yield part, ", ".join(f"{key} {value}" for key, value in _flat(table))


def _set_rows(run: RunInfo) -> Iterable[tuple[str, ...]]:
    for name, entry in manifest_sets(run.manifest).items():
        row = entry.get("row", {})
        source = ", ".join(f"{key} {value}" for key, value in _flat(row.get("source", {})))
        scorer = run.scorers.get(name, "nothing scored")
        licence = row.get("licence") or words.UNKNOWN
        yield name, str(entry.get("items", "")), scorer, source, licence, str(entry.get("digest"))


def _flat(table: Mapping[str, Any], path: str = "") -> Iterable[tuple[str, str]]:
    for key, value in table.items():
        name = f"{path}{key}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}.")
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            for number, item in enumerate(value):
                yield from _flat(item, f"{name}.{item.get('name', number)}.")
        else:
            yield name, ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of plain text; its first column names the rows."""
    named = "".join(f"<th>{text(cell)}</th>" for cell in head)
    body = "".join(
        f"<tr><th>{text(row[0])}</th>{''.join(f'<td>{text(cell)}</td>' for cell in row[1:])}</tr>"
        for row in rows
    )
    top = f"<thead><tr>{named}</tr></thead>" if any(head) else ""
    return f'<div class="scroll"><table>{top}<tbody>{body}</tbody></table></div>'


def _details(name: str, content: str) -> str:
    return f"<details><summary>{text(name)}</summary>{content}</details>"
