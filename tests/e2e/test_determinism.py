"""The same seed gives the same run, bit for bit; another seed another one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Run

pytestmark = pytest.mark.e2e


def what_must_not_vary(run: Run) -> list[dict[str, Any]]:
    """Every metric of every step but times and speeds."""
    return [
        {name: value for name, value in record.items() if not name.startswith(("timing_s/", "perf/"))}
        for record in run.metrics
    ]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_same_seed_gives_the_same_run_and_another_seed_another(
    mopd_run: Run, tmp_path: Path, trained: Callable[..., Run]
) -> None:
    again = trained(tmp_path / "again", "mopd", TOTAL_STEPS="3")
    assert again.code == 0, again.said
    assert what_must_not_vary(again) == what_must_not_vary(mopd_run)
    for step in (1, 2, 3):
        name = f"rollouts/{step}.jsonl"
        assert digest(again.output / name) == digest(mopd_run.output / name)
    weights = "checkpoints/step_3/hf/model.safetensors"
    assert digest(again.output / weights) == digest(mopd_run.output / weights)
    other = trained(tmp_path / "other", "mopd", "trainer.val_before_train=false", TOTAL_STEPS="1", SEED="7")
    assert other.code == 0, other.said
    assert digest(other.output / "rollouts" / "1.jsonl") != digest(mopd_run.output / "rollouts" / "1.jsonl")


def test_two_ranks_on_the_same_seed_sample_the_same_first_step(
    mopd_run: Run, tmp_path: Path, trained: Callable[..., Run]
) -> None:
    two = trained(tmp_path / "two", "mopd", "trainer.val_before_train=false", TOTAL_STEPS="1", N_GPUS_PER_NODE="2")
    assert two.code == 0, two.said
    assert two.manifest["actors"]["ranks"] == 2
    outputs = [[line["output"] for line in run.lines("rollouts/1.jsonl")] for run in (two, mopd_run)]
    assert outputs[0] == outputs[1]
    ours, theirs = two.metrics[0], mopd_run.metrics[1]
    assert ours["actor/loss"] == pytest.approx(theirs["actor/loss"], rel=1e-4)
    assert ours["actor/grad_norm"] == pytest.approx(theirs["actor/grad_norm"], rel=1e-4)
    gauges = [{name: value for name, value in one.items() if name.startswith("gauges/")} for one in (ours, theirs)]
    assert gauges[0] == pytest.approx(gauges[1], rel=1e-4, abs=1e-6)
