"""Sources of mathematics: competitions, MATH-500, GSM8K and DeepMath."""

from __future__ import annotations

import re
from collections.abc import Callable

from sources_base import MATH_REQUEST, Row, Source, Task, text_of

FINAL = re.compile(r"####\s*(.+?)\s*$")
"""GSM8K's last line."""
NUMBER = re.compile(r"[-+]?\d[\d,]*(\.\d+)?")


def task(dataset: str, question: str, answer: str) -> Task:
    """A task of mathematics in the published form."""
    return Task("math", dataset, question, question + MATH_REQUEST, answer.strip())


def problem(dataset: str, question: str = "problem", answer: str = "answer") -> Callable[[Row, int], Task]:
    """Reads rows that have a column for the question and one for the final answer."""

    def read(row: Row, index: int) -> Task:
        return task(dataset, text_of(row, question), text_of(row, answer))

    return read


def boxed(text: str) -> str:
    """What the last `\\boxed{...}` of a solution holds.

    Raises:
        ValueError: there is none, or it is not closed.
    """
    start = text.rfind("\\boxed{") + len("\\boxed{")
    depth = 1
    for position in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0 and "\\boxed{" in text:
            return text[start:position]
    raise ValueError(f"the solution ends in {text[-40:]!r}; wanted a closed \\boxed{{...}} in it")


def aime24(row: Row, index: int) -> Task:
    """A row of math-ai/aime24, whose `solution` is the boxed answer."""
    answer = row.get("answer") or boxed(text_of(row, "solution"))
    return task("aime24", text_of(row, "problem"), str(answer))


def gsm8k_answer(solution: str) -> str:
    """The number behind `####`: thousands without their commas, a sign kept, currency signs dropped.

    Raises:
        ValueError: there is no such number.
    """
    final = FINAL.search(solution.strip())
    number = final[1].replace("$", "").strip() if final else ""
    if not NUMBER.fullmatch(number):
        raise ValueError(f"the answer ends in {solution[-40:]!r}; wanted a last line such as `#### 1,000`")
    return number.replace(",", "").lstrip("+")


def gsm8k(row: Row, index: int) -> Task:
    """A row of openai/gsm8k."""
    return task("gsm8k", text_of(row, "question"), gsm8k_answer(text_of(row, "answer")))


SOURCES = (
    Source("math-ai/aime24", "math-ai/aime24", aime24),
    Source("math-ai/aime25", "math-ai/aime25", problem("aime25")),
    Source("math-ai/math500", "math-ai/math500", problem("math500"), category=lambda row: str(row["subject"])),
    Source("math-ai/amc23", "math-ai/amc23", problem("amc23", "question")),
    Source("MathArena/hmmt_feb_2025", "MathArena/hmmt_feb_2025", problem("hmmt25_feb"), split="train"),
    Source("MathArena/hmmt_nov_2025", "MathArena/hmmt_nov_2025", problem("hmmt25_nov"), split="train"),
    Source("openai/gsm8k", "openai/gsm8k", gsm8k, config="main"),
    Source("openai/gsm8k-train", "openai/gsm8k", gsm8k, config="main", split="train"),
    Source(
        "zwhe99/DeepMath-103K",
        "zwhe99/DeepMath-103K",
        problem("DeepMath-103K", "question", "final_answer"),
        split="train",
        category=lambda row: str(row["topic"]),
    ),
)
