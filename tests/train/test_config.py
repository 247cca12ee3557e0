"""Training runs as TOML: what is refused, what may be changed, and where files are looked for."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from sandlot.core.codec import to_json
from sandlot.core.errors import ConfigError
from sandlot.core.store import to_toml
from sandlot.train.config import changed_config, differences, digest, load_config, read_config

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.toml"))
LEAST: dict[str, Any] = {
    "name": "least",
    "model": {"source": "local"},
    "tasks": {"train": {"generator": "errands"}, "scorer": "text"},
}


def with_value(name: str, value: Any) -> dict[str, Any]:
    table: dict[str, Any] = json.loads(json.dumps(LEAST))
    *folders, last = name.split(".")
    inner = table
    for folder in folders:
        inner = inner.setdefault(folder, {})
    inner[last] = value
    return table


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_one_and_comes_back_from_its_records(path: Path) -> None:
    config = load_config(path)
    stored = json.loads(json.dumps(to_json(config)))
    assert changed_config(stored, {}, "manifest") == config
    assert read_config(tomllib.loads(to_toml(stored)), "config.toml") == config


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("train.stepz", 3, "train key 'stepz' is not known.*Did you mean 'steps'"),
        ("train.steps", "three", r"train\.steps must be a whole number, found 'three'"),
        ("train.steps", True, r"train\.steps must be a whole number, found True"),
        ("train.lr", "1e-4", r"train\.lr must be a number"),
        ("model.dtype", "int4", r"model\.dtype 'int4' is not known"),
        ("sandbox", 3, r"sandbox must be a table, found int"),
        ("tasks.train.set", "errands", r"tasks\.train: name either a set or a generator"),
        ("model.source", "random", r"'random' and the table model\.random go together"),
        ("rollout.rollouts_a_task", 1, "a group of one has no baseline"),
        ("rollout.temperature", 0.0, "greedy draws are all alike"),
        ("engine.kind", "vllm", r"engine\.kind 'vllm' needs engine\.url"),
        ("engine.url", "http://127.0.0.1:1", "which asks no server"),
        ("train.betas", [0.9], "two numbers"),
        ("train.steps", 0, "nothing to do"),
        ("warmstart", {"lr": 1e-4}, "learns from nothing"),
        (
            "warmstart",
            {"texts": 1, "epochs": 2, "stages": [{"steps": 1, "texts": 1.0}]},
            "give one",
        ),
        ("warmstart", {"texts": 1, "stages": [{"steps": 0, "texts": 1}]}, "stage 1 has no steps"),
        (
            "warmstart",
            {"texts": 1, "stages": [{"steps": 1, "texts": 1.0}, {"steps": 1}]},
            "stage 2 has no steps, or shares of nothing",
        ),
        ("warmstart", {"texts": 1, "stages": [{"steps": 1, "text": 1.0}]}, "'text' is not known"),
        ("warmstart", {"texts": 1, "stages": {"steps": 1}}, r"warmstart\.stages must be a list"),
        ("train.checkpoint_every", 0, r"train\.checkpoint_every must be at least 1, found 0"),
        (
            "warmstart",
            {"texts": 1, "min_reward": float("nan")},
            r"min_reward must be a finite number, found nan",
        ),
        ("engine.threads", 10**6, r"engine\.threads must be at most 1,024, found 1,000,000"),
        ("train.steps", -1, r"train\.steps must be at least 0, found -1"),
        ("train.lr", 0.0, r"train\.lr must be above 0, found 0\.0"),
        ("train.lr", float("nan"), r"train\.lr must be above 0, found nan"),
        ("sandbox.live", 0, r"sandbox\.live must be at least 1"),
        ("rollout.top_p", -0.5, r"rollout\.top_p must be above 0"),
        ("rollout.top_p", 7.0, r"rollout\.top_p must be above 0 and at most 1, found 7\.0"),
        ("rollout.top_p", 0.9, r"rollout\.top_p or rollout\.top_k cuts tokens off"),
        ("rollout.top_k", 20, r"rollout\.top_p or rollout\.top_k cuts tokens off"),
        ("rollout.temperature", float("nan"), r"rollout\.temperature must be above 0"),
        ("evaluate.top_p", 0.0, r"evaluate\.top_p must be above 0 and at most 1"),
        ("evaluate.top_k", -3, r"evaluate\.top_k must be at least 0, found -3"),
        ("evaluate.temperatures", [1.0, -1.0], r"evaluate\.temperatures must be 0 .*found -1\.0"),
        ("evaluate.temperatures", [float("nan")], r"evaluate\.temperatures .*found nan"),
        (
            "train.betas",
            [2.0, 0.9],
            r"train\.betas must be from 0 to below 1, found \[2\.0, 0\.9\]",
        ),
        ("train.betas", [0.9, float("nan")], r"train\.betas must be from 0 to below 1"),
        ("train.weight_decay", -1.0, r"train\.weight_decay must be 0 or above, found -1\.0"),
        ("train.clip_low", float("nan"), r"train\.clip_low must be 0 or above, found nan"),
        ("train.lr_end", -2.0, r"train\.lr_end must be 0 or above"),
        ("train", {"trainer": "trl", "lr_end": 0.5}, r"train\.lr_end: TRL keeps the rate"),
        (
            "warmstart",
            {"texts": 1, "warmup": float("nan")},
            r"warmstart\.warmup must be from 0 to 1",
        ),
        ("trl.processes", 0, r"trl\.processes must be at least 1"),
        ("model.lora", {"rank": 0}, r"model\.lora\.rank must be at least 1"),
        ("model.lora", {"alpha": float("nan")}, r"model\.lora\.alpha must be above 0"),
        ("tasks.train.limit", -1, r"tasks\.train\.limit must be at least 1, found -1"),
        (
            "tasks.evaluate",
            {"a": {"generator": "errands", "limit": 0}},
            r"tasks\.evaluate\.a\.limit must be at least 1, found 0",
        ),
        ("engine.threads", 0, r"engine\.threads must be at least 1"),
        ("evaluate.modes", ["head"], r"evaluate\.modes may hold"),
        ("tasks.evaluate", {"a": {}}, r"tasks\.evaluate\.a: name either"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_its_name(name: str, value: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as found:
        read_config(with_value(name, value), "mine.toml")
    assert str(found.value).startswith("mine.toml: ")


def test_an_adapter_is_not_laid_over_weights_that_trl_has_merged() -> None:
    table = with_value("model.lora", {})
    table |= {"engine": {"kind": "vllm", "url": "http://127.0.0.1:1"}, "train": {"trainer": "trl"}}
    with pytest.raises(ConfigError, match=r"model\.lora: TRL sends vLLM merged weights"):
        read_config(table, "mine.toml")
    table["train"] = {"trainer": "in-process"}
    assert read_config(table, "mine.toml").model.lora is not None


@pytest.mark.parametrize("name", ["evaluate.modes", "evaluate.temperatures"])
def test_an_empty_list_plays_no_evaluation(name: str) -> None:
    table = with_value(name, [])
    table["tasks"] |= {"evaluate": {"a": {"generator": "errands"}}}
    found = read_config(table, "mine.toml").evaluate
    assert not getattr(found, name.partition(".")[2])


@pytest.mark.parametrize("missing", ["name", "model", "tasks"])
def test_what_a_run_must_say_is_named_where_it_is_missing(missing: str) -> None:
    table = {name: value for name, value in LEAST.items() if name != missing}
    with pytest.raises(ConfigError, match=f"{missing} is missing"):
        read_config(table, "mine.toml")


def test_a_file_that_is_no_toml_or_not_there_is_named(tmp_path: Path) -> None:
    file = tmp_path / "broken.toml"
    with pytest.raises(ConfigError, match=r"broken\.toml: cannot be read"):
        load_config(file)
    file.write_text("name = ")
    with pytest.raises(ConfigError, match=r"broken\.toml: not valid TOML"):
        load_config(file)


def test_values_may_be_changed_by_their_dotted_names(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(to_toml(LEAST))
    config = load_config(file, {"train.steps": 7, "warmstart.clerks": 3})
    assert config.train.steps == 7
    assert config.warmstart is not None
    assert config.warmstart.clerks == 3
    assert changed_config(to_json(config), {"warmstart.epochs": 2}, "x").warmstart is not None
    with pytest.raises(ConfigError, match="'name' is no table"):
        load_config(file, {"name.steps": 7})


def test_files_beside_a_recipe_are_found_from_anywhere_and_named_in_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run goes on from whatever folder it is resumed in."""
    folder = tmp_path / "recipes"
    (folder / "weights").mkdir(parents=True)
    for name in ("mine.jsonl", "chat.jinja", "good.jsonl", "run.toml"):
        (folder / name).touch()
    table = {**LEAST, "model": {"source": "weights", "template": "chat.jinja"}}
    table["tasks"] = {"train": {"set": "mine.jsonl"}, "evaluate": {"shipped": {"set": "errands"}}}
    table["warmstart"] = {"rows": "good.jsonl"}
    (folder / "run.toml").write_text(to_toml(table))
    monkeypatch.chdir(tmp_path)
    config = load_config(Path("recipes/run.toml"))
    assert config.model.source == str(folder / "weights")
    assert config.model.template == str(folder / "chat.jinja")
    assert config.tasks.train.set == str(folder / "mine.jsonl")
    assert config.tasks.evaluate["shipped"].set == "errands"
    assert config.warmstart is not None
    assert config.warmstart.rows == str(folder / "good.jsonl")


def test_two_configurations_are_told_apart_value_by_value() -> None:
    one, other = read_config(LEAST, "a"), read_config(with_value("train.steps", 9), "b")
    assert differences(to_json(one), to_json(other)) == ["train.steps: was 40, is 9"]
    assert digest(one) != digest(other)
    assert digest(one) == digest(read_config(LEAST, "c"))
