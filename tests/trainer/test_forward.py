"""The actor's forward: padding and slicing change nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from trainer.forward import ResponseScorer, batch_of, padded

MODEL = Path(__file__).resolve().parents[2] / "datasets" / "chain" / "model"


def test_response_logits_are_those_of_each_sequence_alone() -> None:
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 300, size).astype(np.int32) for size in (3, 11, 7)]
    responses = [rng.integers(0, 300, size).astype(np.int32) for size in (5, 1, 9)]
    batch = batch_of(prompts, responses, torch.device("cpu"))
    with torch.no_grad():
        logits = ResponseScorer(model)(batch, 0.7)
        for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            alone = model(torch.from_numpy(np.concatenate([prompt, response]).astype(np.int64))[None]).logits[0]
            wanted = alone[len(prompt) - 1 : -1] / 0.7
            torch.testing.assert_close(logits[row, : len(response)], wanted, atol=2e-5, rtol=1e-5)
            assert batch.present[row].sum() == len(response)


def test_padding_fills_with_zeros() -> None:
    like = torch.ones(2, 3)
    rows = padded([np.ones(1, dtype=np.float32)], like)
    assert rows.tolist() == [[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
