"""The view of a training run while it goes on: plain lines, or a panel that moves; on stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TextIO

from sandlot.cli.text import clean
from sandlot.train.live import STEP_COLUMNS, Story, evaluation_table, step_row

if TYPE_CHECKING:
    from rich.console import Console, Group

    from sandlot.train.config import TrainConfig

_PLAIN_EVERY_S = 5.0
_SHOWN_STEPS = 6


class SilentTrainView:
    """Shows nothing; `story` is kept all the same."""

    def __init__(self, config: TrainConfig) -> None:
        self.story = Story(config)

    def told(self, phase: str, step: int, figures: Mapping[str, Any]) -> None:
        self.story.told(phase, step, figures)

    def note(self, text: str) -> None: ...
    def close(self) -> None: ...


class PlainTrainView(SilentTrainView):
    """A line for each step of learning and each evaluation; the warm start's not too often."""

    def __init__(self, config: TrainConfig, out: TextIO) -> None:
        super().__init__(config)
        self._out = out
        self._next = 0.0

    def told(self, phase: str, step: int, figures: Mapping[str, Any]) -> None:
        super().told(phase, step, figures)
        if phase == "evaluation":
            self.note(evaluation_line(figures))
        elif phase == "train" or (phase == "warmstart" and self._may_show(step)):
            self.note(self.story.line())

    def _may_show(self, step: int) -> bool:
        now = self.story.clock()
        if now < self._next and step < self.story.of:
            return False
        self._next = now + _PLAIN_EVERY_S
        return True

    def note(self, text: str) -> None:
        print(clean(text), file=self._out, flush=True)


class RichTrainView(SilentTrainView):
    """The last steps and the curves so far in a panel that moves; evaluations stay above it."""

    def __init__(self, config: TrainConfig, console: Console) -> None:
        from rich.live import Live

        super().__init__(config)
        self._console = console
        self._steps: list[tuple[str, ...]] = []
        self._live = Live(console=console, get_renderable=self._panel, refresh_per_second=2)
        self._live.start()

    def told(self, phase: str, step: int, figures: Mapping[str, Any]) -> None:
        super().told(phase, step, figures)
        if phase == "evaluation":
            self.note(evaluation_line(figures))
        elif phase == "train":
            self._steps = [*self._steps, step_row(step, figures)][-_SHOWN_STEPS:]

    def note(self, text: str) -> None:
        from rich.text import Text

        self._console.print(Text(clean(text)), highlight=False, soft_wrap=True)

    def _panel(self) -> Group:
        from rich import box
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        steps = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for name in STEP_COLUMNS:
            steps.add_column(Text(name), justify="right")
        for row in self._steps:
            steps.add_row(*map(Text, row))
        curves = Table.grid(padding=(0, 2))
        for name, picture, ends in self.story.sparklines():
            curves.add_row(Text(name, style="dim"), Text(picture, style="cyan"), Text(ends))
        shown = [steps, curves] if self._steps else [curves]
        return Group(*shown, Text(self.story.waiting(), style="bold"))

    def close(self) -> None:
        self._live.stop()


def evaluation_line(figures: Mapping[str, Any]) -> str:
    (row,) = evaluation_table([figures]).rows
    name, mode, temperature, after, reward, turns, tokens, submitted, scored = row
    return (
        f"held out, {after}: {name} in mode {mode} at T = {temperature}: reward {reward}, "
        f"{turns} turns, {tokens} tokens, {submitted} submitted, {scored} scored"
    )


def choose_train_view(
    display: str, config: TrainConfig, *, out: TextIO | None = None
) -> SilentTrainView:
    """`auto` moves on a terminal that is no build log, and is plain elsewhere."""
    out = sys.stderr if out is None else out
    if display == "auto":
        moving = out.isatty() and not os.environ.get("CI") and os.environ.get("TERM") != "dumb"
        display = "rich" if moving else "plain"
    if display == "none":
        return SilentTrainView(config)
    if display == "plain":
        return PlainTrainView(config, out)
    from rich.console import Console

    return RichTrainView(config, Console(file=out, highlight=False, markup=False, emoji=False))
