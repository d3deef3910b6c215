"""A run ends early in order: signals, and a budget of time that counts from the start of the job."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path

import pytest

from trainer import stopping
from trainer.errors import StoppedError
from trainer.stopping import Stopper, how_to_go_on, seconds_left

HOUR = 3600.0
NOW = 1_000_000.0


class Clock:
    """A monotonic clock that goes as the test says."""

    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(stopping.time, "monotonic", found)
    return found


@pytest.mark.parametrize(
    ("budget_s", "environment", "left"),
    [
        (None, {}, None),
        (2 * HOUR, {}, 2 * HOUR),
        (2 * HOUR, {"SLURM_JOB_START_TIME": str(NOW - HOUR)}, HOUR),
        (2 * HOUR, {"SLURM_JOB_START_TIME": "soon"}, 2 * HOUR),
        (2 * HOUR, {"SLURM_JOB_START_TIME": ""}, 2 * HOUR),
        (None, {"SLURM_JOB_START_TIME": str(NOW - HOUR)}, None),
        (None, {"SLURM_JOB_END_TIME": str(NOW + HOUR)}, HOUR),
        (None, {"SLURM_JOB_END_TIME": "never"}, None),
        (2 * HOUR, {"SLURM_JOB_END_TIME": str(NOW + HOUR)}, HOUR),
        (0.5 * HOUR, {"SLURM_JOB_START_TIME": str(NOW - HOUR), "SLURM_JOB_END_TIME": str(NOW + HOUR)}, -0.5 * HOUR),
    ],
)
def test_the_budget_counts_from_the_start_of_the_job(
    budget_s: float | None, environment: Mapping[str, str], left: float | None
) -> None:
    assert seconds_left(budget_s, environment, NOW) == left


def test_no_step_is_begun_that_would_not_end_in_time(clock: Clock) -> None:
    stopper = Stopper(100.0, {})
    clock.now += 20  # loading
    stopper.begin()
    reasons = []
    for seconds in (10, 20, 10, 10):
        clock.now += seconds
        reasons.append(stopper.reason())
    # 30 s are left after the last one, and the longest step may take 20 s and half as much again.
    assert reasons == [None, None, None, None]
    clock.now += 1
    assert stopper.reason() == "the time budget does not hold another step"


def test_the_time_that_a_checkpoint_takes_is_left_for_it(clock: Clock) -> None:
    stopper = Stopper(100.0, {})
    stopper.begin()
    clock.now += 20
    assert stopper.reason(saving_s=50.0) is None
    assert stopper.reason(saving_s=51.0) is not None


def test_a_clock_that_is_set_moves_no_deadline(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    stopper = Stopper(100.0, {})
    stopper.begin()
    monkeypatch.setattr(stopping.time, "time", lambda: NOW + 10**6)
    clock.now += 1
    assert stopper.reason() is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_is_taken_and_ends_the_run_after_the_step(number: signal.Signals) -> None:
    former = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    stopper = Stopper(None, {})
    with stopper.listening():
        stopper.begin()
        assert stopper.reason() is None
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), signal.SIGTERM)  # a second one changes nothing
        assert stopper.reason() == number.name
    assert {one: signal.getsignal(one) for one in former} == former


def test_ctrl_c_a_second_time_ends_at_once_whatever_was_asked_before() -> None:
    stopper = Stopper(None, {})
    with stopper.listening():
        stopper.begin()
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert stopper.reason() == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN  # nothing interrupts the cleaning up


def test_a_signal_before_the_first_step_trains_nothing() -> None:
    stopper = Stopper(None, {})
    with stopper.listening():
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(StoppedError, match=r"SIGTERM came before the first step"):
            stopper.begin()


def test_signals_are_taken_back_from_who_took_them() -> None:
    stopper = Stopper(None, {})
    with stopper.listening():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        stopper.listen()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stopper.asked == "SIGTERM"


def test_the_way_to_go_on_is_told() -> None:
    output = Path("outputs/run")
    assert how_to_go_on(output, {"SLURM_JOB_ID": "77"}) == "scontrol requeue 77"
    assert how_to_go_on(output, {}) == "the same command with OUTPUT_DIR=outputs/run"
