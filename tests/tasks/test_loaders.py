"""Files of every usual shape load; what cannot be used is named by file, line and field."""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sandlot.core.codec import to_json
from sandlot.core.errors import InputError, MissingExtra
from sandlot.core.types import Task
from sandlot.tasks.base import Source, TaskSet
from sandlot.tasks.harbor import load_harbor
from sandlot.tasks.loaders import ALIASES, digest_of, guess_scorer, load_tasks
from sandlot.tasks.readers import Row, read_rows
from sandlot.tasks.truth import wrong_truth

TEXT = TaskSet("own", "general", Source("file", path="rows.jsonl"), "text")
GOOD: dict[str, Any] = {"id": "a", "problem_statement": "What is 2 + 2?", "ground_truth": "4"}


def jsonl(folder: Path, *rows: Any, name: str = "rows.jsonl") -> Path:
    path = folder / name
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


def load(path: Path, row: TaskSet = TEXT, **kwargs: Any) -> tuple[Task, ...]:
    return load_tasks(read_rows(path, **kwargs), row, folder=path.parent, what=path.name)


def said(path: Path, row: TaskSet = TEXT, **kwargs: Any) -> str:
    with pytest.raises(InputError) as found:
        load(path, row, **kwargs)
    return str(found.value)


# --- shapes ----------------------------------------------------------------------------------


def test_the_published_schema_loads_with_files_as_a_dict_or_as_json_text(tmp_path: Path) -> None:
    files = {"notes/a.txt": "Käse"}
    path = jsonl(
        tmp_path,
        GOOD | {"input_files": files, "domain": "math", "qa_type": "open", "year": 3},
        GOOD | {"id": "b", "input_files": json.dumps(files)},
        GOOD | {"id": "c", "documents": files},
        GOOD | {"id": "d", "input_files": {}},
        GOOD | {"id": "e", "documents": ["first", "second"]},
    )
    one, two, three, four, five = load(path)
    assert one.prompt == "What is 2 + 2?"
    assert one.target == "4"
    assert one.domain == "math"
    assert one.input_files == {"notes/a.txt": "Käse".encode()}
    assert one.metadata["qa_type"] == "open"
    assert one.metadata["year"] == 3
    assert one.input_files == two.input_files == three.input_files
    assert one.metadata["documents_digest"] == two.metadata["documents_digest"]
    assert four.input_files == {}
    assert "documents_digest" not in four.metadata
    assert list(five.input_files) == ["document_001.txt", "document_002.txt"]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "p", "answer": "x"},
        {"question": "p", "target": "x"},
        {"input": "p", "target": "x"},
        {"input": [{"role": "user", "content": "p"}], "target": "x"},
    ],
)
def test_usual_other_names_of_fields_are_understood(tmp_path: Path, row: dict[str, Any]) -> None:
    (task,) = load(jsonl(tmp_path, {"id": 7} | row))
    assert (task.id, task.prompt, task.target) == ("7", "p", "x")


def test_a_set_may_name_its_fields_itself(tmp_path: Path) -> None:
    options = {"fields": {"id": "nr", "prompt": "ask", "target": "gold"}}
    row = replace(TEXT, source=replace(TEXT.source, options=options))
    path = jsonl(tmp_path, {"nr": "x1", "ask": "Why?", "gold": "so", "answer": "no"})
    (task,) = load(path, row)
    assert (task.id, task.prompt, task.target) == ("x1", "Why?", "so")
    assert "field 'gold' is missing" in said(jsonl(tmp_path, {"nr": "x", "ask": "Why?"}), row)


def test_an_inspect_sample_brings_choices_metadata_and_files(tmp_path: Path) -> None:
    (tmp_path / "near.txt").write_text("from a file")
    (tmp_path.parent / "far.txt").write_text("must not be read")
    sample = {
        "id": 1,
        "input": "Which?",
        "target": "B",
        "choices": ["red", "blue"],
        "metadata": {"level": 2},
        "files": {
            "a.txt": "the text itself",
            "b.txt": "near.txt",
            "c.bin": "data:text/plain;base64,AAH/",
            "d.txt": "../far.txt",
        },
    }
    (task,) = load(jsonl(tmp_path, sample), replace(TEXT, scorer="choice"))
    assert task.prompt == "Which?\n\nA. red\nB. blue"
    assert task.metadata["options"] == ["red", "blue"]
    assert task.metadata["level"] == 2
    assert task.input_files == {
        "a.txt": b"the text itself",
        "b.txt": b"from a file",
        "c.bin": b"\x00\x01\xff",
        "d.txt": b"../far.txt",
    }


def test_the_same_rows_load_alike_from_jsonl_json_csv_and_parquet(tmp_path: Path) -> None:
    rows = [GOOD | {"id": str(n), "input_files": json.dumps({"d.txt": f'"{n}"\n'})} for n in (1, 2)]
    listed = tmp_path / "rows.json"
    listed.write_text(json.dumps(rows))
    wrapped = tmp_path / "wrapped.json"
    wrapped.write_text(json.dumps({"version": 1, "data": rows}))
    table = tmp_path / "rows.csv"
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    expected = load(jsonl(tmp_path, *rows))
    assert load(listed) == load(wrapped) == load(table) == expected

    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    assert load(tmp_path / "rows.parquet") == expected


def test_files_of_other_rows_do_not_show_in_a_parquet_row(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [GOOD | {"id": name, "input_files": {f"{name}.txt": name}} for name in ("a", "b")]
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    one, two = load(tmp_path / "rows.parquet")
    assert one.input_files == {"a.txt": b"a"}
    assert two.input_files == {"b.txt": b"b"}


def test_parquet_without_its_library_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rows.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtra, match=r"sandlot\[parquet\]"):
        load(tmp_path / "rows.parquet")


# --- what is wrong, and where ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"problem_statement": "p", "ground_truth": "4"}, "field 'id' is missing (found: problem"),
        ({"id": "b", "ground_truth": "4"}, "field 'problem_statement' is missing (found: id,"),
        ({"id": "b", "prompt": "p"}, "field 'ground_truth' is missing (found: id, prompt)"),
        (GOOD, "field 'id': 'a' stands already at rows.jsonl:1"),
        (GOOD | {"id": ""}, "field 'id' must be a text or a whole number, found ''"),
        (GOOD | {"id": True}, "field 'id' must be a text or a whole number, found True"),
        (GOOD | {"id": "b", "problem_statement": " "}, "field 'problem_statement' must be a text"),
        (GOOD | {"id": "b", "domain": "mth"}, "domain 'mth' is not known (have: biomed,"),
        (GOOD | {"id": "b", "domain": "mth"}, "Did you mean 'math'?"),
        (GOOD | {"id": "b", "ground_truth": {"x": 1}}, "field 'ground_truth': the scorer 'text'"),
        (GOOD | {"id": "b", "ground_truth": True}, "wants a text, a number or a list of those"),
        (GOOD | {"id": "b", "ground_truth": ""}, "wants a text, a number or a list of those"),
        (GOOD | {"id": "b", "ground_truth": math.nan}, "wants a text, a number or a list of those"),
        (GOOD | {"id": "b", "ground_truth": [1, math.inf]}, "wants a text, a number or a list"),
        (GOOD | {"id": "b", "input_files": {"d": 3}}, "the document 'd' is not text but int"),
        (GOOD | {"id": "b", "input_files": "{"}, "field 'input_files': not the JSON of a file"),
        (GOOD | {"id": "b", "input_files": 3}, "must hold texts by file name, found int"),
        (GOOD | {"id": "b", "input_files": {"/etc/x": ""}}, "'/etc/x' leads out of the input"),
        (GOOD | {"id": "b", "input_files": {"a/../../x": ""}}, "leads out of the input folder"),
        (GOOD | {"id": "b", "input_files": {"d": "", "d/e": ""}}, "'d' is a file and a folder of"),
        (GOOD | {"id": "b", "input_files": {"d": "\ud800"}}, "is not text (a lone surrogate at"),
        ({"id": "b", "input": [{"role": "system"}], "target": "x"}, "one message of the user"),
        (GOOD | {"id": "\ud800"}, "field 'id' is not text (a lone surrogate at character 0)"),
        (GOOD | {"id": "b", "problem_statement": "x\udfff"}, "is not text (a lone surrogate at"),
        ("[" * 100_000, "not JSON that can be read (nested too deeply)"),
        ("{not json", "not JSON (Expecting property name"),
        ("[1, 2]", "expected an object with fields, found list"),
    ],
)
def test_a_bad_row_is_named_by_file_line_and_field(tmp_path: Path, bad: Any, message: str) -> None:
    text = said(jsonl(tmp_path, GOOD, bad))
    assert text.startswith("rows.jsonl:2: ")
    assert message in text


def test_every_bad_row_is_named_at_once(tmp_path: Path) -> None:
    text = said(jsonl(tmp_path, *[{"id": str(n)} for n in range(30)]))
    assert "30 rows cannot be used" in text
    assert "rows.jsonl:1: " in text
    assert "rows.jsonl:20: " in text
    assert "rows.jsonl:21: " not in text
    assert "and 10 more" in text


def test_bytes_that_are_no_text_are_named_with_their_place(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b'\n{"id": "\xff"}\n')
    assert said(path).startswith("rows.jsonl:2: not UTF-8 text (invalid start byte at byte 8)")


def test_a_row_that_is_too_large_is_named_and_the_rest_is_read(tmp_path: Path) -> None:
    big = GOOD | {"id": "big", "input_files": {"d": "x" * 5000}}
    path = jsonl(tmp_path, big, GOOD | {"id": ""})
    text = said(path, row_bytes=2000)
    assert "rows.jsonl:1: the row is larger than" in text
    assert "rows.jsonl:2: field 'id' must be" in text
    listed = tmp_path / "rows.json"
    listed.write_text(json.dumps([big]))
    assert "the row is larger than" in said(listed, row_bytes=2000)


def test_an_empty_set_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n\n")
    assert said(path) == "rows.jsonl: holds no rows"


def test_json_rows_are_named_by_line_and_number(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([GOOD, {"id": "b"}], indent=2))
    assert said(path).startswith("rows.json:7 (row 2): field 'problem_statement' is missing")
    path.write_text(json.dumps({"tags": ["x", "y"], "data": [GOOD, {"id": "b"}]}, indent=2))
    assert said(path).startswith("rows.json:12 (row 2): field 'problem_statement' is missing")
    path.write_text(json.dumps({"rows": []}))
    assert "expected a list of rows" in said(path)
    path.write_text("[")
    assert "not JSON" in said(path)


def test_two_csv_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("problem_statement,ground_truth,ground_truth\nWhich?,one,two\n")
    assert "rows.csv:1: two columns are named ground_truth" in said(path)


def test_csv_rows_are_named_by_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('id,prompt,answer\n1,"two\nlines",4\n2,,5\n')
    assert said(path).startswith("rows.csv:4: field 'problem_statement' is missing")
    path.write_text("id,prompt,answer\n1,p,4,5\n")
    assert "rows.csv:2: more cells than the header's 3" in said(path)
    limit = csv.field_size_limit()
    path.write_text(f"id,prompt,answer\n1,{'x' * 200_000},4\n")
    assert len(load(path)[0].prompt) == 200_000
    assert csv.field_size_limit() == limit


def test_a_file_of_another_kind_or_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.xlsx"
    path.write_text("")
    assert "files of problems are .jsonl," in said(path)
    assert "cannot be read: No such file" in said(tmp_path / "gone.jsonl")


def test_a_missing_cluster_field_is_named(tmp_path: Path) -> None:
    path = jsonl(tmp_path, GOOD | {"subject": "x"}, GOOD | {"id": "b"})
    text = said(path, replace(TEXT, cluster="subject"))
    assert text.startswith("rows.jsonl:2: field 'subject' is missing, by which")


FIELDS = sorted({"domain", "choices", "metadata", *(n for ns in ALIASES.values() for n in ns)})
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just("math"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    rows=st.lists(st.dictionaries(st.sampled_from(FIELDS), ANYTHING), max_size=3),
    scorer=st.sampled_from(["text", "choice", "instructions", "ifbench", "files"]),
)
def test_rows_of_any_content_load_or_are_named(rows: list[dict[str, Any]], scorer: str) -> None:
    row = replace(TEXT, scorer=scorer)
    rows = [{"prompt": "p", "answer": "A", "id": n, **one} for n, one in enumerate(rows)]
    guess_scorer(rows)
    try:
        tasks = load_tasks([Row(f"rows:{n}", one) for n, one in enumerate(rows, 1)], row)
    except InputError:
        pass
    else:
        assert len(tasks) == len(rows)
        assert digest_of(row, tasks)
        for task in tasks:
            json.dumps(to_json(task), ensure_ascii=False)


@pytest.mark.parametrize(
    ("scorer", "good", "bad"),
    [
        ("math", ["4", 4, 4.5, ["4", "four"]], [None, [], {"x": 1}, True, " "]),
        ("choice", ["A", "A, C", ["A", "C"]], [4, [], ["A", 3], ""]),
        (
            "instructions",
            [[{"id": "x", "kwargs": {}}], '[{"id": "x"}]'],
            ["x", [], [{"kwargs": {}}], {"id": "x"}],
        ),
        (
            "ifbench",
            ['{"instruction_id_list": ["a"], "kwargs": [{}]}'],
            ["a", {"instruction_id_list": ["a"], "kwargs": []}],
        ),
        ("a plug-in's", [None, object()], []),
    ],
)
def test_each_scorer_has_its_kind_of_ground_truth(
    scorer: str, good: list[Any], bad: list[Any]
) -> None:
    assert [wrong_truth(scorer, one) for one in good] == [None] * len(good)
    assert all(wrong_truth(scorer, one) for one in bad)


@pytest.mark.parametrize(
    ("rows", "scorer"),
    [
        ([{"domain": "math", "ground_truth": "4"}], "math"),
        ([{"domain": "chem", "ground_truth": "A"}], "choice"),
        ([{"domain": "biomed", "ground_truth": "A"}], "choice"),
        ([{"domain": "instruct_pretrain", "ground_truth": "A", "qa_type": "open"}], "qa"),
        ([{"answer": "A"}, {"answer": "D"}], "choice"),
        ([{"answer": "4"}, {"answer": 2.5}], "math"),
        ([{"answer": "four"}, {"answer": "4"}], "text"),
        ([{"ground_truth": '[{"id": "word_count", "kwargs": {}}]'}], "instructions"),
        ([{"ground_truth": '{"instruction_id_list": ["a"], "kwargs": [{}]}'}], "ifbench"),
    ],
)
def test_the_scorer_of_a_bare_file_is_guessed(rows: list[Mapping[str, Any]], scorer: str) -> None:
    assert guess_scorer(rows) == scorer


def test_the_digest_changes_with_the_row_a_task_and_their_order(tmp_path: Path) -> None:
    one, two = load(jsonl(tmp_path, GOOD, GOOD | {"id": "b", "documents": {"x": "1"}}))
    digest = digest_of(TEXT, (one, two))
    assert digest == digest_of(TEXT, (one, two))
    others = {
        digest_of(TEXT, (two, one)),
        digest_of(replace(TEXT, scorer="math"), (one, two)),
        digest_of(TEXT, (one, replace(two, input_files={"x": b"2"}))),
        digest_of(TEXT, (one,)),
    }
    assert len(others) == 4
    assert digest not in others


# --- Harbor ----------------------------------------------------------------------------------


def harbor_task(folder: Path, name: str = "") -> Path:
    for inner in ("environment/data", "tests", "solution"):
        (folder / inner).mkdir(parents=True)
    head = f'[task]\nname = "{name}"\n' if name else 'version = "1.0"\n'
    body = '[metadata]\ndifficulty = "easy"\n[verifier]\nenv = { API_KEY = "secret" }\n'
    (folder / "task.toml").write_text(head + body)
    (folder / "instruction.md").write_text("Sort the words.\n")
    (folder / "environment/Dockerfile").write_text("FROM scratch\n")
    (folder / "environment/data/words.bin").write_bytes(b"\xff\x00")
    (folder / "tests/test.sh").write_text("echo 1 > /logs/verifier/reward.txt\n")
    (folder / "solution/solve.sh").write_text("sort\n")
    return folder


def test_harbor_tasks_load_without_their_tests_solutions_and_secrets(tmp_path: Path) -> None:
    harbor_task(tmp_path / "one")
    harbor_task(tmp_path / "two", name="org/two")
    one, two = load_harbor(tmp_path, domain="general")
    assert (one.id, two.id) == ("one", "org/two")
    assert one.prompt == "Sort the words.\n"
    assert one.input_files == {"data/words.bin": b"\xff\x00"}
    assert one.target is None
    assert one.metadata["harbor"]["metadata"] == {"difficulty": "easy"}
    assert "secret" not in repr(one)
    assert load_harbor(tmp_path / "one", domain="general") == (one,)


def test_a_broken_harbor_task_is_named(tmp_path: Path) -> None:
    folder = harbor_task(tmp_path / "one")
    (folder / "instruction.md").write_text(" \n")
    with pytest.raises(InputError, match=r"instruction\.md: is empty"):
        load_harbor(tmp_path, domain="general")
    (folder / "instruction.md").unlink()
    with pytest.raises(InputError, match=r"instruction\.md: cannot be read"):
        load_harbor(tmp_path, domain="general")
    (folder / "task.toml").write_text("= 1")
    with pytest.raises(InputError, match=r"task\.toml: not valid TOML"):
        load_harbor(tmp_path, domain="general")
    with pytest.raises(InputError, match="no Harbor task there"):
        load_harbor(tmp_path / "one" / "tests", domain="general")
