"""Draws a table of numbers as a heat map, with the number in each cell.

    python analysis/plot_heatmap_grid.py --input spec.json --output grid.png
    python analysis/plot_heatmap_grid.py --demo --output grid.png

A specification is a JSON object. `data` holds rows of numbers; null is a cell without one. All else may be left out:
`row_labels`, `col_labels`, `title`, `top_label`, `figsize` ([inches, inches]), `cmap` (a name of matplotlib), `vmin`,
`vmax`, `annotation_fmt` (as ".2f"), `highlights` and `dots` (lists of [row, column], from 0: a frame, a dot), and
`top_bands` (objects with `start`, `end`, `label`, `color`: a band above these columns, both included).
The demo's numbers are invented, and the figure says so. Exit codes: 0 done, 2 bad input or no matplotlib.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import interrupts  # noqa: F401 - for what it does, before all that takes seconds
from json_lines import BadInput, brief
from rich.console import Console

try:
    from matplotlib import colormaps
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize, is_color_like
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle
except ImportError:
    print(
        "Figures need matplotlib, which is not installed: pip install -r"
        f" {Path(__file__).resolve().parent.parent / 'requirements-analysis.txt'}",
        file=sys.stderr,
    )
    sys.exit(2)

DEMO = {
    "title": "Example numbers, invented: nothing here was measured",
    "data": [[0.52, 0.61, 0.66, 0.64], [0.50, 0.58, 0.71, None], [0.49, 0.55, 0.57, 0.74]],
    "row_labels": ["easy", "medium", "hard"],
    "col_labels": ["base", "one success", "two successes", "with a failure"],
    "annotation_fmt": ".2f",
    "vmin": 0.4,
    "vmax": 0.8,
    "highlights": [[0, 2], [1, 2], [2, 3]],
    "dots": [[2, 1]],
    "top_bands": [
        {"start": 0, "end": 0, "label": "no peers", "color": "#CCCCCC"},
        {"start": 1, "end": 3, "label": "peers", "color": "#9ECAE1"},
    ],
    "top_label": "example AUC by context",
}
FIELDS = (
    "data", "row_labels", "col_labels", "title", "figsize", "cmap", "vmin", "vmax", "annotation_fmt", "highlights",
    "dots", "top_bands", "top_label",
)  # fmt: skip
LARGEST = 200
"""Rows or columns that can still be told apart."""

Cell = tuple[int, int]


@dataclass(frozen=True)
class Band:
    """A band above some columns."""

    start: int
    end: int
    """The last column that it covers."""
    label: str
    colour: str


@dataclass(frozen=True)
class Grid:
    """A checked specification."""

    data: list[list[float | None]]
    row_labels: list[str]
    col_labels: list[str]
    title: str
    figsize: tuple[float, float]
    cmap: str
    vmin: float
    vmax: float
    annotation_fmt: str
    highlights: list[Cell]
    dots: list[Cell]
    top_bands: list[Band]
    top_label: str


def grid_of(spec: Any) -> Grid:
    """The grid that a specification asks for.

    Raises:
        BadInput: it asks for something that cannot be drawn.
    """
    if not isinstance(spec, dict):
        raise BadInput(f"is {brief(spec)}; an object with the field `data` is wanted")
    if unknown := sorted(set(spec) - set(FIELDS)):
        raise BadInput(f"has the unknown field {unknown[0]!r}; known are {', '.join(FIELDS)}")
    data = numbers_of(spec.get("data"))
    rows, columns = len(data), len(data[0])
    known = [value for row in data for value in row if value is not None]
    low, high = number(spec, "vmin", min(known)), number(spec, "vmax", max(known))
    if low > high:
        raise BadInput(f"has `vmin` {low:g} above `vmax` {high:g}")
    cmap, form = text(spec, "cmap", "viridis"), text(spec, "annotation_fmt", ".2f")
    if cmap not in colormaps:
        raise BadInput(f"has {brief(cmap)} as its `cmap`; a colour map of matplotlib is wanted, such as viridis")
    try:
        format(1.5, form)
    except ValueError:
        raise BadInput(f"has {brief(form)} as its `annotation_fmt`; a format such as .2f is wanted") from None
    return Grid(
        data=data,
        row_labels=labels(spec, "row_labels", rows),
        col_labels=labels(spec, "col_labels", columns),
        title=text(spec, "title", ""),
        figsize=size_of(spec, (1.1 * columns + 2.4, 0.55 * rows + 1.9)),
        cmap=cmap,
        vmin=low,
        vmax=high,
        annotation_fmt=form,
        highlights=cells(spec, "highlights", rows, columns),
        dots=cells(spec, "dots", rows, columns),
        top_bands=bands(spec, columns),
        top_label=text(spec, "top_label", ""),
    )


def is_number(value: Any) -> bool:
    """Whether a value is a finite number; a truth value is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < math.inf


def numbers_of(data: Any) -> list[list[float | None]]:
    """The rows of `data`, all of one length; null and NaN are None."""
    rows = data if isinstance(data, list) else []
    if not rows or not all(isinstance(row, list) and row and len(row) == len(rows[0]) for row in rows):
        raise BadInput(f"has {brief(data)} as its `data`; rows of equally many numbers are wanted")
    if max(len(rows), len(rows[0])) > LARGEST:
        raise BadInput(f"has {len(rows)} rows of {len(rows[0])} in `data`; up to {LARGEST} can be told apart")
    found = [[None if value is None or value != value else value for value in row] for row in rows]
    flat = [value for row in found for value in row if value is not None]
    if wrong := [value for value in flat if not is_number(value)]:
        raise BadInput(f"has {brief(wrong[0])} in its `data`; numbers or null are wanted")
    if not flat:
        raise BadInput("has no number in its `data`")
    return [[None if value is None else float(value) for value in row] for row in found]


def number(spec: Mapping[str, Any], name: str, default: float) -> float:
    """A number, or what stands for it."""
    value = spec.get(name)
    if value is not None and not is_number(value):
        raise BadInput(f"has {brief(value)} as its `{name}`; a number is wanted")
    return default if value is None else float(value)


def text(spec: Mapping[str, Any], name: str, default: str) -> str:
    """A text, or what stands for it."""
    value = spec.get(name)
    if value is not None and not isinstance(value, str):
        raise BadInput(f"has {brief(value)} as its `{name}`; a text is wanted")
    return default if value is None else value


def labels(spec: Mapping[str, Any], name: str, count: int) -> list[str]:
    """As many labels as there are rows or columns, or none."""
    value = spec.get(name)
    if value is None:
        return [""] * count
    if not isinstance(value, list) or len(value) != count:
        raise BadInput(f"has {brief(value)} as its `{name}`; {count} labels are wanted, as many as `data` has")
    return [str(label).replace("$", r"\$") for label in value]


def size_of(spec: Mapping[str, Any], default: tuple[float, float]) -> tuple[float, float]:
    """Width and height in inches."""
    value = spec.get("figsize")
    if value is None:
        return min(default[0], 50.0), min(default[1], 50.0)
    if not (isinstance(value, list) and len(value) == 2 and all(is_number(n) and 1 <= n <= 50 for n in value)):
        raise BadInput(f"has {brief(value)} as its `figsize`; two numbers from 1 to 50 are wanted, in inches")
    return float(value[0]), float(value[1])


def cells(spec: Mapping[str, Any], name: str, rows: int, columns: int) -> list[Cell]:
    """Pairs of row and column."""
    value = spec.get(name) or []
    for cell in value if isinstance(value, list) else [value]:
        if not (isinstance(cell, list) and len(cell) == 2 and all(type(n) is int for n in cell)):
            raise BadInput(f"has {brief(cell)} in its `{name}`; pairs [row, column] are wanted")
        if not (0 <= cell[0] < rows and 0 <= cell[1] < columns):
            raise BadInput(f"has {cell} in its `{name}`; rows are 0 to {rows - 1}, columns 0 to {columns - 1}")
    return [(row, column) for row, column in value]


def bands(spec: Mapping[str, Any], columns: int) -> list[Band]:
    """Bands above the columns."""
    value = spec.get("top_bands") or []
    found = []
    for band in value if isinstance(value, list) else [value]:
        start, end = (band.get("start"), band.get("end")) if isinstance(band, dict) else (None, None)
        if not (type(start) is int and type(end) is int and 0 <= start <= end < columns):
            raise BadInput(
                f"has {brief(band)} in its `top_bands`; `start` and `end` from 0 to {columns - 1} are wanted"
            )
        colour = text(band, "color", "#DDDDDD")
        if not is_color_like(colour):
            raise BadInput(f"has {brief(colour)} as the `color` of a band; a colour such as #9ECAE1 is wanted")
        found.append(Band(start, end, text(band, "label", ""), colour))
    return found


def draw(grid: Grid) -> Figure:
    """The heat map."""
    figure = Figure(figsize=grid.figsize, layout="constrained")
    axes = figure.subplots()
    table = [[math.nan if value is None else value for value in row] for row in grid.data]
    norm = Normalize(grid.vmin, grid.vmax)
    image = axes.imshow(table, cmap=grid.cmap, norm=norm, aspect="auto")
    axes.set_facecolor("#F2F2F2")
    axes.set_xticks(range(len(grid.col_labels)), labels=grid.col_labels)
    axes.set_yticks(range(len(grid.row_labels)), labels=grid.row_labels)
    if max(map(len, grid.col_labels)) * len(grid.col_labels) > 11 * grid.figsize[0]:
        axes.tick_params(axis="x", labelrotation=40)
        for label in axes.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    annotate(axes, grid, norm)
    for row, column in grid.highlights:
        axes.add_patch(Rectangle((column - 0.47, row - 0.46), 0.94, 0.92, fill=False, edgecolor="black", linewidth=2.2))
    figure.colorbar(image, ax=axes, pad=0.02)
    draw_bands(axes, grid)
    heading = "\n".join(part.replace("$", r"\$") for part in (grid.title, grid.top_label) if part)
    figure.suptitle(heading, fontsize=11)
    return figure


def annotate(axes: Axes, grid: Grid, norm: Normalize) -> None:
    """The number in each cell, dark on light and light on dark; a dash where there is none; dots in corners."""
    for row, values in enumerate(grid.data):
        for column, value in enumerate(values):
            told = "–" if value is None else format(value, grid.annotation_fmt)
            colour = "#888888" if value is None else ink(grid.cmap, float(norm(value)))
            axes.text(column, row, told, ha="center", va="center", fontsize=9, color=colour)
            if (row, column) in grid.dots:
                axes.plot(column + 0.36, row - 0.3, "o", color=colour, markersize=4.5)


def ink(cmap: str, place: float) -> str:
    """Black or white, whichever can be read on this colour."""
    red, green, blue, _ = colormaps[cmap](place)
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"


def draw_bands(axes: Axes, grid: Grid) -> None:
    """The bands above the cells."""
    if not grid.top_bands:
        return
    height = 0.42
    for band in grid.top_bands:
        width = band.end - band.start + 0.94
        place = (band.start - 0.47, -0.56 - height)
        axes.add_patch(Rectangle(place, width, height, facecolor=band.colour, edgecolor="none", clip_on=False))
        label, middle = band.label.replace("$", r"\$"), (band.start + band.end) / 2
        axes.text(middle, -0.56 - height / 2, label, ha="center", va="center", fontsize=9, clip_on=False)
    axes.set_ylim(len(grid.data) - 0.5, -0.6 - height)


def read(file: Path) -> Any:
    """What a file says.

    Raises:
        BadInput: it cannot be read, or is no JSON.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise BadInput(f"is no JSON ({error!s:.80})") from None


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="plot_heatmap_grid.py", description="Draws a table of numbers as a heat map.")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", type=Path, metavar="spec.json", help="what to draw; the top of the script says how")
    source.add_argument("--demo", action="store_true", help="draw invented numbers")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.png")
    asked = parser.parse_args(argv)
    errors = Console(stderr=True, highlight=False)
    try:
        figure = draw(grid_of(DEMO if asked.demo else read(asked.input)))
    except BadInput as fault:
        errors.print(f"--input {asked.input}: {fault}", style="red", markup=False, soft_wrap=True)
        return 2
    try:
        asked.output.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(asked.output, dpi=150)
    except (OSError, ValueError) as error:
        errors.print(f"--output {asked.output}: {error}", style="red", markup=False, soft_wrap=True)
        return 2
    Console(highlight=False).print(f"  {asked.output}", markup=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
