"""Do a teacher's scores tell right responses from wrong ones? Metrics by condition, over prompts, with intervals.

    python analysis/compute_teacher_signal_metrics.py --input teacher_scores.jsonl --output teacher_signal_metrics.json

Reads what `score_teacher_contexts.py` wrote. Writes the JSON file, and of a sample set `<stem>_table7.md` and `.csv`.
docs/analysis.md says what each figure means. Exit codes: 0 done, 2 bad input.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import interrupts  # noqa: F401 - for what it does, before all that takes seconds
from json_lines import BadInput
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from sample_sets import SETS, Bootstrap, analyse, has_both
from signal_rows import Row, read_scores

TABLE = {
    "mean_spearman": "Spearman",
    "mean_kendall_tau": "Kendall tau-b",
    "pairwise_accuracy": "pairwise accuracy",
    "success_auc": "AUC of success",
    "off_path_accuracy": "off-path accuracy",
}
"""The columns of the table; one that no condition defines is left out."""
SCREEN = {
    "mean_spearman": "Spearman",
    "mean_kendall_tau": "tau-b",
    "success_auc": "AUC",
    "off_path_accuracy": "off-path",
}
"""Those that a terminal has room for."""
NOTHING = "–"


def arguments_of(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; ends with exit code 2 where it is wrong."""
    parser = argparse.ArgumentParser(
        prog="compute_teacher_signal_metrics.py",
        description="Whether a teacher's scores tell right responses from wrong ones.",
        epilog="docs/analysis.md says what each figure means.",
    )
    parser.add_argument("--input", type=Path, required=True, metavar="teacher_scores.jsonl")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.json")
    parser.add_argument(
        "--num-bootstrap", type=int, default=2000, metavar="N", help="resamples of the prompts; 0: no intervals"
    )
    parser.add_argument("--seed", type=int, default=12345, metavar="N", help="of the resamples")
    parser.add_argument(
        "--table-output", type=Path, metavar="FILE", help="the table, as .md and .csv; default <stem>_table7"
    )
    parser.add_argument(
        "--table-sample-set", choices=tuple(SETS), default="both_present_effective_only", help="shown in the table"
    )
    asked = parser.parse_args(argv)
    for flag, number in (("--num-bootstrap", asked.num_bootstrap), ("--seed", asked.seed)):
        if number < 0:
            parser.error(f"{flag} {number}: must not be negative")
    return asked


def document_of(asked: argparse.Namespace, rows: Sequence[Row]) -> dict[str, Any]:
    """The content of the JSON file."""
    by_prompt: dict[str, list[Row]] = {}
    counts: dict[str, int] = {}
    for row in rows:
        by_prompt.setdefault(row.prompt_id, []).append(row)
        counts[row.condition] = counts.get(row.condition, 0) + 1
    return {
        "input": str(asked.input),
        "num_bootstrap": asked.num_bootstrap,
        "seed": asked.seed,
        "prompt_count": len(by_prompt),
        "both_present_prompt_count": sum(map(has_both, by_prompt.values())),
        "unscored_count": sum(row.scored.score is None for row in rows),
        "condition_sample_counts": counts,
        "sample_sets": analyse(rows, Bootstrap(asked.num_bootstrap, asked.seed)),
    }


def warnings_of(document: Mapping[str, Any], rows: Sequence[Row]) -> list[str]:
    """What a reader of the figures should know: sentences for people."""
    told = []
    if unscored := document["unscored_count"]:
        told.append(f"{unscored} of {len(rows)} rows have no score (an empty response has none); they rank nothing")
    if unknown := sorted({row.condition for row in rows if row.effective is None}):
        told.append(
            f"{', '.join(unknown)}: it is not known which sections these conditions need, since their rows lack"
            " `variant_spec` or `sections_used`; they are in no effective set"
        )
    if not document["both_present_prompt_count"]:
        told.append("no prompt has both a right and a wrong response; nothing tells them apart, and AUC is absent")
    return told


Summaries = Mapping[str, Mapping[str, Any]]
"""By condition."""


def columns_of(conditions: Summaries, columns: Mapping[str, str] = TABLE) -> list[str]:
    """The metrics of a table that any condition defines."""
    return [name for name in columns if any(name in summary for summary in conditions.values())]


def told(summary: Mapping[str, Any], name: str) -> str:
    """A mean and its interval."""
    if name not in summary:
        return NOTHING
    interval = summary.get(f"{name}_ci")
    return f"{summary[name]:.3f}" + ("" if interval is None else f" [{interval[0]:.3f}, {interval[1]:.3f}]")


def markdown(conditions: Summaries, heading: str) -> str:
    """The table for a document."""
    names = columns_of(conditions)
    lines = [["condition", "prompts", *(TABLE[name] for name in names)], ["---", *["---:"] * (1 + len(names))]]
    for condition, summary in conditions.items():
        figures = [told(summary, name) for name in names]
        lines.append([condition.replace("|", r"\|"), str(summary["count_prompts"]), *figures])
    return "\n".join([heading, "", *(f"| {' | '.join(cells)} |" for cells in lines)]) + "\n"


def write_csv(file: Path, conditions: Summaries) -> None:
    """The table for a program; what is not defined is an empty cell."""
    fields = [f"{name}{part}" for name in columns_of(conditions) for part in ("", "_ci_low", "_ci_high", "_prompts")]
    with file.open("w", encoding="utf-8", newline="") as lines:
        table = csv.DictWriter(lines, ["condition", "count_prompts", *fields], extrasaction="ignore")
        table.writeheader()
        for condition, summary in conditions.items():
            ends = {
                f"{name}_ci_{end}": value
                for name in TABLE
                for end, value in zip(("low", "high"), summary.get(f"{name}_ci", ()), strict=False)
            }
            table.writerow({"condition": condition, **summary, **ends})


def on_screen(conditions: Summaries, heading: str) -> Table:
    """The table for the terminal: means alone."""
    names = columns_of(conditions, SCREEN)
    table = Table(title=heading, box=box.SIMPLE_HEAD)
    table.add_column("condition", overflow="fold")
    table.add_column("prompts", justify="right")
    for name in names:
        table.add_column(SCREEN[name], justify="right", min_width=len("0.000"))
    for condition, summary in conditions.items():
        means = [f"{summary[name]:.3f}" if name in summary else NOTHING for name in names]
        table.add_row(Text(condition), str(summary["count_prompts"]), *means)
    return table


def write_all(asked: argparse.Namespace, document: Mapping[str, Any]) -> list[Path]:
    """The JSON file and both tables; returns what was written.

    Raises:
        BadInput: a place cannot be written to.
    """
    table = asked.table_output or asked.output.with_name(f"{asked.output.stem}_table7.md")
    files = [asked.output, table.with_suffix(".md"), table.with_suffix(".csv")]
    conditions = document["sample_sets"][asked.table_sample_set]["conditions"]
    try:
        for file in files:
            file.parent.mkdir(parents=True, exist_ok=True)
        files[0].write_text(json.dumps(document, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        intervals = " [95 % interval, bootstrap over prompts]" if asked.num_bootstrap else ""
        files[1].write_text(markdown(conditions, heading_of(asked) + intervals), encoding="utf-8")
        write_csv(files[2], conditions)
    except OSError as error:
        raise BadInput(f"{error.filename}: cannot be written ({error.strerror})") from None
    return files


def heading_of(asked: argparse.Namespace) -> str:
    """What the table says of itself."""
    return f"Teacher signal, {asked.table_sample_set}: mean over prompts"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    asked = arguments_of(argv)
    console, errors = Console(highlight=False), Console(stderr=True, highlight=False)
    try:
        rows = read_scores(asked.input)
        with errors.status("measuring"):
            document = document_of(asked, rows)
        files = write_all(asked, document)
    except BadInput as fault:
        errors.print(str(fault), style="red", markup=False, soft_wrap=True)
        return 2
    for sentence in warnings_of(document, rows):
        errors.print(sentence, style="yellow", markup=False, soft_wrap=True)
    console.print(on_screen(document["sample_sets"][asked.table_sample_set]["conditions"], heading_of(asked)))
    for file in files:
        console.print(f"  {file}", soft_wrap=True, markup=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
