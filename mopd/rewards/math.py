r"""The verifier of mathematics: the last `\boxed{}` of a response compared with the ground truth.

Most answers are decided as text or as plain numbers. The rest goes to math-verify, in processes that can be killed;
a comparison that takes too long is wrong, for an answer has to be one that can be checked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from mopd.rewards import math_text, math_workers
from mopd.types import Outcome

WANTED_FORM = "Your answer had the wrong format. The solution must be given in the format: \\boxed{your_answer}."
"""What a response without a readable box is told."""
TRUNCATED = "Your response was truncated because it exceeded the maximum length."
"""What a response without an answer is told when it was cut."""


MOST_CLAIMS = 4
"""Sides of an equation that are compared, for each may take long; with more of them it is wrong."""


def read_gold(ground_truth: str) -> str:
    """The gold answer in normal form. Solutions that end in `#### 1,234` are read as GSM8K has them.

    Raises:
        ValueError: there is none, it is too long, or it is no value.
    """
    if not isinstance(ground_truth, str):
        raise ValueError(f"the ground truth of a mathematical task must be text; got {ground_truth!r}")
    answer = ground_truth.rpartition("####")[2].strip()
    if len(answer) > math_text.LONGEST:
        raise ValueError(
            f"the ground truth of a mathematical task has at most {math_text.LONGEST} characters; got {len(answer)}"
        )
    boxed = math_text.last_box(answer)
    gold = math_text.normal(answer if boxed is None else boxed)
    if math_text.undefined(gold):
        raise ValueError(
            f"the ground truth of a mathematical task must be an answer with a value; got {ground_truth!r}"
        )
    return gold


@lru_cache(maxsize=1 << 14)
def check(ground_truth: str) -> None:
    """Refuses a ground truth that is not even equal to itself, or that takes too long to compare.

    Numbers and words are checked at once; anything else costs a comparison in another process.

    Raises:
        ValueError: no response could be right.
        WorkerLost: math-verify does not work here, so that nothing can be said.
    """
    gold = read_gold(ground_truth)
    if math_text.number(gold) is not None or math_text.words(gold) is not None:
        return
    verdict = math_workers.shared().compare(gold, gold)
    if verdict == "too_hard":
        raise ValueError(f"comparing the ground truth {ground_truth!r} with itself takes too long")
    if verdict != "right":
        raise ValueError(
            f"the ground truth {ground_truth!r} cannot be read as mathematics; write it in LaTeX, or drop the row"
        )


def decided(gold: str, answer: str) -> bool | None:
    """Whether two answers in normal form are the same, where text or plain numbers can tell; None where not."""
    if math_text.undefined(answer):
        return False
    if gold == answer:
        return True
    wanted, given = math_text.number(gold), math_text.number(answer)
    # Decimals may be rounded, which the comparison proper allows for in the sixth place.
    if wanted is not None and given is not None and (wanted == given or "." not in gold + answer):
        return wanted == given
    spelt = math_text.words(gold)
    if spelt is not None:
        return spelt == "".join(filter(str.isalpha, answer.casefold()))
    if wanted is not None and given is None and math_text.SEVERAL.search(answer):
        return False  # several answers are not one, even where they are all the same
    if math_text.is_ordered(gold) and "," in answer and not math_text.is_ordered(answer):
        return False  # a tuple is not the set of its members
    if gold.startswith("\\{") and math_text.is_ordered(answer):
        return False  # nor the other way round
    bases = math_text.base(gold), math_text.base(answer)
    if None not in bases and bases[0] != bases[1]:
        return False  # which the comparison proper drops
    return None


def sides(gold: str, answer: str) -> tuple[str, str]:
    """Both answers without the `x =` that only one of them has."""
    if math_text.RELATION.search(gold) is None:
        return gold, math_text.without_name(answer)
    if math_text.RELATION.search(answer) is None:
        return math_text.without_name(gold), answer
    return gold, answer


def latex(text: str) -> str:
    r"""A normal form as math-verify reads it: it drops percent signs, and 50\% is not 50."""
    return rf"\frac{{{text[:-2]}}}{{100}}" if text.endswith(r"\%") else text


def same(gold: str, answer: str) -> bool:
    """Whether `answer` is right, both in normal form.

    Raises:
        ValueError: the gold answer cannot be compared.
        WorkerLost: the comparison failed for no fault of the answers.
    """
    gold, answer = sides(gold, answer)
    known = decided(gold, answer)
    if known is not None:
        return known
    # Before a rounded value the exact one may stand: 10/3=3.33.
    claims = [] if math_text.RELATION.search(gold) or "." in gold else math_text.claims(answer)
    if len(claims) > MOST_CLAIMS or not all(same(gold, claim) for claim in claims):
        return False
    verdict = math_workers.shared().compare(latex(gold), latex(answer))
    if verdict == "bad_gold":
        raise ValueError("the ground truth cannot be read as mathematics")
    return verdict == "right"


def _judged(read: Callable[[str], str | None], response: str, ground_truth: str, extra: Mapping[str, Any]) -> Outcome:
    gold = read_gold(ground_truth)
    answer = read(response)
    if answer is None:
        return Outcome.of(False, TRUNCATED if extra.get("truncated") else WANTED_FORM)
    try:
        return Outcome.of(same(gold, answer))
    except math_workers.WorkerLost as lost:
        return Outcome.unknown(f"the answers could not be compared: {lost}")


def verify(response: str, ground_truth: str, extra_info: Mapping[str, Any] | None = None) -> Outcome:
    r"""Right iff the last `\boxed{}` of `response` equals `ground_truth`; the reward is 0 or 1.

    Only a response without a readable box gets feedback: that it was truncated where `extra_info["truncated"]`
    says so, else which form is wanted.

    Raises:
        ValueError: the ground truth cannot be read.
    """
    return _judged(_boxed, response, ground_truth, extra_info or {})


def verify_gsm8k(response: str, ground_truth: str, extra_info: Mapping[str, Any] | None = None) -> Outcome:
    r"""As `verify`; a response without a `\boxed{}` may also end in `#### 1234`, as GSM8K's own solutions do.

    Raises:
        ValueError: the ground truth cannot be read.
    """
    return _judged(_boxed_or_marked, response, ground_truth, extra_info or {})


def _boxed(response: str) -> str | None:
    box = math_text.last_box(response)
    return (math_text.normal(box) or None) if box else None


def _boxed_or_marked(response: str) -> str | None:
    _, marked, line = response.rpartition("####")
    answer = line.strip().partition("\n")[0] if marked else ""
    short = 0 < len(answer) <= math_text.LONGEST
    return _boxed(response) or (math_text.normal(answer) if short else None) or None


def _canonical(answer: str | None) -> str | None:
    if answer is None:
        return None
    value = math_text.number(math_text.without_name(answer))
    return math_text.without_name(answer) if value is None else str(value)


def read_answer(response: str) -> str | None:
    r"""The last `\boxed{}` in one spelling, numbers as lowest fractions, for counting; None without one."""
    return _canonical(_boxed(response))


def read_gsm8k(response: str) -> str | None:
    """As `read_answer`, for what `verify_gsm8k` reads."""
    return _canonical(_boxed_or_marked(response))
