"""Adapters on real processes: ranks change nothing, a run learns, what it leaves is loaded by vLLM and by PEFT."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.e2e.conftest import ROOT, Run
from tests.e2e.test_export import ask, engine_of, sequences_of
from tests.e2e.test_ranks import DEADLINE_S, MODEL, norm, plans_of, ragged_samples
from tests.e2e.test_resume import assert_same, steps
from trainer import cluster, fsdp
from trainer.adapters import AdapterSettings, factors, is_factor
from trainer.assemble import worker_environment
from trainer.config.compose import resolve
from trainer.meters import Meter
from trainer.packing import MiniBatch
from trainer.settings import loss_settings
from trainer.workers.policy import OptimSettings, PolicyWorker
from trainer.workers.views import TeacherSettings

pytestmark = pytest.mark.e2e
LORA = ("actor_rollout_ref.model.lora_rank=8", "actor_rollout_ref.actor.optim.lr=0.004")
Whole = dict[str, np.ndarray[Any, Any]]


class AdapterWorker(PolicyWorker):
    """Shows the gradient of its adapters, and where they are."""

    def shake(self) -> None:
        """Moves every factor, on one rank as on two."""
        random = torch.Generator().manual_seed(1)
        for name, parameter in self.student.named_parameters():
            if not is_factor(name):
                continue
            parts = (0.1 * torch.randn(parameter.shape, generator=random)).chunk(self.ranks)
            parameter.detach().to_local().add_(parts[self.rank])  # type: ignore[attr-defined]

    def gradient(self, mini_batch: MiniBatch) -> tuple[float, Whole]:
        """Loss and whole gradient of one mini-batch."""
        self.loss_sum, self.views.known = 0.0, None
        for micro_batch, denominator in zip(mini_batch.micro_batches, mini_batch.denominators, strict=True):
            self.accumulate(micro_batch, None, denominator, Meter(), frozenset())
        named = self.student.named_parameters()
        whole = {name: weight.grad.full_tensor().numpy() for name, weight in named if weight.grad is not None}
        self.optimizer.zero_grad(set_to_none=True)
        return self.loss_sum, whole

    def found(self) -> Whole:
        """The factors of both voices and the merged weights, whole."""
        assert self.teacher is None
        added = {
            name: factor for voice in ("student", "teacher") for name, factor in factors(self.student, voice).items()
        }
        whole = {name: fsdp.whole(factor) for name, factor in added.items()} | dict(fsdp.full_weights(self.student))
        return {name: weight.numpy() for name, weight in whole.items()}


def actor(ranks: int, settings: AdapterSettings, *, checkpointing: bool = False) -> list[Any]:
    """Ranks of an actor with adapters that have joined."""
    workers = [
        cluster.spawn(
            AdapterWorker,
            num_cpus=0,
            num_gpus=0,
            rank=rank,
            ranks=ranks,
            device="cpu",
            model_path=MODEL,
            attn_implementation="packed",
            gradient_checkpointing=checkpointing,
            loss=loss_settings(resolve("mopd", [], {}).config),
            optim=OptimSettings(1e-3, 0, 0.01, (0.9, 0.999), 1.0),
            teacher=TeacherSettings("ema", 0.5, None),
            seed=0,
            deadline_s=DEADLINE_S,
            adapters=settings,
        )
        for rank in range(ranks)
    ]
    [(host, port)] = cluster.gather([workers[0].rendezvous.remote()], "rendezvous", DEADLINE_S)
    cluster.gather([worker.join.remote(host, port) for worker in workers], "joining", DEADLINE_S)
    cluster.gather([worker.shake.remote() for worker in workers], "shaking", DEADLINE_S)
    return workers


@pytest.fixture(scope="module")
def ray() -> Iterator[None]:
    cluster.start(worker_environment("cpu", offline=True), num_cpus=4)
    yield
    cluster.stop()


def together(workers: Sequence[Any], method: str, *arguments: Sequence[Any]) -> list[Any]:
    """A method of all ranks, each with its own of every argument."""
    calls = [getattr(worker, method).remote(*mine) for worker, *mine in zip(workers, *arguments, strict=True)]
    return cluster.gather(calls, method, DEADLINE_S)


def test_ranks_and_micro_batches_change_neither_gradient_nor_step_nor_weights(ray: None) -> None:
    odd = AdapterSettings(5, 10.0, "all-linear")  # two ranks cannot share its rows evenly
    samples, one, two = ragged_samples(13), actor(1, odd), actor(2, odd, checkpointing=True)
    [(loss, wanted)] = together(one, "gradient", plans_of(samples, 1, 100_000, "mopd"))
    assert norm(wanted) > 0
    assert all("lora_" in name for name in wanted)
    for workers, budget in ((one, 90), (two, 100_000), (two, 90)):
        answers = together(workers, "gradient", plans_of(samples, len(workers), budget, "mopd"))
        assert sum(part for part, _ in answers) == pytest.approx(loss, rel=1e-5)
        found = answers[0][1]
        assert norm({name: found[name] - values for name, values in wanted.items()}) < 1e-5 * norm(wanted)
    states = []
    for workers in (one, two):
        plans = plans_of(samples, len(workers), 100_000, "mopd")
        together(workers, "update", [[plan] for plan in plans], [1] * len(plans), [frozenset[int]()] * len(plans))
        states.append(together(workers, "found")[0])
    assert states[0].keys() == states[1].keys()
    for name, weight in states[0].items():
        np.testing.assert_allclose(states[1][name], weight, rtol=0, atol=1e-5, err_msg=name)


# ------------------------------------------------------------------ runs


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory, trained: Callable[..., Run]) -> Run:
    """Thirty steps of MOPD on the embedded task, adapters alone."""
    run = trained(tmp_path_factory.mktemp("lora") / "run", "mopd", *LORA)
    assert run.code == 0, run.said
    return run


def export(run: Run, output: Path, *more: str) -> Path:
    """The folder that the command writes."""
    command = [sys.executable, "-m", "trainer.export", str(run.output), "--output", str(output), "--dtype", "float32"]
    subprocess.run([*command, *more], cwd=ROOT, check=True, timeout=120)
    return output


@pytest.mark.slow
def test_a_run_of_adapters_learns_and_its_export_answers_in_vllm(learnt: Run, tmp_path: Path) -> None:
    name = "val-core/chain/acc/mean@8"
    scores = [record[name] for record in learnt.metrics if name in record]
    assert scores[-1] > scores[0] + 0.15
    assert learnt.manifest["model"]["trained"] < 0.2 * learnt.manifest["model"]["parameters"]
    assert max(record["rollout_corr/publish_max_abs_diff"] for record in learnt.metrics if record["step"]) < 1e-4
    folder, sequences = export(learnt, tmp_path / "merged"), sequences_of(learnt)
    cluster.start(worker_environment("cpu", offline=True), num_cpus=4)
    try:
        engine, base = engine_of(folder), engine_of(Path(MODEL))
        theirs, before = ask(engine, "score", sequences), ask(base, "score", sequences)
        [restored] = actor(1, AdapterSettings(8, 16.0, "all-linear"))
        ask(restored, "restore", str(learnt.output / "checkpoints" / "step_30"))
        ours = ask(restored, "logprobs", sequences)
    finally:
        cluster.stop()
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(other, one, rtol=0, atol=1e-4)
    assert max(float(np.abs(one - other).max()) for one, other in zip(ours, before, strict=True)) > 1e-2


@pytest.mark.slow
def test_a_run_killed_while_it_trains_and_while_it_saves_equals_one_that_was_not(tmp_path: Path) -> None:

    def run(output: Path, **flags: str) -> Run:
        return steps(output, "mopd", 4, 2, *LORA, **flags)

    whole = run(tmp_path / "whole")
    assert whole.code == 0, whole.said
    output = tmp_path / "killed"
    for place, step, rank in (("ckpt.before_rename", 2, 0), ("step.after_opt", 3, 1)):
        assert run(output, MOPD_FAILPOINTS=f"{place}=kill;step={step};rank={rank}").code == 1
    resumed = run(output)
    assert resumed.code == 0, resumed.said
    assert_same(whole, resumed, 4, tmp_path)
