"""Credit: from verdicts and views to what the optimiser sees of every token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from mopd.advantages import group_relative, informative_groups, leave_one_out, overlong_penalty
from mopd.methods import Method
from mopd.preference import preference_pairs
from mopd.types import FloatArray, Group, TokenStreams, View


@dataclass(frozen=True)
class CreditSettings:
    """How verdicts become credit."""

    estimator: Literal["grpo", "rloo"] = "grpo"
    """Baseline of a reward: the group's mean, or the mean of the others."""
    normalize_by_std: bool = False
    dynamic_sampling: bool = False
    """Leaves out groups whose rewards are all equal (DAPO, arXiv 2503.14476)."""
    success_threshold: float = 1.0
    """Reward from which a rollout is a success for verified SFT."""
    overlong_buffer: int = 0
    """Tokens before `max_response_length` over which the credit of a reward falls by up to 1 (DAPO); 0: none."""
    max_response_length: int = 0
    """Tokens; matters with an overlong buffer only."""


def rewards_N(groups: Sequence[Group]) -> FloatArray:
    """[N], every rollout's reward in sampling order; not-a-number where the outcome is unknown."""
    rewards = [outcome.reward for group in groups for outcome in group.outcomes]
    return np.asarray([np.nan if reward is None else reward for reward in rewards], dtype=np.float32)


def group_ids_N(groups: Sequence[Group]) -> list[int]:
    """[N], equal for rollouts of one occurrence of a prompt."""
    return [number for number, group in enumerate(groups) for _ in group.rollouts]


def shaped_rewards_N(groups: Sequence[Group], settings: CreditSettings) -> FloatArray:
    """[N], rewards as credit sees them: less for long responses. Verdicts, and so peers, stay as they are."""
    rewards = rewards_N(groups)
    if not settings.overlong_buffer:
        return rewards
    limit, buffer = settings.max_response_length, settings.overlong_buffer
    lengths = [len(rollout.token_ids) for group in groups for rollout in group.rollouts]
    return rewards + np.asarray([overlong_penalty(length, limit, buffer) for length in lengths], dtype=np.float32)


def trained_N(
    method: Method,
    rewards: FloatArray,
    group_ids: Sequence[int],
    views: Sequence[View] | None,
    settings: CreditSettings,
) -> list[bool]:
    """[N], whether a rollout has anything to teach: a usable view, a pair, a success, or a reward."""
    known = torch.from_numpy(rewards)
    if method.distils:
        return [views is not None and views[index].usable for index in range(len(rewards))]
    if method.signal == "preference":
        paired = set(preference_pairs(known, group_ids).flatten().tolist())
        return [index in paired for index in range(len(rewards))]
    if method.signal == "likelihood":
        return [bool(reward >= settings.success_threshold) for reward in rewards]
    credited = known.isfinite()
    if settings.dynamic_sampling:
        credited &= informative_groups(known, group_ids)
    return [bool(flag) for flag in credited]


def informative(groups: Sequence[Group], settings: CreditSettings) -> list[bool]:
    """[P], whether a group's rewards differ, so that policy gradients have something to say (DAPO, section 3.2)."""
    ids = group_ids_N(groups)
    flags = informative_groups(torch.from_numpy(shaped_rewards_N(groups, settings)), ids)
    by_group = dict(zip(ids, flags.tolist(), strict=True))
    return [bool(by_group[number]) for number in dict.fromkeys(ids)]


def token_streams(
    method: Method, groups: Sequence[Group], views: Sequence[View] | None, settings: CreditSettings
) -> list[TokenStreams]:
    """What the optimiser sees of every rollout, in sampling order.

    `views` has one entry per rollout, or is None for a method without a teacher. A rollout without anything to
    teach has weight 0 and is never forwarded; one of unknown outcome is such a rollout where rewards are credit.
    """
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    rewards, group_ids = shaped_rewards_N(groups, settings), group_ids_N(groups)
    estimate = leave_one_out if settings.estimator == "rloo" else group_relative
    options = {} if settings.estimator == "rloo" else {"normalize_by_std": settings.normalize_by_std}
    relative = estimate(torch.from_numpy(rewards), group_ids, **options).numpy().astype(np.float32)
    trained = trained_N(method, rewards, group_ids, views, settings)
    streams = []
    for rollout, advantage, weight in zip(rollouts, relative, trained, strict=True):
        ones = np.ones(len(rollout.token_ids), dtype=np.float32)
        sampled = [np.full(len(part.token_ids), part.trained, dtype=np.float32) for part in rollout.segments]
        streams.append(TokenStreams(np.concatenate(sampled), ones * float(weight), ones * advantage))
    return streams
