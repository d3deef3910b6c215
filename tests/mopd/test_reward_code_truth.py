"""The ground truth of programming tasks: the forms that are read, and the sentences for those that are not."""

from __future__ import annotations

import ast
import json

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from mopd.rewards.assertions import Comparison, comparisons, wanted_names
from mopd.rewards.code import check
from mopd.rewards.code_truth import DEFAULT_SECONDS, FUNCTION_CONTEXT, Malformed, Test, Truth, read_truth


def read(**parts: object) -> Truth:
    return read_truth(json.dumps(parts))


def one(**parts: object) -> Test:
    (test,) = read(**parts).tests
    return test


def test_the_projects_own_form() -> None:
    truth = read(inputs=["1 2", "3 4"], outputs=["3", "7"], testtype="stdin", fn_name=None, time_limit=None)
    assert truth == Truth("stdin", (Test(stdin="1 2", output="3"), Test(stdin="3 4", output="7")))
    assert truth.seconds == DEFAULT_SECONDS
    assert read(inputs=[""], outputs=[""], testtype="stdin", time_limit=6).seconds == 6.0
    assert read(inputs=[""], outputs=[""], testtype="stdin", context="import math").context == "import math"


@pytest.mark.parametrize(
    ("given_text", "arguments"),
    [
        ("3", (3,)),
        ("[1, 2]\n5", ([1, 2], 5)),
        ("1 2", (1, 2)),
        ('"a b"\n"c\\nd"', ("a b", "c\nd")),
        ("[1,\n 2]\ntrue\nnull", ([1, 2], True, None)),
        ("[[1, 2], [3]]", ([[1, 2], [3]],)),
        ('{"a b": 1}', ({"a b": 1},)),
        ('{"a": 1}\n{"b": 2}', ({"a": 1}, {"b": 2})),
        ("", ()),
        (" \n", ()),
    ],
)
def test_a_text_of_arguments_has_one_json_value_for_each(given_text: str, arguments: tuple[object, ...]) -> None:
    test = one(inputs=[given_text], outputs=["[1, 2]"], testtype="functional", fn_name="f")
    assert test == Test(arguments=arguments, accepted=([1, 2],), function="f")


def test_an_object_of_names_gives_arguments_by_name() -> None:
    wanted = Test(keywords={"a": 1, "b": [2]}, accepted=("x",), function="f")
    for given_value in ({"a": 1, "b": [2]}, '{"a": 1, "b": [2]}'):
        assert one(inputs=[given_value], outputs=['"x"'], testtype="functional", fn_name="f") == wanted


def test_functions_get_the_usual_imports_unless_the_row_brings_its_own() -> None:
    row = {"inputs": ["1"], "outputs": ["1"], "testtype": "functional", "fn_name": "f"}
    assert read(**row).context == FUNCTION_CONTEXT
    assert read(**row, context="import re").context == "import re"
    names: dict[str, object] = {}
    exec(FUNCTION_CONTEXT, names)
    assert {"List", "Optional", "defaultdict", "heappush", "inf", "lru_cache"} <= names.keys()
    assert names["pow"] is pow
    assert names["bisect"].bisect_left is names["bisect_left"]  # type: ignore[attr-defined]


def test_the_form_of_apps_and_taco() -> None:
    assert read(inputs=["1\n"], outputs=["2\n"]).kind == "stdin"
    assert one(inputs=[["1", "2"]], outputs=[["3", "4"]]) == Test(stdin="1\n2", output="3\n4")
    test = one(inputs=[[[1, 2], "a"]], outputs=[[5]], fn_name="f")
    assert test == Test(arguments=([1, 2], "a"), accepted=([5], 5), function="f")
    # Beside a list of arguments an output is a value and no JSON text.
    assert one(inputs=[["a"]], outputs=["5"], fn_name="f").accepted == ("5",)
    assert one(inputs=[["a"]], outputs=[[5, 6]], fn_name="f").accepted == ([5, 6],)


def test_the_form_of_livecodebench() -> None:
    case = {"input": "1 2", "output": "3", "testtype": "stdin"}
    assert read_truth(json.dumps([case, case])) == read(inputs=["1 2"] * 2, outputs=["3"] * 2, testtype="stdin")
    for metadata in ({"func_name": "f"}, '{"func_name": "f"}'):
        case = {"input": "[1]\n2", "output": "3", "testtype": "functional", "metadata": metadata}
        expected = read(inputs=["[1]\n2"], outputs=["3"], testtype="functional", fn_name="f")
        assert read_truth(json.dumps([case])) == expected


CHECK = "def check(candidate):\n    assert candidate(1) == 2\n"


def test_assertions() -> None:
    truth = read(inputs=["assert f(1) == 2"], outputs=[""], testtype="code")
    comparison = Comparison("f", (1,), {}, 2)
    test = Test(assertions="assert f(1) == 2", names=frozenset({"f"}), comparisons=(comparison,))
    assert truth == Truth("code", (test,))
    for outputs in (None, [], ["x"]):
        assert read(inputs=["assert f(1) == 2"], outputs=outputs, testtype="code").tests == truth.tests
    called = one(inputs=[CHECK + "check(f)"], testtype="code", fn_name="f")
    assert called.assertions == CHECK + "check(f)"


def test_a_check_that_nobody_calls_is_called() -> None:
    """Else every program would pass."""
    assert one(inputs=[CHECK], testtype="code", fn_name="f").assertions.endswith("\n\ncheck(f)\n")
    with pytest.raises(Malformed, match="defines `check` but never calls it"):
        read(inputs=[CHECK], testtype="code")


STDIN = {"inputs": ["1"], "outputs": ["1"], "testtype": "stdin"}
CALL = {"inputs": ["1"], "outputs": ["1"], "testtype": "functional", "fn_name": "f"}


@pytest.mark.parametrize(
    ("truth", "sentence"),
    [
        ("", "not strict JSON"),
        ("{", "not strict JSON"),
        ('{"inputs": [NaN]}', "not strict JSON"),
        ('{"inputs": [], "inputs": [""]}', "repeated"),
        ("[" * 100_000, "nested too deep"),
        ("3", "JSON object or a list"),
        ('"text"', "JSON object or a list"),
        ("[]", "at least one test"),
        ("[3]", "object with input and output"),
        ('[{"input": "1"}]', "object with input and output"),
        ('[{"input": "1", "output": "1", "testtype": "x"}]', "stdin, functional, code"),
        ('[{"input": "", "output": "", "testtype": "stdin"}, {"input": "", "output": ""}]', "one testtype"),
        ('[{"input": "1", "output": "1", "testtype": "functional"}]', "fn_name is missing"),
        ({}, "at least one test"),
        (STDIN | {"inputs": []}, "at least one test"),
        (STDIN | {"inputs": "1"}, "at least one test"),
        (STDIN | {"outputs": None}, "outputs must be a list"),
        (STDIN | {"outputs": "1"}, "outputs must be a list"),
        (STDIN | {"outputs": ["1", "2"]}, "1 inputs, 2 outputs"),
        (STDIN | {"testtype": "stdio"}, "stdin, functional, code; got 'stdio'"),
        (STDIN | {"testtype": 3}, "stdin, functional, code"),
        (STDIN | {"testtype": ["stdin"]}, "stdin, functional, code"),
        (STDIN | {"inputs": [1]}, "an input of a program must be text"),
        (STDIN | {"outputs": [None]}, "an output of a program must be text"),
        (STDIN | {"outputs": [["1", 2]]}, "an output of a program must be text"),
        (STDIN | {"inputs": ["\ud800"]}, "lone surrogate"),
        (STDIN | {"outputs": ["\ud800"]}, "lone surrogate"),
        (STDIN | {"time_limit": 0}, "positive number of seconds"),
        (STDIN | {"time_limit": -1}, "positive number of seconds"),
        (STDIN | {"time_limit": True}, "positive number of seconds"),
        (STDIN | {"time_limit": 2000}, "perhaps milliseconds"),
        (STDIN | {"time_limit": "2"}, "positive number of seconds"),
        (STDIN | {"context": 3}, "context must be text"),
        (STDIN | {"context": "\ud800"}, "lone surrogate"),
        (CALL | {"fn_name": None}, "fn_name is missing"),
        (CALL | {"fn_name": "f()"}, "name of a function"),
        (CALL | {"fn_name": 3}, "name of a function"),
        (CALL | {"inputs": ["x y"]}, "JSON values, one per argument"),
        (CALL | {"inputs": ["[1"]}, "JSON values, one per argument"),
        (CALL | {"inputs": ["NaN"]}, "not strict JSON"),
        (CALL | {"inputs": [3]}, "text, a list or an object"),
        (CALL | {"inputs": [{"a b": 3}]}, "text, a list or an object"),
        (CALL | {"outputs": ["x"]}, "not strict JSON"),
        (CALL | {"outputs": [""]}, "not strict JSON"),
        ({"testtype": "code", "inputs": [3]}, "Python code as text"),
        ({"testtype": "code", "inputs": ["assert f("]}, "no Python code"),
        ({"testtype": "code", "inputs": ["assert f(1)\x00"]}, "no Python code"),
        ({"testtype": "code", "inputs": ["(" * 10_000]}, "no Python code"),
        ({"testtype": "code", "inputs": [""]}, "must name a function"),
        ({"testtype": "code", "inputs": ["assert 1 == 1"]}, "must name a function"),
        ({"testtype": "code", "inputs": ["assert sum(1, 2) == 3"]}, "must name a function"),
        ({"testtype": "code", "inputs": ["x = f"]}, "must assert something"),
        ({"testtype": "code", "inputs": ["assert f(1)"], "outputs": ["", ""]}, "1 inputs, 2 outputs"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_reason(truth: object, sentence: str) -> None:
    text = truth if isinstance(truth, str) else json.dumps(truth)
    with pytest.raises(ValueError, match=sentence) as caught:
        check(text)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "truth",
    [
        "golden",
        '"golden"',
        '["golden"]',
        '[{"output": "golden"}]',
        STDIN | {"outputs": "golden"},
        STDIN | {"outputs": [{"golden": "golden"}]},
        STDIN | {"outputs": [["golden", 1]]},
        CALL | {"outputs": ["golden"]},
        {"testtype": "code", "inputs": ["assert f() == golden golden"]},
        {"testtype": "code", "inputs": ["assert 'golden' == 1"]},
        {"testtype": "code", "inputs": [["golden"]]},
    ],
)
def test_a_refusal_shows_no_answer(truth: object) -> None:
    with pytest.raises(ValueError) as caught:
        check(truth if isinstance(truth, str) else json.dumps(truth))
    assert "golden" not in str(caught.value)


keys = st.sampled_from(["inputs", "outputs", "testtype", "fn_name", "input", "output"])
json_values = st.recursive(
    st.none() | st.text() | st.integers() | st.sampled_from(["stdin", "functional", "code", "f(1)", "f"]),
    lambda inner: st.lists(inner) | st.dictionaries(keys, inner),
)


@examples(deadline=None)
@given(st.text() | json_values.map(json.dumps))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        truth = read_truth(text)
    except Malformed:
        return
    assert truth.tests


@pytest.mark.parametrize(
    ("code", "function", "names"),
    [
        ("assert f(1) == g(2)", "", {"f", "g"}),
        ("import math\nx = 1\nassert math.isclose(f(x), len([1]))", "", {"f"}),
        ("assert sum(1, 2) == 3", "sum", {"sum"}),
        ("for i, (a, b) in enumerate(zip([1], [2])):\n    assert f(a) == b", "", {"f"}),
        ("def check(candidate):\n    assert candidate(1)\ncheck(f)", "", {"f"}),
        ("from math import *\nassert f(1) == sqrt(1)", "f", {"f"}),
        ("import numpy.linalg as la\nassert la.norm(f(1)) == 1", "", {"f"}),
        ("try:\n    f(1)\nexcept ValueError as error:\n    print(error)", "", {"f"}),
        ("assert all(f(x) for x in [1])", "", {"f"}),
    ],
)
def test_what_assertions_want_from_a_program(code: str, function: str, names: set[str]) -> None:
    assert wanted_names(ast.parse(code), function) == names


def test_plain_comparisons_are_found() -> None:
    code = '"""Doc."""\nimport math\nassert f([1, {"a": None}], -2, x=True) == [1.5, "s"], "message"\nassert f() == -1'
    assert comparisons(ast.parse(code), frozenset("fg")) == (
        Comparison("f", ([1, {"a": None}], -2), {"x": True}, [1.5, "s"]),
        Comparison("f", (), {}, -1),
    )


@pytest.mark.parametrize(
    "code",
    [
        "assert f((1, 2)) == 3",
        "assert f(1) == (1, 2)",
        "assert f(1) == {1, 2}",
        "assert f({1: 2}) == 3",
        "assert f(1j) == 3",
        "assert f(b'') == 3",
        "assert f(1e999) == 3",
        "assert f(x) == 3",
        "assert f(*[1]) == 3",
        "assert f(**{'a': 1}) == 3",
        "assert f(1) != 3",
        "assert f(1) < 3",
        "assert f(1) == 3 == 3",
        "assert f(1)",
        "assert not f(1)",
        "assert f(1).x == 3",
        "assert len([]) == 0",
        "assert f(g(1)) == 3",
        "assert f(1) == 3\nx = 1",
        "assert f(1) == 3\nassert g(1) == 3",
        "assert f(1) == 3\nassert f(1) == 4",
        "import math",
        "f(1)",
    ],
)
def test_other_tests_are_left_as_they_are(code: str) -> None:
    assert comparisons(ast.parse(code), frozenset("fg")) is None
