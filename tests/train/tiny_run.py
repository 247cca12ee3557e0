"""A training run that takes seconds: a random model of one layer, and sandboxes without a shell.

As a program (`tiny_run.py FOLDER`) it is there to be killed.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from small_shell import open_small_shell

from sandlot.train.assemble import Parts, assemble
from sandlot.train.config import TrainConfig, changed_config
from sandlot.train.directory import TrainDirectory
from sandlot.train.driver import Driver
from sandlot.train.rollouts import OpenBox, Player

TABLE: dict[str, Any] = {
    "name": "tiny",
    "model": {
        "source": "random",
        "random": {"layers": 1, "hidden": 32, "heads": 2, "vocabulary": 700},
    },
    "sandbox": {"profile": "nano", "llm_profile": "nano-llm", "backend": "fake", "live": 8},
    "engine": {"slots": 6, "context_tokens": 416, "threads": 1},
    "tasks": {
        "scorer": "text",
        "scorer_options": {"exact": True},
        "train": {"generator": "filing", "options": {"files": 2}},
        "evaluate": {"held_out": {"generator": "filing", "seed": 900, "options": {"items": 4}}},
    },
    "warmstart": {
        "clerks": 8,
        "drills": 8,
        "texts": 8,
        "lr": 1e-2,
        "rows_a_step": 4,
        "stages": [{"steps": 4, "texts": 1.0}, {"steps": 56, "clerks": 0.5, "drills": 0.5}],
    },
    "rollout": {"tasks_a_step": 3, "rollouts_a_task": 4, "max_turns": 4, "reward": "coin"},
    "train": {"steps": 4, "lr": 1e-3, "checkpoint_every": 1},
    "evaluate": {"every": 2},
}
"""The reward is a coin's: nothing so small learns to earn any in a few seconds."""

Told = Callable[[str, int, Mapping[str, Any]], None]


def tiny_config(**changes: Any) -> TrainConfig:
    """`changes` name values with `__` for the dot."""
    named = {name.replace("__", "."): value for name, value in changes.items()}
    return changed_config(TABLE, named, "tiny")


def tiny_parts(config: TrainConfig, open_box: OpenBox = open_small_shell) -> Parts:
    parts = assemble(config, lambda _: None)
    return replace(parts, player=Player(open_box, parts.scorer, config.sandbox.live))


def begun(folder: Path, config: TrainConfig) -> TrainDirectory:
    return TrainDirectory.create(folder, config, {}, datetime(2026, 1, 2))


async def go_on(
    directory: TrainDirectory,
    config: TrainConfig,
    *,
    parts: Parts | None = None,
    told: Told | None = None,
) -> Parts:
    """Run what is left of a run, in a new process's place; gives the parts, closed."""
    parts = parts or tiny_parts(config)
    directory.told = told
    try:
        await Driver(config, parts, directory, lambda _: None).run()
    finally:
        await parts.close()
    return parts


def main() -> None:
    def told(phase: str, step: int, figures: Mapping[str, Any]) -> None:
        print(json.dumps([phase, step]), flush=True)

    config = tiny_config(**json.loads(sys.argv[2]))
    asyncio.run(go_on(begun(Path(sys.argv[1]), config), config, told=told))


if __name__ == "__main__":
    main()
