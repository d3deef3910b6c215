"""The gradient of what `mopd.fused` finds: from a few numbers per token, without logits that anybody kept.

What is found at a token sees the student's logits z only through K entries and their normaliser L:

    dD/dz_j = slope_j + shift softmax_j  in the support, else  shift softmax_j          slope = dD/dz_K, shift = dD/dL

In the support these two nearly cancel: their sum is made in forward, from the numbers that the divergence was made of.
Backward goes through the vocabulary, a tile at a time over all tokens, so that each part of the weight's gradient is
written once. Outside the support a gradient is shift softmax_j; `sparse` leaves that out, and with it both large
products. In sum it is |shift| times the mass of the tail, the `gradient_bound` of a token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding_bag

from mopd.divergence import wide
from mopd.fused_kernels import outside
from mopd.fused_logits import Options, logits_dtype, product

ROWS = 128
"""How many rows are added at one time."""


@dataclass(frozen=True)
class Slopes:
    """All that backward needs of N tokens besides hidden states and weight."""

    ids: Tensor
    """[N, K] int32, ascending."""
    inside: Tensor
    """[N, K], by logit over the temperature; 0 for an entry that repeats its left neighbour."""
    shift: Tensor
    """[N], by the normaliser."""
    normaliser: Tensor
    """[N]."""
    whole: Tensor
    """[N] bool, where the gradient goes through the whole vocabulary."""


def attached(values: Tensor, hidden: Tensor, weight: Tensor, slopes: Slopes, options: Options) -> Tensor:
    """The values `[N]`, differentiable in hidden states `[N, H]` and weight `[V, H]` by their slopes; all made wide."""
    numbers = (each.to(wide(hidden).dtype) for each in (values, slopes.inside, slopes.shift, slopes.normaliser))
    values, *kept = numbers
    attached_N: Tensor = _Attached.apply(values, hidden, weight, options, slopes.ids, *kept, slopes.whole)  # type: ignore[no-untyped-call]
    return attached_N


class _Attached(torch.autograd.Function):
    """Values and their gradient; see `attached`."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, hidden: Tensor, weight: Tensor, options: Options, *kept: Tensor) -> Tensor:
        """The values themselves."""
        ctx.save_for_backward(hidden, weight, *kept)
        ctx.options = options
        return values.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor | None, ...]:
        """Through the whole vocabulary for the tokens that want it, through the support for the others."""
        hidden, weight, ids, inside, shift, normaliser, whole = ctx.saved_tensors
        scale = grad_N / ctx.options.temperature
        inside, shift = inside * scale[:, None], shift * scale
        _, hidden_wanted, weight_wanted, *others = ctx.needs_input_grad
        with torch.autocast(hidden.device.type, enabled=False):
            if bool(whole.all()):
                rows: Tensor | slice = slice(None)
                fresh = torch.empty_like if len(hidden) else torch.zeros_like  # all of it is written, if anything is
                grad_hidden, grad_weight = fresh(hidden), fresh(weight) if weight_wanted else None
            else:
                rows = whole.nonzero()[:, 0]
                few = inside.masked_fill(whole[:, None], 0.0)
                grad_hidden, grad_weight = _through_support(hidden, weight, ids, few, weight_wanted)
            if bool(whole.any()):
                few_kept = (tensor[rows] for tensor in (hidden, ids, inside, shift, normaliser))
                beta = 0 if isinstance(rows, slice) else 1
                grad_hidden[rows] = _through_vocabulary(grad_weight, beta, weight, *few_kept, options=ctx.options)
        return None, grad_hidden if hidden_wanted else None, grad_weight, *(None for _ in others)


def _through_vocabulary(
    grad_weight: Tensor | None, beta: int, weight: Tensor,
    hidden: Tensor, ids: Tensor, inside: Tensor, shift: Tensor, normaliser: Tensor, *, options: Options,
) -> Tensor:  # fmt: skip
    """The gradient of the hidden states, `[N, H]`, from every entry of the vocabulary; that of the weight is added to
    beta times what `grad_weight` holds.
    The entries of all supports are sorted by the tile, a range of the vocabulary, that they fall into.
    """
    width = max(1, min(len(weight), options.tile // len(hidden)))
    once = ids.diff(dim=-1, prepend=ids[:, :1] - 1) > 0
    column, order = ids[once].sort()
    starts = torch.arange(0, len(weight) + width, width, device=ids.device, dtype=ids.dtype)
    bounds = torch.searchsorted(column, starts).tolist()
    row, column, inside = once.nonzero()[:, 0][order], column % width, inside[once][order]
    grad_hidden = wide(torch.zeros_like(hidden))
    # Fresh memory is dear on a CPU: there all tiles share it. On a GPU a product brings its own.
    on_cpu, kind = weight.device.type == "cpu", logits_dtype(weight, options.wide_logits)
    narrow = weight.dtype != grad_hidden.dtype
    narrow_tile = weight.new_empty(len(hidden), width if on_cpu or narrow else 0)
    wide_tile = grad_hidden.new_empty(len(hidden), width if narrow and on_cpu else 0)
    part = torch.empty_like(hidden) if on_cpu else None
    for number, weight_tile in enumerate(weight.split(width)):
        mine, columns = slice(*bounds[number : number + 2]), slice(len(weight_tile))
        place = (narrow_tile if kind == weight.dtype else wide_tile)[:, columns] if on_cpu else None
        logits = product(hidden, weight_tile.t(), options.wide_logits, place)
        gradient = narrow_tile[:, columns] if narrow else logits
        spare = wide_tile[:, columns] if on_cpu else None
        gradient = outside(logits, normaliser, shift, options.temperature, gradient, spare)
        gradient.index_put_((row[mine], column[mine].long()), inside[mine].to(gradient.dtype))
        _add(grad_hidden, product(gradient, weight_tile, options.wide_logits and not on_cpu, part))
        if grad_weight is not None:
            grad_weight[number * width :][: len(weight_tile)].addmm_(gradient.t(), hidden, beta=beta)
    return grad_hidden.to(hidden.dtype)


def _add(total: Tensor, part: Tensor) -> None:
    """Adds in place; what is narrow a few rows at a time, for it is copied first and fresh memory is dear."""
    rows = max(1, len(total)) if part.dtype == total.dtype or part.is_cuda else ROWS
    for totals, parts in zip(total.split(rows), part.split(rows), strict=True):
        totals += parts


def _through_support(
    hidden: Tensor, weight: Tensor, ids: Tensor, slopes: Tensor, weight_wanted: bool
) -> tuple[Tensor, Tensor | None]:
    """The gradients of the hidden states `[N, H]` and, if wanted, of the weight `[V, H]`, from the supports alone.

    Both are sums of rows times slopes: rows of the weight by token, and of the hidden states by vocabulary entry.
    """
    slopes = slopes.to(hidden.dtype)
    grad_hidden = embedding_bag(ids.long(), weight, per_sample_weights=slopes, mode="sum")
    if not weight_wanted:
        return grad_hidden, None
    entry, order = ids.flatten().sort()
    starts = torch.searchsorted(entry, torch.arange(len(weight), device=ids.device, dtype=ids.dtype))
    slope = slopes.flatten()[order]
    return grad_hidden, embedding_bag(order // ids.shape[-1], hidden, starts, per_sample_weights=slope, mode="sum")
