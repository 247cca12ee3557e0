"""TRL's trainer, as it is set here, has the loss and the gradients of `objective.policy_loss`."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

REASON = "needs the extra `train` (torch, transformers, peft, trl)"
torch = pytest.importorskip("torch", reason=REASON)
transformers = pytest.importorskip("transformers", reason=REASON)
pytest.importorskip("trl", reason=REASON)

from sandlot.core.errors import ConfigError  # noqa: E402
from sandlot.core.tokens import TokenRow  # noqa: E402
from sandlot.train.base import Episode  # noqa: E402
from sandlot.train.objective import (  # noqa: E402
    group_advantages,
    model_logprobs,
    pad,
    policy_loss,
)
from sandlot.train.trl_trainer import (  # noqa: E402
    TrlSettings,
    as_completion,
    grpo_config,
    make_trainer,
)

pytestmark = pytest.mark.filterwarnings("default")  # other people's deprecations are not ours

K = 4


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def tiny_qwen3() -> Any:
    torch.manual_seed(0)
    config = transformers.Qwen3Config(
        vocab_size=64,
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
    from tokenizers import Tokenizer, models

    words = {f"w{index}": index for index in range(62)} | {"<pad>": 62, "<end>": 63}
    inner = Tokenizer(models.WordLevel(words, unk_token="w0"))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<end>", unk_token="w0"
    )


def episodes_of(
    rewards: dict[str, Sequence[float | None]], *, seed: int = 1, drift: float = 0.5
) -> list[Episode]:
    """Rollouts of unequal lengths with tool tokens between the sampled runs.

    The recorded log probabilities differ from the trainer's by up to `drift`, as if an older
    policy had drawn the tokens, so that ratios lie on either side of both bounds.
    """
    draw, model, made = random.Random(seed), tiny_qwen3(), []
    for task_id, group in rewards.items():
        for reward in group:
            length = draw.randint(6, 30)
            sampled = (False, *(draw.random() < 0.6 for _ in range(length - 2)), True)
            ids = tuple(draw.randrange(62) for _ in range(length))
            bare = TokenRow(ids, sampled, (0.0,) * length)
            with torch.no_grad():
                exact = model_logprobs(model, pad([bare]))[0].tolist()
            moved = tuple(
                each + draw.uniform(-drift, drift) if drawn else 0.0
                for each, drawn in zip(exact, sampled, strict=True)
            )
            row = TokenRow(ids, sampled, moved)
            missing = "the sandbox died" if reward is None else None
            made.append(Episode(f"{task_id}@1", task_id, (row,), reward, missing))
    return made


def exact_gradients(model: Any, episodes: Sequence[Episode]) -> tuple[float, list[Any]]:
    """The loss of the paper's objective over all rows at once, and its gradients."""
    found = group_advantages([e.group for e in episodes], [e.reward for e in episodes])
    kept = [
        (e.rows[0], value)
        for e, value in zip(episodes, found.values, strict=True)
        if value is not None
    ]
    batch = pad([row for row, _ in kept])
    loss = policy_loss(
        model_logprobs(model, batch),
        batch.logprobs,
        batch.sampled,
        torch.tensor([value for _, value in kept]),
        normaliser=found.rollouts,
    )
    parameters = [each for each in model.parameters() if each.requires_grad]
    return loss.item(), list(torch.autograd.grad(loss, parameters))


def trainer_of(model: Any, episodes: Sequence[Episode], tmp_path: Path, **settings: Any) -> Any:
    by_task: dict[str, list[Episode]] = {}
    for episode in episodes:
        by_task.setdefault(episode.task_id, []).append(episode)

    def play(task_ids: list[str], repeats: int) -> list[Episode]:
        assert repeats == K
        return [episode for task_id in task_ids for episode in by_task[task_id]]

    chosen = TrlSettings(
        **{
            "output": tmp_path,
            "steps": 1,
            "tasks": len(by_task),
            "rollouts": K,
            "rows": K * len(by_task),
            "old_logprobs": "drawn",
            "max_grad_norm": 0.0,
            "extra": {"use_cpu": True, "gradient_checkpointing": False, "disable_tqdm": True},
            **settings,
        }
    )
    sgd = torch.optim.SGD([each for each in model.parameters() if each.requires_grad], lr=1.0)
    constant = torch.optim.lr_scheduler.LambdaLR(sgd, lambda _: 1.0)
    return make_trainer(
        model,
        tiny_tokenizer(),
        sorted(by_task),
        play=play,
        settings=chosen,
        optimizers=(sgd, constant),
    )


def one_batch(trainer: Any, episodes: Sequence[Episode]) -> tuple[float, list[Any]]:
    """TRL's loss of one whole batch and its gradients, without an optimizer."""
    model = trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    inputs = [{"prompt": episode.task_id} for episode in episodes]
    loss = trainer.compute_loss(model, trainer._generate_and_score_completions(inputs))
    parameters = [each for each in model.parameters() if each.requires_grad]
    return loss.item(), list(torch.autograd.grad(loss, parameters))


FULL = {"a": [1.0, 0.0, 0.25, 0.5], "b": [0.0, 1.0, 1.0, 0.0]}
EQUAL = {"a": [1.0, 0.0, 0.25, 0.5], "b": [0.1, 0.1, 0.1, 0.1]}
MISSING = {"a": [1.0, None, 0.25, 0.0], "b": [0.5, 1.0, None, None], "c": [None, 1.0, None, None]}


@pytest.mark.parametrize("rewards", [FULL, EQUAL, MISSING], ids=["full", "equal", "missing"])
def test_loss_and_gradients_of_trl_are_those_of_the_objective(
    rewards: dict[str, Sequence[float | None]], tmp_path: Path
) -> None:
    episodes = episodes_of(rewards)
    wanted_loss, wanted = exact_gradients(tiny_qwen3(), episodes)
    loss, found = one_batch(trainer_of(tiny_qwen3(), episodes, tmp_path), episodes)
    gap = max((one - two).abs().max().item() for one, two in zip(found, wanted, strict=True))
    print(f"loss {loss:.6f}, apart {abs(loss - wanted_loss):.1e}; gradients apart {gap:.1e}")
    assert loss == pytest.approx(wanted_loss, abs=1e-5)
    assert gap < 1e-5
    assert max(each.abs().max().item() for each in wanted) > 0.01
