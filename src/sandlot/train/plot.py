"""The curves of a training run as one SVG picture, and as PNG through a browser. No torch here.

Small panels of one width, each with one figure over the steps: single steps pale, their running
mean strong, held-out evaluations as marks with their 95 % intervals.
"""

from __future__ import annotations

import math
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from sandlot.bench.patterns import CAPABILITIES
from sandlot.bench.plots import text, ticks
from sandlot.core.errors import ConfigError, InputError
from sandlot.scoring.files_page_child import BROWSERS, NAMED
from sandlot.train.directory import TrainDirectory

WIDTH, PANEL_WIDE, PANEL_HIGH, GAP = 960, 460, 216, 20
HEAD = 56
SMOOTHED = 5
"""Steps in a running mean."""

COLOURS = ("#2563a8", "#c2571a", "#2a7f5f", "#8a4fa3", "#a33a4e", "#5b6b7a")
_LEFT, _RIGHT, _TOP, _FOOT = 46, 12, 44, 28
_STYLE = f"""
svg{{background:#fff;color:#1c2733;font:12px system-ui,sans-serif}}
text{{fill:#1c2733}} .title{{font-size:17px;font-weight:600}} .name{{font-weight:600}}
.tick,.sub{{fill:#5b6b7a;font-size:11px}} .grid{{stroke:#e3e8ee}} .axis{{stroke:#9aa7b4}}
.line{{fill:none;stroke:currentColor;stroke-width:2}}
.pale{{fill:none;stroke:currentColor;opacity:.3}}
.dot{{fill:currentColor}} .ring{{fill:#fff;stroke:currentColor;stroke-width:1.6}}
.whisker{{stroke:currentColor;stroke-width:1.4}}
{"".join(f".c{at}{{color:{colour}}}" for at, colour in enumerate(COLOURS))}
"""


@dataclass(frozen=True, slots=True)
class Series:
    """`points` are (step, value); `intervals` (low, high) stand beside marks of evaluations.

    Series of one name share a colour; `hollow` tells those of another mode apart.
    """

    name: str
    points: tuple[tuple[float, float], ...]
    intervals: tuple[tuple[float, float] | None, ...] = ()
    hollow: bool = False

    @property
    def marked(self) -> bool:
        return bool(self.intervals)


@dataclass(frozen=True, slots=True)
class Panel:
    """`top` is the end of the scale where it is known. `log` is base 10."""

    title: str
    series: tuple[Series, ...]
    top: float | None = None
    log: bool = False


@dataclass(frozen=True, slots=True)
class Drawing:
    svg: str
    height: int


def curves(directory: TrainDirectory) -> Drawing:
    """Raises:
    InputError: the run has no step yet.
    """
    lines, held_out = list(directory.steps()), list(directory.evaluations())
    panels = [panel for panel in panels_of(lines, held_out) if panel.series]
    if not panels:
        raise InputError(f"{directory.path} has no step yet, so there is nothing to draw")
    config = directory.manifest()["config"]
    steps = sum(line["phase"] == "train" for line in lines)
    warm = sum(line["phase"] == "warmstart" for line in lines)
    about = f"{warm} steps of warm start, {steps} of reinforcement, seed {config['seed']}"
    return drawing(panels, str(config["name"]), about)


def panels_of(
    lines: Sequence[Mapping[str, Any]], held_out: Sequence[Mapping[str, Any]]
) -> Iterator[Panel]:
    warm = [line for line in lines if line["phase"] == "warmstart"]
    steps = [line for line in lines if line["phase"] == "train"]

    def of(*names: str) -> tuple[Series, ...]:
        found = (_series(steps, figure, label) for figure, label in (n.split("|") for n in names))
        return tuple(each for each in found if each.points)

    yield Panel("Reward in training", of("reward|reward"), top=1.0)
    modes = {line["mode"] for line in held_out}
    both = " (hollow: mode llm)" if len(modes) > 1 else ""
    yield Panel(f"Held-out reward, 95 % intervals{both}", _held_out(held_out, "reward"), top=1.0)
    yield Panel("Turns a rollout", of("turns|turns"))
    yield Panel("Held-out turns", _held_out(held_out, "turns", modes=("sandbox",)))
    yield Panel("Tokens sampled a rollout", of("tokens|tokens"))
    yield Panel(
        "Share of turns that use a capability", of(*(f"uses_{c}|{c}" for c in CAPABILITIES))
    )
    yield Panel("Share of groups that teach", of("useful_groups|groups"), top=1.0)
    yield Panel(
        "Trainer against sampler, |log probability| (nats)",
        of("gap_mean|mean", "gap_max|greatest"),
        log=True,
    )
    yield Panel("Seconds a step", of("rollout_s|rollouts", "update_s|update"))
    loss = _series(warm, "loss", "loss")
    yield Panel("Warm start: loss a token (nats)", (loss,) if loss.points else ())


def _series(lines: Sequence[Mapping[str, Any]], figure: str, name: str) -> Series:
    found = (
        (float(line["step"]), float(line["figures"][figure]))
        for line in lines
        if figure in line["figures"]
    )
    return Series(name, tuple(point for point in found if math.isfinite(point[1])))


def _held_out(
    lines: Sequence[Mapping[str, Any]],
    figure: str,
    modes: Sequence[str] = ("sandbox", "llm"),
) -> tuple[Series, ...]:
    """A series for each set and mode, at the temperature that was played first."""
    if not lines:
        return ()
    temperature = lines[0]["temperature"]
    places = dict.fromkeys(
        (line["set"], line["mode"])
        for line in lines
        if line["temperature"] == temperature and line["mode"] in modes
    )
    many = len({mode for _, mode in places}) > 1
    found = []
    for name, mode in places:
        rows = [
            line
            for line in lines
            if (line["set"], line["mode"], line["temperature"]) == (name, mode, temperature)
            and line[figure] is not None
        ]
        points = tuple((float(row["step"]), float(row[figure])) for row in rows)
        known = tuple(_interval(row) if figure == "reward" else None for row in rows)
        found.append(Series(name, points, known, hollow=many and mode == "llm"))
    return tuple(each for each in found if each.points)


def _interval(row: Mapping[str, Any]) -> tuple[float, float] | None:
    found = row.get("interval")
    return None if found is None else (float(found["low"]), float(found["high"]))


# --- drawing -----------------------------------------------------------------------------------


def drawing(panels: Sequence[Panel], title: str, about: str) -> Drawing:
    rows = math.ceil(len(panels) / 2)
    height = HEAD + rows * (PANEL_HIGH + GAP)
    inner = []
    for at, panel in enumerate(panels):
        x, y = (at % 2) * (PANEL_WIDE + GAP) + GAP / 2, HEAD + at // 2 * (PANEL_HIGH + GAP)
        inner.append(f'<g transform="translate({x:g} {y:g})">{_panel(panel)}</g>')
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" role="img" aria-label="{text(title)}">'
        f"<style>{_STYLE}</style>"
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>'
        f'<text x="{GAP / 2 + 2}" y="26" class="title">{text(title)}</text>'
        f'<text x="{GAP / 2 + 2}" y="44" class="sub">{text(about)}</text>{"".join(inner)}</svg>\n'
    )
    return Drawing(svg, height)


@dataclass(frozen=True, slots=True)
class _Frame:
    """Values to pixels of a panel; `inset` keeps marks off its edges."""

    x: tuple[float, float]
    y: tuple[float, float]
    log: bool
    inset: float = 0.0

    def across(self, step: float) -> float:
        low, high = self.x
        share = (step - low) / (high - low) if high > low else 0.5
        return _LEFT + self.inset + share * (PANEL_WIDE - _LEFT - _RIGHT - 2 * self.inset)

    def down(self, value: float) -> float:
        low, high = self.y
        if self.log:
            low, high, value = (math.log10(max(each, 1e-12)) for each in (low, high, value))
        share = (value - low) / (high - low) if high > low else 0.5
        return _TOP + (1 - min(1.0, max(0.0, share))) * (PANEL_HIGH - _TOP - _FOOT)


def _panel(panel: Panel) -> str:
    frame = _frame(panel)
    parts = [f'<text x="2" y="14" class="name">{text(panel.title)}</text>', _legend(panel.series)]
    parts += _grid(frame)
    colours = _colours(panel.series)
    for at, series in enumerate(panel.series):
        shift = (at - (len(panel.series) - 1) / 2) * 3 if series.marked else 0.0
        inner = _marks(series, frame, shift) if series.marked else _line(series, frame)
        parts.append(f'<g class="{colours[series.name]}">{inner}</g>')
    return "".join(parts)


def _colours(series: Sequence[Series]) -> dict[str, str]:
    names = dict.fromkeys(each.name for each in series)
    return {name: f"c{at % len(COLOURS)}" for at, name in enumerate(names)}


def _frame(panel: Panel) -> _Frame:
    steps = [step for series in panel.series for step, _ in series.points]
    values = [value for series in panel.series for _, value in series.points]
    values += [end for series in panel.series for pair in series.intervals if pair for end in pair]
    marked = any(each.marked for each in panel.series)
    x = (min(0.0, *steps) if marked else min(steps), max(steps))
    inset = 3.0 * len(panel.series) if marked else 0.0
    if panel.log:
        positive = [value for value in values if value > 0] or [1.0]
        low = 10.0 ** math.floor(math.log10(min(positive)))
        return _Frame(
            x, (low, max(10.0 ** math.ceil(math.log10(max(positive))), low * 10)), True, inset
        )
    top = panel.top if panel.top is not None else max(values) * 1.08
    return _Frame(x, (0.0, top or 1.0), False, inset)


def _legend(series: Sequence[Series]) -> str:
    colours = _colours(series)
    if len(colours) < 2:
        return ""
    parts, x = [], 2.0
    for name, css in colours.items():
        parts.append(
            f'<g class="{css}"><rect x="{x:g}" y="23" width="9" height="9" rx="2" class="dot"/></g>'
            f'<text x="{x + 13:g}" y="32" class="sub">{text(name)}</text>'
        )
        x += 30 + 6.3 * len(name)
    return "".join(parts)


def _grid(frame: _Frame) -> Iterator[str]:
    right, floor = PANEL_WIDE - _RIGHT, PANEL_HIGH - _FOOT
    for value in _decades(*frame.y) if frame.log else ticks(*frame.y, wanted=4):
        y = frame.down(value)
        yield f'<line x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>'
        yield (
            f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" class="tick" text-anchor="end">{value:g}</text>'
        )
    yield f'<line x1="{_LEFT}" x2="{right}" y1="{floor}" y2="{floor}" class="axis"/>'
    for step in ticks(*frame.x, wanted=6):
        if step == int(step):
            yield (
                f'<text x="{frame.across(step):.1f}" y="{floor + 16}" class="tick" '
                f'text-anchor="middle">{step:g}</text>'
            )


def _decades(low: float, high: float) -> list[float]:
    first, last = round(math.log10(low)), round(math.log10(high))
    every = max(1, math.ceil((last - first) / 5))
    return [10.0**power for power in range(first, last + 1, every)]


def _line(series: Series, frame: _Frame) -> str:
    if len(series.points) == 1:
        return _dot(*series.points[0], frame, 0.0)
    smooth = _running(series.points) if len(series.points) > 2 * SMOOTHED else series.points
    pale = _path(series.points, frame, "pale") if smooth is not series.points else ""
    return pale + _path(smooth, frame, "line")


def _path(points: Sequence[tuple[float, float]], frame: _Frame, css: str) -> str:
    places = " ".join(f"{frame.across(x):.1f},{frame.down(y):.1f}" for x, y in points)
    return f'<polyline points="{places}" class="{css}"/>'


def _running(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Means over the last few steps, each at the last of them."""
    found = []
    for at, (step, _) in enumerate(points):
        part = [value for _, value in points[max(0, at - SMOOTHED + 1) : at + 1]]
        found.append((step, sum(part) / len(part)))
    return found


def _marks(series: Series, frame: _Frame, shift: float) -> str:
    """Dots joined by a pale line; those of several sets stand a little apart."""
    joined = "".join(
        f'<line x1="{frame.across(a) + shift:.1f}" y1="{frame.down(b):.1f}" '
        f'x2="{frame.across(c) + shift:.1f}" y2="{frame.down(d):.1f}" class="pale"/>'
        for (a, b), (c, d) in pairwise(series.points)
    )
    whiskers = "".join(
        f'<line x1="{frame.across(step) + shift:.1f}" x2="{frame.across(step) + shift:.1f}" '
        f'y1="{frame.down(pair[0]):.1f}" y2="{frame.down(pair[1]):.1f}" class="whisker"/>'
        for (step, _), pair in zip(series.points, series.intervals, strict=True)
        if pair is not None
    )
    dots = (_dot(*each, frame, shift, hollow=series.hollow) for each in series.points)
    return joined + whiskers + "".join(dots)


def _dot(step: float, value: float, frame: _Frame, shift: float, *, hollow: bool = False) -> str:
    x, y = frame.across(step) + shift, frame.down(value)
    css = "ring" if hollow else "dot"
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" class="{css}">'
        f"<title>{value:.4g}</title></circle>"
    )


# --- files -------------------------------------------------------------------------------------


def save_svg(drawn: Drawing, path: Path) -> None:
    """Raises:
    InputError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(drawn.svg, "utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from error


def save_png(drawn: Drawing, path: Path, environ: Mapping[str, str]) -> None:
    """Through a headless Chromium, at twice the size.

    Raises:
        ConfigError: there is none here, or it drew nothing. InputError: the file cannot be written.
    """
    named = environ.get(NAMED)
    browser = next(filter(None, map(shutil.which, (named,) if named else BROWSERS)), None)
    if browser is None:
        raise ConfigError(
            f"PNG files need Chromium (looked for {', '.join(BROWSERS)} and ${NAMED}); "
            "write an .svg file instead"
        )
    with tempfile.TemporaryDirectory(prefix="sandlot-plot-") as folder:
        source, shot = Path(folder, "curves.svg"), Path(folder, "curves.png")
        save_svg(drawn, source)
        words = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        words += ["--no-first-run", f"--user-data-dir={folder}/profile"]
        words += ["--force-device-scale-factor=2", f"--window-size={WIDTH},{drawn.height}"]
        words += [f"--screenshot={shot}", source.as_uri()]
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=60)
        except subprocess.TimeoutExpired as error:
            raise ConfigError(f"{browser} drew nothing within a minute") from error
        if not shot.is_file():
            raise ConfigError(f"{browser} drew nothing: {done.stderr.strip()[-300:]}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(shot, path)
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error.strerror}") from error
