"""Models as they are found on disk, and the optimiser's 32-bit masters."""

from __future__ import annotations

import asyncio
import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `train` (torch)")

from safetensors.torch import load_file, save_file  # noqa: E402
from tiny_run import tiny_config, tiny_parts  # noqa: E402

from sandlot.core.errors import InputError, ModelError  # noqa: E402
from sandlot.train.export import write_hf  # noqa: E402
from sandlot.train.weights import MasterAdamW, load_base, load_values, trainable  # noqa: E402


def small() -> Any:
    torch.manual_seed(0)
    return torch.nn.Linear(3, 2, bias=False).to(torch.bfloat16)


def push(layer: Any, value: float) -> None:
    layer.weight.grad = torch.full_like(layer.weight, value)


def test_steps_too_small_for_16_bits_add_up_in_the_masters() -> None:
    layer = small()
    torch.nn.init.ones_(layer.weight)
    adam = MasterAdamW(trainable(layer), lr=1e-4)
    for _ in range(60):
        push(layer, 1.0)
        adam.step(1e-4)
    assert adam.masters["weight"].max().item() == pytest.approx(1 - 60e-4, abs=1e-4)
    assert layer.weight.max().item() < 1  # plain 16-bit steps of 1e-4 would each round away


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_no_number_changes_nothing_and_says_what_to_do(value: float) -> None:
    layer = small()
    adam = MasterAdamW(trainable(layer), lr=0.1)
    push(layer, 1.0)
    adam.step(0.1)
    before = layer.weight.detach().clone()
    push(layer, value)
    with pytest.raises(ModelError, match="no number any more: lower the rate"):
        adam.step(0.1)
    assert torch.equal(layer.weight, before)
    assert torch.isfinite(adam.masters["weight"]).all()


def test_a_loaded_optimiser_goes_on_as_the_one_that_was_saved() -> None:
    one, other = small(), small()
    first, second = MasterAdamW(trainable(one), lr=0.1), MasterAdamW(trainable(other), lr=0.1)
    for value in (1.0, -0.5):
        push(one, value)
        first.step(0.1)
    second.load(deepcopy(first.state()))  # as from a file: nothing is shared
    for layer, adam in ((one, first), (other, second)):
        push(layer, 0.25)
        adam.step(0.05)
    assert torch.equal(one.weight, other.weight)


def test_values_of_another_model_are_refused_by_name() -> None:
    layer = small()
    with pytest.raises(InputError, match="do not fit the model: bias, weight"):
        load_values(layer, {"bias": torch.zeros(2)})
    with pytest.raises(InputError, match=r"weight has shape \(1,\); the model's has \(2, 3\)"):
        load_values(layer, {"weight": torch.zeros(1)})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole model in the hub's layout."""
    parts = tiny_parts(tiny_config())
    write_hf(parts.policy.model, parts.policy.tokenizer, tmp_path / "model")
    asyncio.run(parts.close())
    load_base(str(tmp_path / "model"), note=print)  # it is whole
    return tmp_path / "model"


@pytest.mark.parametrize("content", [b"", b"\xff" * 5000, None])
def test_a_damaged_file_of_weights_is_an_error_that_names_it(
    folder: Path, content: bytes | None
) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000] if content is None else content)
    with pytest.raises(InputError, match=r"model .*model: cannot be loaded: .*header"):
        load_base(str(folder), note=print)


def test_a_model_of_which_weights_are_missing_is_refused(folder: Path) -> None:
    """transformers would draw them at random and say so where nobody looks."""
    file = folder / "model.safetensors"
    values = load_file(file)
    gone = next(name for name in values if "mlp" in name)
    del values[gone]
    save_file(values, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match=f"1 of its weights are not in its files: {gone}"):
        load_base(str(folder), note=print)


def test_weights_of_another_shape_than_the_config_says_are_named(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["intermediate_size"] *= 2
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"another shape than its config\.json says: .*mlp.* is "):
        load_base(str(folder), note=print)
