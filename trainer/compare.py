"""`python -m trainer.compare RUN ...`: held-out quality of runs side by side, over seeds, by step and by rollout token.

RUN is an OUTPUT_DIR, or NAME=OUTPUT_DIR. Runs that differ in nothing but their seed are one group, as are those of one
NAME; a group is shown by the mean over its seeds with Student's t-interval. Prints a table per figure, and draws the
curves where matplotlib is installed.

Exit codes: 0 done, 2 a folder holds no run, or the figure that was asked for cannot be made.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from trainer.comparing.curves import Figure, Point, Standing, compare, without_difference
from trainer.comparing.drawing import KINDS, REQUIREMENTS, can_draw, draw
from trainer.comparing.intervals import Estimate
from trainer.comparing.runs import RunGroup, cautions, grouped, read_runs
from trainer.errors import BAD_INPUT, DONE, INTERRUPTED, BadInputError

FIGURE = Path("comparison.png")
"""Where the figure goes unless said otherwise."""


def arguments_of(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; ends with exit code 2 where it is wrong."""
    parser = argparse.ArgumentParser(prog="python -m trainer.compare", description="Compares runs over seeds.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="an OUTPUT_DIR, or NAME=OUTPUT_DIR to choose its group")
    parser.add_argument("--json", action="store_true", help="print everything as JSON in place of tables")
    parser.add_argument(
        "--figure",
        type=Path,
        metavar="FILE",
        help=f"where the figure goes ({', '.join(KINDS)}); default {FIGURE}, with --json none",
    )
    parser.add_argument("--confidence", type=float, default=0.95, metavar="P", help="of the intervals; default 0.95")
    asked = parser.parse_args(argv)
    if not 0.0 < asked.confidence < 1.0:
        parser.error(f"--confidence {asked.confidence}: must lie between 0 and 1")
    return asked


def figure_file(asked: argparse.Namespace) -> Path | None:
    """Where the figure goes; None where none is made.

    Raises:
        BadInputError: one was asked for and cannot be made.
    """
    wanted: Path | None = asked.figure
    if wanted is None:
        return None if asked.json or not can_draw() else FIGURE
    if wanted.suffix not in KINDS:
        raise BadInputError([f"--figure {wanted}: must end in one of {', '.join(KINDS)}"])
    if not can_draw():
        raise BadInputError([f"--figure {wanted}: matplotlib is not installed; pip install -r {REQUIREMENTS}"])
    return wanted


def shown(value: Estimate | None, *, signed: bool = False) -> str:
    """A mean with its interval; of one run without."""
    if value is None:
        return "–"
    mean = f"{value.mean:+.3f}" if signed else f"{value.mean:.3f}"
    return mean if value.half_width is None else f"{mean} ± {value.half_width:.3f}"


def table_of(figure: Figure) -> Table:
    """One figure, a row per group."""
    first = figure.standings[0].group
    table = Table(title=Text(figure.name), box=box.SIMPLE_HEAD, padding=0, pad_edge=False)
    table.add_column("run", overflow="fold")
    headings = ["n", "start"]
    headings.append("common step" if figure.step is None else f"step {figure.step}")
    headings.append("common tokens" if figure.tokens is None else f"{figure.tokens:,.0f} tokens")
    if len(figure.standings) > 1:
        headings.append(f"minus {first}")
    for heading in headings:
        table.add_column(Text(heading), justify="right")
    for row in figure.standings:
        cells = [str(row.runs), *(shown(value) for value in (row.first, row.at_step, row.at_tokens))]
        cells += [shown(row.difference, signed=True)] if len(figure.standings) > 1 else []
        table.add_row(Text(row.group), *cells)
    return table


def described(value: Estimate | None) -> dict[str, Any] | None:
    """An estimate as JSON has it."""
    return None if value is None else {"mean": value.mean, "n": value.n, "low": value.low, "high": value.high}


def described_points(points: Sequence[Point], axis: str) -> list[dict[str, Any]]:
    """A curve as JSON has it."""
    return [{axis: point.x, **(described(point.at) or {})} for point in points]


def described_row(row: Standing) -> dict[str, Any]:
    """A row of the table as JSON has it."""
    return {
        "group": row.group,
        "n": row.runs,
        "start": described(row.first),
        "at_step": described(row.at_step),
        "at_tokens": described(row.at_tokens),
        "difference": described(row.difference),
    }


def document(groups: Sequence[RunGroup], figures: Sequence[Figure], confidence: float) -> dict[str, Any]:
    """Everything that was found, for other programs."""
    return {
        "confidence": confidence,
        "groups": [
            {
                "name": group.name,
                "method": group.runs[0].method,
                "seeds": group.seeds,
                "runs": [str(run.folder) for run in group.runs],
            }
            for group in groups
        ],
        "cautions": [*cautions(groups), *without_difference(figures)],
        "figures": {
            figure.name: {
                "step": figure.step,
                "tokens": figure.tokens,
                "table": [described_row(row) for row in figure.standings],
                "by_step": {name: described_points(points, "step") for name, points in figure.by_step.items()},
                "by_tokens": {name: described_points(points, "tokens") for name, points in figure.by_tokens.items()},
            }
            for figure in figures
        },
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    asked = arguments_of(argv)
    console, errors = Console(highlight=False), Console(stderr=True, highlight=False)
    try:
        file = figure_file(asked)
        groups = grouped(read_runs(asked.runs))
        figures = compare(groups, asked.confidence)
        if file is not None:
            labels = {group.name: f"{group.name} (n = {len(group.runs)})" for group in groups}
            draw(figures, labels, asked.confidence, file)
    except BadInputError as error:
        errors.print(str(error), style="red", markup=False, soft_wrap=True)
        return BAD_INPUT
    except OSError as error:
        errors.print(f"--figure: cannot be written ({error})", style="red", markup=False, soft_wrap=True)
        return BAD_INPUT
    except KeyboardInterrupt:
        return INTERRUPTED
    if asked.json:
        print(json.dumps(document(groups, figures, asked.confidence), indent=2, allow_nan=False))
    else:
        for figure in figures:
            console.print(table_of(figure))
        interval = f"{100 * asked.confidence:g} %"
        console.print(f"  ± is half of Student's {interval} interval over n runs; one run has none.", markup=False)
        if file is None:
            console.print(f"  no figure: matplotlib is not installed; pip install -r {REQUIREMENTS}", soft_wrap=True)
    for sentence in [*cautions(groups), *without_difference(figures)]:
        errors.print(sentence, style="yellow", markup=False, soft_wrap=True)
    if file is not None:
        errors.print(f"  figure    {file}", markup=False, soft_wrap=True)
    return DONE


if __name__ == "__main__":
    sys.exit(main())
