"""What the models of one actor rank know of a micro-batch: the student's states and the teacher's of the same tokens.

Models are forwarded here and nowhere else. Teacher first, then student: a sharded model's output matrix is whole from
its forward pass until it is resharded, and the loss needs both at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from mopd.support import TeacherAnswer
from trainer import cluster
from trainer.accounting import Account, pass_over
from trainer.adapters import Voice
from trainer.forward import ResponseScorer
from trainer.layout import TokenBatch, batch_of
from trainer.objectives import LossSettings
from trainer.packing import Sample, loss_mask
from trainer.scores import States, mixed
from trainer.workers.teacher import DistantTeacher, no_answer, question_of, waits_for_student


@dataclass(frozen=True)
class TeacherSettings:
    """Who answers on the teacher's view."""

    kind: Literal["ema", "frozen", "live", "trust-region"]
    """The student's moving average, the initial model, the student as it is, or a mixture of the last two's logits."""
    rate: float
    """Share of the student that is taken in: by the average after each step, by the mixture at each token."""
    model_path: str | None
    """Folder of another model; None where the student teaches itself."""


@dataclass
class Views:
    """A rank's models, and the views that they have of a micro-batch."""

    student: ResponseScorer
    teacher: ResponseScorer | None
    """The teacher beside the student, or the reference; None where there is none."""
    distant: DistantTeacher | None
    loss: LossSettings
    teaching: TeacherSettings
    device: torch.device
    packed: bool
    """Each distinct prompt once, without padding; else padded rows."""
    account: Account
    """Counts what is forwarded."""
    deadline_s: float = 3600.0
    """How long states that were asked for early may take to arrive."""
    known: Mapping[int, Any] | None = None
    """References to the teacher's states [M, H] of every sample, by index, where they were asked for early."""
    voice: Voice | None = None
    """Whose factors the student's base has where it answers as teacher or reference; None: a model beside it does."""

    @property
    def vocabulary(self) -> int:
        """How many logits the student has."""
        return int(self.student.model.config.vocab_size)

    @property
    def speaker(self) -> tuple[ResponseScorer, Voice] | None:
        """Who answers beside the student, as teacher or reference, and with whose factors."""
        if self.voice is not None:
            return self.student, self.voice
        return None if self.teacher is None else (self.teacher, "student")

    def states_of(
        self, micro_batch: Sequence[Sample], batch: TokenBatch, held: ExitStack, recorded: Tensor
    ) -> tuple[States, States | TeacherAnswer | None]:
        """The student's states of the tokens that count, with gradient, and what the teacher says of them.

        A teacher elsewhere is asked as early as can be. A rank without work has no question. The teacher's states hold
        until `held` closes. Of the tokens `recorded`, [R] of the M, a teacher elsewhere also says its likeliest ones.
        """
        if self.distant is None:
            with self.account.turn("teacher"):
                teach = self.teachers(micro_batch, batch, held)
            student = self.student_states(micro_batch, batch)
            return student, teach(student.weight)
        if not micro_batch:
            return self.student_states(micro_batch, batch), no_answer(batch.tokens)
        view = self.teacher_view(micro_batch).to(torch.device("cpu"))
        self.account.forwarded("distant", pass_over(view, micro_batch, on_view=True))
        early = not waits_for_student(self.loss)
        pending = self.distant.ask(question_of(view, None, self.loss, self.vocabulary, recorded)) if early else None
        student = self.student_states(micro_batch, batch)
        if not early:
            pending = self.distant.ask(question_of(view, student, self.loss, self.vocabulary, recorded))
        with self.account.turn("teacher"):
            return student, self.distant.answer(pending, self.device)

    def teachers(
        self, micro_batch: Sequence[Sample], batch: TokenBatch, held: ExitStack
    ) -> Callable[[Tensor], States | None]:
        """Forwards whoever teaches, or the reference; what they say, once the student's output matrix is at hand."""
        speaker = self.speaker
        if self.loss.method.has_reference and speaker is not None:
            self.account.forwarded("teacher", pass_over(batch, micro_batch, on_view=False))
            return self.said(batch, held)
        if not self.loss.method.distils:
            return lambda _: None
        if self.known is not None and speaker is not None:
            return self.recalled(micro_batch, held)
        view = self.teacher_view(micro_batch)
        work = pass_over(view, micro_batch, on_view=True)
        if self.teaching.kind in ("live", "trust-region"):
            self.account.forwarded("student", work)
        if speaker is None:
            return self.own(view, "student")
        self.account.forwarded("teacher", work)
        if self.teaching.kind != "trust-region":
            return self.said(view, held)
        own, rate, said = self.own(view, "student"), self.teaching.rate, self.said(view, held)
        # The mixture (1 - rate) reference + rate student of logits, `mopd.teacher.trust_region_logits`.
        return lambda weight: mixed([(said(weight), 1.0 - rate), (own(weight), rate)])

    def said(self, view: TokenBatch, held: ExitStack) -> Callable[[Tensor], States]:
        """What teacher or reference say of a view, once the student's output matrix is at hand."""
        assert self.speaker is not None
        scorer, voice = self.speaker
        # Held, the student's own matrix would be given up together with the teacher's, before its backward pass.
        if scorer is self.student:
            return self.own(view, voice)
        return beside(scorer, held.enter_context(self.reading(scorer, view, voice)))

    def own(self, view: TokenBatch, voice: Voice) -> Callable[[Tensor], States]:
        """What the student's own model says of a view, without gradient; its output matrix is everybody's."""
        with self.reading(self.student, view, voice) as hidden:
            return lambda weight: States(hidden, weight.detach())

    def taught(self, micro_batch: Sequence[Sample]) -> list[Tensor]:
        """The teacher's states [M, H] of every sample's tokens that count, on the CPU."""
        assert self.speaker is not None
        scorer, voice = self.speaker
        view = self.teacher_view(micro_batch)
        self.account.forwarded("early", pass_over(view, micro_batch, on_view=True))
        with self.account.turn("early"), self.reading(scorer, view, voice) as hidden:
            parts = hidden.cpu().split([int((loss_mask(sample) != 0).sum()) for sample in micro_batch] or [0])
        return [part.clone() for part, _ in zip(parts, micro_batch, strict=False)]

    def recalled(self, micro_batch: Sequence[Sample], held: ExitStack) -> Callable[[Tensor], States]:
        """As `said`, of states that were made early."""
        assert self.speaker is not None
        scorer, known = self.speaker[0], self.known or {}
        asked = [known[sample.index] for sample in micro_batch]
        different = list(dict.fromkeys(asked))  # equal responses have their states in common
        found = cluster.gather(different, "showing finished groups to the teacher", self.deadline_s)
        states = dict(zip(different, found, strict=True))
        parts = [states[reference] for reference in asked]
        hidden = torch.cat(parts).to(self.device) if parts else torch.zeros(0, scorer.head.shape[1], device=self.device)
        if scorer is self.student:
            return lambda weight: States(hidden.to(weight), weight.detach())
        weights = cast(FSDPModule, scorer)
        weights.unshard()
        held.callback(weights.reshard)
        return beside(scorer, hidden.to(scorer.head.dtype))

    def student_states(self, micro_batch: Sequence[Sample], batch: TokenBatch) -> States:
        """The student's states, with gradient; its output matrix stays gathered until the backward pass."""
        self.account.forwarded("trained", pass_over(batch, micro_batch, on_view=False))
        with self.account.turn("forward"):
            return States(self.student(batch), self.student.head)

    def lay_out(self, micro_batch: Sequence[Sample]) -> TokenBatch:
        """The micro-batch behind the student's prompts; an empty one becomes a single token.

        A rank without work forwards that token all the same: the other ranks wait for it.
        """
        if not micro_batch:
            zero = [np.zeros(1, dtype=np.int32)]
            return batch_of(zero, zero, self.device, packed=self.packed)
        prompts = [sample.prompt_ids for sample in micro_batch]
        return batch_of(prompts, [sample.response_ids for sample in micro_batch], self.device, packed=self.packed)

    def teacher_view(self, micro_batch: Sequence[Sample]) -> TokenBatch:
        """The tokens that count behind the teacher's prompts; the student's where there is no view."""
        if not micro_batch:
            return self.lay_out(()).only(chosen_of((), self.device))
        prompts = [
            sample.prompt_ids if sample.teacher_prompt_ids is None else sample.teacher_prompt_ids
            for sample in micro_batch
        ]
        responses = [sample.response_ids for sample in micro_batch]
        whole = batch_of(prompts, responses, self.device, packed=self.packed)
        return whole.only(chosen_of(micro_batch, self.device))

    @contextmanager
    def reading(self, scorer: ResponseScorer, batch: TokenBatch, voice: Voice = "student") -> Iterator[Tensor]:
        """Hidden states [M, H] without gradient; inside, the model's output matrix is at hand."""
        with torch.no_grad(), speaking(scorer, voice):
            hidden: Tensor = scorer(batch)
        try:
            yield hidden
        finally:
            # FSDP keeps the outermost weights gathered for a backward pass, which does not come.
            cast(FSDPModule, scorer).reshard()


def speaking(scorer: ResponseScorer, voice: Voice) -> AbstractContextManager[None]:
    """Inside, a model with adapters has those of `voice`; any other model is what it is."""
    adapters = None if voice == "student" else scorer.adapters
    return nullcontext() if adapters is None else adapters.speaking(voice)


def beside(scorer: ResponseScorer, hidden: Tensor) -> Callable[[Tensor], States]:
    """What a model beside the student says, whatever the student's output matrix."""
    return lambda _: States(hidden, scorer.head)


def chosen_of(micro_batch: Sequence[Sample], device: torch.device) -> Tensor:
    """Which of all response tokens of a micro-batch count in the loss, as bools; of an empty one, its only one not."""
    masks = [loss_mask(sample) != 0 for sample in micro_batch] or [np.zeros(1, dtype=bool)]
    return torch.from_numpy(np.concatenate(masks)).to(device)
