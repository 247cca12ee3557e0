"""TRL's trainer, as it is set here, has the loss and the gradients of `objective.policy_loss`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

REASON = "needs the extra `train` (torch, transformers, peft, trl)"
torch = pytest.importorskip("torch", reason=REASON)
peft = pytest.importorskip("peft", reason=REASON)
pytest.importorskip("trl", reason=REASON)

from toy_policies import (  # noqa: E402
    GROUP,
    episodes_of,
    farthest,
    tiny_qwen3,
    tiny_tokenizer,
    trainer_of,
    weights_of,
)
from trl.trainer.grpo_trainer import GRPOTrainer  # noqa: E402

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

pytestmark = pytest.mark.filterwarnings("ignore:.*will be removed in v6:FutureWarning")

Rewards = Mapping[str, Sequence[float | None]]
FULL: Rewards = {"a": [1.0, 0.0, 0.25, 0.5], "b": [0.0, 1.0, 1.0, 0.0]}
EQUAL: Rewards = {"a": [1.0, 0.0, 0.25, 0.5], "b": [0.1, 0.1, 0.1, 0.1]}
MISSING: Rewards = {
    "a": [1.0, None, 0.25, 0.0],
    "b": [0.5, 1.0, None, None],
    "c": [None, 1.0, None, None],
}
ALL = pytest.mark.parametrize("rewards", [FULL, EQUAL, MISSING], ids=["full", "equal", "missing"])


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def exact(
    model: Any, episodes: Sequence[Episode], *, on_policy: bool = False, temperature: float = 1.0
) -> Any:
    """The loss of the objective, over all rows at once."""
    found = group_advantages([e.group for e in episodes], [e.reward for e in episodes])
    kept = [
        (e.rows[0], value)
        for e, value in zip(episodes, found.values, strict=True)
        if value is not None
    ]
    batch = pad([row for row, _ in kept])
    new = model_logprobs(model, batch, temperature)
    return policy_loss(
        new,
        new.detach() if on_policy else batch.logprobs,
        batch.sampled,
        torch.tensor([value for _, value in kept]),
        normaliser=found.rollouts,
    )


def gradients(loss: Any, model: Any) -> list[Any]:
    parameters = [each for each in model.parameters() if each.requires_grad]
    return list(torch.autograd.grad(loss, parameters))


def scored(trainer: Any, episodes: Sequence[Episode]) -> dict[str, Any]:
    """What TRL makes of one batch of rollouts before its loss."""
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    return dict(trainer._generate_and_score_completions([{"prompt": e.task_id} for e in episodes]))


@ALL
def test_loss_and_gradients_of_trl_are_those_of_the_objective(
    rewards: Rewards, tmp_path: Path
) -> None:
    """Unequal lengths, tool tokens between the sampled ones, ratios beyond both bounds."""
    episodes, model, ours = episodes_of(rewards), tiny_qwen3(), tiny_qwen3()
    wanted = exact(ours, episodes)
    trainer = trainer_of(model, episodes, tmp_path, rows=len(episodes))
    loss = trainer.compute_loss(model, scored(trainer, episodes))
    target = gradients(wanted, ours)
    apart = farthest(gradients(loss, model), target)
    print(f"losses {abs(loss.item() - wanted.item()):.1e} apart, gradients {apart:.1e}")
    assert loss.item() == pytest.approx(wanted.item(), abs=1e-5)
    assert apart < 1e-5
    assert max(each.abs().max().item() for each in target) > 0.01
    assert trainer._metrics["train"]["clip_ratio/high_mean"][-1] > 0
    assert trainer._metrics["train"]["clip_ratio/low_mean"][-1] > 0


def test_the_attention_of_the_in_process_engine_gives_the_same(tmp_path: Path) -> None:
    """It takes no mask, and needs none: nothing is padded on the left."""
    from sandlot.train.engine_torch import use_slots

    episodes, model, ours = episodes_of(MISSING), tiny_qwen3(), tiny_qwen3()
    use_slots(model)
    wanted = exact(ours, episodes)
    trainer = trainer_of(model, episodes, tmp_path, rows=len(episodes))
    loss = trainer.compute_loss(model, scored(trainer, episodes))
    assert loss.item() == pytest.approx(wanted.item(), abs=1e-5)
    assert farthest(gradients(loss, model), gradients(wanted, ours)) < 1e-5


def test_the_temperature_of_the_draws_is_that_of_the_loss(tmp_path: Path) -> None:
    episodes, model, ours = episodes_of(FULL), tiny_qwen3(), tiny_qwen3()
    wanted = exact(ours, episodes, temperature=0.7)
    trainer = trainer_of(model, episodes, tmp_path, rows=len(episodes), temperature=0.7)
    loss = trainer.compute_loss(model, scored(trainer, episodes))
    assert farthest(gradients(loss, model), gradients(wanted, ours)) < 1e-5


@ALL
def test_a_step_of_trl_in_small_passes_moves_the_weights_along_that_gradient(
    rewards: Rewards, tmp_path: Path
) -> None:
    """The whole of `train()`: shuffled, in passes of two rows, accumulated, stepped."""
    episodes, model = episodes_of(rewards), tiny_qwen3()
    before = weights_of(model)
    wanted = gradients(exact(model, episodes), model)
    trainer_of(model, episodes, tmp_path).train()
    moved = [one - two for one, two in zip(before, weights_of(model), strict=True)]
    assert farthest(moved, wanted) < 1e-5


@pytest.mark.filterwarnings("ignore:.*use_reentrant")
def test_activations_that_are_made_again_give_the_same_step(tmp_path: Path) -> None:
    """As TRL trains unless it is told otherwise, with the attention of the in-process engine."""
    from sandlot.train.engine_torch import use_slots

    episodes, model = episodes_of(FULL), tiny_qwen3()
    before, wanted = weights_of(model), gradients(exact(model, episodes), model)
    use_slots(model)
    extra = {"activation_checkpointing": True}
    trainer_of(model, episodes, tmp_path, extra=extra).train()
    assert model.is_activation_checkpointing
    moved = [one - two for one, two in zip(before, weights_of(model), strict=True)]
    assert farthest(moved, wanted) < 1e-5


def test_the_settings_alone_are_exact_where_no_reward_is_missing(tmp_path: Path) -> None:
    episodes = episodes_of(FULL)
    trainer = trainer_of(tiny_qwen3(), episodes, tmp_path)
    inputs = [{"prompt": episode.task_id} for episode in episodes]
    plain = GRPOTrainer._generate_and_score_completions(trainer, inputs)["advantages"]
    found = group_advantages([e.group for e in episodes], [e.reward for e in episodes])
    assert plain.tolist() == pytest.approx(found.values, abs=1e-6)


def test_the_settings_alone_are_not_exact_where_a_reward_is_missing(tmp_path: Path) -> None:
    """Why the adapter makes the advantages itself: of 1, 0.25, 0 TRL makes 4/3 of the distance
    from their mean where 3/2 is the leave-one-out, and divides by four rows, not three."""
    episodes = episodes_of({"a": MISSING["a"]})
    trainer = trainer_of(tiny_qwen3(), episodes, tmp_path)
    inputs = [{"prompt": episode.task_id} for episode in episodes]
    plain = GRPOTrainer._generate_and_score_completions(trainer, inputs)["advantages"]
    mean = 1.25 / 3
    assert plain.tolist() == pytest.approx(
        [4 / 3 * (1 - mean), 0, 4 / 3 * (0.25 - mean), -4 / 3 * mean]
    )
    found = scored(trainer, episodes)["advantages"].tolist()
    assert found == pytest.approx(
        [4 / 3 * 1.5 * (1 - mean), 0, 4 / 3 * 1.5 * (0.25 - mean), -4 / 3 * 1.5 * mean]
    )


def test_equal_rewards_get_exact_zeros_where_trl_leaves_rounding_noise(tmp_path: Path) -> None:
    episodes = episodes_of({"a": [0.1] * GROUP, "b": [0.7] * GROUP})
    trainer = trainer_of(tiny_qwen3(), episodes, tmp_path)
    assert scored(trainer, episodes)["advantages"].tolist() == [0.0] * 8


def test_old_log_probabilities_may_be_the_trainers_own(tmp_path: Path) -> None:
    """Then every ratio of the first update is 1, whatever the engine recorded."""
    episodes, model, ours = episodes_of(FULL), tiny_qwen3(), tiny_qwen3()
    wanted = exact(ours, episodes, on_policy=True)
    trainer = trainer_of(model, episodes, tmp_path, rows=len(episodes), old_logprobs="trainer")
    loss = trainer.compute_loss(model, scored(trainer, episodes))
    assert loss.item() == pytest.approx(wanted.item(), abs=1e-5)
    assert farthest(gradients(loss, model), gradients(wanted, ours)) < 1e-5


def test_with_several_updates_a_step_the_old_policy_is_the_one_that_drew(tmp_path: Path) -> None:
    """Two updates on one batch: the second has ratios other than 1, as the first one moved it."""
    episodes, model = episodes_of(FULL, drift=0.0), tiny_qwen3()
    trainer = trainer_of(model, episodes, tmp_path, lr=0.5, updates=2, old_logprobs="trainer")
    taken: list[dict[str, Any]] = []
    loss_of = trainer._compute_loss
    trainer._compute_loss = lambda net, inputs: (taken.append(inputs), loss_of(net, inputs))[1]
    trainer.train()
    assert (trainer.state.global_step, len(taken)) == (2, 4)

    ours = tiny_qwen3()
    for update in (taken[:2], taken[2:]):
        total = 0.0
        for inputs in update:
            total = total + _shares(ours, inputs) / 4
        for parameter, each in zip(ours.parameters(), gradients(total, ours), strict=True):
            parameter.data -= 0.5 * each
    assert farthest(weights_of(model), weights_of(ours)) < 1e-5


def _shares(model: Any, inputs: Mapping[str, Any]) -> Any:
    """The objective's sum over the rows of one of TRL's passes, one row at a time."""
    total = 0.0
    for row in range(len(inputs["advantages"])):
        front = inputs["prompt_ids"][row][inputs["prompt_mask"][row].bool()]
        real = inputs["completion_mask"][row].bool()
        rear, drawn = inputs["completion_ids"][row][real], inputs["tool_mask"][row][real].bool()
        ids, given = torch.cat([front, rear]).tolist(), [False] * len(front)
        logprobs = [0.0] * len(front) + inputs["old_per_token_logps"][row][real].tolist()
        batch = pad([TokenRow(tuple(ids), (*given, *drawn.tolist()), tuple(logprobs))])
        new, gain = model_logprobs(model, batch), inputs["advantages"][row : row + 1]
        total = total + policy_loss(new, batch.logprobs, batch.sampled, gain, normaliser=1)
    return total


def test_an_adapter_gets_the_same_gradients_and_the_model_below_it_none(tmp_path: Path) -> None:
    def adapted() -> Any:
        config = peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
        return peft.get_peft_model(tiny_qwen3(), config)

    episodes, model, ours = episodes_of(FULL), adapted(), adapted()
    trainable = [name for name, each in model.named_parameters() if each.requires_grad]
    assert trainable
    assert all("lora_" in name for name in trainable)
    wanted = exact(ours, episodes)
    trainer = trainer_of(model, episodes, tmp_path, rows=len(episodes))
    loss = trainer.compute_loss(model, scored(trainer, episodes))
    assert loss.item() == pytest.approx(wanted.item(), abs=1e-5)
    assert farthest(gradients(loss, model), gradients(wanted, ours)) < 1e-5


@pytest.mark.slow
def test_a_run_that_goes_on_from_a_checkpoint_ends_where_an_unbroken_one_does(
    tmp_path: Path,
) -> None:
    rewards = {f"task{index}": group for index, group in enumerate([*FULL.values()] * 3)}
    episodes = episodes_of(rewards)
    saving = {"save_strategy": "steps", "save_steps": 1}

    whole = tiny_qwen3()
    trainer_of(whole, episodes, tmp_path / "whole", tasks=2, steps=3, lr=0.1).train()
    first = trainer_of(
        tiny_qwen3(), episodes, tmp_path / "cut", tasks=2, steps=2, lr=0.1, extra=saving
    )
    first.train()
    again = tiny_qwen3()
    trainer_of(again, episodes, tmp_path / "cut", tasks=2, steps=3, lr=0.1).train(
        resume_from_checkpoint=True
    )
    assert farthest(weights_of(whole), weights_of(again)) < 1e-6


@pytest.mark.parametrize("drift", [0.0, 0.5])
def test_the_distance_between_engine_and_trainer_is_told(drift: float, tmp_path: Path) -> None:
    """0 but for rounding where the same policy drew, up to the drift where another one did."""
    trainer = trainer_of(tiny_qwen3(), episodes_of(FULL, drift=drift), tmp_path)
    trainer.train()
    told = trainer.state.log_history[0]
    assert told["rollouts/learned_tokens"] == 82
    assert drift * 0.9 <= told["rollouts/gap_max"] < drift + 1e-5
    assert drift * 0.4 <= told["rollouts/gap_mean"] < drift * 0.6 + 1e-5


def test_the_policy_is_at_rest_while_rollouts_are_played_and_learns_afterwards(
    tmp_path: Path,
) -> None:
    """A model that checkpoints its activations in training would do so while it draws."""
    episodes, states = episodes_of(FULL), []
    trainer = trainer_of(tiny_qwen3(), episodes, tmp_path)
    play = trainer._play
    trainer._play = lambda *asked: (states.append(trainer.model.training), play(*asked))[1]
    scored(trainer, episodes)
    assert (states, trainer.model.training) == ([False], True)


# What the hook hands over.


def row(*sampled: int, start: int = 0) -> TokenRow:
    ids = tuple(range(start, start + len(sampled)))
    return TokenRow(ids, tuple(map(bool, sampled)), tuple(-0.5 * each for each in sampled))


def test_all_but_the_first_token_is_completion_so_that_nothing_is_padded_on_the_left() -> None:
    found = as_completion(Episode("g", "t", (row(0, 0, 1, 1, 0, 1),), 0.5), 62)
    assert found == {
        "prompt_ids": [0],
        "completion_ids": [1, 2, 3, 4, 5],
        "env_mask": [0, 1, 1, 0, 1],
        "logprobs": [0.0, -0.5, -0.5, 0.0, -0.5],
        "reward": 0.5,
    }


def test_a_row_without_log_probabilities_is_refused() -> None:
    bare = TokenRow((1, 2), (False, True))
    with pytest.raises(ValueError, match="a rollout of t has no log probabilities"):
        as_completion(Episode("g", "t", (bare,), 0.5), 62)


@pytest.mark.parametrize(
    "episode",
    [
        Episode("g", "t", (), None, "the sandbox did not start"),
        Episode("g", "t", (row(0, 1),), None, "the scorer failed"),
        Episode("g", "t", (row(0, 0),), 0.0),
    ],
    ids=["no rows", "no reward", "nothing drawn"],
)
def test_a_rollout_without_anything_to_learn_from_is_filler(episode: Episode) -> None:
    found = as_completion(episode, 62)
    assert (found["completion_ids"], found["env_mask"]) == ([62], [0])
    assert found["reward"] == episode.reward


def test_of_several_rows_the_largest_is_kept_and_the_others_are_counted(tmp_path: Path) -> None:
    several = Episode("g", "t", (row(0, 1), row(0, 1, 0, 1, start=10)), 1.0)
    assert as_completion(several, 62)["prompt_ids"] == [10]
    with pytest.raises(ValueError, match="a rollout of t has 2 token rows"):
        as_completion(several, 62, refuse=True)
    episodes = episodes_of({"a": FULL["a"]})
    episodes[1] = replace(episodes[1], rows=(row(0, 1), *episodes[1].rows))
    trainer = trainer_of(tiny_qwen3(), episodes, tmp_path)
    scored(trainer, episodes)
    assert trainer._metrics["train"]["rollouts/rows_left_aside"] == [1]


def test_what_trl_does_not_say_about_the_rollouts_is_told(tmp_path: Path) -> None:
    episodes = episodes_of(MISSING)
    heard: list[Any] = []
    trainer = trainer_of(tiny_qwen3(), episodes, tmp_path)
    trainer._on_rollouts = lambda *said: heard.append(said)
    scored(trainer, episodes)
    told = {key: value for key, [*_, value] in trainer._metrics["train"].items()}
    assert [found.values for _, found in heard] == [
        group_advantages([e.group for e in episodes], [e.reward for e in episodes]).values
    ]
    assert told["rollouts/missing"] == 6
    assert told["rollouts/reward"] == pytest.approx((1 + 0.25 + 0 + 0.5 + 1 + 1) / 6)
    assert told["rollouts/useful_groups"] == pytest.approx(2 / 3)


def test_rollouts_of_other_tasks_than_were_asked_for_are_an_error(tmp_path: Path) -> None:
    episodes = episodes_of(FULL)
    trainer = trainer_of(tiny_qwen3(), episodes, tmp_path)
    trainer._play = lambda task_ids, repeats: episodes[::-1]
    with pytest.raises(ValueError, match="were asked for"):
        scored(trainer, episodes)


# What is refused.


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"rollouts": 1}, "no baseline"),
        ({"tasks": 3, "processes": 2}, "do not divide among 2 processes"),
        ({"rows": 5}, "do not divide into"),
        ({"updates": 3}, "do not divide into"),
        ({"extra": {"beta": 0.1, "loss_type": "grpo"}}, r"\['beta', 'loss_type'\]"),
        ({"processes": 2}, "2 process\\(es\\) were asked for and 1 run"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    wrong: dict[str, Any], said: str, tmp_path: Path
) -> None:
    calm = {"use_cpu": True, **wrong.pop("extra", {})}
    with pytest.raises(ConfigError, match=said):
        grpo_config(TrlSettings(output=tmp_path, steps=1, extra=calm, **wrong))


def test_too_few_tasks_for_a_step_are_refused(tmp_path: Path) -> None:
    settings = TrlSettings(output=tmp_path, steps=1, tasks=2)
    with pytest.raises(ConfigError, match="1 tasks are too few for 2"):
        make_trainer(tiny_qwen3(), tiny_tokenizer(), ["a"], play=lambda *_: [], settings=settings)
