"""Task folders of the Harbor layout: the instruction and the files that its image would hold.

Source: the task structure in Harbor's documentation (`task.toml`, `instruction.md`,
`environment/`, `tests/`, `solution/`). A Harbor task is graded by running `tests/test.sh` in the
container that the model worked in. sandlot does not do that: such tasks load with the scorer
`harbor`, which gives no score and says why. Tests and solutions are never read.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sandlot.core.errors import InputError
from sandlot.core.types import Task
from sandlot.tasks.loaders import DOCUMENTS, file_digest, json_value
from sandlot.tasks.readers import ROW_BYTES

_RECIPES = ("Dockerfile", ".dockerignore", "docker-compose.yaml", "docker-compose.yml")


def is_harbor(folder: Path) -> bool:
    """Whether a folder is a Harbor task or holds such folders."""
    return bool(_task_folders(folder))


def load_harbor(folder: Path, *, domain: str) -> tuple[Task, ...]:
    """Every task of a folder, by name.

    Raises:
        InputError: no task there, or one that is incomplete or too large.
    """
    folders = _task_folders(folder)
    if not folders:
        raise InputError(f"{folder}: no Harbor task there (a folder with a task.toml)")
    tasks = [_task(one, domain) for one in folders]
    seen: dict[str, Path] = {}
    for task, one in zip(tasks, folders, strict=True):
        if task.id in seen:
            raise InputError(f"{one}/task.toml: the name {task.id!r} is that of {seen[task.id]}")
        seen[task.id] = one
    return tuple(tasks)


def _task_folders(folder: Path) -> list[Path]:
    if (folder / "task.toml").is_file():
        return [folder]
    return sorted(found.parent for found in folder.glob("*/task.toml"))


def _task(folder: Path, domain: str) -> Task:
    table = _toml(folder / "task.toml")
    files = _files(folder / "environment")
    metadata: dict[str, Any] = {"harbor": json_value(_without_secrets(table))}
    if files:
        metadata[DOCUMENTS] = file_digest(files)
    name = table.get("task", {}).get("name") if isinstance(table.get("task"), dict) else None
    prompt = _read(folder / "instruction.md").decode("utf-8", "replace")
    if not prompt.strip():
        raise InputError(f"{folder / 'instruction.md'}: is empty")
    return Task(
        id=str(name or folder.resolve().name),
        prompt=prompt,
        input_files=files,
        domain=domain,
        metadata=metadata,
    )


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(_read(path).decode("utf-8"))
    except ValueError as exc:
        raise InputError(f"{path}: not valid TOML: {exc}") from exc


def _without_secrets(table: Mapping[str, Any]) -> dict[str, Any]:
    """The table without the variables that a verifier or solution is given, which may be keys."""
    return {
        key: _without_secrets(value) if isinstance(value, Mapping) else value
        for key, value in table.items()
        if key != "env"
    }


def _files(environment: Path) -> dict[str, bytes]:
    """What would be copied into the container, without the recipes that build it."""
    files = {}
    size = 0
    for path in sorted(environment.rglob("*")):
        if path.is_symlink() or not path.is_file() or path.name in _RECIPES:
            continue
        size += path.stat().st_size
        if size > ROW_BYTES:
            raise InputError(f"{environment}: larger than {ROW_BYTES / 1e6:,.0f} MB at {path.name}")
        files[path.relative_to(environment).as_posix()] = _read(path)
    return files


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        raise InputError(f"{path}: cannot be read: {exc.strerror}") from exc
