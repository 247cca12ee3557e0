"""The figures of a step and of an evaluation, from episodes alone. No torch here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sandlot.bench.patterns import CAPABILITIES
from sandlot.bench.stats import Interval, mean_of
from sandlot.train.base import Episode

if TYPE_CHECKING:
    from sandlot.train.objective import Advantages


@dataclass(frozen=True, slots=True)
class Evaluated:
    """An evaluation. `reward` is the mean over the rollouts that have one, with its 95 % interval.

    `families` maps a family to (mean reward, rollouts scored).
    """

    mode: Literal["sandbox", "llm"]
    temperature: float
    tasks: int
    scored: int
    reward: float | None
    interval: Interval | None
    turns: float
    tokens: float
    submitted: float
    families: Mapping[str, tuple[float, int]]
    missing: Mapping[str, int]


def evaluated_of(
    mode: Literal["sandbox", "llm"], temperature: float, episodes: Sequence[Episode]
) -> Evaluated:
    scored = [each for each in episodes if each.reward is not None]
    by_family: dict[str, list[float]] = {}
    for each in scored:
        by_family.setdefault(str(each.metadata.get("family", "")), []).append(each.reward or 0.0)
    values = {str(at): each.reward or 0.0 for at, each in enumerate(scored)}
    return Evaluated(
        mode=mode,
        temperature=temperature,
        tasks=len(episodes),
        scored=len(scored),
        reward=_mean([each.reward or 0.0 for each in scored]),
        interval=mean_of(values).interval if values else None,
        turns=_of(scored, "turns"),
        tokens=_of(scored, "sampled_tokens"),
        submitted=_of(scored, "submitted"),
        families={
            name: (sum(values) / len(values), len(values))
            for name, values in sorted(by_family.items())
            if name
        },
        missing=missing_of(episodes),
    )


def step_figures(episodes: Sequence[Episode], advantages: Advantages) -> dict[str, float]:
    """Means over a step's rollouts, and how many of its groups can teach anything.

    `sandbox_share` is the part of the rollouts' time, summed, that went not into the model. Where
    no rollout has a reward, the means over those that have one are left out: they are not 0.
    """
    scored = [each for each in episodes if each.reward is not None]
    model_s = sum(each.figures.get("model_s", 0.0) for each in episodes)
    wall_s = sum(each.figures.get("wall_s", 0.0) for each in episodes)
    turns = max(1.0, sum(each.figures.get("turns", 0.0) for each in episodes))
    means = {
        "reward": _mean([each.reward or 0.0 for each in scored]) or 0.0,
        "turns": _of(scored, "turns"),
        "tokens": _of(scored, "sampled_tokens"),
        "submitted": _of(scored, "submitted"),
    }
    return {
        **(means if scored else {}),
        "scored": float(len(scored)),
        "missing": float(len(episodes) - len(scored)),
        "sampled_tokens": sum(each.figures.get("sampled_tokens", 0.0) for each in episodes),
        "useful_groups": 1 - (advantages.equal + advantages.alone) / max(1, advantages.groups),
        "sandbox_share": 1 - model_s / wall_s if wall_s else 0.0,
        **{
            f"uses_{name}": sum(each.figures.get(f"uses_{name}", 0.0) for each in episodes) / turns
            for name in CAPABILITIES
        },
    }


def missing_of(episodes: Sequence[Episode]) -> dict[str, int]:
    """Why rewards are missing, by the kind of failure, with counts."""
    found: dict[str, int] = {}
    for each in episodes:
        if each.reward is None:
            kind = (each.missing or each.stop_reason or "unknown").split(":")[0]
            found[kind] = found.get(kind, 0) + 1
    return found


def _of(episodes: Sequence[Episode], figure: str) -> float:
    return _mean([each.figures.get(figure, 0.0) for each in episodes]) or 0.0


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
