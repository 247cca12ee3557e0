"""Clerks do what their style says: efficient and wandering ones are right, guessing ones wrong."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from random import Random
from statistics import mean

import pytest

from sandbox.backends import proved_maker
from sandlot.agent.prompts import load_profile
from sandlot.agent.rollout import run_rollout
from sandlot.core.errors import ConfigError
from sandlot.core.types import Message, StopReason, Task
from sandlot.sandbox.contract import MakeSandbox, opened
from sandlot.sandbox.policy import Network, NetworkMode, Policy
from sandlot.scoring.base import Candidate
from sandlot.scoring.text import TextScorer, same_text
from sandlot.tasks.generators.errands import DRILLS, FURTHER, HELD_OUT, TRIAL, generate, make_item
from sandlot.train.clerks import LESSONS, MIX, Clerk, clerk_mix, guess, plan

FAMILIES = (*TRIAL, *FURTHER, *HELD_OUT, *DRILLS)
TASKS = generate({"families": FAMILIES, "items": 1080, "seed": 8})


def plans(style: str) -> list[tuple[str, ...]]:
    rng = Random(f"test {style}")
    return [plan(task, rng, style) for task in TASKS]


def test_an_efficient_clerk_needs_one_command() -> None:
    assert plans("efficient") == [(task.metadata["efficient"],) for task in TASKS]


def test_a_wandering_clerk_takes_5_to_8_calls_and_its_work_is_among_them() -> None:
    found = plans("wandering")
    calls = [len(commands) + 1 for commands in found]
    assert (min(calls), max(calls)) == (5, 8)
    assert 6.15 < mean(calls) < 6.45
    for task, commands in zip(TASKS, found, strict=True):
        assert commands.count(task.metadata["efficient"]) == 1
        assert sum(">" in command for command in commands) == 1


def test_a_guessing_clerk_takes_about_3_calls_and_never_computes() -> None:
    found = plans("guessing")
    assert 2.8 < mean(len(commands) + 1 for commands in found) < 3.2
    for task, commands in zip(TASKS, found, strict=True):
        assert task.metadata["efficient"] not in commands
        assert commands[-1].startswith("echo ")


def test_a_guess_is_never_right() -> None:
    for task in TASKS:
        for attempt in range(20):
            assert not same_text(guess(task, Random(f"{task.id} {attempt}")), str(task.target))


def test_a_guess_at_one_figure_is_another_figure() -> None:
    task = Task("t", "How many?", target="7", metadata={"efficient": "wc"})
    guesses = {guess(task, Random(seed)) for seed in range(200)}
    assert guesses == set("12345689")


def test_a_mix_holds_its_shares_and_is_the_same_each_time() -> None:
    mix = clerk_mix(TASKS[:240], 1)
    assert Counter(style for _, style, _ in mix) == {
        "efficient": 72, "wandering": 132, "guessing": 36,
    }  # fmt: skip
    assert [task for task, _, _ in mix] == list(TASKS[:240])
    assert mix == clerk_mix(TASKS[:240], 1)
    assert mix != clerk_mix(TASKS[:240], 2)
    assert sum(MIX.values()) == pytest.approx(1)
    for count in range(1, 40):
        assert len(clerk_mix(TASKS[:count], 1)) == count


def test_an_unknown_style_is_named() -> None:
    with pytest.raises(ConfigError, match=r"style of clerks 'guesing' .*mean 'guessing'"):
        plan(TASKS[0], Random(1), "guesing")


async def test_a_clerk_goes_by_the_history_and_submits_when_all_is_played() -> None:
    clerk = Clerk(("ls", "pwd"), "wandering")
    history = [Message.user("do it")]
    played = []
    for _ in range(4):
        reply = (await clerk.complete(history)).message
        (call,) = reply.tool_calls
        played.append((call.id, call.name, call.arguments))
        history.append(reply)
    assert played == [
        ("call_0", "execute_bash", '{"command": "ls"}'),
        ("call_1", "execute_bash", '{"command": "pwd"}'),
        ("call_2", "submit", "{}"),
        ("call_3", "submit", "{}"),
    ]
    assert clerk.name == "clerk:wandering"
    await clerk.close()


# --- in a real sandbox ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def make_sandbox(tmp_path_factory: pytest.TempPathFactory) -> MakeSandbox:
    return proved_maker(tmp_path_factory.mktemp("state"))


@pytest.mark.sandbox
@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
async def test_clerks_end_as_their_style_says_in_a_real_sandbox(
    family: str, make_sandbox: MakeSandbox, tmp_path: Path
) -> None:
    task = make_item(family, 6, 0)
    profile = load_profile("taught")
    for style, right in (("efficient", 1.0), ("wandering", 1.0), ("guessing", 0.0)):
        commands = plan(task, Random(f"{family} {style}"), style)
        async with opened(make_sandbox, Policy(network=Network(NetworkMode.NONE))) as sandbox:
            trajectory = await run_rollout(
                task,
                model=Clerk(commands, style),
                sandbox=sandbox,
                profile=profile,
                output_dir=tmp_path / style,
            )
        assert trajectory.stop_reason is StopReason.SUBMITTED
        assert len(trajectory.turns) == len(commands) + 1
        score = await TextScorer(exact=True).score(Candidate(task, trajectory.answer or ""))
        assert score.value == right, (style, commands, trajectory.answer)


@pytest.mark.parametrize("count", [1, 2, 7, 300])
def test_drills_are_as_many_as_asked(count: int) -> None:
    assert len(LESSONS.drills(count, 3)) == count


def test_drills_exercise_each_trained_family_and_no_other() -> None:
    drills = LESSONS.drills(300, 3)
    times = Counter(task.metadata["family"] for task, _, _ in drills)
    assert set(times) == {*TRIAL, *FURTHER, *DRILLS}
    assert times["copy"] == 120
    assert all(times[family] == 12 for family in (*TRIAL, *FURTHER))
    styles = Counter((task.metadata["family"] == "copy", style) for task, style, _ in drills)
    assert styles == {(True, "efficient"): 120, (False, "efficient"): 81, (False, "wandering"): 99}
    assert all(task.metadata["efficient"] in commands for task, _, commands in drills)
