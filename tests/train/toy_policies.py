"""Tiny random policies and made-up rollouts for the tests of training. Needs torch."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models

from sandlot.core.tokens import TokenRow
from sandlot.train.base import Episode
from sandlot.train.objective import model_logprobs, pad
from sandlot.train.trl_trainer import SandlotTrainer, TrlSettings, make_trainer

GROUP = 4
VOCABULARY = 64


def tiny_qwen3() -> Any:
    """Always the same weights, and uneven ones: likely and unlikely tokens are far apart."""
    torch.manual_seed(0)
    config = transformers.Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        initializer_range=0.2,
    )
    return transformers.Qwen3ForCausalLM(config)


def tiny_tokenizer() -> Any:
    words = {f"w{index}": index for index in range(VOCABULARY - 2)} | {"<pad>": 62, "<end>": 63}
    inner = Tokenizer(models.WordLevel(words, unk_token="w0"))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<end>", unk_token="w0"
    )


def random_row(draw: random.Random, longest: int = 30) -> TokenRow:
    """A row whose sampled tokens come in several runs, with no log probabilities of note."""
    length = draw.randint(6, longest)
    sampled = (False, *(draw.random() < 0.6 for _ in range(length - 2)), True)
    return TokenRow(tuple(draw.randrange(62) for _ in range(length)), sampled, (0.0,) * length)


def drifted(model: Any, row: TokenRow, draw: random.Random, drift: float) -> TokenRow:
    """The row as if a policy had drawn it whose log probabilities are up to `drift` nats off."""
    with torch.no_grad():
        exact = model_logprobs(model, pad([row]))[0].tolist()
    moved = tuple(
        each + draw.uniform(-drift, drift) if drawn else 0.0
        for each, drawn in zip(exact, row.sampled, strict=True)
    )
    return TokenRow(row.ids, row.sampled, moved)


def episodes_of(
    rewards: Mapping[str, Sequence[float | None]], *, seed: int = 1, drift: float = 0.5
) -> list[Episode]:
    """Rollouts of unequal lengths, each drawn by a policy up to `drift` nats from the tiny one."""
    draw, model, made = random.Random(seed), tiny_qwen3(), []
    for task_id, group in rewards.items():
        for reward in group:
            row = drifted(model, random_row(draw), draw, drift)
            missing = "the sandbox died" if reward is None else None
            made.append(Episode(f"{task_id}@1", task_id, (row,), reward, missing))
    return made


def trainer_of(
    model: Any, episodes: Sequence[Episode], output: Path, *, lr: float = 1.0, **settings: Any
) -> SandlotTrainer:
    """TRL's trainer with plain gradient descent and these rollouts, whichever task is asked for."""
    by_task: dict[str, list[Episode]] = {}
    for episode in episodes:
        by_task.setdefault(episode.task_id, []).append(episode)

    def play(task_ids: list[str], repeats: int) -> list[Episode]:
        assert repeats == GROUP
        return [episode for task_id in task_ids for episode in by_task[task_id]]

    calm = {"use_cpu": True, "activation_checkpointing": False}
    chosen: dict[str, Any] = {
        "output": output,
        "steps": 1,
        "tasks": len(by_task),
        "rollouts": GROUP,
        "rows": 2,
        "old_logprobs": "drawn",
        "max_grad_norm": 0.0,
        **settings,
        "extra": calm | settings.get("extra", {}),
    }
    sgd = torch.optim.SGD([each for each in model.parameters() if each.requires_grad], lr=lr)
    constant = torch.optim.lr_scheduler.LambdaLR(sgd, lambda _: 1.0)
    return make_trainer(
        model,
        tiny_tokenizer(),
        sorted(by_task),
        play=play,
        settings=TrlSettings(**chosen),
        optimizers=(sgd, constant),
    )


def weights_of(model: Any) -> list[torch.Tensor]:
    return [each.detach().clone() for each in model.parameters() if each.requires_grad]


def farthest(ones: Sequence[torch.Tensor], others: Sequence[torch.Tensor]) -> float:
    """The greatest absolute difference between two lists of tensors."""
    return max((one - two).abs().max().item() for one, two in zip(ones, others, strict=True))
