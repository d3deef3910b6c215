"""`python -m trainer.score IN.jsonl OUT.jsonl`: verifies stored responses, a line each, without Ray and without a GPU.

A line of IN is an object with `data_source`, `response`, `ground_truth` and optionally `extra_info`. The line of OUT
has the same fields in the same order, and `reward`, `success`, `status` and `feedback`. A ground truth that is no text
is taken as its JSON text. A line that cannot be verified has status unknown and says why in `feedback`; one that is no
JSON object is kept as text in the field `line`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from mopd.rewards import required
from mopd.rewards.custom import CustomReward, CustomSettings, check
from mopd.rewards.settings import RewardSettings, configure
from mopd.types import Outcome
from trainer.errors import BAD_INPUT, DONE, FAILURE, INTERRUPTED, BadInputError
from trainer.workers.verifier import Case, Verdict, verdict_of

LINES_AHEAD = 64
"""Lines per worker that are read before the first of them is verified."""
PROGRESS_S = 0.5
CLOSE_AGAIN_S = 0.1


def arguments_of(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; ends with exit code 2 where it is wrong."""
    parser = argparse.ArgumentParser(prog="python -m trainer.score", description="Verifies stored responses.")
    parser.add_argument("input", metavar="IN.jsonl", type=Path, help="an object per line; see docs/rewards.md")
    parser.add_argument("output", metavar="OUT.jsonl", type=Path, help="the same with verdicts; may be IN itself")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="how many at once")
    parser.add_argument("--custom", metavar="FILE[:NAME]", help="a reward function of your own, for every line")
    parser.add_argument(
        "--deadline", type=float, default=120.0, metavar="S", help="seconds that --custom has for a line"
    )
    parser.add_argument("--allow-unsandboxed", action="store_true", help="run programs even without isolation")
    parser.add_argument("--trust-assertions", action="store_true", help="let assert-style tests decide, as configured")
    asked = parser.parse_args(argv)
    if asked.workers < 1 or not asked.deadline > 0:
        parser.error("--workers and --deadline must be positive")
    return asked


def custom_settings(asked: str | None, deadline_s: float) -> CustomSettings | None:
    """The user's function from `FILE` or `FILE:NAME`.

    Raises:
        BadInputError: it cannot be used.
    """
    if asked is None:
        return None
    file, _, name = asked.rpartition(":")
    named = bool(file) and name.isidentifier() and not Path(asked).is_file()
    settings = CustomSettings(file, name, deadline_s) if named else CustomSettings(asked, deadline_s=deadline_s)
    try:
        check(settings)
    except ValueError as error:
        raise BadInputError([f"--custom {asked}: {error}"]) from None
    return settings


class MalformedError(ValueError):
    """A line that cannot be verified; the message says why."""


def no_constant(name: str) -> Any:
    """Refuses what Python reads and JSON does not know."""
    raise ValueError(f"{name} is no JSON")


def read_line(text: str) -> dict[str, Any]:
    """The object on a line.

    Raises:
        MalformedError: there is none.
    """
    try:
        found = json.loads(text, parse_constant=no_constant)
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"the line is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise MalformedError(f"the line must be a JSON object; got {text[:80]}")
    return found


def case_of(record: Mapping[str, Any]) -> Case:
    """What a line asks to verify.

    Raises:
        MalformedError: a field is missing or of the wrong kind.
    """
    # The records of a run call them `output` and `gts`.
    response, truth = record.get("response", record.get("output")), record.get("ground_truth", record.get("gts"))
    for name, value in (("data_source", record.get("data_source")), ("response", response)):
        if value is None:
            raise MalformedError(f"{name} is missing")
        if not isinstance(value, str):
            raise MalformedError(f"{name} must be text; got {value!r:.80}")
    extra = record.get("extra_info")
    if truth is None:
        raise MalformedError("ground_truth is missing")
    if extra is not None and not isinstance(extra, dict):
        raise MalformedError(f"extra_info must be an object; got {extra!r:.80}")
    text = truth if isinstance(truth, str) else json.dumps(truth)
    return Case(record["data_source"], str(response), text, extra or {})


class Scorer:
    """Gives lines their verdicts, from several threads; each has its own process of the user's function."""

    def __init__(self, custom: CustomSettings | None) -> None:
        self.custom = custom
        self.own = threading.local()
        self.started: list[CustomReward] = []

    def __call__(self, line: bytes) -> tuple[dict[str, Any], Verdict]:
        """The output line, and the verdict on it."""
        text = line.decode("utf-8-sig", "replace").rstrip("\r\n")
        try:
            line.decode()
            record = read_line(text)
        except ValueError as error:
            return with_verdict({"line": text}, Verdict(Outcome.unknown(str(error)), "malformed"))
        try:
            case = case_of(record)
            if self.custom is None:
                required(case.data_source)
        except ValueError as error:
            return with_verdict(record, Verdict(Outcome.unknown(str(error)), "malformed"))
        return with_verdict(record, verdict_of(case, self.function()))

    def function(self) -> CustomReward | None:
        """The user's function of this thread."""
        if self.custom is None:
            return None
        if not hasattr(self.own, "function"):
            self.own.function = CustomReward(self.custom)
            self.started.append(self.own.function)
        return self.own.function  # type: ignore[no-any-return]

    def close(self) -> None:
        """Ends the processes."""
        for function in self.started:
            function.close()


def with_verdict(record: Mapping[str, Any], verdict: Verdict) -> tuple[dict[str, Any], Verdict]:
    """A line with the four fields of its verdict."""
    outcome = verdict.outcome
    told = {name: getattr(outcome, name) for name in ("reward", "success", "status", "feedback")}
    return {**record, **told}, verdict


def scored(lines: Iterable[bytes], scorer: Scorer, workers: int) -> Iterator[tuple[dict[str, Any], Verdict]]:
    """Every line with its verdict, in order; reads only some lines ahead."""
    executor = ThreadPoolExecutor(workers)
    waiting: deque[Future[tuple[dict[str, Any], Verdict]]] = deque()
    try:
        for line in lines:
            waiting.append(executor.submit(scorer, line))
            if len(waiting) > workers * LINES_AHEAD:
                yield waiting[0].result()
                waiting.popleft()
        while waiting:
            yield waiting[0].result()
            waiting.popleft()
    finally:
        executor.shutdown(wait=False, cancel_futures=True)
        scorer.close()
        while wait(waiting, CLOSE_AGAIN_S).not_done:  # a thread may have been about to start a process
            scorer.close()


@contextmanager
def written_aside(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` once all is written, and leaves nothing behind where that fails.

    A pipe or a terminal is written to as it is.
    """
    if path.exists() and not path.is_file():
        with path.open("wb") as file:
            yield file
        return
    target = path.resolve()
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            yield file
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def as_line(record: Mapping[str, Any]) -> bytes:
    """One JSON object on one line; what UTF-8 cannot hold is escaped."""
    try:
        return (json.dumps(record, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError:
        return (json.dumps(record) + "\n").encode()


def score(asked: argparse.Namespace) -> Counter[str]:
    """Verifies every line; how many there are of each status.

    Raises:
        BadInputError: the input cannot be read, or the user's function cannot be used.
        OSError: the output cannot be written.
    """
    scorer = Scorer(custom_settings(asked.custom, asked.deadline))
    configure(
        RewardSettings(
            workers=asked.workers,
            allow_unsandboxed=asked.allow_unsandboxed,
            trust_assertions=asked.trust_assertions,
        )
    )
    try:
        lines = asked.input.open("rb")
        lines.peek(1)
    except OSError as error:
        raise BadInputError([f"{asked.input}: cannot be read ({error.strerror})"]) from None
    if asked.output.is_dir() or not asked.output.resolve().parent.is_dir():
        raise BadInputError([f"{asked.output}: is a folder, or its folder does not exist; name a file to write"])
    counts, told, shown = Counter[str](), 0.0, sys.stderr.isatty()
    with lines, written_aside(asked.output) as file:
        for record, verdict in scored(lines, scorer, asked.workers):
            file.write(as_line(record))
            if verdict.detail and not counts["unknown"]:
                print(verdict.detail, file=sys.stderr)
            counts[verdict.outcome.status] += 1
            if shown and time.monotonic() - told > PROGRESS_S:
                told = time.monotonic()
                print(f"\r{counts.total():,} lines", end="", file=sys.stderr, flush=True)
    if shown:
        print("\r", end="", file=sys.stderr)
    return counts


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    asked = arguments_of(argv)
    try:
        counts = score(asked)
    except BadInputError as error:
        print(error, file=sys.stderr)
        return BAD_INPUT
    except OSError as error:
        print(f"{asked.output}: {error}; nothing was left behind", file=sys.stderr)
        return FAILURE
    except KeyboardInterrupt:
        print("interrupted; nothing was left behind", file=sys.stderr)
        return INTERRUPTED
    by_status = ", ".join(f"{counts[status]:,} {status}" for status in ("right", "wrong", "unknown"))
    print(f"{counts.total():,} lines: {by_status}", file=sys.stderr)
    return DONE


if __name__ == "__main__":
    # The part of the output that is written is removed when the command is told to end, too.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    sys.exit(main())
