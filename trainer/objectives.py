"""What a micro-batch contributes to the loss: the method's mathematics applied to the actor's logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mopd import importance, losses
from mopd.divergence import captured_mass


@dataclass(frozen=True)
class LossSettings:
    """The loss of a run, as plain values."""

    kind: Literal["distillation", "policy_gradient"]
    temperature: float
    aggregation: losses.Aggregation
    alpha: float
    topk: int | None
    tail: Literal["bucket", "renormalize"]
    is_clip: float | None
    rollout_is_threshold: float | None
    """Upper bound of the weights between trainer and sampler; None for none."""
    clip_ratio_low: float
    clip_ratio_high: float
    clip_ratio_c: float

    @property
    def distils(self) -> bool:
        """True where a teacher is asked."""
        return self.kind == "distillation"


@dataclass(frozen=True)
class Targets:
    """Per-token inputs of the loss, each [B, T]."""

    tokens: Tensor
    mask: Tensor
    """1 for tokens that count in the loss."""
    advantages: Tensor
    sampler_logprobs: Tensor
    old_logprobs: Tensor | None
    """Of the policy before this step's first update; None where this is that policy."""


@dataclass(frozen=True)
class Contribution:
    """A micro-batch's part of the mini-batch loss, and what to report of it, each [B, T]."""

    loss: Tensor
    """Scalar; the parts of all micro-batches and ranks add up to the mini-batch's loss."""
    logprobs: Tensor
    entropy: Tensor
    divergence: Tensor | None
    student_mass: Tensor | None
    """Probability that the compared entries hold."""
    teacher_mass: Tensor | None


def contribution(
    student_logits: Tensor,
    teacher_logits: Tensor | None,
    targets: Targets,
    settings: LossSettings,
    denominator: float,
) -> Contribution:
    """The loss of logits [B, T, V] (already tempered), normalised by `denominator` tokens or sequences."""
    logprobs = losses.token_logprobs(student_logits, targets.tokens)
    old = logprobs.detach() if targets.old_logprobs is None else targets.old_logprobs
    correction = None
    if settings.rollout_is_threshold is not None:
        correction = importance.truncated_weights(old, targets.sampler_logprobs, settings.rollout_is_threshold)
    divergence = student_mass = teacher_mass = None
    if teacher_logits is not None:
        loss = losses.distillation_loss(
            student_logits,
            teacher_logits,
            targets.tokens,
            targets.mask,
            alpha=settings.alpha,
            topk=settings.topk,
            tail=settings.tail,
            old_logprobs=old,
            is_clip=settings.is_clip,
            importance_weights=correction,
            aggregation=settings.aggregation,
            denominator=denominator,
        )
        with torch.no_grad():
            divergence = losses.token_divergence(
                student_logits,
                teacher_logits,
                targets.mask,
                alpha=settings.alpha,
                topk=settings.topk,
                tail=settings.tail,
            )
            student_mass, teacher_mass = captured_mass(student_logits, teacher_logits, topk=settings.topk)
    else:
        loss = losses.policy_gradient_loss(
            logprobs,
            old,
            targets.advantages,
            targets.mask,
            clip_ratio_low=settings.clip_ratio_low,
            clip_ratio_high=settings.clip_ratio_high,
            clip_ratio_c=settings.clip_ratio_c,
            importance_weights=correction,
            aggregation=settings.aggregation,
            denominator=denominator,
        )
    with torch.no_grad():
        spread = torch.log_softmax(student_logits, dim=-1)
        entropy = -(spread.exp() * spread).sum(-1)
    return Contribution(loss, logprobs.detach(), entropy, divergence, student_mass, teacher_mass)
