"""The losses, in their plain form: what the optimiser minimises, written to be read.

    distillation_loss     MOPD, SDPO and teacher-student: aggregate(weights * divergence(student, teacher))
    sampled_token_loss    the same by one sampled token: aggregate(weights * constant(log S/T) * log S)
    divergence_loss       what both end in: aggregate(weights * values that are there already)
    policy_gradient_loss  GRPO: aggregate(weights * clipped(ratio * advantage)); its kin: mopd.policy_losses

All end in `aggregate`, whose denominator may be a count over *all* ranks and micro-batches: then the losses
of the parts of a batch add up to the loss of the whole, however it was cut. Faster forms elsewhere answer to
these. Masked tokens may hold anything, NaN and out-of-range ids included; they reach neither the loss nor its
gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from mopd.divergence import LOG_FLOOR, Support, Tail, divergence, gather_logprobs, is_distribution, wide
from mopd.importance import ratio, truncated_weights

Aggregation = Literal["token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"]


def distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    tokens: Tensor,
    response_mask: Tensor,
    *,
    alpha: float = 0.5,
    topk: int | None = 100,
    tail: Tail = "bucket",
    support: Support = "student",
    old_logprobs: Tensor | None = None,
    is_clip: float | None = None,
    importance_weights: Tensor | None = None,
    sequence_mask: Tensor | None = None,
    step_ids: Tensor | None = None,
    aggregation: Aggregation = "token-mean",
    denominator: float | Tensor | None = None,
) -> Tensor:
    """The distillation loss of MOPD (arXiv 2605.12652).

    At every token that the student sampled, its divergence from a teacher who reads the same response after
    having seen peers; weighted, then averaged.

    Args:
        student_logits, teacher_logits: `[B, T, V]`, any float dtype, at the positions that predict `tokens`,
            already divided by the temperature. The teacher is a constant.
        tokens: `[B, T]` sampled ids, needed by `is_clip` only.
        response_mask: `[B, T]`, non-zero for tokens of the response.
        alpha, topk, tail, support: see `mopd.divergence.divergence`.
        old_logprobs: `[B, T]` log-probs of `tokens` when the step began; None if the student has not moved
            since, so that their ratio is 1.
        is_clip: weight each token by min(pi / pi_old, is_clip), detached. None for no such weight.
        importance_weights: `[B, T]` further weights, detached; see `mopd.importance`.
        sequence_mask: `[B]`, zero for sequences whose teacher saw no more than the student did.
        step_ids: `[B, T]`, reasoning step of each token, -1 for padding, which is masked. After weighting, a
            token's value becomes the mean over its step, which changes neither the loss nor its gradient:
            see `step_means`.
        aggregation, denominator: see `aggregate`; sequences that are masked out do not count.

    Returns: a scalar, float32 (float64 for float64 logits); 0, with zero gradient, if all is masked.

    Raises ValueError on a wrong shape, or an option outside its range.
    """
    mask_B_T = _loss_mask(response_mask, sequence_mask, step_ids)
    shaped("tokens", tokens, mask_B_T.shape)
    values_B_T = token_divergence(
        student_logits, teacher_logits, mask_B_T, alpha=alpha, topk=topk, tail=tail, support=support
    )
    # Without `is_clip` nobody looks at the log-probs of the tokens.
    logprobs_B_T = values_B_T if is_clip is None else token_logprobs(student_logits, tokens.where(mask_B_T, 0))
    return divergence_loss(
        values_B_T,
        logprobs_B_T.detach(),
        mask_B_T,
        old_logprobs=old_logprobs,
        is_clip=is_clip,
        importance_weights=importance_weights,
        step_ids=step_ids,
        aggregation=aggregation,
        denominator=denominator,
    )


def divergence_loss(
    values: Tensor,
    logprobs: Tensor,
    response_mask: Tensor,
    *,
    old_logprobs: Tensor | None = None,
    is_clip: float | None = None,
    importance_weights: Tensor | None = None,
    sequence_mask: Tensor | None = None,
    step_ids: Tensor | None = None,
    aggregation: Aggregation = "token-mean",
    denominator: float | Tensor | None = None,
) -> Tensor:
    """What `distillation_loss` makes of divergences `[B, T]`, wherever they were computed: weighted, then averaged.

    Args:
        values: `[B, T]`, differentiable.
        logprobs: `[B, T]` of the sampled tokens under the student, needed by `is_clip` only; a constant.
        response_mask and the options: as in `distillation_loss`.

    Returns: a scalar; 0, with zero gradient, if all is masked. Raises ValueError on a wrong shape or option.
    """
    mask_B_T = _loss_mask(response_mask, sequence_mask, step_ids)
    weights_B_T = None if is_clip is None else _moved_weights(logprobs, old_logprobs, is_clip)
    weighted_B_T = _weighted(
        shaped("values", values, mask_B_T.shape), mask_B_T, (weights_B_T, importance_weights), step_ids
    )
    return aggregate(weighted_B_T, mask_B_T, aggregation, denominator)


def sampled_token_loss(
    student_logprobs: Tensor,
    teacher_logprobs: Tensor,
    response_mask: Tensor,
    *,
    old_logprobs: Tensor | None = None,
    is_clip: float | None = None,
    importance_weights: Tensor | None = None,
    sequence_mask: Tensor | None = None,
    step_ids: Tensor | None = None,
    aggregation: Aggregation = "token-mean",
    denominator: float | Tensor | None = None,
) -> Tensor:
    """Reverse KL(S || T) estimated from the sampled tokens alone (published `full_logit_distillation=False`).

    A token y costs c log S(y), where c = log S(y) - log T(y) is a constant. The value means little; its
    gradient, over y ~ S, is on average that of KL(S || T) at every position (the score function has mean 0).
    It is a policy gradient whose advantage is log T - log S: OPD, TOPD and POPD (arXiv 2605.31490).

    Args:
        student_logprobs: `[B, T]` log-probs of the sampled tokens, differentiable.
        teacher_logprobs: `[B, T]` of the same tokens under the teacher; a constant. Tokens to which it gives no
            probability at all, or none that is a number, cost nothing.
        response_mask and the options: as in `distillation_loss`; there is no alpha, for this is alpha = 1.

    Returns: a scalar; 0, with zero gradient, if all is masked. Raises ValueError on a wrong shape or option.
    """
    mask_B_T = _loss_mask(response_mask, sequence_mask, step_ids)
    rated_B_T = mask_B_T & is_rated(shaped("teacher_logprobs", teacher_logprobs, mask_B_T.shape))
    student_N = wide(shaped("student_logprobs", student_logprobs, mask_B_T.shape)[rated_B_T])
    teacher_N = wide(teacher_logprobs[rated_B_T])
    return divergence_loss(
        placed((student_N - teacher_N).detach() * student_N, rated_B_T),
        student_logprobs.detach(),
        mask_B_T,
        old_logprobs=old_logprobs,
        is_clip=is_clip,
        importance_weights=importance_weights,
        step_ids=step_ids,
        aggregation=aggregation,
        denominator=denominator,
    )


def policy_gradient_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    *,
    clip_ratio_low: float = 0.2,
    clip_ratio_high: float = 0.28,
    clip_ratio_c: float = 3.0,
    importance_weights: Tensor | None = None,
    aggregation: Aggregation = "token-mean",
    denominator: float | Tensor | None = None,
) -> Tensor:
    """The clipped surrogate of PPO (arXiv 1707.06347), as GRPO uses it.

    The range is asymmetric (DAPO, arXiv 2503.14476) and the clip dual (arXiv 1912.09729). With
    rho = pi / pi_old a token costs max(-A rho, -A clip(rho, 1 - low, 1 + high)), and where A < 0 at most
    -c A: a bad token that has become far likelier does not pull without bound.

    Args:
        logprobs: `[B, T]` log-probs of the sampled tokens under the student, differentiable.
        old_logprobs: `[B, T]` the same when the step began; a constant.
        advantages: `[B, T]`, or `[B]` for one per sequence (`mopd.advantages`); a constant.
        response_mask: `[B, T]`, non-zero for tokens of the response.
        clip_ratio_low, clip_ratio_high: how far below and above 1 the ratio still pays; both >= 0, low <= 1.
        clip_ratio_c: the dual clip, > 1.
        importance_weights: `[B, T]` weights of rollout correction, detached.
        aggregation, denominator: see `aggregate`.

    Returns: a scalar; 0, with zero gradient, if all is masked. Raises ValueError on a wrong shape or range.
    """
    if not clip_ratio_c > 1.0:
        raise ValueError(f"clip_ratio_c is {clip_ratio_c!r}; it must exceed 1")
    tokens = policy_tokens(logprobs, old_logprobs, advantages, response_mask)
    advantages_N = tokens.advantages_N
    ratio_N = ratio(tokens.logprobs_N, tokens.old_logprobs_N)
    values_N = clipped_surrogate(ratio_N, advantages_N, clip_ratio_low, clip_ratio_high)
    bounded_N = torch.minimum(values_N, -clip_ratio_c * advantages_N)
    values_N = torch.where(advantages_N < 0.0, bounded_N, values_N)
    return tokens.aggregate(values_N, importance_weights, aggregation, denominator)


def aggregate(
    values_B_T: Tensor,
    mask_B_T: Tensor,
    mode: Aggregation = "token-mean",
    denominator: float | Tensor | None = None,
) -> Tensor:
    """One number from the values of all unmasked tokens, in one of the four published ways:

        token-mean               sum of tokens                   / number of tokens
        seq-mean-token-sum       sum of tokens                   / number of sequences that have a token
        seq-mean-token-mean      sum of the sequences' means     / number of sequences that have a token
        seq-mean-token-sum-norm  sum of tokens                   / T, the width, whatever was sampled

    Args:
        values_B_T: `[B, T]` float.
        mask_B_T: `[B, T]`, non-zero where a value counts.
        denominator: replaces what stands after the slash: the global count, or for the last mode the chosen
            scale. Zero (nothing anywhere) divides by one.

    Returns: a scalar. Raises ValueError on an unknown mode, unequal shapes or a negative denominator.
    """
    mask_B_T = shaped("mask", mask_B_T, values_B_T.shape).bool()
    values_B_T = wide(values_B_T).where(mask_B_T, 0.0)
    lengths_B = mask_B_T.sum(dim=-1)
    sequences = (lengths_B > 0).sum()
    counts: dict[str, Tensor] = {
        "token-mean": lengths_B.sum(),
        "seq-mean-token-sum": sequences,
        "seq-mean-token-mean": sequences,
        "seq-mean-token-sum-norm": torch.tensor(values_B_T.shape[-1]),
    }
    if mode not in counts:
        raise ValueError(f"aggregation is {mode!r}; it must be one of {', '.join(get_args(Aggregation))}")
    if mode == "seq-mean-token-mean":
        values_B_T = values_B_T / lengths_B.clamp(min=1)[:, None]
    divisor = counts[mode] if denominator is None else torch.as_tensor(denominator)
    if not bool(divisor >= 0):
        raise ValueError(f"denominator is {denominator!r}; it must be a count, so not negative")
    return values_B_T.sum() / divisor.to(values_B_T).where(divisor > 0, 1.0)


def token_divergence(
    student_logits: Tensor,
    teacher_logits: Tensor,
    mask_B_T: Tensor,
    *,
    alpha: float = 0.5,
    topk: int | None = 100,
    tail: Tail = "bucket",
    support: Support = "student",
) -> Tensor:
    """The divergence at every unmasked token, unweighted: logits `[B, T, V]` to `[B, T]`, 0 where masked.

    Only unmasked positions are computed, and where the teacher's logits are no distribution the divergence is 0,
    without gradient. Arguments and errors as in `mopd.divergence.divergence`.
    """
    shaped("teacher_logits", teacher_logits, student_logits.shape)
    mask_B_T = shaped("mask", mask_B_T, student_logits.shape[:-1]).bool() & is_distribution(teacher_logits)
    values_N = divergence(
        student_logits[mask_B_T], teacher_logits[mask_B_T], alpha=alpha, topk=topk, tail=tail, support=support
    )
    return placed(values_N, mask_B_T)


def token_logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    """The log-prob of each token under logits `[..., V]`, ids `[...]` to `[...]`; differentiable."""
    shaped("tokens", tokens, logits.shape[:-1])
    return gather_logprobs(logits, tokens[..., None].long())[..., 0]


def is_rated(logprobs: Tensor) -> Tensor:
    """Where log-probs of single tokens are numbers above that of zero probability, `[...]` to `[...]` bool."""
    return (logprobs > LOG_FLOOR) & torch.isfinite(logprobs)


def step_means(values_B_T: Tensor, step_ids: Tensor, mask_B_T: Tensor) -> Tensor:
    """Each unmasked token's value replaced by the mean over the unmasked tokens of its step in its sequence.

    All `[B, T]`; 0 where masked or where the step id is negative. This is the published `step_level_kl`.

    It keeps the sum over every step, and every aggregation gives one weight to all tokens of a sequence, so
    loss and gradient stay what they were, whatever weights the values already carry: as published, weights
    come first. What would change both is to weigh after the mean (unless weights are equal within a step);
    an aggregation that is not linear; or step ids of -1 inside a response, which mask tokens.
    """
    belongs_B_T = mask_B_T.bool() & (shaped("step_ids", step_ids, values_B_T.shape) >= 0)
    if not bool(belongs_B_T.any()):
        return values_B_T.where(belongs_B_T, 0.0)
    rows_N = belongs_B_T.nonzero()[:, 0]
    steps_N_2 = torch.stack([rows_N, step_ids[belongs_B_T]], dim=-1)
    _, step_N, sizes = torch.unique(steps_N_2, dim=0, return_inverse=True, return_counts=True)
    sums = values_B_T.new_zeros(len(sizes)).index_add(0, step_N, values_B_T[belongs_B_T])
    return placed((sums / sizes)[step_N], belongs_B_T)


@dataclass(frozen=True)
class PolicyTokens:
    """What a policy loss needs of a batch: its N unmasked tokens, in order; see `policy_tokens`."""

    mask_B_T: Tensor
    """[B, T] bool."""
    logprobs_N: Tensor
    """[N], differentiable."""
    old_logprobs_N: Tensor
    """[N], constant."""
    advantages_N: Tensor
    """[N], constant."""

    def aggregate(
        self,
        values_N: Tensor,
        importance_weights: Tensor | None,
        aggregation: Aggregation,
        denominator: float | Tensor | None,
    ) -> Tensor:
        """The loss of the tokens' values `[N]`, times the weights `[B, T]`, detached, if there are any."""
        if importance_weights is not None:
            weights_B_T = shaped("importance_weights", importance_weights, self.mask_B_T.shape)
            values_N = values_N * weights_B_T[self.mask_B_T].detach()
        return aggregate(placed(values_N, self.mask_B_T), self.mask_B_T, aggregation, denominator)


def policy_tokens(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, response_mask: Tensor) -> PolicyTokens:
    """The arguments that all policy losses share (see `policy_gradient_loss`), checked and unmasked."""
    mask_B_T = _loss_mask(response_mask)
    shape = mask_B_T.shape
    per_token = advantages[:, None].expand(shape) if advantages.shape == shape[:1] else advantages
    return PolicyTokens(
        mask_B_T=mask_B_T,
        logprobs_N=shaped("logprobs", logprobs, shape)[mask_B_T],
        old_logprobs_N=shaped("old_logprobs", old_logprobs, shape)[mask_B_T].detach(),
        advantages_N=shaped("advantages", per_token, shape)[mask_B_T].detach(),
    )


def clipped_surrogate(ratio_N: Tensor, advantages_N: Tensor, low: float, high: float) -> Tensor:
    """max(-A rho, -A clip(rho, 1 - low, 1 + high)), `[N]`. Raises ValueError unless 0 <= low <= 1, high >= 0."""
    if not (0.0 <= low <= 1.0 and high >= 0.0):
        raise ValueError(f"clip ratios {low!r}, {high!r}: need 0 <= low <= 1 and high >= 0")
    return torch.maximum(-advantages_N * ratio_N, -advantages_N * ratio_N.clamp(1.0 - low, 1.0 + high))


def placed(values_N: Tensor, mask_B_T: Tensor) -> Tensor:
    """The values of the N unmasked tokens in their places, 0 elsewhere, `[B, T]`."""
    return values_N.new_zeros(mask_B_T.shape).masked_scatter(mask_B_T, values_N)


def shaped(name: str, tensor: Tensor, shape: torch.Size) -> Tensor:
    """The tensor, if it has this shape; a ValueError that names it and both shapes, if not."""
    if tensor.shape != shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; it must be {tuple(shape)}")
    return tensor


def _loss_mask(response_mask: Tensor, sequence_mask: Tensor | None = None, step_ids: Tensor | None = None) -> Tensor:
    """Where the loss looks, `[B, T]` bool: in the response, in a sequence that can learn, in a step."""
    if response_mask.dim() != 2:
        raise ValueError(f"response_mask has shape {tuple(response_mask.shape)}; it must be [B, T]")
    mask_B_T = response_mask.bool()
    if sequence_mask is not None:
        mask_B_T = mask_B_T & shaped("sequence_mask", sequence_mask, mask_B_T.shape[:1]).bool()[:, None]
    if step_ids is not None:
        mask_B_T = mask_B_T & (shaped("step_ids", step_ids, mask_B_T.shape) >= 0)
    return mask_B_T


def _moved_weights(logprobs_B_T: Tensor, old_logprobs: Tensor | None, is_clip: float) -> Tensor:
    """min(pi / pi_old, is_clip), `[B, T]`; without old log-probs the student has not moved."""
    old_B_T = logprobs_B_T if old_logprobs is None else shaped("old_logprobs", old_logprobs, logprobs_B_T.shape)
    return truncated_weights(logprobs_B_T, old_B_T, is_clip)


def _weighted(
    values_B_T: Tensor, mask_B_T: Tensor, weights: tuple[Tensor | None, ...], step_ids: Tensor | None
) -> Tensor:
    """The values times every weight that is given; then their step means, where there are steps."""
    for weights_B_T in weights:
        if weights_B_T is not None:
            values_B_T = values_B_T * shaped("importance_weights", weights_B_T, mask_B_T.shape).detach()
    return values_B_T if step_ids is None else step_means(values_B_T, step_ids, mask_B_T)
