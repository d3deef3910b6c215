"""The verifier of the embedded `chain` task: the form of the chain, and its last result."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from mopd.types import Outcome

WANTED_FORM = "one step per operator, such as 7 + 5 = 2 ; 2 * 3 = 6"
"""What a response that does not read as a chain is told."""

STEP = re.compile(r"([0-9]) [-+*] ([0-9]) = ([0-9])")


def read_truth(ground_truth: str) -> tuple[int, int]:
    """The number of steps and the last result that `{"steps": 3, "value": 8}` asks for.

    Raises:
        ValueError: it is not a JSON object with a positive `steps` and a digit as `value`.
    """
    wanted = f'a JSON object such as {{"steps": 3, "value": 8}}; got {ground_truth!r}'
    try:
        truth = json.loads(ground_truth)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"the ground truth of a chain must be {wanted}") from error
    if not isinstance(truth, dict):
        raise ValueError(f"the ground truth of a chain must be {wanted}")
    steps, value = truth.get("steps"), truth.get("value")
    if type(steps) is not int or steps < 1 or type(value) is not int or not 0 <= value <= 9:
        raise ValueError(f"the ground truth of a chain must be {wanted}")
    return steps, value


def read_answer(response: str) -> str | None:
    """The last result of a chain, a digit; None where the response does not end as one."""
    last = STEP.fullmatch(response.strip()[-9:])
    return None if last is None else last.group(3)


def verify(response: str, ground_truth: str, extra_info: Mapping[str, Any] | None = None) -> Outcome:
    """Right iff `response` is a chain of exactly the asked number of steps that ends in the right result.

    Only the last result counts, so mistakes that cancel each other are right: outcomes, not proofs. White
    space around the whole response is ignored, and nothing else. The feedback says which form is wanted,
    never the result.

    Raises:
        ValueError: the ground truth cannot be read.
    """
    steps, value = read_truth(ground_truth)
    # The length is compared first, so that the work stays bounded whatever the response is.
    parts = response.strip().split(" ; ", steps)
    matches = [STEP.fullmatch(part) for part in parts]
    if len(parts) != steps or None in matches:
        return Outcome.of(False, WANTED_FORM)
    last = matches[-1]
    return Outcome.of(last is not None and int(last.group(3)) == value)
