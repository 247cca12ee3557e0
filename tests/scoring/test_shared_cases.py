"""Agreement with a careful human on the shared scorer cases."""

from __future__ import annotations

import json
import time
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from sandlot.core.errors import ConfigError
from sandlot.core.types import Task
from sandlot.scoring.base import Candidate, Scorer, ScoringTools
from sandlot.scoring.registry import load_scorer

pytestmark = pytest.mark.slow

NEEDED = 0.97
SLOWEST_S = 5.0


def scorer_of(case: dict[str, Any]) -> tuple[str, str]:
    """Our scorer for a case, as a name and its options in JSON.

    The cases name the reference's reward files. Its rows of `instruct_pretrain` go by the domain
    and the kind of question that they were called with; `expected` there is what a human calls
    correct, not a ROUGE, so the text scorer runs without it. Of long_context and physics the file
    holds plain numbers, which rules can score.
    """
    if case["scorer"] != "instruct_pretrain":
        return {
            "math": ("math", "{}"),
            "physics": ("math", "{}"),
            "chem": ("choice", "{}"),
            "biomed": ("choice", "{}"),
            "instruct_follow": ("ifbench", "{}"),
        }.get(case["scorer"], ("text", "{}"))
    domain = case["kwargs"].get("domain")
    kind = str(case["kwargs"].get("qa_type") or "").lower()
    if domain == "math":
        return "math", "{}"
    if "choice" in kind or domain in ("chem", "chemistry", "biomed"):
        return "choice", '{"partial": "f1"}'
    return "text", "{}"


async def value_of(scorer: Scorer, case: dict[str, Any]) -> tuple[float | None, str | None]:
    """A score and why it is missing. A truth that is refused earns nobody anything: 0."""
    task = Task(case["id"], "", target=case["ground_truth"])
    try:
        score = await scorer.score(Candidate(task, case["answer"]))
    except ConfigError:
        return 0.0, None
    return score.value, score.missing


async def test_the_scorers_agree_with_a_careful_human(
    shared_data: Path, tools: ScoringTools
) -> None:
    for library, extra in (("math_verify", "math"), ("if_verifiable", "ifbench")):
        if find_spec(library) is None:
            pytest.skip(f"the extra `{extra}` is not installed")
    lines = (shared_data / "scorer_cases.jsonl").read_text().splitlines()
    cases = [case for case in map(json.loads, lines) if not case["ambiguous"]]
    scorers: dict[tuple[str, str], Scorer] = {}
    total: Counter[str] = Counter()
    agreed: Counter[str] = Counter()
    wrong: list[str] = []
    slow: list[str] = []
    try:
        for case in cases:
            key = name, options = scorer_of(case)
            if key not in scorers:
                scorers[key] = load_scorer(name, json.loads(options), tools)
                await value_of(scorers[key], case)  # starts its helper, which is no item's time
            started = time.perf_counter()
            value, missing = await value_of(scorers[key], case)
            if time.perf_counter() - started > SLOWEST_S:
                slow.append(case["id"])
            total[name] += 1
            if value is not None and abs(value - case["expected"]) <= 0.01:
                agreed[name] += 1
            else:
                wrong.append(f"{name} {case['id']}: {value} for {case['expected']} {missing or ''}")
    finally:
        for scorer in scorers.values():
            await scorer.close()
    table = "\n".join(f"{name}: {agreed[name]} of {total[name]}" for name in sorted(total))
    print(f"{table}\n" + "\n".join(wrong))
    assert len(cases) > 300
    assert not slow
    assert sum(agreed.values()) / len(cases) >= NEEDED, table
