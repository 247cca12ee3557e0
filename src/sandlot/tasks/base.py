"""A task set: which problems, how they are asked, and how they are scored, as one row of data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from sandlot.core.types import Task

LABELS = ("computer-favouring", "neutral", "computer-hostile")
"""What was expected of the computer before any run (`Task.metadata["label"]`)."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where problems come from.

    `builtin`: `path` in `sandlot.tasks`; `file`: `path` of a JSONL, JSON, CSV or Parquet file or
    of a Harbor task folder, relative to the TOML file; `hub`: `dataset` (owner/name), `config`,
    `split`, `revision` (a commit, pinned); `generator`: `path` names it and `options` are its own.
    """

    kind: Literal["builtin", "file", "hub", "generator"]
    path: str | None = None
    dataset: str | None = None
    config: str | None = None
    split: str | None = None
    revision: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TaskSet:
    """One row. What is None is left to the settings of the run.

    `scorer_options` go to the scorer; `cluster` names the metadata field by which items share
    documents or a subject, so that intervals are computed over clusters; `leak_hosts` are hosts
    where the set's answers are known to lie; `limits` are settings by name (memory, disk, timeout).
    `profile` is that of the sandbox arms, `llm_profile` that of the others. A row with `members` is
    a group: a name for several rows, each loaded and scored on its own (`registry.load_sets`).
    """

    name: str
    domain: str
    source: Source
    scorer: str
    title: str = ""
    scorer_options: Mapping[str, Any] = field(default_factory=dict)
    profile: str = "benchmark"
    llm_profile: str = "benchmark-llm"
    image: str | None = None
    network: str | None = None
    limits: Mapping[str, Any] = field(default_factory=dict)
    max_turns: int | None = None
    repeats: int = 1
    cluster: str | None = None
    leak_hosts: tuple[str, ...] = ()
    licence: str = ""
    citation: str = ""
    members: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LoadedSet:
    """A row with its problems. `digest` is the sha256 of the row and of every task in order.

    A hub row's `source.revision` is the commit that was loaded, whatever the row asked for.
    """

    row: TaskSet
    tasks: tuple[Task, ...]
    digest: str
