"""The teacher is an exponential moving average of the student, updated in place and all or nothing."""

from __future__ import annotations

import math

import pytest
import torch

from mopd.teacher import ema_


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
