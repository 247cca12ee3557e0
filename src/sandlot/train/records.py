"""The training record: one JSON line a rollout, with the tokens as they were sampled.

    {"id": "errand-17@3.5", "group": "errand-17@3", "reward": 1.0, "model": "policy",
     "segments": [{"token_ids": [...], "loss_mask": [0, 0, 1, ...], "logprobs": [0.0, 0.0, -0.7]}],
     "step": 3, "task_id": "errand-17", "valid": true, "missing": null,
     "stop_reason": "submitted", "figures": {"turns": 4}, "metadata": {}}

The first five fields are those of `sandlot export --format training`, whose lines are read here
too. `group` names the rollouts that share a baseline. A segment is an unbroken run of tokens, as
a rule one a rollout; `loss_mask` is 1 where the policy drew the token, `logprobs` (nats) are those
under which it was drawn and 0 elsewhere, null where they were not recorded. `reward` is in [0, 1],
or null with the reason in `missing`: a failure of the machinery, to be left out of the baseline and
of every mean, never taken for 0. `valid` is true where there is something to learn from: a reward,
and at least one sampled token. Ids are numbered within a group.

For users of other trainers, a segment split before its first sampled token (`split`) is

- verl, an `AgentLoopOutput`: prompt -> `prompt_ids`, completion -> `response_ids`, mask ->
  `response_mask`, logprobs -> `response_logprobs`, reward -> `reward_score`, group -> `uid`; with
  `algorithm.adv_estimator=rloo`, `actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-sum`.
- SkyRL, the lists of a `GeneratorOutput`: `prompt_token_ids`, `response_ids`, `loss_masks`,
  `rollout_logprobs`, `rewards`, `stop_reasons`.
- prime-rl, a training sample: `prompt_ids` (with a `prompt_mask` of zeros), `completion_ids`,
  `completion_mask`, `completion_logprobs`, and the `advantage`, to be computed within the group.

Leave out what is not `valid` before groups are formed. Where a rollout has several segments, each
becomes a sample with the rollout's advantage; a trainer that means over samples then weighs such
a rollout more than once. The names follow the sources of those projects as read in 2026; they were
not run against this file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandlot.core.errors import RecordError
from sandlot.core.jsonl import JsonlWriter, stream_jsonl
from sandlot.core.tokens import TokenRow, row_of, segment_of
from sandlot.core.types import JsonObject
from sandlot.train.base import Episode


@dataclass(frozen=True, slots=True)
class Recorded:
    """A line of the training record. `step` is None where it comes from an export."""

    id: str
    episode: Episode
    model: str = ""
    step: int | None = None


def write_records(
    path: Path, episodes: Sequence[Episode], *, step: int | None = None, model: str = ""
) -> None:
    """Append rollouts to a file; they are on the disk when this returns.

    Raises:
        RecordError: the file cannot be written, or the disk is full.
    """
    numbers: Counter[str] = Counter()
    lines = JsonlWriter(path)
    try:
        for episode in episodes:
            name = f"{episode.group}.{numbers[episode.group]}"
            numbers[episode.group] += 1
            lines.append(line_of(Recorded(name, episode, model, step)))
        lines.sync()
    finally:
        lines.close()


def line_of(recorded: Recorded) -> JsonObject:
    """What stands in the file for one rollout."""
    episode = recorded.episode
    return {
        "id": recorded.id,
        "group": episode.group,
        "reward": episode.reward,
        "model": recorded.model,
        "segments": [segment_of(row) for row in episode.rows],
        "step": recorded.step,
        "task_id": episode.task_id,
        "valid": is_valid(episode),
        "missing": episode.missing,
        "stop_reason": episode.stop_reason,
        "figures": dict(episode.figures),
        "metadata": dict(episode.metadata),
    }


def is_valid(episode: Episode) -> bool:
    """Whether there is something to learn from: a reward, and a token that the policy drew."""
    return episode.reward is not None and any(row.sampled_tokens for row in episode.rows)


def read_records(path: Path) -> Iterator[Recorded]:
    """Each rollout of a training record or of an export, one in memory at a time.

    A torn last line, as a kill leaves it, is passed over.

    Raises:
        RecordError: the file cannot be read, or a line is no such record; names file and line.
    """
    for number, line in stream_jsonl(path):
        try:
            yield recorded_of(line)
        except RecordError as error:
            raise RecordError(f"{path.name}:{number}: {error}") from error


@dataclass(frozen=True, slots=True)
class Split:
    """A row as prompt and completion; `mask` and `logprobs` belong to the completion."""

    prompt: tuple[int, ...]
    completion: tuple[int, ...]
    mask: tuple[int, ...]
    logprobs: tuple[float, ...] | None


def split(row: TokenRow) -> Split:
    """The row, parted before its first sampled token; all prompt where nothing was sampled."""
    start = row.sampled.index(True) if row.sampled_tokens else len(row.ids)
    mask = tuple(int(each) for each in row.sampled[start:])
    logprobs = None if row.logprobs is None else row.logprobs[start:]
    return Split(row.ids[:start], row.ids[start:], mask, logprobs)


# Reading, field by field.


def recorded_of(line: Mapping[str, Any]) -> Recorded:
    """What a line of the file says. Raises RecordError, naming the field."""
    group = _field(line, "group", str)
    episode = Episode(
        group,
        _field(line, "task_id", str, group),
        _rows(_field(line, "segments", list)),
        _reward(line),
        _field(line, "missing", str | None, None),
        _field(line, "stop_reason", str, ""),
        _field(line, "figures", dict, {}),
        _field(line, "metadata", dict, {}),
    )
    if _field(line, "valid", bool, is_valid(episode)) and not is_valid(episode):
        raise RecordError("marked as valid, with no reward or no sampled token")
    step = _field(line, "step", int | None, None)
    return Recorded(_field(line, "id", str), episode, _field(line, "model", str, ""), step)


_REQUIRED = object()


def _field(line: Mapping[str, Any], name: str, kind: Any, default: Any = _REQUIRED) -> Any:
    if name not in line and default is not _REQUIRED:
        return default
    if name not in line:
        raise RecordError(f"field {name!r} is missing (found: {', '.join(line) or 'nothing'})")
    value = line[name]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise RecordError(f"field {name!r} is a {type(value).__name__}")
    return value


def _reward(line: Mapping[str, Any]) -> float | None:
    reward = _field(line, "reward", int | float | None)
    if reward is None:
        return None
    if not 0 <= reward <= 1:
        raise RecordError(f"reward {reward:g} is not in [0, 1]")
    return float(reward)


def _rows(segments: Sequence[Any]) -> tuple[TokenRow, ...]:
    rows = []
    for index, segment in enumerate(segments):
        if not isinstance(segment, dict):
            raise RecordError(f"segment {index} is no object")
        try:
            rows.append(row_of(segment))
        except RecordError as error:
            raise RecordError(f"segment {index}: {error}") from error
    return tuple(rows)
