"""Importance weights: tokens came from one policy and train another, so each is worth the ratio of the two.

Truncated importance sampling (Ionides, 2008) keeps the ratio below a threshold: little bias for much less
variance. It serves twice: for a policy that has moved since the step began (`is_clip`), and for the gap
between the sampling engine and the training engine (rollout correction, by token or by sequence). Log-probs
are in nats; weights carry no gradient; ratios are kept between exp(-20) and exp(20).
"""

from __future__ import annotations

from torch import Tensor

from mopd.divergence import wide

MAX_LOG_RATIO = 20.0


def ratio(logprobs: Tensor, behaviour_logprobs: Tensor) -> Tensor:
    """pi(y) / mu(y), `[...]`, from the log-probs of the trained and the sampling policy; differentiable."""
    return (wide(logprobs) - wide(behaviour_logprobs)).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def truncated_weights(logprobs: Tensor, behaviour_logprobs: Tensor, threshold: float) -> Tensor:
    """min(pi(y) / mu(y), threshold) for every token, detached; `[...]` log-probs to `[...]` weights.

    No lower bound and no normalisation. Raises ValueError unless the threshold is positive.
    """
    _check_threshold(threshold)
    return ratio(logprobs.detach(), behaviour_logprobs.detach()).clamp(max=threshold)


def truncated_sequence_weights(
    logprobs_B_T: Tensor, behaviour_logprobs_B_T: Tensor, mask_B_T: Tensor, threshold: float
) -> Tensor:
    """min(product over the sequence's unmasked tokens of pi(y) / mu(y), threshold), detached.

    Returns `[B, T]`, the sequence's weight at each of its tokens, so that it stands wherever token weights
    do; a sequence without tokens has weight min(1, threshold). Raises ValueError unless the threshold is
    positive.
    """
    _check_threshold(threshold)
    difference_B_T = _masked_difference(logprobs_B_T, behaviour_logprobs_B_T, mask_B_T)
    log_ratio_B_1 = difference_B_T.sum(dim=-1, keepdim=True).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return log_ratio_B_1.exp().clamp(max=threshold).expand_as(difference_B_T)


def _masked_difference(logprobs_B_T: Tensor, behaviour_logprobs_B_T: Tensor, mask_B_T: Tensor) -> Tensor:
    """log pi(y) - log mu(y), detached, and 0 where masked, whatever stands there."""
    return (wide(logprobs_B_T) - wide(behaviour_logprobs_B_T)).detach().masked_fill(~mask_B_T.bool(), 0.0)


def _check_threshold(threshold: float) -> None:
    if not threshold > 0.0:
        raise ValueError(f"threshold is {threshold!r}; it must be positive (the published value is 2.0)")
