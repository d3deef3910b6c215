"""A model on a GPU: packed rows are padded ones, and the sampler without an engine draws what the model says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.conftest import ROOT
from trainer.attention import PACKED
from trainer.attention_choice import choose_attention
from trainer.layout import batch_of, hidden_states
from trainer.workers.sampler_hf import HfSamplerWorker
from trainer.workers.sampler_types import Request, Response, SamplingSettings

MODEL = str(ROOT / "datasets" / "chain" / "model")
BOUND = {torch.float32: 1e-4, torch.bfloat16: 6e-2}
"""How far states may be apart, as a share of their size."""
NATS = {torch.float32: 1e-4, torch.bfloat16: 0.15}
"""How far log-probs may be apart: bf16 activations against float32 ones, in a model of three layers."""
RNG = np.random.default_rng(0)
PROMPTS = [RNG.integers(0, 430, size).astype(np.int32) for size in (3, 70, 17)]


def model_of(attention: str, dtype: torch.dtype, device: torch.device) -> Any:
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=dtype, attn_implementation=attention).to(device)


@pytest.mark.parametrize("dtype", list(BOUND))
def test_packed_rows_have_the_states_and_gradients_of_padded_ones(device: torch.device, dtype: torch.dtype) -> None:
    assert "packed rows" in choose_attention(PACKED, device, dtype)
    prompts = [prompt for prompt in PROMPTS for _ in range(3)]
    responses = [RNG.integers(0, 430, size).astype(np.int32) for size in (9, 1, 33, 20, 20, 2, 5, 64, 11)]
    found = []
    for packed in (True, False):
        model = model_of(PACKED if packed else "sdpa", dtype, device)
        states = hidden_states(model, batch_of(prompts, responses, device, packed=packed))
        weights = torch.linspace(-1, 1, states.numel(), device=device).reshape(states.shape).cos()
        (states.float() * weights).sum().backward()
        gradients = [layer.self_attn.q_proj.weight.grad.float() for layer in model.model.layers]
        found.append([states.detach().float(), *gradients])
    for ours, theirs in zip(*found, strict=True):
        assert float((ours - theirs).norm() / theirs.norm()) <= BOUND[dtype]


@pytest.fixture(scope="module")
def worker(device: torch.device) -> HfSamplerWorker:
    return HfSamplerWorker(
        model_path=MODEL,
        device=device.type,
        max_model_len=160,
        seed=0,
        enable_prefix_caching=True,
        gpu_memory_utilization=0.3,
        kv_cache_mib=64,
        transfer_backend="gloo-bf16",
    )


def drawn(worker: HfSamplerWorker, requests: list[Request], settings: SamplingSettings) -> list[Response]:
    """In the order asked."""
    given = dict(pair for _, finished in worker.sample(requests, settings) for pair in finished)
    return [given[number] for number in range(len(requests))]


def test_logprobs_of_what_is_drawn_are_those_of_a_plain_forward(worker: HfSamplerWorker) -> None:
    requests = [Request(prompt, 10 * number + seed) for number, prompt in enumerate(PROMPTS) for seed in range(8)]
    exact = model_of("sdpa", torch.float32, worker.device)
    for request, found in zip(requests, drawn(worker, requests, SamplingSettings(0.7, 1.0, 40)), strict=True):
        tokens = torch.from_numpy(np.concatenate([request.prompt_ids, found.token_ids]).astype(np.int64))
        with torch.no_grad():
            logits = exact(input_ids=tokens[None].to(worker.device)).logits[0, len(request.prompt_ids) - 1 : -1]
        own = tokens[len(request.prompt_ids) :, None].to(worker.device)
        expected = (logits / 0.7).log_softmax(-1).gather(-1, own)[:, 0].cpu().numpy()
        assert np.abs(found.logprobs - expected).max() <= NATS[worker.dtype] / 0.7


def test_scores_agree_with_what_was_drawn(worker: HfSamplerWorker) -> None:
    requests = [Request(prompt, seed) for prompt in PROMPTS for seed in range(4)]
    responses = drawn(worker, requests, SamplingSettings(1.0, 1.0, 40))
    whole = [np.concatenate([r.prompt_ids, found.token_ids]) for r, found in zip(requests, responses, strict=True)]
    for request, found, scores in zip(requests, responses, worker.score(whole), strict=True):
        gap = np.abs(found.logprobs - scores[len(request.prompt_ids) - 1 :])
        assert gap.max() <= NATS[worker.dtype]


def test_the_same_seeds_draw_the_same(worker: HfSamplerWorker) -> None:
    requests = [Request(prompt, seed) for prompt in PROMPTS for seed in range(4)]
    twice = [drawn(worker, requests, SamplingSettings(1.0, 1.0, 24)) for _ in range(2)]
    for one, other in zip(*twice, strict=True):
        assert one.token_ids.tolist() == other.token_ids.tolist()
