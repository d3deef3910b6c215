"""A model's sizes, from its `config.json` alone: no weights are needed, and none are made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM


@dataclass(frozen=True)
class Architecture:
    """What memory and time depend on."""

    parameters: int
    """All weights; tied ones count once."""
    layer: int
    """Weights of one decoder layer: the mean, where layers differ."""
    largest: int
    """Elements of the largest weight."""
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    """Width of the feed-forward part, of all experts that a token meets together."""
    vocabulary: int
    tied: bool
    """Whether the output layer is the embedding."""

    @property
    def root(self) -> int:
        """Weights outside the decoder layers: embedding, output layer, last norm."""
        return self.parameters - self.layers * self.layer

    @property
    def matrices(self) -> int:
        """Weights that every token is multiplied by; the embedding is looked up, the output layer counts apart."""
        return self.layers * self.layer

    @property
    def query_width(self) -> int:
        """Elements of a token's queries in one layer."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Elements of a token's keys, and of its values, in one layer."""
        return self.kv_heads * self.head_dim


def skeleton_of(folder: str) -> Any:
    """The model whose `config.json` lies in `folder`, without the values of its weights.

    Raises:
        OSError, ValueError, KeyError: the description cannot be read, or is of no model that transformers knows.
    """
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))


def architecture_of(folder: str) -> Architecture:
    """The sizes of the model whose `config.json` lies in `folder`.

    Raises:
        OSError, ValueError, KeyError: the description cannot be read, or is of no model that transformers knows.
    """
    model = skeleton_of(folder)
    config = model.config
    text = config.get_text_config()
    counts = {name: parameter.numel() for name, parameter in model.named_parameters()}
    layers = int(text.num_hidden_layers)
    within = sum(count for name, count in counts.items() if ".layers." in name)
    return Architecture(
        parameters=sum(counts.values()),
        layer=within // layers,
        largest=max(counts.values()),
        layers=layers,
        hidden=int(text.hidden_size),
        heads=int(text.num_attention_heads),
        kv_heads=int(getattr(text, "num_key_value_heads", None) or text.num_attention_heads),
        head_dim=int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads),
        intermediate=int(text.intermediate_size) * int(getattr(text, "num_experts_per_tok", None) or 1),
        vocabulary=int(text.vocab_size),
        tied=bool(config.tie_word_embeddings),
    )
