"""`mopd.support` from hidden states: a teacher that answers from elsewhere, and logits that nobody keeps.

    asked  = linear_ids(student_hidden, student_weight, k)                  [N, K], `own_ids`
    answer = linear_answer(teacher_hidden, teacher_weight, asked, own, V)   `answer_of`, where the teacher is
    found  = linear_divergence_on(student_hidden, student_weight, answer)   `divergence_on`, where the student is

The dense functions are the specification, in value and in gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mopd.divergence import Tail
from mopd.fused_kernels import peaks_of
from mopd.fused_logits import GradMode, Options, Rows, check_states, heads, likeliest, read
from mopd.fused_topk import LinearDivergence, compared, joined, read_beside
from mopd.support import TeacherAnswer


@torch.no_grad()
def linear_ids(
    hidden: Tensor, weight: Tensor, count: int, *, precise: bool | None = None, logits_at_hand: int | None = None
) -> Tensor:
    """The `count` likeliest entries of `hidden @ weight.T`, `[N, H]` and `[V, H]` to `[N, count]` ids, in no order.

    `precise` and `logits_at_hand` are those of `mopd.fused.linear_divergence`. With other ones than the divergence has,
    entries whose logits are nearly equal may be chosen differently; it takes any.

    Raises ValueError on a wrong shape or dtype, or unless 0 <= count <= V.
    """
    tokens = torch.zeros(len(hidden), dtype=torch.long, device=hidden.device)
    check_states("", hidden, weight, tokens)
    if not 0 <= count <= len(weight):
        raise ValueError(f"count is {count}; it must be 0 .. {len(weight)}, the size of the vocabulary")
    if count == 0:
        return tokens[:, None][:, :0]
    options = Options(hidden.device.type, precise=precise, logits_at_hand=logits_at_hand)
    with torch.autocast(options.device, enabled=False):
        (head,) = heads(options, len(hidden), len(weight), weight)
        found = []
        for states in hidden.split(options.chunk(len(weight))):
            logits = head(states)
            found.append(likeliest(logits, count, peaks_of(logits)))
        return torch.cat(found)


@torch.no_grad()
def linear_answer(
    teacher_hidden: Tensor, teacher_weight: Tensor, asked: Tensor, own: int, vocabulary: int, *,
    temperature: float = 1.0, precise: bool | None = None, logits_at_hand: int | None = None,
) -> TeacherAnswer:  # fmt: skip
    """The teacher's log-probs of the entries asked for, and of its own `own` likeliest ones (`answer_of`).

    Args:
        teacher_hidden, teacher_weight: `[N, H']` and `[V', H']`, of one float type.
        asked, own: `[N, K]` ids below V, in any order, K may be 0; how many entries the teacher adds.
        vocabulary: V, the student's: rows beyond are cut, the entries that rows are missing for are impossible.
        temperature, precise, logits_at_hand: as of `mopd.fused.linear_divergence`.

    Returns: an answer of K + own entries, not-a-number where the logits are no distribution. Raises ValueError where it
    would have none, or on a wrong shape or dtype.
    """
    check_states("teacher_", teacher_hidden, teacher_weight, asked[:, 0] if asked.shape[-1:] > (0,) else asked.sum(-1))
    if asked.dim() != 2 or asked.shape[1] + own == 0 or not 0 <= own <= vocabulary:
        raise ValueError(
            f"asked has shape {tuple(asked.shape)} with own={own}; it must be [{len(teacher_hidden)}, K], and own "
            f"0 .. {vocabulary}, the size of the vocabulary; in all there must be one entry"
        )
    options = Options(teacher_hidden.device.type, temperature, precise=precise, logits_at_hand=logits_at_hand)
    size = options.chunk(vocabulary)
    with torch.autocast(options.device, enabled=False):
        (head,) = heads(options, len(teacher_hidden), vocabulary, teacher_weight)
        found = []
        for states, ids in zip(teacher_hidden.split(size), asked.long().split(size), strict=True):
            rows = Rows(head, states)
            logits = rows.logits()
            seen = options.scan(logits)
            ids = torch.cat([ids, likeliest(logits, own, seen.peaks)], dim=-1).sort(dim=-1).values
            reading = read(logits, ids, seen, options, rows.exactly(ids))
            lost = ~torch.isfinite(reading.normaliser)[:, None]
            found.append((ids, reading.logprobs.to(seen.total).masked_fill(lost, torch.nan)))
        return TeacherAnswer(*(torch.cat(pieces) for pieces in zip(*found, strict=True)))


def linear_divergence_on(
    hidden: Tensor, weight: Tensor, answer: TeacherAnswer, tokens: Tensor, *,
    temperature: float = 1.0, grad_mode: GradMode = "exact", alpha: float = 0.5, tail: Tail = "bucket",
    tolerance: float = 1e-3, entropy: bool = False, precise: bool | None = None, logits_at_hand: int | None = None,
) -> LinearDivergence:  # fmt: skip
    """`mopd.support.divergence_on` and `mass_on` at every token, with what else the student's logits tell of it.

    Args:
        hidden, weight, tokens: `[N, H]`, `[V, H]` and `[N]`, the student's; the first two differentiable.
        answer: `[N, K]` entries below V, K < V.
        The options: as of `mopd.fused.linear_divergence`.

    Raises ValueError on a wrong shape or dtype, or an option outside its range.
    """
    check_states("", hidden, weight, tokens)
    if answer.ids.shape != answer.logprobs.shape or answer.ids.dim() != 2 or len(answer.ids) != len(tokens):
        raise ValueError(
            f"the answer's ids {tuple(answer.ids.shape)} and log-probs {tuple(answer.logprobs.shape)} must both be "
            f"[N, K], and N = {len(tokens)} as of tokens"
        )
    options = Options(
        tokens.device.type, float(temperature), grad_mode, tolerance, alpha, None, tail, "student", entropy, precise,
        logits_at_hand,
    )  # fmt: skip
    size = options.chunk(len(weight))
    with torch.autocast(options.device, enabled=False):
        with torch.no_grad():
            (head,) = heads(options, len(tokens), len(weight), weight)
            found = []
            each_token = (hidden, tokens, answer.ids.long(), answer.logprobs, answer.of(tokens), answer.told)
            for states, names, ids, logprobs_K, others, told in zip(
                *(each.split(size) for each in each_token), strict=True
            ):
                rows = Rows(head, states)
                logits = rows.logits()
                mine, logprobs = read_beside(rows, logits, ids, names, options.scan(logits), options)
                others, theirs_K = (each.to(mine.entries) for each in (others, logprobs_K))
                found.append(compared(mine, logprobs, theirs_K, others, told, ids, options))
            del head
        return joined(found, hidden, weight, options)
