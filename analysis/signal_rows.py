"""The rows of `teacher_scores.jsonl`, checked, and whether a context showed what its condition promises."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from context_conditions import CONDITIONS
from json_lines import BadInput, all_faults, brief, rows_of
from signal_metrics import Scored

SUCCESS = 1.0
"""The reward from which on a response counts as a success, where no verdict is written down."""
DIGITS = 5
"""Of scores: what is beyond depends on which responses were computed together, and would part equal ones."""
LARGEST = 1e9
"""Of numbers that can be meant: a log-prob, a reward or a length beyond it is a mistake."""

SECTIONS = ("solution", "another_solution", "failure_solution", "feedback", "summary")


def required_sections(spec: Mapping[str, Any]) -> tuple[str, ...]:
    """The sections without which a context is not what its specification promises.

    Controls fill their slots with whatever they draw; they promise the first slot, or summaries.
    """
    if spec.get("force_raw_prompt"):
        return ()
    if spec.get("peer_control"):
        return ("solution",)
    return tuple(
        name for name in SECTIONS if spec.get(f"include_{name}") or (name == "summary" and spec.get("summary_control"))
    )


REQUIRED = {condition.name: required_sections(asdict(condition)) for condition in CONDITIONS}
"""What the published conditions promise, in their order."""


@dataclass(frozen=True)
class Row:
    """One scored response."""

    condition: str
    target_type: str
    prompt_id: str
    bucket: str
    """How hard the prompt is."""
    effective: bool | None
    """Whether the context had all sections that its condition promises; None where nobody knows which these are."""
    scored: Scored


def read_scores(file: Path) -> list[Row]:
    """Every row of a file of scores, in order.

    Raises:
        BadInput: it cannot be read, holds nothing, a row lacks what is needed, or one row is there twice.
    """
    rows: list[Row] = []
    faults: list[str] = []
    first_seen: dict[tuple[str, ...], int] = {}
    for number, line in rows_of(file):
        try:
            rows.append(row_of(line))
        except BadInput as fault:
            faults.append(f"{file}, line {number}: {fault}")
            continue
        if before := known_before(line, number, first_seen):
            faults.append(f"{file}, line {number}: the same variant and target stand at line {before} already")
    if faults:
        raise all_faults(faults)
    if not rows:
        raise BadInput(f"{file}: holds no scores; score_teacher_contexts.py writes them")
    return rows


def known_before(line: Mapping[str, Any], number: int, first_seen: dict[tuple[str, ...], int]) -> int | None:
    """The line at which this variant and target stand already; None where it is new, or rows have no such names."""
    names = (line.get("variant_id"), line.get("target_id"))
    if not all(isinstance(name, str) for name in names):
        return None
    before = first_seen.setdefault(tuple(map(str, names)), number)
    return before if before != number else None


def row_of(line: Any) -> Row:
    """The row that a line tells of.

    Raises:
        BadInput: it lacks what is needed, or a value is of the wrong type.
    """
    if not isinstance(line, dict):
        raise BadInput(f"is {brief(line)}; an object with the fields of a score is wanted")
    if "teacher_score" not in line and "teacher_avg_token_logprob" not in line:
        raise BadInput("has neither `teacher_score` nor `teacher_avg_token_logprob`; is it a file of scores?")
    score = number_of(line, "teacher_score", "teacher_avg_token_logprob")
    if line.get("teacher_response_len") == 0:
        score = None  # nothing was scored: the mean of no tokens is not 0, the best of all
    reward = number_of(line, "reward")
    success = flag_of(line, "success")
    return Row(
        condition=name_of(line, "condition"),
        target_type=name_of(line, "target_type"),
        prompt_id=name_of(line, "prompt_id"),
        bucket=line["difficulty_bucket"] if isinstance(line.get("difficulty_bucket"), str) else "unknown",
        effective=is_effective(line),
        scored=Scored(
            score=None if score is None else round(score, DIGITS),
            reward=reward,
            success=reward >= SUCCESS if success is None and reward is not None else success,
            prompt_length=number_of(line, "teacher_prompt_len"),
            truncated=flag_of(line, "teacher_prompt_truncated"),
            shown=flag_of(line, "target_in_context"),
            off_path_probability=number_of(line, "off_path_probability"),
            off_path_correct=flag_of(line, "off_path_correct"),
            on_path_probability=number_of(line, "on_path_probability"),
            on_path_correct=flag_of(line, "on_path_correct"),
        ),
    )


def name_of(line: Mapping[str, Any], name: str) -> str:
    """A text that must be there."""
    value = line.get(name)
    if not isinstance(value, str) or not value:
        raise BadInput(f"has {brief(value)} as its `{name}`; a text is wanted")
    return value


def number_of(line: Mapping[str, Any], *names: str) -> float | None:
    """The first of these numbers that is there; None where it is null or no finite number (NaN)."""
    name = next((name for name in names if name in line), names[0])
    value = line.get(name)
    if value is None:
        return None
    if not isinstance(value, (bool, int, float)):
        raise BadInput(f"has {brief(value)} as its `{name}`; a number or null is wanted")
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if abs(value) > LARGEST:
        raise BadInput(f"has {brief(value)} as its `{name}`; a number up to {LARGEST:g} is wanted")
    return float(value)


def flag_of(line: Mapping[str, Any], name: str) -> bool | None:
    """A truth value, or None where it is null or missing."""
    value = line.get(name)
    if value is not None and not isinstance(value, bool):
        raise BadInput(f"has {brief(value)} as its `{name}`; true, false or null is wanted")
    return value


def is_effective(line: Mapping[str, Any]) -> bool | None:
    """Whether the context had all sections that its condition promises; None where it is not known which these are."""
    spec, used = line.get("variant_spec"), line.get("sections_used")
    promised = required_sections(spec) if isinstance(spec, dict) else REQUIRED.get(str(line.get("condition")))
    if not promised:
        return None if promised is None else True
    return all(used.get(name) for name in promised) if isinstance(used, dict) else None
