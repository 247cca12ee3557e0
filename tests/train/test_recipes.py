"""The recipes say what they are meant to say."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandlot.agent.prompts import load_profile
from sandlot.train.config import load_config

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_recipe_can_be_read_and_its_profiles_are_there(path: Path) -> None:
    config = load_config(path)
    assert config.name == path.stem
    load_profile(config.sandbox.profile)
    load_profile(config.sandbox.llm_profile)


def test_the_papers_recipe_has_the_papers_settings() -> None:
    """LLM-in-Sandbox-RL, arXiv:2601.16206, and the script that was published with it."""
    config = load_config(RECIPES / "paper-qwen3-4b.toml")
    rollout, train, evaluate = config.rollout, config.train, config.evaluate
    assert (rollout.tasks_a_step, rollout.rollouts_a_task) == (8, 8)
    assert (train.lr, train.steps, train.trainer) == (1e-6, 150, "trl")
    assert (train.clip_low, train.clip_high) == (0.2, 0.28)
    assert (rollout.temperature, rollout.top_p, rollout.top_k) == (1.0, 1.0, 0)
    assert (evaluate.temperatures, evaluate.top_p, evaluate.top_k) == ((0.7,), 0.8, 20)
    assert rollout.max_turns == 100
    assert config.engine.context_tokens == 16_384 + 65_536
    assert rollout.episode_s == 5400
    assert (config.sandbox.profile, config.model.tool_form) == ("benchmark", "native")
    assert config.trl.updates == 1
    assert config.model.lora is None
