"""Teachers: one that follows the student, one that stays within reach of it, one from elsewhere.

ema_                 a moving average of the student's weights (mean teacher, arXiv 1703.01780)
trust_region_logits  the initial model, drawn towards the student as it is now (published `trust-region`)
check_vocabulary     whether another model's logits mean the same tokens as the student's
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from mopd.divergence import wide


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
    _check_rate(rate)
    pairs = list(zip(teacher_parameters, student_parameters, strict=True))
    for index, (teacher, student) in enumerate(pairs):
        if teacher.shape != student.shape:
            shapes = f"{tuple(teacher.shape)} in the teacher, {tuple(student.shape)} in the student"
            raise ValueError(f"parameter {index} has shape {shapes}; they must agree")
    if rate == 0.0:
        return
    for teacher, student in pairs:
        teacher.lerp_(student.to(teacher), rate)


@torch.no_grad()
def trust_region_logits(reference_logits: Tensor, student_logits: Tensor, rate: float) -> Tensor:
    """The teacher's logits (1 - rate) reference + rate student, without gradient; needs no weights of its own.

    Args:
        reference_logits: `[..., V]` of the model that the run began with, on the teacher's prompt.
        student_logits: `[..., V]` of the student as it is now, on the teacher's prompt too.
        rate: in [0, 1]; 0 is the reference alone, 1 the student alone. Published, 0.05.

    The mixture is a weighted geometric mean of the two distributions. Mixing before or after dividing by the
    temperature is the same. Where the two are equal it is exactly their value; an entry that either excludes
    (-inf) is excluded at any rate between.

    Returns: `[..., V]`, float32 (float64 for float64 logits). Raises ValueError on another rate or unequal shapes.
    """
    _check_rate(rate)
    if reference_logits.shape != student_logits.shape:
        shapes = f"{tuple(reference_logits.shape)} in the reference, {tuple(student_logits.shape)} in the student"
        raise ValueError(f"logits have shape {shapes}; they must agree")
    reference, student = wide(reference_logits), wide(student_logits)
    if rate in (0.0, 1.0):
        return student.clone() if rate else reference.clone()
    return reference.where(reference == student, (1.0 - rate) * reference + rate * student)


def check_vocabulary(
    student: Mapping[str, int], teacher: Mapping[str, int], student_rows: int, teacher_rows: int
) -> None:
    """Whether student and teacher mean the same token by the same id, so that their logits can be compared.

    Args:
        student, teacher: every token and its id, added and special tokens included.
        student_rows, teacher_rows: how many logits each model has. Rows beyond the last id are padding and
            may differ in number: compare the first min(student_rows, teacher_rows) logits of both.

    Raises ValueError that names the first token (by id) of which the two differ, or a model that has not a
    logit for every id of the student.
    """
    differing = sorted((id, token) for token, id in set(student.items()) ^ set(teacher.items()))
    if differing:
        _, token = differing[0]
        ids = " and ".join(
            f"id {vocabulary[token]} in the {name}" if token in vocabulary else f"no id in the {name}"
            for name, vocabulary in (("student", student), ("teacher", teacher))
        )
        raise ValueError(
            f"student and teacher have different vocabularies: token {token!r} has {ids} (the first of "
            f"{len({token for _, token in differing})} tokens); take a teacher with the student's tokenizer"
        )
    needed = max(student.values(), default=-1) + 1
    for name, rows in (("student", student_rows), ("teacher", teacher_rows)):
        if rows < needed:
            raise ValueError(f"the {name} has {rows} logits, but the student's token ids need {needed}")


def _check_rate(rate: float) -> None:
    if not 0.0 <= rate <= 1.0:
        raise ValueError(f"rate is {rate!r}; it must lie in [0, 1] (0 freezes, 1 copies)")
