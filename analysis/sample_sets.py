"""Which rows count, for which prompts, and the means over prompts that they give."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from signal_metrics import METRICS, prompt_metrics
from signal_rows import REQUIRED, Row

from mopd.gauges import over_prompts

Figures = Mapping[str, float]
"""What one prompt defines under one condition."""
Tables = dict[str, dict[str, Figures]]
"""By condition and prompt."""

prompt_figures = functools.lru_cache(maxsize=None)(prompt_metrics)
"""Sample sets have most of their groups in common."""


@dataclass(frozen=True)
class SampleSet:
    """Which rows count. Of those, `both_present` keeps the prompts that still have a success and a failure."""

    effective: bool = False
    """Only rows whose context had all that the condition promises."""
    reward_zero: bool = False
    """Only responses with a reward of 0."""
    both_present: bool = False

    def holds(self, row: Row) -> bool:
        """Whether the row counts."""
        return (not self.effective or row.effective is True) and (not self.reward_zero or row.scored.reward == 0.0)


SETS = {
    "all_samples": SampleSet(),
    "effective_only": SampleSet(effective=True),
    "reward_zero_only": SampleSet(reward_zero=True),
    "reward_zero_effective_only": SampleSet(effective=True, reward_zero=True),
    "both_present_all": SampleSet(both_present=True),
    "both_present_effective_only": SampleSet(effective=True, both_present=True),
}


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are made."""

    draws: int = 2000
    """None are made with 0."""
    seed: int = 12345


def analyse(rows: Sequence[Row], bootstrap: Bootstrap) -> dict[str, Any]:
    """Every sample set: `conditions`, and the same of each target type on prompts that all conditions have."""
    conditions = in_order({row.condition for row in rows})
    types = sorted({row.target_type for row in rows})
    buckets = {row.prompt_id: row.bucket for row in rows}
    found: dict[str, Any] = {}
    for name, sample in SETS.items():
        kept = [row for row in rows if sample.holds(row)]
        found[name] = {
            "conditions": summaries(tables_of(kept, conditions, sample), buckets, bootstrap),
            "paired_by_target_type": {
                kind: summaries(
                    paired(tables_of([row for row in kept if row.target_type == kind], conditions, sample)),
                    buckets,
                    bootstrap,
                )
                for kind in types
            },
        }
    return found


def in_order(conditions: set[str]) -> list[str]:
    """The published conditions first, in their order; then the others by name."""
    return [*(name for name in REQUIRED if name in conditions), *sorted(conditions - set(REQUIRED))]


def tables_of(rows: Sequence[Row], conditions: Sequence[str], sample: SampleSet) -> Tables:
    """What the prompts define, by condition; prompts sorted by their ids, so that resamples can be compared."""
    groups: dict[str, dict[str, list[Row]]] = {condition: {} for condition in conditions}
    for row in rows:
        groups[row.condition].setdefault(row.prompt_id, []).append(row)
    return {
        condition: {
            prompt: prompt_figures(tuple(row.scored for row in group))
            for prompt, group in sorted(by_prompt.items())
            if not sample.both_present or has_both(group)
        }
        for condition, by_prompt in groups.items()
    }


def has_both(group: Sequence[Row]) -> bool:
    """Whether a success and a failure are among the responses that have a score."""
    return {True, False} <= {row.scored.success for row in group if row.scored.score is not None}


def paired(tables: Tables) -> Tables:
    """The same on the prompts that every condition has; a figure on those that define it under every condition.

    A condition without any prompt, and a figure that a condition never defines, are left out of this.
    """
    there = [by_prompt for by_prompt in tables.values() if by_prompt]
    shared = set[str].intersection(*map(set, there)) if there else set()
    common = {}
    for name in METRICS:
        defined = [{prompt for prompt in shared if name in by_prompt[prompt]} for by_prompt in there]
        common[name] = set[str].intersection(shared, *filter(None, defined))
    return {
        condition: {
            prompt: {name: value for name, value in figures.items() if prompt in common[name]}
            for prompt, figures in by_prompt.items()
            if prompt in shared
        }
        for condition, by_prompt in tables.items()
    }


def summaries(tables: Tables, buckets: Mapping[str, str], bootstrap: Bootstrap) -> dict[str, Any]:
    """By condition the means over prompts, and `by_bucket` those of easy, medium and hard prompts."""
    found = {}
    for condition, by_prompt in tables.items():
        by_bucket: dict[str, list[Figures]] = {}
        for prompt, figures in by_prompt.items():
            by_bucket.setdefault(buckets[prompt], []).append(figures)
        found[condition] = {
            **summary(list(by_prompt.values()), bootstrap),
            "by_bucket": {bucket: summary(part, bootstrap) for bucket, part in sorted(by_bucket.items())},
        }
    return found


def summary(prompts: Sequence[Figures], bootstrap: Bootstrap) -> dict[str, Any]:
    """Means over the prompts that define a figure: `{metric}`, `{metric}_prompts`, `{metric}_ci`.

    A figure that no prompt defines is absent, and so is an interval of fewer than `LEAST_PROMPTS` prompts.
    """
    found: dict[str, Any] = {"count_prompts": len(prompts)}
    for name in METRICS:
        values = [figures[name] for figures in prompts if name in figures]
        if (estimate := over_prompts(values, draws=max(1, bootstrap.draws), seed=bootstrap.seed)) is None:
            continue
        found |= {name: estimate.mean, f"{name}_prompts": estimate.prompts}
        if bootstrap.draws and estimate.low is not None:
            found[f"{name}_ci"] = [estimate.low, estimate.high]
    return found
