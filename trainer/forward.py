"""Forward passes of the actor: from a batch's tokens to the hidden states that predict its responses.

T  response tokens, padded        M  response tokens, all sequences in a row
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mopd.types import FloatArray
from trainer.adapters import Adapters
from trainer.layout import TokenBatch, hidden_states
from trainer.packing import Sample


def padded(arrays: Sequence[FloatArray], like: Tensor) -> Tensor:
    """Per-token arrays [T] of a micro-batch as one tensor shaped as `like` [B, T], zero in padding."""
    rows = np.zeros(tuple(like.shape), dtype=np.float32)
    for row, array in enumerate(arrays):
        rows[row, : len(array)] = array
    return torch.from_numpy(rows).to(like.device)


def step_rows(samples: Sequence[Sample], like: Tensor) -> Tensor:
    """The reasoning step of every token of a micro-batch, shaped as `like` [B, T]; -1 in padding."""
    rows = np.full(tuple(like.shape), -1, dtype=np.int64)
    for row, sample in enumerate(samples):
        if sample.step_ids is not None:
            rows[row, : len(sample.step_ids)] = sample.step_ids
    return torch.from_numpy(rows).to(like.device)


class ResponseScorer(nn.Module):
    """A causal language model up to its output matrix, which whoever needs it finds in `head`."""

    def __init__(self, model: Any, adapters: Adapters | None = None) -> None:
        super().__init__()
        self.model: Any = model
        self.adapters = adapters
        """What the adapted layers have in common; None where all weights are the model's own."""

    def forward(self, batch: TokenBatch) -> Tensor:
        """Hidden states [M, H] that predict the batch's response tokens."""
        return hidden_states(self.model, batch)

    @property
    def head(self) -> Tensor:
        """The output matrix [V, H]; of a sharded model it is whole between a forward pass and its resharding."""
        weight: Tensor = self.model.lm_head.weight
        return weight
