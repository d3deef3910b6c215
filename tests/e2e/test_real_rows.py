"""Published SciKnowEval chemistry rows through the whole trainer: multiple choice, system prompt, failed peers."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import ROOT, Run

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def chemistry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rows as training parquet."""
    rows = os.environ.get("MOPD_REAL_ROWS")
    if not rows:
        pytest.skip("MOPD_REAL_ROWS is not set: it names the folder with sciknoweval/chemistry/train.json")
    folder = tmp_path_factory.mktemp("chemistry")
    source = Path(rows) / "sciknoweval" / "chemistry"
    script = ROOT / "data" / "preprocess.py"
    subprocess.run([sys.executable, script, "--data_source", source, "--output", folder], check=True)
    return folder


def test_two_steps_on_chemistry(chemistry: Path, tmp_path: Path, trained: Callable[..., Run]) -> None:
    run = trained(
        tmp_path / "run",
        "mopd",
        "actor_rollout_ref.actor.ppo_mini_batch_size=2",
        "trainer.val_before_train=false",
        "trainer.test_freq=0",
        "actor_rollout_ref.rollout.val_kwargs.n=1",
        "data.max_prompt_length=1200",
        "data.max_response_length=24",
        DATA_PATH=str(chemistry),
        TRAIN_BATCH_SIZE="2",
        TOTAL_STEPS="2",
    )
    assert run.code == 0, run.said
    for record in run.metrics:
        assert record["self_distillation/divergence"] > 0
        assert record["actor/grad_norm"] > 0
        assert record["self_distillation/failure_solution_fraction"] > 0
        assert record["self_distillation/reprompt_sample_fraction"] > 0
    rollouts = run.lines("rollouts/1.jsonl")
    assert len(rollouts) == 2 * 8
    failed_peers = [rollout for rollout in rollouts if any(peer["slot"] == "failure" for peer in rollout["peers"])]
    assert failed_peers
    for rollout in failed_peers:
        assert rollout["data_source"] == "sciknoweval"
        assert rollout["usable"]
        assert "Given a question and four options" in rollout["teacher_prompt"]
        assert "A known failed solution (avoid repeating this mistake):" in rollout["teacher_prompt"]
        assert rollout["gts"] in "ABCD"
