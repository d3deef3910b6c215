"""The overlapped loop on real processes: the same results however it is interrupted, as good as the other loop's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import ROOT, Run, train
from tests.e2e.test_resume import SMALL, assert_same, background, gone, processes, until

pytestmark = pytest.mark.e2e

OVERLAPPED = (*SMALL, "trainer.overlap=true", "trainer.save_freq=2")


def overlapped(output: Path, method: str, last: int, **flags: str) -> Run:
    return train(output, method, *OVERLAPPED, TOTAL_STEPS=str(last), **flags)


def versions(run: Run) -> list[set[int]]:
    """By step, the policy versions of its rollouts."""
    return [
        {line["policy_version"] for line in run.lines(f"rollouts/{record['step']}.jsonl")} for record in run.metrics
    ]


def test_a_run_killed_between_its_checkpoints_equals_one_that_was_not(tmp_path: Path) -> None:
    whole = overlapped(tmp_path / "whole", "mopd", 6)
    assert whole.code == 0, whole.said
    assert versions(whole) == [{0}, {0}, {1}, {2}, {3}, {4}]
    assert [record["rollout/staleness_mean"] for record in whole.metrics] == [0, 1, 1, 1, 1, 1]
    # The checkpoint of step 2 is whole, that of step 4 perhaps, and the sampler draws for step 6 while the actor dies.
    killed = overlapped(tmp_path / "killed", "mopd", 6, MOPD_FAILPOINTS="step.after_opt=kill;step=5")
    assert killed.code == 1, killed.said
    assert "the worker process died" in killed.said
    resumed = overlapped(tmp_path / "killed", "mopd", 6)
    assert resumed.code == 0, resumed.said
    assert resumed.manifest["resumed_after_step"] in (2, 4)
    assert_same(whole, resumed, 6, tmp_path)


@pytest.mark.slow
def test_a_run_that_a_signal_or_its_last_step_ended_goes_on_as_if_it_had_not(tmp_path: Path) -> None:
    """At whichever step that was: the checkpoint holds what was drawn ahead."""
    output = tmp_path / "stopped"
    process = background(output, *OVERLAPPED, TOTAL_STEPS="1000")
    until(output / "metrics.jsonl", 3, process)
    os.kill(process.pid, signal.SIGTERM)
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 75, said
    assert gone(output, 180), processes(output)
    done = len((output / "metrics.jsonl").read_text().splitlines())
    for last in (done + 1, done + 2, done + 3):  # of three steps in a row one at least is at no checkpoint's
        resumed = overlapped(output, "grpo", last)
        assert resumed.code == 0, resumed.said
    whole = overlapped(tmp_path / "whole", "grpo", done + 3)
    assert whole.code == 0, whole.said
    unvalidated = [
        {name: value for name, value in record.items() if not name.startswith(("val-", "timing_s/", "perf/"))}
        for record in resumed.metrics
    ]
    expected = [
        {name: value for name, value in record.items() if name in told}
        for record, told in zip(whole.metrics, unvalidated, strict=True)
    ]
    assert unvalidated == expected
    for step in range(1, done + 4):
        name = f"rollouts/{step}.jsonl"
        assert (resumed.output / name).read_bytes() == (whole.output / name).read_bytes()
    weights = f"checkpoints/step_{done + 3}/hf/model.safetensors"
    assert (resumed.output / weights).read_bytes() == (whole.output / weights).read_bytes()


@pytest.mark.slow
def test_a_run_outlives_its_sampler(tmp_path: Path) -> None:
    """What another one draws in the place of the first is by the newest weights there are."""
    output = tmp_path / "run"
    process = background(output, *OVERLAPPED, TOTAL_STEPS="12")
    until(output / "metrics.jsonl", 3, process)
    [sampler] = [pid for pid, command in processes(output).items() if "ray::SamplerWorker" in command]
    os.kill(sampler, signal.SIGKILL)
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 0, said
    assert "the sampler died; starting another (1 of 3)" in said
    ended = Run(output, 0, said)
    assert [record["step"] for record in ended.metrics] == list(range(1, 13))
    behind = [step - 1 - version for step, [version] in enumerate(versions(ended), start=1)]
    assert behind.count(1) >= 10
    assert set(behind) == {0, 1}


@pytest.mark.slow
def test_a_failure_of_the_actor_while_the_sampler_draws_is_told(tmp_path: Path) -> None:
    failed = overlapped(tmp_path / "run", "grpo", 4, MOPD_FAILPOINTS="step.after_opt=raise;step=2")
    assert failed.code == 1, failed.said
    assert "step 2, learn: updating the student: FailpointError" in failed.said
    failed = overlapped(tmp_path / "run", "grpo", 4, MOPD_FAILPOINTS="sync.mid=kill;step=3")
    assert failed.code == 1, failed.said
    assert "publish" in failed.said
    assert gone(tmp_path / "run", 60), processes(tmp_path / "run")


@pytest.mark.slow
def test_it_becomes_as_good_as_the_synchronous_loop(tmp_path: Path) -> None:
    """With half the steps and one seed; by default the command has three seeds and all steps."""
    command = [sys.executable, "benchmarks/overlap.py", "--seeds=42", "--steps=15", "--json", "trainer.test_freq=0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["quality_overlapped"] > 40, "27 before"
    assert figures["gap_points"] < 7
