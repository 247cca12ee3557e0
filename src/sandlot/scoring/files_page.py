"""What a web page is asked, and how what a browser saw of it is judged. Starts no browser."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from sandlot.scoring.files_kinds import Check, Finding, compare, holds_texts, same_value


@dataclass(frozen=True, slots=True)
class Seen:
    """What happened while the page was open: errors by their text, addresses it asked for."""

    errors: tuple[str, ...]
    requests: tuple[str, ...]


class OpenPage(Protocol):
    def evaluate(self, script: str) -> Any:
        """The value of an expression in the page, promises awaited.

        Raises:
            ScriptFailed: it threw, gave nothing that JSON knows, or took too long.
        """
        ...

    def seen(self) -> Seen: ...


class ScriptFailed(Exception):
    """An expression failed in the page; the message is the page's own."""


def _title(page: OpenPage, *, text: str) -> Finding:
    found = str(page.evaluate("document.title")).strip()
    return Finding(found == text, f"title: asked {text!r}, found {found!r}")


def _texts(page: OpenPage, *, all_of: list[str]) -> Finding:
    seen = "document.body.innerText + '\\n' + " + _SVG_TEXT
    return holds_texts("the page", str(page.evaluate(seen)), all_of)


_SVG_TEXT = "[...document.querySelectorAll('svg text')].map(e => e.textContent).join('\\n')"


def _count(page: OpenPage, *, selector: str, count: Any) -> Finding:
    """Elements that a selector finds and that take up room on the page."""
    script = (
        f"[...document.querySelectorAll({_quoted(selector)})]"
        ".filter(e => {const b = e.getBoundingClientRect(); return b.width > 0 && b.height > 0})"
        ".length"
    )
    return compare(f"visible elements {selector!r}", page.evaluate(script), count)


def _evaluates(
    page: OpenPage, *, what: str, script: str, equals: Any, tolerance: float = 1e-6
) -> Finding:
    """An expression of ours (a click, then what the page shows) has the asked value."""
    found = page.evaluate(script)
    if isinstance(equals, list):
        same = isinstance(found, list) and len(found) == len(equals)
        same = same and all(same_value(a, b, tolerance) for a, b in zip(found, equals, strict=True))
    else:
        same = same_value(found, equals, tolerance)
    return Finding(same, f"{what}: asked {equals!r}, found {found!r}")


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _no_errors(page: OpenPage) -> Finding:
    errors = page.seen().errors
    return Finding(not errors, f"errors in the console: {list(errors[:3]) or 'none'}")


def _stays_inside(page: OpenPage) -> Finding:
    requests = page.seen().requests
    return Finding(not requests, f"addresses asked for outside: {list(requests[:5]) or 'none'}")


CHECKS: Mapping[str, Check] = {
    "count": _count,
    "evaluates": _evaluates,
    "no_errors": _no_errors,
    "stays_inside": _stays_inside,
    "texts": _texts,
    "title": _title,
}

AT_THE_END = ("no_errors", "stays_inside")
"""Checks of everything that happened, interactions of the other checks included."""
