"""Errands have the truth that their files give: read by a reader of its own, and by the command."""

from __future__ import annotations

import datetime
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from sandlot.core.errors import ConfigError
from sandlot.core.types import Task
from sandlot.scoring.extract import extract
from sandlot.scoring.text import same_text
from sandlot.tasks.generators.errands import (
    DRILLS,
    FURTHER,
    HELD_OUT,
    TRIAL,
    WORDINGS,
    generate,
    make_item,
)
from sandlot.tasks.generators.errands_wordings import MORE
from sandlot.tasks.generators.errands_words import TRAIN_WORDS, UNSEEN_WORDS, WORDS
from sandlot.tasks.loaders import digest_of
from sandlot.tasks.registry import load_row, load_set

FAMILIES = (*TRIAL, *FURTHER, *HELD_OUT, *DRILLS)
ALL_WORDS = {*TRAIN_WORDS, *UNSEEN_WORDS}
MADE_UP = re.compile(
    r"(?:[bdfgklmnprstvz]|br|st|tr)[aeiou][bdfgklmnprstvz][aeiou][lmnrstkx]"
).fullmatch
SETS = ("errands", "errands_further", "errands_held_out", "errands_rephrased")


# --- a reader that shares nothing with the generator ------------------------------------------


def files(task: Task) -> dict[str, list[str]]:
    return {name: data.decode().splitlines() for name, data in task.input_files.items()}


def only(task: Task) -> list[str]:
    """The lines of the one file, which the prompt names."""
    ((name, lines),) = files(task).items()
    assert f"input/{name}" in task.prompt
    return lines


def numbers_asked(task: Task) -> list[int]:
    return [int(found) for found in re.findall(r"\d+", task.prompt)]


def words_asked(task: Task) -> list[str]:
    """The words of the prompt that are of the vocabulary, or made up."""
    found = re.findall(r"[a-z]+\d?", task.prompt)
    return [word for word in found if word.rstrip("0123456789") in ALL_WORDS or MADE_UP(word)]


def pairs(task: Task) -> dict[str, str]:
    lines = [line for rows in files(task).values() for line in rows]
    found = dict(line.split(": ") for line in lines)
    assert len(found) == len(lines)
    return found


def named(task: Task, names: Mapping[str, str]) -> str:
    """The one key that the prompt names as a word of its own, and not as a file."""
    text = re.sub(r"input/\S+", "", task.prompt)
    (found,) = set(re.findall(r"\w+", text)) & set(names)
    return found


def read_mul(task: Task) -> str:
    one, other = numbers_asked(task)
    return str(one * other)


def read_lookup(task: Task) -> str:
    known = pairs(task)
    return known[named(task, known)]


def read_grepcount(task: Task) -> str:
    lines = only(task)
    seen = {word: "" for line in lines for word in re.findall(r"[A-Za-z]+", line)}
    asked = named(task, seen)
    return str(len([line for line in lines if asked in line.split()]))


def read_wordcount(task: Task) -> str:
    return str(len(re.findall(r"[a-z]+", "\n".join(only(task)))))


def read_sortwords(task: Task) -> str:
    left, found = words_asked(task), []
    while left:
        found.append(min(left))
        left.remove(found[-1])
    return "\n".join(found)


def read_sortnums(task: Task) -> str:
    left, found = [int(line) for line in only(task)], []
    while left:
        found.append(min(left))
        left.remove(found[-1])
    return "\n".join(f"{number}" for number in found)


def read_sum(task: Task) -> str:
    total = 0
    for line in only(task):
        total += int(line)
    return f"{total}"


def read_maximum(task: Task) -> str:
    lines = only(task)
    return next(one for one in lines if all(int(one) >= int(other) for other in lines))


def read_distinct(task: Task) -> str:
    lines = only(task)
    return str(len([line for at, line in enumerate(lines) if line not in lines[:at]]))


def read_nthline(task: Task) -> str:
    (at,) = numbers_asked(task)
    return only(task)[at - 1]


def read_days(task: Task) -> str:
    (start,) = re.findall(r"\d{4}-\d\d-\d\d", task.prompt)
    (count,) = re.findall(r"\d+", task.prompt.replace(start, ""))
    number = datetime.date.fromisoformat(start).toordinal() + int(count)
    return datetime.date.fromordinal(number).isoformat()


def read_column(task: Task) -> str:
    head, *rows = (line.split(",") for line in only(task))
    (at,) = numbers_asked(task)
    assert head[at - 1] in task.prompt
    return str(sum(int(row[at - 1]) for row in rows))


def read_filecount(task: Task) -> str:
    seen = {word: "" for lines in files(task).values() for word in lines}
    asked = named(task, seen)
    return str(sum(lines.count(asked) > 0 for lines in files(task).values()))


def read_commas(task: Task) -> str:
    return ",".join(only(task))


def read_reverse(task: Task) -> str:
    lines = only(task)
    return "\n".join(lines[-at] for at in range(1, len(lines) + 1))


def read_join(task: Task) -> str:
    known = pairs(task)
    first = {name: code for name, code in known.items() if code.startswith("K")}
    return known[first[named(task, first)]]


def read_longest(task: Task) -> str:
    lines = only(task)
    (found,) = (one for one in lines if all(len(one) > len(two) for two in lines if two != one))
    return found


def read_copy(task: Task) -> str:
    shape = task.prompt.split()[0]
    readers = {"Sort": read_sortwords, "Multiply": read_mul, "Line": read_nthline}
    return readers.get(shape, read_filecount if shape == "How" else read_lookup)(task)


READERS: Mapping[str, Callable[[Task], str]] = {
    "mul": read_mul,
    "lookup": read_lookup,
    "grepcount": read_grepcount,
    "wordcount": read_wordcount,
    "sortwords": read_sortwords,
    "sortnums": read_sortnums,
    "sum": read_sum,
    "maximum": read_maximum,
    "distinct": read_distinct,
    "nthline": read_nthline,
    "days": read_days,
    "column": read_column,
    "filecount": read_filecount,
    "commas": read_commas,
    "reverse": read_reverse,
    "join": read_join,
    "longest": read_longest,
    "copy": read_copy,
}


def made(family: str, count: int = 20) -> list[Task]:
    return [
        make_item(family, 3, number, wording=wording, grade=grade)
        for wording in WORDINGS
        for grade in (1, 2, 3)
        for number in range(count)
    ]


def run(command: str, task: Task, folder: Path) -> str:
    """What a command leaves as the answer, in a shell of the machine itself."""
    (folder / "output").mkdir(parents=True)
    (folder / "input").mkdir()
    for name, data in task.input_files.items():
        (folder / "input" / name).write_bytes(data)
    subprocess.run(["bash", "-c", command], cwd=folder, check=True, timeout=20)
    return (folder / "output" / "answer.txt").read_text()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_truth_is_what_another_reader_finds(family: str) -> None:
    for task in made(family):
        assert READERS[family](task) == task.target, task.id


@pytest.mark.parametrize("family", FAMILIES)
def test_the_efficient_command_leaves_the_truth_as_its_scorer_reads_it(
    family: str, tmp_path: Path
) -> None:
    for task in made(family, 2):
        found = run(task.metadata["efficient"], task, tmp_path / task.id)
        assert found == f"{task.target}\n", task.id
        assert same_text(extract(found) or "", task.target), task.id


def test_an_answer_in_another_order_or_form_is_wrong() -> None:
    for family in ("sortwords", "sortnums", "reverse"):
        for task in made(family, 5):
            lines = task.target.split("\n")
            assert same_text(" ".join(lines), task.target)
            assert not same_text("\n".join(lines[::-1]), task.target)
            assert not same_text("\n".join(lines[:-1]), task.target)
            assert not same_text(",".join(lines), task.target)
    for task in made("commas", 5):
        assert not same_text(task.target.replace(",", "\n"), task.target)
        assert not same_text(task.target.replace(",", ", "), task.target)


@pytest.mark.parametrize("family", ["sortnums", "maximum"])
def test_numbers_in_the_order_of_texts_are_wrong(family: str, tmp_path: Path) -> None:
    for task in made(family, 3):
        command = task.metadata["efficient"].replace("sort -n", "LC_ALL=C sort")
        assert run(command, task, tmp_path / task.id).strip() != task.target


# --- sizes, names, ids ------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_errands_of_grade_1_are_small(family: str) -> None:
    for task in (make_item(family, 5, number) for number in range(60)):
        assert len(task.prompt.split()) <= 25
        assert len(task.metadata["efficient"]) <= 110
        for data in task.input_files.values():
            assert data.count(b"\n") <= 12
            assert len(data) <= 420
        assert "input/" in task.prompt or not task.input_files


@pytest.mark.parametrize("family", [f for f in (*TRIAL, *FURTHER, *HELD_OUT) if f not in ("days",)])
def test_a_higher_grade_is_larger(family: str) -> None:
    sizes = []
    for grade in (1, 2, 3):
        tasks = [make_item(family, 5, number, grade=grade) for number in range(10)]
        size = [
            sum(map(len, t.input_files.values())) + len(t.prompt) + len(t.target) for t in tasks
        ]
        sizes.append(sum(size))
    assert sizes == sorted(sizes)
    assert len(set(sizes)) == 3


def test_no_word_is_part_of_another_and_the_two_parts_share_none() -> None:
    words = [*TRAIN_WORDS, *UNSEEN_WORDS]
    assert len(words) == len(set(words)) > 350
    joined = " ".join(words)
    assert [word for word in words if joined.count(word) > 1] == []
    assert {"train": TRAIN_WORDS, "unseen": UNSEEN_WORDS} == WORDS


def test_unseen_names_never_occur_in_training() -> None:
    seen: dict[str, set[str]] = {}
    for part in ("train", "unseen"):
        options = {"families": FAMILIES[:-1], "items": 170, "seed": 11, "names": part}
        text = "\n".join(
            task.prompt + "\n" + "\n".join(data.decode() for data in task.input_files.values())
            for task in generate(options)
        )
        seen[part] = set(re.findall(r"[a-z]+", text))
    assert seen["train"] & set(UNSEEN_WORDS) == set()
    assert seen["unseen"] & set(TRAIN_WORDS) == set()
    assert len(seen["unseen"] & set(UNSEEN_WORDS)) > 100


def test_other_wording_shares_no_prompt_and_no_file_with_the_plain_one() -> None:
    for family in FAMILIES[:-1]:
        plain = [make_item(family, 5, number) for number in range(40)]
        other = [make_item(family, 5, number, wording="rephrased") for number in range(40)]
        shapes = [{re.sub(r"\d+", "N", t.prompt)[:14] for t in tasks} for tasks in (plain, other)]
        assert not shapes[0] & shapes[1], family
        names = [{name for t in tasks for name in t.input_files} for tasks in (plain, other)]
        assert not names[0] & names[1], family


def test_training_sees_no_sentence_and_no_file_of_the_rephrased_errands() -> None:
    for family in (*TRIAL, *FURTHER):
        trained = [make_item(family, 5, number, wording="varied") for number in range(80)]
        tested = [make_item(family, 5, number, wording="rephrased") for number in range(80)]
        shapes = [{shape(task) for task in tasks} for tasks in (trained, tested)]
        assert not shapes[0] & shapes[1], family
        names = [{name for t in tasks for name in t.input_files} for tasks in (trained, tested)]
        assert not names[0] & names[1], family


def shape(task: Task) -> str:
    """A prompt without what was filled in."""
    text = re.sub(r"input/\S+|\d+", "_", task.prompt)
    levels = {"ERROR", "WARN", "INFO", "DEBUG", "FATAL", "ALERT", "NOTE", "TRACE"}
    filled = {*ALL_WORDS, *levels}
    return " ".join("_" if word.strip(".,?:") in filled else word for word in text.split())


@pytest.mark.parametrize("family", [*TRIAL, *FURTHER])
def test_varied_errands_ask_in_many_sentences_the_plain_ones_among_them(family: str) -> None:
    varied = {shape(make_item(family, 5, number, wording="varied")) for number in range(200)}
    plain = {shape(make_item(family, 5, number)) for number in range(60)}
    assert plain < varied
    assert len(varied) >= 8


def test_sentences_for_training_know_no_word_that_marks_the_rephrased_errands() -> None:
    text = " ".join(sentence for sentences in MORE.values() for sentence in sentences).lower()
    marks = {"row", "rows", "sheet", "sheets", "figure", "figures", "product", "dictionary"}
    assert not marks & set(re.findall("[a-z]+", text))


def test_ids_are_unique_over_seeds_wordings_names_and_grades() -> None:
    ids = [
        task.id
        for seed in (1, 2)
        for wording in WORDINGS
        for names in ("train", "unseen")
        for grade in (1, 2)
        for task in generate(
            {"families": FAMILIES, "items": 36, "seed": seed, "wording": wording, "names": names,
             "grade": grade}
        )
    ]  # fmt: skip
    assert len(ids) == len(set(ids)) == 24 * 36


def test_errands_over_the_prompt_alone_come_without_files() -> None:
    for family in ("mul", "days", "sortwords"):
        assert all(not task.input_files for task in made(family, 5))


# --- the same everywhere ----------------------------------------------------------------------

_PRINT = """
from sandlot.tasks.generators.errands import generate, FURTHER, HELD_OUT, TRIAL
from sandlot.tasks.loaders import digest_of
from sandlot.tasks.registry import load_row
families = (*TRIAL, *FURTHER, *HELD_OUT, "copy")
print(digest_of(load_row("errands"), generate({"families": families, "items": 90, "seed": 4})))
"""


def test_the_same_options_give_the_same_bytes_in_another_process() -> None:
    tasks = generate({"families": FAMILIES, "items": 90, "seed": 4})
    here = digest_of(load_row("errands"), tasks)
    for hash_seed in ("1", "2"):
        there = subprocess.run(
            [sys.executable, "-c", _PRINT],
            env={"PYTHONHASHSEED": hash_seed, "PATH": ""},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        assert there.stdout.strip() == here


def test_another_seed_gives_other_tasks() -> None:
    one, two = (generate({"items": 60, "seed": seed}) for seed in (1, 2))
    content = [{(t.prompt, str(t.input_files)) for t in tasks} for tasks in (one, two)]
    assert not content[0] & content[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"famlies": ["mul"]}, r"option .*'famlies' is not known .*mean 'families'"),
        ({"families": ["mull"]}, r"family of errands 'mull' is not known .*mean 'mul'"),
        ({"families": []}, "families must be a list"),
        ({"grade": 4}, "grade must be a whole number from 1 to 3, found 4"),
        ({"items": True}, "items must be a whole number"),
        ({"wording": "plane"}, r"wording of errands 'plane' .*mean 'plain'"),
        ({"names": "seen"}, r"names of errands 'seen' .*mean 'unseen'"),
    ],
)
def test_an_option_that_cannot_be_used_is_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        generate(options)


# --- the shipped sets -------------------------------------------------------------------------


def shipped(name: str) -> tuple[Task, ...]:
    said: list[str] = []
    tasks = load_set(name, cache=Path("/nowhere"), environ={}, progress=said.append).tasks
    assert said == []
    return tasks


@pytest.mark.parametrize("name", SETS)
def test_a_shipped_set_holds_unseen_names_and_is_asked_as_models_are_taught(name: str) -> None:
    row = load_row(name)
    assert (row.profile, row.llm_profile, row.network) == ("taught", "taught-llm", "none")
    assert row.scorer_options == {"exact": True}
    assert row.source.options["seed"] > 900_000
    assert {task.metadata["names"] for task in shipped(name)} == {"unseen"}


def test_the_shipped_sets_cover_every_family_once_and_share_no_id() -> None:
    families = {name: {t.metadata["family"] for t in shipped(name)} for name in SETS}
    assert families == {
        "errands": set(TRIAL),
        "errands_rephrased": set(TRIAL),
        "errands_further": set(FURTHER),
        "errands_held_out": set(HELD_OUT),
    }
    ids = [task.id for name in SETS for task in shipped(name)]
    assert len(ids) == len(set(ids)) == 780
