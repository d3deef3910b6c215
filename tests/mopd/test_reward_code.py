"""Programs and functions, from the response to the verdict, in the real sandbox where a program runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from mopd.rewards import sandbox, settings
from mopd.rewards.code import BATCH, verify
from mopd.rewards.code_feedback import MAX_CHARS, NO_PROGRAM, TRUNCATED
from mopd.rewards.sandbox.types import Job, Limits, Result, SandboxError
from mopd.rewards.settings import RewardSettings
from mopd.types import Outcome

RIGHT = Outcome.of(True)


def fenced(program: str) -> str:
    return f"I think so:\n\n```python\n{program}\n```\n"


def stdin(*pairs: tuple[str, str], **more: Any) -> str:
    inputs, outputs = [given for given, _ in pairs], [wanted for _, wanted in pairs]
    return json.dumps({"inputs": inputs, "outputs": outputs, "testtype": "stdin"} | more)


def functional(*pairs: tuple[Any, Any], **more: Any) -> str:
    inputs, outputs = [given for given, _ in pairs], [wanted for _, wanted in pairs]
    return json.dumps({"inputs": inputs, "outputs": outputs, "testtype": "functional", "fn_name": "f"} | more)


SUM = stdin(("1 2", "3\n"), ("10 20\n", "30"))


@pytest.fixture
def configured() -> Iterator[Callable[..., None]]:
    """Sets settings for one test."""
    before = settings.current()
    yield lambda **changes: settings.configure(RewardSettings(**changes))
    settings.configure(before)


# ------------------------------------------------------------------ programs


@pytest.mark.parametrize(
    "program",
    [
        "a, b = map(int, input().split())\nprint(a + b)",
        "import sys\nprint(sum(map(int, sys.stdin.buffer.read().split())))",
        "def main():\n    print(sum(map(int, open(0).read().split())))\nif __name__ == '__main__':\n    main()",
        "import sys\nprint(sum(map(int, input().split())), end='')\nsys.exit()",
        "from __future__ import annotations\nprint(sum(map(int, input().split())), end='  \\r\\n\\n')",
        # What a list of allowed names and modules once refused.
        "import copy, queue, threading, os\nclass A:\n  @property\n  def x(self): return super().__hash__() and 0\n"
        "try:\n  raise ValueError(divmod(7, 2))\nexcept Exception:\n  print(sum(map(int, input().split())) + A().x)",
        # More address space than a trainer's own process once left it.
        "spare = bytearray(1500 << 20)\nprint(sum(map(int, input().split())))",
    ],
)  # fmt: skip
def test_good_programs_pass(program: str) -> None:
    assert verify(fenced(program), SUM) == RIGHT


@pytest.mark.parametrize(
    ("program", "feedback"),
    [
        ("print(input())", "Test Case 1: Wrong Answer\nInput:\n1 2\nOutput:\n1 2\n\n\nTest Case 2: Wrong"),
        ("print(3)", "Test Case 2: Wrong Answer\nInput:\n10 20\nOutput:\n3"),
        ("a, b = map(int, input().split())\nprint(f'{a + b}\\n.')", "Test Case 1: Wrong Answer"),
        ("", NO_PROGRAM),
        ("print(1 // 0)", "Runtime Error\nZeroDivisionError: integer division or modulo by zero\nline 1, in <module>"),
        ("print(", "Runtime Error\nSyntaxError: '(' was never closed\nline 1"),
        ("import sys\nprint(sum(map(int, input().split())))\nsys.exit(1)", "The program ended with exit status 1"),
        ("def f(n): return f(n + 1)\nf(0)", "RecursionError"),
        ("print(3)\n\x00", "Runtime Error"),
        ("print('\ud800')", "Runtime Error"),
        ("x = bytearray(1 << 40)", "Memory Limit Exceeded"),
        ("while True: print('x' * 100000)", "Output Limit Exceeded"),
        ("import os\nos._exit(0)", "Test Case 1: Wrong Answer"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "Runtime Error"),
        ("import sys\nsys.stdout.close()", "Wrong Answer"),
        ("import os, sys\nsys.stdout = open(os.devnull, 'w')\nprint(3)", "Wrong Answer"),
        ("import os\nos.write(1, b'3\\xff')", "Wrong Answer"),
        ("print('5\\r3')", "Wrong Answer"),
        ("print('5\\x1b[D3')", "Wrong Answer"),
        ("import sys\nprint(3, file=sys.stderr)", "Debug Output:\n3"),
    ],
)  # fmt: skip
def test_bad_programs_fail_and_are_told_why(program: str, feedback: str) -> None:
    outcome = verify(fenced(program), SUM)
    assert (outcome.reward, outcome.status) == (0.0, "wrong")
    assert feedback in outcome.feedback
    assert len(outcome.feedback) <= MAX_CHARS


def test_an_endless_loop_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mopd.rewards.code.LEAST_SECONDS", 0.2)
    outcome = verify(fenced("while True: pass"), stdin(("1", "1"), time_limit=0.1))
    assert outcome == Outcome.of(False, "Time Limit Exceeded\n\nLast Executed Input:\n1")


def test_no_program_is_told_the_format_or_that_it_was_cut() -> None:
    assert verify("no code", SUM) == Outcome.of(False, NO_PROGRAM)
    assert NO_PROGRAM == "Incorrect Format: Put your code inside a ```python ... ``` block."
    assert verify("no code", SUM, {"truncated": True}) == Outcome.of(False, TRUNCATED)


def test_lines_are_not_words() -> None:
    assert verify(fenced("print('1 2')"), stdin(("", "1\n2"))).status == "wrong"
    assert verify(fenced("print('1\\n2')"), stdin(("", "1\n2"))) == RIGHT


def test_every_test_counts_also_beyond_the_first_batch() -> None:
    pairs = [(str(number), str(number)) for number in range(BATCH + 2)]
    assert verify(fenced("print(input())"), stdin(*pairs)) == RIGHT
    outcome = verify(fenced(f"x = input()\nprint('no' if x == '{BATCH + 1}' else x)"), stdin(*pairs))
    assert outcome.feedback.startswith(f"Test Case {BATCH + 2}: Wrong Answer")


def test_sample_output_behind_the_code_is_no_program() -> None:
    response = fenced("print(sum(map(int, input().split())))") + "Output:\n```\n" + "3\n" * 200 + "```"
    assert verify(response, SUM) == RIGHT


def test_context_stands_before_the_program() -> None:
    truth = stdin(("9", "3.0"), context="from math import sqrt")
    assert verify(fenced("print(sqrt(int(input())))"), truth) == RIGHT
    assert "line 1, in <module>" in verify(fenced("print(int('x'))"), truth).feedback


def test_floats_need_a_tolerance_to_differ(configured: Callable[..., None]) -> None:
    program, truth = fenced("print(1 / 3)"), stdin(("", "0.33333333"))
    assert verify(program, truth).status == "wrong"
    configured(float_tolerance=1e-6)
    assert verify(program, truth) == RIGHT
    assert verify(fenced("print(float('nan'))"), truth).status == "wrong"
    assert verify(fenced("print('3' * 10**6)"), truth).status == "wrong"


def test_without_tests_there_is_no_verdict() -> None:
    for truth in ("", "not JSON", stdin(), functional()):
        with pytest.raises(ValueError):
            verify(fenced("print(3)"), truth)


# ------------------------------------------------------------------ functions


@pytest.mark.parametrize(
    "program",
    [
        "def f(xs, k): return [x + k for x in xs]",
        "class Solution:\n  def f(self, xs: List[int], k: int) -> Optional[List[int]]:\n    return [x + k for x in xs]",
        "def f(xs, k): return tuple(x + float(k) for x in xs)",
        "import numpy as np\ndef f(xs, k): return np.array(xs) + np.int64(k)",
        "f = lambda xs, k: [x + k for x in xs]",
        "def f(*, xs, k): return 0\ndef f(xs, k): return [x + k for x in xs]\nprint('debugging', f([1], 2))",
    ],
)
def test_good_functions_pass(program: str) -> None:
    assert verify(fenced(program), functional(("[1, 2]\n3", "[4, 5]"), ("[] 1", "[]"))) == RIGHT


def test_arguments_come_as_the_dataset_writes_them() -> None:
    swap = fenced("def f(a, b='?'): return [b, a]")
    assert verify(swap, functional(('"a b"\n"c\\nd"', '["c\\nd", "a b"]'))) == RIGHT
    assert verify(swap, functional(({"b": 1, "a": [2]}, "[1, [2]]"))) == RIGHT
    assert verify(swap, functional(('{"b": 1, "a": [2]}', "[1, [2]]"))) == RIGHT
    assert verify(swap, json.dumps({"inputs": [["x", 1]], "outputs": [[1, "x"]], "fn_name": "f"})) == RIGHT
    assert verify(swap, json.dumps({"inputs": [["x", 1]], "outputs": [[[1, "x"]]], "fn_name": "f"})) == RIGHT


@pytest.mark.parametrize(
    ("program", "feedback"),
    [
        ("def f(x): return x", "Test Case 1: Wrong Answer\nInput:\n1\nOutput:\n1"),
        ("def f(x): return True", "Output:\ntrue"),
        ("def f(x): return '2'", 'Output:\n"2"'),
        ("def f(x): print(2)", "Output:\nnull"),
        ("def f(x): return {2}", "Runtime Error\nTypeError: a value of type set cannot be compared"),
        ("def f(x): return float('nan')", "Runtime Error"),
        ("def g(x): return 2", "Runtime Error\nAttributeError"),
        ("def f(): return 2", "Runtime Error\nTypeError: f() takes 0 positional arguments"),
        ("def f(x):\n  return 1 // 0", "ZeroDivisionError: integer division or modulo by zero\nline 2, in f"),
        ("import sys\ndef f(x): sys.exit(0)", "without returning a value"),
        ("import os\ndef f(x): os._exit(0)", "without returning a value"),
        ("class A:\n  def __eq__(self, other): return True\ndef f(x): return A()", "Runtime Error\nTypeError"),
        ("class A(int):\n  def __eq__(self, other): return True\ndef f(x): return A(7)", "Output:\n7"),
        ("class A(str):\n  def __reduce__(self): return print, (2,)\ndef f(x): return A(7)", 'Output:\n"7"'),
        ("def f(x):\n  v = 2\n  for _ in range(10**5): v = [v]\n  return v", "Runtime Error\nRecursionError"),
        ("import os\ndef f(x):\n  os.write(3, b'[' * 10**5 + b']' * 10**5)\n  os._exit(0)", "Runtime Error"),
        ("import os\ndef f(x):\n  os.write(3, b'{\"a\": 2, \"a\": 2}')\n  os._exit(0)", "Runtime Error"),
        ("import os\ndef f(x):\n  os.write(3, b'9' * 10**6)\n  os._exit(0)", "Runtime Error"),
    ],
)  # fmt: skip
def test_bad_functions_fail_and_are_told_why(program: str, feedback: str) -> None:
    outcome = verify(fenced(program), functional(("1", "2")))
    assert (outcome.reward, outcome.status) == (0.0, "wrong")
    assert feedback in outcome.feedback


def test_replacing_what_looks_like_the_judge_passes_nothing() -> None:
    hostile = """
import atexit, builtins, json, sys, os
json.dumps = json.loads = lambda *a, **k: True
builtins.print = builtins.str = builtins.repr = lambda *a: True
sys.stdout = open(os.devnull, 'w')
atexit.register(lambda: os._exit(0))
builtins.AssertionError = Warning
def f(x):
    frame = sys._getframe()
    while frame:
        for value in frame.f_locals.values():
            if value == 'secret':
                return value
        frame = frame.f_back
    return 0
print(f(1))
"""
    assert verify(fenced(hostile), functional(("1", '"secret"'))).status == "wrong"
    assert verify(fenced(hostile), stdin(("1", "secret"))).status == "wrong"


# ------------------------------------------------------------------ feedback


@pytest.mark.parametrize("split", ["train", "test"])
def test_feedback_never_shows_what_was_expected(split: str) -> None:
    for truth, program in [
        (stdin(("1", "golden")), "print(input())"),
        (stdin(("1", "golden")), "print(open('/etc/passwd').read())"),
        (functional(("1", '"golden"')), "def f(x): return x"),
        (functional(("1", '"golden"')), "def f(x): raise ValueError(x)"),
    ]:
        outcome = verify(fenced(program), truth, {"split": split})
        assert outcome.status == "wrong"
        assert outcome.feedback
        assert "golden" not in outcome.feedback


def test_feedback_is_short_and_shows_control_characters() -> None:
    outcome = verify(fenced("print('\\x1b[2K\\r\\x00' + 'x' * 10**5)"), stdin(("a\x07b\n" * 100, "")))
    assert "\\x1b[2K\\r\\x00xxx" in outcome.feedback
    assert "a\\x07b" in outcome.feedback
    assert not {"\x1b", "\r", "\x00", "\x07"} & set(outcome.feedback)
    assert len(outcome.feedback) <= MAX_CHARS


def test_the_two_shortest_wrong_answers_are_told() -> None:
    outcome = verify(fenced("print(input())"), stdin(("long" * 9, "x"), ("b", "x"), ("ok", "ok"), ("a", "x")))
    assert [line for line in outcome.feedback.split("\n") if "Test Case" in line] == [
        "Test Case 2: Wrong Answer",
        "Test Case 4: Wrong Answer",
    ]


def test_a_crash_is_told_before_a_wrong_answer() -> None:
    outcome = verify(fenced("print(1 / int(input()))"), stdin(("1", "2"), ("0", "2"), ("2", "2")))
    assert outcome.feedback.startswith("Runtime Error\nZeroDivisionError")
    assert outcome.feedback.endswith("Last Executed Input:\n0")


# ------------------------------------------------------------------ our own machinery's faults


class Scripted:
    """A sandbox that gives results as it is told."""

    def __init__(self, *statuses: str) -> None:
        self.results = [Result(status, 0, b"3", b"why", None, 0.0, 0.0) for status in statuses]  # type: ignore[arg-type]

    def run(self, source: str, jobs: Sequence[Job], limits: Limits, stop_at_first_failure: bool) -> list[Result]:
        return self.results

    def pair(self, program: str, tests: str, names: Sequence[str], limits: Limits) -> Result:
        return self.results[0]


ASSERTS = json.dumps({"inputs": ["assert f((1,)) == 1"], "testtype": "code", "fn_name": "f"})


@pytest.mark.parametrize(
    ("truth", "statuses", "reason"),
    [
        (stdin(("", "3")), ["infra"], "the sandbox failed: why"),
        (stdin(("", "3"), ("", "3")), ["ok", "infra"], "the sandbox failed: why"),
        (stdin(("", "3"), ("", "3")), ["ok"], "it gave no result"),
        (stdin(("", "3")), [], "it gave no result"),
        (ASSERTS, ["infra"], "the sandbox failed: why"),
    ],
)
def test_a_broken_sandbox_is_unknown(
    monkeypatch: pytest.MonkeyPatch, truth: str, statuses: list[str], reason: str
) -> None:
    monkeypatch.setattr(sandbox, "shared", lambda: Scripted(*statuses))
    outcome = verify(fenced("f = 3"), truth)
    assert (outcome.reward, outcome.success, outcome.status) == (None, None, "unknown")
    assert reason in outcome.feedback


def test_one_failed_test_is_enough_for_wrong_whatever_else_broke(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "shared", lambda: Scripted("ok", "infra"))
    assert verify(fenced("x"), stdin(("", "4"), ("", "3"))).status == "wrong"


def test_without_a_sandbox_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> None:
        raise SandboxError("no isolation here")

    monkeypatch.setattr(sandbox, "shared", refused)
    for truth in (SUM, functional(("1", "1")), ASSERTS):
        assert verify(fenced("x"), truth) == Outcome.unknown("no program could be run: no isolation here")
    assert verify("no code", SUM).status == "wrong"


def test_limits_leave_room_for_a_slow_machine(monkeypatch: pytest.MonkeyPatch, configured: Callable[..., None]) -> None:
    seen: list[Limits] = []

    class Watching(Scripted):
        def run(self, source: str, jobs: Sequence[Job], limits: Limits, stop_at_first_failure: bool) -> list[Result]:
            seen.append(limits)
            return self.results

    monkeypatch.setattr(sandbox, "shared", lambda: Watching("ok"))
    configured(memory_bytes=1 << 30)
    for seconds, cpu_s in [(None, 3.0), (1, 3.0), (6, 9.0)]:
        verify(fenced("x"), stdin(("", "3" * 10**6), time_limit=seconds))
        assert seen[-1].cpu_s == cpu_s
        assert seen[-1].wall >= 3 * cpu_s
        assert seen[-1].memory_bytes == 1 << 30
        assert seen[-1].output_bytes > 10**6


@examples(deadline=None)
@given(st.text() | st.text().map(fenced), st.booleans())
def test_any_text_gets_a_verdict_twice_the_same(text: str, truncated: bool) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(sandbox, "shared", lambda: Scripted("ok"))
        outcome = verify(text, stdin(("", "4")), {"truncated": truncated})
        assert outcome.status == "wrong"
        assert outcome == verify(text, stdin(("", "4")), {"truncated": truncated})
        assert len(outcome.feedback.encode("utf-8")) > 0


def test_a_cut_response_never_scores_higher() -> None:
    """The first two lines of this program are right; the program that its author meant is not."""
    whole = fenced("a, b = map(int, input().split())\nprint(a + b)\nprint('done')")
    assert verify(whole, SUM).reward == 0.0
    assert any(verify(whole[:length], SUM).reward == 1.0 for length in range(len(whole)))
    for length in range(len(whole)):
        outcome = verify(whole[:length], SUM, {"truncated": True})
        assert outcome.reward == 0.0


def test_a_forgotten_last_fence_costs_nothing() -> None:
    assert verify("```python\nprint(sum(map(int, input().split())))", SUM) == RIGHT
