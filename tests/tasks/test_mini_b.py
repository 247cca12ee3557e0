"""The shipped set `mini` in biomed, long_context and instruct_follow: every truth found again."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from difflib import SequenceMatcher
from importlib.resources import files
from itertools import combinations
from typing import Any

import pytest

from sandlot.core.types import Task
from sandlot.scoring.choice import options_of
from sandlot.scoring.instructions import CHECKS, follows
from sandlot.tasks.base import LABELS

from .mini_texts_b import TEXTS
from .mini_truth_b import BIOMED, RECALL

FOLDER = files("sandlot.tasks") / "data" / "mini"
DOMAINS = ("biomed", "instruct_follow")
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
