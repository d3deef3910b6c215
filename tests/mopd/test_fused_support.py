"""What the fused functions tell beside the loss: masses, log-probs, and a teacher that is elsewhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mopd.divergence import captured_mass, full_logprobs, is_distribution
from mopd.fused import linear_divergence, linear_logprobs
from mopd.fused_support import linear_answer, linear_divergence_on, linear_ids
from mopd.losses import token_divergence, token_logprobs
from mopd.support import TeacherAnswer, answer_of, divergence_on, mass_on, own_ids, shares
from tests.mopd.fused_problems import Problem, assert_close, problems

SUPPORTS = st.sampled_from(["student", "teacher", "union"])


def divergence_options(data: Any, problem: Problem) -> dict[str, Any]:
    """Options of both forms of a divergence. A teacher chooses only among the entries that it can tell apart."""
    possible = torch.isfinite(problem.teacher_weight[: len(problem.weight), -1]).sum().item()
    support = data.draw(SUPPORTS)
    most = len(problem.weight) if support == "student" else possible
    topk = data.draw(st.one_of(st.none(), st.integers(1, most)))
    tail = data.draw(st.sampled_from(["bucket", "renormalize"]))
    return {"support": support, "topk": topk, "tail": tail, "alpha": data.draw(st.sampled_from([0.0, 0.4, 1.0]))}


@settings(max_examples=60, deadline=None)
@given(problem=problems(), data=st.data())
def test_a_divergence_is_the_dense_one_with_its_masses(problem: Problem, data: Any) -> None:
    options = divergence_options(data, problem)
    logits, teacher_logits = problem.logits, problem.teacher_logits
    found = linear_divergence(
        problem.hidden, problem.weight, problem.teacher_hidden, problem.teacher_weight, problem.tokens,
        temperature=problem.temperature, entropy=True, logits_at_hand=problem.at_hand, **options,
    )  # fmt: skip
    values = token_divergence(logits, teacher_logits, torch.ones_like(problem.tokens), **options)
    assert_close(found.values, values)
    for ours, theirs in zip(problem.gradients(found.values), problem.gradients(values), strict=True):
        assert_close(ours, theirs)
    assert torch.equal(found.told, is_distribution(teacher_logits))
    masses = captured_mass(logits, teacher_logits, topk=options["topk"], support=options["support"])
    kept = slice(None) if options["support"] == "student" else found.told  # the choice of a lost teacher is anything
    for ours, theirs in zip((found.student_mass, found.teacher_mass), masses, strict=True):
        assert_close(ours[kept], theirs[kept])
    assert_close(found.logprobs, token_logprobs(logits, problem.tokens).detach())
    assert_close(found.teacher_logprobs, teacher_of_tokens(problem))
    assert found.entropy is not None
    logprobs = full_logprobs(logits).detach()
    assert_close(found.entropy, -(logprobs.exp() * logprobs).sum(-1))
    constants = (found.logprobs, found.entropy, found.student_mass, found.teacher_logprobs)
    assert not any(each.requires_grad for each in constants)


@settings(max_examples=40, deadline=None)
@given(problem=problems())
def test_log_probs_of_tokens_are_the_dense_ones(problem: Problem) -> None:
    found = linear_logprobs(
        problem.hidden, problem.weight, problem.tokens, temperature=problem.temperature, entropy=True,
        logits_at_hand=problem.at_hand,
    )  # fmt: skip
    expected = token_logprobs(problem.logits, problem.tokens)
    assert_close(found.logprobs, expected)
    for ours, theirs in zip(problem.gradients(found.logprobs), problem.gradients(expected), strict=True):
        assert_close(ours, theirs)
    logprobs = full_logprobs(problem.logits).detach()
    assert found.entropy is not None
    assert not found.entropy.requires_grad
    assert_close(found.entropy, -(logprobs.exp() * logprobs).sum(-1))


def test_log_probs_without_a_gradient_keep_nothing() -> None:
    hidden, weight = torch.randn(5, 4, requires_grad=True), torch.randn(30, 4, requires_grad=True)
    tokens = torch.arange(5)
    with torch.no_grad():
        found = linear_logprobs(hidden, weight, tokens)
    assert found.entropy is None
    assert found.logprobs.grad_fn is None
    torch.testing.assert_close(found.logprobs, token_logprobs(hidden @ weight.T, tokens).detach())
    frozen = linear_logprobs(hidden, weight.detach(), tokens).logprobs.sum()
    plain = token_logprobs(hidden @ weight.T, tokens).sum()
    torch.testing.assert_close(*(torch.autograd.grad(each, hidden)[0] for each in (frozen, plain)))


def test_an_impossible_token_pulls_at_nothing() -> None:
    """Its log-prob lies below the floor, so that neither form has a gradient there."""
    hidden = torch.tensor([[1.0, 0.0], [1.0, 1.0]], dtype=torch.float64, requires_grad=True)
    weight = torch.tensor([[3e6, 0.0], [0.0, 1.0], [2.0, 2.0]], dtype=torch.float64, requires_grad=True)
    tokens = torch.tensor([1, 0])
    pairs = linear_logprobs(hidden, weight, tokens).logprobs, token_logprobs(hidden @ weight.T, tokens)
    assert_close(*pairs)
    for ours, theirs in zip(*(torch.autograd.grad(each.sum(), (hidden, weight)) for each in pairs), strict=True):
        assert_close(ours, theirs)


@settings(max_examples=40, deadline=None)
@given(problem=problems(), data=st.data())
def test_a_teacher_elsewhere_answers_as_the_dense_one(problem: Problem, data: Any) -> None:
    vocabulary, at_hand = len(problem.weight), problem.at_hand
    possible = torch.isfinite(problem.teacher_weight[:vocabulary, -1]).sum().item()
    support = data.draw(SUPPORTS)
    k = data.draw(st.integers(1, vocabulary - 1 if support == "student" else min(possible, vocabulary - 1) or 1))
    asks, own = shares(support, k)
    logits, teacher_logits = problem.logits, problem.teacher_logits
    asked = linear_ids(problem.hidden, problem.weight, asks, logits_at_hand=at_hand)
    assert torch.equal(asked.sort(-1).values, own_ids(logits, asks).sort(-1).values)
    answer = linear_answer(
        problem.teacher_hidden, problem.teacher_weight, asked, own, vocabulary, temperature=problem.temperature,
        logits_at_hand=at_hand,
    )  # fmt: skip
    expected = answer_of(teacher_logits, asked, own)
    assert torch.equal(answer.told, is_distribution(teacher_logits))
    if possible > own:  # otherwise it is any of the impossible ones
        assert torch.equal(answer.ids[answer.told], expected.ids[answer.told])
    assert_close(answer.logprobs[answer.told], expected.logprobs[answer.told])
    options = {
        "alpha": data.draw(st.sampled_from([0.0, 0.5, 1.0])),
        "tail": data.draw(st.sampled_from(["bucket", "renormalize"])),
    }
    found = linear_divergence_on(
        problem.hidden, problem.weight, answer, problem.tokens, temperature=problem.temperature, entropy=True,
        logits_at_hand=at_hand, **options,
    )  # fmt: skip
    values = divergence_on(logits, answer, **options).where(answer.told, 0.0)
    assert torch.equal(found.told, answer.told)
    assert_close(found.values, values)
    told = divergence_on(logits[answer.told], answer.at(answer.told), **options)
    for ours, theirs in zip(problem.gradients(found.values), problem.gradients(placed(told, answer.told)), strict=True):
        assert_close(ours, theirs)
    for ours, theirs in zip((found.student_mass, found.teacher_mass), mass_on(logits, answer), strict=True):
        assert_close(ours, theirs)
    assert_close(found.logprobs, token_logprobs(logits, problem.tokens).detach())
    asked_for = (answer.ids == problem.tokens[:, None]).any(-1)
    assert_close(found.teacher_logprobs, teacher_of_tokens(problem).masked_fill(~asked_for, torch.nan))


def teacher_of_tokens(problem: Problem) -> Tensor:
    """The teacher's log-probs of the tokens, not-a-number where it has none."""
    logits = problem.teacher_logits
    return token_logprobs(logits, problem.tokens).detach().masked_fill(~is_distribution(logits), torch.nan)


def placed(values: Tensor, mask: Tensor) -> Tensor:
    return values.new_zeros(mask.shape).masked_scatter(mask, values)


@pytest.mark.parametrize("grad_mode", ["sparse", "auto"])
@pytest.mark.parametrize("support", ["student", "union"])
def test_a_teacher_elsewhere_has_the_gradient_modes_of_one_beside(grad_mode: str, support: str) -> None:
    drawn = torch.Generator().manual_seed(3)
    hidden, weight = (torch.randn(n, 6, generator=drawn, dtype=torch.float64).requires_grad_() for n in (11, 80))
    teacher_hidden, teacher_weight = (torch.randn(n, 5, generator=drawn, dtype=torch.float64) for n in (11, 80))
    tokens = torch.randint(80, (11,), generator=drawn)
    asks, own = shares(support, 12)
    answer = linear_answer(teacher_hidden, teacher_weight, linear_ids(hidden, weight, asks), own, 80)
    options: dict[str, Any] = {"grad_mode": grad_mode, "tolerance": 0.1}
    far = linear_divergence_on(hidden, weight, answer, tokens, **options)
    near = linear_divergence(
        hidden, weight, teacher_hidden, teacher_weight, tokens, topk=12, support=support, **options
    )
    assert_close(far.gradient_bound, near.gradient_bound)
    for ours, theirs in zip(
        *(torch.autograd.grad(each.values.sum(), (hidden, weight)) for each in (far, near)), strict=True
    ):
        assert_close(ours, theirs)


def test_what_does_not_pair_up_is_refused_in_a_sentence() -> None:
    hidden, weight, tokens = torch.randn(4, 3), torch.randn(20, 3), torch.arange(4)
    asked = torch.zeros(4, 2, dtype=torch.long)
    answer = TeacherAnswer(asked, torch.zeros(4, 2))
    with pytest.raises(ValueError, match=r"count is 21; it must be 0 \.\. 20"):
        linear_ids(hidden, weight, 21)
    with pytest.raises(ValueError, match=r"asked has shape \(4, 0\) with own=0"):
        linear_answer(hidden, weight, asked[:, :0], 0, 20)
    with pytest.raises(ValueError, match="temperature is 0"):
        linear_answer(hidden, weight, asked, 0, 20, temperature=0)
    with pytest.raises(ValueError, match=r"must both be \[N, K\], and N = 3"):
        linear_divergence_on(hidden[:3], weight, answer, tokens[:3])
    with pytest.raises(ValueError, match=r"hidden is torch\.float32, weight torch\.float64"):
        linear_logprobs(hidden, weight.double(), tokens)
    with pytest.raises(ValueError, match=r"weight \(20, 2\) must be \[N, H\] and \[V, H\]"):
        linear_logprobs(hidden, weight[:, :2], tokens)
