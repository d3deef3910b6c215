"""The verifiers, by data source. Each compares one response with the ground truth of its row."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import replace
from math import isfinite
from typing import Any

from mopd.rewards import chain, choice, code, math_workers, tooluse
from mopd.rewards import math as mathematics
from mopd.rewards.base import Verifier
from mopd.types import Outcome

CODE = Verifier(code.verify, code.check)
MATHEMATICS = Verifier(mathematics.verify, mathematics.check, mathematics.read_answer, mathematics.read_gold)

VERIFIERS: dict[str, Verifier] = {
    "chain": Verifier(chain.verify, chain.read_truth, chain.read_answer),
    "sciknoweval": Verifier(choice.verify, choice.check, choice.read_choice),
    "gpqa": Verifier(choice.GPQA.verify, choice.GPQA.check, choice.GPQA.read),
    "mmlu_pro": Verifier(choice.MMLU_PRO.verify, choice.MMLU_PRO.check, choice.MMLU_PRO.read),
    "tooluse": Verifier(tooluse.verify, tooluse.check, tooluse.read_answer),
    "openai/gsm8k": replace(MATHEMATICS, verify=mathematics.verify_gsm8k, predicted=mathematics.read_gsm8k),
    **dict.fromkeys(("math", "math500", "dapo_math", "gsm8k", "amc23", "aime", "hmmt"), MATHEMATICS),
    **dict.fromkeys(("DeepMath-103K", "zwhe99/DeepMath-103K"), MATHEMATICS),
    **dict.fromkeys(("code", "livecodebench", "humanevalplus", "mbppplus"), CODE),
    **dict.fromkeys(("codeforces", "code_elo", "taco", "apps"), CODE),
}
PREFIXES: tuple[str, ...] = ("aime", "hmmt")
"""Families of data sources that are told by how their names begin, such as `aime` for aime24 and aime25."""


def verifier_of(data_source: str) -> Verifier | None:
    """The verifier of a data source, by its name or else by the beginning of it; None where there is none."""
    prefix = next((prefix for prefix in PREFIXES if data_source.lower().startswith(prefix)), data_source)
    return VERIFIERS.get(data_source, VERIFIERS.get(prefix))


def required(data_source: str) -> Verifier:
    """The verifier of a data source.

    Raises:
        ValueError: none is known.
    """
    verifier = verifier_of(data_source)
    if verifier is None:
        near = difflib.get_close_matches(data_source, VERIFIERS, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"no verifier for data_source {data_source!r}; known: {', '.join(sorted(VERIFIERS))}{hint}"
            " (mopd.rewards.VERIFIERS lists them)"
        )
    return verifier


def predicted(data_source: str, response: str) -> str | None:
    """The answer that a response gives, of which only what follows the last `</think>` counts; None for none."""
    verifier = verifier_of(data_source)
    return None if verifier is None else verifier.predicted(response.rpartition("</think>")[2])


def verify(data_source: str, response: str, ground_truth: str, extra_info: Mapping[str, Any] | None = None) -> Outcome:
    """The verdict on `response`, of which only what follows the last `</think>` counts.

    A verifier that breaks or cannot read the ground truth has not found the response wrong: the outcome is
    unknown, with the reason as feedback. `extra_info` is the row's; verifiers read `split` and `truncated` in it.

    Raises:
        ValueError: no verifier is known for `data_source`.
    """
    verifier = required(data_source)
    answer = response.rpartition("</think>")[2]
    try:
        return checked(verifier.verify(answer, ground_truth, extra_info or {}), f"the {data_source} verifier")
    # The one broad door: whatever breaks in a verifier is our machinery's fault, never the response's.
    except Exception as error:
        return Outcome.unknown(f"the {data_source} verifier failed: {type(error).__name__}: {error}")


def checked(outcome: Outcome, author: str) -> Outcome:
    """The outcome itself if its reward is a number that training can use, else unknown with the reason."""
    reward = outcome.reward
    if reward is not None and not isfinite(reward):
        return Outcome.unknown(f"{author} gave a reward of {reward}, which is not finite")
    return outcome


def check_ground_truth(data_source: str, ground_truth: str, *, thorough: bool = True) -> None:
    """Refuses a ground truth that the verifier of `data_source` could not compare any response with.

    Not `thorough` costs microseconds: for files that were checked when they were made.

    Raises:
        ValueError: the ground truth is malformed, or no verifier is known for `data_source`.
    """
    verifier = required(data_source)
    try:
        (verifier.check if thorough else verifier.glance or verifier.check)(ground_truth)
    except (ValueError, math_workers.WorkerLost) as error:
        raise ValueError(f"data_source {data_source!r}: {error}") from None
