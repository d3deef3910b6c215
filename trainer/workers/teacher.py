"""A teacher with a placement of its own: one process with the whole model, and an actor rank's way to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mopd.support import TeacherAnswer, shares
from trainer import cluster, fsdp
from trainer.forward import ResponseScorer
from trainer.layout import TokenBatch
from trainer.memory_use import Peaks, peaks
from trainer.objectives import LossSettings
from trainer.scores import HEADS, HeadName, States
from trainer.workers.recording import RecordedAnswer, likeliest_at


@dataclass(frozen=True)
class Question:
    """What a rank asks of its teacher for a micro-batch; tensors on the CPU."""

    batch: TokenBatch
    """The responses behind the teacher's prompts."""
    asked: Tensor
    """[M, K] int32, the entries that the student chose; K may be 0."""
    own: int
    """How many entries the teacher adds at every token: its likeliest."""
    temperature: float
    vocabulary: int
    """How many logits the student has."""
    head: HeadName
    recorded: Tensor
    """[R], of which of the M tokens the likeliest entries are wanted as well, aside from the loss."""
    sampled: bool = False
    """Whether the log-probs of the sampled tokens are wanted as well, aside from the loss."""


class TeacherWorker:
    """A frozen teacher, whole on one device; forwards whatever any rank sends, one micro-batch at a time."""

    def __init__(self, *, device: str, model_path: str, attn_implementation: str) -> None:
        self.device = torch.device("cuda", 0) if device == "cuda" else torch.device("cpu")
        self.model_path, self.attn_implementation = model_path, attn_implementation

    def load(self) -> int:
        """Loads the model; returns the number of its parameters."""
        self.scorer: ResponseScorer = fsdp.whole_scorer(self.model_path, self.device, self.attn_implementation)
        return sum(parameter.numel() for parameter in self.scorer.parameters())

    def memory(self) -> Peaks:
        """The most that this process held since it was last asked."""
        return peaks(self.device.type)

    @torch.no_grad()
    def answer(self, question: Question) -> TeacherAnswer:
        """Ids (int32) and log-probs (fp32) [M, K + own] of the entries asked for, and what is recorded; on the CPU."""
        states = States(self.scorer(question.batch.to(self.device)), self.scorer.head)
        asked, tokens = question.asked.to(self.device), question.batch.tokens.to(self.device)
        asked = torch.cat([asked, tokens[:, None].to(asked)], dim=-1) if question.sampled else asked
        head = HEADS[question.head]
        answer = head.answer(states, asked, question.own, question.vocabulary, question.temperature)
        answer, sampled = apart(answer, tokens) if question.sampled else (answer, None)
        beside = likeliest_at(states, question.recorded, question.vocabulary, question.temperature)
        likeliest = None if beside is None else TeacherAnswer(*sent(beside))
        return RecordedAnswer(*sent(answer), likeliest, None if sampled is None else sampled.float().cpu())


@dataclass(frozen=True)
class DistantTeacher:
    """An actor rank's way to its teacher."""

    worker: Any
    """A `TeacherWorker`."""
    name: str
    deadline_s: float

    def ask(self, question: Question) -> Any:
        """Sends a question; the teacher works on it while the rank goes on."""
        return self.worker.answer.remote(question)

    def answer(self, pending: Any, device: torch.device) -> RecordedAnswer:
        """The answer to a question that was sent.

        Raises:
            WorkerError: the teacher failed, died or did not answer in time; the message names it.
        """
        [answer] = cluster.gather([pending], f"asking {self.name}", self.deadline_s)
        sampled = None if answer.sampled is None else answer.sampled.to(device)
        return RecordedAnswer(answer.ids.to(device).long(), answer.logprobs.to(device), answer.likeliest, sampled)


def apart(answer: TeacherAnswer, tokens: Tensor) -> tuple[TeacherAnswer, Tensor]:
    """An answer [M, K + 1] that was asked for the sampled tokens [M] as well, without them; and their log-probs."""
    place = (answer.ids == tokens[:, None]).int().argmax(dim=-1, keepdim=True)
    rest = torch.ones_like(answer.ids, dtype=torch.bool).scatter(-1, place, False)
    shape = len(tokens), answer.ids.shape[1] - 1
    others = TeacherAnswer(answer.ids[rest].view(shape), answer.logprobs[rest].view(shape))
    return others, answer.logprobs.gather(-1, place)[:, 0]


def sent(answer: TeacherAnswer) -> tuple[Tensor, Tensor]:
    """Ids and log-probs as they cross over."""
    return answer.ids.int().cpu(), answer.logprobs.float().cpu()


def place_teachers(count: int, num_gpus: float, deadline_s: float, **arguments: Any) -> list[DistantTeacher]:
    """So many new teacher processes; `arguments` are `TeacherWorker`'s."""
    return [
        DistantTeacher(
            cluster.spawn(TeacherWorker, num_cpus=1, num_gpus=num_gpus, **arguments),
            f"teacher {number + 1} of {count} (actor_rollout_ref.ref.placement=own)",
            deadline_s,
        )
        for number in range(count)
    ]


def waits_for_student(loss: LossSettings) -> bool:
    """True where the student decides what the teacher is asked."""
    return loss.method.signal == "divergence" and loss.divergence.support != "teacher"


@torch.no_grad()
def question_of(
    batch: TokenBatch, student: States | None, loss: LossSettings, vocabulary: int, recorded: Tensor
) -> Question:
    """What the loss needs to know of the teacher.

    Args:
        batch: the tokens that count behind the teacher's prompts, on the CPU.
        student: of the same tokens; None is enough unless the question waits for the student.
        vocabulary: how many logits the student has.
        recorded: [R], the tokens of which the teacher's likeliest entries are recorded; on the CPU.
    """
    own = 0
    asked = batch.tokens[:, None]
    if loss.method.signal == "divergence":
        topk = loss.divergence.topk
        assert topk is not None, "the whole vocabulary is not asked for"
        chosen, own = shares(loss.divergence.support, topk)
        asked = asked[:, :0] if student is None else HEADS[loss.head].ids(student, chosen)
    beside = loss.method.signal == "divergence"
    return Question(batch, asked.int().cpu(), own, loss.temperature, vocabulary, loss.head, recorded, beside)


def no_answer(tokens: Tensor) -> TeacherAnswer:
    """What stands for an answer where no token [M] counts: nobody looks at it."""
    return TeacherAnswer(torch.zeros_like(tokens)[:, None], torch.zeros_like(tokens, dtype=torch.float32)[:, None])
