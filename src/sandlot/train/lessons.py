"""What a warm start on the tasks of a generator can learn from: who acts, drills, and texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module

from sandlot.core.errors import ConfigError
from sandlot.core.types import Task

Played = tuple[Task, str, tuple[str, ...]]
"""A task, the style in which a clerk works on it, and the clerk's commands before it submits."""

Text = tuple[tuple[str, bool], ...]
"""Pieces of a text in order; True where a policy learns to write the piece. The first is given."""


@dataclass(frozen=True, slots=True)
class Lessons:
    """Each function gets a seed last, and gives the same for the same seed.

    `clerks` says how each of the tasks is worked on; `drills` makes that many short exercises, in
    sandboxes like the rest; `texts` that many plain texts, which stand in for pretraining.
    """

    clerks: Callable[[Sequence[Task], int], list[Played]]
    drills: Callable[[int, int], list[Played]]
    texts: Callable[[int, int], list[Text]]


_LESSONS: Mapping[str, str] = {
    "errands": "sandlot.train.clerks",
    "filing": "sandlot.train.clerks_filing",
}


def lessons_of(generator: str | None) -> Lessons:
    """Raises:
    ConfigError: nobody knows how to work on such tasks; says what to do instead.
    """
    if generator is None or generator not in _LESSONS:
        known = " and ".join(repr(name) for name in sorted(_LESSONS))
        raise ConfigError(
            f"warmstart: clerks can only act on tasks of the generators {known}; learn from "
            "recorded trajectories (warmstart.rows) instead"
        )
    lessons: Lessons = import_module(_LESSONS[generator]).LESSONS
    return lessons
