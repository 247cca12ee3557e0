"""Checkpoints: all that a run needs to go on exactly, written whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sandlot.core.errors import InputError, RecordError

_STATE, _WEIGHTS, _OPTIMISER = "state.json", "weights.safetensors", "optimiser.pt"
_PREFIX, _DRAFT = "step-", ".draft-"
_OURS = re.compile(r"step-(?:warmstart|train)-\d{6,}")
_PROBE_BYTES = 64 << 10  # more than is left where a write has just been refused
_REFUSALS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "a file may not grow that large here",
}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """`phase` is warmstart or train, `step` how many of its steps are made."""

    path: Path
    phase: str
    step: int

    def weights(self) -> dict[str, torch.Tensor]:
        from safetensors.torch import load_file

        return load_file(str(self.path / _WEIGHTS))

    def optimiser(self) -> dict[str, Any]:
        state: dict[str, Any] = torch.load(
            self.path / _OPTIMISER, map_location="cpu", weights_only=True
        )
        return state


def save(
    folder: Path,
    *,
    phase: str,
    step: int,
    weights: Mapping[str, torch.Tensor],
    optimiser: Mapping[str, Any],
    keep: int = 2,
) -> Checkpoint:
    """Write a checkpoint beside the others and drop all but the newest `keep`.

    That of the beginning of the reinforcement learning stays: it is what the end is compared with.
    Later ones go: they are what a run that fell back behind a damaged checkpoint makes anew.

    It becomes visible by one rename, after everything reached the disk: a full disk or a kill
    leaves the earlier ones as they were.

    Raises:
        RecordError: it could not be written; nothing of it is left.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    name = f"{_PREFIX}{phase}-{step:06d}"
    draft, final = folder / f"{_DRAFT}{name}", folder / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        save_file(
            {key: each.detach().cpu().contiguous() for key, each in weights.items()},
            str(draft / _WEIGHTS),
        )
        torch.save(dict(optimiser), draft / _OPTIMISER)
        state = {
            "phase": phase,
            "step": step,
            "sha256": {name: _digest(draft / name) for name in (_WEIGHTS, _OPTIMISER)},
        }
        (draft / _STATE).write_text(json.dumps(state), "utf-8")
        for file in draft.iterdir():
            _to_disk(file)
        shutil.rmtree(final, ignore_errors=True)  # left by a run that went over this step before
        draft.rename(final)
        _to_disk(folder)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        why = _why(error, folder, draft)
        shutil.rmtree(draft, ignore_errors=True)
        raise RecordError(f"checkpoint {final} could not be written: {why}") from error
    saved = Checkpoint(final, phase, step)
    earlier = [each for each in _all(folder) if _age(each) <= _age(saved)]
    later = [each for each in _all(folder) if _age(each) > _age(saved)]
    for old in (*earlier[:-keep], *later):
        if (old.phase, old.step) == ("train", 0):
            continue
        shutil.rmtree(old.path, ignore_errors=True)
    return saved


def newest(folder: Path, note: Callable[[str], None] | None = None) -> Checkpoint | None:
    """The newest checkpoint that is whole; None where none was ever written.

    One that was damaged since it was written is passed over, which `note` is told.

    Raises:
        InputError: there are checkpoints, and all of them were damaged.
    """
    found = _all(folder)
    damaged = _unreadable(folder, found)
    for each in reversed(found):
        if _whole(each):
            if damaged and note is not None:
                names = ", ".join(damaged)
                note(f"damaged since written, so passed over: {names}; using {each.path.name}")
            return each
        damaged.append(each.path.name)
    if damaged:
        raise InputError(
            f"no checkpoint in {folder} is whole: {', '.join(sorted(damaged))} were damaged since "
            "they were written. Put back a copy, or move that folder away to begin anew"
        )
    return None


def named(folder: Path, name: str) -> Checkpoint:
    """Raises:
    InputError: it is not there (names those that are), or it is damaged.
    """
    found = {each.path.name: each for each in _all(folder)}
    if name not in found:
        raise InputError(
            f"checkpoint {name!r} is not in {folder} (have: {', '.join(found) or 'none'})"
        )
    if not _whole(found[name]):
        raise InputError(f"checkpoint {found[name].path} was damaged since it was written")
    return found[name]


def _why(error: Exception, folder: Path, draft: Path) -> str:
    """A full disk has another name in each library, and none where torch writes: ask the disk."""
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(_PROBE_BYTES))
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as refused:
        if refused.errno in _REFUSALS:
            written = 0
            with suppress(OSError):
                written = sum(file.stat().st_size for file in draft.iterdir())
            return f"{_REFUSALS[refused.errno]} ({written:,} bytes of it found room)"
    return str(error)


def _all(folder: Path) -> list[Checkpoint]:
    found = []
    for path in folder.glob(f"{_PREFIX}*"):
        try:
            state = json.loads((path / _STATE).read_text("utf-8"))
            found.append(Checkpoint(path, str(state["phase"]), int(state["step"])))
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue  # not one of ours, or damaged from outside
    return sorted(found, key=_age)


def _unreadable(folder: Path, found: Sequence[Checkpoint]) -> list[str]:
    """Names of checkpoints of which not even the phase and the step can be read."""
    known = {each.path.name for each in found}
    names = (path.name for path in folder.glob(f"{_PREFIX}*"))
    return sorted(name for name in names if _OURS.fullmatch(name) and name not in known)


def _age(found: Checkpoint) -> tuple[bool, int]:
    """Orders checkpoints as a run makes them."""
    return found.phase == "train", found.step


def _whole(found: Checkpoint) -> bool:
    try:
        wanted = json.loads((found.path / _STATE).read_text("utf-8")).get("sha256", {})
        own = {name: _digest(found.path / name) for name in (_WEIGHTS, _OPTIMISER)}
    except OSError:
        return False
    return all(own.get(name) == digest for name, digest in wanted.items())


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
