"""Where a run's tasks come from, and with which scorer they are scored."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from sandlot.core.errors import ConfigError, InputError
from sandlot.core.types import Task
from sandlot.scoring.base import Scorer, ScoringTools
from sandlot.scoring.registry import load_scorer
from sandlot.tasks.base import TaskSet
from sandlot.tasks.registry import generate, load_set
from sandlot.train.base import Note
from sandlot.train.config import TasksConfig, TaskSource


@dataclass(frozen=True, slots=True)
class Tasks:
    """A source of tasks, the same for the same seed. `row` is the set's, None for a generator."""

    source: TaskSource
    fixed: tuple[Task, ...] | None
    row: TaskSet | None

    def step(self, number: int, count: int) -> tuple[Task, ...]:
        """The tasks of a step, counted from 0. A set is gone through in a new order each time."""
        if self.fixed is None:
            return self.fresh(self.source.seed + number, count)
        first = number * count
        return tuple(self._at(first + offset) for offset in range(count))

    def _at(self, index: int) -> Task:
        assert self.fixed is not None
        turn, place = divmod(index, len(self.fixed))
        order = list(range(len(self.fixed)))
        Random(f"sandlot tasks {self.source.seed} {turn}").shuffle(order)
        return self.fixed[order[place]]

    def fresh(self, seed: int, count: int) -> tuple[Task, ...]:
        """`count` tasks of a generator under a seed; the families take turns, shuffled."""
        options = dict(self.source.options)
        families = list(options.get("families", ()))
        if families:
            Random(f"sandlot families {seed}").shuffle(families)
            options["families"] = families
        return generate(str(self.source.generator), {**options, "items": count, "seed": seed})

    def all(self, count: int | None = None) -> tuple[Task, ...]:
        """The tasks to evaluate on: a set's own, or `count` of a generator under its seed."""
        if self.fixed is not None:
            return self.fixed if count is None else self.fixed[:count]
        return self.fresh(self.source.seed, count or int(self.source.options.get("items", 60)))


def open_tasks(source: TaskSource, *, cache: Path, note: Note) -> Tasks:
    """Raises:
    ConfigError: an unknown set or generator. InputError: a set that cannot be read, or is empty.
    """
    if source.generator is not None:
        made = Tasks(source, None, None)
        made.fresh(source.seed, 1)  # what is wrong with the options is said before anything runs
        items = source.options.get("items", 1)
        if type(items) is not int or items < 1:
            raise ConfigError(
                f"generator {source.generator!r}: items must be a whole number above 0, "
                f"found {items!r}"
            )
        return made
    loaded = load_set(str(source.set), cache=cache, environ=os.environ, progress=note)
    tasks = loaded.tasks if source.limit is None else loaded.tasks[: source.limit]
    if not tasks:
        raise InputError(f"task set {source.set!r} holds no tasks")
    lacking = [task.id for task in tasks if task.target is None]
    if lacking:
        raise InputError(
            f"task set {source.set!r}: {len(lacking)} tasks have no truth (the first is "
            f"{lacking[0]!r}), so nothing could be rewarded"
        )
    return Tasks(source, tuple(tasks), loaded.row)


def scorer_of(config: TasksConfig, row: TaskSet | None, tools: ScoringTools) -> Scorer:
    """The scorer that the configuration names, else the task set's."""
    if config.scorer is not None:
        return load_scorer(config.scorer, config.scorer_options, tools)
    if row is None:
        raise ConfigError("tasks.scorer is missing: a generator's tasks do not name one")
    options: Mapping[str, Any] = {**row.scorer_options, **config.scorer_options}
    return load_scorer(row.scorer, options, tools)
