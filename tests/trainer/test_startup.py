"""Ray may start before the libraries are there: only where it is wanted for sure, and as it would be later."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from trainer import cluster, startup
from trainer.config.compose import PROJECT, resolve
from trainer.errors import BAD_INPUT
from trainer.garbage import uncollected
from trainer.placement import placement_of
from trainer.startup import ray_settings, surely_wanted, worker_environment

CHAIN = PROJECT / "datasets" / "chain"
OTHER = f"actor_rollout_ref.ref.model.path={CHAIN / 'model'}"


@pytest.mark.parametrize(
    ("method", "overrides"),
    [
        ("mopd", []),
        ("mopd", ["trainer.n_gpus_per_node=3", "trainer.device=cpu"]),
        ("ts_sdpo", [OTHER]),
        ("ts_sdpo", [OTHER, "actor_rollout_ref.ref.placement=own", "trainer.n_gpus_per_node=70"]),
    ],
)
def test_ray_started_ahead_is_the_one_that_the_workers_ask_for(
    method: str, overrides: list[str], tmp_path: Path
) -> None:
    config = resolve(method, overrides, {}).config
    placed = placement_of(config, gpus=0)
    later = ray_settings(config, placed.device, placed.ranks, placed.teachers)
    assert surely_wanted(config, {}, tmp_path) == later


@pytest.mark.parametrize(
    ("override", "environment"),
    [
        ("trainer.device=cuda", {}),
        ("data.train_files=nowhere.parquet", {}),
        ("data.val_files=nowhere.parquet", {}),
        ("actor_rollout_ref.model.path=nowhere", {}),
        ("actor_rollout_ref.ref.model.path=nowhere", {}),
        ("actor_rollout_ref.ref.placement=own", {"RAY_ADDRESS": "somewhere:1"}),
        ("trainer.nnodes=2", {}),
        ("actor_rollout_ref.actor.ppo_mini_batch_size=5", {}),
    ],
)
def test_ray_is_not_started_ahead_where_something_speaks_against_it(
    override: str, environment: dict[str, str], tmp_path: Path
) -> None:
    assert surely_wanted(resolve("mopd", [override], {}).config, environment, tmp_path) is None


def test_ray_is_not_started_ahead_where_there_may_be_a_gpu(tmp_path: Path) -> None:
    (tmp_path / "nvidiactl").touch()
    assert surely_wanted(resolve("mopd", [], {}).config, {}, tmp_path) is None
    assert surely_wanted(resolve("mopd", ["trainer.device=cpu"], {}).config, {}, tmp_path) is not None


def test_garbage_is_collected_again_whatever_happens_meanwhile() -> None:
    with pytest.raises(ModuleNotFoundError, match="nowhere"):
        startup.loaded("trainer.nowhere", None)
    assert gc.isenabled()
    with uncollected():
        with uncollected():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()


# ------------------------------------------------------------------ a real Ray


class Told:
    """Says in what condition its process is, now and while the worker was made."""

    def __init__(self) -> None:
        self.collected = gc.isenabled()

    def tell(self) -> tuple[bool, bool, int]:
        """Whether garbage was collected while it was made, whether it is now, and the process's niceness."""
        return self.collected, gc.isenabled(), os.nice(0)


class Broken:
    """Cannot be made."""

    def __init__(self) -> None:
        raise ValueError("no such thing")

    def tell(self) -> None:
        """Never comes to it."""


@pytest.fixture
def ray_of_ones_own() -> Iterator[None]:
    """Started as a run on the CPU starts it."""
    if "RAY_ADDRESS" in os.environ:
        pytest.skip("there is a Ray of others")
    cluster.start(worker_environment("cpu", offline=True), num_cpus=2)
    yield
    cluster.stop()


@pytest.mark.usefixtures("ray_of_ones_own")
def test_a_started_ray_is_kept_has_no_idle_processes_and_workers_that_keep_their_place() -> None:
    daemons = ("raylet", "gcs_server")  # other tests of this process may have left children of their own
    children = {child.pid for child in psutil.Process().children() if any(name in child.name() for name in daemons)}
    assert len(children) == 2
    cluster.start(worker_environment("cpu", offline=True), num_cpus=2)
    assert {child.pid for child in psutil.Process().children()} >= children, "the same is started once"
    commands = [" ".join(child.cmdline()) for child in psutil.Process().children(recursive=True)]
    assert any("raylet" in command for command in commands)
    assert [name for name in ("monitor.py", "dashboard.py") if any(name in command for command in commands)] == []

    told = cluster.spawn(Told, num_cpus=0, num_gpus=0)
    broken = cluster.spawn(Broken, num_cpus=0, num_gpus=0)
    assert cluster.gather([told.tell.remote()], "asking", 60) == [(False, True, os.nice(0))]
    with pytest.raises(cluster.WorkerError, match="no such thing"):
        cluster.gather([broken.tell.remote()], "asking", 60)

    first = cluster.running
    cluster.start(worker_environment("cpu", offline=False), num_cpus=2)
    assert cluster.running != first
    left = {child.pid for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE}
    assert not left & children, "another one takes the place of the former"


@pytest.mark.slow
def test_a_fault_found_after_ray_was_started_is_told_and_nothing_stays(tmp_path: Path) -> None:
    """The model has a tokenizer that cannot be read: seen only once the libraries are there."""
    model = tmp_path / "model"
    model.mkdir()
    for file in (CHAIN / "model").iterdir():
        (model / file.name).symlink_to(file)
    (model / "tokenizer.json").unlink()
    (model / "tokenizer.json").write_text(json.dumps("no tokenizer"))
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "MODEL_PATH": str(model), "MARKED": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "trainer.main", "trainer.device=cpu"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == BAD_INPUT
    assert "loading libraries, starting Ray" in done.stdout
    assert str(model) in done.stderr
    assert not (tmp_path / "outputs").exists()
    mark = f"MARKED={tmp_path}".encode()
    left = [path for path in Path("/proc").glob("[0-9]*/environ") if mark in held(path)]
    assert left == []


def held(file: Path) -> bytes:
    """A process's environment; empty where the process is gone."""
    try:
        return file.read_bytes()
    except OSError:
        return b""
