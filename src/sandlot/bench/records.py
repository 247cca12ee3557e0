"""What a bench run leaves on disk, and the keys that pair its parts.

```text
runs/…-math/
  run.toml                              the plan: sets with digests, arms, model, sampling, repeats
  tasks.jsonl                           the problems without documents, for scoring again
  trajectories/SET.ITEM.ARM.K.jsonl     one rollout each, as `core.store` records it
  files/SET.ITEM.ARM.K/                 its collected files
  episodes.jsonl                        one `EpisodeRecord` for each finished attempt, appended
  scores.jsonl                          one `ScoreRecord` for each score, appended; the last counts
  judge.jsonl                           raw replies of the judge
  report.json  report.html
```
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sandlot.core.types import Score, StopReason


@dataclass(frozen=True, slots=True, order=True)
class Episode:
    """One rollout of the plan: an item of a set, in an arm, for the k-th time (from 0)."""

    task_set: str
    item: str
    arm: str
    repeat: int

    @property
    def stem(self) -> str:
        """The name of its files. An id that a file name cannot hold is cut and given a hash."""
        plain = re.sub(r"[^A-Za-z0-9_-]+", "-", self.item)
        if plain != self.item or len(plain) > 80:
            whole = hashlib.sha256(self.item.encode("utf-8", "surrogatepass")).hexdigest()
            plain = f"{plain[:60]}-{whole[:10]}"
        return f"{self.task_set}.{plain}.{self.arm}.{self.repeat}"


@dataclass(frozen=True, slots=True)
class Meters:
    """What an episode used. None means unknown, never 0. Times in seconds.

    `billed` counts are summed over requests (cached ones apart), `context_tokens` is prompt and
    completion of the last request, `observation_tokens` is the share of the context that came from
    tools, estimated by characters where no server counts it. `turns_with` counts the turns whose
    action uses a capability, by the paper's patterns; the rest is measured at the boundary.
    """

    turns: int = 0
    tool_calls: int = 0
    billed_prompt_tokens: int | None = None
    billed_cached_tokens: int | None = None
    billed_completion_tokens: int | None = None
    context_tokens: int | None = None
    observation_tokens: int | None = None
    cost_usd: float | None = None
    wall_s: float | None = None
    model_s: float = 0.0
    tool_s: float = 0.0
    waiting_s: float = 0.0
    turns_with: Mapping[str, int] = field(default_factory=dict)  # external, files, computation
    egress_hosts: Mapping[str, int] = field(default_factory=dict)  # host: bytes, allowed requests
    refused_requests: int = 0
    files_left: int | None = None
    cpu_s: float | None = None
    memory_peak_bytes: int | None = None
    installed_and_used: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EpisodeRecord:
    """The end of one attempt at an episode.

    `content_key` is the sha256 of all that determines the episode (task, arm, profile, model,
    sampling, seed): a resumed run takes over what has the same key. `failure` is the class of a
    failure of ours or of the server's (`model_error`, `sandbox_died`, `unavailable`, …) after
    which the score is missing; None where the model had its chance. `marks` are the reasons for
    which the contamination guard distrusts the item.
    """

    episode: Episode
    content_key: str
    attempt: int
    stop_reason: StopReason | None
    stop_detail: str
    answer: str | None
    failure: str | None
    meters: Meters
    marks: tuple[str, ...] = ()
    label: str | None = None
    cluster: str | None = None
    domain: str | None = None
    continued: int = 0
    restarted: int = 0


@dataclass(frozen=True, slots=True)
class ScoreRecord:
    """A score of an episode; of several for one scorer the last in the file counts.

    `reference` is what the published package gives for the same text, None where it is not there.
    """

    episode: Episode
    score: Score
    reference: float | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
