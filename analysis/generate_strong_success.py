"""Right responses of a stronger model to the prompts of a data set: targets that the student did not write itself.

    python analysis/generate_strong_success.py --candidates DIR/candidate_responses.jsonl \\
        --output DIR/strong_success.jsonl --model MODEL --backend openrouter

The model is asked what the student was asked, and nothing else: no reference, no peers. Every response is validated by
the verifier of its task (`mopd.rewards`), and only right ones are kept. Rows are appended as they come; started again,
the command asks for the prompts that have none yet. Beside the output, `<output>.summary.json` tells how many there
are, `<output>.tried.jsonl` which prompts were tried, with what came of it, and `<output>.settings.json` how they were
asked: with other settings nothing is appended. Exit codes: 0 done, 1 the server gave up
on every prompt, 2 bad input, 130 interrupted.

Departures from the published script: all tasks with a verifier, not only multiple choice; `--samples-per-prompt` tries;
`predicted_answer` is what the verifier reads; with `--backend local` the model is a folder of weights.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import interrupts  # noqa: F401 - for what it does, before all that takes seconds
from generation_backends import SERVERS, Backend, GaveUp, Generation, Local, server_of
from json_lines import BadInput
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from row_files import Needed, Row, as_line, finished_rows, open_lines, read_rows, write_json

from mopd.rewards import predicted, required, verify

CANDIDATE: Needed = {"prompt_id": str, "prompt": str, "ground_truth": (str, int, float, list, dict, type(None))}

SETTINGS = ("temperature", "max_new_tokens", "samples_per_prompt", "seed")
SAME = ("model", "temperature", "max_new_tokens", "seed")
"""Settings that all rows of a file have in common; with more samples, prompts are asked again."""


def arguments_of(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; ends with exit code 2 where it is wrong."""
    parser = argparse.ArgumentParser(prog="generate_strong_success.py", description="A stronger model's right answers.")
    parser.add_argument("--candidates", type=Path, required=True, metavar="FILE", help="candidate_responses.jsonl")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE")
    parser.add_argument("--model", required=True, metavar="NAME", help="as the server knows it, or a folder of weights")
    parser.add_argument("--backend", choices=(*SERVERS, "local"), default="openai")
    parser.add_argument("--api-key-env", metavar="NAME", help="the variable with the key; by default the backend's")
    parser.add_argument("--base-url", metavar="URL", help="another server that speaks OpenAI's protocol")
    parser.add_argument("--max-prompts", type=positive, metavar="N", help="at most so many, drawn with --seed")
    parser.add_argument("--temperature", type=warmth, default=0.2)
    parser.add_argument("--max-new-tokens", type=positive, default=1024, metavar="N")
    parser.add_argument("--max-retries", type=natural_number, default=5, metavar="N", help="of a request that fails")
    parser.add_argument("--timeout", type=float, default=120.0, metavar="S", help="seconds for an answer")
    parser.add_argument("--samples-per-prompt", type=positive, default=1, metavar="N", help="tries until one is right")
    parser.add_argument("--workers", type=positive, default=4, metavar="N", help="prompts that are asked at one time")
    parser.add_argument("--data-source", metavar="NAME", help="the verifier, for rows that do not name their own")
    parser.add_argument("--source-model", metavar="NAME", help="how the rows name the model; by default as --model")
    parser.add_argument("--device", default="auto", help="of --backend local: auto, cpu or cuda")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto")
    parser.add_argument("--seed", type=int, default=42)
    asked = parser.parse_args(argv)
    if not asked.timeout > 0:
        parser.error(f"--timeout {asked.timeout}: must be positive")
    return asked


def positive(text: str) -> int:
    """An integer of at least 1."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number} is given; at least 1 is wanted")
    return number


def natural_number(text: str) -> int:
    """An integer of at least 0."""
    if (number := int(text)) < 0:
        raise argparse.ArgumentTypeError(f"{number} is given; at least 0 is wanted")
    return number


def warmth(text: str) -> float:
    """A temperature."""
    number = float(text)
    if not 0 <= number <= 10:
        raise argparse.ArgumentTypeError(f"{number} is given; 0 to 10 is wanted")
    return number


def prompts_of(asked: argparse.Namespace) -> list[Row]:
    """One candidate row for each prompt, those that are wanted.

    Raises:
        BadInput: the file cannot be read, or a prompt cannot be verified.
    """
    by_prompt = {row["prompt_id"]: row for row in reversed(read_rows(asked.candidates, CANDIDATE))}
    rows = list(by_prompt.values())[::-1]
    if asked.max_prompts is not None and asked.max_prompts < len(rows):
        rows = random.Random(asked.seed).sample(rows, asked.max_prompts)
    for row in rows:
        source = row.get("data_source") or asked.data_source
        if source is None:
            raise BadInput(f"prompt {row['prompt_id']} names no data_source; name its verifier with --data-source")
        try:
            required(source)
        except ValueError as error:
            raise BadInput(f"prompt {row['prompt_id']}: {error}") from None
        if row["ground_truth"] is None:
            raise BadInput(f"prompt {row['prompt_id']} has no ground_truth, so nothing can be validated")
        row["data_source"] = source
    return rows


@dataclass(frozen=True)
class Generator:
    """Asks for one prompt until a response is right."""

    backend: Backend
    samples: int
    seed: int
    model: str
    source_model: str

    def __call__(self, row: Row) -> tuple[Row | None, Row]:
        """The row of a right response, or None; and what was tried.

        Raises:
            BadInput: the server refuses for good.
        """
        told: Row = {"prompt_id": row["prompt_id"], "status": "none", "samples": 0, "reason": ""}
        messages = row.get("prompt_messages") or [{"role": "user", "content": row["prompt"]}]
        truth = str(row["ground_truth"])
        for sample in range(self.samples):
            try:
                text = self.backend.answer(messages, self.seed + sample)
            except GaveUp as refusal:
                return None, {**told, "status": "gave up", "reason": str(refusal)}
            outcome = verify(row["data_source"], text, truth, row.get("extra_info") or {})
            told |= {"status": outcome.status, "samples": sample + 1, "reason": outcome.feedback[:200]}
            if outcome.status == "right":
                return self.kept(row, text, sample + 1), told
        return None, told

    def kept(self, row: Row, text: str, samples: int) -> Row:
        """The row of a right response."""
        return {
            "prompt_id": row["prompt_id"],
            "response_text": text,
            "generator_model": self.model,
            "source_model": self.source_model,
            "validated_success": True,
            "ground_truth": row["ground_truth"],
            "predicted_answer": predicted(row["data_source"], text),
            "difficulty_bucket": row.get("difficulty_bucket"),
            "judge_info": {"verifier": row["data_source"], "status": "right", "samples": samples},
        }


def answered(generator: Generator, rows: Sequence[Row], workers: int) -> Iterator[tuple[Row | None, Row]]:
    """What comes of every prompt, as it comes; only some are asked ahead, and none after a refusal for good."""
    executor, rest = ThreadPoolExecutor(workers), iter(rows)
    waiting: set[Future[tuple[Row | None, Row]]] = set()
    try:
        waiting |= {executor.submit(generator, row) for row in islice(rest, workers)}
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            waiting |= {executor.submit(generator, row) for row in islice(rest, len(done))}
            # What others have answered by then is kept, whatever ends the rest.
            yield from (one.result() for one in done if one.exception() is None)
            for one in done:
                one.result()
    finally:
        generator.backend.close()
        executor.shutdown(wait=False, cancel_futures=True)


def backend_of(asked: argparse.Namespace) -> Backend:
    """The backend that the command line names.

    Raises:
        BadInput: it cannot be used.
    """
    generation = Generation(asked.temperature, asked.max_new_tokens)
    if asked.backend == "local":
        if asked.base_url or asked.api_key_env:
            raise BadInput("--backend local asks no server; leave out --base-url and --api-key-env")
        return Local(asked.model, generation, asked.device, asked.dtype)
    return server_of(
        asked.backend, asked.base_url, asked.api_key_env, asked.model, generation, asked.max_retries, asked.timeout
    )


def check_output(asked: argparse.Namespace) -> list[Row]:
    """The rows that an ended run has kept; the settings of this one are written down.

    Raises:
        BadInput: they are another model's, or were made with other settings.
    """

    def fault(row: Row) -> str:
        other = row.get("generator_model")
        return "" if other == asked.model else f"is of the model {other}, and --model is {asked.model}"

    kept = finished_rows(asked.output, fault)
    file = asked.output.with_name(f"{asked.output.name}.settings.json")
    settings = {name: getattr(asked, name) for name in SAME}
    try:
        before: Any = json.loads(file.read_text(encoding="utf-8")) if kept and file.exists() else settings
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"{file}: cannot be read ({error!s:.80}); name another --output, or remove both") from None
    other = [name for name in settings if not isinstance(before, dict) or before.get(name) != settings[name]]
    if other:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in other)
        raise BadInput(f"{asked.output}: was made with another {flags}; name another --output, or remove this one")
    write_json(file, settings)
    return kept


def generate(asked: argparse.Namespace, progress: Progress) -> Row:
    """Asks for what is missing; what came of it, in numbers.

    Raises:
        BadInput: what was named cannot be used, or the server refuses for good.
    """
    rows, before = prompts_of(asked), check_output(asked)
    tries = asked.output.with_name(f"{asked.output.name}.tried.jsonl")
    have = {row["prompt_id"] for row in before}
    left = [row for row in rows if row["prompt_id"] not in have]
    counts = Counter[str]()
    if left:
        samples, workers = asked.samples_per_prompt, 1 if asked.backend == "local" else asked.workers
        generator = Generator(backend_of(asked), samples, asked.seed, asked.model, asked.source_model or asked.model)
        finished_rows(tries, lambda row: "")  # drops half a line
        task = progress.add_task("asking", total=len(left))
        with open_lines(asked.output, "a") as kept, open_lines(tries, "a") as tried:
            for row, told in answered(generator, left, workers):
                kept.write(as_line(row) if row else "")
                tried.write(as_line(told))
                kept.flush(), tried.flush()
                counts[told["status"]] += 1
                progress.advance(task)
    summary = {
        "model": asked.model,
        "backend": asked.backend,
        "prompts": len(rows),
        "had_before": len(rows) - len(left),
        "asked": len(left),
        "validated": len(rows) - len(left) + counts["right"],
        **{name.replace(" ", "_"): counts[name] for name in ("right", "wrong", "unknown", "gave up")},
        "settings": {name: getattr(asked, name) for name in SETTINGS},
    }
    write_json(asked.output.with_name(f"{asked.output.name}.summary.json"), summary)
    return summary


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    asked = arguments_of(argv)
    console, errors = Console(highlight=False), Console(stderr=True, highlight=False)
    columns: tuple[Any, ...] = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    try:
        with Progress(*columns, console=errors, transient=True) as progress:
            summary = generate(asked, progress)
    except BadInput as fault:
        errors.print(str(fault), style="red", markup=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        errors.print(f"interrupted; started again, it goes on with {asked.output}", markup=False, soft_wrap=True)
        return 130
    console.print(
        f"  {summary['validated']:,} of {summary['prompts']:,} prompts have a right response\n"
        f"  the others: {summary['wrong']:,} wrong, {summary['unknown']:,} unknown, {summary['gave_up']:,} no answer\n"
        f"  written to {asked.output}",
        soft_wrap=True,
        markup=False,
    )
    if summary["asked"] and summary["gave_up"] == summary["asked"]:
        errors.print(f"no request was answered; {asked.output}.tried.jsonl says why", style="red", soft_wrap=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
