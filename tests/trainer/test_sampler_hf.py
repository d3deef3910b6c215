"""The sampler without an engine: what it draws is the model's distribution, whatever else is in the batch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from mopd.types import IntArray
from tests.conftest import ROOT
from trainer.workers.decoding import Decoder, Drawn, check_cacheable, draw, next_rows, noise_of, nucleus
from trainer.workers.sampler_hf import HfSamplerWorker, bytes_per_token
from trainer.workers.sampler_types import Request, SamplingSettings

VOCABULARY = 11
END = 3
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
FREELY = SamplingSettings(1.0, 1.0, 12)


@pytest.fixture(scope="module")
def model() -> Any:
    """Of random weights, large enough for a distribution that is far from even."""
    torch.manual_seed(0)
    config = Qwen3Config(**SHAPE, head_dim=8, initializer_range=0.7)
    return Qwen3ForCausalLM._from_config(config, attn_implementation="sdpa").eval().requires_grad_(False)


def decoder(model: Any, cache_tokens: int = 1 << 20, *, share_prompts: bool = True) -> Decoder:
    return Decoder(model, frozenset({END}), 40, cache_tokens, share_prompts)


def requests(count: int, seed: int = 0) -> list[Request]:
    """Prompts of several lengths, three requests to each."""
    drawn = np.random.default_rng(seed)
    prompts = [drawn.integers(0, VOCABULARY, int(drawn.integers(1, 9))).astype(np.int32) for _ in range(-(-count // 3))]
    return [Request(prompts[number // 3], 1000 * seed + number) for number in range(count)]


def answers(decoder: Decoder, asked: Sequence[Request], how: SamplingSettings = FREELY) -> list[Drawn]:
    """In the order asked; each comes once."""
    given: dict[int, Drawn] = {}
    for ended in decoder(asked, how):
        assert not given.keys() & {number for number, _ in ended}
        given |= ended
    return [given[number] for number in range(len(asked))]


def logits_after(model: Any, tokens: Sequence[int] | IntArray) -> torch.Tensor:
    """[L, V], by a plain forward pass without a cache."""
    logits: torch.Tensor = model(input_ids=torch.tensor([list(map(int, tokens))])).logits[0]
    return logits


@pytest.mark.parametrize("how", [FREELY, SamplingSettings(0.7, 0.8, 12), SamplingSettings(0.0, 1.0, 12)])
def test_logprobs_are_those_of_the_distribution_drawn_from(model: Any, how: SamplingSettings) -> None:
    asked = requests(20)
    for request, found in zip(asked, answers(decoder(model), asked, how), strict=True):
        own = logits_after(model, [*request.prompt_ids, *found.token_ids])[len(request.prompt_ids) - 1 : -1]
        logprobs = nucleus(own / (how.temperature or 1.0), how.top_p).log_softmax(-1)
        expected = logprobs.gather(-1, torch.tensor(found.token_ids)[:, None])[:, 0]
        np.testing.assert_allclose(found.logprobs, expected, atol=1e-5)
        if not how.temperature:
            assert found.token_ids == own.argmax(-1).tolist()


def test_tokens_are_as_frequent_as_the_model_says(model: Any) -> None:
    prompt, count = np.array([5, 1, 7], dtype=np.int32), 4000
    how = SamplingSettings(1.3, 0.9, 2, ignore_eos=True)
    found = answers(decoder(model), [Request(prompt, seed) for seed in range(count)], how)
    first = nucleus(logits_after(model, prompt)[-1:] / 1.3, 0.9).softmax(-1)[0]
    expected = torch.zeros(VOCABULARY, VOCABULARY)
    for token in range(VOCABULARY):
        after = nucleus(logits_after(model, [*prompt, token])[-1:] / 1.3, 0.9).softmax(-1)[0]
        expected[token] = first[token] * after
    seen = torch.zeros_like(expected)
    for drawn in found:
        seen[drawn.token_ids[0], drawn.token_ids[1]] += 1
    assert not seen[expected == 0].any(), "what top_p leaves out is never drawn"
    spread = (expected * (1 - expected) / count).sqrt()
    assert ((seen / count - expected).abs() <= 5 * spread + 1e-6).all()


@given(st.integers(0, 2**31 - 1), st.integers(1, 64), st.integers(1, 64))
def test_fewer_random_numbers_are_the_first_ones_of_more(seed: int, some: int, more: int) -> None:
    assert torch.equal(noise_of(seed, some), noise_of(seed, some + more)[:some])


@pytest.fixture(scope="module")
def alone(model: Any) -> list[Drawn]:
    """The response to each of 24 requests, drawn by itself."""
    return [answers(decoder(model), [request])[0] for request in requests(24)]


@settings(max_examples=12, deadline=None)
@given(
    chosen=st.lists(st.integers(0, 23), min_size=1, max_size=24, unique=True),
    cache_tokens=st.sampled_from([1, 60, 200, 1 << 20]),
    share=st.booleans(),
)
def test_a_response_depends_on_its_own_request_alone(
    model: Any, alone: list[Drawn], chosen: list[int], cache_tokens: int, share: bool
) -> None:
    asked = [requests(24)[number] for number in chosen]
    together = answers(decoder(model, cache_tokens, share_prompts=share), asked)
    for number, found in zip(chosen, together, strict=True):
        assert found.token_ids == alone[number].token_ids
        assert found.finish_reason == alone[number].finish_reason
        np.testing.assert_allclose(found.logprobs, alone[number].logprobs, atol=1e-5)


def test_responses_end_where_they_are_to(model: Any) -> None:
    asked = [*requests(60), Request(np.full(38, 4, np.int32), 1)]  # of which two tokens more fit the model
    found = answers(decoder(model), asked)
    assert {drawn.finish_reason for drawn in found[:-1]} == {"stop", "length"}
    for drawn in found[:-1]:
        stopped = drawn.finish_reason == "stop"
        assert (drawn.token_ids[-1] == END) == stopped
        assert END not in drawn.token_ids[:-1]
        assert stopped or len(drawn.token_ids) == FREELY.max_tokens
    assert len(found[-1].token_ids) <= 2
    on = answers(decoder(model), asked, SamplingSettings(1.0, 1.0, 12, ignore_eos=True))
    assert [len(drawn.token_ids) for drawn in on] == [12] * 60 + [2]
    assert any(END in drawn.token_ids[:-1] for drawn in on)


def test_short_responses_come_before_long_ones_end(model: Any) -> None:
    batches = list(decoder(model)(requests(60), FREELY))
    assert len(batches) > 2
    assert len(batches[0][0][1].token_ids) < FREELY.max_tokens


def test_rows_that_end_make_room_for_others(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many are asked for, the cache holds as many rows as it has room for, and little time is idle."""
    widths, own = list[int](), decoder(model, cache_tokens=8 * 21)
    forward = own.forward
    monkeypatch.setattr(own, "forward", lambda rows, tokens: (widths.append(len(tokens)), forward(rows, tokens))[1])
    found = answers(own, requests(90))
    assert max(widths) <= 8
    steps = sum(len(drawn.token_ids) for drawn in found)
    assert len(widths) < 0.5 * steps, "side by side"
    assert np.mean(widths[: len(widths) // 2]) > 5, "places do not stay empty while others wait"


@pytest.mark.parametrize("length", [0, 40])
def test_a_prompt_without_room_is_refused(model: Any, length: int) -> None:
    with pytest.raises(ValueError, match=f"a prompt of {length} tokens: .*max_model_len=40"):
        answers(decoder(model), [Request(np.zeros(length, np.int32), 0)])


def test_long_prompts_are_forwarded_a_few_at_a_time() -> None:
    from collections import deque

    long = [Request(np.full(5000, number // 2, np.int32), number) for number in range(6)]
    waiting = deque(range(6))
    assert [next_rows(waiting, long, 3), next_rows(waiting, long, 3), next_rows(waiting, long, 3)] == [
        [0, 1],
        [2, 3],
        [4, 5],
    ]
    assert next_rows(deque(range(6)), requests(6), 4) == [0, 1, 2, 3]


def test_the_largest_random_number_still_draws_a_token_that_can_be() -> None:
    logits = torch.tensor([[0.0, 1.0, -torch.inf], [2.0, -torch.inf, -torch.inf]])
    for noise in (0.0, 1.0 - 2.0**-53):
        tokens, logprobs = draw(logits, torch.full((2,), noise, dtype=torch.float64), FREELY)
        assert tokens.tolist() == [int(noise > 0), 0]
        assert torch.isfinite(logprobs).all()


@given(st.lists(st.floats(-8, 8, width=32), min_size=2, max_size=12), st.floats(0.05, 1.0))
def test_the_nucleus_is_the_smallest_set_with_its_share(values: list[float], top_p: float) -> None:
    logits = torch.tensor([values])
    kept = nucleus(logits, top_p).isfinite()[0]
    shares = logits.double().softmax(-1)[0]
    assert kept.any()
    assert shares[kept].sum() >= top_p - 1e-5
    assert shares[kept].sum() - shares[kept].min() < top_p + 1e-5, "without the least likely it would be too little"
    assert not kept.any() or kept.all() or shares[kept].min() >= shares[~kept].max() - 1e-7


def test_a_window_of_attention_is_kept_to() -> None:
    torch.manual_seed(1)
    window = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
    config = Qwen2Config(**SHAPE, initializer_range=0.7, **window)
    assert set(config.layer_types) == {"full_attention", "sliding_attention"}
    windowed = Qwen2ForCausalLM._from_config(config, attn_implementation="sdpa").eval().requires_grad_(False)
    asked = requests(9)
    for request, found in zip(asked, answers(decoder(windowed), asked), strict=True):
        own = logits_after(windowed, [*request.prompt_ids, *found.token_ids])[len(request.prompt_ids) - 1 : -1]
        expected = own.log_softmax(-1).gather(-1, torch.tensor(found.token_ids)[:, None])[:, 0]
        np.testing.assert_allclose(found.logprobs, expected, atol=1e-5)


def test_layers_with_another_state_are_refused(model: Any) -> None:
    check_cacheable(model.config)
    config = Qwen3Config(**SHAPE)
    config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(ValueError, match="layer_types hold linear_attention"):
        check_cacheable(config)


def test_room_is_counted_in_keys_and_values_of_all_layers(model: Any) -> None:
    assert bytes_per_token(model.config, torch.float32) == 2 * 2 * 2 * 8 * 4


# ------------------------------------------------------------------ the worker


@pytest.fixture(scope="module")
def worker() -> HfSamplerWorker:
    return HfSamplerWorker(
        model_path=str(ROOT / "datasets" / "chain" / "model"),
        device="cpu",
        max_model_len=64,
        seed=0,
        enable_prefix_caching=True,
        gpu_memory_utilization=0.5,
        kv_cache_mib=8,
        transfer_backend="gloo",
    )


def test_scores_are_a_plain_forward_whatever_is_scored_beside(worker: HfSamplerWorker) -> None:
    drawn = np.random.default_rng(0)
    sequences = [drawn.integers(0, 430, length).astype(np.int32) for length in (5, 1, 60, 2, 33)]
    scores = worker.score(sequences)
    assert [len(score) for score in scores] == [4, 0, 59, 1, 32]
    for sequence, score in zip(sequences, scores, strict=True):
        logprobs = logits_after(worker.model, sequence)[:-1].log_softmax(-1)
        expected = logprobs.gather(-1, torch.from_numpy(sequence[1:].astype(np.int64))[:, None])[:, 0]
        np.testing.assert_allclose(score, expected, atol=1e-5)
    assert worker.score([]) == []


def test_nothing_is_sampled_while_weights_are_on_their_way(worker: HfSamplerWorker) -> None:
    asked = [Request(np.array([5, 9], np.int32), 1)]
    assert [version for version, _ in worker.sample(asked, FREELY)] == [0]
    worker.start_weight_update()
    with pytest.raises(RuntimeError, match="the weights after version 0 have not come"):
        list(worker.sample(asked, FREELY))
    worker.finish_weight_update(3)
    assert [version for version, _ in worker.sample(asked, FREELY)] == [3]
    worker.finish_weight_update(0)


def test_the_text_is_without_what_ended_it(worker: HfSamplerWorker) -> None:
    prompt = np.array(worker.tokenizer.encode("3 + 4 ="), np.int32)
    found = [
        response
        for _, some in worker.sample([Request(prompt, seed) for seed in range(40)], SamplingSettings(1.0, 1.0, 30))
        for _, response in some
    ]
    assert {response.finish_reason for response in found} == {"stop", "length"}
    for response in found:
        assert worker.tokenizer.eos_token not in response.text
        kept = [token for token in response.token_ids.tolist() if token not in worker.tokenizer.all_special_ids]
        assert response.text == worker.tokenizer.decode(kept, clean_up_tokenization_spaces=False)


def test_it_needs_no_vllm(tmp_path: Path) -> None:
    script = f"""
import sys
sys.modules["vllm"] = None  # importing it fails
import numpy as np
from trainer.assemble import SAMPLERS
from trainer.workers.sampler_types import Request, SamplingSettings
model = {str(ROOT / "datasets" / "chain" / "model")!r}
worker = SAMPLERS["hf"](model_path=model, device="cpu", max_model_len=64, seed=0, enable_prefix_caching=True,
    gpu_memory_utilization=0.5, kv_cache_mib=8, transfer_backend="gloo")
[(version, found)] = worker.sample([Request(np.array([7, 8], np.int32), 1)], SamplingSettings(1.0, 1.0, 4))
assert len(found) == 1 and worker.describe().keys() == {{"hf"}}
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


def test_what_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from trainer import inputs

    monkeypatch.setattr(inputs.importlib.util, "find_spec", lambda name: None)
    [said] = inputs.missing_engine("rollout_backend", "vllm")
    assert said.startswith("rollout_backend=vllm: vLLM is not installed")
    assert "ROLLOUT_BACKEND=hf" in said
    assert inputs.missing_engine("rollout_backend", "hf") == []
    assert "no version of SGLang has both" in inputs.missing_engine("rollout_backend", "sglang")[0]
