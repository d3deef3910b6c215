"""What travels between the controller and a sampler; no engine is imported here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from mopd.types import FloatArray, IntArray
from trainer.memory_use import Peaks

TELL_EVERY_S = 0.1
"""Finished responses are handed out together, so often at most: each time costs about a millisecond."""


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


class Sampler(Protocol):
    """What every sampler answers, whatever it draws with."""

    def describe(self) -> dict[str, str]:
        """The version of what draws."""

    def sample(
        self, requests: Sequence[Request], settings: SamplingSettings
    ) -> Iterator[tuple[int, list[tuple[int, Response]]]]:
        """Yields the policy version and finished responses with the numbers of their requests, as decoding goes on."""

    def memory(self) -> Peaks:
        """The most that this process held since it was last asked."""

    def sleep(self) -> None:
        """Gives up what memory it can until new weights come."""

    def init_weight_transfer_engine(self, init_info: Mapping[str, Any]) -> None:
        """Opens the way by which weights will come."""

    def start_weight_update(self) -> None:
        """Nothing may be sampled from now on until all weights are there."""

    def update_weights(self, update_info: Mapping[str, Any]) -> None:
        """Takes one bucket."""

    def finish_weight_update(self, version: int) -> None:
        """The last bucket was taken: the weights are those of `version` from now on."""

    def score(self, sequences: Sequence[IntArray]) -> list[FloatArray]:
        """Log-probs [L - 1] of every token [L] after the first, at temperature 1."""

    def fingerprints(self) -> dict[str, Fingerprint]:
        """How every parameter group answers the probe."""
