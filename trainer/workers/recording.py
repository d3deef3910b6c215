"""The likeliest tokens of student and teacher at the tokens of a few rollouts: one more pass through the vocabulary.

It takes the very states that the loss takes, before anything changes; of the rollouts that are not recorded it costs
nothing. Logits exist for a chunk of tokens at a time, whichever head the loss has.

M  tokens of a micro-batch that count in the loss        R  those of them that are recorded        K  likeliest tokens
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mopd.fused_support import linear_answer
from mopd.support import TeacherAnswer
from mopd.types import IntArray
from trainer.packing import Sample, loss_mask
from trainer.recorded import LIKELIEST, Likeliest, Recorded, Side
from trainer.scores import States

LOGITS_AT_HAND = 1 << 25
"""How many logits may exist at one time: few beside those of the loss, so that recording needs no memory of its own."""


@dataclass(frozen=True)
class RecordedAnswer(TeacherAnswer):
    """What a teacher elsewhere answers, with its likeliest tokens beside: in the loss these have no part."""

    likeliest: TeacherAnswer | None
    """[R, K], in no order; None where none were asked for."""
    sampled: Tensor | None = None
    """[M], the log-probs of the sampled tokens; None where the entries are these."""

    def of(self, tokens: Tensor) -> Tensor:
        """See `TeacherAnswer`; `tokens` are the sampled ones."""
        return super().of(tokens) if self.sampled is None else self.sampled


def recorded_rows(micro_batch: Sequence[Sample], record: frozenset[int]) -> Tensor:
    """[R] int64, which of the M tokens belong to the rollouts of `record`; on the CPU."""
    flags = [np.full(count_of(sample), sample.index in record) for sample in micro_batch]
    return torch.from_numpy(np.flatnonzero(np.concatenate(flags)) if flags else np.zeros(0, dtype=np.int64))


def likeliest_at(states: States, rows: Tensor, vocabulary: int, temperature: float) -> TeacherAnswer | None:
    """The likeliest tokens [R, K] at `rows`, below `vocabulary`, in no order; None where no rows are asked for."""
    if not len(rows):
        return None
    hidden = states.hidden.detach()[rows.to(states.hidden.device)]
    count, nothing = min(LIKELIEST, vocabulary), torch.zeros(len(rows), 0, dtype=torch.long, device=hidden.device)
    return linear_answer(
        hidden,
        states.weight.detach(),
        nothing,
        count,
        vocabulary,
        temperature=temperature,
        logits_at_hand=LOGITS_AT_HAND,
    )


def likeliest_of(
    rows: Tensor, student: States, teacher: States | TeacherAnswer | None, temperature: float
) -> dict[Side, TeacherAnswer]:
    """The likeliest tokens [R, K] of the student, and of its teacher or reference where there is one."""
    vocabulary = len(student.weight)
    if isinstance(teacher, States):
        theirs = likeliest_at(teacher, rows, vocabulary, temperature)
    else:
        theirs = teacher.likeliest if isinstance(teacher, RecordedAnswer) else None
    found: dict[Side, TeacherAnswer | None] = {
        "student": likeliest_at(student, rows, vocabulary, temperature),
        "teacher": theirs,
    }
    return {side: said for side, said in found.items() if said is not None}


def recorded_of(
    micro_batch: Sequence[Sample],
    record: frozenset[int],
    divergence: Tensor | None,
    likeliest: Mapping[Side, TeacherAnswer],
) -> dict[int, Recorded]:
    """What is kept of the rollouts of `record`, by index: divergences [B, T], and the likeliest tokens [R, K]."""
    values = None if divergence is None else divergence.float().cpu().numpy()
    lists = {side: in_falling_order(said) for side, said in likeliest.items()}
    found, start = {}, 0
    for row, sample in enumerate(micro_batch):
        if sample.index not in record:
            continue
        stop = start + count_of(sample)
        own = {side: placed(sample, ids[start:stop], logprobs[start:stop]) for side, (ids, logprobs) in lists.items()}
        told = None if values is None else values[row, : len(sample.response_ids)].copy()
        found[sample.index] = Recorded(told, own or None)
        start = stop
    return found


Lists = tuple[IntArray, npt.NDArray[np.float16]]
"""Ids and log-probs [R, K]."""


def in_falling_order(said: TeacherAnswer) -> Lists:
    """The likeliest first; log-probs below what half precision holds are those of nothing."""
    order = said.logprobs.argsort(dim=-1, descending=True, stable=True)
    ids, logprobs = said.ids.gather(-1, order), said.logprobs.gather(-1, order)
    return ids.int().cpu().numpy(), logprobs.half().cpu().numpy()


def placed(sample: Sample, ids: IntArray, logprobs: npt.NDArray[np.float16]) -> Likeliest:
    """The lists of the tokens that count, at their places among all tokens [T] of the response."""
    shape = len(sample.response_ids), ids.shape[1]
    every_id, every_logprob = np.full(shape, -1, dtype=np.int32), np.full(shape, np.nan, dtype=np.float16)
    counts = loss_mask(sample) != 0
    every_id[counts], every_logprob[counts] = ids, logprobs
    return Likeliest(every_id, every_logprob)


def count_of(sample: Sample) -> int:
    """How many tokens of a rollout count in the loss."""
    return int(np.count_nonzero(loss_mask(sample)))
