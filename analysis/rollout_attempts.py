"""The attempts in rollout files, each line checked, and their groups: the attempts of one occurrence of a prompt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from json_lines import BadInput, all_faults, brief, rows_of
from row_files import finite, natural, short_hash

TEXTS = ("data_source", "feedback", "feedback_text", "finish_reason", "status")
"""Fields that hold a text, or null where nothing is known."""


@dataclass(frozen=True)
class Attempt:
    """One line of a rollout file."""

    row: Mapping[str, Any]
    file: Path
    number: int

    @property
    def prompt(self) -> str:
        """The flattened prompt."""
        return str(self.row.get("prompt", "") if "response_text" in self.row else self.row["input"])

    @property
    def prompt_id(self) -> str:
        """The first characters of the SHA-1 of the prompt."""
        return short_hash(self.prompt, length=16)

    @property
    def text(self) -> str:
        """The response."""
        return str(self.row.get("response_text", self.row.get("output")))

    @property
    def reward(self) -> float | None:
        """None where nobody could tell."""
        unknown = self.row.get("status") == "unknown"
        return None if unknown else finite(self.row.get("reward", self.row.get("score")))

    @property
    def step(self) -> int | None:
        """The step that it was sampled in; None where the line does not say."""
        step: int | None = self.row.get("step", self.row.get("rollout_step"))
        return step

    @property
    def occurrence(self) -> tuple[str, str, str]:
        """The folder, step and draw that it belongs to."""
        return str(self.file.parent), str(self.step), str(self.row.get("uid", ""))

    @property
    def name(self) -> str | None:
        """What tells it from its siblings; None where the line has no such name."""
        names = (self.row.get(name) for name in ("response_id", "rollout_id"))
        return next((str(name) for name in names if name is not None), None)


Group = list[tuple[int, Attempt]]
"""The attempts at one occurrence of a prompt, each with its number among all that were read of the prompt."""


@dataclass
class LeftOut:
    """What of the input is not in the data set, by reason."""

    groups: Counter[str] = field(default_factory=Counter)
    """Whole groups."""
    responses: Counter[str] = field(default_factory=Counter)

    def add(self, reason: str, group: Group) -> None:
        """Takes a whole group."""
        self.groups[reason] += 1
        self.responses[reason] += len(group)


def read_attempts(files: Iterable[Path]) -> list[Attempt]:
    """Every attempt of the files, in order.

    Raises:
        BadInput: a line is no attempt, one attempt is there twice, or there is none.
    """
    attempts, faults = list[Attempt](), list[str]()
    first_seen: dict[tuple[object, ...], str] = {}
    for file in files:
        for number, row in rows_of(file):
            where = f"{file}, line {number}"
            if fault := fault_of(row):
                faults.append(f"{where}: {fault}")
                continue
            attempt = Attempt(row, file, number)
            # Lines without a name may be equal: siblings can write the same.
            before = first_seen.setdefault((attempt.prompt_id, attempt.occurrence, attempt.name or where), where)
            if before != where:
                faults.append(f"{where}: response {attempt.name!r} stands at {before} already")
            attempts.append(attempt)
    if faults:
        raise all_faults(faults)
    if not attempts:
        raise BadInput("--input: holds no rollouts")
    return attempts


def fault_of(row: Any) -> str:
    """Why a line is no attempt, in words; empty where it is one."""
    if not isinstance(row, dict):
        return f"is {brief(row)}; an object with the fields of a rollout is wanted"
    prompt, text = ("prompt", "response_text") if "response_text" in row else ("input", "output")
    for name in (prompt, text):
        if not isinstance(row.get(name), str):
            return f"has {brief(row.get(name))} as its `{name}`; a text is wanted"
    for name in TEXTS:
        if not isinstance(row.get(name), (str, type(None))):
            return f"has {brief(row[name])} as its `{name}`; a text or null is wanted"
    if not isinstance(row.get("extra_info"), (dict, type(None))):
        return f"has {brief(row['extra_info'])} as its `extra_info`; an object or null is wanted"
    reward = row.get("reward", row.get("score"))
    if reward is not None and not isinstance(reward, (bool, int, float)):
        return f"has {brief(reward)} as its reward; a number or null is wanted"
    if "response_text" not in row and "score" not in row and "reward" not in row:
        return "has neither `score` nor `reward`; was it verified?"
    return place_fault(row)


def place_fault(row: Mapping[str, Any]) -> str:
    """What is wrong with the fields that say which group and attempt a line is of; empty where nothing is."""
    for name in ("uid", "rollout_id", "response_id", "prompt_id"):
        value = row.get(name, "")
        if name != "uid" and value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            return f"has {brief(value)} as its `{name}`; a text or an integer is wanted, or no such field"
    step = row.get("step", 0)
    if "step" not in row and row.get("rollout_step") is not None:
        step = row["rollout_step"]
    if isinstance(step, bool) or not isinstance(step, int) or step < 0:
        return f"has {brief(step)} as its step; an integer of at least 0 is wanted, or no such field"
    return ""


def grouped(attempts: Sequence[Attempt], occurrences: str, least: int, left: LeftOut) -> dict[str, Group]:
    """The groups of at least so many attempts, by prompt.

    A prompt is named by its `prompt_id`, and by a number behind it where all occurrences count. Of those that occur
    often the `last` occurrence is taken that is large enough.
    """
    by_prompt: dict[str, dict[tuple[str, str, str], Group]] = {}
    counts = Counter[str]()
    for attempt in attempts:
        key = ("", "", "") if occurrences == "pool" else attempt.occurrence
        by_prompt.setdefault(attempt.prompt_id, {}).setdefault(key, []).append((counts[attempt.prompt_id], attempt))
        counts[attempt.prompt_id] += 1
    groups: dict[str, Group] = {}
    for prompt_id, found in by_prompt.items():
        in_time = sorted(found, key=lambda key: (natural(key[1]), natural(key[2]), natural(key[0])))
        numbered = {f"{prompt_id}.{number}": found[key] for number, key in enumerate(in_time)}
        enough = {name: group for name, group in numbered.items() if len(group) >= least}
        for name, group in numbered.items():
            if name not in enough:
                left.add("too_small", group)
        if occurrences == "each" and len(found) > 1:
            groups |= enough
        elif enough:
            *earlier, groups[prompt_id] = enough.values()
            for group in earlier:
                left.add("earlier", group)
    return groups
