"""Filing: the truth stands in one line of one file, and in nothing that a policy is told."""

from __future__ import annotations

import subprocess
import sys

import pytest

from sandlot.core.errors import ConfigError
from sandlot.core.types import Task
from sandlot.tasks.generators.filing import ENTRIES, KEYS, generate

TASKS = generate({"items": 300, "seed": 5})


def lines(task: Task) -> list[str]:
    return [line for data in task.input_files.values() for line in data.decode().splitlines()]


def test_each_task_asks_for_the_one_line_that_holds_the_word() -> None:
    for task in TASKS:
        word = task.prompt.removeprefix("Find the line about ").removesuffix(".")
        assert [line for line in lines(task) if word in line] == [task.target]
        assert str(task.target).split() == ["-", word, str(task.target).split()[-1]]
        entry = str(task.target).split()[-1]
        assert entry not in task.prompt
        assert task.target in task.input_files[task.metadata["holder"]].decode()


def test_files_and_lines_are_as_many_as_asked_and_no_word_comes_twice() -> None:
    for files, count in ((8, 2), (1, 1), (10, 6)):
        (task,) = generate({"items": 1, "files": files, "lines": count})
        assert sorted(task.input_files) == [f"d{index}.txt" for index in range(files)]
        words = [word for line in lines(task) for word in line.split()[1:]]
        assert len(words) == len({*words}) == 2 * files * count


def test_no_word_is_part_of_another_so_a_search_finds_one_line() -> None:
    words = [*KEYS, *ENTRIES]
    assert (len(KEYS), len(ENTRIES), len({*words})) == (64, 64, 128)
    assert not [(one, other) for one in words for other in words if one != other and one in other]


def test_every_place_holds_the_line_equally_often() -> None:
    counts = [sum(task.metadata["holder"] == f"d{n}.txt" for task in TASKS) for n in range(8)]
    assert sum(counts) == 300
    assert min(counts) > 18


def test_the_same_options_give_the_same_bytes_in_every_process() -> None:
    script = (
        "from sandlot.tasks.generators.filing import generate; from sandlot.tasks.loaders import "
        "file_digest; print([(t.id, t.prompt, t.target, file_digest(t.input_files)) for t in "
        "generate({'items': 20, 'seed': 9})])"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True,
            env={"PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(runs) == 1


def test_seeds_give_other_tasks() -> None:
    ids = [{task.id for task in generate({"items": 50, "seed": seed})} for seed in range(4)]
    assert len(set.union(*ids)) == 200
    bytes_of = {str(task.input_files) for seed in range(4) for task in generate({"seed": seed})}
    assert len(bytes_of) == 240


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"file": 3}, "'file' is not known.*Did you mean 'files'"),
        ({"files": 0}, "files must be a whole number from 1 to 10, found 0"),
        ({"lines": 2.0}, "lines must be a whole number"),
        ({"items": True}, "items must be a whole number"),
    ],
)
def test_options_that_cannot_be_meant_are_named(options: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        generate(options)
