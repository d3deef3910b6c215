"""What the generators of the mini-benchmarks give, and how they draw options."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from sources_base import Task


@dataclass(frozen=True)
class Problem:
    """A task with a response that is right, which is kept out of the files and shows that it can be solved."""

    task: Task
    solution: str
    content: str
    """What the problem is, however it is put; two problems of the same content count as one."""


def letter_options(right: str, wrong: Sequence[str], rng: random.Random) -> tuple[list[str], int]:
    """Four options in random order and the place of the right one.

    Raises:
        ValueError: fewer than three of the wrong ones differ from the right one and each other.
    """
    others = [option for option in dict.fromkeys(wrong) if option != right][:3]
    if len(others) < 3:
        raise ValueError(f"only {len(others)} wrong options beside {right!r}: {wrong}")
    options = [right, *others]
    rng.shuffle(options)
    return options, options.index(right)
