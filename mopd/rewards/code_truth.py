"""The ground truth of a programming task: its tests, in the forms in which datasets write them."""

from __future__ import annotations

import ast
import functools
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from mopd.rewards.assertions import Comparison, comparisons, wanted_names
from mopd.rewards.comparison import read_value

Kind = Literal["stdin", "functional", "code"]
KINDS: tuple[str, ...] = get_args(Kind)

DEFAULT_SECONDS = 2.0
"""The time limit of a task that names none: what most contests give."""

LONGEST_SECONDS = 300
"""The longest time limit that is believed."""

FUNCTION_CONTEXT = """\
from collections import *
from heapq import *
from bisect import *
from itertools import *
from functools import *
from math import *
from typing import *
from builtins import *
import bisect, collections, copy, functools, heapq, itertools, math, operator, random, re, string, sys
"""
"""What stands before a function where the dataset gives no context: such tasks come from sites that import the
usual modules themselves, and their signatures name `List` without importing it."""


class Malformed(ValueError):
    """A ground truth that no response could be compared with."""


@dataclass(frozen=True)
class Test:
    """One test: what goes into the program and what must come out."""

    __test__ = False  # it is not for pytest

    stdin: str = ""
    """What the program reads, of a `stdin` test."""
    arguments: tuple[Any, ...] = ()
    """Positional arguments of a `functional` test, as values read from JSON."""
    keywords: Mapping[str, Any] | None = None
    """Arguments by name of a `functional` test; None for none."""
    assertions: str = ""
    """Python code that fails if the program is wrong, of a `code` test."""
    names: frozenset[str] = frozenset()
    """What the assertions want from the program."""
    comparisons: tuple[Comparison, ...] | None = None
    """The same, where the assertions are nothing but these."""
    output: str = ""
    """What a `stdin` test must print."""
    accepted: tuple[Any, ...] = ()
    """The values of which a `functional` test must return one."""
    function: str = ""
    """The function that a `functional` test calls; the row's `fn_name`, if any, of a `code` test."""
    exact: bool = False
    """The returned value must equal the accepted one as `==` has it, for a call that was an assertion."""


@dataclass(frozen=True)
class Truth:
    """The tests of one task. Example: `read_truth('{"inputs": ["1 2"], "outputs": ["3"], "testtype": "stdin"}')`"""

    kind: Kind
    tests: tuple[Test, ...]
    seconds: float = DEFAULT_SECONDS
    """The time limit of one test."""
    context: str = ""
    """Code that stands before the program."""


@functools.lru_cache(maxsize=4)  # the responses of a group come one after another, and large tests take long to read
def read_truth(ground_truth: str) -> Truth:
    """The tests that a ground truth gives. It runs nothing.

    Three forms of JSON are read. The project's own has `inputs`, `outputs` and `testtype`, and `fn_name`,
    `time_limit` in seconds and `context` where they apply; null is as good as missing. Without `testtype` it is
    the form of APPS and TACO, where a function is called if there is a `fn_name`, and a program run otherwise. A
    list of objects with `input`, `output` and `testtype` is LiveCodeBench's, with the function's name in the
    `metadata` of a test as `func_name`.

    Raises:
        Malformed: it is none of these, or its parts do not fit together.
    """
    value = _json(ground_truth)
    if isinstance(value, list):
        value = _from_list(value)
    if not isinstance(value, dict):
        raise Malformed(f"the tests must be a JSON object or a list of objects; got {_kind(value)}")
    function = value.get("fn_name") or ""
    kind = value.get("testtype") or ("functional" if function else "stdin")
    if kind not in KINDS:
        raise Malformed(f"testtype must be one of {', '.join(KINDS)}; got {_shown(kind)}")
    _check_function(kind, function)
    context = value.get("context") or ""
    if not isinstance(context, str):
        raise Malformed(f"context must be text; got {_shown(context)}")
    _check_text("context", context)
    if kind == "functional":
        context = context or FUNCTION_CONTEXT
    inputs, outputs = _pairs(value, kind)
    tests = tuple(_TESTS[kind](given, wanted, function) for given, wanted in zip(inputs, outputs, strict=True))
    return Truth(cast(Kind, kind), tests, _seconds(value.get("time_limit")), context)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def _kind(value: object) -> str:
    """What a value is, for what may hold an answer: a verdict of unknown carries the sentence, too."""
    size = f" of length {len(value)}" if isinstance(value, str | list | dict) else ""
    return f"{type(value).__name__}{size}"


def _json(text: str) -> Any:
    try:
        return read_value(text)
    except (TypeError, ValueError) as error:
        raise Malformed(f"the tests are not strict JSON: {error}; got {_kind(text)}") from None


def _check_text(what: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Malformed(f"{what} holds a lone surrogate, which no program can read or print") from None


def _check_function(kind: str, function: object) -> None:
    if not isinstance(function, str) or (function and not function.isidentifier()):
        raise Malformed(f"fn_name must be the name of a function; got {_shown(function)}")
    if kind == "functional" and not function:
        raise Malformed("fn_name is missing: testtype functional needs the name of the function to call")


def _from_list(cases: list[Any]) -> dict[str, Any]:
    """The object form of LiveCodeBench's list of test cases."""
    for case in cases:
        if not isinstance(case, dict) or not {"input", "output"} <= case.keys():
            raise Malformed(f"every test case must be an object with input and output; got {_kind(case)}")
    kinds = {str(case.get("testtype")) for case in cases}
    names = {str(name) for case in cases if (name := _listed_name(case))}
    if len(kinds) > 1 or len(names) > 1:
        raise Malformed(
            f"all test cases must have one testtype and one function; got {sorted(kinds)} and {sorted(names)}"
        )
    return {
        "inputs": [case["input"] for case in cases],
        "outputs": [case["output"] for case in cases],
        "testtype": cases[0].get("testtype") if cases else None,
        "fn_name": next(iter(names), None),
    }


def _listed_name(case: dict[str, Any]) -> object:
    metadata = case.get("metadata")
    if isinstance(metadata, str):
        metadata = _json(metadata)
    return case.get("fn_name") or (metadata.get("func_name") if isinstance(metadata, dict) else None)


def _pairs(value: dict[str, Any], kind: str) -> tuple[list[Any], list[Any]]:
    inputs, outputs = value.get("inputs"), value.get("outputs")
    if not isinstance(inputs, list) or not inputs:
        raise Malformed(f"inputs must be a list of at least one test; got {_shown(inputs)}")
    if kind == "code" and not outputs:  # assertions hold what they expect
        return inputs, [None] * len(inputs)
    if not isinstance(outputs, list):
        raise Malformed(f"outputs must be a list; got {_kind(outputs)}")
    if len(inputs) != len(outputs):
        raise Malformed(f"there must be as many outputs as inputs; got {len(inputs)} inputs, {len(outputs)} outputs")
    return inputs, outputs


def _seconds(limit: object) -> float:
    if limit is None:
        return DEFAULT_SECONDS
    if isinstance(limit, bool) or not isinstance(limit, int | float) or not (0 < limit < math.inf):
        raise Malformed(f"time_limit must be a positive number of seconds, or null; got {_shown(limit)}")
    if limit > LONGEST_SECONDS:
        raise Malformed(
            f"time_limit must be in seconds, at most {LONGEST_SECONDS}; got {_shown(limit)}, perhaps milliseconds?"
        )
    return float(limit)


def _text(what: str, value: object) -> str:
    """A text; APPS and TACO also write one as the list of its lines."""
    if isinstance(value, list) and all(isinstance(line, str) for line in value):
        value = "\n".join(value)
    if not isinstance(value, str):
        raise Malformed(f"{what} of a program must be text, or a list of lines; got {_kind(value)}")
    _check_text(what, value)
    return value


def _stdin_test(given: object, wanted: object, function: str) -> Test:
    return Test(stdin=_text("an input", given), output=_text("an output", wanted))


def _functional_test(given: object, wanted: object, function: str) -> Test:
    """A call. Its input is a text of JSON values, one per argument and usually per line; a list of arguments; or an
    object of arguments by name, as it is or as text. Its output is a text of one JSON value, except beside a list
    of arguments: there it is the value itself, or that value in a list, as APPS writes it."""
    if isinstance(given, list):
        wrapped = tuple(wanted) if isinstance(wanted, list) and len(wanted) == 1 else ()
        return Test(arguments=tuple(given), accepted=(wanted, *wrapped), function=function)
    values = _values(given) if isinstance(given, str) else [given]
    expected = _json(wanted) if isinstance(wanted, str) else wanted
    if len(values) == 1 and isinstance(values[0], dict) and values[0] and all(map(str.isidentifier, values[0])):
        return Test(keywords=values[0], accepted=(expected,), function=function)
    if not isinstance(given, str):
        raise Malformed(f"an input of a function must be text, a list or an object with names; got {_shown(given)}")
    return Test(arguments=tuple(values), accepted=(expected,), function=function)


def _values(text: str) -> list[Any]:
    """The JSON values in a text, with white space between them."""
    decoder = json.JSONDecoder()
    values = []
    start = _after_space(text, 0)
    while start < len(text):
        try:
            end = decoder.raw_decode(text, start)[1]
        except (ValueError, RecursionError) as error:
            raise Malformed(
                f"an input of a function must be JSON values, one per argument: {error}; got {_shown(text)}"
            ) from None
        values.append(_json(text[start:end]))
        start = _after_space(text, end)
    return values


def _after_space(text: str, start: int) -> int:
    found = re.compile(r"\s*").match(text, start)
    return found.end() if found else start


def _code_test(given: object, wanted: object, function: str) -> Test:
    if not isinstance(given, str):
        raise Malformed(f"the assertions of a test must be Python code as text; got {_kind(given)}")
    _check_text("a test", given)
    try:
        tree = ast.parse(given)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise Malformed(f"the assertions of a test are no Python code: {error}; got {_kind(given)}") from None
    code = _with_check_called(given, tree, function)
    names = wanted_names(tree, function)
    if not names:
        raise Malformed(f"a test must name a function of the program, in its code or as fn_name; got {_kind(given)}")
    if not any(isinstance(node, ast.Assert | ast.Raise | ast.Call) for node in ast.walk(tree)):
        raise Malformed(f"a test must assert something; got {_kind(given)}")
    plain = comparisons(tree, names) if code == given else None
    return Test(names=names, assertions=code, comparisons=plain, function=function)


def _with_check_called(code: str, tree: ast.Module, function: str) -> str:
    """The code, with a call of its `check` behind it where it only defines one: else no program could fail it."""
    defines = any(isinstance(node, ast.FunctionDef) and node.name == "check" for node in tree.body)
    used = any(isinstance(node, ast.Name) and node.id == "check" for node in ast.walk(tree))
    if not defines or used:
        return code
    if not function:
        raise Malformed("a test defines `check` but never calls it, and fn_name does not say on which function")
    return f"{code}\n\ncheck({function})\n"


_TESTS = {"stdin": _stdin_test, "functional": _functional_test, "code": _code_test}
