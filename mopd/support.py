"""A teacher that answers from elsewhere: the divergence from what it says of a few entries, without its logits.

    asked  = own_ids(student_logits, k)             [..., K] the student's choice; nothing where it has none
    answer = answer_of(teacher_logits, asked, own)  where the teacher is: K + own numbers per token cross over
    value  = divergence_on(student_logits, answer)  where the student is

`mopd.divergence.divergence` on both models' logits is the specification: support `student` asks with the student's
top-k and own = 0, `teacher` with nothing and own = k, `union` with both; the log-prob of a sampled token is an answer
of one entry. The whole vocabulary cannot be asked for: that is the logits themselves.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mopd.divergence import LOG_FLOOR, Support, Tail, closed, gather_logprobs, generalized_jsd, is_distribution, mass


@dataclass(frozen=True)
class TeacherAnswer:
    """What a teacher says of a few vocabulary entries at every token; a constant."""

    ids: Tensor
    """[..., K] int64, ascending; an entry that was asked for twice stands there twice."""
    logprobs: Tensor
    """[..., K], normalised over the whole vocabulary."""

    @property
    def told(self) -> Tensor:
        """[...] bool, where the teacher's numbers are log-probs; zero probability, -inf, is one."""
        return (self.logprobs < torch.inf).all(dim=-1)

    def of(self, tokens: Tensor) -> Tensor:
        """The log-probs of tokens `[...]`; not-a-number where the answer has none of them."""
        found = (self.ids == tokens[..., None]) & self.told[..., None]
        return self.logprobs.where(found, -torch.inf).amax(dim=-1).masked_fill(~found.any(dim=-1), torch.nan)

    def at(self, mask: Tensor) -> TeacherAnswer:
        """The answer `[N, K]` at the tokens where `mask` `[...]` is true."""
        return TeacherAnswer(self.ids[mask], self.logprobs[mask])


def own_ids(logits: Tensor, count: int) -> Tensor:
    """The `count` likeliest entries under logits `[..., V]`, `[..., count]` ids in no order; 0 gives none."""
    return logits.detach().topk(count, dim=-1).indices


def shares(support: Support, topk: int) -> tuple[int, int]:
    """How many entries of the support the student chooses, and how many the teacher."""
    return {"student": (topk, 0), "teacher": (0, topk), "union": (topk, topk)}[support]


@torch.no_grad()
def answer_of(teacher_logits: Tensor, asked: Tensor, own: int) -> TeacherAnswer:
    """The teacher's log-probs of the entries asked for, and of its own `own` likeliest ones.

    Args:
        teacher_logits: `[..., V]`, already divided by the temperature.
        asked: `[..., K]` ids, in any order; K may be 0.
        own: how many entries the teacher adds.

    Returns: an answer of K + own entries, not-a-number where the logits are no distribution. Raises ValueError where it
    would have none, or the shapes do not pair up.
    """
    if asked.shape[:-1] != teacher_logits.shape[:-1] or asked.shape[-1] + own == 0:
        raise ValueError(
            f"asked has shape {tuple(asked.shape)} with own={own}; for logits {tuple(teacher_logits.shape)} it must be "
            f"{tuple(teacher_logits.shape[:-1])} and the number of entries, of which there must be one in all"
        )
    ids = torch.cat([asked.long(), own_ids(teacher_logits, own)], dim=-1).sort(dim=-1).values
    lost = ~is_distribution(teacher_logits)[..., None]
    return TeacherAnswer(ids, gather_logprobs(teacher_logits, ids).masked_fill(lost, torch.nan))


def divergence_on(
    student_logits: Tensor, answer: TeacherAnswer, *, alpha: float = 0.5, tail: Tail = "bucket"
) -> Tensor:
    """`mopd.divergence.divergence`, logits `[..., V]` to `[...]`, from an answer of `[..., K]` entries, K < V.

    Differentiable in the student alone. Raises ValueError unless 0 <= alpha <= 1 and the shapes pair up.
    """
    if answer.ids.shape != answer.logprobs.shape or answer.ids.shape[:-1] != student_logits.shape[:-1]:
        raise ValueError(
            f"student_logits {tuple(student_logits.shape)}, the answer's ids {tuple(answer.ids.shape)} and log-probs "
            f"{tuple(answer.logprobs.shape)} must agree in all but the last dimension, the last two in that as well"
        )
    student_K = closed(gather_logprobs(student_logits, answer.ids), answer.ids, tail)
    teacher_K = closed(answer.logprobs.detach().clamp(min=LOG_FLOOR), answer.ids, tail)
    return generalized_jsd(student_K, teacher_K, alpha)


def mass_on(student_logits: Tensor, answer: TeacherAnswer) -> tuple[Tensor, Tensor]:
    """`mopd.divergence.captured_mass` of an answer: the probability of its entries under student and teacher."""
    student_K = gather_logprobs(student_logits.detach(), answer.ids)
    return mass(student_K, answer.ids), mass(answer.logprobs.detach(), answer.ids)
