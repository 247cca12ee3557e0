"""A run driven by TRL: it goes on exactly after a kill, and several processes share a directory."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

REASON = "needs the extra `train` (torch, transformers, peft, trl)"
torch = pytest.importorskip("torch", reason=REASON)
pytest.importorskip("trl", reason=REASON)

from sandlot.agent.prompts import load_profile  # noqa: E402
from sandlot.core.errors import ConfigError  # noqa: E402
from sandlot.sandbox.fake import FakeSandbox  # noqa: E402
from sandlot.scoring.registry import load_scorer  # noqa: E402
from sandlot.train.assemble import build_policy  # noqa: E402
from sandlot.train.config import TrainConfig, read_config  # noqa: E402
from sandlot.train.directory import TrainDirectory  # noqa: E402
from sandlot.train.driver import Driver, driver_of  # noqa: E402
from sandlot.train.dry_run import CoachedParts, _written  # noqa: E402
from sandlot.train.engine_torch import TorchEngine  # noqa: E402
from sandlot.train.records import read_records  # noqa: E402
from sandlot.train.rollouts import Player  # noqa: E402
from sandlot.train.sources import open_tasks  # noqa: E402
from sandlot.train.trl_driver import TrlDriver, newest_of_trl  # noqa: E402
from sandlot.train.weights import trainable  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:.*will be removed in v6:FutureWarning")

STEPS = 3


def config(**changes: Any) -> TrainConfig:
    table: dict[str, Any] = {
        "name": "tiny",
        "model": {
            "source": "random",
            "random": {"layers": 2, "hidden": 32, "heads": 2, "vocabulary": 400},
        },
        "tasks": {
            "train": {"generator": "filing", "seed": 5},
            "scorer": "text",
            "scorer_options": {"exact": True},
        },
        "sandbox": {"profile": "nano", "llm_profile": "nano-llm", "live": 4},
        "engine": {"slots": 4, "context_tokens": 600, "threads": 1},
        "rollout": {"tasks_a_step": 2, "rollouts_a_task": 2, "reply_tokens": 8, "max_turns": 3},
        "train": {"trainer": "trl", "steps": STEPS, "lr": 1e-2, "checkpoint_every": 1},
        "trl": {"rows": 2, "extra": {"activation_checkpointing": False}},
        "evaluate": {"every": 0},
    }
    for name, value in changes.items():
        folder, _, key = name.partition("__")
        table[folder] = table.get(folder, {}) | {key: value} if key else value
    return read_config(table, "test")


def parts_of(run: TrainConfig, tmp_path: Path) -> CoachedParts:
    torch.set_num_threads(1)
    tasks = open_tasks(run.tasks.train, cache=tmp_path, note=print)
    policy = build_policy(run, tasks, print)
    scorer = load_scorer("text", {"exact": True}, None)  # type: ignore[arg-type]

    async def open_box() -> FakeSandbox:
        box = FakeSandbox(lambda command: _written(box, command))
        return box

    return CoachedParts(
        policy=policy,
        engine=TorchEngine(policy.model, slots=4, context_tokens=600, threads=1),
        player=Player(open_box, scorer, 4),
        scorer=scorer,
        train=tasks,
        evaluate={},
        scorers={},
        profiles={"sandbox": load_profile("nano"), "llm": load_profile("nano-llm")},
        asked=tuple(task for number in range(STEPS) for task in tasks.step(number, 2)),
    )


def train(run: TrainConfig, directory: TrainDirectory, tmp_path: Path) -> Mapping[str, Any]:
    """Train to the end, or to where the directory's listener raises; the weights then."""

    async def work() -> Mapping[str, Any]:
        parts = parts_of(run, tmp_path)
        try:
            await driver_of(run, parts, directory, print).run()
        finally:
            await parts.close()
        return {name: each.detach().clone() for name, each in trainable(parts.policy.model).items()}

    return asyncio.run(work())


def created(tmp_path: Path, name: str, run: TrainConfig) -> TrainDirectory:
    return TrainDirectory.create(tmp_path / name, run, {}, datetime.now(UTC))


class Killed(Exception):
    """Stands for the end of the process."""


@pytest.mark.slow
def test_a_run_that_was_killed_in_its_second_step_ends_where_an_unbroken_one_does(
    tmp_path: Path,
) -> None:
    run = config()
    unbroken = created(tmp_path, "unbroken", run)
    whole = train(run, unbroken, tmp_path)
    broken = created(tmp_path, "broken", run)

    def kill(phase: str, step: int, figures: Mapping[str, Any]) -> None:
        if (phase, step) == ("train", 2):
            raise Killed

    broken.told = kill
    with pytest.raises(Killed):
        train(run, broken, tmp_path)
    assert newest_of_trl(broken.path / "trl") == broken.path / "trl" / "checkpoint-1"
    broken.told = None
    again = train(run, broken, tmp_path)

    gap = max((whole[name] - again[name]).abs().max().item() for name in whole)
    print(f"weights {gap:.1e} apart")
    assert gap < 1e-6
    losses = [
        [line["figures"]["loss"] for line in each.steps("train")] for each in (unbroken, broken)
    ]
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    assert len(losses[0]) == STEPS
    assert any(losses[0])


def test_the_trainer_that_is_named_is_the_one_that_drives(tmp_path: Path) -> None:
    directory = TrainDirectory(tmp_path)
    drivers = [
        driver_of(config(train__trainer=name), None, directory, print)  # type: ignore[arg-type]
        for name in ("trl", "in-process")
    ]
    assert [type(each) for each in drivers] == [TrlDriver, Driver]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"train__keep": 4}, "TRL learns from every rollout"),
        ({"rollout__reward": "coin"}, "for the in-process trainer"),
        ({"engine": {"kind": "sglang", "url": "http://x"}}, "to vLLM only"),
    ],
)
def test_what_trl_cannot_do_is_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        config(**wrong)


TOML = """
name = "several"
[model]
source = "random"
random = { layers = 1, hidden = 16, heads = 2, vocabulary = 400 }
[tasks]
scorer = "text"
[tasks.train]
generator = "filing"
[sandbox]
profile = "nano"
llm_profile = "nano-llm"
[engine]
slots = 4
context_tokens = 600
threads = 1
[rollout]
mode = "llm"
tasks_a_step = 2
rollouts_a_task = 2
reply_tokens = 8
[train]
trainer = "trl"
steps = 2
checkpoint_every = 1
[trl]
processes = 2
extra = { activation_checkpointing = false }
[evaluate]
every = 0
"""


@pytest.mark.slow
def test_two_processes_share_one_run_directory(tmp_path: Path) -> None:
    """As torchrun starts the command: each plays its share, and the first one keeps the books."""
    (tmp_path / "several.toml").write_text(TOML)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    launch += ["--master-addr=127.0.0.1", f"--master-port={port}", "-m", "sandlot"]
    ours = ["train", str(tmp_path / "several.toml"), "--out", str(tmp_path / "runs")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    process = subprocess.Popen(
        [*launch, *ours],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=900)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    assert process.returncode == 0, said[-4000:]
    (run,) = (tmp_path / "runs").iterdir()
    steps = [json.loads(line) for line in (run / "steps.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps] == [1, 2]
    for step in (1, 2):
        read = list(read_records(run / "records" / f"step-{step:06d}.jsonl"))
        assert len(read) == 4
        assert len({each.episode.group for each in read}) == 2
    assert newest_of_trl(run / "trl") == run / "trl" / "checkpoint-2"
