"""The Triton kernels against those in torch; `test_fused_triton.py` runs this file in the interpreter of Triton."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mopd import fused_triton
from mopd.fused import LinearDivergence, linear_divergence, linear_logprobs
from mopd.fused_kernels import GROUP, outside, scan

KINDS = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
TEMPERATURES = st.sampled_from([1.0, 0.7])


def by(way: str, work: Callable[[], Any]) -> Any:
    """What some work gives with the kernels of one way."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOPD_KERNEL", way)
        return work()


@contextmanager
def counted() -> Iterator[list[str]]:
    """The kernels that run meanwhile."""
    ran: list[str] = []

    def noted(name: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
        def noting(*given_: Any) -> Any:
            ran.append(name)
            return kernel(*given_)

        return noting

    with pytest.MonkeyPatch.context() as patch:
        for name in ("scan", "outside"):
            patch.setattr(fused_triton, name, noted(name, getattr(fused_triton, name)))
        yield ran


def some_logits(rows: int, vocabulary: int, kind: torch.dtype, seed: int) -> Tensor:
    """Logits with impossible entries, and rows that have nothing else; as a part of wider rows."""
    drawn = torch.Generator().manual_seed(seed)
    logits = 8.0 * torch.randn(rows, vocabulary + 3, generator=drawn)
    logits[torch.rand(logits.shape, generator=drawn) < 0.2] = -torch.inf
    logits[torch.rand(rows, generator=drawn) < 0.2] = -torch.inf
    return logits.to(kind)[:, :vocabulary]


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 4), vocabulary=st.one_of(st.integers(1, 3 * GROUP), st.integers(1, 5000)), kind=KINDS,
    temperature=TEMPERATURES, entropy=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_a_scan_is_that_of_torch(
    rows: int, vocabulary: int, kind: torch.dtype, temperature: float, entropy: bool, seed: int
) -> None:
    logits = some_logits(rows, vocabulary, kind, seed)
    with counted() as ran:
        ours, theirs = (by(way, lambda: scan(logits, temperature, entropy)) for way in ("triton", "torch"))
    assert ran == ["scan"]
    assert torch.equal(ours.peaks, theirs.peaks)
    assert torch.equal(ours.largest, theirs.largest)
    possible = torch.isfinite(ours.largest)
    for name in ("total", "weighted"):
        assert getattr(ours, name).dtype == getattr(theirs, name).dtype
        torch.testing.assert_close(getattr(ours, name)[possible], getattr(theirs, name)[possible], rtol=1e-5, atol=1e-5)
    assert not torch.isfinite(ours.total.log()[~possible]).any()


@pytest.mark.parametrize("fault", [torch.nan, torch.inf])
@pytest.mark.parametrize("place", [0, 16, 38])
def test_a_faulty_row_has_no_finite_normaliser(fault: float, place: int) -> None:
    logits = some_logits(2, 39, torch.float32, 1).nan_to_num(neginf=-3.0)
    logits[0, place] = fault
    normaliser = by("triton", lambda: scan(logits, 1.0, True)).total.log()
    assert torch.isfinite(normaliser).tolist() == [False, True]


@settings(max_examples=20, deadline=None)
@given(
    rows=st.integers(1, 4), columns=st.integers(1, 5000), kind=KINDS, narrow=st.booleans(), temperature=TEMPERATURES,
    seed=st.integers(0, 99),
)  # fmt: skip
def test_gradients_outside_the_support_are_those_of_torch(
    rows: int, columns: int, kind: torch.dtype, narrow: bool, temperature: float, seed: int
) -> None:
    logits = some_logits(rows, columns, kind, seed)
    normaliser, shift = logits.float().amax(-1).clamp(min=-20.0) / temperature + 1.0, torch.linspace(-2.0, 1.0, rows)

    def found() -> Tensor:
        place = logits.clone()
        out = torch.empty(rows, columns + 5, dtype=torch.bfloat16)[:, :columns] if narrow else place
        return outside(place, normaliser, shift, temperature, out)

    with counted() as ran:
        ours, theirs = by("triton", found), by("torch", found)
    assert ran == ["outside"]
    assert ours.dtype == (torch.bfloat16 if narrow else kind)
    tolerance = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}[ours.dtype]
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=1e-6)


def inputs(kind: torch.dtype) -> tuple[Tensor, ...]:
    """Hidden states and weights of a student and of a smaller teacher, one of whose rows is faulty, and tokens."""
    drawn = torch.Generator().manual_seed(4)
    hidden, weight, other, other_weight = (torch.randn(n, 8, generator=drawn) for n in (7, 333, 7, 330))
    other[3] = torch.nan
    student = hidden.to(kind).requires_grad_(), weight.to(kind).requires_grad_()
    return *student, other.to(kind), other_weight.to(kind), torch.randint(333, (7,), generator=drawn)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", [
    {"support": "student", "entropy": True, "temperature": 0.7},
    {"support": "teacher", "precise": True, "grad_mode": "auto", "tolerance": 0.3},
    {"support": "union", "alpha": 1.0, "tail": "renormalize"},
])  # fmt: skip
def test_both_ways_give_one_divergence_and_one_gradient(kind: torch.dtype, options: dict[str, Any]) -> None:
    given_ = inputs(kind)

    def found() -> tuple[LinearDivergence, tuple[Tensor, ...]]:
        each = linear_divergence(*given_, topk=9, logits_at_hand=4 * 333, **options)
        return each, torch.autograd.grad((each.values * torch.linspace(1.0, 2.0, 7)).sum(), given_[:2])

    with counted() as ran:
        (ours, our_grads), (theirs, their_grads) = by("triton", found), by("torch", found)
    assert {"scan", "outside"} == set(ran)
    tolerance = 1e-5 if kind == torch.float32 else 2e-3  # the interpreter cuts bfloat16 off, it does not round
    for name in ("values", "logprobs", "teacher_logprobs", "student_mass", "gradient_bound"):
        torch.testing.assert_close(
            getattr(ours, name), getattr(theirs, name), rtol=tolerance, atol=tolerance, equal_nan=True
        )
    assert torch.equal(ours.told, theirs.told)
    assert ours.told.tolist() == [row != 3 for row in range(7)]
    for our, their in zip(our_grads, their_grads, strict=True):
        assert float((our - their).norm()) <= 5 * tolerance * float(their.norm())


def test_both_ways_give_the_log_probs_of_tokens() -> None:
    hidden, weight, _, _, tokens = inputs(torch.float32)

    def found() -> tuple[Tensor, ...]:
        each = linear_logprobs(hidden, weight, tokens, entropy=True)
        assert each.entropy is not None
        return each.logprobs, each.entropy, *torch.autograd.grad(each.logprobs.sum(), (hidden, weight))

    for ours, theirs in zip(by("triton", found), by("torch", found), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
