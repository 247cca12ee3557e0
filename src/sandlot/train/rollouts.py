"""Groups of rollouts for training: the ordinary loop, the ordinary scorers, and one reward each."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from sandlot.agent.budget import Budget
from sandlot.agent.prompts import Profile
from sandlot.agent.rollout import run_rollout
from sandlot.bench.arms import ARMS, task_for
from sandlot.bench.patterns import CAPABILITIES, capabilities
from sandlot.core.errors import RecordError, SandlotError
from sandlot.core.tokens import TokenRow, rows_of
from sandlot.core.types import StopReason, Task, Trajectory
from sandlot.models.base import Model, Sampling
from sandlot.sandbox.base import Sandbox
from sandlot.scoring.base import Candidate, Scorer
from sandlot.train.base import Episode

OpenBox = Callable[[], Awaitable[Sandbox]]
MakeModel = Callable[[int], Model]
"""A model for one rollout; its argument seeds the draws."""

OVERLONG = (StopReason.MAX_TURNS, StopReason.CONTEXT_FULL, StopReason.TOKEN_BUDGET)
"""Ends of the model's own making that are worth 0 whatever it left, as in the paper."""

OURS = (
    StopReason.SANDBOX_DIED,
    StopReason.MODEL_ERROR,
    StopReason.CANCELLED,
    StopReason.TIME_LIMIT,
)
"""Ends that say nothing of the model; a deadline is among them, for it depends on the machine."""


@dataclass(frozen=True, slots=True)
class Rules:
    """How rollouts are played and what they are worth.

    `episode_s` bounds one rollout: between its steps, and `grace_s` later in whatever it is doing.
    With `submit` an answer counts only if it was submitted. `mode` llm asks without a sandbox, with
    the documents written into the prompt.
    """

    profile: Profile
    sampling: Sampling
    mode: Literal["sandbox", "llm"] = "sandbox"
    max_turns: int | None = None
    episode_s: float = 600.0
    grace_s: float = 30.0
    submit: bool = True


@dataclass(slots=True)
class Player:
    """Plays rollouts, at most `live` sandboxes at once.

    `watch` gets each trajectory with its episode, for whoever keeps records.
    """

    open_box: OpenBox
    scorer: Scorer
    live: int
    watch: Callable[[Trajectory, Episode], None] | None = None
    _gate: asyncio.Semaphore = field(init=False)

    def __post_init__(self) -> None:
        self._gate = asyncio.Semaphore(self.live)

    async def group(
        self, task: Task, repeats: int, make_model: MakeModel, rules: Rules, *, name: str, seed: int
    ) -> list[Episode]:
        """`repeats` rollouts of one task, which share a baseline under `name`."""
        return list(
            await asyncio.gather(
                *(
                    self.one(task, make_model(seed * 10_007 + number), rules, group=name)
                    for number in range(repeats)
                )
            )
        )

    async def one(self, task: Task, model: Model, rules: Rules, *, group: str) -> Episode:
        """One rollout with its reward. A failure of ours is a missing reward, never an exception.

        Raises:
            ConfigError: a task that its scorer cannot score at all.
        """
        async with self._gate:
            try:
                async with asyncio.timeout(rules.episode_s + rules.grace_s):
                    trajectory = await self._play(task, model, rules)
            except TimeoutError:
                return _lost(group, task, "deadline")
            except (SandlotError, OSError) as error:
                return _lost(group, task, f"{type(error).__name__}: {error}")
        episode = await self._worth(task, trajectory, rules, group)
        if self.watch is not None:
            self.watch(trajectory, episode)
        return episode

    async def _play(self, task: Task, model: Model, rules: Rules) -> Trajectory:
        turns = rules.max_turns or rules.profile.max_turns
        common = {
            "model": model,
            "profile": rules.profile,
            "budget": Budget(max_turns=turns, time_limit_s=rules.episode_s),
            "sampling": rules.sampling,
        }
        if rules.mode == "llm":
            return await run_rollout(task_for(ARMS[rules.mode], task), **common)  # type: ignore[arg-type]
        box = await self.open_box()
        try:
            return await run_rollout(task, sandbox=box, **common)  # type: ignore[arg-type]
        finally:
            await box.close()

    async def _worth(self, task: Task, trajectory: Trajectory, rules: Rules, group: str) -> Episode:
        rows: tuple[TokenRow, ...] = ()
        unread: str | None = None
        try:
            rows = rows_of(trajectory)
        except RecordError as error:
            unread = str(error)
        reward, missing = await self._reward(task, trajectory, rules)
        if unread is not None and reward is not None:
            reward, missing = None, unread
        return Episode(
            group=group,
            task_id=task.id,
            rows=rows,
            reward=reward,
            missing=missing,
            stop_reason=trajectory.stop_reason.value if trajectory.stop_reason else "",
            figures=figures_of(trajectory, rows),
            metadata={
                key: task.metadata[key] for key in ("family", "grade") if key in task.metadata
            },
        )

    async def _reward(
        self, task: Task, trajectory: Trajectory, rules: Rules
    ) -> tuple[float | None, str | None]:
        reason = trajectory.stop_reason
        if reason is None or reason in OURS:
            return None, f"{reason.value if reason else 'no end'}: {trajectory.stop_detail}"
        if reason in OVERLONG:
            return 0.0, None
        if rules.submit and rules.mode == "sandbox" and reason is not StopReason.SUBMITTED:
            return 0.0, None
        score = await self.scorer.score(Candidate(task, trajectory.answer))
        return score.value, score.missing


def figures_of(trajectory: Trajectory, rows: Sequence[TokenRow]) -> Mapping[str, float]:
    """What the curves show of a rollout: counts, and seconds by where they went."""
    turns = trajectory.turns
    used = [name for turn in turns for name in capabilities(turn)]
    return {
        "turns": float(len(turns)),
        "sampled_tokens": float(sum(row.sampled_tokens for row in rows)),
        "row_tokens": float(sum(len(row.ids) for row in rows)),
        "rows": float(len(rows)),
        "submitted": float(trajectory.stop_reason is StopReason.SUBMITTED),
        "model_s": sum(turn.model_s for turn in turns),
        "tool_s": sum(result.duration_s for turn in turns for result in turn.tool_results),
        "wall_s": trajectory.duration_s or 0.0,
        **{f"uses_{name}": float(used.count(name)) for name in CAPABILITIES},
    }


def _lost(group: str, task: Task, why: str) -> Episode:
    return Episode(group, task.id, (), None, missing=why, stop_reason="lost")
