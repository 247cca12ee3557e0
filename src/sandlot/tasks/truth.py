"""What kind of ground truth each shipped scorer can work with, checked before anything runs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any


def wrong_truth(scorer: str, target: Any) -> str | None:
    """Why a scorer cannot use a ground truth, as the end of a sentence; None where it can.

    A scorer that is not ours takes whatever it likes.
    """
    wanted, fits = _WANTED.get(scorer, ("", _anything))
    return None if fits(target) else f"the scorer {scorer!r} wants {wanted}, found {_shown(target)}"


def needs_truth(scorer: str) -> bool:
    """Whether a task without a ground truth is of no use to a shipped scorer."""
    return scorer in _WANTED


def _shown(target: Any) -> str:
    text = repr(target)
    return text if len(text) <= 120 else f"{text[:119]}…"


def _anything(target: Any) -> bool:
    return True


def _is_text(target: Any) -> bool:
    given = target if isinstance(target, list | tuple) else [target]
    return bool(given) and all(
        isinstance(one, str | int | float)
        and not isinstance(one, bool)
        and (not isinstance(one, float) or math.isfinite(one))  # what JSON has for an empty cell
        and str(one).strip() != ""
        for one in given
    )


def _is_letters(target: Any) -> bool:
    given = target if isinstance(target, list | tuple) else [target]
    return bool(given) and all(isinstance(one, str) and one.strip() for one in given)


def _is_checks(target: Any) -> bool:
    checks = _from_json(target)
    return (
        isinstance(checks, list | tuple)
        and bool(checks)
        and all(
            isinstance(check, dict)
            and isinstance(check.get("id"), str)
            and isinstance(check.get("kwargs") or {}, dict)
            for check in checks
        )
    )


def _is_files(target: Any) -> bool:
    files = target.get("files") if isinstance(target, dict) else None
    return (
        isinstance(files, list | tuple)
        and bool(files)
        and all(
            isinstance(file, dict)
            and isinstance(file.get("path"), str)
            and isinstance(file.get("kind"), str)
            for file in files
        )
    )


def _is_ifbench(target: Any) -> bool:
    table = _from_json(target)
    if not isinstance(table, dict):
        return False
    names, kwargs = table.get("instruction_id_list"), table.get("kwargs")
    return (
        isinstance(names, list)
        and isinstance(kwargs, list)
        and len(names) == len(kwargs) > 0
        and all(isinstance(name, str) for name in names)
    )


def _from_json(target: Any) -> Any:
    if not isinstance(target, str):
        return target
    try:
        return json.loads(target)
    except ValueError:
        return None


_TEXT = ("a text, a number or a list of those", _is_text)
_WANTED: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "cascade": _TEXT,
    "choice": ("a letter, or letters as a text or list", _is_letters),
    "files": ('an object {"files": [{"path": …, "kind": …, "checks": […]}]}', _is_files),
    "ifbench": (
        "an object (or its JSON text) with as many `instruction_id_list` as `kwargs`",
        _is_ifbench,
    ),
    "instructions": ('a list of {"id": …, "kwargs": {…}} (or its JSON text)', _is_checks),
    "judge": _TEXT,
    "math": _TEXT,
    "qa": _TEXT,
    "text": _TEXT,
}
