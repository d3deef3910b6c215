"""How likely a teacher finds each response under each context: its mean log-prob per token.

    python analysis/score_teacher_contexts.py --variants DIR/context_variants.jsonl --targets DIR/targets.jsonl \\
        --output DIR/teacher_scores.jsonl --model outputs/a/checkpoints/step_30/hf --self-target-only

Prompts are rendered with the chat template and fitted as in training. A row is appended as soon as it is known:
started again, the command goes on where it was ended. Beside the output, `<output>.settings.json` keeps what it was
made with; with other weights, contexts or settings nothing is appended. Exit codes: 0 done, 1 no room
(memory, disk), 2 bad input, 130 interrupted.

A response is the tokens of its text, without the mark that ends an answer, as published.
Every context is scored on its own response (`self_response`), and without `--self-target-only` on the targets of its
prompt too; `target_in_context` says where a teacher was shown the very text that it judges.

Departures from the published script:

1. The chat template is applied, with the arguments of training (`--chat-template-kwargs`), and writes special tokens.
2. A prompt that is too long is cut as in training (`--truncation peers`: its peers, evenly), under two limits: that of
   training (`--max-reprompt-len`) and what the response leaves of `--max-model-len`. A response is never cut; where not
   even the bare prompt fits beside it there is no row.
3. An empty response has no score (null); the published one is 0, the best of all.
4. Many rows at a time; equal pairs of prompt and response are computed once.
5. `off_path_probability` and `off_path_correct`: the teacher's probability of the right next token at the first known
   place after a mistake, and whether no token is likelier; `on_path_...` the same at the last one before any mistake.
   `known_places.py` says where the right token is known. Absent where it is not. `places` has them all.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, get_args

import interrupts  # noqa: F401 - for what it does, before all that takes seconds
import torch
from json_lines import BadInput
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from row_files import Row, as_line, each_row, finished_rows, open_lines, read_rows, write_json
from score_pairs import SELF, TARGET, VARIANT, Pair, Work
from score_rows import Prepared, Preparer, only, scored
from teacher_model import DTYPES, TeacherModel, batches, device_named, fingerprint, folder_of, load_tokenizer
from teacher_prompts import TeacherPrompts

from mopd.contexts import Truncation

WINDOW = 256
"""Pairs that are sorted by length together: rows of other pairs are not held up by them for long."""


def arguments_of(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; ends with exit code 2 where it is wrong."""
    parser = argparse.ArgumentParser(prog="score_teacher_contexts.py", description="Teachers' scores of responses.")
    parser.add_argument("--variants", type=Path, required=True, metavar="FILE", help="context_variants.jsonl")
    parser.add_argument("--targets", type=Path, required=True, metavar="FILE", help="target_responses.jsonl")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE")
    parser.add_argument("--model", required=True, metavar="PATH", help="a folder of weights, or a run's checkpoint")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument(
        "--dtype", choices=("auto", *DTYPES), default="auto", help="auto: float32 on a CPU, or bfloat16"
    )
    parser.add_argument("--max-examples", type=positive, metavar="N", help="only the first N pairs")
    parser.add_argument(
        "--max-model-len", type=positive, default=8192, metavar="N", help="tokens of prompt and response"
    )
    parser.add_argument("--condition-filter", nargs="+", metavar="NAME", help="only these conditions")
    parser.add_argument("--target-type-filter", nargs="+", metavar="NAME", help=f"only these kinds, {SELF} among them")
    parser.add_argument("--self-target-only", action="store_true", help="each context on its own response only")
    parser.add_argument("--max-reprompt-len", type=positive, default=10240, metavar="N", help="as in training")
    parser.add_argument("--truncation", choices=get_args(Truncation), default="peers", help="as in training")
    parser.add_argument(
        "--chat-template-kwargs", default='{"enable_thinking": false}', metavar="JSON", help="as in training"
    )
    parser.add_argument(
        "--max-batch-tokens", type=positive, default=16384, metavar="N", help="of a batch, padding included"
    )
    parser.add_argument("--overwrite", action="store_true", help="begin again, whatever the output holds")
    return parser.parse_args(argv)


def positive(text: str) -> int:
    """An integer of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is given; at least 1 is wanted")
    return number


def work_of(asked: argparse.Namespace) -> Work:
    """What the command line asks for.

    Raises:
        BadInput: a file cannot be used, or there is no condition or kind of a name.
    """
    targets = read_rows(asked.targets, TARGET)
    if asked.condition_filter:
        conditions = dict.fromkeys(variant["condition"] for variant in each_row(asked.variants, VARIANT))
        refuse_unknown("--condition-filter", asked.condition_filter, list(conditions))
    kinds = [SELF, *dict.fromkeys(target["target_type"] for target in targets)]
    refuse_unknown("--target-type-filter", asked.target_type_filter or (), kinds)
    wanted = {SELF} if asked.self_target_only else set(kinds)
    wanted &= set(asked.target_type_filter or kinds)
    by_prompt: dict[str, list[Row]] = {}
    for target in targets:
        if target["target_type"] in wanted:
            by_prompt.setdefault(target["prompt_id"], []).append(target)
    return Work(
        asked.variants,
        by_prompt,
        {str(target.get("source_response_id")): target for target in targets},
        frozenset(asked.condition_filter) if asked.condition_filter else None,
        SELF in wanted,
        asked.max_examples,
    )


def refuse_unknown(flag: str, names: Sequence[str], known: Sequence[str]) -> None:
    """Raises BadInput where a name is none of those there are."""
    if unknown := [name for name in names if name not in known]:
        raise BadInput(f"{flag} {unknown[0]}: there is none; there are {', '.join(known)}")


def windows(pairs: Iterable[Pair]) -> Iterator[list[Pair]]:
    """Pairs, some at a time."""
    rest = iter(pairs)
    while window := list(islice(rest, WINDOW)):
        yield window


@dataclass(frozen=True)
class Batch:
    """What was scored at once."""

    written: list[Row]
    pairs: int
    """How many are done with, those without a row among them."""


@dataclass
class Scoring:
    """Scores pairs."""

    model: TeacherModel
    preparer: Preparer
    name: str
    budget: int
    too_long: int = 0
    """Pairs without a row, since not even the bare prompt fits."""

    def batches(self, pairs: Iterable[Pair]) -> Iterator[Batch]:
        """All pairs, batch by batch."""
        for window in windows(pairs):
            ready = [found for pair in window if (found := self.preparer.of(pair)) is not None]
            self.too_long += len(window) - len(ready)
            yield Batch([], len(window) - len(ready))
            yield from (Batch(rows, len(rows)) for rows in self.rows(ready))

    def rows(self, ready: Sequence[Prepared]) -> Iterator[list[Row]]:
        """The rows of a window, batch by batch."""
        yield [scored(one, None, self.name) for one in ready if not len(one.response_ids)]
        alike: dict[tuple[bytes, bytes], list[Prepared]] = {}
        for one in ready:
            if len(one.response_ids):
                alike.setdefault(one.job.key, []).append(one)
        sets = list(alike.values())
        jobs = [members[0].job for members in sets]
        for batch in batches(jobs, self.budget):
            asked = [tuple(dict.fromkeys(ask for one in sets[index] for ask in one.asked)) for index in batch]
            readings = self.model.read([jobs[index] for index in batch], asked)
            yield [
                scored(one, only(reading, asks, one.asked), self.name)
                for index, reading, asks in zip(batch, readings, asked, strict=True)
                for one in sets[index]
            ]


def settings_of(asked: argparse.Namespace, model: str, dtype: str) -> Row:
    """What scores depend on."""
    return {
        "model": model,
        "weights": fingerprint(model),
        "dtype": dtype,
        "variants": digest(asked.variants),
        "targets": digest(asked.targets),
        **{name: getattr(asked, name) for name in ("max_model_len", "max_reprompt_len", "truncation")},
        "chat_template_kwargs": template_arguments(asked.chat_template_kwargs),
    }


def digest(file: Path) -> str:
    """The SHA-256 of a file.

    Raises:
        BadInput: it cannot be read.
    """
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise BadInput(f"{file}: cannot be read ({error.strerror})") from None


def template_arguments(text: str) -> dict[str, Any]:
    """The chat template's arguments.

    Raises:
        BadInput: the text is no JSON object.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"--chat-template-kwargs {text}: is no JSON ({error!s:.80})") from None
    if not isinstance(found, dict):
        raise BadInput(f'--chat-template-kwargs {text}: an object is wanted, such as {{"enable_thinking": false}}')
    return found


def done_before(output: Path, settings: Row, *, overwrite: bool) -> set[tuple[str, str]]:
    """The pairs that an ended run has scored already; the settings of this one are written down.

    Raises:
        BadInput: the output is of other weights, contexts or settings.
    """
    file = output.with_name(f"{output.name}.settings.json")
    if overwrite:
        output.unlink(missing_ok=True)
        file.unlink(missing_ok=True)
    before: Any = None
    if file.exists():
        try:
            before = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise BadInput(f"{file}: cannot be read ({error!s:.80}); remove it, or add --overwrite") from None
    if output.exists() and output.stat().st_size and before != settings:
        other = [name for name in settings if not isinstance(before, dict) or before.get(name) != settings[name]]
        raise BadInput(
            f"{output}: was made with another {', '.join(other)}; name another --output, or begin again with"
            " --overwrite"
        )
    rows = finished_rows(output, lambda row: "" if {"variant_id", "target_id"} <= row.keys() else "is no score")
    write_json(file, settings)
    return {(row["variant_id"], row["target_id"]) for row in rows}


def score(asked: argparse.Namespace, progress: Progress) -> tuple[int, int, int]:
    """Scores what is missing; how many pairs there are, how many were there before, how many do not fit.

    Raises:
        BadInput: what was named cannot be used.
    """
    if asked.output.is_dir():
        raise BadInput(f"--output {asked.output}: is a folder; name a file, such as {asked.output / 'scores.jsonl'}")
    work, name, device = work_of(asked), folder_of(asked.model), device_named(asked.device)
    dtype = ("float32" if device.type == "cpu" else "bfloat16") if asked.dtype == "auto" else asked.dtype
    tokenizer = load_tokenizer(name)
    arguments = template_arguments(asked.chat_template_kwargs)
    total = sum(1 for _ in work)
    if not total:
        raise BadInput("no pair of context and response is left; do --variants and --targets have prompts in common?")
    done = done_before(asked.output, settings_of(asked, name, dtype), overwrite=asked.overwrite)
    missing = sum(pair.key not in done for pair in work) if done else total
    if not missing:
        return total, total, 0
    prompts = TeacherPrompts(tokenizer, arguments, asked.max_reprompt_len, asked.max_model_len, asked.truncation)
    scoring = Scoring(TeacherModel(name, device, DTYPES[dtype]), Preparer(prompts), asked.model, asked.max_batch_tokens)
    with open_lines(asked.output, "a") as lines:
        task = progress.add_task("scoring", total=missing)
        left = (pair for pair in work if pair.key not in done)
        for rows in scoring.batches(left):
            lines.writelines(map(as_line, rows.written))
            lines.flush()
            progress.advance(task, rows.pairs)
    return total, total - missing, scoring.too_long


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    asked = arguments_of(argv)
    console, errors = Console(highlight=False), Console(stderr=True, highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns, console=errors, transient=True) as progress:
            total, before, too_long = score(asked, progress)
    except BadInput as fault:
        errors.print(str(fault), style="red", markup=False, soft_wrap=True)
        return 2
    except (OSError, torch.OutOfMemoryError) as error:
        advice = "; lower --max-batch-tokens" if isinstance(error, torch.OutOfMemoryError) else ""
        errors.print(f"{error}{advice}; started again, it goes on with {asked.output}", style="red", markup=False)
        return 1
    except KeyboardInterrupt:
        errors.print(f"interrupted; started again, it goes on with {asked.output}", markup=False, soft_wrap=True)
        return 130
    there = f", {before:,} of them were there" if before else ""
    console.print(f"  {total - too_long:,} scores{there}\n  written to {asked.output}", soft_wrap=True, markup=False)
    if too_long:
        sentence = f"{too_long:,} pairs have no row: prompt and response exceed the limits; raise --max-model-len"
        errors.print(sentence, style="yellow", markup=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
