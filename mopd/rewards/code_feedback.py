"""What a program's author is told of a failed attempt. It is never longer than MAX_CHARS, and shows no gold answer.

The published code shows the expected output of a wrong answer. This one does not, for any row: what stands here
enters the teacher's prompt, and there an expected output is the answer to a hidden test.
"""

from __future__ import annotations

import builtins
import re
from collections.abc import Sequence
from dataclasses import dataclass

from mopd.rewards.sandbox.types import Result

MAX_CHARS = 2000
NO_PROGRAM = "Incorrect Format: Put your code inside a ```python ... ``` block."
TRUNCATED = "Your response was truncated because it exceeded the maximum length."
TOO_SLOW = "Time Limit Exceeded"
CRASHES = {"error": "Runtime Error", "memory": "Memory Limit Exceeded", "output": "Output Limit Exceeded"}

WRONG_ANSWERS_SHOWN = 2
FRAMES_SHOWN = 3
FRAME = re.compile(r'  File "solution\.py", line ([0-9]{1,9})(?:, in ([^\n]{0,100}))?')
"""A frame of the program, by the name that the sandbox gives its file; a syntax error is in no function."""


@dataclass(frozen=True)
class Failure:
    """A test that a program failed."""

    number: int
    """Which test it is, counted from 1."""
    given: str
    """What went into the program."""
    result: Result
    got: str
    """What came out of it."""


def describe(failures: Sequence[Failure], context_lines: int = 0) -> str:
    """What to say of the tests that failed, of which there is at least one.

    The first crash is told, with its message, the last frames in the program and the input; without a crash the
    first exceeded time limit; and without one the two wrong answers that are shortest. `context_lines` is how many
    lines stood before the program, which did not see them.
    """
    for failure in failures:
        if failure.result.status in CRASHES:
            head = f"{CRASHES[failure.result.status]}\n{_crash(failure.result, context_lines)}".strip()
            return f"{head}\n\nLast Executed Input:\n{shown(failure.given)}"[:MAX_CHARS]
    for failure in failures:
        if failure.result.status == "timeout":
            return f"{TOO_SLOW}\n\nLast Executed Input:\n{shown(failure.given)}"[:MAX_CHARS]
    shortest = sorted(failures, key=lambda failure: len(failure.given) + len(failure.got))[:WRONG_ANSWERS_SHOWN]
    return "\n\n".join(_wrong_answer(failure) for failure in shortest)[:MAX_CHARS]


def describe_pair(number: int, result: Result, context_lines: int = 0) -> str:
    """What to say of test code that failed in a process of its own, where nothing of it can be in `result`."""
    if result.status == "timeout":
        return TOO_SLOW
    crashed = _built_in_error(result) or FRAME.search(result.stderr.decode("utf-8", "backslashreplace"))
    if result.status in ("memory", "output") or crashed:
        return f"{CRASHES[result.status]}\n{_crash(result, context_lines)}"[:MAX_CHARS]
    return f"Test Case {number}: Wrong Answer"


def describe_shared(number: int, result: Result) -> str:
    """What to say of test code that failed in the program's process.

    Its messages and lines hold gold answers, so nothing that was printed is shown but the name of an exception, and
    only of a built-in one: another might be text of the test.
    """
    if result.status == "timeout":
        return TOO_SLOW
    if result.status in ("memory", "output"):
        return CRASHES[result.status]
    kind = _built_in_error(result)
    return f"Runtime Error\n{kind}" if kind not in ("", "AssertionError") else f"Test Case {number}: Wrong Answer"


def _built_in_error(result: Result) -> str:
    """The name of the exception that ended a script, if it is one of Python's own, else nothing."""
    kind = _last_line(result).partition(":")[0].strip()
    error = getattr(builtins, kind, None) if kind.isidentifier() else None
    return kind if isinstance(error, type) and issubclass(error, BaseException) else ""


def _wrong_answer(failure: Failure) -> str:
    text = (
        f"Test Case {failure.number}: Wrong Answer\nInput:\n{shown(failure.given)}\nOutput:\n{_cut(failure.got, 250)}"
    )
    printed = failure.result.stderr.decode("utf-8", "backslashreplace")
    return f"{text}\nDebug Output:\n{shown(printed, 10, 300)}" if printed.strip() else text


def _last_line(result: Result) -> str:
    lines = result.stderr.decode("utf-8", "backslashreplace").strip().rsplit("\n", 1)
    return lines[-1]


def _crash(result: Result, context_lines: int) -> str:
    """The message of an exception, and the last frames that lie in the program."""
    trace = result.stderr.decode("utf-8", "backslashreplace")
    found = [(int(line) - context_lines, function) for line, function in FRAME.findall(trace)]
    frames = [
        f"line {line}" + (f", in {_cut(function, 100)}" if function else "") for line, function in found if line > 0
    ]
    message = _cut(_last_line(result), 300)
    if not message and result.exit_code == 0:
        message = "The program ended without returning a value that can be written as JSON."
    elif not message and result.exit_code is not None:
        message = f"The program ended with exit status {result.exit_code}."
    return "\n".join([message, *frames[-FRAMES_SHOWN:]])


def shown(text: str, lines: int = 8, width: int = 250) -> str:
    """The first lines of a text, each cut to `width` characters, with control characters escaped."""
    found = text.rstrip().split("\n", lines)
    rest = ["..."] if len(found) > lines else []
    return "\n".join([*(_cut(line, width) for line in found[:lines]), *rest])


def _cut(text: str, width: int) -> str:
    escaped = "".join(map(_escape, text[:width]))
    return escaped if len(text) <= width and len(escaped) <= width else f"{escaped[:width]}..."


def _escape(character: str) -> str:
    if character.isprintable() or character in "\n\t":
        return character
    return character.encode("unicode_escape").decode()
