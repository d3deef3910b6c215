"""Micro-batches: every useful sequence once, within budget, the same number on every rank; prompts seldom repeated."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mopd.types import TokenStreams
from trainer.packing import (
    MiniBatch,
    Packing,
    Sample,
    SharedCost,
    balance,
    loss_mask,
    pack,
    padded_cost,
    plan_mini_batch,
)


def sample(index: int, prompt: int, response: int, weight: float = 1.0, teacher: int | None = None) -> Sample:
    """Of a group of four. Prompts of one group and one length are equal."""
    ones = np.ones(response, dtype=np.float32)
    return Sample(
        index,
        index // 4,
        0.0,
        np.full(prompt, index // 4, dtype=np.int32),
        np.zeros(response, dtype=np.int32),
        -ones,
        None if teacher is None else np.full(teacher, index // 4, dtype=np.int32),
        TokenStreams(ones, ones * weight, ones),
    )


def sides(samples: Sequence[Sample]) -> tuple[int, int]:
    """Tokens of the packed rows that the samples make: the student's, and the teacher's."""
    responses = sum(len(item.response_ids) for item in samples)
    own = {(item.group, tuple(item.prompt_ids)) for item in samples}
    views = [item.prompt_ids if item.teacher_prompt_ids is None else item.teacher_prompt_ids for item in samples]
    seen = {(item.group, tuple(view)) for item, view in zip(samples, views, strict=True)}
    student, teacher = (sum(len(prompt) for _, prompt in side) + responses for side in (own, seen))
    return student, teacher


def laid_out(samples: Sequence[Sample]) -> int:
    """Of the longer of the two."""
    return max(sides(samples))


shapes = st.lists(
    st.tuples(st.integers(1, 30), st.integers(0, 40), st.sampled_from([0.0, 1.0]), st.integers(1, 60)), max_size=24
)


def tokens_of(samples: Sequence[Sample]) -> float:
    return float(sum(loss_mask(item).sum() for item in samples))


@settings(deadline=None)
@given(shapes, st.integers(1, 4), st.integers(1, 200), st.booleans(), st.booleans())
def test_every_useful_sequence_is_forwarded_once(
    drawn: list[tuple[int, int, float, int]], ranks: int, budget: int, whole_groups: bool, shared: bool
) -> None:
    samples = [sample(index, p, t, w, teacher) for index, (p, t, w, teacher) in enumerate(drawn)]
    plans = plan_mini_batch(samples, ranks, Packing(budget, tokens_of, whole_groups, shared=shared))
    met = sorted(item.index for plan in plans for micro in plan.micro_batches for item in micro)
    assert met == [item.index for item in samples if loss_mask(item).any()]
    assert len({len(plan.micro_batches) for plan in plans}) == 1
    for plan in plans:
        assert plan.denominators == (tokens_of(samples),) * len(plan.micro_batches)
        for micro in plan.micro_batches:
            alone = len({item.group for item in micro} if whole_groups else micro) <= 1
            size = laid_out(micro) if shared else max((item.cost for item in micro), default=0) * len(micro)
            assert alone or size <= budget


@settings(deadline=None)
@given(shapes, st.integers(1, 3), st.integers(1, 300))
def test_whole_groups_are_never_cut(drawn: list[tuple[int, int, float, int]], ranks: int, budget: int) -> None:
    samples = [sample(index, p, t, w, teacher) for index, (p, t, w, teacher) in enumerate(drawn)]
    plans = plan_mini_batch(samples, ranks, Packing(budget, tokens_of, whole_groups=True))
    places = {
        item.group: (rank, number)
        for rank, plan in enumerate(plans)
        for number, micro in enumerate(plan.micro_batches)
        for item in micro
    }
    for rank, plan in enumerate(plans):
        for number, micro in enumerate(plan.micro_batches):
            assert all(places[item.group] == (rank, number) for item in micro)


def test_published_normalisation_divides_each_sequence_by_its_own_count_and_by_all_sequences() -> None:
    samples = [sample(0, 2, 5), sample(1, 2, 3), sample(2, 2, 4, weight=0.0)]
    [plan] = plan_mini_batch(samples, 1, Packing(1000, tokens_of, published=True))
    assert [len(micro) for micro in plan.micro_batches] == [1, 1]
    assert sorted(plan.denominators) == [3 * 3, 5 * 3]


def test_shares_are_balanced_by_tokens() -> None:
    lengths = [100, 90, 50, 40, 30, 20, 10, 10]
    shares = balance([(sample(index, 1, length),) for index, length in enumerate(lengths)], 2, padded_cost)
    loads = [sum(item.cost for (item,) in share) for share in shares]
    assert abs(loads[0] - loads[1]) <= 10


def test_a_sequence_over_the_budget_travels_alone() -> None:
    share = [(sample(0, 50, 50),), (sample(1, 5, 5),), (sample(2, 5, 5),)]
    assert [len(micro) for micro in pack(share, 40, padded_cost)] == [1, 2]


@settings(deadline=None)
@given(shapes)
def test_the_cost_of_a_packed_micro_batch_is_the_tokens_of_its_rows(drawn: list[tuple[int, int, float, int]]) -> None:
    samples = [sample(index, p, t, w, teacher) for index, (p, t, w, teacher) in enumerate(drawn)]
    cost = SharedCost(samples)
    for end in range(1, len(samples) + 1):
        assert cost.sides(samples[:end]) == sides(samples[:end])
        assert cost(samples[:end]) == laid_out(samples[:end])


def forwarded(plans: Sequence[MiniBatch]) -> list[int]:
    """Tokens of each rank's micro-batches."""
    return [sum(laid_out(micro) for micro in plan.micro_batches) for plan in plans]


def plans_of(groups: int, prompt: int, response: int, ranks: int, budget: int) -> list[MiniBatch]:
    samples = [sample(index, prompt, response, teacher=2 * prompt) for index in range(4 * groups)]
    return plan_mini_batch(samples, ranks, Packing(budget, tokens_of))


def test_groups_stay_together_where_nothing_is_gained_by_cutting_them() -> None:
    assert forwarded(plans_of(groups=8, prompt=100, response=10, ranks=1, budget=600)) == [8 * 240]
    assert forwarded(plans_of(groups=8, prompt=100, response=10, ranks=2, budget=600)) == [4 * 240] * 2


def test_a_group_over_the_budget_is_cut_and_its_prompt_repeated() -> None:
    [plan] = plans_of(groups=1, prompt=20, response=30, ranks=1, budget=100)
    assert [len(micro) for micro in plan.micro_batches] == [2, 2]


def test_a_group_is_cut_where_ranks_would_wait_for_one() -> None:
    assert forwarded(plans_of(groups=3, prompt=5, response=100, ranks=2, budget=1000)) == [630, 630]


def test_pieces_keep_those_together_that_the_teacher_sees_alike() -> None:
    views = [60, 61, 60, 61]
    samples = [sample(index, 5, 10, teacher=views[index]) for index in range(4)]
    [plan] = plan_mini_batch(samples, 1, Packing(90, tokens_of))
    assert [[item.index for item in micro] for micro in plan.micro_batches] == [[1, 3], [0, 2]]


@settings(deadline=None)
@given(st.lists(st.integers(1, 40), min_size=32, max_size=32), st.integers(1, 60), st.integers(1, 4))
def test_what_is_repeated_is_little(responses: list[int], prompt: int, ranks: int) -> None:
    """Over one rank no more than pays for fewer micro-batches; over more, no rank has much more than its part."""
    samples = [sample(index, prompt, response, teacher=prompt) for index, response in enumerate(responses)]
    budget = 4 * 40 + 60
    loads = forwarded(plan_mini_batch(samples, ranks, Packing(budget, tokens_of)))
    least = 8 * prompt + sum(responses)
    repeated = 8 * budget // 16
    assert sum(loads) >= least
    assert max(loads) <= least / ranks + repeated + (0 if ranks == 1 else prompt + 40)


def test_micro_batches_are_filled_where_little_is_repeated_for_it() -> None:
    """Groups of 122 tokens, which leave 78 of 200 empty; against groups of 160, most of which is the prompt."""
    [filled] = plans_of(groups=4, prompt=1, response=30, ranks=1, budget=200)
    assert sorted(len(micro) for micro in filled.micro_batches) == [4, 6, 6]
    [whole] = plans_of(groups=4, prompt=60, response=10, ranks=1, budget=200)
    assert [len(micro) for micro in whole.micro_batches] == [4, 4, 4, 4]


def test_a_rollout_without_weight_carries_no_loss() -> None:
    assert loss_mask(sample(0, 4, 4, weight=0.0)).sum() == 0
    assert loss_mask(sample(0, 4, 4)).sum() == 4
