"""The actor's loss: the method's functions on its logits, in parts that add up, and nothing from an empty part."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mopd import importance, losses, policy_losses, preference
from mopd.types import TokenStreams
from trainer.config.compose import resolve
from trainer.config.schema import Config
from trainer.forward import TokenBatch
from trainer.meters import Meter, merged
from trainer.objectives import LossSettings, Targets, contribution, entropy
from trainer.packing import Packing, Sample, plan_mini_batch
from trainer.settings import loss_settings, optim_settings, teacher_settings
from trainer.workers.policy import PolicyWorker

ACTOR = "actor_rollout_ref.actor"
DISTILL = f"{ACTOR}.self_distillation"
B, T, V = 6, 7, 12
GROUPS = [0, 0, 0, 1, 1, 1]


@dataclass(frozen=True)
class Batch:
    """A micro-batch in float64 with everything that a loss may read."""

    student: Tensor
    teacher: Tensor
    targets: Targets

    @property
    def old(self) -> Tensor:
        """[B, T]"""
        assert self.targets.old_logprobs is not None
        return self.targets.old_logprobs

    @property
    def logprobs(self) -> Tensor:
        """[B, T], of the student."""
        return losses.token_logprobs(self.student, self.targets.tokens)

    def rows(self, chosen: Sequence[int]) -> Batch:
        """Some rows; the student's logits remain those of the whole, for its gradient."""
        at = list(chosen)
        targets = Targets(
            tokens=self.targets.tokens[at],
            mask=self.targets.mask[at],
            advantages=self.targets.advantages[at],
            sampler_logprobs=self.targets.sampler_logprobs[at],
            old_logprobs=self.old[at],
            step_ids=None if self.targets.step_ids is None else self.targets.step_ids[at],
            rewards=self.targets.rewards[at],
            groups=[self.targets.groups[index] for index in at],
        )
        return Batch(self.student[at], self.teacher[at], targets)


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
        tokens=tokens,
        mask=mask,
        advantages=normal(B, 1).expand(B, T),
        sampler_logprobs=old + 0.2 * normal(B, T),
        old_logprobs=old,
        step_ids=step_ids if steps else None,
        rewards=torch.tensor([1.0, 0.0, 0.5, 1.0, float("nan"), 0.0]),
        groups=GROUPS,
    )
    return Batch(student, normal(B, T, V), targets)


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
        given.student, given.teacher, given.targets.tokens, given.targets.mask, **(options | changes)
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
        losses.token_logprobs(given.teacher, given.targets.tokens),
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
    reference = losses.token_logprobs(given.teacher, given.targets.tokens)
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
    "divergence": {"divergence", "topk_mass_student", "topk_mass_teacher", "teacher_invalid_fraction"},
    "divergence otherwise": {"divergence", "topk_mass_student", "topk_mass_teacher", "teacher_invalid_fraction"},
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


@pytest.mark.parametrize("name", CASES)
def test_the_loss_is_that_of_the_method(name: str) -> None:
    given, wanted = (batch(steps=name.endswith("otherwise")) for _ in range(2))
    part = contribution(given.student, teacher_of(name, given), given.targets, settings_of(name), 9.0)
    direct = CASES[name][2](wanted, 9.0)
    torch.testing.assert_close(part.loss, direct, rtol=1e-12, atol=1e-12)
    part.loss.backward()
    direct.backward()
    assert float(direct.detach().abs()) > 1e-3
    torch.testing.assert_close(given.student.grad, wanted.student.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("cut", [[[0, 1, 2], [3, 4, 5]], [[5], [3], [0, 4], [1, 2]]])
def test_parts_add_up_to_the_whole(name: str, cut: list[list[int]]) -> None:
    settings = settings_of(name)
    if settings.method.pairs and len(cut) > 2:
        cut = [[3, 4, 5], [0, 1, 2]]
    whole, parted = (batch(steps=name.endswith("otherwise")) for _ in range(2))
    teacher = teacher_of(name, whole)
    total = contribution(whole.student, teacher, whole.targets, settings, 9.0).loss
    total.backward()
    parts = [parted.rows(chosen) for chosen in cut]
    summed = sum(contribution(part.student, teacher_of(name, part), part.targets, settings, 9.0).loss for part in parts)
    torch.testing.assert_close(summed, total, rtol=1e-12, atol=1e-12)
    summed.backward()
    torch.testing.assert_close(parted.student.grad, whole.student.grad, rtol=1e-12, atol=1e-12)


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
        response_ids=given.targets.tokens[index, :length].numpy().astype(np.int32),
        sampler_logprobs=row(given.targets.sampler_logprobs),
        teacher_prompt_ids=np.asarray([3, 4, 5, index], dtype=np.int32),
        streams=TokenStreams(ones, ones, row(given.targets.advantages)),
        step_ids=None if given.targets.step_ids is None else np.arange(length, dtype=np.int32) // 2,
    )


@pytest.mark.parametrize("name", CASES)
def test_the_denominator_is_what_the_method_counts_in_the_whole_batch(name: str) -> None:
    given, settings = batch(steps=name.endswith("otherwise")), settings_of(name)
    denominator = settings.denominator([sample(index, given) for index in range(B)])
    part = contribution(given.student, teacher_of(name, given), given.targets, settings, denominator)
    torch.testing.assert_close(part.loss, CASES[name][2](given, None), rtol=1e-12, atol=1e-12)


def test_the_width_of_the_published_norm_is_the_longest_response_allowed() -> None:
    settings = replace(settings_of("vanilla"), aggregation="seq-mean-token-sum-norm", max_response_length=50)
    assert settings.denominator([sample(index, batch()) for index in range(B)]) == B * 50
    assert settings.denominator([]) == 1


@pytest.mark.parametrize("name", CASES)
def test_what_is_measured_belongs_to_the_method(name: str) -> None:
    given, settings = batch(steps=name.endswith("otherwise")), settings_of(name)
    measured = contribution(given.student, teacher_of(name, given), given.targets, settings, 1.0).measured
    assert {"actor/ppo_kl", "actor/entropy"} <= measured.keys()
    torch.testing.assert_close(measured["actor/ppo_kl"], (given.old - given.logprobs).detach())
    torch.testing.assert_close(measured["actor/entropy"], entropy(given.student.detach()))
    own = {key.split("/")[1] for key in measured if not key.startswith("actor/")}
    assert own == MEASURED.get(name, set())
    if settings.method.pairs:
        pairs = preference.preference_pairs(given.targets.rewards, GROUPS)
        assert all(len(values) == len(pairs) for key, values in measured.items() if not key.startswith("actor/"))
    assert not any(values.requires_grad for values in measured.values())


def test_the_sampled_token_estimator_measures_a_log_ratio() -> None:
    given = batch()
    measured = contribution(given.student, given.teacher, given.targets, settings_of("sampled token"), 1.0).measured
    teacher = losses.token_logprobs(given.teacher, given.targets.tokens)
    torch.testing.assert_close(measured["self_distillation/log_ratio"], given.logprobs.detach() - teacher)


class Bigram(PolicyWorker):
    """An actor whose logits depend on the last token only: two tables in place of student and teacher."""

    def __init__(self, name: str) -> None:
        config = config_of(name)
        super().__init__(
            rank=0,
            ranks=1,
            device="cpu",
            model_path="",
            attn_implementation="sdpa",
            gradient_checkpointing=False,
            loss=loss_settings(config),
            optim=optim_settings(config),
            teacher=replace(teacher_settings(config), model_path=None),
            seed=0,
            deadline_s=1.0,
        )
        rng = torch.Generator().manual_seed(1)
        tables = [torch.randn(V, V, generator=rng) for _ in range(2)]
        self.student: Any = tables[0].requires_grad_()
        self.teacher: Any = tables[1]
        self.loss_sum = 0.0

    def forward(self, scorer: Any, batch: TokenBatch) -> Tensor:
        """[B, T, V]"""
        return scorer[batch.input_ids.gather(1, batch.positions)] / self.loss.temperature

    def learn(self, budget: int, ranks: int, samples: Sequence[Sample]) -> dict[str, float]:
        """Adds up the gradient of one mini-batch as so many ranks would; their metrics together."""
        meters = []
        packing = Packing(budget, self.loss.denominator, self.loss.method.pairs)
        for plan in plan_mini_batch(samples, ranks, packing):
            meters.append(Meter())
            for part, denominator in zip(plan.micro_batches, plan.denominators, strict=True):
                self.accumulate(part, None, denominator, meters[-1], frozenset())
        return merged(meters)


@pytest.mark.parametrize("name", CASES)
def test_an_empty_micro_batch_adds_exactly_nothing(name: str) -> None:
    worker, meter = Bigram(name), Meter()
    worker.accumulate((), None, 5.0, meter, frozenset({0}))
    assert worker.loss_sum == 0.0
    assert torch.equal(worker.student.grad, torch.zeros(V, V))
    assert merged([meter]) == {}


@pytest.mark.parametrize("name", CASES)
def test_ranks_and_micro_batches_change_neither_loss_nor_gradient_nor_metrics(name: str) -> None:
    samples = [sample(index, batch(steps=name.endswith("otherwise"))) for index in range(B)]
    one, other = Bigram(name), Bigram(name)
    metrics, others = one.learn(1000, 1, samples), other.learn(1, 4, samples)
    assert one.loss_sum == pytest.approx(other.loss_sum, rel=1e-5)
    assert one.student.grad.norm() > 0
    torch.testing.assert_close(one.student.grad, other.student.grad, rtol=1e-4, atol=1e-6)
    assert metrics == pytest.approx(others, rel=1e-5)


def test_figures_of_pairs_are_means_over_pairs_whatever_the_shape_of_their_micro_batch() -> None:
    given = batch()
    samples = [
        replace(sample(index, given), response_ids=np.asarray([index], dtype=np.int32)) for index in (0, 1, 2, 3, 5)
    ]
    short = [
        replace(
            item,
            sampler_logprobs=item.sampler_logprobs[:1],
            streams=TokenStreams(*(np.ones(1, dtype=np.float32) for _ in range(3))),
        )
        for item in samples
    ]
    together, apart = Bigram("simpo").learn(1000, 1, short), Bigram("simpo").learn(1, 3, short)
    alone = [Bigram("simpo").learn(1000, 1, [item for item in short if item.group == group]) for group in (0, 1)]
    for name in ("simpo/accuracy", "simpo/reward_margin"):
        wanted = (3 * alone[0][name] + 1 * alone[1][name]) / 4
        assert together[name] == pytest.approx(wanted, rel=1e-5)
        assert apart[name] == pytest.approx(wanted, rel=1e-5)
