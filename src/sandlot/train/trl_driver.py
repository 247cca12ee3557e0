"""A run whose reinforcement learning is TRL's: our rollouts and directory, TRL's loop and steps.

TRL works in a thread; when it needs rollouts they are played in the event loop as always, the
tasks of a step the same ones as without TRL. Of several processes each plays its share of a step
and the first one keeps the directory. TRL's own checkpoints (`trl/checkpoint-…`) hold what it goes
on from; they are in the hub's layout. Unless the weights lie in pieces (FSDP, DeepSpeed), ours are
written beside them, for `sandlot train export`.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch.distributed.rendezvous import rendezvous
from transformers.trainer_callback import TrainerCallback

from sandlot.core.errors import ConfigError, InputError
from sandlot.core.types import Trajectory
from sandlot.train import checkpoint
from sandlot.train.base import Episode
from sandlot.train.config import TrainConfig, WarmStart
from sandlot.train.curves import Evaluated, step_figures
from sandlot.train.directory import TrainDirectory
from sandlot.train.driver import Driver
from sandlot.train.objective import Advantages
from sandlot.train.trl_trainer import SandlotTrainer, TrlSettings, make_trainer
from sandlot.train.weights import load_values

_FIGURES = {
    "loss": "loss",
    "grad_norm": "norm",
    "clip_ratio/region_mean": "clipped",
    "rollouts/learned_tokens": "learned_tokens",
    "rollouts/gap_mean": "gap_mean",
    "rollouts/gap_max": "gap_max",
}
"""TRL's names of what the curves show, and ours."""


class TrlDriver(Driver):
    """See `Driver`. Only one phase differs: the reinforcement learning."""

    _trainer: SandlotTrainer | None = None
    _loop: asyncio.AbstractEventLoop | None = None
    _playing: Future[list[Episode]] | None = None
    _figures: dict[str, float]
    _ended: float = 0.0

    @property
    def _first(self) -> bool:
        return not isinstance(self.directory, Onlooker)

    async def _warm_start(self, warm: WarmStart, start: int) -> None:
        if self.config.trl.processes > 1:
            raise ConfigError(
                "a warm start is made by one process: run `sandlot train sft` alone, export the "
                "result and name it as model.source, or leave [warmstart] out"
            )
        await Driver._warm_start(self, warm, start)

    async def _evaluate(self, phase: str, step: int) -> None:
        if self._first:  # the others wait where they next meet
            await Driver._evaluate(self, phase, step)

    def _save(self, phase: str, step: int) -> None:
        if self._first:
            Driver._save(self, phase, step)

    def _restore(self) -> tuple[str, int]:
        found = checkpoint.newest(self.directory.checkpoints, self.note)
        if found is None or found.phase == "warmstart":
            return Driver._restore(self)
        load_values(self.parts.policy.model, found.weights())
        path = newest_of_trl(self._folder)
        step = 0 if path is None else _step_of(path) // self.config.trl.updates
        if path is None and found.step:
            raise InputError(f"{self._folder}: TRL's checkpoints are gone, so nothing can go on")
        self.directory.cut_after("train", step)
        self.note(f"going on after step {step}")
        return "train", step

    @property
    def _folder(self) -> Path:
        return self.directory.path / "trl"

    async def _reinforce(self, start: int) -> None:
        self._loop = asyncio.get_running_loop()
        trainer = self._trainer = await asyncio.to_thread(self._make)
        path = None if start == 0 else newest_of_trl(self._folder)
        work = asyncio.ensure_future(
            asyncio.to_thread(trainer.train, None if path is None else str(path))
        )
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError:
            self._stop(trainer)
            await asyncio.wait([work])
            raise

    def _stop(self, trainer: SandlotTrainer) -> None:
        """End TRL's thread: it is waiting for rollouts, or will ask before its next step."""
        trainer.control.should_training_stop = True
        if self._playing is not None:
            self._playing.cancel()

    def _make(self) -> SandlotTrainer:
        count = self.config.rollout.tasks_a_step
        steps = range(self.config.train.steps)
        policy = self.parts.policy
        return make_trainer(
            policy.model,
            policy.tokenizer,
            [task.id for number in steps for task in self.parts.train.step(number, count)],
            play=self._play,
            settings=trl_settings(self.config, self._folder),
            on_rollouts=self._keep,
            callbacks=[_Teller(self)],
        )

    # What TRL asks for, in its thread.

    def _play(self, task_ids: list[str], repeats: int) -> Sequence[Episode]:
        assert self._trainer is not None
        assert self._loop is not None
        rank, share = self._trainer.accelerator.process_index, len(task_ids)
        places = range(rank * share, (rank + 1) * share)
        if self._trainer.control.should_training_stop:
            raise CancelledError
        with self._updating():  # the engine forgets what it kept of the old weights
            pass
        began = time.monotonic()
        coming = self._rollouts(self._number(), places)
        self._playing = asyncio.run_coroutine_threadsafe(coming, self._loop)
        episodes = self._playing.result()
        self._ended = time.monotonic()
        self._figures = {"rollout_s": self._ended - began}
        return episodes

    def _number(self) -> int:
        """The steps that are made."""
        assert self._trainer is not None
        return int(self._trainer.state.global_step) // self.config.trl.updates

    # What it tells, on the first process.

    def _keep(self, episodes: Sequence[Episode], advantages: Advantages) -> None:
        self._check_played(episodes, self._number())
        self._figures |= step_figures(episodes, advantages)
        useful = sum(bool(each) for each in advantages.values)
        self._figures["learned_rollouts"] = float(useful)
        self.directory.add_records(self._number() + 1, episodes)

    def tell(self, logs: Mapping[str, Any]) -> None:
        learned = {ours: float(logs[name]) for name, ours in _FIGURES.items() if name in logs}
        figures = {**self._figures, **learned, "update_s": time.monotonic() - self._ended}
        self.directory.add_step("train", self._number(), figures)

    def evaluate_if_due(self) -> None:
        """What was evaluated before a run was interrupted is left out."""
        step = self._number()
        if not step or not self._due(step):
            return
        self._send_weights()
        if self._first:
            assert self._loop is not None
            coming = self._evaluate("train", step)
            asyncio.run_coroutine_threadsafe(coming, self._loop).result()

    def _send_weights(self) -> None:
        """To a vLLM server, by all processes together; TRL itself does so only before rollouts."""
        trainer: Any = self._trainer
        if trainer.use_vllm and trainer._last_loaded_step != trainer.state.global_step:
            trainer.vllm_generation.sync_weights()
            trainer._last_loaded_step = trainer.state.global_step

    def save_weights(self) -> None:
        assert self._trainer is not None
        if not (self._trainer.is_fsdp_enabled or self._trainer.is_deepspeed_enabled):
            self._save("train", self._number())


class Onlooker(TrainDirectory):
    """The directory of a run on another process than the first, which alone writes there."""

    @contextmanager
    def alone(self) -> Iterator[None]:
        yield

    def adopt(self, config: TrainConfig, made_with: Mapping[str, Any]) -> None: ...

    def add_step(self, phase: str, step: int, figures: Mapping[str, float]) -> None: ...

    def add_evaluation(self, phase: str, step: int, name: str, result: Evaluated) -> None: ...

    def add_records(self, step: int, episodes: Sequence[Episode]) -> None: ...

    def keep_trajectory(self, trajectory: Trajectory, episode: Episode) -> None: ...

    def cut_after(self, phase: str, step: int) -> None: ...


def among_processes(directory: TrainDirectory | None) -> TrainDirectory:
    """The run's directory on each process: the first one's own, and onlookers for the others.

    The processes are those that torchrun or `accelerate launch` started, and meet in its store.
    """
    store, rank, _ = next(iter(rendezvous("env://")))
    if rank:
        return Onlooker(Path(store.get("sandlot/run").decode()))
    assert directory is not None
    store.set("sandlot/run", str(directory.path.absolute()))
    return directory


class _Teller(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Carries TRL's events to the driver."""

    def __init__(self, driver: TrlDriver) -> None:
        self._driver = driver

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        whole = state.global_step % self._driver.config.trl.updates == 0
        if state.is_world_process_zero and whole and "loss" in (logs or {}):
            self._driver.tell(logs)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self._driver.save_weights()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self._driver.config.trl.updates == 0:
            self._driver.evaluate_if_due()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == state.max_steps:
            self._driver.evaluate_if_due()


def trl_settings(config: TrainConfig, output: Path) -> TrlSettings:
    """TRL's run as a configuration describes it.

    A vLLM server that draws the tokens is also told to TRL, which sends it the weights.
    """
    learn, rollout, trl, engine = config.train, config.rollout, config.trl, config.engine
    extra: dict[str, Any] = {
        "use_cpu": not torch.cuda.is_available()
        or (config.model.device == "cpu" and engine.kind == "torch"),
        "save_strategy": "steps",
        "save_steps": learn.checkpoint_every * trl.updates,
        "save_total_limit": 2,
        "ddp_timeout": 24 * 3600,  # the others wait while the first process evaluates
    }
    if engine.kind == "vllm":
        extra |= {"use_vllm": True, "vllm_mode": "server", "vllm_server_base_url": engine.url}
    return TrlSettings(
        output=output,
        steps=learn.steps,
        tasks=rollout.tasks_a_step,
        rollouts=rollout.rollouts_a_task,
        rows=trl.rows,
        updates=trl.updates,
        processes=trl.processes,
        learning_rate=learn.lr,
        warmup_steps=learn.lr_warmup_steps,
        betas=cast(tuple[float, float], learn.betas),
        max_grad_norm=learn.max_norm,
        weight_decay=learn.weight_decay,
        temperature=rollout.temperature,
        clip_low=learn.clip_low,
        clip_high=learn.clip_high,
        old_logprobs=trl.old_logprobs,
        several_rows=trl.several_rows,
        seed=config.seed,
        extra=extra | dict(trl.extra),
    )


def newest_of_trl(folder: Path) -> Path | None:
    """TRL's newest checkpoint that is whole: its state is what is written last."""
    found = [path for path in folder.glob("checkpoint-*") if _step_of(path)]
    return max(found, key=_step_of, default=None)


def _step_of(path: Path) -> int:
    """The optimizer steps behind a checkpoint; 0 where it is not whole."""
    try:
        return int(json.loads((path / "trainer_state.json").read_text("utf-8"))["global_step"])
    except (OSError, ValueError, KeyError):
        return 0
