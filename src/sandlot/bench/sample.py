"""A seeded bench run of invented records: what tests, the documentation and measurements report.

Nothing in it was measured. Its scores are drawn so that a computer helps with some problems, hurts
with others, and fails for reasons of its own now and then.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sandlot.bench.arms import ARMS as KNOWN_ARMS
from sandlot.bench.records import Episode, EpisodeRecord, Meters, ScoreRecord
from sandlot.bench.store import BenchDirectory
from sandlot.core.codec import to_json
from sandlot.core.redact import Redactor
from sandlot.core.types import Score, StopReason, Task
from sandlot.tasks.base import LABELS, Source, TaskSet

ARMS = ("llm", "sandbox", "sandbox-no-network", "sandbox-no-exec", "sandbox-no-files")
_LACKING = {"sandbox-no-network": "external", "sandbox-no-exec": "computation"}
_ACTS = {
    "sandbox-no-network": "a request through the proxy",
    "sandbox-no-exec": "a call of the shell",
    "sandbox-no-files": "a file of an earlier call",
}
_WHEN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class _Domain:
    """Chances of solving a problem: from the head, and what each capability adds."""

    name: str
    head: float
    external: float
    files: float
    computation: float
    use: Mapping[str, float]


_DOMAINS = (
    _Domain("math", 0.45, 0.0, 0.02, 0.30, {"external": 0.03, "files": 0.15, "computation": 0.43}),
    _Domain("physics", 0.40, 0.02, 0.0, 0.15, {"external": 0.05, "files": 0.1, "computation": 0.3}),
    _Domain("chem", 0.55, 0.12, 0.0, 0.03, {"external": 0.18, "files": 0.09, "computation": 0.12}),
    _Domain("biomed", 0.50, 0.0, 0.0, -0.04, {"external": 0.1, "files": 0.08, "computation": 0.05}),
    _Domain(
        "long_context", 0.30, 0.0, 0.28, 0.08, {"external": 0.0, "files": 0.62, "computation": 0.1}
    ),
    _Domain(
        "instruct_follow", 0.6, 0.0, 0.04, 0.12, {"external": 0, "files": 0.2, "computation": 0.25}
    ),
)
_LABEL_FACTOR = dict(zip(LABELS, (1.6, 0.8, -0.3), strict=True))


def write_sample(
    parent: Path,
    *,
    items: int = 25,
    repeats: int = 1,
    arms: Sequence[str] = ARMS,
    seed: int = 0,
    lift: float = 0.0,
    model: str = "sample/invented",
) -> BenchDirectory:
    """Write a run of six sets with `items` problems each. `lift` is added to every chance."""
    directory = BenchDirectory.create(parent, "sample", _WHEN).writing(Redactor())
    directory.write_manifest(_manifest(items, repeats, arms, seed, model))
    directory.write_tasks(_tasks(items))
    for domain in _DOMAINS:
        for number in range(items):
            for arm in arms:
                for repeat in range(repeats):
                    episode = Episode(domain.name, _id(domain, number), arm, repeat)
                    _write_episode(directory, domain, number, episode, seed, lift)
    directory.close()
    return directory


def _manifest(
    items: int, repeats: int, arms: Sequence[str], seed: int, model: str
) -> dict[str, Any]:
    return {
        "model": model,
        "seed": seed,
        "repeats": repeats,
        "sampling": {"temperature": 0.7, "top_p": 0.95},
        "arms": {name: to_json(KNOWN_ARMS[name]) for name in arms},
        "sets": {
            domain.name: {"digest": f"{n:064x}", "items": items, "row": to_json(_row(domain))}
            for n, domain in enumerate(_DOMAINS)
        },
        "controls": [
            {"arm": name, "act": act, "without": "done", "under": "refused", "bites": True}
            for name, act in _ACTS.items()
            if name in arms
        ],
    }


def _row(domain: _Domain) -> TaskSet:
    source = Source("generator", options={"invented": True})
    return TaskSet(domain.name, domain.name, source, scorer="text")


def _tasks(items: int) -> dict[tuple[str, str], Task]:
    return {
        (domain.name, _id(domain, number)): Task(
            _id(domain, number),
            f"An invented problem whose answer is {_truth(number)}.",
            target=_truth(number),
            domain=domain.name,
            metadata={"label": LABELS[number % len(LABELS)]},
        )
        for domain in _DOMAINS
        for number in range(items)
    }


def _id(domain: _Domain, number: int) -> str:
    return f"{domain.name}-{number:03d}"


def _truth(number: int) -> str:
    return str(number * 7)


def _write_episode(
    directory: BenchDirectory,
    domain: _Domain,
    number: int,
    episode: Episode,
    seed: int,
    lift: float,
) -> None:
    # The item's own draw is shared by all arms: that is what makes pairing worth its while.
    hardness = random.Random(f"{seed}/{episode.task_set}/{number}").random()
    rng = random.Random(f"{seed}/{episode.stem}")
    label = LABELS[number % len(LABELS)]
    failed = rng.random() < 0.012 and episode.arm != "llm"
    chance = _chance(domain, episode.arm, label) + lift + rng.gauss(0, 0.08)
    right = hardness < chance
    answer = _truth(number) if right else rng.choice([f"{number * 7 + 1}", "<b>none</b> of these"])
    directory.add_episode(
        EpisodeRecord(
            episode=episode,
            content_key=f"sample-{episode.stem}",
            attempt=1,
            stop_reason=_stop(rng, episode.arm, failed),
            stop_detail="",
            answer=None if failed else answer,
            failure="sandbox_died" if failed else None,
            meters=_meters(rng, domain, episode.arm),
            marks=("truth seen",) if _leaks(rng, episode.arm) else (),
            label=label,
            cluster=f"document-{number // 3}" if domain.name == "long_context" else None,
            domain=domain.name,
            restarted=int(rng.random() < 0.01 and episode.arm != "llm"),
        )
    )
    if not failed:
        details = {"no_answer": True} if not right and rng.random() < 0.1 else {}
        score = Score(episode.item, "text", "1", float(right), details=details)
        directory.add_score(ScoreRecord(episode, score))


def _chance(domain: _Domain, arm: str, label: str) -> float:
    if arm.startswith("llm"):
        return domain.head
    bought = {
        "external": domain.external,
        "files": domain.files,
        "computation": domain.computation,
    }
    bought.pop(_LACKING.get(arm, "files" if arm == "sandbox-no-files" else ""), None)
    return domain.head + _LABEL_FACTOR[label] * sum(bought.values())


def _stop(rng: random.Random, arm: str, failed: bool) -> StopReason:
    if failed:
        return StopReason.SANDBOX_DIED
    if arm.startswith("llm"):
        return StopReason.ANSWERED
    return StopReason.MAX_TURNS if rng.random() < 0.04 else StopReason.SUBMITTED


def _leaks(rng: random.Random, arm: str) -> bool:
    return arm == "sandbox" and rng.random() < 0.02


def _meters(rng: random.Random, domain: _Domain, arm: str) -> Meters:
    documents = 40_000 if domain.name == "long_context" else 300
    if arm.startswith("llm"):
        completion = int(rng.lognormvariate(7.6, 0.5))
        wall = completion / 60
        return Meters(
            turns=1,
            billed_prompt_tokens=documents + 200,
            billed_completion_tokens=completion,
            context_tokens=documents + 200 + completion,
            cost_usd=completion * 4e-6,
            wall_s=wall,
            model_s=wall,
        )
    turns = max(1, min(40, int(rng.lognormvariate(2.0, 0.55))))
    completion = turns * rng.randint(120, 320)
    context = 1500 + turns * rng.randint(300, 700)
    model_s, tool_s = completion / 60, turns * rng.uniform(0.1, 0.8)
    external = domain.use["external"] if arm != "sandbox-no-network" else 0.0
    uses = {**domain.use, "external": external}
    went = external > 0 and rng.random() < 4 * external
    return Meters(
        turns=turns,
        tool_calls=turns,
        billed_prompt_tokens=turns * context // 2,
        billed_cached_tokens=turns * context * 2 // 5,
        billed_completion_tokens=completion,
        context_tokens=context,
        observation_tokens=context * 45 // 100,
        cost_usd=completion * 4e-6 + turns * context * 2e-7 if rng.random() > 0.03 else None,
        wall_s=model_s + tool_s + 0.4,
        model_s=model_s,
        tool_s=tool_s,
        waiting_s=0.2,
        turns_with={name: sum(rng.random() < p for _ in range(turns)) for name, p in uses.items()},
        egress_hosts={"packages.example": rng.randint(10_000, 9_000_000)} if went else {},
        refused_requests=int(arm == "sandbox-no-network" and rng.random() < 0.1),
        files_left=rng.randint(0, 4),
        cpu_s=turns * rng.uniform(0.05, 2.0),
        memory_peak_bytes=rng.randint(20, 400) << 20,
    )
