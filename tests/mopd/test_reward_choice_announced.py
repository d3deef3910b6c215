"""GPQA and MMLU-Pro: which announcements are read as a choice; and every published row that is at hand."""

from __future__ import annotations

import json
import os
import random
import re
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from mopd.rewards import choice
from mopd.rewards.choice import GPQA, MMLU_PRO, Announced
from mopd.types import Outcome
from tests.mopd.test_reward_math import hostile

RIGHT, WRONG = Outcome.of(True), Outcome.of(False)
BOTH = pytest.mark.parametrize("task", [GPQA, MMLU_PRO], ids=["gpqa", "mmlu_pro"])


@BOTH
@pytest.mark.parametrize(
    "response",
    [
        "\\boxed{B}",
        "\\boxed {(B)}",
        "$\\boxed{\\text{B}}$",
        "\\boxed{\\textbf{(B)}}. It is a good one.",
        "\\boxed{b}",
        "The answer is (B).",
        "The answer is (b), I think.",
        "the answer is B.",
        "The final answer is: **B**",
        "**Answer: B**",
        "ANSWER: B\nThat is all.",
        "Answer: \\boxed{B}",
        "<answer>B</answer>",
        "<answer>\n(B)\n</answer>",
        "\\boxed{\uff22}",
        "the answer is \uff08\uff22\uff09",
        "The answer is (A). No: the answer is (B). That is a nice one." + " x" * 500,
        "<answer>C</answer> or \\boxed{A} or, finally, the answer is (B)",
        "The answer is (B). The answer is clear.",
    ],
)
def test_an_announced_letter_is_read_and_the_last_one_decides(task: Announced, response: str) -> None:
    assert task.verify(response, "B") == RIGHT
    assert task.verify(response, "A") == WRONG


@BOTH
@pytest.mark.parametrize(
    "response",
    [
        "",
        "A",
        "I choose A. A nice day.",
        "The answer is a nice one.",
        "The answer is A nice one.",
        "Answer: I think that A is it",
        "The answer is (A",
        "Option A is right.",
        "\\boxed{A, B}",
        "\\boxed{AB}",
        "\\boxed{A: 12 g}",
        "\\boxed{\u0410}",
        "\\boxed{A",
        "<answer>A",
        "<answer>A or B</answer>",
        "\\boxed{A} or rather \\boxed{?}",
        "\\boxed{Z}",
        "the answer is (Z)",
        "an answer: A-type stars",
    ],
)
def test_anything_else_is_wrong_and_told_the_form(task: Announced, response: str) -> None:
    assert task.verify(response, "A") == Outcome.of(False, task.wanted_form)
    assert task.read(response) is None


def test_the_options_are_those_of_the_task() -> None:
    assert (GPQA.read("\\boxed{E}"), MMLU_PRO.read("\\boxed{E}")) == (None, "E")
    MMLU_PRO.check("J")
    for task, gold in [(GPQA, "E"), (GPQA, ""), (GPQA, "AB"), (GPQA, "a"), (MMLU_PRO, "K")]:
        with pytest.raises(ValueError, match=rf"one letter from A to [DJ]; got '{gold}'"):
            task.check(gold)
        with pytest.raises(ValueError, match="one letter"):
            task.verify("\\boxed{A}", gold)


@BOTH
def test_the_feedback_names_no_option(task: Announced) -> None:
    assert re.findall(r"\b[A-Ja-j]\b", task.wanted_form) == []


@examples(deadline=None)
@given(st.text(), st.permutations("ABCD"), st.sampled_from("ABCD"), st.sampled_from("ABCD"))
def test_every_text_gets_a_verdict_and_renaming_the_options_changes_none(
    text: str, order: list[str], chosen: str, gold: str
) -> None:
    rename = dict(zip("ABCD", order, strict=True))
    plain = GPQA.verify(f"{text}\n\\boxed{{{chosen}}}", gold)
    assert plain == GPQA.verify(f"{text}\n\\boxed{{{rename[chosen]}}}", rename[gold]) == Outcome.of(chosen == gold)


def test_ten_thousand_random_texts_break_nothing() -> None:
    generator = random.Random(3)
    for _ in range(10_000):
        text = hostile(generator) + generator.choice(["", "A", "answer is (A)", "</answer>", "}"])
        outcomes = {GPQA.verify(text, "A").reward, choice.verify(text, "A").reward}
        assert outcomes <= {0.0, 1.0}


@pytest.mark.parametrize(
    "unit", ["\\boxed{", "\\boxed{{", "<answer>", "answer is ", "answer:", "\\boxed{A}", "(", "{}"]
)
def test_hostile_input_takes_linear_time(unit: str) -> None:
    text = unit * (1_000_000 // len(unit))
    start = time.process_time()
    assert GPQA.verify(text, "C").success is False
    assert MMLU_PRO.verify(f"\\boxed{{{text}}}", "C").success is False
    assert time.process_time() - start < 20.0


# ------------------------------------------------------------------ published rows


def real_rows(*names: str) -> list[dict[str, str]]:
    folder = os.environ.get("MOPD_REAL_ROWS")
    if folder is None:
        pytest.skip("MOPD_REAL_ROWS is not set; it names a folder with sciknoweval/ and tooluse/")
    paths = [Path(folder, name) for name in names]
    return [json.loads(line) for path in paths for line in path.read_text("utf-8").splitlines()]


@pytest.mark.parametrize("domain", ["chemistry", "physics"])
def test_published_rows_are_right_with_their_answer_and_wrong_with_any_other(domain: str) -> None:
    rows = real_rows(f"sciknoweval/{domain}/train.json", f"sciknoweval/{domain}/test.json")
    assert len(rows) > 500
    for row in rows:
        choice.check(row["answer"])
        verdicts = {
            letter: choice.verify(f"<reasoning>\n...\n</reasoning>\n<answer>\n{letter}\n</answer>\n", row["answer"])
            for letter in "ABCD"
        }
        assert [letter for letter, verdict in verdicts.items() if verdict == RIGHT] == [row["answer"]]
        assert all(verdict in (RIGHT, WRONG) for verdict in verdicts.values())
