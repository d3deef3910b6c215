"""The attempts that runs left behind, read from candidate rows or from raw rollout lines, in groups by prompt.

A raw line is what a run writes to `rollouts/<step>.jsonl` or `validation/<step>.jsonl`: `input`, `output`, `score`, and
where known `success`, `status`, `uid`, `step`, `rollout_id`. A candidate row is one of `candidate_responses.jsonl`:
`prompt_id`, `prompt`, `response_id`, `response_text`, `reward`, `success`. Both kinds may stand in one file.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SHOWN = 10
"""Faults of a file that are told; of the others only how many there are."""
SUCCESS = 1.0
"""The reward from which on an attempt counts as a success, where no verdict is written down."""


class BadInput(Exception):
    """What the user gave cannot be used; the message says what, and what to change."""


@dataclass(frozen=True)
class Attempt:
    """One response to a prompt."""

    prompt_id: str
    prompt: str
    group: tuple[str, str]
    """The occurrence of the prompt that it was sampled for, and its step: attempts of one group have one policy."""
    response_id: str
    text: str
    reward: float | None
    """None where the verifier could not tell, or no number was written down."""
    success: bool | None
    """None as well: unknown is not wrong."""


Groups = dict[str, list[list[Attempt]]]
"""By prompt, in the order of their ids: its groups."""


def natural(name: str) -> list[tuple[int, str]]:
    """A sorting key by which `r2` comes before `r10`."""
    parts = re.split(r"([0-9]+)", name)
    return [
        (len(part.lstrip("0")), part.lstrip("0")) if place % 2 else (0, part) for place, part in enumerate(parts)
    ] + [(0, name)]


def files_of(path: Path) -> list[Path]:
    """The JSON Lines files that a path names: the file itself, or every one in the folder and those below it.

    Raises:
        BadInput: there is none, or the folder is a whole run, of which only a part is meant.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise BadInput(f"{path}: no such file or folder; name a file of rollouts, or a folder of them")
    if (path / "metrics.jsonl").is_file():
        raise BadInput(f"{path}: is a whole run; name its {path / 'rollouts'}, or a file of its {path / 'validation'}")
    files = sorted(path.rglob("*.jsonl"), key=lambda file: natural(str(file)))
    if not files:
        raise BadInput(f"{path}: holds no file *.jsonl; name a folder of rollouts")
    return files


def read_attempts(path: Path, threshold: float | None = None) -> list[Attempt]:
    """Every attempt of a file or folder, in order.

    With a `threshold` the reward decides about success; without, the row's own verdict, or else a reward of 1.

    Raises:
        BadInput: there is none, a line is no attempt, or one attempt is there twice.
    """
    attempts: list[Attempt] = []
    faults: list[str] = []
    first_seen: dict[tuple[str, tuple[str, str], str], str] = {}
    for file in files_of(path):
        for number, row in rows_of(file):
            where = f"{file}, line {number}"
            try:
                attempt = attempt_of(row, f"{len(attempts)}", threshold)
            except BadInput as fault:
                faults.append(f"{where}: {fault}")
                continue
            before = first_seen.setdefault((attempt.prompt_id, attempt.group, attempt.response_id), where)
            if before != where:
                faults.append(f"{where}: response {attempt.response_id!r} stands at {before} already")
            attempts.append(attempt)
    if faults:
        more = [f"and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else []
        raise BadInput("\n".join([*faults[:SHOWN], *more]))
    if not attempts:
        raise BadInput(f"{path}: holds no attempts")
    return attempts


def rows_of(file: Path) -> Iterator[tuple[int, Any]]:
    """Every line of a JSON Lines file that is not blank, with its number.

    Raises:
        BadInput: the file cannot be read, or a line is no JSON.
    """
    try:
        lines = file.open(encoding="utf-8", errors="replace")
    except OSError as error:
        raise BadInput(f"{file}: cannot be read ({error.strerror})") from None
    with lines:  # not splitlines, which parts lines at characters that a response may hold
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield number, parsed(line, f"{file}, line {number}")


def parsed(line: str, where: str) -> Any:
    """What a line says.

    Raises:
        BadInput: it is no JSON.
    """
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{where}: is no JSON ({error!s:.80})") from None


def attempt_of(row: Any, place: str, threshold: float | None) -> Attempt:
    """The attempt that a row tells of; `place` names it where the row does not.

    Raises:
        BadInput: it lacks what is needed, or a value is of the wrong type.
    """
    if not isinstance(row, dict):
        raise BadInput(f"is {brief(row)}; an object with the fields of an attempt is wanted")
    text = row.get("response_text", row.get("output"))
    if not isinstance(text, str):
        raise BadInput(f"has neither a text `response_text` nor a text `output` (got {brief(text)})")
    reward = reward_of(row)
    return Attempt(
        prompt_id=prompt_id_of(row),
        prompt=next((row[name] for name in ("prompt", "input") if isinstance(row.get(name), str)), ""),
        group=(told(row, "uid"), told(row, "step", "rollout_step")),
        response_id=told(row, "response_id", "rollout_id") or place,
        text=text,
        reward=reward,
        success=success_of(row, reward, threshold),
    )


def prompt_id_of(row: Mapping[str, Any]) -> str:
    """Which prompt a row answers: a raw line's by its text, as candidate rows have it, so that runs can be paired."""
    if "response_text" not in row and isinstance(row.get("input"), str):
        return hashlib.sha1(row["input"].encode("utf-8", "surrogatepass")).hexdigest()[:16]
    if name := told(row, "prompt_id"):
        return name
    raise BadInput("has neither `prompt_id` nor a text `input`; attempts are compared within a prompt")


def told(row: Mapping[str, Any], *names: str) -> str:
    """The first of these fields that holds a text or an integer, as text; empty where none does."""
    return next((str(row[name]) for name in names if isinstance(row.get(name), (str, int))), "")


def reward_of(row: Mapping[str, Any]) -> float | None:
    """A row's reward; None where it is null, missing or no finite number (NaN)."""
    value = row.get("reward", row.get("score"))
    if value is None:
        return None
    if not isinstance(value, (bool, int, float)):
        raise BadInput(f"has {brief(value)} as its reward; a number or null is wanted")
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def success_of(row: Mapping[str, Any], reward: float | None, threshold: float | None) -> bool | None:
    """Whether the attempt succeeded; None where nobody could tell."""
    if row.get("status") == "unknown":
        return None
    if threshold is None and isinstance(row.get("success"), bool):
        return bool(row["success"])
    return None if reward is None else reward >= (SUCCESS if threshold is None else threshold)


def brief(value: Any) -> str:
    """A value as a message shows it."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def grouped(
    attempts: Iterable[Attempt], *, pooled: bool = False, at_least: int = 2, responses: int | None = None
) -> Groups:
    """Attempts by prompt and group: prompts sorted by their ids, attempts within a group by theirs (`r2` before `r10`).

    Args:
        pooled: all attempts at a prompt are one group, whatever step and policy they come from.
        at_least: smaller groups are left out.
        responses: only the first so many attempts of a group.
    """
    by_prompt: dict[str, dict[tuple[str, str], list[Attempt]]] = {}
    for attempt in attempts:
        group = ("", "") if pooled else attempt.group
        by_prompt.setdefault(attempt.prompt_id, {}).setdefault(group, []).append(attempt)
    groups: Groups = {}
    for prompt_id in sorted(by_prompt, key=natural):
        kept = [
            sorted(group, key=lambda attempt: natural(attempt.response_id))[:responses]
            for group in by_prompt[prompt_id].values()
        ]
        if enough := [group for group in kept if len(group) >= at_least]:
            groups[prompt_id] = enough
    return groups
