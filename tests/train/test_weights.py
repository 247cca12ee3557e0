"""The optimiser's 32-bit masters, and what it does with a gradient that is no number."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `train` (torch)")

from sandlot.core.errors import InputError, ModelError  # noqa: E402
from sandlot.train.weights import MasterAdamW, load_values, trainable  # noqa: E402


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
