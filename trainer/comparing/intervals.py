"""Means over seeds with Student's t-intervals, in closed form: degrees of freedom are whole numbers here."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

HALVINGS = 60
"""Of the range in which a quantile is sought; more change nothing in double precision."""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds."""

    mean: float
    n: int
    """Seeds it is the mean of."""
    half_width: float | None = None
    """The interval is `mean` ± this; None for one seed, which tells nothing of the others."""

    @property
    def low(self) -> float | None:
        """The lower end of the interval."""
        return None if self.half_width is None else self.mean - self.half_width

    @property
    def high(self) -> float | None:
        """The upper end of the interval."""
        return None if self.half_width is None else self.mean + self.half_width


def estimate(values: Sequence[float], confidence: float) -> Estimate:
    """The mean of independent values, with the interval that holds the true mean in a share `confidence` of cases.

    Raises ValueError without a value.
    """
    if not values:
        raise ValueError("there is no value to take the mean of")
    n, mean = len(values), statistics.fmean(values)
    if n == 1:
        return Estimate(mean, n)
    return Estimate(mean, n, t_quantile(confidence, n - 1) * statistics.stdev(values) / math.sqrt(n))


def t_quantile(confidence: float, degrees: int) -> float:
    """The t that a Student variable exceeds in absolute value with probability 1 - `confidence`.

    Raises ValueError unless 0 < confidence < 1 and degrees >= 1.
    """
    if not 0.0 < confidence < 1.0 or degrees < 1:
        raise ValueError(f"confidence={confidence!r}, degrees={degrees!r}; need 0 < confidence < 1 and degrees >= 1")
    low, high = 0.0, math.pi / 2
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if within(middle, degrees) < confidence:
            low = middle
        else:
            high = middle
    return math.sqrt(degrees) * math.tan(low)


def within(angle: float, degrees: int) -> float:
    """P(|t| <= sqrt(degrees) tan(angle)), by the finite series for whole degrees (Abramowitz and Stegun, 26.7.3-4)."""
    cosine, odd = math.cos(angle), degrees % 2
    total, term = 0.0, cosine if odd else 1.0
    for exponent in range(odd, degrees - 1, 2):
        total += term
        term *= cosine * cosine * (exponent + 1) / (exponent + 2)
    series = math.sin(angle) * total
    return 2.0 / math.pi * (angle + series) if odd else series
