"""Credit: who teaches the student, with which advantage; unknown outcomes are credit to nobody."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest

from mopd.credit import CreditSettings, group_ids_N, rewards_N, shaped_rewards_N, token_streams
from mopd.methods import METHODS, Method, Signal, method_of
from mopd.policy_losses import POLICY_LOSSES
from mopd.types import FloatArray, Group, Outcome, Rollout, Segment, TokenStreams, View
from tests.mopd.groups import PROMPT, RIGHT, UNKNOWN, WRONG, group_of

HALF = Outcome(0.5, False, "wrong")
LENGTHS = [3, 1, 2, 4]
MIXED = group_of([RIGHT, WRONG, UNKNOWN, HALF], uid="mixed", tokens=LENGTHS)
EVEN = group_of([WRONG, UNKNOWN, WRONG], uid="even", tokens=[2, 2, 2])
STEP = (MIXED, EVEN)
ALONE = group_of([RIGHT, UNKNOWN], uid="alone", tokens=[1, 1])


def views_of(usable: Sequence[bool]) -> list[View]:
    return [View((), flag) for flag in usable]


def streams(
    loss_mode: str, groups: Sequence[Group] = STEP, settings: CreditSettings | None = None, *, full: bool = True
) -> list[TokenStreams]:
    method = method_of(loss_mode, full_logit_distillation=full)
    count = sum(len(group.rollouts) for group in groups)
    views = views_of([index % 2 == 0 for index in range(count)]) if method.distils else None
    return token_streams(method, groups, views, settings or CreditSettings())


def weighed(found: Sequence[TokenStreams]) -> list[bool]:
    return [bool(one.weights.all()) for one in found]


def advantages(found: Sequence[TokenStreams]) -> list[float]:
    """The one advantage of each rollout."""
    assert all(len(set(one.advantages.tolist())) == 1 for one in found)
    return [float(one.advantages[0]) for one in found]


def test_every_policy_method_has_a_policy_loss_of_its_name_and_every_loss_a_method() -> None:
    named = {name for name, method in METHODS.items() if method.signal == "policy"}
    assert named == POLICY_LOSSES.keys()
    assert all(METHODS[name].loss == name for name in METHODS)


def test_methods_and_views_are_those_that_are_typed() -> None:
    signals = {method.signal for method in METHODS.values()} | {"sampled_token"}
    assert signals == set(get_args(Signal))


@pytest.mark.parametrize("name", METHODS)
def test_without_full_logits_only_distillation_becomes_another_method(name: str) -> None:
    assert method_of(name, full_logit_distillation=True) == METHODS[name]
    wanted = Method("sampled_token", "sdpo") if name == "sdpo" else METHODS[name]
    assert method_of(name, full_logit_distillation=False) == wanted


def test_a_method_asks_for_what_it_needs() -> None:
    assert [name for name, method in METHODS.items() if method.distils] == ["sdpo"]
    assert [name for name, method in METHODS.items() if method.has_reference] == ["dpo"]
    assert [name for name, method in METHODS.items() if method.pairs] == ["dpo", "simpo"]


@pytest.mark.parametrize("name", METHODS)
def test_every_array_is_as_long_as_the_response_and_finite(name: str) -> None:
    for one, length in zip(streams(name), [*LENGTHS, 2, 2, 2], strict=True):
        for array in (one.mask, one.weights, one.advantages):
            assert array.shape == (length,)
            assert array.dtype == np.float32
            assert np.isfinite(array).all()
        assert (one.mask == 1).all()
        assert set(one.weights.tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("full", [True, False])
def test_distillation_learns_where_the_view_is_usable_whatever_the_outcome(full: bool) -> None:
    assert weighed(streams("sdpo", full=full)) == [True, False, True, False, True, False, True]


def test_distillation_without_views_learns_nothing() -> None:
    assert not any(weighed(token_streams(METHODS["sdpo"], STEP, None, CreditSettings())))


@pytest.mark.parametrize("name", POLICY_LOSSES)
def test_a_policy_learns_from_every_known_reward(name: str) -> None:
    assert weighed(streams(name)) == [True, True, False, True, True, False, True]


@pytest.mark.parametrize("name", ["dpo", "simpo"])
def test_preferences_learn_from_groups_with_different_rewards(name: str) -> None:
    assert weighed(streams(name)) == [True, True, False, True, False, False, False]
    assert not any(weighed(streams(name, [ALONE])))


@pytest.mark.parametrize("name", ["verified_sft", "sft"])
def test_likelihood_learns_from_successes_by_its_own_threshold(name: str) -> None:
    assert weighed(streams(name)) == [True, False, False, False, False, False, False]
    lenient = CreditSettings(success_threshold=0.5)
    assert weighed(streams(name, settings=lenient)) == [True, False, False, True, False, False, False]
    assert not weighed(streams(name, settings=CreditSettings(success_threshold=0.0)))[2], "an unknown is no success"


def test_advantages_are_rewards_above_the_mean_of_the_known_ones() -> None:
    assert advantages(streams("vanilla")) == pytest.approx([0.5, -0.5, 0.0, 0.0, 0.0, 0.0, 0.0])


def test_an_unknown_outcome_changes_nobodys_advantage() -> None:
    known = group_of([RIGHT, WRONG, HALF], tokens=[1, 1, 1])
    more = group_of([RIGHT, UNKNOWN, WRONG, HALF, UNKNOWN], tokens=[1] * 5)
    wanted, found = (advantages(streams("vanilla", [group])) for group in (known, more))
    assert [found[index] for index in (0, 2, 3)] == wanted
    assert found[1] == found[4] == 0.0


def test_rloo_is_grpo_without_std_times_n_over_n_minus_one() -> None:
    group = group_of([RIGHT, WRONG, WRONG, HALF, UNKNOWN], tokens=[1] * 5)
    grpo = advantages(streams("vanilla", [group]))
    rloo = advantages(streams("vanilla", [group], CreditSettings("rloo")))
    assert rloo == pytest.approx([4 / 3 * value for value in grpo], rel=1e-6)
    assert rloo[0] == pytest.approx(1 - (0 + 0 + 0.5) / 3)


def test_std_scales_the_advantages_of_a_group_alike_and_rloo_has_none() -> None:
    plain, scaled = (
        advantages(streams("vanilla", [MIXED], CreditSettings(normalize_by_std=flag))) for flag in (False, True)
    )
    std = np.std([1.0, 0.0, 0.5], ddof=1)
    assert scaled == pytest.approx([value / (std + 1e-6) for value in plain])
    rloo = [advantages(streams("vanilla", [MIXED], CreditSettings("rloo", flag))) for flag in (False, True)]
    assert rloo[0] == rloo[1]


def test_dynamic_sampling_leaves_out_groups_without_a_difference() -> None:
    assert weighed(streams("vanilla", settings=CreditSettings(dynamic_sampling=True)))[4:] == [False] * 3
    twins = group_of([RIGHT, RIGHT], tokens=[1, 1])
    assert not any(weighed(streams("vanilla", [twins], CreditSettings(dynamic_sampling=True))))
    assert all(weighed(streams("vanilla", [twins])))


def test_an_unknown_outcome_is_not_forwarded_with_dynamic_sampling_either() -> None:
    kept = weighed(streams("vanilla", settings=CreditSettings(dynamic_sampling=True)))
    assert kept[:4] == [True, True, False, True]


def test_dynamic_sampling_does_not_touch_distillation() -> None:
    assert weighed(streams("sdpo", settings=CreditSettings(dynamic_sampling=True))) == weighed(streams("sdpo"))


SHAPED = CreditSettings(overlong_buffer=4, max_response_length=6)


def test_overlong_shaping_takes_credit_from_long_responses_and_leaves_verdicts_alone() -> None:
    group = group_of([RIGHT, RIGHT, WRONG, UNKNOWN], tokens=[2, 4, 6, 6])
    np.testing.assert_allclose(shaped_rewards_N([group], SHAPED), [1.0, 0.5, -1.0, np.nan])
    np.testing.assert_allclose(rewards_N([group]), [1.0, 1.0, 0.0, np.nan])
    np.testing.assert_array_equal(shaped_rewards_N([group], CreditSettings()), rewards_N([group]))


def test_shaped_rewards_are_what_advantages_and_groups_compare() -> None:
    group = group_of([RIGHT, RIGHT, UNKNOWN], tokens=[2, 4, 6])
    assert advantages(streams("vanilla", [group], SHAPED)) == pytest.approx([0.25, -0.25, 0.0])
    assert advantages(streams("vanilla", [group])) == [0.0, 0.0, 0.0]
    dynamic = replace(SHAPED, dynamic_sampling=True)
    assert weighed(streams("vanilla", [group], dynamic)) == [True, True, False]
    assert weighed(streams("dpo", [group], SHAPED)) == [True, True, False]


def test_rewards_and_groups_are_listed_in_sampling_order() -> None:
    np.testing.assert_array_equal(rewards_N(STEP), np.asarray([1, 0, np.nan, 0.5, 0, np.nan, 0], dtype=np.float32))
    assert group_ids_N(STEP) == [0, 0, 0, 0, 1, 1, 1]


def test_two_occurrences_of_a_row_are_two_groups() -> None:
    first, second = group_of([RIGHT], uid="x", tokens=[1]), group_of([WRONG], uid="y", tokens=[1])
    assert first.prompt.prompt_id == second.prompt.prompt_id
    assert not any(weighed(streams("dpo", [first, second])))


def test_tokens_of_the_environment_are_masked() -> None:
    def segment(count: int, trained: bool) -> Segment:
        values: FloatArray = np.zeros(count, dtype=np.float32)
        return Segment(np.zeros(count, dtype=np.int32), values, trained=trained)

    rollout = Rollout("r", (segment(2, True), segment(3, False), segment(1, True)), "", "stop", 0)
    group = Group("u", PROMPT, np.zeros(1, dtype=np.int32), (rollout,), (RIGHT,))
    [found] = streams("vanilla", [group])
    assert found.mask.tolist() == [1, 1, 0, 0, 0, 1]
    assert found.weights.tolist() == [1] * 6
