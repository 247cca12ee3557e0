"""The made questions have the answers that their documents give, read by a reader of its own."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Mapping

import pytest

from sandlot.core.errors import ConfigError
from sandlot.core.types import Task
from sandlot.tasks.generators.long_context import generate, make_item
from sandlot.tasks.loaders import digest_of
from sandlot.tasks.registry import load_row

KINDS = ("needle", "count", "join", "contradiction")
NAME = r"([A-Z][a-z]+)"
PERSON = r"([A-Z][a-z]+ [A-Z][a-z]+)"


# --- a reader that shares nothing with the generator ------------------------------------------


def sentences(task: Task) -> list[str]:
    text = "\n\n".join(data.decode("utf-8") for data in task.input_files.values())
    return re.split(r"(?<=\.)\s+|\n\n", text)


def matches(task: Task, *patterns: str) -> list[tuple[str, ...]]:
    return [
        found.groups()
        for sentence in sentences(task)
        for pattern in patterns
        if (found := re.fullmatch(pattern, sentence))
    ]


def read_needle(task: Task) -> str:
    (ship,) = re.findall(rf"seal of the {NAME} bear", task.prompt)
    found = matches(
        task,
        rf"The seal of the {ship} bears the number (\d+)\.",
        rf"Number (\d+) is cut into the seal of the {ship}\.",
        rf"On the seal of the {ship} one reads the number (\d+)\.",
    )
    ((figure,),) = found
    return figure


def read_count(task: Task) -> str:
    (person,) = re.findall(rf"times did {PERSON} hold", task.prompt)
    text = [one for one in sentences(task) if person in one and "held" in one]
    return str(len(text))


def read_join(task: Task) -> str:
    (cargo,) = re.findall(r"that landed (\d+ \w+ of [a-z ]+)\?", task.prompt)
    ((ship,),) = matches(task, rf"The {NAME} landed {cargo}\.", rf"From the {NAME} came {cargo}\.")
    ((person,),) = matches(
        task, rf"{PERSON} commands the {ship}\.", rf"The {ship} sails under {PERSON}\."
    )
    ((town,),) = matches(
        task, rf"{person} was born in {NAME}\.", rf"The birthplace of {person} is {NAME}\."
    )
    return town


def read_contradiction(task: Task) -> str:
    sizes: dict[str, list[str]] = defaultdict(list)
    for ship, loads in matches(
        task,
        rf"The {NAME} measures (\d+) loads\.",
        rf"The {NAME} is entered at (\d+) loads\.",
        rf"At the scales the {NAME} was put down at (\d+) loads\.",
    ):
        sizes[ship].append(loads)
    assert {len(found) for found in sizes.values()} == {2}
    (odd,) = [ship for ship, found in sizes.items() if found[0] != found[1]]
    return odd


READERS = {
    "needle": read_needle,
    "count": read_count,
    "join": read_join,
    "contradiction": read_contradiction,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", [1000, 20_000])
def test_the_truth_is_what_the_documents_say(kind: str, tokens: int) -> None:
    options = {"tokens": tokens, "items": 8, "seed": 5, "kinds": [kind]}
    for task in generate(options):
        assert READERS[kind](task) == task.target, task.id


@pytest.mark.parametrize("kind", KINDS)
def test_a_million_tokens_are_made_in_seconds_and_hold_the_truth(kind: str) -> None:
    start = time.process_time()
    task = make_item(1_000_000, kind, 1, 0, "long_context")
    assert time.process_time() - start < 10
    assert READERS[kind](task) == task.target


@pytest.mark.parametrize("tokens", [1000, 5000, 100_000])
def test_the_size_is_what_was_asked_for_at_four_characters_a_token(tokens: int) -> None:
    for task in generate({"tokens": tokens, "items": 4}):
        size = sum(len(data) for data in task.input_files.values())
        assert 0.98 * 4 * tokens <= size <= 1.25 * 4 * tokens


def test_decoys_stand_beside_the_answer() -> None:
    """A search for half of what is asked must not be enough."""
    needle, count, join, _ = generate({"tokens": 4000, "items": 4})
    (ship,) = re.findall(rf"seal of the {NAME} bear", needle.prompt)
    text = " ".join(sentences(needle))
    near = set(re.findall(rf"{ship[:-1]}[a-z]\b", text)) - {ship}
    assert near
    assert f"sail of the {ship}" in text
    (person,) = re.findall(rf"times did {PERSON} hold", count.prompt)
    surname = person.split()[1]
    others = {
        one for one in re.findall(PERSON, " ".join(sentences(count))) if one.endswith(surname)
    }
    assert others > {person}
    (goods,) = re.findall(r"landed \d+ \w+ of ([a-z ]+)\?", join.prompt)
    assert len(matches(join, rf".* \d+ \w+ of {goods}\.")) > 1


def test_a_join_needs_three_documents_and_a_contradiction_two() -> None:
    join, contradiction = generate({"tokens": 2000, "items": 2, "kinds": ["join", "contradiction"]})
    (cargo,) = re.findall(r"that landed (.+)\?", join.prompt)
    assert len(holding(join.input_files, cargo)) == 1
    ship = str(contradiction.target)
    assert len(holding(contradiction.input_files, ship)) == 2
    assert join.metadata["documents_needed"] == 3


def holding(files: Mapping[str, bytes], text: str) -> list[str]:
    return [name for name, data in files.items() if text in data.decode()]


def test_the_same_options_give_the_same_bytes_in_another_process() -> None:
    """With another hash seed, so that no set or dict order can have been used."""
    options = {"tokens": 3000, "items": 4, "seed": 9}
    here = digest_of(load_row("long_context_1k"), generate(options))
    code = (
        "from sandlot.tasks.generators.long_context import generate\n"
        "from sandlot.tasks.loaders import digest_of\n"
        "from sandlot.tasks.registry import load_row\n"
        f"print(digest_of(load_row('long_context_1k'), generate({options!r})))"
    )
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == here


def test_what_was_once_made_stays_as_it_was() -> None:
    """A change of the generator must raise its version, or old results are compared with new."""
    (task,) = generate({"tokens": 1000, "items": 1, "seed": 1, "kinds": ["join"]})
    assert (task.id, task.metadata["documents_digest"]) == ("long_context-1k-1-000", GOLDEN)


GOLDEN = "c936071c59c40358"


def test_seeds_and_items_differ_and_kinds_take_turns() -> None:
    tasks = generate({"tokens": 1000, "items": 8, "seed": 1})
    assert [task.metadata["kind"] for task in tasks] == list(KINDS) * 2
    assert len({task.id for task in tasks}) == 8
    assert len({task.metadata["documents_digest"] for task in tasks}) == 8
    (other,) = generate({"tokens": 1000, "items": 1, "seed": 2})
    assert other.input_files != tasks[0].input_files


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"token": 1000}, "Did you mean 'tokens'"),
        ({"tokens": 10}, "tokens must be a whole number from 1,000"),
        ({"tokens": "100k"}, "found '100k'"),
        ({"items": 0}, "items must be"),
        ({"seed": True}, "seed must be"),
        ({"kinds": []}, "kinds must be a list"),
        ({"kinds": ["neddle"]}, "Did you mean 'needle'"),
    ],
)
def test_an_option_that_cannot_be_used_is_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        generate(options)
