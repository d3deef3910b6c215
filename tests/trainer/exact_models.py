"""Small models of every packable architecture, exact enough to compare ways of computing them in float64."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")
WIDTH = 32
VOCABULARY = 50


def config_of(architecture: str, **others: Any) -> Any:
    """Two layers, four heads for queries and two for keys."""
    if architecture == "mistral":
        others = {"sliding_window": None, **others}
    return AutoConfig.for_model(
        architecture,
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        **others,
    )


def exact_model(architecture: str, attention: str) -> Any:
    """In float64, with the same random weights every time."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        config_of(architecture), attn_implementation=attention, dtype=torch.float64
    )
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if hasattr(child, "variance_epsilon"):  # the library's normalisation, which computes in float32
                norm = nn.RMSNorm(child.weight.shape[0], eps=child.variance_epsilon, dtype=torch.float64)
                setattr(module, name, norm)
    return model
