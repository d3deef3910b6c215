"""The chain verifier: the form of the whole response and its last result decide, and nothing else."""

from __future__ import annotations

import json
import random
import time

import pytest

from mopd.rewards.chain import verify

TRUTH = json.dumps({"steps": 3, "value": 8})
RIGHT = "7 + 5 = 2 ; 2 * 3 = 6 ; 6 - 8 = 8"


def test_the_right_chain_is_right_without_feedback() -> None:
    outcome = verify(RIGHT, TRUTH)
    assert (outcome.reward, outcome.success, outcome.status, outcome.feedback) == (1.0, True, "right", "")


def test_white_space_around_the_response_is_ignored() -> None:
    assert verify(f"\n  {RIGHT} \t\n", TRUTH).success


def test_mistakes_that_cancel_each_other_are_right() -> None:
    assert verify("7 + 5 = 3 ; 3 * 3 = 0 ; 0 - 8 = 8", TRUTH).success


@pytest.mark.parametrize("value", [digit for digit in range(10) if digit != 8])
def test_any_other_last_result_is_wrong_and_says_nothing(value: int) -> None:
    outcome = verify(f"{RIGHT[:-1]}{value}", TRUTH)
    assert (outcome.reward, outcome.success, outcome.status, outcome.feedback) == (0.0, False, "wrong", "")


@pytest.mark.parametrize(
    "response",
    [
        "",
        " ",
        "8",
        "7 + 5 = 2 ; 6 - 8 = 8",
        f"{RIGHT} ; 8 + 0 = 8",
        f"{RIGHT} ;",
        f"The answer: {RIGHT}",
        f"{RIGHT}.",
        f"{RIGHT}\n{RIGHT}",
        RIGHT.replace(" ; ", ";"),
        RIGHT.replace(" ; ", " ;  "),
        RIGHT.replace(" = 8", " = 18"),
        RIGHT.replace(" = 8", " = -8"),
        RIGHT.replace("8", "٨"),
        RIGHT.replace("8", "８"),
        RIGHT.replace("*", "×"),
        RIGHT.replace("= 8", "= 8\0"),
        RIGHT + "\ud800",
    ],
)
def test_a_malformed_chain_is_wrong_and_is_told_the_form_alone(response: str) -> None:
    outcome = verify(response, TRUTH)
    assert outcome.status == "wrong"
    assert outcome.feedback
    # The same words whatever is asked: the feedback cannot carry the result.
    assert outcome.feedback == verify("", json.dumps({"steps": 3, "value": 1})).feedback


def test_every_text_gets_a_verdict() -> None:
    rng = random.Random(0)
    alphabet = "0123456789 +-*=;\n\t\0é٣😀\ud800"
    for _ in range(2000):
        text = "".join(rng.choice(alphabet) for _ in range(rng.randrange(60)))
        assert verify(text, TRUTH).status in ("right", "wrong")


def test_long_hostile_text_takes_little_time() -> None:
    begun = time.perf_counter()
    for text in ("7 + 5 = 2 ; " * 200_000, " ; " * 1_000_000, "1" * 2_000_000, " " * 2_000_000 + "x"):
        assert not verify(text, TRUTH).success
    assert time.perf_counter() - begun < 2


@pytest.mark.parametrize(
    "truth",
    [
        "",
        "8",
        "null",
        "[3, 8]",
        "{}",
        '{"steps": 3}',
        '{"steps": 0, "value": 8}',
        '{"steps": 3, "value": 10}',
        '{"steps": 3, "value": -1}',
        '{"steps": true, "value": 8}',
        '{"steps": 3.0, "value": 8}',
        '{"steps": "3", "value": "8"}',
        "[" * 100_000,
    ],
)
def test_a_malformed_ground_truth_is_named(truth: str) -> None:
    with pytest.raises(ValueError, match="must be a JSON object") as error:
        verify(RIGHT, truth)
    assert repr(truth)[:50] in str(error.value)


def test_the_number_of_steps_is_the_one_asked_for() -> None:
    assert verify("7 + 1 = 8", json.dumps({"steps": 1, "value": 8})).success
    assert not verify(RIGHT, json.dumps({"steps": 2, "value": 8})).success
