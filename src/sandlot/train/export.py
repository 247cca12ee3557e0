"""A trained model as files that others load: a Hugging Face folder, GGUF weights, an adapter.

    merged model     -> write_hf      AutoModelForCausalLM, vLLM, SGLang
                     -> write_gguf    llama.cpp, `-m local:FILE`
    LoRA weights     -> export_adapter    llama.cpp, `-m local:WEIGHTS+ADAPTER`, with its manifest

An adapter that was trained on the dequantised weights of a file lies on that very file; weights
that are merged and quantised anew to four bits lose what was learnt, to Q8_0 they do not.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from sandlot.agent.prompts import Profile, digest
from sandlot.core.errors import ConfigError, ExportError, MissingExtra, unknown_name
from sandlot.models.adapters import ADAPTER_FILE, MANIFEST_FILE, Manifest, Pin, file_digest
from sandlot.train.atomic import cannot_write, new_folder, replacing
from sandlot.train.gguf_file import (
    KINDS,
    Header,
    Key,
    Kind,
    Tensor,
    kind_for,
    read_header,
    write_gguf_file,
)

ARCHITECTURE = "llama"
_FILE_TYPES: Mapping[Kind, int] = {"F32": 0, "F16": 1, "Q8_0": 7}
"""llama.cpp's numbers of what most of a file's tensors are (`general.file_type`)."""

_PLACES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_OUTSIDE = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
_MORE_THAN_LORA = (
    "use_dora",
    "lora_bias",
    "modules_to_save",
    "trainable_token_indices",
    "target_parameters",
    "layer_replication",
)
"""Settings of peft that make an adapter more than `scale * b @ a` beside each matrix."""

_PACKAGES = ("sandlot", "torch", "transformers", "peft", "trl", "gguf", "numpy", "xllamacpp")


# --- Hugging Face --------------------------------------------------------------------------


def merged(model: Any) -> Any:
    """A peft model's LoRA added into its weights: a plain model. The given one is used up.

    Raises:
        ExportError: the weights are no numbers any more.
    """
    try:
        return model.merge_and_unload(safe_merge=True)
    except ValueError as exc:
        raise ExportError(f"the adapter cannot be merged: {exc}") from exc


def write_hf(model: Any, tokenizer: Any, folder: Path) -> None:
    """A folder with weights (safetensors, in the model's dtype), config, tokenizer and template.

    Raises:
        ConfigError: the tokenizer has no chat template, so the folder could not be talked to.
        ExportError: the folder is there already, or cannot be written.
    """
    from safetensors import SafetensorError

    if not tokenizer.chat_template:
        raise ConfigError("the tokenizer has no chat template; give it one before the export")
    with new_folder(folder) as part:
        try:
            model.save_pretrained(part)
            tokenizer.save_pretrained(part)
        except SafetensorError as exc:
            raise cannot_write(folder, exc) from exc
        _say_it_the_old_way_too(part)


def write_peft(model: Any, folder: Path) -> None:
    """The adapter of a live peft model in peft's own layout, as servers load it over its base.

    Raises:
        ExportError: the folder is there already, or cannot be written.
    """
    from safetensors import SafetensorError

    with new_folder(folder) as part:
        try:
            model.save_pretrained(part)
        except SafetensorError as exc:
            raise cannot_write(folder, exc) from exc


def _say_it_the_old_way_too(folder: Path) -> None:
    """Transformers 4, which servers may still have, knows some of what 5 writes by other names.

    It would take its own default for the rotary base without a word.
    """
    config, words = folder / "config.json", folder / "tokenizer_config.json"
    values = json.loads(config.read_text("utf-8"))
    values.pop("_model_name_or_path", None)
    theta = (values.get("rope_parameters") or {}).get("rope_theta")
    older = {"rope_theta": theta, "torch_dtype": values.get("dtype")}
    values |= {name: value for name, value in older.items() if value is not None}
    config.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", "utf-8")
    values = json.loads(words.read_text("utf-8"))
    if values.get("tokenizer_class") == "TokenizersBackend":
        values["tokenizer_class"] = "PreTrainedTokenizerFast"
    for here_only in ("is_local", "local_files_only"):
        values.pop(here_only, None)
    words.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", "utf-8")


# --- GGUF weights --------------------------------------------------------------------------


def write_gguf(model: Any, source: Path, target: Path, kind: Kind = "F16") -> None:
    """A Llama model (SmolLM2 is one) as a GGUF file.

    Args:
        model: a plain `LlamaForCausalLM`, see `merged`.
        source: a GGUF file with the same tokenizer, whose tokenizer and license are taken over.
        kind: of all matrices; vectors stay F32.
    Raises:
        ConfigError: a model that this cannot write, or a source with another vocabulary.
        ExportError: the file cannot be written.
    """
    _check_kind(kind)
    config = model.config
    _check_llama(config)
    header = read_header(source)
    vocabulary = len(header.value("tokenizer.ggml.tokens"))
    if vocabulary != config.vocab_size:
        raise ConfigError(
            f"the model has {config.vocab_size} tokens, {source} has {vocabulary}: "
            "name a GGUF file with the model's own tokenizer"
        )
    tied = bool(config.tie_word_embeddings)
    tensors = [
        _model_tensor(name, weights, config, kind)
        for name, weights in model.state_dict().items()
        if not (tied and name == "lm_head.weight")
    ]
    write_gguf_file(target, ARCHITECTURE, _model_keys(config, header, kind), tensors)


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise unknown_name("kind of GGUF tensors", kind, KINDS)


def _check_llama(config: Any) -> None:
    """Refuse what llama.cpp's Llama would compute otherwise than the model does."""
    found = list(getattr(config, "architectures", None) or [config.model_type])
    if config.model_type != "llama":
        raise ConfigError(
            f"only Llama models (such as SmolLM2) become GGUF files here, not {found[0]}; write a "
            "Hugging Face folder and convert that with llama.cpp's own script"
        )
    scaling = (config.rope_parameters or {}).get("rope_type", "default")
    if scaling != "default":
        raise ConfigError(f"rotary scaling {scaling!r} is not written here; use llama.cpp's script")
    if config.attention_bias or config.mlp_bias:
        raise ConfigError("Llama models with biases are not written here")


def _model_keys(config: Any, source: Header, kind: Kind) -> list[Key]:
    heads = config.num_attention_heads
    head = config.head_dim or config.hidden_size // heads
    whole = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": head,
        "attention.value_length": head,
        "rope.dimension_count": head,
        "vocab_size": config.vocab_size,
    }
    parts = {
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": config.rope_parameters["rope_theta"],
    }
    taken = [
        key
        for name, key in source.keys.items()
        if name.startswith("tokenizer.") or name == "general.license"
    ]
    return [
        Key("general.type", "model", "STRING"),
        Key("general.file_type", _FILE_TYPES[kind], "UINT32"),
        Key("general.quantization_version", 2, "UINT32"),
        *(Key(f"{ARCHITECTURE}.{name}", int(n), "UINT32") for name, n in whole.items()),
        *(Key(f"{ARCHITECTURE}.{name}", float(n), "FLOAT32") for name, n in parts.items()),
        *taken,
    ]


def _model_tensor(name: str, weights: Any, config: Any, kind: Kind) -> Tensor:
    place = place_of(name.removesuffix(".weight"))
    shape = tuple(weights.shape)
    heads = _heads_of(place, config.num_attention_heads, config.num_key_value_heads)

    def make() -> Any:
        return _rows_for_llama_cpp(_floats(weights), heads)

    return Tensor(f"{place}.weight", shape, kind_for(shape, kind), make)


def place_of(module: str) -> str:
    """The name in a GGUF file of a Llama's module (`model.layers.3.mlp.up_proj`: `blk.3.ffn_up`).

    Raises:
        ConfigError: llama.cpp's Llama has no such module.
    """
    if module in _OUTSIDE:
        return _OUTSIDE[module]
    layer, _, inside = module.removeprefix("model.layers.").partition(".")
    if not module.startswith("model.layers.") or not layer.isdigit() or inside not in _PLACES:
        raise ConfigError(f"module {module!r} has no place in a GGUF file of a Llama")
    return f"blk.{layer}.{_PLACES[inside]}"


def _heads_of(place: str, heads: int, kv_heads: int) -> int | None:
    """How many heads a matrix's rows make up, where rotary positions turn them; else None."""
    return {"attn_q": heads, "attn_k": kv_heads}.get(place.rpartition(".")[2])


def _rows_for_llama_cpp(rows: Any, heads: int | None) -> Any:
    """The rows in llama.cpp's order. Shape [heads * dimension, ...], unchanged.

    A rotary position turns pairs of dimensions of a head: transformers pairs dimension i with
    i + dimension / 2, llama.cpp's Llama pairs 2i with 2i + 1.
    """
    if heads is None:
        return rows
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def _floats(weights: Any) -> Any:
    """A torch tensor as a float32 array."""
    return weights.detach().float().cpu().contiguous().numpy()


# --- the adapter ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LoraPart:
    """What one matrix learnt: `scale * b @ a` is added to it.

    Float32 arrays: `a` of shape [rank, in], `b` of shape [out, rank].
    """

    a: Any
    b: Any
    scale: float

    @property
    def rank(self) -> int:
        return int(self.a.shape[0])


Lora = Mapping[str, LoraPart]
"""By the name of the module in transformers, such as `model.layers.3.mlp.up_proj`."""


def lora_of(model: Any) -> Lora:
    """The LoRA of a live peft model.

    Raises:
        ConfigError: it learnt in another way than by plain LoRA.
    """
    (name,) = model.active_adapters
    _check_plain(model.peft_config[name])
    parts = {}
    for module_name, module in model.named_modules():
        if name not in getattr(module, "lora_A", {}):
            continue
        a, b = (_floats(half[name].weight) for half in (module.lora_A, module.lora_B))
        parts[_without_wrapping(module_name)] = LoraPart(a, b, float(module.scaling[name]))
    return parts


def read_lora(folder: Path) -> Lora:
    """The LoRA in a folder that peft's `save_pretrained` wrote; the model itself is not needed.

    Raises:
        ConfigError: the folder cannot be read, or it learnt in another way than by plain LoRA.
    """
    try:
        from peft import PeftConfig
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ModuleNotFoundError as error:
        raise MissingExtra("reading a peft adapter", "train") from error
    try:
        config = PeftConfig.from_pretrained(str(folder))
        tensors = load_file(str(folder / "adapter_model.safetensors"))
    except (OSError, TypeError, ValueError, SafetensorError) as exc:
        raise ConfigError(f"{folder} cannot be read as a peft adapter: {exc}") from exc
    _check_plain(config)
    if config.alpha_pattern:
        raise ConfigError(f"{folder} has an alpha for each module; load it and use `lora_of`")
    parts = {}
    for key, a in tensors.items():
        if not key.endswith(".lora_A.weight"):
            continue
        module = key.removesuffix(".lora_A.weight")
        b, rank = tensors[f"{module}.lora_B.weight"], a.shape[0]
        scale = config.lora_alpha / (math.sqrt(rank) if config.use_rslora else rank)
        parts[_without_wrapping(module)] = LoraPart(_floats(a), _floats(b), scale)
    return parts


def _without_wrapping(module: str) -> str:
    return module.removeprefix("base_model.model.")


def _check_plain(config: Any) -> None:
    """Refuse what an adapter file cannot carry."""
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    odd = [] if kind == "LORA" else [kind]
    odd += [name for name in _MORE_THAN_LORA if getattr(config, name, None)]
    odd += ["bias"] if getattr(config, "bias", "none") != "none" else []
    if odd:
        raise ConfigError(f"only plain LoRA becomes an adapter file; this has {', '.join(odd)}")


def write_adapter(
    lora: Lora, base: Path, target: Path, *, kind: Kind = "F16", max_bytes: int | None = None
) -> None:
    """A LoRA as an adapter file of llama.cpp, for the GGUF file `base` (of any quantisation).

    Modules that learnt nothing are left out. With Q8_0 the halves whose rows do not fill its
    blocks (`b`, unless the rank is a multiple of 32) are F16.

    Source: the keys and names are those that llama.cpp's adapter loader reads.

    Raises:
        ConfigError: a module or shape that `base` does not have, or no Llama.
        ExportError: nothing was learnt, values are no numbers or too large for F16, the file
            would be larger than `max_bytes`, or it cannot be written.
    """
    _check_kind(kind)
    header = read_header(base)
    if header.value("general.architecture") != ARCHITECTURE:
        raise ConfigError(f"{base} is no Llama; only adapters of Llama models are written here")
    learnt = {name: part for name, part in lora.items() if part.a.any() and part.b.any()}
    if not learnt:
        raise ExportError("the adapter changes nothing: every matrix of it is zero")
    first = next(iter(learnt.values()))
    alpha = first.scale * first.rank
    tensors = [
        tensor
        for name, part in sorted(learnt.items(), key=lambda item: _order(item[0]))
        for tensor in _part_tensors(name, part, alpha, header, kind)
    ]
    size = sum(tensor.file_bytes for tensor in tensors)
    if max_bytes is not None and size > max_bytes:
        raise ExportError(
            f"the adapter would take {size:,} bytes, {max_bytes:,} are allowed: "
            "lower its rank, train fewer layers, or write it as Q8_0"
        )
    keys = [
        Key("general.type", "adapter", "STRING"),
        Key("general.file_type", _FILE_TYPES[kind], "UINT32"),
        Key("adapter.type", "lora", "STRING"),
        Key("adapter.lora.alpha", alpha, "FLOAT32"),
    ]
    write_gguf_file(target, ARCHITECTURE, keys, tensors)


def _order(module: str) -> tuple[int, str]:
    layer = module.removeprefix("model.layers.").partition(".")[0]
    return int(layer) if layer.isdigit() else -1, module


def _part_tensors(
    name: str, part: LoraPart, alpha: float, base: Header, kind: Kind
) -> tuple[Tensor, Tensor]:
    """Both halves. llama.cpp scales by alpha / rank, one alpha for all: the rest goes into `b`."""
    place = place_of(name)
    shape = base.shapes.get(f"{place}.weight")
    if shape != (part.b.shape[0], part.a.shape[1]):
        raise ConfigError(
            f"the adapter's {name} is for a matrix of {part.b.shape[0]} x {part.a.shape[1]}; in "
            f"{base.path} it is {' x '.join(map(str, shape)) if shape else 'not there'}"
        )
    heads = _heads_of(
        place,
        base.value(f"{ARCHITECTURE}.attention.head_count"),
        base.value(f"{ARCHITECTURE}.attention.head_count_kv"),
    )
    rest = part.scale * part.rank / alpha
    b = _rows_for_llama_cpp(part.b if rest == 1 else part.b * rest, heads)
    return _half(f"{place}.weight.lora_a", part.a, kind), _half(f"{place}.weight.lora_b", b, kind)


def _half(name: str, values: Any, kind: Kind) -> Tensor:
    import numpy

    largest = float(numpy.finfo(numpy.float16).max)
    if not numpy.isfinite(values).all() or abs(values).max() > largest:
        raise ExportError(f"{name} holds values that are no numbers or larger than {largest:g}")
    return Tensor(name, tuple(values.shape), kind_for(values.shape, kind), lambda: values)


def export_adapter(
    lora: Lora,
    base: Path,
    folder: Path,
    *,
    name: str,
    profile: Profile,
    kind: Kind = "F16",
    max_bytes: int | None = None,
    recipe: Pin | None = None,
    seed: int | None = None,
    scores: Mapping[str, Any] | None = None,
) -> Manifest:
    """An adapter and the manifest beside it, in `folder`; what was there of them is replaced.

    Args:
        base: the GGUF file that it was trained on, and that it will be held to.
        name: shown behind the model's own, as in `local:SmolLM2-135M-Instruct+NAME`.
        profile: the one that it was trained with, and that it will be held to.
        scores: what was measured, by name; may be written later by `write_manifest`.
    Raises:
        ConfigError, ExportError: as `write_adapter`.
    """
    # Both are written before either takes its place, so that a full disk leaves the old pair.
    with replacing(folder / ADAPTER_FILE) as part:
        write_adapter(lora, base, part, kind=kind, max_bytes=max_bytes)
        manifest = Manifest(
            name=name,
            adapter=replace(file_digest(part), file=ADAPTER_FILE),
            base=file_digest(base),
            profile=Pin(profile.name, digest(profile)),
            recipe=recipe,
            seed=seed,
            versions=_versions(),
            scores=scores or {},
        )
        write_manifest(manifest, folder)
    return manifest


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Raises:
    ExportError: it cannot be written; an earlier one stands then.
    """
    with replacing(folder / MANIFEST_FILE) as part:
        part.write_text(manifest.to_text(), "utf-8")


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
