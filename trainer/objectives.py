"""What a micro-batch contributes to the loss: the method's mathematics applied to the actor's logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mopd import importance, losses, preference
from mopd.divergence import Support, Tail, captured_mass, is_distribution
from mopd.methods import Method, Signal
from mopd.policy_losses import POLICY_LOSSES
from mopd.support import TeacherAnswer, divergence_on, mass_on
from trainer.packing import Sample, loss_mask


@dataclass(frozen=True)
class LossSettings:
    """The loss of a run, as plain values."""

    method: Method
    temperature: float
    aggregation: losses.Aggregation
    max_response_length: int
    alpha: float
    topk: int | None
    tail: Tail
    support: Support
    is_clip: float | None
    rollout_is: str | None
    """`token` or `sequence` weights between trainer and sampler; None for none."""
    rollout_is_threshold: float
    policy_options: Mapping[str, float]
    """Clips and thresholds of the policy loss, by its argument names."""
    dpo_beta: float
    simpo_beta: float
    simpo_gamma: float
    label_smoothing: float
    sft_length_normalize: bool

    def denominator(self, samples: Sequence[Sample]) -> float:
        """What the loss of all ranks' samples is divided by; at least 1."""
        if self.method.signal == "preference":
            return max(1.0, pairs_among(samples))
        by_tokens = self.aggregation == "token-mean" and self.method.signal != "likelihood"
        if by_tokens:
            return max(1.0, float(sum(loss_mask(sample).sum() for sample in samples)))
        full_width = self.aggregation == "seq-mean-token-sum-norm" and self.method.signal != "likelihood"
        return max(1.0, float(len(samples) * (self.max_response_length if full_width else 1)))

    def counts(self, samples: Sequence[Sample]) -> dict[str, float]:
        """What a step's rollouts give to learn from, by published metric name: pairs, or successes."""
        if self.method.signal == "preference":
            return {f"{self.method.loss}/num_pairs": pairs_among(samples)}
        if self.method.signal != "likelihood" or not samples:
            return {}
        successes = sum(bool(loss_mask(sample).any()) for sample in samples)
        return {"sft/num_success": successes, "sft/frac_success": successes / len(samples)}


def pairs_among(samples: Sequence[Sample]) -> int:
    """How many pairs of one group's rollouts differ in reward."""
    rewards = torch.tensor([sample.reward for sample in samples])
    return len(preference.preference_pairs(rewards, [sample.group for sample in samples]))


@dataclass(frozen=True)
class Targets:
    """Inputs of the loss; each tensor [B, T] unless it says otherwise."""

    tokens: Tensor
    mask: Tensor
    """1 for tokens that count in the loss."""
    advantages: Tensor
    sampler_logprobs: Tensor
    old_logprobs: Tensor | None
    """Of the policy before this step's first update; None where this is that policy."""
    step_ids: Tensor | None
    """The reasoning step of each token, -1 in padding; None where losses are not averaged over steps."""
    rewards: Tensor
    """[B], not-a-number where unknown."""
    groups: Sequence[int]
    """[B]"""


@dataclass(frozen=True)
class Contribution:
    """A micro-batch's part of the mini-batch loss, and what to report of it."""

    loss: Tensor
    """Scalar; the parts of all micro-batches and ranks add up to the mini-batch's loss."""
    old_logprobs: Tensor
    """[B, T]"""
    measured: Mapping[str, Tensor]
    """By metric name: [B, T] for a mean over unmasked tokens, [M] for a mean over pairs."""


@dataclass(frozen=True)
class Scored:
    """A micro-batch with both models' scores."""

    student_logits: Tensor
    """[B, T, V], tempered, with gradient."""
    teacher: Tensor | TeacherAnswer | None
    """Logits [B, T, V], tempered: the teacher's on its view; for DPO the initial model's on the student's own prompt.
    Of a teacher that is elsewhere, what it says of the entries that are compared."""
    logprobs: Tensor
    """[B, T], the student's of the response, with gradient."""
    old_logprobs: Tensor
    """[B, T]"""
    targets: Targets


def contribution(
    student_logits: Tensor,
    teacher: Tensor | TeacherAnswer | None,
    targets: Targets,
    settings: LossSettings,
    denominator: float,
) -> Contribution:
    """The loss of a micro-batch, divided by `denominator`."""
    logprobs = losses.token_logprobs(student_logits, targets.tokens)
    old = logprobs.detach() if targets.old_logprobs is None else targets.old_logprobs
    scored = Scored(student_logits, teacher, logprobs, old, targets)
    loss, measured = OBJECTIVES[settings.method.signal](scored, settings, denominator)
    common = {"actor/ppo_kl": old - logprobs.detach(), "actor/entropy": entropy(student_logits.detach())}
    return Contribution(loss, old, {**common, **measured})


def entropy(logits: Tensor) -> Tensor:
    """The entropy of next-token distributions, logits [..., V] to [...], in nats."""
    spread = torch.log_softmax(logits, dim=-1)
    return -(spread.exp() * spread).sum(-1)


def correction(scored: Scored, settings: LossSettings) -> Tensor | None:
    """Truncated importance weights [B, T] between the trainer and the sampler; None where none are wanted."""
    sampler, threshold = scored.targets.sampler_logprobs, settings.rollout_is_threshold
    if settings.rollout_is is None:
        return None
    if settings.rollout_is == "sequence":
        return importance.truncated_sequence_weights(scored.old_logprobs, sampler, scored.targets.mask, threshold)
    return importance.truncated_weights(scored.old_logprobs, sampler, threshold)


Part = tuple[Tensor, dict[str, Tensor]]
"""A loss, and what was measured on the way."""


def divergence_part(scored: Scored, settings: LossSettings, denominator: float) -> Part:
    """Divergence to the teacher's next-token distribution."""
    targets = scored.targets
    compare = compared_on if isinstance(scored.teacher, TeacherAnswer) else compared
    divergence, masses, told = compare(scored, settings)
    loss = losses.divergence_loss(
        divergence,
        scored.logprobs.detach(),
        targets.mask,
        old_logprobs=scored.old_logprobs,
        is_clip=settings.is_clip,
        importance_weights=correction(scored, settings),
        step_ids=targets.step_ids,
        aggregation=settings.aggregation,
        denominator=denominator,
    )
    return loss, {
        "self_distillation/divergence": divergence.detach(),
        "self_distillation/topk_mass_student": masses[0],
        "self_distillation/topk_mass_teacher": masses[1].where(told, 0.0),
        "self_distillation/teacher_invalid_fraction": (~told).float(),
    }


Compared = tuple[Tensor, tuple[Tensor, Tensor], Tensor]
"""Divergences [B, T], the mass of what is compared under both models [B, T], and where the teacher has any [B, T]."""


def compared(scored: Scored, settings: LossSettings) -> Compared:
    """Divergences from both models' logits."""
    assert isinstance(scored.teacher, Tensor)
    values = losses.token_divergence(
        scored.student_logits,
        scored.teacher,
        scored.targets.mask,
        alpha=settings.alpha,
        topk=settings.topk,
        tail=settings.tail,
        support=settings.support,
    )
    masses = captured_mass(scored.student_logits, scored.teacher, topk=settings.topk, support=settings.support)
    return values, masses, is_distribution(scored.teacher)


def compared_on(scored: Scored, settings: LossSettings) -> Compared:
    """As `compared`, from what a teacher that is elsewhere has answered."""
    assert isinstance(scored.teacher, TeacherAnswer)
    told = scored.teacher.told
    mask = scored.targets.mask.bool() & told
    answer = scored.teacher.at(mask)
    values = divergence_on(scored.student_logits[mask], answer, alpha=settings.alpha, tail=settings.tail)
    student, teacher = mass_on(scored.student_logits.detach()[mask], answer)
    return losses.placed(values, mask), (losses.placed(student, mask), losses.placed(teacher, mask)), told


def sampled_token_part(scored: Scored, settings: LossSettings, denominator: float) -> Part:
    """Reverse divergence to the teacher, estimated from the sampled tokens."""
    teacher_logprobs = teacher_of_tokens(scored)
    loss = losses.sampled_token_loss(
        scored.logprobs,
        teacher_logprobs,
        scored.targets.mask,
        old_logprobs=scored.old_logprobs,
        is_clip=settings.is_clip,
        importance_weights=correction(scored, settings),
        step_ids=scored.targets.step_ids,
        aggregation=settings.aggregation,
        denominator=denominator,
    )
    rated = losses.is_rated(teacher_logprobs)
    return loss, {
        "self_distillation/log_ratio": (scored.logprobs.detach() - teacher_logprobs).where(rated, 0.0),
        "self_distillation/teacher_invalid_fraction": (~rated).float(),
    }


def teacher_of_tokens(scored: Scored) -> Tensor:
    """The teacher's, or the reference's, log-probs [B, T] of the sampled tokens."""
    if isinstance(scored.teacher, TeacherAnswer):
        return scored.teacher.logprobs[..., 0]
    assert scored.teacher is not None
    return losses.token_logprobs(scored.teacher, scored.targets.tokens)


def policy_part(scored: Scored, settings: LossSettings, denominator: float) -> Part:
    """Policy gradient on group-relative rewards."""
    # DPPO and DRPO measure how far the policy is from the one that sampled, and need no further correction.
    anchored = settings.method.loss in ("dppo", "drpo")
    loss = POLICY_LOSSES[settings.method.loss](
        scored.logprobs,
        scored.targets.sampler_logprobs if anchored else scored.old_logprobs,
        scored.targets.advantages,
        scored.targets.mask,
        importance_weights=None if anchored else correction(scored, settings),
        aggregation=settings.aggregation,
        denominator=denominator,
        **settings.policy_options,
    )
    return loss, {}


def preference_part(scored: Scored, settings: LossSettings, denominator: float) -> Part:
    """DPO or SimPO over the pairs of each group."""
    targets = scored.targets
    if scored.teacher is None:
        rated = preference.simpo_rewards(scored.logprobs, targets.mask, beta=settings.simpo_beta)
        margin = settings.simpo_gamma
    else:
        rated = preference.dpo_rewards(scored.logprobs, teacher_of_tokens(scored), targets.mask, beta=settings.dpo_beta)
        margin = 0.0
    pairs = preference.preference_pairs(targets.rewards, targets.groups)
    loss = preference.pairwise_loss(
        rated, pairs, margin=margin, label_smoothing=settings.label_smoothing, denominator=denominator
    )
    gaps = rated.detach()[pairs[:, 0]] - rated.detach()[pairs[:, 1]]
    prefix = settings.method.loss
    return loss, {
        f"{prefix}/reward_margin": gaps,
        f"{prefix}/logits": gaps - margin,
        f"{prefix}/accuracy": (gaps > 0).float(),
    }


def likelihood_part(scored: Scored, settings: LossSettings, denominator: float) -> Part:
    """Likelihood of the successes: what the mask leaves."""
    successes = scored.targets.mask.any(dim=-1)
    loss = preference.verified_sft_loss(
        scored.logprobs,
        successes,
        scored.targets.mask,
        length_normalize=settings.sft_length_normalize,
        denominator=denominator,
    )
    return loss, {"sft/nll": -scored.logprobs.detach()}


OBJECTIVES: Mapping[Signal, Callable[[Scored, LossSettings, float], Part]] = {
    "divergence": divergence_part,
    "sampled_token": sampled_token_part,
    "policy": policy_part,
    "preference": preference_part,
    "likelihood": likelihood_part,
}
