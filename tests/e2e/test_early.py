"""The early teacher in a run: what it was shown while others were decoded teaches the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import Run

pytestmark = pytest.mark.e2e
# More rollouts than the engine decodes at once (256), so that some groups are finished while others have not begun.
LARGE = ("data.train_batch_size=64", "actor_rollout_ref.actor.ppo_mini_batch_size=64", "trainer.test_freq=0")


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_teacher_that_was_shown_groups_early_changes_no_loss(
    tmp_path: Path, trained: Callable[..., Run], ranks: int
) -> None:
    common = ("profile=embedded", "trainer.val_before_train=false", f"trainer.n_gpus_per_node={ranks}", *LARGE)
    late, early = (
        trained(tmp_path / name, "mopd", *common, f"trainer.early_teacher={name}", TOTAL_STEPS="2")
        for name in ("false", "true")
    )
    assert late.code == early.code == 0, late.said + early.said
    for ours, wanted in zip(early.metrics, late.metrics, strict=True):
        assert ours["perf/teacher_early_fraction"] > 0.2
        assert ours["actor/loss"] == pytest.approx(wanted["actor/loss"], rel=0, abs=1e-6)
        assert ours["actor/grad_norm"] == pytest.approx(wanted["actor/grad_norm"], rel=1e-4)
        assert ours["critic/rewards/mean"] == wanted["critic/rewards/mean"]
        assert ours["perf/tokens_forwarded_ratio"] <= 1.1
