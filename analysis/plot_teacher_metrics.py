"""Draws what `compute_teacher_signal_metrics.py` found: bars by condition, over all prompts and by how hard they are.

    python analysis/plot_teacher_metrics.py --input teacher_signal_metrics.json --output-dir DIR

Writes `teacher_metrics_main.png`, `teacher_metrics_by_bucket.png` and, where off-path places were scored,
`teacher_metrics_off_path.png`. A condition of the file that does not define a figure is shown as such.
Exit codes: 0 done, 2 bad input or no matplotlib.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import interrupts  # noqa: F401 - for what it does, before all that takes seconds
from json_lines import BadInput
from rich.console import Console
from sample_sets import SETS

from mopd.gauges import LEAST_PROMPTS

try:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch
except ImportError:
    print(
        "Figures need matplotlib, which is not installed: pip install -r"
        f" {Path(__file__).resolve().parent.parent / 'requirements-analysis.txt'}",
        file=sys.stderr,
    )
    sys.exit(2)

Summary = Mapping[str, Any]
COLOUR, PLAIN, CONTROL = "#0072B2", "#7F7F7F", "#E69F00"
CONTROLS = ("random_peer", "random_summary_control", "verifier_score_ordered")
BUCKETS = {"easy": "#009E73", "medium": "#E69F00", "hard": "#D55E00"}
"""How hard a prompt is, and its colour; told apart by colour-blind readers too."""
ABSENT = "not defined"
LINE = 28
"""Characters of a condition's name on one line; it is parted before a +."""


@dataclass(frozen=True)
class Panel:
    """One figure of every condition."""

    metric: str
    title: str
    chance: float = 0.0
    """What scores without any signal have."""


@dataclass(frozen=True)
class Bar:
    """Where a summary is drawn, and how."""

    place: float
    height: float
    colour: str
    summary: Summary
    counted: bool = False
    """Whether its own number of prompts stands beside it."""


MAIN = (
    Panel("mean_spearman", "Spearman, score and reward"),
    Panel("mean_kendall_tau", "Kendall's tau-b, score and reward"),
    Panel("pairwise_accuracy", "Pairwise accuracy (chance: 0.5)", chance=0.5),
    Panel("success_auc", "AUC of success (chance: 0.5)", chance=0.5),
    Panel("point_biserial", "Point-biserial, score and success"),
    Panel("brier_sigmoid", "Brier of sigmoid (lower is better)"),
)
OFF_PATH = (
    Panel("off_path_accuracy", "Off-path accuracy: right token first"),
    Panel("off_path_probability", "Off-path probability of the right token"),
    Panel("on_path_accuracy", "On-path accuracy, for comparison"),
    Panel("on_path_probability", "On-path probability, for comparison"),
)


@dataclass(frozen=True)
class Found:
    """The summaries of one sample set, by condition."""

    heading: str
    conditions: Mapping[str, Summary]

    def defines(self, panels: Sequence[Panel]) -> bool:
        """Whether any condition has any of these figures."""
        return any(panel.metric in summary for panel in panels for summary in self.conditions.values())


def read(file: Path, sample_set: str, target_type: str | None) -> Found:
    """What was measured on a sample set; with a target type, on the prompts that all conditions share.

    Raises:
        BadInput: the file cannot be read or is something else, or holds nothing of what is asked for.
    """
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        part = document["sample_sets"][sample_set]
        by_type = {None: part["conditions"], **part["paired_by_target_type"]}
        found = {legible(name): dict(summary) for name, summary in by_type.get(target_type, {}).items()}
        tables = [table for one in found.values() for table in (one, *one["by_bucket"].values())]
        sound = all(is_sound(table) for table in tables)
    except OSError as error:
        raise BadInput(f"--input {file}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        sound = False
    if not sound:
        raise BadInput(f"--input {file}: is no file of compute_teacher_signal_metrics.py with the set {sample_set}")
    if target_type not in by_type:
        there = ", ".join(part["paired_by_target_type"]) or "none"
        raise BadInput(f"--paired-target-type {target_type}: is not in {file}; there are: {there}")
    if not found:
        raise BadInput(f"--input {file}: holds no condition")
    paired = "" if target_type is None else f", {target_type}, prompts that all conditions share"
    return Found(legible(f"{sample_set}{paired}"), found)


def is_sound(summary: Any) -> bool:
    """Whether a summary holds numbers where they are drawn."""
    metrics = [panel.metric for panel in (*MAIN, *OFF_PATH)]
    ranges = [summary[f"{name}_ci"] for name in metrics if f"{name}_ci" in summary]
    numbers = [summary["count_prompts"], *(summary[name] for name in metrics if name in summary)]
    numbers += [end for ends in ranges for end in ends]
    return all(len(ends) == 2 for ends in ranges) and all(isinstance(one, (int, float)) for one in numbers)


def legible(label: str) -> str:
    """A label that matplotlib shows as it is ($...$ is no formula here), on several lines where it is long."""
    lines = [""]
    for part in re.split(r"(?=\+)", label.replace("$", r"\$")):
        lines[-1:] = [lines[-1] + part] if len(lines[-1] + part) <= LINE else [lines[-1], part]
    return "\n".join(filter(None, lines))


def bars_of(found: Found, buckets: Sequence[str] = ()) -> list[Bar]:
    """A bar for each condition, or with buckets one for each of them."""
    bars = []
    for place, (name, summary) in enumerate(found.conditions.items()):
        if not buckets:
            colour = PLAIN if name.startswith("base") else CONTROL if name in CONTROLS else COLOUR
            bars.append(Bar(place, 0.72, colour, summary))
        for number, bucket in enumerate(buckets):
            beside = place + (number - (len(buckets) - 1) / 2) * 0.84 / len(buckets)
            bars.append(Bar(beside, 0.76 / len(buckets), BUCKETS[bucket], summary["by_bucket"].get(bucket, {}), True))
    return bars


def sheet(found: Found, panels: Sequence[Panel], bars: Sequence[Bar], legend: Mapping[str, str]) -> Figure:
    """The panels, two or three beside each other, with the conditions' names on the left."""
    columns = 3 if len(panels) % 3 == 0 else 2
    rows = -(-len(panels) // columns)
    height = max(0.3 * len(found.conditions), 0.155 * len(bars)) + 0.7
    figure = Figure(figsize=(4.3 * columns + 2.4, rows * max(height, 1.8) + 1.1), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for panel, axes in zip(panels, grid.flat, strict=True):
        for bar in bars:
            draw(axes, panel, bar)
        finish(axes, panel, bars)
    names = [f"{name} ({summary['count_prompts']})" for name, summary in found.conditions.items()]
    for axes in grid[:, 0]:
        axes.set_yticks(range(len(names)), labels=names, fontsize=9)
        axes.set_ylim(len(names) - 0.5, -0.5)
    patches = [Patch(color=colour, label=label) for label, colour in legend.items()]
    figure.legend(handles=patches, loc="outside lower center", ncols=len(patches), frameon=False, fontsize=9)
    told = f"lines: 95 % intervals over prompts, from {LEAST_PROMPTS} on"
    figure.suptitle(f"{found.heading}: mean over prompts (how many), {told}", fontsize=11)
    return figure


def draw(axes: Axes, panel: Panel, bar: Bar) -> None:
    """A bar with its interval and its number; in place of one that is not defined, words."""
    value = bar.summary.get(panel.metric)
    size = 8.0 if bar.height > 0.5 else 6.5
    if value is None:
        axes.text(0.0, bar.place, f" {ABSENT}", va="center", fontsize=size - 0.5, color="#777777")
        return
    low, high = bar.summary.get(f"{panel.metric}_ci", (value, value))
    side, end = (1, max(high, value)) if value >= 0.0 else (-1, min(low, value))
    axes.barh(bar.place, value, height=bar.height, color=bar.colour)
    if f"{panel.metric}_ci" in bar.summary:
        axes.plot([low, high], [bar.place] * 2, color="black", linewidth=1.3 if bar.height > 0.5 else 0.9)
    prompts = bar.summary.get(f"{panel.metric}_prompts", bar.summary["count_prompts"])
    axes.annotate(
        f"{value:.2f}" + (f" ({prompts})" if bar.counted else ""),
        (end, bar.place),
        xytext=(4 * side, 0),
        textcoords="offset points",
        va="center",
        ha="left" if side > 0 else "right",
        fontsize=size,
    )


def finish(axes: Axes, panel: Panel, bars: Sequence[Bar]) -> None:
    """Limits with room for the numbers, the line of chance, and light lines behind the bars."""
    drawn = [bar.summary for bar in bars if panel.metric in bar.summary]
    ends = [end for one in drawn for end in (one[panel.metric], *one.get(f"{panel.metric}_ci", ()))]
    low, high = min([0.0, *ends]), max([panel.chance, 0.1, *ends])
    room = (0.26 if any(bar.counted for bar in bars) else 0.16) * (high - low)
    axes.set_xlim(low - room if low < 0.0 else 0.0, high + room)
    axes.locator_params(axis="x", nbins=5)
    axes.tick_params(axis="x", labelsize=8)
    if panel.chance or low < 0.0:
        axes.axvline(panel.chance, color="#444444", linewidth=1.0, linestyle="--" if panel.chance else "-")
    axes.set_title(panel.title, fontsize=10)
    axes.grid(True, axis="x", color="#DDDDDD", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def figures_of(found: Found) -> dict[str, Figure | None]:
    """Every file's figure; None where there is nothing to show."""
    by_condition = {"with evidence": COLOUR, "without": PLAIN, "controls": CONTROL}
    there = [name for name in BUCKETS if any(name in one["by_bucket"] for one in found.conditions.values())]
    plain, parted = bars_of(found), bars_of(found, there)
    return {
        "teacher_metrics_main.png": sheet(found, MAIN, plain, by_condition) if found.defines(MAIN) else None,
        "teacher_metrics_by_bucket.png": (
            sheet(found, MAIN, parted, {name: BUCKETS[name] for name in there})
            if there and found.defines(MAIN)
            else None
        ),
        "teacher_metrics_off_path.png": (
            sheet(found, OFF_PATH, plain, by_condition) if found.defines(OFF_PATH) else None
        ),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="plot_teacher_metrics.py", description="Draws what compute_teacher_signal_metrics.py found."
    )
    parser.add_argument("--input", type=Path, required=True, metavar="teacher_signal_metrics.json")
    parser.add_argument("--output-dir", type=Path, required=True, metavar="DIR")
    parser.add_argument("--sample-set", choices=tuple(SETS), default="all_samples")
    parser.add_argument(
        "--paired-target-type", metavar="TYPE", help="only targets of this type, on prompts that all conditions share"
    )
    asked = parser.parse_args(argv)
    console, errors = Console(highlight=False), Console(stderr=True, highlight=False)
    try:
        found = read(asked.input, asked.sample_set, asked.paired_target_type)
        asked.output_dir.mkdir(parents=True, exist_ok=True)
        for name, figure in figures_of(found).items():
            if figure is None:
                errors.print(f"{name}: left out, nothing to show", style="yellow", markup=False, soft_wrap=True)
                continue
            figure.savefig(asked.output_dir / name, dpi=130)
            console.print(f"  {asked.output_dir / name}", markup=False, soft_wrap=True)
    except (BadInput, OSError) as fault:
        errors.print(str(fault), style="red", markup=False, soft_wrap=True)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
