"""Small tokenizers that know the special tokens of real chat templates, and those templates.

A tokenizer is trained in a moment: a byte-level BPE that cuts text as Qwen's and Llama's do. The
templates are those that the installed package trl ships.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from sandlot.models.base import ToolSpec

REASON = "the training packages are not installed (pip install 'sandlot[train]')"

BASH = ToolSpec(
    "execute_bash",
    "Run a command.",
    {"type": "object", "properties": {"command": {"type": "string"}}, "required": ["command"]},
)
SUBMIT = ToolSpec("submit", "Say that you are done.", {"type": "object", "properties": {}})
TOOLS = (BASH, SUBMIT)

CHATML = ("<|im_end|>", "<|im_start|>", "<|endoftext|>")
LLAMA3 = (
    "<|eot_id|>",
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|python_tag|>",
)
_WORDS = "the lines of a file are counted by wc -l input/a.txt > output/answer.txt assistant user"


@dataclass(frozen=True, slots=True)
class Family:
    """A kind of model: its template in trl, its special tokens (end of turn first), its digits."""

    name: str
    special: tuple[str, ...]
    digits: str = r"\p{N}"


FAMILIES = {
    "qwen2_5": Family("qwen2_5", CHATML),
    "qwen3": Family("qwen3", CHATML),
    "qwen3_instruct_2507": Family("qwen3_instruct_2507", CHATML),
    "llama3_1": Family("llama3_1", LLAMA3, r"\p{N}{1,3}"),
    "llama3_2": Family("llama3_2", LLAMA3, r"\p{N}{1,3}"),
}


def template_text(name: str) -> str:
    """A template of the installed trl; the test is skipped where there is none of that name."""
    spec = importlib.util.find_spec("trl")
    if spec is None or spec.origin is None:
        pytest.skip(REASON)
    path = Path(spec.origin).parent / "chat_templates" / f"{name}.jinja"
    if not path.exists():
        pytest.skip(f"no installed package ships a chat template {name!r}")
    return path.read_text()


@cache
def tokenizer(special: tuple[str, ...] = CHATML, digits: str = r"\p{N}", size: int = 512) -> Any:
    """A transformers tokenizer over bytes; the first special token ends a sequence."""
    tokenizers = pytest.importorskip("tokenizers", reason=REASON)
    transformers = pytest.importorskip("transformers", reason=REASON)
    kind = tokenizers.Tokenizer(tokenizers.models.BPE())
    words = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + digits + r"| ?[^\s\p{L}\p{N}]+"
        r"[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    kind.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(tokenizers.Regex(words), behavior="isolated"),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    kind.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(special),
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    kind.train_from_iterator([f"{_WORDS}\n{_WORDS}\n\n"] * 4, trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=kind,
        eos_token=special[0],
        bos_token=special[1],
        additional_special_tokens=list(special[2:]),
    )


def family_tokenizer(name: str) -> Any:
    family = FAMILIES[name]
    return tokenizer(family.special, family.digits)
