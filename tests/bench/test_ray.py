"""Episodes on a Ray cluster of two nodes on this machine: the same results, the same folder."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import experiments
import pytest
from experiments import Experiment, plan, task, task_set, values

from sandlot.bench.arms import arms_of
from sandlot.bench.records import Episode
from sandlot.bench.runner import Ground
from sandlot.core.errors import SandboxUnavailable
from sandlot.core.types import StopReason, Task
from sandlot.models.scripted import ScriptedModel, bash
from sandlot.sandbox.fake import FakeSandbox
from waiting import comes_true

ray = pytest.importorskip("ray", reason="Ray is not installed (extra: ray)")

pytestmark = [
    pytest.mark.slow,
    # Ray's own files and sockets, closed when they are collected.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes of one processor each."""
    from ray.cluster_utils import Cluster

    # Ray's sockets lie below this folder, and a path of a socket is short.
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    settings = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": folder}
    patch = pytest.MonkeyPatch()
    for name, value in settings.items():
        patch.setenv(name, value)
    small = {"object_store_memory": 80 * 1024 * 1024, "num_cpus": 1, "include_dashboard": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Path(folder, "ray").mkdir()
        found = Cluster()
        found.add_node(**small)
        found.add_node(**small)
        ray.init(address=found.address, log_to_driver=False, configure_logging=False)
        for module in (experiments, sys.modules[__name__]):
            ray.cloudpickle.register_pickle_by_value(module)  # the nodes do not see the tests
        try:
            yield found
        finally:
            ray.shutdown()
            found.shutdown()
            shutil.rmtree(folder, ignore_errors=True)
            patch.undo()


class OnRay(Experiment):
    """The same fake ground, its executor on the cluster."""

    def ground(self, *arguments: Any) -> Ground:
        from dataclasses import replace

        from sandlot.bench.ray_executor import RayExecutor

        made = super().ground(*arguments)
        workshop = _workshop(self.script, self.box)
        return replace(made, executor=RayExecutor(arguments[2], lambda: 0.0, workshop=workshop))


def _workshop(script: Any, box: Any) -> Any:
    def build() -> Any:
        def model(job: Any) -> Any:
            made = ScriptedModel(*script(job))
            if job.history is not None:
                made._next = len(job.history.turns)
            return made

        async def open_box(condition: Any) -> Any:
            return box(condition)

        return model, open_box

    return build


def _contents(folder: Path) -> dict[str, Any]:
    """The parts of a run directory that must not depend on where its episodes were played."""
    found: dict[str, Any] = {}
    for path in sorted((folder / "files").rglob("*")):
        if path.is_file():
            found[str(path.relative_to(folder))] = path.read_bytes()
    for path in sorted((folder / "trajectories").iterdir()):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        found[path.name] = [_timeless(row) for row in rows]
    return found


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if k != "at" and not k.endswith("_s")}
        return {key: _timeless(item) for key, item in kept.items()}
    return [_timeless(item) for item in value] if isinstance(value, list) else value


async def test_a_run_on_two_nodes_leaves_the_same_directory_as_a_local_one(
    tmp_path: Path, cluster: Any
) -> None:
    loaded = task_set(*(task(name) for name in "abcd"))
    here = await Experiment(plan(tmp_path / "here", loaded)).run()
    there = await OnRay(plan(tmp_path / "there", loaded)).run()
    assert values(there) == values(here)
    assert len(values(there)) == 8
    assert _contents(there.path) == _contents(here.path)
    assert here.episodes().keys() == there.episodes().keys()


async def test_both_nodes_play(tmp_path: Path, cluster: Any) -> None:
    def where(job: Any) -> Any:
        import ray as there

        return [experiments.used(f"ANSWER: {there.get_runtime_context().get_node_id()}")]

    loaded = task_set(*(task(name) for name in "abcdefgh"))
    directory = await OnRay(plan(tmp_path, loaded, arms="llm", concurrency=8), where).run()
    answers = {record.answer for record in directory.episodes().values()}
    assert len(answers) == 2


async def test_an_input_folder_reaches_the_node_as_files(tmp_path: Path, cluster: Any) -> None:
    from sandlot.bench.ray_executor import _with_files_inside

    folder = tmp_path / "input"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "a.txt").write_bytes(b"\x00one")
    task = _with_files_inside(Task("t", "p", input_dir=str(folder), input_files={"b": b"two"}))
    assert task.input_dir is None
    assert task.input_files == {"deep/a.txt": b"\x00one", "b": b"two"}


async def test_a_node_without_sandboxes_is_missing_scores_not_wrong_ones(
    tmp_path: Path, cluster: Any
) -> None:
    def none(condition: Any) -> FakeSandbox:
        raise SandboxUnavailable("this node has no user namespaces")

    experiment = OnRay(plan(tmp_path, task_set(task("a")), attempts=1), box=none)
    directory = await experiment.run()
    record = directory.episodes()[Episode("tiny", "a", "sandbox", 0)]
    assert record.failure == "unavailable"
    assert "no user namespaces" in record.stop_detail
    assert values(directory) == {("a", "llm", 0): 1.0, ("a", "sandbox", 0): None}


async def test_a_worker_that_is_killed_costs_a_retry_and_no_result(
    tmp_path: Path, cluster: Any
) -> None:
    tracks = tmp_path / "killed-once"

    def deadly(job: Any) -> Any:
        if job.condition.arm.mode == "sandbox" and not tracks.exists():
            tracks.touch()
            os._exit(1)
        return experiments.perfect(job)

    directory = await OnRay(plan(tmp_path, task_set(task("a"))), deadly).run()
    assert set(values(directory).values()) == {1.0}
    failures = [record.failure for record in directory.attempts() if record.failure]
    assert failures == ["sandbox_error"]


async def test_a_bug_on_a_node_is_recorded_as_a_crash(tmp_path: Path, cluster: Any) -> None:
    def broken(job: Any) -> Any:
        raise ZeroDivisionError("a bug of ours")

    directory = await OnRay(plan(tmp_path, task_set(task("a")), attempts=1), broken).run()
    assert {record.failure for record in directory.attempts()} == {"crash"}
    assert all("a bug of ours" in record.stop_detail for record in directory.attempts())


def recorded(folder: Path) -> bool:
    return any(path.stat().st_size for path in folder.glob("runs/*/trajectories/*.jsonl"))


async def test_a_run_stopped_before_its_nodes_said_anything_begins_anew(
    tmp_path: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sandlot.bench.ray_executor import RayExecutor
    from sandlot.bench.store import BenchDirectory

    asked = asyncio.Event()

    async def nothing(self: RayExecutor, job: Any) -> Any:
        asked.set()
        await asyncio.sleep(60)
        yield

    made = plan(tmp_path, task_set(task("a")), arms="sandbox")
    with monkeypatch.context() as patch:
        patch.setattr(RayExecutor, "_sent", nothing)
        running = asyncio.create_task(OnRay(made).run())
        await asyncio.wait_for(asked.wait(), 60)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    (folder,) = (tmp_path / "runs").iterdir()
    done = await OnRay(made).run(resume=BenchDirectory.open(folder))
    assert set(values(done).values()) == {1.0}
    assert not list(folder.rglob("*.damaged"))


async def test_stopping_winds_the_nodes_up_and_the_run_goes_on_later(
    tmp_path: Path, cluster: Any
) -> None:
    begun, closed = tmp_path / "begun", tmp_path / "closed"

    class Slow(FakeSandbox):
        async def exec(self, command: str, timeout_s: float | None = None, **more: Any) -> Any:
            if not closed.exists():
                begun.touch()
                await asyncio.sleep(60)
            return await super().exec(command, timeout_s, **more)

        async def close(self) -> None:
            closed.touch()
            await super().close()

    def script(job: Any) -> Any:
        return [experiments.used(bash("echo hi")), *experiments.perfect(job)]

    def box(condition: Any) -> Any:
        return Slow(policy=condition.policy, responses={"echo hi": "hi\n"})

    made = plan(tmp_path, task_set(task("a")), arms="sandbox")
    experiment = OnRay(made, script, box)
    running = asyncio.create_task(experiment.run())
    assert await comes_true(lambda: begun.exists() and recorded(tmp_path), 60)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert closed.exists()  # the node closed its sandbox before the run let go
    from sandlot.bench.store import BenchDirectory

    (folder,) = (tmp_path / "runs").iterdir()
    directory = BenchDirectory.open(folder)
    episode = Episode("tiny", "a", "sandbox", 0)
    assert directory.trajectory(episode).stop_reason is StopReason.CANCELLED
    done = await OnRay(made, script, box).run(resume=directory)
    assert set(values(done).values()) == {1.0}
    assert arms_of("sandbox")[0].name in done.manifest["arms"]
