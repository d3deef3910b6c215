"""Bytes of an actor's way from hidden states through the vocabulary, by moment; docs/planning.md derives the terms.

    fused   a few tokens' logits at a time, K slopes per token, and a gradient of the output matrix (`mopd.fused`)
    dense   all logits at once, in as many copies as the specification makes

M  response tokens        H  width of the hidden states        V  vocabulary        K  entries compared at a token
"""

from __future__ import annotations

from dataclasses import dataclass

from mopd.fused_kernels import GROUP
from mopd.fused_logits import LOGITS_AT_HAND, TILES
from mopd.methods import Signal

FP32, INT32, INT64 = 4, 4, 8
DENSE_COPIES: dict[Signal, float] = {
    "divergence": 6.0,
    "sampled_token": 5.0,
    "policy": 4.0,
    "preference": 4.0,
    "likelihood": 4.0,
}
"""fp32 tensors of [M, V] alive at once, by signal: student and teacher, what the loss saves, and temporaries."""
DENSE_WHOLE_COPIES = 14.0
"""The same where the divergence is taken over the whole vocabulary."""
FUSED_WHOLE_PART = 4
"""Into how many times fewer tokens the fused form cuts them then."""


@dataclass(frozen=True)
class Way:
    """One micro-batch's way through the vocabulary."""

    fused: bool
    signal: Signal
    entries: int
    """K: top k, twice as many of a union; 1 where the sampled token is all that is asked for."""
    whole: bool
    """Whether the divergence is taken over the whole vocabulary."""
    union: bool
    """Whether both models choose entries: then both have logits at once."""
    other: bool
    """Whether a teacher's, or the reference's, hidden states are at hand."""
    mixes: bool
    """Whether the teacher is a mixture of two models, whose states and matrices are joined."""
    tokens: int
    """M"""
    hidden: int
    vocabulary: int
    element: int
    """Bytes of a weight."""
    device: str
    frozen: bool = False
    """Whether the output matrix is not trained."""

    @property
    def matrix_gradient(self) -> float:
        """Bytes of the output matrix's gradient."""
        return 0.0 if self.frozen else self.matrix

    @property
    def matrix(self) -> float:
        """Bytes of an output matrix [V, H]."""
        return float(self.element * self.hidden * self.vocabulary)

    @property
    def states(self) -> float:
        """Bytes of hidden states [M, H]."""
        return float(self.element * self.hidden * self.tokens)

    @property
    def others(self) -> float:
        """Bytes of the teacher's hidden states, which last until the gradient is taken."""
        return self.states * (2 if self.mixes else 1) * self.other

    @property
    def chunk(self) -> int:
        """Tokens whose logits exist at one time."""
        at_hand = LOGITS_AT_HAND[self.device] // (FUSED_WHOLE_PART if self.whole else 1)
        return min(self.tokens, max(1, at_hand // self.vocabulary))

    @property
    def dense_copies(self) -> float:
        """Copies of all logits that are alive at once."""
        whole = self.signal == "divergence" and self.whole
        copies = DENSE_WHOLE_COPIES if whole else DENSE_COPIES[self.signal]
        if self.signal == "preference":
            return copies + self.other
        return copies - (self.signal in ("divergence", "sampled_token") and not self.other)


def forward_bytes(way: Way) -> float:
    """At the end of the loss, beside the student's hidden states."""
    mixing = 4 * way.matrix if way.mixes else 0.0
    if not way.fused:
        return way.others + mixing + way.dense_copies * FP32 * way.tokens * way.vocabulary
    one = float(FP32 * way.chunk * way.vocabulary)
    if way.whole:
        return way.others + mixing + DENSE_WHOLE_COPIES * one
    choosing = (INT64 + INT64) * GROUP * way.entries * way.chunk if way.entries > 1 else 0
    logits = one * (2 if way.union else 1) + one / GROUP + choosing
    # Ids and slopes, of the chunks and joined.
    kept = 2 * (INT32 + FP32) * way.entries * way.tokens
    return way.others + mixing + logits + kept


def backward_bytes(way: Way) -> float:
    """While hidden states and output matrix get their gradients, beside the student's hidden states."""
    if not way.fused:
        return way.others + way.matrix_gradient + (way.dense_copies - 1) * FP32 * way.tokens * way.vocabulary
    gradients = way.matrix_gradient + way.states + 2 * FP32 * way.hidden * way.tokens
    if way.whole:
        # The matrix gets one gradient per chunk, which are added up.
        mixed = 2 * way.matrix if way.mixes else 0.0
        whole = DENSE_WHOLE_COPIES * FP32 * way.chunk * way.vocabulary
        return way.others + mixed + way.matrix_gradient + gradients + whole
    tile = min(LOGITS_AT_HAND[way.device] // TILES[way.device], way.tokens * way.vocabulary)
    narrow = way.element if way.element < FP32 else 0
    # Ids and slopes; slopes again; ids sorted, their order, their rows and columns, the slopes in that order.
    kept = (INT32 + 2 * FP32 + 2 * INT32 + 2 * INT64 + FP32) * way.entries * way.tokens
    return way.others + gradients + (FP32 + narrow) * tile + kept
