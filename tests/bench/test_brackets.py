"""A model that knows every truth and one that knows none bracket the scores of `mini`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from experiments import Experiment, answering, plan, used

from sandlot.bench.episodes import Job
from sandlot.models.scripted import Reply
from sandlot.tasks.base import LoadedSet
from sandlot.tasks.registry import load_sets
from tasks.mini_texts_b import TEXTS

DOMAINS = ("math", "physics", "chem", "biomed", "long_context", "instruct_follow")


def mini(folder: Path) -> tuple[LoadedSet, ...]:
    return load_sets("mini", cache=folder / "cache", environ={}, progress=lambda text: None)


def right(job: Job) -> str:
    task = job.item.task
    return TEXTS[task.id][0] if task.id in TEXTS else f"ANSWER: {task.target}"


def wrong(job: Job) -> str:
    task = job.item.task
    return TEXTS[task.id][1] if task.id in TEXTS else "ANSWER: no such thing at all"


@pytest.mark.parametrize(("said", "score"), [(right, 1.0), (wrong, 0.0)])
async def test_scores_of_mini_are_bracketed_in_all_six_domains_and_both_modes(
    tmp_path: Path, said, score: float
) -> None:
    def script(job: Job) -> Sequence[Reply]:
        text = said(job)
        return answering(text) if job.condition.arm.mode == "sandbox" else [used(text)]

    sets = mini(tmp_path)
    directory = await Experiment(plan(tmp_path, *sets, concurrency=32), script).run()
    records = directory.episodes()
    found: dict[tuple[str, str], set[float | None]] = {}
    for (episode, _), record in directory.scores().items():
        domain = records[episode].domain or ""
        found.setdefault((domain, episode.arm), set()).add(record.score.value)
    assert found == {(domain, arm): {score} for domain in DOMAINS for arm in ("llm", "sandbox")}
    assert len(directory.scores()) == 300
    assert {record.label for record in records.values()} == {
        "computer-favouring",
        "neutral",
        "computer-hostile",
    }
