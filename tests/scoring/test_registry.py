"""Scorers by name, with their options checked."""

from __future__ import annotations

import time

import pytest

from sandlot.core.errors import ConfigError
from sandlot.core.types import Task
from sandlot.scoring.base import Candidate, ScoringTools
from sandlot.scoring.registry import load_scorer, scorer_names


def test_the_names_of_the_shipped_scorers_are_known() -> None:
    assert {"cascade", "choice", "files", "ifbench", "instructions", "judge", "math", "qa",
            "text"} <= set(scorer_names())  # fmt: skip


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("choice", {"partial": "f1"}),
        ("text", {"rouge": True, "rel_tol": 0.01}),
        ("qa", {}),
        ("instructions", {}),
        ("judge", {"rules": "long_context", "judgements": 4}),
        ("math", {"numeric": True}),
        ("cascade", {"numeric": True, "rules": "physics"}),
    ],
)
async def test_a_scorer_is_built_by_name(
    tools: ScoringTools, name: str, options: dict[str, object]
) -> None:
    scorer = load_scorer(name, options, tools)
    assert scorer.name == name
    assert scorer.version
    await scorer.close()
    await scorer.close()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("choise", {}, "Did you mean 'choice'"),
        ("choice", {"partail": "f1"}, "Did you mean 'partial'"),
        ("choice", {"partial": "half"}, "not one of none, f1"),
        ("instructions", {"loose": True}, "have: none"),
    ],
)
def test_a_wrong_name_or_option_is_refused(
    tools: ScoringTools, name: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_scorer(name, options, tools)


async def test_qa_goes_by_the_question_of_the_task(tools: ScoringTools) -> None:
    scorer = load_scorer("qa", {}, tools)
    choice = Task("t", "?", target="A, C", metadata={"qa_type": "Multiple Choice"})
    score = await scorer.score(Candidate(choice, "A"))
    assert (score.scorer, score.value, score.details["as"]) == (
        "qa", pytest.approx(2 / 3, abs=1e-5), "choice",
    )  # fmt: skip
    free = Task("t", "?", target="Paris", metadata={"qa_type": "free-form"})
    assert (await scorer.score(Candidate(free, "The capital is Paris."))).value == 1.0


async def test_ten_thousand_choice_and_text_items_are_scored_again_in_time(
    tools: ScoringTools,
) -> None:
    choice, text = load_scorer("choice", {}, tools), load_scorer("text", {"rouge": True}, tools)
    started = time.perf_counter()
    for number in range(5000):
        letter = Task(f"c{number}", "Which?\nA. one\nB. two\nC. three\nD. four", target="B")
        reply = f"After step {number} I compared both.\nSo it is not A.\n\nANSWER: B. two"
        assert (await choice.score(Candidate(letter, reply))).value == 1.0
        open_ = Task(f"t{number}", "Who?", target="the second son of the fisherman")
        reply = f"I read {number} pages.\nANSWER: the {number}th son of a fisherman called Matte"
        value = (await text.score(Candidate(open_, reply))).value
        assert value is not None
        assert 0 < value < 1
    assert time.perf_counter() - started < 20
