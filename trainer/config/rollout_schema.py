"""The schema's section `actor_rollout_ref.rollout`: how attempts are drawn."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from trainer.config.strict import STRICT


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ValKwargs:
    n: int = Field(ge=1)
    """Responses per held-out prompt: the k of mean@k and pass@k."""
    temperature: float = Field(ge=0)
    """Sampling temperature in validation; 0 is greedy."""
    top_p: float = Field(gt=0, le=1)
    """Nucleus of validation sampling."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RolloutHorizon:
    kind: Literal["const", "linear-step", "ratio"]
    """Longest response by step: always max_response_length, growing up to it (POPD), or a share of it (TOPD)."""
    start: int = Field(ge=1)
    """linear-step: tokens before the first update."""
    increment: int = Field(ge=1)
    """linear-step: tokens added each time."""
    interval: int = Field(ge=1)
    """linear-step: steps between additions."""
    ratio: float = Field(gt=0, le=1)
    """ratio: share of max_response_length."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Rollout:
    name: Literal["vllm", "hf", "sglang"]
    """What samples: vLLM, or hf: the model's own forward passes (transformers), for machines without vLLM. sglang is
    refused: no version of it fits the other packages."""
    n: int = Field(ge=1)
    """Rollouts per prompt: the size of a group."""
    temperature: float = Field(gt=0)
    """Sampling temperature in training; divergences and log-probs use the same."""
    enable_prefix_caching: bool
    """Shares the prompt's keys and values among the rollouts of a group."""
    max_model_len: int | None = Field(ge=1)
    """Longest prompt and response together; null: max_prompt_length + max_response_length."""
    n_samplers: int = Field(ge=1)
    """Engines that sample side by side; on GPUs the first shares one with actor rank 0, each other has its own."""
    free_cache_engine: bool
    """Frees the sampler's GPU memory, weights and cache, while the actor learns; the next weights wake it. Without a
    GPU there is nothing to free."""
    gpu_memory_utilization: float = Field(gt=0, le=1)
    """Share of a GPU's memory that the sampler may take."""
    kv_cache_mib: int = Field(ge=1)
    """Key-value cache of the sampler on a machine without a GPU, in MiB."""
    update_weights_bucket_megabytes: int = Field(ge=1)
    """Most weights gathered and sent to the sampler at once, in MiB; a larger weight travels alone."""
    sync_tolerance: Literal["auto"] | Annotated[float, Field(ge=0)] | None
    """Most nats between sampler and actor after a publish; auto: 1e-3 on the CPU, 1.0 on GPUs; null never stops."""
    horizon: RolloutHorizon
    val_kwargs: ValKwargs
