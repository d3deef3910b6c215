"""What a program gave against what its test expects, compared outside the program's process.

Whatever comes from a program is hostile: everything here takes linear time, bounds what it turns into numbers,
and raises nothing but the ValueError that it documents.
"""

from __future__ import annotations

import math
import re
from typing import Any

from mopd.rewards.sandbox.values import STRICT

NUMBER = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]{1,4})?")
"""Numbers as programs print them; `nan`, `inf`, `1_000` and digits of other scripts are none."""
INTEGER = re.compile(r"[-+]?[0-9]+")
LONGEST_NUMBER = 64
"""Characters of a printed number that is compared with a tolerance; longer ones are compared as texts."""

RETURNED_RELATIVE, RETURNED_ABSOLUTE = 1e-9, 1e-12
"""How far a returned float may lie from the expected one where the settings name no tolerance: a sum in another
order still counts as equal."""


def same_output(actual: bytes, expected: str, tolerance: float | None = None) -> bool:
    """Whether a program printed what its test expects, line by line.

    Line ends are alike, blanks at the end of a line and blank lines at the end do not count; everything else
    does, so that `1 2` is not `1` and `2` on two lines. With a `tolerance` the tokens of a line may also be numbers
    that differ by no more than it; an expected integer is then met by an integer only if they are the same.
    Bytes that are no UTF-8 equal nothing.
    """
    # A byte that cannot be decoded becomes a lone surrogate, which no expected text holds.
    printed, wanted = _lines(actual.decode("utf-8", "surrogateescape")), _lines(expected)
    if printed == wanted or tolerance is None:
        return printed == wanted
    return len(printed) == len(wanted) and all(
        _same_line(line, other, tolerance) for line, other in zip(printed, wanted, strict=True)
    )


def _lines(text: str) -> list[str]:
    lines = [line.rstrip() for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _same_line(line: str, wanted: str, tolerance: float) -> bool:
    if line == wanted:
        return True
    tokens, others = line.split(), wanted.split()
    return len(tokens) == len(others) and all(map(_same_token, tokens, others, [tolerance] * len(tokens)))


def _same_token(token: str, wanted: str, tolerance: float) -> bool:
    if token == wanted:
        return True
    if max(len(token), len(wanted)) > LONGEST_NUMBER or not (NUMBER.fullmatch(token) and NUMBER.fullmatch(wanted)):
        return False
    if INTEGER.fullmatch(wanted):
        # A relative tolerance would let any large integer pass for its neighbours.
        return not INTEGER.fullmatch(token) and _close(float(token), float(wanted), 0.0, tolerance)
    return _close(float(token), float(wanted), tolerance, tolerance)


def _close(number: float, wanted: float, relative: float, absolute: float) -> bool:
    finite = math.isfinite(number) and math.isfinite(wanted)
    return finite and math.isclose(number, wanted, rel_tol=relative, abs_tol=absolute)


def read_value(text: str) -> Any:
    """The value of a strict JSON text.

    Raises:
        ValueError: it is no JSON, is nested too deep, repeats a key, or holds a number that is not finite or has
            thousands of digits.
    """
    try:
        return STRICT.decode(text)
    except (RecursionError, MemoryError):
        raise ValueError("it is nested too deep") from None


def same_value(actual: object, expected: object, tolerance: float | None = None) -> bool:
    """Whether two values read from JSON are the same; tuples have become lists on the way.

    Numbers are equal by value, so 2 is 2.0, but a truth value is no number. Where one of two numbers is a float
    they may differ by `tolerance`, relative or absolute, and by a rounding error where that is None; from an
    expected integer by the absolute one only.
    """
    pending = [(actual, expected)]
    # A stack of our own: the nesting of a hostile value must not become the nesting of our calls.
    while pending:
        value, wanted = pending.pop()
        if isinstance(value, dict) and isinstance(wanted, dict):
            if value.keys() != wanted.keys():
                return False
            pending.extend((value[key], wanted[key]) for key in wanted)
        elif isinstance(value, list) and isinstance(wanted, list):
            if len(value) != len(wanted):
                return False
            pending.extend(zip(value, wanted, strict=True))
        elif not _same_scalar(value, wanted, tolerance):
            return False
    return True


def _same_scalar(value: object, wanted: object, tolerance: float | None) -> bool:
    if isinstance(value, bool) or isinstance(wanted, bool):
        return value is wanted
    if not isinstance(value, int | float) or not isinstance(wanted, int | float):
        return type(value) is type(wanted) and value == wanted
    if value == wanted or (isinstance(value, int) and isinstance(wanted, int)):
        return value == wanted
    relative, absolute = (RETURNED_RELATIVE, RETURNED_ABSOLUTE) if tolerance is None else (tolerance, tolerance)
    if isinstance(wanted, int):  # as with printed numbers: no large integer passes for its neighbours
        relative = 0.0
    try:
        return _close(float(value), float(wanted), relative, absolute)
    except OverflowError:  # an integer beyond all floats
        return False
