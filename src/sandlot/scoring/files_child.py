"""The helper process that opens files which a model made, one at a time and under limits."""

from __future__ import annotations

import stat
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sandlot.scoring.child import Answer, limited, serve
from sandlot.scoring.files_documents import KINDS as DOCUMENTS
from sandlot.scoring.files_kinds import Finding, Kind, Refused
from sandlot.scoring.files_media import KINDS as MEDIA
from sandlot.scoring.files_pictures import KINDS as PICTURES

CPU_S = 20.0
_SAID = 400

KINDS: Mapping[str, Kind] = {**DOCUMENTS, **MEDIA, **PICTURES}

OPENS = "opens"
"""The check that stands before all others: the file is there and can be read as its kind."""


def prepare() -> tuple[Mapping[str, Any], Answer]:
    return {"ready": "files"}, lambda question: limited(CPU_S, lambda: guarded(answer, question))


def guarded(work: Answer, question: Mapping[str, Any]) -> Mapping[str, Any]:
    """The work's answer; a mistake of ours is told by name, and the score is then missing.

    Without this the helper would die of it, which is what the files that kill their reader do.
    """
    try:
        return work(question)
    except MemoryError:
        raise
    except Exception as exc:  # noqa: BLE001 - named to the owner, who reports it
        at = exc.__traceback__
        while at is not None and at.tb_next is not None:
            at = at.tb_next
        where = (
            f" at line {at.tb_lineno} of {Path(at.tb_frame.f_code.co_filename).name}" if at else ""
        )
        return {"failed": f"the scorer failed: {type(exc).__name__}: {exc}{where}"}


def answer(question: Mapping[str, Any]) -> Mapping[str, Any]:
    """`{"path", "kind", "checks"}` to `{"results": [...]}`, or `{"missing": module}`.

    A result is `{"check", "passed", "said"}`; where the file does not open it is the only one.
    """
    kind = KINDS[question["kind"]]
    checks = question["checks"]
    for module in _needed(kind, checks):
        if find_spec(module) is None:
            return {"missing": module}
    path = Path(question["path"])
    try:
        measure(path, question.get("max_bytes"), kind.max_bytes)
        opened = kind.read(path)
    except Refused as exc:
        return {"results": [_result(OPENS, Finding(False, str(exc)))]}
    results = [_result(OPENS, Finding(True, f"opens as {question['kind']}"))]
    return {"results": results + [_result(one["check"], _run(kind, opened, one)) for one in checks]}


def measure(path: Path, asked_bytes: int | None, most_bytes: int) -> None:
    """Refuse what is no regular file (a link may lead anywhere), is empty or too large."""
    try:
        found = path.lstat()
    except OSError as exc:
        raise Refused(f"cannot be read ({exc.strerror})") from exc
    limit = min(asked_bytes or most_bytes, most_bytes)
    if not stat.S_ISREG(found.st_mode):
        raise Refused("is no regular file")
    if found.st_size == 0:
        raise Refused("is empty")
    if found.st_size > limit:
        size = f"{found.st_size:,} bytes"
        raise Refused(f"has {size}, more than {limit:,}")


def _needed(kind: Kind, checks: list[Mapping[str, Any]]) -> list[str]:
    """Modules for reading the kind, and for the checks that are asked."""
    asked = {one["check"] for one in checks}
    return [
        module for what, module in kind.needs.items() if what not in kind.checks or what in asked
    ]


def _run(kind: Kind, opened: Any, one: Mapping[str, Any]) -> Finding:
    asked = {name: value for name, value in one.items() if name != "check"}
    return kind.checks[one["check"]](opened, **asked)


def _result(name: str, found: Finding) -> dict[str, Any]:
    return {"check": name, "passed": found.passed, "said": found.said[:_SAID]}


if __name__ == "__main__":
    serve(prepare)
