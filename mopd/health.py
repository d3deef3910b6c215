"""Is a run still learning? Detectors that look at nothing but the metrics of its steps.

What they find depends on the metrics, their settings and their own state alone, so a resumed run finds the same. Every
detector costs a few comparisons a step; what each sees and why is in docs/health.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal, get_args

from mopd.methods import Signal

Kind = Literal[
    "no_signal",
    "non_finite",
    "divergence",
    "length",
    "cut",
    "entropy",
    "sampler",
    "unknown",
    "success",
    "copying",
]
KINDS: tuple[Kind, ...] = get_args(Kind)

VIEWS = ("self_distillation/reprompt_sample_fraction", "{:.1%} of the rollouts have a usable teacher view")
SIGNALS: Mapping[Signal, tuple[str, str]] = {
    "divergence": VIEWS,
    "sampled_token": VIEWS,
    "policy": ("critic/informative_group_fraction", "{:.1%} of the groups have rewards that differ"),
    "preference": ("actor/trained_fraction", "{:.1%} of the rollouts are in a pair of unequal rewards"),
    "likelihood": ("actor/trained_fraction", "{:.1%} of the rollouts are successful enough to be learnt"),
}
"""The metric that says how much a step has to teach, in words too."""
DIVERGENCE, LENGTH, ENTROPY = "self_distillation/divergence", "response_length/mean", "actor/entropy"
SUCCESS, DISTINCT = "critic/success_rate", "rollout/distinct_fraction"
TRACKED = (DIVERGENCE, LENGTH, ENTROPY, SUCCESS, DISTINCT)
"""Metrics that are compared with their own past."""
GAIN = 0.05
"""A success rate that has risen by this much excuses a loss of variety: right answers to a task may well be alike."""


@dataclass(frozen=True)
class HealthSettings:
    """Thresholds; None switches a detector off."""

    window: int = 10
    """Steps whose median a figure is compared with; before as many have been seen, nothing is compared."""
    signal_fraction: float | None = 0.0
    """Share of rollouts or groups with something to teach, at which (and below) a step has no signal."""
    min_grad_norm: float | None = 1e-10
    """Gradient norm at which (and below) a step has no signal."""
    skipped_steps: int | None = 0
    """Optimiser steps of a training step that may be skipped because their gradient was not finite."""
    divergence_factor: float | None = 10.0
    """Divergence to the teacher, as a multiple of its median."""
    length_factor: float | None = 3.0
    """Mean response length, as a multiple of its median or its median of it."""
    cut_fraction: float | None = 0.5
    """Share of responses cut at the length limit."""
    entropy_fraction: float | None = 0.1
    """Entropy of the student, as a share of its median over the first `window` steps."""
    sampler_kl: float | None = 0.05
    """Divergence between actor and sampler on the sampled tokens, in nats per token."""
    unknown_fraction: float | None = 0.2
    """Share of verdicts that are unknown."""
    success_fraction: float | None = 0.5
    """Median success rate, as a share of the best such median."""
    distinct_fraction: float | None = 0.4
    """Distinct responses within groups, as a share of their median over the first `window` steps."""


@dataclass(frozen=True)
class Finding:
    """What a detector saw in a step."""

    kind: Kind
    metric: str
    value: float
    """Of the metric, or of its median where `seen` says so."""
    threshold: float
    """The bound that the value went beyond (or, for shares of signal and gradients, reached)."""
    seen: str
    """In words, without an end."""


@dataclass
class Monitor:
    """All detectors of a run and what they remember of it."""

    signal: Signal
    settings: HealthSettings = HealthSettings()
    recent: dict[str, list[float]] = field(default_factory=dict)
    """By metric, the last `window` values before this step."""
    first: dict[str, list[float]] = field(default_factory=dict)
    """By metric, the first `window` values of the run."""
    best_success: float = 0.0
    """The best median success rate so far."""
    since: dict[str, int] = field(default_factory=dict)
    """By kind, the first step of the row of steps in which it has been found, this one included."""

    def observe(self, step: int, metrics: Mapping[str, float]) -> list[Finding]:
        """What is wrong in a step, each kind once at most; steps are to come in order.

        A figure that was not measured, or is not a number, is judged by the detector of non-finite figures alone.
        """
        figures = {name: float(value) for name, value in metrics.items() if value is not None and math.isfinite(value)}
        found: dict[Kind, Finding] = {}
        for finding in self.detect(metrics, figures):
            found.setdefault(finding.kind, finding)
        self.remember(figures)
        self.since = {kind: self.since.get(kind, step) for kind in found}
        return list(found.values())

    def detect(self, metrics: Mapping[str, float], figures: Mapping[str, float]) -> Iterator[Finding]:
        """The findings of every detector; `figures` are the finite ones of `metrics`."""
        yield from self.no_signal(figures)
        yield from self.non_finite(metrics, figures)
        yield from self.beyond_bounds(figures)
        yield from self.away_from_its_past(figures)
        yield from self.lost_since_the_start(figures)
        yield from self.fallen_success(figures)

    def remember(self, figures: Mapping[str, float]) -> None:
        """Takes the figures of a step into the past."""
        for name in (name for name in TRACKED if name in figures):
            first = self.first.setdefault(name, [])
            if len(first) < self.settings.window:
                first.append(figures[name])
            recent = self.recent.setdefault(name, [])
            recent.append(figures[name])
            del recent[: -self.settings.window]

    def past(self, series: Mapping[str, list[float]], name: str) -> float | None:
        """The median of a metric's `recent` or `first` values; None before there are `window` of them."""
        values = series.get(name, [])
        return median(values) if len(values) == self.settings.window else None

    def no_signal(self, figures: Mapping[str, float]) -> Iterator[Finding]:
        """Nothing to teach, no optimiser step, or a gradient of zero; the first of these."""
        least, norm_least = self.settings.signal_fraction, self.settings.min_grad_norm
        name, words = SIGNALS[self.signal]
        share, norm = figures.get(name), figures.get("actor/grad_norm")
        if least is not None and share is not None and share <= least:
            yield Finding("no_signal", name, share, least, words.format(share))
        if norm_least is None:
            return
        if figures.get("actor/optimizer_steps") == 0:
            yield Finding("no_signal", "actor/optimizer_steps", 0, 1, "no optimiser step was taken")
        if norm is not None and norm <= norm_least:
            yield Finding("no_signal", "actor/grad_norm", norm, norm_least, f"the gradient's norm is {norm:.1e}")

    def non_finite(self, metrics: Mapping[str, float], figures: Mapping[str, float]) -> Iterator[Finding]:
        """Optimiser steps skipped, or a loss that is no number."""
        most = self.settings.skipped_steps
        if most is None:
            return
        skipped = figures.get("actor/skipped_steps", 0.0)
        if skipped > most:
            seen = f"{skipped:.0f} optimiser steps were skipped because their gradient was not finite"
            yield Finding("non_finite", "actor/skipped_steps", skipped, most, seen)
        if "actor/loss" in metrics and "actor/loss" not in figures:
            yield Finding("non_finite", "actor/loss", math.nan, math.inf, "the loss is not a finite number")

    def beyond_bounds(self, figures: Mapping[str, float]) -> Iterator[Finding]:
        """Figures above a bound that needs no past."""
        asked = self.settings
        bounds: tuple[tuple[Kind, str, float | None, str], ...] = (
            ("cut", "response_length/clip_ratio", asked.cut_fraction, "{:.0%} of the responses are cut at their limit"),
            ("sampler", "rollout_corr/k3_kl", asked.sampler_kl, "actor and sampler are {:.3g} nats per token apart"),
            ("unknown", "critic/unknown_fraction", asked.unknown_fraction, "{:.0%} of the verdicts are unknown"),
        )
        for kind, name, most, words in bounds:
            value = figures.get(name)
            if most is not None and value is not None and value > most:
                yield Finding(kind, name, value, most, words.format(value))

    def away_from_its_past(self, figures: Mapping[str, float]) -> Iterator[Finding]:
        """Figures far from their median over the last steps: an exploding divergence, lengths that leap or shrink."""
        asked, steps = self.settings, f"the median of {self.settings.window} steps"
        usual, value = self.past(self.recent, DIVERGENCE), figures.get(DIVERGENCE)
        if asked.divergence_factor and usual and value is not None and value > asked.divergence_factor * usual:
            seen = f"the divergence to the teacher is {value:.3g}, {value / usual:.1f} times {steps}"
            yield Finding("divergence", DIVERGENCE, value, asked.divergence_factor * usual, seen)
        usual, value = self.past(self.recent, LENGTH), figures.get(LENGTH)
        if not asked.length_factor or not usual or value is None:
            return
        bounds = usual / asked.length_factor, usual * asked.length_factor
        if not bounds[0] <= value <= bounds[1]:
            seen = f"responses have {value:.1f} tokens on average, where {steps} is {usual:.1f}"
            yield Finding("length", LENGTH, value, bounds[value > usual], seen)

    def lost_since_the_start(self, figures: Mapping[str, float]) -> Iterator[Finding]:
        """Entropy, or variety within groups, far below the run's beginning, and no success gained for it."""
        success, began = self.past(self.recent, SUCCESS), self.past(self.first, SUCCESS)
        if success is None or began is None or success >= began + GAIN:
            return
        shares: tuple[tuple[Kind, str, float | None, str], ...] = (
            ("entropy", ENTROPY, self.settings.entropy_fraction, "the student's entropy is {:.3g}, {:.0%} of"),
            ("copying", DISTINCT, self.settings.distinct_fraction, "{:.0%} of a group's responses differ, {:.0%} of"),
        )
        for kind, name, share, words in shares:
            usual, value = self.past(self.first, name), figures.get(name)
            if share is not None and usual and value is not None and value < share * usual:
                seen = f"{words.format(value, value / usual)} what it was at first, and success has not risen"
                yield Finding(kind, name, value, share * usual, seen)

    def fallen_success(self, figures: Mapping[str, float]) -> Iterator[Finding]:
        """A median success rate far below the best one."""
        share = self.settings.success_fraction
        values = [*self.recent.get(SUCCESS, []), *([figures[SUCCESS]] if SUCCESS in figures else [])]
        if share is None or SUCCESS not in figures or len(values) <= self.settings.window:
            return
        usual = median(values[1:])
        self.best_success = max(self.best_success, usual)
        if usual < (least := share * self.best_success):
            seen = f"the median success rate is {usual:.0%}, and was {self.best_success:.0%} at its best"
            yield Finding("success", SUCCESS, usual, least, seen)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs, as plain lists and dictionaries."""
        return {
            "recent": {name: list(values) for name, values in self.recent.items()},
            "first": {name: list(values) for name, values in self.first.items()},
            "best_success": self.best_success,
            "since": dict(self.since),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from `state_dict()`. With a smaller window only the latest (and the very first) values count."""
        window = self.settings.window
        self.recent = {name: list(values)[-window:] for name, values in state["recent"].items()}
        self.first = {name: list(values)[:window] for name, values in state["first"].items()}
        self.best_success = float(state["best_success"])
        self.since = {kind: int(step) for kind, step in state["since"].items()}
