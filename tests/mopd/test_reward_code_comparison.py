"""What came out of a program against what was expected."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import example, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from mopd.rewards.comparison import read_value, same_output, same_value


@pytest.mark.parametrize(
    ("actual", "expected", "same"),
    [
        ("1\n2", "1\n2\n", True),
        ("1\n2\n\n  \n", "1\n2", True),
        ("1 \t\r\n2\r\n", "1\n2", True),
        ("1\r2", "1\n2", True),
        ("", "", True),
        ("\n \n", "", True),
        ("-", "-", True),
        ("é", "é", True),
        ("1\n2", "1 2", False),
        ("1 2", "1\n2", False),
        ("1  2", "1 2", False),
        (" 1", "1", False),
        ("\n1", "1", False),
        ("1\n\n2", "1\n2", False),
        ("YES", "Yes", False),
        ("2.0", "2", False),
        ("", "-", False),
        ("1\x00", "1", False),
        ("\x1b[2K1", "1", False),
        ("12\r1", "1", False),
        ("１", "1", False),
    ],
)
def test_printed_lines(actual: str, expected: str, same: bool) -> None:
    assert same_output(actual.encode(), expected) is same


def test_bytes_that_are_no_text_equal_nothing() -> None:
    assert not same_output(b"1\xff", "1\ufffd")
    assert not same_output(b"\xed\xb2\x80", "")
    assert same_output("\ufffd".encode(), "\ufffd")


@pytest.mark.parametrize(
    ("actual", "expected", "same"),
    [
        ("0.3333333", "0.33333333", True),
        ("1.0000001 2", "1 2", True),
        ("1e3", "1000.0", True),
        ("-0.0", "0.0", True),
        ("2.0", "2", True),
        ("1000000.4", "1000000.5", True),
        (".5", "0.5", True),
        ("0.34", "0.33333333", False),
        ("1000000007", "1000000006", False),
        ("1000000007.0", "1000000006", False),
        ("+5", "5", False),
        ("nan", "nan", True),  # the very same text
        ("nan", "1.0", False),
        ("NaN", "nan", False),
        ("inf", "1.0", False),
        ("1e309", "1.0", False),
        ("1e309", "1e310", False),
        ("1e99999", "1e9999", False),
        ("1_000.0", "1000.0", False),
        ("0x10", "16.0", False),
        ("١.0", "1.0", False),
        ("1.0\n2.0", "1.0 2.0", False),
        ("1.0 2.0", "1.0", False),
        ("0." + "3" * 100, "0.33333333", False),
        ("word", "1.0", False),
    ],
)
def test_printed_numbers_with_a_tolerance(actual: str, expected: str, same: bool) -> None:
    assert same_output(actual.encode(), expected, 1e-6) is same


@pytest.mark.parametrize(
    ("actual", "expected", "same"),
    [
        ("2", "2.0", True),
        ("2.0", "2", True),
        ("0.30000000000000004", "0.3", True),
        ("[1, [2, null]]", "[1, [2, null]]", True),
        ('{"a": 1, "b": 2}', '{"b": 2, "a": 1}', True),
        ("true", "true", True),
        ("1", "true", False),
        ("true", "1", False),
        ("0", "false", False),
        ("[]", "{}", False),
        ("null", "false", False),
        ("null", "[]", False),
        ('"1"', "1", False),
        ("[1]", "[1, 2]", False),
        ('{"a": 1}', '{"a": 1, "b": 2}', False),
        ("0.3001", "0.3", False),
        ("1000000006.0", "1000000007", False),
        ("1" + "0" * 400, "1.5", False),
        ("9007199254740993", "9007199254740992", False),
    ],
)
def test_returned_values(actual: str, expected: str, same: bool) -> None:
    assert same_value(read_value(actual), read_value(expected)) is same


def test_a_tolerance_for_returned_floats() -> None:
    assert same_value([1.001], [1.0], 0.01)
    assert not same_value([1.001], [1.0])
    assert not same_value([2], [1], 10.0)
    assert not same_value(True, 1.0, 10.0)


@pytest.mark.parametrize(
    "text",
    [
        *["", "x", "[1", "1 2", '"\n"', "NaN", "[Infinity]", "-Infinity", "1e999", '{"a": 1, "a": 2}'],
        *["[" * 100_000, "[" * 100_000 + "]" * 100_000, "9" * 100_000],
    ],
)
def test_a_value_must_be_strict_json(text: str) -> None:
    with pytest.raises(ValueError):
        read_value(text)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@examples(deadline=None)
@given(values, values)
def test_values_are_the_same_as_themselves_and_in_either_order(value: object, other: object) -> None:
    back = read_value(json.dumps(value))
    assert same_value(back, value)
    if same_value(value, other, 1e-3) and "." not in json.dumps([value, other]):
        assert same_value(other, value, 1e-3)


@examples(deadline=None)
@given(st.binary(), st.text(), st.sampled_from([None, 1e-6]))
@example(b"", "\r\n0", None)
def test_any_output_gets_an_answer(actual: bytes, expected: str, tolerance: float | None) -> None:
    assert same_output(actual, expected, tolerance) in (True, False)
    printable = expected.encode("utf-8", "replace")
    assert same_output(printable, printable.decode(), tolerance)
    windows = printable.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    assert same_output(windows + b" \n\n", printable.decode(), tolerance)


@pytest.mark.parametrize(
    "unit", ["9", "9 ", "9.", "1e9 ", "\n", " ", "\r\n", "\u0301", "-", "1" * 63 + " ", "[", '{"a":', "\x00"]
)
def test_hostile_output_takes_linear_time(unit: str) -> None:
    hostile = unit * (1_000_000 // len(unit))
    start = time.process_time()
    same_output(hostile.encode(), hostile[::-1], 1e-6)
    same_output(hostile.encode(), "1.5", 1e-6)
    assert time.process_time() - start < 10.0
    with pytest.raises(ValueError):
        read_value(hostile)


def test_a_deep_value_is_compared_without_deep_calls() -> None:
    deep: object = 1
    for _ in range(100_000):
        deep = [deep]
    assert same_value(deep, deep)
    assert not same_value(deep, [])
