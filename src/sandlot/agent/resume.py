"""Go on with a rollout that was interrupted: its recorded commands are run again first."""

from __future__ import annotations

from typing import Any

from sandlot.agent.rollout import run_rollout
from sandlot.core.types import Trajectory
from sandlot.models.base import Model
from sandlot.sandbox.base import Sandbox


async def resume_rollout(
    history: Trajectory, *, model: Model, sandbox: Sandbox | None = None, **options: Any
) -> Trajectory:
    """Finish an unfinished trajectory in a fresh sandbox.

    The recorded tool calls run again in their order. When each observation is the recorded one
    (durations aside) the rollout goes on from there, a reply whose results were not all
    recorded included; at the first one that differs it starts over (`RolloutContinued` says
    which). `options` are those of `run_rollout`; events go to its sink, the first of them
    belonging after the recorded ones.
    """
    return await run_rollout(
        history.task, model=model, sandbox=sandbox, history=history, replay=True, **options
    )
