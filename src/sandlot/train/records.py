"""The training record: one JSON line a rollout, for this trainer and for others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from sandlot.core.codec import from_json, to_json
from sandlot.core.jsonl import JsonlWriter, read_jsonl
from sandlot.train.base import Episode


def write_records(path: Path, episodes: Sequence[Episode]) -> None:
    writer = JsonlWriter(path)
    try:
        for each in episodes:
            writer.append(to_json(each))
        writer.sync()
    finally:
        writer.close()


def read_records(path: Path | str) -> Iterator[Episode]:
    for line in read_jsonl(Path(path)):
        yield from_json(Episode, line)
