"""Learning from verdicts without a ratio: preferred responses (DPO, SimPO), and successful ones (verified SFT).

Within a group, every response is preferred to every response of strictly smaller reward:

    pairs = preference_pairs(rewards, group_ids)               [M, 2] rows (chosen, rejected)
    h     = dpo_rewards(...) or simpo_rewards(...)             [B] how the student itself rates each response
    loss  = pairwise_loss(h, pairs, denominator=global count)  sum of -log sigmoid(h_chosen - h_rejected - margin)

The denominators count pairs (or successes) over *all* ranks and micro-batches, so that the losses of the parts add
up. Pairs do not cross groups, so a group must not be cut between micro-batches. (Published, every group weighs the
same, one without pairs included; for that, give each group as one micro-batch with the denominator
number of groups * its own pairs.) Masked tokens may hold anything.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import permutations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from mopd.advantages import known_groups
from mopd.divergence import wide
from mopd.losses import Aggregation, aggregate, shaped


def preference_pairs(rewards: Tensor, group_ids: Tensor | Sequence[Hashable]) -> Tensor:
    """All pairs of rows of one group in which the first has the strictly larger reward, `[M, 2]` int64.

    Args:
        rewards: `[B]`; NaN is unknown, and in no pair.
        group_ids: `[B]`, equal for rollouts of one occurrence of a prompt.

    A group of n rollouts with s successes, of binary reward, has s (n - s) pairs. Their number over the
    whole batch is the denominator of the losses. Raises ValueError as `mopd.advantages.group_relative`.
    """
    values = rewards.tolist()
    pairs = [
        (chosen, rejected)
        for members in known_groups(rewards, group_ids)
        for chosen, rejected in permutations(members, 2)
        if values[chosen] > values[rejected]
    ]
    return torch.tensor(pairs, dtype=torch.int64, device=rewards.device).reshape(-1, 2)


def dpo_rewards(logprobs: Tensor, reference_logprobs: Tensor, response_mask: Tensor, *, beta: float = 0.1) -> Tensor:
    """beta (log pi(y) - log pi_ref(y)) of whole responses, token log-probs `[B, T]` to `[B]` (arXiv 2305.18290).

    The reference is a constant. Raises ValueError on unequal shapes or beta <= 0.
    """
    _check_positive("beta", beta)
    reference_B_T = shaped("reference_logprobs", reference_logprobs, logprobs.shape).detach()
    return beta * (_summed(logprobs, response_mask) - _summed(reference_B_T, response_mask))


def simpo_rewards(logprobs: Tensor, response_mask: Tensor, *, beta: float = 2.0) -> Tensor:
    """beta times the mean log-prob of the response's tokens, `[B, T]` to `[B]`; no reference (arXiv 2405.14734).

    A response without tokens has 0. Raises ValueError on unequal shapes or beta <= 0.
    """
    _check_positive("beta", beta)
    lengths_B = response_mask.bool().sum(dim=-1).clamp(min=1)
    return beta * _summed(logprobs, response_mask) / lengths_B


def pairwise_loss(
    implicit_rewards_B: Tensor,
    pairs_M_2: Tensor,
    *,
    margin: float = 0.0,
    label_smoothing: float = 0.0,
    denominator: float | Tensor | None = None,
) -> Tensor:
    """The mean over pairs of -(1 - eps) log sigmoid(x) - eps log sigmoid(-x), x = h_chosen - h_rejected - margin.

    Args:
        implicit_rewards_B: `[B]`, of `dpo_rewards` or `simpo_rewards`.
        pairs_M_2: of `preference_pairs`.
        margin: how much more the chosen must be worth; SimPO's gamma, which beta does not multiply.
        label_smoothing: eps in [0, 0.5), the share of pairs thought to be the wrong way round.
        denominator: the global number of pairs; None for that of the pairs given. Zero divides by one.

    Returns: a scalar; 0, with zero gradient, without pairs. Raises ValueError on an option outside its range.
    """
    if not 0.0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing is {label_smoothing!r}; it must lie in [0, 0.5)")
    logits_M = _margins(wide(implicit_rewards_B), pairs_M_2) - margin
    values_M = -(1.0 - label_smoothing) * logsigmoid(logits_M) - label_smoothing * logsigmoid(-logits_M)
    return aggregate(values_M[None], torch.ones_like(values_M[None]), "token-mean", denominator)


def dpo_loss(
    logprobs: Tensor,
    reference_logprobs: Tensor,
    rewards: Tensor,
    group_ids: Tensor | Sequence[Hashable],
    response_mask: Tensor,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    denominator: float | Tensor | None = None,
) -> Tensor:
    """Direct preference optimisation over the pairs of each group; see the parts it is made of."""
    implicit_B = dpo_rewards(logprobs, reference_logprobs, response_mask, beta=beta)
    pairs_M_2 = preference_pairs(rewards, group_ids)
    return pairwise_loss(implicit_B, pairs_M_2, label_smoothing=label_smoothing, denominator=denominator)


def simpo_loss(
    logprobs: Tensor,
    rewards: Tensor,
    group_ids: Tensor | Sequence[Hashable],
    response_mask: Tensor,
    *,
    beta: float = 2.0,
    gamma: float = 1.0,
    label_smoothing: float = 0.0,
    denominator: float | Tensor | None = None,
) -> Tensor:
    """SimPO over the pairs of each group, gamma being the margin; see the parts it is made of."""
    implicit_B = simpo_rewards(logprobs, response_mask, beta=beta)
    pairs_M_2 = preference_pairs(rewards, group_ids)
    return pairwise_loss(implicit_B, pairs_M_2, margin=gamma, label_smoothing=label_smoothing, denominator=denominator)


def verified_sft_loss(
    logprobs: Tensor,
    successes: Tensor,
    response_mask: Tensor,
    *,
    length_normalize: bool = True,
    denominator: float | Tensor | None = None,
) -> Tensor:
    """The negative log-likelihood of the student's own successes.

    Args:
        logprobs: `[B, T]` of the sampled tokens, differentiable.
        successes: `[B]`, non-zero for a success; a rollout of unknown outcome is none.
        response_mask: `[B, T]`, non-zero for tokens of the response.
        length_normalize: the mean over a response's tokens, else their sum.
        denominator: the global number of successes (that have a token); None for that of the batch given.

    Returns: a scalar; 0, with zero gradient, without successes. Raises ValueError on a wrong shape.
    """
    mask_B_T = _successful(logprobs, successes, response_mask)
    mode: Aggregation = "seq-mean-token-mean" if length_normalize else "seq-mean-token-sum"
    return aggregate(-logprobs, mask_B_T, mode, denominator)


def _successful(logprobs: Tensor, successes: Tensor, response_mask: Tensor) -> Tensor:
    """The tokens of successful responses, `[B, T]` bool."""
    mask_B_T = shaped("response_mask", response_mask, logprobs.shape).bool()
    return mask_B_T & shaped("successes", successes, logprobs.shape[:1]).bool()[:, None]


def _summed(logprobs_B_T: Tensor, response_mask: Tensor) -> Tensor:
    """The log-prob of each response, `[B]`."""
    mask_B_T = shaped("response_mask", response_mask, logprobs_B_T.shape).bool()
    return wide(logprobs_B_T).where(mask_B_T, 0.0).sum(dim=-1)


def _margins(implicit_rewards_B: Tensor, pairs_M_2: Tensor) -> Tensor:
    """h_chosen - h_rejected, `[M]`."""
    return implicit_rewards_B[pairs_M_2[:, 0]] - implicit_rewards_B[pairs_M_2[:, 1]]


def _check_positive(name: str, value: float) -> None:
    if not value > 0.0:
        raise ValueError(f"{name} is {value!r}; it must be positive")
