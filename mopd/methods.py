"""The methods, each a composition of the same parts: what it shows a teacher, what it learns from, with which loss.

| method | teacher's view                               | signal                            |
|--------|----------------------------------------------|-----------------------------------|
| sdpo   | peers of the group (MOPD: 2 successes, 1     | divergence to the teacher's next- |
|        | failure; SDPO: 1 success, or feedback)       | token distribution, every token   |
| grpo   | none                                         | reward relative to the group      |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from mopd.advantages import group_relative
from mopd.types import FloatArray, Group, TokenStreams, View


@dataclass(frozen=True)
class Method:
    """What a method asks of the trainer."""

    uses_views: bool
    """Builds a teacher's view for every rollout, and keeps a teacher."""
    loss: Literal["distillation", "policy_gradient"]


METHODS: dict[str, Method] = {
    "sdpo": Method(uses_views=True, loss="distillation"),
    "vanilla": Method(uses_views=False, loss="policy_gradient"),
}
"""By the published `policy_loss.loss_mode`."""


def advantages_N(groups: Sequence[Group], *, normalize_by_std: bool) -> FloatArray:
    """[N], every rollout's reward relative to its group; 0 where the outcome is unknown."""
    rewards = [
        float("nan") if outcome.reward is None else outcome.reward for group in groups for outcome in group.outcomes
    ]
    group_ids = [number for number, group in enumerate(groups) for _ in group.outcomes]
    relative = group_relative(torch.tensor(rewards), torch.tensor(group_ids), normalize_by_std=normalize_by_std)
    array: FloatArray = relative.numpy().astype(np.float32)
    return array


def token_streams(
    method: Method, groups: Sequence[Group], views: Sequence[View] | None, *, normalize_by_std: bool
) -> list[TokenStreams]:
    """What the optimiser sees of every rollout, in sampling order.

    `views` has one entry per rollout, or is None for a method without a teacher. A rollout without a
    usable view has divergence weight 0: it is not trained on (published behaviour).
    """
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    relative = advantages_N(groups, normalize_by_std=normalize_by_std)
    usable = [1.0 if views is not None and views[index].usable else 0.0 for index in range(len(rollouts))]
    streams = []
    for rollout, advantage, weight in zip(rollouts, relative, usable, strict=True):
        ones = np.ones(len(rollout.token_ids), dtype=np.float32)
        trained = np.concatenate(
            [np.full(len(segment.token_ids), segment.trained, dtype=np.float32) for segment in rollout.segments]
        )
        streams.append(
            TokenStreams(
                mask=trained,
                weights=ones * weight,
                advantages=ones * (advantage if method.loss == "policy_gradient" else 0.0),
            )
        )
    return streams
