"""Rollouts of a run as a data set for analysis: candidate responses in groups, and what a teacher may be shown of them.

    python analysis/prepare_rollout_dataset.py --input outputs/a/rollouts --output-dir analysis_outputs/dataset

`--input` is a run, a folder, a file or a pattern. Lines may be this project's, the published dumps' (`input`, `output`,
`gts`, `score`, `step`), or candidate rows. Writes `candidate_responses.jsonl`, `evidence_items.jsonl` and
`dataset_summary.json`. Exit codes: 0 done, 2 bad input.

Departures from the published script:

1. Responses of one *occurrence* of a prompt (`uid` and step) form a group. The published script pools all steps, and
   so policies that never were siblings: `--occurrences pool`. Of a prompt that occurs often the last one that is
   large enough is taken; `each` takes all, each as a prompt of its own.
2. The messages of a prompt are kept (`prompt_messages`; `rollout_prompts.py` says how they are found), so that a
   teacher's prompt can be made with the chat template.
3. A verdict that is unknown, or no number, is null: neither a success nor a failure. Cut responses are told
   (`finish_reason`), for they are no peers.
4. A bucket is a share of successes among known verdicts (easy: half or more; hard: none), not a count: the same at 8
   responses, and not harder only because there are fewer.
5. Where prompts are left out (`--max-prompts`), what a small bucket does not use of its quota goes to the others.
6. `known_places`: where in a response the right next token is known (`known_places.py`).
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import interrupts  # noqa: F401 - for what it does, before all that takes seconds
from json_lines import BadInput
from known_places import places_of
from rich.console import Console
from rich.progress import track
from rollout_attempts import Attempt, Group, LeftOut, grouped, read_attempts
from rollout_prompts import PromptBook, messages_of
from row_files import Row, files_of, write_json, write_whole

from mopd.contexts import ContextSettings, water_level
from mopd.rewards import predicted, required
from mopd.summaries import summary_of, tagged_summary

PUBLISHED = ContextSettings()
"""How a response's account of itself is found."""
EASY = 0.5
"""The share of successes from which on a prompt is easy."""
REASONS = {
    "too_small": "smaller than --min-responses-per-prompt (one step, one uid)",
    "earlier": "earlier occurrences of a prompt; --occurrences each or pool takes them",
    "over_max_responses": "beyond --max-responses-per-prompt",
    "over_max_prompts": "beyond --max-prompts",
}
"""Why responses are left out."""


def arguments_of(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; ends with exit code 2 where it is wrong."""
    parser = argparse.ArgumentParser(prog="prepare_rollout_dataset.py", description="Rollouts as a data set.")
    parser.add_argument("--input", required=True, metavar="PATH", help="a run, a folder, a file or a pattern")
    parser.add_argument("--output-dir", type=Path, required=True, metavar="DIR")
    parser.add_argument("--success-threshold", type=float, default=1.0, metavar="R", help="least reward of a success")
    parser.add_argument("--max-prompts", type=positive, metavar="N", help="at most so many, from all buckets alike")
    parser.add_argument("--max-responses-per-prompt", type=positive, default=8, metavar="N")
    parser.add_argument("--min-responses-per-prompt", type=positive, default=2, metavar="N")
    parser.add_argument("--seed", type=int, default=42, help="of what is left out")
    parser.add_argument(
        "--data", type=Path, action="append", default=[], metavar="PARQUET", help="the prompts of the run, as messages"
    )
    parser.add_argument("--data-source", metavar="NAME", help="the verifier, for lines that do not name their own")
    parser.add_argument(
        "--occurrences",
        choices=("last", "each", "pool"),
        default="last",
        help="of a prompt that was sampled several times: the last one, each by itself, or all in one group",
    )
    return parser.parse_args(argv)


def positive(text: str) -> int:
    """An integer of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is given; at least 1 is wanted")
    return number


def sampled(group: Group, most: int, seed: str, left: LeftOut) -> Group:
    """At most so many attempts of a group, drawn by a generator of its own, in their order."""
    if len(group) <= most:
        return group
    left.responses["over_max_responses"] += len(group) - most
    kept = set(random.Random(seed).sample(range(len(group)), most))
    return [attempt for place, attempt in enumerate(group) if place in kept]


def bucket_of(group: Group, threshold: float) -> str:
    """How hard a prompt is for the policy that was sampled."""
    known = [attempt.reward >= threshold for _, attempt in group if attempt.reward is not None]
    share = sum(known) / max(1, len(known))
    return "easy" if share >= EASY else "medium" if share > 0 else "hard"


def limited(groups: dict[str, Group], most: int | None, threshold: float, seed: int) -> dict[str, Group]:
    """At most so many prompts, from all buckets alike as far as they go, in their order."""
    if most is None or len(groups) <= most:
        return groups
    buckets: dict[str, list[str]] = {}
    for prompt_id, group in groups.items():
        buckets.setdefault(bucket_of(group, threshold), []).append(prompt_id)
    level = water_level([len(ids) for ids in buckets.values()], most)
    quotas = {name: min(level, len(ids)) for name, ids in buckets.items()}
    for name in [name for name, ids in sorted(buckets.items()) if len(ids) > level][: most - sum(quotas.values())]:
        quotas[name] += 1
    draw = random.Random(seed)
    kept = {prompt_id for name in sorted(buckets) for prompt_id in draw.sample(buckets[name], quotas[name])}
    return {prompt_id: group for prompt_id, group in groups.items() if prompt_id in kept}


def candidates(prompt_id: str, group: Group, asked: argparse.Namespace, book: PromptBook) -> Iterator[Row]:
    """The candidate rows of a group."""
    verdicts = [None if one.reward is None else one.reward >= asked.success_threshold for _, one in group]
    right = [one.text.strip() for (_, one), verdict in zip(group, verdicts, strict=True) if verdict]
    first = group[0][1]
    messages, source = messages_of(first.row, first.prompt, book)
    shared = {
        "difficulty_bucket": bucket_of(group, asked.success_threshold),
        "prompt_group_size": len(group),
        "prompt_success_count": len(right),
        "prompt_failure_count": verdicts.count(False),
        "prompt_has_primary_success": bool(right),
        "prompt_has_another_success": len(set(right)) > 1,
        "prompt_has_failure_peer": verdicts.count(False) > 0,
    }
    occurrence = str(first.row.get("uid") or prompt_id)
    for (number, attempt), verdict in zip(group, verdicts, strict=True):
        told = candidate(attempt, verdict, attempt.row.get("data_source", asked.data_source), messages)
        names = {"prompt_id": prompt_id, "uid": occurrence, "prompt": attempt.prompt}
        where = {"source_file": str(attempt.file), "source_line": attempt.number, "rollout_step": attempt.step}
        response_id = f"{prompt_id.partition('.')[0]}_r{number}"
        found = {"prompt_messages": messages, "prompt_source": source}
        yield {**names, "response_id": response_id, **told, **shared, **where, **found}


def candidate(
    attempt: Attempt, success: bool | None, data_source: str | None, messages: Sequence[Mapping[str, str]]
) -> Row:
    """What a candidate row says of the response itself."""
    row, text, source = attempt.row, attempt.text, data_source or ""
    feedback = next((row[name] for name in ("feedback", "feedback_text") if isinstance(row.get(name), str)), "")
    truth = row.get("gts", row.get("ground_truth"))
    summary = tagged_summary(text, PUBLISHED)
    cut = bool(row.get("truncated")) or row.get("finish_reason") == "length"
    places = places_of(
        source, messages[-1]["content"], text, str(truth), success=success, extra=row.get("extra_info") or {}
    )
    return {
        "response_text": text,
        "reward": attempt.reward,
        "success": success,
        "summary_text": summary,
        "summary_text_effective": summary_of(text, PUBLISHED),
        "summary_has_tag": summary is not None,
        "summary_is_fallback": summary is None,
        "feedback_text": feedback,
        "has_feedback": success is not None and bool(feedback.strip()),
        "ground_truth": truth,
        "pred": row.get("pred", predicted(source, text)),
        "acc": row.get("acc", None if success is None else float(success)),
        "incorrect_format": row.get("incorrect_format"),
        "data_source": data_source,
        "rollout_id": row.get("rollout_id"),
        "finish_reason": "length" if cut else str(row.get("finish_reason") or "stop"),
        "known_places": [asdict(place) for place in places],
    }


def evidence(row: Row) -> Iterator[Row]:
    """What a teacher may be shown of a candidate; nothing of one whose verdict is unknown."""
    if row["success"] is None:
        return
    kinds = [
        ("response_full", "response_full", row["response_text"]),
        ("summary", "summary", row["summary_text_effective"]),
    ]
    if row["has_feedback"]:
        kinds.append(("feedback", "environment_feedback", row["feedback_text"]))
    for suffix, kind, text in kinds:
        yield {
            "evidence_id": f"{row['response_id']}::{suffix}",
            "prompt_id": row["prompt_id"],
            "uid": row["uid"],
            "source_response_id": row["response_id"],
            "evidence_type": kind,
            "role": "success" if row["success"] else "failure",
            "text": text,
            "summary_text": row["summary_text"],
            "has_summary_tag": row["summary_has_tag"],
            "is_fallback_summary": row["summary_is_fallback"],
            **{name: row[name] for name in ("reward", "success", "difficulty_bucket")},
            **{name: row[name] for name in ("source_file", "source_line", "rollout_step")},
        }


def counts_of(rows: Sequence[Row], read: int) -> Row:
    """What the data set holds, in numbers."""
    by_prompt = {row["prompt_id"]: row for row in rows}
    return {
        "responses_read": read,
        "prompts": len(by_prompt),
        "responses": len(rows),
        "successes": sum(row["success"] is True for row in rows),
        "failures": sum(row["success"] is False for row in rows),
        "unknown": sum(row["success"] is None for row in rows),
        "prompts_by_bucket": dict(sorted(Counter(row["difficulty_bucket"] for row in by_prompt.values()).items())),
        "prompts_with_both": sum(
            bool(row["prompt_success_count"] and row["prompt_failure_count"]) for row in by_prompt.values()
        ),
        "prompts_by_source": dict(sorted(Counter(row["prompt_source"] for row in by_prompt.values()).items())),
        "responses_with_known_places": sum(bool(row["known_places"]) for row in rows),
        "responses_with_feedback": sum(row["has_feedback"] for row in rows),
        "responses_with_summary_tag": sum(row["summary_has_tag"] for row in rows),
    }


def prepare(asked: argparse.Namespace, console: Console) -> Row:
    """Reads, chooses and writes; what was written, in numbers.

    Raises:
        BadInput: what was named cannot be read or written, or nothing of it is left.
    """
    if asked.data_source is not None:
        try:
            required(asked.data_source)
        except ValueError as error:
            raise BadInput(f"--data-source: {error}") from None
    book, attempts = PromptBook.of(asked.data), read_attempts(files_of(asked.input))
    left = LeftOut()
    every = grouped(attempts, asked.occurrences, asked.min_responses_per_prompt, left)
    if not every:
        raise BadInput(
            f"--input {asked.input}: no prompt has {asked.min_responses_per_prompt} responses of one step; lower"
            " --min-responses-per-prompt, or pool the steps with --occurrences pool"
        )
    drawn = {
        prompt_id: sampled(group, asked.max_responses_per_prompt, f"{asked.seed} {prompt_id}", left)
        for prompt_id, group in every.items()
    }
    groups = limited(drawn, asked.max_prompts, asked.success_threshold, asked.seed)
    for prompt_id in drawn.keys() - groups.keys():
        left.add("over_max_prompts", drawn[prompt_id])
    rows_by = partial(candidates, asked=asked, book=book)
    work = track(groups.items(), "reading rollouts", console=console, transient=True)
    rows = [row for prompt_id, group in work for row in rows_by(prompt_id, group)]
    write_whole(asked.output_dir / "candidate_responses.jsonl", rows)
    shown = write_whole(asked.output_dir / "evidence_items.jsonl", (item for row in rows for item in evidence(row)))
    counts = {
        **counts_of(rows, len(attempts)),
        "evidence_items": shown,
        "left_out": {name: dict(found) for name, found in vars(left).items()},
    }
    told = {name: [*map(str, value)] if name == "data" else value for name, value in vars(asked).items()}
    write_json(
        asked.output_dir / "dataset_summary.json", {"args": {**told, "output_dir": str(asked.output_dir)}, **counts}
    )
    return counts


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    asked = arguments_of(argv)
    console, errors = Console(highlight=False), Console(stderr=True, highlight=False)
    try:
        counts = prepare(asked, errors)
    except BadInput as fault:
        errors.print(str(fault), style="red", markup=False, soft_wrap=True)
        return 2
    console.print(
        f"  {counts['prompts']:,} prompts, {counts['responses']:,} responses: {counts['successes']:,} right,"
        f" {counts['failures']:,} wrong, {counts['unknown']:,} unknown\n  written to {asked.output_dir}",
        soft_wrap=True,
        markup=False,
    )
    for reason, responses in counts["left_out"]["responses"].items():
        groups = counts["left_out"]["groups"].get(reason)
        of_groups = f" of {groups:,} groups" if groups else ""
        # Small groups are often a fault of the input; the others are what was asked for.
        place, style = (errors, "yellow") if reason == "too_small" else (console, None)
        sentence = f"  left out: {responses:,} responses{of_groups}, {REASONS[reason]}"
        place.print(sentence, style=style, soft_wrap=True, markup=False)
    if counts["prompts_by_source"].get("text"):
        errors.print(
            f"the roles of {counts['prompts_by_source']['text']:,} prompts cannot be told apart and are read as text;"
            " name the run's data with --data",
            style="yellow",
            markup=False,
            soft_wrap=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
