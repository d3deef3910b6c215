"""The teacher that follows the student: a moving average of its weights (mean teacher, arXiv 1703.01780)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


@torch.no_grad()
def ema_(teacher_parameters: Iterable[Tensor], student_parameters: Iterable[Tensor], rate: float) -> None:
    """Moves the teacher towards the student, in place: theta_T <- (1 - rate) theta_T + rate theta_S.

    Args:
        teacher_parameters, student_parameters: tensors of equal shapes, paired in order: whole parameters,
            or the local shards of parameters that are sharded alike. The student's are converted to the
            teacher's dtype and device. Keep the teacher in float32: bfloat16 rounds small steps away.
        rate: in [0, 1]; 0 freezes the teacher, 1 copies the student. As published, 0.05 once a step.

    Raises ValueError, before anything has moved, on another rate, or if the two do not pair up.
    """
    if not 0.0 <= rate <= 1.0:
        raise ValueError(f"rate is {rate!r}; it must lie in [0, 1] (0 freezes, 1 copies)")
    pairs = list(zip(teacher_parameters, student_parameters, strict=True))
    for index, (teacher, student) in enumerate(pairs):
        if teacher.shape != student.shape:
            shapes = f"{tuple(teacher.shape)} in the teacher, {tuple(student.shape)} in the student"
            raise ValueError(f"parameter {index} has shape {shapes}; they must agree")
    if rate == 0.0:
        return
    for teacher, student in pairs:
        teacher.lerp_(student.to(teacher), rate)
