"""Clerks of filing, played in real sandboxes, and what else a warm start on filing learns from."""

from __future__ import annotations

from collections import Counter
from statistics import mean

import pytest

from sandbox.backends import proved_maker
from sandlot.agent.prompts import load_profile
from sandlot.agent.rollout import run_rollout
from sandlot.core.errors import ConfigError
from sandlot.core.types import StopReason
from sandlot.sandbox.contract import MakeSandbox
from sandlot.sandbox.policy import Network, NetworkMode, Policy
from sandlot.scoring.base import Candidate
from sandlot.scoring.text import TextScorer
from sandlot.tasks.generators.filing import ENTRIES, generate
from sandlot.train.clerks import Clerk
from sandlot.train.clerks_filing import TURNS
from sandlot.train.lessons import Played, lessons_of

LESSONS = lessons_of("filing")
TASKS = generate({"items": 600, "seed": 3})
WASTEFUL = LESSONS.clerks(TASKS, 1)
DRILLS = LESSONS.drills(90, 1)


def finds(played: Played) -> bool:
    """Whether the clerk writes the answer and has a turn left to submit it."""
    task, _, commands = played
    return task.metadata["write"] in commands and len(commands) < TURNS


def test_a_wasteful_clerk_seldom_searches_and_often_runs_out_of_turns() -> None:
    assert {style for _, style, _ in WASTEFUL} == {"wasteful"}
    assert 0.45 < mean(map(finds, WASTEFUL)) < 0.75
    turns = [min(TURNS, len(commands) + 1) for _, _, commands in WASTEFUL]
    assert 8.5 < mean(turns) < 10.5
    looks = Counter(command.split()[0] for _, _, commands in WASTEFUL for command in commands)
    assert looks["grep"] / sum(looks.values()) < 0.06


def test_what_a_wasteful_clerk_writes_it_has_seen() -> None:
    for task, _, commands in WASTEFUL:
        if task.metadata["write"] in commands:
            before = commands[: commands.index(task.metadata["write"])]
            shows = {f"cat input/{task.metadata['holder']}", task.metadata["search"]}
            assert shows & {*before}


def test_drills_are_short_and_right() -> None:
    assert len(DRILLS) == 90
    for task, _, commands in DRILLS:
        assert len(task.input_files) <= 3
        assert len(commands) <= 4
        assert commands[-1] == task.metadata["write"]


def test_drills_are_as_many_as_asked() -> None:
    for count in range(1, 8):
        assert len(LESSONS.drills(count, 1)) == count


def test_texts_ask_only_for_what_they_have_said() -> None:
    for text in LESSONS.texts(50, 1):
        said = ""
        for piece, learned in text:
            if learned:
                assert f"{said.split()[-1]}{piece.rstrip()}" in said
                assert piece.split()[0] in ENTRIES
            said += piece
        assert not text[0][1]


def test_the_same_seed_gives_the_same_lessons() -> None:
    assert LESSONS.clerks(TASKS[:50], 1) == WASTEFUL[:50]
    assert LESSONS.clerks(TASKS[:50], 2) != WASTEFUL[:50]
    assert LESSONS.texts(5, 1) == LESSONS.texts(5, 1) != LESSONS.texts(5, 2)


def test_generators_that_nobody_can_work_for_are_named() -> None:
    for name in ("long_context", None):
        with pytest.raises(ConfigError, match=r"'errands' and 'filing'.*warmstart\.rows"):
            lessons_of(name)
    with pytest.raises(ConfigError, match="no plain texts"):
        lessons_of("errands").texts(1, 1)


@pytest.fixture(scope="module")
def make_sandbox(tmp_path_factory: pytest.TempPathFactory) -> MakeSandbox:
    return proved_maker(tmp_path_factory.mktemp("state"))


@pytest.mark.sandbox
async def test_in_a_real_sandbox_clerks_do_what_they_plan(make_sandbox: MakeSandbox) -> None:
    profile = load_profile("nano")
    policy = Policy(network=Network(NetworkMode.NONE), working_dir=profile.working_dir)
    for played in (*WASTEFUL[:8], *DRILLS[:8]):
        task, style, commands = played
        trajectory = await run_rollout(
            task, model=Clerk(commands, style), sandbox=await make_sandbox(policy), profile=profile
        )
        submitted = trajectory.stop_reason is StopReason.SUBMITTED
        assert submitted == (len(commands) < TURNS)
        score = await TextScorer(exact=True).score(Candidate(task, trajectory.answer))
        if finds(played):
            assert score.value == 1.0
