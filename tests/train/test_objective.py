"""The objective against numbers worked by hand and against a plain reading of its formulas."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `train` (torch)")

from sandlot.core.errors import ConfigError  # noqa: E402
from sandlot.core.tokens import TokenRow  # noqa: E402
from sandlot.train.base import Episode  # noqa: E402
from sandlot.train.curves import step_figures  # noqa: E402
from sandlot.train.objective import (  # noqa: E402
    Batch,
    batches,
    group_advantages,
    leave_one_out,
    model_logprobs,
    pad,
    policy_loss,
    ratio_figures,
    sequence_logprobs,
)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


# Advantages.


def test_each_reward_is_compared_with_the_mean_of_the_others() -> None:
    assert leave_one_out([1.0, 0.0, 0.0, 0.0]) == pytest.approx([1, -1 / 3, -1 / 3, -1 / 3])
    assert leave_one_out([0.9, 0.6, 0.0]) == pytest.approx([0.6, 0.15, -0.75])


def test_advantages_are_the_distance_from_the_group_mean_stretched_by_its_size() -> None:
    rewards = [0.25, 1.0, 0.5, 0.0, 1.0, 0.75, 0.0, 0.1]
    mean = sum(rewards) / 8
    assert leave_one_out(rewards) == pytest.approx([8 / 7 * (each - mean) for each in rewards])


def test_a_missing_reward_has_no_advantage_and_leaves_the_baseline_alone() -> None:
    assert leave_one_out([1.0, None, 0.0, 0.5]) == [0.75, None, -0.75, 0.0]


def test_equal_rewards_get_exact_zeros() -> None:
    assert leave_one_out([0.1, 0.1, 0.1]) == [0.0, 0.0, 0.0]
    assert leave_one_out([0.1, None, 0.1]) == [0.0, None, 0.0]


def test_a_reward_with_no_other_to_compare_gives_no_signal() -> None:
    assert leave_one_out([1.0]) == [0.0]
    assert leave_one_out([None, 1.0, None]) == [None, 0.0, None]
    assert leave_one_out([None, None]) == [None, None]
    assert leave_one_out([]) == []


def test_groups_are_kept_apart_wherever_their_rollouts_stand_and_the_idle_ones_are_counted() -> (
    None
):
    groups = ["a", "b", "a", "c", "b", "c", "d"]
    found = group_advantages(groups, [1.0, 0.5, 0.0, 1.0, 0.5, None, None])
    assert found.values == (1.0, 0.0, -1.0, 0.0, 0.0, None, None)
    assert (found.groups, found.equal, found.alone, found.missing) == (4, 1, 2, 2)
    assert found.rollouts == 5


# Batches.


ROWS = (
    TokenRow((5, 6, 7), (False, True, True), (0.0, -0.5, -0.25)),
    TokenRow((8, 9, 1, 2, 3), (False, False, True, False, True), (0.0, 0.0, -1.0, 0.0, -2.0)),
)


def test_rows_are_padded_on_the_right_and_padding_is_never_a_sampled_token() -> None:
    batch = pad(ROWS, pad_id=99)
    assert batch.ids.tolist() == [[5, 6, 7, 99, 99], [8, 9, 1, 2, 3]]
    assert batch.sampled.tolist()[0] == [False, True, True, False, False]
    assert batch.logprobs.tolist()[0] == [0.0, -0.5, -0.25, 0.0, 0.0]


def test_a_row_without_log_probabilities_is_named() -> None:
    with pytest.raises(ValueError, match="row 1 was recorded without"):
        pad([ROWS[0], TokenRow((1, 2), (False, True))])
    with pytest.raises(ValueError, match="no rows"):
        pad([])


def test_supervised_rows_need_no_log_probabilities() -> None:
    batch = pad([ROWS[0], TokenRow((1, 2), (False, True))], need_logprobs=False)
    assert batch.logprobs.tolist() == [[0.0, -0.5, -0.25], [0.0, 0.0, 0.0]]
    assert batch.sampled.tolist()[1] == [False, True, False]


def test_batches_hold_every_row_once_longest_first_within_the_budget() -> None:
    lengths = [3, 10, 4, 10, 5, 1]
    assert list(batches(lengths, 20)) == [[1, 3], [4, 2, 0, 5]]
    assert list(batches(lengths, 9)) == [[1], [3], [4], [2, 0], [5]]
    assert list(batches([], 9)) == []


# Log probabilities.


def test_log_probabilities_are_those_of_the_whole_vocabulary_at_the_position_before() -> None:
    hidden, head = torch.randn(2, 5, 8), torch.nn.Linear(8, 11, bias=False)
    batch = pad(ROWS)
    found = sequence_logprobs(hidden, head, batch.ids, batch.sampled, temperature=0.7, chunk=2)
    everywhere = torch.log_softmax(head(hidden) / 0.7, -1)
    for row, position in batch.sampled.nonzero().tolist():
        expected = everywhere[row, position - 1, batch.ids[row, position]]
        assert (found[row, position] - expected).item() == pytest.approx(0, abs=1e-6)
    assert not found[~batch.sampled].any()


def test_the_head_sees_only_positions_before_sampled_tokens_and_only_a_chunk_at_a_time() -> None:
    seen: list[int] = []
    linear = torch.nn.Linear(8, 11)

    def head(states: Any) -> Any:
        seen.append(len(states))
        return linear(states)

    with torch.no_grad():
        sequence_logprobs(torch.randn(2, 5, 8), head, *_ids(), chunk=3)
    assert seen == [3, 1]


def test_half_precision_logits_are_summed_in_full_precision() -> None:
    hidden = torch.randn(2, 5, 8, dtype=torch.bfloat16)
    head = torch.nn.Linear(8, 4096, bias=False, dtype=torch.bfloat16)
    found = sequence_logprobs(hidden, head, *_ids())
    exact = torch.log_softmax(head(hidden).float(), -1)
    assert found.dtype == torch.float32
    assert (found[0, 1] - exact[0, 0, 6]).item() == pytest.approx(0, abs=1e-5)


def test_the_gradient_through_chunks_equals_the_gradient_through_all_logits() -> None:
    hidden = torch.randn(2, 5, 8, requires_grad=True)
    head = torch.nn.Linear(8, 11)
    ids, sampled = _ids()
    sequence_logprobs(hidden, head, ids, sampled, 0.7, chunk=1).sum().backward()
    chunked = hidden.grad.clone(), head.weight.grad.clone()
    hidden.grad = head.weight.grad = None
    everywhere = torch.log_softmax(head(hidden[:, :-1]) / 0.7, -1)
    everywhere.gather(2, ids[:, 1:, None])[..., 0][sampled[:, 1:]].sum().backward()
    assert torch.allclose(chunked[0], hidden.grad, atol=1e-6)
    assert torch.allclose(chunked[1], head.weight.grad, atol=1e-6)


def test_a_batch_without_a_sampled_token_has_zeros_and_still_a_gradient() -> None:
    hidden = torch.randn(1, 3, 8, requires_grad=True)
    ids, sampled = torch.tensor([[1, 2, 3]]), torch.zeros(1, 3, dtype=torch.bool)
    found = sequence_logprobs(hidden, torch.nn.Linear(8, 11), ids, sampled)
    assert found.tolist() == [[0.0, 0.0, 0.0]]
    found.sum().backward()


def test_what_has_no_log_probability_is_refused() -> None:
    hidden, head = torch.randn(1, 2, 8), torch.nn.Linear(8, 11)
    ids = torch.tensor([[1, 2]])
    with pytest.raises(ValueError, match="temperature 0"):
        sequence_logprobs(hidden, head, ids, torch.tensor([[False, True]]), 0)
    with pytest.raises(ValueError, match="nothing before it"):
        sequence_logprobs(hidden, head, ids, torch.tensor([[True, True]]))


def _ids() -> tuple[Any, Any]:
    batch = pad(ROWS)
    return batch.ids, batch.sampled


def tiny_qwen3(**changes: Any) -> Any:
    transformers = pytest.importorskip("transformers", reason="needs the extra `train`")
    config = transformers.Qwen3Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        initializer_range=0.2,
        **changes,
    )
    return transformers.Qwen3ForCausalLM(config)


def random_rows(count: int, seed: int = 0, longest: int = 24) -> list[TokenRow]:
    """Rows of unequal lengths whose sampled tokens come in several runs."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        length = draw.randint(4, longest)
        sampled = (False, *(draw.random() < 0.6 for _ in range(length - 2)), True)
        logprobs = tuple(-3 * draw.random() if each else 0.0 for each in sampled)
        rows.append(TokenRow(tuple(draw.randrange(64) for _ in range(length)), sampled, logprobs))
    return rows


def test_a_row_has_the_same_log_probabilities_alone_and_beside_longer_rows() -> None:
    model, rows = tiny_qwen3(), random_rows(6)
    with torch.no_grad():
        together = model_logprobs(model, pad(rows, pad_id=63))
        for index, row in enumerate(rows):
            alone = model_logprobs(model, pad([row]))
            assert torch.allclose(together[index, : len(row.ids)], alone[0], atol=1e-5)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_an_adapter_is_part_of_the_policy() -> None:
    peft = pytest.importorskip("peft", reason="needs the extra `train`")
    config = peft.LoraConfig(target_modules=["q_proj", "lm_head"], init_lora_weights=False)
    adapted = peft.get_peft_model(tiny_qwen3(), config)
    batch = pad(random_rows(3))
    logits = adapted(batch.ids).logits[:, :-1]
    expected = torch.log_softmax(logits, -1).gather(2, batch.ids[:, 1:, None])[..., 0]
    found = model_logprobs(adapted, batch)[:, 1:]
    assert torch.allclose(found, expected * batch.sampled[:, 1:], atol=1e-5)
    with adapted.disable_adapter():
        assert not torch.allclose(found, model_logprobs(adapted, batch)[:, 1:], atol=1e-2)


def test_a_model_that_scales_its_logits_in_its_own_way_is_refused() -> None:
    model = tiny_qwen3()
    model.config.logits_scaling = 8.0
    with pytest.raises(ConfigError, match="logits_scaling"):
        model_logprobs(model, pad(ROWS))


def test_logits_that_the_model_bends_are_bent_here_too() -> None:
    model, batch = tiny_qwen3(), pad(random_rows(2))
    plain = model_logprobs(model, batch)
    model.config.final_logit_softcapping = 2.0
    logits = model(batch.ids).logits[:, :-1]
    bent = torch.log_softmax(torch.tanh(logits / 2) * 2, -1)
    expected = bent.gather(2, batch.ids[:, 1:, None])[..., 0] * batch.sampled[:, 1:]
    found = model_logprobs(model, batch)[:, 1:]
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(found, plain[:, 1:], atol=1e-2)


# The loss.


def test_the_loss_of_three_tokens_worked_by_hand() -> None:
    """Ratios 2, 1.1 and 0.5 under an advantage of +1, then of -2.

    +1: min(2, 1.28) + min(1.1, 1.1) + min(0.5, 0.8) = 1.28 + 1.1 + 0.5 = 2.88
    -2: min(-4, -2.56) + min(-2.2, -2.2) + min(-1, -1.6) = -4 - 2.2 - 1.6 = -7.8
    """
    new = torch.tensor([[0.0, math.log(2), math.log(1.1), math.log(0.5)]])
    old, sampled = torch.zeros(1, 4), torch.tensor([[False, True, True, True]])
    gain = policy_loss(new, old, sampled, torch.tensor([1.0]), normaliser=1)
    loss = policy_loss(new, old, sampled, torch.tensor([-2.0]), normaliser=2)
    assert float(gain) == pytest.approx(-2.88)
    assert float(loss) == pytest.approx(7.8 / 2)


def test_tokens_that_were_not_sampled_weigh_nothing_even_where_they_are_absurd() -> None:
    new = torch.tensor([[math.inf, 0.5, 900.0]], requires_grad=True)
    sampled = torch.tensor([[False, True, False]])
    loss = policy_loss(new, torch.zeros(1, 3), sampled, torch.tensor([1.0]), normaliser=1)
    loss.backward()
    assert loss.item() == pytest.approx(-1.28)
    assert torch.isfinite(new.grad).all()


def test_on_the_policy_itself_the_gradient_is_that_of_plain_reinforce() -> None:
    model, rows = tiny_qwen3(), random_rows(4)
    batch, advantages = pad(rows), torch.tensor([0.75, -0.75, 0.5, -0.5])
    logp = model_logprobs(model, batch)
    plain = -(logp.sum(1) * advantages).sum() / 4
    expected = torch.autograd.grad(plain, list(model.parameters()), retain_graph=True)
    loss = policy_loss(logp, logp.detach(), batch.sampled, advantages, normaliser=4)
    found = torch.autograd.grad(loss, list(model.parameters()))
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def plain_loss(
    model: Any, rollouts: Sequence[Sequence[TokenRow]], advantages: Sequence[float | None]
) -> Any:
    """The objective as its formula reads: a loop over rollouts, rows and tokens, no padding."""
    sums = []
    for rows, advantage in zip(rollouts, advantages, strict=True):
        if advantage is None:
            continue
        total = torch.zeros(())
        for row in rows:
            assert row.logprobs is not None
            logp = torch.log_softmax(model(torch.tensor([row.ids])).logits[0], -1)
            for at in (at for at, sampled in enumerate(row.sampled) if sampled):
                ratio = torch.exp(logp[at - 1, row.ids[at]] - row.logprobs[at])
                bounded = torch.clamp(ratio, 0.8, 1.28)
                total = total + torch.min(ratio * advantage, bounded * advantage)
        sums.append(total)
    return -torch.stack(sums).mean()


def test_loss_and_gradients_are_those_of_the_formula_over_rollouts_of_several_rows() -> None:
    """In three calls under a token budget, with a missing reward and ratios on either side."""
    model, rows = tiny_qwen3(), drifted(tiny_qwen3, random_rows(8, seed=3))
    rollouts = [rows[0:1], rows[1:4], rows[4:5], rows[5:7], rows[7:8]]
    rewards = [1.0, 0.0, None, 0.25, 0.75]
    advantages = group_advantages(["a"] * 5, rewards)
    expected = plain_loss(model, rollouts, advantages.values)
    wanted = torch.autograd.grad(expected, list(model.parameters()))

    flat = [
        (row, advantage)
        for members, advantage in zip(rollouts, advantages.values, strict=True)
        for row in members
        if advantage is not None
    ]
    total, clipped = 0.0, 0.0
    for indexes in batches([len(row.ids) for row, _ in flat], 60):
        batch = pad([flat[index][0] for index in indexes])
        gains = torch.tensor([flat[index][1] for index in indexes])
        logp = model_logprobs(model, batch)
        loss = policy_loss(
            logp, batch.logprobs, batch.sampled, gains, normaliser=advantages.rollouts
        )
        loss.backward()
        total += loss.item()
        clipped += ratio_figures(logp, batch.logprobs, batch.sampled, gains)["clipped"]
    assert total == pytest.approx(expected.item(), abs=1e-5)
    assert clipped > 0
    for parameter, gradient in zip(model.parameters(), wanted, strict=True):
        assert torch.allclose(parameter.grad, gradient, atol=1e-5)


def drifted(make: Any, rows: Sequence[TokenRow]) -> list[TokenRow]:
    """The rows as if a slightly different policy had drawn them."""
    torch.manual_seed(0)
    model = make()
    draw = random.Random(7)
    out = []
    for row in rows:
        with torch.no_grad():
            logp = model_logprobs(model, pad([TokenRow(row.ids, row.sampled, row.logprobs)]))[0]
        moved = [float(each) + draw.uniform(-0.5, 0.5) for each in logp]
        kept = tuple(each if drawn else 0.0 for each, drawn in zip(moved, row.sampled, strict=True))
        out.append(TokenRow(row.ids, row.sampled, kept))
    torch.manual_seed(0)
    return out


def test_figures_count_tokens_that_the_bounds_took_away() -> None:
    new = torch.tensor([[0.0, math.log(2), math.log(1.1), math.log(0.5)]])
    old, sampled = torch.zeros(1, 4), torch.tensor([[False, True, True, True]])
    up = ratio_figures(new, old, sampled, torch.tensor([1.0]))
    down = ratio_figures(new, old, sampled, torch.tensor([-1.0]))
    assert (up["tokens"], up["clipped"], down["clipped"]) == (3, 1, 1)
    assert up["gap_max"] == pytest.approx(math.log(2))
    expected = (2 - 1 - math.log(2)) + (1.1 - 1 - math.log(1.1)) + (0.5 - 1 - math.log(0.5))
    assert up["kl"] == pytest.approx(expected)
    nothing = ratio_figures(new, old, torch.zeros_like(sampled), torch.tensor([1.0]))
    assert nothing["tokens"] == 0


def test_a_batch_moves_as_a_whole() -> None:
    moved = pad(ROWS).to("cpu")
    assert isinstance(moved, Batch)
    assert moved.ids.device.type == "cpu"


def test_the_figures_of_a_step_leave_out_the_means_of_no_rollout_at_all() -> None:
    lost = [Episode("g", "t", (), None, "sandbox died") for _ in range(2)]
    found = step_figures(lost, group_advantages(["g"] * 2, [None] * 2))
    assert (found["scored"], found["missing"]) == (0, 2)
    assert not {"reward", "turns", "tokens", "submitted"} & set(found)
    worth = [*lost, Episode("g", "t", (), 0.0, figures={"turns": 3.0})]
    found = step_figures(worth, group_advantages(["g"] * 3, [None, None, 0.0]))
    assert (found["reward"], found["turns"]) == (0.0, 3.0)
