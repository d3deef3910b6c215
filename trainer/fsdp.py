"""FSDP2: the student and the EMA teacher, sharded alike over the ranks; full weights by name; a teacher kept whole."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

from trainer.attention import PACKED, check_packable
from trainer.forward import ResponseScorer


def build_scorer(
    model_path: str, mesh: DeviceMesh, *, attn_implementation: str, gradient_checkpointing: bool
) -> ResponseScorer:
    """The model of a folder, masters in fp32, sharded layer by layer over `mesh`.

    Computes in bf16 on CUDA and in fp32 on the CPU; gradients are reduced in fp32 on both.
    """
    model = load_model(model_path, torch.float32, attn_implementation)
    if gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    scorer = ResponseScorer(model.to(mesh.device_type))
    precision = MixedPrecisionPolicy(param_dtype=compute_dtype(mesh.device_type), reduce_dtype=torch.float32)
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=precision)
    fully_shard(scorer, mesh=mesh, mp_policy=precision)
    return scorer


def whole_scorer(model_path: str, device: torch.device, attn_implementation: str) -> ResponseScorer:
    """The model of a folder, whole on one device, in the dtype that the sharded ones compute in; it is not trained."""
    model = load_model(model_path, compute_dtype(device.type), attn_implementation)
    return ResponseScorer(model.to(device)).eval().requires_grad_(False)


def load_model(model_path: str, dtype: torch.dtype, attn_implementation: str) -> Any:
    """The causal language model of a folder, on the CPU, without a cache of keys and values.

    Raises:
        ValueError: its logits are not those of a plain output matrix, or its attention cannot be packed.
    """
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=dtype, attn_implementation=attn_implementation)
    model.config.use_cache = False
    check_head(model, model_path)
    if attn_implementation == PACKED:
        check_packable(model.config)
    return model


def check_head(model: Any, model_path: str) -> None:
    """Refuses a model whose logits are not hidden @ weight.T: the loss would be of other logits than the sampler's.

    Raises:
        ValueError: the output layer has a bias, or logits are scaled or capped.
    """
    bias = getattr(model.lm_head, "bias", None) is not None
    scaled = [name for name in ("final_logit_softcapping", "logit_scale", "logits_scaling") if scales(model, name)]
    if bias or scaled:
        what = "a bias in its output layer" if bias else f"{scaled[0]}={getattr(model.config, scaled[0])!r}"
        raise ValueError(
            f"the model in {model_path} has {what}, which training does not reproduce; take one of a family whose "
            "logits are the plain product with the output matrix, such as Qwen, Llama or Mistral"
        )


def scales(model: Any, name: str) -> bool:
    """Whether a configuration value changes the logits."""
    return getattr(model.config, name, None) not in (None, 1, 1.0)


def compute_dtype(device_type: str) -> torch.dtype:
    """bf16 on CUDA, fp32 on the CPU."""
    return torch.bfloat16 if device_type == "cuda" else torch.float32


def shards(module: nn.Module) -> list[Tensor]:
    """This rank's part of every parameter, in order."""
    return [whole.to_local() if isinstance(whole, DTensor) else whole for whole in module.parameters()]


def full_weights(scorer: ResponseScorer) -> Iterator[tuple[str, Tensor]]:
    """Every weight under its Hugging Face name, whole, one at a time; it may share the student's memory.

    Every rank must run through it: gathering a weight is a collective. Tied weights come once.
    """
    for name, parameter in scorer.model.named_parameters():
        detached = parameter.detach()
        yield name, detached.full_tensor() if isinstance(detached, DTensor) else detached


def gradient_norm(module: nn.Module, limit: float) -> float:
    """The norm of the whole gradient over all ranks; gradients are scaled down to `limit` in place."""
    norm = torch.nn.utils.clip_grad_norm_(module.parameters(), limit)
    whole = norm.full_tensor() if isinstance(norm, DTensor) else norm
    return float(whole)
