"""Failpoints: nothing without the variable, exactly the moment that was asked for with it; typing errors are told."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from trainer import failpoints
from trainer.failpoints import VARIABLE, FailpointError

Patch = pytest.MonkeyPatch


def test_without_the_variable_nothing_happens(monkeypatch: Patch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    for place in failpoints.PLACES:
        failpoints.hit(place, step=1, rank=0)
        assert failpoints.factor(place, step=1, rank=0) == 1.0


def test_only_the_moment_that_was_asked_for_fails(monkeypatch: Patch) -> None:
    monkeypatch.setenv(VARIABLE, "ckpt.async=raise;rank=1;step=3,sync.mid=raise")
    failpoints.hit("ckpt.async", step=3, rank=0)
    failpoints.hit("ckpt.async", step=2, rank=1)
    failpoints.hit("ckpt.mid_shard", step=3, rank=1)
    with pytest.raises(FailpointError, match=r"ckpt.async \(step 3, rank 1\)"):
        failpoints.hit("ckpt.async", step=3, rank=1)
    with pytest.raises(FailpointError):
        failpoints.hit("sync.mid")


def test_numbers_that_are_not_finite_come_only_where_they_are_asked_for(monkeypatch: Patch) -> None:
    monkeypatch.setenv(VARIABLE, "step.loss=nan;step=2,step.loss=inf;step=3")
    assert failpoints.factor("step.loss", step=1, rank=0) == 1.0
    assert math.isnan(failpoints.factor("step.loss", step=2, rank=0))
    assert math.isinf(failpoints.factor("step.loss", step=3, rank=0))
    failpoints.hit("step.loss", step=2, rank=0)


@pytest.mark.parametrize(
    "text", ["nowhere=kill", "ckpt.async", "ckpt.async=explode", "ckpt.async=kill;step=x", "ckpt.async=kill;node=1"]
)
def test_what_names_no_place_action_or_condition_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=VARIABLE):
        failpoints.parse(text)


def test_a_process_that_is_to_be_killed_is_killed_outright() -> None:
    environment = {**os.environ, VARIABLE: "sync.mid=kill", "PYTHONPATH": str(Path(__file__).parents[2])}
    code = "import atexit; atexit.register(print, 'left'); from trainer import failpoints; failpoints.hit('sync.mid')"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "")
