"""TRL's `GRPOTrainer` (1.16.0), set to the objective of `objective.py`; all that knows TRL.

TRL has the loop, the optimizer, the checkpoints and, through accelerate, the processes; the
rollouts are ours: `rollout_func` hands the tasks of this process to `play` and maps what comes back
to token ids, masks and log probabilities.

How its settings make the paper's objective:

- `scale_rewards="none"` and `reward_weights=[K / (K - 1)]`: K / (K - 1) * (r - mean) is r minus the
  mean of the K - 1 others. The `reward` that TRL logs is larger by that factor;
  `rollouts/reward` is the true one.
- `loss_type="luspo"` with `importance_sampling_level="token"`: clipped ratios summed over the
  tokens of a sequence, sums averaged over sequences. TRL warns that luspo is meant for ratios of
  sequences; with ratios of tokens it is the sum that is wanted here.
- `epsilon=0.2`, `epsilon_high=0.28`, `beta=0`: the bounds; no reference model.

Where TRL alone is not exact, `SandlotTrainer` corrects it:

- With a missing reward in a group, K / (K - 1) no longer fits its smaller size, and the row still
  counts in the mean over sequences. The advantages are made anew by `group_advantages`, times
  rows / rollouts that have one: the objective is homogeneous in its advantages, so this moves the
  denominator.
- Equal rewards leave rounding noise as advantages (1e-8 for rewards of 0.1); here they get zeros.
- A rollout is one row there. Where a rollout has several (its history was rewritten), the one with
  the most sampled tokens is kept; the others are counted in `rollouts/rows_left_aside`, and with
  `several_rows="refuse"` they are an error. The in-process driver trains on all rows.

One thing is transformers' own: it spares norms and biases of weight decay.

`old_logprobs` says under which probabilities the tokens count as drawn. "drawn": as recorded by the
engine, as `policy_loss` has it; right where engine and trainer agree (in process, fp32). "trainer":
computed again by the trainer before the update, as in the paper's trainer; with vLLM (`use_vllm`)
TRL then weighs each token by min(p_trainer / p_engine, 2), `token_truncate`. TRL's own default
drops a whole sequence where the product of its ratios leaves the bounds, which long rollouts do.

Several processes: start the same script by `accelerate launch` or `torchrun`. Groups stay whole on
a process, so the tasks of a step must divide among the processes. Data-parallel training is tested
here with two processes on CPU (gloo). FSDP and DeepSpeed are settings of accelerate that go through
`extra`; they were not run here. There the weights lie in pieces, so the engine must be a server
(`use_vllm`, `vllm_mode="server"`, to which TRL sends the weights before each step's rollouts).
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from torch import Tensor
from transformers.trainer_callback import PrinterCallback
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from sandlot.core.errors import ConfigError
from sandlot.core.tokens import TokenRow
from sandlot.train.base import Episode
from sandlot.train.objective import CLIP_HIGH, CLIP_LOW, Advantages, group_advantages

Play = Callable[[list[str], int], Sequence[Episode]]
"""Runs `repeats` rollouts of each task id: those of the first task, then of the next."""

OnRollouts = Callable[[Sequence[Episode], Advantages], None]
"""Gets the rollouts of a step of all processes with their advantages, on the main process."""

_KEPT_SETTINGS = frozenset(
    {
        "beta",
        "epsilon",
        "epsilon_high",
        "generation_batch_size",
        "gradient_accumulation_steps",
        "importance_sampling_level",
        "learning_rate",
        "loss_type",
        "mask_truncated_completions",
        "max_steps",
        "num_generations",
        "per_device_train_batch_size",
        "reward_weights",
        "scale_rewards",
        "shuffle_dataset",
        "steps_per_generation",
        "temperature",
    }
)


@dataclass(frozen=True, slots=True)
class TrlSettings:
    """A run of TRL's trainer, all processes together.

    A step is `tasks` x `rollouts` rollouts and `updates` optimizer steps on them. `rows` are the
    rows of one forward pass of one process. `extra` goes to `GRPOConfig` as it is (`bf16`, `fsdp`,
    `deepspeed`, `use_vllm`, ...), except for what makes the objective.
    """

    output: Path
    steps: int
    tasks: int = 8
    rollouts: int = 8
    rows: int = 1
    updates: int = 1
    processes: int = 1
    learning_rate: float = 1e-6
    warmup_steps: int = 0
    betas: tuple[float, float] = (0.9, 0.999)
    max_grad_norm: float = 1.0
    weight_decay: float = 0.0
    temperature: float = 1.0
    clip_low: float = CLIP_LOW
    clip_high: float = CLIP_HIGH
    old_logprobs: Literal["drawn", "trainer"] = "trainer"
    several_rows: Literal["largest", "refuse"] = "largest"
    seed: int = 0
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def passes(self) -> int:
        """Forward passes of one process over the rollouts of a step.

        Raises:
            ConfigError: the step does not divide among processes, passes and updates.
        """
        if self.rollouts < 2:
            raise ConfigError("a group of one rollout has no baseline: rollouts must be 2 or more")
        if self.tasks % self.processes:
            raise ConfigError(
                f"{self.tasks} tasks a step do not divide among {self.processes} processes: "
                "a group stays whole on one process"
            )
        mine = self.tasks // self.processes * self.rollouts
        if mine % (self.rows * self.updates):
            raise ConfigError(
                f"{mine} rollouts of a process do not divide into {self.updates} update(s) "
                f"of passes of {self.rows} row(s)"
            )
        return mine // self.rows


def grpo_config(settings: TrlSettings) -> GRPOConfig:
    """TRL's configuration of the paper's objective.

    Raises:
        ConfigError: the step does not divide, `extra` meddles with the objective, or the processes
            that run are not those that were asked for.
    """
    meddling = sorted(_KEPT_SETTINGS & set(settings.extra))
    if meddling:
        raise ConfigError(f"extra settings of TRL may not change the objective: {meddling}")
    passes, k = settings.passes, settings.rollouts
    drawn = settings.old_logprobs == "drawn"
    chosen: dict[str, Any] = {
        "bf16": False,
        "disable_tqdm": True,
        "lr_scheduler_type": "constant_with_warmup",
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "vllm_importance_sampling_correction": not drawn,
        "vllm_importance_sampling_mode": "token_truncate",
        "vllm_importance_sampling_clip_max": 2.0,
        **settings.extra,
    }
    config = GRPOConfig(
        output_dir=str(settings.output),
        per_device_train_batch_size=settings.rows,
        gradient_accumulation_steps=passes // settings.updates,
        steps_per_generation=passes,
        num_generations=k,
        max_steps=settings.steps * settings.updates,
        learning_rate=settings.learning_rate,
        warmup_steps=settings.warmup_steps,
        adam_beta1=settings.betas[0],
        adam_beta2=settings.betas[1],
        max_grad_norm=settings.max_grad_norm,
        weight_decay=settings.weight_decay,
        temperature=settings.temperature,
        seed=settings.seed,
        shuffle_dataset=False,
        loss_type="luspo",
        importance_sampling_level="token",
        epsilon=settings.clip_low,
        epsilon_high=settings.clip_high,
        beta=0.0,
        scale_rewards="none",
        reward_weights=[k / (k - 1)],
        **chosen,
    )
    if config.world_size != settings.processes:
        raise ConfigError(
            f"{settings.processes} process(es) were asked for and {config.world_size} run: "
            "start them with accelerate launch or torchrun"
        )
    return config


class SandlotTrainer(GRPOTrainer):  # type: ignore[misc, unused-ignore]
    """`GRPOTrainer` with our rollouts and exact advantages. Make one with `make_trainer`."""

    def __init__(
        self, play: Play, settings: TrlSettings, on_rollouts: OnRollouts, **arguments: Any
    ) -> None:
        self._play, self._settings, self._on_rollouts = play, settings, on_rollouts
        self._episodes: Sequence[Episode] = ()
        self._logps: Tensor | None = None
        self._gap = _Gap()
        logging.getLogger("trl.trainer.grpo_trainer").addFilter(_is_news)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "You are using 'rollout_func'", UserWarning)
            super().__init__(
                args=grpo_config(settings),
                reward_funcs=[recorded_reward],
                rollout_func=self._roll_out,
                **arguments,
            )

    def _roll_out(self, prompts: list[str], trainer: Any) -> dict[str, list[Any]]:
        """TRL's hook: the prompts are task ids, each as often in a row as a group is large."""
        k = self._settings.rollouts
        task_ids = prompts[::k]
        model: Any = self.model
        learning = model.training
        model.eval()
        try:
            episodes = self._play(task_ids, k)
        finally:
            model.train(learning)
        wanted = [task_id for task_id in task_ids for _ in range(k)]
        found = [episode.task_id for episode in episodes]
        if found != wanted or wanted != prompts:
            raise ValueError(f"rollouts of {wanted} were asked for and {found} came back")
        self._episodes = episodes
        refuse = self._settings.several_rows == "refuse"
        completions = [
            as_completion(episode, self._tokenizer.pad_token_id, refuse=refuse)
            for episode in episodes
        ]
        return {key: [each[key] for each in completions] for key in completions[0]}

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        output["advantages"] = self._exact_advantages().to(output["advantages"])
        if self._settings.old_logprobs == "drawn":
            output["old_per_token_logps"] = output["sampling_per_token_logps"]
        return output

    def _exact_advantages(self) -> Tensor:
        """Leave-one-out, times rows / rollouts with a reward over all processes."""
        everyone: list[Episode] = gather_object(list(self._episodes))
        whole, own = _advantages(everyone), _advantages(self._episodes)
        log = self._metrics["train"]
        aside = sum(max(0, len(episode.rows) - 1) for episode in everyone)
        scored = [each.reward for each in everyone if each.reward is not None]
        log["rollouts/reward"].append(sum(scored) / max(len(scored), 1))
        log["rollouts/missing"].append(whole.missing)
        log["rollouts/useful_groups"].append(1 - (whole.equal + whole.alone) / whole.groups)
        log["rollouts/rows_left_aside"].append(aside)
        if self.accelerator.is_main_process:
            self._on_rollouts(everyone, whole)
        factor = len(everyone) / whole.rollouts if whole.rollouts else 0.0
        return torch.tensor([(value or 0.0) * factor for value in own.values])

    # How far the trainer's log probabilities are from those that the tokens were drawn under.

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        found = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        self._logps = found[0].detach()
        return found

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        compute: Any = super()._compute_loss
        loss: Tensor = compute(model, inputs)
        if self._logps is not None:
            drawn = (inputs["completion_mask"] * inputs["tool_mask"]).bool()
            self._gap.add((self._logps - inputs["sampling_per_token_logps"])[drawn].abs())
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs.update(self._gap.figures())
            self._gap = _Gap()
        super().log(logs, start_time)


@dataclass(slots=True)
class _Gap:
    """Of this process, over the passes since the last log."""

    total: float = 0.0
    tokens: int = 0
    greatest: float = 0.0

    def add(self, gaps: Tensor) -> None:
        if gaps.numel():
            self.total += float(gaps.sum())
            self.tokens += gaps.numel()
            self.greatest = max(self.greatest, float(gaps.max()))

    def figures(self) -> dict[str, float]:
        return {
            "rollouts/learned_tokens": float(self.tokens),
            "rollouts/gap_mean": self.total / max(self.tokens, 1),
            "rollouts/gap_max": self.greatest,
        }


def _advantages(episodes: Sequence[Episode]) -> Advantages:
    return group_advantages([e.group for e in episodes], [e.reward for e in episodes])


def _is_news(record: logging.LogRecord) -> bool:
    """Not that luspo is meant for ratios of sequences, nor that rewards are missing: counted."""
    said = record.getMessage()
    return "'luspo'" not in said and "All reward functions returned None" not in said


def recorded_reward(reward: Sequence[float | None], **_: Any) -> list[float | None]:
    """TRL's reward function: what the rollouts brought with them; None is a missing reward."""
    return list(reward)


def as_completion(episode: Episode, filler_id: int, *, refuse: bool = False) -> dict[str, Any]:
    """What `rollout_func` returns for one rollout.

    TRL pads prompts on the left and completions on the right. Here the prompt is the first token
    alone and all others are the completion, so that rows are padded on the right only: they are
    shorter, their positions begin at 0, and they need no attention mask (see `objective.Batch`;
    the in-process engine's attention has none). `env_mask` is 1 for sampled tokens.

    A rollout whose reward is missing, or that drew nothing, is two tokens of filler that count for
    nothing: TRL has no empty rows.

    Raises:
        ValueError: a row without log probabilities, or several rows that were to be refused.
    """
    if refuse and len(episode.rows) > 1:
        raise ValueError(f"a rollout of {episode.task_id} has {len(episode.rows)} token rows")
    row = max(episode.rows, key=lambda each: each.sampled_tokens, default=None)
    if row is None or not row.sampled_tokens or episode.reward is None:
        row = TokenRow((filler_id, filler_id), (False, False), (0.0, 0.0))
    if row.logprobs is None:
        raise ValueError(f"a rollout of {episode.task_id} has no log probabilities")
    return {
        "prompt_ids": list(row.ids[:1]),
        "completion_ids": list(row.ids[1:]),
        "env_mask": [int(each) for each in row.sampled[1:]],
        "logprobs": list(row.logprobs[1:]),
        "reward": episode.reward,
    }


def make_trainer(
    model: Any,
    tokenizer: Any,
    task_ids: Sequence[str],
    *,
    play: Play,
    settings: TrlSettings,
    on_rollouts: OnRollouts = lambda episodes, advantages: None,
    callbacks: Sequence[Any] = (),
    optimizers: tuple[Any, Any] = (None, None),
) -> SandlotTrainer:
    """A trainer that is ready for `.train()`; `.train(resume_from_checkpoint=True)` goes on.

    Args:
        model: a `PreTrainedModel` (full training) or a `PeftModel` (an adapter, not on the output
            head: TRL refuses that).
        play: its engine draws from this same object, and is told before it does that the weights
            have changed (`TorchEngine.updating`), or from a server that TRL sends them to.
        tokenizer: only its pad and end tokens and its decoding (for logs) are used.
        task_ids: gone through in this order, `settings.tasks` a step; from the start again where
            they end.

    Raises:
        ConfigError: the settings contradict each other, or there are too few tasks for a step.
    """
    if len(task_ids) < settings.tasks:
        raise ConfigError(f"{len(task_ids)} tasks are too few for {settings.tasks} a step")
    trainer = SandlotTrainer(
        play,
        settings,
        on_rollouts,
        model=model,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list([{"prompt": task_id} for task_id in task_ids]),
        callbacks=list(callbacks),
        optimizers=optimizers,
    )
    trainer.remove_callback(PrinterCallback)  # it prints; a callback of the caller's shows figures
    return trainer
