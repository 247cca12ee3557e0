"""The shipped set `create`: every request can be met, and one thing wrong is one failed check."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from sandbox.backends import proved_maker
from sandlot.agent.prompts import load_profile
from sandlot.agent.rollout import run_rollout
from sandlot.core.types import Score, Task
from sandlot.models.scripted import ScriptedModel, bash, submit
from sandlot.sandbox.contract import MakeSandbox, opened
from sandlot.sandbox.policy import Network, NetworkMode, Policy
from sandlot.scoring.base import Candidate, ScoringTools
from sandlot.scoring.files import FilesScorer, asked_files
from sandlot.tasks.base import LABELS, LoadedSet
from sandlot.tasks.registry import load_set

SCRIPTS = Path(__file__).parent / "create_scripts"
LIBRARIES = ("av", "defusedxml", "mido", "openpyxl", "PIL", "pypdf", "zxingcpp")

ONE_WRONG = {
    "create-01": "flag.png colour_at",
    "create-02": "logo.svg count",
    "create-03": "ramp.png mode",
    "create-04": "qr.png qr",
    "create-05": "poster.png qr",
    "create-06": "poster.svg texts",
    "create-07": "totals.csv rows",
    "create-08": "fit.json fields",
    "create-09": "ages.svg proportional",
    "create-10": "ball.mp4 moves",
    "create-11": "spinner.gif loops",
    "create-12": "lights.mp4 colour_when",
    "create-13": "tone.wav pitch",
    "create-14": "metronome.wav onsets",
    "create-15": "fifth.wav duration",
    "create-16": "tune.mid duration",
    "create-17": "melody.mid melody",
    "create-18": "map.html stays_inside",
    "create-19": "convert.html no_errors",
    "create-20": "staff.html evaluates",
    "create-21": "report.pdf page_size",
    "create-22": "certificate.pdf metadata",
    "create-23": "orders.xlsx formulas",
    "create-24": "places.geojson points",
}
"""The one check that the near miss of each task fails."""

PAGES = ("create-18", "create-19", "create-20")


def load(cache: Path) -> LoadedSet:
    return load_set("create", cache=cache, environ={}, progress=lambda _: None)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Task]:
    return {task.id: task for task in load(tmp_path_factory.mktemp("cache")).tasks}


@pytest.fixture(scope="module")
def write() -> Callable[[str, Path, Path, bool], None]:
    """Runs a task's script in this process."""
    sys.path.insert(0, str(SCRIPTS))
    try:
        table: dict[str, Callable[[Path, Path, bool], None]] = import_module("scripts").SCRIPTS
    finally:
        sys.path.remove(str(SCRIPTS))
    return lambda task_id, output, given, miss: table[task_id](output, given, miss)


def need_libraries() -> None:
    absent = [name for name in LIBRARIES if find_spec(name) is None]
    if absent:
        pytest.skip(f'without {", ".join(absent)}: pip install "sandlot[create]"')


def need_browser(score: Score) -> None:
    """A score that is missing for want of a browser skips; any other reason is a failure."""
    if score.missing and ("no Chromium" in score.missing or "bubblewrap" in score.missing):
        pytest.skip(score.missing)


def lay_out(task: Task, folder: Path) -> Path:
    folder.mkdir()
    for name, data in task.input_files.items():
        (folder / name).write_bytes(data)
    return folder


def told(score: Score) -> str:
    """The checks that failed, for the message of a test."""
    shown: list[Any] = [one for one in score.details.get("checks", ()) if not one["passed"]]
    return f"{score.task_id}: {score.value} {score.missing or ''} {shown}"


def test_the_set_has_24_requests_of_eight_sorts_with_spelled_out_checks(
    tmp_path: Path,
) -> None:
    loaded = load(tmp_path)
    assert loaded.row.scorer == "files"
    assert [task.id for task in loaded.tasks] == [f"create-{n:02d}" for n in range(1, 25)]
    kinds = {task.metadata["kind"] for task in loaded.tasks}
    assert kinds >= {"picture", "poster", "plot", "video", "sound", "page", "pdf", "spreadsheet"}
    for task in loaded.tasks:
        assert task.metadata["label"] in LABELS
        asked = asked_files(task)
        assert all(one.checks for one in asked)
        assert all(one.path in task.prompt for one in asked)


def test_no_prompt_leaves_a_checked_text_or_number_unsaid(tasks: dict[str, Task]) -> None:
    """A reader of the prompt alone can know every text that is looked for."""
    for task in tasks.values():
        given = task.prompt + "".join(data.decode() for data in task.input_files.values())
        for asked in asked_files(task):
            for one in asked.checks:
                texts = [one["text"]] if isinstance(one.get("text"), str) else []
                texts += [text for page in one.get("pages", ()) for text in page]
                texts += list(one.get("fields", {}).values()) if asked.kind == "pdf" else []
                assert all(text in given for text in texts), (task.id, one)


def test_every_task_has_a_near_miss_of_its_own(tasks: dict[str, Task]) -> None:
    for task_id, failed in ONE_WRONG.items():
        path, _, check = failed.partition(" ")
        asked = {one.path: one for one in asked_files(tasks[task_id])}
        assert check in {one["check"] for one in asked[path].checks}
    assert set(ONE_WRONG) == set(tasks)


async def bracket(
    task: Task,
    tools: ScoringTools,
    tmp_path: Path,
    write: Callable[[str, Path, Path, bool], None],
) -> None:
    given = lay_out(task, tmp_path / "given")
    scorer = FilesScorer(tools, helpers=1)
    try:
        for miss in (False, True):
            output = tmp_path / f"output-{miss}"
            output.mkdir()
            write(task.id, output, given, miss)
            score = await scorer.score(Candidate(task, "done", output))
            need_browser(score)
            assert score.value == (0.0 if miss else 1.0), told(score)
            assert score.details["failed"] == ([ONE_WRONG[task.id]] if miss else [])
            assert (score.details["parts"] == 1.0) is not miss
    finally:
        await scorer.close()


@pytest.fixture
def tools(tmp_path: Path) -> ScoringTools:
    return ScoringTools(cache_dir=tmp_path / "cache", environ=dict(os.environ))


@pytest.mark.parametrize("task_id", [name for name in ONE_WRONG if name not in PAGES])
async def test_what_was_asked_scores_1_and_one_thing_wrong_scores_0(
    task_id: str,
    tasks: dict[str, Task],
    tools: ScoringTools,
    tmp_path: Path,
    write: Callable[[str, Path, Path, bool], None],
) -> None:
    need_libraries()
    await bracket(tasks[task_id], tools, tmp_path, write)


@pytest.mark.slow
@pytest.mark.parametrize("task_id", PAGES)
async def test_pages_are_opened_in_a_browser_to_find_the_one_thing_wrong(
    task_id: str,
    tasks: dict[str, Task],
    tools: ScoringTools,
    tmp_path: Path,
    write: Callable[[str, Path, Path, bool], None],
) -> None:
    need_libraries()
    await bracket(tasks[task_id], tools, tmp_path, write)


@pytest.fixture(scope="module")
def make_sandbox(tmp_path_factory: pytest.TempPathFactory) -> MakeSandbox:
    return proved_maker(tmp_path_factory.mktemp("state"))


@pytest.mark.sandbox
@pytest.mark.slow
async def test_scripts_in_a_real_sandbox_bracket_every_scorer(
    tasks: dict[str, Task], tools: ScoringTools, tmp_path: Path, make_sandbox: MakeSandbox
) -> None:
    """Without network: the standard library of the sandbox's own Python writes all 24."""
    need_libraries()
    scorer = FilesScorer(tools, helpers=1)
    policy = Policy(network=Network(NetworkMode.NONE))
    try:
        async with opened(make_sandbox, policy) as sandbox:
            await sandbox.upload(SCRIPTS, "/testbed/scripts")
            for task in tasks.values():
                for miss in (False, True):
                    score = await made_inside(sandbox, scorer, task, tmp_path, miss)
                    if score.missing and task.id in PAGES:
                        continue  # the machine has no browser; the test of pages says so
                    assert score.value == (0.0 if miss else 1.0), told(score)
                    assert score.details["failed"] == ([ONE_WRONG[task.id]] if miss else [])
    finally:
        await scorer.close()


TONE = """
python3 - <<'END'
import math, struct, wave
with wave.open('/testbed/output/tone.wav', 'wb') as file:
    file.setnchannels(1); file.setsampwidth(2); file.setframerate(44100)
    wave = [round(16000 * math.sin(2 * math.pi * 440 * n / 44100)) for n in range(88200)]
    file.writeframes(struct.pack('<88200h', *wave))
END
"""


@pytest.mark.sandbox
@pytest.mark.slow
async def test_a_rollout_with_the_sets_own_profile_leaves_what_the_scorer_looks_for(
    tools: ScoringTools, tmp_path: Path, make_sandbox: MakeSandbox
) -> None:
    loaded = load(tmp_path / "cache")
    (task,) = (task for task in loaded.tasks if task.id == "create-13")
    profile = load_profile(loaded.row.profile)
    model = ScriptedModel(
        bash(TONE), bash(f"echo 'a tone of 440 Hz' > {profile.answer_file}"), submit()
    )
    output = tmp_path / "output"
    async with opened(make_sandbox, Policy(network=Network(NetworkMode.NONE))) as sandbox:
        trajectory = await run_rollout(
            task, model=model, sandbox=sandbox, profile=profile, output_dir=output
        )
    assert sorted(path.name for path in output.iterdir()) == ["answer.txt", "tone.wav"]
    scorer = FilesScorer(tools, helpers=1)
    try:
        score = await scorer.score(Candidate(task, trajectory.answer, output))
    finally:
        await scorer.close()
    assert score.value == 1.0, told(score)


async def made_inside(
    sandbox: Any, scorer: FilesScorer, task: Task, tmp_path: Path, miss: bool
) -> Score:
    for name, data in task.input_files.items():
        await sandbox.write_file(f"/testbed/documents/{name}", data)
    ran = await sandbox.exec(
        "rm -rf /testbed/output && python3 /testbed/scripts/run.py "
        f"{task.id} /testbed/output /testbed/documents {'miss' if miss else ''}"
    )
    assert ran.exit_code == 0, ran.stderr
    output = tmp_path / f"{task.id}-{miss}"
    output.mkdir()
    _, skipped = await sandbox.collect(["/testbed/output"], output)
    assert not skipped
    return await scorer.score(Candidate(task, "done", output))
