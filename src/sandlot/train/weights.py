"""The policy's weights: from a folder, a GGUF file or a description; frozen, adapted, saved."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sandlot.core.errors import ConfigError, InputError, ModelError
from sandlot.train.base import Note

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """A low-rank adapter on every linear map of the layers that are not frozen."""

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = LINEAR


def load_base(source: str, *, dtype: str = "float32", note: Note) -> tuple[Any, Any]:
    """A causal language model and its tokenizer.

    Args:
        source: a folder in the hub's layout, a GGUF file (its weights are dequantised), or
            `local` for the file of the package that `-m local` runs.
    Raises:
        ConfigError: no such source, or an unknown type of numbers.
        InputError: a folder or file that cannot be loaded.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if dtype not in DTYPES:
        raise ConfigError(f"dtype {dtype!r} is not known (have: {', '.join(DTYPES)})")
    path = _path_of(source)
    note(f"loading {path.name}")
    where: dict[str, Any] = {"local_files_only": True}
    folder = path
    if path.is_file():
        folder = path.parent
        where["gguf_file"] = path.name
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), **where)
        found: Any = AutoModelForCausalLM.from_pretrained(
            str(folder),
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are named below
            **where,
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise InputError(f"model {path}: cannot be loaded: {error}") from error
    model, loaded = found
    _check_whole(path, loaded)
    # A dequantised model calls itself quantised and then refuses to be saved.
    model.config.__dict__.pop("quantization_config", None)
    vars(model).update(is_quantized=False, hf_quantizer=None)
    return model.to(DTYPES[dtype]), tokenizer


def _check_whole(path: Path, loaded: Mapping[str, Any]) -> None:
    """transformers draws what a file lacks at random and goes on.

    Raises:
        InputError: weights that are not there, or of another shape than the config says.
    """
    if missing := sorted(loaded["missing_keys"]):
        raise InputError(
            f"model {path}: {len(missing)} of its weights are not in its files: "
            f"{', '.join(missing[:3])}{', …' if len(missing) > 3 else ''}"
        )
    if odd := sorted(loaded["mismatched_keys"]):
        name, found, wanted = odd[0]
        raise InputError(
            f"model {path}: {len(odd)} of its weights have another shape than its config.json "
            f"says: {name} is {'×'.join(map(str, found))}, not {'×'.join(map(str, wanted))}"
        )


def _path_of(source: str) -> Path:
    if source == "local":
        from sandlot.models.local import bundled_weights

        return bundled_weights()
    path = Path(source).expanduser()
    if not path.exists():
        raise ConfigError(
            f"model {source!r} is not here: name a folder in the hub's layout, a GGUF file, "
            "or 'local' for the small model of `-m local`"
        )
    return path


def freeze(model: Any, *, layers: int, embeddings: bool) -> None:
    """Keep the lowest `layers` layers, and the embeddings (with a tied head), as they are.

    Raises:
        ConfigError: more layers than the model has.
    """
    core = getattr(model, model.base_model_prefix)
    if not 0 <= layers <= len(core.layers):
        raise ConfigError(f"freeze_layers is {layers}; the model has {len(core.layers)} layers")
    for layer in core.layers[:layers]:
        layer.requires_grad_(False)
    if embeddings:
        model.get_input_embeddings().requires_grad_(False)
        if model.config.tie_word_embeddings:
            model.get_output_embeddings().requires_grad_(False)


def adapt(model: Any, lora: LoraSettings, *, skip_layers: int, seed: int) -> Any:
    """The model with an adapter on its layers from `skip_layers` up; the rest is frozen."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    count = len(getattr(model, model.base_model_prefix).layers)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # any number will do
        target_modules=list(lora.targets),
        layers_to_transform=list(range(skip_layers, count)),
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():  # peft asks transformers by names that will go
        warnings.filterwarnings("ignore", ".*will be removed in v6", FutureWarning)
        return get_peft_model(model, config, autocast_adapter_dtype=False)


def trainable(model: Any) -> dict[str, torch.nn.Parameter]:
    """The parameters that learn, by name; a tied weight stands once."""
    return {name: each for name, each in model.named_parameters() if each.requires_grad}


def load_values(model: Any, values: Mapping[str, torch.Tensor]) -> None:
    """Put saved values of the learning parameters back.

    Raises:
        InputError: other names or shapes than the model's.
    """
    own = trainable(model)
    if own.keys() != values.keys():
        odd = sorted(own.keys() ^ values.keys())
        raise InputError(f"saved weights do not fit the model: {_some(odd)}")
    with torch.no_grad():
        for name, parameter in own.items():
            if parameter.shape != values[name].shape:
                raise InputError(
                    f"saved weight {name} has shape {tuple(values[name].shape)}; "
                    f"the model's has {tuple(parameter.shape)}"
                )
            parameter.copy_(values[name])


def _some(names: Iterable[str]) -> str:
    found = list(names)
    return ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")


class MasterAdamW:
    """AdamW on 32-bit copies of the learning parameters, whatever type they compute in.

    A plain AdamW on 16-bit weights rounds small steps away. `step` clips the norm of the whole
    gradient to `max_norm` first.

    Source: Loshchilov and Hutter 2019, arXiv:1711.05101; Micikevicius et al. 2018,
    arXiv:1710.03740 (master copies).
    """

    def __init__(
        self,
        parameters: Mapping[str, torch.nn.Parameter],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.0,
        max_norm: float = 1.0,
    ) -> None:
        self._own = dict(parameters)
        self.max_norm = max_norm
        self.masters = {
            name: torch.nn.Parameter(each.detach().float().clone())
            for name, each in self._own.items()
        }
        self.adam = torch.optim.AdamW(
            list(self.masters.values()), lr=lr, betas=betas, weight_decay=weight_decay
        )

    def step(self, lr: float) -> float:
        """One step at this rate; the norm of the gradient before it was clipped.

        Raises:
            ModelError: the gradient is no number; nothing was changed.
        """
        for name, parameter in self._own.items():
            grad = parameter.grad
            self.masters[name].grad = None if grad is None else grad.detach().float()
            parameter.grad = None
        norm = torch.nn.utils.clip_grad_norm_(list(self.masters.values()), self.max_norm)
        if not torch.isfinite(norm):
            raise ModelError(
                "the gradient is no number any more: lower the rate, or train in float32 or "
                "bfloat16"
            )
        for group in self.adam.param_groups:
            group["lr"] = lr
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, parameter in self._own.items():
                parameter.copy_(self.masters[name])
        return float(norm)

    def state(self) -> dict[str, Any]:
        return {"masters": dict(self.masters), "adam": self.adam.state_dict()}

    def load(self, state: Mapping[str, Any]) -> None:
        with torch.no_grad():
            for name, master in self.masters.items():
                master.copy_(state["masters"][name])
                self._own[name].copy_(master)
        self.adam.load_state_dict(dict(state["adam"]))


def describe(model: Any) -> dict[str, Any]:
    """What a manifest says of a model: its kind, its size, and how much of it learns."""
    config = json.loads(model.config.to_json_string(use_diff=True))
    return {
        "model_type": config.get("model_type"),
        "parameters": sum(each.numel() for each in model.parameters()),
        "trained_parameters": sum(each.numel() for each in trainable(model).values()),
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
    }
