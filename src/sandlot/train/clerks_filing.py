"""Clerks of filing: one reads files at random and dawdles, one goes straight, one only drills.

The `wasteful` one is what a warm start makes a policy into, and what training must get rid of: it
seldom searches, mostly opens files (often those it has seen), idles, and often runs out of turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from sandlot.core.types import Task
from sandlot.tasks.generators.filing import ANSWER, generate, lines_of, written
from sandlot.train.lessons import Lessons, Played, Text

TURNS = 12
"""A wasteful clerk plans no further: its turns end here, whether it has found the line or not."""

SEARCH, IDLE = 0.05, 0.35
"""Shares of a wasteful clerk's looks that search, and that look at nothing; the rest read."""

_NOTHING = ("ls", "pwd", "ls input", "ls output")


def wasteful(task: Task, rng: Random) -> tuple[str, ...]:
    """Looks until the line was seen, often more, then the answer and perhaps a look at it."""
    commands: list[str] = []
    seen = False
    while len(commands) < TURNS:
        if seen and rng.random() < 0.5:
            commands.append(task.metadata["write"])
            if rng.random() < 0.5:
                commands.append(f"cat {ANSWER}")
            break
        look, found = _look(task, rng)
        commands.append(look)
        seen = seen or found
    return tuple(commands)


def _look(task: Task, rng: Random) -> tuple[str, bool]:
    """One command, and whether it shows the line."""
    chance = rng.random()
    if chance < SEARCH:
        return task.metadata["search"], True
    if chance < SEARCH + IDLE:
        return rng.choice(_NOTHING), False
    name = rng.choice(sorted(task.input_files))
    return f"cat input/{name}", name == task.metadata["holder"]


def straight(task: Task, rng: Random) -> tuple[str, ...]:
    """A search, or each file in turn up to the one that holds the line; then the answer."""
    names = sorted(task.input_files)
    upto = names[: names.index(task.metadata["holder"]) + 1]
    looks = [task.metadata["search"]] if rng.random() < 0.5 else [f"cat input/{n}" for n in upto]
    return (*looks, task.metadata["write"])


def _clerks(tasks: Sequence[Task], seed: int) -> list[Played]:
    rng = Random(f"sandlot filing clerks {seed}")
    return [(task, "wasteful", wasteful(task, rng)) for task in tasks]


def _drills(count: int, seed: int) -> list[Played]:
    """Tasks of one to three files, worked on straight."""
    rng = Random(f"sandlot filing drills {seed}")
    made: list[Played] = []
    for files in (1, 2, 3):
        some = count // 3 + (files <= count % 3)
        if some:
            tasks = generate({"items": some, "files": files, "seed": seed})
            made += [(task, "straight", straight(task, rng)) for task in tasks]
    return made


def _texts(count: int, seed: int) -> list[Text]:
    """Lines, and then the same lines in another order: what each says is to be recalled."""
    rng = Random(f"sandlot filing texts {seed}")
    return [_recall(rng) for _ in range(count)]


def _recall(rng: Random) -> Text:
    pairs = lines_of(rng, rng.randint(4, 16))
    given = "".join(f"{written(*pair)}\n" for pair in pairs)
    pieces: list[tuple[str, bool]] = []
    for key, entry in rng.sample(pairs, len(pairs)):
        pieces += [(f"{given}- {key}", False), (f" {entry}\n", True)]
        given = ""
    return tuple(pieces)


LESSONS = Lessons(clerks=_clerks, drills=_drills, texts=_texts)
