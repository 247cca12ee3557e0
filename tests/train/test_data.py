"""Question sets of every usual shape become training tasks; what is left out is told with why."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import os
import subprocess
import sys
import tracemalloc
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sandlot.bench.contamination import check_sandbox_view
from sandlot.core.errors import ConfigError, InputError
from sandlot.core.types import Task
from sandlot.scoring.base import Candidate, ScoringTools
from sandlot.scoring.registry import load_scorer
from sandlot.tasks.base import LoadedSet, Source, TaskSet
from sandlot.tasks.readers import Row
from sandlot.tasks.registry import load_set
from sandlot.train.config import TaskSource
from sandlot.train.data import BuildOptions, Built, build, source_files
from sandlot.train.data_files import Bounds, Document, Piece, named, pieces_of
from sandlot.train.data_overlap import load_compared
from sandlot.train.data_rows import Bad, Context, Question, read_contexts
from sandlot.train.data_tasks import gives_away, prompt_of
from sandlot.train.sources import open_tasks

REPOSITORY = Path(__file__).resolve().parents[2]
PORTS = ("Ulm", "Orra", "Tamm", "Wiek", "Sande", "Lohme", "Prora", "Zicker")
GOODS = ("tar", "rope", "salt", "oak", "wool", "herring", "amber", "lime")


def told(number: int) -> str:
    """An invented context: a page of a harbour book, unlike that of any other number."""
    port, good = PORTS[number % 8], GOODS[number // 8 % 8]
    return (
        f"The harbour of {port} number {number} opened in {1700 + number}. "
        f"Its keeper, Ann Morr of house {number}, paid {number + 3} coins for {good}. "
        f"In the winter the {good} lay in shed {number * 7} behind the mill.\n"
    )


def seed_row(number: int, pairs: int = 4, **more: Any) -> dict[str, Any]:
    """A row in the schema of the seed of Instruction Pre-Training."""
    questions = (
        (f"When did harbour number {number} open?", str(1700 + number)),
        (f"In which house of harbour {number} did its keeper live?", f"house {number}"),
        (f"How many coins were paid at harbour number {number}?", str(number + 3)),
        (f"In which shed of harbour {number} did the goods lie in winter?", f"shed {number * 7}"),
    )
    listed = [{"Q": asked, "A": answer} for asked, answer in questions[:pairs]]
    row = {"context": told(number), "QA_list": listed, "QA_type": "free-form", "rc_name": "ports"}
    return row | more


def jsonl(folder: Path, *rows: Any, name: str = "rows.jsonl") -> Path:
    path = folder / name
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_bytes(("\n".join(lines) + "\n").encode("utf-8", "surrogatepass"))
    return path


def made(
    source: Path, *, compared: Sequence[LoadedSet] = (), name: str = "out.jsonl", **options: Any
) -> tuple[Built, list[dict[str, Any]]]:
    built = build([source], source.parent / name, BuildOptions(**options), compared=compared)
    return built, [json.loads(line) for line in built.path.read_text("utf-8").splitlines()]


def only(*rows: Any, **options: Any) -> Context:
    """The one context of rows."""
    found = list(
        read_contexts((Row(f"r:{n}", row) for n, row in enumerate(rows, 1)), "set", **options)
    )
    assert len(found) == 1, found
    assert isinstance(found[0], Context), found
    return found[0]


def said(*rows: Any, **options: Any) -> str:
    """What is told of a row that cannot be used."""
    found = list(
        read_contexts((Row(f"r:{n}", row) for n, row in enumerate(rows, 1)), "set", **options)
    )
    return "\n".join(one.problem for one in found if isinstance(one, Bad))


def loaded(name: str, *tasks: Task) -> LoadedSet:
    """A task set to compare with."""
    return LoadedSet(TaskSet(name, "general", Source("file"), "text"), tasks, f"digest of {name}")


# --- the shapes that are read ----------------------------------------------------------------


def test_the_seeds_rows_become_a_task_with_earlier_pairs_as_examples(tmp_path: Path) -> None:
    built, rows = made(jsonl(tmp_path, seed_row(1)), distractors=0)
    (row,) = rows
    assert row["ground_truth"] == "shed 7"
    assert row["qa_type"] == "free-form"
    assert row["domain"] == "instruct_pretrain"
    assert row["pool"] == "ports"
    assert row["input_files"] == {"document_1.txt": told(1)}
    assert row["problem_statement"] == (
        "Earlier questions about the same documents, with their answers:\n\n"
        "Question: When did harbour number 1 open?\nAnswer: 1701\n\n"
        "Question: In which house of harbour 1 did its keeper live?\nAnswer: house 1\n\n"
        "Question: How many coins were paid at harbour number 1?\nAnswer: 4\n\n"
        "The question to answer now:\n\n"
        "In which shed of harbour 1 did the goods lie in winter?"
    )
    assert built.manifest["counts"]["tasks"] == 1


def test_options_in_the_question_get_letters_and_the_answer_its_letter() -> None:
    asked = "What was stored?\nOptions:\n- tar\n- rope\n- salt"
    row = seed_row(1) | {"QA_list": [{"Q": asked, "A": "rope"}], "QA_type": "multiple choice"}
    (question,) = only(row).questions
    assert (question.text, question.options) == ("What was stored?", ("tar", "rope", "salt"))
    assert (question.choice, question.loose, question.truth) == (True, True, "B")
    assert prompt_of(question) == (
        "What was stored?\nA. tar\nB. rope\nC. salt\n\nAnswer with the letter of the right option."
    )


def test_several_right_options_are_several_letters() -> None:
    asked = "What was stored?\nOptions:\n- tar\n- rope\n- salt"
    for answer in ("tar, salt", ["salt", "tar"], "salt; tar", "A, C", "A and C"):
        row = seed_row(1) | {"QA_list": [{"Q": asked, "A": answer}], "QA_type": "multiple choice"}
        (question,) = only(row).questions
        assert (question.truth, question.several) == ("A, C", True), answer
    assert "letters of all right options, separated by commas" in prompt_of(question)


def test_a_chain_of_thought_is_left_off() -> None:
    pair = {
        "Q": "How many coins are 2 and 3?\nLet's think step by step.",
        "A": "Two and three make five.\nTherefore, the answer is 5.",
    }
    (question,) = only(seed_row(1) | {"QA_list": [pair]}).questions
    assert (question.text, question.truth) == ("How many coins are 2 and 3?", "5")


@pytest.mark.parametrize(
    ("fields", "truth", "options"),
    [
        ({"question": "Q?", "answer": "x"}, "x", ()),
        ({"prompt": "Q?", "target": ["x", "y"]}, ["x", "y"], ()),
        ({"problem": "Q?", "ground_truth": 4}, "4", ()),
        ({"question": "Q?", "answers": {"text": ["x", "y", "x"], "answer_start": [0, 3, 0]}},
         ["x", "y"], ()),
        ({"question": "Q?", "answers": ["x"]}, "x", ()),
        ({"question": "Q?", "answer": "blue", "choices": ["red", "blue"]}, "B", ("red", "blue")),
        ({"question": "Q?", "answer": "B", "choices": ["red", "blue"]}, "B", ("red", "blue")),
        ({"question": "Q?", "answer": "b", "choices": ["red", "blue"]}, "B", ("red", "blue")),
        ({"question": "Q?", "answer": "(B) blue", "options": {"A": "red", "B": "blue"}}, "B",
         ("red", "blue")),
        ({"question": "Q?\nA) red\nB) blue", "answer": "A", "type": "multiple choice"}, "A",
         ("red", "blue")),
        ({"question": "Q?\nA) red\nB) blue", "answer": "A"}, "A", ("red", "blue")),
        ({"question": "Q?\nA) red\nB) blue", "answer": "A", "type": "free-form"}, "A", ()),
        ({"question": "Which letter?", "answer": "A", "type": "mcq"}, "A", ()),
    ],
)  # fmt: skip
def test_rows_with_one_question_are_read_by_the_usual_names(
    fields: dict[str, Any], truth: Any, options: tuple[str, ...]
) -> None:
    (question,) = only({"context": "Some text."} | fields).questions
    assert (question.truth, question.options) == (truth, options)


@pytest.mark.parametrize(
    ("fields", "documents"),
    [
        ({"context": "one"}, [("one", None, None)]),
        ({"passage": "one"}, [("one", None, None)]),
        ({"documents": ["one", "two"]}, [("one", None, None), ("two", None, None)]),
        ({"input_files": {"a.txt": "one"}}, [("one", "a.txt", None)]),
        ({"files": json.dumps({"a.txt": "one"})}, [("one", "a.txt", None)]),
        ({"documents": [{"title": "Orra", "text": "one"}, "two"]},
         [("one", None, "Orra"), ("two", None, None)]),
        ({"contexts": ["one", "  "]}, [("one", None, None)]),
        ({"context": "one", "title": "Orra"}, [("one", None, "Orra")]),
    ],
)  # fmt: skip
def test_documents_are_read_by_the_usual_names(
    fields: dict[str, Any], documents: list[tuple[str, str | None, str | None]]
) -> None:
    context = only({"question": "Q?", "answer": "x"} | fields)
    assert [(d.text, d.name, d.title) for d in context.documents] == documents


def test_the_same_rows_give_the_same_tasks_from_every_kind_of_file(tmp_path: Path) -> None:
    rows = [
        {"context": told(n), "question": f"When did harbour {n} open?", "answer": str(1700 + n)}
        for n in range(5)
    ]
    kinds = {}
    for kind in ("jsonl", "json", "csv", "parquet"):
        (tmp_path / kind).mkdir()
        path = tmp_path / kind / f"rows.{kind}"
        if kind == "jsonl":
            jsonl(path.parent, *rows)
        elif kind == "json":
            path.write_text(json.dumps({"data": rows}))
        elif kind == "csv":
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, rows[0])
                writer.writeheader()
                writer.writerows(rows)
        else:
            arrow = pytest.importorskip("pyarrow", reason="the extra `parquet` is not installed")
            parquet = pytest.importorskip("pyarrow.parquet")
            parquet.write_table(arrow.Table.from_pylist(rows), path)
        kinds[kind] = made(path)[0].path.read_bytes()
    assert len(set(kinds.values())) == 1


def test_a_list_of_pairs_is_read_from_parquet_and_from_json_text(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow", reason="the extra `parquet` is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [seed_row(n) for n in range(4)]
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    texts = [row | {"QA_list": json.dumps(row["QA_list"])} for row in rows]
    _, from_parquet = made(tmp_path / "rows.parquet", name="a.jsonl")
    _, from_text = made(jsonl(tmp_path, *texts), name="b.jsonl")
    assert from_parquet == from_text


def test_rows_in_a_row_about_the_same_documents_are_one_context(tmp_path: Path) -> None:
    rows = [
        {"context": told(1), "question": pair["Q"], "answer": pair["A"], "id": f"q{number}"}
        for number, pair in enumerate(seed_row(1)["QA_list"])
    ]
    _, (row,) = made(jsonl(tmp_path, *rows), distractors=0)
    assert row["id"] == "q3"
    assert row["examples"] == 3
    _, all_of_them = made(jsonl(tmp_path, *rows), distractors=0, ask=0, force=True)
    assert [one["id"] for one in all_of_them] == ["q0", "q1", "q2", "q3"]
    assert all(one["examples"] == 0 for one in all_of_them)


def test_folders_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    shards = tmp_path / "squad" / "shard"
    shards.mkdir(parents=True)
    (tmp_path / "squad" / "notes.md").write_text("no rows")
    for number in (1, 0):
        jsonl(shards, seed_row(number), name=f"0000{number}.jsonl")
    found = source_files([tmp_path / "squad"])
    assert [file.name for file in found] == ["squad/shard/00000.jsonl", "squad/shard/00001.jsonl"]
    assert {file.pool for file in found} == {"squad/shard"}
    built = build([tmp_path / "squad"], tmp_path / "out.jsonl")
    assert [one["name"] for one in built.manifest["sources"]] == [file.name for file in found]


# --- files -----------------------------------------------------------------------------------


def test_a_long_text_is_cut_at_its_sections_and_files_bear_their_names() -> None:
    body = "The tide came in and went out again. " * 40
    text = f"Opening words.\n\n# The pier\n\n{body}\n\n== Cargo & crew ==\n\n{body}\n\n"
    text += f"Late years\n==========\n\n{body}"
    files = named(pieces_of([Document(text)], Bounds(400, 2000)))
    assert list(files) == ["01_The_pier.txt", "02_Cargo_crew.txt", "03_Late_years.txt"]
    assert files["01_The_pier.txt"].startswith("Opening words.\n\n# The pier\n\nThe tide"), "short"
    assert files["02_Cargo_crew.txt"].startswith("== Cargo & crew ==\n")
    assert files["03_Late_years.txt"].startswith("Late years\n==========\n")
    opening = "Opening words. " * 40
    files = named(pieces_of([Document(opening + text)], Bounds(400, 2000)))
    assert list(files)[:2] == ["01_Beginning.txt", "02_The_pier.txt"]


def test_a_section_above_the_bound_is_cut_at_paragraphs_into_parts_of_like_size() -> None:
    paragraphs = [f"Paragraph {n} speaks of the tide. " * 8 for n in range(12)]
    text = "# Tides\n\n" + "\n\n".join(paragraphs)
    pieces = pieces_of([Document(text)], Bounds(200, 1000))
    assert all(len(piece.text) <= 1000 for piece in pieces)
    assert [piece.stem for piece in pieces] == [
        f"Tides_{number:02d}" for number in range(1, len(pieces) + 1)
    ]
    for paragraph in paragraphs:
        assert sum(paragraph.strip() in piece.text for piece in pieces) == 1
    sizes = [len(piece.text) for piece in pieces]
    assert min(sizes) > 0.5 * max(sizes)


def test_a_table_is_not_torn_and_keeps_its_kind() -> None:
    table = "year,tar,rope\n" + "".join(f"{1700 + n},{n},{n * 2}\n" for n in range(300))
    assert pieces_of([Document(table, "cargo.csv")], Bounds(100, 500)) == (
        Piece(table, "cargo", name="cargo.csv", suffix=".csv"),
    )
    text = f"# Cargo\n\nWhat came in.\n\n{table}\n\nAfter it, much was said of it. " + "More. " * 90
    pieces = pieces_of([Document(text)], Bounds(100, 500))
    assert sum(table.strip() in piece.text for piece in pieces) == 1


def test_titles_become_names_and_headings() -> None:
    files = named(
        pieces_of(
            [Document("It is old.", title="Orra, the port"), Document("It is new.", title="Tamm")],
            Bounds(),
        )
    )
    assert files == {
        "Orra_the_port.txt": "# Orra, the port\n\nIt is old.",
        "Tamm.txt": "# Tamm\n\nIt is new.",
    }


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("Früh im Jahr", "Fruh_im_Jahr.txt"),
        ("../../etc/passwd", "etc_passwd.txt"),
        ("港の歴史", "港の歴史.txt"),
        ("a" * 300, "a" * 40 + ".txt"),
    ],
)
def test_a_title_of_any_letters_becomes_a_plain_name(title: str, name: str) -> None:
    assert list(named([Piece("x", title)])) == [name]


def test_names_that_are_taken_get_a_number() -> None:
    assert list(named([Piece("1", "Log"), Piece("2", "log"), Piece("3", "Log")])) == [
        "Log.txt",
        "log_2.txt",
        "Log_3.txt",
    ]


_TEXT = st.lists(
    st.one_of(
        st.sampled_from(["# Head", "== Wiki ==", "Title: x", "a | b | c", "\t", "", "Lone Line"]),
        st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=300),
    ),
    max_size=30,
).map("\n".join)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_TEXT, st.integers(5, 40), st.integers(1, 5))
def test_no_word_is_lost_added_or_moved_by_cutting(text: str, least: int, times: int) -> None:
    bounds = Bounds(least, least * (times + 1))
    pieces = pieces_of([Document(text)], bounds)
    joined = "".join(piece.text for piece in pieces)
    assert "".join(joined.split()) == "".join(text.split())
    if len(text) > bounds.most:
        tables = [piece for piece in pieces if len(piece.text) > bounds.most + 1]
        assert all("|" in piece.text or "," in piece.text or "\t" in piece.text for piece in tables)


# --- distractors -----------------------------------------------------------------------------


def test_a_single_file_stands_among_files_of_other_contexts_of_its_set(tmp_path: Path) -> None:
    rows = [seed_row(n, rc_name="ports" if n % 2 else "docks") for n in range(40)]
    built, tasks = made(jsonl(tmp_path, *rows))
    texts = {told(n): n for n in range(40)}
    places: Counter[int] = Counter()
    for number, task in enumerate(tasks):
        files = task["input_files"]
        found = [texts[text] for text in files.values()]
        assert list(files) == [f"document_{n}.txt" for n in range(1, 5)]
        assert found.count(number) == 1
        assert len(set(found)) == 4
        assert {other % 2 for other in found} == {number % 2}, "drawn from another set"
        places[found.index(number)] += 1
    assert len(places) == 4, "the place of the right file tells it"
    assert built.manifest["counts"]["distractors"] == 120


def test_a_set_that_is_too_small_gives_what_it_has_and_says_so(tmp_path: Path) -> None:
    built, tasks = made(jsonl(tmp_path, seed_row(1), seed_row(2)))
    assert [len(task["input_files"]) for task in tasks] == [2, 2]
    assert built.manifest["counts"]["tasks with fewer distractors"] == 2


def test_a_context_of_several_files_gets_no_distractors(tmp_path: Path) -> None:
    long = "\n\n".join(f"Paragraph {n} of the log. " * 10 for n in range(30))
    _, tasks = made(jsonl(tmp_path, seed_row(1) | {"context": long}, *map(seed_row, range(2, 9))))
    assert tasks[0]["distractors"] == 0
    assert len(tasks[0]["input_files"]) > 1
    assert all(task["distractors"] == 3 for task in tasks[1:])


def test_names_do_not_tell_the_right_file_where_only_some_have_titles(tmp_path: Path) -> None:
    rows = [
        {"documents": [{"title": f"Port {n}", "text": told(n)}], "question": f"What is {n}?",
         "answer": f"harbour {n}"}
        for n in range(6)
    ]  # fmt: skip
    _, tasks = made(jsonl(tmp_path, *rows))
    assert all(name.startswith("Port_") for task in tasks for name in task["input_files"])
    plain = {"context": told(9), "question": "What is 9?", "answer": "harbour 9"}
    _, tasks = made(jsonl(tmp_path, plain, *rows[:3]), force=True)
    assert all(name.startswith("document_") for task in tasks for name in task["input_files"])


def test_tasks_of_one_context_share_its_digest_whatever_stands_beside_it(tmp_path: Path) -> None:
    _, tasks = made(jsonl(tmp_path, *map(seed_row, range(8))), ask=2)
    digests = [task["context_digest"] for task in tasks]
    assert digests[0::2] == digests[1::2]
    assert len(set(digests)) == 8
    assert [task["input_files"] for task in tasks[0::2]] == [
        task["input_files"] for task in tasks[1::2]
    ]


# --- examples --------------------------------------------------------------------------------


def question(text: str, *right: str, **more: Any) -> Question:
    return Question(text, right, "here", **more)


@pytest.mark.parametrize(
    ("example", "asked", "expected"),
    [
        (question("Who paid?", "Ann Morr"), question("Who kept it?", "ann morr."), True),
        (question("Who paid?", "Ann Morr and Jo"), question("Who kept it?", "Ann Morr"), True),
        (question("Whom did Ann Morr pay?", "Jo"), question("Who kept it?", "Ann Morr"), True),
        (question("Who kept it?", "Jo"), question("who kept it", "Ann"), True),
        (question("Who paid?", "Anna"), question("Who kept it?", "Ann"), False),
        (question("How many?", "13"), question("How many more?", "3"), False),
        (question("How many?", "3 ships"), question("How many more?", "3"), True),
        (question("Is it old?", "Yes"), question("Is it open?", "yes"), False),
        (question("Sign?", "+"), question("Mark?", "+"), True),
        (question("Which?", "A", choice=True), question("Which now?", "A", choice=True), False),
        (
            question("Which?", "A", choice=True, options=("tar", "oak")),
            question("Which now?", "B", choice=True, options=("wool", "tar")),
            True,
        ),
        (
            question("Is it so?", "A", choice=True, options=("right", "wrong")),
            question("Is it that?", "A", choice=True, options=("right", "wrong")),
            False,
        ),
        (
            question("What was paid?", "herring"),
            question("Which?", "B", choice=True, options=("wool", "herring")),
            True,
        ),
    ],
)
def test_an_example_that_tells_the_answer_is_seen(
    example: Question, asked: Question, expected: bool
) -> None:
    assert gives_away(example, asked) is expected


def test_examples_hold_earlier_pairs_only_and_never_the_answer(tmp_path: Path) -> None:
    pairs = [
        {"Q": "Who kept the harbour?", "A": "Ann Morr"},
        {"Q": "What lay in the shed?", "A": "tar"},
        {"Q": "Who paid?", "A": "Ann Morr"},
        {"Q": "How many coins?", "A": "4"},
        {"Q": "Whom did the miller see?", "A": "ann morr"},
    ]
    _, (task,) = made(jsonl(tmp_path, seed_row(1) | {"QA_list": pairs}), distractors=0, examples=9)
    assert task["ground_truth"] == "ann morr"
    assert task["examples"] == 2
    assert "morr" not in task["problem_statement"].lower()
    assert "tar" in task["problem_statement"]


def test_examples_without_documents_do_not_speak_of_them(tmp_path: Path) -> None:
    row = seed_row(1) | {"context": ""}
    _, (task,) = made(jsonl(tmp_path, row), allow_empty=True)
    assert task["input_files"] == {}
    assert task["problem_statement"].startswith("Earlier questions of the same kind, with their an")


def test_questions_that_are_asked_are_no_examples_of_others(tmp_path: Path) -> None:
    _, tasks = made(jsonl(tmp_path, *map(seed_row, range(8))), ask=2, examples=3)
    for first, second in zip(tasks[0::2], tasks[1::2], strict=True):
        for task in (first, second):
            assert task["examples"] == 2
            assert "How many coins" not in task["problem_statement"].partition("now:")[0]
            assert "In which shed" not in task["problem_statement"].partition("now:")[0]


def test_options_without_letters_are_put_in_an_order_of_the_seed(tmp_path: Path) -> None:
    asked = "What lay there?\nOptions:\n- " + "\n- ".join(GOODS[:4])
    rows = [
        seed_row(n) | {"QA_list": [{"Q": f"In {n}: {asked}", "A": "tar"}], "QA_type": "mcq"}
        for n in range(60)
    ]
    _, tasks = made(jsonl(tmp_path, *rows))
    letters = Counter(task["ground_truth"] for task in tasks)
    assert set(letters) == set("ABCD")
    assert max(letters.values()) < 30
    for task in tasks:
        assert task["options"][task["ground_truth"]] == "tar"
        assert f"{task['ground_truth']}. tar" in task["problem_statement"]
    referring = "What lay there?\nOptions:\n- tar\n- rope\n- all of the above"
    row = seed_row(1) | {"QA_list": [{"Q": referring, "A": "all of the above"}]}
    _, (task,) = made(jsonl(tmp_path, row), force=True)
    assert list(task["options"].values()) == ["tar", "rope", "all of the above"]


# --- what the tasks are worth ----------------------------------------------------------------


async def test_the_scorer_of_the_set_gives_truths_everything_and_silence_nothing(
    tmp_path: Path,
) -> None:
    asked = "What was stored?\nOptions:\n- tar\n- rope\n- salt"
    rows = [
        seed_row(1),
        seed_row(2) | {"QA_list": [{"Q": asked, "A": "rope"}], "QA_type": "multiple choice"},
        seed_row(3) | {"QA_list": [{"Q": asked, "A": "tar, salt"}], "QA_type": "multiple choice"},
        seed_row(4) | {"QA_list": [{"Q": "Who?", "A": ["the miller", "Jo Lund"]}]},
    ]
    built, _ = made(jsonl(tmp_path, *rows))
    tools = ScoringTools(cache_dir=tmp_path / "cache", environ=dict(os.environ))
    for name in (str(built.path), str(built.row_path)):
        found = load_set(name, cache=tmp_path, environ={}, progress=lambda line: None)
        assert found.row.scorer == "qa"
        scorer = load_scorer(found.row.scorer, found.row.scorer_options, tools)
        for task in found.tasks:
            truth = task.target[0] if isinstance(task.target, list) else task.target
            assert (await scorer.score(Candidate(task, truth))).value == 1.0
            assert (await scorer.score(Candidate(task, ""))).value == 0.0
            assert (await scorer.score(Candidate(task, None))).value == 0.0
        several = found.tasks[2]
        half = await scorer.score(Candidate(several, str(several.target)[0]))
        assert half.value == pytest.approx(2 / 3, abs=1e-5)
        await scorer.close()
    row = load_set(str(built.row_path), cache=tmp_path, environ={}, progress=print).row
    assert (row.cluster, row.domain) == ("context_digest", "instruct_pretrain")


def test_training_takes_its_tasks_and_its_scorer_from_the_row(tmp_path: Path) -> None:
    built, rows = made(jsonl(tmp_path, *map(seed_row, range(6))))
    tasks = open_tasks(TaskSource(set=str(built.row_path)), cache=tmp_path, note=print)
    assert tasks.row is not None
    assert tasks.row.scorer == "qa"
    assert {task.id for task in tasks.step(0, 6)} == {row["id"] for row in rows}


def test_every_task_may_be_shown_to_a_model_and_an_answer_key_is_left_out(tmp_path: Path) -> None:
    key = {"input_files": {"answer.txt": "Ann Morr", "book.txt": told(1)}, "question": "Who paid?",
           "answer": "Ann Morr"}  # fmt: skip
    built, _ = made(jsonl(tmp_path, key, *map(seed_row, range(2, 6))))
    assert built.manifest["left_out"]["a document is an answer key"]["count"] == 1
    found = load_set(str(built.row_path), cache=tmp_path, environ={}, progress=print)
    assert len(found.tasks) == 4
    for task in found.tasks:
        check_sandbox_view(task, found.row)


# --- what is left out ------------------------------------------------------------------------


def test_what_was_asked_of_the_same_documents_is_left_out(tmp_path: Path) -> None:
    again = seed_row(1) | {"context": f"  {told(1).upper()}\n\n"}
    built, tasks = made(jsonl(tmp_path, seed_row(1), seed_row(2), again))
    assert len(tasks) == 2
    left = built.manifest["left_out"]["asked of the same documents before"]
    assert left["count"] == 4
    assert left["places"][0] == "rows.jsonl:3 QA_list[0]"


def test_the_same_long_question_with_the_same_answer_is_left_out_elsewhere(tmp_path: Path) -> None:
    long = {"Q": "Which keeper of the harbour paid for the tar that winter?", "A": "Ann Morr"}
    other = long | {"A": "Jo Lund"}
    short = {"Q": "What is the title?", "A": "The harbour"}
    rows = [
        seed_row(1) | {"QA_list": [short, long]},
        seed_row(2) | {"QA_list": [short, long]},
        seed_row(3) | {"QA_list": [other]},
    ]
    built, tasks = made(jsonl(tmp_path, *rows))
    assert [task["ground_truth"] for task in tasks] == ["Ann Morr", "The harbour", "Jo Lund"]
    assert built.manifest["left_out"]["the same question with the same answer before"] == {
        "count": 1,
        "places": ["rows.jsonl:2 QA_list[1]"],
    }


def test_what_a_compared_set_asks_or_holds_is_left_out(tmp_path: Path) -> None:
    measured = loaded(
        "exam",
        Task("1", "Read it well. In which shed of harbour 1 did the goods lie in winter? Say so.",
             target="shed 7"),
        Task("2", "Who paid?\nA. Jo\nB. Ann Morr", target="B"),
        Task("3", "What does it say?", {"a.txt": told(3).replace(" ", "\n").encode()}, target=""),
    )  # fmt: skip
    short = {"Q": "Who paid?", "A": "Ann Morr"}
    rows = [
        seed_row(1),
        seed_row(2) | {"QA_list": [short, {"Q": "Who paid?", "A": "Jo Lund"}]},
        seed_row(3),
        seed_row(4),
    ]
    built, tasks = made(jsonl(tmp_path, *rows), compared=[measured])
    left = built.manifest["left_out"]
    assert left["question of exam"]["count"] == 2
    assert left["question of exam"]["places"] == [
        "rows.jsonl:1 QA_list[3]",
        "rows.jsonl:2 QA_list[0]",
    ]
    assert left["documents of exam"]["count"] == 4
    assert built.manifest["compared"] == [{"name": "exam", "items": 3, "digest": "digest of exam"}]
    assert [task["ground_truth"] for task in tasks] == ["4", "Jo Lund", "shed 28"]
    assert all(told(3) not in task["input_files"].values() for task in tasks), "as a distractor"


def test_a_document_is_known_by_the_share_of_its_sentences(tmp_path: Path) -> None:
    known = [f"In the year {1700 + n} the harbour of Orra had {n} ships." for n in range(10)]
    new = [f"A miller of Tamm bought {n} sacks of salt that spring." for n in range(10)]
    measured = loaded("exam", Task("1", "?", {"a.md": "\n".join(known).encode()}, target="x"))
    pair = [{"Q": "Who bought the salt?", "A": "a miller"}]
    for share, tasks_left in ((4, 1), (6, 0)):
        mixed = " ".join([*new[share:], *(text.upper() for text in known[:share])])
        source = jsonl(tmp_path, {"context": mixed, "QA_list": pair}, seed_row(1))
        built, tasks = made(source, compared=[measured], force=True)
        assert len(tasks) == 1 + tasks_left
        assert ("documents of exam" in built.manifest["left_out"]) is not tasks_left


def test_a_question_that_shares_a_phrase_with_a_set_is_kept(tmp_path: Path) -> None:
    measured = loaded(
        "exam",
        Task("1", "According to the text that was given to you above, who kept the mill?"),
    )
    asked = "According to the text that was given to you above, in which of the many harbours of "
    asked += "the long coast between Orra and Tamm did the keeper first see the new light?"
    source = jsonl(tmp_path, seed_row(1) | {"QA_list": [{"Q": asked, "A": "Orra"}]})
    assert len(made(source, compared=[measured])[1]) == 1
    with pytest.raises(InputError, match="1 question of exam"):
        made(source, compared=[measured], overlap=0.05, force=True)


@pytest.mark.slow
def test_every_shipped_set_that_is_here_is_compared_with_by_default(tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub", reason="the extra `hub` is not installed")
    home = tmp_path / "hub" / "datasets--daixuancheng--llm-in-sandbox-bench"
    rows = home / "snapshots" / ("0" * 40) / "math" / "test.jsonl"
    rows.parent.mkdir(parents=True)
    row = {"id": "1", "domain": "math", "problem_statement": "1 + 1?", "ground_truth": "2"}
    rows.write_text(json.dumps(row) + "\n")
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("0" * 40)
    notes: list[str] = []
    environ = {"HF_HUB_CACHE": str(tmp_path / "hub")}
    sets = load_compared(None, cache=tmp_path, environ=environ, note=notes.append)
    names = {one.row.name for one in sets}
    assert {"mini-math", "mini-long_context", "long_context_10k", "create", "math"} <= names
    assert not names & {"mini", "instruct_pretrain", "math_mini", "physics"}
    assert any(note.startswith("not compared with physics") for note in notes), "it is not cached"


def test_named_sets_are_compared_with_alone(tmp_path: Path) -> None:
    source = jsonl(tmp_path, {"id": "1", "question": "Who?", "answer": "Ann"}, name="own.jsonl")
    found = load_compared(["mini-math", str(source)], cache=tmp_path, environ={}, note=print)
    assert [one.row.name for one in found] == ["mini-math", "own"]
    with pytest.raises(ConfigError, match="Did you mean 'mini-math'"):
        list(load_compared(["mini-maths"], cache=tmp_path, environ={}, note=print))


def test_nothing_left_is_an_error_that_says_why(tmp_path: Path) -> None:
    measured = loaded("exam", Task("1", "?", {"a.txt": told(1).encode()}, target="x"))
    with pytest.raises(InputError, match=r"no task is left \(4 documents of exam"):
        made(jsonl(tmp_path, seed_row(1)), compared=[measured])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.jsonl"]


# --- the same bytes --------------------------------------------------------------------------


def test_the_same_options_give_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    source = jsonl(tmp_path, *map(seed_row, range(30)))
    built, _ = made(source, ask=2)
    first = [path.read_bytes() for path in (built.path, built.row_path, built.manifest_path)]
    code = (
        "from pathlib import Path; from sandlot.train.data import *; import sys\n"
        "build([Path(sys.argv[1])], Path(sys.argv[2]), BuildOptions(ask=2))"
    )
    (tmp_path / "there").mkdir()
    for seed in ("1", "2"):
        out = tmp_path / "there" / "out.jsonl"
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code, str(source), str(out)],
            env={"PYTHONHASHSEED": seed, "LC_ALL": "C"},
            check=True,
        )
        assert done.returncode == 0
        names = ("out.jsonl", "out.toml", "out.manifest.json")
        assert [(tmp_path / "there" / name).read_bytes() for name in names] == first
        for name in names:
            (tmp_path / "there" / name).unlink()


def test_what_was_once_made_stays_as_it_was(tmp_path: Path) -> None:
    """A change of these digests changes every training set that users have made: say so to them."""
    rows = [seed_row(n, licence="CC0" if n % 2 else None) for n in range(20)]
    long = "\n\n".join(f"# Part {n}\n\n" + f"Line {n} of the log. " * 30 for n in range(12))
    built, _ = made(jsonl(tmp_path, *rows, seed_row(50) | {"context": long}), seed=7)
    assert hashlib.sha256(built.path.read_bytes()).hexdigest()[:16] == GOLDEN
    assert built.manifest["tasks"]["sha256"].startswith(GOLDEN)


GOLDEN = "9b5b895168edaa63"


def test_another_seed_draws_other_distractors(tmp_path: Path) -> None:
    source = jsonl(tmp_path, *map(seed_row, range(30)))
    one, other = (made(source, seed=seed, force=True)[1] for seed in (1, 2))
    assert [task["id"] for task in one] == [task["id"] for task in other]
    assert [task["input_files"] for task in one] != [task["input_files"] for task in other]


def test_a_limit_draws_contexts_of_the_whole_source_in_their_order(tmp_path: Path) -> None:
    source = jsonl(tmp_path, *map(seed_row, range(60)))
    _, every = made(source)
    built, some = made(source, limit=10, force=True)
    ids = [task["id"] for task in every]
    picked = [ids.index(task["id"]) for task in some]
    assert len(picked) == 10
    assert picked == sorted(picked)
    assert picked[-1] > 30
    assert built.manifest["left_out"]["beyond the limit"]["count"] == 200
    assert [task for task in every if task["id"] in {one["id"] for one in some}] == some


def test_the_manifest_says_what_it_was_made_of(tmp_path: Path) -> None:
    source = jsonl(tmp_path, seed_row(1, licence="CC0"), seed_row(2, meta={"license": "MIT"}))
    built, _ = made(source)
    manifest = json.loads(built.manifest_path.read_text("utf-8"))
    assert manifest == built.manifest
    assert manifest["sources"] == [
        {
            "name": "rows.jsonl",
            "rows": 2,
            "bytes": source.stat().st_size,
            "sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
        }
    ]
    assert manifest["licences"] == {"CC0": 1, "MIT": 1}
    assert manifest["options"]["seed"] == 1
    assert manifest["kinds"] == {"open": 2}
    assert manifest["counts"]["questions"] == 8
    assert 'licence = "CC0; MIT"' in built.row_path.read_text("utf-8")


# --- bad input -------------------------------------------------------------------------------

GOOD = {"id": "a", "context": "Some text.", "question": "Who?", "answer": "Ann"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({k: v for k, v in GOOD.items() if k != "answer"}, "field 'ground_truth' is missing"),
        (GOOD | {"answer": {"text": "x"}}, "field 'answer': the scorer 'qa' wants a text"),
        (GOOD | {"answer": None, "answers": []}, "field 'answer': the scorer 'qa' wants a text"),
        (GOOD | {"answer": True}, "field 'answer': the scorer 'qa' wants a text"),
        (GOOD | {"answer": "  "}, "field 'answer': the scorer 'qa' wants a text"),
        (GOOD | {"context": " \n"}, "field 'context' is empty; --allow-empty"),
        (GOOD | {"context": 5}, "field 'context' must hold texts by file name, found int"),
        ({k: v for k, v in GOOD.items() if k != "context"}, "field 'context' is missing (found:"),
        (GOOD | {"input_files": {}, "context": None}, "field 'input_files' is empty"),
        (GOOD | {"context": None, "documents": {"../a": "x"}}, "leads out of the input folder"),
        (GOOD | {"context": None, "documents": [{"name": "/a", "text": "x"}]}, "leads out"),
        (GOOD | {"context": None, "documents": [{"title": "x"}]}, "field 'documents[0]' must be"),
        (GOOD | {"question": ""}, "field 'question' must be a text that is not empty"),
        (GOOD | {"type": 3}, "field 'type' must be a text"),
        (GOOD | {"options": ["a"]}, "field 'options': from 2 to 26 options"),
        (GOOD | {"options": "ab"}, "field 'options' must be a list of texts"),
        (GOOD | {"options": ["x", "X "], "answer": "A"}, "field 'options': two options are the sa"),
        (GOOD | {"options": {"A": "x", "C": "y"}}, "the letters are A, C, not A, B, C"),
        (GOOD | {"options": ["x", "y"]}, "field 'answer': a choice wants letters, or options word"),
        (GOOD | {"options": ["x", "y"], "answer": "C"}, "(have: x, y), found 'C'"),
        (GOOD | {"type": "multiple choice"}, "a choice wants letters"),
        (
            json.dumps(GOOD | {"question": "Who \ud800?"}),
            "field 'question' is not text (a lone surrogate",
        ),
        (seed_row(1) | {"QA_list": []}, "field 'QA_list' is empty"),
        (seed_row(1) | {"QA_list": [{"Q": "Who?"}]}, "field 'QA_list[0].A' is missing (found: Q)"),
        (seed_row(1) | {"QA_list": [{"A": "x"}]}, "field 'QA_list[0].Q' is missing"),
        (seed_row(1) | {"QA_list": ["x"]}, "field 'QA_list[0]' must be an object"),
        (seed_row(1) | {"QA_list": [{"Q": 3, "A": "x"}]}, "field 'QA_list[0].Q' must be a text"),
        (seed_row(1) | {"QA_list": [{"Q": "?", "A": [[]]}]}, "field 'QA_list[0].A': the scorer"),
        (seed_row(1) | {"QA_list": "[{"}, "field 'QA_list': not the JSON of a list"),
        ('{"id": "a"', "not JSON"),
        ("[1]", "expected an object with fields, found list"),
    ],
)
def test_a_bad_row_is_named_by_file_line_and_field(tmp_path: Path, row: Any, message: str) -> None:
    source = jsonl(tmp_path, seed_row(7), row)
    with pytest.raises(InputError) as found:
        made(source)
    assert str(found.value).startswith("rows.jsonl:2")
    assert message in str(found.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.jsonl"]


def test_every_bad_row_is_named_at_once_or_left_out_and_counted(tmp_path: Path) -> None:
    pairs = [{"Q": "Who?", "A": "Ann"}, {"Q": "Who else?"}, {"Q": "And who?", "A": "Jo"}]
    source = jsonl(
        tmp_path, GOOD, GOOD | {"answer": None}, seed_row(1) | {"QA_list": pairs}, "{", seed_row(2)
    )
    with pytest.raises(InputError) as found:
        made(source)
    assert str(found.value).startswith("3 rows or questions cannot be used (--skip-bad")
    for place in ("rows.jsonl:2:", "rows.jsonl:3: field 'QA_list[1].A'", "rows.jsonl:4:"):
        assert place in str(found.value)
    built, tasks = made(source, skip_bad=True)
    assert [task["ground_truth"] for task in tasks] == ["Ann", "Jo", "shed 14"]
    assert built.manifest["left_out"]["cannot be used"]["count"] == 3


def test_an_id_that_stands_twice_is_named_with_both_places(tmp_path: Path) -> None:
    source = jsonl(tmp_path, GOOD, seed_row(1), GOOD | {"question": "Why?"})
    with pytest.raises(InputError, match=r"rows.jsonl:3: field 'id': 'a' stands already at rows.j"):
        made(source)


def test_text_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    source = jsonl(tmp_path, seed_row(1))
    source.write_bytes(source.read_bytes() + b'{"id": "\xff"}\n')
    with pytest.raises(InputError, match=r"rows.jsonl:2: not UTF-8 text"):
        made(source)


def test_a_row_above_the_bound_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sandlot.train.data.ROW_BYTES", 3000)
    big = GOOD | {"context": "word " * 900}
    with pytest.raises(InputError, match=r"rows.jsonl:1: the task would be larger than"):
        made(jsonl(tmp_path, big))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.jsonl"]


@pytest.mark.slow
def test_a_row_over_100_mb_is_named_without_being_held(tmp_path: Path) -> None:
    source = jsonl(tmp_path, seed_row(1))
    with source.open("ab") as file:
        file.write(b'{"context": "')
        for _ in range(101):
            file.write(b"x" * 1_000_000)
        file.write(b'"}\n')
    with pytest.raises(InputError, match=r"rows.jsonl:2: the row is larger than 100 MB"):
        made(source)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ask": -1}, "ask must be at least 0"),
        ({"least_chars": 0}, "least_chars must be at least 1"),
        ({"least_chars": 400, "most_chars": 500}, "most_chars must be at least twice"),
        ({"limit": 0}, "limit must be at least 1"),
        ({"overlap": 0.0}, "overlap must be above 0"),
    ],
)
def test_options_out_of_range_are_refused(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        made(jsonl(tmp_path, seed_row(1)), **options)


def test_names_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    source = jsonl(tmp_path, seed_row(1))
    with pytest.raises(ConfigError, match="File name too long"):
        build([source], tmp_path / f"{'x' * 245}.jsonl", BuildOptions())
    other = Path(os.fsdecode(os.fsencode(tmp_path) + b"/raw\xff.jsonl"))
    source.rename(other)
    with pytest.raises(InputError, match=r"not UTF-8: 'raw\\udcff\.jsonl'; rename it"):
        build([other], tmp_path / "out.jsonl", BuildOptions())


def test_files_that_are_there_are_kept_unless_forced(tmp_path: Path) -> None:
    source = jsonl(tmp_path, seed_row(1))
    (tmp_path / "out.toml").write_text("mine")
    with pytest.raises(ConfigError, match=r"there already: out.toml; --force"):
        made(source)
    assert (tmp_path / "out.toml").read_text() == "mine"
    assert not (tmp_path / "out.jsonl").exists()
    made(source, force=True)
    assert "instruct_pretrain" in (tmp_path / "out.toml").read_text()


@pytest.mark.parametrize("name", ["out.json", "no/out.jsonl"])
def test_an_output_that_cannot_be_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="--out"):
        made(jsonl(tmp_path, seed_row(1)), name=name)


def test_a_source_is_never_written_over(tmp_path: Path) -> None:
    source = jsonl(tmp_path, seed_row(1))
    with pytest.raises(ConfigError, match="is a source"):
        made(source, name="rows.jsonl", force=True)
    assert source.read_text()


def test_sources_that_are_not_there_or_hold_nothing_are_refused(tmp_path: Path) -> None:
    for name, message in (("gone.jsonl", "no such file"), ("empty", "holds no file of rows")):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(InputError, match=message):
            build([tmp_path / name], tmp_path / "out.jsonl")
    (tmp_path / "rows.jsonl").write_text("\n")
    with pytest.raises(InputError, match="holds no rows"):
        made(tmp_path / "rows.jsonl")
    (tmp_path / "rows.txt").write_text("x")
    with pytest.raises(InputError, match="files of problems are"):
        made(tmp_path / "rows.txt")


def test_a_folder_inside_that_cannot_be_read_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of it would be missing without a word; one that goes away meanwhile is the same."""
    jsonl(tmp_path, seed_row(1))
    (tmp_path / "locked").mkdir()
    scandir = os.scandir

    def refusing(path: str | os.PathLike[str]) -> Iterator[os.DirEntry[str]]:
        if os.fspath(path).endswith("locked"):
            raise PermissionError(errno.EACCES, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(InputError, match=r"locked: cannot be read: Permission denied"):
        build([tmp_path], tmp_path / "out.jsonl")


@pytest.mark.parametrize("room", [0, 4096, 60_000])
def test_a_disk_that_fills_leaves_what_was_there_before(tmp_path: Path, room: int) -> None:
    """The room for one file stands in for the disk: its end comes at any of the writes."""
    source = jsonl(tmp_path, *map(seed_row, range(60)))
    made(source, limit=1)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from sandlot.train.data import *; from sandlot.core.errors import SandlotError\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, {room}))\n"
        "try: build([Path(sys.argv[1])], Path(sys.argv[2]), BuildOptions(force=True))\n"
        "except SandlotError as exc: print(type(exc).__name__, exc)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(source), str(tmp_path / "out.jsonl")],
        capture_output=True,
        text=True,
    )
    assert "cannot be written" in done.stdout, done.stdout + done.stderr
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


# --- large sources ---------------------------------------------------------------------------


@pytest.mark.slow
def test_memory_does_not_grow_with_the_source(tmp_path: Path) -> None:
    peaks = []
    for count in (150, 700):
        with (tmp_path / "rows.jsonl").open("w") as file:
            for number in range(count):
                text = "\n\n".join(f"{told(number)} Line {n}." for n in range(40))
                file.write(json.dumps(seed_row(number) | {"context": text}) + "\n")
        tracemalloc.start()
        build([tmp_path / "rows.jsonl"], tmp_path / "out.jsonl", BuildOptions(force=True))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (tmp_path / "rows.jsonl").stat().st_size > 5_000_000
    assert peaks[1] < 1.3 * peaks[0] + 500_000, peaks


def test_progress_is_told(tmp_path: Path) -> None:
    told_of: list[tuple[str, int, int | None]] = []
    source = jsonl(tmp_path, *map(seed_row, range(250)))
    build(
        [source],
        tmp_path / "out.jsonl",
        compared=[loaded("exam")],
        progress=lambda *sign: told_of.append(sign),
    )
    assert ("comparing with exam", 1, None) in told_of
    assert ("reading rows.jsonl", 200, None) in told_of
    assert ("writing contexts", 250, 250) in told_of


# --- what it needs ---------------------------------------------------------------------------


def test_no_torch_is_needed() -> None:
    code = (
        "import sandlot.train.data, sandlot.train.data_overlap, sys\n"
        "print([m for m in ('torch', 'transformers', 'huggingface_hub', 'pyarrow') "
        "if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- real samples ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def samples() -> Path:
    """Real rows in the paper's schema, which are no part of the project."""
    folder = Path(os.environ.get("SANDLOT_SHARED_DATA") or REPOSITORY.parent / "shared" / "data")
    path = folder / "instruct_pretrain.jsonl"
    if not path.is_file():
        pytest.skip(f"no sample data in {folder}; SANDLOT_SHARED_DATA names another folder")
    return path


async def test_real_rows_of_the_papers_schema_become_tasks(samples: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="field 'input_files' is empty"):
        build([samples], tmp_path / "out.jsonl")
    built = build([samples], tmp_path / "out.jsonl", BuildOptions(allow_empty=True))
    assert built.manifest["kinds"] == {"choice of one": 6, "open": 12}
    found = load_set(str(built.path), cache=tmp_path, environ={}, progress=print)
    assert len(found.tasks) == 18
    tools = ScoringTools(cache_dir=tmp_path / "cache", environ=dict(os.environ))
    scorer = load_scorer(found.row.scorer, found.row.scorer_options, tools)
    for task in found.tasks:
        check_sandbox_view(task, found.row)
        assert (await scorer.score(Candidate(task, task.target))).value == 1.0
        assert (await scorer.score(Candidate(task, ""))).value == 0.0
    await scorer.close()


def test_real_rows_are_known_again_as_those_of_a_set(samples: Path, tmp_path: Path) -> None:
    measured = load_set(str(samples), cache=tmp_path, environ={}, progress=print)
    with pytest.raises(InputError, match="no task is left"):
        build(
            [samples],
            tmp_path / "out.jsonl",
            BuildOptions(allow_empty=True),
            compared=[measured],
        )
