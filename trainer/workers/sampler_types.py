"""What travels between the controller and a sampler; no engine is imported here."""

from __future__ import annotations

from dataclasses import dataclass

from mopd.types import FloatArray, IntArray


@dataclass(frozen=True)
class SamplingSettings:
    """How to draw a response."""

    temperature: float
    top_p: float
    max_tokens: int


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
