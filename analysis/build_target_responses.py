"""Which responses teachers are to judge: of every prompt some right ones, some wrong ones, and a stronger model's.

    python analysis/build_target_responses.py --candidates DIR/candidate_responses.jsonl --output DIR/targets.jsonl

Exit codes: 0 done, 2 bad input.

Departures from the published script: targets are drawn with `--seed`, not the first ones; texts are distinct and not
empty; a strong response whose validation succeeded has reward 1 (published: null, at which the metrics fail), one whose
validation failed is left out, and one that was never validated has neither reward nor verdict.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import interrupts  # noqa: F401 - for what it does, before all that takes seconds
from json_lines import BadInput
from rich.console import Console
from row_files import Needed, Row, natural, read_rows, short_hash, write_whole

CANDIDATE: Needed = {
    "prompt_id": str,
    "response_id": str,
    "response_text": str,
    "reward": (float, int, type(None)),
    "success": (bool, type(None)),
}
STRONG: Needed = {"prompt_id": str, "response_text": str}


def arguments_of(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; ends with exit code 2 where it is wrong."""
    parser = argparse.ArgumentParser(prog="build_target_responses.py", description="Responses for teachers to judge.")
    parser.add_argument("--candidates", type=Path, required=True, metavar="FILE", help="candidate_responses.jsonl")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE")
    parser.add_argument("--strong-success", type=Path, metavar="FILE", help="what generate_strong_success.py wrote")
    for name in ("student-success", "student-failure", "strong-success"):
        parser.add_argument(f"--{name}-per-prompt", type=count, default=1, metavar="N", help="at most so many")
    parser.add_argument("--strong-source-model", metavar="NAME", help="for strong rows that do not name their model")
    parser.add_argument("--student-source-model", default="student", metavar="NAME")
    parser.add_argument("--seed", type=int, default=42, help="of the draw")
    return parser.parse_args(argv)


def count(text: str) -> int:
    """An integer of at least 0."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{number} is given; at least 0 is wanted")
    return number


def by_prompt(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by prompt, in the order in which prompts are met."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["prompt_id"], []).append(row)
    return found


def drawn(rows: Sequence[Row], most: int, seed: str) -> list[Row]:
    """At most so many rows of distinct texts, in natural order."""
    distinct: dict[str, Row] = {}
    for row in sorted(rows, key=lambda row: natural(str(row.get("response_id", "")))):
        if text := row["response_text"].strip():
            distinct.setdefault(text, row)
    able = list(distinct.values())
    kept = set(random.Random(seed).sample(range(len(able)), min(most, len(able))))
    return [row for place, row in enumerate(able) if place in kept]


def target(kind: str, row: Row, source_model: str, success: bool | None, reward: float | None, bucket: str) -> Row:
    """One row of the output."""
    source, text = str(row.get("response_id") or ""), row["response_text"]
    about = ("finish_reason", "data_source", "rollout_id", "generator_model", "predicted_answer", "judge_info")
    return {
        "target_id": short_hash(kind, row["prompt_id"], source, text),
        "target_type": kind,
        "prompt_id": row["prompt_id"],
        "source_response_id": source or None,
        "response_text": text,
        "success": success,
        "reward": reward,
        "source_model": source_model,
        "difficulty_bucket": bucket,
        "known_places": row.get("known_places", []),
        "metadata": {name: row[name] for name in about if row.get(name) is not None},
    }


def targets(asked: argparse.Namespace, candidates: Sequence[Row], strong: Mapping[str, list[Row]]) -> Iterator[Row]:
    """The targets of every prompt: right, wrong, strong."""
    wanted = (
        ("student_success", True, asked.student_success_per_prompt),
        ("student_failure", False, asked.student_failure_per_prompt),
    )
    for prompt_id, rows in by_prompt(candidates).items():
        bucket = str(rows[0].get("difficulty_bucket") or "unknown")
        for kind, verdict, most in wanted:
            of_kind = [row for row in rows if row["success"] is verdict]
            for row in drawn(of_kind, most, f"{asked.seed} {prompt_id} {kind}"):
                yield target(kind, row, asked.student_source_model, verdict, row["reward"], bucket)
        able = [row for row in strong.get(prompt_id, []) if row.get("validated_success") is not False]
        for row in drawn(able, asked.strong_success_per_prompt, f"{asked.seed} {prompt_id} strong_success"):
            sure = row.get("validated_success") is True
            model = str(row.get("source_model") or row.get("generator_model") or asked.strong_source_model or "strong")
            yield target("strong_success", row, model, sure or None, 1.0 if sure else None, bucket)


def build(asked: argparse.Namespace) -> Counter[str]:
    """Writes the targets; how many of each kind.

    Raises:
        BadInput: what was named cannot be read or written, or there is nothing to write.
    """
    candidates = read_rows(asked.candidates, CANDIDATE)
    strong = by_prompt(read_rows(asked.strong_success, STRONG)) if asked.strong_success else {}
    known = {row["prompt_id"] for row in candidates}
    if strong and not known & set(strong):
        raise BadInput(f"--strong-success {asked.strong_success}: has none of the prompts of {asked.candidates}")
    rows = list(targets(asked, candidates, strong))
    if not rows:
        raise BadInput("no response is wanted, or none has a verdict; see the ...-per-prompt options")
    write_whole(asked.output, rows)
    return Counter(row["target_type"] for row in rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    asked = arguments_of(argv)
    console, errors = Console(highlight=False), Console(stderr=True, highlight=False)
    try:
        counts = build(asked)
    except BadInput as fault:
        errors.print(str(fault), style="red", markup=False, soft_wrap=True)
        return 2
    told = ", ".join(f"{number:,} {kind}" for kind, number in counts.items())
    console.print(f"  {counts.total():,} targets: {told}\n  written to {asked.output}", soft_wrap=True, markup=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
