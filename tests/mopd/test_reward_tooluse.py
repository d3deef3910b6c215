"""Tool use: which calls are read, when two calls are the same, and what is refused as a ground truth."""

from __future__ import annotations

import json
import random
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from mopd.rewards import tooluse
from mopd.rewards.tooluse import check, read_answer, read_calls, verify
from mopd.types import Outcome
from tests.mopd.test_reward_choice_announced import real_rows
from tests.mopd.test_reward_math import hostile

RIGHT, WRONG = Outcome.of(True), Outcome.of(False)

Calls = list[tuple[str, dict[str, Any]]]
NESTED: Calls = [("user.set-profile", {"id": "u", "data": {"urls": ["a", {"b": "}"}], "n": 1}})]


def truth(calls: Calls) -> str:
    return json.dumps([{"Action": name, "Action_Input": json.dumps(arguments)} for name, arguments in calls])


def said(*calls: str) -> str:
    """A response with one call per text `name {...}`."""
    parts = (call.partition(" ") for call in calls)
    return "\n".join(f"Thought: I need this.\nAction: {name}\nAction Input: {text}" for name, _, text in parts)


def response_of(calls: Calls) -> str:
    return said(*(f"{name} {json.dumps(arguments)}" for name, arguments in calls))


# ------------------------------------------------------------------ what is read


def test_nested_objects_and_names_with_signs_are_read() -> None:
    assert read_calls(response_of(NESTED)) == NESTED
    assert verify(response_of(NESTED), truth(NESTED)) == RIGHT


@pytest.mark.parametrize(
    "response",
    [
        'Action: f\nAction Input: {"a": 1}',
        'Action:f\r\nAction Input:{"a":1}\r\n',
        '  Action : f \n\n  Action Input :\n{\n  "a": 1\n}\n',
        'Action: f\nAction Input: ```json\n{"a": 1}\n```\nObservation: done',
        'Thought: the Action: is clear\nAction: f\nAction Input: {"a": 1}   \nThought: Action Input: was given',
        'Action: [Optional]f\nAction Input: {"a": 1}',
    ],
)
def test_the_call_is_read_in_its_usual_spellings(response: str) -> None:
    assert read_calls(response) == [("f", {"a": 1})]


@pytest.mark.parametrize("response", ["Action: f\nAction Input:", "Action: f\nAction Input: {}", said("f ", "f {}")])
def test_an_empty_input_stands_for_no_arguments(response: str) -> None:
    assert {name for name, arguments in read_calls(response) if arguments == {}} == {"f"}
    assert verify("Action: f\nAction Input:\nThought: done", '[{"Action": "f", "Action_Input": ""}]') == RIGHT
    assert verify("Action: f\nAction Input:\n", '[{"Action": "f"}]') == RIGHT


DEEP = '{"a": ' + "[" * 64 + "]" * 64 + "}"
MALFORMED = [
    ("", tooluse.NO_ACTION),
    ("I would call f with 1.", tooluse.NO_ACTION),
    ("Thought: Action: f Action Input: {}", tooluse.NO_ACTION),
    ("Action: f", tooluse.NO_INPUT),
    ("Action: f\nThought: hm\nAction Input: {}", tooluse.NO_INPUT),
    ("Action Input: {}", tooluse.NO_INPUT),
    ("Action: f\nAction Input: {}\nAction Input: {}", tooluse.NO_INPUT),
    ("Action:\nAction Input: {}", tooluse.NO_NAME),
    ("Action: f\nAction Input: {garbage}", tooluse.NOT_JSON),
    ("Action: f\nAction Input: garbage", tooluse.NOT_JSON),
    ("Action: f\nAction Input: [1]", tooluse.NOT_JSON),
    ('Action: f\nAction Input: {"a": 1} or so', tooluse.NOT_JSON),
    ('Action: f\nAction Input: {"a": 1}{"b": 2}', tooluse.NOT_JSON),
    ('Action: f\nAction Input: {"a": 1, "a": 1}', tooluse.NOT_JSON),
    ('Action: f\nAction Input: {"a": {"b": 1, "b": 2}}', tooluse.NOT_JSON),
    ('Action: f\nAction Input: {"a": NaN}', tooluse.NOT_JSON),
    ('Action: f\nAction Input: {"a": -Infinity}', tooluse.NOT_JSON),
    ('Action: f\nAction Input: {"a": 1e999}', tooluse.NOT_JSON),
    ("Action: f\nAction Input: {'a': 1}", tooluse.NOT_JSON),
    ('Action: f\nAction Input: {"a": ' + "1" * 5000 + "}", tooluse.NOT_JSON),
    ("Action: f\nAction Input: " + DEEP, tooluse.TOO_MUCH),
    ('Action: f\nAction Input: {"a": ' + "[" * 100_000, tooluse.TOO_MUCH),
    ('Action: f\nAction Input: {"a": "' + "x" * 65_536 + '"}', tooluse.TOO_MUCH),
    (said(*["f {}"] * 65), tooluse.TOO_MUCH),
]


@pytest.mark.parametrize(("response", "feedback"), MALFORMED, ids=range(len(MALFORMED)))
def test_anything_else_is_wrong_and_told_the_form_alone(response: str, feedback: str) -> None:
    assert verify(response, truth([("f", {"a": 1})])) == Outcome.of(False, feedback)
    assert read_answer(response) is None


# ------------------------------------------------------------------ what is the same


def test_calls_are_compared_one_by_one_in_order() -> None:
    gold: Calls = [("f", {"a": 1}), ("g", {"b": 2}), ("f", {"a": 3})]
    assert verify(response_of(gold), truth(gold)) == RIGHT
    swapped: Calls = [("f", {"b": 2}), ("g", {"a": 1}), ("f", {"a": 3})]
    merged: Calls = [("f", {"a": 1, "b": 2}), ("g", {}), ("f", {"a": 3})]
    for other in (swapped, merged, gold[::-1], gold[:2], [*gold, gold[0]], [("F", {"a": 1}), *gold[1:]]):
        assert verify(response_of(other), truth(gold)) == WRONG


@pytest.mark.parametrize(
    ("given", "same"),
    [
        ('{"b": "x", "a": [1, 2]}', True),
        ('{"a": [1.0, 2e0], "b": "\\u0078"}', True),
        ('{"a": [true, 2], "b": "x"}', False),
        ('{"a": ["1", 2], "b": "x"}', False),
        ('{"a": [2, 1], "b": "x"}', False),
        ('{"a": [1, 2, 2], "b": "x"}', False),
        ('{"a": [1, 2], "b": "x "}', False),
        ('{"a": [1, 2], "b": null}', False),
        ('{"a": [1, 2]}', False),
        ('{"a": [1, 2], "b": "x", "c": null}', False),
        ('{"a": {"0": 1, "1": 2}, "b": "x"}', False),
    ],
)
def test_arguments_are_compared_by_value_and_kind(given: str, same: bool) -> None:
    gold = truth([("f", {"a": [1, 2], "b": "x"})])
    assert verify(f"Action: f\nAction Input: {given}", gold) == Outcome.of(same)


@pytest.mark.parametrize(("left", "right"), [(True, 1), (False, 0), (None, 0), ("", None), ([], {}), ("1", 1)])
def test_values_of_different_kinds_are_never_equal(left: Any, right: Any) -> None:
    assert not tooluse.equal({"a": left}, {"a": right})
    assert not tooluse.equal([right], [left])
    assert tooluse.equal([left], [left])


def test_answers_are_counted_whatever_the_order_of_keys() -> None:
    assert read_answer('Action: f\nAction Input: {"b": 1, "a": 2}') == '[["f",{"a":2,"b":1}]]'
    assert read_answer('Action: f\nAction Input: {"a": 2.0, "b": 1}') == '[["f",{"a":2,"b":1}]]'


def test_a_prefix_of_the_published_rows_is_no_part_of_a_name() -> None:
    gold = truth([("f", {}), ("[Optional]g", {"a": {"b": 1}})])
    assert verify(said("f {}", 'g {"a": {"b": 1}}'), gold) == RIGHT
    assert verify(said("f {}"), gold) == WRONG


# ------------------------------------------------------------------ ground truths


@pytest.mark.parametrize(
    "gold",
    [
        "",
        "null",
        "{}",
        "[]",
        "[1]",
        '[{"Action": "f", "Action_Input": {"a": 1}}]',
        '[{"Action": "", "Action_Input": "{}"}]',
        '[{"Action": "f\\ng", "Action_Input": "{}"}]',
        '[{"Action_Input": "{}"}]',
        '[{"Action": "f", "Action_Input": "{garbage}"}]',
        '[{"Action": "f", "Action_Input": "[1]"}]',
        '[{"Action": "f", "Action_Input": "{} {}"}]',
        '[{"Action": "f", "Action_Input": "{\\"a\\": NaN}"}]',
        '[{"Action": "f", "Action_Input": "{\\"a\\": 1, \\"a\\": 2}"}]',
        "[" * 100_000,
    ],
)
def test_a_ground_truth_that_no_response_could_match_is_refused(gold: str) -> None:
    with pytest.raises(ValueError, match="ground truth"):
        check(gold)
    with pytest.raises(ValueError, match="ground truth"):
        verify(said("f {}"), gold)


# ------------------------------------------------------------------ any text

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.from_regex(r"[A-Za-z][\w.-]{0,8}", fullmatch=True)
CALLS = st.lists(st.tuples(NAMES, st.dictionaries(st.text(max_size=5), JSON, max_size=3)), min_size=1, max_size=4)


@examples(deadline=None, max_examples=60)
@given(CALLS, CALLS)
def test_a_call_is_right_for_itself_alone(calls: Calls, other: Calls) -> None:
    assert verify(response_of(calls), truth(calls)) == RIGHT
    assert verify(response_of(other), truth(calls)) == Outcome.of(
        read_answer(response_of(other)) == read_answer(response_of(calls))
    )


@examples(deadline=None)
@given(st.text())
def test_every_text_gets_a_verdict_without_the_answer(text: str) -> None:
    gold = truth([("secretTool", {"key": "secretValue"})])
    for response in (text, f"Action: {text}\nAction Input: {text}", f"Action: f\nAction Input: {{{text}}}"):
        outcome = verify(response, gold)
        assert outcome.reward == 0.0
        assert "secret" not in outcome.feedback


def test_ten_thousand_random_texts_break_nothing() -> None:
    generator = random.Random(4)
    gold = truth(NESTED)
    for _ in range(10_000):
        text = hostile(generator)
        assert verify(text, gold).reward == 0.0
        assert verify(f"Action: {text}\nAction Input: {{{text}}}", gold).reward == 0.0


@pytest.mark.parametrize(
    "unit",
    [
        "Action:",
        "\nAction: f",
        "\nAction Input: {",
        "\nAction: f\nAction Input: {}",
        "\n",
        " ",
        "\t",
        "```",
        "{",
        "\nAction: ",
    ],
)
def test_hostile_input_takes_linear_time(unit: str) -> None:
    text = unit * (1_000_000 // len(unit))
    start = time.process_time()
    for response in (text, f"Action: f\nAction Input: {text}", f'Action: f\nAction Input: {{"a": "{text}'):
        assert verify(response, truth(NESTED)).success is False
    assert time.process_time() - start < 20.0


# ------------------------------------------------------------------ published rows


def test_published_rows_are_right_with_their_own_calls_and_wrong_with_others() -> None:
    golds = [row["answer"] for row in real_rows("tooluse/sample.json")]
    assert len(golds) == 34
    for gold in golds:
        check(gold)
    calls = [json.loads(gold) for gold in golds]
    responses = [said(*(f"{call['Action']} {call['Action_Input']}" for call in row)) for row in calls]
    for response, own in zip(responses, golds, strict=True):
        verdicts = [verify(response, gold) for gold in golds]
        assert verdicts == [Outcome.of(gold == own) for gold in golds]
