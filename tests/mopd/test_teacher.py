"""A teacher follows the student, stays near it, or comes from elsewhere with the same vocabulary."""

from __future__ import annotations

import math

import pytest
import torch

from mopd.teacher import check_vocabulary, ema_, trust_region_logits


def test_teacher_moves_by_the_rate_in_place() -> None:
    teacher, student = (
        [torch.tensor([1.0, 2.0]), torch.tensor([[3.0]])],
        [torch.tensor([3.0, 2.0]), torch.ones(1, 1)],
    )
    addresses = [tensor.data_ptr() for tensor in teacher]
    ema_(teacher, student, 0.25)
    assert teacher[0].tolist() == [1.5, 2.0]
    assert teacher[1].tolist() == [[2.5]]
    assert [tensor.data_ptr() for tensor in teacher] == addresses
    assert student[0].tolist() == [3.0, 2.0]


def test_repeated_steps_forget_geometrically() -> None:
    teacher, student = [torch.ones(1, dtype=torch.float64)], [torch.zeros(1, dtype=torch.float64)]
    for _ in range(10):
        ema_(teacher, student, 0.05)
    assert teacher[0].item() == pytest.approx(0.95**10)


def test_rate_zero_freezes_and_rate_one_copies() -> None:
    teacher, student = [torch.tensor([1.0, -2.0])], [torch.tensor([0.1, math.inf])]
    ema_(teacher, student, 0.0)
    assert teacher[0].tolist() == [1.0, -2.0]
    copied = torch.randn(50, generator=torch.Generator().manual_seed(0))
    teacher = [torch.full((50,), 1e8)]
    ema_(teacher, [copied], 1.0)
    assert torch.equal(teacher[0], copied)


def test_parameters_are_averaged_without_autograd() -> None:
    teacher, student = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    expected = [0.9 * t + 0.1 * s for t, s in zip(teacher.parameters(), student.parameters(), strict=True)]
    ema_(teacher.parameters(), student.parameters(), 0.1)
    for parameter, wanted in zip(teacher.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.detach(), wanted.detach())
        assert parameter.is_leaf
        assert parameter.requires_grad


def test_a_bfloat16_student_is_averaged_in_the_teachers_dtype() -> None:
    teacher, student = [torch.tensor([1.0])], [torch.tensor([1.0078125], dtype=torch.bfloat16)]
    ema_(teacher, student, 0.05)
    assert teacher[0].item() == pytest.approx(1.0 + 0.05 * 0.0078125, abs=1e-7)


@pytest.mark.parametrize("rate", [-0.1, 1.1, math.nan])
def test_a_rate_outside_the_unit_interval_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="rate is"):
        ema_([torch.ones(1)], [torch.zeros(1)], rate)


@pytest.mark.parametrize("student", [[torch.zeros(2)], [torch.zeros(2), torch.zeros(2, 1)]])
def test_parameters_that_do_not_pair_up_are_refused_before_any_moves(student: list[torch.Tensor]) -> None:
    teacher = [torch.ones(2), torch.ones(3)]
    with pytest.raises(ValueError, match=r"shorter|shape"):
        ema_(teacher, student, 0.5)
    assert all(bool((tensor == 1).all()) for tensor in teacher)


def test_trust_region_logits_lie_between_reference_and_student_and_carry_no_gradient() -> None:
    reference, student = torch.tensor([[0.0, 4.0]], requires_grad=True), torch.tensor([[1.0, 0.0]], requires_grad=True)
    mixed = trust_region_logits(reference, student, 0.25)
    assert mixed.tolist() == [[0.25, 3.0]]
    assert not mixed.requires_grad
    assert trust_region_logits(reference, student, 0.0).tolist() == [[0.0, 4.0]]
    assert trust_region_logits(reference, student, 1.0).tolist() == [[1.0, 0.0]]


def test_trust_region_logits_of_equal_models_are_exactly_theirs() -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    assert torch.equal(trust_region_logits(logits, logits.clone(), 0.05), logits)


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_trust_region_logits_are_never_nan_where_an_entry_is_excluded(rate: float) -> None:
    reference, student = torch.tensor([-math.inf, -math.inf, 1.0]), torch.tensor([-math.inf, 2.0, -math.inf])
    mixed = trust_region_logits(reference, student, rate).tolist()
    expected = {0.0: reference.tolist(), 0.3: [-math.inf] * 3, 1.0: student.tolist()}[rate]
    assert mixed == expected


def test_trust_region_logits_are_widened_and_new() -> None:
    half = torch.ones(2, dtype=torch.bfloat16)
    assert trust_region_logits(half, half, 0.5).dtype == torch.float32
    wide = torch.ones(2, dtype=torch.float64)
    for rate in (0.0, 0.5, 1.0):
        mixed = trust_region_logits(wide, wide, rate)
        assert mixed.dtype == torch.float64
        mixed += 1
        assert wide.tolist() == [1.0, 1.0]


def test_bad_trust_regions_are_refused() -> None:
    with pytest.raises(ValueError, match=r"rate is 1\.5"):
        trust_region_logits(torch.ones(2), torch.ones(2), 1.5)
    with pytest.raises(ValueError, match=r"shape \(2,\) in the reference, \(3,\) in the student"):
        trust_region_logits(torch.ones(2), torch.ones(3), 0.5)


VOCABULARY = {"a": 0, "b": 1, "c": 2, "<eos>": 3}


@pytest.mark.parametrize(("student_rows", "teacher_rows"), [(4, 4), (4, 64), (64, 4), (64, 128)])
def test_equal_vocabularies_pass_whatever_the_padding(student_rows: int, teacher_rows: int) -> None:
    backwards = dict(reversed(VOCABULARY.items()))
    check_vocabulary(VOCABULARY, backwards, student_rows, teacher_rows)


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ({"a": 0, "b": 2, "c": 1, "<eos>": 3}, "token 'b' has id 1 in the student and id 2 in the teacher.*of 2 tok"),
        ({"a": 0, "b": 1, "c": 2}, "token '<eos>' has id 3 in the student and no id in the teacher"),
        ({**VOCABULARY, "<think>": 4}, "token '<think>' has no id in the student and id 4 in the teacher.*of 1 tok"),
        ({"a": 0, "b": 1, "x": 2, "<eos>": 3}, "token 'c' has id 2 in the student and no id in the teacher"),
        ({"a": 7, "b": 1, "c": 2, "<eos>": 0}, "token '<eos>' has id 3 in the student and id 0 in the teacher"),
        ({}, "token 'a' has id 0 in the student and no id in the teacher"),
    ],
)
def test_another_vocabulary_is_refused_by_its_first_differing_token(teacher: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_vocabulary(VOCABULARY, teacher, 64, 64)


@pytest.mark.parametrize(("student_rows", "teacher_rows", "name"), [(3, 64, "student"), (64, 3, "teacher")])
def test_a_model_without_a_logit_for_every_id_is_refused(student_rows: int, teacher_rows: int, name: str) -> None:
    with pytest.raises(ValueError, match=f"the {name} has 3 logits, but the student's token ids need 4"):
        check_vocabulary(VOCABULARY, VOCABULARY, student_rows, teacher_rows)
