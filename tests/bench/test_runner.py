"""The run of an experiment: order, failures of ours, limits, money, and what reaches the disk."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path

import pytest
from experiments import (
    Experiment,
    answering,
    perfect,
    plan,
    stub,
    task,
    task_set,
    used,
    values,
)

from sandlot.bench.limits import Host, Throttle
from sandlot.bench.meters import Price
from sandlot.bench.records import Episode
from sandlot.bench.store import BenchDirectory
from sandlot.core.errors import ConfigError, ModelError, RecordError, SandboxUnavailable
from sandlot.core.types import StopReason
from sandlot.models.fake_server import FakeOpenAIServer, FakeRequest, Status, reply
from sandlot.models.openai_chat import OpenAIChatModel
from sandlot.models.scripted import bash
from sandlot.sandbox.fake import FakeSandbox


async def test_a_perfect_model_scores_one_and_a_wrong_one_zero_in_both_modes(
    tmp_path: Path,
) -> None:
    def wrong(job):  # type: ignore[no-untyped-def]
        if job.condition.arm.mode == "sandbox":
            return answering("ANSWER: 41\n")
        return [used("ANSWER: 41")]

    for script, score in ((perfect, 1.0), (wrong, 0.0)):
        directory = await Experiment(plan(tmp_path), script).run()
        assert set(values(directory).values()) == {score}
        assert len(values(directory)) == 4


async def test_the_run_directory_tells_all_there_is_to_tell(tmp_path: Path) -> None:
    cluster = {"label": "neutral", "subject": "sums"}
    loaded = task_set(task("a/b", metadata=cluster), cluster="subject")
    experiment = Experiment(plan(tmp_path, loaded, settings={"seed": 3}))
    directory = BenchDirectory.open((await experiment.run()).path)
    assert directory.path.name.endswith("-tiny-both")
    manifest = directory.manifest
    assert manifest["sets"]["tiny"]["digest"] == "digest of tiny"
    assert list(manifest["arms"]) == ["llm", "sandbox"]
    assert manifest["seed"] == 3
    assert len(manifest["profiles"]["benchmark"]["digest"]) == 64
    assert manifest["policies"]["tiny, sandbox"]["network"]["mode"] == "packages"
    assert manifest["settings"]["model"] == "scripted:none.jsonl"
    record = directory.episodes()[Episode("tiny", "a/b", "sandbox", 0)]
    assert (record.label, record.cluster, record.domain) == ("neutral", "sums", "math")
    assert record.meters.billed_prompt_tokens == 210
    assert record.stop_reason is StopReason.SUBMITTED
    trajectory = directory.trajectory(record.episode)
    assert trajectory.metadata["content_key"] == record.content_key
    files = directory.files_path(record.episode)
    assert (files / "answer.txt").read_text() == "ANSWER: 42\n"
    assert directory.tasks()["tiny", "a/b"].target == "42"


async def test_the_arms_of_an_item_follow_each_other(tmp_path: Path) -> None:
    two = (task_set(name="one"), task_set(task("c"), name="two"))
    directory = await Experiment(plan(tmp_path, *two, concurrency=1, repeats=2)).run()
    order = [(r.episode.item, r.episode.arm, r.episode.repeat) for r in directory.attempts()]
    first = [(item, arm) for item in "acb" for arm in ("llm", "sandbox")]
    assert order == [(*pair, repeat) for repeat in (0, 1) for pair in first]


async def test_a_failure_of_ours_is_tried_again_and_then_missing_never_wrong(
    tmp_path: Path,
) -> None:
    def script(job):  # type: ignore[no-untyped-def]
        episode = job.item.episode
        if episode.arm == "llm" and (episode.item == "a" or job.attempt == 1):
            return [ModelError("503 from the provider", status=503)]
        return perfect(job)

    experiment = Experiment(plan(tmp_path, attempts=2), script)
    directory = await experiment.run()
    assert values(directory) == {
        ("a", "llm", 0): None,
        ("b", "llm", 0): 1.0,
        ("a", "sandbox", 0): 1.0,
        ("b", "sandbox", 0): 1.0,
    }
    failed = directory.episodes()[Episode("tiny", "a", "llm", 0)]
    assert (failed.attempt, failed.failure) == (2, "model_error")
    assert "503" in failed.stop_detail
    last = experiment.states[-1]
    assert (last.done, last.total, last.failed) == (4, 4, 1)
    assert last.arms["llm"].mean == 1.0
    assert last.arms["llm"].scored == 1


async def test_a_model_error_in_the_middle_goes_on_where_it_was(tmp_path: Path) -> None:
    """Turns that were paid for are not paid for again."""

    def script(job):  # type: ignore[no-untyped-def]
        replies = perfect(job)
        return [replies[0], ModelError("outage")] if job.attempt == 1 else replies

    experiment = Experiment(plan(tmp_path, task_set(task("a")), arms="sandbox"), script)
    directory = await experiment.run()
    (record,) = directory.episodes().values()
    assert (record.attempt, record.continued, record.restarted) == (2, 1, 0)
    assert record.meters.turns == 2
    assert experiment.asked(record.episode) == 3  # the failed call is the only one asked twice


async def test_a_machine_that_cannot_start_sandboxes_is_a_class_of_its_own(tmp_path: Path) -> None:
    def broken(condition):  # type: ignore[no-untyped-def]
        raise SandboxUnavailable("no namespaces here")

    directory = await Experiment(plan(tmp_path, arms="both"), box=broken).run()
    records = directory.episodes().values()
    assert {r.failure for r in records if r.episode.arm == "sandbox"} == {"unavailable"}
    assert {r.failure for r in records if r.episode.arm == "llm"} == {None}


async def test_a_bug_costs_one_episode_and_leaves_its_traceback(tmp_path: Path) -> None:
    def script(job):  # type: ignore[no-untyped-def]
        if job.item.episode.item == "a":
            raise ZeroDivisionError("in our own code")
        return perfect(job)

    experiment = Experiment(plan(tmp_path, arms="llm", attempts=1), script)
    directory = await experiment.run()
    assert values(directory) == {("a", "llm", 0): None, ("b", "llm", 0): 1.0}
    record = directory.episodes()[Episode("tiny", "a", "llm", 0)]
    assert record.failure == "crash"
    assert "ZeroDivisionError: in our own code" in record.stop_detail
    assert any("ZeroDivisionError" in note for note in experiment.notes)


async def test_a_bad_input_is_not_tried_again(tmp_path: Path) -> None:
    bad = task("b", input_files={"../escape": b"x"})
    directory = await Experiment(plan(tmp_path, task_set(bad), arms="sandbox", attempts=5)).run()
    (record,) = directory.attempts()
    assert (record.failure, record.attempt) == ("input_error", 1)


async def test_an_episode_that_hangs_ends_at_its_deadline(tmp_path: Path) -> None:
    async def hang(command: str) -> str:
        await asyncio.sleep(3600)
        return ""

    def script(job):  # type: ignore[no-untyped-def]
        return [bash("wait")] if job.item.episode.item == "a" else perfect(job)

    made = plan(tmp_path, arms="sandbox", attempts=1, deadline_s=2)
    directory = await Experiment(made, script, box=lambda c: FakeSandbox(hang)).run()
    failures = {r.episode.item: r.failure for r in directory.episodes().values()}
    assert failures == {"a": "deadline", "b": None}


async def test_a_scorer_that_raises_or_hangs_costs_its_own_score_alone(tmp_path: Path) -> None:
    def verdict(candidate):  # type: ignore[no-untyped-def]
        if candidate.task.id == "a":
            raise KeyError("gold")
        if candidate.task.id == "b":
            over.wait(60)
        return 1.0

    over = threading.Event()

    loaded = task_set(*(task(name) for name in "abc"))
    made = plan(tmp_path, loaded, arms="llm", concurrency=1)
    directory = await Experiment(made, load=stub(verdict), score_s=2).run()
    over.set()
    scores = {e.item: record.score for (e, _), record in directory.scores().items()}
    assert "KeyError: 'gold'" in (scores["a"].missing or "")
    assert "nothing within 2 s" in (scores["b"].missing or "")
    assert scores["c"].value == 1.0
    assert all(record.failure is None for record in directory.episodes().values())


async def test_secrets_of_the_answer_reach_no_file(tmp_path: Path) -> None:
    key = "sk-" + "a" * 24
    made = plan(tmp_path, task_set(task("a")))

    def script(job):  # type: ignore[no-untyped-def]
        if job.condition.arm.mode == "sandbox":
            return answering(f"ANSWER: {key}")
        return [used(f"ANSWER: {key}")]

    directory = await Experiment(made, script).run()
    for file in directory.path.rglob("*.jsonl"):
        assert key not in file.read_text()


async def test_a_truth_that_would_enter_the_sandbox_stops_the_run_before_it(
    tmp_path: Path,
) -> None:
    leaky = task("a", input_files={"key.json": json.dumps({"ground_truth": "42"}).encode()})
    with pytest.raises(ConfigError, match="ground truth"):
        await Experiment(plan(tmp_path, task_set(leaky))).run()
    assert not (tmp_path / "runs").exists()


async def test_controls_come_first_and_their_evidence_is_kept(tmp_path: Path) -> None:
    experiment = Experiment(plan(tmp_path, arms="llm,sandbox-no-exec"))
    directory = await experiment.run()
    assert directory.manifest["controls"] == [{"arm": "sandbox-no-exec"}]
    assert experiment.controlled == ["sandbox-no-exec"]


async def test_a_run_stops_when_everything_fails(tmp_path: Path) -> None:
    loaded = task_set(*(task(f"t{n}") for n in range(60)))
    made = plan(tmp_path, loaded, arms="llm", attempts=1, concurrency=2)
    experiment = Experiment(made, lambda job: [ModelError("401", status=401)])
    directory = await experiment.run()
    assert 20 <= len(directory.episodes()) <= 23
    assert "episodes all failed; go on with --resume" in experiment.notes[-1]


async def test_the_cost_limit_starts_nothing_more(tmp_path: Path) -> None:
    loaded = task_set(*(task(f"t{n}") for n in range(10)))
    prices = {"scripted:none.jsonl": Price(1000.0, 10_000.0)}
    made = plan(
        tmp_path, loaded, arms="llm", concurrency=1, prices=prices, max_cost_usd=0.5
    )  # 100 prompt and 10 completion tokens cost $0.20
    experiment = Experiment(made)
    directory = await experiment.run()
    assert len(directory.episodes()) == 3
    assert experiment.states[-1].cost_usd == pytest.approx(0.6)
    assert "$0.60 of $0.50 are spent" in experiment.notes[-1]


async def test_a_cost_limit_that_cannot_be_kept_is_said_at_once(tmp_path: Path) -> None:
    loaded = task_set(*(task(f"t{n}") for n in range(10)))
    made = plan(tmp_path, loaded, arms="llm", concurrency=1, max_cost_usd=0.5)
    experiment = Experiment(made)
    assert len((await experiment.run()).episodes()) == 1
    assert "no price is known" in experiment.notes[-1]


async def test_at_most_so_many_episodes_run_at_once(tmp_path: Path) -> None:
    running, most = 0, 0

    class Slow(FakeSandbox):
        async def start(self) -> None:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.01)
            await super().start()

        async def close(self) -> None:
            nonlocal running
            if self.started:
                running -= 1
                self.started = False
            await super().close()

    loaded = task_set(*(task(f"t{n}") for n in range(12)))
    made = plan(tmp_path, loaded, arms="sandbox", concurrency=3)
    await Experiment(made, box=lambda c: Slow(policy=c.policy)).run()
    assert most == 3
    assert running == 0


def test_waiting_for_the_server_halves_the_episodes_at_once_and_they_grow_again() -> None:
    now = [0.0]
    throttle = Throttle(16, clock=lambda: now[0], host=lambda: Host(0.0, 1.0))
    throttle.replied(2.0)
    assert throttle.limit == 8
    throttle.failed()
    assert throttle.limit == 8  # what was under way then is not a second sign
    now[0] = 10.0
    throttle.failed()
    assert throttle.limit == 4
    for _ in range(4 + 5 + 6):
        throttle.replied(0.0)
    assert throttle.limit == 7
    for _ in range(1000):
        throttle.replied(0.0)
    assert throttle.limit == 16


def test_an_overrun_machine_halves_too_and_one_episode_always_runs() -> None:
    now = [0.0]
    host = [Host(0.0, 0.01)]
    throttle = Throttle(2, clock=lambda: now[0], host=lambda: host[0])
    assert throttle.look_at_host() == "1% of the memory is free"
    assert throttle.limit == 1
    now[0] = 6.0
    host[0] = Host(99.0, 0.5)
    assert "wait for each core" in (throttle.look_at_host() or "")
    assert throttle.limit == 1
    assert throttle.look_at_host() is None  # not looked at twice within seconds


async def test_a_disk_that_is_full_ends_the_run_at_once(tmp_path: Path) -> None:
    made = plan(tmp_path, arms="llm")

    def script(job):  # type: ignore[no-untyped-def]
        raise RecordError("no room left")

    with pytest.raises(RecordError, match="no room"):
        await Experiment(made, script).run()


async def test_two_processes_do_not_write_to_one_run(tmp_path: Path) -> None:
    experiment = Experiment(plan(tmp_path, arms="llm"))
    directory = await experiment.run()
    from sandlot.core.redact import Redactor

    held = BenchDirectory.open(directory.path).writing(Redactor())
    with pytest.raises(RecordError, match="another process"):
        await experiment.run(BenchDirectory.open(directory.path))
    held.close()


async def test_sets_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="two task sets are named 'tiny'"):
        await Experiment(plan(tmp_path, task_set(), task_set())).run()


async def test_a_server_that_is_overrun_is_asked_by_fewer_and_waiting_is_not_model_time(
    tmp_path: Path,
) -> None:
    refused: set[bytes] = set()

    def answer(request: FakeRequest) -> Status | dict[str, object]:
        """The first six tasks are refused once each, in whatever order their retries come."""
        if len(refused) < 6 and request.body not in refused:
            refused.add(request.body)
            return Status(429, {"error": {"message": "slow down"}}, {"Retry-After": "0.2"})
        return reply("ANSWER: 42")

    loaded = task_set(*(task(f"t{n}") for n in range(12)))
    experiment = Experiment(plan(tmp_path, loaded, arms="llm", concurrency=6))
    async with FakeOpenAIServer(answer) as server:
        model = OpenAIChatModel("m", base_url=server.base_url, api_key="x")
        experiment.wrapped = lambda job, scripted: model
        directory = await experiment.run()
        await model.close()
    assert set(values(directory).values()) == {1.0}
    # It is told now and then, and three replies in a row without a wait add one again.
    assert min(state.limit for state in experiment.states) <= 4
    waited = [r.meters.waiting_s for r in directory.episodes().values() if r.meters.waiting_s > 0]
    assert len(waited) == 6
    assert all(seconds >= 0.19 for seconds in waited)
