"""Which rank forwards which sequence, in which micro-batch: token budgets, balanced and never ragged.

Every rank gets the same number of micro-batches, since FSDP's ranks must meet at each forward;
a rank with less to do gets empty ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mopd.types import FloatArray, IntArray, TokenStreams


@dataclass(frozen=True)
class Sample:
    """One rollout as the actor sees it."""

    index: int
    """Position among the step's rollouts, in sampling order."""
    group: int
    """Number of its group among the step's."""
    reward: float
    """Not-a-number where the outcome is unknown."""
    prompt_ids: IntArray
    """[L], the student's prompt."""
    response_ids: IntArray
    """[T]"""
    sampler_logprobs: FloatArray
    """[T], by the engine that sampled."""
    teacher_prompt_ids: IntArray | None
    """[L], the teacher's prompt; None where there is no usable view, or no teacher."""
    streams: TokenStreams
    step_ids: IntArray | None = None
    """[T], the reasoning step of each token; None where losses are not averaged over steps."""

    @property
    def cost(self) -> int:
        """Tokens that the longer of the two forwards takes."""
        longest = max(len(self.prompt_ids), 0 if self.teacher_prompt_ids is None else len(self.teacher_prompt_ids))
        return longest + len(self.response_ids)


Unit = tuple[Sample, ...]
"""Samples that stay in one micro-batch: a single one, or a whole group where pairs are compared."""
Denominator = Callable[[Sequence[Sample]], float]
"""What the loss of a mini-batch is divided by, counted over all ranks."""


@dataclass(frozen=True)
class MiniBatch:
    """One optimiser step's work for one rank, normalised by the counts of all ranks."""

    micro_batches: tuple[tuple[Sample, ...], ...]
    denominators: tuple[float, ...]
    """What the loss of each micro-batch is divided by."""


def loss_mask(sample: Sample) -> FloatArray:
    """[T], the tokens that count in the loss."""
    mask: FloatArray = np.where(sample.streams.weights != 0, sample.streams.mask, np.float32(0))
    return mask


@dataclass(frozen=True)
class Packing:
    """How mini-batches are cut."""

    budget: int
    """Tokens of a micro-batch, padding included."""
    denominator: Denominator
    whole_groups: bool = False
    """Keeps groups together."""
    published: bool = False
    """Published normalisation: every sequence is a micro-batch, divided by its own count and by the number of all
    sequences, useful or not."""


def plan_mini_batch(samples: Sequence[Sample], ranks: int, packing: Packing) -> list[MiniBatch]:
    """Splits one mini-batch over `ranks`, each share into micro-batches within the budget.

    Sequences that carry no loss are left out: they would be forwarded for nothing.
    """
    useful = [sample for sample in samples if loss_mask(sample).any()]
    budget = 0 if packing.published else packing.budget
    packed = [pack(share, budget) for share in balance(units_of(useful, packing.whole_groups), ranks)]
    most = max(len(micro_batches) for micro_batches in packed)
    total = packing.denominator(useful)
    plans = []
    for micro_batches in packed:
        even = (*micro_batches, *[()] * (most - len(micro_batches)))
        own = [packing.denominator(part) * len(samples) for part in even]
        plans.append(MiniBatch(even, tuple(own) if packing.published else (total,) * most))
    return plans


def units_of(samples: Sequence[Sample], whole_groups: bool) -> list[Unit]:
    """Samples one by one, or by group."""
    if not whole_groups:
        return [(sample,) for sample in samples]
    groups = {sample.group: None for sample in samples}
    return [tuple(sample for sample in samples if sample.group == group) for group in groups]


def padded_cost(unit: Sequence[Sample]) -> int:
    """Tokens of a micro-batch, padding included."""
    return max(sample.cost for sample in unit) * len(unit)


def balance(units: Sequence[Unit], ranks: int) -> list[list[Unit]]:
    """Shares of nearly equal token counts: the longest unit left goes to the lightest share."""
    shares: list[list[Unit]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for unit in sorted(units, key=lambda unit: (-padded_cost(unit), unit[0].index)):
        lightest = loads.index(min(loads))
        shares[lightest].append(unit)
        loads[lightest] += padded_cost(unit)
    return shares


def pack(share: Sequence[Unit], budget: int) -> list[tuple[Sample, ...]]:
    """Micro-batches of sequences of like length whose padded size stays within `budget` tokens.

    A unit larger than the budget travels alone.
    """
    micro_batches: list[tuple[Sample, ...]] = []
    for unit in sorted(share, key=lambda unit: (-max(sample.cost for sample in unit), unit[0].index)):
        together = (*micro_batches[-1], *unit) if micro_batches else unit
        if micro_batches and padded_cost(together) <= budget:
            micro_batches[-1] = together
        else:
            micro_batches.append(unit)
    return micro_batches
