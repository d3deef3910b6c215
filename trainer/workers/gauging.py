"""What the models say of single rollouts, for the gauges: means over the tokens of a rollout that count in the loss.

    student   the student's log-prob, before anything changed
    entropy   the student's
    teacher   the teacher's log-prob, with its context
    gap       the teacher's less the student's
    bare      the teacher's, without context

A token that the teacher does not rate, or gives no probability at all, has no part in the last three.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import Tensor

from mopd.losses import is_rated
from trainer.adapters import Voice
from trainer.forward import ResponseScorer
from trainer.layout import TokenBatch
from trainer.meters import Meter
from trainer.objectives import Contribution, teacher_of_tokens
from trainer.packing import Sample, loss_mask
from trainer.scores import States, mixed
from trainer.workers.teacher import Question
from trainer.workers.views import Views


@torch.no_grad()
def note_scores(meter: Meter, micro_batch: Sequence[Sample], part: Contribution, mask: Tensor) -> None:
    """Notes what was said of the rollouts of a micro-batch on the way to its loss; `mask` [B, T]."""
    if not micro_batch:
        return
    counts, student, teacher = mask != 0, part.old_logprobs, part.teacher_logprobs
    means = {"student": mean(student, counts), "entropy": mean(part.measured["actor/entropy"], counts)}
    if teacher is not None:
        rated = counts & is_rated(teacher)
        means |= {"teacher": mean(teacher, rated), "gap": mean(teacher - student, rated)}
    indices = [sample.index for sample in micro_batch]
    for name, values in zip(means, torch.stack(list(means.values())).tolist(), strict=True):
        meter.note(name, indices, values)


def mean(values: Tensor, mask: Tensor) -> Tensor:
    """Of every row [B, T], the mean [B] where `mask` is true; not-a-number where it nowhere is."""
    return values.double().where(mask, 0.0).sum(dim=-1) / mask.sum(dim=-1)


@torch.no_grad()
def note_bare(meter: Meter, micro_batches: Sequence[Sequence[Sample]], views: Views) -> None:
    """Asks the teacher on the prompts of these samples, which have no context. A collective: all ranks call it."""
    for micro_batch in micro_batches:
        with views.account.turn("gauges"):
            found = teacher_logprobs(micro_batch, views)
        sizes = [int((loss_mask(sample) != 0).sum()) for sample in micro_batch]
        parts = found.split(sizes) if micro_batch else ()
        means = [float(part[is_rated(part)].double().mean()) for part in parts]
        meter.note("bare", [sample.index for sample in micro_batch], means)


def teacher_logprobs(micro_batch: Sequence[Sample], views: Views) -> Tensor:
    """The teacher's log-probs [M] of the tokens of a micro-batch that count, behind their teacher's prompts."""
    view = views.teacher_view(micro_batch)
    if views.distant is not None:
        return asked(view, views) if micro_batch else view.tokens.float()
    parts: list[tuple[States, float]] = []
    with ExitStack() as held:
        rate = views.teaching.rate if views.teaching.kind == "trust-region" else 0.0
        own: tuple[ResponseScorer, Voice] = (views.student, "student")
        for speaker, share in ((views.speaker, 1.0 - rate), (own, 1.0 if views.speaker is None else rate)):
            if speaker is not None and share > 0.0:
                scorer, voice = speaker
                parts.append((States(held.enter_context(views.reading(scorer, view, voice)), scorer.head), share))
        return teacher_of_tokens(mixed(parts), view.tokens, views.vocabulary, views.loss)


def asked(view: TokenBatch, views: Views) -> Tensor:
    """As `teacher_logprobs`, of a teacher elsewhere."""
    assert views.distant is not None
    batch, loss, nothing = view.to(torch.device("cpu")), views.loss, torch.zeros(0, dtype=torch.long)
    names = batch.tokens[:, None].int()
    pending = views.distant.ask(Question(batch, names, 0, loss.temperature, views.vocabulary, loss.head, nothing))
    return views.distant.answer(pending, views.device).logprobs[:, 0]
