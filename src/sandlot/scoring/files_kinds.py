"""What a kind of file is to the scorer: a reader with limits, and named checks on what it read."""

from __future__ import annotations

import re
import struct
import unicodedata
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MIB = 1024 * 1024

BROKEN = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    NotImplementedError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)
"""What the libraries are known to raise over a damaged file; none of them promises less."""


class Refused(Exception):
    """The file cannot be read, or reading it would cost too much. The message says why."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The verdict of one check, in words that name what was asked and what was found."""

    passed: bool
    said: str


Check = Callable[..., Finding]
"""Called with what the reader gave, and with the spec's own fields by keyword."""


@dataclass(frozen=True, slots=True)
class Kind:
    """`needs` are modules of the extra `create`, by what check needs them ("" for the reader)."""

    read: Callable[[Path], Any]
    checks: Mapping[str, Check]
    needs: Mapping[str, str]
    max_bytes: int = 50 * MIB


def within(number: float, asked: Any) -> bool:
    """Whether a number is the asked one, or lies in the asked [least, most]."""
    if isinstance(asked, list | tuple):
        least, most = asked
        return (least is None or number >= least) and (most is None or number <= most)
    return bool(number == asked)


def asked_words(asked: Any) -> str:
    if not isinstance(asked, list | tuple):
        return f"{asked}"
    least, most = asked
    if least is None:
        return f"at most {most}"
    return f"at least {least}" if most is None else f"{least} to {most}"


def compare(what: str, number: float, asked: Any) -> Finding:
    shown = f"{number:.4g}" if isinstance(number, float) else f"{number}"
    return Finding(within(number, asked), f"{what}: asked {asked_words(asked)}, found {shown}")


def plain_text(text: str) -> str:
    """Compatibility forms and runs of spaces made one, as a reader sees the text."""
    return re.sub(r"\s+", " ", unicodedata.normalize("NFKC", text)).strip()


def holds_texts(where: str, text: str, wanted: Iterable[str]) -> Finding:
    seen = plain_text(text)
    absent = [one for one in wanted if plain_text(one) not in seen]
    said = f"not found in {where}: {absent}" if absent else f"{where} holds every asked text"
    return Finding(not absent, said)


def same_value(found: Any, asked: Any, tolerance: float) -> bool:
    """Numbers by tolerance (relative above 1, absolute below), everything else as plain text."""
    if isinstance(asked, bool) or not isinstance(asked, int | float):
        return plain_text(str(found)) == plain_text(str(asked))
    try:
        number = float(found)
    except (TypeError, ValueError):
        return False
    return abs(number - asked) <= tolerance * max(1.0, abs(asked))


def colour_of(text: str) -> tuple[int, int, int]:
    """`#rrggbb` as three numbers from 0 to 255."""
    return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)


def near_colour(found: tuple[int, ...], asked: str, tolerance: int) -> bool:
    return all(abs(a - b) <= tolerance for a, b in zip(found, colour_of(asked), strict=False))


def hex_of(colour: tuple[int, ...]) -> str:
    return "#" + "".join(f"{part:02x}" for part in colour[:3])
