"""Each policy loss is its formula, in plain float64 loops; at ratio 1 each is the policy gradient."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mopd.policy_losses import POLICY_LOSSES, dppo_loss, drpo_loss, gspo_loss

MODES = ("token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm")
B, T = 4, 5
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 1, 0, 0], [0] * 5, [1, 1, 1, 0, 0]])
LOSSES = sorted(POLICY_LOSSES)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def batch(seed: int = 0, spread: float = 1.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-probs (below 0), old log-probs, advantages and weights, each [B, T]."""
    old = -(normal(B, T, seed=seed).exp()) - 0.05
    new = (old + spread * normal(B, T, seed=seed + 1)).clamp(max=-0.01)
    return new, old, normal(B, T, seed=seed + 2), normal(B, T, seed=seed + 3).exp()


def shares(mode: str) -> list[list[float]]:
    """What one unit of value at each token adds to the loss."""
    lengths = MASK.sum(-1).tolist()
    rows = [
        {"token-mean": 1 / 10, "seq-mean-token-sum": 1 / 3, "seq-mean-token-mean": 1 / (3 * max(n, 1))}.get(mode, 1 / T)
        for n in lengths
    ]
    return [[row * m for m in flags] for row, flags in zip(rows, MASK.tolist(), strict=True)]


Plain = Callable[[float, float, float], tuple[float, float]]
"""(log pi, log mu, A) of a token to its cost and the derivative by log pi."""


def check_tokenwise(loss: Callable[..., Tensor], plain: Plain, mode: str, **options: Any) -> None:
    """Value and autograd of `loss` against `plain`, token by token, weights and mask included."""
    new, old, advantages, weights = batch()
    new.requires_grad_()
    ours = loss(new, old, advantages, MASK, importance_weights=weights, aggregation=mode, **options)
    ours.backward()
    expected = 0.0
    for b, row in enumerate(shares(mode)):
        for t, share in enumerate(row):
            cost, slope = plain(new[b, t].item(), old[b, t].item(), advantages[b, t].item())
            expected += share * weights[b, t].item() * cost
            assert new.grad[b, t].item() == pytest.approx(share * weights[b, t].item() * slope, abs=1e-12)
    assert ours.item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("trust", ["tv", "kl"])
def test_dppo_matches_its_definition(trust: str, mode: str) -> None:
    dropped = []

    def plain(new: float, old: float, a: float) -> tuple[float, float]:
        pi, mu = math.exp(new), math.exp(old)
        distance = abs(pi - mu)
        if trust == "kl":
            distance = mu * (old - new) + (1 - mu) * math.log((1 - mu) / (1 - pi))
        drop = (a > 0 and pi > mu and distance > 0.07) or (a < 0 and pi < mu and distance > 0.04)
        dropped.append((drop, a > 0))
        return (0.0, 0.0) if drop else (-a * pi / mu, -a * pi / mu)

    check_tokenwise(dppo_loss, plain, mode, trust=trust, delta_low=0.04, delta_high=0.07)
    assert {(True, True), (True, False), (False, True), (False, False)} <= set(dropped)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("delta", [0.1, 12.5])
def test_drpo_matches_its_definition_and_its_gradient_is_the_weighted_one(delta: float, mode: str) -> None:
    signs = []

    def plain(new: float, old: float, a: float) -> tuple[float, float]:
        pi, mu = math.exp(new), math.exp(old)
        rho = pi / mu
        w = 1 - math.copysign(1, a * (rho - 1)) * abs(pi - mu) / delta
        signs.append(w < 0)
        return -a * rho + abs(a) * mu * (rho - 1) ** 2 / (2 * delta), -a * rho * w

    check_tokenwise(drpo_loss, plain, mode, delta=delta)
    assert any(signs) == (delta == 0.1)


@pytest.mark.parametrize(
    ("pi", "advantage", "w"),
    [(0.5, 1.0, 0.0), (0.7, 1.0, -1.0), (0.4, 1.0, 0.5), (0.1, 1.0, 2.0), (0.1, -1.0, 0.0), (0.5, -1.0, 2.0)],
)
def test_drpo_fades_ends_draws_back_and_grows_against_the_advantage(pi: float, advantage: float, w: float) -> None:
    """mu = 0.3, delta = 0.2."""
    logprobs = torch.tensor([[math.log(pi)]], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([[math.log(0.3)]], dtype=torch.float64)
    drpo_loss(logprobs, old, torch.tensor([advantage]).double(), torch.ones(1, 1), delta=0.2).backward()
    assert logprobs.grad.item() == pytest.approx(-advantage * pi / 0.3 * w, abs=1e-12)


@pytest.mark.parametrize("loss", [dppo_loss, drpo_loss])
def test_a_region_without_end_is_the_importance_sampled_policy_gradient(loss: Callable[..., Tensor]) -> None:
    def plain(new: float, old: float, a: float) -> tuple[float, float]:
        return -a * math.exp(new - old), -a * math.exp(new - old)

    wide = {"delta": 1e15} if loss is drpo_loss else {"delta_low": 2.0, "delta_high": 2.0}
    check_tokenwise(loss, plain, "token-mean", **wide)


@pytest.mark.parametrize(
    ("pi", "advantage", "kept"),
    [
        (0.59, 1.0, True),
        (0.61, 1.0, False),
        (0.11, 1.0, True),  # far, but against the advantage: it may come back
        (0.41, -1.0, True),
        (0.39, -1.0, False),
        (0.95, -1.0, True),
    ],
)
def test_dppo_drops_what_left_the_region_where_the_advantage_pushes(pi: float, advantage: float, kept: bool) -> None:
    """mu = 0.5; the region is 0.4 to 0.6."""
    logprobs = torch.tensor([[math.log(pi)]], dtype=torch.float64, requires_grad=True)
    old, advantages = torch.tensor([[math.log(0.5)]], dtype=torch.float64), torch.tensor([advantage]).double()
    for trust, delta in (("tv", 0.1), ("kl", 0.5 * math.log(0.5 / 0.6) + 0.5 * math.log(0.5 / 0.4))):
        loss = dppo_loss(logprobs, old, advantages, torch.ones(1, 1), trust=trust, delta_low=delta, delta_high=delta)
        assert loss.item() == pytest.approx(-advantage * pi / 0.5 if kept else 0.0)


def test_dppo_has_a_threshold_for_each_direction() -> None:
    old, mask = torch.full((1, 1), math.log(0.5)), torch.ones(1, 1)
    up, down, one = torch.full((1, 1), math.log(0.7)), torch.full((1, 1), math.log(0.3)), torch.ones(1)
    for low, high in ((0.1, 0.3), (0.3, 0.1)):
        assert (dppo_loss(up, old, one, mask, delta_low=low, delta_high=high).item() == 0.0) == (high == 0.1)
        assert (dppo_loss(down, old, -one, mask, delta_low=low, delta_high=high).item() == 0.0) == (low == 0.1)


def test_dppo_by_kl_stays_finite_for_a_token_that_is_certain() -> None:
    for old, new in ((0.0, 0.0), (-1.0, 0.0), (0.0, -1.0)):
        logprobs = torch.tensor([[new]], requires_grad=True)
        loss = dppo_loss(logprobs, torch.tensor([[old]]), torch.ones(1), torch.ones(1, 1), trust="kl", delta_high=1.0)
        loss.backward()
        assert bool(loss.isfinite() & logprobs.grad.isfinite().all())
        assert (loss.item() == 0.0) == (new > old)
    assert dppo_loss(torch.zeros(1, 1), torch.full((1, 1), -900.0), torch.ones(1), torch.ones(1, 1), trust="kl") == 0


def test_gspo_is_the_clipped_surrogate_of_whole_sequences() -> None:
    clipped = set()
    for seed in range(5, 15):
        new, old, _, _ = batch(seed=seed, spread=0.2)
        advantages = torch.tensor([1.0, -2.0, 3.0, -0.5], dtype=torch.float64)
        new.requires_grad_()
        loss = gspo_loss(new, old, advantages, MASK, clip_ratio_low=0.05, clip_ratio_high=0.03)
        loss.backward()
        ours, new.grad = new.grad, None
        costs = []
        for b in (0, 1, 3):
            rho, a = (new[b] - old[b])[MASK[b].bool()].mean().exp(), advantages[b]
            costs.append(torch.maximum(-a * rho, -a * rho.clamp(0.95, 1.03)))
        expected = torch.stack(costs).mean()
        expected.backward()
        assert loss.item() == pytest.approx(expected.item(), abs=1e-14)
        torch.testing.assert_close(ours, new.grad, rtol=0, atol=1e-14)
        clipped |= {(b, bool((ours[b] == 0).all())) for b in (0, 1, 3)}
    assert len(clipped) == 6


def test_gspo_clips_a_sequence_as_one() -> None:
    """Tokens far apart, whose ratios cancel: PPO would clip both, GSPO neither."""
    logprobs = torch.tensor([[-1.0, -3.0]], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([[-2.0, -2.0]], dtype=torch.float64)
    gspo_loss(logprobs, old, torch.ones(1).double(), torch.ones(1, 2)).backward()
    assert logprobs.grad.tolist() == [[-0.5, -0.5]]


def test_gspo_gives_every_token_its_own_advantage() -> None:
    new, old, advantages, weights = batch(seed=9, spread=0.2)
    new.requires_grad_()
    gspo_loss(
        new, old, advantages, MASK, clip_ratio_low=1.0, clip_ratio_high=9.0, importance_weights=weights, denominator=1
    ).backward()
    lengths = MASK.sum(-1, keepdim=True).clamp(min=1)
    rho = (((new - old).detach() * MASK).sum(-1, keepdim=True) / lengths).exp()
    torch.testing.assert_close(new.grad, -advantages * weights * rho * MASK / lengths)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("mode", MODES)
def test_on_policy_every_loss_is_the_policy_gradient(name: str, mode: str) -> None:
    logprobs, _, advantages, weights = batch(seed=20)
    logprobs.requires_grad_()
    POLICY_LOSSES[name](
        logprobs, logprobs.detach(), advantages, MASK, importance_weights=weights, aggregation=mode
    ).backward()
    expected = -advantages * weights * torch.tensor(shares(mode), dtype=torch.float64)
    torch.testing.assert_close(logprobs.grad, expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("name", LOSSES)
def test_gradcheck(name: str) -> None:
    new, old, _, weights = batch(seed=30, spread=0.1)
    advantages = normal(B, seed=33)
    options = {"gspo": {"clip_ratio_low": 0.5, "clip_ratio_high": 0.5, "aggregation": "token-mean"}}.get(name, {})

    def loss(logprobs: Tensor) -> Tensor:
        return POLICY_LOSSES[name](logprobs, old, advantages, MASK, importance_weights=weights, **options)

    if name == "gspo":  # its gradient, token by token, is that of the value only where tokens weigh the same
        weights = torch.ones(B, T)
    assert torch.autograd.gradcheck(loss, (new.requires_grad_(),))


@pytest.mark.parametrize("name", LOSSES)
def test_masked_tokens_do_not_exist_and_only_the_student_learns(name: str) -> None:
    results = []
    for fill in (0.0, math.nan, math.inf):
        given = [tensor.masked_fill(MASK == 0, fill).requires_grad_() for tensor in batch(seed=40)]
        new, old, advantages, weights = given
        loss = POLICY_LOSSES[name](new, old, advantages, MASK, importance_weights=weights)
        loss.backward()
        assert all(tensor.grad is None for tensor in given[1:])
        results.append((loss.item(), new.grad.tolist()))
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("mode", MODES)
def test_parts_add_up_under_a_global_denominator(name: str, mode: str) -> None:
    new, old, advantages, _ = batch(seed=50)
    denominator = {"token-mean": 10, "seq-mean-token-sum-norm": T}.get(mode, 3)
    parts = [
        POLICY_LOSSES[name](*rows, aggregation=mode, denominator=denominator).item()
        for rows in zip(*(tensor.split([3, 1]) for tensor in (new, old, advantages, MASK)), strict=True)
    ]
    whole = POLICY_LOSSES[name](new, old, advantages, MASK, aggregation=mode).item()
    assert sum(parts) == pytest.approx(whole)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("shape", [(2, 3), (0, 3), (2, 0)])
def test_nothing_to_learn_is_zero_with_zero_gradient(name: str, shape: tuple[int, int]) -> None:
    logprobs, zeros = normal(*shape, seed=1).requires_grad_(), torch.zeros(shape)
    loss = POLICY_LOSSES[name](logprobs, zeros, zeros, zeros)
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(logprobs.grad, torch.zeros_like(logprobs))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("new", [[-900.0, 0.0], [0.0, 0.0], [-900.0, -900.0]])
@pytest.mark.parametrize("old", [[0.0, -900.0], [0.0, 0.0], [-900.0, -900.0]])
def test_far_ratios_are_finite(name: str, new: list[float], old: list[float]) -> None:
    for advantage in (1.0, -1.0):
        logprobs = torch.tensor([new], requires_grad=True)
        loss = POLICY_LOSSES[name](logprobs, torch.tensor([old]), torch.tensor([advantage]), torch.ones(1, 2))
        loss.backward()
        assert bool(loss.isfinite() & logprobs.grad.isfinite().all())


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("gspo", {"clip_ratio_low": 2.0}, "clip ratios 2.0"),
        ("dppo", {"trust": "js"}, "trust is 'js'.*tv, kl"),
        ("dppo", {"delta_low": 0.0}, "delta_low is 0.0"),
        ("dppo", {"delta_high": -1.0}, "delta_high is -1.0"),
        ("drpo", {"delta": math.nan}, "delta is nan"),
        *((name, {"advantages": torch.ones(5)}, "advantages has shape") for name in LOSSES),
        *((name, {"importance_weights": torch.ones(5)}, "importance_weights has shape") for name in LOSSES),
        *((name, {"aggregation": "sum"}, "aggregation is 'sum'") for name in LOSSES),
    ],
)
def test_bad_arguments_are_refused(name: str, changes: dict[str, Any], message: str) -> None:
    names = ("logprobs", "old_logprobs", "advantages", "response_mask")
    with pytest.raises(ValueError, match=message):
        POLICY_LOSSES[name](**{**{key: torch.ones(2, 3) for key in names}, **changes})
