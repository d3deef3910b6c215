"""An exported folder, loaded by vLLM alone, has the log-probs of the trainer that wrote the checkpoint."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.e2e.conftest import ROOT, Run
from trainer import cluster
from trainer.assemble import worker_environment
from trainer.config.compose import resolve
from trainer.settings import loss_settings
from trainer.workers.policy import OptimSettings, PolicyWorker, TeacherSettings
from trainer.workers.sampler import SamplerWorker

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
BASE = str(ROOT / "datasets" / "chain" / "model")
DEADLINE_S = 180.0


def ask(worker: Any, method: str, *arguments: Any) -> Any:
    [answer] = cluster.gather([getattr(worker, method).remote(*arguments)], method, DEADLINE_S)
    return answer


def trainer_of(checkpoint: Path) -> Any:
    """An actor with the base model, which then takes the checkpoint's shards, as a run that goes on does."""
    actor = cluster.spawn(
        PolicyWorker,
        num_cpus=0,
        num_gpus=0,
        rank=0,
        ranks=1,
        device="cpu",
        model_path=BASE,
        attn_implementation="packed",
        gradient_checkpointing=False,
        loss=loss_settings(resolve("grpo", [], {}).config),
        optim=OptimSettings(1e-3, 0, 0.0, (0.9, 0.999), 1.0),
        teacher=TeacherSettings("frozen", 0.0, None),
        seed=0,
        deadline_s=DEADLINE_S,
    )
    ask(actor, "join", *ask(actor, "rendezvous"))
    ask(actor, "restore", str(checkpoint))
    return actor


def engine_of(folder: Path) -> Any:
    """vLLM on a folder, in fp32."""
    return cluster.spawn(
        SamplerWorker,
        num_cpus=0,
        num_gpus=0,
        model_path=str(folder),
        device="cpu",
        max_model_len=128,
        seed=0,
        enable_prefix_caching=True,
        gpu_memory_utilization=0.5,
        free_cache_engine=False,
        kv_cache_mib=64,
        transfer_backend="gloo",
    )


def sequences_of(run: Run) -> list[Any]:
    """Eight responses of every step, as tokens."""
    drawn = [np.load(file) for file in sorted((run.output / "rollouts").glob("*.npz"))]
    return [
        tokens
        for step in drawn
        for tokens in np.split(step["token_ids"], np.cumsum(step["lengths"])[:-1])[:8]
        if len(tokens) > 1
    ]


def test_vllm_answers_with_the_trainers_logprobs(mopd_run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "trainer.export",
        str(mopd_run.output),
        "--output",
        str(folder),
        "--dtype",
        "float32",
    ]
    subprocess.run(command, cwd=ROOT, check=True, timeout=120)
    sequences = sequences_of(mopd_run)
    [checkpoint] = (mopd_run.output / "checkpoints").glob("step_3")
    cluster.start(worker_environment("cpu", offline=True), num_cpus=4)
    try:
        actor = trainer_of(checkpoint)
        exported, base = engine_of(folder), engine_of(Path(BASE))
        ours = ask(actor, "logprobs", sequences)
        theirs, before = ask(exported, "score", sequences), ask(base, "score", sequences)
    finally:
        cluster.stop()
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(other, one, rtol=0, atol=1e-4)
    moved = max(float(np.abs(one - initial).max()) for one, initial in zip(ours, before, strict=True))
    assert moved > 1e-2, "the run has moved the weights, so equal log-probs are these weights'"
