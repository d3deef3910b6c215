"""One run on two machines: it spreads over both, and what becomes of it when one is lost."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.machines import Cluster, two_machines, until

pytestmark = [pytest.mark.cluster, pytest.mark.e2e]

STEPS = 8
SMALL = ("data.train_batch_size=8", "trainer.save_freq=1", "trainer.test_freq=0", "trainer.val_before_train=false")
SAME = ("critic/rewards/mean", "actor/loss", "actor/grad_norm", "response_length/mean")


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two machines; a test that loses the second one brings another."""
    assert os.getuid() == 0, "network namespaces are made by root alone; run this as root"
    with two_machines(tmp_path_factory.mktemp("cluster")) as found:
        yield found


def metrics(output: Path) -> list[dict[str, Any]]:
    """The records of a run so far, but for a line that is being written."""
    file = output / "metrics.jsonl"
    lines = file.read_text().split("\n")[:-1] if file.is_file() else []
    return [json.loads(line) for line in lines]


def finished(run: subprocess.Popen[str]) -> tuple[int, str]:
    """The exit code of a run that ends, and what it said."""
    said, _ = run.communicate(timeout=900)
    return run.returncode, said


def after_step(run: subprocess.Popen[str], output: Path, step: int) -> None:
    """Waits until a step is told of and its checkpoint whole."""

    def done() -> bool:
        assert run.poll() is None, f"it ended: {run.communicate()[0]}"
        return len(metrics(output)) >= step and (output / f"checkpoints/step_{step}").is_dir()

    until(done, f"step {step}", 600)


def figures(output: Path) -> list[list[float]]:
    """What a run measured, a row per step."""
    return [[record[name] for name in SAME] for record in metrics(output)]


@pytest.fixture(scope="module")
def undisturbed(machines: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over both machines, with an actor rank on each, that nothing happens to."""
    output = tmp_path_factory.mktemp("undisturbed") / "run"
    code, said = finished(machines.train(output, "mopd", *SMALL, TOTAL_STEPS=str(STEPS), NNODES="2"))
    assert code == 0, said
    ranks = f"ranks on {machines.address(1)} (1), {machines.address(2)} (1); samplers on {machines.address(2)} (1)"
    assert ranks in said
    return output


def test_a_run_spreads_over_both_machines(undisturbed: Path) -> None:
    told = json.loads((undisturbed / "manifest.json").read_text())["actors"]
    assert (told["nodes"], told["ranks"]) == (2, 2)
    assert len(metrics(undisturbed)) == STEPS


def test_a_machine_with_a_sampler_is_lost_and_the_run_goes_on(
    machines: Cluster, undisturbed: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    samplers = "actor_rollout_ref.rollout.n_samplers=2"
    run = machines.train(output, "mopd", *SMALL, samplers, TOTAL_STEPS=str(STEPS))
    after_step(run, output, 1)
    machines.lose(2)
    code, said = finished(run)
    machines.plug(2)
    machines.start(2)
    assert code == 0, said
    assert "the sampler died; starting another (1 of 6)" in said
    first, *_ = figures(output)
    assert first == pytest.approx(figures(undisturbed)[0], rel=1e-4), "one rank or two, one sampler or two"
    assert len(metrics(output)) == STEPS


def test_a_machine_with_a_rank_is_lost_and_the_same_command_goes_on_to_the_same_result(
    machines: Cluster, undisturbed: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    run = machines.train(output, "mopd", *SMALL, TOTAL_STEPS=str(STEPS), NNODES="2")
    after_step(run, output, 2)
    machines.lose(2)
    code, said = finished(run)
    assert code == 1, said
    assert "the worker process died" in said
    done = len(metrics(output))
    assert 2 <= done < STEPS
    again = machines.train(output, "mopd", *SMALL, TOTAL_STEPS=str(STEPS), NNODES="2")
    until(lambda: len(machines.rays) == 1 and again.poll() is None, "the run waits", 5)
    machines.plug(2)
    machines.start(2)
    code, said = finished(again)
    assert code == 0, said
    assert "going on after step" in said
    assert figures(output) == figures(undisturbed), "bit for bit"


def test_what_is_left_goes_on_alone_from_the_checkpoint(machines: Cluster, undisturbed: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    mode = f"trainer.resume_mode={undisturbed / 'checkpoints' / f'step_{STEPS - 1}'}"
    code, said = finished(machines.train(output, "mopd", *SMALL, mode, TOTAL_STEPS=str(STEPS)))
    assert code == 0, said
    [last] = figures(output)
    assert last == pytest.approx(figures(undisturbed)[-1], rel=1e-3)


def test_what_the_cluster_cannot_give_is_told_beside_what_it_has(machines: Cluster, tmp_path: Path) -> None:
    code, said = finished(machines.train(tmp_path / "run", "mopd", *SMALL, "trainer.deadline_s=20", NNODES="3"))
    assert code == 1, said
    assert "no room in the cluster within trainer.deadline_s=20 s" in said
    assert "NNODES=3" in said
    assert f"{machines.address(2)} has 8 cores" in said


def test_a_cluster_with_another_token_is_not_joined(machines: Cluster, tmp_path: Path) -> None:
    run = machines.train(tmp_path / "run", "mopd", *SMALL, RAY_AUTH_TOKEN="0" * 64)
    code, said = finished(run)
    assert code == 2, said
    assert "RAY_AUTH_TOKEN" in said
