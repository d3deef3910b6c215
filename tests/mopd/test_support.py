"""A teacher's answer on a few entries is worth its logits: value, gradient and masses are those of the dense form."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from mopd.divergence import LOG_FLOOR, captured_mass, divergence
from mopd.support import TeacherAnswer, answer_of, divergence_on, mass_on, own_ids, shares

B, T, V, K = 3, 5, 40, 6


def logits(seed: int, *, rows: int = V) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2.0 * torch.randn(B, T, rows, generator=generator, dtype=torch.float64)


def asked_over(student: Tensor, teacher: Tensor, support: str) -> TeacherAnswer:
    """Question and answer, as they cross over."""
    chosen, own = shares(support, K)
    return answer_of(teacher, own_ids(student, chosen), own)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("tail", ["bucket", "renormalize"])
@pytest.mark.parametrize("support", ["student", "teacher", "union"])
def test_value_and_gradient_are_those_of_the_logits(alpha: float, tail: str, support: str) -> None:
    dense, apart, teacher = logits(1).requires_grad_(), logits(1).requires_grad_(), logits(2)
    wanted = divergence(dense, teacher, alpha=alpha, topk=K, tail=tail, support=support)
    answer = asked_over(apart, teacher, support)
    found = divergence_on(apart, answer, alpha=alpha, tail=tail)
    assert answer.ids.shape == answer.logprobs.shape == (B, T, 2 * K if support == "union" else K)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)
    weights = torch.linspace(0.5, 2.0, B * T, dtype=torch.float64).reshape(B, T)
    (wanted * weights).sum().backward()
    (found * weights).sum().backward()
    assert dense.grad is not None
    assert float(dense.grad.abs().max()) > 1e-3
    torch.testing.assert_close(apart.grad, dense.grad, rtol=0, atol=1e-9)


@pytest.mark.parametrize("support", ["student", "teacher", "union"])
def test_masses_are_those_of_the_logits(support: str) -> None:
    student, teacher = logits(3), logits(4)
    found = mass_on(student, asked_over(student, teacher, support))
    for ours, wanted in zip(found, captured_mass(student, teacher, topk=K, support=support), strict=True):
        torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-12)
        assert bool((ours < 1).all())


def test_a_sampled_token_is_an_answer_of_one_entry() -> None:
    teacher, tokens = logits(5), torch.arange(B * T).reshape(B, T)
    answer = answer_of(teacher, tokens[..., None], 0)
    wanted = teacher.log_softmax(-1).gather(-1, tokens[..., None])
    torch.testing.assert_close(answer.logprobs, wanted)


def test_entries_that_the_teacher_lacks_have_the_floor_as_in_the_dense_form() -> None:
    student, teacher = logits(6), logits(7, rows=V - 4)
    padded = torch.nn.functional.pad(teacher, (0, 4), value=-torch.inf)
    every = torch.arange(V).expand(B, T, V)
    assert answer_of(padded, every, 0).logprobs[..., -4:].unique().tolist() == [LOG_FLOOR]
    wanted = divergence(student, padded, topk=K)
    torch.testing.assert_close(divergence_on(student, asked_over(student, padded, "student")), wanted)


def test_an_answer_is_a_constant_and_order_does_not_matter() -> None:
    student, teacher = logits(8), logits(9).requires_grad_()
    ids = own_ids(student, K)
    answers = [
        answer_of(teacher, ids[..., list(order)], 0) for order in itertools.islice(itertools.permutations(range(K)), 9)
    ]
    assert not any(answer.logprobs.requires_grad for answer in answers)
    assert all(torch.equal(answer.ids, answers[0].ids) for answer in answers)
    assert bool((answers[0].ids.diff(dim=-1) > 0).all())


def test_tokens_are_chosen_by_a_mask() -> None:
    student, teacher, mask = logits(10), logits(11), torch.arange(B * T).reshape(B, T) % 3 == 0
    answer = asked_over(student, teacher, "union")
    torch.testing.assert_close(divergence_on(student[mask], answer.at(mask)), divergence_on(student, answer)[mask])


def test_shapes_that_do_not_pair_up_are_refused() -> None:
    student, teacher = logits(12), logits(13)
    with pytest.raises(ValueError, match="there must be one in all"):
        answer_of(teacher, own_ids(student, 0), 0)
    with pytest.raises(ValueError, match="asked has shape"):
        answer_of(teacher, own_ids(student, K)[:, 1:], 0)
    with pytest.raises(ValueError, match="must agree"):
        divergence_on(student[:, 1:], asked_over(student, teacher, "student"))
