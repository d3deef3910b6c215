"""pass@k agrees with drawing every subset; unknown outcomes are left out and counted."""

from __future__ import annotations

import math
import subprocess
import sys
from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest

from mopd.metrics import evaluate_groups, mean_at_k, pass_at_k


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
