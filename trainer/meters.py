"""Token means, and maxima, that add up over micro-batches and ranks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Meter:
    """Sums with their counts, and maxima, by metric name."""

    sums: dict[str, tuple[float, float]] = field(default_factory=dict)
    maxima: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, values: Tensor, mask: Tensor) -> None:
        """Adds the entries of `values` where `mask` is not 0."""
        kept = values[mask != 0].double()
        total, count = self.sums.get(name, (0.0, 0.0))
        self.sums[name] = (total + float(kept.sum()), count + kept.numel())

    def peak(self, name: str, values: Tensor, mask: Tensor) -> None:
        """Keeps the largest entry of `values` where `mask` is not 0."""
        kept = values[mask != 0]
        if kept.numel():
            self.maxima[name] = max(self.maxima.get(name, float("-inf")), float(kept.max()))


def merged(meters: Iterable[Meter]) -> dict[str, float]:
    """Means and maxima over all meters; a mean over nothing is absent, never 0."""
    sums: dict[str, tuple[float, float]] = {}
    maxima: dict[str, float] = {}
    for meter in meters:
        for name, (total, count) in meter.sums.items():
            have, had = sums.get(name, (0.0, 0.0))
            sums[name] = (have + total, had + count)
        for name, value in meter.maxima.items():
            maxima[name] = max(maxima.get(name, float("-inf")), value)
    means = {name: total / count for name, (total, count) in sums.items() if count}
    return {**means, **maxima}
