"""How many tokens of a response are sampled, or learnt from, as training goes on (arXiv 2605.31490).

On-policy distillation needs no final answer, so a rollout may stop early: late tokens cost most, and early in
training they are taught worst.

    Constant     T                              full rollouts
    LinearStep   min(T, h0 + dh floor(k / dk))  POPD: the horizon grows with the updates k
    Ratio        ceil(rho T)                    TOPD: a fixed share

A horizon is the sampler's limit of new tokens. A response that it cuts has no verdict: it is no failed peer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol


class Horizon(Protocol):
    """How far to go at an update."""

    def __call__(self, updates: int) -> int:
        """The most tokens of a response once `updates` updates are done (0 at first)."""


@dataclass(frozen=True)
class Constant:
    """The same at every update. Raises ValueError unless the maximum is a positive integer."""

    maximum: int
    """Tokens."""

    def __post_init__(self) -> None:
        _check_positive(maximum=self.maximum)

    def __call__(self, updates: int) -> int:
        """`maximum`."""
        return self.maximum


@dataclass(frozen=True)
class LinearStep:
    """Grows by an increment every so many updates, up to a maximum (POPD).

    The published values are not known; a tenth of the maximum as start and as increment, and an interval of
    a twentieth of the run, reach full length at half time.

    Raises ValueError unless all are positive integers and the start is at most the maximum.
    """

    start: int
    """Tokens before the first update."""
    increment: int
    """Tokens that are added each time."""
    interval: int
    """Updates between additions."""
    maximum: int
    """Tokens, the limit."""

    def __post_init__(self) -> None:
        _check_positive(start=self.start, increment=self.increment, interval=self.interval, maximum=self.maximum)
        if self.start > self.maximum:
            raise ValueError(f"start is {self.start}, above the maximum {self.maximum}")

    def __call__(self, updates: int) -> int:
        """min(maximum, start + increment * floor(updates / interval))."""
        return min(self.maximum, self.start + self.increment * (updates // self.interval))


@dataclass(frozen=True)
class Ratio:
    """A fixed share of a maximum (TOPD). Raises ValueError unless 0 < ratio <= 1 and the maximum is positive."""

    ratio: float
    """rho; published 0.10 and 0.25."""
    maximum: int
    """Tokens of a full response."""

    def __post_init__(self) -> None:
        _check_positive(maximum=self.maximum)
        if not 0.0 < self.ratio <= 1.0:
            raise ValueError(f"ratio is {self.ratio!r}; it must lie in (0, 1]")

    def __call__(self, updates: int) -> int:
        """ceil(ratio * maximum), of the decimal that was written: 0.07 of 100 is 7."""
        return math.ceil(Fraction(str(self.ratio)) * self.maximum)


def _check_positive(**values: int) -> None:
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            raise ValueError(f"{name} is {value!r}; it must be a positive integer")
