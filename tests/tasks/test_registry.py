"""Task sets by name and by path, and `sandlot tasks`, which lists and shows them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from sandlot.core.errors import ConfigError, InputError, MissingExtra
from sandlot.scoring.base import Candidate, ScoringTools
from sandlot.scoring.registry import load_scorer, scorer_names
from sandlot.tasks.base import LABELS, LoadedSet
from sandlot.tasks.registry import load_row, load_set, load_sets, members_of, set_names
from sandlot.tasks.rows import LIMITS

ROOT = Path(__file__).resolve().parents[2]
PAPER = ("biomed", "chem", "instruct_follow", "long_context", "math", "physics")
MINI = tuple(f"mini-{name}" for name in PAPER)
MINIMAL = """\
domain = "law"
scorer = "text"

[source]
kind = "file"
path = "rows.jsonl"
"""
RIGHT = {"id": "a", "prompt": "2 + 2?", "answer": "4"}


def load(name: str | Path) -> LoadedSet:
    return load_set(str(name), cache=Path("/nowhere"), environ={}, progress=lambda line: None)


def own(folder: Path, toml: str, *rows: dict[str, object]) -> Path:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows or (RIGHT,)))
    path = folder / "own.toml"
    path.write_text(toml)
    return path


# --- shipped rows ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", set_names())
def test_every_shipped_row_reads_and_names_a_scorer_that_exists(name: str) -> None:
    row = load_row(name)
    assert row.name == name
    assert row.title
    assert row.licence
    if row.members:
        assert set(row.members) <= set(set_names())
    else:
        assert row.scorer in scorer_names()


def test_the_sets_of_the_paper_are_rows_of_the_hub() -> None:
    names = [*PAPER, *(f"{name}_mini" for name in PAPER), "instruct_pretrain"]
    rows = [load_row(name) for name in names]
    assert {row.source.kind for row in rows} == {"hub"}
    assert [row.source.config for row in rows] == names
    for row in rows:
        pinned = re.fullmatch("[0-9a-f]{40}", row.source.revision or "")
        assert pinned or "not pinned: unverified" in row.title


@pytest.mark.parametrize("name", MINI)
def test_each_set_of_mini_loads_with_25_labelled_problems(name: str) -> None:
    loaded = load(name)
    assert len(loaded.tasks) == 25
    labels = Counter(task.metadata["label"] for task in loaded.tasks)
    assert set(labels) == set(LABELS)
    assert {task.domain for task in loaded.tasks} == {loaded.row.domain}


@pytest.mark.parametrize("name", [name for name in MINI if "instruct" not in name])
async def test_the_truths_of_mini_score_one_and_a_wrong_answer_scores_zero(
    name: str, tmp_path: Path
) -> None:
    loaded = load(name)
    tools = ScoringTools(tmp_path, environ=os.environ)
    try:
        scorer = load_scorer(loaded.row.scorer, loaded.row.scorer_options, tools)
    except MissingExtra as exc:
        pytest.skip(str(exc))
    try:
        for task in loaded.tasks:
            right = Candidate(task, f"Answer: {task.target}")
            assert (await scorer.score(right)).value == 1.0, task.id
            assert (await scorer.score(Candidate(task, "Answer: 77.7 km"))).value == 0.0, task.id
    finally:
        await scorer.close()


def test_mini_is_a_group_of_six_and_loads_as_such() -> None:
    assert sorted(members_of("mini")) == sorted(MINI)
    assert members_of("math") == ("math",)
    sets = load_sets("mini", cache=Path("/nowhere"), environ={}, progress=print)
    assert sum(len(loaded.tasks) for loaded in sets) == 150
    ids = [task.id for loaded in sets for task in loaded.tasks]
    assert len(set(ids)) == 150
    with pytest.raises(ConfigError, match=r"group of mini-math, .*load_sets"):
        load("mini")


def test_a_generated_row_loads_and_its_digest_is_stable() -> None:
    loaded = load("long_context_1k")
    assert len(loaded.tasks) == 20
    assert loaded.digest == load("long_context_1k").digest


# --- names and paths -------------------------------------------------------------------------


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"task set 'minni' is not known .*mean 'mini'"):
        load_row("minni")


@pytest.mark.parametrize("path", ["gone.jsonl", "gone.toml", "some/where"])
def test_a_path_that_leads_nowhere_is_said_to(path: str) -> None:
    with pytest.raises(InputError, match="no such file"):
        load_row(path)


def test_a_set_of_ones_own_is_a_toml_file_beside_its_rows(tmp_path: Path) -> None:
    toml = MINIMAL.replace('"text"', '"text"\nrepeats = 3\nleak_hosts = ["answers.example"]')
    loaded = load(own(tmp_path, toml + '[limits]\nmemory = "1GiB"\n'))
    assert loaded.row.name == "own"
    assert loaded.row.repeats == 3
    assert loaded.row.leak_hosts == ("answers.example",)
    assert loaded.row.limits == {"memory": "1GiB"}
    assert [task.domain for task in loaded.tasks] == ["law"]


def test_the_digest_does_not_depend_on_the_folder(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    one, two = (load(own(folder, MINIMAL)).digest for folder in folders)
    assert one == two


def test_a_group_of_ones_own_may_name_shipped_sets_and_files(tmp_path: Path) -> None:
    own(tmp_path, MINIMAL)
    (tmp_path / "both.toml").write_text('members = ["own.toml", "mini-math"]\n')
    sets = load_sets(
        str(tmp_path / "both.toml"), cache=tmp_path, environ={}, progress=lambda line: None
    )
    assert [loaded.row.name for loaded in sets] == ["own", "mini-math"]


def test_a_group_that_holds_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "one.toml").write_text('members = ["two.toml", "mini-math"]\n')
    (tmp_path / "two.toml").write_text('members = ["one.toml"]\n')
    with pytest.raises(ConfigError, match="group that holds itself"):
        members_of(str(tmp_path / "one.toml"))


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ('titel = "x"\n' + MINIMAL, r"own\.toml:1: field 'titel' is not known .*mean 'title'"),
        (MINIMAL + 'spilt = "x"\n', r"own\.toml:7: field 'spilt' is not known .*mean 'split'"),
        (MINIMAL.replace('"file"', '"flie"'), r"own\.toml:5: kind of source 'flie' .*mean 'file'"),
        (MINIMAL.replace('path = "rows.jsonl"', ""), r"'path' is missing in \[source\]"),
        (MINIMAL.replace('domain = "law"', ""), r"'domain' is missing \(found: name, scorer, sou"),
        ("repeats = 0\n" + MINIMAL, r"own\.toml:1: field 'repeats' must be a whole number above"),
        ("title = 3\n" + MINIMAL, r"own\.toml:1: field 'title' must be a text, found 3"),
        ("leak_hosts = 'x'\n" + MINIMAL, r"own\.toml:1: field 'leak_hosts' must be a list of t"),
        ("source = 3\n", r"own\.toml:1: field 'source' must be a table, found 3"),
        ("name = 'a/b'\n" + MINIMAL, r"own\.toml:1: the name 'a/b' goes into names of files"),
        (MINIMAL + "[limits]\nmemroy = '1GiB'\n", r"own\.toml:8: limit 'memroy' .*mean 'memory'"),
        (MINIMAL + "options = { feilds = 1 }\n", r"own\.toml:7: option 'feilds' .*mean 'fields'"),
        (MINIMAL + "[source.options]\nfields = 1\n", r"own\.toml:7: option 'fields' must be a tab"),
        (MINIMAL + 'options = { ids = "x" }\n', r"option 'ids' must be \"number\", found 'x'"),
        ("= 1", r"own\.toml: not valid TOML: .*line 1"),
    ],
)
def test_a_field_that_cannot_be_used_is_named_with_its_line(
    tmp_path: Path, toml: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_row(str(own(tmp_path, toml)))


def test_every_limit_of_a_row_is_a_setting() -> None:
    from sandlot.settings import SETTINGS

    assert set(LIMITS) <= set(SETTINGS)


def test_a_source_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = own(tmp_path, MINIMAL.replace("rows.jsonl", "gone.jsonl"))
    with pytest.raises(InputError, match=r"gone\.jsonl: no such file \(the source of the task set"):
        load(path)
    path = own(tmp_path, MINIMAL.replace('kind = "file"', 'kind = "generator"'))
    with pytest.raises(ConfigError, match=r"generator 'rows\.jsonl' is not known"):
        load(path)


def test_a_bare_file_loads_with_what_was_guessed_said(tmp_path: Path) -> None:
    own(tmp_path, "")
    said: list[str] = []
    path = tmp_path / "rows.jsonl"
    loaded = load_set(str(path), cache=tmp_path, environ={}, progress=said.append)
    assert (loaded.row.name, loaded.row.domain, loaded.row.scorer) == ("rows", "general", "math")
    assert said == [f"{path}: read as domain 'general' with the scorer 'math'"]


def test_inspect_samples_without_ids_are_numbered(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_text('{"input": "p", "target": "x"}\n{"input": "q", "target": "y"}\n')
    assert [task.id for task in load(path).tasks] == ["0001", "0002"]


def test_harbor_folders_load_by_path_and_their_scorer_says_why_it_gives_nothing(
    tmp_path: Path,
) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one/task.toml").write_text('version = "1.0"\n')
    (tmp_path / "one/instruction.md").write_text("Do it.\n")
    loaded = load(tmp_path)
    assert [task.id for task in loaded.tasks] == ["one"]
    with pytest.raises(ConfigError, match=r"graded by its own script \(tests/test\.sh\)"):
        load_scorer(loaded.row.scorer, {}, ScoringTools(tmp_path))
    with pytest.raises(InputError, match=r"has no task\.toml"):
        load_row(str(ROOT / "docs"))


def test_a_count_that_differs_from_the_published_one_is_said(tmp_path: Path) -> None:
    path = own(tmp_path, MINIMAL + "options = { items = 30 }\n")
    said: list[str] = []
    load_set(str(path), cache=tmp_path, environ={}, progress=said.append)
    assert said == ["own: 1 items, where the published set has 30"]


@pytest.mark.parametrize("domain", [*PAPER, "instruct_pretrain"])
def test_samples_of_the_published_sets_load(domain: str) -> None:
    folder = Path(os.environ.get("SANDLOT_SHARED_DATA") or ROOT.parent / "shared" / "data")
    path = folder / f"{domain}.jsonl"
    if not path.is_file():
        pytest.skip(f"no sample data at {path}")
    loaded = load(path)
    assert loaded.row.domain == domain
    assert len(loaded.tasks) == len(path.read_text().splitlines())


# --- the command -----------------------------------------------------------------------------


def command(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "sandlot.cli.main", "tasks", *words],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "HOME": str(folder), "LANG": "C.UTF-8"},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_list_names_every_set_with_its_items_and_licence(tmp_path: Path) -> None:
    text = command(tmp_path).stdout
    for name in set_names():
        assert re.search(rf"^{re.escape(name)} ", text, re.MULTILINE)
    assert re.search(r"^math +30 +math +math +hub .*not pinned", text, re.MULTILINE)
    rows = json.loads(command(tmp_path, "--json").stdout)
    assert [row["name"] for row in rows] == set_names()


def test_an_item_is_shown_as_a_model_gets_it_and_the_truth_only_when_asked(
    tmp_path: Path,
) -> None:
    toml = own(tmp_path, MINIMAL, RIGHT | {"answer": "SECRET", "documents": {"d.txt": "words"}})
    show = ("show", str(toml))
    for words in (show, (*show, "--item", "a"), (*show, "--json")):
        hidden, shown = command(tmp_path, *words), command(tmp_path, *words, "--truth")
        assert "2 + 2?" in hidden.stdout
        assert "SECRET" not in hidden.stdout
        assert "SECRET" in shown.stdout
    assert "d.txt  5 bytes" in command(tmp_path, *show, "--item", "a").stdout
    assert command(tmp_path, *show, "--item", "a", "--file", "d.txt").stdout == "words\n"


def test_what_is_not_there_exits_with_the_nearest_name(tmp_path: Path) -> None:
    toml = str(own(tmp_path, MINIMAL, RIGHT | {"id": "first"}))
    done = command(tmp_path, "show", toml, "--item", "frist")
    assert done.returncode == 2
    assert "Did you mean 'first'?" in done.stderr
    done = command(tmp_path, "show", "gone.toml")
    assert done.returncode == 2
    assert "gone.toml: no such file" in done.stderr


# --- the page --------------------------------------------------------------------------------


def write_example(folder: Path) -> list[str]:
    """The files that the page shows, as it shows them; their names."""
    page = (ROOT / "docs" / "tasks.md").read_text("utf-8")
    blocks = re.findall(
        r"^\*\*([\w.-]+)\*\*\n\n```text\n(.*?)^```$", page, re.MULTILINE | re.DOTALL
    )
    for name, text in blocks:
        (folder / name).write_text(text)
    return [name for name, _ in blocks]


def test_the_pages_example_of_a_set_of_ones_own_loads(tmp_path: Path) -> None:
    assert write_example(tmp_path) == ["bridges.toml", "bridges.jsonl"]
    loaded = load(tmp_path / "bridges.toml")
    assert loaded.row.domain == "engineering"
    assert len(loaded.tasks) == 2
    assert any(task.input_files for task in loaded.tasks)
    shown = command(tmp_path, "show", "bridges.toml", "--item", "span-1")
    assert shown.returncode == 0, shown.stderr


async def test_the_pages_example_scores_its_own_truths(tmp_path: Path) -> None:
    write_example(tmp_path)
    loaded = load(tmp_path / "bridges.toml")
    scorer = load_scorer(loaded.row.scorer, loaded.row.scorer_options, ScoringTools(tmp_path))
    for task in loaded.tasks:
        assert (await scorer.score(Candidate(task, str(task.target)))).value == 1.0
        assert (await scorer.score(Candidate(task, "no idea"))).value == 0.0
    await scorer.close()


def test_the_page_names_every_shipped_set() -> None:
    page = (ROOT / "docs" / "tasks.md").read_text("utf-8")
    for name in set_names():
        assert f"`{name}`" in page or name.removesuffix("_mini") in PAPER or name in MINI, name
