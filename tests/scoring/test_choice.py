"""Multiple choice: letters are read as a careful human reads them."""

from __future__ import annotations

from typing import Any

import pytest

from sandlot.core.errors import ConfigError
from sandlot.core.types import Task
from sandlot.scoring.base import Candidate
from sandlot.scoring.choice import ChoiceScorer, options_of, read_claim


async def value(answer: str | None, target: Any, partial: str = "none", **fields: Any) -> float:
    task = Task("t1", fields.get("prompt", ""), target=target, metadata=fields.get("metadata", {}))
    score = await ChoiceScorer(partial=partial).score(Candidate(task, answer))
    assert score.value is not None
    return score.value


@pytest.mark.parametrize(
    "text",
    ["C", "c", "(C)", "C.", "C)", "[C]", "**C**", "C!", r"\text{C}", r"\mathbf{(C)}", "Choose C",
     "It's C", "Maybe C", "answer C", "CORRECT: C", "Option C", "C, that's why", "C; it is plain",
     "C - surely", "C: 298 K", "C. CC(=O)O", "C (78 °C)", "(C) ethanol", "C is a good choice",
     "C is right because A, B and D are wrong", "A is wrong, B is wrong, so C is right",
     "It cannot be A, so C", "T cells are involved, so C", "a benzene ring (C)",
     "Eliminate A and B. Between C and D, C.", "not B but C.", "C. A is unstable",
     "C\n\nOption A lacks a ring", "A. Wait, the answer is C.", "The correct option is C.",
     "I think C", "I would go with C", "C because B is too heavy",
     "The answer should be C", "Answer - C", "**C**: Colonoscopy", "option c", "(c) water",
     "c) water",
     "I waver between A and B, but C seems likely", "Both A and B are wrong; C is correct.",
     "After A, B and D, the answer must be C.", "C, not A", "Which is option C."],
)  # fmt: skip
def test_one_letter_is_claimed(text: str) -> None:
    assert read_claim(text).letters == {"C"}


@pytest.mark.parametrize(
    "text",
    ["a benzene ring", "benzene", "I do not know", "I cannot determine this.", "not A", "Not A",
     "Everything except A", "Neither A nor B", "None of the above", "As an AI model I cannot",
     "vitamin D", "The answer is a ketone", "I don't think A", "It is not A", "CC", "?", ""],
)  # fmt: skip
def test_no_letter_is_claimed(text: str) -> None:
    assert not read_claim(text).letters


@pytest.mark.parametrize(
    "text",
    ["A, C", "A,C,", "a, c", "A and C", "A & C", "[A, C]", "(A), (C)", "A), C)", "A., C.", "A C",
     "A\nC", "AC", "A，C", "**A, C**", "A: ethanol\nC: water", "A. ethanol, C. water",
     "- A. ethanol\n- C. water", "The answers are A, C", "The answers are A and C.",
     "A and C are correct"],
)  # fmt: skip
def test_sets_of_letters_are_read_in_the_plain_formats(text: str) -> None:
    claim = read_claim(text)
    assert claim.letters == {"A", "C"}
    assert not claim.hedged


@pytest.mark.parametrize("text", ["A or C", "A/C", "The answer is A or C", "N/A"])
def test_alternatives_are_a_hedge(text: str) -> None:
    assert read_claim(text).hedged


@pytest.mark.parametrize("answer", ["A B C D", "A\nB\nC\nD", "ABCD", "A, D", "A or D", "A/D"])
async def test_naming_more_letters_is_never_right_where_one_is_asked(answer: str) -> None:
    assert await value(answer, "D") == 0.0
    assert await value(answer, "A") == 0.0
    assert await value(answer, "A", partial="f1") == 0.0


async def test_f1_counts_only_where_a_set_asks_for_it() -> None:
    assert await value("A, B", "A, C, D") == 0.0
    assert await value("A", "A, C, D", partial="f1") == 0.5
    assert await value("A, C, D, B", "A, C, D", partial="f1") == pytest.approx(6 / 7, abs=1e-5)
    assert await value("D, C, A", "A, C, D") == 1.0


async def test_naming_all_known_options_earns_nothing() -> None:
    fields = {"prompt": "Which?\nA. w\nB. x\nC. y\nD. z"}
    assert await value("A, B, C, D", "A, C", partial="f1", **fields) == 0.0
    assert await value("A, B, C, D", "A, B, C, D", partial="f1", **fields) == 1.0


async def test_the_whole_text_of_an_option_claims_it() -> None:
    prompt = "Which?\n(A) ethanol\n(B) water\n(C) Acetic acid\n"
    assert await value("acetic acid.", "C", prompt=prompt) == 1.0
    assert await value("acid", "C", prompt=prompt) == 0.0
    assert await value("COS", "B", metadata={"options": ["CO", "COS"]}) == 1.0
    assert await value("B", "B", metadata={"options": ["B", "C"]}) == 1.0
    assert await value("water", "A", metadata={"options": ["ethanol", "water"]}) == 0.0
    assert await value("water", "B", metadata={"options": {"A": "ethanol", "B": "water"}}) == 1.0


def test_options_are_read_from_the_prompt_in_order_from_a() -> None:
    task = Task("t", "Dr. A. Smith asks:\nA) one\nB) two\nD) four")
    assert options_of(task) == {"A": "one", "B": "two"}


async def test_a_truth_without_letters_is_compared_as_text() -> None:
    assert await value("paris, France.", "Paris, France") == 1.0
    assert await value("France", "Paris, France") == 0.0


async def test_no_answer_is_0_and_says_so() -> None:
    for answer in (None, "", "  ", "I do not know"):
        score = await ChoiceScorer().score(Candidate(Task("t", "", target="I"), answer))
        assert (score.value, score.details["no_answer"]) == (0.0, True)


@pytest.mark.parametrize("target", [None, "", 3, {"A": 1}, []])
async def test_a_truth_of_the_wrong_type_names_the_task(target: Any) -> None:
    with pytest.raises(ConfigError, match=r"task 't1'.*must be a letter"):
        await value("A", target)
