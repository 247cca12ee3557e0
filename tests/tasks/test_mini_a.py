"""The shipped set `mini` in math, physics and chem: every truth worked out again, apart from it."""

from __future__ import annotations

import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from decimal import Decimal
from fractions import Fraction
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from sandlot.core.types import Task
from sandlot.scoring.base import Candidate
from sandlot.scoring.choice import ChoiceScorer, options_of
from sandlot.scoring.math import compare_here
from sandlot.scoring.quantities import read_quantity
from sandlot.tasks.base import LABELS

from .mini_truth_a import RECALL, RECALLED, TRUTHS, Truth

DOMAINS = ("math", "physics", "chem")
COUNTS = dict(zip(LABELS, (10, 8, 7), strict=True))
FIELDS = {
    "id",
    "domain",
    "problem_statement",
    "ground_truth",
    "input_files",
    "qa_type",
    "label",
    "label_reason",
    "topic",
}
CLOSE = 0.005
"""What a physics answer may be off: constants and rounding, not another formula."""

_SINGLE = r"Answer with the letter of the one right option, and nothing else\."
_SEVERAL = (
    r"Answer with the letters of all right options in alphabetical order, joined by commas, "
    r"and nothing else\."
)
_NUMBER = r"Answer with one number (?:in (?P<unit>\S+)|without a unit), rounded to four "
LINES: Mapping[str, tuple[str, ...]] = {
    "single choice": (_SINGLE,),
    "multiple choice": (_SEVERAL,),
    "true or false": (r"Answer with True or False, and nothing else\.",),
    "open": (
        r"Answer with one integer, and nothing else\.",
        r"Answer with one fraction in lowest terms, written a/b, and nothing else\.",
        _NUMBER + r"significant figures, and nothing else\.",
        r"Answer with one expression in M and R, and nothing else\.",
    ),
}

Item = Mapping[str, Any]


def read_domain(domain: str) -> list[dict[str, Any]]:
    path = files("sandlot.tasks") / "data" / "mini" / f"{domain}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


ITEMS = [item for domain in DOMAINS for item in read_domain(domain)]
IDS = [item["id"] for item in ITEMS]
each_item = pytest.mark.parametrize("item", ITEMS, ids=IDS)


def of_domain(domain: str) -> list[dict[str, Any]]:
    return [item for item in ITEMS if item["domain"] == domain]


def options(item: Item) -> dict[str, str]:
    return options_of(Task(id=item["id"], prompt=item["problem_statement"]))


def worked_out(item: Item) -> Truth | tuple[str, ...]:
    if item["id"] in RECALLED:
        return RECALLED[item["id"]]
    return TRUTHS[item["id"]](item["input_files"])


def four_figures(value: float) -> str:
    rounded = Decimal(f"{value:.3e}")
    return f"{rounded:f}"


def off_by(option: str, value: float) -> float:
    """How far a value lies from an option's number, in units of the option's last digit."""
    match = re.match(r"(-?\d+(?:\.(\d+))?)(?: × 10\^(-?\d+))?", option)
    assert match, option
    exponent = int(match[3] or 0)
    number = float(match[1]) * 10.0**exponent
    return abs(number - value) / 10.0 ** (exponent - len(match[2] or ""))


def right_letters(item: Item, truth: Truth | tuple[str, ...]) -> str:
    """The letters of the options that the truth names, or of the one that it rounds to."""
    given = options(item)
    if isinstance(truth, str | tuple):
        wanted = (truth,) if isinstance(truth, str) else truth
        assert set(wanted) <= set(given.values())
        return ", ".join(letter for letter, text in given.items() if text in wanted)
    far = {letter: off_by(text, float(truth)) for letter, text in given.items()}
    nearest = min(far, key=lambda letter: far[letter])
    assert far[nearest] <= 0.6
    assert all(distance > 1.5 for letter, distance in far.items() if letter != nearest), far
    return nearest


def in_the_asked_form(item: Item, truth: Truth | tuple[str, ...]) -> str:
    if item["qa_type"].endswith("choice"):
        return right_letters(item, truth)
    if isinstance(truth, float):
        return f"{four_figures(truth)} {item['unit']}".strip()
    return str(truth)


@each_item
def test_the_truth_is_what_an_independent_computation_gives(item: Item) -> None:
    assert item["ground_truth"] == in_the_asked_form(item, worked_out(item))


def test_every_problem_has_either_a_computation_or_a_source() -> None:
    assert TRUTHS.keys().isdisjoint(RECALLED)
    assert RECALL.keys() == RECALLED.keys()
    assert sorted(TRUTHS.keys() | RECALL.keys()) == sorted(IDS)
    assert all(len(source) > 20 for source in RECALL.values())


def test_what_must_be_recalled_was_labelled_hostile_to_the_computer() -> None:
    labels = {item["id"]: item["label"] for item in ITEMS}
    assert {labels[task_id] for task_id in RECALL} == {"computer-hostile"}


@pytest.mark.parametrize("domain", DOMAINS)
def test_ids_are_dense_and_in_order(domain: str) -> None:
    ids = [item["id"] for item in read_domain(domain)]
    assert ids == [f"mini-{domain}-{number:02d}" for number in range(1, 26)]
    assert all(item["domain"] == domain for item in read_domain(domain))


@pytest.mark.parametrize("domain", DOMAINS)
def test_labels_are_spread_as_said_so_that_no_gain_is_built_in(domain: str) -> None:
    items = of_domain(domain)
    assert Counter(item["label"] for item in items) == COUNTS
    first = Counter(item["label"] for item in items[:6])
    assert set(first.values()) == {2}, "a limited run must see every label"


@each_item
def test_every_field_is_there_and_of_its_type(item: Item) -> None:
    assert item.keys() - {"unit"} == FIELDS
    texts = {name: value for name, value in item.items() if name != "input_files"}
    assert all(isinstance(value, str) for value in texts.values())
    assert all(value.strip() == value for value in texts.values())
    assert all(value for name, value in texts.items() if name != "unit")
    assert ("unit" in item) == ("rounded to four" in item["problem_statement"])


@each_item
def test_the_statement_ends_with_the_answer_format_of_its_kind(item: Item) -> None:
    statement, _, line = item["problem_statement"].rpartition("\n\n")
    matches = [re.fullmatch(pattern, line) for pattern in LINES[item["qa_type"]]]
    match = next(match for match in matches if match)
    assert (match.groupdict().get("unit") or "") == item.get("unit", "")
    assert "Answer with" not in statement


@each_item
def test_input_files_are_text_and_the_statement_names_them(item: Item) -> None:
    for name, text in item["input_files"].items():
        assert name in item["problem_statement"]
        assert isinstance(text, str)
        assert text.endswith("\n")
        assert text.isprintable() or set(text) - {"\n"} <= set(map(chr, range(32, 127)))
    assert ("input file" in item["problem_statement"]) == bool(item["input_files"])


@each_item
def test_the_truth_does_not_stand_in_the_problem(item: Item) -> None:
    if item["qa_type"] == "open" and len(item["ground_truth"].split()[0]) > 2:
        number = re.escape(item["ground_truth"].split()[0])
        tempting = item["id"] == "mini-physics-12"  # nothing changes, and that is the point
        assert bool(re.search(rf"(?<![\d.]){number}(?![\d.])", everything(item))) == tempting


def everything(item: Item) -> str:
    return "\n".join([item["problem_statement"], *item["input_files"].values()])


def chosen(several: bool) -> list[dict[str, Any]]:
    kind = "multiple choice" if several else "single choice"
    return [item for item in of_domain("chem") if item["qa_type"] == kind]


def test_right_letters_are_spread_evenly() -> None:
    single = Counter(item["ground_truth"] for item in chosen(several=False))
    assert sorted(single) == ["A", "B", "C", "D"]
    assert max(single.values()) - min(single.values()) <= 1
    assert len(chosen(several=True)) == 3
    every = Counter(
        letter for item in chosen(several=True) for letter in item["ground_truth"].split(", ")
    )
    assert max(every.values()) <= 2


@pytest.mark.parametrize("item", [item for item in ITEMS if "choice" in item["qa_type"]])
def test_a_choice_has_four_different_options(item: Item) -> None:
    given = options(item)
    assert list(given) == ["A", "B", "C", "D"]
    assert len({text.casefold() for text in given.values()}) == 4


def words(item: Item) -> tuple[str, ...]:
    statement = item["problem_statement"].rpartition("\n\n")[0] or item["problem_statement"]
    return tuple(re.findall(r"\w+", statement.casefold()))


def grams(item: Item, size: int = 4) -> frozenset[tuple[str, ...]]:
    found = words(item)
    return frozenset(found[at : at + size] for at in range(len(found) - size + 1))


def overlap(one: frozenset[Any], other: frozenset[Any]) -> float:
    """The share of the shorter text's word sequences that the other holds too."""
    return len(one & other) / max(1, min(len(one), len(other)))


def test_no_two_problems_are_near_duplicates() -> None:
    read = {item["id"]: grams(item) for item in ITEMS}
    alike = {
        (one, other): overlap(read[one], read[other])
        for one, other in itertools.combinations(read, 2)
    }
    assert max(alike.values()) < 0.35, max(alike, key=lambda pair: alike[pair])


def sample_items() -> Iterator[dict[str, Any]]:
    repository = Path(__file__).resolve().parents[2]
    folder = Path(os.environ.get("SANDLOT_SHARED_DATA") or repository.parent / "shared" / "data")
    paths = [folder / f"{domain}.jsonl" for domain in DOMAINS]
    present = [path for path in paths if path.is_file()]
    if not present:
        pytest.skip(f"no sample data in {folder}; SANDLOT_SHARED_DATA names another folder")
    for path in present:
        yield from map(json.loads, path.read_text(encoding="utf-8").splitlines())


def test_no_problem_repeats_one_of_the_public_samples() -> None:
    ours = {item["id"]: grams(item) for item in ITEMS}
    for sample in sample_items():
        theirs = grams(sample)
        close = {task_id: overlap(one, theirs) for task_id, one in ours.items()}
        assert max(close.values()) < 0.35, (sample["id"], max(close, key=lambda one: close[one]))


@pytest.mark.parametrize("item", [item for item in ITEMS if item["domain"] == "physics"])
def test_a_physics_answer_is_read_with_or_without_its_unit(item: Item) -> None:
    truth = item["ground_truth"]
    assert compare_here(truth, truth)
    if "unit" in item:
        number, _, unit = truth.partition(" ")
        quantity = read_quantity(truth)
        assert quantity is not None
        assert bool(quantity.units) == bool(unit)
        assert compare_here(number, truth)
        assert compare_here(str(float(number) * (1 + CLOSE / 2)), truth, rel_tol=CLOSE)
        assert compare_here(str(float(number) * (1 + CLOSE * 2)), truth, rel_tol=CLOSE) is False


@pytest.mark.parametrize("item", of_domain("math"))
def test_a_math_answer_is_compared_exactly(item: Item) -> None:
    truth = item["ground_truth"]
    assert compare_here(truth, truth)
    assert compare_here(str(Fraction(truth) + 1), truth) is False
    assert str(Fraction(truth)) == truth


@pytest.mark.parametrize("item", of_domain("chem"))
async def test_a_choice_scores_for_the_right_letters_alone(item: Item) -> None:
    task = Task(id=item["id"], prompt=item["problem_statement"], target=item["ground_truth"])
    scorer = ChoiceScorer()
    values = {
        letters: (await scorer.score(Candidate(task=task, answer=letters))).value
        for letters in ("A", "B", "C", "D", item["ground_truth"])
    }
    assert values.pop(item["ground_truth"]) == 1.0
    assert set(values.values()) == {0.0}
