"""A divergence from K entries and a normaliser per token, in value and in slopes.

    compared(reading, ...)    of the tokens of a chunk, whose logits are then let go
    joined(chunks, ...)       of all tokens, attached to the hidden states and the weight of the student

A divergence D sees its student's logits through the entries of the support, z_K, and their normaliser L alone. It is
differentiated in these; `mopd.fused_gradient` tells what follows for all logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mopd.divergence import LOG_FLOOR, TAIL_CEILING, closed, generalized_jsd, mass, wide
from mopd.fused_gradient import Slopes, attached
from mopd.fused_kernels import Scan
from mopd.fused_logits import Options, Reading, Rows, read


@dataclass(frozen=True)
class LinearDivergence:
    """What `linear_divergence` finds at N tokens; only `values` can be differentiated. Wide floats."""

    values: Tensor
    """[N], nats; 0 where not `told`."""
    logprobs: Tensor
    """[N], of the sampled tokens under the student."""
    entropy: Tensor | None
    """[N], of the student over the whole vocabulary, nats; None unless asked for."""
    gradient_bound: Tensor
    """[N], the sum of |dD/dlogit| outside the support: what `sparse` leaves out. Rounding aside, that puts the gradient
    in the hidden state off by no more than this times the longest row of the weight over the temperature."""
    student_mass: Tensor
    """[N], the probability that the support holds under the student; 1 for the full vocabulary."""
    teacher_mass: Tensor
    """[N], under the teacher (`mopd.divergence.captured_mass`)."""
    told: Tensor
    """[N] bool, where the teacher's logits are a distribution; elsewhere a token costs nothing."""
    teacher_logprobs: Tensor
    """[N], of the sampled tokens under the teacher; not-a-number where it told none, or was not asked for that one."""


@dataclass(frozen=True)
class Chunk:
    """As `LinearDivergence` of C tokens, all constants; with what their gradient needs."""

    values: Tensor
    logprobs: Tensor
    entropy: Tensor
    gradient_bound: Tensor
    student_mass: Tensor
    teacher_mass: Tensor
    told: Tensor
    teacher_logprobs: Tensor
    slopes: Slopes


def read_beside(
    rows: Rows, logits: Tensor, ids: Tensor, tokens: Tensor, seen: Scan, options: Options
) -> tuple[Reading, Tensor]:
    """Reads the rows' logits `[C, V]` at `ids` `[C, K]`; and the log-probs `[C]` of the tokens beside."""
    ids = torch.cat([ids, tokens[:, None]], dim=-1)
    reading = read(logits, ids, seen, options, rows.exactly(ids))
    return replace(reading, entries=reading.entries[:, :-1]), reading.logprobs[:, -1]


def compared(
    student: Reading, logprobs: Tensor, teacher_K: Tensor, teacher_logprobs: Tensor, told: Tensor, ids: Tensor,
    options: Options,
) -> Chunk:  # fmt: skip
    """The divergence as a function of the support's logits and of the normaliser alone, differentiated in both.

    Args:
        student, logprobs: the student's logits at the support; the log-probs `[C]` of the tokens.
        teacher_K, teacher_logprobs: likewise the teacher's, `[C, K]` log-probs at the support and `[C]` of the tokens.
        told: `[C]` bool, where they are log-probs.
        ids: `[C, K]`, the support, ascending; what repeats its left neighbour counts for nothing.
    """
    with torch.enable_grad():
        entries, normaliser = student.entries.detach().requires_grad_(), student.normaliser.detach().requires_grad_()
        student_K = (entries - normaliser[:, None]).clamp(min=LOG_FLOOR)
        teacher_closed = closed(teacher_K.clamp(min=LOG_FLOOR), ids, options.tail)
        values = generalized_jsd(closed(student_K, ids, options.tail), teacher_closed, options.alpha)
        slopes, shift = torch.autograd.grad(values.sum(), (entries, normaliser))
    repeated = ids.diff(dim=-1, prepend=ids[:, :1] - 1) == 0
    support_K = student_K.detach().masked_fill(repeated, LOG_FLOOR)
    bound = -torch.expm1(support_K.logsumexp(dim=-1).clamp(max=TAIL_CEILING)) * shift.abs()
    inside = slopes + shift[:, None] * support_K.exp()
    whole = bound > options.tolerance * (inside.abs().sum(dim=-1) + bound)
    whole = whole if options.grad_mode == "auto" else torch.full_like(whole, options.grad_mode == "exact")
    inside = inside.masked_fill(~told[:, None], 0.0)
    values, bound, shift = (each.detach().masked_fill(~told, 0.0) for each in (values, bound, shift))
    return Chunk(
        values, logprobs, student.entropy, bound, mass(student_K.detach(), ids), mass(teacher_K, ids), told,
        teacher_logprobs.masked_fill(~told, torch.nan),
        Slopes(ids.int(), inside, shift, student.largest + student.normaliser, whole),
    )  # fmt: skip


def joined(chunks: Sequence[Chunk], hidden: Tensor, weight: Tensor, options: Options) -> LinearDivergence:
    """The chunks' tokens in their order, attached to the student's hidden states `[N, H]` and weight `[V, H]`."""
    kind = wide(hidden).dtype

    def all_of(pieces: Sequence[Any], name: str) -> Tensor:
        found = torch.cat([getattr(each, name) for each in pieces])
        return found.to(kind) if found.is_floating_point() else found

    kept = [each.slopes for each in chunks]
    slopes = Slopes(*(all_of(kept, name) for name in ("ids", "inside", "shift", "normaliser", "whole")))
    constants = ("logprobs", "gradient_bound", "student_mass", "teacher_mass", "told", "teacher_logprobs")
    return LinearDivergence(
        values=attached(all_of(chunks, "values"), hidden, weight, slopes, options),
        entropy=all_of(chunks, "entropy") if options.entropy else None,
        **{name: all_of(chunks, name) for name in constants},
    )
