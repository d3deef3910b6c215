"""Both ways through the vocabulary say the same of student and teacher, whether it is beside or elsewhere."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from torch import Tensor

from mopd.divergence import Support
from mopd.support import shares
from trainer.scores import HEADS, DivergenceSettings, HeadName, States

M, V, H = 13, 40, 6
TEMPERATURE = 0.8


def states(seed: int, vocabulary: int) -> States:
    """Of a model with random numbers."""
    drawn = torch.Generator().manual_seed(seed)
    hidden, weight = (torch.randn(size, H, generator=drawn, dtype=torch.float64) for size in (M, vocabulary))
    return States(hidden.requires_grad_(), weight.requires_grad_())


def found_by(head: HeadName, support: Support, distant: bool) -> dict[str, Tensor]:
    """All that a head finds of a student and of a teacher with a smaller vocabulary, one of whose rows is lost."""
    student, teacher = states(0, V), states(1, V - 3)
    teacher.hidden.detach()[2] = torch.nan
    tokens = torch.arange(M) * 3 % V
    settings = DivergenceSettings(0.5, 7, "bucket", support)
    way = HEADS[head]
    if distant:
        asks, own = shares(support, 7)
        answer = way.answer(teacher, way.ids(student, asks), own, V, TEMPERATURE)
        found = way.divergence_on(student, answer, tokens, TEMPERATURE, settings)
    else:
        found = way.divergence(student, teacher, tokens, TEMPERATURE, settings)
    return {each.name: getattr(found, each.name) for each in fields(found)}


@pytest.mark.parametrize("distant", [False, True])
@pytest.mark.parametrize("support", ["student", "teacher", "union"])
def test_both_heads_find_the_same(support: Support, distant: bool) -> None:
    fused, dense = found_by("fused", support, distant), found_by("dense", support, distant)
    assert fused.keys() == dense.keys()
    for name in sorted(fused.keys() - {"gradient_bound"}):  # the dense head leaves nothing out
        torch.testing.assert_close(fused[name][fused["told"]], dense[name][fused["told"]], equal_nan=True, msg=name)
    assert fused["told"].tolist() == [row != 2 for row in range(M)] == dense["told"].tolist()
    assert all(bool(each["teacher_logprobs"][2].isnan()) for each in (fused, dense))
    assert bool(fused["teacher_logprobs"][fused["told"]].isfinite().any())
    assert bool(fused["teacher_logprobs"][fused["told"]].isfinite().all()) != distant
