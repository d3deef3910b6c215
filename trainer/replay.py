"""`python -m trainer.replay RUN --step N`: builds a recorded step again, and shows that it is what the run wrote down.

Prompts, peers and teacher prompts are built from the run's settings and the recorded rollouts; where the checkpoint
before the step is there, the update is made again too, in this process. Nothing is sampled, and no Ray is started.

Exit codes: 0 all that could be compared is the same, 1 something differs (or the replay failed), 2 there is nothing to
replay.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers.utils.logging import disable_progress_bar

from trainer import checkpoint
from trainer.checkpoint import Checkpoint, CheckpointError
from trainer.errors import BAD_INPUT, DONE, FAILURE, INTERRUPTED, BadInputError
from trainer.recorded import divergences_of
from trainer.replaying.checks import (
    Comparison,
    compare_divergences,
    compare_lines,
    compare_metrics,
    line_differences,
    lines_of,
    number,
    tolerance_of,
)
from trainer.replaying.rebuild import Rebuilt, learn_again, rebuild
from trainer.replaying.records import PastRun, PastStep, past_run, past_step

SHOWN = 8
"""Differences that are told in full."""
TOLD_TOKENS = 5
"""Tokens of a rollout that are told, of those at which the teacher disagreed most."""


def start_of(run: PastRun, past: PastStep) -> tuple[Checkpoint | None, str | None]:
    """The checkpoint before a step (None at the beginning of the run), or why there is nothing to begin with."""
    if past.tokens is None:
        return None, f"{run.folders.rollouts / f'{past.step}.npz'}, where the tokens should be, is not there"
    if past.step == 1:
        return None, None
    folder = run.folders.checkpoints / f"step_{past.step - 1}"
    if not folder.is_dir():
        return None, no_checkpoint(run, past, folder)
    try:
        return checkpoint.read(folder), None
    except CheckpointError as error:
        return None, str(error)


def no_checkpoint(run: PastRun, past: PastStep, folder: Path) -> str:
    """Why a checkpoint is not there, what would have kept it, and which steps can be replayed whole."""
    before, asked = past.step - 1, past.config.trainer
    if asked.save_freq > 0 and before % asked.save_freq == 0:
        cause = f"trainer.max_actor_ckpt_to_keep={asked.max_actor_ckpt_to_keep} has let it go; a larger one keeps it"
    else:
        divisors = [str(freq) for freq in range(1, before + 1) if before % freq == 0]
        shown = ", ".join(divisors if len(divisors) < 6 else [*divisors[:3], "...", divisors[-1]])
        cause = f"trainer.save_freq={asked.save_freq} wrote none; one of {shown} would have"
    taken = {int(record["step"]) for record in run.history}
    ready = {1, *(step + 1 for step, _ in checkpoint.listed(run.folders.checkpoints))} & taken
    return f"{folder} is not there ({cause}). Steps that can be replayed whole: {', '.join(map(str, sorted(ready)))}"


def replay(
    run: PastRun, past: PastStep, asked: float | None, console: Console, *, views_only: bool = False
) -> Comparison:
    """Compares everything of a step that can be built again; with `views_only` what needs no model.

    Raises:
        BadInputError: model or data are not there any more.
    """
    result = Comparison()
    rebuilt = rebuild(run, past)
    compare_lines(past, rebuilt, result)
    before, result.unchecked = (None, "--views-only was given") if views_only else start_of(run, past)
    device = "cuda" if past.device == "cuda" and torch.cuda.is_available() else "cpu"
    tolerance = tolerance_of(past, run, device, asked)
    if result.unchecked is not None:
        compare_metrics(past, rebuilt.figures(), tolerance, result)
        return result
    nearness = f"within {tolerance.relative:g} of each other" if tolerance.relative else "to the last digit"
    origin = "the initial model" if before is None else str(before.folder)
    console.print(f"  update   from {origin}, on {device}; compared {nearness} ({tolerance.why})", **PLAIN)
    learned = learn_again(past, rebuilt, before, device)
    compare_metrics(past, learned.metrics, tolerance, result)
    compare_divergences(past, divergences_of(learned.recorded), tolerance, result)
    return result


# ------------------------------------------------------------------ what is shown

PLAIN: dict[str, Any] = {"markup": False, "highlight": False, "soft_wrap": True}
"""How sentences are printed: brackets are brackets, and nothing is broken off."""


def show(result: Comparison, step: int, console: Console) -> None:
    """The table, the first differences, and the verdict."""
    table = Table(title=f"step {step}: what was logged, and what the replay gives")
    table.add_column("quantity", no_wrap=True)
    for heading in ("logged", "replayed", "difference"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in result.rows:
        cells = (row.quantity, row.logged, row.replayed, row.difference)
        table.add_row(*map(Text, cells), style=None if row.same else "red")
    console.print(table)
    if result.differences:
        console.print(f"first differences ({min(SHOWN, len(result.differences))} of {len(result.differences)}):")
        for sentence in result.differences[:SHOWN]:
            console.print(f"  - {sentence}", **PLAIN)
    if result.unchecked is not None:
        console.print(f"the loss was NOT checked: {result.unchecked}", style="yellow", **PLAIN)
    scope = "views and figures of the rollouts" if result.unchecked is not None else "views, loss and gradient norm"
    verdict = "differs from" if result.differences else "is"
    console.print(f"step {step} {verdict} what was logged ({scope} were compared)", **PLAIN)


def show_rollout(name: str, past: PastStep, rebuilt: Rebuilt, console: Console) -> list[str]:
    """One rollout's peers with their reasons, and its teacher prompt; returns what differs from the record.

    Raises:
        BadInputError: the step has no such rollout.
    """
    names = [str(line["rollout_id"]) for line in past.lines]
    if name not in names:
        near_by = difflib.get_close_matches(name, names, 3) or names[:3]
        raise BadInputError([f"--rollout {name}: step {past.step} has none of this name; it has {', '.join(near_by)}"])
    index = names.index(name)
    line, mine = past.lines[index], lines_of(past, rebuilt)[index]
    verdict = f"{line['status']}, reward {number(line['score'])}, {line['finish_reason']}, {line['response_length']}"
    console.print(f"rollout {name} ({verdict} tokens)", **PLAIN)
    console.print(f"  response        {line['output']}", **PLAIN)
    for peer in mine["peers"]:
        console.print(f"  peer {peer['slot']:<10} {peer['rollout_id'] or '-'}: {peer['reason']}", **PLAIN)
    for fallback in mine["fallbacks"]:
        console.print(f"  not shown       {fallback}", **PLAIN)
    prompt = mine["teacher_prompt"]
    console.print("teacher prompt:" if prompt is not None else "no usable teacher prompt", **PLAIN)
    console.print(prompt or "", **PLAIN)
    for sentence in disagreements(index, past, rebuilt):
        console.print(f"  {sentence}", **PLAIN)
    return line_differences(line, mine)


def disagreements(index: int, past: PastStep, rebuilt: Rebuilt) -> list[str]:
    """The tokens of a rollout at which the teacher disagreed most, where that was recorded."""
    values = past.lines[index].get("divergence")
    if past.tokens is None or not isinstance(values, list):
        return []
    pieces = rebuilt.parts.contexts.renderer.pieces(past.tokens.token_ids[index])
    known = [(value, at, piece) for at, (value, piece) in enumerate(zip(values, pieces, strict=False)) if value]
    most = sorted(known, key=lambda entry: (-entry[0], entry[1]))[:TOLD_TOKENS]
    return [f"the teacher disagreed by {value:.6f} at token {at + 1}, {piece!r}" for value, at, piece in most]


def explain(name: str, run: PastRun, past: PastStep, console: Console) -> int:
    """Shows one rollout; returns the exit code."""
    differences = show_rollout(name, past, rebuild(run, past), console)
    for sentence in differences:
        console.print(f"differs: {sentence}", style="red", **PLAIN)
    if not differences:
        console.print("all of this is what was logged", **PLAIN)
    return FAILURE if differences else DONE


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m trainer.replay", description="Replays one step of a past run.")
    parser.add_argument("run", metavar="RUN", type=Path, help="the OUTPUT_DIR of a run")
    parser.add_argument("--step", type=int, required=True, metavar="N", help="which step, from 1")
    parser.add_argument("--rollout", metavar="ID", help="shows one rollout's peers and teacher prompt, and stops")
    parser.add_argument("--views-only", action="store_true", help="compares what needs no model, and no more")
    parser.add_argument("--tolerance", type=float, metavar="X", help="relative difference that metrics may have")
    asked = parser.parse_args(argv)
    if asked.tolerance is not None and not 0 <= asked.tolerance < 1:
        parser.error(f"--tolerance {asked.tolerance:g}: must be at least 0 and below 1")
    return asked


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    asked = arguments(argv)
    console, errors = Console(), Console(stderr=True)
    if not console.is_terminal:
        console.width = 120
    disable_progress_bar()
    try:
        run = past_run(asked.run)
        past = past_step(run, asked.step)
        console.print(f"replaying step {asked.step} of {asked.run}: {len(past.lines)} rollouts", **PLAIN)
        if asked.rollout is not None:
            return explain(asked.rollout, run, past, console)
        result = replay(run, past, asked.tolerance, console, views_only=asked.views_only)
        show(result, asked.step, console)
        return FAILURE if result.differences else DONE
    except BadInputError as error:
        errors.print(str(error), style="red", **PLAIN)
        return BAD_INPUT
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        errors.print(f"{type(error).__name__}: {error}", style="red", **PLAIN)
        return FAILURE


if __name__ == "__main__":
    sys.exit(main())
