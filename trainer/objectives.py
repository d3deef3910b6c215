"""What a micro-batch contributes to the loss: the method's mathematics applied to what its models say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mopd import importance, losses, preference
from mopd.fused_topk import LinearDivergence
from mopd.methods import Method, Signal
from mopd.policy_losses import POLICY_LOSSES
from mopd.support import TeacherAnswer
from trainer.packing import Sample, loss_mask
from trainer.scores import HEADS, DivergenceSettings, HeadName, States


@dataclass(frozen=True)
class LossSettings:
    """The loss of a run, as plain values."""

    method: Method
    temperature: float
    aggregation: losses.Aggregation
    max_response_length: int
    divergence: DivergenceSettings
    head: HeadName
    """How hidden states become what the loss needs."""
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

    mask: Tensor
    """1 for tokens that count in the loss, M of them."""
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
    teacher_logprobs: Tensor | None = None
    """[B, T], of the sampled tokens; not-a-number where the teacher told none; None without a teacher."""


@dataclass(frozen=True)
class Scored:
    """What the models say of a micro-batch's tokens, each [B, T] and 0 where a token is masked."""

    logprobs: Tensor
    """The student's, of the sampled tokens; with gradient unless the divergence is what is minimised."""
    entropy: Tensor
    old_logprobs: Tensor
    targets: Targets
    teacher_logprobs: Tensor | None = None
    """The teacher's, or the reference's, of the sampled tokens; None without either."""
    compared: Compared | None = None
    """Where whole distributions are compared."""


@dataclass(frozen=True)
class Compared:
    """How far the student is from the teacher; each [B, T], 0 where a token is masked."""

    divergence: Tensor
    """With gradient."""
    student_mass: Tensor
    """Of what is compared, under the student."""
    teacher_mass: Tensor
    told: Tensor
    """Bool, where the teacher has a distribution."""
    gradient_bound: Tensor
    """What `sparse` leaves out of the gradient in the logits."""


def contribution(
    student: States,
    teacher: States | TeacherAnswer | None,
    tokens: Tensor,
    targets: Targets,
    settings: LossSettings,
    denominator: float,
) -> Contribution:
    """The loss of a micro-batch, divided by `denominator`.

    Args:
        student: of the M tokens that count, in the order of `targets.mask`.
        teacher: of the same tokens on its own view, or what it answers; for DPO the initial model on the student's.
        tokens: [M]
    """
    scored = score(student, teacher, tokens, targets, settings)
    loss, measured = OBJECTIVES[settings.method.signal](scored, settings, denominator)
    common = {"actor/ppo_kl": scored.old_logprobs - scored.logprobs.detach(), "actor/entropy": scored.entropy}
    taught = scored.teacher_logprobs if settings.method.distils else None
    return Contribution(loss, scored.old_logprobs, {**common, **measured}, taught)


def score(
    student: States,
    teacher: States | TeacherAnswer | None,
    tokens: Tensor,
    targets: Targets,
    settings: LossSettings,
) -> Scored:
    """Takes both models' states through the vocabulary; arguments as of `contribution`."""
    mask = targets.mask.bool()

    def rows(values: Tensor) -> Tensor:
        return losses.placed(values, mask)

    if settings.method.signal == "divergence":
        found = compare(student, teacher, tokens, settings)
        assert found.entropy is not None
        logprobs = rows(found.logprobs)
        compared = Compared(
            rows(found.values),
            rows(found.student_mass),
            rows(found.teacher_mass.where(found.told, 0.0)),
            rows(found.told),
            rows(found.gradient_bound),
        )
        old = logprobs if targets.old_logprobs is None else targets.old_logprobs
        return Scored(logprobs, rows(found.entropy), old, targets, rows(found.teacher_logprobs), compared)
    read = HEADS[settings.head].logprobs(student, tokens, settings.temperature)
    assert read.entropy is not None
    logprobs, others = rows(read.logprobs), None
    if teacher is not None:
        others = rows(teacher_of_tokens(teacher, tokens, len(student.weight), settings))
    old = logprobs.detach() if targets.old_logprobs is None else targets.old_logprobs
    return Scored(logprobs, rows(read.entropy), old, targets, teacher_logprobs=others)


def compare(
    student: States, teacher: States | TeacherAnswer | None, tokens: Tensor, settings: LossSettings
) -> LinearDivergence:
    """The divergence at every token."""
    head, temperature = HEADS[settings.head], settings.temperature
    assert teacher is not None
    if isinstance(teacher, TeacherAnswer):
        return head.divergence_on(student, teacher, tokens, temperature, settings.divergence)
    return head.divergence(student, teacher, tokens, temperature, settings.divergence)


@torch.no_grad()
def teacher_of_tokens(
    teacher: States | TeacherAnswer, tokens: Tensor, vocabulary: int, settings: LossSettings
) -> Tensor:
    """The teacher's, or the reference's, log-probs [M] of the sampled tokens, over the student's vocabulary.

    Rows of the teacher beyond it are cut; a token that it has no row for is impossible.
    """
    if isinstance(teacher, TeacherAnswer):
        return teacher.logprobs[:, 0]
    cut = States(teacher.hidden, teacher.weight[:vocabulary])
    known = tokens < len(cut.weight)
    found = HEADS[settings.head].logprobs(cut, tokens.where(known, 0), settings.temperature)
    return found.logprobs.masked_fill(~known, -torch.inf)


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
    targets, compared = scored.targets, scored.compared
    assert compared is not None
    loss = losses.divergence_loss(
        compared.divergence,
        scored.logprobs,
        targets.mask,
        old_logprobs=scored.old_logprobs,
        is_clip=settings.is_clip,
        importance_weights=correction(scored, settings),
        step_ids=targets.step_ids,
        aggregation=settings.aggregation,
        denominator=denominator,
    )
    measured = {
        "self_distillation/divergence": compared.divergence.detach(),
        "self_distillation/topk_mass_student": compared.student_mass,
        "self_distillation/topk_mass_teacher": compared.teacher_mass,
        "self_distillation/teacher_invalid_fraction": (~compared.told).float(),
    }
    if settings.head == "fused" and settings.divergence.grad_mode != "exact":
        measured["self_distillation/gradient_bound"] = compared.gradient_bound
    return loss, measured


def sampled_token_part(scored: Scored, settings: LossSettings, denominator: float) -> Part:
    """Reverse divergence to the teacher, estimated from the sampled tokens."""
    teacher_logprobs = scored.teacher_logprobs
    assert teacher_logprobs is not None
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
    if scored.teacher_logprobs is None:
        rated = preference.simpo_rewards(scored.logprobs, targets.mask, beta=settings.simpo_beta)
        margin = settings.simpo_gamma
    else:
        rated = preference.dpo_rewards(scored.logprobs, scored.teacher_logprobs, targets.mask, beta=settings.dpo_beta)
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
