"""How prompts and responses lie in the tensors that a model reads: packed in one row, or padded rows.

N  tokens of the packed row        B, L  padded rows and their width        M  response tokens of all rows, in row order
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mopd.types import IntArray
from trainer.attention import PACKED, Branch, Run, Segments


@dataclass(frozen=True)
class TokenBatch:
    """Prompts and responses of one micro-batch."""

    input_ids: Tensor
    """[1, N] packed, or [B, L] padded on the right, where causal attention never looks."""
    position_ids: Tensor
    """As `input_ids`: the place of each token in its own sequence."""
    segments: Segments | None
    """Where the sequences of the packed row lie; None for padded rows."""
    predictors: Tensor
    """[M], which state, of all in one line, predicts each response token."""
    tokens: Tensor
    """[M], the response tokens: all of row 0's, then all of row 1's, and so on."""
    present: Tensor
    """[B, T], 1 where a row has a response token."""

    @property
    def tokens_forwarded(self) -> int:
        """Tokens that the model computes, padding included."""
        return self.input_ids.numel()

    def only(self, chosen: Tensor) -> TokenBatch:
        """The same sequences, but of the response tokens only those chosen, [M] bool; `present` stays as it is."""
        return replace(self, predictors=self.predictors[chosen], tokens=self.tokens[chosen])

    def to(self, device: torch.device) -> TokenBatch:
        """The same on another device."""
        names = ("input_ids", "position_ids", "predictors", "tokens", "present")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})


def batch_of(
    prompts: Sequence[IntArray], responses: Sequence[IntArray], device: torch.device, *, packed: bool
) -> TokenBatch:
    """Lays out prompts and the responses to them, row by row; prompts may repeat.

    Packed, equal prompts are laid out once. Raises ValueError for an empty prompt: nothing predicts its first token.
    """
    empty = [row for row, prompt in enumerate(prompts) if not len(prompt)]
    if empty:
        raise ValueError(f"the prompts of rows {empty} are empty; a prompt has at least one token")
    input_ids, position_ids, segments, starts = (packed_row if packed else padded_rows)(prompts, responses)
    lengths = np.array([len(response) for response in responses], dtype=np.int64)
    present = (np.arange(lengths.max()) < lengths[:, None]).astype(np.float32)
    arrays = (
        input_ids,
        position_ids,
        np.concatenate([indices_of(*start, len(one)) for start, one in zip(starts, responses, strict=True)]),
        np.concatenate([response.astype(np.int64) for response in responses]),
        present,
    )
    ids, positions, predictors, tokens, rows = (torch.from_numpy(array).to(device) for array in arrays)
    return TokenBatch(ids, positions, segments, predictors, tokens, rows)


Indices = NDArray[np.int64]
Start = tuple[int, int]
"""Where the states that predict a row's response lie: the first one's index, and the second one's."""
Laid = tuple[Indices, Indices, Segments | None, list[Start]]
"""Ids and positions, where the sequences lie, and the starts of all rows."""


def indices_of(first: int, second: int, length: int) -> Indices:
    """[length], `first` and then from `second` on."""
    indices = np.arange(second - 1, second - 1 + length, dtype=np.int64)
    indices[:1] = first
    return indices


def padded_rows(prompts: Sequence[IntArray], responses: Sequence[IntArray]) -> Laid:
    """One row of ids for each pair, padded to the longest."""
    width = max(len(prompt) + len(response) for prompt, response in zip(prompts, responses, strict=True))
    input_ids = np.zeros((len(prompts), width), dtype=np.int64)
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        input_ids[row, : len(prompt) + len(response)] = np.concatenate([prompt, response])
    position_ids = np.broadcast_to(np.arange(width), input_ids.shape).copy()
    ends = [row * width + len(prompt) for row, prompt in enumerate(prompts)]
    return input_ids, position_ids, None, [(end - 1, end) for end in ends]


def packed_row(prompts: Sequence[IntArray], responses: Sequence[IntArray]) -> Laid:
    """One row of ids: each distinct prompt once, and behind it the responses to it, longest first.

    The last token of a response is left out: its state predicts nothing that is asked for.
    """
    groups: dict[bytes, list[int]] = {}
    for row, prompt in enumerate(prompts):
        groups.setdefault(prompt.astype(np.int64).tobytes(), []).append(row)
    ids, positions = list[Indices](), list[Indices]()
    trunks, branches = list[Run](), list[Branch]()
    starts: list[Start] = [(0, 0)] * len(prompts)
    begin = 0
    for rows in groups.values():
        prompt, ordered = prompts[rows[0]], sorted(rows, key=lambda row: -len(responses[row]))
        ids.append(prompt.astype(np.int64))
        positions.append(np.arange(len(prompt), dtype=np.int64))
        end = begin + len(prompt)
        ends = [end]
        for row in ordered:
            starts[row] = (end - 1, ends[-1])
            ids.append(responses[row][:-1].astype(np.int64))
            positions.append(len(prompt) + np.arange(len(ids[-1]), dtype=np.int64))
            ends.append(ends[-1] + len(ids[-1]))
        trunks.append(Run(begin, 1, ends[1] - begin))
        if ends[-1] > ends[1]:
            branches.append(branch_of(Run(begin, 1, len(prompt)), ends[1:]))
        begin = ends[-1]
    row_ids, row_positions = (np.concatenate(parts)[None] for parts in (ids, positions))
    return row_ids, row_positions, Segments(tuple(trunks), tuple(branches)), starts


def branch_of(prefix: Run, ends: Sequence[int]) -> Branch:
    """The responses that lie between one end and the next; neighbours of one length make one run."""
    runs, start = list[Run](), ends[0]
    lengths = [after - before for before, after in pairwise(ends)]
    for length, equal in groupby(length for length in lengths if length):
        runs.append(Run(start, len(list(equal)), length))
        start = runs[-1].stop
    return Branch(prefix, Run(ends[0], 1, ends[-1] - ends[0]), tuple(runs))


def hidden_states(model: Any, batch: TokenBatch) -> Tensor:
    """[M, H], the last hidden states that predict the response tokens.

    Raises ValueError if the batch is packed and the model's attention would look across its sequences.
    """
    attention = model.config._attn_implementation
    if batch.segments is not None and attention != PACKED:
        raise ValueError(f"a packed batch needs attn_implementation={PACKED!r}; this model has {attention!r}")
    states = model.model(
        input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False, segments=batch.segments
    ).last_hidden_state
    gathered: Tensor = states.reshape(-1, states.shape[-1]).index_select(0, batch.predictors)
    return gathered
