"""The sampler: a vLLM engine in this process, its weights replaced after every step."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from trainer.workers.sampler_types import Request, Response, SamplingSettings

CPU_BATCHED_TOKENS = 8192
"""Tokens that the engine takes in one go on a machine without a GPU."""


class SamplerWorker:
    """Draws responses with vLLM and takes new weights by name."""

    def __init__(
        self,
        *,
        model_path: str,
        device: str,
        max_model_len: int,
        seed: int,
        enable_prefix_caching: bool,
        gpu_memory_utilization: float,
        kv_cache_mib: int,
    ) -> None:
        # Here and not above: whoever only names this class need not wait for the engine's import.
        import vllm

        on_cpu = device == "cpu"
        # On CPU a prompt goes in whole: the engine rewinds a seeded generator after a partial prompt,
        # which CPU generators cannot do.
        machine: dict[str, Any] = (
            {
                "kv_cache_memory_bytes": kv_cache_mib << 20,
                "enable_chunked_prefill": False,
                "max_num_batched_tokens": max(max_model_len, CPU_BATCHED_TOKENS),
                "enforce_eager": True,
            }
            if on_cpu
            else {"gpu_memory_utilization": gpu_memory_utilization}
        )
        self.engine = vllm.LLM(
            model=model_path,
            dtype="float32" if on_cpu else "bfloat16",
            max_model_len=max_model_len,
            seed=seed % 2**31,
            enable_prefix_caching=enable_prefix_caching,
            # Of the tempered, truncated distribution; vLLM's default would ignore the temperature.
            logprobs_mode="processed_logprobs",
            disable_log_stats=True,
            **machine,
        )
        self.on_cpu, self.version, self.vllm_version = on_cpu, 0, str(vllm.__version__)

    def describe(self) -> dict[str, str]:
        """The running engine's version."""
        return {"vllm": self.vllm_version}

    def sample(self, requests: Sequence[Request], settings: SamplingSettings) -> tuple[int, list[Response]]:
        """The policy version and one response per request, in order."""
        from vllm import SamplingParams, TokensPrompt

        prompts = [TokensPrompt(prompt_token_ids=request.prompt_ids.tolist()) for request in requests]
        parameters = [
            SamplingParams(
                temperature=settings.temperature,
                top_p=settings.top_p,
                max_tokens=settings.max_tokens,
                seed=request.seed,
                logprobs=0,
            )
            for request in requests
        ]
        answers = self.engine.generate(prompts, parameters, use_tqdm=False)
        return self.version, [response_of(answer.outputs[0]) for answer in answers]

    def load(self, weights: Mapping[str, torch.Tensor], version: int) -> float:
        """Replaces the weights and forgets cached prefixes; returns the seconds it took."""
        started = time.perf_counter()

        def named_weights() -> Iterator[tuple[str, torch.Tensor]]:
            yield from weights.items()

        self.engine.collective_rpc("reload_weights", kwargs={"weights_iterator": named_weights()})
        if self.on_cpu:
            self.engine.apply_model(repack_tied_head)
        self.engine.reset_prefix_cache()
        self.version = version
        return time.perf_counter() - started


def response_of(output: Any) -> Response:
    """vLLM's completion as arrays."""
    logprobs = [entry[token].logprob for entry, token in zip(output.logprobs, output.token_ids, strict=True)]
    return Response(
        np.asarray(output.token_ids, dtype=np.int32),
        np.asarray(logprobs, dtype=np.float32),
        output.text,
        str(output.finish_reason or "error"),
    )


def repack_tied_head(model: Any) -> None:
    """Rebuilds the packed copy of an output layer that shares the embedding's weights.

    On CPU linear layers compute from a packed copy. A reload refreshes it only for layers that
    receive weights of their own; a tied output layer receives none and would keep the old values.
    """
    head = getattr(model, "lm_head", None)
    embedding = getattr(getattr(model, "model", None), "embed_tokens", None)
    if head is None or embedding is None or head.weight.data_ptr() != embedding.weight.data_ptr():
        return
    head.quant_method.process_weights_after_loading(head)
