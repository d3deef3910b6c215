"""FSDP2: the student and the EMA teacher, sharded alike over the ranks; full weights by name; a teacher kept whole.

With adapters both are one model: a frozen base, and factors of each.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

from trainer.adapters import FACTORS, Adapted, AdapterSettings, adapt, factors, is_factor, merged
from trainer.attention import PACKED, check_packable
from trainer.forward import ResponseScorer


@dataclass(frozen=True)
class Adapting:
    """Adapters that a model is given before it is sharded."""

    settings: AdapterSettings
    seed: int
    """What the factors begin with."""
    teacher: bool
    """Whether the teacher has factors too."""


def build_scorer(
    model_path: str,
    mesh: DeviceMesh,
    *,
    attn_implementation: str,
    gradient_checkpointing: bool,
    adapting: Adapting | None = None,
) -> ResponseScorer:
    """The model of a folder, masters in fp32, sharded layer by layer over `mesh`.

    Computes in bf16 on CUDA and in fp32 on the CPU; gradients are reduced in fp32 on both. Under adapters the model's
    own weights are never changed, and kept as they are computed with. Raises ValueError as `adapt` does.
    """
    kept = torch.float32 if adapting is None else compute_dtype(mesh.device_type)
    model = load_model(model_path, kept, attn_implementation)
    adapters = None if adapting is None else adapt(model, adapting.settings, adapting.seed, teacher=adapting.teacher)
    if gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    scorer = ResponseScorer(model.to(mesh.device_type), adapters)
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
    return local(module.parameters())


def local(parameters: Iterable[Tensor]) -> list[Tensor]:
    """This rank's part of each."""
    return [one.to_local() if isinstance(one, DTensor) else one for one in parameters]


def full_weights(scorer: ResponseScorer) -> Iterator[tuple[str, Tensor]]:
    """Every weight under its Hugging Face name, whole, one at a time; it may share the student's memory.

    Every rank must run through it: gathering a weight is a collective. Tied weights come once. Adapters come merged
    into the weights that they belong to, and then all are fp32.
    """
    for name, parameter in scorer.model.named_parameters():
        if is_factor(name):
            continue
        weight, layer = whole(parameter), scorer.model.get_submodule(name.rpartition(".")[0])
        if isinstance(layer, Adapted) and name.endswith(".weight"):
            down, up = (whole(getattr(layer, factor)) for factor in FACTORS["student"])
            weight = merged(weight, down, up, layer.shared.settings.scale)
        yield name, weight if scorer.adapters is None else weight.float()


def full_sizes(scorer: ResponseScorer) -> list[int]:
    """How many elements each of `full_weights` has."""
    return [parameter.numel() for name, parameter in scorer.model.named_parameters() if not is_factor(name)]


def full_factors(scorer: ResponseScorer) -> Iterator[tuple[str, Tensor]]:
    """The student's factors by name, as `full_weights`."""
    for name, parameter in factors(scorer.model, "student").items():
        yield name, whole(parameter)


def whole(parameter: Tensor) -> Tensor:
    """A parameter, gathered from all ranks, without gradient."""
    detached = parameter.detach()
    return detached.full_tensor() if isinstance(detached, DTensor) else detached


def gradient_norm(module: nn.Module, limit: float) -> float:
    """The norm of the whole gradient over all ranks; gradients are scaled down to `limit` in place."""
    norm = torch.nn.utils.clip_grad_norm_(module.parameters(), limit)
    whole = norm.full_tensor() if isinstance(norm, DTensor) else norm
    return float(whole)
