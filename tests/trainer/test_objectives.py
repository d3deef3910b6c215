"""The actor's loss: the method's functions on its logits, in parts that add up, and nothing from an empty part."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from mopd import losses, preference
from mopd.types import TokenStreams
from tests.trainer.loss_cases import CASES, GROUPS, MEASURED, B, Bigram, V, batch, contributed, sample, settings_of
from trainer.meters import Meter, merged
from trainer.scores import HEADS, HeadName, entropy


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", CASES)
def test_the_loss_is_that_of_the_method(name: str, head: HeadName) -> None:
    given, wanted = (batch(steps=name.endswith("otherwise")) for _ in range(2))
    part = contributed(name, given, 9.0, head)
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
    total = contributed(name, whole, 9.0).loss
    total.backward()
    parts = [parted.rows(chosen) for chosen in cut]
    summed = sum(contributed(name, part, 9.0).loss for part in parts)
    torch.testing.assert_close(summed, total, rtol=1e-12, atol=1e-12)
    summed.backward()
    torch.testing.assert_close(parted.student.grad, whole.student.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_the_denominator_is_what_the_method_counts_in_the_whole_batch(name: str) -> None:
    given, settings = batch(steps=name.endswith("otherwise")), settings_of(name)
    denominator = settings.denominator([sample(index, given) for index in range(B)])
    part = contributed(name, given, denominator)
    torch.testing.assert_close(part.loss, CASES[name][2](given, None), rtol=1e-12, atol=1e-12)


def test_the_width_of_the_published_norm_is_the_longest_response_allowed() -> None:
    settings = replace(settings_of("vanilla"), aggregation="seq-mean-token-sum-norm", max_response_length=50)
    assert settings.denominator([sample(index, batch()) for index in range(B)]) == B * 50
    assert settings.denominator([]) == 1


@pytest.mark.parametrize("name", CASES)
def test_what_is_measured_belongs_to_the_method(name: str) -> None:
    given, settings = batch(steps=name.endswith("otherwise")), settings_of(name)
    measured, mask = contributed(name, given, 1.0).measured, given.targets.mask.bool()
    assert {"actor/ppo_kl", "actor/entropy"} <= measured.keys()
    torch.testing.assert_close(measured["actor/ppo_kl"][mask], (given.old - given.logprobs).detach()[mask])
    torch.testing.assert_close(measured["actor/entropy"][mask], entropy(given.student.detach())[mask])
    own = {key.split("/")[1] for key in measured if not key.startswith("actor/")}
    assert own == MEASURED.get(name, set())
    if settings.method.pairs:
        pairs = preference.preference_pairs(given.targets.rewards, GROUPS)
        assert all(len(values) == len(pairs) for key, values in measured.items() if not key.startswith("actor/"))
    assert not any(values.requires_grad for values in measured.values())


def test_the_sampled_token_estimator_measures_a_log_ratio() -> None:
    given = batch()
    measured, mask = contributed("sampled token", given, 1.0).measured, given.targets.mask.bool()
    wanted = given.logprobs.detach() - losses.token_logprobs(given.teacher, given.tokens)
    torch.testing.assert_close(measured["self_distillation/log_ratio"][mask], wanted[mask])


@pytest.mark.parametrize("name", CASES)
def test_an_empty_micro_batch_adds_exactly_nothing(name: str) -> None:
    worker, meter = Bigram(name), Meter()
    worker.accumulate((), None, 5.0, meter, frozenset({0}))
    assert worker.loss_sum == 0.0
    assert torch.equal(worker.student.table.grad, torch.zeros(V, V))
    assert merged([meter]) == {}


@pytest.mark.parametrize("name", CASES)
def test_ranks_and_micro_batches_change_neither_loss_nor_gradient_nor_metrics(name: str) -> None:
    samples = [sample(index, batch(steps=name.endswith("otherwise"))) for index in range(B)]
    one, other = Bigram(name), Bigram(name)
    metrics, others = one.learn(1000, 1, samples), other.learn(1, 4, samples)
    assert one.loss_sum == pytest.approx(other.loss_sum, rel=1e-5)
    assert one.student.table.grad.norm() > 0
    torch.testing.assert_close(one.student.table.grad, other.student.table.grad, rtol=1e-4, atol=1e-6)
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
