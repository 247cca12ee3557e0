"""Files that were asked for, each opened in a helper process and held to its checks."""

from __future__ import annotations

import inspect
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from sandlot.core.errors import ConfigError, unknown_name
from sandlot.core.types import Score, Task
from sandlot.scoring.base import Candidate, ScoringTools
from sandlot.scoring.children import ChildPool, Failed
from sandlot.scoring.files_child import CPU_S, KINDS, OPENS
from sandlot.scoring.files_kinds import Check
from sandlot.scoring.files_page import CHECKS as PAGE_CHECKS

WALL_S = 60.0
"""For one file; processor time is bounded sooner (`files_child.CPU_S`)."""

PAGE_WALL_S = 120.0
ANSWER_FILE = "answer.txt"
"""The line that a rollout leaves beside its files; nobody's output."""

NOTHING_ELSE = "nothing else"
PAGE = "page"
_EXTRA_SHOWN = 20


@dataclass(frozen=True, slots=True)
class AskedFile:
    """One file of a task's ground truth. `checks` are tables: `check`, and the check's fields."""

    path: str
    kind: str
    checks: tuple[Mapping[str, Any], ...] = ()
    max_bytes: int | None = None


class FilesScorer:
    """1 where every asked file passes every check and no other file was left, else 0.

    The ground truth is `{"files": [{"path", "kind", "checks": [{"check", …}], "max_bytes"?}]}`.
    `details["checks"]` holds every check in words (file, check, passed, said), `details["parts"]`
    the share of asked checks that passed, `details["extra"]` what nobody asked for. A file that
    does not open fails; one that costs more to open than any honest file (time, memory, or the
    life of the helper, twice) counts as one that does not open. A library or a browser that is
    not installed makes the score missing.

    Not found out: whether a picture, a tune or a page is any good.
    """

    name = "files"
    version = "1"

    def __init__(self, tools: ScoringTools, *, helpers: int = 2, wall_s: float = WALL_S) -> None:
        self._files = ChildPool(
            "sandlot.scoring.files_child", timeout_s=wall_s, size=helpers, environ=tools.environ
        )
        self._pages = ChildPool(
            "sandlot.scoring.files_page_child",
            timeout_s=PAGE_WALL_S,
            size=1,  # a browser is some hundred megabytes
            environ=tools.environ,
        )

    async def score(self, candidate: Candidate) -> Score:
        asked = asked_files(candidate.task)
        left = left_files(candidate.files)
        if not left:
            return self._scored(candidate, 0.0, {"no_answer": True, "parts": 0.0})
        verdicts: list[dict[str, Any]] = []
        for one in asked:
            if one.path not in left:
                found: Sequence[Mapping[str, Any]] | str = [_fails(OPENS, "is not there")]
            else:
                assert candidate.files is not None
                found = await self._open(candidate.files / one.path, one)
            if isinstance(found, str):
                return self._missing(candidate, f"{one.path}: {found}")
            verdicts += [{"file": one.path, **verdict} for verdict in found]
        extra = sorted(left - {one.path for one in asked})
        return self._scored(candidate, *_total(asked, verdicts, extra))

    async def close(self) -> None:
        await self._files.close()
        await self._pages.close()

    async def _open(self, path: Path, asked: AskedFile) -> Sequence[Mapping[str, Any]] | str:
        """The verdicts on one file, or why there are none."""
        with tempfile.TemporaryDirectory(prefix="sandlot-page-", ignore_cleanup_errors=True) as at:
            question = {
                "path": os.path.abspath(path),
                "kind": asked.kind,
                "checks": asked.checks,
                "max_bytes": asked.max_bytes,
                "scratch": at,
            }
            return await self._ask(question, again=True)

    async def _ask(
        self, question: Mapping[str, Any], *, again: bool
    ) -> Sequence[Mapping[str, Any]] | str:
        pool = self._pages if question["kind"] == PAGE else self._files
        reply = await pool.ask(question)
        if isinstance(reply, Failed):
            if reply.out_of_time:
                spent = reply.cpu_s >= CPU_S / 2
                return [_fails(OPENS, f"cannot be read: {reply.reason}")] if spent else reply.reason
            if "died" not in reply.reason:
                return reply.reason
            if again:  # it may have been another's doing: a machine short of memory
                return await self._ask(question, again=False)
            return [_fails(OPENS, "ends every process that reads it")]
        if "exhausted" in reply:
            return [_fails(OPENS, f"costs too much to read ({reply['exhausted']})")]
        if "missing" in reply:
            return f'needs the module {reply["missing"]!r}: pip install "sandlot[create]"'
        if "failed" in reply:
            return str(reply["failed"])
        results: Sequence[Mapping[str, Any]] = reply["results"]
        return results

    def _scored(self, candidate: Candidate, value: float, details: Mapping[str, Any]) -> Score:
        return Score(candidate.task.id, self.name, self.version, value, details=details)

    def _missing(self, candidate: Candidate, reason: str) -> Score:
        return Score(candidate.task.id, self.name, self.version, None, missing=reason)


def _fails(check: str, said: str) -> dict[str, Any]:
    return {"check": check, "passed": False, "said": said}


def _total(
    asked: Sequence[AskedFile], verdicts: list[dict[str, Any]], extra: list[str]
) -> tuple[float, dict[str, Any]]:
    """The value, and the details. What did not open fails all that was asked of it."""
    found = f"not asked for: {extra[:_EXTRA_SHOWN]}" if extra else "no other file"
    verdicts.append({"file": "", "check": NOTHING_ELSE, "passed": not extra, "said": found})
    whole = sum(1 + len(one.checks) for one in asked) + 1
    passed = sum(1 for verdict in verdicts if verdict["passed"])
    details = {
        "checks": verdicts,
        "failed": [f"{v['file']} {v['check']}".strip() for v in verdicts if not v["passed"]],
        "parts": round(passed / whole, 4),
        "extra": extra[:_EXTRA_SHOWN],
    }
    return float(passed == whole), details


def left_files(folder: Path | None) -> set[str]:
    """Paths of everything in the folder that is no folder, links unfollowed; not the answer."""
    if folder is None or not folder.is_dir():
        return set()
    return {path for path in _walk(folder) if path != ANSWER_FILE}


def _walk(folder: Path) -> Iterator[str]:
    for at, folders, names in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(at, name))]
        for name in (*names, *links):
            yield Path(at, name).relative_to(folder).as_posix()


def asked_files(task: Task) -> tuple[AskedFile, ...]:
    """The ground truth as files with checks.

    Raises:
        ConfigError: it is none that this scorer can use; names the task, the file and the field.
    """
    target = task.target
    rows = target.get("files") if isinstance(target, Mapping) else None
    if not isinstance(rows, list | tuple) or not rows:
        raise ConfigError(
            f'task {task.id!r}: the ground truth must be {{"files": [...]}}, found {target!r:.120}'
        )
    return tuple(_asked_file(task.id, row) for row in rows)


def _asked_file(task_id: str, row: Any) -> AskedFile:
    if not isinstance(row, Mapping) or not isinstance(row.get("path"), str):
        raise ConfigError(f"task {task_id!r}: a file needs a path and a kind, found {row!r:.120}")
    where = f"task {task_id!r}: file {row['path']!r}"
    unknown = set(row) - {"path", "kind", "checks", "max_bytes"}
    if unknown:
        raise ConfigError(f"{where}: {sorted(unknown)[0]!r} is no field of an asked file")
    path = PurePosixPath(row["path"])
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ConfigError(f"{where}: the path must lie inside the output folder")
    known = PAGE_CHECKS if row.get("kind") == PAGE else _checks_of(where, row.get("kind"))
    for one in row.get("checks", ()):
        name = one.get("check") if isinstance(one, Mapping) else None
        if name is None or name not in known:
            raise ConfigError(f"{where}: {unknown_name('check', str(name), known)}")
        _bind(where, name, known[name], one)
    return AskedFile(str(path), row["kind"], tuple(row.get("checks", ())), row.get("max_bytes"))


def _bind(where: str, name: str, check: Check, one: Mapping[str, Any]) -> None:
    """Whether a check can be called with the fields that the truth gives it."""
    given = {field: value for field, value in one.items() if field != "check"}
    try:
        inspect.signature(check).bind(None, **given)
    except TypeError as exc:
        raise ConfigError(f"{where}: check {name!r}: {exc}") from exc


def _checks_of(where: str, kind: Any) -> Mapping[str, Any]:
    if kind not in KINDS:
        raise ConfigError(f"{where}: {unknown_name('kind', str(kind), [*KINDS, PAGE])}")
    return KINDS[kind].checks
