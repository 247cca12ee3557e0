"""The strict extractor: one reading for every arm."""

from __future__ import annotations

import time

import pytest

from sandlot.scoring.extract import SHORT_CHARACTERS, extract, visible_text


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (None, None),
        ("", None),
        (" \n ", None),
        ("42", "42"),
        ("Paris, I believe", "Paris, I believe"),
        ("Work.\nANSWER: 42", "42"),
        ("Work.\nAnswer: 42\n", "42"),
        ("Work.\nFinal answer: 42", "42"),
        ("Work.\n**Final Answer:** 42", "42"),
        ("Work.\n**Answer: 42**", "42"),
        ("Work.\nThe answer is 42", "42"),
        ("Work.\nTherefore, the final answer is: 42", "42"),
        ("Long work. So, the correct answer is **C. water**.", "C. water."),
        ("The answer is 588. This follows from the first step.", "588"),
        ("The answer is Dr. Smith of Boston.", "Dr. Smith of Boston."),
        ("The answer is 1. Wait, the answer is 2.", "2."),
        ('Both fit. {"answer": "C"}', "C"),
        ("ANSWER: x**2 + 1", "x**2 + 1"),
        ("Answer:\n42", "42"),
        ("# Answer\n\n42\n\nMore.", "42"),
        ("**Answer**\n42", "42"),
        ("答え\nanswer：C", "C"),
        ("x <answer> 42 </answer> y", "42"),
        (r"so \boxed{42}", "42"),
        (r"so \\boxed{42}", "42"),
        (r"\boxed{\boxed{42}}", "42"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{42", "42"),
        (r"\boxed{}", None),
        (r"ANSWER: $\boxed{42}$", "42"),
        ('{"reasoning": "B?", "answer": "C"}', "C"),
        ('```json\n{"final_answer": 5}\n```', "5"),
        ('{"answer": ["A", "C"]}', "A, C"),
        ('"answer": "C"', "C"),
        ("Answer the question briefly.", "Answer the question briefly."),
    ],
)
def test_an_answer_is_read_from_its_mark(text: str | None, answer: str | None) -> None:
    assert extract(text) == answer


def test_the_last_mark_counts_whatever_its_kind() -> None:
    assert extract("ANSWER: 1\nno wait\nANSWER: 2") == "2"
    assert extract("\\boxed{1}\nANSWER: 2") == "2"
    assert extract("ANSWER: 1\nrather \\boxed{2}") == "2"
    assert extract("answer: C\nConfidence: 80%\nA: 10%\nB: 10%") == "C"


@pytest.mark.parametrize(
    ("text", "visible"),
    [
        ("<think>ANSWER: 1</think>2", "2"),
        ("<THINK>1</THINK> 2", "2"),
        ("<think>1</think>2<thinking>3</thinking>", "2"),
        ("1 and so on</think>2", "2"),
        ("2 <think>ANSWER: 1, I would", "2"),
        ("<think>ANSWER: 1", ""),
        ("\ufeff2\x00", "2"),
    ],
)
def test_thoughts_are_not_part_of_the_answer(text: str, visible: str) -> None:
    assert visible_text(text) == visible


def test_a_long_text_without_a_mark_gives_no_answer() -> None:
    assert extract("word " * SHORT_CHARACTERS) is None
    assert extract("word " * SHORT_CHARACTERS + "\nANSWER: 7") == "7"


@pytest.mark.parametrize(
    "piece", ["<think>", "</think>", "<answer>", "\\boxed{", "Answer:\n", " ", "# ", "the ", "*"]
)
def test_hostile_repetition_costs_linear_time(piece: str) -> None:
    started = time.perf_counter()
    extract(piece * (200_000 // len(piece)))
    assert time.perf_counter() - started < 3
