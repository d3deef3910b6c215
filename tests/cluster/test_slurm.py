"""The job file on a real Slurm: both nodes train, a signal puts the job back into the queue, and nothing is lost."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.machines import ROOT, until
from tests.cluster.slurm import CPUS, Slurm, slurm_of_two_nodes
from trainer import network

pytestmark = [pytest.mark.cluster, pytest.mark.e2e]

STEPS = 12
SMALL = ("data.train_batch_size=8", "trainer.save_freq=1", "trainer.test_freq=0", "trainer.val_before_train=false")
SAME = ("critic/rewards/mean", "actor/loss", "actor/grad_norm", "response_length/mean")
TRAIN = (sys.executable, "-P", "-m", "trainer.main", "--config-name", "mopd", *SMALL)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """Two nodes."""
    with slurm_of_two_nodes(tmp_path_factory.mktemp("slurm")) as found:
        yield found


def outward() -> str:
    """The interface that both nodes share, which is not the loopback one."""
    found = [name for name, address in network.addresses().items() if not network.is_loopback(address)]
    assert found, "this machine has no interface but the loopback one"
    return found[0]


def submit(slurm: Slurm, *command: str, options: tuple[str, ...] = ("--nodes=2",), **flags: str) -> str:
    """Hands the job file in; the job's number."""
    own = {"MOPD_HOME": str(ROOT), "MOPD_PYTHON": sys.executable, "MOPD_CPUS": str(CPUS), "MOPD_INTERFACE": outward()}
    file = str(ROOT / "experiments/slurm/mopd.sbatch")
    words = ("sbatch", "--parsable", f"--output={slurm.folder}/job-%j.out", *options, file, *command)
    return slurm.call(*words, **{**own, **flags})


def said(slurm: Slurm, job: str) -> str:
    """What a job said so far."""
    file = slurm.folder / f"job-{job}.out"
    return file.read_text() if file.is_file() else ""


def metrics(output: Path) -> list[dict[str, Any]]:
    """The records of a run so far, but for a line that is being written."""
    file = output / "metrics.jsonl"
    lines = file.read_text().split("\n")[:-1] if file.is_file() else []
    return [json.loads(line) for line in lines]


def test_a_run_on_both_nodes_is_preempted_requeued_and_ends_as_if_nothing_had_been(
    slurm: Slurm, tmp_path: Path
) -> None:
    output, alone = tmp_path / "run", tmp_path / "alone"
    job = submit(slurm, *TRAIN, OUTPUT_DIR=str(output), TOTAL_STEPS=str(STEPS))

    def trains() -> bool:
        assert slurm.facts(job)["JobState"] in ("PENDING", "RUNNING", "CONFIGURING"), said(slurm, job)
        return len(metrics(output)) >= 1

    until(trains, "the first step", 600)
    # What Slurm does before it preempts a job with --signal=B:USR1@300: the signal, to the batch script alone.
    slurm.call("scancel", "--batch", "--signal=USR1", job)
    until(lambda: slurm.facts(job)["Restarts"] == "1", "the job is put back into the queue", 300)
    done = len(metrics(output))
    assert 1 <= done < STEPS, said(slurm, job)
    facts = slurm.ended(job)
    told = said(slurm, job)
    assert facts["JobState"] == "COMPLETED", told
    assert "Ray at " in told
    assert "on 2 nodes" in told
    assert "back into the queue" in told
    assert f"going on after step {done}" in told
    assert json.loads((output / "manifest.json").read_text())["actors"]["nodes"] == 2
    environment = {**slurm.environment, "PYTHONPATH": str(ROOT), "OUTPUT_DIR": str(alone), "N_GPUS_PER_NODE": "2"}
    subprocess.run(TRAIN, env={**environment, "TOTAL_STEPS": str(STEPS)}, cwd=tmp_path, check=True, timeout=900)
    one, other = ([[record[name] for name in SAME] for record in metrics(folder)] for folder in (output, alone))
    assert one == other, "bit for bit the run of two ranks on one machine that nothing happened to"


def test_the_node_at_fault_is_named(slurm: Slurm) -> None:
    job = submit(slurm, *TRAIN, MOPD_INTERFACE="nowhere0")
    assert slurm.ended(job)["ExitCode"] == "2:0", said(slurm, job)
    assert "n1: there is no interface nowhere0" in said(slurm, job)
    job = submit(slurm, *TRAIN, MOPD_PYTHON="/nowhere/python")
    assert slurm.ended(job)["ExitCode"] == "2:0", said(slurm, job)
    assert ": there is no /nowhere/python; name one by MOPD_PYTHON" in said(slurm, job)


def test_an_array_is_a_job_for_every_seed(slurm: Slurm) -> None:
    tells = ("bash", "-c", 'echo "seed $SEED into $OUTPUT_DIR on $NNODES node"')
    job = submit(slurm, *tells, options=("--array=3,5",), OUTPUT_DIR="runs")
    files = [slurm.folder / f"job-{number}.out" for number in (job, str(int(job) + 1))]

    def both() -> str:
        return "".join(file.read_text() for file in files if file.is_file())

    until(lambda: all(f"seed {seed} into runs/seed{seed} on 1 node" in both() for seed in (3, 5)), "both jobs", 120)


def test_the_exit_code_of_the_run_is_that_of_the_job(slurm: Slurm) -> None:
    job = submit(slurm, "bash", "-c", "exit 3", options=())
    assert slurm.ended(job)["ExitCode"] == "3:0"
    job = submit(slurm, *TRAIN, "data.seed=none", options=())
    assert slurm.ended(job)["ExitCode"] == "2:0", said(slurm, job)
