"""The verifiers, by data source. Each compares one response with the ground truth of its row."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from typing import Any

from mopd.rewards import chain, choice
from mopd.types import Outcome

Verifier = Callable[[str, str], Outcome]
"""From response and ground truth to a verdict; raises on a malformed ground truth, whatever the response."""

VERIFIERS: dict[str, Verifier] = {
    "chain": chain.verify,
    "sciknoweval": choice.verify,
}


PREDICTORS: dict[str, Callable[[str], str | None]] = {
    "chain": chain.read_answer,
    "sciknoweval": choice.read_choice,
}
"""What a response answers, by data source; for majority votes."""


def predicted(data_source: str, response: str) -> str | None:
    """The answer that a response gives, of which only what follows the last `</think>` counts; None for none."""
    read = PREDICTORS.get(data_source)
    return None if read is None else read(response.rpartition("</think>")[2])


def verify(data_source: str, response: str, ground_truth: str, extra_info: Mapping[str, Any] | None = None) -> Outcome:
    """The verdict on `response`, of which only what follows the last `</think>` counts.

    A verifier that breaks or cannot read the ground truth has not found the response wrong: the outcome is
    unknown, with the reason as feedback. No verifier needs `extra_info` so far.

    Raises:
        ValueError: no verifier is known for `data_source`.
    """
    if data_source not in VERIFIERS:
        near = difflib.get_close_matches(data_source, VERIFIERS, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"no verifier for data_source {data_source!r}; known: {', '.join(sorted(VERIFIERS))}{hint}"
            " (mopd.rewards.VERIFIERS lists them)"
        )
    answer = response.rpartition("</think>")[2]
    try:
        outcome = VERIFIERS[data_source](answer, ground_truth)
        finite = outcome.reward is None or math.isfinite(outcome.reward)
    # The one broad door: whatever breaks in a verifier is our machinery's fault, never the response's.
    except Exception as error:
        return Outcome.unknown(f"the {data_source} verifier failed: {type(error).__name__}: {error}")
    if not finite:
        return Outcome.unknown(f"the {data_source} verifier gave a reward of {outcome.reward}, which is not finite")
    return outcome


def check_ground_truth(data_source: str, ground_truth: str) -> None:
    """Refuses a ground truth that the verifier of `data_source` could not compare any response with.

    Raises:
        ValueError: the ground truth is malformed, or no verifier is known for `data_source`.
    """
    outcome = verify(data_source, "", ground_truth)
    if outcome.status == "unknown":
        raise ValueError(outcome.feedback)
