"""Multiple-choice sources: SciKnowEval, GPQA and MMLU-Pro."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from sources_base import CHOICE_REQUEST, Row, Source, Task, text_of

LETTERS = "ABCDEFGHIJ"
LEVEL = "L3"
"""SciKnowEval's level of reasoning, the one of the published files."""
TYPES = ("mcq-4-choices", "mcq-2-choices")
SCIENCE_SYSTEM = """
Given a question and four options, please select the right answer. Respond in the following format:
<reasoning>
...
</reasoning>
<answer>
...
</answer>

For the answer, only output the letter corresponding to the correct option (A, B, C, or D), and nothing else. \
Do not restate the answer text. For example, if the answer is "A", just output:
<answer>
A
</answer>
"""
"""The system message of published SciKnowEval rows; it speaks of four options also where there are two."""
GPQA_REQUEST = "\nPlease reason step by step, and put the letter of your final choice (A, B, C or D) within \\boxed{}."
MMLU_REQUEST = (
    '\nPlease reason step by step, and finish with "The answer is (X)", where X is the letter of your choice.'
)


def choices(question: str, options: Sequence[str]) -> str:
    """A question with lettered options below it, as published prompts have them.

    Raises:
        ValueError: there are more options than letters, or fewer than two.
    """
    if not 2 <= len(options) <= len(LETTERS):
        raise ValueError(f"there are {len(options)} options; wanted 2 to {len(LETTERS)}")
    listed = "\n".join(f"{letter}: {option}" for letter, option in zip(LETTERS, options, strict=False))
    return f"{question}\n\n{listed}"


def letter_of(letter: str, options: Sequence[str]) -> str:
    """`letter`, if it names one of the options.

    Raises:
        ValueError: it does not.
    """
    if len(letter) != 1 or letter not in LETTERS[: len(options)]:
        raise ValueError(f"the answer {letter!r} names none of the {len(options)} options")
    return letter


def sciknoweval(row: Row, index: int) -> Task:
    """A row of hicai-zju/SciKnowEval: question, choices {text, label}, answerKey."""
    question, options = text_of(row, "question"), list(row["choices"]["text"])
    prompt = choices(question, options) + CHOICE_REQUEST
    answer = letter_of(text_of(row, "answerKey").strip(), options)
    return Task("mcq", "sciknoweval", question, prompt, answer, system=SCIENCE_SYSTEM)


def is_science(domain: str) -> Callable[[Row], bool]:
    """Whether a row of SciKnowEval is a choice of this domain on the level of reasoning."""

    def keep(row: Row) -> bool:
        return row["domain"] == domain and row["type"] in TYPES and row["details"]["level"] == LEVEL

    return keep


def gpqa(row: Row, index: int) -> Task:
    """A row of Idavidrein/gpqa; the position of the row decides the order of its options."""
    question, right = text_of(row, "Question").strip(), text_of(row, "Correct Answer").strip()
    options = [right, *(text_of(row, f"Incorrect Answer {number}").strip() for number in (1, 2, 3))]
    if options.count(right) > 1:
        raise ValueError(f"the right option {right!r} is also a wrong one")
    random.Random(index).shuffle(options)
    return Task("gpqa", "gpqa", question, choices(question, options) + GPQA_REQUEST, LETTERS[options.index(right)])


def mmlu_pro(row: Row, index: int) -> Task:
    """A row of TIGER-Lab/MMLU-Pro: question, options, answer."""
    question, options = text_of(row, "question"), list(row["options"])
    answer = letter_of(text_of(row, "answer").strip(), options)
    return Task("mmlu_pro", "mmlu_pro", question, choices(question, options) + MMLU_REQUEST, answer)


SCIKNOWEVAL = "hicai-zju/SciKnowEval"
SOURCES = (
    *(
        Source(
            domain,
            SCIKNOWEVAL,
            sciknoweval,
            keep=is_science(domain),
            category=lambda row: str(row["details"].get("subtask") or row["details"].get("task")),
        )
        for domain in ("Biology", "Chemistry", "Material", "Physics")
    ),
    Source(
        "Idavidrein/gpqa-D",
        "Idavidrein/gpqa",
        gpqa,
        config="gpqa_diamond",
        split="train",
        category=lambda row: str(row["High-level domain"]),
        gated=True,
    ),
    Source("TIGER-Lab/MMLU-Pro", "TIGER-Lab/MMLU-Pro", mmlu_pro, category=lambda row: str(row["category"])),
)
