"""Files of one JSON object per line, and what is said of those that are something else."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

SHOWN = 10
"""Faults of a file that are told; of the others only how many there are."""


class BadInput(Exception):
    """What the user gave cannot be used; the message says what, and what to change."""


def rows_of(file: Path) -> Iterator[tuple[int, Any]]:
    """Every line that is not blank, with its number.

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


def all_faults(faults: Sequence[str]) -> BadInput:
    """One fault that tells of many."""
    more = [f"and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else []
    return BadInput("\n".join([*faults[:SHOWN], *more]))


def brief(value: Any) -> str:
    """A value as a message shows it."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
