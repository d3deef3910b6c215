"""Token means, extremes and spreads that add up over micro-batches and ranks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from mopd.importance import MAX_LOG_RATIO, Mismatch


@dataclass
class Meter:
    """Sums with their counts, maxima, minima and moments, by metric name."""

    sums: dict[str, tuple[float, ...]] = field(default_factory=dict)
    maxima: dict[str, float] = field(default_factory=dict)
    minima: dict[str, float] = field(default_factory=dict)
    moments: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """How many values, their sum, and the sum of their squares."""
    rollouts: dict[str, dict[int, float]] = field(default_factory=dict)
    """Figures of single rollouts, by name and by index in sampling order."""

    def add(self, name: str, values: Tensor, mask: Tensor | None = None) -> None:
        """Adds the entries of `values` where `mask` is not 0; without a mask all of them."""
        kept = chosen(values, mask)
        total, count = self.sums.get(name, (0.0, 0.0))
        self.sums[name] = (total + float(kept.sum()), count + kept.numel())

    def peak(self, name: str, values: Tensor, mask: Tensor | None = None) -> None:
        """Keeps the largest entry of `values` where `mask` is not 0."""
        kept = chosen(values, mask)
        if kept.numel():
            self.maxima[name] = max(self.maxima.get(name, -math.inf), float(kept.max()))

    def trough(self, name: str, values: Tensor, mask: Tensor | None = None) -> None:
        """Keeps the smallest entry of `values` where `mask` is not 0."""
        kept = chosen(values, mask)
        if kept.numel():
            self.minima[name] = min(self.minima.get(name, math.inf), float(kept.min()))

    def spread(self, name: str, values: Tensor, mask: Tensor | None = None) -> None:
        """Adds to the moments behind `<name>_std` and `<name>_eff_sample_size`."""
        kept = chosen(values, mask)
        count, total, squares = self.moments.get(name, (0.0, 0.0, 0.0))
        self.moments[name] = (count + kept.numel(), total + float(kept.sum()), squares + float(kept.square().sum()))

    def note(self, name: str, indices: Iterable[int], values: Iterable[float]) -> None:
        """Keeps a figure of each rollout: the first that is a number."""
        kept = self.rollouts.setdefault(name, {})
        for index, value in zip(indices, values, strict=True):
            if not math.isnan(value):
                kept.setdefault(index, value)


def chosen(values: Tensor, mask: Tensor | None) -> Tensor:
    """The entries that count, in float64."""
    return (values if mask is None else values[mask != 0]).double()


def merged(meters: Iterable[Meter]) -> dict[str, float]:
    """All figures over all meters; a figure of nothing is absent, never 0.

    Of a spread: `_std`, the standard deviation of the values seen (divided by their number), and `_eff_sample_size`,
    (sum w)^2 / (n sum w^2): which share of n equal weights would vary as little, 1 for equal ones.
    """
    every = list(meters)
    means = {name: total / count for name, (total, count) in added(meter.sums for meter in every).items() if count}
    maxima = {
        name: max(meter.maxima.get(name, -math.inf) for meter in every) for meter in every for name in meter.maxima
    }
    minima = {
        name: min(meter.minima.get(name, math.inf) for meter in every) for meter in every for name in meter.minima
    }
    spreads = {}
    for name, (count, total, squares) in added(meter.moments for meter in every).items():
        if count and squares:
            spreads[f"{name}_std"] = math.sqrt(max(squares / count - (total / count) ** 2, 0.0))
            spreads[f"{name}_eff_sample_size"] = total**2 / (count * squares)
    return {**means, **maxima, **minima, **spreads}


def by_rollout(meters: Iterable[Meter]) -> dict[str, dict[int, float]]:
    """The figures of single rollouts over all meters: every rollout is one meter's."""
    found: dict[str, dict[int, float]] = {}
    for meter in meters:
        for name, values in meter.rollouts.items():
            found.setdefault(name, {}).update(values)
    return found


def added(tables: Iterable[Mapping[str, tuple[float, ...]]]) -> dict[str, tuple[float, ...]]:
    """The tuples of the same name, added entry by entry."""
    totals: dict[str, tuple[float, ...]] = {}
    for table in tables:
        for name, entries in table.items():
            have = totals.get(name, (0.0,) * len(entries))
            totals[name] = tuple(a + b for a, b in zip(have, entries, strict=True))
    return totals


def record_mismatch(meter: Meter, gap: Mismatch, level: str | None, threshold: float) -> None:
    """Adds the published `rollout_corr` figures of a micro-batch: trainer against sampler, over tokens with loss.

    Args:
        gap: of whole sequences, so that figures of sequences are right however a step is cut.
        level: `token` or `sequence`, the weights of rollout correction; None where there are none, nor figures of them.
        threshold: where those weights are truncated. As published, spread and effective sample size of `rollout_is` are
            those of weights held between its inverse and it; all other figures, those of weights before truncation.
    """
    prefix = "rollout_corr"
    bounded = gap.log_ratios_N.double().clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    meter.add(f"{prefix}/kl", -gap.log_ratios_N)
    meter.add(f"{prefix}/k3_kl", bounded.expm1() - bounded)
    meter.add(f"{prefix}/chi2_token", gap.ratios_N.double().square() - 1.0)
    meter.add(f"{prefix}/chi2_seq", gap.products_S.double().square() - 1.0)
    meter.add(f"{prefix}/training_ppl", gap.nll_S.exp())
    meter.add(f"{prefix}/training_log_ppl", gap.nll_S)
    meter.add(f"{prefix}/rollout_ppl", gap.behaviour_nll_S.exp())
    meter.add(f"{prefix}/rollout_log_ppl", gap.behaviour_nll_S)
    if level is None:
        return
    by_sequence = level == "sequence"
    tokens = gap.products_N if by_sequence else gap.ratios_N
    sequences = gap.products_S if by_sequence else gap.means_S
    for name, short, weights in (
        ("rollout_is", "rollout_is_ratio", tokens),
        ("rollout_is_seq", "rollout_is_seq", sequences),
    ):
        meter.add(f"{prefix}/{name}_mean", weights)
        meter.peak(f"{prefix}/{name}_max", weights)
        meter.trough(f"{prefix}/{name}_min", weights)
        meter.add(f"{prefix}/{short}_fraction_high", (weights > threshold).float())
        meter.add(f"{prefix}/{short}_fraction_low", (weights < 1.0 / threshold).float())
    meter.spread(f"{prefix}/rollout_is", tokens.clamp(1.0 / threshold, threshold))
    meter.spread(f"{prefix}/rollout_is_seq", sequences)
    meter.peak(f"{prefix}/rollout_is_seq_max_deviation", (sequences - 1.0).abs())
