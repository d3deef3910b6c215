"""Importance weights: tokens came from one policy and train another, so each is worth the ratio of the two.

Truncated importance sampling (Ionides, 2008) keeps the ratio below a threshold: little bias for much less
variance. It serves twice: for a policy that has moved since the step began (`is_clip`), and for the gap
between the sampling engine and the training engine (rollout correction, by token or by sequence). Log-probs
are in nats; weights carry no gradient; ratios are kept between exp(-20) and exp(20).
"""

from __future__ import annotations

from dataclasses import dataclass

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
    return _product(difference_B_T).clamp(max=threshold)[:, None].expand_as(difference_B_T)


@dataclass(frozen=True)
class Mismatch:
    """How the policy that is trained differs from the one that sampled: N unmasked tokens of S sequences that have one.

    Constants, in float32 or wider. Ratios are pi / mu, not truncated.
    """

    log_ratios_N: Tensor
    """[N], log pi(y) - log mu(y) in nats."""
    ratios_N: Tensor
    """[N], of tokens."""
    products_S: Tensor
    """[S], of whole sequences: the products over their tokens."""
    lengths_S: Tensor
    """[S] int64, tokens."""
    nll_S: Tensor
    """[S], -log pi(y), mean over the sequence's tokens: the log of its perplexity."""
    behaviour_nll_S: Tensor
    """[S], -log mu(y), likewise."""
    means_S: Tensor
    """[S], mean token ratio of the sequence."""

    @property
    def products_N(self) -> Tensor:
        """[N], the sequence's product at each of its tokens."""
        return self.products_S.repeat_interleave(self.lengths_S)


def mismatch(logprobs_B_T: Tensor, behaviour_logprobs_B_T: Tensor, mask_B_T: Tensor) -> Mismatch:
    """What both policies' log-probs `[B, T]` tell of their difference; masked tokens may hold anything."""
    mask_B_T = mask_B_T.bool()
    difference_B_T = _masked_difference(logprobs_B_T, behaviour_logprobs_B_T, mask_B_T)
    ratios_B_T = difference_B_T.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    lengths_B = mask_B_T.sum(dim=-1)
    kept_B = lengths_B > 0

    def means(values_B_T: Tensor) -> Tensor:
        return wide(values_B_T).detach().where(mask_B_T, 0.0).sum(dim=-1)[kept_B] / lengths_B[kept_B]

    return Mismatch(
        log_ratios_N=difference_B_T[mask_B_T],
        ratios_N=ratios_B_T[mask_B_T],
        products_S=_product(difference_B_T)[kept_B],
        lengths_S=lengths_B[kept_B],
        nll_S=means(-logprobs_B_T),
        behaviour_nll_S=means(-behaviour_logprobs_B_T),
        means_S=means(ratios_B_T),
    )


def _product(masked_difference_B_T: Tensor) -> Tensor:
    """The ratio of each whole sequence, `[B]`."""
    return masked_difference_B_T.sum(dim=-1).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def _masked_difference(logprobs_B_T: Tensor, behaviour_logprobs_B_T: Tensor, mask_B_T: Tensor) -> Tensor:
    """log pi(y) - log mu(y), detached, and 0 where masked, whatever stands there."""
    return (wide(logprobs_B_T) - wide(behaviour_logprobs_B_T)).detach().masked_fill(~mask_B_T.bool(), 0.0)


def _check_threshold(threshold: float) -> None:
    if not threshold > 0.0:
        raise ValueError(f"threshold is {threshold!r}; it must be positive (the published value is 2.0)")
