"""The sampler of machines without vLLM: the model's own forward passes, in place of an engine."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from mopd.types import FloatArray, IntArray
from trainer.layout import batch_of, hidden_states
from trainer.memory_use import Peaks, peaks
from trainer.workers.decoding import Decoder, Drawn, check_cacheable
from trainer.workers.receiving import Receiver
from trainer.workers.sampler_types import TELL_EVERY_S, Fingerprint, Request, Response, SamplingSettings

SCORED_TOKENS = 8192
"""Forwarded in one go, padding included; a longer sequence goes alone."""
SCORED_ROWS = 1024
"""Tokens whose logits are there at the same time."""
GPU_MARGIN = 0.8
"""Of what the sampler may take of a GPU beside the weights, the share of its cache; the rest is for a forward pass."""


class HfSamplerWorker:
    """Draws responses with a model of transformers; the calls are those of the sampler that has vLLM."""

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
        """Loads the model; requests have seeds of their own, and there is one way for weights, so that neither `seed`
        nor `transfer_backend` is needed.

        Raises:
            ValueError: the model's layers keep another state than keys and values.
        """
        self.device, self.version = torch.device(device), 0
        self.whole = True
        """False from the first bucket of a version to its last."""
        self.dtype = torch.float32 if device == "cpu" else torch.bfloat16
        model = AutoModelForCausalLM.from_pretrained(model_path, dtype=self.dtype, attn_implementation="sdpa")
        check_cacheable(model.config)
        self.model: Any = model.to(self.device).eval().requires_grad_(False)
        self.weights = dict(self.model.named_parameters())
        self.tokenizer: Any = AutoTokenizer.from_pretrained(model_path)
        room = kv_cache_mib << 20 if device == "cpu" else self.gpu_room(gpu_memory_utilization)
        self.decoder = Decoder(
            self.model,
            ends=end_tokens(self.tokenizer, self.model.generation_config),
            max_model_len=max_model_len,
            cache_tokens=room // bytes_per_token(self.model.config, self.dtype),
            share_prompts=enable_prefix_caching,
        )

    def gpu_room(self, utilization: float) -> int:
        """Bytes of the cache on a GPU, of which the sampler may take the share `utilization`."""
        whole = torch.cuda.get_device_properties(self.device).total_memory
        return int(GPU_MARGIN * max(utilization * whole - torch.cuda.memory_allocated(self.device), 0))

    def describe(self) -> dict[str, str]:
        """The version of what draws."""
        return {"hf": str(transformers.__version__)}

    def sample(
        self, requests: Sequence[Request], settings: SamplingSettings
    ) -> Iterator[tuple[int, list[tuple[int, Response]]]]:
        """Yields the policy version and finished responses with the numbers of their requests, as decoding goes on.

        Raises:
            RuntimeError: an update of the weights was begun and not finished.
        """
        if not self.whole:
            raise RuntimeError(
                f"the weights after version {self.version} have not come, or in part only; nothing is sampled"
            )
        finished: list[tuple[int, Response]] = []
        told = time.monotonic()
        for ended in self.decoder(requests, settings):
            finished += [(number, self.response_of(drawn)) for number, drawn in ended]
            if time.monotonic() - told > TELL_EVERY_S:
                yield self.version, finished
                finished, told = [], time.monotonic()
        if finished:
            yield self.version, finished

    def response_of(self, drawn: Drawn) -> Response:
        """What was drawn, as arrays and text; the token that ended it is no text."""
        shown = drawn.token_ids[:-1] if drawn.finish_reason == "stop" else drawn.token_ids
        text = self.tokenizer.decode(shown, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        token_ids, logprobs = np.asarray(drawn.token_ids, np.int32), np.asarray(drawn.logprobs, np.float32)
        return Response(token_ids, logprobs, text, drawn.finish_reason)

    def memory(self) -> Peaks:
        """The most that this process held since it was last asked."""
        return peaks(self.device.type)

    def sleep(self) -> None:
        """Gives back what the last responses took of a GPU; the weights stay."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def init_weight_transfer_engine(self, init_info: Mapping[str, Any]) -> None:
        """Opens the way by which weights will come."""
        self.receiver = Receiver(**init_info)

    def start_weight_update(self) -> None:
        """Nothing may be sampled until all weights are there."""
        self.whole = False

    def update_weights(self, update_info: Mapping[str, Any]) -> None:
        """Takes one bucket."""
        for name, weight in self.receiver.take(**update_info):
            self.weights[name].copy_(weight)

    def finish_weight_update(self, version: int) -> None:
        """The last bucket was taken: the weights are those of `version` from now on."""
        self.version, self.whole = version, True

    def score(self, sequences: Sequence[IntArray]) -> list[FloatArray]:
        """Log-probs [L - 1] of every token [L] after the first, at temperature 1."""
        found: dict[int, FloatArray] = {}
        by_length = sorted(range(len(sequences)), key=lambda number: len(sequences[number]))
        while by_length:
            at_once = max(1, SCORED_TOKENS // len(sequences[by_length[-1]]))
            taken, by_length = by_length[-at_once:], by_length[:-at_once]
            found |= zip(taken, self.logprobs([sequences[number] for number in taken]), strict=True)
        return [found[number] for number in range(len(sequences))]

    def logprobs(self, sequences: Sequence[IntArray]) -> list[FloatArray]:
        """The same of sequences forwarded together."""
        starts, rests = zip(*((sequence[:1], sequence[1:]) for sequence in sequences), strict=True)
        batch = batch_of(starts, rests, self.device, packed=False)
        states = hidden_states(self.model, batch)
        parts = zip(states.split(SCORED_ROWS), batch.tokens.split(SCORED_ROWS), strict=True)
        scores = [
            self.model.lm_head(some).float().log_softmax(dim=-1).gather(-1, tokens[:, None])[:, 0]
            for some, tokens in parts
        ]
        return [each.cpu().numpy() for each in torch.cat(scores).split([len(rest) for rest in rests])]

    def fingerprints(self) -> dict[str, Fingerprint]:
        """How every parameter group answers the probe."""
        # Here and not above: the trainer's side needs Ray, and drawing does not.
        from trainer.weights import responses_of

        answers = responses_of(self.weights.items(), self.dtype)
        return {name.removesuffix(".weight"): Fingerprint((name,), answer) for name, answer in answers.items()}


def end_tokens(tokenizer: Any, generation: Any) -> frozenset[int]:
    """What ends a response: the tokenizer's end of sequence, and what the model's generation configuration adds."""
    ends = generation.eos_token_id
    more = ends if isinstance(ends, list) else [ends]
    return frozenset(token for token in (tokenizer.eos_token_id, *more) if token is not None)


def bytes_per_token(config: Any, dtype: torch.dtype) -> int:
    """Of a token's keys and values in all layers."""
    text = config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return int(2 * text.num_hidden_layers * heads * width * dtype.itemsize)
