"""The comparison drawn: a row per data source and figure, by step on the left and by rollout token on the right."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.comparing.curves import Figure, Point

REQUIREMENTS = Path(__file__).resolve().parents[2] / "requirements-analysis.txt"
KINDS = (".png", ".svg", ".pdf")
"""Endings of files that can be written."""
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#000000")
"""Told apart by colour-blind readers too; from the ninth group on they begin anew with another line."""
LINES = ("-", "--", ":", "-.")


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def draw(figures: Sequence[Figure], labels: Mapping[str, str], confidence: float, file: Path) -> None:
    """Writes the figure; `labels` by group. Needs matplotlib.

    Raises:
        OSError: the file cannot be written.
    """
    # By name, so that types do not depend on whether the library is there.
    drawing = importlib.import_module("matplotlib.figure")
    ticker = importlib.import_module("matplotlib.ticker")
    sheet = drawing.Figure(figsize=(10.0, 1.2 + 2.9 * len(figures)), layout="constrained")
    rows = sheet.subplots(len(figures), 2, squeeze=False, sharey="row", sharex="col")
    for figure, (left, right) in zip(figures, rows, strict=True):
        for place, group in enumerate(labels):
            style = {"color": COLOURS[place % len(COLOURS)], "linestyle": LINES[place // len(COLOURS) % len(LINES)]}
            draw_band(left, figure.by_step.get(group, ()), {**style, "marker": "o"})
            tokens = figure.by_tokens.get(group, ())  # interpolated: a mark would say measured
            draw_band(right, tokens, {**style, "marker": "" if len(tokens) > 1 else "o"})
        left.set_ylabel(figure.name)
        for axes in (left, right):
            axes.grid(True, color="#DDDDDD", linewidth=0.8)
            axes.spines[["top", "right"]].set_visible(False)
            axes.set_axisbelow(True)
        right.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
        left.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    rows[-1][0].set_xlabel("step")
    rows[-1][1].set_xlabel("response tokens sampled for training")
    sheet.suptitle(title_of(figures, confidence), fontsize=11)
    lines = importlib.import_module("matplotlib.lines")
    handles = [
        lines.Line2D(
            [],
            [],
            marker="o",
            markersize=4,
            label=label.replace("$", r"\$"),
            color=COLOURS[place % len(COLOURS)],
            linestyle=LINES[place // len(COLOURS) % len(LINES)],
        )
        for place, label in enumerate(labels.values())
    ]
    columns = max(1, min(len(handles), 110 // (max(map(len, labels.values())) + 6)))
    sheet.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)
    file.parent.mkdir(parents=True, exist_ok=True)
    sheet.savefig(file, dpi=150)


def title_of(figures: Sequence[Figure], confidence: float) -> str:
    """What is drawn: of one seed each there are no intervals."""
    points = (point for figure in figures for group in figure.by_step.values() for point in group)
    if all(point.at.half_width is None for point in points):
        return "Held-out quality, one seed each: no intervals"
    return f"Held-out quality, mean over seeds with {100 * confidence:g} % t-intervals"


def draw_band(axes: Any, points: Sequence[Point], style: Mapping[str, str]) -> None:
    """A group's mean, and its interval where there are several seeds."""
    xs = [point.x for point in points]
    axes.plot(xs, [point.at.mean for point in points], markersize=4, **style)
    several = [(point.x, point.at.low, point.at.high) for point in points if point.at.half_width is not None]
    if several:
        axes.fill_between(*zip(*several, strict=True), color=style["color"], alpha=0.15, linewidth=0)
