"""What a source of tasks is, and how its rows become records."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from records import MISSING

Row = Mapping[str, Any]
"""A row as the source has it."""

ELO = 1500
"""What published records have where a source rates nothing."""
MATH_REQUEST = "\n\nPlease reason step by step, and put your final answer within \\boxed{}."
CHOICE_REQUEST = "\nPlease reason step by step."


@dataclass(frozen=True)
class Task:
    """A task that was read from a row."""

    kind: str
    """What sort of answer it wants: mcq, math, code or tooluse."""
    dataset: str
    """The data source that names the verifier."""
    question: str
    """The question alone; the record's description is made of it."""
    prompt: str
    """What the student is asked."""
    answer: str = MISSING
    tests: str = MISSING
    """The tests of a programming task, as JSON."""
    elo: int = ELO
    system: str | None = None


@dataclass(frozen=True)
class Source:
    """A published data set and how it is read."""

    name: str
    """What `--dataset_name` calls it."""
    hub: str
    """Its name on the Hugging Face hub."""
    read: Callable[[Row, int], Task]
    """From a row and its position in the source to a task.

    Raises:
        KeyError: a column is missing. ValueError: a value cannot be used. TypeError: one has the wrong type.
    """
    config: str | None = None
    split: str = "test"
    revision: str = "main"
    """A commit, tag, branch or `refs/...` of the hub's repository."""
    keep: Callable[[Row], bool] = field(default=lambda row: True)
    """Which rows are tasks of this source."""
    category: Callable[[Row], str] | None = None
    """What `--category` is compared with; None where the source has no categories."""
    gated: bool = False
    """Whether its terms must be accepted on the hub, with an account, before it can be fetched."""


def text_of(row: Row, name: str) -> str:
    """A text of the row.

    Raises:
        KeyError: there is no such column. ValueError: it holds no text, or a blank one.
    """
    value = row[name]
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(int(value) if value == int(value) else value)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"`{name}` is {value!r}; wanted text that is not blank")
    return value


def record_of(task: Task, index: int) -> dict[str, Any]:
    """The published record of a task; `index` is its `idx`."""
    return {
        "idx": index,
        "kind": task.kind,
        "dataset": task.dataset,
        "answer": task.answer,
        "elo": task.elo,
        "prompt": task.prompt,
        "description": f"{task.question} The solution will be evaluated in a {task.kind} environment.",
        "tests": task.tests,
        "embedding": [],
        "system": MISSING if task.system is None else task.system,
    }
