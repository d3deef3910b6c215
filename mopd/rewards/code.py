"""The verifier of programming tasks: runs the program of a response in the sandbox, and compares outside of it.

What a test expects never enters the process of a program, and nothing that a program says of itself is believed:
the verdict comes from how its process ended and from what it printed or returned.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from mopd.rewards import sandbox, settings
from mopd.rewards.code_feedback import NO_PROGRAM, TRUNCATED, Failure, describe, describe_pair, describe_shared
from mopd.rewards.code_truth import Test, Truth, read_truth
from mopd.rewards.comparison import read_value, same_output, same_value
from mopd.rewards.programs import class_names, read_program, with_context
from mopd.rewards.sandbox.types import MIB, Call, Job, Limits, Result, SandboxError
from mopd.types import Outcome

SECONDS_FACTOR, LEAST_SECONDS = 1.5, 3.0
"""Processor time that a test may use: the task's limit times this, and no less than that. Limits are written for other
machines, and a core that is shared with others is slower. Real time is only a backstop."""

BATCH = 16
"""Tests that are run before what came out is compared; a wrong program seldom needs more."""

LONGEST_PROGRAM = 1 * MIB
"""Characters of a program; a longer one is wrong without being run."""


def check(ground_truth: str) -> None:
    """Refuses a ground truth that no program could be tested with. It runs nothing.

    Raises:
        ValueError: it is not JSON, has no test, or its parts do not fit together.
    """
    read_truth(ground_truth)


def verify(response: str, ground_truth: str, extra_info: Mapping[str, Any] | None = None) -> Outcome:
    """Right iff the program in `response` passes every test of `ground_truth`.

    A program that crashes, exits with another status than 0, or exceeds a limit has failed the test, whatever it
    printed. Unknown is given where the sandbox failed, and for assertions that a program could forge: see `_trusted`.
    Of `extra_info` the row's `split` and whether the response was `truncated` are read.

    Raises:
        ValueError: the ground truth cannot be read.
    """
    truth = read_truth(ground_truth)
    info = extra_info or {}
    truncated = bool(info.get("truncated"))
    program = read_program(response, truncated)
    if program is None:
        return Outcome.of(False, TRUNCATED if truncated else NO_PROGRAM)
    if len(program) > LONGEST_PROGRAM or not _is_utf8(program):
        return Outcome.of(False, "Runtime Error\nThe program is too long, or holds characters that no file can hold.")
    source = with_context(truth.context, program)
    offset = source.count("\n") - program.count("\n")
    try:
        if truth.kind == "code":
            return _asserted(truth, source, offset, info)
        return _compared(truth.tests, source, _limits(truth), offset)
    except SandboxError as error:
        return Outcome.unknown(f"no program could be run: {error}")


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _limits(truth: Truth) -> Limits:
    longest = max(len(test.output) + sum(len(repr(value)) for value in test.accepted) for test in truth.tests)
    return Limits(
        cpu_s=max(LEAST_SECONDS, SECONDS_FACTOR * truth.seconds),
        memory_bytes=settings.current().memory_bytes,
        output_bytes=max(MIB, 4 * longest),
    )


def _compared(tests: Sequence[Test], source: str, limits: Limits, offset: int) -> Outcome:
    """The verdict of tests whose results are compared here; it ends with the first batch that has a failure."""
    for start in range(0, len(tests), BATCH):
        batch = tests[start : start + BATCH]
        results = sandbox.shared().run(source, [_job(test) for test in batch], limits, stop_at_first_failure=True)
        numbered = list(zip(range(start + 1, start + 1 + len(batch)), batch, results, strict=False))
        failures = [
            Failure(number, _given(test), result, _got(test, result))
            for number, test, result in numbered
            if result.status != "infra" and not _passes(test, result)
        ]
        if failures:
            return Outcome.of(False, describe(failures, offset))
        if any(result.status == "infra" for result in results) or len(results) < len(batch):
            return Outcome.unknown(_infra(results))
    return Outcome.of(True)


def _infra(results: Sequence[Result]) -> str:
    reasons = [result.stderr.decode("utf-8", "backslashreplace") for result in results if result.status == "infra"]
    return f"the sandbox failed: {reasons[0][-300:] if reasons and reasons[0] else 'it gave no result'}"


def _job(test: Test) -> Job:
    if not test.function:
        return Job(stdin=test.stdin.encode())
    return Job(call=Call(test.function, json.dumps(test.arguments), json.dumps(test.keywords or {})))


def _passes(test: Test, result: Result) -> bool:
    if result.status != "ok":
        return False
    tolerance = settings.current().float_tolerance
    if not test.function:
        return same_output(result.stdout, test.output, tolerance)
    if result.value is None:
        return False
    try:
        value = read_value(result.value)
    except ValueError:  # nested too deep, or a number of thousands of digits: no test expects such a thing
        return False
    if test.exact:
        return bool(value == test.accepted[0])
    return any(same_value(value, accepted, tolerance) for accepted in test.accepted)


def _given(test: Test) -> str:
    if not test.function:
        return test.stdin
    values = [*test.arguments, test.keywords] if test.keywords else test.arguments
    return "\n".join(json.dumps(value, ensure_ascii=False) for value in values)


def _got(test: Test, result: Result) -> str:
    if not test.function:
        return result.stdout.decode("utf-8", "backslashreplace")
    return "nothing that can be written as JSON" if result.value is None else result.value


def _asserted(truth: Truth, source: str, offset: int, info: Mapping[str, Any]) -> Outcome:
    """The verdict of tests that are Python code, one after the other until one fails or cannot be judged."""
    limits = _limits(truth)
    for number, test in enumerate(truth.tests, 1):
        outcome = _one_asserted(number, test, source, limits, offset, info)
        if outcome.status != "right":
            return outcome
    return Outcome.of(True)


def _one_asserted(
    number: int, test: Test, source: str, limits: Limits, offset: int, info: Mapping[str, Any]
) -> Outcome:
    if test.comparisons:
        calls = [
            Test(
                arguments=one.arguments,
                keywords=one.keywords,
                accepted=(one.expected,),
                function=one.function,
                exact=True,
            )
            for one in test.comparisons
        ]
        return _compared(calls, source, limits, offset)
    # The function that the row names is called as a function, whatever the program makes of the name.
    classes = sorted((test.names - {test.function}) & class_names(source))
    if classes:
        return _trusted(number, test, source, limits, classes, info)
    result = sandbox.shared().pair(source, test.assertions, sorted(test.names), limits)
    if result.status == "infra":
        return Outcome.unknown(_infra([result]))
    passed = result.status == "ok"
    return Outcome.of(passed, "" if passed else describe_pair(number, result, offset))


def _trusted(
    number: int, test: Test, source: str, limits: Limits, classes: Sequence[str], info: Mapping[str, Any]
) -> Outcome:
    """The verdict of assertions about objects of the program, which cannot leave its process.

    The program and the assertions share one process, and a line that cannot be guessed is printed behind the last
    assertion: ending early, at exit or otherwise, passes nothing. Still a program that is made to cheat could, by
    reading that line from its process, or with objects that say they equal everything. So this counts in evaluation,
    where nobody learns from it, and in training only if the settings say so.
    """
    evaluated = (info.get("split") or "train") != "train"
    if not (evaluated or settings.current().trust_assertions):
        return Outcome.unknown(
            f"the assertions need objects of the program's own {', '.join(classes)[:200]}, which cannot be compared"
            " outside its process, so a program could forge the verdict; trust_assertions=true counts such tests"
            " in training, and rows of another split than train are judged anyway"
        )
    mark = secrets.token_hex(16)
    ending = f"import sys as _sys\n_sys.__stdout__.write('\\n{mark}\\n')\n_sys.__stdout__.flush()\n"
    script = f"{source}\n\n{test.assertions}\n\n{ending}"
    (result,) = sandbox.shared().run(script, [Job()], limits, stop_at_first_failure=True)
    if result.status == "infra":
        return Outcome.unknown(_infra([result]))
    passed = result.status == "ok" and mark.encode() in result.stdout.split(b"\n")
    return Outcome.of(passed, "" if passed else describe_shared(number, result))
