"""The verifier of tool use: the calls of a response, in order, against those of the ground truth.

A response announces each call with a line `Action: name`, directly followed by `Action Input: {...}`. A ground truth
is a JSON list of `{"Action": name, "Action_Input": text}` where the text is a JSON object again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from mopd.rewards.sandbox.values import STRICT
from mopd.types import Outcome

NO_ACTION = "No tool was called. Write a line that begins with 'Action:' and names one tool."
NO_INPUT = "An Action must be directly followed by a line that begins with 'Action Input:', and the other way round."
NO_NAME = "An Action names no tool. Write the name of one tool after 'Action:', on the same line."
NOT_JSON = "An Action Input is not one JSON object with distinct keys and finite numbers, and nothing after it."
TOO_MUCH = "There are too many calls, or an Action Input is too long or too deeply nested."

LONGEST_INPUT = 1 << 16
"""Characters of one input."""
DEEPEST = 64
"""Objects and lists inside each other."""
MOST_CALLS = 64

LABEL = re.compile(r"^[ \t]{0,8}(Action|Action Input)[ \t]{0,8}:", re.MULTILINE)
INPUT = re.compile(r"\s*^[ \t]{0,8}Action Input[ \t]{0,8}:[ \t]*(?:```(?:json)?[ \t]*)?", re.MULTILINE)
AFTER = re.compile(r"[ \t]*(?:\r?\n?```)?[ \t]*\r?(?=\n|\Z)")
EMPTY = re.compile(r"[ \t]*\r?(?:\n|\Z)")
OPTIONAL = "[Optional]"
"""What some names in the published rows begin with. It is no part of the name, and the call is wanted all the same."""

Call = tuple[str, dict[str, Any]]


class Malformed(ValueError):
    """Calls that cannot be read; the text says which form is wanted and quotes nothing."""


def _within(value: Any, depth: int) -> bool:
    if not isinstance(value, dict | list):
        return True
    members = value.values() if isinstance(value, dict) else value
    return depth > 0 and all(_within(member, depth - 1) for member in members)


def read_input(text: str, start: int = 0) -> tuple[dict[str, Any], int]:
    """The JSON object that begins at `start`, and where it ends.

    Raises:
        Malformed: there is none, keys repeat, numbers are not finite, or it is too long or too deep.
    """
    try:
        value, end = STRICT.raw_decode(text, start)
    except RecursionError:
        raise Malformed(TOO_MUCH) from None
    except ValueError:
        raise Malformed(NOT_JSON) from None
    if not isinstance(value, dict):
        raise Malformed(NOT_JSON)
    if end - start > LONGEST_INPUT or not _within(value, DEEPEST):
        raise Malformed(TOO_MUCH)
    return value, end


def read_truth(ground_truth: str) -> list[Call]:
    """The calls of a ground truth, in order; a missing or empty input stands for no arguments.

    Raises:
        ValueError: it is not a non-empty list of calls, or an input is not a JSON object.
    """
    wanted = 'a JSON list of {"Action": "name", "Action_Input": "{...}"}'
    try:
        rows = json.loads(ground_truth)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"the ground truth of tool use must be {wanted}; got {str(ground_truth)[:200]!r}") from error
    if not isinstance(rows, list) or not 0 < len(rows) <= MOST_CALLS:
        raise ValueError(f"the ground truth of tool use must be {wanted}, 1 to {MOST_CALLS} calls")
    return [_true_call(number, row, wanted) for number, row in enumerate(rows, 1)]


def _true_call(number: int, row: Any, wanted: str) -> Call:
    name = row.get("Action") if isinstance(row, dict) else None
    given = row.get("Action_Input", "") if isinstance(row, dict) else None
    if not isinstance(name, str) or not isinstance(given, str) or not _name(name) or "\n" in name:
        raise ValueError(f"call {number} of the ground truth must be as in {wanted}; got {str(row)[:200]!r}")
    if not given.strip():
        return _name(name), {}
    text = given.strip()
    try:
        arguments, end = read_input(text)
    except Malformed as error:
        raise ValueError(f"call {number} of the ground truth, {text[:200]!r}: {error}") from None
    if end != len(text):
        raise ValueError(f"call {number} of the ground truth has {text[end:][:200]!r} after its Action_Input")
    return _name(name), arguments


def _name(text: str) -> str:
    return text.strip().removeprefix(OPTIONAL).strip()


def read_calls(response: str) -> list[Call]:
    """The calls that a response makes, in order. An empty `Action Input:` line stands for no arguments.

    Takes linear time whatever the response is.

    Raises:
        Malformed: no call, or one that cannot be read.
    """
    calls: list[Call] = []
    position = 0
    while label := LABEL.search(response, position):
        if len(calls) == MOST_CALLS:
            raise Malformed(TOO_MUCH)
        newline = response.find("\n", label.end())
        line_end = len(response) if newline < 0 else newline
        announced = INPUT.match(response, line_end)
        if label[1] != "Action" or announced is None:
            raise Malformed(NO_INPUT)
        name = _name(response[label.end() : line_end])
        if not name:
            raise Malformed(NO_NAME)
        arguments, position = _arguments(response, announced.end())
        calls.append((name, arguments))
    if not calls:
        raise Malformed(NO_ACTION)
    return calls


def _arguments(response: str, start: int) -> tuple[dict[str, Any], int]:
    # The object may begin on the next line, as after the mark of a code block.
    begin = re.compile(r"\s*").match(response, start)
    first = start if begin is None else begin.end()
    empty = EMPTY.match(response, start)
    if empty is not None and response[first : first + 1] != "{":
        return {}, start
    value, end = read_input(response, first)
    after = AFTER.match(response, end)
    if after is None:
        raise Malformed(NOT_JSON)
    return value, after.end()


def equal(left: Any, right: Any) -> bool:
    """Whether two JSON values are the same. JSON has one kind of number, so 1 is 1.0; but true is not 1."""
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(equal(value, right[key]) for key, value in left.items())
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(equal, left, right))
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, int | float) and isinstance(right, int | float):
        return left == right
    return type(left) is type(right) and bool(left == right)


def check(ground_truth: str) -> None:
    """Refuses a ground truth that no response could match.

    Raises:
        ValueError: see `read_truth`.
    """
    read_truth(ground_truth)


def verify(response: str, ground_truth: str, extra_info: Mapping[str, Any] | None = None) -> Outcome:
    """Right iff `response` makes exactly the calls of `ground_truth`, in this order, each with equal arguments.

    The feedback says what cannot be read in the response, never which calls were expected.

    Raises:
        ValueError: the ground truth cannot be read.
    """
    wanted = read_truth(ground_truth)
    try:
        calls = read_calls(response)
    except Malformed as error:
        return Outcome.of(False, str(error))
    same = len(calls) == len(wanted) and all(
        name == true_name and equal(arguments, true_arguments)
        for (name, arguments), (true_name, true_arguments) in zip(calls, wanted, strict=True)
    )
    return Outcome.of(same)


def _plain(value: Any) -> Any:
    """The value with whole numbers as integers, so that what is equal is written alike."""
    if isinstance(value, dict):
        return {key: _plain(member) for key, member in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(member) for member in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def read_answer(response: str) -> str | None:
    """The calls of a response as one line of JSON with sorted keys, for counting; None where they cannot be read."""
    try:
        return json.dumps(_plain(read_calls(response)), sort_keys=True, separators=(",", ":"))
    except Malformed:
        return None
