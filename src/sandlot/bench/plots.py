"""Small plots as SVG text: no library, no script, no font of their own.

Positions across are percentages and positions down are pixels, so that a plot takes whatever width
the page gives it while its text and marks keep their size. Colours are classes (`c0`, `c1`, …) that
the page's style sheet names, so that they follow light and dark. Every text is escaped here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

# Controls, and marks that reorder what stands around them: shown as a replacement character.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]"
)


def text(value: object) -> str:
    """Any value as text that is shown and never obeyed."""
    return escape(_HIDDEN.sub("\ufffd", str(value)))


@dataclass(frozen=True, slots=True)
class Scale:
    """Values to percentages of the width. `log` is base 10."""

    low: float
    high: float
    log: bool = False

    def at(self, value: float) -> float:
        low, high, here = (self._place(each) for each in (self.low, self.high, value))
        share = (here - low) / (high - low) if high > low else 0.5
        return 100 * min(1.0, max(0.0, share))

    def _place(self, value: float) -> float:
        return math.log10(max(value, 1e-12)) if self.log else value


@dataclass(frozen=True, slots=True)
class Span:
    """A value with its interval, `css` being its class. `title` is shown on hovering."""

    value: float
    low: float | None
    high: float | None
    css: str
    title: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """A line of a plot: `label` and `note` to the left, marks, `text` to the right."""

    label: str
    note: str
    spans: tuple[Span, ...]
    text: str
    strong: bool = False


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round values that lie within, about so many."""
    if high <= low:
        return [low]
    rough = (high - low) / wanted
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * m for m in (1, 2, 2.5, 5, 10) if unit * m >= rough * 0.85)
    first = math.ceil(low / step - 1e-9)
    return [round(step * n, 10) for n in range(first, math.floor(high / step + 1e-9) + 1)]


def around_zero(rows: Iterable[Row], least: float = 0.05) -> Scale:
    """A scale that holds every interval and 0, with a little room."""
    ends = [end for row in rows for span in row.spans for end in _ends(span)]
    low, high = min([*ends, -least]), max([*ends, least])
    room = (high - low) * 0.04
    return Scale(low - room, high + room)


def _ends(span: Span) -> list[float]:
    return [end for end in (span.low, span.value, span.high) if end is not None]


def intervals(
    rows: Sequence[Row], scale: Scale, caption: str, *, zero: bool, factor: float = 100
) -> str:
    """A forest plot: one line of marks with intervals for each row, over one axis.

    `factor` turns values into what the axis says (100: percent).
    """
    marks = ticks(scale.low * factor, scale.high * factor)
    grid = [(scale.at(mark / factor), _number(mark, zero)) for mark in marks]
    lines = "".join(_interval_row(row, scale, grid, zero) for row in rows)
    axis = "".join(
        f'<text x="{x:.2f}%" y="14" class="tick" text-anchor="{_anchor(x)}">{figure}</text>'
        for x, figure in grid
    )
    foot = (
        '<div class="row axis"><div class="label"></div><div class="track"><svg height="20" '
        f'aria-hidden="true">{axis}</svg></div><div class="text"></div></div>'
    )
    return f'<div class="forest">{lines}{foot}<p class="axis-name">{text(caption)}</p></div>'


def _interval_row(row: Row, scale: Scale, grid: Sequence[tuple[float, str]], zero: bool) -> str:
    height = max(30, 14 * len(row.spans) + 10)
    lines = "".join(
        f'<line x1="{x:.2f}%" x2="{x:.2f}%" y1="0" y2="100%" class="grid"/>' for x, _ in grid
    )
    if zero:
        at = scale.at(0)
        lines += f'<line x1="{at:.2f}%" x2="{at:.2f}%" y1="0" y2="100%" class="zero"/>'
    middle = (len(row.spans) - 1) / 2
    inner = "".join(
        _span(span, scale, 14 * (number - middle), row.strong)
        for number, span in enumerate(row.spans)
    )
    # An inner drawing from the middle of the row, however high the text beside it makes the row.
    marks = f'<svg y="50%" overflow="visible">{inner}</svg>'
    note = f'<span class="note">{text(row.note)}</span>' if row.note else ""
    css = "row strong" if row.strong else "row"
    return (
        f'<div class="{css}"><div class="label">{text(row.label)}{note}</div>'
        f'<div class="track" style="min-height:{height}px"><svg role="img" '
        f'aria-label="{text(f"{row.label}: {row.text}")}">{lines}{marks}</svg></div>'
        f'<div class="text">{text(row.text)}</div></div>'
    )


def _span(span: Span, scale: Scale, y: float, strong: bool) -> str:
    x = scale.at(span.value)
    whisker = ""
    if span.low is not None and span.high is not None:
        left, right = scale.at(span.low), scale.at(span.high)
        whisker = (
            f'<line x1="{left:.2f}%" x2="{right:.2f}%" y1="{y:.1f}" y2="{y:.1f}" class="whisker"/>'
        )
        for end in (left, right):
            whisker += (
                f'<line x1="{end:.2f}%" x2="{end:.2f}%" y1="{y - 4:.1f}" y2="{y + 4:.1f}" '
                'class="whisker"/>'
            )
    size = 6 if strong else 5
    return (
        f'<g class="{span.css}"><title>{text(span.title)}</title>{whisker}'
        f'<circle cx="{x:.2f}%" cy="{y:.1f}" r="{size}"/></g>'
    )


def bar(share: float | None, css: str, figure: str) -> str:
    """A bar inside a table's cell, with its figure."""
    if share is None:
        return f'<span class="figure">{text(figure)}</span>'
    width = 100 * min(1.0, max(0.0, share))
    return (
        f'<span class="figure">{text(figure)}</span><svg class="bar {css}" height="8" '
        f'aria-hidden="true"><rect width="100%" height="8" class="bed"/>'
        f'<rect width="{width:.2f}%" height="8"/></svg>'
    )


def histogram(counts: Mapping[str, int], css: str, bins: int, label: str, peak: float) -> str:
    """Bars of the counts of whole numbers from 0 up to `bins`, the last one open above if need be.

    `peak` is the share that fills the height, so that several can be compared.
    """
    total = sum(counts.values())
    more = "+" if any(int(at) > bins for at in counts) else ""
    bars = []
    for number in range(bins + 1):
        count = sum(
            n for at, n in counts.items() if int(at) == number or (number == bins < int(at))
        )
        tall = 64 * count / total / peak if total and peak else 0
        x = 100 * number / (bins + 1)
        bars.append(
            f'<rect x="{x + 0.15:.2f}%" width="{100 / (bins + 1) - 0.3:.2f}%" '
            f'y="{70 - tall:.1f}" height="{tall:.1f}">'
            f"<title>{number}{more if number == bins else ''} turns: {count}</title></rect>"
        )
    named = "".join(
        f'<text x="{100 * (n + 0.5) / (bins + 1):.2f}%" y="84" class="tick" '
        f'text-anchor="middle">{n}{more if n == bins else ""}</text>'
        for n in _whole_ticks(bins)
    )
    return (
        f'<svg class="histogram {css}" height="90" role="img" aria-label="{text(label)}">'
        f'<line x1="0" x2="100%" y1="70.5" y2="70.5" class="grid"/>{"".join(bars)}{named}</svg>'
    )


def _whole_ticks(bins: int) -> list[int]:
    step = max(1, math.ceil(bins / 8))
    return [*range(0, bins - step // 2, step), bins]


@dataclass(frozen=True, slots=True)
class Dot:
    x: float
    y: float
    css: str
    text: str = ""
    title: str = ""


def scatter(
    dots: Sequence[Dot], arrows: Sequence[tuple[Dot, Dot]], x_name: str, y_name: str
) -> str:
    """Points over a logarithmic axis, y in [0, 1] as percent; arrows join the pairs."""
    height, top, floor = 340, 14, 300
    xs = [dot.x for dot in dots]
    across = Scale(min(xs) / 1.5, max(xs) * 1.9, log=True)

    def down(y: float) -> float:
        return floor - (floor - top) * y

    parts = [
        f'<line x1="5%" x2="100%" y1="{down(share):.1f}" y2="{down(share):.1f}" class="grid"/>'
        f'<text x="0" y="{down(share) + 4:.1f}" class="tick">{100 * share:.0f}</text>'
        for share in (0.0, 0.25, 0.5, 0.75, 1.0)
    ]
    for mark in _decades(across):
        x = _inset(across.at(mark))
        parts.append(
            f'<line x1="{x:.2f}%" x2="{x:.2f}%" y1="{top}" y2="{floor}" class="grid"/>'
            f'<text x="{x:.2f}%" y="{floor + 18}" class="tick" text-anchor="middle">'
            f"{_short(mark)}</text>"
        )
    for start, end in arrows:
        (x1, y1), (x2, y2) = ((_inset(across.at(d.x)), down(d.y)) for d in (start, end))
        parts.append(
            f'<line x1="{x1:.2f}%" y1="{y1:.1f}" x2="{x2:.2f}%" y2="{y2:.1f}" class="link"/>'
        )
    taken = [_Box.around(_inset(across.at(dot.x)), down(dot.y)) for dot in dots]
    for dot in dots:
        x, y = _inset(across.at(dot.x)), down(dot.y)
        parts.append(
            f'<g class="{dot.css}"><title>{text(dot.title)}</title>'
            f'<circle cx="{x:.2f}%" cy="{y:.1f}" r="5.5"/>{_dot_name(dot, x, y, taken)}</g>'
        )
    label = f"{y_name} against {x_name}"
    return (
        f'<p class="axis-name start">{text(y_name)}</p><svg class="scatter" height="{height}" '
        f'role="img" aria-label="{text(label)}">{"".join(parts)}</svg>'
        f'<p class="axis-name">{text(x_name)}</p>'
    )


@dataclass(frozen=True, slots=True)
class _Box:
    """Where something stands: percent across, pixels down."""

    left: float
    right: float
    top: float
    bottom: float

    @classmethod
    def around(cls, x: float, y: float) -> _Box:
        return cls(x - 1, x + 1, y - 6, y + 6)

    def meets(self, other: _Box) -> bool:
        across = self.left < other.right and other.left < self.right
        return across and self.top < other.bottom and other.top < self.bottom


def _dot_name(dot: Dot, x: float, y: float, taken: list[_Box]) -> str:
    """The name beside a dot, on the first side where nothing is in its way."""
    if not dot.text:
        return ""
    wide = 0.8 * len(dot.text)  # about 12 px letters on a page 62 rem wide
    half = wide / 2
    places = (
        (_Box(x + 1, x + 1 + wide, y - 6, y + 6), "start", 9, 4),
        (_Box(x - 1 - wide, x - 1, y - 6, y + 6), "end", -9, 4),
        (_Box(x - half, x + half, y - 20, y - 7), "middle", 0, -10),
        (_Box(x - half, x + half, y + 7, y + 20), "middle", 0, 18),
    )
    free = [
        place
        for place in places
        if place[0].left >= 0
        and place[0].right <= 100
        and not any(place[0].meets(other) for other in taken)
    ]
    if not free:  # hovering still names it
        return ""
    box, anchor, dx, dy = free[0]
    taken.append(box)
    return (
        f'<text x="{x:.2f}%" y="{y:.1f}" dx="{dx}" dy="{dy}" text-anchor="{anchor}" '
        f'class="name">{text(dot.text)}</text>'
    )


def _inset(x: float) -> float:
    """Room to the left for the figures of the other axis."""
    return 5 + 0.95 * x


def _decades(scale: Scale) -> list[float]:
    low, high = math.floor(math.log10(scale.low)), math.ceil(math.log10(scale.high))
    steps = (1, 2, 5) if high - low < 5 else (1,)
    marks = [m * 10.0**power for power in range(low, high + 1) for m in steps]
    return [mark for mark in marks if scale.low <= mark <= scale.high]


def _short(value: float) -> str:
    for unit, name in ((1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:g}{name}"
    return f"{value:g}"


def _number(value: float, signed: bool) -> str:
    figure = f"{value:+g}" if signed and value else f"{value:g}"
    return figure.replace("-", "−")


def _anchor(x: float) -> str:
    return "start" if x < 4 else "end" if x > 96 else "middle"
