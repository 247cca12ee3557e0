"""Whatever a model writes, reading it neither fails nor takes long."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandlot.core.types import Task
from sandlot.scoring.choice import options_of, read_claim
from sandlot.scoring.extract import extract
from sandlot.scoring.instructions import CHECKS, follows
from sandlot.scoring.math import compare_here, to_tex
from sandlot.scoring.quantities import read_quantity
from sandlot.scoring.text import agrees, rouge_l
from sandlot.scoring.verdict import read_verdict

pytestmark = pytest.mark.slow

PIECES = (
    "A", "b", "I ", "answer", " is ", ": ", "(", ")", "{", "}", "\\boxed{", "\\text{", "\\frac",
    "^", "10^", "1", "23", "4.5", ",", "-", "%", "$", "**", "\n", " or ", " and ", "not ", "so ",
    "<think>", "</think>", "<answer>", '"', "[", "]", "°", " m/s", "three ", "½", "٣", "²", "e9",
    "CORRECT", "in", "VERDICT", "Yes, ", "July 4, 1776", "\x00", "\ufeff", "北", "=",
)  # fmt: skip
texts = st.one_of(st.lists(st.sampled_from(PIECES), max_size=14).map("".join), st.text(max_size=60))

KWARGS: dict[str, dict[str, Any]] = {
    "letter_count": {"letter": "a", "min": 1},
    "occurrences": {"word": "a b", "min": 1},
    "contains": {"words": ["a"]},
    "not_contains": {"words": ["a"]},
    "no_characters": {"characters": "a"},
    "starts_with": {"text": "a"},
    "ends_with": {"text": "a"},
    "ends_every_line": {"text": "a"},
    "letter_case": {"kind": "title"},
    "json_object": {"keys": ["a"]},
    "alphabetical": {"of": "sentences"},
    "nth_word": {"n": 1, "word": "a"},
    "nth_line_starts": {"n": 1, "text": "a"},
    "unique_words": {},
    "quoted": {},
    "initial_letter": {"letter": "a", "of": "sentences"},
    "acrostic": {"word": "a"},
    "one_of": {"options": ["a"]},
    "parts": {"separator": "a", "min": 1},
}


@settings(max_examples=300, deadline=None, derandomize=True)
@given(texts, texts)
def test_reading_never_fails(answer: str, truth: str) -> None:
    extract(answer)
    read_claim(answer)
    options_of(Task("t", answer))
    read_quantity(answer)
    compare_here(answer, truth)
    to_tex(answer)
    agrees(answer, truth)
    read_verdict(answer)
    assert 0.0 <= rouge_l(answer, truth) <= 1.0
    for check in CHECKS:
        follows(answer, check, KWARGS.get(check, {"min": 1}))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(texts)
def test_a_text_agrees_with_itself(text: str) -> None:
    if any(character.isalnum() for character in text):
        assert agrees(text, text) or not text.strip(" \t\n.,;:!?*_`\"'()[]{}$")


READERS: dict[str, Callable[[str], object]] = {
    "choice": read_claim,
    "text": lambda text: agrees(text, "the capital is Paris"),
    "rouge": lambda text: rouge_l(text, "the capital is Paris " * 20),
    "options": lambda text: options_of(Task("t", text)),
    "tex": lambda text: to_tex(text[:2000]),
    "here": lambda text: compare_here(text[:2000], "588"),
    "verdict": lambda text: read_verdict(text[:20_000]),
    "checks": lambda text: [follows(text, c, KWARGS.get(c, {"min": 1})) for c in CHECKS],
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    "piece",
    ["A, ", "a ", " ", "\n", "is ", "1 ", "1,", "(", "\\text{", "A or ", ". A", '{"a":', "["],
)
def test_hostile_repetition_costs_little_time(reader: str, piece: str) -> None:
    text = "$x" + piece * (100_000 // len(piece)) + "y$"
    started = time.perf_counter()
    READERS[reader](text)
    READERS[reader](piece * (100_000 // len(piece)))
    READERS[reader](text[:7000])
    assert time.perf_counter() - started < 5
