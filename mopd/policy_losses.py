"""Policy losses beside PPO's: how far a token may push the policy that sampled it.

All are called as `mopd.losses.policy_gradient_loss` is, and are named in `POLICY_LOSSES`. With the ratio
rho = pi / mu of the trained to the older policy at a token, A its advantage:

    vanilla  max(-A rho, -A clip(rho))       the ratio of each token is clipped (PPO, GRPO, DAPO)
    gspo     the same, rho of the sequence   one ratio per response, the geometric mean of its tokens'
    dppo     -A rho, or nothing              a token whose *probability* has moved too far is dropped
    drpo     -A rho + |A| mu (rho - 1)^2/2d  ... is drawn back, the more the farther

At rho = 1 the gradient of each is the policy gradient, -A grad log pi. Letters as in `mopd`; N counts the
unmasked tokens. Log-probs are in nats; log-ratios are kept within 20 of 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

from mopd.divergence import wide
from mopd.importance import MAX_LOG_RATIO, ratio
from mopd.losses import Aggregation, clipped_surrogate, placed, policy_gradient_loss, policy_tokens

Trust = Literal["tv", "kl"]


def gspo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    *,
    clip_ratio_low: float = 3e-4,
    clip_ratio_high: float = 4e-4,
    importance_weights: Tensor | None = None,
    aggregation: Aggregation = "seq-mean-token-mean",
    denominator: float | Tensor | None = None,
) -> Tensor:
    """Group sequence policy optimisation (arXiv 2507.18071), in its per-token form.

    Every token of a response has the response's ratio rho = exp(mean of log pi - log pi_old), clipped as one;
    its gradient reaches the token's own log-prob only. With one advantage per sequence and the default
    aggregation, value and gradient are those of max(-A rho, -A clip(rho, 1 - low, 1 + high)), averaged over
    sequences. A mean moves far less than a token, hence the narrow published range. There is no dual clip.

    Arguments, return value and errors as in `mopd.losses.policy_gradient_loss`.
    """
    tokens = policy_tokens(logprobs, old_logprobs, advantages, response_mask)
    moved_N = wide(tokens.logprobs_N.detach()) - wide(tokens.old_logprobs_N)
    lengths_B_1 = tokens.mask_B_T.sum(dim=-1, keepdim=True)
    mean_B_1 = placed(moved_N, tokens.mask_B_T).sum(dim=-1, keepdim=True) / lengths_B_1
    sequence_B_1 = mean_B_1.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    one_N = ratio(tokens.logprobs_N, tokens.logprobs_N.detach())  # 1, with the gradient of the log-prob
    ratio_N = sequence_B_1.expand(tokens.mask_B_T.shape)[tokens.mask_B_T] * one_N
    values_N = clipped_surrogate(ratio_N, tokens.advantages_N, clip_ratio_low, clip_ratio_high)
    return tokens.aggregate(values_N, importance_weights, aggregation, denominator)


def dppo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    *,
    trust: Trust = "tv",
    delta_low: float = 0.2,
    delta_high: float = 0.2,
    importance_weights: Tensor | None = None,
    aggregation: Aggregation = "token-mean",
    denominator: float | Tensor | None = None,
) -> Tensor:
    """Divergence proximal policy optimisation (arXiv 2602.04879): a trust region in probability, not in ratio.

    A token costs -A rho, and nothing, in value and gradient, once pi has left the region around mu in the
    direction in which A pushes. Sampled token against all others, the distance is for `tv` |pi - mu|, for
    `kl` mu log(mu / pi) + (1 - mu) log((1 - mu) / (1 - pi)). A rare token may so change its ratio freely,
    and a sure one may not move at all.

    Our reading: one threshold for pi above mu (`delta_high`, where A > 0), one for below (`delta_low`, where
    A < 0), for either distance; defaults for `tv`, published for `kl` is 0.05. Dropped tokens still count in
    the denominator. The top-k variants are left out.

    Args:
        old_logprobs: `[B, T]`; the paper anchors on the policy that *sampled*, so give the sampler's
            log-probs, and no importance weights.
        trust, delta_low, delta_high: the distance and its thresholds, > 0.

    Other arguments, return value and errors as in `mopd.losses.policy_gradient_loss`.
    """
    if trust not in get_args(Trust):
        raise ValueError(f"trust is {trust!r}; it must be one of {', '.join(get_args(Trust))}")
    _check_positive(delta_low=delta_low, delta_high=delta_high)
    tokens = policy_tokens(logprobs, old_logprobs, advantages, response_mask)
    pi_N, mu_N = wide(tokens.logprobs_N.detach()).exp(), wide(tokens.old_logprobs_N).exp()
    distance_N = (pi_N - mu_N).abs() if trust == "tv" else _binary_kl(mu_N, pi_N)
    too_high_N = (tokens.advantages_N > 0) & (pi_N > mu_N) & (distance_N > delta_high)
    too_low_N = (tokens.advantages_N < 0) & (pi_N < mu_N) & (distance_N > delta_low)
    values_N = -tokens.advantages_N * ratio(tokens.logprobs_N, tokens.old_logprobs_N)
    return tokens.aggregate(
        values_N.masked_fill(too_high_N | too_low_N, 0.0), importance_weights, aggregation, denominator
    )


def drpo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    *,
    delta: float = 0.2,
    importance_weights: Tensor | None = None,
    aggregation: Aggregation = "token-mean",
    denominator: float | Tensor | None = None,
) -> Tensor:
    """DRPO (arXiv 2606.09821): the region of DPPO with a slope in place of its edge.

    A token costs -A rho + |A| mu (rho - 1)^2 / (2 delta), whose gradient is -A rho w grad log pi with
    w = 1 - sign(A (rho - 1)) |pi - mu| / delta. Moving where A pushes, the pull fades, is nothing at
    |pi - mu| = delta, and beyond draws back; moving against A, it grows. With delta to infinity it is the
    importance-sampled policy gradient.

    Our reading: `delta` is the |pi - mu| at which the pull ends, hence the default is that of DPPO. The
    published recipe has 12.5, for which w stays within 0.92 and 1.08, since |pi - mu| cannot exceed 1.

    Args:
        old_logprobs: `[B, T]`; as in `dppo_loss`, the sampler's.
        delta: > 0.

    Other arguments, return value and errors as in `mopd.losses.policy_gradient_loss`.
    """
    _check_positive(delta=delta)
    tokens = policy_tokens(logprobs, old_logprobs, advantages, response_mask)
    ratio_N = ratio(tokens.logprobs_N, tokens.old_logprobs_N)
    mu_N = wide(tokens.old_logprobs_N).exp()
    penalty_N = tokens.advantages_N.abs() * mu_N * (ratio_N - 1.0).square() / (2.0 * delta)
    values_N = -tokens.advantages_N * ratio_N + penalty_N
    return tokens.aggregate(values_N, importance_weights, aggregation, denominator)


POLICY_LOSSES: Mapping[str, Callable[..., Tensor]] = {
    "vanilla": policy_gradient_loss,
    "gspo": gspo_loss,
    "dppo": dppo_loss,
    "drpo": drpo_loss,
}
"""By name: all take (logprobs, old_logprobs, advantages, response_mask) and the keywords importance_weights,
aggregation, denominator, beside their own."""


def _binary_kl(mu_N: Tensor, pi_N: Tensor) -> Tensor:
    """KL between two coins that show the sampled token with probability mu and pi, `[N]` nats."""
    shown_N = torch.xlogy(mu_N, mu_N) - torch.xlogy(mu_N, pi_N)
    return shown_N + torch.xlogy(1.0 - mu_N, 1.0 - mu_N) - torch.xlogy(1.0 - mu_N, 1.0 - pi_N)


def _check_positive(**thresholds: float) -> None:
    for name, threshold in thresholds.items():
        if not threshold > 0.0:
            raise ValueError(f"{name} is {threshold!r}; it must be positive")
