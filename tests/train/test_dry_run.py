"""A dry run plays and learns one whole step, and its TRL step is the in-process one."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

REASON = "needs the extra `train` (torch, transformers, peft, trl)"
torch = pytest.importorskip("torch", reason=REASON)
pytest.importorskip("trl", reason=REASON)

from sandlot.core.codec import to_json  # noqa: E402
from sandlot.core.errors import ConfigError  # noqa: E402
from sandlot.settings import resolve  # noqa: E402
from sandlot.train.config import TrainConfig, load_config  # noqa: E402
from sandlot.train.dry_run import Report, dry_run, tasks_for  # noqa: E402
from sandlot.train.records import read_records  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:.*will be removed in v6:FutureWarning")

RECIPES = Path(__file__).parents[2] / "recipes"
SMALL = {"rollout.tasks_a_step": 2, "rollout.rollouts_a_task": 4, "train.lr": 1e-3}


def paper(**changes: Any) -> TrainConfig:
    dotted = {name.replace("__", "."): value for name, value in changes.items()}
    return load_config(RECIPES / "paper-qwen3-4b.toml", {**SMALL, **dotted})


def rehearse(config: TrainConfig, folder: Path, **how: Any) -> Report:
    torch.set_num_threads(1)
    work = folder / "work"
    work.mkdir()
    notes: list[str] = []
    return asyncio.run(
        dry_run(config, resolve({}), work, note=notes.append, real_sandboxes=False, **how)
    )


@pytest.mark.slow
def test_the_papers_recipe_plays_learns_and_says_what_it_needs(tmp_path: Path) -> None:
    report = rehearse(paper(), tmp_path)
    assert (report.rollouts, report.coached, report.trainer) == (8, 4, "trl")
    assert report.figures["scored"] == 8
    assert report.figures["reward"] == 0.5
    assert report.figures["useful_groups"] == 1
    assert report.figures["gap_max"] < 1e-4
    assert report.figures["loss"] != 0
    assert report.moved > 0
    assert report.template == "that of Qwen3-4B-Instruct-2507 as trl ships it"
    assert {each.part for each in report.needs} >= {"trainer", "engine", "sandboxes", "disk"}
    json.dumps(to_json(report))
    (records,) = (tmp_path / "work").glob("*/records/step-000001.jsonl")
    read = list(read_records(records))
    assert len(read) == 8
    assert {each.step for each in read} == {1}
    assert {len(each.episode.rows) for each in read} == {1}


@pytest.mark.slow
def test_a_step_of_trl_is_the_step_of_the_in_process_trainer(tmp_path: Path) -> None:
    """The same rollouts, the same loss, the same norm and, by AdamW, the same move.

    Without weight decay, of which transformers spares the norms.
    """
    found = []
    for trainer in ("trl", "in-process"):
        folder = tmp_path / trainer
        folder.mkdir()
        same = {"trl__old_logprobs": "drawn", "train__weight_decay": 0.0}
        config = paper(train__trainer=trainer, **same)
        found.append(rehearse(config, folder))
    trl, own = found
    assert trl.figures["sampled_tokens"] == own.figures["sampled_tokens"]
    assert trl.figures["learned_tokens"] == own.figures["learned_tokens"]
    for name in ("loss", "norm", "reward"):
        assert trl.figures[name] == pytest.approx(own.figures[name], rel=1e-4)
    assert trl.moved == pytest.approx(own.moved, rel=1e-3)


def test_tasks_are_built_from_the_readers_own_rows(tmp_path: Path) -> None:
    rows = tmp_path / "seed.jsonl"
    line = {
        "context": "The ferry to Anvik leaves at nine. " * 30,
        "QA_list": [{"Q": "When does the ferry to Anvik leave?", "A": "at nine"}],
        "QA_type": "free-form",
        "rc_name": "ferries",
    }
    rows.write_text(json.dumps(line) + "\n")
    source, said = tasks_for(paper(), tmp_path, rows)
    assert source.set == str(tmp_path / "tasks.toml")
    assert said.startswith("1 built from ")


def test_tasks_that_are_not_on_this_machine_are_stood_in_for(tmp_path: Path) -> None:
    _, said = tasks_for(paper(), tmp_path, None)
    assert "made-up questions in the shape of the seed" in said
    assert "'data/paper-train.toml' is not on this machine" in said


def test_a_model_whose_template_is_nowhere_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nor its chat template: name its folder"):
        rehearse(paper(model__source="Nobody/Nothing-1B"), tmp_path)
