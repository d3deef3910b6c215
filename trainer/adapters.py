"""Low-rank adapters (LoRA, arXiv 2106.09685): linear layers whose weight W is frozen and takes in scale x B A, which is
trained. The one door to adapters: own code that keeps the base's names, and the files of the package PEFT.

r  the rank        A [r, in], B [out, r] the factors; B begins as zero, so that the model begins as its base
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

Voice = Literal["student", "teacher", "base"]
"""Whose factors a model with adapters uses; the base has none."""
FACTORS: Mapping[Voice, tuple[str, str]] = {
    "student": ("lora_A", "lora_B"),
    "teacher": ("teacher_A", "teacher_B"),
    "base": ("", ""),
}
"""How a layer names its A and its B."""
ALL_LINEAR = "all-linear"
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""The two files of an adapter, as PEFT names them."""


@dataclass(frozen=True)
class AdapterSettings:
    """What is adapted, and how much."""

    rank: int
    alpha: float
    targets: Literal["all-linear"] | Sequence[str]
    """Last names of the layers, such as `q_proj`; or every linear layer but the output layer."""

    @property
    def scale(self) -> float:
        """What B A is multiplied by."""
        return self.alpha / self.rank


@dataclass
class Adapters:
    """What all adapted layers of a model have in common."""

    settings: AdapterSettings
    voice: Voice = "student"
    """Whose factors they use now."""

    @contextmanager
    def speaking(self, voice: Voice) -> Iterator[None]:
        """Inside, the model has another's factors; not for a pass that is gone back through."""
        before, self.voice = self.voice, voice
        try:
            yield
        finally:
            self.voice = before


class Adapted(nn.Linear):
    """A linear layer on a frozen weight, with factors for each voice."""

    def __init__(self, linear: nn.Linear, shared: Adapters, voices: Sequence[Voice], first: Tensor) -> None:
        """Takes the place of `linear`; `first` [r, in] is where every A begins."""
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        self.weight, self.bias, self.shared = linear.weight, linear.bias, shared
        for voice in voices:
            down, up = FACTORS[voice]
            trained = voice == "student"
            zero = torch.zeros(linear.out_features, len(first))
            self.register_parameter(down, nn.Parameter(first.clone(), requires_grad=trained))
            self.register_parameter(up, nn.Parameter(zero, requires_grad=trained))

    def forward(self, input: Tensor) -> Tensor:
        """[..., out] of [..., in]."""
        output = super().forward(input)
        if self.shared.voice == "base":
            return output
        down, up = (getattr(self, name) for name in FACTORS[self.shared.voice])
        return output + self.shared.settings.scale * functional.linear(functional.linear(input, down), up)


# ------------------------------------------------------------------ the layers of a model


def target_names(model: Any, targets: Literal["all-linear"] | Sequence[str]) -> list[str]:
    """The names of the layers that are adapted, in the model's order.

    Raises:
        ValueError: a target is no linear layer of the model, or the output layer, which the loss reads by itself.
    """
    head = model.get_output_embeddings()
    linear = {
        name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and layer is not head
    }
    lasts = list(dict.fromkeys(last_name(name) for name in linear))
    unknown = [] if targets == ALL_LINEAR else [target for target in targets if target not in lasts]
    if unknown or not linear:
        raise ValueError(
            f"target_modules: {', '.join(unknown) or ALL_LINEAR} names no linear layer that can be adapted; this model "
            f"has {', '.join(lasts) or 'none'} (the output layer is never adapted)"
        )
    return [name for name in linear if targets == ALL_LINEAR or last_name(name) in targets]


def last_name(name: str) -> str:
    """What stands behind the last dot."""
    return name.rpartition(".")[-1]


def adapt(model: Any, settings: AdapterSettings, seed: int, *, teacher: bool) -> Adapters:
    """Freezes a model that is whole and puts adapters into it, for the teacher too if asked; both begin alike.

    The seed alone decides where they begin. Raises ValueError as `target_names` does.
    """
    model.requires_grad_(False)
    shared, random = Adapters(settings), torch.Generator().manual_seed(seed)
    voices: list[Voice] = ["student", "teacher"] if teacher else ["student"]
    for name in target_names(model, settings.targets):
        linear = model.get_submodule(name)
        first = torch.empty(settings.rank, linear.in_features)
        nn.init.kaiming_uniform_(first, a=math.sqrt(5), generator=random)
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, Adapted(linear, shared, voices, first.to(linear.weight.device)))
    return shared


def is_factor(name: str) -> bool:
    """Whether a parameter is an A or a B, by its name."""
    return any(last_name(name) in pair for voice, pair in FACTORS.items() if voice != "base")


def factors(model: nn.Module, voice: Voice) -> dict[str, Tensor]:
    """The parameters of one voice, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if last_name(name) in FACTORS[voice]}


def parameters_added(model: Any, settings: AdapterSettings) -> int:
    """How many elements the factors of one voice have."""
    layers = [model.get_submodule(name) for name in target_names(model, settings.targets)]
    return sum(settings.rank * (layer.in_features + layer.out_features) for layer in layers)


# ------------------------------------------------------------------ without the layers


def merged(weight: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """The weight of a plain layer that answers as the adapted one: W + scale B A, in fp32."""
    return weight.float() + scale * (up.float() @ down.float())


def merged_state(
    base: Mapping[str, Tensor], added: Mapping[str, Tensor], scale: float, voice: Voice
) -> dict[str, Tensor]:
    """The weights of a whole model by name, of its base's and of one voice's factors."""
    whole = dict(base)
    down, up = FACTORS[voice]
    for name in [name for name in added if last_name(name) == down]:
        layer = name.removesuffix(down)
        whole[f"{layer}weight"] = merged(base[f"{layer}weight"], added[name], added[f"{layer}{up}"], scale)
    return whole


@dataclass(frozen=True)
class Adapter:
    """The factors of one voice, whole, apart from their base."""

    settings: AdapterSettings
    added: Mapping[str, Tensor]
    """By name."""
    base: str
    """Folder of the model that they belong to."""

    def save(self, folder: Path) -> None:
        """Writes a folder that `peft.PeftModel.from_pretrained` loads; raises OSError where it cannot."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {peft_name(name): factor.detach().contiguous() for name, factor in self.added.items()}
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        layers = sorted({name.split(".")[-2] for name in self.added})
        (folder / CONFIG).write_text(json.dumps(peft_config(self.settings, layers, self.base), indent=2) + "\n")
        # The library makes a file for its owner alone; colleagues read checkpoints.
        (folder / WEIGHTS).chmod((folder / CONFIG).stat().st_mode)


def peft_name(name: str) -> str:
    """How PEFT names a factor."""
    layer, _, factor = name.rpartition(".")
    return f"base_model.model.{layer}.{'lora_A' if factor.endswith('_A') else 'lora_B'}.weight"


def peft_config(settings: AdapterSettings, layers: Iterable[str], base: str) -> dict[str, Any]:
    """What PEFT wants to know of an adapter."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": settings.rank,
        "lora_alpha": settings.alpha,
        "lora_dropout": 0.0,
        "target_modules": list(layers),
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
        "use_rslora": False,
        "use_dora": False,
    }
