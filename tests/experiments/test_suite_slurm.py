"""What is handed to Slurm: the same runs, a job for each."""

import os
import shlex
import subprocess
import tomllib

import pytest

from tests.experiments.suites import RICH_GRPO, ROOT, SUITES, started

SUBMIT = ROOT / "experiments/slurm/submit.sh"


@pytest.mark.parametrize("suite", SUITES)
def test_every_line_is_a_job_with_the_run_of_a_dry_run_in_it(call, tmp_path, suite):
    plain = call(suite, "--dry-run", "--quick", NNODES="2").stdout.splitlines()
    done = call(suite, "--slurm", "--dry-run", "--quick", NNODES="2")
    assert (done.returncode, done.stderr) == (0, "")
    jobs = [shlex.split(line) for line in done.stdout.splitlines()]
    assert [job[-1] for job in jobs] == [f"exec {line}" for line in plain]
    for job in jobs:
        assert job[0] == "sbatch"
        assert job[-4:-1] == [str(ROOT / "experiments/slurm/mopd.sbatch"), "bash", "-c"]
        assert "--nodes=2" in job
        assert f"--export=ALL,MOPD_HOME={ROOT}" in job
    names = [word for job in jobs for word in job if word.startswith("--job-name=")]
    assert len(set(names)) == len(jobs)
    assert started(tmp_path) == []


def test_what_slurm_refuses_is_told_and_the_others_are_handed_in(call, tmp_path):
    stub = tmp_path / "bin" / "sbatch"
    stub.parent.mkdir()
    stub.write_text('#!/bin/bash\necho "$1" >>"$HANDED"\n[[ $1 != *seed3 ]]\n')
    stub.chmod(0o755)
    flags = {"SEEDS": "2 3 4", "HANDED": str(tmp_path / "handed"), "PATH": f"{stub.parent}:{os.environ['PATH']}"}
    done = call(RICH_GRPO, "--slurm", "--quick", **flags)
    assert done.returncode == 1
    assert [line[-5:] for line in (tmp_path / "handed").read_text().splitlines()] == ["seed2", "seed3", "seed4"]
    assert started(tmp_path) == []


def submit(*words: str) -> subprocess.CompletedProcess[str]:
    """Calls the launcher."""
    return subprocess.run(["bash", str(SUBMIT), *words], capture_output=True, text=True, check=False)


def test_the_launcher_prints_what_it_would_hand_in():
    done = submit("--dry-run", "--seeds", "0-2", "--nodes=2", "--", "bash", "run_local_sdpo.sh", "a try", "data.seed=1")
    assert (done.returncode, done.stderr) == (0, "")
    job = str(ROOT / "experiments/slurm/mopd.sbatch")
    command = ["bash", "run_local_sdpo.sh", "a try", "data.seed=1"]
    export = f"--export=ALL,MOPD_HOME={ROOT}"
    assert shlex.split(done.stdout) == ["sbatch", "--array=0-2", "--nodes=2", export, job, *command]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "No command"),
        (("--nodes=2",), "No command"),
        (("--nodes", "2", "--", "true"), "'2' is no option"),
        (("--seeds", "some", "--", "true"), "--seeds is 'some'"),
    ],
)
def test_the_launcher_refuses_what_cannot_be_meant(words, told):
    done = submit("--dry-run", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert told in done.stderr


def test_the_job_file_is_for_slurm_alone():
    words = ["env", "-u", "SLURM_JOB_ID", "bash", str(ROOT / "experiments/slurm/mopd.sbatch"), "true"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "This is for sbatch" in done.stderr


def test_a_job_saves_and_goes_back_into_the_queue_before_slurm_ends_it():
    options = [line for line in (ROOT / "experiments/slurm/mopd.sbatch").read_text().splitlines() if "#SBATCH" in line]
    assert {"#SBATCH --signal=B:USR1@300", "#SBATCH --requeue"} <= set(options)


def test_the_environment_of_cscs_is_toml_with_an_image():
    told = tomllib.loads((ROOT / "experiments/slurm/mopd.toml").read_text())
    assert told["image"].endswith(".sqsh")
    assert all(mount.count(":") == 1 for mount in told["mounts"])
