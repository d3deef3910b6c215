"""pass@k agrees with drawing every subset; unknown outcomes are left out and counted."""

from __future__ import annotations

import math
import subprocess
import sys
from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest

from mopd.metrics import best_at_k_bootstrap, evaluate_groups, maj_at_k, mean_at_k, pass_at_k


@pytest.mark.parametrize("n", range(1, 8))
def test_pass_at_k_is_the_share_of_subsets_with_a_success(n: int) -> None:
    for c in range(n + 1):
        for k in range(1, n + 1):
            draws = list(combinations([True] * c + [False] * (n - c), k))
            assert pass_at_k(n, c, k) == sum(any(draw) for draw in draws) / len(draws)


def test_pass_at_1_is_the_mean_and_pass_at_n_asks_for_any() -> None:
    assert pass_at_k(8, 3, 1) == mean_at_k([True] * 3 + [False] * 5) == 3 / 8
    assert [pass_at_k(8, c, 8) for c in (0, 1, 8)] == [0.0, 1.0, 1.0]


def test_pass_at_k_is_exact_where_floats_would_cancel() -> None:
    n, c, k = 10**6, 1, 3
    assert pass_at_k(n, c, k) == float(Fraction(c * k, n))
    assert pass_at_k(10_000, 5_000, 100) == pytest.approx(1.0)


@pytest.mark.parametrize(("n", "c", "k"), [(0, 0, 1), (8, -1, 1), (8, 9, 1), (8, 1, 0), (8, 1, 9), (-1, 0, 1)])
def test_impossible_counts_are_refused(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match=f"n={n}, c={c}, k={k}"):
        pass_at_k(n, c, k)


def test_mean_at_k_of_one_prompt_and_of_several() -> None:
    assert mean_at_k([True, False, True, True]) == 0.75
    assert mean_at_k([0.5, 1.0]) == 0.75
    assert mean_at_k([[True], [False, False, False, False]]) == 0.5  # prompts weigh the same, not samples
    assert mean_at_k(np.array([[1, 0], [1, 1]])) == 0.75


@pytest.mark.parametrize("successes", [[], [[]], [2], [-1.0, 1.0], [math.nan], [None, True]])
def test_mean_at_k_refuses_what_is_no_success(successes: list) -> None:
    with pytest.raises(ValueError, match="successes"):
        mean_at_k(successes)


def test_unknown_outcomes_are_left_out_and_counted() -> None:
    figures = evaluate_groups([[True, False, None], [False, False, False], [None, None, True]], 2)
    assert figures == {
        "prompts": 3.0,
        "unknown": 3.0,
        "short_prompts": 1.0,
        "mean@2": pytest.approx((0.5 + 0.0 + 1.0) / 3),
        "pass@2": pytest.approx((1.0 + 0.0) / 2),
    }


def test_without_unknowns_the_figures_are_the_plain_ones() -> None:
    groups = [[True, False, False, True], [False] * 4, [True] * 4]
    figures = evaluate_groups(groups, 4)
    assert figures["mean@4"] == mean_at_k(groups) == 0.5
    assert figures["pass@4"] == pytest.approx(2 / 3)
    assert figures["unknown"] == figures["short_prompts"] == 0.0


def test_figures_that_nothing_supports_are_absent() -> None:
    assert evaluate_groups([[None, None]], 1) == {"prompts": 1.0, "unknown": 2.0, "short_prompts": 1.0}
    assert evaluate_groups([], 1) == {"prompts": 0.0, "unknown": 0.0, "short_prompts": 0.0}
    with pytest.raises(ValueError, match="k is 0"):
        evaluate_groups([[True]], 0)


def test_metrics_import_no_torch() -> None:
    code = "import sys, mopd.metrics; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("predictions", "successes", "expected"),
    [
        (["4", "5", "4"], [True, False, True], 1.0),
        (["5", "4", "5"], [False, True, False], 0.0),
        (["4", "5"], [True, False], 1.0),  # a tie: the first seen
        (["5", "4", "4", "5"], [False, True, True, False], 0.0),
        ([None, None, "4"], [False, False, True], 1.0),  # no answer is no vote
        ([None, None], [False, False], 0.0),  # none answered
        (["4", "4", "5"], [None, None, True], 1.0),  # unknown outcomes have no vote
        (["4", None], [None, None], None),
        ([], [], None),
        (["x", "x"], [0.25, 1.0], 0.25),  # the first sample of the winner counts
        ([1, (2, 3), (2, 3)], [1, 0, 0], 0.0),
    ],
)
def test_maj_at_k_is_the_success_of_the_most_given_answer(
    predictions: list, successes: list, expected: float | None
) -> None:
    assert maj_at_k(predictions, successes) == expected


def test_maj_at_k_refuses_samples_that_do_not_pair_up() -> None:
    with pytest.raises(ValueError, match=r"zip\(\)"):
        maj_at_k(["4"], [True, False])


def test_bootstrapped_best_is_the_published_stream_of_draws() -> None:
    for scores, k in (([1.0] + [0.0] * 7, 8), ([0.1, 0.9, 0.5], 2), ([0.3], 4), ([0.0, 1.0], 1)):
        stream = np.random.RandomState(42)
        draws = [max(scores[i] for i in stream.choice(len(scores), size=k, replace=True)) for _ in range(1000)]
        assert best_at_k_bootstrap(scores, k) == pytest.approx(sum(draws) / 1000, abs=1e-12)


def test_bootstrapped_best_is_biased_low_and_leaves_the_global_generator_alone() -> None:
    before = np.random.get_state()[1].tolist()
    assert best_at_k_bootstrap([True] + [False] * 7, 8) == pytest.approx(1 - (7 / 8) ** 8, abs=0.04)
    assert pass_at_k(8, 1, 8) == 1.0
    assert np.random.get_state()[1].tolist() == before
    assert best_at_k_bootstrap([0.2, 0.7], 2, seed=1) != best_at_k_bootstrap([0.2, 0.7], 2, seed=2)
    for scores, k, draws in (([], 1, 1), ([1.0], 0, 1), ([1.0], 1, 0)):
        with pytest.raises(ValueError, match="each must be at least 1"):
            best_at_k_bootstrap(scores, k, draws=draws)


def test_majority_credit_and_bootstrap_stand_beside_mean_and_pass() -> None:
    successes = [[True, False, False], [False, None, None], [None, None, None]]
    figures = evaluate_groups(
        successes,
        2,
        predictions_by_prompt=[["1", "2", "2"], ["7", "8", "8"], ["9", "9", "9"]],
        rewards_by_prompt=[[1.0, 0.5, 0.0], [0.25, None, None], [None] * 3],
        bootstrap=True,
    )
    plain = evaluate_groups(successes, 2)
    assert {name: figures[name] for name in plain} == plain
    assert set(figures) - set(plain) == {"maj@2", "credit@2", "best@2"}
    assert figures["maj@2"] == 0.0
    assert figures["credit@2"] == (0.5 + 0.25) / 2
    assert figures["best@2"] == pytest.approx((best_at_k_bootstrap([1, 0, 0], 2) + 0) / 2)
    assert "maj@1" not in evaluate_groups([[None]], 1, predictions_by_prompt=[["1"]], bootstrap=True)
