"""What the method asks of logits, from hidden states: nobody has to keep the logits.

    logits = hidden @ weight.T / temperature      [N, V], of student and teacher; here they live in parts only

    linear_divergence           `mopd.divergence.divergence` and what else the logits tell
    linear_distillation_loss    `mopd.losses.distillation_loss`
    linear_logprobs             `mopd.losses.token_logprobs`
    mopd.fused_support          `mopd.support`: a teacher that is elsewhere

The dense functions are the specification, in value and in gradient. Forward goes through the tokens, a chunk at a time:
the student's logits choose the support and give its entries and their normaliser, then the teacher's take the same
place. What remains of a token is K slopes and a few scalars; `mopd.fused_gradient` makes the gradient of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mopd.divergence import LOG_FLOOR, Support, Tail, is_distribution, wide
from mopd.fused_gradient import Slopes, attached
from mopd.fused_logits import GradMode, Head, Options, Reading, Rows, check_states, heads, likeliest, read
from mopd.fused_topk import Chunk, LinearDivergence, compared, joined, read_beside
from mopd.losses import Aggregation, divergence_loss, shaped, token_divergence, token_logprobs

__all__ = ["GradMode", "LinearDivergence", "LinearLogprobs"]
__all__ += ["linear_distillation_loss", "linear_divergence", "linear_logprobs"]


@dataclass(frozen=True)
class LinearLogprobs:
    """What `linear_logprobs` finds at N tokens. Wide floats."""

    logprobs: Tensor
    """[N], of the sampled tokens; differentiable."""
    entropy: Tensor | None
    """[N], over the whole vocabulary, nats; a constant; None unless asked for."""


def linear_distillation_loss(
    student_hidden: Tensor, student_weight: Tensor, teacher_hidden: Tensor, teacher_weight: Tensor, tokens: Tensor, *,
    temperature: float = 1.0, grad_mode: GradMode = "exact", sequence_ids: Tensor | None = None,
    alpha: float = 0.5, topk: int | None = 100, tail: Tail = "bucket", support: Support = "student",
    old_logprobs: Tensor | None = None, is_clip: float | None = None, importance_weights: Tensor | None = None,
    sequence_mask: Tensor | None = None, step_ids: Tensor | None = None,
    aggregation: Aggregation = "token-mean", denominator: float | Tensor | None = None,
    tolerance: float = 1e-3, precise: bool | None = None, logits_at_hand: int | None = None,
) -> Tensor:  # fmt: skip
    """`mopd.losses.distillation_loss` of packed response tokens, from hidden states and output weights.

    Args:
        student_hidden .. grad_mode, alpha .. support, tolerance .. logits_at_hand: as of `linear_divergence`.
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
        precise=precise, logits_at_hand=logits_at_hand,
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
    precise: bool | None = None,
    logits_at_hand: int | None = None,
) -> LinearDivergence:  # fmt: skip
    """`mopd.divergence.divergence` at every token, with what else the student's logits tell of it.

    Args:
        student_hidden, student_weight: `[N, H]` states at the positions that predict `tokens`, and the output weight
            `[V, H]`, whole; of one dtype, which autocast does not change. Differentiable.
        teacher_hidden, teacher_weight: `[N, H']` and `[V', H']`, likewise, but constants. Rows beyond V are cut, the
            entries that rows are missing for are impossible.
        tokens, temperature: `[N]` sampled ids, 0 .. V - 1; what the logits are divided by.
        grad_mode: `exact`; `sparse`, through the entries of the support alone; `auto`, exact for the tokens where
            `sparse` would leave out more than `tolerance` of the sum of |dD/dlogit|. Without a tail all are exact.
        alpha, topk, tail, support: see `mopd.divergence.divergence`. `union` holds both models' logits of a chunk.
        entropy: whether to compute the student's entropy, which costs one more pass.
        precise: whether the logits of narrow inputs are float32; None for where that costs nothing, on a GPU. For the
            full vocabulary it always costs: there None says no.
        logits_at_hand: how many logits may exist at one time, at least one token's; None chooses by device.

    Raises ValueError on a wrong shape or dtype, or an option outside its range.
    """
    _check(student_hidden, student_weight, teacher_hidden, teacher_weight, tokens)
    options = Options(
        tokens.device.type, float(temperature), grad_mode, tolerance, alpha, topk, tail, support, entropy, precise,
        logits_at_hand,
    )  # fmt: skip
    with torch.autocast(options.device, enabled=False):
        if topk is None or topk >= len(student_weight):
            return _full_vocabulary(student_hidden, student_weight, teacher_hidden, teacher_weight, tokens, options)
        with torch.no_grad():
            student, teacher = heads(options, len(tokens), len(student_weight), student_weight, teacher_weight)
            teacher = replace(teacher, buffer=None) if support == "union" else teacher
            size = options.chunk(len(student_weight))
            parts = zip(student_hidden.split(size), teacher_hidden.split(size), tokens.split(size), strict=True)
            found = [_chunk(Rows(student, h), Rows(teacher, t), ids, options) for h, t, ids in parts]
        return joined(found, student_hidden, student_weight, options)


def linear_logprobs(
    hidden: Tensor, weight: Tensor, tokens: Tensor, *,
    temperature: float = 1.0, entropy: bool = False, precise: bool | None = None, logits_at_hand: int | None = None,
) -> LinearLogprobs:  # fmt: skip
    """The log-probs of sampled tokens, `mopd.losses.token_logprobs`; without a gradient it does the forward work only.

    Args:
        hidden, weight, tokens, temperature, entropy, precise, logits_at_hand: as of `linear_divergence`, the student's.

    Raises ValueError on a wrong shape or dtype, or an option outside its range.
    """
    check_states("", hidden, weight, tokens)
    options = Options(
        tokens.device.type, float(temperature), entropy=entropy, precise=precise, logits_at_hand=logits_at_hand
    )
    with torch.autocast(options.device, enabled=False):
        with torch.no_grad():
            (head,) = heads(options, len(tokens), len(weight), weight)
            size = options.chunk(len(weight))
            parts = zip(hidden.split(size), tokens[:, None].split(size), strict=True)
            readings = [_read(Rows(head, states), ids, options) for states, ids in parts]
            del head
            logprobs = torch.cat([each.logprobs for each in readings])
            normaliser = torch.cat([each.largest + each.normaliser for each in readings])
            possible = (logprobs > LOG_FLOOR).to(logprobs)
            slopes = Slopes(
                tokens[:, None].int(), -torch.expm1(logprobs) * possible, -possible[:, 0], normaliser,
                torch.ones_like(tokens).bool(),
            )  # fmt: skip
        values = attached(logprobs[:, 0], hidden, weight, slopes, options)
        return LinearLogprobs(values, torch.cat([each.entropy for each in readings]).to(values) if entropy else None)


def _chunk(student: Rows, teacher: Rows, tokens: Tensor, options: Options) -> Chunk:
    """Of C tokens, whose logits `[C, V]` are made when called for."""
    chooser, other = (teacher, student) if options.support == "teacher" else (student, teacher)
    logits, k = chooser.logits(), options.topk or 0
    seen = options.scan(logits)
    ids = likeliest(logits, k, seen.peaks)
    if options.support == "union":
        others = other.logits()
        seen_others = options.scan(others)
        ids = torch.cat([ids, likeliest(others, k, seen_others.peaks)], dim=-1)
    ids = ids.sort(dim=-1).values
    first = read_beside(chooser, logits, ids, tokens, seen, options)
    del logits  # before the other's come
    if options.support != "union":
        others = other.logits()
        seen_others = options.scan(others)
    second = read_beside(other, others, ids, tokens, seen_others, options)
    (mine, logprobs), (theirs, others) = (second, first) if options.support == "teacher" else (first, second)
    return compared(mine, logprobs, theirs.logprobs, others, torch.isfinite(theirs.normaliser), ids, options)


def _read(rows: Rows, ids: Tensor, options: Options) -> Reading:
    """Reads C tokens at `ids` `[C, K]`."""
    logits = rows.logits()
    return read(logits, ids, options.scan(logits), options, rows.exactly(ids))


def _full_vocabulary(
    hidden: Tensor, weight: Tensor, teacher_hidden: Tensor, teacher_weight: Tensor, tokens: Tensor, options: Options
) -> LinearDivergence:
    """Where the support is the vocabulary: the specification by chunks, done again in backward."""
    own = replace(options, temperature=1.0)
    teacher = Head(teacher_weight.detach(), len(weight), bool(options.precise), None)

    def chunk(hidden: Tensor, teacher_hidden: Tensor, tokens: Tensor) -> tuple[Tensor, ...]:
        states, matrix = (wide(hidden), wide(weight)) if options.precise else (hidden, weight)
        logits = wide(states @ matrix.t()) / options.temperature
        teacher_logits = wide(teacher(teacher_hidden.detach())) / options.temperature
        values = token_divergence(logits, teacher_logits, torch.ones_like(tokens), alpha=options.alpha, topk=None)
        known = logits.detach()
        reading, told = read(known, tokens[:, None], own.scan(known), own), is_distribution(teacher_logits)
        others = token_logprobs(teacher_logits, tokens).masked_fill(~told, torch.nan)
        return values, reading.logprobs[:, 0], reading.entropy, told, others

    size = max(1, options.at_hand // 4 // len(weight))
    parts = zip(hidden.split(size), teacher_hidden.split(size), tokens.split(size), strict=True)
    found = [checkpoint(chunk, *part, use_reentrant=False, preserve_rng_state=False) for part in parts]
    values, logprobs, entropy, told, others = (torch.cat(pieces) for pieces in zip(*found, strict=True))
    one = torch.ones_like(logprobs)
    return LinearDivergence(
        values, logprobs, entropy if options.entropy else None, torch.zeros_like(one), one, one.clone(), told, others
    )


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
    check_states("student_", hidden, weight, tokens)
    check_states("teacher_", teacher_hidden, teacher_weight, tokens)
