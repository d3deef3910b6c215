"""What a tracker is, what it is told of a run, and what it must know again when the run goes on."""

from __future__ import annotations

import json
import logging
import os
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

log = logging.getLogger("mopd")

NO_ANSWER_S = 20.0
"""The longest that a tracker's server may keep a run waiting, at its start and at its end."""

COLUMNS = {
    "group": "uid",
    "prompt": "input",
    "response": "output",
    "verdict": "status",
    "reward": "score",
    "teacher prompt": "teacher_prompt",
}
"""What a tracker shows of a rollout, and its field in `rollouts/<step>.jsonl`."""
SHOWN_ROLLOUTS = 16
"""Rollouts of a step that trackers are given, the first ones: two groups of eight."""
SHOWN_CHARACTERS = 2000
"""Longest text that they are given; the rest stands in the run's folder."""
LONGEST_ERROR = 240
"""Characters of a failed tracker's error that are told."""

Sample = Sequence[Mapping[str, Any]]
"""Rollouts, each with the fields of `COLUMNS`."""


class Tracker(Protocol):
    """Takes a run's metrics and some of its rollouts elsewhere."""

    @property
    def place(self) -> str:
        """Where a person finds them."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Takes the metrics of one step, its rollouts having come before."""

    def rollouts(self, step: int, sample: Sample) -> None:
        """Takes a sample of a step's rollouts."""

    def close(self, code: int) -> None:
        """Ends the run there, with its exit code."""


@dataclass(frozen=True)
class Run:
    """A run, as a tracker is told of it."""

    folder: Path
    project: str
    settings: Mapping[str, Any]
    """The resolved configuration."""
    first_step: int = 0
    """Where a resumed run goes on; 0 at the beginning."""
    patience_s: float = NO_ANSWER_S
    """The longest that a server may keep the run waiting."""


class Memory:
    """`trackers.json`: by tracker, the run's id there and the last step it was told; so that curves go on.

    A run that begins at its beginning remembers nothing, whatever its folder holds. One file, several threads.
    """

    def __init__(self, file: Path, *, fresh: bool) -> None:
        self.file = file
        self.lock = threading.Lock()
        self.entries: dict[str, dict[str, Any]] = {}
        if fresh or not file.is_file():
            return
        try:
            self.entries = {name: dict(entry) for name, entry in json.loads(file.read_text()).items()}
        except (OSError, ValueError, TypeError, AttributeError) as error:
            log.warning("%s cannot be read (%s); the trackers begin new curves", file, told(error))

    def run_id(self, name: str) -> str | None:
        """The run's id at a tracker; None where it has none yet."""
        return self.entries.get(name, {}).get("id")

    def last_step(self, name: str) -> int:
        """The last step that a tracker was told; -1 where none."""
        return int(self.entries.get(name, {}).get("step", -1))

    def begin(self, name: str, run_id: str) -> None:
        """Notes a new id; what was told under another one no longer counts."""
        if run_id != self.run_id(name):
            self.write(name, {"id": run_id})

    def tell(self, name: str, step: int) -> None:
        """Notes that a tracker was told a step."""
        self.write(name, {**self.entries.get(name, {}), "step": step})

    def write(self, name: str, entry: dict[str, Any]) -> None:
        """Replaces a tracker's entry, and the file whole."""
        with self.lock:
            self.entries[name] = entry
            aside = self.file.with_name(f".{self.file.name}.partial")
            aside.write_text(json.dumps(self.entries) + "\n")
            os.replace(aside, self.file)


def sample_of(lines: Sequence[Mapping[str, Any]]) -> Sample:
    """What trackers are given of a step's rollout lines: the first of them, long texts cut in their middle."""
    return [{name: shortened(line[field]) for name, field in COLUMNS.items()} for line in lines[:SHOWN_ROLLOUTS]]


def shortened(value: Any) -> Any:
    """A text of at most `SHOWN_CHARACTERS` that UTF-8 can hold, with its beginning and its end; others as they are."""
    if not isinstance(value, str):
        return value
    value = value.encode("utf-8", "backslashreplace").decode()
    if len(value) <= SHOWN_CHARACTERS:
        return value
    half = (SHOWN_CHARACTERS - 5) // 2
    return f"{value[:half]} ... {value[-half:]}"


def told(error: BaseException) -> str:
    """The beginning of an error, on one line."""
    return public(f"{type(error).__name__}: {error}".splitlines()[0])[:LONGEST_ERROR]


def public(text: str) -> str:
    """A text whose addresses tell no user and no password."""
    return re.sub(r"//[^/@\s]*@", "//", text)
