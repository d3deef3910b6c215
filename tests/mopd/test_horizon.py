"""Horizons say how many tokens; a growing one is monotone and reaches its maximum."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mopd.horizon import Constant, LinearStep, Ratio


def test_a_constant_horizon_is_its_maximum() -> None:
    assert [Constant(512)(updates) for updates in (0, 1, 10**6)] == [512] * 3


def test_a_linear_step_grows_by_its_increment_every_interval_and_stops_at_the_maximum() -> None:
    horizon = LinearStep(start=10, increment=4, interval=3, maximum=17)
    assert [horizon(updates) for updates in range(8)] == [10, 10, 10, 14, 14, 14, 17, 17]
    assert horizon(10**9) == 17


def test_a_linear_step_is_monotone_within_its_bounds() -> None:
    for start, increment, interval in ((1, 1, 1), (3, 7, 2), (50, 50, 5)):
        horizon = LinearStep(start, increment, interval, 50)
        lengths = [horizon(updates) for updates in range(120)]
        assert lengths == sorted(lengths)
        assert (lengths[0], lengths[-1]) == (start, 50)


@pytest.mark.parametrize(
    ("ratio", "maximum", "expected"), [(0.25, 100, 25), (0.1, 15360, 1536), (0.07, 100, 7), (0.1, 3, 1), (1, 9, 9)]
)
def test_a_ratio_is_rounded_up_and_the_same_at_every_update(ratio: float, maximum: int, expected: int) -> None:
    assert {Ratio(ratio, maximum)(updates) for updates in (0, 5, 500)} == {expected}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Constant(0), "maximum is 0"),
        (lambda: Constant(2.5), "maximum is 2.5"),
        (lambda: Constant(True), "maximum is True"),
        (lambda: LinearStep(0, 1, 1, 8), "start is 0"),
        (lambda: LinearStep(1, -1, 1, 8), "increment is -1"),
        (lambda: LinearStep(1, 1, 0, 8), "interval is 0"),
        (lambda: LinearStep(1, 1, 1, 0), "maximum is 0"),
        (lambda: LinearStep(9, 1, 1, 8), "start is 9, above the maximum 8"),
        (lambda: Ratio(0.0, 8), "ratio is 0.0"),
        (lambda: Ratio(1.01, 8), "ratio is 1.01"),
        (lambda: Ratio(float("nan"), 8), "ratio is nan"),
        (lambda: Ratio(0.5, 0), "maximum is 0"),
    ],
)
def test_impossible_horizons_are_refused(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_horizons_and_steps_import_no_torch() -> None:
    code = "import sys, mopd.horizon, mopd.steps; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
