"""A teacher whose numbers are none costs the tokens concerned and nothing else: the loss stays finite."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mopd.divergence import LOG_FLOOR, is_distribution
from mopd.losses import is_rated, sampled_token_loss, token_divergence, token_logprobs
from mopd.support import TeacherAnswer, answer_of, divergence_on, mass_on

B, T, V, K = 2, 4, 12, 3
SPOILT = {
    "NaN everywhere": torch.full((V,), math.nan),
    "one NaN": torch.zeros(V).index_fill(0, torch.tensor([5]), math.nan),
    "one +inf": torch.zeros(V).index_fill(0, torch.tensor([5]), math.inf),
    "-inf everywhere": torch.full((V,), -math.inf),
}


def normal(seed: int) -> Tensor:
    return torch.randn(B, T, V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def spoilt(row: Tensor) -> Tensor:
    """A teacher's logits of which the second token's are `row`."""
    teacher = normal(2)
    teacher[0, 1] = row.double()
    return teacher


def gradient(loss: Tensor, student: Tensor) -> Tensor:
    [found] = torch.autograd.grad(loss, student, retain_graph=True)
    return found


@pytest.mark.parametrize("row", SPOILT.values(), ids=SPOILT.keys())
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("topk", [K, None])
@pytest.mark.parametrize("support", ["student", "teacher", "union"])
def test_a_token_without_a_teacher_costs_nothing_and_the_others_what_they_did(
    row: Tensor, alpha: float, topk: int | None, support: str
) -> None:
    student, teacher, mask = normal(1).requires_grad_(), spoilt(row), torch.ones(B, T)
    told = is_distribution(teacher)
    assert told.logical_not().nonzero().tolist() == [[0, 1]]
    values = token_divergence(student, teacher, mask, alpha=alpha, topk=topk, support=support)
    wanted = token_divergence(student, normal(2), mask, alpha=alpha, topk=topk, support=support)
    assert values[0, 1] == 0
    torch.testing.assert_close(values[told], wanted[told], rtol=0, atol=1e-12)
    found, kept = gradient(values.sum(), student), gradient(wanted[told].sum(), student)
    torch.testing.assert_close(found, kept, rtol=0, atol=1e-12)


@pytest.mark.parametrize("row", SPOILT.values(), ids=SPOILT.keys())
def test_an_answer_from_elsewhere_that_holds_no_numbers_is_known_as_such(row: Tensor) -> None:
    answer = answer_of(spoilt(row), torch.arange(K).expand(B, T, K), 0)
    assert answer.told.logical_not().nonzero().tolist() == [[0, 1]]


@pytest.mark.parametrize("tail", ["bucket", "renormalize"])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_entries_of_no_probability_at_all_have_a_finite_price(alpha: float, tail: str) -> None:
    student, ids = normal(1).requires_grad_(), torch.arange(K).expand(B, T, K)
    answer = TeacherAnswer(ids, torch.full((B, T, K), -math.inf, dtype=torch.float64))
    assert bool(answer.told.all())
    values = divergence_on(student, answer, alpha=alpha, tail=tail)
    assert bool(values.isfinite().all())
    assert bool(gradient(values.sum(), student).isfinite().all())
    assert float(mass_on(student, answer)[1].max()) == 0


@pytest.mark.parametrize("bad", [math.nan, -math.inf, math.inf, LOG_FLOOR])
def test_a_sampled_token_that_the_teacher_does_not_rate_costs_nothing(bad: float) -> None:
    tokens, student = torch.arange(B * T).reshape(B, T), normal(1).requires_grad_()
    logprobs = token_logprobs(student, tokens)
    teacher = token_logprobs(normal(2), tokens)
    mask = torch.ones(B, T)
    rest = mask.clone()
    rest[0, 1] = 0
    wanted = sampled_token_loss(logprobs, teacher, rest, denominator=B * T)
    teacher = teacher.clone()
    teacher[0, 1] = bad
    assert is_rated(teacher).logical_not().nonzero().tolist() == [[0, 1]]
    found = sampled_token_loss(logprobs, teacher, mask, denominator=B * T)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(gradient(found, student), gradient(wanted, student))
