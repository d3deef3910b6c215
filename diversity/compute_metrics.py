"""Are a run's attempts diverse? Metrics of several runs side by side, per prompt and on average.

    python diversity/compute_metrics.py --run MOPD=outputs/a/validation/30.jsonl \\
        --run GRPO=outputs/b/validation/30.jsonl --task generic --output-dir analysis_outputs/diversity

A path is a file of candidate rows or of a run's raw rollout lines, or a folder of such files. Writes `summary.json`,
`summary.csv`, `per_prompt.jsonl` and `case_studies.jsonl`. docs/diversity.md says what each figure means.
Exit codes: 0 done, 2 bad input.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attempts import BadInput, Groups, grouped, natural, read_attempts
from prompt_table import Row, Settings, prompt_row, summarise
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text
from text_diversity import DISTANCES

HEADLINES = (
    "success_rate",
    "distinct2",
    "self_bleu4",
    "pairwise_text_distance",
    "unique_response_ratio",
    "ast_node_jaccard_distance",
    "success_distinct2",
    "success_self_bleu4",
    "success_pairwise_text_distance",
    "success_unique_response_ratio",
    "success_ast_node_jaccard_distance",
)
"""What is shown on the screen, where a run has it, and after it pass@k."""
SIDE_BY_SIDE = 4
"""Runs in one table."""


@dataclass(frozen=True)
class Run:
    """A run under the label that the command line gives it."""

    name: str
    groups: Groups


def arguments_of(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; ends with exit code 2 where it is wrong."""
    parser = argparse.ArgumentParser(
        prog="compute_metrics.py",
        description="Diversity of the attempts of several runs.",
        epilog="docs/diversity.md says what each figure means.",
    )
    parser.add_argument(
        "--run", action="append", required=True, metavar="NAME=PATH", help="a run's label and attempts; once per run"
    )
    parser.add_argument("--task", choices=("generic", "code"), default="generic", help="code: programs are compared")
    parser.add_argument("--ks", type=positive, nargs="+", default=[1, 2, 4, 8], metavar="K", help="of pass@k")
    parser.add_argument("--output-dir", type=Path, required=True, metavar="DIR")
    parser.add_argument("--max-prompts", type=positive, metavar="N", help="only the first N prompts, by id")
    parser.add_argument("--max-responses-per-prompt", type=positive, metavar="N", help="only the first N of a group")
    parser.add_argument(
        "--min-responses-per-prompt", type=positive, default=2, metavar="N", help="smaller groups are left out"
    )
    parser.add_argument("--intersect-prompts", action="store_true", help="only prompts that every run has")
    parser.add_argument("--case-study-top-n", type=int, default=20, metavar="N", help="prompts in case_studies.jsonl")
    parser.add_argument(
        "--group-by",
        choices=("occurrence", "prompt"),
        default="occurrence",
        help="occurrence: attempts of one step and draw of a prompt; prompt: all at a prompt, whatever their policy",
    )
    parser.add_argument(
        "--ngrams",
        choices=("within", "across"),
        default="within",
        help="distinct-n of n-grams within responses, or also across their boundaries, as published",
    )
    parser.add_argument(
        "--text-distance",
        choices=tuple(DISTANCES),
        default="subsequence",
        help="by the longest common subsequence, or by difflib's heuristic, as published",
    )
    parser.add_argument(
        "--success-threshold", type=float, metavar="R", help="the reward decides, not the verdict in the rows"
    )
    asked = parser.parse_args(argv)
    asked.ks = sorted(set(asked.ks))
    if asked.case_study_top_n < 0:
        parser.error(f"--case-study-top-n {asked.case_study_top_n}: must not be negative")
    return asked


def positive(text: str) -> int:
    """An integer of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is given; at least 1 is wanted")
    return number


def named_paths(runs: Sequence[str]) -> dict[str, Path]:
    """The paths by label.

    Raises:
        BadInput: one has not the form NAME=PATH, or a label is there twice.
    """
    paths: dict[str, Path] = {}
    for text in runs:
        name, equals, path = text.partition("=")
        if not (name and equals and path):
            raise BadInput(f"--run {text}: must have the form NAME=PATH, for instance MOPD=rollouts/mopd")
        if name in paths:
            raise BadInput(f"--run {text}: the label {name} is there twice; a run needs a label of its own")
        paths[name] = Path(path)
    return paths


def load_runs(asked: argparse.Namespace) -> list[Run]:
    """The runs asked for, with the groups and prompts that count.

    Raises:
        BadInput: what was named cannot be read, or nothing of it is left.
    """
    runs = []
    for name, path in named_paths(asked.run).items():
        groups = grouped(
            read_attempts(path, asked.success_threshold),
            pooled=asked.group_by == "prompt",
            at_least=asked.min_responses_per_prompt,
            responses=asked.max_responses_per_prompt,
        )
        if not groups:
            raise BadInput(
                f"{path}: no prompt has {asked.min_responses_per_prompt} attempts of one step; lower"
                " --min-responses-per-prompt, or pool the steps with --group-by prompt"
            )
        runs.append(Run(name, groups))
    shared = set.intersection(*(set(run.groups) for run in runs)) if asked.intersect_prompts else None
    if shared is not None and not shared:
        raise BadInput("--intersect-prompts: the runs have no prompt in common; were they sampled on the same data?")
    return [Run(run.name, first_prompts(run.groups, shared, asked.max_prompts)) for run in runs]


def first_prompts(groups: Groups, shared: set[str] | None, most: int | None) -> Groups:
    """The first prompts, of those that are shared where it is told which are."""
    kept = [(prompt_id, found) for prompt_id, found in groups.items() if shared is None or prompt_id in shared]
    return dict(kept[:most])


def rows_of(runs: Sequence[Run], settings: Settings, console: Console) -> list[Row]:
    """A row per run and prompt."""
    work = [(run.name, prompt_id, groups) for run in runs for prompt_id, groups in run.groups.items()]
    return [
        {"method": name, "prompt_id": prompt_id, "prompt": groups[0][0].prompt, **prompt_row(groups, settings)}
        for name, prompt_id, groups in track(work, "comparing attempts", console=console, transient=True)
    ]


def case_studies(runs: Sequence[Run], rows: Sequence[Row], most: int) -> list[dict[str, Any]]:
    """The prompts at which the runs differ most in `pairwise_text_distance`, with the responses of both ends."""
    by_prompt: dict[str, list[Row]] = {}
    for row in rows:
        if "pairwise_text_distance" in row:
            by_prompt.setdefault(row["prompt_id"], []).append(row)
    by_name = {run.name: run for run in runs}
    studies = []
    for prompt_id, found in by_prompt.items():
        low, high = (end(found, key=lambda row: row["pairwise_text_distance"]) for end in (min, max))
        if low["method"] != high["method"]:
            gap = high["pairwise_text_distance"] - low["pairwise_text_distance"]
            ends = {name: study(row, by_name[row["method"]]) for name, row in (("high", high), ("low", low))}
            studies.append({"prompt_id": prompt_id, "prompt": high["prompt"], "gap": gap, **ends})
    studies.sort(key=lambda study: (-study["gap"], natural(study["prompt_id"])))
    return studies[:most]


def study(row: Row, run: Run) -> dict[str, Any]:
    """One run's side of a case study."""
    figures = {name: value for name, value in row.items() if name not in ("prompt_id", "prompt")}
    attempts = [attempt for group in run.groups[row["prompt_id"]] for attempt in group]
    responses = [{"response_id": a.response_id, "success": a.success, "text": a.text} for a in attempts]
    return {**figures, "responses": responses}


def warnings_of(runs: Sequence[Run]) -> list[str]:
    """What makes runs hard to compare: sentences for people."""
    sizes = {run.name: sorted({len(group) for groups in run.groups.values() for group in groups}) for run in runs}
    if len({tuple(found) for found in sizes.values()}) > 1 or any(len(found) > 1 for found in sizes.values()):
        told = ", ".join(f"{name} {found[0]} to {found[-1]}" for name, found in sizes.items())
        return [f"groups differ in size ({told}), with which distinct-n falls; --max-responses-per-prompt"]
    return []


def shown(summaries: Sequence[Row], ks: Sequence[int]) -> Table:
    """The main figures, a column per run."""
    table = Table(title="diversity, means over prompts", box=box.SIMPLE_HEAD)
    table.add_column("metric", no_wrap=True)
    for summary in summaries:
        table.add_column(Text(summary["method"]), justify="right", overflow="fold", min_width=len("0.000"))
    table.add_row("prompts", *(str(summary["num_prompts"]) for summary in summaries))
    for name in [*HEADLINES, *(f"pass@{k}" for k in ks)]:
        means = [summary.get(f"{name}_mean") for summary in summaries]
        if any(mean is not None for mean in means):
            table.add_row(name, *("–" if mean is None else f"{mean:.3f}" for mean in means))
    return table


def write_all(folder: Path, config: Mapping[str, Any], summaries: Sequence[Row], rows: Sequence[Row]) -> None:
    """`summary.json`, `summary.csv` and `per_prompt.jsonl`."""
    document = {"config": config, "summary": summaries}
    (folder / "summary.json").write_text(json.dumps(document, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    with (folder / "summary.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(dict.fromkeys(name for summary in summaries for name in summary)))
        table.writeheader()
        table.writerows(summaries)
    write_lines(folder / "per_prompt.jsonl", rows)


def write_lines(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """One JSON object per line; half a surrogate, which UTF-8 cannot hold, as JSON writes it."""
    with file.open("w", encoding="utf-8", errors="backslashreplace") as lines:
        lines.writelines(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    asked = arguments_of(argv)
    console, errors = Console(highlight=False), Console(stderr=True, highlight=False)
    settings = Settings(asked.task, tuple(asked.ks), asked.ngrams == "across", asked.text_distance)
    try:
        runs = load_runs(asked)
        try:
            asked.output_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInput(f"--output-dir {asked.output_dir}: cannot be made ({error.strerror})") from None
    except BadInput as fault:
        errors.print(str(fault), style="red", markup=False, soft_wrap=True)
        return 2
    for sentence in warnings_of(runs):
        errors.print(sentence, style="yellow", markup=False, soft_wrap=True)
    rows = rows_of(runs, settings, errors)
    summaries = [
        {"method": run.name, **summarise([row for row in rows if row["method"] == run.name], asked.ks)} for run in runs
    ]
    config = {name: str(value) if isinstance(value, Path) else value for name, value in vars(asked).items()}
    write_all(asked.output_dir, config, summaries, rows)
    write_lines(asked.output_dir / "case_studies.jsonl", case_studies(runs, rows, asked.case_study_top_n))
    for first in range(0, len(summaries), SIDE_BY_SIDE):
        console.print(shown(summaries[first : first + SIDE_BY_SIDE], asked.ks))
    console.print(f"  written to {asked.output_dir}", soft_wrap=True, markup=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
