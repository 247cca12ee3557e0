"""The arms: what each takes away, how prompts and documents differ, how votes are counted."""

from __future__ import annotations

from pathlib import Path

import pytest
from experiments import ANSWER_FILE, Experiment, plan, task, task_set, used

from sandlot.agent.prompts import load_profile
from sandlot.api import open_computer
from sandlot.bench.arms import ARMS, arms_of, profile_of, task_for, tools_of
from sandlot.bench.controls import check_controls
from sandlot.bench.plan import Condition, conditions_of
from sandlot.bench.records import Episode
from sandlot.bench.votes import count_votes
from sandlot.core.errors import ConfigError, SandboxError
from sandlot.core.types import StopReason
from sandlot.models.scripted import bash, edit, submit
from sandlot.sandbox.base import Sandbox
from sandlot.sandbox.fake import FakeSandbox
from sandlot.settings import resolve


def test_both_is_short_for_the_first_two_and_names_keep_their_order() -> None:
    assert [arm.name for arm in arms_of("both")] == ["llm", "sandbox"]
    named = arms_of("sandbox-no-exec, both,llm")
    assert [arm.name for arm in named] == ["sandbox-no-exec", "llm", "sandbox"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("sandbox-no-nework", "Did you mean 'sandbox-no-network'"),
        ("", "no arm is named"),
        ("llm,llm-token-matched", "is matched to the tokens of 'sandbox'"),
    ],
)
def test_an_arm_that_cannot_be_run_is_refused_by_name(words: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        arms_of(words)


def test_every_ablation_differs_from_the_sandbox_arm_in_one_thing(tmp_path: Path) -> None:
    """Same prompt, same documents: the capability is all that is taken."""
    row = task_set().row
    same = load_profile("benchmark")
    for arm in ARMS.values():
        if arm.takes is not None:
            assert profile_of(arm, row, None) == same
            assert arm.documents == "files"
            assert sum((arm.network is not None, arm.tools is not None, arm.forgets)) == 1


def test_the_answer_is_asked_for_in_the_same_form_in_every_arm() -> None:
    row = task_set().row
    for arm in ARMS.values():
        assert "ANSWER: the answer itself" in profile_of(arm, row, None).instance_prompt


def test_where_the_whole_text_is_the_answer_no_form_is_asked_for() -> None:
    row = task_set(scorer="instructions").row
    for arm in ARMS.values():
        assert "ANSWER:" not in profile_of(arm, row, None).instance_prompt


def test_documents_go_into_the_prompt_where_there_is_no_folder_for_them(tmp_path: Path) -> None:
    (tmp_path / "more.txt").write_text("from a folder")
    given = task(
        "a", input_files={"one.txt": b"first\n", "x.bin": b"\xff"}, input_dir=str(tmp_path)
    )
    put = task_for(ARMS["llm"], given)
    assert put.prompt.endswith("</document>\n\nWhat is a?")
    for part in ("'one.txt'>\nfirst\n<", "not text: 1 bytes", "from a folder"):
        assert part in put.prompt
    assert not put.input_files
    assert put.input_dir is None
    assert task_for(ARMS["sandbox"], given) is given


def test_the_network_arm_overrides_even_what_the_user_asked_for(tmp_path: Path) -> None:
    made = plan(tmp_path, arms="sandbox,sandbox-no-network", settings={"network": "open"})
    conditions = conditions_of(made, {})
    assert conditions["tiny", "sandbox"].policy.network.mode == "open"
    none = conditions["tiny", "sandbox-no-network"].policy
    assert none.network.mode == "none"
    assert "network" in none.asked  # enforced or refused, never a best effort


def test_the_majority_answers_and_a_tie_goes_to_the_earliest() -> None:
    replies = ["ANSWER: 7", "so\nANSWER: 42", "ANSWER:  42 ", "x" * 3000, "ANSWER: 7"]
    ballot = count_votes(replies, whole_text=False)
    assert (ballot.text, ballot.votes, ballot.replies) == ("ANSWER: 7", 2, 5)
    assert count_votes([*replies, "Answer: 42"], whole_text=False).text == "so\nANSWER: 42"
    assert count_votes(["a b", "A  B", "c"], whole_text=True).text == "a b"
    assert count_votes([], whole_text=False).text is None


async def test_the_voting_arm_replies_until_the_sandbox_arms_tokens_are_used(
    tmp_path: Path,
) -> None:
    replies = ["ANSWER: 1", "ANSWER: 42", "ANSWER: 42"]

    def script(job):  # type: ignore[no-untyped-def]
        if job.condition.arm.votes:
            return [used(text, 70, 10) for text in replies]
        if job.condition.arm.mode == "llm":
            return [used("ANSWER: 1")]
        return [used(edit("create", ANSWER_FILE, file_text="ANSWER: 42")), used(submit(), 110)]

    made = plan(tmp_path, task_set(task("a")), arms="llm-token-matched,both")
    experiment = Experiment(made, script)
    directory = await experiment.run()
    matched = directory.episodes()[Episode("tiny", "a", "llm-token-matched", 0)]
    assert matched.meters.billed_prompt_tokens == 210  # 3 × 80 tokens reach the sandbox arm's 230
    assert matched.answer == "ANSWER: 42"
    assert matched.stop_detail == "2 of 3 replies gave this answer"


async def test_each_vote_has_a_seed_of_its_own_and_repeats_pair_across_arms(tmp_path: Path) -> None:
    made = plan(
        tmp_path,
        task_set(task("a")),
        arms="both,llm-token-matched",
        repeats=2,
        settings={"seed": 5},
    )
    experiment = Experiment(made)
    await experiment.run()
    seeds = {
        (episode.arm, episode.repeat): [r.sampling.seed for m in models for r in m.requests]
        for episode, models in experiment.models.items()
    }
    (first,), (second,) = seeds["llm", 0], seeds["llm", 1]
    assert first != second
    assert seeds["sandbox", 0] == [first, first]
    votes = seeds["llm-token-matched", 0]
    assert votes[0] == first
    assert len(set(votes)) == len(votes) > 1


async def test_each_item_is_drawn_with_a_seed_of_its_own(tmp_path: Path) -> None:
    """With one seed for all items they go right and wrong together."""
    made = plan(
        tmp_path,
        task_set(*(task(f"t{number}") for number in range(30))),
        arms="llm",
        settings={"seed": 5},
    )
    experiment = Experiment(made)
    await experiment.run()
    seeds = [
        request.sampling.seed
        for models in experiment.models.values()
        for model in models
        for request in model.requests
    ]
    assert len(set(seeds)) == len(seeds) == 30
    assert all(seed is not None and 0 <= seed < 2**30 for seed in seeds)


async def test_a_voting_arm_without_a_budget_is_missing_not_wrong(tmp_path: Path) -> None:
    def script(job):  # type: ignore[no-untyped-def]
        return [] if job.condition.arm.mode == "sandbox" else [used("ANSWER: 42")] * 9

    made = plan(tmp_path, task_set(task("a")), arms="both,llm-token-matched", attempts=1)
    directory = await Experiment(made, script).run()
    record = directory.episodes()[Episode("tiny", "a", "llm-token-matched", 0)]
    assert record.failure == "unmatched"
    assert "failed, so there is no budget" in record.stop_detail


async def test_the_forgetting_arm_loses_all_but_the_answer(tmp_path: Path) -> None:
    notes = "/testbed/notes.txt"

    def script(job):  # type: ignore[no-untyped-def]
        return [
            edit("create", notes, file_text="remember"),
            edit("create", ANSWER_FILE, file_text="ANSWER: 42"),
            edit("view", notes),
            submit(),
        ]

    made = plan(tmp_path, task_set(task("a")), arms="sandbox,sandbox-no-files")
    directory = await Experiment(made, script).run()
    with_files = directory.trajectory(Episode("tiny", "a", "sandbox", 0))
    without = directory.trajectory(Episode("tiny", "a", "sandbox-no-files", 0))
    assert with_files.turns[2].tool_results[0].ok
    assert not without.turns[2].tool_results[0].ok
    assert without.answer == "ANSWER: 42"
    assert without.stop_reason is StopReason.SUBMITTED
    assert not (directory.path / ".scratch").exists()


async def test_what_cannot_be_made_to_forget_ends_the_rollout(tmp_path: Path) -> None:
    """An ablation whose wall fell must not count as one that held."""

    class Stubborn(FakeSandbox):
        async def restore(self, source: Path) -> None:
            raise SandboxError("no")

    def script(job):  # type: ignore[no-untyped-def]
        return [edit("create", "/testbed/notes.txt", file_text="x"), submit()]

    made = plan(tmp_path, task_set(task("a")), arms="sandbox-no-files", attempts=1)
    directory = await Experiment(made, script, box=lambda c: Stubborn(policy=c.policy)).run()
    (record,) = directory.episodes().values()
    assert record.failure == "sandbox_died"
    assert "could not be made to forget" in record.stop_detail


async def test_the_arm_without_execution_offers_only_the_editor(tmp_path: Path) -> None:
    def script(job):  # type: ignore[no-untyped-def]
        return [bash("echo 1"), submit()]

    made = plan(tmp_path, task_set(task("a")), arms="sandbox-no-exec")
    experiment = Experiment(made, script)
    directory = await experiment.run()
    (episode,) = directory.episodes()
    offered = experiment.models[episode][0].requests[0].tools
    assert [spec.name for spec in offered] == ["str_replace_editor", "submit"]
    (refused,) = directory.trajectory(episode).turns[0].tool_results
    assert not refused.ok
    assert experiment.boxes[0].commands == []


def test_output_is_carried_over_only_where_it_is_what_is_scored(tmp_path: Path) -> None:
    profile = load_profile("benchmark")
    (tool, *_) = tools_of(ARMS["sandbox-no-files"], profile, task_set().row, tmp_path)
    assert tool._memory._output_dir is None  # type: ignore[attr-defined]
    row = task_set(scorer="files").row
    (tool, *_) = tools_of(ARMS["sandbox-no-files"], profile, row, tmp_path)
    assert tool._memory._output_dir == "/testbed/output"  # type: ignore[attr-defined]


# In real sandboxes.


def ablations(tmp_path: Path) -> list[Condition]:
    settings = {"backend": "bubblewrap", "image": "host"}
    arms = "sandbox-no-network,sandbox-no-exec,sandbox-no-files"
    made = plan(tmp_path, arms=arms, settings=settings)
    return list(conditions_of(made, {}).values())


async def real_box(condition: Condition) -> Sandbox:
    settings = resolve({"backend": "bubblewrap", "image": "host"})
    return (await open_computer(settings, condition.policy, {}, lambda text: None))[0]


@pytest.mark.sandbox
async def test_every_control_bites_in_a_real_sandbox(tmp_path: Path) -> None:
    evidence = await check_controls(ablations(tmp_path), real_box, tmp_path)
    assert [item["arm"] for item in evidence] == [c.arm.name for c in ablations(tmp_path)]
    assert all(item["bites"] for item in evidence)
    assert "answered" in evidence[0]["without"]
    assert "answered" not in evidence[0]["under"]
    assert "no tool 'execute_bash'" in evidence[1]["under"]
    assert evidence[2]["under"].startswith("cat: /testbed/control: No such file")


@pytest.mark.sandbox
@pytest.mark.parametrize("takes", ["external", "computation", "files"])
async def test_a_control_that_does_not_bite_stops_the_run(tmp_path: Path, takes: str) -> None:
    """The ablation's wall is taken down: the control must notice."""
    from dataclasses import replace

    (condition,) = [c for c in ablations(tmp_path) if c.arm.takes == takes]
    open_arm = replace(condition.arm, tools=None, forgets=False)
    usual = conditions_of(plan(tmp_path, arms="sandbox"), {})["tiny", "sandbox"].policy
    fallen = replace(condition, arm=open_arm, policy=usual)
    with pytest.raises(SandboxError, match="does not bite"):
        await check_controls([fallen], real_box, tmp_path)
