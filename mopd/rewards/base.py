"""What a verifier is: a verdict on a response, a check of its rows, and what a response answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mopd.types import Outcome


def no_prediction(response: str) -> str | None:
    """For tasks whose answers cannot be counted."""
    return None


@dataclass(frozen=True)
class Verifier:
    """The functions of one family of tasks; a response comes without its thinking."""

    verify: Callable[[str, str, Mapping[str, Any]], Outcome]
    """From response, ground truth and the row's `extra_info` to a verdict; raises on a malformed ground truth."""
    check: Callable[[str], object]
    """Raises ValueError where no response could be compared with this ground truth; runs no program of the row."""
    predicted: Callable[[str], str | None] = no_prediction
    """What a response answers, for majority votes; None where it gives no answer."""
    glance: Callable[[str], object] | None = None
    """As `check`, as far as can be said at once; None where `check` says all at once."""
