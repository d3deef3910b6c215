"""The sampler: a vLLM engine in this process, its weights replaced after every step."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mopd.types import FloatArray, IntArray
from trainer.garbage import uncollected
from trainer.memory_use import Peaks, peaks
from trainer.workers.sampler_types import TELL_EVERY_S, Fingerprint, Request, Response, SamplingSettings

CPU_BATCHED_TOKENS = 8192
"""Tokens that the engine takes in one go on a machine without a GPU."""


class SamplerWorker:
    """Draws responses with vLLM; takes new weights by vLLM's weight-transfer calls, which keep their names here."""

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
        transfer_backend: str,
        free_cache_engine: bool = False,
    ) -> None:
        # Here and not above: whoever only names this class need not wait for the engine's import.
        with uncollected():  # afterwards the engine collects garbage several times while it starts
            import vllm
            from vllm.config import WeightTransferConfig

            from trainer.workers import sampler_transfer

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
            else {"gpu_memory_utilization": gpu_memory_utilization, "enable_sleep_mode": free_cache_engine}
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
            weight_transfer_config=WeightTransferConfig(backend=transfer_backend),
            **machine,
        )
        self.transfer = sampler_transfer
        self.on_cpu, self.version, self.vllm_version = on_cpu, 0, str(vllm.__version__)
        self.whole, self.asleep = True, False
        """False from the first bucket of a version to its last; whether weights and cache were given up."""

    def describe(self) -> dict[str, str]:
        """The running engine's version."""
        return {"vllm": self.vllm_version}

    def sample(
        self, requests: Sequence[Request], settings: SamplingSettings
    ) -> Iterator[tuple[int, list[tuple[int, Response]]]]:
        """Yields the policy version and finished responses with the numbers of their requests, as decoding goes on.

        In what order they finish, and how many are yielded at once, depends on the machine; the responses do not.

        Raises:
            RuntimeError: an update of the weights was begun and not finished.
        """
        if not self.whole:
            raise RuntimeError(
                f"the weights after version {self.version} have not come, or in part only; nothing is sampled"
            )
        from vllm import SamplingParams, TokensPrompt

        prompts = [TokensPrompt(prompt_token_ids=request.prompt_ids.tolist()) for request in requests]
        parameters = [
            SamplingParams(
                temperature=settings.temperature,
                top_p=settings.top_p,
                max_tokens=settings.max_tokens,
                ignore_eos=settings.ignore_eos,
                seed=request.seed,
                logprobs=0,
                flat_logprobs=True,
            )
            for request in requests
        ]
        names = self.engine.enqueue(prompts, parameters, use_tqdm=False)
        numbers = {int(name.partition("-")[0]): number for number, name in enumerate(names)}
        finished: list[tuple[int, Response]] = []
        told = time.monotonic()
        while self.engine.llm_engine.has_unfinished_requests():
            answers = [answer for answer in self.engine.llm_engine.step() if answer.finished]
            finished += [(numbers[int(answer.request_id)], response_of(answer.outputs[0])) for answer in answers]
            if finished and time.monotonic() - told > TELL_EVERY_S:
                yield self.version, finished
                finished, told = [], time.monotonic()
        if finished:
            yield self.version, finished

    def memory(self) -> Peaks:
        """The most that this process held since it was last asked."""
        return peaks("cpu" if self.on_cpu else "cuda")

    def sleep(self) -> None:
        """Gives up weights and cache on a GPU, and their memory; the next weights wake the engine."""
        if self.on_cpu:
            return
        self.engine.sleep(level=2)
        self.whole, self.asleep = False, True

    def init_weight_transfer_engine(self, init_info: Mapping[str, Any]) -> None:
        """Opens the way by which weights will come."""
        self.engine.collective_rpc("init_weight_transfer_engine", kwargs={"init_info": init_info})

    def start_weight_update(self) -> None:
        """Makes the model wait for weights; nothing may be sampled until they are all there."""
        self.whole = False
        if self.asleep:
            self.engine.wake_up(tags=["weights"])
        self.engine.collective_rpc("start_weight_update")

    def update_weights(self, update_info: Mapping[str, Any]) -> None:
        """Takes one bucket."""
        self.engine.collective_rpc("update_weights", kwargs={"update_info": update_info})

    def finish_weight_update(self, version: int) -> None:
        """The last bucket was taken: the weights are those of `version` from now on."""
        self.engine.collective_rpc("finish_weight_update")
        if self.on_cpu:
            self.engine.apply_model(self.transfer.repack_tied_head)
        if self.asleep:  # only now: while weights are taken in, the cache's memory may be lacking
            self.engine.wake_up(tags=["kv_cache"])
            self.asleep = False
        self.engine.reset_prefix_cache()
        self.version, self.whole = version, True

    def score(self, sequences: Sequence[IntArray]) -> list[FloatArray]:
        """Log-probs [L - 1] of every token [L] after the first, at temperature 1."""
        from vllm import SamplingParams, TokensPrompt

        if not sequences:
            return []
        prompts = [TokensPrompt(prompt_token_ids=sequence.tolist()) for sequence in sequences]
        # The engine computes prompts with log-probs anew, whatever prefixes it has cached.
        parameters = SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
        answers = self.engine.generate(prompts, parameters, use_tqdm=False)
        # Sampling goes on as if nothing had been scored.
        self.engine.reset_prefix_cache()
        return [prompt_logprobs(answer) for answer in answers]

    def fingerprints(self) -> dict[str, Fingerprint]:
        """How every parameter group answers the probe."""
        [found] = self.engine.apply_model(self.transfer.fingerprints)
        return dict(found)


def prompt_logprobs(answer: Any) -> FloatArray:
    """vLLM's log-probs of a prompt as an array; there is none of the first token."""
    pairs = zip(answer.prompt_logprobs[1:], answer.prompt_token_ids[1:], strict=True)
    return np.asarray([entry[token].logprob for entry, token in pairs], dtype=np.float32)


def response_of(output: Any) -> Response:
    """vLLM's completion as arrays."""
    # Asked for no alternatives, the engine tells of every token drawn and of no other.
    assert list(output.logprobs.token_ids) == list(output.token_ids)
    return Response(
        np.asarray(output.token_ids, dtype=np.int32),
        np.asarray(output.logprobs.logprobs, dtype=np.float32),
        output.text,
        str(output.finish_reason or "error"),
    )
