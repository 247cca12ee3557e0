"""The project's own instruction checks: each holds and fails where it should."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sandlot.core.errors import ConfigError
from sandlot.core.types import Task
from sandlot.scoring import instructions
from sandlot.scoring.base import Candidate
from sandlot.scoring.instructions import CHECKS, InstructionsScorer, follows

TABLE: list[tuple[str, dict[str, Any], str, str]] = [
    # check, arguments, a text that follows, a text that does not
    ("word_count", {"exactly": 3}, "one well-known don't", "one two"),
    ("word_count", {"min": 2, "max": 3}, "one two", "one two three four"),
    ("sentence_count", {"exactly": 2}, 'It cost 3.5. "Why?"', "Only one"),
    ("sentence_count", {"min": 2}, "No stop here\nNor here", "..."),
    ("paragraph_count", {"exactly": 2}, "One\nstill one\n\n \nTwo", "One\nstill one"),
    ("line_count", {"exactly": 2}, "a\n\nb\n", "a b"),
    ("character_count", {"max": 3}, " abc \n", "abcd"),
    ("number_count", {"exactly": 2}, "1,000 and 2.5", "1 2 3"),
    ("bullet_count", {"exactly": 2}, "- a\n* b\nc", "-a\n- b"),
    ("numbered_list", {"exactly": 2}, "1. a\n2) b", "1. a\n3. b"),
    ("heading_count", {"min": 1}, "# Title\ntext", "#tag"),
    ("letter_count", {"letter": "e", "exactly": 2}, "Eel", "eel e"),
    ("letter_count", {"letter": "e", "max": 0}, "Stop it", "The end"),
    ("occurrences", {"word": "tea", "exactly": 2}, "Tea, tea-time", "tea teas"),
    ("palindrome_count", {"min": 2}, "Level a civic", "level a b"),
    ("palindrome_count", {"min": 1, "length": 6}, "redder", "level"),
    ("capital_words", {"exactly": 1}, "I am NASA", "I am"),
    ("words_per_line", {"exactly": 2}, "a b\n\nc d", "a b\nc"),
    ("words_per_sentence", {"max": 2}, "A b. C d.", "A b c."),
    ("word_length", {"max": 4}, "tiny cat", "large cat"),
    ("contains", {"words": ["green tea", "cup"]}, "A Cup of green\ntea", "greentea cup"),
    ("not_contains", {"words": ["tea"]}, "steam", "hot Tea!"),
    ("no_characters", {"characters": ",;"}, "a b", "a, b"),
    ("starts_with", {"text": "Dear"}, "  Dear all", "dear all"),
    ("ends_with", {"text": "Yours."}, "so\nYours. ", "Yours"),
    ("letter_case", {"kind": "lower"}, "abc 1!", "Abc"),
    ("letter_case", {"kind": "upper"}, "ABC 1!", "ABc"),
    ("letter_case", {"kind": "title"}, "The 3rd Day", "The last Day"),
    ("json_object", {"keys": ["a"]}, '{"a": 1, "b": 2}', '{"b": 2}'),
    ("json_object", {"keys": ["a"], "only": True}, '```json\n{"a": 1}\n```', '{"a": 1, "b": 2}'),
    ("json_list", {"exactly": 2}, "[1, 2]", '{"a": 1}'),
    ("alphabetical", {"of": "words"}, "Ant bee Cat", "bee ant"),
    ("alphabetical", {"of": "lines"}, "ant x\nBee a", "bee\nant"),
    ("alphabetical", {"of": "sentences"}, "Ants run. Bees fly.", "Bees fly. Ants run."),
    ("nth_word", {"n": 2, "word": "Tea"}, "green tea", "tea green"),
    ("nth_word", {"n": -1, "word": "tea"}, "green tea.", ""),
    ("nth_line_starts", {"n": 2, "text": "then"}, "First\n\nThen so", "Then\nFirst"),
    ("unique_words", {}, "one two", "One one"),
    ("initial_letter", {"letter": "s", "of": "words"}, "Six small", "six big"),
    ("initial_letter", {"letter": "s", "of": "lines"}, "- six\n- Seven", "six\nbig"),
    ("acrostic", {"word": "Tea"}, "To\nEach\n\na", "To\nA\nE"),
    ("one_of", {"options": ["yes", "no"]}, " yes\n", "Yes"),
    ("parts", {"separator": "***", "exactly": 2}, "a\n***\nb", "a\n***\n"),
    ("quoted", {}, '"all of it"', '"all" of "it"'),
    ("ends_every_line", {"text": "!"}, "a!\n\nb! ", "a!\nb"),
]


@pytest.mark.parametrize(("check", "kwargs", "good", "bad"), TABLE)
def test_a_check_holds_and_fails(check: str, kwargs: dict[str, Any], good: str, bad: str) -> None:
    assert follows(good, check, kwargs)
    assert not follows(bad, check, kwargs)


def test_every_check_is_in_the_table_and_in_the_documentation() -> None:
    assert {row[0] for row in TABLE} == CHECKS.keys()
    assert instructions.__doc__ is not None
    for name in CHECKS:
        assert f"- `{name}`" in instructions.__doc__


@pytest.mark.parametrize(
    ("check", "kwargs", "message"),
    [
        ("word_cuont", {"min": 1}, "Did you mean 'word_count'"),
        ("word_count", {}, "one of exactly, min, max is needed"),
        ("word_count", {"minimum": 1}, "minimum"),
        ("contains", {}, "words"),
        ("letter_count", {"letter": "ab", "min": 1}, "not one letter"),
        ("letter_case", {"kind": "camel"}, "lower, upper, title"),
        ("alphabetical", {"of": "pages"}, "words, lines, sentences"),
        ("nth_word", {"n": 0, "word": "a"}, "counts from 1"),
    ],
)
def test_a_check_that_cannot_be_is_refused(
    check: str, kwargs: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        follows("some text", check, kwargs)


CHECK_LIST = [
    {"id": "word_count", "kwargs": {"max": 3}},
    {"id": "no_characters", "kwargs": {"characters": ","}},
]


@pytest.mark.parametrize("target", [CHECK_LIST, json.dumps(CHECK_LIST)])
async def test_all_instructions_must_be_kept(target: Any) -> None:
    scorer = InstructionsScorer()
    task = Task("t", "?", target=target)
    good = await scorer.score(Candidate(task, "<think>a, b, c, d, e</think>one two"))
    assert (good.value, good.details["instruction_level"]) == (1.0, 1.0)
    half = await scorer.score(Candidate(task, "one, two"))
    assert (half.value, half.details["instruction_level"]) == (0.0, 0.5)
    assert half.details["checks"][1] == {"id": "no_characters", "followed": False}
    none = await scorer.score(Candidate(task, None))
    assert (none.value, none.details) == (0.0, {"no_answer": True})


@pytest.mark.parametrize(
    "target", [None, "no JSON", "{}", [], ["word_count"], [{"id": "quoted", "kwargs": [1]}], 3]
)
async def test_a_truth_of_the_wrong_type_names_the_task(target: Any) -> None:
    with pytest.raises(ConfigError, match=r"task 't1'.*must be a list"):
        await InstructionsScorer().score(Candidate(Task("t1", "?", target=target), "x"))


async def test_an_unknown_check_in_a_truth_names_the_task() -> None:
    task = Task("t1", "?", target=[{"id": "rhymes"}])
    with pytest.raises(ConfigError, match=r"task 't1'.*rhymes"):
        await InstructionsScorer().score(Candidate(task, "x"))
