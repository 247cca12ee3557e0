"""The scorer of training questions: letters, F1 of letters, algebra first and ROUGE-L after it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from sandlot.core.errors import ConfigError
from sandlot.core.types import Score, Task
from sandlot.scoring.base import Candidate, Scorer, ScoringTools
from sandlot.scoring.open import is_expression
from sandlot.scoring.registry import load_scorer

OPTIONS = {"A": "tar", "B": "rope", "C": "salt", "D": "oak"}


@pytest.fixture
async def scorer(tools: ScoringTools) -> AsyncIterator[Scorer]:
    scorer = load_scorer("qa", {}, tools)
    yield scorer
    await scorer.close()


async def scored(scorer: Scorer, answer: str | None, target: Any, kind: str) -> Score:
    metadata: dict[str, Any] = {"qa_type": kind}
    if "choice" in kind:
        metadata["options"] = OPTIONS
    return await scorer.score(Candidate(Task("t", "?", target=target, metadata=metadata), answer))


@pytest.mark.parametrize(
    ("answer", "target", "value"),
    [
        ("B", "B", 1.0),
        ("ANSWER: B", "B", 1.0),
        ("rope", "B", 1.0),
        ("C", "B", 0.0),
        ("B, C", "B", 0.0),
        ("", "B", 0.0),
        (None, "B", 0.0),
        ("A, C", "A, C", 1.0),
        ("C and A", "A, C", 1.0),
        ("A", "A, C", 2 / 3),  # precision 1, recall 1/2
        ("A, B", "A, C", 0.5),  # precision 1/2, recall 1/2
        ("A, B, C", "A, C", 0.8),  # precision 2/3, recall 1
        ("B, D", "A, C", 0.0),
        ("A, B, C, D", "A, C", 0.0),  # naming everything claims nothing
        ("", "A, C", 0.0),
    ],
)
async def test_choices_are_right_or_wrong_and_several_letters_earn_their_f1(
    scorer: Scorer, answer: str | None, target: str, value: float
) -> None:
    score = await scored(scorer, answer, target, "multiple choice")
    assert score.value == pytest.approx(value, abs=1e-5)
    assert score.details["as"] == "choice"


@pytest.mark.parametrize(
    ("answer", "target", "value"),
    [
        ("42", "42", 1.0),
        ("42.0", "42", 1.0),
        ("1/2", "0.5", 1.0),
        ("Paris", "Paris", 1.0),
        ("the tar barrel", "a tar barrel", 1.0),
        ("the red boat", "the red boat of Ann", 2 * 3 / (3 + 5)),  # common run of three words
        ("boat red the", "the red boat of Ann", 2 * 1 / (3 + 5)),  # order counts
        ("nothing alike", "the red boat", 0.0),
        ("-4", "4", 0.0),  # of which ROUGE sees the same words
        ("3.5 km", "3.4 km", 0.0),
        ("4 of the boats", "4", 2 * 1 / (4 + 1)),  # no quantity, so compared by words
        ("No, it sank at the pier.", "Yes, it sank at the pier.", 0.0),
        ("", "the red boat", 0.0),
        (None, "42", 0.0),
        ("ran off to her friend", ["her father", "ran to her friend"], 2 * 4 / (5 + 4)),
    ],
)
async def test_open_answers_are_right_or_earn_their_rouge_l(
    scorer: Scorer, answer: str | None, target: Any, value: float
) -> None:
    score = await scored(scorer, answer, target, "free-form")
    assert score.value == pytest.approx(value, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("answer", "target", "value"),
    [
        (r"\frac{1}{2}x + 1", "1 + x/2", 1.0),
        ("2x + 1", "1 + 2x", 1.0),
        ("3x + 1", "1 + 2x", 0.0),
        (r"2\sqrt{2}", "sqrt(8)", 1.0),
    ],
)
async def test_an_expression_is_compared_by_algebra_before_its_words_are(
    scorer: Scorer, answer: str, target: str, value: float
) -> None:
    pytest.importorskip("math_verify", reason="the extra `math` is not installed")
    score = await scored(scorer, answer, target, "free-form")
    assert score.missing is None
    assert score.value is not None
    assert (score.value == 1.0) is (value == 1.0)


@pytest.mark.slow
async def test_a_truth_that_algebra_cannot_read_is_compared_as_text(scorer: Scorer) -> None:
    pytest.importorskip("math_verify", reason="the extra `math` is not installed")
    score = await scored(scorer, "7 3", r"7 \foo{3}{", "free-form")
    assert score.missing is None
    assert score.details["as"] == "text"


async def test_without_the_library_a_needed_check_is_missing_and_says_what_to_install(
    tools: ScoringTools, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sandlot.scoring.math.find_spec", lambda name: None)
    scorer = load_scorer("qa", {}, tools)
    needed = await scored(scorer, "2x + 1", "1 + 2x", "free-form")
    assert needed.value is None
    assert "sandlot[math]" in str(needed.missing)
    assert (await scored(scorer, "42.0", "42", "free-form")).value == 1.0
    words = await scored(scorer, "the red boat", "the blue boat", "free-form")
    assert words.value == pytest.approx(2 / 3, abs=1e-5)
    await scorer.close()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1 + 2x", True),
        (r"\frac{1}{2}", True),
        ("sqrt(8)", True),
        ("42", True),
        ("(1, 3]", True),
        ("3 dogs ran", False),
        ("Paris", False),
        ("in 1945 he left", False),
        ("ab", False),
    ],
)
def test_only_what_holds_no_word_is_an_expression(text: str, expected: bool) -> None:
    assert is_expression(text) is expected


def test_an_unknown_way_with_other_questions_is_refused(tools: ScoringTools) -> None:
    with pytest.raises(ConfigError, match="have: math, open, text"):
        load_scorer("qa", {"others": "maths"}, tools)
