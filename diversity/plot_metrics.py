"""Draws what `compute_metrics.py` found: pass@k, diversity by run, and diversity against pass@k by prompt.

    python diversity/plot_metrics.py --summary DIR/summary.json --per-prompt DIR/per_prompt.jsonl --output-dir DIR

Writes `passk_curve.png`, `method_diversity_bars.png`, `diversity_vs_passk.png` and `success_diversity_vs_passk.png`; a
figure for which there are no data is left out, and said so. Runs keep the labels that they were given.
Exit codes: 0 done, 2 bad input or no matplotlib.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attempts import BadInput, rows_of
from prompt_table import pearson
from rich.console import Console

try:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
except ImportError:
    print(
        "Figures need matplotlib, which is not installed: pip install -r"
        f" {Path(__file__).resolve().parent.parent / 'requirements-analysis.txt'}",
        file=sys.stderr,
    )
    sys.exit(2)

Row = Mapping[str, Any]
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#000000")
"""Told apart by colour-blind readers too; from the ninth run on they begin anew with another marker."""
MARKERS = "osD^vP*X"
TITLES = {
    "distinct2": "distinct-2",
    "success_distinct2": "distinct-2\nof right attempts",
    "success_ast_node_jaccard_distance": "AST distance\nof right attempts",
    "success_pairwise_text_distance": "text distance\nof right attempts",
    "success_unique_response_ratio": "unique share\nof right attempts",
    "unique_code_ratio": "unique programs",
    "unique_response_ratio": "unique responses",
}
BARS_OF_CODE = ("success_distinct2", "success_ast_node_jaccard_distance", "unique_code_ratio")
BARS = ("success_distinct2", "success_pairwise_text_distance", "unique_response_ratio")
SPREAD = 0.012
"""Points of a scatter are moved up or down by at most this, so that equal ones can be seen."""


@dataclass(frozen=True)
class Found:
    """What was measured."""

    summaries: Sequence[Row]
    """One per run."""
    rows: Sequence[Row]
    """One per run and prompt."""

    @property
    def names(self) -> list[str]:
        """The runs' labels."""
        return [summary["method"] for summary in self.summaries]

    @property
    def ks(self) -> list[int]:
        """The k of pass@k that any run has."""
        matches = [re.fullmatch(r"pass@(\d+)_mean", name) for summary in self.summaries for name in summary]
        return sorted({int(match[1]) for match in matches if match})


def read(summary: Path, per_prompt: Path) -> Found:
    """What `compute_metrics.py` wrote.

    Raises:
        BadInput: a file cannot be read, or is something else.
    """
    try:
        document = json.loads(summary.read_text(encoding="utf-8"))
        summaries = [{**row, "method": legible(row["method"])} for row in document["summary"]]
    except OSError as error:
        raise BadInput(f"--summary {summary}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise BadInput(f"--summary {summary}: is no summary.json of compute_metrics.py") from None
    if not summaries:
        raise BadInput(f"--summary {summary}: holds no run")
    rows = [row for _, row in rows_of(per_prompt)]
    if not all(isinstance(row, dict) and "method" in row for row in rows):
        raise BadInput(f"--per-prompt {per_prompt}: is no per_prompt.jsonl of compute_metrics.py")
    return Found(summaries, [{**row, "method": legible(row["method"])} for row in rows])


def legible(label: Any) -> str:
    """A label that matplotlib shows as it is: not $...$ as a formula, and one that begins with _ at all."""
    text = str(label).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def style(place: int) -> dict[str, str]:
    """Colour and marker of the run at this place."""
    return {"color": COLOURS[place % len(COLOURS)], "marker": MARKERS[(place // len(COLOURS)) % len(MARKERS)]}


def standard_error(summary: Row, name: str) -> float:
    """Of a mean over prompts; 0 where one prompt tells nothing of it."""
    prompts = summary.get(f"{name}_prompts", 0)
    return summary[f"{name}_std"] / math.sqrt(prompts - 1) if prompts > 1 else 0.0


def with_legend(figure: Figure, axes: Axes, names: Sequence[str]) -> None:
    """The runs' labels under the axes, in as many columns as their length allows."""
    columns = max(1, min(len(names), 76 // (max(map(len, names)) + 5)))
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=columns, frameon=False)


def plain(axes: Axes) -> None:
    """Light lines behind the data, and no box."""
    axes.grid(True, color="#DDDDDD", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def passk_curve(found: Found) -> Figure | None:
    """pass@k over k, with the standard error over prompts."""
    if not found.ks:
        return None
    figure = Figure(figsize=(6.4, 4.6), layout="constrained")
    axes = figure.subplots()
    for place, summary in enumerate(found.summaries):
        ks = [k for k in found.ks if f"pass@{k}_mean" in summary]
        means = [summary[f"pass@{k}_mean"] for k in ks]
        errors = [standard_error(summary, f"pass@{k}") for k in ks]
        axes.errorbar(ks, means, errors, label=summary["method"], capsize=3, **style(place))
    axes.set_xscale("log", base=2)
    axes.set_xticks(found.ks, labels=[str(k) for k in found.ks])
    axes.set_xlabel("k")
    axes.set_ylabel("pass@k, mean over prompts")
    axes.set_ylim(bottom=0.0)
    axes.set_title("pass@k (bars: standard error over prompts)", fontsize=11)
    plain(axes)
    with_legend(figure, axes, found.names)
    return figure


def diversity_bars(found: Found) -> Figure | None:
    """Three measures by run, each on its own scale."""
    wanted = BARS_OF_CODE if any("unique_code_ratio_mean" in summary for summary in found.summaries) else BARS
    names = [name for name in wanted if any(f"{name}_mean" in summary for summary in found.summaries)]
    if not names:
        return None
    height = 1.6 + 0.42 * len(found.summaries)
    figure = Figure(figsize=(3.6 * len(names) + 0.4, max(height, 2.6)), layout="constrained")
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    for panel, (axes, name) in enumerate(zip(panels, names, strict=True)):
        for place, summary in enumerate(found.summaries):
            if (mean := summary.get(f"{name}_mean")) is None:
                continue
            error = standard_error(summary, name)
            axes.barh(place, mean, xerr=error, color=style(place)["color"], capsize=3, height=0.7)
            axes.annotate(
                f"{mean:.3f}", (mean + error, place), xytext=(5, 0), textcoords="offset points", va="center", fontsize=9
            )
        axes.set_yticks(range(len(found.names)), labels=found.names if panel == 0 else [""] * len(found.names))
        axes.set_ylim(len(found.names) - 0.5, -0.5)
        axes.margins(x=0.25)
        axes.locator_params(axis="x", nbins=4)
        axes.set_xlim(left=0.0)
        axes.set_title(TITLES[name], fontsize=11)
        plain(axes)
        axes.grid(False, axis="y")
    figure.suptitle("Diversity, mean over prompts (more is more diverse; bars: standard error)", fontsize=11)
    return figure


Pairs = list[tuple[float, float]]


def points_of(found: Found, metric: str, k: int) -> dict[str, Pairs]:
    """By run: a measure and pass@k of every prompt that has both."""
    wanted = (metric, f"pass@{k}")
    return {
        name: [
            (row[wanted[0]], row[wanted[1]])
            for row in found.rows
            if row["method"] == name and all(isinstance(row.get(key), (int, float)) for key in wanted)
        ]
        for name in found.names
    }


def telling(found: Found, metric: str, most: int) -> int | None:
    """The largest k up to `most` at which pass@k varies among prompts that have the measure; else the largest at all.

    Of prompts with right attempts to measure, pass@k is 1 by construction where k attempts are nearly all there are.
    None where no prompt has the measure and pass@k.
    """
    there = [k for k in found.ks if k <= most and any(points_of(found, metric, k).values())]
    varied = [k for k in there if len({y for pairs in points_of(found, metric, k).values() for _, y in pairs}) > 1]
    return max(varied or there, default=None)


def scatter(found: Found, metric: str, label: str, most: int) -> Figure | None:
    """A point per prompt and run: a measure of diversity, and pass@k; a large point per run for its means."""
    k = telling(found, metric, most)
    if k is None:
        return None
    points = points_of(found, metric, k)
    figure = Figure(figsize=(6.4, 5.0), layout="constrained")
    axes = figure.subplots()
    shown = []
    for place, (name, pairs) in enumerate(points.items()):
        if not pairs:
            continue
        xs, ys = zip(*pairs, strict=True)
        correlation = pearson(pairs)
        told = "" if correlation is None else f", r = {correlation:+.2f}"
        shown.append(f"{name} ({len(pairs)}{told})")
        spread = [y + SPREAD * math.sin(7.0 * number + place) for number, y in enumerate(ys)]
        axes.scatter(xs, spread, s=20, alpha=0.35, linewidths=0, **style(place))
        middle = (math.fsum(xs) / len(xs), math.fsum(ys) / len(ys))
        axes.scatter(*middle, s=150, edgecolors="black", label=shown[-1], zorder=3, **style(place))
    axes.set_xlabel(f"{label} within a prompt")
    axes.set_ylabel(f"pass@{k} of the prompt")
    axes.set_ylim(-0.05, 1.05)
    axes.set_title("Small: a prompt (spread a little up and down). Large: a run's means", fontsize=11)
    plain(axes)
    with_legend(figure, axes, shown)
    return figure


def figures_of(found: Found, k: int) -> dict[str, Callable[[], Figure | None]]:
    """How each file is drawn."""
    return {
        "passk_curve.png": lambda: passk_curve(found),
        "method_diversity_bars.png": lambda: diversity_bars(found),
        "diversity_vs_passk.png": lambda: scatter(found, "pairwise_text_distance", "Text distance", k),
        "success_diversity_vs_passk.png": lambda: scatter(
            found, "success_pairwise_text_distance", "Text distance of right attempts", k
        ),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="plot_metrics.py", description="Draws what compute_metrics.py found.")
    parser.add_argument("--summary", type=Path, required=True, metavar="summary.json")
    parser.add_argument("--per-prompt", type=Path, required=True, metavar="per_prompt.jsonl")
    parser.add_argument("--output-dir", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--scatter-k",
        type=int,
        default=8,
        metavar="K",
        help="of pass@k in the scatter plots; less where pass@K is the same for all prompts",
    )
    asked = parser.parse_args(argv)
    console, errors = Console(highlight=False), Console(stderr=True, highlight=False)
    try:
        found = read(asked.summary, asked.per_prompt)
        asked.output_dir.mkdir(parents=True, exist_ok=True)
    except (BadInput, OSError) as fault:
        errors.print(str(fault), style="red", markup=False, soft_wrap=True)
        return 2
    for name, draw in figures_of(found, asked.scatter_k).items():
        if (figure := draw()) is None:
            errors.print(f"{name}: left out, nothing to show", style="yellow", markup=False, soft_wrap=True)
        else:
            figure.savefig(asked.output_dir / name, dpi=160)
            console.print(f"  {asked.output_dir / name}", markup=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
