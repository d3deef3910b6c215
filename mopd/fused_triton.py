"""The kernels of `mopd.fused_kernels` in Triton: every logit is read once, and written once if it is written at all.

Only `mopd.fused_kernels` imports this, where Triton does the work. Its interpreter (TRITON_INTERPRET=1) runs the same
code on a CPU, for tests. Of the arguments of a kernel, `stride` is that of rows and `inverse` one over the temperature.
"""

from __future__ import annotations

from math import gcd

import torch
import triton
import triton.language as tl
from torch import Tensor

from mopd.divergence import LOG_FLOOR

LANES = 128
"""Groups that a program looks at in one go."""
COLUMNS = 2048
"""Logits of a row whose gradient a program writes."""


def scan(
    logits: Tensor, group: int, temperature: float, entropy: bool, kind: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The fields of `mopd.fused_kernels.Scan` of logits `[C, V]`, the total in `kind`; a program takes a row."""
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    rows, vocabulary = logits.shape
    groups = vocabulary // group
    peaks = logits.new_empty(rows, groups + vocabulary % group)
    largest, weighted = torch.empty(2, rows, device=logits.device, dtype=torch.float32)
    total = torch.empty_like(largest, dtype=kind)
    _scan[(rows,)](
        logits, logits.stride(0), vocabulary, peaks, largest, total, weighted, 1.0 / temperature,
        GROUP=group, LANES=LANES, ALIGNED=gcd(groups, 8) or 1, ENTROPY=entropy, FLOOR=LOG_FLOOR,
    )  # fmt: skip
    return peaks, largest, total, weighted


def outside(logits: Tensor, normaliser: Tensor, shift: Tensor, temperature: float, out: Tensor) -> Tensor:
    """As `mopd.fused_kernels.outside`; a program takes a part of a row."""
    rows, columns = logits.shape
    _outside[(rows, triton.cdiv(columns, COLUMNS))](
        logits, logits.stride(0), columns, normaliser, shift, 1.0 / temperature, out, out.stride(0), COLUMNS=COLUMNS
    )
    return out


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _scan(
    logits: tl.tensor, stride: tl.tensor, vocabulary: tl.tensor, peaks: tl.tensor,
    largest: tl.tensor, total: tl.tensor, weighted: tl.tensor, inverse: tl.tensor,
    GROUP: tl.constexpr, LANES: tl.constexpr, ALIGNED: tl.constexpr, ENTROPY: tl.constexpr, FLOOR: tl.constexpr,
) -> None:  # fmt: skip
    """Goes along a row, always counting from the largest logit so far. A group's entries lie `groups` apart."""
    row = tl.program_id(0).to(tl.int64)
    groups = tl.multiple_of(vocabulary // GROUP, ALIGNED)
    logits += row * stride
    peaks += row * (groups + vocabulary % GROUP)
    member = tl.arange(0, GROUP)
    most = tl.full((), -float("inf"), tl.float32)
    mass = tl.zeros((), total.dtype.element_ty)
    moment = tl.zeros((), tl.float32)
    for start in range(0, groups, LANES):
        lane = start + tl.arange(0, LANES)
        places = member[:, None] * groups + lane[None, :]
        tile = tl.load(logits + places, mask=(lane < groups)[None, :], other=-float("inf"))
        tl.store(peaks + lane, tl.max(tile, axis=0), mask=lane < groups)
        most, mass, moment = _with(tile.to(tl.float32), most, mass, moment, inverse, ENTROPY, FLOOR)
    left = groups * GROUP + member  # one by one, and each its own peak
    tile = tl.load(logits + left, mask=left < vocabulary, other=-float("inf"))
    tl.store(peaks + groups + member, tile, mask=left < vocabulary)
    most, mass, moment = _with(tile[None, :].to(tl.float32), most, mass, moment, inverse, ENTROPY, FLOOR)
    tl.store(largest + row, most)
    tl.store(total + row, mass)
    tl.store(weighted + row, moment)


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _with(
    tile: tl.tensor, most: tl.tensor, mass: tl.tensor, moment: tl.tensor, inverse: tl.tensor,
    ENTROPY: tl.constexpr, FLOOR: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:  # fmt: skip
    """The largest logit and both sums, with those of one more tile; while all are impossible they stay 0."""
    new = tl.maximum(most, tl.max(tl.max(tile, axis=1), axis=0))
    base = tl.where(new == -float("inf"), 0.0, new)
    step = tl.where(most == -float("inf"), 0.0, (most - base) * inverse)
    below = (tile - base) * inverse
    shares = tl.exp(below)
    if ENTROPY:
        added = tl.sum(tl.sum(tl.maximum(below, FLOOR) * shares, axis=1), axis=0)
        moment = tl.exp(step) * (moment + step * mass.to(tl.float32)) + added
    mass = tl.exp(step) * mass + tl.sum(tl.sum(shares.to(mass.dtype), axis=1), axis=0)
    return new, mass, moment


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _outside(
    logits: tl.tensor, stride: tl.tensor, columns: tl.tensor, normaliser: tl.tensor, shift: tl.tensor,
    inverse: tl.tensor, out: tl.tensor, out_stride: tl.tensor, COLUMNS: tl.constexpr,
) -> None:  # fmt: skip
    """A part of a row, all of it at once."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    here = column < columns
    logit = tl.load(logits + row * stride + column, mask=here, other=0.0).to(tl.float32)
    value = tl.exp(logit * inverse - tl.load(normaliser + row)) * tl.load(shift + row)
    tl.store(out + row * out_stride + column, value.to(out.dtype.element_ty), mask=here)
