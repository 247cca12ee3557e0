"""Recorded runs in the forms that other programs read.

`atif`: one ATIF v1.7 document a rollout. `messages`: one line of chat-completions messages a
rollout, for supervised training. `hub`: one line of results an item. `training`: one line of token
ids, loss mask and reward a rollout, only where the ids were recorded as they were sampled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sandlot.bench.arms import ARMS
from sandlot.bench.atif import to_atif
from sandlot.bench.meters import measure
from sandlot.bench.records import Episode, EpisodeRecord, ScoreRecord
from sandlot.bench.store import BenchDirectory
from sandlot.core.errors import ConfigError, InputError, RecordError, unknown_name
from sandlot.core.events import (
    Event,
    MessageAdded,
    ReplyReceived,
    RolloutContinued,
    ToolFinished,
    decode_event,
    fold,
)
from sandlot.core.jsonl import read_jsonl
from sandlot.core.store import RunDirectory
from sandlot.core.tokens import rows_of, segment_of
from sandlot.core.types import ImagePart, JsonObject, Trajectory
from sandlot.models.base import ToolSpec
from sandlot.models.openai_wire import MessageEncoder, encode_tools
from sandlot.tools import default_tools


@dataclass(frozen=True, slots=True)
class Recorded:
    """One rollout on disk. `times` are when each of its messages was recorded (epoch seconds).

    `record` and `scores` are those of a bench run; a single run has none.
    """

    name: str
    trajectory: Trajectory
    times: tuple[float, ...]
    record: EpisodeRecord | None = None
    scores: tuple[ScoreRecord, ...] = ()

    @property
    def score(self) -> float | None:
        """The mean of the scorers that gave a value."""
        values = [item.score.value for item in self.scores if item.score.value is not None]
        return sum(values) / len(values) if values else None


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written where; `skipped` says which rollouts were left out and why."""

    path: Path
    written: int
    skipped: tuple[str, ...]


class _Left(Exception):  # control flow of one export: the message is the reason
    """This rollout cannot be written in this form."""


def read_recorded(directory: Path) -> Iterator[Recorded]:
    """The rollouts of a run directory or of a bench directory, in the order of their names.

    Raises:
        RecordError: it is neither, or a record is damaged before its end.
    """
    run = RunDirectory.open(directory)
    if "bench" not in run.manifest:
        trajectory, times = _read(run.trajectory_path)
        yield Recorded(directory.resolve().name, trajectory, times)
        return
    bench = BenchDirectory.open(directory)
    tasks = bench.tasks()
    scores: dict[Episode, list[ScoreRecord]] = {}
    for (episode, _), score in bench.scores().items():
        scores.setdefault(episode, []).append(score)
    for episode, record in sorted(bench.episodes().items()):
        path = bench.trajectory_path(episode)
        if not path.is_file():
            continue
        trajectory, times = _read(path)
        task = tasks.get((episode.task_set, episode.item), trajectory.task)
        trajectory = replace(trajectory, task=task)
        found = tuple(scores.get(episode, ()))
        yield Recorded(episode.stem, trajectory, times, record, found)


def export(directory: Path, form: str, output: Path, *, min_score: float | None = None) -> Exported:
    """Write the rollouts of a run or bench directory in one of `FORMATS`.

    `output` is a folder for `atif` and a JSONL file for the others; what stands there is
    replaced. With `min_score`, only rollouts with such a score are written.

    Raises:
        ConfigError: an unknown form, or no rollout can be written in it.
        RecordError: the directory holds no run, or its record is damaged.
        InputError: the output cannot be written.
    """
    if form not in FORMATS:
        raise unknown_name("export format", form, FORMATS)
    skipped: list[str] = []
    try:
        with _writer(form, output) as write:
            for recorded in read_recorded(directory):
                try:
                    _check(recorded, min_score)
                    write(recorded)
                except _Left as why:
                    skipped.append(f"{recorded.name}: {why}")
    except OSError as exc:
        raise InputError(f"{output} cannot be written: {exc.strerror}") from exc
    if not write.written:
        reasons = "; ".join(skipped[:3]) or "it holds no rollouts"
        raise ConfigError(f"{directory}: nothing to export as {form!r}: {reasons}")
    return Exported(output, write.written, tuple(skipped))


def _check(recorded: Recorded, min_score: float | None) -> None:
    if not recorded.trajectory.messages:
        raise _Left("nothing was said")
    if min_score is not None and (recorded.score is None or recorded.score < min_score):
        found = "no score" if recorded.score is None else f"score {recorded.score:g}"
        raise _Left(f"{found}, and {min_score:g} was asked for")


def _read(path: Path) -> tuple[Trajectory, tuple[float, ...]]:
    """A trajectory with the time of each of its messages."""
    times: list[float] = []

    def events() -> Iterator[Event]:
        for record in read_jsonl(path):
            event = decode_event(record)
            if isinstance(event, MessageAdded | ReplyReceived | ToolFinished):
                times.append(float(record.get("at", 0.0)))
            elif isinstance(event, RolloutContinued) and event.how == "restart":
                times.clear()
            if event is not None:
                yield event

    return fold(events()), tuple(times)


# The writers.


class _JsonLines:
    """One line a rollout, in a file that takes its place only when it is whole."""

    def __init__(self, path: Path, line: Callable[[Recorded], JsonObject]) -> None:
        self.written = 0
        self._path, self._line = path, line
        self._draft = path.with_name(f".{path.name}.new")

    def __enter__(self) -> _JsonLines:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._draft.open("w", encoding="utf-8", errors="surrogatepass")
        return self

    def __call__(self, recorded: Recorded) -> None:
        line = json.dumps(self._line(recorded), ensure_ascii=False)
        self._file.write(f"{line}\n")
        self.written += 1

    def __exit__(self, kind: object, *_: object) -> None:
        self._file.close()
        if kind is None and self.written:
            self._draft.replace(self._path)
        else:
            self._draft.unlink(missing_ok=True)


class _AtifFolder:
    """One document a rollout, with its pictures beside it under their digests."""

    def __init__(self, path: Path) -> None:
        self.written = 0
        self._path = path

    def __enter__(self) -> _AtifFolder:
        self._path.mkdir(parents=True, exist_ok=True)
        return self

    def __call__(self, recorded: Recorded) -> None:
        document = to_atif(
            recorded.trajectory,
            times=recorded.times,
            tools=_tools_of(recorded),
            extra=_bench_fields(recorded),
            save_image=self._save_image,
        )
        text = json.dumps(document, ensure_ascii=False, indent=1)
        file = self._path / f"{recorded.name}.json"
        file.write_text(f"{text}\n", "utf-8", errors="surrogatepass")
        self.written += 1

    def __exit__(self, *_: object) -> None:
        pass

    def _save_image(self, part: ImagePart) -> str:
        folder = self._path / "images"
        folder.mkdir(exist_ok=True)
        name = f"{hashlib.sha256(part.data).hexdigest()[:24]}.{part.media_type.rpartition('/')[2]}"
        (folder / name).write_bytes(part.data)
        return f"images/{name}"


def _writer(form: str, output: Path) -> _JsonLines | _AtifFolder:
    return _AtifFolder(output) if form == "atif" else _JsonLines(output, _LINES[form])


# The lines.


def _messages_line(recorded: Recorded) -> JsonObject:
    """The conversation as the chat-completions interface takes it, with the tools it had."""
    encoder = MessageEncoder()
    body = encoder.encode(recorded.trajectory.messages, ())
    line: JsonObject = {"messages": json.loads(b"[" + body + b"]")}
    tools = encode_tools(_tools_of(recorded))
    if tools:
        line["tools"] = tools
    about = {"id": recorded.name, "score": recorded.score, **_bench_fields(recorded)}
    return line | {"metadata": about}


def _hub_line(recorded: Recorded) -> JsonObject:
    """One result: what was asked, what was answered, what it scored and what it took."""
    trajectory, task = recorded.trajectory, recorded.trajectory.task
    meters = recorded.record.meters if recorded.record is not None else measure(trajectory)
    return {
        "id": task.id,
        "domain": task.domain,
        "mode": trajectory.mode,
        "model": trajectory.model,
        "problem_statement": task.prompt,
        "ground_truth": task.target,
        "prediction": trajectory.answer,
        "score": recorded.score,
        "scores": {item.score.scorer: item.score.value for item in recorded.scores},
        "missing": [item.score.missing for item in recorded.scores if item.score.missing],
        "stop_reason": trajectory.stop_reason,
        "turns": meters.turns,
        "prompt_tokens": meters.billed_prompt_tokens,
        "completion_tokens": meters.billed_completion_tokens,
        "cost_usd": meters.cost_usd,
        "wall_s": meters.wall_s,
        **_bench_fields(recorded),
    }


def _training_line(recorded: Recorded) -> JsonObject:
    """Token ids with the model's own marked, and what the rollout was worth.

    A segment is a run of requests each of which begins with all tokens before it; where a server
    cut or rewrote the history, a new segment begins. `loss_mask` is 1 for sampled tokens.
    `logprobs` are 0 where nothing was sampled, and absent where a turn has none.
    """
    segments = _segments(recorded.trajectory)
    if recorded.score is None:
        raise _Left("no score, and a reward is needed")
    task = recorded.trajectory.task
    episode = recorded.record.episode if recorded.record is not None else None
    group = f"{episode.task_set}.{episode.item}.{episode.arm}" if episode is not None else task.id
    return {
        "id": recorded.name,
        "group": group,
        "reward": recorded.score,
        "model": recorded.trajectory.model,
        "segments": segments,
    }


def _segments(trajectory: Trajectory) -> list[JsonObject]:
    try:
        rows = rows_of(trajectory)
    except RecordError as error:
        raise _Left(
            f"{error}; they are recorded only where a server sends "
            'them (vLLM: --extra-body \'{"return_token_ids": true, "logprobs": true}\')'
        ) from error
    if not rows:
        raise _Left("no reply was recorded")
    return [segment_of(row) for row in rows]


_LINES: Mapping[str, Callable[[Recorded], JsonObject]] = {
    "messages": _messages_line,
    "hub": _hub_line,
    "training": _training_line,
}
FORMATS = ("atif", *_LINES)


def _bench_fields(recorded: Recorded) -> JsonObject:
    record = recorded.record
    if record is None:
        return {}
    return {
        "task_set": record.episode.task_set,
        "arm": record.episode.arm,
        "repeat": record.episode.repeat,
        "label": record.label,
        "failure": record.failure,
        "marks": list(record.marks),
    }


def _tools_of(recorded: Recorded) -> Sequence[ToolSpec]:
    """The tools that were offered: those of the arm; all of them in a single run."""
    if recorded.trajectory.mode == "llm":
        return ()
    arm = ARMS.get(recorded.record.episode.arm) if recorded.record is not None else None
    offered = arm.tools if arm is not None else None
    specs = [tool.spec for tool in default_tools()]
    return [spec for spec in specs if offered is None or spec.name in offered]


def default_output(directory: Path, form: str) -> Path:
    """Where an export goes that names no place: beside what it was made from."""
    return directory / "exports" / (form if form == "atif" else f"{form}.jsonl")


__all__ = ["FORMATS", "Exported", "Recorded", "default_output", "export", "read_recorded"]
