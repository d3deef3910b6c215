"""What is done to every logit beside the products: bound by memory, and therefore in as few passes as can be.

    scan(logits)        the largest logits, and the sums over all of them, of every token
    outside(logits)     the gradient of all logits, up to that of a few which are known better

Both stand here in plain torch and in `mopd.fused_triton` as one pass each. On a GPU the faster one does the work: it is
measured once for every kind and width of logits. The variable MOPD_KERNEL, `auto`, `torch` or `triton`, has its say.
"""

from __future__ import annotations

import importlib.util
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mopd.divergence import LOG_FLOOR, wide

SLICES = {"cpu": 1 << 17, "cuda": 1 << 23}
"""How many logits are made wide at one time when they are scanned: on a CPU they are to stay in a cache."""
GROUP = 16
"""Of how many logits the maximum is taken before the likeliest are chosen."""
KERNELS = ("auto", "torch", "triton")
ROUNDS = 3
"""How often a way is timed; the least of them counts."""

_chosen: dict[tuple[object, ...], str] = {}
"""The faster way, by part, device, kinds and width of what it works on."""


@dataclass(frozen=True)
class Scan:
    """What one look at the logits of C tokens tells; wide floats but the peaks. x = (logit - largest) / temperature."""

    peaks: Tensor
    """As of `peaks_of`."""
    largest: Tensor
    """[C]."""
    total: Tensor
    """[C], the sum of exp(x); float64 of float32 logits, for a small tail is what it has beyond a large entry."""
    weighted: Tensor
    """[C], the sum of x exp(x); 0 unless asked for."""


def scan(logits: Tensor, temperature: float, entropy: bool) -> Scan:
    """Of logits `[C, V]`, not yet divided by the temperature; `entropy` asks for the weighted sum."""

    def by(way: str) -> Scan:
        if way == "torch":
            return _scan(logits, temperature, entropy)
        from mopd import fused_triton

        return Scan(*fused_triton.scan(logits, GROUP, temperature, entropy, sums_dtype(logits)))

    return by(_way("scan", logits, (logits.dtype, logits.shape[1], entropy), by))


def outside(
    logits: Tensor, normaliser: Tensor, shift: Tensor, temperature: float, out: Tensor, spare: Tensor | None = None
) -> Tensor:
    """shift exp(logits / temperature - normaliser), of logits `[N, W]` and two numbers `[N]`, in place of `out`.

    Args:
        out: `[N, W]`, of any float type; the logits themselves where that is theirs.
        spare: room for them as wide floats, where they are narrow; None takes fresh memory.
    """

    def by(way: str, logits: Tensor = logits, out: Tensor = out) -> Tensor:
        if way == "torch":
            return _outside(logits, normaliser, shift, temperature, out, spare)
        from mopd import fused_triton

        return fused_triton.outside(logits, normaliser, shift, temperature, out)

    def on_a_copy(way: str) -> Tensor:
        copy = logits.clone()
        return by(way, copy, copy if out is logits else out)

    return by(_way("outside", logits, (logits.dtype, out.dtype, logits.shape[1]), on_a_copy))


def peaks_of(logits: Tensor) -> Tensor:
    """The largest of every group of logits `[C, V]`: `[C, V // GROUP]`, then what is left over, one by one.

    A group's entries lie far apart, `V // GROUP` from one to the next: then a CPU finds all the maxima side by side.
    """
    groups = logits.shape[-1] // GROUP
    grouped = logits[:, : groups * GROUP].unflatten(-1, (GROUP, groups))
    return torch.cat([grouped.amax(dim=1), logits[:, groups * GROUP :]], dim=-1)


def sums_dtype(logits: Tensor) -> torch.dtype:
    """In what the shares of logits are added."""
    return torch.float64 if logits.dtype in (torch.float32, torch.float64) else torch.float32


def _scan(logits: Tensor, temperature: float, entropy: bool) -> Scan:
    """In torch: the peaks, then a part of the vocabulary at a time."""
    peaks = peaks_of(logits)
    largest = wide(peaks).amax(dim=-1, keepdim=True)
    kind = sums_dtype(logits)
    total, weighted = torch.zeros_like(largest[:, 0], dtype=kind), torch.zeros_like(largest[:, 0])
    size = SLICES.get(logits.device.type, SLICES["cpu"]) // max(1, len(logits))
    for part in logits.split(max(1, size), dim=-1):
        below = part - largest if temperature == 1.0 else (part - largest).div_(temperature)
        if entropy:
            mass = torch.exp(below)
            weighted += below.clamp_(min=LOG_FLOOR).mul_(mass).sum(dim=-1)
            total += mass.sum(dim=-1, dtype=kind)
        else:
            total += below.exp_().sum(dim=-1, dtype=kind)
    return Scan(peaks, largest[:, 0], total, weighted)


def _outside(
    logits: Tensor, normaliser: Tensor, shift: Tensor, temperature: float, out: Tensor, spare: Tensor | None
) -> Tensor:
    """In torch: in place, operation by operation."""
    if logits.dtype == shift.dtype:
        values = logits
    else:
        values = logits.to(shift.dtype) if spare is None else spare.copy_(logits)
    values = values.div_(temperature) if temperature != 1.0 else values
    values.sub_(normaliser[:, None]).exp_().mul_(shift[:, None])
    return values if out is values else out.copy_(values)


def faster(by: Callable[[str], object], wait: Callable[[], None]) -> str:
    """`torch` or `triton`, whichever does the work sooner; `torch`, and a warning, where the other fails.

    Args:
        by: does it in the way that it is told.
        wait: until the device is done with what it was given.
    """
    try:
        triton = _seconds(lambda: by("triton"), wait)
    except Exception as error:
        warnings.warn(f"Triton fails here, so torch does without: {error!r}; MOPD_KERNEL=torch is silent", stacklevel=2)
        return "torch"
    return "triton" if triton < _seconds(lambda: by("torch"), wait) else "torch"


def _seconds(work: Callable[[], object], wait: Callable[[], None]) -> float:
    """The least time of a few, after a first that may compile."""
    took = []
    for _ in range(1 + ROUNDS):
        wait()
        begun = time.perf_counter()
        work()
        wait()
        took.append(time.perf_counter() - begun)
    return min(took[1:])


def _way(part: str, logits: Tensor, kind: tuple[object, ...], by: Callable[[str], object]) -> str:
    """`torch` or `triton`: as MOPD_KERNEL says; on a GPU, if it says nothing, the faster one of this kind of logits."""
    asked = os.environ.get("MOPD_KERNEL") or "auto"
    if asked not in KERNELS:
        raise ValueError(f"MOPD_KERNEL is {asked!r}; it must be one of {', '.join(KERNELS)}")
    usable = logits.is_cuda and importlib.util.find_spec("triton") is not None
    if asked == "triton" and not usable and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError("MOPD_KERNEL is 'triton', which needs a GPU and the package triton; set it to auto or torch")
    if asked == "torch" or logits.dtype == torch.float64 or not logits.numel():
        return "torch"
    if asked == "triton":
        return asked
    if not usable:
        return "torch"
    key = (part, logits.device, *kind)
    if key not in _chosen:
        _chosen[key] = faster(by, torch.cuda.synchronize)
    return _chosen[key]
