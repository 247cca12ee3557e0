"""The token rows of a trajectory: what the policy saw and what it sampled, never re-tokenised."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sandlot.core.errors import RecordError
from sandlot.core.types import JsonObject, TokenRecord, Trajectory


@dataclass(frozen=True, slots=True)
class TokenRow:
    """One unbroken token sequence of a rollout.

    `ids`, `sampled` and `logprobs` have one entry a token: `sampled` is True where the policy drew
    the token itself, `logprobs` is the log probability (nats) under which it was drawn and 0 where
    nothing was drawn; None where a turn has none. The first token is never a sampled one.
    """

    ids: tuple[int, ...]
    sampled: tuple[bool, ...]
    logprobs: tuple[float, ...] | None = None

    @property
    def sampled_tokens(self) -> int:
        return sum(self.sampled)


def rows_of(trajectory: Trajectory) -> tuple[TokenRow, ...]:
    """The rows of a trajectory whose turns carry token records.

    A row is a run of requests each of which begins with all tokens before it; where the history
    was cut or rewritten, a new row begins.

    Raises:
        RecordError: a turn without token ids; names the turn.
    """
    records = []
    for turn in trajectory.turns:
        if turn.tokens is None:
            raise RecordError(f"turn {turn.index} has no token ids")
        records.append(turn.tokens)
    return joined(records)


def joined(records: Iterable[TokenRecord]) -> tuple[TokenRow, ...]:
    """The rows of requests in the order in which they were made."""
    rows: list[_Row] = []
    for record in records:
        if not rows or not rows[-1].goes_on(record):
            rows.append(_Row([], [], []))
        rows[-1].add(record)
    return tuple(row.frozen() for row in rows)


def segment_of(row: TokenRow) -> JsonObject:
    """A row as training records hold it; `loss_mask` is 1 for sampled tokens."""
    return {
        "token_ids": list(row.ids),
        "loss_mask": [int(each) for each in row.sampled],
        "logprobs": None if row.logprobs is None else list(row.logprobs),
    }


def row_of(segment: Mapping[str, Any]) -> TokenRow:
    """The row of a segment: what `segment_of` wrote, or another program in the same shape.

    Raises:
        RecordError: a field is missing, of another type or of another length than the others, a
            mask that is not 0 and 1, or a sampled token at the very beginning.
    """
    ids, mask = _numbers(segment, "token_ids", int), _numbers(segment, "loss_mask", int)
    if not ids or len(mask) != len(ids):
        raise RecordError(f"{len(ids)} token_ids and {len(mask)} entries of loss_mask")
    if not set(mask) <= {0, 1}:
        raise RecordError("loss_mask has entries other than 0 and 1")
    if mask[0]:
        raise RecordError("the first token is marked as sampled, and nothing is before it")
    logprobs = None
    if segment.get("logprobs") is not None:
        logprobs = tuple(map(float, _numbers(segment, "logprobs", int | float)))
        if len(logprobs) != len(ids):
            raise RecordError(f"{len(ids)} token_ids and {len(logprobs)} logprobs")
    return TokenRow(tuple(ids), tuple(map(bool, mask)), logprobs)


def _numbers(segment: Mapping[str, Any], name: str, kind: Any) -> list[Any]:
    values = segment.get(name)
    if not isinstance(values, list):
        raise RecordError(f"field {name!r} is missing or no list")
    if not all(isinstance(each, kind) and not isinstance(each, bool) for each in values):
        raise RecordError(f"field {name!r} holds other things than numbers")
    return values


@dataclass(slots=True)
class _Row:
    ids: list[int]
    sampled: list[bool]
    logprobs: list[float] | None

    def goes_on(self, record: TokenRecord) -> bool:
        return list(record.prompt_ids[: len(self.ids)]) == self.ids

    def add(self, record: TokenRecord) -> None:
        given = record.prompt_ids[len(self.ids) :]
        self.ids += [*given, *record.completion_ids]
        self.sampled += [False] * len(given) + [True] * len(record.completion_ids)
        if record.logprobs is None or self.logprobs is None:
            self.logprobs = None
        else:
            self.logprobs += [0.0] * len(given) + list(record.logprobs)

    def frozen(self) -> TokenRow:
        logprobs = None if self.logprobs is None else tuple(self.logprobs)
        return TokenRow(tuple(self.ids), tuple(self.sampled), logprobs)
