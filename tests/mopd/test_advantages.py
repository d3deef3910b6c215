"""Advantages are relative to the group, and an unknown reward is as if it had never been sampled."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mopd.advantages import group_relative, informative_groups, leave_one_out, overlong_penalty

REWARDS = st.lists(
    st.tuples(st.one_of(st.just(math.nan), st.floats(-5, 5)), st.integers(0, 3)), min_size=1, max_size=12
)


def plain(rewards: list[float], groups: list[int], normalize: bool) -> list[float]:
    advantages = []
    for reward, group in zip(rewards, groups, strict=True):
        siblings = [r for r, g in zip(rewards, groups, strict=True) if g == group and not math.isnan(r)]
        mean, std = 0.0, 1.0
        if len(siblings) > 1:
            mean, std = statistics.fmean(siblings), statistics.stdev(siblings) + 1e-6
        advantages.append(0.0 if math.isnan(reward) else (reward - mean) / (std if normalize else 1.0))
    return advantages


@settings(max_examples=60, deadline=None)
@given(rows=REWARDS, normalize=st.booleans())
def test_advantages_match_plain_arithmetic(rows: list[tuple[float, int]], normalize: bool) -> None:
    rewards, groups = [row[0] for row in rows], [row[1] for row in rows]
    ours = group_relative(torch.tensor(rewards, dtype=torch.float64), torch.tensor(groups), normalize_by_std=normalize)
    assert ours.tolist() == pytest.approx(plain(rewards, groups, normalize), rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("normalize", [True, False])
def test_a_group_of_one_has_its_reward_as_advantage(normalize: bool) -> None:
    advantages = group_relative(torch.tensor([0.7, 1.0, 0.0]), torch.tensor([5, 3, 3]), normalize_by_std=normalize)
    assert advantages[0].item() == pytest.approx(0.7, abs=1e-7)
    assert advantages[1].item() > 0 > advantages[2].item()


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("reward", [0.1, 1 / 3, 1.0])
def test_equal_rewards_have_advantage_exactly_zero(reward: float, normalize: bool) -> None:
    advantages = group_relative(torch.full((7,), reward), torch.zeros(7), normalize_by_std=normalize)
    assert advantages.tolist() == [0.0] * 7


def test_unknown_rewards_have_advantage_zero_and_do_not_touch_the_others() -> None:
    known = group_relative(torch.tensor([1.0, 0.0, 1.0]), torch.zeros(3), normalize_by_std=True)
    mixed = group_relative(
        torch.tensor([1.0, math.nan, 0.0, 1.0, math.nan]),
        torch.tensor([0, 0, 0, 0, 1]),
        normalize_by_std=True,
    )
    assert mixed[[0, 2, 3]].tolist() == known.tolist()
    assert mixed[[1, 4]].tolist() == [0.0, 0.0]


def test_order_and_kind_of_group_ids_do_not_matter() -> None:
    rewards = torch.tensor([1.0, 0.0, 0.0, 3.0])
    by_number = group_relative(rewards, torch.tensor([7, 2, 7, 2]), normalize_by_std=False)
    by_name = group_relative(rewards, ["b", "a", "b", "a"], normalize_by_std=False)
    assert by_number.tolist() == by_name.tolist() == [0.5, -1.5, -0.5, 1.5]


def test_an_empty_batch_has_no_advantages() -> None:
    assert group_relative(torch.zeros(0), torch.zeros(0), normalize_by_std=True).shape == (0,)


@pytest.mark.parametrize(
    ("rewards", "groups", "message"),
    [
        (torch.zeros(3), torch.zeros(2), r"\(3,\) and 2 group ids"),
        (torch.zeros(2, 2), torch.zeros(2), r"\(2, 2\)"),
        (torch.tensor([1.0, math.inf]), torch.zeros(2), "infinity"),
    ],
)
def test_bad_rewards_are_refused(rewards: torch.Tensor, groups: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        group_relative(rewards, groups, normalize_by_std=False)
    for function in (leave_one_out, informative_groups):
        with pytest.raises(ValueError, match=message):
            function(rewards, groups)


@settings(max_examples=60, deadline=None)
@given(rows=REWARDS)
def test_leave_one_out_subtracts_the_mean_of_the_others(rows: list[tuple[float, int]]) -> None:
    expected = []
    for index, (reward, group) in enumerate(rows):
        others = [r for i, (r, g) in enumerate(rows) if g == group and i != index and not math.isnan(r)]
        baseline = statistics.fmean(others) if others else 0.0
        expected.append(0.0 if math.isnan(reward) else reward - baseline)
    rewards, groups = [row[0] for row in rows], [row[1] for row in rows]
    ours = leave_one_out(torch.tensor(rewards, dtype=torch.float64), torch.tensor(groups))
    assert ours.tolist() == pytest.approx(expected, abs=1e-12)


def test_leave_one_out_of_equal_rewards_is_exactly_zero_and_of_one_its_reward() -> None:
    assert leave_one_out(torch.full((7,), 0.1), torch.zeros(7)).tolist() == [0.0] * 7
    assert leave_one_out(torch.tensor([0.5, math.nan]), torch.zeros(2)).tolist() == [0.5, 0.0]


@settings(max_examples=60, deadline=None)
@given(rows=REWARDS)
def test_informative_groups_are_those_whose_known_rewards_differ(rows: list[tuple[float, int]]) -> None:
    groups = [row[1] for row in rows]
    known = {group: {r for r, g in rows if g == group and not math.isnan(r)} for group in groups}
    rewards = torch.tensor([row[0] for row in rows], dtype=torch.float64)
    mask = informative_groups(rewards, torch.tensor(groups))
    assert mask.tolist() == [len(known[group]) > 1 for group in groups]
    advantages = group_relative(rewards, torch.tensor(groups), normalize_by_std=False)
    sizes = {group: sum(g == group and not math.isnan(r) for r, g in rows) for group in groups}
    silent = ~mask & torch.tensor([sizes[group] > 1 for group in groups])
    assert bool((advantages[silent] == 0).all())


def test_informative_groups_of_an_empty_batch() -> None:
    assert informative_groups(torch.zeros(0), []).tolist() == []
    assert informative_groups(torch.zeros(0), []).dtype == torch.bool


@pytest.mark.parametrize(
    ("length", "penalty"),
    [(0, 0.0), (79, 0.0), (80, 0.0), (81, -0.05), (90, -0.5), (99, -0.95), (100, -1.0), (101, -1.0), (500, -1.0)],
)
def test_overlong_penalty_falls_in_a_straight_line_over_the_buffer(length: int, penalty: float) -> None:
    assert overlong_penalty(length, max_length=100, buffer=20) == pytest.approx(penalty, abs=1e-15)


def test_overlong_penalty_over_the_whole_length() -> None:
    assert overlong_penalty(25, max_length=100, buffer=100) == -0.25


@pytest.mark.parametrize(("length", "max_length", "buffer"), [(5, 10, 0), (5, 10, 11), (-1, 10, 5), (5, 0, 0)])
def test_an_impossible_overlong_buffer_is_refused(length: int, max_length: int, buffer: int) -> None:
    with pytest.raises(ValueError, match=f"length={length}, max_length={max_length}, buffer={buffer}"):
        overlong_penalty(length, max_length, buffer)
