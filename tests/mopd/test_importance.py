"""Importance weights are truncated ratios without gradient; masked tokens take no part."""

from __future__ import annotations

import math

import pytest
import torch

from mopd.importance import mismatch, ratio, truncated_sequence_weights, truncated_weights

LOGPROBS = torch.tensor([[-1.0, -2.0, -0.5], [-3.0, -0.1, -1.0]])
BEHAVIOUR = torch.tensor([[-1.5, -1.0, -0.5], [-6.0, -0.1, -2.0]])


def test_weights_are_ratios_up_to_the_threshold() -> None:
    weights = truncated_weights(LOGPROBS, BEHAVIOUR, 2.0)
    expected = [min(math.exp(d), 2.0) for d in (0.5, -1.0, 0.0, 3.0, 0.0, 1.0)]
    assert weights.flatten().tolist() == pytest.approx(expected)


def test_equal_policies_have_weight_exactly_one() -> None:
    assert truncated_weights(LOGPROBS, LOGPROBS, 2.0).tolist() == torch.ones(2, 3).tolist()
    mask = torch.ones(2, 3)
    assert truncated_sequence_weights(LOGPROBS, LOGPROBS, mask, 2.0).tolist() == torch.ones(2, 3).tolist()


def test_weights_carry_no_gradient_but_the_ratio_does() -> None:
    logprobs = LOGPROBS.clone().requires_grad_()
    assert not truncated_weights(logprobs, BEHAVIOUR, 2.0).requires_grad
    assert not truncated_sequence_weights(logprobs, BEHAVIOUR, torch.ones(2, 3), 2.0).requires_grad
    ratio(logprobs, BEHAVIOUR).sum().backward()
    torch.testing.assert_close(logprobs.grad, (LOGPROBS - BEHAVIOUR).exp())


def test_log_ratios_are_clipped_at_twenty() -> None:
    far = torch.tensor([-500.0, 500.0, -math.inf, math.inf])
    weights = truncated_weights(far, torch.zeros(4), 1e30)
    assert weights.tolist() == pytest.approx([math.exp(-20), math.exp(20)] * 2)


def test_sequence_weight_is_the_product_of_unmasked_ratios_at_every_token() -> None:
    mask = torch.tensor([[1, 1, 0], [0, 1, 1]])
    garbage = BEHAVIOUR.masked_fill(mask == 0, math.nan)
    weights = truncated_sequence_weights(LOGPROBS, garbage, mask, 2.0)
    assert weights.shape == (2, 3)
    assert weights[0].tolist() == pytest.approx([math.exp(0.5 - 1.0)] * 3)
    assert weights[1].tolist() == pytest.approx([2.0] * 3)  # exp(1) is above the threshold


@pytest.mark.parametrize("threshold", [0.0, -1.0, math.nan])
def test_a_threshold_that_is_not_positive_is_refused(threshold: float) -> None:
    with pytest.raises(ValueError, match=r"threshold is .*positive"):
        truncated_weights(LOGPROBS, BEHAVIOUR, threshold)
    with pytest.raises(ValueError, match=r"threshold is .*positive"):
        truncated_sequence_weights(LOGPROBS, BEHAVIOUR, torch.ones(2, 3), threshold)


def test_the_mismatch_of_two_policies_is_that_of_plain_arithmetic() -> None:
    mask = torch.tensor([[1, 1, 0], [0, 0, 0], [0, 1, 1]])
    ours, theirs = (torch.stack([rows[0], rows[0], rows[1]]) for rows in (LOGPROBS, BEHAVIOUR))
    found = mismatch(ours.masked_fill(mask == 0, math.nan), theirs.masked_fill(mask == 0, math.inf), mask)
    gaps = [[0.5, -1.0], [0.0, 1.0]]
    flat = [gap for row in gaps for gap in row]
    assert found.log_ratios_N.tolist() == pytest.approx(flat)
    assert found.ratios_N.tolist() == pytest.approx([math.exp(gap) for gap in flat])
    assert found.products_S.tolist() == pytest.approx([math.exp(-0.5), math.e])
    assert found.products_N.tolist() == pytest.approx([math.exp(-0.5)] * 2 + [math.e] * 2)
    assert found.lengths_S.tolist() == [2, 2]
    assert found.nll_S.tolist() == pytest.approx([1.5, 0.55])
    assert found.behaviour_nll_S.tolist() == pytest.approx([1.25, 1.05])
    assert found.means_S.tolist() == pytest.approx([(math.exp(0.5) + math.exp(-1)) / 2, (1 + math.e) / 2])


def test_a_mismatch_is_a_constant_and_may_be_of_nothing() -> None:
    logprobs = LOGPROBS.clone().requires_grad_()
    found = mismatch(logprobs, BEHAVIOUR, torch.ones(2, 3))
    assert not any(values.requires_grad for values in vars(found).values())
    assert all(len(values) == 0 for values in vars(mismatch(LOGPROBS, BEHAVIOUR, torch.zeros(2, 3))).values())
