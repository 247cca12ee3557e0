"""The objective of the paper: leave-one-out advantages, clipped ratios, token sums, rollout mean.

    J = 1/N  sum over rollouts i  sum over sampled tokens t of
        min(ratio_t * A_i, clip(ratio_t, 1 - clip_low, 1 + clip_high) * A_i)
    ratio_t = exp(logp_new_t - logp_old_t)
    A_i = r_i - mean of the other rewards of the group

No KL term, no entropy term, no division by lengths or by the spread of rewards. N is the number of
rollouts that have an advantage: one whose reward is missing is no sample, neither good nor bad.

Sources: RLOO, Ahmadian et al. 2024, arXiv:2402.14740; the clipped ratio, Schulman et al. 2017,
arXiv:1707.06347; the wider upper bound ("clip-higher"), Yu et al. 2025, arXiv:2503.14476.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from sandlot.core.errors import ConfigError
from sandlot.core.tokens import TokenRow

CLIP_LOW = 0.2
CLIP_HIGH = 0.28

FEW_POSITIONS = 256
"""So few logits are kept for the backward pass: to make them again would cost more than they do."""

HEAD_CHUNK = 1024
"""Positions whose logits are held at once: 1,024 x 262,144 x 4 bytes is 1 GiB."""


def leave_one_out(rewards: Sequence[float | None]) -> list[float | None]:
    """Each rollout's reward minus the mean reward of the other rollouts of its group.

    Args:
        rewards: of the rollouts of one group, unitless; None is a reward that is missing.
    Returns:
        One advantage a rollout. A missing reward has none and leaves the others' baseline alone.
        Equal rewards get exact zeros; so does a reward with no other to compare it with.
    Source: RLOO, Ahmadian et al. 2024, arXiv:2402.14740.
    """
    present = [reward for reward in rewards if reward is not None]
    if len(present) < 2 or min(present) == max(present):
        return [None if reward is None else 0.0 for reward in rewards]
    total, others = sum(present), len(present) - 1
    return [None if reward is None else reward - (total - reward) / others for reward in rewards]


@dataclass(frozen=True, slots=True)
class Advantages:
    """The advantages of a step, one a rollout in the order given, and why some teach nothing.

    `equal` counts groups whose present rewards are all the same, `alone` those with fewer than two.
    """

    values: tuple[float | None, ...]
    groups: int
    equal: int
    alone: int
    missing: int

    @property
    def rollouts(self) -> int:
        """N of the objective: the rollouts that have an advantage."""
        return len(self.values) - self.missing


def group_advantages(groups: Sequence[str], rewards: Sequence[float | None]) -> Advantages:
    """`leave_one_out` within each group; `groups[i]` names the group of `rewards[i]`."""
    members: dict[str, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    values: list[float | None] = [None] * len(rewards)
    equal = alone = 0
    for indexes in members.values():
        present = [reward for i in indexes if (reward := rewards[i]) is not None]
        alone += len(present) < 2
        equal += len(present) >= 2 and min(present) == max(present)
        for i, value in zip(indexes, leave_one_out([rewards[i] for i in indexes]), strict=True):
            values[i] = value
    missing = sum(reward is None for reward in rewards)
    return Advantages(tuple(values), len(members), equal, alone, missing)


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows padded on the right to one length; every tensor has the shape [rows, length].

    A causal model gives real tokens the same values with the padding as without it, and needs no
    attention mask for that: no real position looks to its right. `logprobs` is fp32, and 0 where
    nothing was drawn.
    """

    ids: Tensor
    sampled: Tensor
    logprobs: Tensor

    def to(self, device: torch.device | str) -> Batch:
        return Batch(self.ids.to(device), self.sampled.to(device), self.logprobs.to(device))


def pad(rows: Sequence[TokenRow], pad_id: int = 0, *, need_logprobs: bool = True) -> Batch:
    """One batch of rows. Without `need_logprobs`, those that were not recorded are 0.

    Raises:
        ValueError: no rows, or a row that was recorded without log probabilities.
    """
    if not rows:
        raise ValueError("no rows to pad")
    shape = (len(rows), max(len(row.ids) for row in rows))
    ids = torch.full(shape, pad_id, dtype=torch.long)
    sampled = torch.zeros(shape, dtype=torch.bool)
    logprobs = torch.zeros(shape, dtype=torch.float32)
    for index, row in enumerate(rows):
        if row.logprobs is None and need_logprobs:
            raise ValueError(f"row {index} was recorded without log probabilities")
        length = len(row.ids)
        ids[index, :length] = torch.tensor(row.ids, dtype=torch.long)
        sampled[index, :length] = torch.tensor(row.sampled, dtype=torch.bool)
        if row.logprobs is not None:
            logprobs[index, :length] = torch.tensor(row.logprobs, dtype=torch.float32)
    return Batch(ids, sampled, logprobs.masked_fill(~sampled, 0.0))


def batches(lengths: Sequence[int], token_budget: int) -> Iterator[list[int]]:
    """Indexes into `lengths`, longest first, so that rows x longest row stays in the budget.

    A row that is longer than the budget comes alone. Rows of like length share a batch, so little
    is spent on padding; the first batch is the one that needs the most memory.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    while order:
        fit = max(1, token_budget // max(1, lengths[order[0]]))
        yield order[:fit]
        order = order[fit:]


_LOGIT_SCALES = ("logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier")

Head = Callable[[Tensor], Tensor]
"""From hidden states [positions, width] to logits [positions, vocabulary]; `lm_head` is one."""


def sequence_logprobs(
    hidden: Tensor,
    head: Head,
    ids: Tensor,
    sampled: Tensor,
    temperature: float = 1.0,
    chunk: int = HEAD_CHUNK,
) -> Tensor:
    """Log probability (nats) of each sampled token, under the policy at `temperature`.

    The head runs only where the next token was sampled, `chunk` positions at a time, and the logits
    of more than a few positions are made again in the backward pass: they never all exist at once.

    Args:
        hidden: last hidden states, [rows, length, width].
        head: makes logits of hidden states; the log-softmax over them is in fp32.
        ids, sampled: [rows, length]; the first position of a row is never a sampled one.
    Returns:
        fp32, [rows, length], aligned with `ids`; 0 where nothing was sampled.
    """
    if temperature <= 0:
        raise ValueError(f"a policy at temperature {temperature} has no log probabilities")
    if bool(sampled[:, 0].any()):
        raise ValueError("the first token of a row has nothing before it to be drawn from")
    where = sampled[:, 1:]
    states, targets = hidden[:, :-1][where], ids[:, 1:][where]
    parts = [
        _checkpointed(head, some, wanted, temperature)
        for some, wanted in zip(
            torch.split(states, chunk), torch.split(targets, chunk), strict=True
        )
    ]
    drawn = torch.cat(parts)
    out = torch.zeros(ids.shape, dtype=torch.float32, device=hidden.device)
    return out.masked_scatter(sampled, drawn)


def _checkpointed(head: Head, states: Tensor, targets: Tensor, temperature: float) -> Tensor:
    if not torch.is_grad_enabled() or len(states) <= FEW_POSITIONS:
        return _chosen(head, states, targets, temperature)
    chosen: Tensor = checkpoint(_chosen, head, states, targets, temperature, use_reentrant=False)
    return chosen


def _chosen(head: Head, states: Tensor, targets: Tensor, temperature: float) -> Tensor:
    logits = head(states).float()
    if temperature != 1:
        logits = logits / temperature
    return -functional.cross_entropy(logits, targets, reduction="none")


def head_of(model: Any) -> Head:
    """The output head of a transformers causal model, with or without a LoRA adapter.

    A model that bends its logits after the head (`final_logit_softcapping`) has them bent here too.

    Raises:
        ConfigError: a model that multiplies its logits after the head: each family does so in a
            way of its own, and a wrong guess would train another policy than the one that drew.
    """
    config = model.config.get_text_config()
    for name in _LOGIT_SCALES:
        if getattr(config, name, None) not in (None, 1, 1.0):
            raise ConfigError(f"{config.model_type} scales its logits ({name}), which is not known")
    linear = model.get_output_embeddings()
    cap = getattr(config, "final_logit_softcapping", None)

    def head(states: Tensor) -> Tensor:
        logits: Tensor = linear(states)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    return head


def model_logprobs(model: Any, batch: Batch, temperature: float = 1.0) -> Tensor:
    """`sequence_logprobs` of a transformers causal model, a `PeftModel` around one included.

    Raises:
        ConfigError: as `head_of`.
    """
    head = head_of(model)
    hidden = model.get_decoder()(input_ids=batch.ids, use_cache=False).last_hidden_state
    return sequence_logprobs(hidden, head, batch.ids, batch.sampled, temperature)


def policy_loss(
    logp_new: Tensor,
    logp_old: Tensor,
    sampled: Tensor,
    advantages: Tensor,
    *,
    normaliser: float,
    clip_low: float = CLIP_LOW,
    clip_high: float = CLIP_HIGH,
) -> Tensor:
    """What a step minimises, or the share of it that these rows have: shares add up to the whole.

    A rollout's tokens are summed over all its rows, and the sums are averaged over rollouts. So a
    rollout may lie in several rows, and the rows of a step in several calls, as long as each row
    has its rollout's advantage and each call the `normaliser` of the step.

    Args:
        logp_new, logp_old: [rows, length], nats; old ones are those the tokens were drawn under.
        sampled: [rows, length], True where the policy drew the token.
        advantages: [rows], each the advantage of the row's rollout.
        normaliser: the step's number of rollouts that have an advantage (`Advantages.rollouts`).
    """
    difference = (logp_new - logp_old).masked_fill(~sampled, 0.0)
    ratio = difference.exp()
    gain = advantages.to(ratio)[:, None]
    kept = torch.minimum(ratio * gain, ratio.clamp(1 - clip_low, 1 + clip_high) * gain)
    return -kept.masked_fill(~sampled, 0.0).sum() / normaliser


def ratio_figures(
    logp_new: Tensor,
    logp_old: Tensor,
    sampled: Tensor,
    advantages: Tensor,
    clip_low: float = CLIP_LOW,
    clip_high: float = CLIP_HIGH,
) -> Mapping[str, float]:
    """Sums over sampled tokens, for curves: divide by `tokens` once all batches are added up.

    `clipped` counts tokens whose gradient the bounds took away, `kl` is the k3 estimate (nats) of
    KL(old || new), `gap_max` the greatest |logp_new - logp_old|, a maximum and not a sum.
    """
    if not bool(sampled.any()):
        return {"tokens": 0.0, "clipped": 0.0, "kl": 0.0, "gap_max": 0.0}
    gap = (logp_new - logp_old).detach()[sampled]
    ratio, gain = gap.exp(), advantages.to(gap)[:, None].expand_as(logp_new)[sampled]
    clipped = ((ratio > 1 + clip_high) & (gain > 0)) | ((ratio < 1 - clip_low) & (gain < 0))
    return {
        "tokens": float(gap.numel()),
        "clipped": float(clipped.sum()),
        "kl": float((ratio - 1 - gap).sum()),
        "gap_max": float(gap.abs().max()),
    }
