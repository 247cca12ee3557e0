"""Everything that is needed to score a bench again, in one file that anybody can check.

```text
SHA256SUMS                 of every other member; `sha256sum -c SHA256SUMS` reads it
report.json  report.html
RUN/run.toml  tasks.jsonl  episodes.jsonl  scores.jsonl  judge.jsonl
RUN/trajectories/…  RUN/files/…
```

The same runs give the same bytes: members are sorted and carry no time, owner or mode of their own.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import IO

from sandlot.core.errors import RecordError
from sandlot.core.store import MANIFEST

SUMS = "SHA256SUMS"
_RECORDS = (MANIFEST, "tasks.jsonl", "episodes.jsonl", "scores.jsonl", "judge.jsonl")
_FOLDERS = ("trajectories", "files")

Content = Path | bytes
"""A member: a file of the run, or the bytes themselves."""


def write_bundle(directories: Sequence[Path], path: Path, extra: Mapping[str, bytes]) -> str:
    """Pack the runs with `extra` members (the report) and return the sha256 of the file.

    Raises:
        RecordError: two runs of one name, a file that vanished, or no room.
    """
    members: dict[str, Content] = dict(extra)
    for directory in directories:
        for name, content in _members(directory.resolve()):
            if name in members:
                raise RecordError(f"two runs are named {directory.name}: bundle them apart")
            members[name] = content
    draft = path.with_name(f".{path.name}.new")
    try:
        members[SUMS] = _sums(members)
        with draft.open("wb") as file:
            _write(file, members)
        digest = _sha256(draft)
        draft.replace(path)
    except OSError as exc:
        draft.unlink(missing_ok=True)
        raise RecordError(f"{exc.filename or path}: {exc.strerror}; no bundle was made") from exc
    return digest


def unpack_bundle(path: Path, into: Path) -> list[Path]:
    """Unpack into a folder, check every digest, and return the run directories in it.

    Raises:
        RecordError: not a bundle, a member that is missing, added or changed, or no room.
    """
    try:
        with tarfile.open(path, "r:gz") as tar:
            tar.extractall(into, filter="data")
        _check(into)
    except (OSError, tarfile.TarError, EOFError) as exc:
        raise RecordError(f"{path}: not a whole bundle: {exc}") from exc
    return sorted(found.parent for found in into.glob(f"*/{MANIFEST}"))


def _members(directory: Path) -> Iterator[tuple[str, Path]]:
    """Plain files only: a link that a model left is not followed."""
    for name in _RECORDS:
        if (directory / name).is_file():
            yield f"{directory.name}/{name}", directory / name
    for folder in _FOLDERS:
        for root, _, files in os.walk(directory / folder):
            for name in files:
                file = Path(root, name)
                if file.is_file() and not file.is_symlink():
                    yield f"{directory.name}/{file.relative_to(directory).as_posix()}", file


def _sums(members: Mapping[str, Content]) -> bytes:
    lines = (f"{_sha256(members[name])}  {_whole(name)}\n" for name in sorted(members))
    return "".join(lines).encode("utf-8", "surrogateescape")


def _whole(name: str) -> str:
    """The name, if `sha256sum` can read it back from a line."""
    if any(sign in name for sign in "\\\n\r"):
        raise RecordError(f"a file's name cannot stand in {SUMS}: {name!r}; rename it")
    return name


def _sha256(content: Content) -> str:
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    with content.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(file: IO[bytes], members: Mapping[str, Content]) -> None:
    # Level 6 and no time or name in the header: the same bytes wherever it is made.
    with (
        gzip.GzipFile(filename="", mode="wb", fileobj=file, compresslevel=6, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for name in sorted(members):
            _add(tar, name, members[name])


def _add(tar: tarfile.TarFile, name: str, content: Content) -> None:
    entry = tarfile.TarInfo(name)
    entry.mode = 0o644
    if isinstance(content, bytes):
        entry.size = len(content)
        tar.addfile(entry, io.BytesIO(content))
        return
    with content.open("rb") as file:
        entry.size = os.fstat(file.fileno()).st_size
        tar.addfile(entry, file)


def _check(folder: Path) -> None:
    try:
        lines = (folder / SUMS).read_text("utf-8", "surrogateescape").split("\n")
    except FileNotFoundError as exc:
        raise RecordError(f"{folder}: there is no {SUMS}: this is not a bundle") from exc
    listed = {name: digest for digest, _, name in (line.partition("  ") for line in lines if line)}
    there = {
        PurePosixPath(file.relative_to(folder)).as_posix()
        for file in folder.rglob("*")
        if file.is_file()
    } - {SUMS}
    wrong = sorted(
        (there ^ listed.keys())
        | {name for name in there & listed.keys() if _sha256(folder / name) != listed[name]}
    )
    if wrong:
        shown = ", ".join(wrong[:5]) + (" …" if len(wrong) > 5 else "")
        raise RecordError(f"{len(wrong)} members are missing, added or changed: {shown}")
