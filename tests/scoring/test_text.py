"""Short answers in words, and ROUGE-L."""

from __future__ import annotations

from typing import Any

import pytest

from sandlot.core.errors import ConfigError
from sandlot.core.types import Score, Task
from sandlot.scoring.base import Candidate
from sandlot.scoring.text import TextScorer, agrees, read_date, rouge_l, same_text


@pytest.mark.parametrize(
    ("answer", "truth"),
    [
        ("paris", "Paris"),
        ("Paris.", "Paris"),
        ("**Paris**", "Paris"),
        ('"Paris"', "Paris"),
        ("the Man in the High Castle", "The Man In The High Castle"),
        (r"\text{Paris}", "Paris"),
        ("北京", "北京"),
        ("Пушкин", "Пушкин"),
        ("Na+", "Na+"),
        ("4.0", "4"),
        ("1,000", "1000"),
        ("three", "3"),
        ("$5", "5 dollars"),
        ("1 km", "1000 m"),
        ("July 4, 1776", "4 July 1776"),
        ("4th of July 1776", "1776-07-04"),
        ("Yes, because it rained.", "Yes"),
        ("No. The tank was empty.", "No, it was empty"),
        ("The capital of France is Paris.", "Paris"),
        ("The capital is Paris, as document 2 says.", "Paris"),
        ("Paris", "The capital of France is Paris."),
        ("The total is 12 kg because two were lost", "12 kg"),
        ("in 1945", "1945"),
        ("He ran to her friend", "ran to her friend"),
        ("2,3,5", "2, 3, 5"),
        ("green and red", "red, green"),
        ("Barack Obama", "Obama"),
        ("Obama", "Barack Obama"),
        ("B. Obama", "Barack Obama"),
        ("President Obama", "Barack Obama"),
    ],
)
def test_the_same_answer_in_other_words_agrees(answer: str, truth: str) -> None:
    assert agrees(answer, truth)


@pytest.mark.parametrize(
    ("answer", "truth"),
    [
        ("France", "Paris"),
        ("Not Paris", "Paris"),
        ("It is not Paris", "Paris"),
        ("It is Paris or Rome", "Paris"),
        ("Paris London Rome Berlin", "Paris"),
        ("France", "The capital of France is Paris."),
        ("-4", "4"),
        ("100 km", "100 miles"),
        ("12 dogs", "12 cats"),
        ("4 or 5", "4"),
        ("July 5, 1776", "4 July 1776"),
        ("No", "Yes"),
        ("No, because it rained", "Yes"),
        ("A", "A cat"),
        ("1946", "In 1945 the war ended"),
        ("In 1945 the war began", "In 1945 the war ended"),
        ("The dog bit the man", "The man bit the dog"),
        ("He did not go home", "He did go home"),
        ("red, green, blue", "red, green"),
        ("It", "in"),
        ("South Korea", "Korea"),
        ("Black Sea", "Sea"),
        ("Michelle Obama", "Barack Obama"),
        (".", "Paris"),
        ("", ""),
    ],
)
def test_a_shared_word_is_not_agreement(answer: str, truth: str) -> None:
    assert not agrees(answer, truth)


def test_nothing_equals_nothing_only_where_there_is_text() -> None:
    assert not same_text("", "")
    assert not same_text("...", "..")


def test_dates_are_read_in_three_orders() -> None:
    expected = (1776, 7, 4)
    for text in ("July 4, 1776", "4 Jul 1776", "4th of July, 1776", "1776-07-04"):
        assert read_date(text) == expected
    assert read_date("7/4/1776") is None  # which of the two is the month, nobody knows


def test_rouge_l_of_a_hand_worked_pair() -> None:
    """Lin 2004, section 3: 3 of 4 words in common order on both sides."""
    truth = "police killed the gunman"
    assert rouge_l("police kill the gunman", truth) == pytest.approx(3 / 4)
    assert rouge_l("the gunman kill police", truth) == pytest.approx(2 / 4)
    assert rouge_l("the gunman police killed", truth) == pytest.approx(2 / 4)
    assert rouge_l(truth, truth) == 1.0
    assert rouge_l("...", truth) == 0.0


async def scored(answer: str | None, target: Any, **options: Any) -> Score:
    scorer = TextScorer(**options)
    return await scorer.score(Candidate(Task("t1", "?", target=target), answer))


async def test_rouge_is_the_value_only_where_asked_and_only_without_agreement() -> None:
    assert (await scored("police kill the gunman", "police killed the gunman")).value == 0.0
    graded = await scored("police kill the gunman", "police killed the gunman", rouge=True)
    assert graded.value == 0.75
    assert (await scored("The answer is 5", 5, rouge=True)).value == 1.0


async def test_any_truth_of_a_list_is_right() -> None:
    assert (await scored("H2O", ["water", "H2O"])).value == 1.0
    assert (await scored("H2", ["water", "H2O"])).value == 0.0


async def test_exact_takes_nothing_but_the_same_text() -> None:
    assert (await scored("three", "3", exact=True)).value == 0.0
    assert (await scored("Paris.", "paris", exact=True)).value == 1.0


@pytest.mark.parametrize("answer", [None, "", " \n", "<think>Paris", "..."])
async def test_no_answer_is_0_and_says_so(answer: str | None) -> None:
    score = await scored(answer, "Paris")
    assert (score.value, score.details["no_answer"]) == (0.0, True)


@pytest.mark.parametrize("target", [None, "", " ", [], ["a", None], {"a": 1}, True])
async def test_a_truth_of_the_wrong_type_names_the_task(target: Any) -> None:
    with pytest.raises(ConfigError, match=r"task 't1'.*must be a text"):
        await scored("a", target)
