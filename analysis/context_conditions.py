"""The contexts that are compared: what each shows a teacher, by its published name, and how others are asked for.

| condition | shows |
|---|---|
| `base`, `base_raw` | the student's own prompt; the two are one |
| `base_reprompt` | the prompt and the closing instruction, without any section |
| `solution` | a successful sibling |
| `another_solution` | the second successful sibling, alone |
| `solution+another_solution` | both |
| `all_solutions` | every successful sibling of a text of its own |
| `failure_solution`, `failure_only` | a failed sibling; the two are one |
| `solution+failure_solution`, `solution+another_solution+failure_solution` | as named; the last is the method's 2S1F |
| `feedback`, `solution+feedback` | the environment's feedback on the response itself |
| `summary_success_k2`, `solution+summary_success_k2` | summaries of two successful siblings |
| `solution+feedback+summary_all_k2` | with summaries of siblings right or wrong |
| `random_summary_control` | as many summaries as `summary_success_k2`, of other prompts' successes |
| `random_peer` | as many siblings as 2S1F, whatever their verdicts: labels may be false |
| `verifier_score_ordered` | as many siblings as 2S1F, those of the highest reward |
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from json_lines import BadInput, brief

from mopd.contexts import ContextSettings
from mopd.controls import CONTROLS
from mopd.peers import POLICIES

SCORE_ORDERED = "verifier_score_ordered"
PEER_CONTROLS = (*CONTROLS, SCORE_ORDERED)
SUMMARY_CONTROL = "random_other_prompt"
SWITCHES = frozenset(
    {
        "include_primary_solution",
        "include_another_solution",
        "include_failure_solution",
        "include_environment_feedback",
        "environment_feedback_only_without_solution",
        "summarize_solutions",
        "dont_reprompt_on_self_success",
        "include_truncated_peers",
        "summary_k",
        "summary_source",
        "summary_from_all",
    }
)
"""What of `ContextSettings` the variants and the other global keys decide, and not `context`."""


@dataclass(frozen=True)
class Condition:
    """One way to fill a teacher's prompt, by the published switches."""

    name: str
    include_solution: bool = False
    include_another_solution: bool = False
    include_failure_solution: bool = False
    include_feedback: bool = False
    include_summary: bool = False
    include_all_solutions: bool = False
    """Every further success too."""
    summary_from_all: bool = False
    """Summaries of failed siblings too."""
    summary_control: str | None = None
    """`random_other_prompt`, or none."""
    peer_control: str | None = None
    """One of `PEER_CONTROLS`, or none."""
    force_reprompt: bool = False
    """The closing instruction, even where there is nothing to show."""
    force_raw_prompt: bool = False
    """The student's prompt, whatever there is."""


@dataclass(frozen=True)
class Selection:
    """What holds for all conditions."""

    dont_reprompt_on_self_success: bool = True
    feedback_only_without_solution: bool = False
    summary_k: int = 2
    summary_sampling_policy: str = "random"
    """Published, and read by nobody there; summaries are drawn as in training."""
    peer_policy: str = "random"
    """One of `mopd.peers.POLICIES`."""
    include_truncated_peers: bool = False
    context: Mapping[str, Any] = field(default_factory=dict)
    """Templates and whatever else of `ContextSettings` is not decided by a condition."""

    def settings(self, condition: Condition) -> ContextSettings:
        """The settings with which a condition's peers are shown."""
        return replace(
            ContextSettings(**self.context),
            include_primary_solution=condition.include_solution,
            include_another_solution=condition.include_another_solution,
            include_failure_solution=condition.include_failure_solution,
            include_environment_feedback=condition.include_feedback,
            environment_feedback_only_without_solution=self.feedback_only_without_solution,
            dont_reprompt_on_self_success=self.dont_reprompt_on_self_success,
            include_truncated_peers=self.include_truncated_peers,
            summarize_solutions=condition.include_summary or condition.summary_control is not None,
            summary_k=self.summary_k,
            summary_from_all=condition.summary_from_all,
        )


EVERYTHING = Condition("everything", True, True, True, True)
"""2S1F and feedback: what all conditions choose from."""
TWO_AND_ONE = Condition("solution+another_solution+failure_solution", True, True, True)
CONDITIONS = (
    Condition("base"),
    Condition("base_raw", force_raw_prompt=True),
    Condition("base_reprompt", force_reprompt=True),
    Condition("solution", include_solution=True),
    Condition("another_solution", include_another_solution=True),
    Condition("solution+another_solution", include_solution=True, include_another_solution=True),
    Condition("all_solutions", include_solution=True, include_another_solution=True, include_all_solutions=True),
    Condition("failure_solution", include_failure_solution=True),
    Condition("solution+failure_solution", include_solution=True, include_failure_solution=True),
    TWO_AND_ONE,
    Condition("feedback", include_feedback=True),
    Condition("summary_success_k2", include_summary=True),
    Condition("solution+feedback", include_solution=True, include_feedback=True),
    Condition("solution+summary_success_k2", include_solution=True, include_summary=True),
    Condition(
        "solution+feedback+summary_all_k2",
        include_solution=True,
        include_feedback=True,
        include_summary=True,
        summary_from_all=True,
    ),
    Condition("failure_only", include_failure_solution=True),
    Condition("random_summary_control", summary_control=SUMMARY_CONTROL),
    replace(TWO_AND_ONE, name="random_peer", peer_control="random_peer"),
    replace(TWO_AND_ONE, name=SCORE_ORDERED, peer_control=SCORE_ORDERED),
)
"""The published conditions, in their order."""

Part = TypeVar("Part", Condition, Selection)


def read_config(file: Path | None) -> tuple[Selection, tuple[Condition, ...]]:
    """What a JSON file asks for: `{"global": {...}, "variants": [{"name": ...}, ...]}`; either may be missing.

    Raises:
        BadInput: it cannot be read, or asks for what there is not.
    """
    if file is None:
        return Selection(), CONDITIONS
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"--variant-config {file}: cannot be read ({error!s:.120})") from None
    if not isinstance(document, dict) or set(document) - {"global", "variants"}:
        raise BadInput(
            f'--variant-config {file}: must be {{"global": {{...}}, "variants": [...]}}; got {brief(document)}'
        )
    where = f"--variant-config {file}"
    selection = part_of(Selection, document.get("global", {}), f"{where}: global")
    listed = document.get("variants", [asdict(condition) for condition in CONDITIONS])
    if not isinstance(listed, list) or not listed:
        raise BadInput(f"{where}: variants must be a list of at least one; got {brief(listed)}")
    conditions = tuple(part_of(Condition, one, f"{where}: variant {place}") for place, one in enumerate(listed))
    names = [condition.name for condition in conditions]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise BadInput(f"{where}: the names {', '.join(twice)} are there twice; a variant needs a name of its own")
    check(selection, conditions, where)
    return selection, conditions


def part_of(kind: type[Part], told: Any, where: str) -> Part:
    """One part of the configuration.

    Raises:
        BadInput: a key is unknown or missing, or a value is of the wrong type.
    """
    known = {one.name: one for one in fields(kind)}
    if not isinstance(told, dict):
        raise BadInput(f"{where} must be an object; got {brief(told)}")
    if unknown := sorted(set(told) - set(known)):
        raise BadInput(f"{where}: unknown {', '.join(map(repr, unknown))}; known are {', '.join(known)}")
    if kind is Condition and not (isinstance(told.get("name"), str) and told["name"].strip()):
        raise BadInput(f"{where}: has {brief(told.get('name'))} as its name; a text is wanted")
    for name, value in told.items():
        if fault := wrong_type(str(known[name].type), value):
            raise BadInput(f"{where}: {name} is {brief(value)}; {fault} is wanted")
    return kind(**told)


def wrong_type(kind: str, value: Any) -> str:
    """What is wanted, in words, where a value is not of this type; else empty."""
    if kind == "bool":
        return "" if isinstance(value, bool) else "true or false"
    if kind == "int":
        return "" if isinstance(value, int) and not isinstance(value, bool) and value > 0 else "an integer from 1"
    if kind.startswith("Mapping"):
        return "" if isinstance(value, dict) else "an object"
    return "" if isinstance(value, str) or (value is None and "None" in kind) else "a text"


def check(selection: Selection, conditions: tuple[Condition, ...], where: str) -> None:
    """Refuses names of what there is not.

    Raises:
        BadInput: a policy, a control or a setting is unknown, or a template cannot be filled.
    """
    if selection.peer_policy not in POLICIES:
        raise BadInput(f"{where}: peer_policy {selection.peer_policy!r} is none of {', '.join(POLICIES)}")
    if decided := sorted(set(selection.context) & SWITCHES):
        raise BadInput(f"{where}: context.{decided[0]} is decided by the variants; leave it out")
    for condition in conditions:
        if condition.peer_control not in (None, *PEER_CONTROLS):
            raise BadInput(
                f"{where}: {condition.name} has peer_control {condition.peer_control!r}; known are"
                f" {', '.join(PEER_CONTROLS)}"
            )
        if condition.summary_control not in (None, SUMMARY_CONTROL):
            raise BadInput(
                f"{where}: {condition.name} has summary_control {condition.summary_control!r}; known is"
                f" {SUMMARY_CONTROL}"
            )
        try:
            selection.settings(condition)
        except (TypeError, ValueError) as error:
            raise BadInput(f"{where}: {error}") from None
