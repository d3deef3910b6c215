"""A run that is killed at any instant goes on as if it had not been: losses, rewards, peers, weights, teacher."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from tests.e2e.conftest import ROOT, Run, train

pytestmark = pytest.mark.e2e

SMALL = (
    "data.train_batch_size=4",
    "actor_rollout_ref.actor.ppo_mini_batch_size=2",
    "data.max_response_length=24",
    "trainer.val_before_train=false",
    "trainer.test_freq=0",
    "actor_rollout_ref.rollout.val_kwargs.n=1",
    "trainer.save_freq=1",
)
KEPT = 2
"""Checkpoints that are kept."""
PLACES = (
    "step.after_opt",
    "ckpt.mid_shard",
    "ckpt.before_manifest",
    "ckpt.before_rename",
    "ckpt.before_purge",
    "ckpt.mid_purge",
)


def steps(output: Path, method: str, last: int, ranks: int, *more: str, **flags: str) -> Run:
    return train(output, method, *SMALL, *more, TOTAL_STEPS=str(last), N_GPUS_PER_NODE=str(ranks), **flags)


def reproducible(run: Run) -> list[dict[str, Any]]:
    """All metrics of every step that must not vary."""
    return [
        {name: value for name, value in record.items() if not name.startswith(("timing_s/", "perf/"))}
        for record in run.metrics
    ]


def state(run: Run, step: int, scratch: Path) -> dict[str, Any]:
    """Student, teacher and optimiser of a checkpoint."""
    dcp_to_torch_save(run.output / "checkpoints" / f"step_{step}" / "state", scratch)
    return dict(torch.load(scratch, weights_only=True))


def tensors(tree: Any, name: str = "") -> dict[str, torch.Tensor]:
    """Every tensor of a nested state by its path."""
    if isinstance(tree, torch.Tensor):
        return {name: tree}
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return {path: value for key, inner in items for path, value in tensors(inner, f"{name}/{key}").items()}


def assert_same(one: Run, other: Run, last: int, scratch: Path) -> None:
    assert reproducible(one) == reproducible(other)
    for step in range(1, last + 1):
        name = f"rollouts/{step}.jsonl"
        assert (one.output / name).read_bytes() == (other.output / name).read_bytes()
    ours, theirs = (tensors(state(run, last, scratch / f"{index}.pt")) for index, run in enumerate((one, other)))
    assert ours.keys() == theirs.keys()
    assert any("optimizer" in name for name in ours)
    different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert different == []


def killed_again_and_again(tmp_path: Path, method: str, ranks: int, places: tuple[str, ...]) -> None:
    """A run killed once at each of `places`, each time a step further, equals one that never was."""
    last = len(places) + 2
    whole = steps(tmp_path / "whole", method, last, ranks)
    assert whole.code == 0, whole.said
    output = tmp_path / "killed"
    for number, place in enumerate(places, start=2):
        rank = 0 if place.startswith("ckpt.") and place != "ckpt.mid_shard" else ranks - 1
        step = number - KEPT if place == "ckpt.mid_purge" else number  # of the checkpoint that is deleted
        killed = steps(output, method, last, ranks, MOPD_FAILPOINTS=f"{place}=kill;step={step};rank={rank}")
        assert killed.code == 1, f"{place}: {killed.said}"
        # Either the death is heard of first, or what another rank says of the lost connection.
        assert re.search(r"the worker process died|[Cc]onnection", killed.said), killed.said
    resumed = steps(output, method, last, ranks)
    assert resumed.code == 0, resumed.said
    assert "going on after step" in resumed.said
    assert resumed.manifest["resumed_after_step"] >= last - 2
    assert_same(whole, resumed, last, tmp_path)
    kept = {path.name for path in (output / "checkpoints").iterdir()}
    assert kept == {f"step_{last - 1}", f"step_{last}"}


def test_a_run_killed_while_it_trains_and_while_it_saves_equals_one_that_was_not(tmp_path: Path) -> None:
    killed_again_and_again(tmp_path, "mopd", 2, ("ckpt.mid_shard", "ckpt.before_rename"))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["mopd", "grpo"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_killed_at_every_failpoint_equals_one_that_was_not(tmp_path: Path, method: str, ranks: int) -> None:
    killed_again_and_again(tmp_path, method, ranks, PLACES)


def test_a_run_goes_on_with_another_number_of_ranks(tmp_path: Path) -> None:
    whole = steps(tmp_path / "whole", "mopd", 3, 1)
    for ranks, last in ((1, 2), (2, 3)):
        run = steps(tmp_path / "moved", "mopd", last, ranks)
        assert run.code == 0, run.said
    assert "trainer.n_gpus_per_node=1 there, 2 asked" in run.said
    for step in (1, 2):
        name = f"rollouts/{step}.jsonl"
        assert (run.output / name).read_bytes() == (whole.output / name).read_bytes()
    for name in ("actor/loss", "actor/grad_norm", "self_distillation/divergence"):
        assert run.metrics[2][name] == pytest.approx(whole.metrics[2][name], rel=1e-5)
    assert run.manifest["resumed_after_step"] == 2


@pytest.mark.slow
def test_a_run_goes_on_with_fewer_ranks_and_from_a_named_checkpoint(tmp_path: Path) -> None:
    first = steps(tmp_path / "first", "mopd", 2, 2)
    named = tmp_path / "first" / "checkpoints" / "step_1"
    mode = f"trainer.resume_mode={named.relative_to(tmp_path)}"
    elsewhere = train(tmp_path / "elsewhere", "mopd", *SMALL, mode, TOTAL_STEPS="2", N_GPUS_PER_NODE="1")
    assert elsewhere.code == 0, elsewhere.said
    [record] = elsewhere.metrics
    assert record["step"] == 2
    for name in ("actor/loss", "actor/grad_norm", "self_distillation/divergence"):
        assert record[name] == pytest.approx(first.metrics[1][name], rel=1e-5)
    again = train(tmp_path / "elsewhere", "mopd", *SMALL, mode, TOTAL_STEPS="2", N_GPUS_PER_NODE="1")
    assert (again.code, "nothing to do" in again.said) == (0, True), again.said


def test_a_loss_that_is_no_number_on_one_rank_changes_no_weight_on_any(tmp_path: Path) -> None:
    whole_batch = "actor_rollout_ref.actor.ppo_mini_batch_size=4"
    bad = train(
        tmp_path / "run",
        "mopd",
        *SMALL,
        whole_batch,
        TOTAL_STEPS="3",
        N_GPUS_PER_NODE="2",
        MOPD_FAILPOINTS="step.loss=nan;rank=1;step=3",
    )
    assert bad.code == 0, bad.said
    assert [record["actor/skipped_steps"] for record in bad.metrics] == [0, 0, 1]
    assert bad.metrics[2]["actor/loss"] is None
    before, after = (tensors(state(bad, step, tmp_path / f"{step}.pt")) for step in (2, 3))
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    assert "optimiser steps were skipped because their gradient was not finite" in bad.said


@pytest.mark.slow
@pytest.mark.parametrize("what", ["nan", "inf"])
def test_a_run_whose_losses_are_never_finite_stops_and_leaves_what_it_was_trained_on(tmp_path: Path, what: str) -> None:
    run = train(
        tmp_path / "run",
        "mopd",
        *SMALL,
        "trainer.health.patience=2",
        TOTAL_STEPS="9",
        MOPD_FAILPOINTS=",".join(f"step.loss={what};step={step}" for step in range(3, 10)),
    )
    assert run.code == 3, run.said
    assert [record["actor/optimizer_steps"] for record in run.metrics] == [2, 2, 0, 0]
    assert f"{run.output / 'rollouts' / '4.jsonl'}" in run.said.replace("\n", "")
    assert run.lines("rollouts/4.jsonl")
    before, after = (tensors(state(run, step, tmp_path / f"{step}.pt")) for step in (3, 4))
    assert [name for name in before if not torch.equal(before[name], after[name])] == []


@pytest.mark.slow
def test_a_write_that_fails_on_one_rank_is_told_and_the_next_one_goes_well(tmp_path: Path) -> None:
    run = train(
        tmp_path / "run",
        "grpo",
        *SMALL,
        "trainer.on_save_error=warn",
        "trainer.deadline_s=300",
        TOTAL_STEPS="4",
        N_GPUS_PER_NODE="2",
        MOPD_FAILPOINTS="ckpt.async=raise;rank=1;step=2",
    )
    assert run.code == 0, run.said
    assert "training goes on" in run.said
    assert "rank 1: FailpointError" in run.said
    assert sorted(path.name for path in (run.output / "checkpoints").iterdir()) == ["step_3", "step_4"]


def on_a_small_disk(tmp_path: Path, option: str, *overrides: str) -> Run:
    """A run whose checkpoints go to a file system of its own, and what lies there when it has ended."""
    if subprocess.run(["unshare", "-Urm", "true"], check=False, capture_output=True).returncode:
        pytest.skip("this machine makes no user namespaces, in which a small disk could be mounted")
    disk, output = tmp_path / "disk", tmp_path / "run"
    disk.mkdir()
    train_it = shlex.join([sys.executable, "-m", "trainer.main", "--config-name", "grpo", *SMALL, *overrides])
    script = f"mount -t tmpfs -o {option} none {disk} && {train_it}; code=$?; ls -A {disk}; exit $code"
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OUTPUT_DIR": str(output),
        "CKPT_DIR": str(disk),
        "TOTAL_STEPS": "6",
    }
    done = subprocess.run(
        ["unshare", "-Urm", "bash", "-c", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    return Run(output, done.returncode, done.stderr + done.stdout)


@pytest.mark.parametrize("option", ["size=6m", pytest.param("nr_inodes=24", marks=pytest.mark.slow)])
def test_a_full_disk_costs_a_checkpoint_and_at_the_second_time_ends_the_run(tmp_path: Path, option: str) -> None:
    """There is room for one checkpoint and not for two."""
    run = on_a_small_disk(tmp_path, option, "trainer.on_save_error=warn")
    assert run.code == 1, run.said
    assert run.said.count("training goes on (trainer.on_save_error=warn)") == 1
    assert "No space left on device" in run.said
    assert run.said.splitlines()[-2:] == [".lock", "step_1"]
    assert 3 <= len(run.metrics) < 6


@pytest.mark.slow
def test_a_checkpoint_folder_that_goes_away_ends_the_run(tmp_path: Path) -> None:
    output = tmp_path / "run"
    process = background(output, TOTAL_STEPS="1000")
    until(output / "metrics.jsonl", 3, process)
    (output / "checkpoints").rename(tmp_path / "elsewhere")
    (output / "checkpoints").write_text("")
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 1, said
    assert "could not be written" in said
    assert gone(output, 180), processes(output)


def background(output: Path, *overrides: str, **flags: str) -> subprocess.Popen[str]:
    """A run that goes on while the test does something."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OUTPUT_DIR": str(output), **flags}
    command = [sys.executable, "-m", "trainer.main", "--config-name", "grpo", *SMALL, *overrides]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def until(path: Path, lines: int, process: subprocess.Popen[str]) -> None:
    """Waits for so many lines in a file."""
    deadline = time.monotonic() + 300
    while not path.exists() or path.read_text().count("\n") < lines:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "the run does not come on"
        time.sleep(0.05)


def processes(output: Path) -> dict[int, str]:
    """By number the processes that were started for the run in `output`, as their environment says; with commands."""
    mark, found = f"OUTPUT_DIR={output}\0".encode(), {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (folder / "environ").read_bytes():
                found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
        except OSError:
            continue
    return found


def gone(output: Path, seconds: float) -> bool:
    """Whether no process of the run is left, within so many seconds."""
    deadline = time.monotonic() + seconds
    while processes(output):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


ONE, EVERY = {}, {"SLURM_JOB_ID": "7"}
"""The environment where a signal goes to the launcher alone, and where it goes to every process of the job."""


@pytest.mark.parametrize(
    ("number", "slurm"),
    [
        (signal.SIGTERM, ONE),
        pytest.param(signal.SIGINT, ONE, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, EVERY, marks=pytest.mark.slow),
        pytest.param(signal.SIGUSR1, EVERY, marks=pytest.mark.slow),
    ],
)
def test_a_signal_ends_the_run_with_a_checkpoint_and_leaves_no_process(
    tmp_path: Path, number: signal.Signals, slurm: dict[str, str]
) -> None:
    output = tmp_path / "run"
    process = background(output, "trainer.save_freq=0", TOTAL_STEPS="1000", **slurm)
    until(output / "metrics.jsonl", 2, process)
    second = train(output, "grpo", *SMALL, TOTAL_STEPS="1000")
    assert (second.code, "another process trains in this folder" in second.said) == (2, True), second.said
    for one in processes(output) if slurm else [process.pid]:
        os.kill(one, number)
    os.kill(process.pid, signal.SIGTERM)  # changes nothing more
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 75, said
    assert number.name in said
    [kept] = (output / "checkpoints").iterdir()
    assert len((output / "metrics.jsonl").read_text().splitlines()) == int(kept.name.removeprefix("step_"))
    assert ("scontrol requeue 7" if slurm else "the same command with OUTPUT_DIR=") in said.replace("\n", " ")
    assert gone(output, 180), processes(output)


def test_ctrl_c_twice_ends_the_run_at_once(tmp_path: Path) -> None:
    output = tmp_path / "run"
    process = background(output, TOTAL_STEPS="1000")
    until(output / "metrics.jsonl", 1, process)
    os.kill(process.pid, signal.SIGINT)
    os.kill(process.pid, signal.SIGINT)
    time.sleep(0.3)
    if process.poll() is None:
        os.kill(process.pid, signal.SIGINT)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 130, said
    assert gone(output, 180), processes(output)


def test_a_run_that_was_killed_outright_leaves_no_process_and_goes_on(tmp_path: Path) -> None:
    output = tmp_path / "run"
    process = background(output, TOTAL_STEPS="1000")
    until(output / "metrics.jsonl", 3, process)
    process.kill()
    process.communicate()
    assert gone(output, 180), processes(output)
    done = len((output / "metrics.jsonl").read_text().splitlines())
    resumed = train(output, "grpo", *SMALL, TOTAL_STEPS=str(done + 1))
    assert resumed.code == 0, resumed.said
    assert [record["step"] for record in resumed.metrics] == list(range(1, done + 2))
