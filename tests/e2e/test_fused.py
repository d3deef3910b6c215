"""Ten steps of the embedded run: the fast way through the models and the plain one learn the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import Run

pytestmark = pytest.mark.e2e
PLAIN = ("actor_rollout_ref.model.use_fused_kernels=false", "actor_rollout_ref.model.attn_implementation=sdpa")


@pytest.mark.slow
def test_packed_and_fused_loses_at_every_step_what_padded_and_dense_does(
    tmp_path: Path, trained: Callable[..., Run]
) -> None:
    common = ("profile=embedded", "trainer.val_before_train=false", "trainer.test_freq=0", "trainer.save_freq=0")
    fast, plain = (
        trained(tmp_path / name, "mopd", *common, *overrides, TOTAL_STEPS="10")
        for name, overrides in (("fast", ()), ("plain", PLAIN))
    )
    assert fast.code == plain.code == 0, fast.said + plain.said
    assert len(fast.metrics) == 10
    for ours, wanted in zip(fast.metrics, plain.metrics, strict=True):
        assert ours["actor/loss"] == pytest.approx(wanted["actor/loss"], rel=0, abs=1e-5)
        assert ours["self_distillation/divergence"] == pytest.approx(wanted["self_distillation/divergence"], abs=1e-5)
        assert ours["critic/rewards/mean"] == wanted["critic/rewards/mean"]
        assert ours["perf/tokens_forwarded"] < 0.8 * wanted["perf/tokens_forwarded"]
