"""Faults that a person can mend, told before anything expensive starts."""

from __future__ import annotations

from collections.abc import Sequence

DONE, FAILURE, BAD_INPUT, UNHEALTHY, STOPPED, INTERRUPTED = 0, 1, 2, 3, 75, 130
"""Exit codes of every command; UNHEALTHY: the run no longer learnt; STOPPED: by a signal or a budget, with a
checkpoint to go on from."""


class StoppedError(Exception):
    """The run was asked to end early, and did so in order; the message says by what."""


class BadInputError(Exception):
    """What the user gave cannot be run: every problem found, each with its value and its remedy."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__(list(problems))
        self.problems = list(problems)

    def __str__(self) -> str:
        count = len(self.problems)
        head = "1 problem" if count == 1 else f"{count} problems"
        return "\n".join([f"{head}; nothing was started:", *(f"  - {problem}" for problem in self.problems)])


class RunUnhealthyError(Exception):
    """A run no longer learns, and was stopped after `step`, the last one; the message says why and what to change."""

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step
