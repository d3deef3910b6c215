"""The fused loss on a GPU is the dense one in float64, whichever kernels it takes."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from mopd.fused import linear_distillation_loss, linear_logprobs
from mopd.losses import token_logprobs
from tests.gpu.conftest import DRY, on
from tests.mopd.test_fused import IDS, dense, gradients, problem, relative, widened

VOCABULARY = 1000 if DRY else 20_011
BOUND = {torch.float32: 2e-4, torch.bfloat16: 2e-2}
"""How far value and gradients may be from those in float64, as a share of their size."""
KERNELS = ["torch", pytest.param("triton", marks=pytest.mark.skipif(DRY, reason="not run: Triton needs a GPU"))]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", list(BOUND))
@pytest.mark.parametrize("options", [{}, {"alpha": 0.0}, {"alpha": 1.0, "support": "union"}, {"topk": None}])
def test_value_and_gradients_are_the_dense_ones(
    device: torch.device,
    kernel: str,
    dtype: torch.dtype,
    options: dict[str, object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert kernel == "torch" or importlib.util.find_spec("triton") is not None, "torch for GPUs brings it along"
    monkeypatch.setenv("MOPD_KERNEL", kernel)
    rounded = problem(v=VOCABULARY, dtype=dtype)
    true = widened(rounded)
    expected = dense(true, **options)
    data = on(device, rounded)
    # Float32 logits of narrow inputs: what is compared is the loss, not the rounding of logits to the inputs' dtype.
    found = linear_distillation_loss(**data, sequence_ids=IDS.to(device), precise=dtype != torch.float32, **options)
    assert relative(found.detach().cpu(), expected.detach()) <= BOUND[dtype]
    for ours, theirs in zip(gradients(found, data), gradients(expected, true), strict=True):
        assert ours.dtype == dtype
        assert relative(ours.cpu(), theirs) <= BOUND[dtype]


@pytest.mark.parametrize("dtype", list(BOUND))
def test_logprobs_are_the_dense_ones(device: torch.device, dtype: torch.dtype) -> None:
    rounded = problem(v=VOCABULARY, dtype=dtype)
    true = widened(rounded)
    logits = true["student_hidden"] @ true["student_weight"].T / 0.7
    data = on(device, rounded)
    found = linear_logprobs(
        data["student_hidden"], data["student_weight"], data["tokens"], temperature=0.7, precise=dtype != torch.float32
    )
    assert relative(found.logprobs.detach().cpu(), token_logprobs(logits, true["tokens"]).detach()) <= BOUND[dtype]
