"""A training run on disk: its configuration, curves, records and checkpoints.

config.toml manifest.json   what was asked, and what it was made with
steps.jsonl                 a line of figures for each step (phase, step, figures)
evaluations.jsonl           a line for each held-out evaluation
records/step-000001.jsonl   the training records of a step's rollouts
trajectories/…              rollouts to look at, a few of each step
checkpoints/step-…          to go on from
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from sandlot.core.codec import to_json
from sandlot.core.errors import ConfigError, InputError, RecordError
from sandlot.core.jsonl import JsonlWriter, read_jsonl
from sandlot.core.store import slugify
from sandlot.core.types import Trajectory
from sandlot.train.base import Episode
from sandlot.train.config import TrainConfig, differences, digest
from sandlot.train.curves import Evaluated
from sandlot.train.records import write_records

VERSION = 1
KEPT_TRAJECTORIES = 4


@dataclass(slots=True)
class TrainDirectory:
    """`told` gets every line of figures as it is written: (phase, step, figures)."""

    path: Path
    told: Any = None
    _kept: int = field(default=0, init=False)
    _step: int = field(default=0, init=False)

    @classmethod
    def create(
        cls, parent: Path, config: TrainConfig, made_with: Mapping[str, Any], now: datetime
    ) -> TrainDirectory:
        """Raises:
        RecordError: it cannot be made.
        """
        stem = f"{now:%Y-%m-%dT%H-%M-%S}-{slugify(config.name)}"
        for number in range(100):
            path = parent / (stem if not number else f"{stem}-{number + 1}")
            try:
                path.mkdir(parents=True)
                break
            except FileExistsError:
                continue
            except OSError as error:
                raise RecordError(f"{path}: cannot be made: {error.strerror}") from error
        else:
            raise RecordError(f"{parent}: a hundred runs of one second and name")
        manifest = {
            "version": VERSION,
            "config": to_json(config),
            "digest": digest(config),
            **made_with,
        }
        made = cls(path)
        made._write("manifest.json", json.dumps(manifest, indent=1, ensure_ascii=False))
        return made

    @classmethod
    def open(cls, path: Path, config: TrainConfig | None, *, force: bool = False) -> TrainDirectory:
        """A run that goes on; with a configuration, only if it is the one that it began with.

        Raises:
            InputError: no training run is there.
            ConfigError: the configuration differs; names each value (not with `force`).
        """
        found = cls(path)
        manifest = found.manifest()
        if manifest.get("version") != VERSION:
            raise InputError(f"{path}: written by another version ({manifest.get('version')!r})")
        if config is not None and not force:
            odd = differences(manifest["config"], to_json(config))
            if odd:
                raise ConfigError(
                    f"{path} was begun with another configuration: {'; '.join(odd[:5])}. Go on "
                    "with the old one (leave the configuration out), or say --force"
                )
        return found

    def manifest(self) -> dict[str, Any]:
        file = self.path / "manifest.json"
        try:
            found: dict[str, Any] = json.loads(file.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{self.path} is no training run: {error}") from error
        return found

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    # What is written as it happens.

    def add_step(self, phase: str, step: int, figures: Mapping[str, float]) -> None:
        self._append("steps.jsonl", {"phase": phase, "step": step, "figures": dict(figures)})
        self._kept, self._step = 0, step
        if self.told is not None:
            self.told(phase, step, figures)

    def add_evaluation(self, phase: str, step: int, name: str, result: Evaluated) -> None:
        line = {"phase": phase, "step": step, "set": name, **to_json(result)}
        self._append("evaluations.jsonl", line)
        if self.told is not None:
            self.told("evaluation", step, line)

    def add_records(self, step: int, episodes: Sequence[Episode], model: str = "") -> None:
        folder = self.path / "records"
        folder.mkdir(exist_ok=True)
        file = folder / f"step-{step:06d}.jsonl"
        file.unlink(missing_ok=True)  # of a step that a kill interrupted
        write_records(file, episodes, step=step, model=model)

    def keep_trajectory(self, trajectory: Trajectory, episode: Episode) -> None:
        """A few rollouts of each step in the form that `sandlot view` and `replay` read."""
        if self._kept >= KEPT_TRAJECTORIES:
            return
        self._kept += 1
        folder = self.path / "trajectories"
        folder.mkdir(exist_ok=True)
        name = f"step-{self._step + 1:06d}.{self._kept}.json"
        document = {"reward": episode.reward, "missing": episode.missing} | {
            "trajectory": to_json(trajectory)
        }
        self._write(f"trajectories/{name}", json.dumps(document, ensure_ascii=False))

    # What is read back.

    def steps(self, phase: str | None = None) -> Iterator[dict[str, Any]]:
        for line in self._lines("steps.jsonl"):
            if phase is None or line["phase"] == phase:
                yield line

    def evaluations(self) -> Iterator[dict[str, Any]]:
        yield from self._lines("evaluations.jsonl")

    def has_evaluation(self, phase: str, step: int) -> bool:
        return any(line["phase"] == phase and line["step"] == step for line in self.evaluations())

    def cut_after(self, phase: str, step: int) -> None:
        """Forget figures of steps that a checkpoint does not hold: they are made again."""
        order = {"warmstart": 0, "train": 1}

        def keep(line: Mapping[str, Any]) -> bool:
            return (order[line["phase"]], line["step"]) <= (order[phase], step)

        for name in ("steps.jsonl", "evaluations.jsonl"):
            lines = list(self._lines(name))
            kept = [line for line in lines if keep(line)]
            if len(kept) < len(lines):
                text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept)
                self._write(name, text)

    def _lines(self, name: str) -> Iterator[dict[str, Any]]:
        file = self.path / name
        if file.exists():
            yield from read_jsonl(file)

    def _append(self, name: str, line: Mapping[str, Any]) -> None:
        writer = JsonlWriter(self.path / name)
        try:
            writer.append(line)
            writer.sync()
        finally:
            writer.close()

    def _write(self, name: str, text: str) -> None:
        """Replace a file in one step."""
        file = self.path / name
        draft = file.with_name(f".{file.name}.draft")
        try:
            with draft.open("w", encoding="utf-8", errors="surrogatepass") as out:
                out.write(text)
                out.flush()
                os.fsync(out.fileno())
            draft.replace(file)
        except OSError as error:
            draft.unlink(missing_ok=True)
            raise RecordError(f"{file}: cannot be written: {error.strerror}") from error
