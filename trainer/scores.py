"""What student and teacher say of a micro-batch's tokens: from hidden states to log-probs and divergences.

    dense   every logit at once: the specification, as the functions of `mopd` have it
    fused   the same numbers by parts of the vocabulary (`mopd.fused`): nothing of [M, V] is kept

M  tokens that count in the loss, all sequences of the micro-batch in a row        H  width of the hidden states
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from mopd.divergence import Support, Tail, captured_mass, divergence, is_distribution, wide
from mopd.fused import LinearLogprobs, linear_divergence, linear_logprobs
from mopd.fused_logits import GradMode
from mopd.fused_support import linear_answer, linear_divergence_on, linear_ids
from mopd.fused_topk import LinearDivergence
from mopd.losses import placed, token_logprobs
from mopd.support import TeacherAnswer, answer_of, divergence_on, mass_on, own_ids

HeadName = Literal["fused", "dense"]


@dataclass(frozen=True)
class States:
    """What a model knows of M tokens before it comes to the vocabulary: logits = hidden @ weight.T / temperature."""

    hidden: Tensor
    """[M, H], of the positions that predict the tokens."""
    weight: Tensor
    """[V, H]"""


def mixed(parts: Sequence[tuple[States, float]]) -> States:
    """States whose logits are the weighted sum of several models' logits."""
    if len(parts) == 1:
        return parts[0][0]
    return States(
        torch.cat([states.hidden * share for states, share in parts], dim=-1),
        torch.cat([states.weight for states, _ in parts], dim=-1),
    )


@dataclass(frozen=True)
class DivergenceSettings:
    """Which divergence, as plain values."""

    alpha: float
    topk: int | None
    tail: Tail
    support: Support
    grad_mode: GradMode = "exact"


class Head(Protocol):
    """Ways through the vocabulary."""

    def logprobs(self, states: States, tokens: Tensor, temperature: float) -> LinearLogprobs:
        """Log-probs of tokens [M], with gradient, and entropies [M]."""

    def divergence(
        self, student: States, teacher: States, tokens: Tensor, temperature: float, settings: DivergenceSettings
    ) -> LinearDivergence:
        """Divergences [M], with gradient in the student."""

    def divergence_on(
        self, student: States, answer: TeacherAnswer, tokens: Tensor, temperature: float, settings: DivergenceSettings
    ) -> LinearDivergence:
        """The same from what a teacher elsewhere answers."""

    def ids(self, states: States, count: int) -> Tensor:
        """[M, count], the likeliest entries."""

    def answer(self, states: States, asked: Tensor, own: int, vocabulary: int, temperature: float) -> TeacherAnswer:
        """What a teacher elsewhere says of the entries asked for [M, K], and of its own likeliest."""


class Dense:
    """All logits at once."""

    def logprobs(self, states: States, tokens: Tensor, temperature: float) -> LinearLogprobs:
        """See `Head`."""
        logits = logits_of(states, temperature)
        return LinearLogprobs(token_logprobs(logits, tokens), entropy(logits.detach()))

    def divergence(
        self, student: States, teacher: States, tokens: Tensor, temperature: float, settings: DivergenceSettings
    ) -> LinearDivergence:
        """See `Head`."""
        logits = logits_of(student, temperature)
        with torch.no_grad():
            others = fitted(logits_of(teacher, temperature), logits.shape[-1])
            told = is_distribution(others)
            masses = captured_mass(logits, others, topk=settings.topk, support=settings.support)
        values = divergence(
            logits[told],
            others[told],
            alpha=settings.alpha,
            topk=settings.topk,
            tail=settings.tail,
            support=settings.support,
        )
        return told_of(logits, tokens, placed(values, told), masses, told, token_logprobs(others, tokens))

    def divergence_on(
        self, student: States, answer: TeacherAnswer, tokens: Tensor, temperature: float, settings: DivergenceSettings
    ) -> LinearDivergence:
        """See `Head`."""
        logits, told = logits_of(student, temperature), answer.told
        values = divergence_on(logits[told], answer.at(told), alpha=settings.alpha, tail=settings.tail)
        return told_of(logits, tokens, placed(values, told), mass_on(logits.detach(), answer), told, answer.of(tokens))

    def ids(self, states: States, count: int) -> Tensor:
        """See `Head`."""
        return own_ids(logits_of(states, 1.0), count)

    def answer(self, states: States, asked: Tensor, own: int, vocabulary: int, temperature: float) -> TeacherAnswer:
        """See `Head`."""
        return answer_of(fitted(logits_of(states, temperature), vocabulary), asked, own)


class Fused:
    """By parts of the vocabulary."""

    def logprobs(self, states: States, tokens: Tensor, temperature: float) -> LinearLogprobs:
        """See `Head`."""
        return linear_logprobs(states.hidden, states.weight, tokens, temperature=temperature, entropy=True)

    def divergence(
        self, student: States, teacher: States, tokens: Tensor, temperature: float, settings: DivergenceSettings
    ) -> LinearDivergence:
        """See `Head`."""
        return linear_divergence(
            student.hidden,
            student.weight,
            teacher.hidden,
            teacher.weight,
            tokens,
            temperature=temperature,
            alpha=settings.alpha,
            topk=settings.topk,
            tail=settings.tail,
            support=settings.support,
            grad_mode=settings.grad_mode,
            entropy=True,
        )

    def divergence_on(
        self, student: States, answer: TeacherAnswer, tokens: Tensor, temperature: float, settings: DivergenceSettings
    ) -> LinearDivergence:
        """See `Head`."""
        return linear_divergence_on(
            student.hidden,
            student.weight,
            answer,
            tokens,
            temperature=temperature,
            alpha=settings.alpha,
            tail=settings.tail,
            grad_mode=settings.grad_mode,
            entropy=True,
        )

    def ids(self, states: States, count: int) -> Tensor:
        """See `Head`."""
        return linear_ids(states.hidden, states.weight, count)

    def answer(self, states: States, asked: Tensor, own: int, vocabulary: int, temperature: float) -> TeacherAnswer:
        """See `Head`."""
        return linear_answer(states.hidden, states.weight, asked, own, vocabulary, temperature=temperature)


HEADS: Mapping[HeadName, Head] = {"fused": Fused(), "dense": Dense()}


def logits_of(states: States, temperature: float) -> Tensor:
    """Tempered logits [M, V]."""
    return wide(states.hidden @ states.weight.t()) / temperature


def fitted(logits: Tensor, vocabulary: int) -> Tensor:
    """Another model's logits [M, V'] on the student's vocabulary [M, V]: padding rows cut, or made impossible."""
    missing = vocabulary - logits.shape[-1]
    return logits[..., :vocabulary] if missing <= 0 else nn.functional.pad(logits, (0, missing), value=-torch.inf)


def entropy(logits: Tensor) -> Tensor:
    """The entropy of next-token distributions, logits [..., V] to [...], in nats."""
    spread = torch.log_softmax(logits, dim=-1)
    return -(spread.exp() * spread).sum(-1)


def told_of(
    logits: Tensor,
    tokens: Tensor,
    values: Tensor,
    masses: tuple[Tensor, Tensor],
    told: Tensor,
    teacher_logprobs: Tensor,
) -> LinearDivergence:
    """The dense form of what the fused one finds."""
    logits = logits.detach()
    return LinearDivergence(
        values=values,
        logprobs=token_logprobs(logits, tokens),
        entropy=entropy(logits),
        gradient_bound=torch.zeros_like(masses[0]),
        student_mass=masses[0],
        teacher_mass=masses[1].where(told, 0.0),
        told=told,
        teacher_logprobs=teacher_logprobs.detach().masked_fill(~told, torch.nan),
    )
