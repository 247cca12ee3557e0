"""Rows of whatever shape into tasks, with every problem named by file, line and field."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from sandlot.core.codec import to_json
from sandlot.core.errors import InputError, unknown_name
from sandlot.core.types import Task
from sandlot.tasks.base import TaskSet
from sandlot.tasks.readers import Row
from sandlot.tasks.truth import needs_truth, wrong_truth

DOMAINS = (
    "biomed",
    "chem",
    "create",
    "general",
    "instruct_follow",
    "instruct_pretrain",
    "long_context",
    "math",
    "physics",
)
"""Domains that need no explanation. A set of one's own may name another in its TOML file."""

ALIASES: Mapping[str, tuple[str, ...]] = {
    "id": ("id", "question_id", "key"),
    "prompt": ("problem_statement", "prompt", "question", "problem", "input"),
    "target": ("ground_truth", "target", "answer"),
    "files": ("input_files", "documents", "files"),
}
"""Fields of the published sets, of Inspect's samples, and what people usually write, best first."""

DOCUMENTS = "documents_digest"
"""Metadata field of every task with files: items with the same documents share it."""

_SHOWN = 20  # problems in one message


class _Problem(Exception):
    """What is wrong with one row, in words that follow its place."""


def load_tasks(
    rows: Iterable[Row], row: TaskSet, *, folder: Path | None = None, what: str = "the set"
) -> tuple[Task, ...]:
    """Every row as a task.

    Args:
        folder: where files that an Inspect sample names by path may lie.
        what: the source in words, for messages.
    Raises:
        InputError: rows that cannot be used, all of them named (the first 20 in full); no rows.
    """
    tasks: dict[str, Task] = {}
    places: dict[str, str] = {}
    problems: list[str] = []
    for number, raw in enumerate(rows, 1):
        try:
            task = _task_of(raw, row, folder, number)
            if task.id in places:
                raise _Problem(f"field 'id': {task.id!r} stands already at {places[task.id]}")
        except _Problem as exc:
            problems.append(f"{raw.place}: {exc}")
        else:
            tasks[task.id], places[task.id] = task, raw.place
    if problems:
        raise InputError(_summary(what, problems))
    if not tasks:
        raise InputError(f"{what}: holds no rows")
    return tuple(tasks.values())


def digest_of(row: TaskSet, tasks: Iterable[Task]) -> str:
    """The sha256 of the row and of every task in order, each as one line of canonical JSON."""
    digest = hashlib.sha256()
    for value in (row, *tasks):
        line = json.dumps(to_json(value), sort_keys=True, separators=(",", ":"))
        digest.update(line.encode("ascii") + b"\n")
    return digest.hexdigest()


def field_of(fields: Mapping[str, Any], part: str, names: Mapping[str, str]) -> str | None:
    """The name of the field that holds a part of a task; None where there is none.

    `names` maps a part (id, prompt, target, files) to the field that a set says holds it.
    """
    if part in names:
        return names[part] if names[part] in fields else None
    return next((name for name in ALIASES[part] if fields.get(name) is not None), None)


def _summary(what: str, problems: list[str]) -> str:
    if len(problems) == 1:
        return problems[0]
    shown = "\n  ".join(problems[:_SHOWN])
    more = f"\n  … and {len(problems) - _SHOWN:,} more" if len(problems) > _SHOWN else ""
    return f"{what}: {len(problems):,} rows cannot be used:\n  {shown}{more}"


def _task_of(raw: Row, row: TaskSet, folder: Path | None, number: int) -> Task:
    if raw.fields is None:
        raise _Problem(raw.problem or "cannot be read")
    fields = raw.fields
    names: Mapping[str, str] = row.source.options.get("fields", {})
    found = {part: field_of(fields, part, names) for part in ALIASES}
    files = _files(fields, found["files"], folder)
    metadata = _metadata(fields, {name for name in found.values() if name}, files)
    _check_cluster(row, metadata)
    return Task(
        id=_id(fields, found["id"], row, number),
        prompt=_prompt(fields, found["prompt"], names),
        input_files=files,
        target=_target(fields, found["target"], row, names),
        domain=_domain(fields, row),
        metadata=metadata,
    )


def _missing(fields: Mapping[str, Any], part: str, names: Mapping[str, str]) -> _Problem:
    wanted = names.get(part) or ALIASES[part][0]
    return _Problem(f"field {wanted!r} is missing (found: {', '.join(map(str, fields))})")


def _id(fields: Mapping[str, Any], name: str | None, row: TaskSet, number: int) -> str:
    numbered = row.source.options.get("ids") == "number"
    if numbered:
        return f"{number:04d}"
    if name is None:
        problem = _missing(fields, "id", row.source.options.get("fields", {}))
        raise _Problem(
            f'{problem}; options = {{ ids = "number" }} in the set\'s source counts rows'
        )
    value = fields[name]
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise _Problem(f"field {name!r} must be a text or a whole number, found {value!r}")
    return _encodable(name, str(value))


def _encodable(name: str, text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as exc:
        raise _Problem(
            f"field {name!r} is not text (a lone surrogate at character {exc.start})"
        ) from exc
    return text


def _prompt(fields: Mapping[str, Any], name: str | None, names: Mapping[str, str]) -> str:
    if name is None:
        raise _missing(fields, "prompt", names)
    value = fields[name]
    if isinstance(value, list):
        value = _only_user_message(name, value)
    if not isinstance(value, str) or not value.strip():
        raise _Problem(f"field {name!r} must be a text that is not empty, found {value!r:.80}")
    _encodable(name, value)
    choices = fields.get("choices")
    if not isinstance(choices, list) or not choices:
        return value
    lines = [f"{chr(ord('A') + at)}. {choice}" for at, choice in enumerate(choices)]
    return value + "\n\n" + "\n".join(lines)


def _only_user_message(name: str, messages: list[Any]) -> Any:
    """An Inspect sample may be asked by messages; a task here is one prompt."""
    contents = [one.get("content") for one in messages if isinstance(one, Mapping)]
    roles = [one.get("role") for one in messages if isinstance(one, Mapping)]
    if roles != ["user"]:
        raise _Problem(f"field {name!r}: one message of the user is understood, found {roles}")
    return contents[0]


def _target(
    fields: Mapping[str, Any], name: str | None, row: TaskSet, names: Mapping[str, str]
) -> Any:
    if name is None:
        if needs_truth(row.scorer):
            raise _missing(fields, "target", names)
        return None
    target = json_value(fields[name])
    wrong = wrong_truth(row.scorer, target)
    if wrong:
        raise _Problem(f"field {name!r}: {wrong}")
    return target


def _domain(fields: Mapping[str, Any], row: TaskSet) -> str:
    value = fields.get("domain")
    if value is None or value == "":
        return row.domain
    known = {*DOMAINS, row.domain}
    if not isinstance(value, str) or value not in known:
        raise _Problem(
            f"field 'domain': {unknown_name('domain', str(value), known)} "
            "A domain of your own is named in the set's TOML file."
        )
    return value


def _check_cluster(row: TaskSet, metadata: Mapping[str, Any]) -> None:
    if row.cluster and row.cluster != DOCUMENTS and metadata.get(row.cluster) is None:
        raise _Problem(f"field {row.cluster!r} is missing, by which the set's items are clustered")


# --- documents -------------------------------------------------------------------------------


def documents_of(raw: Row, name: str) -> dict[str, bytes]:
    """The documents in one field of a row by file name, whatever else is in the row.

    Raises:
        InputError: documents that are not texts by name; names the row and the field.
    """
    try:
        return _files(raw.fields or {}, name, None)
    except _Problem as exc:
        raise InputError(f"{raw.place}: {exc}") from exc


def _files(fields: Mapping[str, Any], name: str | None, folder: Path | None) -> dict[str, bytes]:
    value = fields[name] if name else None
    if isinstance(value, str):
        value = _files_from_json(str(name), value)
    if isinstance(value, list):
        value = {f"document_{number:03d}.txt": text for number, text in enumerate(value, 1)}
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise _Problem(f"field {name!r} must hold texts by file name, found {type(value).__name__}")
    # Parquet gives every row the files of all rows, None where they are another's.
    given = {str(file): text for file, text in value.items() if text is not None}
    _refuse_folders(name, given)
    inspect = folder if name == "files" else None
    return {_inside(name, file): _content(name, file, given[file], inspect) for file in given}


def _files_from_json(name: str, text: str) -> Any:
    if not text.strip():
        return None
    try:
        return json.loads(text)
    except ValueError as exc:
        raise _Problem(f"field {name!r}: not the JSON of a file table ({exc})") from exc


def _refuse_folders(name: str | None, files: Iterable[str]) -> None:
    """A name that is also a folder of another's could be in no computer."""
    paths = {PurePosixPath(file) for file in files}
    for path in paths:
        for above in path.parents:
            if above in paths and above.parts:
                raise _Problem(f"field {name!r}: {str(above)!r} is a file and a folder of {path}")


def _inside(name: str | None, file: str) -> str:
    path = PurePosixPath(file)
    if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in file:
        raise _Problem(f"field {name!r}: the file name {file!r} leads out of the input folder")
    return file


def _content(name: str | None, file: str, value: Any, folder: Path | None) -> bytes:
    """A document as bytes. An Inspect sample may also give a data URI, or a path in `folder`."""
    if isinstance(value, bytes):
        return _utf8(name, file, value)
    if not isinstance(value, str):
        raise _Problem(
            f"field {name!r}: the document {file!r} is not text but {type(value).__name__}"
        )
    if folder is not None:
        named = _named(name, file, value, folder)
        if named is not None:
            return named
    try:
        return value.encode("utf-8")
    except UnicodeEncodeError as exc:
        raise _Problem(
            f"field {name!r}: the document {file!r} is not text (a lone surrogate at "
            f"character {exc.start})"
        ) from exc


def _utf8(name: str | None, file: str, data: bytes) -> bytes:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise _Problem(
            f"field {name!r}: the document {file!r} is not UTF-8 text (byte {exc.start})"
        ) from exc
    return data


def _named(name: str | None, file: str, value: str, folder: Path) -> bytes | None:
    if value.startswith("data:"):
        head, _, body = value.partition(",")
        try:
            return base64.b64decode(body, validate=True) if head.endswith(";base64") else None
        except binascii.Error as exc:
            raise _Problem(f"field {name!r}: the data URI of {file!r} is broken ({exc})") from exc
    if len(value) > 1024 or "\n" in value:
        return None
    path = (folder / value).resolve()
    if not path.is_relative_to(folder.resolve()) or not path.is_file():
        return None  # the text itself is the document
    try:
        return path.read_bytes()
    except OSError as exc:
        raise _Problem(f"field {name!r}: {value!r} cannot be read: {exc.strerror}") from exc


# --- everything else -------------------------------------------------------------------------


def _metadata(
    fields: Mapping[str, Any], used: set[str], files: Mapping[str, bytes]
) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for name, value in fields.items():
        if name in used or name == "domain":
            continue
        if name in ("metadata", "meta") and isinstance(value, Mapping):
            metadata = {**json_value(value), **metadata}
        else:
            metadata["options" if name == "choices" else name] = json_value(value)
    if files:
        metadata[DOCUMENTS] = file_digest(files)
    return metadata


def file_digest(files: Mapping[str, bytes]) -> str:
    """The same for the same files, in whatever order: the value of `DOCUMENTS`."""
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(f"{name}\0{len(files[name])}\0".encode())
        digest.update(files[name])
    return digest.hexdigest()[:16]


def json_value(value: Any) -> Any:
    """The value as JSON knows it: dates and the like, which Parquet and TOML have, as text."""
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(key): json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(item) for item in value]
    return str(value)


# --- what a file without a row of its own must be --------------------------------------------


def guess_scorer(fields: Iterable[Mapping[str, Any]]) -> str:
    """The scorer for rows without a TOML file, by domain, kind of question and ground truth."""
    rows = list(fields)
    domains = {str(row.get("domain") or "") for row in rows}
    targets = list(_targets(rows))
    if targets and all(wrong_truth("instructions", one) is None for one in targets):
        return "instructions"
    if targets and all(wrong_truth("ifbench", one) is None for one in targets):
        return "ifbench"
    if any(row.get("qa_type") for row in rows) and domains <= {"", "instruct_pretrain"}:
        return "qa"
    if len(domains) == 1:
        by_domain = _SCORER_OF.get(next(iter(domains)))
        if by_domain:
            return by_domain
    if targets and all(_is_letter(one) for one in targets):
        return "choice"
    return "math" if targets and all(_is_number(one) for one in targets) else "text"


_SCORER_OF: Mapping[str, str] = {
    "biomed": "choice",
    "chem": "choice",
    "instruct_pretrain": "qa",
    "long_context": "text",
    "math": "math",
    "physics": "math",
}


def _targets(rows: list[Mapping[str, Any]]) -> Iterator[Any]:
    for row in rows:
        name = field_of(row, "target", {})
        if name is not None:
            yield row[name]


def _is_letter(target: Any) -> bool:
    return isinstance(target, str) and len(target) == 1 and target.isupper()


def _is_number(target: Any) -> bool:
    if isinstance(target, bool):
        return False
    if isinstance(target, int | float):
        return True
    try:
        float(str(target))
    except ValueError:
        return False
    return isinstance(target, str)
