"""What is told of a training run, and how it is drawn: from figures alone, without torch."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from sandlot.bench.patterns import CAPABILITIES
from sandlot.core.errors import ConfigError, InputError
from sandlot.train.config import TrainConfig, read_config
from sandlot.train.directory import TrainDirectory
from sandlot.train.live import (
    STEP_COLUMNS,
    Story,
    duration,
    evaluation_table,
    sparkline,
    step_row,
    summary_of,
)
from sandlot.train.plot import curves, save_png

CONFIG = {
    "name": "a <run> & its curves",
    "model": {"source": "local"},
    "tasks": {"train": {"generator": "errands"}, "scorer": "text"},
    "rollout": {"tasks_a_step": 2, "rollouts_a_task": 3},
    "train": {"steps": 4},
}


def config() -> TrainConfig:
    return read_config(CONFIG, "test")


def learned(reward: float, **more: float) -> dict[str, float]:
    figures = {
        "reward": reward,
        "scored": 5.0,
        "missing": 1.0,
        "turns": 3.0,
        "tokens": 41.0,
        "useful_groups": 0.5,
        "rollout_s": 2.0,
        "update_s": 1.0,
        "gap_mean": 2e-5,
        "gap_max": 3e-4,
    }
    return figures | {f"uses_{name}": 0.25 for name in CAPABILITIES} | more


def held_out(step: int, name: str = "mine", mode: str = "sandbox") -> dict[str, Any]:
    return {
        "phase": "train",
        "step": step,
        "set": name,
        "mode": mode,
        "temperature": 1.0,
        "tasks": 8,
        "scored": 7,
        "reward": 0.5,
        "interval": {"low": 0.25, "high": 0.75, "level": 0.95},
        "turns": 3.25,
        "tokens": 40.0,
        "submitted": 0.875,
        "families": {},
        "missing": {"deadline": 1},
    }


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


# --- words -----------------------------------------------------------------------------------


def test_a_step_is_told_with_what_it_learned_and_how_long_the_rest_will_take() -> None:
    clock = Clock()
    story = Story(config(), clock)
    for step in (1, 2):
        clock.now += 30.0
        story.told("train", step, learned(0.25))
    line = story.line()
    assert line.startswith("step 2/4: reward 0.250, 3.00 turns, 41 tokens, 50 % of groups useful")
    assert "gap 2.0e-05 (at most 3.0e-04)" in line
    assert "1 rewards missing" in line
    assert line.endswith("1m00s left")


def test_a_step_whose_rollouts_were_all_lost_is_no_step_of_reward_0() -> None:
    lost = {name: each for name, each in learned(0.0).items() if not name.startswith("gap")}
    for name in ("reward", "turns", "tokens"):
        del lost[name]
    lost |= {"scored": 0.0, "missing": 6.0, "useful_groups": 0.0}
    story = Story(config(), Clock())
    story.told("train", 1, learned(0.5))
    story.told("train", 2, lost)
    assert story.line().startswith("step 2/4: no reward, 0 % of groups useful, nothing to learn")
    assert step_row(2, lost)[:4] == ("2", "–", "–", "–")
    lines = [{"phase": "train", "step": 1, "figures": each} for each in (learned(0.5), lost)]
    found = summary_of(lines)
    assert (found.steps, found.missing) == (2, 7)
    assert found.last["reward"] == 0.5
    assert not any("curve" in line for line in summary_of(lines[1:]).lines())


def test_an_evaluation_between_two_steps_does_not_count_as_time_of_a_step() -> None:
    clock = Clock()
    story = Story(config(), clock)
    for step in (1, 2):
        clock.now += 10.0
        story.told("train", step, learned(0.5))
    clock.now += 1000.0
    story.told("evaluation", 2, held_out(2))
    assert story.left_s is None
    for step in (3, 4):
        clock.now += 10.0
        story.told("train", step, learned(0.5))
    assert story.left_s == 0.0
    assert story.evaluations == [held_out(2)]


def test_a_step_without_any_advantage_says_that_there_was_nothing_to_learn() -> None:
    story = Story(config())
    bare = {name: value for name, value in learned(1.0).items() if not name.startswith("gap")}
    story.told("train", 1, bare)
    assert "nothing to learn from" in story.line()


def test_rollouts_are_counted_until_their_step_ends() -> None:
    story = Story(config(), Clock())
    story.told("train", 1, learned(0.5))
    for _ in range(4):
        story.told("rollout", 0, {"group": "2.0.x", "reward": 1.0})
    assert story.waiting() == "after 1 of 4 steps: 4 of 6 rollouts played"
    story.told("train", 2, learned(0.5))
    assert story.waiting() == "after 2 of 4 steps: 0 of 6 rollouts played, 0 s left"


def test_before_the_first_step_it_says_what_is_made_ready() -> None:
    story = Story(config())
    assert story.waiting() == "loading"
    story.told("rollout", 0, {"group": "efficient", "reward": None})
    assert story.waiting() == "getting ready, 1 rollouts played"
    story.told("warmstart", 1, {"of": 2, "loss": 2.0})
    assert story.waiting() == "warm start: 1 of 2 steps"


def test_a_step_has_a_row_with_a_dash_where_nothing_was_learned() -> None:
    row = dict(zip(STEP_COLUMNS, step_row(3, learned(0.5)), strict=True))
    assert (row["step"], row["useful"], row["gap"], row["missing"]) == ("3", "50 %", "2.0e-05", "1")
    bare = {name: value for name, value in learned(1.0).items() if not name.startswith("gap")}
    assert dict(zip(STEP_COLUMNS, step_row(4, bare), strict=True))["at most"] == "–"


def test_the_warm_start_has_a_line_and_curves_of_its_own() -> None:
    story = Story(config())
    story.told("warmstart", 3, {"of": 8, "loss": 1.25, "tokens": 2048, "lr": 3e-4})
    assert story.line() == "warm start 3/8: loss 1.250, 2,048 tokens, rate 3.0e-04"
    story.told("train", 1, learned(0.1))
    story.told("train", 2, learned(0.9))
    shown = {name: (picture, ends) for name, picture, ends in story.sparklines()}
    assert shown["reward"] == ("▂▇", "0.1 → 0.9")
    assert "loss" not in story.curves or len(story.curves["loss"]) == 0


@pytest.mark.parametrize(
    ("values", "width", "top", "wanted"),
    [
        ([0.0, 0.5, 1.0], 40, 1.0, "▁▅█"),
        ([0.0, 0.0], 40, None, "▁▁"),
        ([], 40, None, ""),
        ([1.0, 1.0, 3.0, 3.0], 2, 3.0, "▃█"),
        ([-1.0, 2.0], 40, 1.0, "▁█"),
    ],
)
def test_a_sparkline_is_as_high_as_its_values_and_no_wider_than_asked(
    values: list[float], width: int, top: float | None, wanted: str
) -> None:
    assert sparkline(values, width=width, top=top) == wanted


def test_an_evaluation_stands_with_its_interval_and_what_is_missing() -> None:
    table = evaluation_table([held_out(10)])
    wanted = ("mine", "sandbox", "1", "10 steps", "0.500 (0.250 to 0.750)", "3.25", "40", "88 %")
    assert table.rows[0][:8] == wanted
    assert table.rows[0][8] == "7 of 8 (1 deadline)"
    nothing = evaluation_table([{**held_out(0), "reward": None, "interval": None, "scored": 0}])
    assert nothing.rows[0][4] == "–"


@pytest.mark.parametrize(
    ("seconds", "wanted"), [(0.4, "0 s"), (61, "1m01s"), (3599.6, "1h00m"), (7260, "2h01m")]
)
def test_durations_are_read_at_a_glance(seconds: float, wanted: str) -> None:
    assert duration(seconds) == wanted


def test_a_summary_counts_rollouts_missing_rewards_time_and_memory() -> None:
    warm = {"phase": "warmstart", "step": 1, "figures": {"update_s": 4.0, "memory_mib": 300.0}}
    steps = [
        {"phase": "train", "step": step, "figures": learned(step / 10, memory_mib=200.0 + step)}
        for step in range(1, 8)
    ]
    found = summary_of([warm, *steps])
    assert (found.warm_steps, found.steps, found.rollouts, found.missing) == (1, 7, 42, 7)
    assert found.seconds == 4.0 + 7 * 3.0
    assert found.memory_mib == 300.0
    assert math.isclose(found.first["reward"], 0.3)
    assert math.isclose(found.last["reward"], 0.5)
    assert any("7 of them without a reward" in line for line in found.lines())
    assert next(iter(summary_of([]).lines())).startswith("trained: 0 steps")


# --- pictures --------------------------------------------------------------------------------


def run_of(parent: Path, lines: list[tuple[str, int, Mapping[str, float]]]) -> TrainDirectory:
    directory = TrainDirectory.create(parent, config(), {}, datetime(2026, 1, 2, 3, 4, 5))
    for phase, step, figures in lines:
        directory.add_step(phase, step, figures)
    return directory


def test_the_curves_are_one_picture_of_well_formed_svg(tmp_path: Path) -> None:
    steps = [("train", step, learned(step / 20)) for step in range(1, 21)]
    warm = [("warmstart", 1, {"of": 2, "loss": 2.0}), ("warmstart", 2, {"of": 2, "loss": 1.0})]
    directory = run_of(tmp_path, [*warm, *steps])
    for step in (0, 20):
        for mode in ("sandbox", "llm"):
            directory._append("evaluations.jsonl", held_out(step, "<b>x", mode))
    drawn = curves(directory)
    root = ElementTree.fromstring(drawn.svg)
    words = [element.text for element in root.iter() if element.tag.endswith("}text")]
    assert root.get("height") == str(drawn.height)
    assert "a <run> & its curves" in words
    assert "Reward in training" in words
    assert "Warm start: loss a token (nats)" in words
    assert "Held-out reward, 95 % intervals (hollow: mode llm)" in words
    assert "<b>x" not in drawn.svg
    assert "NaN" not in drawn.svg


def test_what_has_no_figures_has_no_panel(tmp_path: Path) -> None:
    directory = run_of(tmp_path, [("warmstart", 1, {"of": 1, "loss": 2.0})])
    drawn = curves(directory)
    assert "Warm start" in drawn.svg
    assert "Reward in training" not in drawn.svg


def test_figures_that_are_no_numbers_are_left_out_of_the_picture(tmp_path: Path) -> None:
    steps = [("train", 1, learned(0.5, gap_max=math.inf)), ("train", 2, learned(math.nan))]
    drawn = curves(run_of(tmp_path, steps))
    assert "nan" not in drawn.svg
    assert not re.search(r"[ ,\"]-?inf\b", drawn.svg)


def test_a_run_without_a_step_has_nothing_to_draw(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no step yet"):
        curves(run_of(tmp_path, []))


def test_without_a_browser_a_png_says_what_to_do(tmp_path: Path) -> None:
    drawn = curves(run_of(tmp_path, [("train", 1, learned(0.5))]))
    with pytest.raises(ConfigError, match=r"write an \.svg file instead"):
        save_png(drawn, tmp_path / "x.png", {"SANDLOT_CHROMIUM": str(tmp_path / "none")})
