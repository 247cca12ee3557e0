"""The smallest recipe, whole: a policy of random weights learns in real sandboxes."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("torch", reason="training needs the extra `train`")

ROOT = Path(__file__).parents[2]


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_nano", ROOT / "scripts" / "train_nano.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.sandbox
def test_a_policy_of_random_weights_learns_by_outcome_alone(tmp_path: Path) -> None:
    """Warm start and fifty steps; the marks are those of `make train-nano`."""
    nano = script()
    run = nano.train(1, tmp_path)
    before, _ = nano.held_out(run)
    assert before["reward"] < 0.4
    assert before["turns"] > 6
    assert nano.missed(run) == []
