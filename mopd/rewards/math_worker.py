"""The program of one comparing process: math-verify on its main thread, one JSON line in, one JSON line out.

It is started by its path and imports nothing of the project, so that it starts fast and needs no search path. A
request is `[gold, answer]`, both LaTeX without delimiters. The reply is one of right, wrong, unparsable (the
answer), bad_gold (the gold has no meaning that could be compared) and too_hard (time or memory ran out). The first
line, before any request, says `ready`, or why it is not.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

SECONDS = 2.0
"""Of processor time for one request, so that a busy machine makes no answer wrong."""
LAST_SECONDS = 6
"""Of processor time, after which the kernel ends this process, should nobody be left who does."""
MEMORY_BYTES = 2 << 30


class TooHard(BaseException):
    """The time for a request is over; no `except Exception` of a library swallows it."""


def requests(parent: int) -> Iterator[str]:
    """The lines of standard input, until it is closed or the process that started this one is gone."""
    pending = b""
    while os.getppid() == parent:
        readable, _, _ = select.select([0], [], [], 1.0)
        if not readable:
            continue
        arrived = os.read(0, 1 << 16)
        if not arrived:
            return
        *lines, pending = (pending + arrived).split(b"\n")
        yield from (line.decode("ascii") for line in lines)


def read(latex: str) -> list[Any]:
    """What math-verify reads in an answer: a list with one expression, empty where it reads none."""
    from math_verify import LatexExtractionConfig, parse

    # No plain-expression extraction: text in which a number merely occurs is not an answer.
    found: list[Any] = parse(
        rf"\boxed{{{latex}}}",
        [LatexExtractionConfig(boxed_match_priority=0)],
        fallback_mode="no_fallback",
        extraction_mode="first_match",
        parsing_timeout=None,
        raise_on_error=True,
    )
    return found


def compared(gold: str, answer: str) -> str:
    """The verdict on two answers. The order matters: math-verify is not symmetric."""
    from math_verify import verify

    found: dict[str, list[Any]] = {}
    for name, latex in (("bad_gold", gold), ("unparsable", answer)):
        try:
            found[name] = read(latex)
        except MemoryError:
            raise
        # Whatever breaks while an answer is read means that it cannot be read.
        except Exception:
            return name
        if not found[name]:
            return name
    try:
        same = verify(
            found["bad_gold"],
            found["unparsable"],
            allow_set_relation_comp=True,
            timeout_seconds=None,
            raise_on_error=True,
        )
    except MemoryError:
        raise
    # Undefined values (nan, 1/0) and expressions that the library cannot compare are equal to nothing.
    except Exception:
        return "wrong"
    return "right" if same is True else "wrong"


def timed(gold: str, answer: str) -> str:
    """`compared`, or `too_hard` where time or memory run out."""
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = int(time.process_time()) + LAST_SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))
    try:
        # It rings again and again: a library may catch everything.
        signal.setitimer(signal.ITIMER_PROF, SECONDS, SECONDS / 10)
        verdict = compared(gold, answer)
        signal.setitimer(signal.ITIMER_PROF, 0)
    except (TooHard, MemoryError):
        signal.setitimer(signal.ITIMER_PROF, 0)
        return "too_hard"
    return verdict


def ring(number: int, frame: object) -> None:
    """What the timer does."""
    raise TooHard


def main(parent: int) -> None:
    """Answers requests until the process `parent` is gone or closes the pipe."""
    replies = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # nothing that a library prints is taken for a reply
    logging.disable(logging.CRITICAL)

    def reply(text: str) -> None:
        os.write(replies, json.dumps(text).encode("ascii") + b"\n")

    # What the starting process had blocked or ignored would be inherited.
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    signal.signal(signal.SIGXCPU, signal.SIG_DFL)
    signal.signal(signal.SIGPROF, ring)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    memory = MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (memory, hard))
    try:
        first = compared(r"\frac{1}{2}", "0.5")  # the first comparison imports and compiles; it counts for nobody
        reply("ready" if first == "right" else f"1/2 compared with 0.5 gave {first}")
    except ImportError as error:
        reply(f"{type(error).__name__}: {error}")
        return
    for line in requests(parent):
        gold, answer = json.loads(line)
        reply(timed(gold, answer))


if __name__ == "__main__":
    main(int(sys.argv[1]))
