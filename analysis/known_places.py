"""Where in a response the right next token is known, and whether what stands before it is flawed already.

A teacher that has read a solution may copy it by position: it then asks for the solution's next token even where the
student has left the solution's path. *Off-path* accuracy tells: the probability that it gives to the right next token
after a flawed prefix. Which token is right there has to be known, and so the places come from one of two rules.

`step`    Tasks whose steps can be checked one by one, which is the embedded `chain` alone. A response that is a chain
          of its problem has a place at each result: right is the result of the operands *as they are written*, and the
          prefix is flawed once a result before it is not the problem's. Right and wrong responses have such places.
`answer`  Tasks whose answers a verifier can read. A failed response has one place: where its wrong answer stands, after
          reasoning that led to it. Right is the answer that makes the response right, by the verifier's own word.

All other responses have none: what is not known is absent. The two rules ask different things (to go on rightly from a
mistake; to resist it in the end), so a figure of one is never to be compared with a figure of the other.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mopd.rewards import predicted, verifier_of, verify
from mopd.rewards.chain import STEP

Rule = Literal["step", "answer"]
QUESTION = re.compile(r"calc ([0-9])((?: [-+*] [0-9])+)")
SEPARATOR = " ; "
MODULUS = 10


@dataclass(frozen=True)
class Place:
    """A place in a response at which the right continuation is known."""

    start: int
    """Characters of the response before it: the prefix."""
    written: str
    """What the response has there."""
    right: str
    """What would be right after that prefix."""
    flawed: bool
    """Whether the prefix holds a mistake already."""
    rule: Rule


def places_of(
    data_source: str, question: str, response: str, ground_truth: str, *, success: bool | None, extra: Mapping[str, Any]
) -> list[Place]:
    """The known places of a response, in order; none where the task has no rule, or the response does not fit it."""
    if data_source == "chain":
        return chain_places(question, response)
    if success is not False or verifier_of(data_source) is None:
        return []
    return answer_places(data_source, response, ground_truth, extra)


def chain_places(question: str, response: str) -> list[Place]:
    """A place for each result of a chain that works out `question`; none where the response is no such chain."""
    asked = QUESTION.search(question)
    if asked is None:
        return []
    left, signs = int(asked.group(1)), re.findall(r" ([-+*]) ([0-9])", asked.group(2))
    parts = response.strip().split(SEPARATOR)
    if len(parts) != len(signs):
        return []
    true = carried = left
    start, flawed, places = len(response) - len(response.lstrip()), False, list[Place]()
    for part, (sign, operand) in zip(parts, signs, strict=True):
        step = STEP.fullmatch(part)
        if step is None or not part.startswith(f"{carried} {sign} {operand} ="):
            return []
        right = result(carried, sign, int(operand))
        places.append(Place(start + step.start(3), step.group(3), str(right), flawed, "step"))
        true, carried = result(true, sign, int(operand)), int(step.group(3))
        flawed = flawed or carried != true
        start += len(part) + len(SEPARATOR)
    return places


def result(left: int, sign: str, right: int) -> int:
    """The result of one step of the embedded task."""
    return {"+": left + right, "-": left - right, "*": left * right}[sign] % MODULUS


def answer_places(data_source: str, response: str, ground_truth: str, extra: Mapping[str, Any]) -> list[Place]:
    """The place of a wrong answer, where writing the ground truth instead makes the response right."""
    answer, gold = predicted(data_source, response), ground_truth.strip()
    start = response.rfind(answer) if answer else -1
    if answer is None or start < 0 or not gold:
        return []
    mended = response[:start] + gold + response[start + len(answer) :]
    if verify(data_source, mended, ground_truth, extra).status != "right":
        return []
    return [Place(start, answer, gold, True, "answer")]
