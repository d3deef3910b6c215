"""Group-relative advantages: GRPO (arXiv 2402.03300); not divided by std, Dr. GRPO (arXiv 2503.20783)."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from mopd.divergence import wide

STD_EPSILON = 1e-6


def group_relative(rewards: Tensor, group_ids: Tensor | Sequence[Hashable], *, normalize_by_std: bool) -> Tensor:
    """How much better each rollout did than its siblings: the reward minus the mean of its group.

    Args:
        rewards: `[N]`; NaN means unknown. An unknown reward has advantage 0 and enters no mean or deviation:
            the others stand as if it had never been sampled.
        group_ids: `[N]`, equal for rollouts of one occurrence of a prompt; in any order.
        normalize_by_std: divide by the group's sample standard deviation (n - 1) plus 1e-6.

    Returns: `[N]`, float32 (float64 for float64 rewards), without gradient. A group of one (known reward) has
    mean 0 and standard deviation 1, so its advantage is its reward; a group of equal rewards has exactly 0.

    Raises ValueError unless rewards are `[N]` and finite or NaN, with N group ids.
    """
    rewards = wide(torch.as_tensor(rewards).detach())
    ids = group_ids.tolist() if isinstance(group_ids, Tensor) else list(group_ids)
    if rewards.dim() != 1 or len(ids) != len(rewards):
        raise ValueError(f"rewards {tuple(rewards.shape)} and {len(ids)} group ids; need [N] and N")
    if bool(rewards.isinf().any()):
        raise ValueError("rewards hold an infinity; they must be finite, or NaN for unknown")

    groups: dict[Hashable, list[int]] = {}
    for index, (group, unknown) in enumerate(zip(ids, rewards.isnan().tolist(), strict=True)):
        if not unknown:
            groups.setdefault(group, []).append(index)

    advantages = torch.zeros_like(rewards)
    for members in groups.values():
        advantages[members] = _relative(rewards[members], normalize_by_std)
    return advantages


def _relative(rewards_G: Tensor, normalize_by_std: bool) -> Tensor:
    """The advantages `[G]` within one group of known rewards."""
    if len(rewards_G) == 1:
        return rewards_G
    above_first_G = rewards_G - rewards_G[0]  # of equal rewards all 0, whose mean is free of rounding
    centred_G = above_first_G - above_first_G.mean()
    return centred_G / (above_first_G.std() + STD_EPSILON) if normalize_by_std else centred_G
