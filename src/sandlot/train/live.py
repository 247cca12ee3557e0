"""A training run as it is told step by step: lines, curves and tables of text. No torch here.

`Story` takes what `TrainDirectory.told` is called with; whoever shows it prints what it gives.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from sandlot.bench.patterns import CAPABILITIES
from sandlot.bench.terminal import Table
from sandlot.train.config import TrainConfig

BARS = "▁▂▃▄▅▆▇█"
WIDTH = 40
RECENT = 5
"""Steps whose mean duration tells how long the rest will take."""

CURVES: Mapping[str, tuple[str, float | None]] = {
    "reward": ("reward", 1.0),
    "turns": ("turns", None),
    "tokens": ("tokens a rollout", None),
    "useful_groups": ("useful groups", 1.0),
    "gap_mean": ("logprob gap", None),
    **{f"uses_{name}": (f"uses {name}", 1.0) for name in CAPABILITIES},
}
"""Figure of a step: what it is called, and the top of its scale where that is known."""


@dataclass(slots=True)
class Story:
    """What has happened so far. `clock` gives seconds; only differences of it are used."""

    config: TrainConfig
    clock: Callable[[], float] = time.monotonic
    phase: str = ""
    step: int = 0
    of: int = 0
    figures: Mapping[str, float] = field(default_factory=dict)
    curves: dict[str, list[float]] = field(default_factory=dict)
    played: int = 0
    evaluations: list[Mapping[str, Any]] = field(default_factory=list)
    _ends: list[float] = field(default_factory=list)

    def told(self, phase: str, step: int, figures: Mapping[str, Any]) -> None:
        if phase == "rollout":
            self.played += 1
            return
        self.played = 0
        if phase == "evaluation":
            self.evaluations.append(figures)
            self._ends = []  # what an evaluation takes says nothing of a step
            return
        if phase != self.phase:
            self._ends, self.curves = [], {}
        self.phase, self.step, self.figures = phase, step, figures
        self.of = int(figures["of"]) if phase == "warmstart" else self.config.train.steps
        self._ends = [*self._ends, self.clock()][-RECENT - 1 :]
        for name, value in figures.items():
            self.curves.setdefault(name, []).append(float(value))

    @property
    def left_s(self) -> float | None:
        """Seconds to the end of this phase, evaluations left out; None before two steps."""
        if len(self._ends) < 2:
            return None
        each = (self._ends[-1] - self._ends[0]) / (len(self._ends) - 1)
        return each * (self.of - self.step)

    def line(self) -> str:
        """The step that ended last, in one line."""
        words = list(_warm(self.figures) if self.phase == "warmstart" else _learned(self.figures))
        if self.left_s is not None and self.step < self.of:
            words.append(f"{duration(self.left_s)} left")
        name = "warm start" if self.phase == "warmstart" else "step"
        return f"{name} {self.step}/{self.of}: {', '.join(words)}"

    def waiting(self) -> str:
        """What is going on between two steps."""
        rollout = self.config.rollout
        of = rollout.tasks_a_step * rollout.rollouts_a_task
        left = f", {duration(self.left_s)} left" if self.left_s is not None else ""
        if not self.phase:
            return f"getting ready, {self.played} rollouts played" if self.played else "loading"
        if self.phase == "warmstart" and self.step < self.of:
            return f"warm start: {self.step} of {self.of} steps{left}"
        done = self.step if self.phase == "train" else 0
        count = f"{self.played} of {of}" if self.played <= of else str(self.played)
        return f"after {done} of {self.config.train.steps} steps: {count} rollouts played{left}"

    def sparklines(self) -> Iterator[tuple[str, str, str]]:
        """For each curve of the phase: its name, its picture, and first and last value."""
        for figure, (name, top) in CURVES.items():
            values = self.curves.get(figure, ())
            if len(values) > 1:
                ends = f"{short(values[0])} → {short(values[-1])}"
                yield name, sparkline(values, top=top), ends


STEP_COLUMNS = (
    *("step", "reward", "turns", "tokens", "useful", "gap", "at most"),
    *("rollouts", "update", "missing"),
)


def step_row(step: int, figures: Mapping[str, float]) -> tuple[str, ...]:
    """A step of reinforcement in the cells of `STEP_COLUMNS`."""
    gaps = (figures.get(name) for name in ("gap_mean", "gap_max"))
    return (
        str(step),
        *(
            form.format(figures[name]) if name in figures else "–"
            for name, form in (("reward", "{:.3f}"), ("turns", "{:.2f}"), ("tokens", "{:.0f}"))
        ),
        f"{100 * figures['useful_groups']:.0f} %",
        *("–" if gap is None else f"{gap:.1e}" for gap in gaps),
        f"{figures['rollout_s']:.1f} s",
        f"{figures['update_s']:.1f} s",
        f"{figures.get('missing', 0):.0f}",
    )


def _warm(figures: Mapping[str, float]) -> Iterator[str]:
    yield f"loss {figures['loss']:.3f}"
    yield f"{figures['tokens']:,.0f} tokens"
    yield f"rate {figures['lr']:.1e}"


def _learned(figures: Mapping[str, float]) -> Iterator[str]:
    if "reward" in figures:
        yield f"reward {figures['reward']:.3f}"
        yield f"{figures['turns']:.2f} turns"
        yield f"{figures['tokens']:.0f} tokens"
    else:
        yield "no reward"
    yield f"{100 * figures['useful_groups']:.0f} % of groups useful"
    if "gap_mean" in figures:
        yield f"gap {figures['gap_mean']:.1e} (at most {figures['gap_max']:.1e})"
    else:
        yield "nothing to learn from"
    yield f"{figures['rollout_s']:.1f} s of rollouts"
    yield f"{figures['update_s']:.1f} s of update"
    if figures.get("missing"):
        yield f"{figures['missing']:.0f} rewards missing"


def evaluation_table(evaluations: Sequence[Mapping[str, Any]], title: str = "Held out") -> Table:
    """The lines of `evaluations.jsonl` as a table, each mean with its 95 % interval."""
    columns = (
        *("set", "mode", "T", "after", "reward (95 %)"),
        *("turns", "tokens", "submitted", "scored"),
    )
    return Table(title, columns, tuple(map(_evaluation_row, evaluations)), 2)


def _evaluation_row(line: Mapping[str, Any]) -> tuple[str, ...]:
    interval = line["interval"]
    reward = "–" if line["reward"] is None else f"{line['reward']:.3f}"
    if interval is not None:
        reward += f" ({interval['low']:.3f} to {interval['high']:.3f})"
    missing = ", ".join(f"{count} {kind}" for kind, count in line["missing"].items())
    return (
        str(line["set"]),
        str(line["mode"]),
        f"{line['temperature']:g}",
        f"{line['step']} steps",
        reward,
        f"{line['turns']:.2f}",
        f"{line['tokens']:.0f}",
        f"{100 * line['submitted']:.0f} %",
        f"{line['scored']} of {line['tasks']}" + (f" ({missing})" if missing else ""),
    )


def sparkline(values: Sequence[float], *, width: int = WIDTH, top: float | None = None) -> str:
    """Values as bars of eight heights, from 0 to `top` or else to their greatest.

    More values than `width` are averaged, neighbours together.
    """
    count = min(width, len(values))
    cuts = [round(at * len(values) / count) for at in range(count + 1)] if count else []
    means = [sum(values[start:end]) / (end - start) for start, end in pairwise(cuts)]
    high = top if top is not None else max(means, default=0.0)
    if high <= 0:
        return BARS[0] * len(means)
    last = len(BARS) - 1
    return "".join(BARS[max(0, min(last, round(last * each / high)))] for each in means)


def short(value: float) -> str:
    """Three figures that count."""
    return f"{value:.1e}" if value and abs(value) < 0.001 else f"{value:.3g}"


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}h{minute:02}m" if hours else f"{minute}m{second:02}s"


@dataclass(frozen=True, slots=True)
class Summary:
    """What a run has come to, from its figures alone. `first` and `last` are means of a few steps.

    Seconds are those of its steps, evaluations left out. Memory is that of the training process.
    """

    warm_steps: int
    steps: int
    rollouts: int
    missing: int
    seconds: float
    memory_mib: float
    first: Mapping[str, float]
    last: Mapping[str, float]

    def lines(self) -> Iterator[str]:
        warm = f"{self.warm_steps} step{'' if self.warm_steps == 1 else 's'} of warm start"
        yield f"trained: {warm}, {self.steps} of reinforcement"
        if self.first:
            yield f"curve: {', '.join(self._changes())} (means of {RECENT} steps)"
        if self.steps:
            yield f"rollouts: {self.rollouts:,}, {self.missing:,} of them without a reward"
        yield f"took: {duration(self.seconds)}, at most {self.memory_mib:,.0f} MiB of memory"

    def _changes(self) -> Iterator[str]:
        for name in ("reward", "turns"):
            yield f"{name} {self.first[name]:.2f} → {self.last[name]:.2f}"


def summary_of(lines: Sequence[Mapping[str, Any]]) -> Summary:
    """Of the lines of `steps.jsonl`."""
    warm = [line["figures"] for line in lines if line["phase"] == "warmstart"]
    steps = [line["figures"] for line in lines if line["phase"] == "train"]
    known = [each for each in steps if "reward" in each]  # not a step whose rollouts were all lost
    every = [*warm, *steps]
    return Summary(
        warm_steps=len(warm),
        steps=len(steps),
        rollouts=int(sum(each["scored"] + each["missing"] for each in steps)),
        missing=int(sum(each["missing"] for each in steps)),
        seconds=sum(_seconds(each) for each in every),
        memory_mib=max((each.get("memory_mib", 0.0) for each in every), default=0.0),
        first=_means(known[:RECENT]),
        last=_means(known[-RECENT:]),
    )


def _seconds(figures: Mapping[str, float]) -> float:
    return figures.get("rollout_s", 0.0) + figures.get("update_s", 0.0)


def _means(steps: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = ("reward", "turns") if steps else ()
    return {name: sum(each[name] for each in steps) / len(steps) for name in names}
