"""Faults that a person can mend, told before anything expensive starts."""

from __future__ import annotations

from collections.abc import Sequence

DONE, FAILURE, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
"""Exit codes of every command."""


class BadInputError(Exception):
    """What the user gave cannot be run: every problem found, each with its value and its remedy."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__(list(problems))
        self.problems = list(problems)

    def __str__(self) -> str:
        count = len(self.problems)
        head = "1 problem" if count == 1 else f"{count} problems"
        return "\n".join([f"{head}; nothing was started:", *(f"  - {problem}" for problem in self.problems)])
