"""Filing: find one line in a folder of short files, and write it down.

The smallest tasks that need a computer, for policies of less than a million weights: a prompt of
six words, lines of two, and a truth that stands in one of the files alone. Reading the files one
by one finds it late, one search finds it at once.

The same options give the same bytes on every machine: all chance comes from `random.Random`
seeded with a text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

from sandlot.core.errors import ConfigError, unknown_name
from sandlot.core.types import Task
from sandlot.tasks.generators.errands_words import TRAIN_WORDS
from sandlot.tasks.loaders import DOCUMENTS, file_digest

VERSION = "1"

_SHORT = tuple(word for word in TRAIN_WORDS if len(word) <= 6)
KEYS = _SHORT[0:128:2]
"""What lines are about: 64 words, none of them part of another word."""
ENTRIES = _SHORT[1:128:2]
"""What lines say: 64 other words."""

ANSWER = "output/answer.txt"


@dataclass(frozen=True, slots=True)
class Options:
    """Each task has `files` files of `lines` lines."""

    items: int = 60
    seed: int = 1
    files: int = 8
    lines: int = 2


def generate(options: Mapping[str, Any], *, domain: str = "filing") -> tuple[Task, ...]:
    """The tasks of a generator row.

    Raises:
        ConfigError: an option that does not exist or has a value out of range.
    """
    asked = _checked(options)
    return tuple(_make(asked, number, domain) for number in range(asked.items))


def lines_of(rng: Random, count: int) -> list[tuple[str, str]]:
    """`count` keys with what is said of them; no key comes twice, and no entry."""
    return list(zip(rng.sample(KEYS, count), rng.sample(ENTRIES, count), strict=True))


def written(key: str, entry: str) -> str:
    """A line of a file. Its words stand behind spaces, as in a prompt and in a command."""
    return f"- {key} {entry}"


def _make(asked: Options, number: int, domain: str) -> Task:
    rng = Random(f"sandlot filing {VERSION} {asked.seed} {number} {asked.files} {asked.lines}")
    pairs = lines_of(rng, asked.files * asked.lines)
    wanted = rng.randrange(len(pairs))
    key, line = pairs[wanted][0], written(*pairs[wanted])
    files = {
        f"d{index}.txt": "".join(
            f"{written(*pair)}\n" for pair in pairs[index * asked.lines : (index + 1) * asked.lines]
        ).encode("ascii")
        for index in range(asked.files)
    }
    return Task(
        id=f"filing-{asked.files}x{asked.lines}-{asked.seed}-{number:04d}",
        prompt=f"Find the line about {key}.",
        input_files=files,
        target=line,
        domain=domain,
        metadata={
            "family": "filing",
            "label": "computer-favouring",
            "search": f"grep -h {key} input/*",
            "holder": f"d{wanted // asked.lines}.txt",
            "write": f"echo {line} > {ANSWER}",
            DOCUMENTS: file_digest(files),
        },
    )


_RANGES = {"items": (1, 100_000), "seed": (0, 2**63), "files": (1, 10), "lines": (1, 6)}


def _checked(options: Mapping[str, Any]) -> Options:
    for name in options:
        if name not in _RANGES:
            raise unknown_name("option of the generator 'filing'", name, tuple(_RANGES))
    for name, (low, high) in _RANGES.items():
        value = options.get(name, low)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ConfigError(
                f"generator 'filing': {name} must be a whole number from {low:,} to {high:,}, "
                f"found {value!r}"
            )
    return Options(**options)
