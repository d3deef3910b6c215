"""The actor's forward: however sequences lie, each has its own logits."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from trainer import fsdp
from trainer.attention import PACKED
from trainer.forward import ResponseScorer, padded
from trainer.layout import batch_of

MODEL = Path(__file__).resolve().parents[2] / "datasets" / "chain" / "model"


@pytest.mark.parametrize("packed", [True, False])
def test_hidden_states_and_output_matrix_make_each_sequence_s_own_logits(packed: bool) -> None:
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32, attn_implementation=PACKED)
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 300, size).astype(np.int32) for size in (3, 11, 7)]
    responses = [rng.integers(0, 300, size).astype(np.int32) for size in (5, 1, 9)]
    batch = batch_of(prompts, responses, torch.device("cpu"), packed=packed)
    scorer = ResponseScorer(model)
    with torch.no_grad():
        found = (scorer(batch) @ scorer.head.t()).split([5, 1, 9])
        for logits, prompt, response in zip(found, prompts, responses, strict=True):
            alone = model(torch.from_numpy(np.concatenate([prompt, response]).astype(np.int64))[None]).logits[0]
            torch.testing.assert_close(logits, alone[len(prompt) - 1 : -1], atol=2e-5, rtol=1e-5)


def changed(**values: object) -> SimpleNamespace:
    """A model whose configuration or output layer is unlike a plain one's."""
    head = SimpleNamespace(bias=values.pop("bias", None))
    return SimpleNamespace(lm_head=head, config=SimpleNamespace(**values))


def test_a_model_whose_logits_are_no_plain_product_is_refused() -> None:
    fsdp.check_head(changed(logit_scale=1.0, final_logit_softcapping=None), "/m")
    for values, said in (
        ({"bias": torch.zeros(3)}, "a bias in its output layer"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping=30.0"),
        ({"logits_scaling": 8.0}, "logits_scaling=8.0"),
    ):
        with pytest.raises(ValueError, match=f"the model in /m has {said}"):
            fsdp.check_head(changed(**values), "/m")


def test_padding_fills_with_zeros() -> None:
    like = torch.ones(2, 3)
    rows = padded([np.ones(1, dtype=np.float32)], like)
    assert rows.tolist() == [[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
