"""Which rank forwards which sequence, in which micro-batch: token budgets, balanced and never ragged.

Every rank gets the same number of micro-batches, since FSDP's ranks must meet at each forward;
a rank with less to do gets empty ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

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
    verdict: float = math.nan
    """The verifier's reward, where `reward` may have been shaped; not-a-number where unknown."""
    right: bool | None = None
    """Whether that is a success; None where unknown."""
    bare_prompt_ids: IntArray | None = None
    """[L], the teacher's prompt without any context, where it is to be asked on that as well."""

    @property
    def cost(self) -> int:
        """Tokens that the longer of the two forwards takes."""
        longest = max(len(self.prompt_ids), 0 if self.teacher_prompt_ids is None else len(self.teacher_prompt_ids))
        return longest + len(self.response_ids)


Unit = tuple[Sample, ...]
"""Samples that stay in one micro-batch."""
Cost = Callable[[Sequence[Sample]], int]
"""Tokens of a micro-batch, of the longer of its two forwards."""
Denominator = Callable[[Sequence[Sample]], float]
"""What the loss of a mini-batch is divided by, counted over all ranks."""


@dataclass(frozen=True)
class MiniBatch:
    """One optimiser step's work for one rank, normalised by the counts of all ranks."""

    micro_batches: tuple[tuple[Sample, ...], ...]
    denominators: tuple[float, ...]
    """What the loss of each micro-batch is divided by."""
    bare: tuple[tuple[Sample, ...], ...] = ()
    """Micro-batches on whose `bare_prompt_ids`, here their teacher's prompts, the teacher is asked for gauges."""


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
    """Keeps groups together, because pairs are compared."""
    published: bool = False
    """Published normalisation: every sequence is a micro-batch, divided by its own count and by the number of all
    sequences, useful or not."""
    shared: bool = True
    """Rows are packed: a prompt is forwarded once for all its responses in a micro-batch. Otherwise they are padded."""


def plan_mini_batch(samples: Sequence[Sample], ranks: int, packing: Packing) -> list[MiniBatch]:
    """Splits one mini-batch over `ranks`, each share into micro-batches within the budget.

    Sequences that carry no loss are left out: they would be forwarded for nothing.
    """
    useful = [sample for sample in samples if loss_mask(sample).any()]
    bare = [
        replace(sample, teacher_prompt_ids=sample.bare_prompt_ids)
        for sample in useful
        if sample.bare_prompt_ids is not None
    ]
    total = packing.denominator(useful)
    plans = []
    for even, aside in zip(evenly(useful, ranks, packing), evenly(bare, ranks, packing), strict=True):
        own = [packing.denominator(part) * len(samples) for part in even]
        plans.append(MiniBatch(even, tuple(own) if packing.published else (total,) * len(even), aside))
    return plans


def evenly(samples: Sequence[Sample], ranks: int, packing: Packing) -> list[tuple[Unit, ...]]:
    """The micro-batches of every rank; as many for each, with empty ones at the end."""
    cost: Cost = SharedCost(samples) if packing.shared else padded_cost
    packed = [micro_batches_of(share, packing, cost) for share in shares_of(samples, ranks, packing, cost)]
    most = max(len(micro_batches) for micro_batches in packed)
    return [(*micro_batches, *[()] * (most - len(micro_batches))) for micro_batches in packed]


# ------------------------------------------------------------------ what a micro-batch costs


def padded_cost(unit: Sequence[Sample]) -> int:
    """Tokens of a micro-batch of padded rows, padding included."""
    return max(sample.cost for sample in unit) * len(unit)


class SharedCost:
    """Tokens of a packed micro-batch: every response, and every different prompt of a group once."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.prompts: dict[int, tuple[tuple[int, int], tuple[int, int]]] = {}
        """By sample: the number and the length of the student's prompt, and of the teacher's."""
        numbers: dict[tuple[int, bytes], int] = {}
        for sample in samples:
            asked = sample.prompt_ids if sample.teacher_prompt_ids is None else sample.teacher_prompt_ids
            student, teacher = (
                (numbers.setdefault((sample.group, prompt.tobytes()), len(numbers)), len(prompt))
                for prompt in (sample.prompt_ids, asked)
            )
            self.prompts[sample.index] = student, teacher

    def __call__(self, unit: Sequence[Sample]) -> int:
        """Of the longer of the two forwards."""
        return max(self.sides(unit))

    def sides(self, unit: Sequence[Sample]) -> tuple[int, int]:
        """Of the student's forward, and of the teacher's."""
        pairs = [self.prompts[sample.index] for sample in unit]
        responses = sum(len(sample.response_ids) for sample in unit)
        student, teacher = ({pair[side] for pair in pairs} for side in (0, 1))
        return sum(length for _, length in student) + responses, sum(length for _, length in teacher) + responses

    def teacher_prompt(self, sample: Sample) -> int:
        """The number of the prompt that the teacher sees; those of one group are numbered as they come."""
        return self.prompts[sample.index][1][0]


# ------------------------------------------------------------------ who forwards what


def shares_of(samples: Sequence[Sample], ranks: int, packing: Packing, cost: Cost) -> list[list[Unit]]:
    """The share of every rank, in units of one sample or of several that gain from one another.

    Groups that share prompts are cut where they exceed the budget, and into smaller pieces where that lightens the
    heaviest share although prompts are then repeated.
    """
    if packing.whole_groups:
        return balance(groups_of(samples), ranks, cost)
    if packing.published or not isinstance(cost, SharedCost):
        return balance([(sample,) for sample in samples], ranks, cost)
    groups = groups_of(samples)
    mean = sum(cost(group) for group in groups) // ranks
    finer = [mean // pieces for pieces in PIECES if mean // pieces < packing.budget] if ranks > 1 else []
    choices = [
        balance([piece for group in groups for piece in cut(group, most, cost)], ranks, cost)
        for most in (packing.budget, *finer)
    ]
    return min(choices, key=lambda shares: max(sum(map(cost, share)) for share in shares))


PIECES = (1, 2, 4, 8, 16)
"""How many pieces of a rank's share are tried: more balance better, and repeat more prompts."""


def groups_of(samples: Sequence[Sample]) -> list[Unit]:
    """Samples by group, in the order in which groups come."""
    groups: dict[int, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.group, []).append(sample)
    return [tuple(group) for group in groups.values()]


def cut(group: Sequence[Sample], most: int, cost: SharedCost) -> list[Unit]:
    """Pieces of at most so many tokens, samples with one teacher prompt side by side; one alone may exceed it."""
    pieces: list[Unit] = []
    for sample in sorted(group, key=lambda sample: (cost.teacher_prompt(sample), sample.index)):
        if pieces and cost((*pieces[-1], sample)) <= most:
            pieces[-1] = (*pieces[-1], sample)
        else:
            pieces.append((sample,))
    return pieces


def balance(units: Sequence[Unit], ranks: int, cost: Cost) -> list[list[Unit]]:
    """Shares of nearly equal token counts: the longest unit left goes to the lightest share."""
    shares: list[list[Unit]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for unit in sorted(units, key=lambda unit: (-cost(unit), unit[0].index)):
        lightest = loads.index(min(loads))
        shares[lightest].append(unit)
        loads[lightest] += cost(unit)
    return shares


def micro_batches_of(share: Sequence[Unit], packing: Packing, cost: Cost) -> list[Unit]:
    """The micro-batches of a rank, largest first.

    Units stay whole, or each micro-batch is filled before the next begins: that repeats prompts, and makes fewer.
    """
    budget = 0 if packing.published else packing.budget
    whole = pack(share, budget, cost)
    if packing.whole_groups or packing.published or not isinstance(cost, SharedCost):
        return whole
    filled = sorted(cut([sample for unit in share for sample in unit], budget, cost), key=cost, reverse=True)
    return min(whole, filled, key=lambda found: sum(map(cost, found)) + len(found) * budget // FILLING)


FILLING = 16
"""One in so many tokens of the budget may be forwarded again to save a micro-batch."""


def pack(share: Sequence[Unit], budget: int, cost: Cost) -> list[Unit]:
    """Micro-batches within `budget` tokens, largest first: a unit joins where it adds least, and fits.

    A unit larger than the budget travels alone.
    """
    micro_batches: list[Unit] = []
    sizes: list[int] = []
    for unit in sorted(share, key=lambda unit: (-cost(unit), unit[0].index)):
        least = sum(len(sample.response_ids) for sample in unit)
        roomy = [place for place, size in enumerate(sizes) if size + least <= budget]
        joined = {place: cost((*micro_batches[place], *unit)) for place in roomy}
        fitting = [place for place in roomy if joined[place] <= budget]
        if fitting:
            best = min(fitting, key=lambda place: joined[place] - sizes[place])
            micro_batches[best], sizes[best] = (*micro_batches[best], *unit), joined[best]
        else:
            micro_batches.append(unit)
            sizes.append(cost(unit))
    return sorted(micro_batches, key=cost, reverse=True)
