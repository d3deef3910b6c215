"""A step of the actor in one process: however its batch is laid out the loss is the same, and it falls."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from benchmarks.gpu_step import TOY, WAYS, Bench, Trio, alone, build, make_rows, step

TOLERANCE = {"cuda": 5e-2, "cpu": 1e-5}
"""Between ways of one step, as a share of the loss: bf16 on a GPU."""


@pytest.fixture(scope="module")
def bench(device: torch.device) -> Iterator[Bench]:
    """A process group of this process."""
    found = Bench(device, budget_s=60.0, quiet=True)
    with alone(found):
        yield found


def fresh(bench: Bench) -> Trio:
    """Student and teacher of the same random weights, the teacher's scaled up: there is something to learn."""
    student, teacher = build(TOY, bench, trained=True), build(TOY, bench, trained=False)
    with torch.no_grad():
        for model, factor in ((student, 4.0), (teacher, 7.0)):
            for parameter in model.parameters():
                parameter.mul_(factor if parameter.ndim == 2 else 1.0)
    return Trio(student, teacher, torch.optim.AdamW(student.parameters(), lr=3e-3))


def losses(bench: Bench, way: str, steps: int) -> list[float]:
    trio, rows = fresh(bench), make_rows(TOY, TOY.tokens[0])
    return [step(trio, rows, WAYS[way], TOY, bench)[1] for _ in range(steps)]


def test_every_way_of_a_step_has_the_same_losses(bench: Bench) -> None:
    # Not `packed`, which makes prompts differ, so that none is shared.
    found = {way: losses(bench, way, 2) for way in ("fused", "shared", "padded")}
    for way, values in found.items():
        assert values == pytest.approx(found["padded"], rel=TOLERANCE[bench.device.type]), way


def test_the_student_learns(bench: Bench) -> None:
    first, *_, last = losses(bench, "fused", 12)
    assert 0 < last < 0.7 * first
