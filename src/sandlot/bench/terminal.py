"""A report as tables of text: plain, or drawn by rich. Cells are made harmless by the caller."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sandlot.bench import words
from sandlot.bench.report import CAPABILITIES, ArmReport, Comparison, Report, Section, lacks

if TYPE_CHECKING:
    from rich.console import RenderableType

_FLIPS_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Table:
    """`columns` are the headings; the first `names` stand to the left, the others to the right."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    names: int = 1

    def mapped(self, change: Callable[[str], str]) -> Table:
        rows = tuple(tuple(change(cell) for cell in row) for row in self.rows)
        return Table(change(self.title), tuple(map(change, self.columns)), rows, self.names)


def summary(report: Report) -> list[str]:
    """The headline, a sentence a line."""
    top = words.headline(report)
    figure = f": {top.figure} points ({top.interval})" if top.figure != "–" else ""
    return [f"{top.verdict}{figure}", *top.sentences]


def tables(report: Report) -> list[Table]:
    sections = [*report.sets, report.overall] if len(report.sets) > 1 else list(report.sets)
    found = [
        _scores(sections),
        _comparisons("What it bought (points)", sections, _whole),
        _comparisons("What each capability is worth (points)", sections, _lacking),
        _labels(sections),
        _use(report.overall.arms),
        _missing(sections),
        _marked(sections),
        _flips(report),
    ]
    return [table for table in found if table.rows]


def plain(found: Iterable[Table]) -> str:
    return "\n\n".join("\n".join(_lines(table)) for table in found)


def rich_tables(found: Iterable[Table]) -> Iterator[RenderableType]:
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    for table in found:
        drawn = RichTable(title=Text(table.title), title_justify="left", box=box.SIMPLE_HEAD)
        for number, column in enumerate(table.columns):
            drawn.add_column(Text(column), justify="right" if number >= table.names else "left")
        for row in table.rows:
            drawn.add_row(*map(Text, row))
        yield drawn


def _lines(table: Table) -> Iterator[str]:
    cells = [table.columns, *table.rows]
    widths = [max(len(row[n]) for row in cells) for n in range(len(table.columns))]
    yield table.title
    for number, row in enumerate(cells):
        aligned = (
            cell.rjust(width) if at >= table.names else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join(aligned).rstrip()
        if number == 0:
            yield "  ".join("-" * width for width in widths)


def _scores(sections: Sequence[Section]) -> Table:
    rows = [
        (section.name, arm.arm, words.score(arm.score), *_reference(arm), words.missing(arm))
        for section in sections
        for arm in section.arms
    ]
    width = max((len(row) for row in rows), default=0)
    columns = ("set", "arm", "score % (95 %)", *(("reference %",) if width == 5 else ()), "scored")
    padded = [row if len(row) == width else (*row[:3], "–", *row[3:]) for row in rows]
    return Table("Scores", columns, tuple(padded), 2)


def _reference(arm: ArmReport) -> tuple[str, ...]:
    """A column only where the published package gave anything."""
    return () if arm.reference is None else (words.score(arm.reference),)


def _comparisons(
    title: str, sections: Sequence[Section], wanted: Callable[[Comparison], bool]
) -> Table:
    rows = [
        _comparison(section, each)
        for section in sections
        for each in section.comparisons
        if wanted(each)
    ]
    columns = ("set", "difference", "points (95 %)", "p", "p (Holm)", "won", "lost", "would show")
    return Table(title, columns, tuple(rows), 2)


def _whole(each: Comparison) -> bool:
    """Of an arm that lacks no capability: what it bought over the head."""
    return not _lacking(each) and lacks(each.second) not in CAPABILITIES


def _lacking(each: Comparison) -> bool:
    return each.takes is not None


def _comparison(section: Section, each: Comparison) -> tuple[str, ...]:
    name = f"{each.second} − {each.first}"
    found = each.difference
    if found is None:
        return (section.name, name, words.difference(None), *["–"] * 5)
    return (
        section.name,
        name,
        words.difference(found),
        words.p_value(found.p_value),
        words.p_value(each.adjusted_p),
        str(found.better),
        str(found.worse),
        words.least(found.smallest),
    )


def _labels(sections: Sequence[Section]) -> Table:
    rows = [
        (section.name, gain.label, words.difference(gain.difference))
        for section in sections
        for gain in section.labels
    ]
    return Table(
        "Gain by label, given before any run", ("set", "label", "points (95 %)"), tuple(rows)
    )


def _use(arms: Sequence[ArmReport]) -> Table:
    columns = (
        "arm",
        "turns",
        "prompt tokens",
        "cached",
        "completion",
        "context",
        "cost",
        "wall",
        "model",
        "tool",
        "waiting",
        "per min.",
    )
    return Table("Use, mean of an episode", columns, tuple(_use_row(arm) for arm in arms))


def _use_row(arm: ArmReport) -> tuple[str, ...]:
    meters = arm.use.meters
    counts = (
        "turns",
        "billed_prompt_tokens",
        "billed_cached_tokens",
        "billed_completion_tokens",
        "context_tokens",
    )
    times = ("wall_s", "model_s", "tool_s", "waiting_s")
    rate = arm.use.per_minute
    return (
        arm.arm,
        *(words.amount(meters[name].mean) for name in counts),
        words.money(meters["cost_usd"].mean),
        *(words.duration(meters[name].mean) for name in times),
        words.UNKNOWN if rate is None else f"{rate:.2f}",
    )


def _missing(sections: Sequence[Section]) -> Table:
    rows = [
        (
            section.name,
            arm.arm,
            str(arm.planned - arm.scored),
            ", ".join(f"{count} {reason}" for reason, count in arm.missing.items()) or "–",
            _bounds(arm),
            str(arm.no_answer),
            str(arm.continued),
            str(arm.restarted),
        )
        for section in sections
        for arm in section.arms
        if arm.missing or arm.no_answer or arm.continued or arm.restarted
    ]
    columns = ("set", "arm", "missing", "why", "bounds %", "no answer", "continued", "restarted")
    return Table("Missing scores, and what was odd", columns, tuple(rows))


def _bounds(arm: ArmReport) -> str:
    if arm.score is None:
        return "0.0 to 100.0"
    return f"{words.percent(arm.score.bounds[0])} to {words.percent(arm.score.bounds[1])}"


def _marked(sections: Sequence[Section]) -> Table:
    """Scores and gains with and without the items that the contamination guard marked."""
    marked = [section for section in sections if section.marked]
    rows = [
        (section.name, str(section.marked), *row)
        for section in marked
        for row in _with_out(section)
    ]
    columns = ("set", "marked", "", "all items", "without the marked")
    return Table("Marked by the contamination guard", columns, tuple(rows), 3)


def _with_out(section: Section) -> Iterator[tuple[str, str, str]]:
    for arm in section.arms:
        yield arm.arm, words.score(arm.score), words.score(arm.unmarked)
    for each in filter(_whole, section.comparisons):
        name = f"{each.second} − {each.first}"
        yield name, words.difference(each.difference), words.difference(each.unmarked)


def _flips(report: Report) -> Table:
    shown = report.flips[:_FLIPS_SHOWN]
    more = len(report.flips) - len(shown)
    title = "Items that changed hands" + (f" ({more} more in report.json)" if more else "")
    first, second = report.main or ("", "")
    rows = [
        (f"{flip.task_set}/{flip.item}", flip.label or "–", f"{flip.first:g}", f"{flip.second:g}")
        for flip in shown
    ]
    return Table(title, ("item", "label", first, second), tuple(rows))
