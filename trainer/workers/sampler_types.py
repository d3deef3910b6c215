"""What travels between the controller and a sampler; no engine is imported here."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mopd.types import FloatArray, IntArray


@dataclass(frozen=True)
class SamplingSettings:
    """How to draw a response."""

    temperature: float
    top_p: float
    max_tokens: int
    ignore_eos: bool = False
    """Goes on to `max_tokens` whatever is sampled: responses of one length, as benchmarks want."""


@dataclass(frozen=True)
class Request:
    """One response to draw."""

    prompt_ids: IntArray
    """[L]"""
    seed: int
    """Of this request alone, so that results do not depend on what else is in the batch."""


@dataclass(frozen=True)
class Response:
    """One response drawn."""

    token_ids: IntArray
    """[T], the end-of-sequence token included when it was sampled."""
    logprobs: FloatArray
    """[T], of the distribution sampled from: after temperature and top-p."""
    text: str
    finish_reason: str


@dataclass(frozen=True)
class Fingerprint:
    """How a parameter group of the sampler answers the probe."""

    weights: tuple[str, ...]
    """The trainer's weights that the group is made of, in order."""
    response: FloatArray
    """The output of a linear layer or of an embedding's matrix; a vector of weights stands for itself."""


def probe(width: int) -> FloatArray:
    """The input [width] of every fingerprint: the same in every process, and alike nowhere."""
    return np.cos(np.arange(width, dtype=np.float64)).astype(np.float32)
