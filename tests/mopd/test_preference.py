"""Pairs stay within groups and the losses are their formulas, in plain loops; parts add up under global counts."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mopd.preference import (
    dpo_loss,
    dpo_rewards,
    pairwise_loss,
    preference_pairs,
    simpo_loss,
    simpo_rewards,
    verified_sft_loss,
)

NAN = math.nan
REWARDS = torch.tensor([1.0, 0.0, 0.5, NAN, 1.0, 1.0, 0.0])
GROUPS = torch.tensor([0, 0, 0, 0, 1, 1, 2])
PAIRS = [(0, 1), (0, 2), (2, 1)]
B, T = 7, 4
MASK = torch.tensor([[float(t < n) for t in range(T)] for n in (4, 2, 1, 3, 4, 4, 2)])
SUCCESSES = REWARDS >= 1.0


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sums(table: Tensor) -> list[float]:
    return [
        math.fsum(value for value, unmasked in zip(values, flags, strict=True) if unmasked)
        for values, flags in zip(table.tolist(), MASK.tolist(), strict=True)
    ]


def plain_pairwise(h: list[float], margin: float, eps: float) -> float:
    total = 0.0
    for chosen, rejected in PAIRS:
        p = 1 / (1 + math.exp(-(h[chosen] - h[rejected] - margin)))
        total += -(1 - eps) * math.log(p) - eps * math.log(1 - p)
    return total / len(PAIRS)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(st.sampled_from([NAN, 0.0, 0.25, 1.0]), st.integers(0, 2)), max_size=9),
)
def test_pairs_are_all_strict_preferences_within_a_group(rows: list[tuple[float, int]]) -> None:
    rewards, groups = torch.tensor([row[0] for row in rows]), torch.tensor([row[1] for row in rows])
    pairs = preference_pairs(rewards, groups)
    expected = {
        (a, b)
        for a, (reward_a, group_a) in enumerate(rows)
        for b, (reward_b, group_b) in enumerate(rows)
        if group_a == group_b and reward_a > reward_b
    }
    assert pairs.shape == (len(expected), 2)
    assert {(a, b) for a, b in pairs.tolist()} == expected


def test_binary_rewards_pair_every_success_with_every_failure() -> None:
    assert len(preference_pairs(torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0]), ["a"] * 5)) == 2 * 3
    assert {(a, b) for a, b in preference_pairs(REWARDS, GROUPS).tolist()} == set(PAIRS)


@pytest.mark.parametrize("eps", [0.0, 0.1])
def test_dpo_matches_plain_arithmetic(eps: float) -> None:
    new, reference = -2 + normal(B, T, seed=1), -2 + normal(B, T, seed=2)
    h = [0.3 * (a - b) for a, b in zip(sums(new), sums(reference), strict=True)]
    assert dpo_rewards(new, reference, MASK, beta=0.3).tolist() == pytest.approx(h)
    loss = dpo_loss(new, reference, REWARDS, GROUPS, MASK, beta=0.3, label_smoothing=eps)
    assert loss.item() == pytest.approx(plain_pairwise(h, 0.0, eps), rel=1e-12)


@pytest.mark.parametrize("eps", [0.0, 0.1])
def test_simpo_matches_plain_arithmetic_and_beta_does_not_multiply_gamma(eps: float) -> None:
    new = -2 + normal(B, T, seed=3)
    h = [2.5 * a / n for a, n in zip(sums(new), MASK.sum(-1).tolist(), strict=True)]
    assert simpo_rewards(new, MASK, beta=2.5).tolist() == pytest.approx(h)
    loss = simpo_loss(new, REWARDS, GROUPS, MASK, beta=2.5, gamma=0.7, label_smoothing=eps)
    assert loss.item() == pytest.approx(plain_pairwise(h, 0.7, eps), rel=1e-12)


def test_dpo_at_the_reference_is_log_two_and_pulls_by_a_half() -> None:
    new = normal(B, T, seed=4).requires_grad_()
    loss = dpo_loss(new, new.detach(), REWARDS, GROUPS, MASK, beta=0.1)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2))
    net = [-2.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0]  # times rejected minus times chosen
    expected = torch.tensor(net)[:, None] * MASK * 0.1 * 0.5 / 3
    torch.testing.assert_close(new.grad, expected.double())


@pytest.mark.parametrize("method", ["dpo", "simpo", "sft", "sft sum"])
def test_gradcheck(method: str) -> None:
    reference = -2 + normal(B, T, seed=5)

    def loss(new: Tensor) -> Tensor:
        return call(method, new, slice(None), reference=reference, label_smoothing=0.1)

    assert torch.autograd.gradcheck(loss, ((-2 + normal(B, T, seed=6)).requires_grad_(),))


def call(method: str, new: Tensor, rows: slice, reference: Tensor, **options: Any) -> Tensor:
    """The loss of some rows, whichever the method."""
    if method.startswith("sft"):
        options.pop("label_smoothing", None)
        return verified_sft_loss(new[rows], SUCCESSES[rows], MASK[rows], length_normalize=method == "sft", **options)
    if method == "dpo":
        return dpo_loss(new[rows], reference[rows], REWARDS[rows], GROUPS[rows], MASK[rows], **options)
    return simpo_loss(new[rows], REWARDS[rows], GROUPS[rows], MASK[rows], **options)


@pytest.mark.parametrize("method", ["dpo", "simpo", "sft", "sft sum"])
def test_whole_groups_add_up_under_a_global_denominator(method: str) -> None:
    new, reference = (-2 + normal(B, T, seed=7)).requires_grad_(), -2 + normal(B, T, seed=8)
    whole = call(method, new, slice(None), reference)
    (gradient,) = torch.autograd.grad(whole, new)
    parts = [call(method, new, slice(a, b), reference, denominator=3) for a, b in ((0, 4), (4, 6), (6, 7))]
    total = torch.stack(parts).sum()
    assert total.item() == pytest.approx(whole.item(), rel=1e-12)
    torch.testing.assert_close(torch.autograd.grad(total, new)[0], gradient)


@pytest.mark.parametrize("method", ["dpo", "simpo", "sft", "sft sum"])
def test_masked_tokens_do_not_exist(method: str) -> None:
    new, reference = -2 + normal(B, T, seed=9), -2 + normal(B, T, seed=10)
    results = []
    for fill in (0.0, NAN, -math.inf):
        dirty = new.masked_fill(MASK == 0, fill).requires_grad_()
        other = reference.masked_fill(MASK == 0, fill).requires_grad_()
        loss = call(method, dirty, slice(None), other)
        loss.backward()
        assert other.grad is None
        results.append((loss.item(), dirty.grad.tolist()))
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("method", ["dpo", "simpo", "sft", "sft sum"])
@pytest.mark.parametrize("denominator", [None, 0, 5])
def test_without_pairs_or_successes_the_loss_is_zero_with_zero_gradient(method: str, denominator: int | None) -> None:
    new = normal(B, T, seed=11).requires_grad_()
    loss = call(method, new, slice(6, 7), new.detach(), denominator=denominator)
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(new.grad, torch.zeros_like(new))


def test_verified_sft_matches_plain_arithmetic() -> None:
    new = -2 + normal(B, T, seed=12)
    nll, lengths = [-total for total in sums(new)], MASK.sum(-1).tolist()
    successes = [0, 4, 5]
    by_mean = sum(nll[b] / lengths[b] for b in successes) / 3
    assert verified_sft_loss(new, SUCCESSES, MASK).item() == pytest.approx(by_mean)
    by_sum = sum(nll[b] for b in successes) / 3
    assert verified_sft_loss(new, SUCCESSES, MASK, length_normalize=False).item() == pytest.approx(by_sum)
    assert verified_sft_loss(new, SUCCESSES, MASK, denominator=6).item() == pytest.approx(by_mean / 2)


def test_a_response_without_tokens_is_worth_nothing() -> None:
    mask = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    assert simpo_rewards(torch.tensor([[-1.0, -2.0], [NAN, NAN]]), mask).tolist() == [-3.0, 0.0]


def test_extreme_margins_are_finite() -> None:
    implicit = torch.tensor([-1e4, 1e4], requires_grad=True)
    loss = pairwise_loss(implicit, torch.tensor([[0, 1]]))
    loss.backward()
    assert loss.item() == pytest.approx(2e4)
    assert implicit.grad.tolist() == [-1.0, 1.0]


def test_bad_arguments_are_refused() -> None:
    new = torch.zeros(B, T)
    with pytest.raises(ValueError, match="beta is 0"):
        dpo_rewards(new, new, MASK, beta=0)
    with pytest.raises(ValueError, match="beta is -1"):
        simpo_rewards(new, MASK, beta=-1)
    with pytest.raises(ValueError, match=r"label_smoothing is 0\.5"):
        pairwise_loss(torch.zeros(2), torch.zeros(0, 2).long(), label_smoothing=0.5)
    with pytest.raises(ValueError, match="reference_logprobs has shape"):
        dpo_rewards(new, new[:2], MASK)
    with pytest.raises(ValueError, match="response_mask has shape"):
        simpo_rewards(new, MASK[:2])
    with pytest.raises(ValueError, match="successes has shape"):
        verified_sft_loss(new, SUCCESSES[:2], MASK)
    with pytest.raises(ValueError, match="group ids"):
        preference_pairs(REWARDS, GROUPS[:3])
