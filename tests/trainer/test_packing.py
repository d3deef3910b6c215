"""Micro-batches: every useful sequence once, within budget, the same number on every rank."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mopd.types import TokenStreams
from trainer.packing import Sample, balance, loss_mask, pack, plan_mini_batch


def sample(index: int, prompt: int, response: int, weight: float = 1.0, teacher: int | None = None) -> Sample:
    ones = np.ones(response, dtype=np.float32)
    return Sample(
        index,
        np.zeros(prompt, dtype=np.int32),
        np.zeros(response, dtype=np.int32),
        -ones,
        None if teacher is None else np.zeros(teacher, dtype=np.int32),
        TokenStreams(ones, ones * weight, ones),
    )


shapes = st.lists(
    st.tuples(st.integers(1, 30), st.integers(0, 40), st.sampled_from([0.0, 1.0]), st.integers(1, 60)), max_size=24
)


@given(shapes, st.integers(1, 4), st.integers(1, 200), st.booleans())
def test_every_useful_sequence_is_forwarded_once(
    drawn: list[tuple[int, int, float, int]], ranks: int, budget: int, distils: bool
) -> None:
    samples = [sample(index, p, t, w, teacher) for index, (p, t, w, teacher) in enumerate(drawn)]
    plans = plan_mini_batch(samples, ranks, budget, distils)
    met = sorted(item.index for plan in plans for micro in plan.micro_batches for item in micro)
    assert met == [item.index for item in samples if loss_mask(item, distils).any()]
    assert len({len(plan.micro_batches) for plan in plans}) == 1
    for plan in plans:
        assert plan.tokens == sum(loss_mask(item, distils).sum() for item in samples)
        for micro in plan.micro_batches:
            assert len(micro) <= 1 or max(item.cost for item in micro) * len(micro) <= budget


def test_shares_are_balanced_by_tokens() -> None:
    lengths = [100, 90, 50, 40, 30, 20, 10, 10]
    shares = balance([sample(index, 1, length) for index, length in enumerate(lengths)], 2)
    loads = [sum(item.cost for item in share) for share in shares]
    assert abs(loads[0] - loads[1]) <= 10


def test_a_sequence_over_the_budget_travels_alone() -> None:
    assert [len(micro) for micro in pack([sample(0, 50, 50), sample(1, 5, 5), sample(2, 5, 5)], 40)] == [1, 2]


def test_a_policy_gradient_trains_on_rollouts_without_a_view() -> None:
    unusable = sample(0, 4, 4, weight=0.0)
    assert loss_mask(unusable, distils=False).sum() == 4
    assert loss_mask(unusable, distils=True).sum() == 0
