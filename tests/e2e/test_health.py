"""A real run that cannot learn: it ends by itself, says why, and leaves its weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import Run

pytestmark = pytest.mark.e2e


def test_a_run_without_signal_stops_and_says_what_to_change(trained: Callable[..., Run], tmp_path: Path) -> None:
    """Responses of one token: no answer fits, so that no group's rewards differ."""
    settings = ("data.max_response_length=1", "trainer.health.patience=2", "trainer.val_before_train=false")
    run = trained(tmp_path / "run", "grpo", *settings, TOTAL_STEPS="6", TRAIN_BATCH_SIZE="8")
    assert run.code == 3, run.said
    assert [record["step"] for record in run.metrics] == [1, 2]
    assert all(record["critic/informative_group_fraction"] == 0 for record in run.metrics)
    assert all(record["actor/grad_norm"] == 0 for record in run.metrics)
    said = (
        "0.0% of the groups have rewards that differ",
        "since step 1",
        "raise data.max_response_length",
        "step_2/hf",
    )
    for words in said:
        assert words in run.said
    stops = [line["stops"] for line in run.lines("health.jsonl") if line["kind"] == "no_signal"]
    assert stops == [False, True]
    assert (run.output / "checkpoints" / "step_2" / "hf" / "model.safetensors").is_file()
