"""What a judge's reply says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sandlot.scoring.verdict import read_verdict


@pytest.mark.parametrize(
    "reply",
    ["CORRECT", "correct", "**CORRECT**", " CORRECT\n", "The same.\nVERDICT: CORRECT",
     "The same.\n**VERDICT:** CORRECT", "`VERDICT: CORRECT`", '{"verdict": "CORRECT"}',
     "<think>INCORRECT?</think>VERDICT: CORRECT", "CORRECT. It is not incorrect.",
     "Is it CORRECT or INCORRECT? CORRECT", "Not incorrect", "The candidate matches the official.",
     "INCORRECT at first sight.\nVERDICT: CORRECT"],
)  # fmt: skip
def test_correct_is_read(reply: str) -> None:
    assert read_verdict(reply) is True


@pytest.mark.parametrize(
    "reply",
    ["INCORRECT", "Off by one.\nVERDICT: INCORRECT", "VERDICT: CORRECT\nVERDICT: INCORRECT",
     "INCORRECT. The correct value is 5.", "INCORRECT - should be corrected to 7", "Not correct",
     "The answer isn't correct", "Partially correct", "The candidate's answer is wrong.",
     "It is right that the candidate failed. INCORRECT", "It does not match the official answer.",
     "The reference answer of 3 is correct; the candidate says 4."],
)  # fmt: skip
def test_incorrect_is_read(reply: str) -> None:
    assert read_verdict(reply) is False


@pytest.mark.parametrize(
    "reply",
    ["", "TRUE", "A", "UNCORRECT", "IN CORRECT", "VERDICT: MAYBE", "VERDICT: CORRECT or INCORRECT",
     "Reply only with CORRECT or INCORRECT.", "<think>CORRECT, so", "I cannot tell.",
     "Is the answer correct?", '{"verdict": "perhaps"}'],
)  # fmt: skip
def test_anything_else_is_no_verdict(reply: str) -> None:
    assert read_verdict(reply) is None


def test_all_shared_verdict_cases_are_read_as_a_human_reads_them(shared_data: Path) -> None:
    names = {True: "CORRECT", False: "INCORRECT", None: "UNKNOWN"}
    lines = (shared_data / "judge_verdict_cases.jsonl").read_text().splitlines()
    cases = [json.loads(line) for line in lines]
    wrong = [
        case["response"]
        for case in cases
        if names[read_verdict(case["response"])] != case["expected"]
    ]
    assert len(cases) >= 28
    assert not wrong
