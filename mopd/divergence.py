"""How far the student is from the teacher at one token.

This is the divergence of multi-rollout on-policy distillation (arXiv 2605.12652); the top-k with a tail
bucket is that of SDPO. For every response token:

    ids = support_ids(student, teacher, k)    the entries that are compared one by one
    S = topk_logprobs(student, ids)           their log-probs, normalised over the *whole* vocabulary;
    T = topk_logprobs(teacher, ids)           the mass of all others is one more entry, the tail
    generalized_jsd(S, T, alpha)              a number, differentiable in the student only

Departures from the published arithmetic:
1. Sums are carried in float32 whatever the input (float64 stays float64).
2. With k = V there is no tail; the published code still adds one, of mass 1e-7.
3. Log-probs are floored at `LOG_FLOOR`: an entry of probability zero (a logit of -inf, say) has a finite
   price and no gradient. A row without any finite logit, or with NaN or +inf, is no distribution
   (`is_distribution`): it yields NaN here. The losses leave out tokens at which the teacher has none; the
   student's own NaN goes through, for the trainer to see.
4. Of equal distributions value and gradient are exactly 0, not a rounding error: see `kl` and `log_mixture`.

Every function is pure; V counts the vocabulary, K the entries compared. Divergences are in nats.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

Tail = Literal["bucket", "renormalize"]
Support = Literal["student", "teacher", "union"]

LOG_FLOOR = -1e6
"""The least log-prob that is told apart from zero probability; far below what any real model emits."""
TAIL_CEILING = -1e-7
"""The log of the top-k mass is held below this: the tail keeps at least 1e-7, and its log is finite."""


def divergence(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    alpha: float = 0.5,
    topk: int | None = 100,
    tail: Tail = "bucket",
    support: Support = "student",
) -> Tensor:
    """The divergence between student and teacher, token by token.

    Args:
        student_logits: `[..., V]`, already divided by the temperature; differentiable.
        teacher_logits: `[..., V]`, likewise, but a constant: no gradient reaches it.
        alpha: 0 is forward KL(T || S), 1 is reverse KL(S || T), between them see `generalized_jsd`.
        topk: how many entries are compared one by one; None, or V and more, compares the full vocabulary.
        tail: `bucket` sums the other entries into one; `renormalize` drops them and rescales.
        support: whose top-k is compared: the student's, the teacher's, or the union of both.

    Returns: `[...]`, nats, float32 (float64 for float64 logits).

    Raises ValueError where shapes differ or an option is not one of the above.
    """
    _check(student_logits, teacher_logits, topk, tail, support)
    teacher_logits = teacher_logits.detach()
    if topk is None or topk >= student_logits.shape[-1]:
        return generalized_jsd(full_logprobs(student_logits), full_logprobs(teacher_logits), alpha)
    ids_K = support_ids(student_logits, teacher_logits, topk, support)
    student_K = topk_logprobs(student_logits, ids_K, tail)
    teacher_K = topk_logprobs(teacher_logits, ids_K, tail)
    return generalized_jsd(student_K, teacher_K, alpha)


def captured_mass(
    student_logits: Tensor, teacher_logits: Tensor, *, topk: int | None = 100, support: Support = "student"
) -> tuple[Tensor, Tensor]:
    """The probability (not log) that the support holds under the student and under the teacher, each `[...]`.

    One minus it is the mass of the tail. No gradient. Arguments as in `divergence`.
    """
    _check(student_logits, teacher_logits, topk, "bucket", support)
    student_logits, teacher_logits = student_logits.detach(), teacher_logits.detach()
    if topk is None or topk >= student_logits.shape[-1]:
        whole = torch.ones_like(wide(student_logits[..., 0]))
        return whole, whole.clone()
    ids_K = support_ids(student_logits, teacher_logits, topk, support)
    return mass(gather_logprobs(student_logits, ids_K), ids_K), mass(gather_logprobs(teacher_logits, ids_K), ids_K)


def mass(logprobs_K: Tensor, ids_K: Tensor) -> Tensor:
    """The probability of all entries together, `[..., K]` log-probs to `[...]`; a repeated id counts once."""
    return logprobs_K.masked_fill(_repeated(ids_K), LOG_FLOOR).exp().sum(-1)


def support_ids(student_logits: Tensor, teacher_logits: Tensor, topk: int, support: Support = "student") -> Tensor:
    """The vocabulary entries to compare, `[..., K]` ids, ascending.

    The union has `[..., 2K]`: an id that both choose appears twice in a row (`topk_logprobs` counts it once).
    """
    chosen = {
        "student": (student_logits,),
        "teacher": (teacher_logits,),
        "union": (student_logits, teacher_logits),
    }
    ids_K = torch.cat([logits.detach().topk(topk, dim=-1).indices for logits in chosen[support]], dim=-1)
    return ids_K.sort(dim=-1).values


def topk_logprobs(logits: Tensor, ids_K: Tensor, tail: Tail = "bucket") -> Tensor:
    """The log-probs of a few entries and of all the others together: a distribution again.

    Args:
        logits: `[..., V]`.
        ids_K: `[..., K]`, ascending; an id that repeats its left neighbour counts for nothing.
        tail: `bucket` or `renormalize`.

    Returns: for `bucket` `[..., K + 1]`, the exact log-probs of the entries and last the log of the mass of
    all others, log(1 - sum p); for `renormalize` `[..., K]`, rescaled to sum to one.
    """
    return closed(gather_logprobs(logits, ids_K), ids_K, tail)


def closed(logprobs_K: Tensor, ids_K: Tensor, tail: Tail = "bucket") -> Tensor:
    """As `topk_logprobs`, of entries `[..., K]` whose log-probs are there already: for a model that is elsewhere."""
    logprobs_K = logprobs_K.masked_fill(_repeated(ids_K), LOG_FLOOR)
    log_mass = logprobs_K.logsumexp(dim=-1, keepdim=True)
    if tail == "renormalize":
        return logprobs_K - log_mass
    log_tail = torch.log(-torch.expm1(log_mass.clamp(max=TAIL_CEILING)))
    return torch.cat([logprobs_K, log_tail], dim=-1)


def gather_logprobs(logits: Tensor, ids_K: Tensor) -> Tensor:
    """The log-probs `[..., K]` of the entries `ids_K [..., K]` under `logits [..., V]`, normalised over V."""
    logits = wide(logits)
    return (logits.gather(-1, ids_K) - logits.logsumexp(dim=-1, keepdim=True)).clamp(min=LOG_FLOOR)


def full_logprobs(logits: Tensor) -> Tensor:
    """The log-probs of the whole vocabulary, `[..., V]` to `[..., V]`."""
    return torch.log_softmax(wide(logits), dim=-1).clamp(min=LOG_FLOOR)


def generalized_jsd(student_logprobs: Tensor, teacher_logprobs: Tensor, alpha: float) -> Tensor:
    """The generalised Jensen-Shannon divergence of two distributions, log-probs `[..., K]` to `[...]`.

    With the mixture M = (1 - alpha) S + alpha T it is (1 - alpha) KL(S || M) + alpha KL(T || M),
    differentiated through S in all its places. At alpha = 0.5 it is the Jensen-Shannon divergence, symmetric
    and at most log 2. By definition alpha = 0 is forward KL(T || S) and alpha = 1 reverse KL(S || T); these
    are *not* its limits, for it vanishes as alpha tends to either end.

    M is a constant here, and the gradient whole nonetheless: of all distributions M is the one that makes
    this sum least, so that to first order moving it changes nothing.

    Raises ValueError unless 0 <= alpha <= 1.
    """
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha is {alpha!r}; it must lie in [0, 1] (0 forward KL, 1 reverse KL)")
    if alpha == 0.0:
        return kl(teacher_logprobs, student_logprobs)
    if alpha == 1.0:
        return kl(student_logprobs, teacher_logprobs)
    mixture_logprobs = log_mixture(student_logprobs.detach(), teacher_logprobs.detach(), alpha)
    from_student = kl(student_logprobs, mixture_logprobs)
    from_teacher = kl(teacher_logprobs, mixture_logprobs)
    return (1.0 - alpha) * from_student + alpha * from_teacher


def log_mixture(p_logprobs: Tensor, q_logprobs: Tensor, alpha: float) -> Tensor:
    """log((1 - alpha) P + alpha Q) entry by entry, 0 < alpha < 1; exactly their value where the two agree."""
    mixed = torch.logaddexp(p_logprobs + math.log1p(-alpha), q_logprobs + math.log(alpha))
    return p_logprobs.where(p_logprobs == q_logprobs, mixed)


def is_distribution(logits: Tensor) -> Tensor:
    """Where logits `[..., V]` give probabilities, `[...]` bool: no NaN, no +inf, and not all of them -inf."""
    return torch.isfinite(logits.detach().amax(dim=-1))


def kl(p_logprobs: Tensor, q_logprobs: Tensor) -> Tensor:
    """KL(P || Q) = sum of P (log P - log Q) - P + Q, of finite log-probs, `[..., K]` to `[...]`.

    - P + Q sums to nothing. Entry by entry it makes every term non-negative, and value and gradient of equal
    distributions exactly 0.
    """
    p, q = p_logprobs.exp(), q_logprobs.exp()
    return (p * (p_logprobs - q_logprobs) - p + q).sum(dim=-1)


def wide(tensor: Tensor) -> Tensor:
    """The tensor in the dtype that sums are carried in: float64 as it is, any other as float32."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _repeated(ids_K: Tensor) -> Tensor:
    """Where an ascending id repeats its left neighbour, `[..., K]` bool."""
    return torch.diff(ids_K, dim=-1, prepend=ids_K[..., :1] - 1) == 0


def _check(student_logits: Tensor, teacher_logits: Tensor, topk: int | None, tail: str, support: str) -> None:
    if student_logits.shape != teacher_logits.shape or student_logits.shape[-1:] in ((), (0,)):
        raise ValueError(
            f"student_logits {tuple(student_logits.shape)} and teacher_logits {tuple(teacher_logits.shape)} "
            "must have one shape [..., V] with V >= 1"
        )
    if not (student_logits.is_floating_point() and teacher_logits.is_floating_point()):
        raise ValueError(f"logits are {student_logits.dtype} and {teacher_logits.dtype}; both must be floats")
    if topk is not None and topk <= 0:
        raise ValueError(f"topk is {topk!r}; it must be positive, or None for the full vocabulary")
    if tail not in get_args(Tail):
        raise ValueError(f"tail is {tail!r}; it must be one of {', '.join(get_args(Tail))}")
    if support not in get_args(Support):
        raise ValueError(f"support is {support!r}; it must be one of {', '.join(get_args(Support))}")
