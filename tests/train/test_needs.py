"""What a run is said to need agrees with the sizes of real models."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sandlot.core.errors import InputError
from sandlot.train.config import Lora, TrainConfig, load_config, read_config
from sandlot.train.needs import KNOWN, Need, needs_of, shape_of, shape_of_config

RECIPES = Path(__file__).parents[2] / "recipes"
SIZES: dict[str, Any] = {
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "tie_word_embeddings": True,
}


def config(**tables: Any) -> TrainConfig:
    table = {"name": "x", "model": {"source": "m"}, "tasks": {"train": {"set": "math"}}}
    return read_config({**table, **tables}, "test")


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
@pytest.mark.parametrize("tied", [True, False])
def test_parameters_are_those_of_the_real_architecture(kind: str, tied: bool) -> None:
    torch = pytest.importorskip("torch", reason="needs the extra `train` (torch)")
    transformers = pytest.importorskip("transformers", reason="needs the extra `train`")
    sizes = SIZES | {"tie_word_embeddings": tied}
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.for_model(kind, **sizes)
        )
    real = sum(each.numel() for each in model.parameters())
    assert shape_of_config(sizes | {"model_type": kind}).parameters == real


@pytest.mark.filterwarnings("ignore:.*will be removed in v6:FutureWarning")
def test_parameters_of_an_adapter_are_those_that_peft_adds() -> None:
    torch = pytest.importorskip("torch", reason="needs the extra `train` (torch)")
    transformers = pytest.importorskip("transformers", reason="needs the extra `train`")
    weights = pytest.importorskip("sandlot.train.weights")
    torch.manual_seed(0)
    model = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**SIZES))
    adapted = weights.adapt(model, weights.LoraSettings(8, 16.0), skip_layers=1, seed=1)
    real = sum(each.numel() for each in adapted.parameters() if each.requires_grad)
    assert shape_of_config(SIZES).adapter_parameters(Lora(8), 1) == real


def test_the_model_of_the_paper_has_four_billion_parameters_and_144_kib_of_cache_a_token() -> None:
    shape = KNOWN["Qwen3-4B-Instruct-2507"]
    assert shape.parameters == 4_022_468_096
    assert shape.kv_bytes(2) == 144 * 1024


def test_sizes_are_read_from_the_models_own_folder_first(tmp_path: Path) -> None:
    folder = tmp_path / "Qwen3-4B-Instruct-2507"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(SIZES))
    found = shape_of(config(model={"source": str(folder)}))
    assert found is not None
    assert found.layers == 3
    (folder / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"config\.json: cannot be read: KeyError"):
        shape_of(config(model={"source": str(folder)}))


def test_sizes_of_a_model_that_is_nowhere_are_not_made_up() -> None:
    assert shape_of(config(model={"source": "somewhere/else"})) is None


def by_name(found: tuple[Need, ...]) -> dict[str, float]:
    return {f"{each.part}: {each.what}": each.amount for each in found}


def test_needs_of_the_papers_run_worked_by_hand() -> None:
    run = load_config(RECIPES / "paper-qwen3-4b.toml")
    shape = shape_of(run)
    assert shape is not None
    found = by_name(needs_of(run, shape, sandbox_memory=2**30, sandbox_disk=2**30))
    n = 4_022_468_096
    assert found["trainer: weights"] == 4 * n
    assert found["trainer: gradients"] == 4 * n
    assert found["trainer: optimizer"] == 8 * n
    assert found["engine: weights"] == 2 * n
    assert found["engine: keys and values, at most"] == 147_456 * 64 * 81_920
    assert found["step: tokens, at most"] == 64 * 81_920
    assert found["run: rollouts"] == 150 * 64
    assert found["sandboxes: live at once"] == 64
    assert found["sandboxes: memory, at most"] == 64 * 2**30
    assert found["disk: checkpoints"] == 2 * (4 + 8 + 4) * n
    drawing = 64 * 81_920 * (2 * n + 2 * 36 * 4096 * 81_920)
    assert found["step: drawing, at most"] == drawing
    assert found["step: learning, at most"] == 3 * drawing


def test_an_adapter_needs_little_beside_the_weights() -> None:
    run = load_config(RECIPES / "smollm2.toml")
    shape = shape_of_config(SIZES)
    whole = replace(run, model=replace(run.model, lora=None))
    lora, full = by_name(needs_of(run, shape)), by_name(needs_of(whole, shape))
    assert lora["trainer: weights"] == full["trainer: weights"]
    assert lora["trainer: optimizer"] < full["trainer: optimizer"]


@pytest.mark.parametrize(
    ("amount", "unit", "text"),
    [
        (512, "B", "512.0 B"),
        (3 * 2**30, "B", "3.0 GiB"),
        (5e15, "FLOP", "5.0 PFLOP"),
        (2_000_000, "", "2,000,000"),
    ],
)
def test_amounts_are_shown_in_fitting_units(amount: float, unit: str, text: str) -> None:
    assert Need("part", "what", amount, unit, "how").text == text
