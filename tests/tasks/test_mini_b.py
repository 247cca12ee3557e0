"""The shipped set `mini` in biomed, long_context and instruct_follow: every truth found again."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from difflib import SequenceMatcher
from importlib.resources import files
from itertools import combinations
from pathlib import Path
from runpy import run_path
from typing import Any

import pytest

from sandlot.core.types import Task
from sandlot.scoring.base import Candidate
from sandlot.scoring.choice import ChoiceScorer, options_of
from sandlot.scoring.instructions import CHECKS, follows
from sandlot.scoring.text import TextScorer
from sandlot.tasks.base import LABELS

from .mini_texts_b import TEXTS
from .mini_truth_b import BIOMED, LONG_CONTEXT, RECALL

FOLDER = files("sandlot.tasks") / "data" / "mini"
DOMAINS = ("biomed", "long_context", "instruct_follow")
GENERATOR = Path(__file__).parents[2] / "scripts" / "make_mini_long_context.py"
Item = dict[str, Any]


def _items(domain: str) -> list[Item]:
    text = (FOLDER / f"{domain}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


ITEMS = {domain: _items(domain) for domain in DOMAINS}


def _by_id(domain: str) -> dict[str, Item]:
    return {item["id"]: item for item in ITEMS[domain]}


def _options(item: Item) -> dict[str, str]:
    return options_of(Task(id=item["id"], prompt=item["problem_statement"]))


@pytest.mark.parametrize("domain", DOMAINS)
def test_ids_are_dense_and_fields_are_those_of_the_schema(domain: str) -> None:
    assert [item["id"] for item in ITEMS[domain]] == [
        f"mini-{domain}-{n:02d}" for n in range(1, 26)
    ]
    for item in ITEMS[domain]:
        assert item["domain"] == domain
        assert item["qa_type"]
        assert item["ground_truth"]
        assert item["label_reason"]
        assert item["problem_statement"] == item["problem_statement"].strip()


@pytest.mark.parametrize("domain", DOMAINS)
def test_labels_are_given_in_the_shares_that_were_planned(domain: str) -> None:
    found = Counter(item["label"] for item in ITEMS[domain])
    assert found == dict(zip(LABELS, (10, 8, 7), strict=True))


@pytest.mark.parametrize("domain", DOMAINS)
def test_every_statement_of_a_domain_ends_with_the_same_line(domain: str) -> None:
    assert len({item["problem_statement"].splitlines()[-1] for item in ITEMS[domain]}) == 1


def _body(item: Item) -> str:
    statement: str = item["problem_statement"]
    return statement.rsplit("\n", 1)[0].strip()


@pytest.mark.parametrize("domain", DOMAINS)
def test_no_two_statements_of_a_domain_are_nearly_the_same(domain: str) -> None:
    for one, other in combinations(ITEMS[domain], 2):
        alike = SequenceMatcher(None, _body(one), _body(other), autojunk=False)
        assert alike.quick_ratio() < 0.9 or alike.ratio() < 0.8, (one["id"], other["id"])


def _given_files() -> Iterator[tuple[str, str]]:
    for items in ITEMS.values():
        for item in items:
            yield from item["input_files"].items()


def test_files_are_plain_text_with_plain_names() -> None:
    for name, text in _given_files():
        assert re.fullmatch(r"[a-z0-9_]+\.(?:txt|csv|fasta)", name), name
        assert text.endswith("\n")
        assert all(character == "\n" or character.isprintable() for character in text), name


def test_the_three_domains_stay_under_one_and_a_half_megabytes() -> None:
    sizes = [len((FOLDER / f"{domain}.jsonl").read_bytes()) for domain in DOMAINS]
    assert sum(sizes) < 1_500_000


@pytest.mark.parametrize("name", BIOMED)
def test_a_computed_biomed_truth_is_found_again(name: str) -> None:
    item = _by_id("biomed")[name]
    assert _options(item)[item["ground_truth"]] == BIOMED[name](item["input_files"])


@pytest.mark.parametrize("name", RECALL)
def test_a_biomed_truth_that_is_only_known_is_the_one_its_source_gives(name: str) -> None:
    item = _by_id("biomed")[name]
    right, source = RECALL[name]
    assert _options(item)[item["ground_truth"]] == right
    assert source


def test_biomed_has_ten_different_options_each_and_letters_in_balance() -> None:
    assert {*BIOMED, *RECALL} == _by_id("biomed").keys()
    for item in ITEMS["biomed"]:
        assert len(set(_options(item).values())) == 10, item["id"]
    letters = Counter(item["ground_truth"] for item in ITEMS["biomed"])
    assert set(letters) == set("ABCDEFGHIJ")
    assert set(letters.values()) <= {2, 3}


@pytest.mark.parametrize("name", TEXTS)
def test_a_good_text_keeps_every_check_and_a_near_miss_breaks_just_one(name: str) -> None:
    checks = _by_id("instruct_follow")[name]["ground_truth"]
    good, near = (
        [follows(text, check["id"], check["kwargs"]) for check in checks] for text in TEXTS[name]
    )
    assert all(good)
    assert near.count(False) == 1


def test_instructions_have_one_to_three_checks_of_the_core() -> None:
    items = _by_id("instruct_follow")
    assert TEXTS.keys() == items.keys()
    for item in items.values():
        assert 1 <= len(item["ground_truth"]) <= 3
        assert {check["id"] for check in item["ground_truth"]} <= CHECKS.keys()


@pytest.mark.parametrize("name", LONG_CONTEXT)
def test_a_long_context_truth_is_found_in_the_documents_alone(name: str) -> None:
    item = _by_id("long_context")[name]
    assert LONG_CONTEXT[name](item["input_files"]) == item["ground_truth"]


async def test_answers_in_the_asked_form_score_one_where_right_and_nothing_where_wrong() -> None:
    """Every other right answer of a domain stands in as a wrong one."""
    for domain, scorer in (("biomed", ChoiceScorer()), ("long_context", TextScorer())):
        truths = {item["ground_truth"] for item in ITEMS[domain]}
        for item in ITEMS[domain]:
            task = Task(item["id"], item["problem_statement"], target=item["ground_truth"])
            for given in truths:
                candidate = Candidate(task, f"It follows from the above.\n\nAnswer: {given}\n")
                right = float(given == item["ground_truth"])
                assert (await scorer.score(candidate)).value == right, (item["id"], given)


def test_five_questions_share_each_set_of_two_to_eight_documents() -> None:
    assert LONG_CONTEXT.keys() == _by_id("long_context").keys()
    sets = Counter(item["document_set"] for item in ITEMS["long_context"])
    assert list(sets.values()) == [5] * 5
    for name in sets:
        given = [i["input_files"] for i in ITEMS["long_context"] if i["document_set"] == name]
        assert all(documents == given[0] for documents in given)
        assert 2 <= len(given[0]) <= 8
        assert 5_000 <= sum(map(len, given[0].values())) <= 60_000


def test_the_generator_writes_the_shipped_long_context_file_again(tmp_path: Path) -> None:
    run_path(str(GENERATOR))["main"](tmp_path / "again.jsonl")
    shipped = (FOLDER / "long_context.jsonl").read_text(encoding="utf-8")
    assert (tmp_path / "again.jsonl").read_text(encoding="utf-8") == shipped
