"""Mathematics: what is read as an answer, which answers are the same, and what is refused as a ground truth."""

from __future__ import annotations

import random
import time
from fractions import Fraction

import pytest

from mopd.rewards import math_text
from mopd.rewards.math import TRUNCATED, WANTED_FORM, check, read_answer, read_gsm8k, verify, verify_gsm8k
from mopd.types import Outcome

RIGHT, WRONG, MALFORMED = Outcome.of(True), Outcome.of(False), Outcome.of(False, WANTED_FORM)


def boxed(answer: str) -> str:
    return f"Let me think. So the answer is \\boxed{{{answer}}}."


# ------------------------------------------------------------------ what is read


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("\\boxed{3} or rather \\boxed{5}", "5"),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("$$\\boxed {5}$$", "5"),
        ("\\\\boxed{5}", "5"),
        ("\\boxed{\\{1,2\\}}", "\\{1,2\\}"),
        ("\\boxed{a \\boxed{5}}", "5"),
        ("\\boxed{5} and \\boxed{3", "5"),
        ("}}} \\boxed{5} {{{", "5"),
        ("{" * 20_000 + "\\boxed{5}", "5"),
        ("\\boxed{ \n 5 }" + "x" * 200, "5"),
        ("\\boxed{" + "1" * 512 + "}", "1" * 512),
    ],
)
def test_the_last_balanced_box_is_read(response: str, answer: str) -> None:
    assert math_text.last_box(response) == answer


@pytest.mark.parametrize(
    "response",
    [
        "",
        " \n",
        "None",
        "I do not know",
        "I tried 7 and 9, a total of 3",
        "3 3 3 3",
        "The answer is $3$.",
        "#### 3",
        "\\boxed{3",
        "\\boxed{}",
        "\\boxed{ \u200b }",
        "\\boxed 3",
        "boxed{3}",
        "{" * 20_000,
        "\\boxed{5} \\boxed{" + "1" * 513 + "}",
        "\\boxed{" * 1000 + "3",
    ],
)
def test_anything_else_is_wrong_and_told_the_form(response: str) -> None:
    assert verify(response, "3") == MALFORMED
    assert read_answer(response) is None


def test_only_a_truncated_response_without_an_answer_is_told_that_it_was_cut() -> None:
    assert verify("so \\boxed{3", "3", {"truncated": True}) == Outcome.of(False, TRUNCATED)
    assert verify("so \\boxed{3", "3", {"truncated": False}) == MALFORMED
    assert verify("so \\boxed{3} and", "3", {"truncated": True}) == RIGHT
    assert verify("so \\boxed{4} and", "3", {"truncated": True}) == WRONG


# ------------------------------------------------------------------ what is the same

SAME = [
    ("3", "3"),
    ("-3", "\u22123"),
    ("3", "\u0663"),  # Arabic-Indic
    ("3", "\uff13"),  # full width
    ("3", "\u200b3\u202e\x00\ud800"),
    ("5", "5."),
    ("5", "\\$5"),
    ("5", "5\\text{ cm}"),
    ("5", "5\\,\\mathrm{cm}^2"),
    ("5\\text{ cm}", "5"),
    ("90", "90^\\circ"),
    ("1000", "1,000"),
    ("1234", "1{,}234"),
    ("1234", "1\\,234"),
    ("#### 1,234", "1234"),
    ("some words\n#### -7", "-7"),
    ("2", "2.0"),
    ("1/2", "0.5"),
    ("\\frac{1}{2}", "1/2"),
    ("\\dfrac{1}{2}", "\\tfrac12"),
    ("-\\frac{1}{2}", "\\frac{-1}{2}"),
    ("\\frac{1}{2}", "\u00bd"),
    ("50\\%", "50%"),
    ("0.5", "50\\%"),
    ("\\text{Monday}", "monday"),
    ("x^{2}", "x\u00b2"),
    ("\\left(1, 2\\right]", "(1,2]"),
    ("\\infty", "\u221e"),
    ("3", "x=3"),
    ("3", "3=x"),
    ("5", "k=5"),
    ("x=5", "5"),
    ("f(x)=x^2", "x^2"),
    ("(1,2)", "(x, y) = (1, 2)"),
    ("[0,1)", "x \\in [0,1)"),
    ("x \\in [0,1)", "[0,1)"),
    ("10\\text{ million}", "10,000,000"),
    ("10\\text{ million}", "10\\text{ million dollars}"),
    ("18", "18 dollars"),
    ("5000000", "5 million dollars"),
    ("\\emptyset", "\\varnothing"),
    ("\\emptyset", "\u2205"),
]
OTHER = [
    ("3", "4"),
    ("3", "33"),
    ("12", "12\\%"),
    ("50", "50\\%"),
    ("50\\%", "50"),
    ("1/3", "1/4"),
    ("5", "\\frac10"),
    ("5", "\\frac00"),
    ("5", "nan"),
    ("5", "inf"),
    ("\\infty", "inf"),
    ("(1,2)", "1,2"),
    ("3", "3,3,3"),
    ("3", "1,2,3"),
    ("(1,2)", "\\{1,2\\}"),
    ("Yes", "No"),
    ("Monday", "5"),
    ("123", "12"),
    ("5", "5\\text{ million}"),
    ("5", "5 million"),
    ("3", "3\\text{ or 4}"),
    ("3", "3 or 4"),
    ("\\{1,2\\}", "(1,2)"),
    ("2516_8", "2516_9"),
    ("5", "6=5"),
    ("5", "x=6=5"),
    ("5", "1=1=1=1=1=1=5"),
]


@pytest.mark.parametrize(("gold", "answer"), SAME)
def test_spellings_of_one_answer_are_right(gold: str, answer: str) -> None:
    assert verify(boxed(answer), gold) == RIGHT


@pytest.mark.parametrize(("gold", "answer"), OTHER)
def test_other_answers_are_wrong_without_a_word(gold: str, answer: str) -> None:
    assert verify(boxed(answer), gold) == WRONG


def test_ten_boxes_are_one_answer() -> None:
    shotgun = " ".join(map(boxed, "0123456789"))
    assert [gold for gold in "0123456789" if verify(shotgun, gold).success] == ["9"]


def test_plain_numbers_are_exact() -> None:
    values = {text: math_text.number(math_text.normal(text)) for text in ["1,234.50", "5\\%", "\\frac{3}{-4}", "1e5"]}
    assert values == {"1,234.50": Fraction(2469, 2), "5\\%": Fraction(1, 20), "\\frac{3}{-4}": None, "1e5": None}
    for text in ["1/0", "\\frac{1}{0}", "\\frac10", "1 2", "1,23", "12,345,6", "--1", "1.2.3", "", "."]:
        assert math_text.number(math_text.normal(text)) is None, text


def test_normal_forms_are_fixed_points() -> None:
    texts = [text for pair in SAME + OTHER for text in pair]
    assert [math_text.normal(math_text.normal(text)) for text in texts] == list(map(math_text.normal, texts))


def test_answers_are_counted_by_value() -> None:
    spellings = ["1/2", "0.5", "\\frac{1}{2}", "50\\%", "x = \\dfrac{1}{2}", "\\frac12"]
    assert {read_answer(boxed(spelling)) for spelling in spellings} == {"1/2"}
    assert read_answer(boxed("\\sqrt{2}")) == "\\sqrt{2}"


# ------------------------------------------------------------------ GSM8K


def test_gsm8k_also_answers_as_its_own_solutions_do() -> None:
    solution = "He has 20 * 60 = 1200, and then some.\n#### 1,234"
    assert verify_gsm8k(solution, solution) == RIGHT
    assert verify_gsm8k("#### 1,234\nThat is it.", "1234") == RIGHT
    assert verify_gsm8k("\\boxed{1234} #### 7", "1234") == RIGHT
    assert verify_gsm8k("#### 1233", "1234") == WRONG
    assert verify_gsm8k("1234", "1234") == verify_gsm8k("####", "1234") == MALFORMED
    assert verify(solution, "1234") == MALFORMED
    assert (read_gsm8k(solution), read_answer(solution)) == ("1234", None)


# ------------------------------------------------------------------ ground truths


@pytest.mark.parametrize("gold", ["", " ", "nan", "NaN", "inf", "None", "\\frac{1}{0}", "\\frac00", "1" * 513, "####"])
def test_a_ground_truth_without_a_value_is_refused(gold: str) -> None:
    with pytest.raises(ValueError, match="ground truth"):
        check(gold)
    with pytest.raises(ValueError, match="ground truth"):
        verify(boxed("5"), gold)


@pytest.mark.parametrize("gold", [None, 3, [], 3.5])
def test_a_ground_truth_that_is_no_text_is_refused(gold: object) -> None:
    with pytest.raises((ValueError, TypeError), match=r"must be text|unhashable"):
        check(gold)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must be text"):
        verify(boxed("5"), gold)  # type: ignore[arg-type]


# ------------------------------------------------------------------ hostile texts

FRAGMENTS = [
    *("\\boxed{", "}", "{", "\\", "\\frac{", "\\sqrt", "^{", "_", "$", "\\left(", "\\right.", "\\text{", "\\%", "%"),
    *("\x00", "\ud800", "\udfff", "\u202e", "\u200b", "\u0301", "\ufdfa", "\u00bd", "\u00b2", "\u2212", "\uff11"),
    *(
        "1",
        "23",
        ",",
        ".",
        "/",
        "=",
        "x",
        "nan",
        "\\infty",
        " ",
        "\n",
        "<answer>",
        "####",
        "Action:",
        "\\begin{pmatrix}",
    ),
]


def hostile(generator: random.Random) -> str:
    return "".join(generator.choices(FRAGMENTS, k=generator.randrange(60)))


def test_ten_thousand_random_texts_break_nothing() -> None:
    generator = random.Random(0)
    for _ in range(10_000):
        text = hostile(generator)
        math_text.last_box(text)
        answer = math_text.normal(text)
        value = math_text.number(answer)
        assert value is None or isinstance(value, Fraction)
        assert math_text.normal(answer[:512]).isprintable()
        math_text.words(answer)
        math_text.undefined(answer)
        math_text.is_ordered(answer)
        math_text.without_name(answer)


@pytest.mark.parametrize(
    "unit",
    ["\\boxed{", "}", "{", "\\", "\\\\", "\\boxed{1}", "$x+", "1 ", "####", " ", "\\boxed ", "\u0301\u0327", "\\{"],
)
def test_hostile_input_takes_linear_time(unit: str) -> None:
    text = unit * (1_000_000 // len(unit))
    start = time.process_time()
    assert verify_gsm8k(text, "3").success is False
    assert verify(f"\\boxed{{{text}}}", "3").success is False
    assert verify(f"{text}\\boxed{{3}}", "3").success in (True, False)
    assert time.process_time() - start < 20.0
