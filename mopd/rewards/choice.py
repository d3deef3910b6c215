"""The verifier of multiple-choice questions: `<reasoning>...</reasoning><answer>B</answer>`."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from mopd.types import Outcome

WANTED_FORM = (
    "Your answer had the wrong format. Give your choice as <answer>X</answer>,"
    " where X is the letter of one option and nothing else."
)
"""What a response without a readable choice is told. It names no option, lest it give the right one away."""

OPEN, CLOSE = "<answer>", "</answer>"
GOLD = re.compile(r"[A-J]")
CHOICE = re.compile(r"\(([A-Ja-j])\)|([A-Ja-j])[.)]?")


def check(ground_truth: str) -> None:
    """Refuses a ground truth that is not one capital letter from A to J.

    Raises:
        ValueError: it is not.
    """
    if not GOLD.fullmatch(ground_truth):
        raise ValueError(f"the ground truth of a choice must be one letter from A to J; got {ground_truth!r}")


def verify(response: str, ground_truth: str, extra_info: Mapping[str, Any] | None = None) -> Outcome:
    """Right iff the last `<answer>` block of `response` holds the letter `ground_truth`, and nothing else.

    `(B)`, `B)`, `B.`, `b` and full-width letters are read as B. A letter outside the tags, an unclosed last
    block and several letters are wrong, and the feedback then says which form is wanted.

    Raises:
        ValueError: the ground truth is not one capital letter from A to J.
    """
    check(ground_truth)
    choice = read_choice(response)
    return Outcome.of(choice == ground_truth, "" if choice else WANTED_FORM)


LONGEST = 32
"""Characters of what may still be one letter in brackets."""


def read_choice(response: str) -> str | None:
    """The letter in the last `<answer>` block, as a capital; None without such a block or such a letter."""
    _, opened, rest = response.rpartition(OPEN)
    content, closed, _ = rest.partition(CLOSE)
    if not (opened and closed):
        return None
    content = content.strip()
    # Normalisation takes quadratic time on long runs of combining marks, and no letter is this long.
    if len(content) > LONGEST:
        return None
    match = CHOICE.fullmatch(unicodedata.normalize("NFKC", content).strip())
    return (match[1] or match[2]).upper() if match else None
