"""`python -m trainer.report RUN`: one page that shows a run from inside, as `RUN/report.html`.

Curves of every metric with those of other runs beside them, validation, time per phase, settings, and a browser of the
rollouts: what each teacher saw and why, and where along the response it disagreed. The file needs no network and no
server. Nothing is computed again: what the page shows is what the run wrote down.

Exit codes: 0 written, 1 failure, 2 there is no run to report on.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from trainer.errors import BAD_INPUT, DONE, FAILURE, INTERRUPTED, BadInputError
from trainer.replaying.records import PastRun, past_run
from trainer.reporting.curves import run_of
from trainer.reporting.groups import Picker, Pieces, ShownGroup, StepFile, step_files
from trainer.reporting.page import embedded, page

log = logging.getLogger("mopd")

ROLLOUTS = 1000
"""Rollouts of a report by default."""
MOST_BYTES = 9_500_000
"""A report is no larger, whatever is asked: less than what mail and issue trackers take."""
SHARES = {"tokens": 0.35, "likeliest": 0.25}
"""Of that, the most for what is told token by token, and for the likeliest tokens: long responses are not to crowd each
other out by them."""


def write_report(
    run: Path,
    beside: Sequence[Path] = (),
    output: Path | None = None,
    *,
    rollouts: int = ROLLOUTS,
    steps: Sequence[int] = (),
    pieces: Pieces | None = None,
) -> Path:
    """Writes the report of a run; returns the file.

    Args:
        run: its OUTPUT_DIR; `beside`: those of runs whose curves are to stand beside its own.
        output: the file; by default `report.html` in the run's folder.
        rollouts: how many to show, about, evenly over the steps; `steps`: of these only, if any are named.
        pieces: the text of tokens, each by itself; by default by the tokenizer of the run, if it is still there.

    Raises:
        BadInputError: a folder holds no run, or the file cannot be written.
    """
    past, others = past_run(run), [past_run(folder) for folder in beside]
    names = distinct([str(entry.folders.output.resolve()) for entry in (past, *others)])
    runs = [run_of(entry, name) for entry, name in zip((past, *others), names, strict=True)]
    files = [entry for entry in step_files(past.folders.rollouts) if not steps or entry.step in steps]
    if missing := sorted(set(steps) - {entry.step for entry in files}):
        raise BadInputError([f"--step {step}: {past.folders.rollouts} has no {step}.jsonl" for step in missing])
    picker = Picker(files, pieces or tokenizer_of(past))
    room = MOST_BYTES - len(embedded(runs)) - 150_000  # the page itself, and what the list shows is counted by groups
    groups, whole, cut = fitting(picker, rollouts, room)
    data = {
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "runs": runs,
        "groups": [group.head for group in groups],
        "scale": scale_of(groups),
        "notes": [*picker.notes, *([] if whole else [left_out(groups, files, rollouts)]), *without_tokens(cut)],
    }
    file = output or run / "report.html"
    write_whole(file, page(data, [texts_of(group) for group in groups], f"{names[0]} - report"))
    return file


def report_at_end(run: Path, pieces: Pieces) -> Path | None:
    """The report of a run that has just ended; None where it could not be written, which is told and harms nothing."""
    try:
        return write_report(run, pieces=pieces)
    except Exception as error:  # whatever it is, the run is done and its files are whole
        log.warning("no report.html was written (%s); python -m trainer.report %s tries again", error, run)
        return None


def fitting(picker: Picker, rollouts: int, room: int) -> tuple[list[ShownGroup], bool, Counter[str]]:
    """As many groups as may be shown and have room, by step and in sampling order; whether these are all; and how many
    had to do without a part."""
    taken: list[ShownGroup] = []
    cut: Counter[str] = Counter()
    count, whole, left = 0, True, {name: int(share * room) for name, share in SHARES.items()}
    for each in picker.groups():
        group = trimmed(each, left)
        room -= len(group.packed) + len(group.tokens) + len(group.likeliest) + len(embedded(group.head)) + 16
        count += len(group.head["rollouts"])
        if taken and (count > rollouts or room < 0):
            whole = False
            break
        taken.append(group)
        cut.update(name for name in SHARES if getattr(group, name) != getattr(each, name))
        left = {name: size - len(getattr(group, name)) for name, size in left.items()}
    return sorted(taken, key=lambda entry: int(entry.head["step"])), whole, cut


def trimmed(group: ShownGroup, left: Mapping[str, int]) -> ShownGroup:
    """A group without the parts that there is no room for; lists are of no use without the tokens."""
    tokens = group.tokens if len(group.tokens) <= left["tokens"] else ""
    return replace(
        group,
        tokens=tokens,
        likeliest=group.likeliest if tokens and len(group.likeliest) <= left["likeliest"] else "",
    )


def scale_of(groups: Sequence[ShownGroup]) -> float | None:
    """The divergence that gets the full colour: few are larger, and one freak does not pale all others."""
    values = [value for group in groups for value in group.divergences]
    return float(f"{max(float(np.quantile(values, 0.98)), 1e-6):.3g}") if values else None


def left_out(groups: Sequence[ShownGroup], files: Sequence[StepFile], asked: int) -> str:
    """A sentence on the rollouts that are not in the report."""
    count, steps = sum(len(group.head["rollouts"]) for group in groups), len({group.head["step"] for group in groups})
    # A group more would have gone over what was asked, or else over the size.
    full = count + len(groups[0].head["rollouts"]) > asked
    more = f"--rollouts {10 * asked} shows more" if full else "this is what a page has room for"
    return f"{count:,} rollouts of {steps} of {len(files)} steps, the first groups of each; {more}, --step N one step"


def texts_of(group: ShownGroup) -> list[str]:
    """A group as the page unpacks it: what it has always, what is told by token, and the likeliest tokens."""
    return [group.packed, group.tokens, group.likeliest]


def without_tokens(cut: Mapping[str, int]) -> list[str]:
    """A sentence on the groups that had to do without a part; none where there are none."""
    names = {"tokens": "divergences", "likeliest": "likeliest tokens"}
    told = [f"the {names[part]} of {count} groups" for part, count in sorted(cut.items(), reverse=True)]
    return [f"no room for {' and '.join(told)}; --step N shows more of one step"] if told else []


def distinct(folders: Sequence[str]) -> list[str]:
    """Short names for folders, as much of each path as tells them apart."""
    for length in range(1, max(len(Path(folder).parts) for folder in folders) + 1):
        names = ["/".join(Path(folder).parts[-length:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
    return [f"{name} ({number})" for number, name in enumerate(names, start=1)]


def tokenizer_of(past: PastRun) -> Pieces | None:
    """Tokens to text by the tokenizer in the run's newest checkpoint; None where there is none."""
    files = sorted(past.folders.checkpoints.glob("step_*/hf/tokenizer.json"), key=lambda file: file.stat().st_mtime)
    if not files:
        return None
    from tokenizers import Tokenizer  # a run's end has a tokenizer already

    try:
        tokenizer = Tokenizer.from_file(str(files[-1]))
    except Exception as error:  # the library raises nothing more particular
        log.warning("%s cannot be read (%s); tokens are shown without text", files[-1], error)
        return None
    return lambda token_ids: [tokenizer.decode([token], skip_special_tokens=False) for token in token_ids.tolist()]


def write_whole(file: Path, text: str) -> None:
    """Writes a file aside and renames it, so that a reader never finds half of it.

    Raises:
        BadInputError: it cannot be written.
    """
    aside = file.with_name(file.name + ".tmp")
    try:
        aside.write_text(text, encoding="utf-8")
        os.replace(aside, file)
    except OSError as error:
        raise BadInputError([f"{file}: cannot be written ({error.strerror}); --output names another file"]) from None


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m trainer.report", description="Shows a run from inside, on a page.")
    parser.add_argument("run", metavar="RUN", type=Path, help="the OUTPUT_DIR of a run")
    parser.add_argument(
        "--beside", metavar="RUN", type=Path, nargs="+", action="extend", default=[], help="runs to compare with"
    )
    parser.add_argument("--output", metavar="FILE", type=Path, help="where to write; by default RUN/report.html")
    parser.add_argument("--rollouts", metavar="N", type=int, default=ROLLOUTS, help="how many to show, about (1000)")
    parser.add_argument(
        "--step",
        metavar="N",
        type=int,
        nargs="+",
        action="extend",
        default=[],
        help="shows rollouts of these steps only",
    )
    asked = parser.parse_args(argv)
    if asked.rollouts < 1:
        parser.error(f"--rollouts {asked.rollouts}: must be at least 1")
    return asked


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    asked = arguments(argv)
    try:
        file = write_report(asked.run, asked.beside, asked.output, rollouts=asked.rollouts, steps=asked.step)
        print(f"{file} ({file.stat().st_size / 1e6:.1f} MB)")
        return DONE
    except BadInputError as error:
        print(error, file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return FAILURE


if __name__ == "__main__":
    sys.exit(main())
