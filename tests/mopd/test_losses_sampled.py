"""The sampled-token estimator: on average the gradient of the exact reverse KL; steps do not change any loss."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mopd.divergence import divergence
from mopd.losses import aggregate, distillation_loss, policy_gradient_loss, sampled_token_loss, step_means

MODES = ("token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm")
B, T, V = 3, 4, 6
MASK = torch.tensor([[1, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 0]])
STEPS = torch.tensor([[0, 0, 0, 1], [0, 1, 1, -1], [-1] * 4])


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("mode", MODES)
def test_matches_plain_arithmetic_with_every_weight(mode: str) -> None:
    student, teacher, old = (-2 + normal(B, T, seed=seed) for seed in (1, 2, 3))
    weights, sequences = normal(B, T, seed=4).exp(), torch.tensor([1, 0, 1])
    student.requires_grad_()
    loss = sampled_token_loss(
        student, teacher, MASK, old_logprobs=old, is_clip=1.5, importance_weights=weights,
        sequence_mask=sequences, aggregation=mode,
    )  # fmt: skip
    loss.backward()
    shares = {"token-mean": 1 / 4, "seq-mean-token-sum": 1, "seq-mean-token-mean": 1 / 4}.get(mode, 1 / T)
    expected = 0.0
    for b in range(B):
        for t in range(T):
            share = shares * MASK[b, t].item() * sequences[b].item()
            s, q, mu = (tensor[b, t].item() for tensor in (student, teacher, old))
            weight = share * weights[b, t].item() * min(math.exp(s - mu), 1.5)
            expected += weight * (s - q) * s
            assert student.grad[b, t].item() == pytest.approx(weight * (s - q), abs=1e-14)
    assert loss.item() == pytest.approx(expected, abs=1e-14)


def test_the_expected_gradient_is_that_of_the_exact_reverse_kl() -> None:
    """Every token of a tiny vocabulary, weighted by its probability under the student."""
    student, teacher = normal(V, seed=5).requires_grad_(), normal(V, seed=6)
    logprobs = student.log_softmax(-1)[:, None]
    probabilities = logprobs.exp().detach()
    loss = sampled_token_loss(
        logprobs, teacher.log_softmax(-1)[:, None], torch.ones(V, 1), importance_weights=probabilities, denominator=1
    )
    (ours,) = torch.autograd.grad(loss, student)
    (exact,) = torch.autograd.grad(divergence(student, teacher, alpha=1.0, topk=None), student)
    torch.testing.assert_close(ours, exact, rtol=0, atol=1e-14)


def test_it_is_a_policy_gradient_whose_advantage_is_the_log_ratio() -> None:
    student, teacher = (-2 + normal(B, T, seed=7)).requires_grad_(), -2 + normal(B, T, seed=8)
    sampled_token_loss(student, teacher, MASK).backward()
    ours, student.grad = student.grad, None
    policy_gradient_loss(student, student.detach(), teacher - student.detach(), MASK).backward()
    torch.testing.assert_close(ours, student.grad)


def test_equal_policies_have_no_loss_and_no_gradient() -> None:
    student = normal(B, T, seed=9).requires_grad_()
    loss = sampled_token_loss(student, student.detach(), MASK)
    loss.backward()
    assert loss.item() == 0.0
    assert not bool(student.grad.any())


@pytest.mark.parametrize("fill", [math.nan, math.inf])
def test_masked_tokens_do_not_exist_and_only_the_student_learns(fill: float) -> None:
    student, teacher, old, weights = (normal(B, T, seed=seed) for seed in (1, 2, 3, 4))
    results = []
    for dirty in (False, True):
        given = [x.masked_fill((MASK == 0) & dirty, fill).requires_grad_() for x in (student, teacher, old, weights)]
        loss = sampled_token_loss(
            given[0], given[1], MASK, old_logprobs=given[2], is_clip=2.0, importance_weights=given[3]
        )
        loss.backward()
        assert all(tensor.grad is None for tensor in given[1:])
        results.append((loss.item(), given[0].grad))
    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("mode", MODES)
def test_parts_add_up_under_a_global_denominator(mode: str) -> None:
    student, teacher = normal(B, T, seed=1), normal(B, T, seed=2)
    denominator = {"token-mean": 6, "seq-mean-token-sum-norm": T}.get(mode, 2)
    parts = [
        sampled_token_loss(*rows, aggregation=mode, denominator=denominator).item()
        for rows in zip(*(tensor.split(1) for tensor in (student, teacher, MASK)), strict=True)
    ]
    assert sum(parts) == pytest.approx(sampled_token_loss(student, teacher, MASK, aggregation=mode).item())


def test_nothing_to_learn_is_zero() -> None:
    student = normal(B, T, seed=1).requires_grad_()
    loss = sampled_token_loss(student, student.detach(), torch.zeros(B, T), is_clip=2.0)
    loss.backward()
    assert loss.item() == 0.0
    assert not bool(student.grad.any())


@pytest.mark.parametrize("mode", MODES)
def test_steps_change_neither_loss_nor_gradient_whatever_the_weights(mode: str) -> None:
    """Weights come before the mean over the step, as published, so that the sum over a step is kept."""
    mask = MASK * (STEPS >= 0)
    weights, old = normal(B, T, seed=10).exp(), -2 + normal(B, T, seed=11)
    options: dict[str, Any] = {"importance_weights": weights, "old_logprobs": old, "is_clip": 1.5, "aggregation": mode}
    student, teacher, tokens = normal(B, T, V, seed=12), normal(B, T, V, seed=13), torch.zeros(B, T).long()

    def by_distribution(logits: Tensor, **steps: Tensor) -> Tensor:
        return distillation_loss(logits, teacher, tokens, mask, topk=3, **steps, **options)

    def by_sample(logits: Tensor, **steps: Tensor) -> Tensor:
        return sampled_token_loss(logits[..., 0], teacher[..., 0], mask, **steps, **options)

    for loss in (by_distribution, by_sample):
        plain, stepped = student.clone().requires_grad_(), student.clone().requires_grad_()
        before, after = loss(plain), loss(stepped, step_ids=STEPS)
        before.backward()
        after.backward()
        assert after.item() == pytest.approx(before.item(), abs=1e-14)
        torch.testing.assert_close(stepped.grad, plain.grad, rtol=0, atol=1e-14)


def test_weighing_after_the_step_mean_would_change_the_loss_unless_weights_are_equal_within_a_step() -> None:
    mask = MASK * (STEPS >= 0)
    values, weights = normal(B, T, seed=14), normal(B, T, seed=15).exp()

    def after(weights: Tensor) -> float:
        return aggregate(weights * step_means(values, STEPS, mask), mask).item()

    assert after(weights) != pytest.approx(aggregate(weights * values, mask).item())
    equal = step_means(weights, STEPS, mask)
    assert after(equal) == pytest.approx(aggregate(equal * values, mask).item())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher_logprobs": torch.ones(2)}, "teacher_logprobs has shape"),
        ({"student_logprobs": torch.ones(2, 4)}, "student_logprobs has shape"),
        ({"response_mask": torch.ones(2)}, "response_mask has shape"),
        ({"importance_weights": torch.ones(2)}, "importance_weights has shape"),
        ({"old_logprobs": torch.ones(2), "is_clip": 2.0}, "old_logprobs has shape"),
        ({"is_clip": -1.0}, "threshold is"),
        ({"aggregation": "sum"}, "aggregation is 'sum'"),
    ],
)
def test_bad_arguments_are_refused(changes: dict[str, Any], message: str) -> None:
    names = ("student_logprobs", "teacher_logprobs", "response_mask")
    with pytest.raises(ValueError, match=message):
        sampled_token_loss(**{**{name: torch.ones(2, 3) for name in names}, **changes})
