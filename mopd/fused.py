"""The distillation loss from hidden states: what `mopd.losses.distillation_loss` says of logits nobody has to keep.

    logits = hidden @ weight.T / temperature      [N, V], of student and teacher; here they live in parts only
    loss   = distillation_loss(...)               the specification, in value and in gradient

Forward goes through the tokens, a chunk at a time: the student's logits choose the support and give its entries and
their normaliser, then the teacher's take the same place. What remains of a token is K slopes and a few scalars, for a
divergence D sees its student's logits z only through K entries and their normaliser L:

    dD/dz_j = slope_j [j in the support] + shift softmax_j          slope = dD/dz_K, shift = dD/dL, of that small graph

Backward goes through the vocabulary, a tile at a time over all tokens, so that each part of the weight's gradient is
written once. Outside the support a gradient is shift softmax_j; `sparse` leaves that out, and with it both large
products. In sum it is |shift| times the mass of the tail, which every token reports as its `gradient_bound`.

Sums are carried in float32 (float64 for float64). The products of bfloat16 inputs come out in float32 on a GPU; a CPU
rounds them to bfloat16, as a dense layer does. float32 inputs avoid that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding_bag
from torch.utils.checkpoint import checkpoint

from mopd.divergence import LOG_FLOOR, TAIL_CEILING, Support, Tail, closed, generalized_jsd, wide
from mopd.losses import Aggregation, divergence_loss, shaped, token_divergence
from mopd.support import own_ids

GradMode = Literal["exact", "sparse", "auto"]

LOGITS_AT_HAND = {"cpu": 1 << 25, "cuda": 1 << 27}
"""How many logits may exist at one time, by device."""
TILES = {"cpu": 32, "cuda": 4}
"""Into how many times smaller a tile backward cuts them, for it has them in several forms, and caches are small."""


@dataclass(frozen=True)
class LinearDivergence:
    """What `linear_divergence` finds at N tokens; only `values` can be differentiated. Wide floats."""

    values: Tensor
    """[N], nats; 0 where the teacher's logits are no distribution."""
    logprobs: Tensor
    """[N], of the sampled tokens under the student."""
    entropy: Tensor | None
    """[N], of the student over the whole vocabulary, nats; None unless asked for."""
    gradient_bound: Tensor
    """[N], the sum of |dD/dlogit| outside the support: what `sparse` leaves out. Rounding aside, that puts the gradient
    in the hidden state off by no more than this times the longest row of the weight over the temperature."""


@dataclass(frozen=True)
class _Options:
    """The settings of one call, checked; see `linear_divergence`."""

    temperature: float
    grad_mode: GradMode
    tolerance: float
    alpha: float
    topk: int | None
    tail: Tail
    support: Support
    entropy: bool
    logits_at_hand: int
    tile: int
    """Logits of a tile of backward."""

    def __post_init__(self) -> None:
        choices = {"grad_mode": get_args(GradMode), "tail": get_args(Tail), "support": get_args(Support)}
        demands = {
            "temperature": (0.0 < self.temperature < float("inf"), "positive"),
            "alpha": (0.0 <= self.alpha <= 1.0, "in [0, 1] (0 forward KL, 1 reverse KL)"),
            "tolerance": (self.tolerance >= 0.0, "a share of the gradient, 0 or more"),
            "topk": (self.topk is None or self.topk > 0, "positive, or None for the full vocabulary"),
            **{name: (getattr(self, name) in one, f"one of {', '.join(one)}") for name, one in choices.items()},
        }
        for name, (holds, right) in demands.items():
            if not holds:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be {right}")


def linear_distillation_loss(
    student_hidden: Tensor, student_weight: Tensor, teacher_hidden: Tensor, teacher_weight: Tensor, tokens: Tensor, *,
    temperature: float = 1.0, grad_mode: GradMode = "exact", sequence_ids: Tensor | None = None,
    alpha: float = 0.5, topk: int | None = 100, tail: Tail = "bucket", support: Support = "student",
    old_logprobs: Tensor | None = None, is_clip: float | None = None, importance_weights: Tensor | None = None,
    sequence_mask: Tensor | None = None, step_ids: Tensor | None = None,
    aggregation: Aggregation = "token-mean", denominator: float | Tensor | None = None,
    tolerance: float = 1e-3, logits_at_hand: int | None = None,
) -> Tensor:  # fmt: skip
    """`mopd.losses.distillation_loss` of packed response tokens, from hidden states and output weights.

    Args:
        student_hidden .. grad_mode, alpha .. support, tolerance, logits_at_hand: as of `linear_divergence`.
        sequence_ids: `[N]`, which sequence a token belongs to, in any order, 0 or more; None if all are of one.
        sequence_mask: `[S]`, indexed by sequence id, zero for sequences that are left out; needs `sequence_ids`.
        old_logprobs, importance_weights, step_ids: `[N]`, else as in `distillation_loss`.
        is_clip, aggregation, denominator: as there; packed tokens have no width for `seq-mean-token-sum-norm`: give it.

    Returns: a scalar, float32 (float64 for float64 inputs); 0, with zero gradient, if no token is left.
    Raises ValueError on a wrong shape, or an option outside its range.
    """
    if aggregation == "seq-mean-token-sum-norm" and denominator is None:
        raise ValueError("seq-mean-token-sum-norm divides by a width, and packed tokens have none: give denominator")
    _check(student_hidden, student_weight, teacher_hidden, teacher_weight, tokens)
    if sequence_mask is not None and sequence_ids is None:
        raise ValueError("sequence_mask holds one number per sequence: give sequence_ids, whose tokens are whose")
    sequence_ids = torch.zeros_like(tokens) if sequence_ids is None else sequence_ids
    per_token = {
        "sequence_ids": sequence_ids, "step_ids": step_ids,
        "old_logprobs": old_logprobs, "importance_weights": importance_weights,
    }  # fmt: skip
    given = {name: shaped(name, each, tokens.shape).detach() for name, each in per_token.items() if each is not None}
    left_N = _left(given, sequence_mask)
    if not bool(left_N.all()):  # a copy of the hidden states, so only where something is masked
        student_hidden, teacher_hidden, tokens = student_hidden[left_N], teacher_hidden[left_N], tokens[left_N]
        given = {name: each[left_N] for name, each in given.items()}
    found = linear_divergence(
        student_hidden, student_weight, teacher_hidden, teacher_weight, tokens, temperature=temperature,
        grad_mode=grad_mode, alpha=alpha, topk=topk, tail=tail, support=support, tolerance=tolerance,
        logits_at_hand=logits_at_hand,
    )  # fmt: skip
    mask_B_T, places = _padding(given.pop("sequence_ids"))

    def padded(values_N: Tensor) -> Tensor:
        return values_N.new_zeros(mask_B_T.shape).index_put(places, values_N)

    given = {name: padded(each) for name, each in {**given, "values": found.values, "logprobs": found.logprobs}.items()}
    return divergence_loss(
        response_mask=mask_B_T, is_clip=is_clip, aggregation=aggregation, denominator=denominator, **given
    )


def linear_divergence(
    student_hidden: Tensor, student_weight: Tensor, teacher_hidden: Tensor, teacher_weight: Tensor, tokens: Tensor, *,
    temperature: float = 1.0,
    grad_mode: GradMode = "exact",
    alpha: float = 0.5,
    topk: int | None = 100,
    tail: Tail = "bucket",
    support: Support = "student",
    tolerance: float = 1e-3,
    entropy: bool = False,
    logits_at_hand: int | None = None,
) -> LinearDivergence:  # fmt: skip
    """`mopd.divergence.divergence` at every token, with what else the student's logits tell of it.

    Args:
        student_hidden, student_weight: `[N, H]` states at the positions that predict `tokens`, and the output weight
            `[V, H]`; of one dtype, which autocast does not change. Differentiable.
        teacher_hidden, teacher_weight: `[N, H']` and `[V, H']`, likewise, but constants. Only H' may differ.
        tokens, temperature: `[N]` sampled ids, 0 .. V - 1; what the logits are divided by.
        grad_mode: `exact`; `sparse`, through the entries of the support alone; `auto`, exact for the tokens where
            `sparse` would leave out more than `tolerance` of the sum of |dD/dlogit|. Without a tail all are exact.
        alpha, topk, tail, support: see `mopd.divergence.divergence`. `union` holds both models' logits of a chunk.
        entropy: whether to compute the student's entropy, which costs one more pass.
        logits_at_hand: how many logits may exist at one time, at least one token's; None chooses by device.

    Raises ValueError on a wrong shape or dtype, or an option outside its range.
    """
    _check(student_hidden, student_weight, teacher_hidden, teacher_weight, tokens)
    device = tokens.device.type if tokens.device.type in LOGITS_AT_HAND else "cpu"
    at_hand = logits_at_hand or LOGITS_AT_HAND[device]
    options = _Options(
        float(temperature), grad_mode, tolerance, alpha, topk, tail, support, entropy, at_hand, at_hand // TILES[device]
    )
    find = _full_vocabulary if topk is None or topk >= len(student_weight) else _TopK.apply
    with torch.autocast(tokens.device.type, enabled=False):
        values, logprobs, entropy_N, bound = find(
            student_hidden, student_weight, teacher_hidden.detach(), teacher_weight.detach(), tokens, options
        )
    return LinearDivergence(values, logprobs, entropy_N if entropy else None, bound)


class _TopK(torch.autograd.Function):
    """Values, log-probs, entropies and bounds `[N]` of tokens whose support is smaller than the vocabulary."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, ...]:
        """Through the tokens by chunks; keeps K slopes and a few scalars of each. Arguments: see `_full_vocabulary`."""
        hidden, weight, teacher_hidden, teacher_weight, tokens, options = arguments
        size = max(1, options.logits_at_hand // len(weight))
        # Fresh memory is dear on the CPU: all chunks share one buffer, unless both models' logits are needed at once.
        buffer = weight.new_empty(min(size, len(hidden)), len(weight)) if weight.device.type == "cpu" else None
        shared = buffer if options.support != "union" and teacher_weight.dtype == weight.dtype else None
        student = partial(_product, right=weight.t(), buffer=buffer)
        teacher = partial(_product, right=teacher_weight.t(), buffer=shared)
        parts = zip(hidden.split(size), teacher_hidden.split(size), tokens.split(size), strict=True)
        found = [_chunk(partial(student, h), partial(teacher, t), ids, options) for h, t, ids in parts]
        values, logprobs, entropy, bound, *kept = (torch.cat(pieces) for pieces in zip(*found, strict=True))
        ctx.save_for_backward(hidden, weight, *kept)
        ctx.options = options
        ctx.mark_non_differentiable(logprobs, entropy, bound)
        return values, logprobs, entropy, bound

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_N: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        """Through the whole vocabulary for the tokens that want it, through the support for the others."""
        hidden, weight, ids, slopes, shift, normaliser, whole = ctx.saved_tensors
        scale = grad_N / ctx.options.temperature
        slopes, shift = slopes * scale[:, None], shift * scale
        hidden_wanted, weight_wanted = ctx.needs_input_grad[:2]
        with torch.autocast(hidden.device.type, enabled=False):
            if bool(whole.all()):
                rows: Tensor | slice = slice(None)
                fresh = torch.empty_like if len(hidden) else torch.zeros_like  # all of it is written, if anything is
                grad_hidden, grad_weight = fresh(hidden), fresh(weight) if weight_wanted else None
            else:
                rows = whole.nonzero()[:, 0]
                few = slopes.masked_fill(whole[:, None], 0.0)
                grad_hidden, grad_weight = _through_support(hidden, weight, ids, few, weight_wanted)
            if bool(whole.any()):
                kept = (tensor[rows] for tensor in (hidden, ids, slopes, shift, normaliser))
                beta = 0 if isinstance(rows, slice) else 1
                grad_hidden[rows] = _through_vocabulary(grad_weight, beta, weight, *kept, options=ctx.options)
        return grad_hidden if hidden_wanted else None, grad_weight, None, None, None, None


def _product(left: Tensor, right: Tensor, buffer: Tensor | None = None) -> Tensor:
    """left @ right; of narrow floats in float32 on a GPU, else in their dtype, and in the buffer if there is one."""
    if left.is_cuda and wide(left).dtype != left.dtype:
        return torch.mm(left, right, out_dtype=torch.float32)
    return torch.mm(left, right, out=None if buffer is None else buffer[: len(left), : right.shape[1]])


def _chunk(
    student: Callable[[], Tensor], teacher: Callable[[], Tensor], tokens: Tensor, options: _Options
) -> tuple[Tensor, ...]:
    """Of C tokens, whose logits `[C, V]` are made when called for: value, log-prob, entropy and bound; then what
    backward needs: ids and slopes `[C, K]`, shift, normaliser, and whether to go through the whole vocabulary."""
    chooser, other = (teacher, student) if options.support == "teacher" else (student, teacher)
    read = partial(_read, tokens=tokens, options=options)
    logits = chooser()
    others = other() if options.support == "union" else None
    k = options.topk or 0
    ids = own_ids(logits, k) if others is None else torch.cat([own_ids(logits, k), own_ids(others, k)], dim=-1)
    ids = ids.sort(dim=-1).values
    first = read(logits, ids)
    del logits  # before the other's come
    second = read(other() if others is None else others, ids)
    mine, theirs = (second, first) if options.support == "teacher" else (first, second)
    (entries, normaliser, logprobs, entropy), (teacher_entries, teacher_normaliser, *_) = mine, theirs
    teacher_K = (teacher_entries - teacher_normaliser[:, None]).clamp(min=LOG_FLOOR)
    values, bound, slopes, shift, whole = _slopes(entries, normaliser, teacher_K, ids, options)
    lost = ~torch.isfinite(teacher_normaliser)  # the teacher's logits are no distribution: the token costs nothing
    values, bound, shift = (tensor.masked_fill(lost, 0.0) for tensor in (values, bound, shift))
    slopes = slopes.masked_fill(lost[:, None], 0.0)
    return values, logprobs, entropy, bound, ids.int(), slopes, shift, normaliser, whole


def _read(logits: Tensor, ids: Tensor, tokens: Tensor, options: _Options) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of logits `[C, V]` over the temperature: the entries at `ids` `[C, K]`, their logsumexp, the log-probs of the
    tokens and, if asked for, the entropy (else 0), each `[C]`."""
    normalisers, means = [], []
    for narrow in logits.split(max(1, options.tile // 4 // max(1, len(logits))), dim=-1):
        part = wide(narrow) if options.temperature == 1.0 else wide(narrow) / options.temperature
        normalisers.append(part.logsumexp(dim=-1))
        if options.entropy:
            means.append((torch.exp(part - normalisers[-1][:, None]) * part.clamp(min=LOG_FLOOR)).sum(dim=-1))
    parts = torch.stack(normalisers)
    normaliser = parts.logsumexp(dim=0)
    entropy = torch.zeros_like(normaliser)
    if options.entropy:
        entropy = normaliser - (torch.exp(parts - normaliser) * torch.stack(means)).sum(dim=0)
    columns = torch.cat([ids, tokens[:, None].long()], dim=-1)
    entries = wide(logits.gather(-1, columns)) / options.temperature
    return entries[:, :-1], normaliser, (entries[:, -1] - normaliser).clamp(min=LOG_FLOOR), entropy


def _slopes(
    entries: Tensor, normaliser: Tensor, teacher_K: Tensor, ids: Tensor, options: _Options
) -> tuple[Tensor, ...]:
    """The divergence as a function of the support's logits and of the normaliser alone, differentiated in both.

    Returns value `[C]`, bound `[C]`, slopes `[C, K]`, shift `[C]`, and `[C]` bool, where to go through the vocabulary.
    Where not, the slopes are the whole gradient at the support.
    """
    with torch.enable_grad():
        entries, normaliser = entries.detach().requires_grad_(), normaliser.detach().requires_grad_()
        student_K = (entries - normaliser[:, None]).clamp(min=LOG_FLOOR)
        teacher_closed = closed(teacher_K, ids, options.tail)
        values = generalized_jsd(closed(student_K, ids, options.tail), teacher_closed, options.alpha)
        slopes, shift = torch.autograd.grad(values.sum(), (entries, normaliser))
    repeated = ids.diff(dim=-1, prepend=ids[:, :1] - 1) == 0
    support_K = student_K.detach().masked_fill(repeated, LOG_FLOOR)
    bound = -torch.expm1(support_K.logsumexp(dim=-1).clamp(max=TAIL_CEILING)) * shift.abs()
    inside = slopes + shift[:, None] * support_K.exp()
    whole = bound > options.tolerance * (inside.abs().sum(dim=-1) + bound)
    whole = whole if options.grad_mode == "auto" else torch.full_like(whole, options.grad_mode == "exact")
    return values.detach(), bound, torch.where(whole[:, None], slopes, inside), shift, whole


def _through_vocabulary(
    grad_weight: Tensor | None, beta: int, weight: Tensor,
    hidden: Tensor, ids: Tensor, slopes: Tensor, shift: Tensor, normaliser: Tensor, *, options: _Options,
) -> Tensor:  # fmt: skip
    """The gradient of the hidden states, `[N, H]`, from every entry of the vocabulary; that of the weight is added to
    beta times what `grad_weight` holds.
    The entries of all supports are sorted by the tile, a range of the vocabulary, that they fall into.
    """
    width = max(1, min(len(weight), options.tile // len(hidden)))
    column, order = ids.flatten().long().sort()
    starts = torch.arange(0, len(weight) + width, width, device=ids.device)
    bounds = torch.searchsorted(column, starts).tolist()
    row, column, slope = order // ids.shape[-1], column % width, slopes.flatten()[order]
    grad_hidden = wide(torch.zeros_like(hidden))
    on_cpu = weight.device.type == "cpu"  # where fresh memory is dear
    buffer, other = (weight.new_empty(len(hidden), size) if on_cpu else None for size in (width, weight.shape[1]))
    spare = grad_hidden.new_empty(len(hidden), width if on_cpu and grad_hidden.dtype != weight.dtype else 0)
    for number, weight_tile in enumerate(weight.split(width)):
        mine = slice(*bounds[number : number + 2])
        logits = _product(hidden, weight_tile.t(), buffer)
        gradient = logits if logits.dtype == spare.dtype else spare[:, : len(weight_tile)].copy_(logits)
        gradient = gradient.div_(options.temperature) if options.temperature != 1.0 else gradient
        gradient.sub_(normaliser[:, None]).exp_().mul_(shift[:, None])
        gradient.index_put_((row[mine], column[mine]), slope[mine], accumulate=True)
        narrow = gradient.to(weight.dtype) if logits is gradient else logits.copy_(gradient)
        grad_hidden += _product(narrow, weight_tile, other)
        if grad_weight is not None:
            grad_weight[number * width :][: len(weight_tile)].addmm_(narrow.t(), hidden, beta=beta)
    return grad_hidden.to(hidden.dtype)


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
    entry, order = ids.flatten().long().sort()
    starts = torch.searchsorted(entry, torch.arange(len(weight), device=ids.device))
    slope = slopes.flatten()[order]
    return grad_hidden, embedding_bag(order // ids.shape[-1], hidden, starts, per_sample_weights=slope, mode="sum")


def _full_vocabulary(
    hidden: Tensor, weight: Tensor, teacher_hidden: Tensor, teacher_weight: Tensor, tokens: Tensor, options: _Options
) -> tuple[Tensor, ...]:
    """What `_TopK` finds, where the support is the vocabulary: the specification by chunks, done again in backward."""

    def chunk(hidden: Tensor, teacher_hidden: Tensor, tokens: Tensor) -> tuple[Tensor, ...]:
        logits = wide(hidden @ weight.t()) / options.temperature
        teacher_logits = wide(teacher_hidden @ teacher_weight.t()) / options.temperature
        values = token_divergence(logits, teacher_logits, torch.ones_like(tokens), alpha=options.alpha, topk=None)
        return values, *_read(logits.detach(), tokens[:, None].long(), tokens, replace(options, temperature=1.0))[2:]

    size = max(1, options.logits_at_hand // 4 // len(weight))
    parts = zip(hidden.split(size), teacher_hidden.split(size), tokens.split(size), strict=True)
    found = [checkpoint(chunk, *part, use_reentrant=False, preserve_rng_state=False) for part in parts]
    values, logprobs, entropy = (torch.cat(pieces) for pieces in zip(*found, strict=True))
    return values, logprobs, entropy, torch.zeros_like(logprobs)


def _left(given: dict[str, Tensor], sequence_mask: Tensor | None) -> Tensor:
    """Which tokens are not masked, `[N]` bool."""
    ids_N = given["sequence_ids"].long()
    left_N = given["step_ids"] >= 0 if "step_ids" in given else torch.ones_like(ids_N, dtype=torch.bool)
    if sequence_mask is None:
        return left_N
    if sequence_mask.dim() != 1 or bool(((ids_N < 0) | (ids_N >= len(sequence_mask))).any()):
        raise ValueError(f"sequence_mask {tuple(sequence_mask.shape)} must be [S], sequence_ids in 0 .. S - 1")
    return left_N & sequence_mask.bool()[ids_N]


def _padding(sequence_ids: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Packed tokens as a padded batch: the mask `[B, T]`, and row and column of each token."""
    _, row_N, lengths_B = sequence_ids.unique(return_inverse=True, return_counts=True)
    width = int(lengths_B.max()) if len(lengths_B) else 0
    mask_B_T = torch.arange(width, device=row_N.device) < lengths_B[:, None]
    column_N = torch.empty_like(row_N)
    column_N[row_N.argsort(stable=True)] = mask_B_T.nonzero()[:, 1]
    return mask_B_T, (row_N, column_N)


def _check(hidden: Tensor, weight: Tensor, teacher_hidden: Tensor, teacher_weight: Tensor, tokens: Tensor) -> None:
    if tokens.dim() != 1:
        raise ValueError(f"tokens has shape {tuple(tokens.shape)}; it must be [N], the packed response tokens")
    for name, states, matrix in (("student", hidden, weight), ("teacher", teacher_hidden, teacher_weight)):
        if matrix.dim() != 2 or not len(matrix) or states.shape != (len(tokens), matrix.shape[1]):
            shapes = f"{name}_hidden {tuple(states.shape)} and {name}_weight {tuple(matrix.shape)}"
            raise ValueError(f"{shapes} must be [N, H] and [V, H] with V >= 1, and N = {len(tokens)} as of tokens")
        if states.dtype != matrix.dtype or not states.is_floating_point():
            raise ValueError(f"{name}_hidden is {states.dtype}, {name}_weight {matrix.dtype}; must be one float type")
    if len(weight) != len(teacher_weight):
        raise ValueError(f"the student's vocabulary has {len(weight)} entries, the teacher's {len(teacher_weight)}")
