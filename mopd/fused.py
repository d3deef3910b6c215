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

Sums are carried in float32 (float64 for float64). From bfloat16 inputs a GPU's products come out in float32; a CPU's are
rounded to bfloat16, as they are in a dense layer, unless `precise` asks for a slow float32 product.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mopd.divergence import Support, Tail
from mopd.losses import Aggregation, divergence_loss, shaped

GradMode = Literal["exact", "sparse", "auto"]

LOGITS_AT_HAND = {"cpu": 1 << 24, "cuda": 1 << 27}
"""How many logits may exist at one time, by device; backward holds several forms of them and takes a quarter."""
SLICE = 8192
"""Vocabulary entries that are widened to float32 together."""
BLOCK = 16384
"""Tokens that go into one product of a backward tile."""


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
    """[N], the sum of |dD/dlogit| outside the support: what `sparse` leaves out. The gradient in the hidden state is then
    off by no more than this times the longest row of the weight over the temperature, rounding aside."""


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
    precise: bool
    logits_at_hand: int

    def __post_init__(self) -> None:
        if not 0.0 < self.temperature < float("inf"):
            raise ValueError(f"temperature is {self.temperature!r}; it must be positive")
        if not 0.0 <= self.alpha <= 1.0:
            raise ValueError(f"alpha is {self.alpha!r}; it must lie in [0, 1] (0 forward KL, 1 reverse KL)")
        if not self.tolerance >= 0.0:
            raise ValueError(f"tolerance is {self.tolerance!r}; it must be a share of the gradient, 0 or more")
        if self.topk is not None and self.topk <= 0:
            raise ValueError(f"topk is {self.topk!r}; it must be positive, or None for the full vocabulary")
        if self.logits_at_hand <= 0:
            raise ValueError(f"logits_at_hand is {self.logits_at_hand!r}; it must be positive")
        choices: tuple[tuple[str, Any], ...] = (("grad_mode", GradMode), ("tail", Tail), ("support", Support))
        for name, choice in choices:
            if getattr(self, name) not in get_args(choice):
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(get_args(choice))}")


def linear_distillation_loss(
    student_hidden: Tensor,
    student_weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    tokens: Tensor,
    *,
    temperature: float = 1.0,
    grad_mode: GradMode = "exact",
    sequence_ids: Tensor | None = None,
    alpha: float = 0.5,
    topk: int | None = 100,
    tail: Tail = "bucket",
    support: Support = "student",
    old_logprobs: Tensor | None = None,
    is_clip: float | None = None,
    importance_weights: Tensor | None = None,
    sequence_mask: Tensor | None = None,
    step_ids: Tensor | None = None,
    aggregation: Aggregation = "token-mean",
    denominator: float | Tensor | None = None,
    tolerance: float = 1e-3,
    precise: bool = False,
    logits_at_hand: int | None = None,
) -> Tensor:
    """`mopd.losses.distillation_loss` of packed response tokens, from hidden states and output weights.

    Args:
        student_hidden .. tokens, temperature, grad_mode, alpha .. support, tolerance .. logits_at_hand: see
            `linear_divergence`.
        sequence_ids: `[N]`, which sequence a token belongs to, in any order, 0 or more; None if all are of one.
        sequence_mask: indexed by sequence id, zero for sequences that are left out; needs `sequence_ids`.
        old_logprobs, importance_weights, step_ids: `[N]`, else as in `distillation_loss`.
        is_clip, aggregation, denominator: as there; `seq-mean-token-sum-norm` needs the denominator, for packed tokens
            have no width.

    Returns: a scalar, float32 (float64 for float64 inputs); 0, with zero gradient, if no token is left.

    Raises ValueError on a wrong shape, or an option outside its range.
    """
    if aggregation == "seq-mean-token-sum-norm" and denominator is None:
        raise ValueError("seq-mean-token-sum-norm divides by a width, which packed tokens do not have: give denominator")
    rows_N = _rows(tokens, sequence_ids)
    per_token = {"old_logprobs": old_logprobs, "importance_weights": importance_weights, "step_ids": step_ids}
    for name, tensor in per_token.items():
        if tensor is not None:
            shaped(name, tensor, tokens.shape)
    left_N = _left(rows_N, sequence_ids, sequence_mask, step_ids)
    if left_N is not None:  # a copy of the hidden states, so only where something is masked
        student_hidden, teacher_hidden = student_hidden[left_N], teacher_hidden[left_N]
        tokens, rows_N = tokens[left_N], rows_N[left_N]
        per_token = {name: None if tensor is None else tensor[left_N] for name, tensor in per_token.items()}
    found = linear_divergence(
        student_hidden, student_weight, teacher_hidden, teacher_weight, tokens,
        temperature=temperature, grad_mode=grad_mode, alpha=alpha, topk=topk, tail=tail, support=support,
        tolerance=tolerance, precise=precise, logits_at_hand=logits_at_hand,
    )  # fmt: skip
    mask_B_T, places = _padding(rows_N)

    def padded(values_N: Tensor, filler: float = 0.0) -> Tensor:
        return values_N.new_full(mask_B_T.shape, filler).index_put(places, values_N)

    steps_N = per_token.pop("step_ids")
    return divergence_loss(
        padded(found.values),
        padded(found.logprobs),
        mask_B_T,
        is_clip=is_clip,
        step_ids=None if steps_N is None else padded(steps_N, -1),
        aggregation=aggregation,
        denominator=denominator,
        **{name: None if tensor is None else padded(tensor.detach()) for name, tensor in per_token.items()},
    )


def linear_divergence(
    student_hidden: Tensor,
    student_weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    tokens: Tensor,
    *,
    temperature: float = 1.0,
    grad_mode: GradMode = "exact",
    alpha: float = 0.5,
    topk: int | None = 100,
    tail: Tail = "bucket",
    support: Support = "student",
    tolerance: float = 1e-3,
    entropy: bool = False,
    precise: bool = False,
    logits_at_hand: int | None = None,
) -> LinearDivergence:
    """`mopd.divergence.divergence` at every token, with what else the student's logits tell of it.

    Args:
        student_hidden, student_weight: `[N, H]` states at the positions that predict `tokens`, and the output weight
            `[V, H]`; of one dtype, which autocast does not change. Differentiable.
        teacher_hidden, teacher_weight: `[N, H']` and `[V, H']`, likewise, but constants. Only H' may differ.
        tokens: `[N]` sampled ids.
        temperature: what the logits are divided by.
        grad_mode: `exact`; `sparse`, through the entries of the support alone; `auto`, exact for the tokens where
            `sparse` would leave out more than `tolerance` of the sum of |dD/dlogit|. Without a tail all are exact.
        alpha, topk, tail, support: see `mopd.divergence.divergence`. `union` holds both models' logits of a chunk.
        entropy: whether to compute the student's entropy, which costs one more pass.
        precise: on the CPU, products of bfloat16 in float32; slow.
        logits_at_hand: how many logits may exist at one time, at least one token's; None chooses by device.

    Raises ValueError on a wrong shape or dtype, or an option outside its range.
    """
    _check(student_hidden, student_weight, teacher_hidden, teacher_weight, tokens)
    at_hand = LOGITS_AT_HAND.get(tokens.device.type, LOGITS_AT_HAND["cpu"]) if logits_at_hand is None else logits_at_hand
    options = _Options(
        float(temperature), grad_mode, tolerance, alpha, topk, tail, support, entropy, precise, at_hand
    )  # fmt: skip
    full = topk is None or topk >= len(student_weight)
    find = _full_vocabulary if full else _TopK.apply
    with torch.autocast(tokens.device.type, enabled=False):
        values, logprobs, entropy_N, bound = find(
            student_hidden, student_weight, teacher_hidden.detach(), teacher_weight.detach(), tokens, options
        )
    return LinearDivergence(values, logprobs, entropy_N if entropy else None, bound)


class _TopK(torch.autograd.Function):
    """Values, log-probs, entropies and bounds `[N]` of tokens whose support is smaller than the vocabulary."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, teacher_hidden: Tensor, teacher_weight: Tensor, tokens: Tensor,
        options: _Options,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        """Through the tokens by chunks; keeps K slopes and a few scalars of each."""
        size = max(1, options.logits_at_hand // len(weight))
        buffers = _buffers(min(size, len(hidden)), weight, teacher_weight, options)
        found = [
            _chunk(_Logits(h, weight, buffers[0], options), _Logits(t, teacher_weight, buffers[1], options), y, options)
            for h, t, y in zip(hidden.split(size), teacher_hidden.split(size), tokens.split(size), strict=True)
        ]
        values, logprobs, entropy, bound, *kept = (torch.cat(parts) for parts in zip(*found, strict=True))
        ctx.save_for_backward(hidden, weight, *kept)
        ctx.options = options
        ctx.mark_non_differentiable(logprobs, entropy, bound)
        return values, logprobs, entropy, bound

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_N: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        """Through the vocabulary by tiles, where the whole of it is wanted; through the supports elsewhere."""
        hidden, weight, ids, slopes, shift, normaliser, whole = ctx.saved_tensors
        scale = grad_N / ctx.options.temperature
        slopes, shift = slopes * scale[:, None], shift * scale
        wanted = ctx.needs_input_grad[:2]
        with torch.autocast(hidden.device.type, enabled=False):
            if bool(whole.all()):
                grads = _Gradients.empty(hidden, weight, wanted)
                _through_vocabulary(grads, hidden, weight, ids, slopes, shift, normaliser, ctx.options)
                return *grads.narrow(hidden), None, None, None, None
            # A row that goes through the vocabulary has no slopes here, and is added below.
            grads = _through_support(hidden, weight, ids, slopes.masked_fill(whole[:, None], 0.0), wanted)
            rows = whole.nonzero()[:, 0]
            if len(rows):
                part = _Gradients(None if grads.hidden is None else grads.hidden[rows], grads.weight)
                rest = (tensor[rows] for tensor in (ids, slopes, shift, normaliser))
                _through_vocabulary(part, hidden[rows], weight, *rest, ctx.options)
                if grads.hidden is not None and part.hidden is not None:
                    grads.hidden[rows] = part.hidden
            return *grads.narrow(hidden), None, None, None, None
