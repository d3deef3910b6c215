"""The verifiers of multiple-choice questions.

SciKnowEval asks for `<reasoning>...</reasoning><answer>B</answer>` and nothing else is read. GPQA and MMLU-Pro have
prompts of their own (`\\boxed{B}`, `The answer is (B)`), and there the last answer in any of these forms counts.
"""

from __future__ import annotations

import re
import unicodedata
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
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


ANSWERS = re.compile(
    r"<answer>(?P<tag>[^<]{0,32})</answer>"
    r"|\\boxed\s?\{(?P<box>(?:[^{}]|\{[^{}]{0,32}\}){0,32})\}"
    r"|\b[Aa](?:nswer|NSWER)\**(?:\s?:|\sis\b:?)[\s*]{0,4}"
    r"(?P<prose>[(\uff08][A-Za-z\uff21-\uff3a\uff41-\uff5a][)\uff09]"
    r"|[A-Z\uff21-\uff3a](?=[ \t]{0,4}(?:[.,;:!?)*\n]|\Z)))"
)
"""An answer where it is announced. In prose a letter without brackets must be a capital, and end
the clause: neither the article nor the pronoun is a choice. Every repetition is bounded, so the time is linear."""

WRAPPING = re.compile(r"\\[a-z]+\{|[{}$*\s]")


@dataclass(frozen=True)
class Announced:
    """Multiple choice where the answer is a tag, a box, or announced by `answer is` or `Answer:`."""

    options: str
    """The letters that can be chosen, as capitals."""
    wanted_form: str
    """What a response without a readable choice is told; it names no option."""

    def check(self, ground_truth: str) -> None:
        """Refuses a ground truth that is not one of the options.

        Raises:
            ValueError: it is not.
        """
        if len(ground_truth) != 1 or ground_truth not in self.options:
            raise ValueError(
                f"the ground truth of a choice must be one letter from {self.options[0]} to {self.options[-1]};"
                f" got {ground_truth!r}"
            )

    def read(self, response: str) -> str | None:
        """The last announced choice, as a capital; None where there is none, or the last is no option."""
        # Only the last one is kept, however many there are.
        last = next(iter(deque(ANSWERS.finditer(response), maxlen=1)), None)
        if last is None:
            return None
        content = last[last.lastgroup or 0]
        match = CHOICE.fullmatch(WRAPPING.sub("", unicodedata.normalize("NFKC", content)))
        letter = (match[1] or match[2]).upper() if match else None
        return letter if letter is not None and letter in self.options else None

    def verify(self, response: str, ground_truth: str, extra_info: Mapping[str, Any] | None = None) -> Outcome:
        """Right iff the last announced choice of `response` is the letter `ground_truth`.

        Raises:
            ValueError: the ground truth is not one of the options.
        """
        self.check(ground_truth)
        choice = self.read(response)
        return Outcome.of(choice == ground_truth, "" if choice else self.wanted_form)


GPQA = Announced(
    "ABCD",
    "Your answer had the wrong format. Put the letter of one option, and nothing else, in \\boxed{} at the end.",
)
MMLU_PRO = Announced(
    "ABCDEFGHIJ",
    'Your answer had the wrong format. End with "The answer is (X)", where X is the letter of one option.',
)
