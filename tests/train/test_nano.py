"""The smallest recipe, whole: a policy of random weights learns in real sandboxes."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("torch", reason="training needs the extra `train`")
pytest.importorskip("transformers", reason="training needs the extra `train`")

from sandbox.backends import proved_maker

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def nano() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_nano", ROOT / "scripts" / "train_nano.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def _sandboxes(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skips with the reason where this machine has no real sandbox."""
    proved_maker(tmp_path_factory.mktemp("state"))


@pytest.mark.slow
@pytest.mark.sandbox
@pytest.mark.usefixtures("_sandboxes")
def test_a_policy_of_random_weights_learns_by_outcome_alone(
    nano: ModuleType, tmp_path: Path
) -> None:
    """Warm start and fifty steps; the marks are those of `make train-nano`."""
    run = nano.train(1, tmp_path)
    before, _ = nano.held_out(run)
    assert before["reward"] < 0.4
    assert before["turns"] > 6
    assert nano.missed(run) == []
    steps = [line["figures"] for line in nano.lines_of(run / "steps.jsonl")]
    assert not any(step.get("missing") for step in steps)


@pytest.mark.sandbox
@pytest.mark.usefixtures("_sandboxes")
def test_a_step_of_it_runs_in_real_sandboxes_and_both_sides_agree_on_its_tokens(
    nano: ModuleType, tmp_path: Path
) -> None:
    changes = (
        "warmstart.clerks=6",
        "warmstart.drills=6",
        "warmstart.texts=16",
        'warmstart.stages=[{"steps"=10, "texts"=0.2, "drills"=0.4, "clerks"=0.4}]',
        "tasks.evaluate.held_out.options.items=4",
        "rollout.tasks_a_step=2",
        "rollout.reward=coin",
        "train.steps=1",
    )
    run = nano.train(1, tmp_path, *changes)
    (step,) = (
        line["figures"] for line in nano.lines_of(run / "steps.jsonl") if line["phase"] == "train"
    )
    assert (step["scored"], step["missing"]) == (16, 0)
    assert 0 < step["learned_tokens"] <= step["sampled_tokens"]
    assert nano.greatest_gap(run) <= nano.GAP
    before, after = nano.held_out(run)
    assert (before["step"], after["step"]) == (0, 1)
    assert before["scored"] == 4


# --- the marks -----------------------------------------------------------------------------------


def made_up(folder: Path, reward: float, turns: float, gap: float = 1e-6) -> Path:
    """What a run leaves, with these figures at its end; it began at 0.2 and 7.5 turns."""
    evaluations = [{"reward": 0.2, "turns": 7.5}, {"reward": reward, "turns": turns}]
    steps: list[dict[str, Any]] = [
        {"phase": "warmstart", "figures": {"loss": 1.0}},
        {"phase": "train", "figures": {"gap_max": gap}},
        {"phase": "train", "figures": {}},
    ]
    for name, lines in (("evaluations", evaluations), ("steps", steps)):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text)
    return folder


@pytest.mark.parametrize(
    ("reward", "turns", "gap", "said"),
    [
        (0.85, 4.5, 1e-4, []),
        (0.84, 4.0, 1e-6, ["held-out reward 0.840, not 0.85"]),
        (0.9, 4.6, 1e-6, ["4.60 turns, not at most 4.5"]),
        (0.9, 4.0, 2e-4, ["sampler and trainer 2.0e-04 nats apart, not at most 1e-04"]),
    ],
)
def test_what_a_run_misses_is_said_in_words(
    nano: ModuleType, tmp_path: Path, reward: float, turns: float, gap: float, said: list[str]
) -> None:
    assert nano.missed(made_up(tmp_path, reward, turns, gap)) == said


def test_a_control_must_not_gain(nano: ModuleType, tmp_path: Path) -> None:
    assert nano.learned_from_coins(made_up(tmp_path, 0.29, 7.0)) == []
    assert nano.learned_from_coins(made_up(tmp_path, 0.31, 7.0)) == ["coin flips taught it: +0.110"]
