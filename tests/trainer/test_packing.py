"""Micro-batches: every useful sequence once, within budget, the same number on every rank."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mopd.types import TokenStreams
from trainer.packing import Packing, Sample, balance, loss_mask, pack, plan_mini_batch


def sample(index: int, prompt: int, response: int, weight: float = 1.0, teacher: int | None = None) -> Sample:
    ones = np.ones(response, dtype=np.float32)
    return Sample(
        index,
        index // 4,
        0.0,
        np.zeros(prompt, dtype=np.int32),
        np.zeros(response, dtype=np.int32),
        -ones,
        None if teacher is None else np.zeros(teacher, dtype=np.int32),
        TokenStreams(ones, ones * weight, ones),
    )


shapes = st.lists(
    st.tuples(st.integers(1, 30), st.integers(0, 40), st.sampled_from([0.0, 1.0]), st.integers(1, 60)), max_size=24
)


def tokens_of(samples: Sequence[Sample]) -> float:
    return float(sum(loss_mask(item).sum() for item in samples))


@given(shapes, st.integers(1, 4), st.integers(1, 200), st.booleans())
def test_every_useful_sequence_is_forwarded_once(
    drawn: list[tuple[int, int, float, int]], ranks: int, budget: int, whole_groups: bool
) -> None:
    samples = [sample(index, p, t, w, teacher) for index, (p, t, w, teacher) in enumerate(drawn)]
    plans = plan_mini_batch(samples, ranks, Packing(budget, tokens_of, whole_groups))
    met = sorted(item.index for plan in plans for micro in plan.micro_batches for item in micro)
    assert met == [item.index for item in samples if loss_mask(item).any()]
    assert len({len(plan.micro_batches) for plan in plans}) == 1
    for plan in plans:
        assert plan.denominators == (tokens_of(samples),) * len(plan.micro_batches)
        for micro in plan.micro_batches:
            alone = len({item.group for item in micro} if whole_groups else micro) <= 1
            assert alone or max(item.cost for item in micro) * len(micro) <= budget


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
    shares = balance([(sample(index, 1, length),) for index, length in enumerate(lengths)], 2)
    loads = [sum(item.cost for (item,) in share) for share in shares]
    assert abs(loads[0] - loads[1]) <= 10


def test_a_sequence_over_the_budget_travels_alone() -> None:
    share = [(sample(0, 50, 50),), (sample(1, 5, 5),), (sample(2, 5, 5),)]
    assert [len(micro) for micro in pack(share, 40)] == [1, 2]


def test_a_rollout_without_weight_carries_no_loss() -> None:
    assert loss_mask(sample(0, 4, 4, weight=0.0)).sum() == 0
    assert loss_mask(sample(0, 4, 4)).sum() == 4
