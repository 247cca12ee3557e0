"""A training run as data: one TOML file, read strictly into frozen values."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sandlot.core.codec import to_json
from sandlot.core.errors import ConfigError, unknown_name

NO_PATHS = ("local", "random")
"""Sources of a model that name no file."""


@dataclass(frozen=True, slots=True)
class RandomModel:
    """A model of random weights, with a tokenizer made from the tasks."""

    architecture: str = "qwen3"
    layers: int = 3
    hidden: int = 128
    heads: int = 4
    vocabulary: int = 900
    initializer_range: float = 0.05


@dataclass(frozen=True, slots=True)
class Lora:
    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    )


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """`source` is a folder in the hub's layout, a GGUF file, `local`, or `random`.

    `template` is a file with a chat template in place of the model's own. The lowest
    `freeze_layers` layers stay as they are; with `lora` everything but the adapter does.
    """

    source: str
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str = "cpu"
    tool_form: Literal["native", "text", "fenced"] = "native"
    template: str | None = None
    freeze_layers: int = 0
    freeze_embeddings: bool = False
    lora: Lora | None = None
    random: RandomModel | None = None


@dataclass(frozen=True, slots=True)
class TaskSource:
    """Where tasks come from: a task set by name or path, or a generator with its options.

    A generator makes fresh tasks for every step, from `seed` on; a set is gone through in a new
    order each time. `limit` bounds how many are taken of a set.
    """

    set: str | None = None
    generator: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 1
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class TasksConfig:
    """`scorer` is that of the task set where one is named, unless it is given here."""

    train: TaskSource
    evaluate: Mapping[str, TaskSource] = field(default_factory=dict)
    scorer: str | None = None
    scorer_options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SandboxConfig:
    """`live` bounds how many sandboxes run at once."""

    profile: str = "benchmark"
    llm_profile: str = "benchmark-llm"
    backend: str = "auto"
    image: str = "base"
    network: str = "none"
    live: int = 24


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Who draws tokens: this process, or a server. `context_tokens` is the room of one rollout.

    `key` names the variable that holds a server's key. `processed_logprobs` says that vLLM was
    started with `--logprobs-mode processed_logprobs`, which draws below all tokens need.
    """

    kind: Literal["torch", "vllm", "sglang"] = "torch"
    url: str | None = None
    model: str | None = None
    key: str | None = None
    processed_logprobs: bool = False
    slots: int = 32
    context_tokens: int = 2048
    threads: int | None = None


@dataclass(frozen=True, slots=True)
class Stage:
    """`steps` steps of a warm start, whose rows are drawn from each kind by its share."""

    steps: int
    clerks: float = 0.0
    drills: float = 0.0
    texts: float = 0.0
    answers: float = 0.0
    rows: float = 0.0


KINDS = ("clerks", "drills", "texts", "answers", "rows")
"""What a warm start can learn from."""


@dataclass(frozen=True, slots=True)
class WarmStart:
    """Supervised fine-tuning before the reinforcement learning.

    `clerks` scripted rollouts and `drills` short ones (`train.lessons`) are played through the loop
    in real sandboxes; `texts` are plain ones in place of pretraining, `answers` questions answered
    from the head (of a control run); `rows` is a file of training records to learn from as well.
    All of it is gone through `epochs` times in one shuffled order, or in `stages`.
    """

    clerks: int = 0
    drills: int = 0
    texts: int = 0
    answers: int = 0
    rows: str | None = None
    min_reward: float | None = None
    stages: tuple[Stage, ...] = ()
    seed: int = 11
    epochs: int = 1
    rows_a_step: int = 8
    token_budget: int = 4096
    lr: float = 3e-4
    warmup: float = 0.1


@dataclass(frozen=True, slots=True)
class RolloutConfig:
    """How training rollouts are played. `submit`: an answer counts only if it was submitted.

    `reward` coin tosses a coin in place of the scorer: the control that must not learn.
    """

    tasks_a_step: int = 8
    rollouts_a_task: int = 8
    mode: Literal["sandbox", "llm"] = "sandbox"
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    reply_tokens: int | None = None
    max_turns: int | None = None
    episode_s: float = 600.0
    submit: bool = True
    reward: Literal["scorer", "coin"] = "scorer"


@dataclass(frozen=True, slots=True)
class LearnConfig:
    """The reinforcement learning. `keep` bounds the rollouts that a step learns from: of those with
    an advantage that many are drawn, and weigh more for it, so that the mean stays what it was. The
    rate falls in a line to `lr_end` times `lr`.
    """

    trainer: Literal["in-process", "trl"] = "in-process"
    steps: int = 40
    lr: float = 1e-6
    lr_warmup_steps: int = 0
    lr_end: float = 1.0
    betas: tuple[float, ...] = (0.9, 0.95)
    weight_decay: float = 0.0
    max_norm: float = 1.0
    clip_low: float = 0.2
    clip_high: float = 0.28
    keep: int | None = None
    token_budget: int = 4096
    checkpoint_every: int = 10


@dataclass(frozen=True, slots=True)
class TrlConfig:
    """What TRL's trainer needs beside `train`; see `trl_trainer.TrlSettings` for each of them.

    `extra` goes to TRL's configuration as it is (`bf16`, `fsdp`, `deepspeed`, ...).
    """

    rows: int = 1
    updates: int = 1
    processes: int = 1
    old_logprobs: Literal["drawn", "trainer"] = "trainer"
    several_rows: Literal["largest", "refuse"] = "largest"
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EvaluateConfig:
    """Held-out evaluation every `every` steps (and before and after) in each of `modes`.

    `top_p` and `top_k` are those of the training rollouts unless they are given.
    """

    every: int = 10
    modes: tuple[str, ...] = ("sandbox",)
    temperatures: tuple[float, ...] = (1.0,)
    top_p: float | None = None
    top_k: int | None = None
    seed: int = 77


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """One training run. The same values and seed give the same run."""

    name: str
    model: ModelConfig
    tasks: TasksConfig
    seed: int = 1
    sandbox: SandboxConfig = field(default_factory=SandboxConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    warmstart: WarmStart | None = None
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    train: LearnConfig = field(default_factory=LearnConfig)
    trl: TrlConfig = field(default_factory=TrlConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)


def load_config(path: Path, changes: Mapping[str, Any] | None = None) -> TrainConfig:
    """The run that a file describes; `changes` maps dotted names (`train.steps`) to other values.

    Raises:
        ConfigError: an unreadable file, an unknown, missing or contradicting key; names it.
    """
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    for name, value in (changes or {}).items():
        _put(table, name, value)
    config = read_config(table, str(path))
    return _with_paths(config, path.parent)


def changed_config(
    stored: Mapping[str, Any], changes: Mapping[str, Any], where: str
) -> TrainConfig:
    """A configuration that was stored as JSON, with other values under dotted names.

    Raises:
        ConfigError: as `load_config`.
    """
    table = json.loads(json.dumps(stored))
    for name, value in changes.items():
        _put(table, name, value)
    return read_config(table, where)


def read_config(table: Mapping[str, Any], where: str) -> TrainConfig:
    """The same from a table. Raises ConfigError, naming `where` and the key."""
    config: TrainConfig = _read(TrainConfig, table, where, "")
    _check(config, where)
    return config


def digest(config: TrainConfig) -> str:
    """sha256 (hex) of every value, for manifests."""
    text = json.dumps(to_json(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    """The dotted names at which two configurations (as JSON) differ, with both values."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        found = []
        for key in sorted({*old, *new}):
            found += differences(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else key)
        return found
    return [] if old == new else [f"{prefix}: was {old!r}, is {new!r}"]


def _put(table: dict[str, Any], name: str, value: Any) -> None:
    *folders, last = name.split(".")
    for folder in folders:
        if table.get(folder) is None:
            table[folder] = {}
        table = table[folder]
        if not isinstance(table, dict):
            raise ConfigError(f"{name!r}: {folder!r} is no table")
    table[last] = value


def _with_paths(config: TrainConfig, folder: Path) -> TrainConfig:
    """Files that a recipe names beside itself or from here, in full: a run outlives this folder."""

    def found(name: str | None, *, folders: bool = False) -> str | None:
        places = (folder / name, Path(name).expanduser()) if name else ()
        here = (each for each in places if each.is_file() or (folders and each.is_dir()))
        return next((str(each.resolve()) for each in here), name)

    def tasks(source: TaskSource) -> TaskSource:
        return dataclasses.replace(source, set=found(source.set))

    source = config.model.source
    if source not in NO_PATHS:
        source = str(found(source, folders=True))
    model = dataclasses.replace(config.model, source=source, template=found(config.model.template))
    sets = dataclasses.replace(
        config.tasks,
        train=tasks(config.tasks.train),
        evaluate={name: tasks(each) for name, each in config.tasks.evaluate.items()},
    )
    warm = config.warmstart
    if warm is not None:
        warm = dataclasses.replace(warm, rows=found(warm.rows))
    return dataclasses.replace(config, model=model, tasks=sets, warmstart=warm)


# --- reading -----------------------------------------------------------------------------------


def _read(cls: Any, table: Any, where: str, at: str) -> Any:
    if not isinstance(table, Mapping):
        raise ConfigError(f"{where}: {at} must be a table, found {type(table).__name__}")
    hints = typing.get_type_hints(cls)
    known = {each.name: each for each in dataclasses.fields(cls)}
    for key in table:
        if key not in known:
            raise unknown_name(f"{where}: {at} key" if at else f"{where}: key", key, known)
    values = {}
    for name, each in known.items():
        here = f"{at}.{name}" if at else name
        if name in table:
            values[name] = _value(hints[name], table[name], where, here)
        elif each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{where}: {here} is missing")
    return cls(**values)


def _value(hint: Any, value: Any, where: str, at: str) -> Any:
    if hint is Any:
        return value
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        inner = [each for each in arguments if each is not types.NoneType]
        if value is None and len(inner) < len(arguments):  # of a configuration stored as JSON
            return None
        return _value(inner[0], value, where, at)
    if origin is Literal:
        if value not in arguments:
            raise unknown_name(f"{where}: {at}", str(value), arguments)
        return value
    if dataclasses.is_dataclass(hint):
        return _read(hint, value, where, at)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where}: {at} must be a list, found {type(value).__name__}")
        return tuple(_value(arguments[0], item, where, at) for item in value)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where}: {at} must be a table, found {type(value).__name__}")
        return {
            key: _value(arguments[1], item, where, f"{at}.{key}") for key, item in value.items()
        }
    return _plain(hint, value, where, at)


def _plain(hint: type, value: Any, where: str, at: str) -> Any:
    fits = type(value) is hint or (hint is float and type(value) is int)
    if not fits:
        raise ConfigError(f"{where}: {at} must be {_KINDS[hint]}, found {value!r}")
    return float(value) if hint is float else value


_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


# --- contradictions ----------------------------------------------------------------------------


_LEAST: Mapping[str, int] = {
    "model.freeze_layers": 0,
    "model.lora.rank": 1,
    "model.random.layers": 1,
    "model.random.hidden": 1,
    "model.random.heads": 1,
    "sandbox.live": 1,
    "engine.slots": 1,
    "engine.context_tokens": 2,
    "engine.threads": 1,
    "warmstart.clerks": 0,
    "warmstart.drills": 0,
    "warmstart.texts": 0,
    "warmstart.answers": 0,
    "warmstart.epochs": 1,
    "warmstart.rows_a_step": 1,
    "warmstart.token_budget": 1,
    "rollout.tasks_a_step": 1,
    "rollout.top_k": 0,
    "rollout.reply_tokens": 1,
    "rollout.max_turns": 1,
    "train.steps": 0,
    "train.lr_warmup_steps": 0,
    "train.token_budget": 1,
    "train.checkpoint_every": 1,
    "trl.rows": 1,
    "trl.updates": 1,
    "trl.processes": 1,
    "evaluate.every": 0,
    "evaluate.top_k": 0,
}
# Beyond what any computer holds: building it would take the memory and the time of the machine.
_MOST: Mapping[str, int] = {
    "model.random.layers": 1_000,
    "model.random.hidden": 65_536,
    "model.random.heads": 4_096,
    "model.random.vocabulary": 1_000_000,
    "engine.threads": 1_024,
}
_ABOVE_0 = (
    "model.lora.alpha",
    "warmstart.lr",
    "rollout.episode_s",
    "train.lr",
    "train.max_norm",
)
_FROM_0 = (
    "model.random.initializer_range",
    "train.lr_end",
    "train.weight_decay",
    "train.clip_low",
    "train.clip_high",
)
_SHARES = ("warmstart.warmup",)
_SHARES_ABOVE_0 = ("rollout.top_p", "evaluate.top_p")


def _at(config: Any, name: str) -> Any:
    """The value of a dotted name; None where its table is left out."""
    for part in name.split("."):
        config = getattr(config, part, None)
    return config


def _out_of_range(config: TrainConfig) -> Iterator[str]:
    for name, least in _LEAST.items():
        value = _at(config, name)
        if value is not None and value < least:
            yield f"{name} must be at least {least}, found {value}"
    for name in _ABOVE_0:
        value = _at(config, name)
        if value is not None and not 0 < value < math.inf:  # which no comparison says of a NaN
            yield f"{name} must be above 0, found {value}"
    for name in _FROM_0:
        value = _at(config, name)
        if value is not None and not 0 <= value < math.inf:
            yield f"{name} must be 0 or above, found {value}"
    if (reward := _at(config, "warmstart.min_reward")) is not None and not math.isfinite(reward):
        yield f"warmstart.min_reward must be a finite number, found {reward}"
    for name, most in _MOST.items():
        value = _at(config, name)
        if value is not None and value > most:
            yield f"{name} must be at most {most:,}, found {value:,}"
    for name in _SHARES:
        value = _at(config, name)
        if value is not None and not 0 <= value <= 1:
            yield f"{name} must be from 0 to 1, found {value}"
    for name in _SHARES_ABOVE_0:
        value = _at(config, name)
        if value is not None and not 0 < value <= 1:
            yield f"{name} must be above 0 and at most 1, found {value}"
    for temperature in config.evaluate.temperatures:
        if not 0 <= temperature < math.inf:
            yield f"evaluate.temperatures must be 0 (greedy) or above, found {temperature}"
    for name, source in _sources(config).items():
        if source.limit is not None and source.limit < 1:
            yield f"{name}.limit must be at least 1, found {source.limit}"


def _sources(config: TrainConfig) -> dict[str, TaskSource]:
    """Where tasks come from, by the name of the table that says it."""
    return {"tasks.train": config.tasks.train} | {
        f"tasks.evaluate.{name}": each for name, each in config.tasks.evaluate.items()
    }


def _check(config: TrainConfig, where: str) -> None:
    for words in _out_of_range(config):
        raise ConfigError(f"{where}: {words}")
    for wrong, words in _contradictions(config):
        if wrong:
            raise ConfigError(f"{where}: {words}")


def _idle_stages(warm: WarmStart | None) -> list[int]:
    """Numbers, from 1, of stages that could not be gone through."""
    stages = () if warm is None else warm.stages
    return [
        number
        for number, stage in enumerate(stages, 1)
        if stage.steps < 1
        or min(shares := [getattr(stage, kind) for kind in KINDS]) < 0
        or not sum(shares) > 0
    ]


def _contradictions(config: TrainConfig) -> list[tuple[bool, str]]:
    model, rollout, train, engine = config.model, config.rollout, config.train, config.engine
    unclear = [
        name
        for name, each in _sources(config).items()
        if (each.set is None) == (each.generator is None)
    ]
    warm = config.warmstart
    return [
        (bool(unclear), f"{', '.join(unclear)}: name either a set or a generator"),
        (
            (model.source == "random") != (model.random is not None),
            "model.source 'random' and the table model.random go together",
        ),
        (
            model.lora is not None and model.random is not None,
            "model.lora on random weights would train next to nothing",
        ),
        (
            train.steps > 0 and rollout.rollouts_a_task < 2,
            f"rollout.rollouts_a_task is {rollout.rollouts_a_task}; a group of one has no baseline",
        ),
        (
            not 0 < rollout.temperature < math.inf,
            "rollout.temperature must be above 0: greedy draws are all alike",
        ),
        (
            train.steps > 0 and (rollout.top_p < 1 or rollout.top_k > 0),
            "rollout.top_p or rollout.top_k cuts tokens off that the trainer counts, so its ratios "
            "would be wrong; draw from all, and cut in evaluations alone (evaluate.top_p, "
            "evaluate.top_k)",
        ),
        (
            engine.kind != "torch" and not engine.url,
            f"engine.kind {engine.kind!r} needs engine.url",
        ),
        (
            engine.kind == "torch" and engine.url is not None,
            "engine.url is given, but engine.kind is 'torch', which asks no server",
        ),
        (len(train.betas) != 2, "train.betas must be two numbers"),
        (
            not all(0 <= each < 1 for each in train.betas),
            f"train.betas must be from 0 to below 1, found {list(train.betas)}",
        ),
        (train.keep is not None and train.keep < 2, "train.keep must be at least 2"),
        (
            train.trainer == "trl" and train.keep is not None,
            "train.keep: TRL learns from every rollout; leave it out, or train in-process",
        ),
        (
            train.trainer == "trl" and train.lr_end != 1,
            "train.lr_end: TRL keeps the rate as it is; leave it out, or train in-process",
        ),
        (
            train.trainer == "trl" and rollout.reward == "coin",
            "rollout.reward 'coin' is for the in-process trainer",
        ),
        (
            train.trainer == "trl" and engine.kind == "vllm" and model.lora is not None,
            "model.lora: TRL sends vLLM merged weights, over which an adapter would lie a second "
            "time; train whole weights, or in-process",
        ),
        (
            train.trainer == "trl" and engine.kind == "sglang",
            "engine.kind 'sglang': TRL sends its weights to vLLM only",
        ),
        (
            warm is not None and not any(getattr(warm, kind) for kind in KINDS),
            "warmstart learns from nothing: give clerks, drills, texts, answers or rows",
        ),
        (
            warm is not None and bool(warm.stages) and warm.epochs != 1,
            "warmstart.stages say how long it learns, and so does warmstart.epochs: give one",
        ),
        (
            bool(idle := _idle_stages(warm)),
            f"warmstart.stages: stage {idle[0] if idle else 0} has no steps, or shares of nothing",
        ),
        (
            warm is None and train.steps == 0,
            "train.steps is 0 and there is no warmstart: nothing to do",
        ),
        (
            any(mode not in ("sandbox", "llm") for mode in config.evaluate.modes),
            "evaluate.modes may hold 'sandbox' and 'llm'",
        ),
    ]
