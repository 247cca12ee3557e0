"""A training run on disk: its configuration, curves, records and checkpoints.

config.toml manifest.json    what was asked, and what it was made with
steps.jsonl                  a line of figures for each step (phase, step, figures)
evaluations.jsonl            a line for each held-out evaluation
measured.jsonl               the same for evaluations that were asked for afterwards
records/step-000001.jsonl    the training records of a step's rollouts
trajectories/step-000001.1.jsonl   rollouts to look at, of a few tasks of each step; the same
                             events as in the trajectory.jsonl of a run
checkpoints/step-…           to go on from
"""

from __future__ import annotations

import fcntl
import json
import os
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from sandlot.core.codec import to_json
from sandlot.core.errors import ConfigError, InputError, RecordError
from sandlot.core.events import ReplyReceived, ToolFinished, encode_event, unfold
from sandlot.core.jsonl import JsonlWriter, read_jsonl
from sandlot.core.store import slugify, to_toml
from sandlot.core.types import Trajectory
from sandlot.train.base import Episode
from sandlot.train.config import TrainConfig, changed_config, differences, digest
from sandlot.train.curves import Evaluated
from sandlot.train.records import write_records

VERSION = 1
KEPT_TRAJECTORIES = 4
HELD_OUT = "held-out"
"""Group of the rollouts of an evaluation."""


Told = Callable[[str, int, Mapping[str, Any]], None]


@dataclass(slots=True)
class TrainDirectory:
    """`told` gets every line of figures as it is written: (phase, step, figures). `clock` gives
    seconds since the epoch.

    Beside the phases `warmstart` and `train` there are `evaluation`, and `rollout` for each
    rollout that has ended.
    """

    path: Path
    told: Told | None = None
    clock: Callable[[], float] = time.time
    _kept: dict[str, set[str]] = field(default_factory=dict, init=False)
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
        made = cls(path)
        made._write_manifest({"version": VERSION, **_asked(config), **made_with})
        made._write("config.toml", to_toml(to_json(config)))
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
        if manifest.get("version", VERSION) != VERSION:
            raise InputError(f"{path}: written by another version ({manifest.get('version')!r})")
        if not isinstance(manifest.get("config"), Mapping):  # an adapter has a manifest.json too
            raise InputError(f"{path} is no training run: its manifest.json holds no config")
        if config is not None and not force:
            odd = differences(_as_of_now(manifest["config"]), to_json(config))
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
        if not isinstance(found, dict):
            raise InputError(f"{self.path} is no training run: its manifest.json is no object")
        return found

    def adopt(self, config: TrainConfig, made_with: Mapping[str, Any]) -> None:
        """Go on with another configuration; the manifest keeps what was changed, and by what."""
        manifest = self.manifest()
        odd = differences(_as_of_now(manifest["config"]), to_json(config))
        if odd:
            change = {"values": odd, **made_with}
            changes = [*manifest.get("changes", ()), change]
            self._write_manifest({**manifest, **_asked(config), "changes": changes})
            self._write("config.toml", to_toml(to_json(config)))

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Nobody else trains here meanwhile.

        Raises:
            RecordError: somebody does, or nothing can be written there.
        """
        file = self.path / ".lock"
        with _told(file):
            lock = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            raise RecordError(f"{self.path}: another process is at work on this run") from error
        try:
            yield
        finally:
            os.close(lock)

    def _write_manifest(self, manifest: Mapping[str, Any]) -> None:
        self._write("manifest.json", json.dumps(manifest, indent=1, ensure_ascii=False))

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    # What is written as it happens.

    def add_step(self, phase: str, step: int, figures: Mapping[str, float]) -> None:
        """`figures` and the most memory that this process has had, in MiB."""
        figures = {
            **figures,
            "memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }
        self._append("steps.jsonl", {"phase": phase, "step": step, "figures": figures})
        self._step = step if phase == "train" else 0
        self._kept.clear()
        if self.told is not None:
            self.told(phase, step, figures)

    def add_evaluation(self, phase: str, step: int, name: str, result: Evaluated) -> None:
        line = {"phase": phase, "step": step, "set": name, **to_json(result)}
        self._append("evaluations.jsonl", line)
        if self.told is not None:
            self.told("evaluation", step, line)

    def add_measured(
        self, checkpoint: str, step: int, name: str, result: Evaluated
    ) -> dict[str, Any]:
        """An evaluation that was asked for afterwards."""
        line = {"checkpoint": checkpoint, "step": step, "set": name, **to_json(result)}
        self._append("measured.jsonl", line)
        return line

    def add_records(self, step: int, episodes: Sequence[Episode]) -> None:
        file = self._folder("records") / f"step-{step:06d}.jsonl"
        with _told(file):
            file.unlink(missing_ok=True)  # of a step that a kill interrupted
        name = str(self.manifest()["config"]["name"])
        write_records(file, episodes, step=step, model=name)

    def keep_trajectory(self, trajectory: Trajectory, episode: Episode) -> None:
        """A few rollouts of each step, one a task, as the events that they were recorded with."""
        if self.told is not None:
            self.told("rollout", 0, {"group": episode.group, "reward": episode.reward})
        kind = self._kind(episode)
        kept = self._kept.setdefault(kind, set())
        if episode.task_id in kept or len(kept) >= KEPT_TRAJECTORIES:
            return
        kept.add(episode.task_id)
        self._folder("trajectories")
        worth = {"group": episode.group, "reward": episode.reward, "missing": episode.missing}
        told = replace(trajectory, metadata={**trajectory.metadata, **worth})
        lines = (json.dumps(line, ensure_ascii=False) + "\n" for line in _timed(told, self.clock()))
        self._write(f"trajectories/{kind}.{len(kept)}.jsonl", "".join(lines))

    def _kind(self, episode: Episode) -> str:
        """`step-000001` for a rollout of training, whose group begins with its step.

        Others are called by their group: `held-out-000001` after so many steps, or a clerk's style.
        """
        step = episode.group.partition(".")[0]
        if step.isdigit():
            return f"step-{int(step):06d}"
        name = slugify(episode.group)
        return f"{name}-{self._step:06d}" if name == HELD_OUT else name

    # What is read back.

    def steps(self, phase: str | None = None) -> Iterator[dict[str, Any]]:
        for line in self._lines("steps.jsonl"):
            if phase is None or line["phase"] == phase:
                yield line

    def evaluations(self) -> Iterator[dict[str, Any]]:
        yield from self._lines("evaluations.jsonl")

    def has_evaluation(
        self, phase: str, step: int, name: str, mode: str, temperature: float
    ) -> bool:
        wanted = (phase, step, name, mode, temperature)
        keys = ("phase", "step", "set", "mode", "temperature")
        return any(tuple(line[key] for key in keys) == wanted for line in self.evaluations())

    def cut_after(self, phase: str, step: int) -> None:
        """Forget figures of steps that a checkpoint does not hold: they are made again."""
        self._step = step if phase == "train" else 0
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

    def _folder(self, name: str) -> Path:
        folder = self.path / name
        with _told(folder):
            folder.mkdir(exist_ok=True)
        return folder

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
            with suppress(OSError):
                draft.unlink(missing_ok=True)
            raise RecordError(f"{file}: cannot be written: {error.strerror}") from error


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RecordError(f"{path}: cannot be written: {error.strerror}") from error


def _asked(config: TrainConfig) -> dict[str, Any]:
    return {"config": to_json(config), "digest": digest(config)}


def _as_of_now(stored: Mapping[str, Any]) -> Any:
    """A stored configuration with the defaults of keys that came after it was stored."""
    try:
        return to_json(changed_config(stored, {}, "manifest.json"))
    except ConfigError:
        return stored


def _timed(trajectory: Trajectory, now: float) -> Iterator[dict[str, Any]]:
    """Records of a trajectory's events, at times reckoned back from `now` by what each took."""
    at = now - (trajectory.duration_s or 0.0)
    for event in unfold(trajectory):
        if isinstance(event, ReplyReceived):
            at += event.turn.model_s + event.turn.waiting_s
        elif isinstance(event, ToolFinished):
            at += event.result.duration_s
        yield encode_event(event, at)
