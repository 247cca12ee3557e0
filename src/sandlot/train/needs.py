"""What a training run needs, reckoned from its configuration and the sizes of its model.

No torch here. The figures are upper bounds where rollouts decide (every rollout as long as it may
be), and leave out what frameworks take for themselves.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandlot.core.errors import InputError
from sandlot.train.config import Lora, TrainConfig

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_HEAD_POSITIONS = 1024  # objective.HEAD_CHUNK
_TRL_TILE = 4096 * 32_768  # logits that TRL holds at once, whatever the vocabulary
_TOKEN_BYTES = 30  # of a token in a training record: id, mask, log probability


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a dense decoder. `inner` is the width inside its feed-forward part."""

    vocabulary: int
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    tied: bool = True
    normed_heads: bool = False

    @property
    def parameters(self) -> int:
        head = 0 if self.tied else self.vocabulary * self.hidden
        norms = 2 * self.hidden + 2 * self.head_width * self.normed_heads
        layer = sum(rows * columns for rows, columns in self.maps.values()) + norms
        return self.vocabulary * self.hidden + head + self.layers * layer + self.hidden

    @property
    def maps(self) -> Mapping[str, tuple[int, int]]:
        """The linear maps of one layer, as (in, out)."""
        queries, keys = self.heads * self.head_width, self.kv_heads * self.head_width
        return {
            "q_proj": (self.hidden, queries),
            "k_proj": (self.hidden, keys),
            "v_proj": (self.hidden, keys),
            "o_proj": (queries, self.hidden),
            "gate_proj": (self.hidden, self.inner),
            "up_proj": (self.hidden, self.inner),
            "down_proj": (self.inner, self.hidden),
        }

    def adapter_parameters(self, lora: Lora, skip_layers: int) -> int:
        sizes = [self.maps[name] for name in lora.targets if name in self.maps]
        return (self.layers - skip_layers) * lora.rank * sum(map(sum, sizes))

    def kv_bytes(self, number_bytes: int) -> int:
        """Keys and values of one token."""
        return 2 * self.layers * self.kv_heads * self.head_width * number_bytes


KNOWN = {
    "Qwen3-4B": Shape(151_936, 2560, 9728, 36, 32, 8, 128, normed_heads=True),
    "Qwen3-4B-Instruct-2507": Shape(151_936, 2560, 9728, 36, 32, 8, 128, normed_heads=True),
}
"""Sizes of models that recipes name, for where their folder is not on this machine."""


def shape_of_config(found: Mapping[str, Any]) -> Shape:
    """The sizes in a `config.json` of the hub's layout."""
    heads, hidden = int(found["num_attention_heads"]), int(found["hidden_size"])
    return Shape(
        vocabulary=int(found["vocab_size"]),
        hidden=hidden,
        inner=int(found["intermediate_size"]),
        layers=int(found["num_hidden_layers"]),
        heads=heads,
        kv_heads=int(found.get("num_key_value_heads") or heads),
        head_width=int(found.get("head_dim") or hidden // heads),
        tied=bool(found.get("tie_word_embeddings", True)),
        normed_heads=str(found.get("model_type", "")).startswith(("qwen3", "gemma3")),
    )


def shape_of(config: TrainConfig) -> Shape | None:
    """The sizes of the model that a configuration names; None where they cannot be told.

    Raises:
        InputError: its folder has a `config.json` that cannot be read.
    """
    wanted = config.model.random
    if wanted is not None:
        width = wanted.hidden // wanted.heads
        sizes = (wanted.vocabulary, wanted.hidden, 3 * wanted.hidden, wanted.layers)
        return Shape(*sizes, wanted.heads, wanted.heads, width, normed_heads=True)
    source = Path(config.model.source).expanduser()
    file = source / "config.json"
    if not file.is_file():
        return KNOWN.get(source.name)
    try:
        return shape_of_config(json.loads(file.read_text("utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file}: cannot be read: {type(error).__name__}: {error}") from error


@dataclass(frozen=True, slots=True)
class Need:
    """`amount` in `unit` (B, FLOP or a count), and how it was reckoned. `part` is what needs it."""

    part: str
    what: str
    amount: float
    unit: str
    how: str

    @property
    def text(self) -> str:
        if self.unit == "B":
            return _scaled(self.amount, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))
        if self.unit == "FLOP":
            return _scaled(self.amount, 1000, ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP"))
        return f"{self.amount:,.0f}"


def _scaled(amount: float, base: int, units: Sequence[str]) -> str:
    for unit in units[:-1]:
        if amount < base:
            return f"{amount:,.1f} {unit}"
        amount /= base
    return f"{amount:,.1f} {units[-1]}"


def needs_of(
    config: TrainConfig,
    shape: Shape,
    *,
    sandbox_memory: int | None = None,
    sandbox_disk: int | None = None,
) -> tuple[Need, ...]:
    """What the run needs. The bounds of one sandbox are in bytes, None where there is none."""
    return (
        *_trainer(config, shape),
        *_engine(config, shape),
        *_step(config, shape),
        *_sandboxes(config, sandbox_memory, sandbox_disk),
        *_disk(config, shape),
    )


def _learning(config: TrainConfig, shape: Shape) -> int:
    lora = config.model.lora
    if lora is None:
        return shape.parameters
    return shape.adapter_parameters(lora, config.model.freeze_layers)


def _optimiser_bytes(config: TrainConfig) -> int:
    """Of one learning parameter: two moments, and in process a copy in 32 bits."""
    return 8 if config.train.trainer == "trl" else 12


def _computed(config: TrainConfig) -> int:
    """Bytes of a number in the passes; TRL may compute in 16 bits over weights of 32."""
    halved = config.train.trainer == "trl" and config.trl.extra.get("bf16")
    return 2 if halved else BYTES[config.model.dtype]


def _pass_tokens(config: TrainConfig) -> tuple[int, str]:
    longest = config.engine.context_tokens
    if config.train.trainer == "trl":
        return config.trl.rows * longest, f"{config.trl.rows} row(s) x {longest:,} tokens"
    return max(config.train.token_budget, longest), "the token budget, or the longest rollout"


def _trainer(config: TrainConfig, shape: Shape) -> list[Need]:
    number, learning = BYTES[config.model.dtype], _learning(config, shape)
    state = _optimiser_bytes(config)
    tokens, said = _pass_tokens(config)
    computed = _computed(config)
    wide = shape.hidden * 2 + (shape.heads + 2 * shape.kv_heads) * shape.head_width
    inside = 2 * tokens * computed * (wide + 3 * shape.inner)
    kept = tokens * shape.layers * shape.hidden * computed
    chunk = _HEAD_POSITIONS * shape.vocabulary
    logits = 8 * (min(chunk, _TRL_TILE) if config.train.trainer == "trl" else chunk)
    part, each = "trainer", f"{learning:,} learning parameters"
    return [
        Need(part, "weights", shape.parameters * number, "B", f"{shape.parameters:,} x {number} B"),
        Need(part, "gradients", learning * number, "B", f"{each} x {number} B"),
        Need(part, "optimizer", learning * state, "B", f"{each} x {state} B"),
        Need(part, "activations", kept + inside, "B", f"{said}: inputs of all layers, one inside"),
        Need(part, "logits", logits, "B", "one chunk of positions, forwards and backwards"),
    ]


def _engine(config: TrainConfig, shape: Shape) -> list[Need]:
    served = config.engine.kind != "torch"
    number = 2 if served else BYTES[config.model.dtype]
    room = config.engine.context_tokens
    live = min(_rollouts(config), config.sandbox.live)
    if not served:
        live = min(live, config.engine.slots)
    token = shape.kv_bytes(number)
    how = f"{token:,} B a token x {live} rollouts x {room:,} tokens"
    needs = [Need("engine", "keys and values, at most", token * live * room, "B", how)]
    if served:
        size = shape.parameters * number
        needs.insert(0, Need("engine", "weights", size, "B", f"{shape.parameters:,} x 2 B"))
    return needs


def _rollouts(config: TrainConfig) -> int:
    return config.rollout.tasks_a_step * config.rollout.rollouts_a_task


def _step(config: TrainConfig, shape: Shape) -> list[Need]:
    rollouts, room = _rollouts(config), config.engine.context_tokens
    tokens = rollouts * room
    # 2 operations a parameter and token forwards, 4 backwards; attention over what is before.
    attention = 2 * shape.layers * shape.heads * shape.head_width * room
    forward = 2 * shape.parameters + attention
    how = f"{config.rollout.tasks_a_step} tasks x {config.rollout.rollouts_a_task}"
    all_steps = rollouts * config.train.steps
    drawn, learned = tokens * forward, 3 * tokens * forward
    return [
        Need("step", "rollouts", rollouts, "", how),
        Need("step", "tokens, at most", tokens, "", f"{rollouts} rollouts x {room:,}"),
        Need("step", "drawing, at most", drawn, "FLOP", "2 N + attention, a token"),
        Need("step", "learning, at most", learned, "FLOP", "6 N + attention, a token"),
        Need("run", "rollouts", all_steps, "", f"{config.train.steps} steps x {rollouts}"),
    ]


def _sandboxes(config: TrainConfig, memory: int | None, disk: int | None) -> list[Need]:
    if config.rollout.mode != "sandbox":
        return []
    live = min(_rollouts(config), config.sandbox.live)
    needs = [Need("sandboxes", "live at once", live, "", "sandbox.live, or all rollouts of a step")]
    for name, bound in (("memory", memory), ("disk", disk)):
        if bound is not None:
            how = f"{live} x the bound of {bound / 2**30:g} GiB"
            needs.append(Need("sandboxes", f"{name}, at most", live * bound, "B", how))
    return needs


def _disk(config: TrainConfig, shape: Shape) -> list[Need]:
    learning, number = _learning(config, shape), BYTES[config.model.dtype]
    own = learning * number
    once = own + learning * _optimiser_bytes(config)
    how = "the newest 2, with the optimizer"
    checkpoints = 2 * once
    if config.train.trainer == "trl":
        checkpoints, how = (
            2 * (once + own),
            "the newest 2 of TRL's, with the optimizer, and of ours",
        )
    tokens = _rollouts(config) * config.engine.context_tokens * config.train.steps
    said = f"{tokens:,} tokens x {_TOKEN_BYTES} B"
    return [
        Need("disk", "checkpoints", checkpoints, "B", how),
        Need("disk", "records, at most", tokens * _TOKEN_BYTES, "B", said),
    ]
