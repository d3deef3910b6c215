"""Every loss with a micro-batch for it, what it should be by the method's own functions, and an actor to learn it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mopd import importance, losses, policy_losses, preference
from mopd.types import TokenStreams
from trainer.accounting import Account
from trainer.attention import PACKED
from trainer.config.compose import resolve
from trainer.config.schema import Config
from trainer.layout import TokenBatch
from trainer.meters import Meter, by_rollout, merged
from trainer.objectives import Contribution, LossSettings, Targets, contribution
from trainer.packing import Packing, Sample, plan_mini_batch
from trainer.scores import HeadName, States
from trainer.settings import loss_settings, optim_settings, teacher_settings
from trainer.workers.policy import PolicyWorker
from trainer.workers.views import Views

ACTOR = "actor_rollout_ref.actor"
DISTILL = f"{ACTOR}.self_distillation"
B, T, V = 6, 7, 12
GROUPS = [0, 0, 0, 1, 1, 1]


@dataclass(frozen=True)
class Batch:
    """A micro-batch in float64 with everything that a loss may read."""

    student: Tensor
    """[B, T, V], logits."""
    teacher: Tensor
    tokens: Tensor
    """[B, T]"""
    targets: Targets

    @property
    def old(self) -> Tensor:
        """[B, T]"""
        assert self.targets.old_logprobs is not None
        return self.targets.old_logprobs

    @property
    def logprobs(self) -> Tensor:
        """[B, T], of the student."""
        return losses.token_logprobs(self.student, self.tokens)

    def rows(self, chosen: Sequence[int]) -> Batch:
        """Some rows; the student's logits remain those of the whole, for its gradient."""
        at = list(chosen)
        targets = Targets(
            mask=self.targets.mask[at],
            advantages=self.targets.advantages[at],
            sampler_logprobs=self.targets.sampler_logprobs[at],
            old_logprobs=self.old[at],
            step_ids=None if self.targets.step_ids is None else self.targets.step_ids[at],
            rewards=self.targets.rewards[at],
            groups=[self.targets.groups[index] for index in at],
        )
        return Batch(self.student[at], self.teacher[at], self.tokens[at], targets)


def batch(seed: int = 0, *, steps: bool = False) -> Batch:
    """Ragged sequences of two groups, one outcome unknown; the student has moved, and the sampler differs."""
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    student = normal(B, T, V).requires_grad_()
    tokens = torch.randint(0, V, (B, T), generator=rng)
    mask = (torch.arange(T) < torch.tensor([7, 3, 5, 1, 6, 4])[:, None]).double()
    old = losses.token_logprobs(student.detach() + 0.3 * normal(B, T, V), tokens)
    step_ids = torch.where(mask > 0, torch.arange(T) // 2, -1)
    step_ids[0, 6] = -1  # a token of no step is masked: otherwise steps change nothing
    targets = Targets(
        mask=mask,
        advantages=normal(B, 1).expand(B, T),
        sampler_logprobs=old + 0.2 * normal(B, T),
        old_logprobs=old,
        step_ids=step_ids if steps else None,
        rewards=torch.tensor([1.0, 0.0, 0.5, 1.0, float("nan"), 0.0]),
        groups=GROUPS,
    )
    return Batch(student, normal(B, T, V), tokens, targets)


Direct = Callable[[Batch, float | None], Tensor]


def token_weights(given: Batch) -> Tensor:
    return importance.truncated_weights(given.old, given.targets.sampler_logprobs, 2.0)


def by_divergence(given: Batch, denominator: float | None, **changes: Any) -> Tensor:
    options: dict[str, Any] = {
        "alpha": 0.5,
        "topk": 4,
        "old_logprobs": given.old,
        "is_clip": 2.0,
        "importance_weights": token_weights(given),
        "denominator": denominator,
    }
    return losses.distillation_loss(
        given.student, given.teacher, given.tokens, given.targets.mask, **(options | changes)
    )


def by_divergence_otherwise(given: Batch, denominator: float | None) -> Tensor:
    targets = given.targets
    weights = importance.truncated_sequence_weights(given.old, targets.sampler_logprobs, targets.mask, 1.5)
    return by_divergence(
        given,
        denominator,
        alpha=0.3,
        tail="renormalize",
        support="union",
        is_clip=None,
        importance_weights=weights,
        step_ids=targets.step_ids,
        aggregation="seq-mean-token-mean",
    )


def by_sampled_token(given: Batch, denominator: float | None) -> Tensor:
    return losses.sampled_token_loss(
        given.logprobs,
        losses.token_logprobs(given.teacher, given.tokens),
        given.targets.mask,
        old_logprobs=given.old,
        is_clip=2.0,
        importance_weights=token_weights(given),
        denominator=denominator,
    )


def by_policy(loss: Callable[..., Tensor], *, anchored: bool = False, **options: float) -> Direct:
    """A policy loss; DPPO and DRPO are anchored on the sampler, without weights."""

    def direct(given: Batch, denominator: float | None) -> Tensor:
        return loss(
            given.logprobs,
            given.targets.sampler_logprobs if anchored else given.old,
            given.targets.advantages,
            given.targets.mask,
            importance_weights=None if anchored else token_weights(given),
            aggregation="token-mean",
            denominator=denominator,
            **options,
        )

    return direct


def by_dpo(given: Batch, denominator: float | None) -> Tensor:
    reference = losses.token_logprobs(given.teacher, given.tokens)
    targets = given.targets
    return preference.dpo_loss(
        given.logprobs,
        reference,
        targets.rewards,
        targets.groups,
        targets.mask,
        beta=0.1,
        label_smoothing=0.1,
        denominator=denominator,
    )


def by_simpo(given: Batch, denominator: float | None) -> Tensor:
    rewards, mask = given.targets.rewards, given.targets.mask
    return preference.simpo_loss(
        given.logprobs, rewards, given.targets.groups, mask, beta=2.0, gamma=1.0, denominator=denominator
    )


def by_likelihood(given: Batch, denominator: float | None) -> Tensor:
    return preference.verified_sft_loss(given.logprobs, torch.ones(B), given.targets.mask, denominator=denominator)


CLIPS = {"clip_ratio_low": 0.2, "clip_ratio_high": 0.28}
TOPK = f"{DISTILL}.distillation_topk=4"
OTHERWISE = (
    TOPK,
    f"{DISTILL}.alpha=0.3",
    f"{DISTILL}.distillation_add_tail=false",
    f"{DISTILL}.distillation_support=union",
    f"{DISTILL}.is_clip=null",
    f"{ACTOR}.loss_agg_mode=seq-mean-token-mean",
    "algorithm.rollout_correction.rollout_is=sequence",
    "algorithm.rollout_correction.rollout_is_threshold=1.5",
)
CASES: dict[str, tuple[str, tuple[str, ...], Direct]] = {
    "divergence": ("mopd", (TOPK,), by_divergence),
    "divergence otherwise": ("mopd", OTHERWISE, by_divergence_otherwise),
    "sampled token": ("opd", (), by_sampled_token),
    "vanilla": ("grpo", (), by_policy(losses.policy_gradient_loss, **CLIPS, clip_ratio_c=3.0)),
    "gspo": ("grpo", (f"{ACTOR}.policy_loss.loss_mode=gspo",), by_policy(policy_losses.gspo_loss, **CLIPS)),
    "dppo": ("dppo", (), by_policy(policy_losses.dppo_loss, anchored=True, delta_low=0.2, delta_high=0.2)),
    "drpo": ("drpo", (), by_policy(policy_losses.drpo_loss, anchored=True, delta=0.2)),
    "dpo": ("dpo", (f"{ACTOR}.policy_loss.label_smoothing=0.1",), by_dpo),
    "simpo": ("simpo", (), by_simpo),
    "verified sft": ("verified_sft", (), by_likelihood),
}
MEASURED = {
    "divergence": {
        "divergence",
        "topk_mass_student",
        "topk_mass_teacher",
        "teacher_invalid_fraction",
    },
    "divergence otherwise": {
        "divergence",
        "topk_mass_student",
        "topk_mass_teacher",
        "teacher_invalid_fraction",
    },
    "sampled token": {"log_ratio", "teacher_invalid_fraction"},
    "dpo": {"accuracy", "reward_margin", "logits"},
    "simpo": {"accuracy", "reward_margin", "logits"},
    "verified sft": {"nll"},
}


@functools.cache
def config_of(name: str) -> Config:
    """The configuration of a case."""
    method, overrides, _ = CASES[name]
    return resolve(method, overrides, {}).config


def settings_of(name: str) -> LossSettings:
    return loss_settings(config_of(name))


def teacher_of(name: str, given: Batch) -> Tensor | None:
    """Logits of a teacher or a reference, where the method asks one."""
    method = settings_of(name).method
    return given.teacher if method.distils or method.has_reference else None


def contributed(name: str, given: Batch, denominator: float, head: HeadName = "fused") -> Contribution:
    """The loss of a batch: its logits are the hidden states, and the output matrix is the identity."""
    mask, settings, teacher = given.targets.mask.bool(), settings_of(name), teacher_of(name, given)
    student = States(given.student[mask], torch.eye(V, dtype=torch.float64))
    other = None if teacher is None else States(teacher[mask], student.weight)
    return contribution(student, other, given.tokens[mask], given.targets, replace(settings, head=head), denominator)


def sample(index: int, given: Batch) -> Sample:
    """A row of a batch as the actor gets it."""
    length = int(given.targets.mask[index].sum())
    ones = np.ones(length, dtype=np.float32)

    def row(values: Tensor) -> Any:
        return values[index, :length].numpy().astype(np.float32)

    return Sample(
        index=index,
        group=GROUPS[index],
        reward=float(given.targets.rewards[index]),
        prompt_ids=np.asarray([1, 2, index], dtype=np.int32),
        response_ids=given.tokens[index, :length].numpy().astype(np.int32),
        sampler_logprobs=row(given.targets.sampler_logprobs),
        teacher_prompt_ids=np.asarray([3, 4, 5, index], dtype=np.int32),
        streams=TokenStreams(ones, ones, row(given.targets.advantages)),
        step_ids=None if given.targets.step_ids is None else np.arange(length, dtype=np.int32) // 2,
    )


class Table:
    """A model whose logits depend on the last token only: hidden states are logits already."""

    def __init__(self, table: Tensor, called: Callable[[], None] = lambda: None) -> None:
        self.table, self.head, self.called = table, torch.eye(table.shape[1]), called
        self.model = SimpleNamespace(config=SimpleNamespace(vocab_size=table.shape[1]))

    def __call__(self, batch: TokenBatch) -> Tensor:
        """[M, V]"""
        self.called()
        return self.table[batch.input_ids.flatten()[batch.predictors]]

    def reshard(self) -> None:
        """There is nothing to give up."""


class Bigram(PolicyWorker):
    """An actor whose logits depend on the last token only: two tables in place of student and teacher."""

    def __init__(self, name: str) -> None:
        config = config_of(name)
        super().__init__(
            rank=0,
            ranks=1,
            device="cpu",
            model_path="",
            attn_implementation=PACKED,
            gradient_checkpointing=False,
            loss=loss_settings(config),
            optim=optim_settings(config),
            teacher=replace(teacher_settings(config), model_path=None),
            seed=0,
            deadline_s=1.0,
        )
        rng = torch.Generator().manual_seed(1)
        tables = [torch.randn(V, V, generator=rng) for _ in range(2)]
        self.student: Any = Table(tables[0].requires_grad_())
        self.teacher: Any = Table(tables[1])
        self.loss_sum = 0.0
        self.views = self.seen()

    def seen(self) -> Views:
        """What the models know of a micro-batch."""
        models = (self.student, self.teacher, self.distant)
        return Views(*models, self.loss, self.teaching, self.device, self.packed, Account(self.device))

    def learn(self, budget: int, ranks: int, samples: Sequence[Sample]) -> dict[str, float]:
        """Adds up the gradient of one mini-batch as so many ranks would; their metrics together."""
        meters = []
        packing = Packing(budget, self.loss.denominator, self.loss.method.pairs)
        for plan in plan_mini_batch(samples, ranks, packing):
            meters.append(Meter())
            for part, denominator in zip(plan.micro_batches, plan.denominators, strict=True):
                self.accumulate(part, None, denominator, meters[-1], frozenset())
        self.noted = by_rollout(meters)
        return merged(meters)
