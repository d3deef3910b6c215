"""Multiple choice: what is read as a choice, and what is not."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from mopd.rewards.choice import WANTED_FORM, verify
from mopd.types import Outcome

RIGHT, WRONG, MALFORMED = Outcome.of(True), Outcome.of(False), Outcome.of(False, WANTED_FORM)


@pytest.mark.parametrize("content", ["B", "\nB\n", "(B)", "B.", "B)", "b", "(b)", "\uff22", "\u249d"])
def test_the_letter_is_read_in_its_usual_spellings(content: str) -> None:
    response = f"<reasoning>\nA or C?\n</reasoning>\n<answer>{content}</answer>\n"
    assert verify(response, "B") == RIGHT
    assert verify(response, "A") == WRONG


@pytest.mark.parametrize(
    "response",
    [
        "",
        "B",
        "The answer is B. A nice day",
        "\\boxed{B}",
        "<answer>B",
        "<answer>B</answer> and again <answer>B",
        "B</answer>",
        "<answer></answer>",
        "<answer>A, B</answer>",
        "<answer>AB</answer>",
        "<answer>B B</answer>",
        "<answer>B: 12 g/mol</answer>",
        "<answer>((B))</answer>",
        "<answer>(B</answer>",
        "<answer>\u0412</answer>",
        "<answer>K</answer>",
        "<ANSWER>B</ANSWER>",
        "<answer>B</ answer>",
    ],
)
def test_anything_else_is_wrong_and_told_the_form(response: str) -> None:
    assert verify(response, "B") == MALFORMED


def test_the_last_block_decides() -> None:
    assert verify("<answer>A</answer> no: <answer>B</answer> done", "B") == RIGHT
    assert verify("<answer>B</answer> no: <answer>A</answer>", "B") == WRONG
    assert verify("<answer>B</answer><answer>?</answer>", "B") == MALFORMED
    assert verify("<answer>A <answer>B</answer>", "B") == RIGHT


def test_the_feedback_names_no_option() -> None:
    assert re.findall(r"\b[A-Ja-j]\b", WANTED_FORM) == []


@pytest.mark.parametrize("ground_truth", ["", "b", "K", "AB", "A\n", "(A)", " A", "1", "\uff21"])
def test_a_ground_truth_that_is_no_letter_is_refused(ground_truth: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(ground_truth))):
        verify("<answer>A</answer>", ground_truth)


@examples(deadline=None)
@given(st.text(), st.sampled_from("ABCDEFGHIJ"))
def test_every_text_gets_a_verdict_and_only_a_block_can_be_right(text: str, gold: str) -> None:
    assert verify(text.replace("<answer>", ""), gold) == MALFORMED
    assert verify(f"{text}<answer>{gold}</answer>", gold) == RIGHT


@examples(deadline=None)
@given(st.permutations("ABCDEFGHIJ"), st.sampled_from("ABCDEFGHIJ"), st.sampled_from("ABCDEFGHIJ"))
def test_renaming_the_options_changes_no_verdict(order: list[str], chosen: str, gold: str) -> None:
    rename = dict(zip("ABCDEFGHIJ", order, strict=True))
    renamed = verify(f"<answer>{rename[chosen]}</answer>", rename[gold])
    assert verify(f"<answer>{chosen}</answer>", gold) == renamed == Outcome.of(chosen == gold)


@pytest.mark.parametrize("unit", ["<answer>", "</answer>", "<answer>B", "<answer>A</answer>", "<", "("])
def test_hostile_input_takes_linear_time(unit: str) -> None:
    hostile = unit * (1_000_000 // len(unit))
    start = time.process_time()
    assert verify(hostile, "C").success is False
    assert verify(f"<answer>{hostile}</answer>", "C").success is False
    assert time.process_time() - start < 1.0


def test_long_runs_of_combining_marks_take_linear_time() -> None:
    hostile = "<answer>a" + "\u0301" * 400_000 + "\u0327" * 400_000 + "</answer>"
    assert verify(hostile, "A").status == "wrong"
