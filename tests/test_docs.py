"""The docs are held to the program: what they name exists, and what they show runs."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
import typing
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer.main

from sandlot.cli.main import app
from sandlot.sandbox.contract import CHECKS
from sandlot.settings import SETTINGS
from sandlot.train.config import TrainConfig, read_config

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
PAGE_IDS = [str(page.relative_to(ROOT)) for page in PAGES]
ANSWER = {
    "tool_calls": [
        {
            "name": "str_replace_editor",
            "arguments": {
                "command": "create",
                "path": "/testbed/output/answer.txt",
                "file_text": "104729\n",
            },
        },
        {"name": "submit", "arguments": {}},
    ]
}
# What a line of the docs may start with besides sandlot itself.
OTHER_PROGRAMS = ("export ", "make ", ".venv/bin/pip ")
LAUNCHER = re.compile(r"accelerate launch .*-m (?=sandlot )")


def blocks(page: Path, language: str) -> list[str]:
    fence = re.compile(rf"^```{language}\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    return fence.findall(page.read_text("utf-8"))


def all_blocks(language: str) -> Iterator[Any]:
    for page in PAGES:
        for number, text in enumerate(blocks(page, language)):
            yield pytest.param(text, id=f"{page.name}-{number}")


def command_lines() -> Iterator[Any]:
    """Each line after a prompt, continuations joined."""
    for page in PAGES:
        for text in blocks(page, "console"):
            for line in text.replace("\\\n", " ").splitlines():
                if line.startswith("$ "):
                    yield pytest.param(line[2:], id=f"{page.name}: {line[2:40]}")


def program() -> Any:
    return typer.main.get_command(app)


def parsed(words: list[str]) -> None:
    """Read the words as the program would, without running a command."""
    command, context = program(), None
    while True:
        context = command.make_context(
            command.name or "sandlot", words, parent=context, resilient_parsing=False
        )
        nested = getattr(command, "commands", {})
        if not nested:
            return
        words = [*context._protected_args, *context.args]
        if not words and getattr(command, "invoke_without_command", False):
            return
        assert words[0] in nested, f"no command {words[0]!r}"
        command, words = nested[words[0]], words[1:]


def anchors(page: Path) -> set[str]:
    """The names that a page's headings get."""
    heads = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def all_flags(command: Any) -> set[str]:
    flags = {flag for parameter in command.params for flag in parameter.opts}
    return flags.union(*(all_flags(child) for child in getattr(command, "commands", {}).values()))


# --- links and names ------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=PAGE_IDS)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = page if not path else page.parent / path
        assert file.exists(), f"{page.name}: {target} leads nowhere"
        assert not anchor or anchor in anchors(file), f"{page.name}: {target} has no such heading"


@pytest.mark.parametrize("page", PAGES, ids=PAGE_IDS)
def test_every_flag_that_is_named_exists(page: Path) -> None:
    known = all_flags(program())
    # Flags of other programs, each named where that program is spoken of.
    known |= {"--check", "--no-deps", "--user", "--die-with-parent", "--size", "--tmp-overlay"}
    known |= {"--unshare-user", "--userns", "--help", "--num_processes"}
    prose = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", prose))
    assert named <= known, f"{page.name} names {sorted(named - known)}"


def test_no_page_names_the_host_of_a_package_registry() -> None:
    # Put together here, so that this file does not name one either.
    hosts = [f"py{'pi'}.", f"files.python{'hosted'}", f"registry.{'npm'}js", f"deb.{'debian'}.org"]
    hosts += [f"archive.{'ubuntu'}.com", f"crates{'.io'}", f"proxy.{'golang'}"]
    for page in PAGES:
        text = page.read_text("utf-8").lower()
        assert not [host for host in hosts if host in text], page.name


@pytest.mark.parametrize("page", PAGES, ids=PAGE_IDS)
def test_every_source_file_that_is_named_exists(page: Path) -> None:
    """A name like `models/base.py` is read as below src/sandlot or below the repository."""
    for name in re.findall(r"`((?:[\w.-]+/)*[\w.-]+\.(?:py|sh|toml))(?:`|::)", page.read_text()):
        places = [ROOT / name, ROOT / "src/sandlot" / name, ROOT / "src/sandlot/sandbox" / name]
        free = name.removeprefix("./") in (
            "sandlot.toml",
            "run.toml",
            "sandlot/config.toml",
            "lease.py",
        )
        assert free or any(place.exists() for place in places), f"{page.name} names {name}"


# --- what is shown runs ---------------------------------------------------------------------


@pytest.mark.parametrize("line", list(command_lines()))
def test_every_command_line_in_the_docs_is_one_that_the_program_takes(line: str) -> None:
    if line.startswith(OTHER_PROGRAMS):
        return
    words = shlex.split(LAUNCHER.sub("", line).replace("…", "text"))
    assert words[0] == "sandlot", f"what is {words[0]}?"
    parsed(words[1:])


def test_the_reader_of_command_lines_refuses_what_the_program_would() -> None:
    for words in (
        ["run", "x", "--no-such-flag"],
        ["shel"],
        ["image", "bild"],
        ["continue", "last"],
    ):
        with pytest.raises(Exception, match=r"(?i)no such|no command|missing"):
            parsed(words)


@pytest.mark.parametrize("text", list(all_blocks("python")))
def test_python_examples_run(text: str, tmp_path: Path) -> None:
    """With the sandbox's double, and a script in place of the model that they name."""
    (tmp_path / "demo" / "input").mkdir(parents=True)
    (tmp_path / "script.jsonl").write_text(json.dumps(ANSWER) + "\n")
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "SANDLOT_BACKEND": "fake",
    }
    done = run_python(text.replace("openai/NAME", "scripted:script.jsonl"), tmp_path, environment)
    assert done.returncode == 0, done.stderr
    if "result.answer, result.stop_reason" in text:
        assert "104729" in done.stdout


@pytest.mark.sandbox
def test_the_example_of_a_computer_alone_computes(tmp_path: Path) -> None:
    (text,) = [text for text in blocks(ROOT / "README.md", "python") if "Sandbox.start" in text]
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "SANDLOT_IMAGE": "host"}
    done = run_python(text, tmp_path, environment)
    if "cannot run here" in done.stderr or "could not start a sandbox" in done.stderr:
        pytest.skip(done.stderr.splitlines()[-1])
    assert done.stdout.split() == [str(2**100)], done.stderr


def run_python(
    text: str, folder: Path, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", text],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("text", list(all_blocks("toml")))
def test_toml_examples_are_toml_with_settings_that_exist(text: str) -> None:
    table = tomllib.loads(text)
    sections = {field.name for field in dataclasses.fields(TrainConfig)}
    if "project" in table or set(table) <= set(SETTINGS):
        return
    assert set(table) <= sections
    if "name" in table:
        read_config(table, "the example")


def test_the_parts_of_a_training_example_fit_together() -> None:
    """Tables that the page adds to its example, for several processes and for a server."""
    page = ROOT / "docs" / "training.md"
    whole, *more = [tomllib.loads(text) for text in blocks(page, "toml")]
    name = whole.pop("name")
    assert len(more) == 2
    for part in more:
        merged = {key: {**whole.get(key, {}), **part.get(key, {})} for key in {*whole, *part}}
        read_config({**merged, "name": name}, "the example")


def test_every_key_of_a_training_run_stands_in_its_page_with_its_default() -> None:
    page = (ROOT / "docs" / "training.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| `([\w.]+)` \| (.*?) \|", page, re.MULTILINE))
    for name, default in keys_of_training():
        assert f"`{name}`" in page, name
        shown = rows.get(name, "").strip("`")
        if name in rows and default is not None and shown not in ("", "none"):
            assert tomllib.loads(f"x = {shown}")["x"] == default, name


def keys_of_training() -> Iterator[tuple[str, Any]]:
    """Dotted names with their defaults; what is a table of its own choosing is one name."""
    hints = typing.get_type_hints(TrainConfig)
    for each in dataclasses.fields(TrainConfig):
        choices = (hints[each.name], *typing.get_args(hints[each.name]))
        section = next((hint for hint in choices if dataclasses.is_dataclass(hint)), None)
        if section is None:
            yield each.name, _default(each)
        else:
            for inner in dataclasses.fields(section):
                yield f"{each.name}.{inner.name}", _default(inner)


def _default(field: dataclasses.Field[Any]) -> Any:
    """As TOML would have it; None where there is none."""
    if field.default is dataclasses.MISSING:
        return None
    return list(field.default) if isinstance(field.default, tuple) else field.default


def test_the_example_of_a_script_is_one(tmp_path: Path) -> None:
    from sandlot.models.scripted import ScriptedModel

    (text,) = blocks(ROOT / "docs" / "models.md", "json")
    (tmp_path / "script.jsonl").write_text(text)
    ScriptedModel.from_file(tmp_path / "script.jsonl")


def test_the_command_reference_is_that_of_the_program() -> None:
    page = (ROOT / "docs" / "cli.md").read_text("utf-8")
    assert page == cli_reference().reference(), "run: python scripts/cli_reference.py"


def cli_reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "cli_reference", ROOT / "scripts/cli_reference.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- tables that must be complete -----------------------------------------------------------


def test_every_stop_reason_and_its_exit_code_stand_in_the_concepts() -> None:
    from sandlot.cli.outcome import code_of_stop
    from sandlot.core.types import StopReason

    page = (ROOT / "docs" / "concepts.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \|.*\| (\d+) \|$", page, re.MULTILINE))
    assert {name: int(code) for name, code in rows.items()} == {
        reason.value: code_of_stop(reason) for reason in StopReason
    }


def test_every_dependency_stands_in_its_page() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    needed = [*project["dependencies"], *(name for extra in extras for name in extra)]
    page = (ROOT / "docs" / "dependencies.md").read_text("utf-8")
    for requirement in needed:
        name = re.split(r"[<>=\[; ]", requirement)[0]
        assert re.search(rf"^\|.*\b{re.escape(name)}\b", page, re.MULTILINE), name


def claim_rows() -> Iterator[Any]:
    page = (ROOT / "docs" / "claims.md").read_text("utf-8")
    for claim, known in re.findall(r"^\| (.+?) \| (.+) \|$", page, re.MULTILINE):
        if claim != "claim" and not set(claim) <= set("-| "):
            yield pytest.param(known, id=claim)


@pytest.mark.parametrize("known", list(claim_rows()))
def test_every_claim_names_a_test_or_an_artefact_or_says_not_verified(known: str) -> None:
    tests = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", known)
    artefacts = re.findall(r"`(bench/results/[\w.-]+)`", known)
    assert tests or artefacts or known.startswith("not verified")
    for file, name in tests:
        source = (ROOT / file).read_text("utf-8")
        assert re.search(rf"def {name}\(", source), f"{file} has no {name}"
    for artefact in artefacts:
        assert (ROOT / artefact).is_file(), f"{artefact} is not there"
    for name in re.findall(r"keeps_the_contract` \(([^)]+)\)", known):
        assert name in {check.name for check in CHECKS}, f"no check is called {name!r}"


def test_there_are_claims_to_check() -> None:
    assert len(list(claim_rows())) > 30
