"""Checkpoints: all that a run needs to go on exactly, written whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sandlot.core.errors import InputError, RecordError

_STATE, _WEIGHTS, _OPTIMISER = "state.json", "weights.safetensors", "optimiser.pt"
_PREFIX, _DRAFT = "step-", ".draft-"


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

    It becomes visible by one rename, after everything reached the disk: a full disk or a kill
    leaves the earlier ones as they were.

    Raises:
        RecordError: it could not be written; nothing of it is left.
    """
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
        (draft / _STATE).write_text(json.dumps({"phase": phase, "step": step}), "utf-8")
        for file in draft.iterdir():
            _to_disk(file)
        shutil.rmtree(final, ignore_errors=True)  # left by a run that went over this step before
        draft.rename(final)
        _to_disk(folder)
    except (OSError, RuntimeError, ValueError) as error:  # torch and safetensors wrap a full disk
        shutil.rmtree(draft, ignore_errors=True)
        raise RecordError(f"checkpoint {final} could not be written: {error}") from error
    for old in _all(folder)[:-keep]:
        if (old.phase, old.step) == ("train", 0):
            continue
        shutil.rmtree(old.path, ignore_errors=True)
    return Checkpoint(final, phase, step)


def newest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole."""
    found = _all(folder)
    return found[-1] if found else None


def named(folder: Path, name: str) -> Checkpoint:
    """Raises:
    InputError: it is not there; names those that are.
    """
    found = {each.path.name: each for each in _all(folder)}
    if name not in found:
        raise InputError(
            f"checkpoint {name!r} is not in {folder} (have: {', '.join(found) or 'none'})"
        )
    return found[name]


def _all(folder: Path) -> list[Checkpoint]:
    found = []
    for path in folder.glob(f"{_PREFIX}*"):
        try:
            state = json.loads((path / _STATE).read_text("utf-8"))
            found.append(Checkpoint(path, str(state["phase"]), int(state["step"])))
        except (OSError, ValueError, KeyError):
            continue  # not one of ours, or damaged from outside
    return sorted(found, key=lambda each: (each.phase == "train", each.step))


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
