"""The training loop: warm start, then rollouts, rewards, one update a step, and evaluations.

    tasks of the step -> groups of rollouts -> advantages -> loss on what the policy drew -> weights

One process, one device. For several, `trl_trainer` hands the same rollouts to TRL.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Any, Literal, cast

import torch

from sandlot.core.errors import ConfigError, InputError, MissingExtra, ModelError, SandboxError
from sandlot.core.tokens import TokenRow
from sandlot.core.types import Message, StopReason, Task
from sandlot.scoring.base import Scorer
from sandlot.train import checkpoint
from sandlot.train.assemble import Parts, rules_of
from sandlot.train.base import Draw, Episode, Note
from sandlot.train.clerks import Clerk
from sandlot.train.config import KINDS, TrainConfig, WarmStart
from sandlot.train.curves import Evaluated, evaluated_of, missing_of, step_figures
from sandlot.train.directory import HELD_OUT, TrainDirectory
from sandlot.train.engine_server import ServerEngine
from sandlot.train.engine_torch import TorchEngine
from sandlot.train.export import write_hf, write_peft
from sandlot.train.lessons import Text, lessons_of
from sandlot.train.objective import (
    Advantages,
    batches,
    group_advantages,
    model_logprobs,
    pad,
    policy_loss,
    ratio_figures,
)
from sandlot.train.rows_file import read_rollouts
from sandlot.train.sft import SftSettings, SftStep, WrittenModel, fine_tune, plan_stages
from sandlot.train.weights import MasterAdamW, load_values, trainable

Mode = Literal["sandbox", "llm"]

LOST_STEPS = 3
"""Steps in a row without any reward that end a run."""


@dataclass(frozen=True, slots=True)
class Learned:
    """One update: `gap` is |trainer - engine| log probability of the drawn tokens (nats)."""

    loss: float
    norm: float
    rollouts: int
    tokens: int
    gap_mean: float
    gap_max: float
    clipped: float


@dataclass(slots=True)
class Driver:
    """One run, from its checkpoint on. `clock` gives seconds since the epoch."""

    config: TrainConfig
    parts: Parts
    directory: TrainDirectory
    note: Note
    clock: Any = time.time
    _optimiser: MasterAdamW | None = field(default=None, init=False)
    _lost_steps: int = field(default=0, init=False)

    async def run(self) -> None:
        """Everything that is left to do.

        Raises:
            RecordError: the disk is full; the newest checkpoint is whole.
            SandboxError, ModelError: rollouts cannot be played: nothing of a step has a reward.
        """
        self._check_logprobs()
        self.parts.player.watch = self.directory.keep_trajectory
        phase, step = self._restore()
        if phase == "warmstart":
            if self.config.warmstart is not None:
                await self._warm_start(self.config.warmstart, step)
            self._save("train", 0)
            step = 0
        await self.publish(step)
        if self._due(step):  # what an interrupted run had evaluated already is left out
            await self._evaluate("train", step)
        await self._reinforce(step)

    def _check_logprobs(self) -> None:
        """Raises ConfigError where a server says other probabilities than those it draws under."""
        engine, rollout = self.parts.engine, self.config.rollout
        if not isinstance(engine, ServerEngine) or not self.config.train.steps:
            return
        if not engine.reports_logprobs_of(Draw(1, frozenset(), rollout.temperature)):
            raise ConfigError(
                f"rollouts at temperature {rollout.temperature:g}: the server gives other log "
                "probabilities than those it draws under. Draw at temperature 1, or start vLLM "
                "with --logprobs-mode processed_logprobs and set engine.processed_logprobs"
            )

    def _due(self, step: int) -> bool:
        """Whether the held-out tasks are played after this many steps."""
        every = self.config.evaluate.every
        whole = step in (0, self.config.train.steps)
        return whole or bool(every and step % every == 0)

    def _restore(self) -> tuple[str, int]:
        found = checkpoint.newest(self.directory.checkpoints, self.note)
        if found is None:
            self.directory.cut_after("warmstart", 0)
            return "warmstart", 0
        load_values(self.parts.policy.model, found.weights())
        if state := found.optimiser():  # none where nothing has been learned in this phase yet
            self._adam(found.phase).load(state)
        self.directory.cut_after(found.phase, found.step)
        self.note(f"going on from {found.path.name}")
        return found.phase, found.step

    def _adam(self, phase: str) -> MasterAdamW:
        """The optimiser; each phase begins with a new one."""
        if self._optimiser is None:
            learn, warm = self.config.train, self.config.warmstart
            lr = warm.lr if phase == "warmstart" and warm is not None else learn.lr
            self._optimiser = MasterAdamW(
                trainable(self.parts.policy.model),
                lr=lr,
                betas=cast(tuple[float, float], learn.betas),
                weight_decay=learn.weight_decay,
                max_norm=learn.max_norm,
            )
        return self._optimiser

    def _save(self, phase: str, step: int) -> None:
        state = self._optimiser.state() if self._optimiser is not None else {}
        checkpoint.save(
            self.directory.checkpoints,
            phase=phase,
            step=step,
            weights=trainable(self.parts.policy.model),
            optimiser=state,
        )

    # The warm start.

    async def _warm_start(self, warm: WarmStart, start: int) -> None:
        by_kind = await self._warm_rows(warm)
        rows = [row for each in by_kind.values() for row in each]
        self.note(
            f"warm start on {len(rows)} rows, "
            f"{sum(row.sampled_tokens for row in rows):,} tokens of replies"
        )
        settings = SftSettings(
            warm.epochs, warm.rows_a_step, warm.token_budget, warm.lr, warm.warmup
        )
        adam = self._adam("warmstart")
        steps = fine_tune(
            self.parts.policy.model,
            adam,
            rows,
            settings,
            seed=self.config.seed,
            start=start,
            steps=_staged(by_kind, warm, self.config.seed),
        )
        every = self.config.train.checkpoint_every * 5
        while True:
            began = time.monotonic()
            made = await asyncio.to_thread(self._next, steps)
            if made is None:
                break
            figures = {**_warm_figures(made), "update_s": time.monotonic() - began}
            self.directory.add_step("warmstart", made.number, figures)
            if made.number % every == 0 and made.number < made.of:
                await asyncio.to_thread(self._save, "warmstart", made.number)
        self._optimiser = None

    def _next(self, steps: Iterator[SftStep]) -> SftStep | None:
        with self._updating():
            return next(steps, None)

    async def _warm_rows(self, warm: WarmStart) -> dict[str, list[TokenRow]]:
        """The rows that it learns from, by kind; most are played through the ordinary loop."""
        rows = {
            kind: _rows_of(each, self.note) for kind, each in (await self._played(warm)).items()
        }
        if warm.rows is not None:
            recorded = list(read_rollouts(Path(warm.rows), self.parts.policy.chat))
            good = [each for each in recorded if _worth(each, warm.min_reward)]
            if len(good) < len(recorded):
                self.note(
                    f"{warm.rows}: {len(recorded) - len(good)} rollouts were left out, worth less "
                    f"than {warm.min_reward:g} or without a reward"
                )
            rows["rows"] = self._learnable(_rows_of(good, self.note), warm.rows)
            if not rows["rows"]:
                raise InputError(f"{warm.rows}: no rollout in it can be learned from")
        rows |= {"answers": self._answer_rows(warm), "texts": self._text_rows(warm)}
        if not any(rows.values()):
            raise ConfigError("the warm start has no rows to learn from")
        return rows

    def _learnable(self, rows: Sequence[TokenRow], file: str) -> list[TokenRow]:
        """Rows of a file without those that hold no reply, which are counted.

        Raises:
            InputError: tokens that the model does not have.
        """
        known = self.parts.policy.model.get_input_embeddings().num_embeddings
        odd = next((each for row in rows for each in row.ids if not 0 <= each < known), None)
        if odd is not None:
            raise InputError(
                f"{file}: token {odd:,} is there and the model knows {known:,}: these are records "
                "of another model; take its conversations (`sandlot export --format messages`)"
            )
        kept = [row for row in rows if row.sampled_tokens]
        if len(kept) < len(rows):
            self.note(f"{file}: {len(rows) - len(kept)} rows without a reply were left out")
        return kept

    async def _played(self, warm: WarmStart) -> dict[str, list[Episode]]:
        """Rollouts of clerks, whose commands stand in the tasks that a generator makes."""
        if not warm.clerks and not warm.drills:
            return {}
        lessons = lessons_of(self.config.tasks.train.generator)
        tasks = self.parts.train.fresh(warm.seed, warm.clerks) if warm.clerks else ()
        mixes = {
            "clerks": lessons.clerks(tasks, warm.seed),
            "drills": lessons.drills(warm.drills, warm.seed) if warm.drills else [],
        }
        rules = replace(rules_of(self.config, self.parts, mode="sandbox"), submit=False)
        chat, player = self.parts.policy.chat, self.parts.player
        played = await asyncio.gather(
            *(
                player.one(task, WrittenModel(Clerk(commands, style), chat), rules, group=style)
                for mix in mixes.values()
                for task, style, commands in mix
            )
        )
        cut = len(mixes["clerks"])
        return {"clerks": played[:cut], "drills": played[cut:]}

    def _text_rows(self, warm: WarmStart) -> list[TokenRow]:
        if not warm.texts:
            return []
        lessons = lessons_of(self.config.tasks.train.generator)
        return [
            _text_row(text, self.parts.policy.tokenizer)
            for text in lessons.texts(warm.texts, warm.seed)
        ]

    def _answer_rows(self, warm: WarmStart) -> list[TokenRow]:
        """Questions with their truth as the reply, for the control that answers from its head."""
        if not warm.answers:
            return []
        from sandlot.agent.prompts import first_messages
        from sandlot.bench.arms import ARMS, task_for

        chat, rows = self.parts.policy.chat, []
        for task in self.parts.train.fresh(warm.seed + 2, warm.answers):
            asked = first_messages(self.parts.profiles["llm"], task_for(ARMS["llm"], task))
            prompt = chat.render(asked, ())
            reply = chat.write(Message.assistant(str(task.target)), ())
            drawn = (False,) * len(prompt) + (True,) * len(reply)
            rows.append(TokenRow((*prompt, *reply), drawn, (0.0,) * len(drawn)))
        return rows

    # The reinforcement learning.

    async def _reinforce(self, start: int) -> None:
        learn = self.config.train
        for number in range(start, learn.steps):
            began = time.monotonic()
            episodes = await self._rollouts(number)
            self._check_played(episodes, number)
            played = time.monotonic()
            advantages = self._advantages(episodes, number)
            learned = await asyncio.to_thread(self._learn, episodes, advantages, number)
            if learned is not None:
                await self.publish(number + 1)
            figures = step_figures(episodes, advantages)
            figures |= {
                "rollout_s": played - began,
                "update_s": time.monotonic() - played,
                **({} if learned is None else _learned_figures(learned)),
            }
            self.directory.add_records(number + 1, episodes)
            self.directory.add_step("train", number + 1, figures)
            last = number + 1 == learn.steps
            if last or (number + 1) % learn.checkpoint_every == 0:
                await asyncio.to_thread(self._save, "train", number + 1)
            if self._due(number + 1):
                await self._evaluate("train", number + 1)

    def _check_played(self, episodes: Sequence[Episode], number: int) -> None:
        """A step may be lost, to a machine under load; not the first one, nor several in a row."""
        if any(each.reward is not None for each in episodes):
            self._lost_steps = 0
            return
        self._lost_steps += 1
        why = ", ".join(f"{count} x {kind}" for kind, count in missing_of(episodes).items())
        said = f"no rollout of step {number + 1} has a reward: {why} (first: {episodes[0].missing})"
        if self._lost_steps < LOST_STEPS and number:
            self.note(said)
            return
        ours = episodes[0].stop_reason == StopReason.MODEL_ERROR.value
        raise ModelError(said) if ours else SandboxError(said)

    async def _rollouts(self, number: int, places: range | None = None) -> list[Episode]:
        """The rollouts of a step, or of the tasks at some places of it."""
        rollout = self.config.rollout
        tasks = self.parts.train.step(number, rollout.tasks_a_step)
        rules = rules_of(self.config, self.parts)
        make = self.parts.make_model(self.config.name)
        seed = self.config.seed * 1_000_000 + number * 1_000
        groups = await asyncio.gather(
            *(
                self.parts.player.group(
                    task,
                    rollout.rollouts_a_task,
                    make,
                    rules,
                    name=f"{number + 1}.{place}.{task.id}",
                    seed=seed + place,
                )
                for place, task in enumerate(tasks)
                if places is None or place in places
            )
        )
        return [episode for group in groups for episode in group]

    def _advantages(self, episodes: Sequence[Episode], number: int) -> Advantages:
        rewards = [each.reward for each in episodes]
        if self.config.rollout.reward == "coin":
            coin = Random(f"sandlot coin {self.config.seed} {number}")
            rewards = [None if each is None else float(coin.random() < 0.5) for each in rewards]
        return group_advantages([each.group for each in episodes], rewards)

    def _learn(
        self, episodes: Sequence[Episode], advantages: Advantages, number: int
    ) -> Learned | None:
        """One update on what has an advantage; None where nothing has."""
        learn = self.config.train
        useful = [
            (each, value)
            for each, value in zip(episodes, advantages.values, strict=True)
            if value and each.rows
        ]
        if not useful:
            return None
        kept = useful
        if learn.keep is not None and len(useful) > learn.keep:
            kept = Random(f"sandlot keep {self.config.seed} {number}").sample(useful, learn.keep)
        rows = [(row, value) for each, value in kept for row in each.rows]
        normaliser = advantages.rollouts * len(kept) / len(useful)
        with self._updating():
            return self._update(rows, normaliser, len(kept), self._rate(number))

    def _rate(self, number: int) -> float:
        learn = self.config.train
        rising = min(1.0, (number + 1) / (learn.lr_warmup_steps + 1))
        return learn.lr * rising * (1 - (1 - learn.lr_end) * number / learn.steps)

    def _update(
        self, rows: Sequence[tuple[TokenRow, float]], normaliser: float, rollouts: int, lr: float
    ) -> Learned:
        learn, model = self.config.train, self.parts.policy.model
        device, adam = next(model.parameters()).device, self._adam("train")
        sums = {"loss": 0.0, "gap": 0.0, "clipped": 0.0, "tokens": 0.0}
        gap_max = 0.0
        model.train()
        for part in batches([len(row.ids) for row, _ in rows], learn.token_budget):
            batch = pad([rows[index][0] for index in part]).to(device)
            gains = torch.tensor([rows[index][1] for index in part], device=device)
            new = model_logprobs(model, batch, self.config.rollout.temperature)
            loss = policy_loss(
                new,
                batch.logprobs,
                batch.sampled,
                gains,
                normaliser=normaliser,
                clip_low=learn.clip_low,
                clip_high=learn.clip_high,
            )
            loss.backward()  # type: ignore[no-untyped-call]
            figures = ratio_figures(
                new, batch.logprobs, batch.sampled, gains, learn.clip_low, learn.clip_high
            )
            sums["loss"] += float(loss.detach())
            sums["gap"] += float((new.detach() - batch.logprobs)[batch.sampled].abs().sum())
            sums["tokens"] += figures["tokens"]
            sums["clipped"] += figures["clipped"]
            gap_max = max(gap_max, figures["gap_max"])
        norm = adam.step(lr)
        tokens = max(1.0, sums["tokens"])
        return Learned(
            sums["loss"],
            norm,
            rollouts,
            int(sums["tokens"]),
            sums["gap"] / tokens,
            gap_max,
            sums["clipped"] / tokens,
        )

    async def publish(self, step: int) -> None:
        """Let a server that draws for us load the weights as they are; it must see the folder."""
        engine, policy = self.parts.engine, self.parts.policy
        if not isinstance(engine, ServerEngine):
            return
        folder = self.directory.path / "published" / f"step-{step:06d}"
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)  # of an earlier attempt
        if self.config.model.lora is None:
            await asyncio.to_thread(write_hf, policy.model, policy.tokenizer, folder)
        else:  # the server has the model below it
            await asyncio.to_thread(write_peft, policy.model, folder)
        await engine.update_weights(folder)
        for old in folder.parent.glob("step-*"):
            if old != folder:
                await asyncio.to_thread(shutil.rmtree, old, ignore_errors=True)

    def _updating(self) -> Any:
        engine = self.parts.engine
        return engine.updating() if isinstance(engine, TorchEngine) else nullcontext()

    # Evaluation.

    async def _evaluate(self, phase: str, step: int) -> None:
        """Every held-out source, in each mode and at each temperature, played once."""
        self.parts.policy.model.eval()
        for name, source in self.parts.evaluate.items():
            tasks = source.all(source.source.limit)
            for mode in self.config.evaluate.modes:
                for temperature in self.config.evaluate.temperatures:
                    if self.directory.has_evaluation(phase, step, name, mode, temperature):
                        continue
                    result = await self.evaluate_on(
                        tasks, cast(Mode, mode), temperature, self.parts.scorers[name]
                    )
                    self.directory.add_evaluation(phase, step, name, result)

    async def evaluate_on(
        self, tasks: Sequence[Task], mode: Mode, temperature: float, scorer: Scorer
    ) -> Evaluated:
        player = replace(self.parts.player, scorer=scorer)
        rules = rules_of(self.config, self.parts, mode=mode, temperature=temperature, held_out=True)
        make = self.parts.make_model(self.config.name)
        episodes = await asyncio.gather(
            *(
                player.one(
                    task,
                    make(self.config.evaluate.seed * 1_000_000 + index),
                    rules,
                    group=HELD_OUT,
                )
                for index, task in enumerate(tasks)
            )
        )
        return evaluated_of(mode, temperature, episodes)


def driver_of(config: TrainConfig, parts: Parts, directory: TrainDirectory, note: Note) -> Driver:
    """The driver of the trainer that a configuration names.

    Raises:
        MissingExtra: TRL is named and not installed.
    """
    if config.train.trainer == "in-process":
        return Driver(config, parts, directory, note)
    if find_spec("trl") is None:
        raise MissingExtra("the trainer 'trl'", "train")
    from sandlot.train.trl_driver import TrlDriver

    return TrlDriver(config, parts, directory, note)


def _worth(episode: Episode, min_reward: float | None) -> bool:
    """A missing reward is no reward of 0: it passes no bound, not even a negative one."""
    if min_reward is None:
        return True
    return episode.reward is not None and episode.reward >= min_reward


def _rows_of(episodes: Sequence[Episode], note: Note) -> list[TokenRow]:
    lost = [each for each in episodes if not each.rows]
    if lost:
        note(f"{len(lost)} warm start rollouts were lost ({lost[0].missing})")
    return [row for each in episodes for row in each.rows]


def _text_row(text: Text, tokenizer: Any) -> TokenRow:
    ids: list[int] = []
    learned: list[bool] = []
    for piece, learn in text:
        some = tokenizer.encode(piece, add_special_tokens=False)
        ids += some
        learned += [learn] * len(some)
    return TokenRow(tuple(ids), tuple(learned), (0.0,) * len(ids))


def _staged(
    rows: Mapping[str, Sequence[TokenRow]], warm: WarmStart, seed: int
) -> list[list[int]] | None:
    if not warm.stages:
        return None
    kinds = [kind for kind, each in rows.items() for _ in each]
    for stage in warm.stages:
        lacking = [kind for kind in KINDS if getattr(stage, kind) and kind not in kinds]
        if lacking:
            raise ConfigError(f"warmstart.stages: there are no rows of {lacking[0]!r}")
    shares = [(each.steps, {kind: getattr(each, kind) for kind in KINDS}) for each in warm.stages]
    return plan_stages(kinds, shares, warm.rows_a_step, seed)


def _warm_figures(made: SftStep) -> Mapping[str, float]:
    return {
        "of": made.of,
        "loss": made.loss,
        "tokens": made.tokens,
        "lr": made.lr,
        "norm": made.norm,
    }


def _learned_figures(learned: Learned) -> Mapping[str, float]:
    return {
        "loss": learned.loss,
        "norm": learned.norm,
        "learned_rollouts": learned.rollouts,
        "learned_tokens": learned.tokens,
        "gap_mean": learned.gap_mean,
        "gap_max": learned.gap_max,
        "clipped": learned.clipped,
    }
