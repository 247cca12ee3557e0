"""Files and folders that are there whole or not at all, whenever a disk fills or a process dies."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sandlot.core.errors import ExportError


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A path beside `target` to write a file to; it takes the target's place when the block ends.

    Raises:
        ExportError: it cannot be written; what stood at `target` before stands there still.
    """
    part = _part_of(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield part
        _sync(part)
        os.replace(part, target)
        _sync(target.parent)
    except OSError as exc:
        raise cannot_write(target, exc) from exc
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """An empty folder beside `target` to fill; it becomes `target` when the block ends.

    Raises:
        ExportError: `target` is there and not an empty folder, or it cannot be written.
    """
    part = _part_of(target)
    try:
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise ExportError(f"{target} is there already; name another folder or remove it")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        yield part
        for file in sorted(part.rglob("*")):
            _sync(file)
        os.replace(part, target)
        _sync(target.parent)
    except OSError as exc:
        raise cannot_write(target, exc) from exc
    finally:
        shutil.rmtree(part, ignore_errors=True)


def cannot_write(target: Path, cause: BaseException) -> ExportError:
    why = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(cause)
    return ExportError(f"{target} cannot be written: {why}; nothing of it was left behind")


def _part_of(target: Path) -> Path:
    """One name for each target, so that what a killed process left is used up by the next."""
    whole = Path(os.path.abspath(target))  # "." and ".." have no name of their own
    return whole.with_name(f".{whole.name}.part")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
