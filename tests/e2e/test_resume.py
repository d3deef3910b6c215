"""A run that is killed at any instant goes on as if it had not been: losses, rewards, peers, weights, teacher."""

from __future__ import annotations

import os
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
PLACES = (
    "step.after_opt",
    "ckpt.mid_shard",
    "ckpt.before_manifest",
    "ckpt.before_rename",
    "ckpt.before_purge",
    "ckpt.mid_purge",
)


def steps(output: Path, method: str, last: int, ranks: int, **flags: str) -> Run:
    return train(output, method, *SMALL, TOTAL_STEPS=str(last), N_GPUS_PER_NODE=str(ranks), **flags)


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
        killed = steps(output, method, last, ranks, MOPD_FAILPOINTS=f"{place}=kill;step={number};rank={rank}")
        if place in ("ckpt.mid_purge",):
            killed = steps(output, method, last, ranks, MOPD_FAILPOINTS=f"{place}=kill;rank={rank}")
        assert killed.code == 1, f"{place}: {killed.said}"
    resumed = steps(output, method, last, ranks)
    assert resumed.code == 0, resumed.said
    assert "going on after step" in resumed.said
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
    for name in ("actor/loss", "actor/grad_norm", "self_distillation/divergence"):
        assert run.metrics[2][name] == pytest.approx(whole.metrics[2][name], rel=1e-4)
    assert run.metrics[:2] != []
    assert run.manifest["resumed_after_step"] == 2


def background(output: Path, *overrides: str, **flags: str) -> subprocess.Popen[str]:
    """A run that goes on while the test does something."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OUTPUT_DIR": str(output), **flags}
    command = [sys.executable, "-m", "trainer.main", "--config-name", "grpo", *SMALL, *overrides]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def until(path: Path, lines: int, process: subprocess.Popen[str]) -> None:
    """Waits for so many lines in a file."""
    deadline = time.monotonic() + 180
    while not path.exists() or path.read_text().count("\n") < lines:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "the run does not come on"
        time.sleep(0.05)


def alive(output: Path) -> list[str]:
    """Commands of processes that were started for the run in `output`, by what their environment says."""
    mark, found = f"OUTPUT_DIR={output}\0".encode(), []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found


def gone(output: Path, seconds: float) -> bool:
    """Whether no process of the run is left, within so many seconds."""
    deadline = time.monotonic() + seconds
    while alive(output):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_ends_the_run_with_a_checkpoint_and_leaves_no_process(tmp_path: Path, number: signal.Signals) -> None:
    output = tmp_path / "run"
    process = background(output, "trainer.save_freq=0", TOTAL_STEPS="1000")
    until(output / "metrics.jsonl", 2, process)
    os.kill(process.pid, number)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 75, said
    assert number.name in said
    [kept] = (output / "checkpoints").iterdir()
    assert len((output / "metrics.jsonl").read_text().splitlines()) == int(kept.name.removeprefix("step_"))
    assert "OUTPUT_DIR" in said or "requeue" in said
    assert gone(output, 20), alive(output)


def test_ctrl_c_twice_ends_the_run_at_once(tmp_path: Path) -> None:
    output = tmp_path / "run"
    process = background(output, TOTAL_STEPS="1000")
    until(output / "metrics.jsonl", 1, process)
    os.kill(process.pid, signal.SIGINT)
    os.kill(process.pid, signal.SIGINT)
    time.sleep(0.3)
    if process.poll() is None:
        os.kill(process.pid, signal.SIGINT)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 130, said
    assert gone(output, 20), alive(output)


def test_a_run_that_was_killed_outright_leaves_no_process_and_goes_on(tmp_path: Path) -> None:
    output = tmp_path / "run"
    process = background(output, TOTAL_STEPS="1000")
    until(output / "metrics.jsonl", 3, process)
    process.kill()
    process.communicate()
    assert gone(output, 60), alive(output)
    done = len((output / "metrics.jsonl").read_text().splitlines())
    resumed = train(output, "grpo", *SMALL, TOTAL_STEPS=str(done + 1))
    assert resumed.code == 0, resumed.said
    assert [record["step"] for record in resumed.metrics] == list(range(1, done + 2))


def test_two_runs_never_write_into_the_same_folder(tmp_path: Path) -> None:
    output = tmp_path / "run"
    process = background(output, TOTAL_STEPS="1000")
    until(output / "metrics.jsonl", 1, process)
    second = train(output, "grpo", *SMALL, TOTAL_STEPS="1000")
    os.kill(process.pid, signal.SIGTERM)
    process.communicate(timeout=120)
    assert second.code == 2
    assert "another process trains in this folder" in second.said
