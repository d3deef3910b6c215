"""A run whose reward function hangs, crashes, raises and talks nonsense goes on, and none of that is a reward."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.e2e.conftest import ROOT, Run

pytestmark = pytest.mark.e2e

FUNCTION = """
import os, time

def first(name):
    try:
        os.close(os.open(os.path.join({folder!r}, name), os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True

def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    assert data_source == "elsewhere"
    if first("hang"):
        time.sleep(600)
    if first("die"):
        os._exit(1)
    if first("nan"):
        return float("nan")
    if first("raise"):
        raise RuntimeError("over and out")
    return {{"score": "=" in solution_str, "feedback": "an equation is wanted"}}
"""


def test_a_run_survives_a_reward_function_that_misbehaves(tmp_path: Path, trained: Callable[..., Run]) -> None:
    rows = pq.read_table(ROOT / "datasets" / "chain" / "train.parquet").to_pylist()[:32]
    table = pa.Table.from_pylist([{**row, "data_source": "elsewhere"} for row in rows])
    for name in ("train", "test"):
        pq.write_table(table, tmp_path / f"{name}.parquet")
    (tmp_path / "reward.py").write_text(FUNCTION.format(folder=str(tmp_path)))
    settings = ["reward.deadline_s=2", "custom_reward_function.path=reward.py", "trainer.val_before_train=false"]
    run = trained(tmp_path / "run", "grpo", *settings, DATA_PATH=str(tmp_path), TOTAL_STEPS="1")
    assert run.code == 0, run.said
    [record] = run.metrics
    causes = {name: record[f"reward/unknown_{name}"] for name in ("deadline", "died", "invalid", "error")}
    assert causes == dict.fromkeys(causes, 1)
    rollouts = run.lines("rollouts/1.jsonl")
    unknown = [rollout for rollout in rollouts if rollout["status"] == "unknown"]
    assert len(unknown) == 4
    assert record["critic/unknown_fraction"] == pytest.approx(4 / len(rollouts))
    assert all(rollout["score"] is None and rollout["success"] is None for rollout in unknown)
    for rollout in rollouts:
        if rollout not in unknown:
            assert rollout["success"] == ("=" in rollout["output"])
            assert rollout["feedback"] == "an equation is wanted"
    assert "RuntimeError: over and out" in run.said
    assert record["perf/verify_latency_max"] > 2
    assert run.manifest["sandbox"]["tier"] is None
