"""The distillation loss equals, in value and gradient, a computation that shares nothing with it: to 1e-9, everywhere.

The oracle works in probabilities, token by token, in plain Python. A top-k is a partition of the vocabulary into
cells (an entry each, the rest in one cell or dropped); the divergence is a function of the cells' probabilities, its
derivative by hand; the chain rule through softmax is p_i (g_cell(i) - mean of g).
"""

from __future__ import annotations

import itertools
import math
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mopd.divergence import generalized_jsd
from mopd.losses import distillation_loss

ALPHAS, TAILS, SUPPORTS = (0.0, 0.3, 0.5, 1.0), ("bucket", "renormalize"), ("student", "teacher", "union")
MODES = ("token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm")
B, T, V = 4, 3, 12
TOPKS = (None, 1, 5, V)
IS_CLIP = 1.3
MASK = np.array([[1, 1, 1], [1, 0, 1], [0, 0, 0], [1, 1, 0]])
SEQUENCES = np.array([1, 0, 1, 1])

RNG = np.random.default_rng(7)
STUDENT, TEACHER = 1.5 * RNG.normal(size=(B, T, V)), 1.5 * RNG.normal(size=(B, T, V))
TOKENS = RNG.integers(V, size=(B, T))
OLD, WEIGHTS = -2.5 + RNG.normal(size=(B, T)), np.exp(RNG.normal(size=(B, T)))


def softmax(logits: list[float]) -> list[float]:
    exponentials = [math.exp(z) for z in logits]
    total = math.fsum(exponentials)
    return [e / total for e in exponentials]


def cells(p: list[float], q: list[float], topk: int | None, tail: str, support: str) -> list[list[int]]:
    """The partition: lists of vocabulary entries that are compared as one."""
    if topk is None or topk >= V:
        return [[i] for i in range(V)]
    best = {
        name: set(sorted(range(V), key=lambda i, d=d: -d[i])[:topk]) for name, d in {"student": p, "teacher": q}.items()
    }
    chosen = sorted(best["student"] | best["teacher"] if support == "union" else best[support])
    rest = [i for i in range(V) if i not in chosen]
    return [[i] for i in chosen] + ([rest] if tail == "bucket" and rest else [])


def value_and_slopes(s: list[float], t: list[float], alpha: float) -> tuple[float, list[float]]:
    """The divergence of two distributions over cells, and its derivative by every s."""
    if alpha == 0.0:
        return math.fsum(b * math.log(b / a) for a, b in zip(s, t, strict=True)), [
            -b / a for a, b in zip(s, t, strict=True)
        ]
    if alpha == 1.0:
        return math.fsum(a * math.log(a / b) for a, b in zip(s, t, strict=True)), [
            math.log(a / b) + 1 for a, b in zip(s, t, strict=True)
        ]
    m = [(1 - alpha) * a + alpha * b for a, b in zip(s, t, strict=True)]
    value = math.fsum(
        (1 - alpha) * a * math.log(a / c) + alpha * b * math.log(b / c) for a, b, c in zip(s, t, m, strict=True)
    )
    slopes = [
        (1 - alpha) * (math.log(a / c) + 1 - (1 - alpha) * a / c) - alpha * (1 - alpha) * b / c
        for a, b, c in zip(s, t, m, strict=True)
    ]
    return value, slopes


def token(
    student: list[float], teacher: list[float], alpha: float, topk: int | None, tail: str, support: str
) -> tuple[float, list[float]]:
    """The divergence at one token, and its gradient by the student's logits."""
    p, q = softmax(student), softmax(teacher)
    parts = cells(p, q, topk, tail, support)
    s, t = ([math.fsum(d[i] for i in cell) for cell in parts] for d in (p, q))
    held_s, held_t = math.fsum(s), math.fsum(t)  # 1, unless the rest was dropped
    s, t = [x / held_s for x in s], [x / held_t for x in t]
    value, slopes = value_and_slopes(s, t, alpha)
    mean = math.fsum(a * g for a, g in zip(s, slopes, strict=True))
    gradient = [0.0] * V
    for cell, slope in zip(parts, slopes, strict=True):
        for i in cell:
            gradient[i] = p[i] / held_s * (slope - mean)
    return value, gradient


@cache
def table(alpha: float, topk: int | None, tail: str, support: str) -> tuple[np.ndarray, np.ndarray]:
    """Values [B, T] and gradients [B, T, V] of every token by itself."""
    values, gradients = np.zeros((B, T)), np.zeros((B, T, V))
    for b, t in itertools.product(range(B), range(T)):
        values[b, t], gradients[b, t] = token(
            STUDENT[b, t].tolist(), TEACHER[b, t].tolist(), alpha, topk, tail, support
        )
    return values, gradients


def shares(mask: np.ndarray, mode: str) -> np.ndarray:
    """What one unit of value at each token adds to the loss, [B, T], one token at a time."""
    lengths = [sum(row) for row in mask.tolist()]
    sequences = max(sum(length > 0 for length in lengths), 1)
    result = np.zeros((B, T))
    for b, t in itertools.product(range(B), range(T)):
        if mask[b, t]:
            result[b, t] = {
                "token-mean": 1 / max(sum(lengths), 1),
                "seq-mean-token-sum": 1 / sequences,
                "seq-mean-token-mean": 1 / (sequences * lengths[b]),
                "seq-mean-token-sum-norm": 1 / T,
            }[mode]
    return result


def token_weights(is_clip: bool, weights: bool) -> np.ndarray:
    result = np.ones((B, T))
    for b, t in itertools.product(range(B), range(T)):
        if is_clip:
            now = math.log(softmax(STUDENT[b, t].tolist())[TOKENS[b, t]])
            result[b, t] *= min(math.exp(now - OLD[b, t]), IS_CLIP)
        if weights:
            result[b, t] *= WEIGHTS[b, t]
    return result


def loss_of(student: Tensor, rows: slice = slice(None), **options: Any) -> Tensor:
    return distillation_loss(
        student[rows], torch.tensor(TEACHER)[rows], torch.tensor(TOKENS)[rows], torch.tensor(MASK)[rows], **options
    )


@pytest.mark.parametrize("topk", TOPKS)
@pytest.mark.parametrize("support", SUPPORTS)
@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("alpha", ALPHAS)
def test_value_and_gradient_equal_the_independent_computation(
    alpha: float, tail: str, support: str, topk: int | None
) -> None:
    values, gradients = table(alpha, topk, tail, support)
    for is_clip, weights, sequences, mode in itertools.product((False, True), (False, True), (False, True), MODES):
        student = torch.tensor(STUDENT, requires_grad=True)
        loss = loss_of(
            student,
            alpha=alpha,
            topk=topk,
            tail=tail,
            support=support,
            old_logprobs=torch.tensor(OLD),
            is_clip=IS_CLIP if is_clip else None,
            importance_weights=torch.tensor(WEIGHTS) if weights else None,
            sequence_mask=torch.tensor(SEQUENCES) if sequences else None,
            aggregation=mode,
        )
        loss.backward()
        mask = MASK * SEQUENCES[:, None] if sequences else MASK
        expected = shares(mask, mode) * token_weights(is_clip, weights)
        assert abs(loss.item() - math.fsum((expected * values).ravel())) < 1e-9
        assert np.abs(student.grad.numpy() - expected[..., None] * gradients).max() < 1e-9


def test_the_oracle_itself_agrees_with_finite_differences() -> None:
    student, teacher, step = STUDENT[0, 0].tolist(), TEACHER[0, 0].tolist(), 1e-5
    for alpha, topk, tail, support in itertools.product(ALPHAS, TOPKS, TAILS, SUPPORTS):
        _, gradient = token(student, teacher, alpha, topk, tail, support)
        for i in range(V):
            moved = [
                token([z + side * step * (j == i) for j, z in enumerate(student)], teacher, alpha, topk, tail, support)
                for side in (1, -1)
            ]
            assert gradient[i] == pytest.approx((moved[0][0] - moved[1][0]) / (2 * step), abs=1e-8)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("support", SUPPORTS)
@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("alpha", [*ALPHAS, 0.7, 1e-9])
def test_identical_distributions_have_exactly_no_loss_and_no_gradient(
    alpha: float, tail: str, support: str, dtype: torch.dtype
) -> None:
    for topk in TOPKS:
        student = torch.tensor(STUDENT).to(dtype).requires_grad_()
        tokens, mask = torch.tensor(TOKENS), torch.tensor(MASK)
        loss = distillation_loss(
            student, student.detach().clone(), tokens, mask, alpha=alpha, topk=topk, tail=tail, support=support
        )
        loss.backward()
        assert loss.item() == 0.0
        assert not bool(student.grad.any())


@pytest.mark.parametrize("alpha", ALPHAS)
def test_k_of_the_whole_vocabulary_is_the_full_loss(alpha: float) -> None:
    losses, gradients = [], []
    for topk, tail, support in itertools.product((None, V, 10 * V), TAILS, SUPPORTS):
        student = torch.tensor(STUDENT, requires_grad=True)
        loss = loss_of(student, alpha=alpha, topk=topk, tail=tail, support=support)
        loss.backward()
        losses.append(loss.item())
        gradients.append(student.grad)
    assert set(losses) == {losses[0]}
    assert all(torch.equal(gradient, gradients[0]) for gradient in gradients)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("cuts", [(0, 1, 2, 3, 4), (0, 3, 4), (0, 2, 4)])
def test_the_loss_does_not_depend_on_the_cut_into_micro_batches(mode: str, cuts: tuple[int, ...]) -> None:
    options: dict[str, Any] = {"topk": 5, "is_clip": IS_CLIP, "aggregation": mode}
    streams = {"old_logprobs": OLD, "importance_weights": WEIGHTS, "sequence_mask": SEQUENCES}

    def cut(student: Tensor, rows: slice, denominator: float) -> Tensor:
        given = {name: torch.tensor(array)[rows] for name, array in streams.items()}
        return loss_of(student, rows, denominator=denominator, **given, **options)

    whole, parts = (torch.tensor(STUDENT, requires_grad=True) for _ in range(2))
    denominator = {"token-mean": 5.0, "seq-mean-token-sum-norm": float(T)}.get(mode, 2.0)
    expected = loss_of(whole, **{name: torch.tensor(array) for name, array in streams.items()}, **options)
    expected.backward()
    total = sum(cut(parts, slice(*ends), denominator) for ends in itertools.pairwise(cuts))
    total.backward()
    assert total.item() == pytest.approx(expected.item(), abs=1e-14)
    torch.testing.assert_close(parts.grad, whole.grad, rtol=0, atol=1e-14)


@pytest.mark.parametrize("alpha", [0.3, 0.5, 0.99])
def test_a_constant_mixture_leaves_the_gradient_of_the_jsd_whole(alpha: float) -> None:
    """Against autograd through every place the student stands in, the mixture included."""
    student, teacher = torch.tensor(STUDENT, requires_grad=True), torch.tensor(TEACHER).log_softmax(-1)
    generalized_jsd(student.log_softmax(-1), teacher, alpha).sum().backward()
    ours, student.grad = student.grad, None
    s, t = student.softmax(-1), teacher.exp()
    m = (1 - alpha) * s + alpha * t
    ((1 - alpha) * s * (s / m).log() + alpha * t * (t / m).log()).sum().backward()
    torch.testing.assert_close(ours, student.grad, rtol=0, atol=1e-12)
