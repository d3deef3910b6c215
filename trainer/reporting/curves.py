"""A run's metrics, times and settings as the page shows them: short for any length of run, and no value made up."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeGuard

from trainer.config.compose import read_yaml
from trainer.replaying.records import PastRun
from trainer.resume import METHOD_LINE

MOST_POINTS = 400
"""Points of a curve. A longer one keeps the extremes of equal parts, so that no spike is lost."""
MOST_COLUMNS = 200
"""Columns of the figure of times; those of a longer run are means over several steps."""
TIMES = "timing_s/"
WHOLE = "step"
"""The phase that is all of a step."""

Curve = tuple[list[int], list[float]]
"""Steps, and a value for each."""


def run_of(past: PastRun, name: str) -> dict[str, Any]:
    """Everything of a run but its rollouts, as JSON has it.

    Raises:
        BadInputError: its settings cannot be read.
    """
    file = past.folders.output / "config.yaml"
    return {
        "name": name,
        "folder": str(past.folders.output),
        "method": file.read_text(encoding="utf-8").splitlines()[0].removeprefix(METHOD_LINE).strip(),
        "curves": curves_of(past.history),
        "times": times_of(past.history),
        "settings": dict(flat(read_yaml(file))),
        "facts": dict(flat(past.manifest)),
    }


def curves_of(history: Sequence[Mapping[str, Any]]) -> dict[str, Curve]:
    """Every metric with the steps at which it was measured; what is no number was not."""
    curves: dict[str, Curve] = {}
    for record in history:
        for name, value in record.items():
            if name != "step" and is_number(value):
                steps, values = curves.setdefault(name, ([], []))
                steps.append(int(record["step"]))
                values.append(value if isinstance(value, int) else float(f"{value:.6g}"))
    return {name: thinned(curve) for name, curve in sorted(curves.items())}


def thinned(curve: Curve, most: int = MOST_POINTS) -> Curve:
    """A curve of at most `most` points: both ends, and of equal parts the smallest and the largest, at their steps."""
    steps, values = curve
    if len(steps) <= most:
        return curve
    size = math.ceil(len(steps) / (most // 2 - 1))
    kept = {0, len(steps) - 1}
    for start in range(0, len(steps), size):
        part = range(start, min(start + size, len(steps)))
        kept |= {min(part, key=values.__getitem__), max(part, key=values.__getitem__)}
    return [steps[index] for index in sorted(kept)], [values[index] for index in sorted(kept)]


def times_of(history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Seconds by phase: totals of the run, and columns for a figure, each the mean over some consecutive steps."""
    records = [record for record in history if is_number(record.get(TIMES + WHOLE))]
    names = dict.fromkeys(name.removeprefix(TIMES) for record in records for name in record if name.startswith(TIMES))
    phases = [name for name in names if name != WHOLE]
    size = max(1, math.ceil(len(records) / MOST_COLUMNS))
    parts = [records[start : start + size] for start in range(0, len(records), size)]
    return {
        "steps": len(records),
        "every": size,
        "total": {name: round(seconds(records, name), 4) for name in [WHOLE, *phases]},
        "columns": [int(part[0]["step"]) for part in parts],
        "seconds": {
            name: [float(f"{seconds(part, name) / len(part):.4g}") for part in parts] for name in [WHOLE, *phases]
        },
    }


def seconds(records: Sequence[Mapping[str, Any]], phase: str) -> float:
    """What a phase took in all of some steps; nothing where it did not occur."""
    values = (record.get(TIMES + phase) for record in records)
    return float(sum(value for value in values if is_number(value)))


def is_number(value: Any) -> TypeGuard[int | float]:
    """Whether a value can be drawn."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted keys with their values as text."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value, default=str)
