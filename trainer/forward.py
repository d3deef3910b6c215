"""Forward passes of the actor: only response positions reach the vocabulary.

L  tokens of prompt and response, padded on the right        T  response tokens, padded
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mopd.types import FloatArray, IntArray
from trainer.packing import Sample


@dataclass(frozen=True)
class TokenBatch:
    """Prompts and responses of one micro-batch. Padding is on the right, where causal attention never looks."""

    input_ids: Tensor
    """[B, L]"""
    positions: Tensor
    """[B, T], of the hidden state that predicts each response token; 0 in padding."""
    tokens: Tensor
    """[B, T], the response; 0 in padding."""
    present: Tensor
    """[B, T], 1 where there is a response token."""

    def to(self, device: torch.device) -> TokenBatch:
        """The same on another device."""
        return TokenBatch(
            self.input_ids.to(device), self.positions.to(device), self.tokens.to(device), self.present.to(device)
        )


def batch_of(prompts: Sequence[IntArray], responses: Sequence[IntArray], device: torch.device) -> TokenBatch:
    """Lays prompts and responses out as padded rows."""
    rows, longest = len(prompts), max(len(response) for response in responses)
    width = max(len(prompt) + len(response) for prompt, response in zip(prompts, responses, strict=True))
    input_ids = np.zeros((rows, width), dtype=np.int64)
    positions = np.zeros((rows, longest), dtype=np.int64)
    tokens = np.zeros((rows, longest), dtype=np.int64)
    present = np.zeros((rows, longest), dtype=np.float32)
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        start, length = len(prompt), len(response)
        input_ids[row, : start + length] = np.concatenate([prompt, response])
        positions[row, :length] = np.arange(start - 1, start + length - 1)
        tokens[row, :length] = response
        present[row, :length] = 1
    arrays = (input_ids, positions, tokens, present)
    return TokenBatch(*(torch.from_numpy(array).to(device) for array in arrays))


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


def fitted(logits: Tensor, vocabulary: int) -> Tensor:
    """Another model's logits [B, T, V'] on the student's vocabulary [B, T, V]: padding rows cut, or made impossible."""
    missing = vocabulary - logits.shape[-1]
    return logits[..., :vocabulary] if missing <= 0 else nn.functional.pad(logits, (0, missing), value=-torch.inf)


class ResponseScorer(nn.Module):
    """A causal language model that projects the hidden states of response positions only."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model: Any = model

    def forward(self, batch: TokenBatch, temperature: float) -> Tensor:
        """Logits [B, T, V] in fp32, divided by `temperature`."""
        hidden_B_L_H = self.model.model(input_ids=batch.input_ids).last_hidden_state
        index = batch.positions.unsqueeze(-1).expand(-1, -1, hidden_B_L_H.shape[-1])
        logits: Tensor = self.model.lm_head(hidden_B_L_H.gather(1, index))
        return logits.float() / temperature
