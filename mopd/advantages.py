"""Advantages relative to the group, and what DAPO does to rewards and groups before (arXiv 2503.14476).

    group_relative       r - mean of the group: Dr. GRPO (arXiv 2503.20783); divided by std: GRPO (arXiv 2402.03300)
    leave_one_out        r - mean of the others: RLOO (arXiv 2402.14740)
    informative_groups   which groups have any signal: DAPO's dynamic sampling
    overlong_penalty     what an answer that is nearly or fully cut loses: DAPO's overlong shaping

A reward of NaN is unknown: it has advantage 0, and the others stand as if it had never been sampled.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from mopd.divergence import wide

STD_EPSILON = 1e-6


def group_relative(rewards: Tensor, group_ids: Tensor | Sequence[Hashable], *, normalize_by_std: bool) -> Tensor:
    """How much better each rollout did than its siblings: the reward minus the mean of its group.

    Args:
        rewards: `[N]`, finite, or NaN where unknown.
        group_ids: `[N]`, equal for rollouts of one occurrence of a prompt; in any order.
        normalize_by_std: divide by the group's sample standard deviation (n - 1) plus 1e-6.

    Returns: `[N]`, float32 (float64 for float64 rewards), without gradient. A group of one (known reward) has
    mean 0 and standard deviation 1, so its advantage is its reward; a group of equal rewards has exactly 0.

    Raises ValueError unless rewards are `[N]` and finite or NaN, with N group ids.
    """
    rewards = wide(torch.as_tensor(rewards).detach())
    advantages = torch.zeros_like(rewards)
    for members in known_groups(rewards, group_ids):
        advantages[members] = _relative(rewards[members], normalize_by_std)
    return advantages


def leave_one_out(rewards: Tensor, group_ids: Tensor | Sequence[Hashable]) -> Tensor:
    """The reward minus the mean of the *other* rollouts of its group, a baseline that it had no part in.

    It is n / (n - 1) times `group_relative` without std, so a group of one, which has no others, has its
    reward as advantage. Arguments, return value and errors as there.
    """
    rewards = wide(torch.as_tensor(rewards).detach())
    advantages = torch.zeros_like(rewards)
    for members in known_groups(rewards, group_ids):
        others = max(len(members) - 1, 1)
        advantages[members] = _relative(rewards[members], normalize_by_std=False) * (len(members) / others)
    return advantages


def informative_groups(rewards: Tensor, group_ids: Tensor | Sequence[Hashable]) -> Tensor:
    """Whose group carries a signal: `[N]` bool, True for every rollout of a group whose known rewards differ.

    Elsewhere all group-relative advantages are 0; DAPO samples other prompts in place of such groups. A
    rollout of unknown reward shares the verdict on its group; a group of one has nothing to differ from.
    Arguments and errors as in `group_relative`.
    """
    rewards = wide(torch.as_tensor(rewards).detach())
    ids = _listed(group_ids)
    informative = {
        ids[members[0]] for members in known_groups(rewards, group_ids) if len(rewards[members].unique()) > 1
    }
    return torch.tensor([group in informative for group in ids], dtype=torch.bool, device=rewards.device)


def overlong_penalty(length: int, max_length: int, buffer: int) -> float:
    """What to add to the reward of a response of `length` tokens, in [-1, 0].

    0 up to max_length - buffer; from there it falls in a straight line to -1 at max_length, and stays.
    Raises ValueError unless 0 < buffer <= max_length and length >= 0.
    """
    if not (0 < buffer <= max_length and length >= 0):
        raise ValueError(
            f"length={length!r}, max_length={max_length!r}, buffer={buffer!r}; need 0 < buffer <= max_length, "
            "length >= 0"
        )
    excess = length - (max_length - buffer)
    return -min(max(excess / buffer, 0.0), 1.0)


def known_groups(rewards: Tensor, group_ids: Tensor | Sequence[Hashable]) -> list[list[int]]:
    """The places of the known rewards, group by group, both in order of appearance; see `group_relative`."""
    ids = _listed(group_ids)
    if rewards.dim() != 1 or len(ids) != len(rewards):
        raise ValueError(f"rewards {tuple(rewards.shape)} and {len(ids)} group ids; need [N] and N")
    if bool(rewards.isinf().any()):
        raise ValueError("rewards hold an infinity; they must be finite, or NaN for unknown")
    groups: dict[Hashable, list[int]] = {}
    for index, (group, unknown) in enumerate(zip(ids, rewards.isnan().tolist(), strict=True)):
        if not unknown:
            groups.setdefault(group, []).append(index)
    return list(groups.values())


def _listed(group_ids: Tensor | Sequence[Hashable]) -> list[Hashable]:
    return group_ids.tolist() if isinstance(group_ids, Tensor) else list(group_ids)


def _relative(rewards_G: Tensor, normalize_by_std: bool) -> Tensor:
    """The advantages `[G]` within one group of known rewards."""
    if len(rewards_G) == 1:
        return rewards_G
    above_first_G = rewards_G - rewards_G[0]  # of equal rewards all 0, whose mean is free of rounding
    centred_G = above_first_G - above_first_G.mean()
    return centred_G / (above_first_G.std() + STD_EPSILON) if normalize_by_std else centred_G
