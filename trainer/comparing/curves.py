"""Held-out quality of groups of runs, by step and by rollout token, as means over seeds with intervals."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from trainer.comparing.intervals import Estimate, estimate
from trainer.comparing.runs import Run, RunGroup

Axis = Literal["step", "tokens"]
Curve = Sequence[tuple[float, float]]
"""Points (x, value), x rising."""


@dataclass(frozen=True)
class Point:
    """A group's mean at one place of an axis."""

    x: float
    """Steps taken, or response tokens sampled for training."""
    at: Estimate


@dataclass(frozen=True)
class Standing:
    """How a group does in one figure: a row of the table. What cannot be told is None."""

    group: str
    runs: int
    first: Estimate
    """Where its runs were first validated."""
    at_step: Estimate | None
    at_tokens: Estimate | None
    difference: Estimate | None
    """Its value at the common step minus the first group's, over the seeds that both have; None at step 0, before
    anything was learnt."""


@dataclass(frozen=True)
class Figure:
    """Everything about one figure, such as `chain: mean@8`."""

    name: str
    by_step: Mapping[str, Sequence[Point]]
    """By group."""
    by_tokens: Mapping[str, Sequence[Point]]
    step: int | None
    """The last step at which every run was validated; None where there is none."""
    tokens: float | None
    """The most tokens that every run sampled, as far as it was validated."""
    standings: Sequence[Standing]


def compare(groups: Sequence[RunGroup], confidence: float) -> list[Figure]:
    """Every figure that any run has; a group takes part in those that one of its runs has."""
    names = dict.fromkeys(
        name for group in groups for run in group.runs for moment in run.moments for name in moment.figures
    )
    return [compare_one(groups, name, confidence) for name in names]


def compare_one(groups: Sequence[RunGroup], name: str, confidence: float) -> Figure:
    """One figure of the groups that have it."""
    having = [RunGroup(group.name, tuple(run for run in group.runs if curve(run, name, "step"))) for group in groups]
    having = [group for group in having if group.runs]
    runs = [run for group in having for run in group.runs]
    shared = set.intersection(*({int(x) for x, _ in curve(run, name, "step")} for run in runs))
    step = max(shared, default=None)
    counted = [curve(run, name, "tokens") for run in runs]
    tokens = min((points[-1][0] for points in counted if points), default=None)
    values = {group.name: values_at(group, name, step) for group in having}
    base = values[having[0].name] if step else []
    return Figure(
        name=name,
        by_step={group.name: band_by_step(group, name, confidence) for group in having},
        by_tokens={group.name: band_by_tokens(group, name, confidence) for group in having},
        step=step,
        tokens=tokens,
        standings=[
            Standing(
                group=group.name,
                runs=len(group.runs),
                first=estimate([curve(run, name, "step")[0][1] for run in group.runs], confidence),
                at_step=known([value for _, value in values[group.name]], confidence),
                at_tokens=None if tokens is None else at_tokens(group, name, tokens, confidence),
                difference=None if place == 0 else difference(base, values[group.name], confidence),
            )
            for place, group in enumerate(having)
        ],
    )


def without_difference(figures: Sequence[Figure]) -> list[str]:
    """A sentence for the figures whose groups are not subtracted, as no trained step was validated in all runs."""
    names = ", ".join(figure.name for figure in figures if len(figure.standings) > 1 and not figure.step)
    if not names:
        return []
    return [f"{names}: no difference is given, for after step 0 there is no step at which all runs were validated"]


def curve(run: Run, name: str, axis: Axis) -> Curve:
    """A run's figure over steps or tokens; no point where it was not measured, or tokens were not counted."""
    places = [(moment.step if axis == "step" else moment.tokens, moment.figures.get(name)) for moment in run.moments]
    return [(float(x), value) for x, value in places if x is not None and value is not None]


def band_by_step(group: RunGroup, name: str, confidence: float) -> list[Point]:
    """The mean over those runs that were validated at a step, for every such step."""
    values: dict[float, list[float]] = {}
    for run in group.runs:
        for step, value in curve(run, name, "step"):
            values.setdefault(step, []).append(value)
    return [Point(step, estimate(values[step], confidence)) for step in sorted(values)]


def band_by_tokens(group: RunGroup, name: str, confidence: float) -> list[Point]:
    """The mean over runs wherever one was validated, the others interpolated, as far as all of them go."""
    curves = counted_curves(group, name)
    if not curves:
        return []
    first, last = max(points[0][0] for points in curves), min(points[-1][0] for points in curves)
    places = sorted({x for points in curves for x, _ in points if first <= x <= last})
    return [Point(x, estimate([interpolated(points, x) for points in curves], confidence)) for x in places]


def counted_curves(group: RunGroup, name: str) -> list[Curve]:
    """The curves over tokens of those runs that counted them."""
    return [points for run in group.runs if (points := curve(run, name, "tokens"))]


def at_tokens(group: RunGroup, name: str, tokens: float, confidence: float) -> Estimate | None:
    """The mean over a group's runs at one number of tokens, of those that reach from below it to above it."""
    curves = [points for points in counted_curves(group, name) if points[0][0] <= tokens <= points[-1][0]]
    return known([interpolated(points, tokens) for points in curves], confidence)


def interpolated(points: Curve, x: float) -> float:
    """A curve's value between two of its points, on the line through them."""
    return float(np.interp(x, [place for place, _ in points], [value for _, value in points]))


def values_at(group: RunGroup, name: str, step: int | None) -> list[tuple[int | None, float]]:
    """Seed and value of each run at a step."""
    return [(run.seed, value) for run in group.runs for at, value in curve(run, name, "step") if at == step]


def known(values: Sequence[float], confidence: float) -> Estimate | None:
    """The mean of values, where there are any."""
    return estimate(values, confidence) if values else None


def difference(
    base: Sequence[tuple[int | None, float]], own: Sequence[tuple[int | None, float]], confidence: float
) -> Estimate | None:
    """The mean over seeds that both groups have of `own` minus `base`; None where they share none."""
    theirs, ours = by_seed(base), by_seed(own)
    return known([ours[seed] - theirs[seed] for seed in ours if seed in theirs], confidence)


def by_seed(values: Sequence[tuple[int | None, float]]) -> dict[int, float]:
    """The mean value of each known seed."""
    found: dict[int, list[float]] = {}
    for seed, value in values:
        if seed is not None:
            found.setdefault(seed, []).append(value)
    return {seed: statistics.fmean(own) for seed, own in found.items()}
