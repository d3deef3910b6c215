"""The losses are what their definitions say, token by token; masked tokens do not exist; parts add up."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mopd.divergence import divergence
from mopd.losses import (
    aggregate,
    distillation_loss,
    policy_gradient_loss,
    step_means,
    token_divergence,
    token_logprobs,
)

MODES = ("token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm")
B, T, V = 4, 5, 12
LENGTHS = (5, 2, 0, 3)
MASK = torch.tensor([[float(t < length) for t in range(T)] for length in LENGTHS])


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def batch(seed: int = 0) -> dict[str, Any]:
    """The positional arguments of `distillation_loss` by name."""
    return {
        "student_logits": 2 * normal(B, T, V, seed=seed),
        "teacher_logits": 2 * normal(B, T, V, seed=seed + 1),
        "tokens": torch.randint(V, (B, T), generator=torch.Generator().manual_seed(seed)),
        "response_mask": MASK,
    }


def plain_aggregate(values: list[list[float]], mask: list[list[float]], mode: str) -> float:
    rows = [[v for v, m in zip(row, flags, strict=True) if m] for row, flags in zip(values, mask, strict=True)]
    full = [row for row in rows if row]
    if not full:
        return 0.0
    total = sum(map(sum, full))
    return {
        "token-mean": total / sum(map(len, full)),
        "seq-mean-token-sum": total / len(full),
        "seq-mean-token-mean": sum(sum(row) / len(row) for row in full) / len(full),
        "seq-mean-token-sum-norm": total / len(values[0]),
    }[mode]


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(st.lists(st.tuples(st.floats(-9, 9), st.booleans()), min_size=3, max_size=3), min_size=1),
    mode=st.sampled_from(MODES),
)
def test_aggregate_matches_plain_arithmetic(rows: list[list[tuple[float, bool]]], mode: str) -> None:
    table = torch.tensor(rows, dtype=torch.float64)
    values, mask = table[..., 0], table[..., 1]
    expected = plain_aggregate(values.tolist(), mask.tolist(), mode)
    assert aggregate(values, mask, mode).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_loss_matches_plain_arithmetic_with_every_weight(mode: str) -> None:
    data = batch()
    old, weights = -2 + normal(B, T, seed=5), normal(B, T, seed=6).exp()
    sequences = torch.tensor([1, 1, 1, 0])
    loss = distillation_loss(
        **data, alpha=0.3, topk=4, old_logprobs=old, is_clip=1.5, importance_weights=weights,
        sequence_mask=sequences, aggregation=mode,
    )  # fmt: skip
    values = [[0.0] * T for _ in range(B)]
    mask = [[0.0] * T for _ in range(B)]
    for b in range(B):
        for t in range(T):
            row = data["student_logits"][b, t].tolist()
            logp = row[int(data["tokens"][b, t])] - math.log(sum(map(math.exp, row)))
            clipped = min(math.exp(logp - old[b, t].item()), 1.5)
            token = divergence(data["student_logits"][b, t], data["teacher_logits"][b, t], alpha=0.3, topk=4)
            values[b][t] = token.item() * clipped * weights[b, t].item()
            mask[b][t] = MASK[b, t].item() * sequences[b].item()
    assert loss.item() == pytest.approx(plain_aggregate(values, mask, mode), rel=1e-12)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("topk", [None, 3])
def test_gradcheck(mode: str, topk: int | None) -> None:
    data = batch(seed=20)
    student = data.pop("student_logits")[:2, :3].clone().requires_grad_()
    rest = {name: tensor[:2, :3] for name, tensor in data.items()}
    steps = torch.tensor([[0, 0, 1], [0, 1, -1]])

    def loss(logits: Tensor) -> Tensor:
        return distillation_loss(logits, **rest, topk=topk, step_ids=steps, aggregation=mode)

    assert torch.autograd.gradcheck(loss, (student,))


def test_weights_are_constants_to_the_gradient() -> None:
    """With is_clip the gradient is that of the divergence times the weight, not of their product."""
    data = batch(seed=30)
    student = data["student_logits"].requires_grad_()
    old = -2 + normal(B, T, seed=31)
    distillation_loss(**data, topk=4, old_logprobs=old, is_clip=2.0, denominator=1).backward()
    ours, student.grad = student.grad, None
    weights = (token_logprobs(student, data["tokens"]) - old).exp().clamp(max=2.0).detach()
    assert bool((weights == 2.0).any())
    assert bool((weights < 2.0).any())
    (divergence(student, data["teacher_logits"], topk=4) * weights * MASK).sum().backward()
    torch.testing.assert_close(ours, student.grad)


def test_is_clip_is_inert_where_the_student_has_not_moved() -> None:
    data = batch()
    plain = distillation_loss(**data, topk=4)
    same = token_logprobs(data["student_logits"], data["tokens"])
    assert torch.equal(distillation_loss(**data, topk=4, old_logprobs=same, is_clip=2.0), plain)
    assert torch.equal(distillation_loss(**data, topk=4, is_clip=2.0), plain)
    moved = distillation_loss(**data, topk=4, old_logprobs=same - 0.5, is_clip=2.0)
    assert moved.item() == pytest.approx(plain.item() * math.exp(0.5))


@pytest.mark.parametrize("mode", MODES)
def test_masked_tokens_do_not_exist(mode: str) -> None:
    """Whatever stands at a masked token, NaN and impossible ids included, loss and gradient are the same."""
    data = batch(seed=40)
    options: dict[str, Any] = {"topk": 3, "is_clip": 2.0, "aggregation": mode}
    old, weights = -2 + normal(B, T, seed=41), normal(B, T, seed=42).exp()
    clean = data["student_logits"].clone().requires_grad_()
    expected = distillation_loss(
        **{**data, "student_logits": clean}, old_logprobs=old, importance_weights=weights, **options
    )
    expected.backward()

    off = MASK == 0
    dirty = data["student_logits"].masked_fill(off[..., None], math.nan).requires_grad_()
    loss = distillation_loss(
        dirty,
        data["teacher_logits"].masked_fill(off[..., None], -math.inf),
        data["tokens"].masked_fill(off, -100),
        MASK,
        old_logprobs=old.masked_fill(off, math.nan),
        importance_weights=weights.masked_fill(off, math.inf),
        **options,
    )
    loss.backward()
    assert torch.equal(loss, expected)
    assert torch.equal(dirty.grad, clean.grad)
    assert bool((dirty.grad[off] == 0).all())


def test_sequence_mask_removes_the_sequence_from_sum_and_count() -> None:
    data = batch()
    some = torch.tensor([True, False, True, True])
    masked = distillation_loss(**data, topk=4, sequence_mask=some)
    kept = {name: tensor[some] for name, tensor in data.items()}
    assert masked.item() == pytest.approx(distillation_loss(**kept, topk=4).item())
    assert masked.item() != pytest.approx(distillation_loss(**data, topk=4).item())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("cuts", [[1, 1, 1, 1], [3, 1], [2, 2]])
def test_parts_add_up_to_the_whole_under_a_global_denominator(mode: str, cuts: list[int]) -> None:
    data = batch(seed=50)
    student = data["student_logits"].requires_grad_()
    whole = distillation_loss(**data, topk=4, aggregation=mode)
    (gradient,) = torch.autograd.grad(whole, student)
    denominator = {"token-mean": int(MASK.sum()), "seq-mean-token-sum-norm": T}.get(mode, 3)
    parts = [
        distillation_loss(*part, topk=4, aggregation=mode, denominator=denominator)
        for part in zip(*(tensor.split(cuts) for tensor in data.values()), strict=True)
    ]
    summed = torch.stack(parts).sum()
    torch.testing.assert_close(summed, whole)
    torch.testing.assert_close(torch.autograd.grad(summed, student)[0], gradient)


def test_denominator_may_be_a_tensor_and_zero_divides_by_one() -> None:
    values = torch.tensor([[1.0, 2.0]])
    assert aggregate(values, torch.ones(1, 2), denominator=torch.tensor(6)).item() == 0.5
    assert aggregate(values, torch.ones(1, 2), denominator=0.5).item() == 6.0
    assert aggregate(values, torch.zeros(1, 2), denominator=0).item() == 0.0


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(2, 3), (0, 3), (2, 0), (0, 0)])
def test_nothing_to_learn_is_a_loss_of_zero_with_zero_gradient(mode: str, shape: tuple[int, int]) -> None:
    student = normal(*shape, V, seed=1).requires_grad_()
    tokens, mask = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape)
    loss = distillation_loss(
        student, normal(*shape, V, seed=2), tokens, mask, topk=3, is_clip=2.0, aggregation=mode,
        step_ids=tokens, importance_weights=mask,
    )  # fmt: skip
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(student.grad, torch.zeros_like(student))

    logprobs = normal(*shape, seed=3).requires_grad_()
    loss = policy_gradient_loss(logprobs, mask.double(), mask.double(), mask, aggregation=mode)
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(logprobs.grad, torch.zeros_like(logprobs))


def test_step_means_average_over_a_step_of_one_sequence() -> None:
    values = torch.tensor([[1.0, 3.0, 5.0, 9.0, 7.0], [2.0, 4.0, 8.0, 100.0, 100.0]])
    steps = torch.tensor([[0, 0, 2, 2, 2], [0, 1, 1, -1, -1]], dtype=torch.int32)
    mask = torch.tensor([[1, 1, 1, 0, 1], [1, 1, 1, 1, 0]])
    means = step_means(values, steps, mask)
    assert means.tolist() == [[2.0, 2.0, 6.0, 0.0, 6.0], [2.0, 6.0, 6.0, 0.0, 0.0]]


@pytest.mark.parametrize("mode", MODES)
def test_step_means_move_value_within_a_step_and_keep_every_loss(mode: str) -> None:
    data = batch()
    steps = torch.tensor([[0, 0, 1, 1, 1], [0, 0, -1, -1, -1], [-1] * 5, [0, 1, 1, -1, -1]])
    by_token = distillation_loss(**data, topk=4, aggregation=mode)
    by_step = distillation_loss(**data, topk=4, aggregation=mode, step_ids=steps)
    torch.testing.assert_close(by_step, by_token)
    values = token_divergence(data["student_logits"], data["teacher_logits"], MASK, topk=4)
    assert not torch.allclose(step_means(values, steps, MASK), values)


def test_padding_steps_are_masked() -> None:
    data = batch()
    steps = torch.where(MASK.bool(), 0, -1)
    steps[0, 3:] = -1
    expected = distillation_loss(**{**data, "response_mask": MASK * (steps >= 0)}, topk=4)
    torch.testing.assert_close(distillation_loss(**data, topk=4, step_ids=steps), expected)


def test_token_divergence_is_the_divergence_at_unmasked_tokens_and_zero_elsewhere() -> None:
    data = batch()
    values = token_divergence(data["student_logits"], data["teacher_logits"], MASK, alpha=0.0, topk=4)
    everywhere = divergence(data["student_logits"], data["teacher_logits"], alpha=0.0, topk=4)
    torch.testing.assert_close(values, everywhere * MASK)
    assert bool((values[MASK.bool()] > 0).all())


def test_token_logprobs_are_normalised_and_differentiable() -> None:
    logits, tokens = normal(2, 3, 6, seed=1).requires_grad_(), torch.randint(6, (2, 3))
    expected = logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
    torch.testing.assert_close(token_logprobs(logits, tokens), expected)
    token_logprobs(logits, tokens).sum().backward()
    torch.testing.assert_close(logits.grad, torch.nn.functional.one_hot(tokens, 6) - logits.detach().softmax(-1))


def test_bfloat16_batch_is_close_to_float64() -> None:
    data = batch(seed=60)
    half = {name: data[name].bfloat16() for name in ("student_logits", "teacher_logits")}
    student = half["student_logits"].requires_grad_()
    loss = distillation_loss(**{**data, **half}, topk=4)
    exact_student = student.detach().double().requires_grad_()
    exact = distillation_loss(exact_student, half["teacher_logits"].double(), data["tokens"], MASK, topk=4)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=1e-5)
    loss.backward()
    exact.backward()
    torch.testing.assert_close(student.grad.double(), exact_student.grad, rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize(
    ("advantage", "ratio", "cost", "slope"),
    [
        (1.0, 1.0, -1.0, -1.0),
        (1.0, 1.2, -1.2, -1.2),  # inside the range: the ratio pays
        (1.0, 1.5, -1.28, 0.0),  # a good token has risen far enough
        (1.0, 0.5, -0.5, -0.5),  # a good token has fallen: no clip, it may come back
        (-1.0, 0.9, 0.9, 0.9),
        (-1.0, 0.5, 0.8, 0.0),  # a bad token has fallen far enough
        (-1.0, 2.0, 2.0, 2.0),  # a bad token has risen: full pull
        (-1.0, 5.0, 3.0, 0.0),  # dual clip: no more than c |A|
        (0.0, 5.0, 0.0, 0.0),
    ],
)
def test_policy_gradient_clips_where_ppo_does(advantage: float, ratio: float, cost: float, slope: float) -> None:
    """`slope` is the derivative by the log-prob."""
    logprobs = torch.tensor([[math.log(ratio) - 1.0]], dtype=torch.float64, requires_grad=True)
    old, advantages = torch.tensor([[-1.0]]).double(), torch.tensor([[advantage]]).double()
    loss = policy_gradient_loss(logprobs, old, advantages, torch.ones(1, 1))
    loss.backward()
    assert loss.item() == pytest.approx(cost)
    assert logprobs.grad.item() == pytest.approx(slope)


@pytest.mark.parametrize("mode", MODES)
def test_policy_gradient_matches_plain_arithmetic(mode: str) -> None:
    old, new = -2 + normal(B, T, seed=1), -2 + 2 * normal(B, T, seed=2)
    advantages, weights = normal(B, seed=3), normal(B, T, seed=4).exp()
    loss = policy_gradient_loss(
        new, old, advantages, MASK, clip_ratio_low=0.1, clip_ratio_high=0.3, clip_ratio_c=2.0,
        importance_weights=weights, aggregation=mode,
    )  # fmt: skip
    values = [[0.0] * T for _ in range(B)]
    for b in range(B):
        for t in range(T):
            rho, a = math.exp(new[b, t].item() - old[b, t].item()), advantages[b].item()
            cost = max(-a * rho, -a * min(max(rho, 0.9), 1.3))
            values[b][t] = weights[b, t].item() * (min(cost, -2.0 * a) if a < 0 else cost)
    assert loss.item() == pytest.approx(plain_aggregate(values, MASK.tolist(), mode))
    per_token = policy_gradient_loss(new, old, advantages[:, None].expand(B, T), MASK, aggregation=mode)
    torch.testing.assert_close(policy_gradient_loss(new, old, advantages, MASK, aggregation=mode), per_token)


def test_policy_gradient_on_policy_is_the_score_function_gradient() -> None:
    logprobs = (-2 + normal(B, T, seed=7)).requires_grad_()
    advantages = normal(B, seed=8)
    policy_gradient_loss(logprobs, logprobs.detach(), advantages, MASK).backward()
    torch.testing.assert_close(logprobs.grad, -advantages[:, None] * MASK / MASK.sum())


@pytest.mark.parametrize("fill", [math.nan, -math.inf, 0.0])
def test_policy_gradient_ignores_what_masked_tokens_hold(fill: float) -> None:
    old, new, advantages = (normal(B, T, seed=seed) for seed in (1, 2, 3))
    clean = new.clone().requires_grad_()
    expected = policy_gradient_loss(clean, old, advantages, MASK, importance_weights=torch.ones(B, T))
    expected.backward()
    off = MASK == 0
    dirty = new.masked_fill(off, fill).requires_grad_()
    advantages, weights = (tensor.masked_fill(off, math.nan) for tensor in (advantages, torch.ones(B, T)))
    loss = policy_gradient_loss(dirty, old.masked_fill(off, fill), advantages, MASK, importance_weights=weights)
    loss.backward()
    assert torch.equal(loss, expected)
    assert torch.equal(dirty.grad, clean.grad)


def test_only_the_student_receives_gradient() -> None:
    data = batch()
    logprobs, old, weights, advantages = (normal(B, T, seed=seed).requires_grad_() for seed in (1, 2, 3, 4))
    student, teacher = (data[name].requires_grad_() for name in ("student_logits", "teacher_logits"))
    distillation_loss(**data, topk=4, old_logprobs=old, is_clip=2.0, importance_weights=weights).backward()
    policy_gradient_loss(logprobs, old, advantages, MASK, importance_weights=weights).backward()
    assert all(tensor.grad is None for tensor in (teacher, old, weights, advantages))
    assert student.grad is not None
    assert logprobs.grad is not None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"aggregation": "mean"}, "aggregation is 'mean'.*token-mean, seq-mean-token-sum"),
        ({"denominator": -1}, "denominator is -1.*not negative"),
        ({"denominator": math.nan}, "denominator is nan"),
        ({"tail": "none"}, "tail is 'none'"),
        ({"support": "all"}, "support is 'all'"),
        ({"alpha": 2}, "alpha is 2"),
        ({"topk": 0}, "topk is 0"),
        ({"is_clip": 0.0}, "threshold is 0.0"),
        (
            {"teacher_logits": torch.zeros(B, T, V + 1)},
            r"teacher_logits has shape \(4, 5, 13\).*\(4, 5, 12\)",
        ),
        ({"tokens": torch.zeros(B, T + 1)}, r"tokens has shape \(4, 6\); it must be \(4, 5\)"),
        ({"response_mask": torch.ones(B)}, r"response_mask has shape \(4,\); it must be \[B, T\]"),
        ({"sequence_mask": torch.ones(B, 1)}, "sequence_mask has shape"),
        ({"step_ids": torch.zeros(T)}, "step_ids has shape"),
        ({"importance_weights": torch.ones(B)}, "importance_weights has shape"),
        ({"old_logprobs": torch.ones(B), "is_clip": 2.0}, "old_logprobs has shape"),
    ],
)
def test_bad_arguments_of_the_distillation_loss_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        distillation_loss(**{**batch(), **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clip_ratio_low": 1.5}, "clip ratios 1.5"),
        ({"clip_ratio_high": -0.1}, "clip ratios 0.2, -0.1"),
        ({"clip_ratio_c": 1.0}, "clip_ratio_c is 1.0"),
        ({"old_logprobs": torch.zeros(2)}, "old_logprobs has shape"),
        ({"advantages": torch.zeros(4)}, "advantages has shape"),
        ({"aggregation": "sum"}, "aggregation is 'sum'"),
    ],
)
def test_bad_arguments_of_the_policy_gradient_loss_are_refused(changes: dict[str, Any], message: str) -> None:
    names = ("logprobs", "old_logprobs", "advantages", "response_mask")
    with pytest.raises(ValueError, match=message):
        policy_gradient_loss(**{**{name: torch.ones(2, 3) for name in names}, **changes})
