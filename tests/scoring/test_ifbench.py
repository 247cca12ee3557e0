"""IFBench by its published checkers, or not at all: never 0.0 for a checker that is missing."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sandlot.core.errors import ConfigError, MissingExtra
from sandlot.core.types import Score, Task
from sandlot.scoring import ifbench
from sandlot.scoring.base import Candidate, ScoringTools
from sandlot.scoring.ifbench import IFBenchScorer
from sandlot.scoring.ifbench_child import variants

pytestmark = pytest.mark.slow

REGISTRY = """
class _Check:
    def __init__(self, name): self.name = name
    def build_description(self, word="tea", **_): self.word = word
class Holds(_Check):
    def check_following(self, text): return text.startswith(self.word)
class NeedsData(_Check):
    def check_following(self, text):
        raise LookupError("\\n****\\n  Resource 'punkt_tab' not found.\\n  Please use it.\\n****")
class Broken(_Check):
    def check_following(self, text): return 1 / 0
INSTRUCTION_DICT = {"starts": Holds, "data": NeedsData, "broken": Broken}
"""


@pytest.fixture
async def scorer(
    tools: ScoringTools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[IFBenchScorer]:
    """The scorer over a checker package of the test's own, laid out as the published one is."""
    root = tmp_path / "double"
    (root / "ifbench").mkdir(parents=True)
    (root / "ifbench" / "__init__.py").touch()
    (root / "ifbench" / "instructions_registry.py").write_text(REGISTRY)
    (root / "nltk.py").write_text("def download(*a, **k): raise AssertionError('no network')\n")
    (root / "ifbench-9.dist-info").mkdir()
    (root / "ifbench-9.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: ifbench\nVersion: 9\n"
    )
    monkeypatch.syspath_prepend(str(root))
    scorer = IFBenchScorer(replace(tools, environ={**tools.environ, "PYTHONPATH": str(root)}))
    yield scorer
    await scorer.close()


def truth(*ids: str, **kwargs: Any) -> str:
    return json.dumps({"instruction_id_list": list(ids), "kwargs": [kwargs] * len(ids)})


async def scored(scorer: IFBenchScorer, answer: str | None, target: Any) -> Score:
    return await scorer.score(Candidate(Task("t1", "?", target=target), answer))


async def test_loose_is_the_value_and_strict_stands_beside_it(scorer: IFBenchScorer) -> None:
    score = await scored(scorer, "Sure:\n*tea* time", truth("starts", word="tea", unused=None))
    assert score.value == 1.0
    assert (score.details["prompt_strict"], score.details["prompt_loose"]) == (False, True)
    assert score.details["checker"] == "ifbench 9"
    wrong = await scored(scorer, "coffee", truth("starts"))
    assert (wrong.value, wrong.details["instruction_loose"]) == (0.0, 0.0)


async def test_what_cannot_be_checked_is_missing_with_the_reason(scorer: IFBenchScorer) -> None:
    for name, reason in (
        ("data", "data: Resource 'punkt_tab' not found."),
        ("broken", "the checker broken failed: ZeroDivisionError: division by zero"),
        ("rhymes", "the checkers do not know the instruction 'rhymes'"),
    ):
        score = await scored(scorer, "tea", truth("starts", name))
        assert (score.value, score.missing) == (None, reason)


async def test_no_answer_is_0_without_a_helper(scorer: IFBenchScorer) -> None:
    score = await scored(scorer, " <think>tea", truth("starts"))
    assert (score.value, score.details) == (0.0, {"no_answer": True})


@pytest.mark.parametrize("target", [None, "{", "[]", {"instruction_id_list": ["a"], "kwargs": []}])
async def test_a_truth_of_the_wrong_type_names_the_task(scorer: IFBenchScorer, target: Any) -> None:
    with pytest.raises(ConfigError, match="task 't1'"):
        await scored(scorer, "tea", target)


def test_the_loose_readings_drop_lines_and_asterisks() -> None:
    assert variants("a\n*b*\nc") == [
        "a\n*b*\nc", "*b*\nc", "a\n*b*", "*b*", "a\nb\nc", "b\nc", "a\nb", "b",
    ]  # fmt: skip


def test_without_checkers_the_scorer_says_what_to_install(
    tools: ScoringTools, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ifbench, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"sandlot\[ifbench\]"):
        IFBenchScorer(tools)


async def test_the_published_checkers_answer(tools: ScoringTools) -> None:
    pytest.importorskip("if_verifiable", reason="the extra `ifbench` is not installed")
    scorer = IFBenchScorer(tools)
    try:
        target = {"instruction_id_list": ["format:no_whitespace"], "kwargs": [{}]}
        assert (await scored(scorer, "abcdef", target)).value == 1.0
        assert (await scored(scorer, "abc def", target)).value == 0.0
    finally:
        await scorer.close()
