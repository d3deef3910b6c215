"""Small programming tasks: choose items of a list or letters of a text, change them, and put them together.

A task names a choice, a change and a way to put together, with small numbers in them. The hidden tests are what the
reference solution prints or returns on drawn inputs. Half of the tasks read stdin, half want a function.
"""

from __future__ import annotations

import json
import random
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mini_problem import Problem
from sources_base import Task
from sources_code import LIVE_LIMIT, hidden_tests, request

TESTS = 6
"""Hidden tests of a task."""
VARIETY = 3
"""How many different outputs they must have at least, so that no constant passes."""

Part = tuple[str, str]
"""What a step says in words, and as Python over `n` (an item), `i` (its place) or `items` (all of them)."""


@dataclass(frozen=True)
class Steps:
    """The parts of a task that can be combined; `{k}` in them is a small number."""

    keep: Sequence[Part]
    change: Sequence[Part]
    join: Sequence[Part]


NUMBERS = Steps(
    keep=[
        ("Keep those that are divisible by {k}", "n % {k} == 0"),
        ("Keep those that are not divisible by {k}", "n % {k} != 0"),
        ("Keep those that are greater than {k}", "n > {k}"),
        ("Keep those that are less than {k}", "n < {k}"),
        ("Keep every second one, from the first on", "i % 2 == 0"),
        ("Leave out the first {k}", "i >= {k}"),
    ],
    change=[
        ("multiply each by {k}", "n * {k}"),
        ("add {k} to each", "n + {k}"),
        ("square each", "n * n"),
        ("take the remainder of each modulo {k}", "n % {k}"),
        ("subtract from each its place among those that are left, counted from 0", "n - i"),
    ],
    join=[
        ("their sum", "sum(items)"),
        ("the largest, or 0 if there is none", "max(items, default=0)"),
        ("the smallest, or 0 if there is none", "min(items, default=0)"),
        ("how many different values there are", "len(set(items))"),
        ("the sum of their absolute values", "sum(abs(n) for n in items)"),
        ("the last one, or 0 if there is none", "items[-1] if items else 0"),
    ],
)
LETTERS = Steps(
    keep=[
        ("Keep the vowels (a, e, i, o, u)", "n in 'aeiou'"),
        ("Leave out the vowels (a, e, i, o, u)", "n not in 'aeiou'"),
        ("Leave out the first {k} letters", "i >= {k}"),
        ("Keep every second letter, from the first on", "i % 2 == 0"),
        ("Keep the letters that come after '{c}' in the alphabet", "n > '{c}'"),
    ],
    change=[
        ("move each {k} places on in the alphabet, with a after z", "chr((ord(n) - 97 + {k}) % 26 + 97)"),
        ("turn each into a capital", "n.upper()"),
        ("double each", "n * 2"),
        ("replace each '{c}' by '*'", "'*' if n == '{c}' else n"),
    ],
    join=[
        ("the text that they make", "''.join(items)"),
        ("the text that they make backwards", "''.join(reversed(items))"),
        ("the text that they make in sorted order", "''.join(sorted(items))"),
        ("how many there are", "len(items)"),
        ("how many different ones there are", "len(set(items))"),
    ],
)


@dataclass(frozen=True)
class Input:
    """What a task is given."""

    steps: Steps
    asked: str
    """How a stdin task names its input."""
    reading: str
    """How a program reads it."""
    annotation: str
    """The type of the argument of a function."""
    sample: Callable[[random.Random], Any]


def numbers(rng: random.Random) -> list[int]:
    """A short list of numbers."""
    return [rng.randrange(-20, 41) for _ in range(rng.randrange(3, 13))]


def word(rng: random.Random) -> str:
    """A short word of small letters."""
    return "".join(rng.choice(string.ascii_lowercase) for _ in range(rng.randrange(3, 13)))


INPUTS = (
    Input(NUMBERS, "a line of integers", "[int(part) for part in input().split()]", "List[int]", numbers),
    Input(LETTERS, "a line with one word of small letters", "input().strip()", "str", word),
)


@dataclass(frozen=True)
class Drawn:
    """A task with its numbers drawn: what is to be done in words, and as lines of Python."""

    given: Input
    todo: str
    joined: str
    body: tuple[str, ...]
    result: str

    @property
    def content(self) -> str:
        """What is to be done, whether as a program or as a function."""
        return f"{self.todo} {self.joined}"


def draw(rng: random.Random) -> Problem:
    """A task of any sort whose tests do not all expect the same."""
    while True:
        drawn = draw_steps(rng)
        inputs = [drawn.given.sample(rng) for _ in range(TESTS)]
        problem, outputs = (function if rng.random() < 0.5 else program)(drawn, inputs)
        if len(set(outputs)) >= VARIETY:
            return problem


def draw_steps(rng: random.Random) -> Drawn:
    """What is to be done."""
    given = rng.choice(INPUTS)
    (kept, test), (changed, value), (joined, result) = (
        fill(rng.choice(parts), rng) for parts in (given.steps.keep, given.steps.change, given.steps.join)
    )
    keep = f"kept = [n for i, n in enumerate(given) if {test}]"
    change = f"items = [{value} for i, n in enumerate(kept)]"
    return Drawn(given, f"{kept}, then {changed}.", joined, (keep, change), result)


def function(drawn: Drawn, inputs: Sequence[Any]) -> tuple[Problem, list[str]]:
    """The task as a function, and what it must return for each input, as JSON."""
    annotation, returned = drawn.given.annotation, "str" if drawn.result.startswith("''") else "int"
    head = f"def solve(given: {annotation}) -> {returned}:"
    statement = (
        f"You are given `given`, of type {annotation}. {drawn.todo} Return {drawn.joined}.\n\n"
        f"Your solution should have the following signature:\n```python\n{head}\n```"
    )
    solution = "\n    ".join(["def solve(given):", *drawn.body, f"return {drawn.result}"])
    outputs = [json.dumps(called(solution, one)) for one in inputs]
    tests = hidden_tests([json.dumps(one) for one in inputs], outputs, "functional", LIVE_LIMIT, "solve")
    return problem_of(drawn, statement, tests, solution), outputs


def program(drawn: Drawn, inputs: Sequence[Any]) -> tuple[Problem, list[str]]:
    """The task as a program that reads stdin, and what it must print for each input."""
    statement = f"Read {drawn.given.asked}. {drawn.todo} Print {drawn.joined}."
    solution = "\n".join([f"given = {drawn.given.reading}", *drawn.body, f"print({drawn.result})"])
    lines = [f"{' '.join(map(str, one)) if isinstance(one, list) else one}\n" for one in inputs]
    outputs = [printed(solution, line) for line in lines]
    return problem_of(drawn, statement, hidden_tests(lines, outputs, "stdin", LIVE_LIMIT), solution), outputs


def problem_of(drawn: Drawn, statement: str, tests: str, solution: str) -> Problem:
    """The problem in the form of LiveCodeBench."""
    task = Task("code", "livecodebench", statement, request(statement, 1), tests=tests)
    return Problem(task, f"```python\n{solution}\n```", drawn.content)


def fill(part: Part, rng: random.Random) -> Part:
    """A part with its small number and letter drawn; the same in words and in Python."""
    number, letter = rng.randrange(2, 8), rng.choice("bcdfghklmnprst")
    words, code = (text.replace("{k}", str(number)).replace("{c}", letter) for text in part)
    return words, code


def called(program: str, argument: Any) -> Any:
    """What the function `solve` of one of our own programs returns."""
    names: dict[str, Any] = {}
    exec(program, names)
    return names["solve"](argument)


def printed(program: str, line: str) -> str:
    """What one of our own programs prints when it reads `line`."""
    lines: list[str] = []
    exec(program, {"input": lambda: line.rstrip("\n"), "print": lambda value: lines.append(f"{value}\n")})
    return "".join(lines)
