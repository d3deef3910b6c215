"""Which rank forwards which sequence, in which micro-batch: token budgets, balanced and never ragged.

Every rank gets the same number of micro-batches, since FSDP's ranks must meet at each forward;
a rank with less to do gets empty ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mopd.types import FloatArray, IntArray, TokenStreams


@dataclass(frozen=True)
class Sample:
    """One rollout as the actor sees it."""

    index: int
    """Position among the step's rollouts, in sampling order."""
    prompt_ids: IntArray
    """[L], the student's prompt."""
    response_ids: IntArray
    """[T]"""
    sampler_logprobs: FloatArray
    """[T], by the engine that sampled."""
    teacher_prompt_ids: IntArray | None
    """[L], the teacher's prompt; None where there is no usable view, or no teacher."""
    streams: TokenStreams

    @property
    def cost(self) -> int:
        """Tokens that the longer of the two forwards takes."""
        longest = max(len(self.prompt_ids), 0 if self.teacher_prompt_ids is None else len(self.teacher_prompt_ids))
        return longest + len(self.response_ids)


@dataclass(frozen=True)
class MiniBatch:
    """One optimiser step's work for one rank, normalised by the counts of all ranks."""

    micro_batches: tuple[tuple[Sample, ...], ...]
    tokens: float
    """Response tokens in the loss, over all ranks."""
    sequences: float
    """Sequences in the loss, over all ranks."""


def loss_mask(sample: Sample, distils: bool) -> FloatArray:
    """[T], the tokens that count in the loss: of a distilled sample those whose divergence has weight."""
    counted = sample.streams.mask * (sample.streams.weights != 0) if distils else sample.streams.mask
    return counted.astype(np.float32)


def plan_mini_batch(samples: Sequence[Sample], ranks: int, budget: int, distils: bool) -> list[MiniBatch]:
    """Splits one mini-batch over `ranks`, each share into micro-batches of at most `budget` padded tokens.

    Sequences that carry no loss are left out: they would be forwarded for nothing.
    """
    useful = [sample for sample in samples if loss_mask(sample, distils).any()]
    shares = balance(useful, ranks)
    packed = [pack(share, budget) for share in shares]
    most = max(len(micro_batches) for micro_batches in packed)
    tokens = float(sum(loss_mask(sample, distils).sum() for sample in useful))
    return [
        MiniBatch((*micro_batches, *[()] * (most - len(micro_batches))), tokens, float(len(useful)))
        for micro_batches in packed
    ]


def balance(samples: Sequence[Sample], ranks: int) -> list[list[Sample]]:
    """Shares of nearly equal token counts: the longest sequence left goes to the lightest share."""
    shares: list[list[Sample]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for sample in sorted(samples, key=lambda sample: (-sample.cost, sample.index)):
        lightest = loads.index(min(loads))
        shares[lightest].append(sample)
        loads[lightest] += sample.cost
    return shares


def pack(share: Sequence[Sample], budget: int) -> list[tuple[Sample, ...]]:
    """Micro-batches of sequences of like length whose padded size stays within `budget` tokens.

    A sequence longer than the budget travels alone.
    """
    micro_batches: list[tuple[Sample, ...]] = []
    current: list[Sample] = []
    for sample in sorted(share, key=lambda sample: (-sample.cost, sample.index)):
        longest = current[0].cost if current else sample.cost
        if current and longest * (len(current) + 1) > budget:
            micro_batches.append(tuple(current))
            current = []
        current.append(sample)
    return [*micro_batches, tuple(current)] if current else micro_batches
