"""Which siblings a teacher is shown for each rollout of a group (paper section 3).

Departures from the published code:

1. Peers are chosen in sampling order by a generator that is handed in, before any balancing over devices.
2. An unknown outcome is neither a success nor a failure.
3. Two successes of the same text are one peer, and a response that shows nothing is none.
4. Every choice says why it was made, every slot that stays empty says why not.
"""

from __future__ import annotations

import difflib
import random
from collections.abc import Callable, Iterator, Sequence

from mopd.contexts import ContextSettings, displayed
from mopd.types import Group, Outcome, PeerChoice, Peers, Rollout, Slot, View

Policy = Callable[[Sequence[Rollout], random.Random], tuple[list[Rollout], str]]
"""Orders candidates, the preferred first, and says in words how."""


def drawn(candidates: Sequence[Rollout], rng: random.Random) -> tuple[list[Rollout], str]:
    """At random without replacement."""
    return rng.sample(candidates, len(candidates)), f"drawn from {len(candidates)} of the group"


def lowest(candidates: Sequence[Rollout], rng: random.Random) -> tuple[list[Rollout], str]:
    """By sampling position: what the published code does on one device."""
    return list(candidates), f"first of {len(candidates)} of the group"


POLICIES: dict[str, Policy] = {"random": drawn, "first": lowest}


def verdict(outcome: Outcome, threshold: float) -> bool | None:
    """Whether an outcome is a success (a reward of at least `threshold`); None when the reward is unknown."""
    return None if outcome.reward is None else outcome.reward >= threshold


def choose_peers(
    group: Group,
    settings: ContextSettings,
    rng: random.Random,
    *,
    threshold: float,
    policy: str = "random",
) -> tuple[Peers, ...]:
    """The peers of each rollout of a verified group, in sampling order.

    A failed rollout is never shown to itself, a successful one only without `dont_reprompt_on_self_success`.
    As published, the primary success is set aside even where `include_primary_solution` is off: `another` is
    always a second success, and `when_no_solution` asks whether there is a first.

    Raises:
        ValueError: the policy is unknown, or rollouts and outcomes are not as many.
    """
    if policy not in POLICIES:
        near = difflib.get_close_matches(policy, POLICIES, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown peer policy {policy!r}; known: {', '.join(sorted(POLICIES))}{hint}")
    if len(group.outcomes) != len(group.rollouts):
        raise ValueError(
            f"group {group.uid} has {len(group.rollouts)} rollouts and {len(group.outcomes)} outcomes;"
            " verify every rollout before choosing peers"
        )
    verdicts = [verdict(outcome, threshold) for outcome in group.outcomes]
    return tuple(
        _peers_of(own, group, verdicts, settings, lambda candidates: POLICIES[policy](candidates, rng))
        for own in range(len(group.rollouts))
    )


def _peers_of(
    own: int,
    group: Group,
    verdicts: Sequence[bool | None],
    settings: ContextSettings,
    rank: Callable[[Sequence[Rollout]], tuple[list[Rollout], str]],
) -> Peers:
    """The peers of the rollout at position `own`."""

    def candidates(success: bool, own_too: bool) -> list[Rollout]:
        return [
            rollout
            for index, (rollout, known) in enumerate(zip(group.rollouts, verdicts, strict=True))
            if known is success and (own_too or index != own) and displayed(rollout.text, settings).strip()
        ]

    successes, success_how = rank(candidates(True, own_too=not settings.dont_reprompt_on_self_success))
    failures, failure_how = rank(candidates(False, own_too=False))
    distinct = _distinct(successes, settings)
    unknown = sum(known is None for index, known in enumerate(verdicts) if index != own)
    among = f"among the {len(verdicts) - 1} siblings" + (f" ({unknown} unknown)" if unknown else "")
    none = f"no success {among}"
    failure_wanted = settings.include_failure_solution and (
        settings.failure_solution_condition == "always" or not distinct
    )
    slots: list[tuple[Slot, bool, list[Rollout], str, str]] = [
        ("primary", settings.include_primary_solution, distinct[:1], f"success, {success_how}", none),
        (
            "another",
            settings.include_another_solution,
            distinct[1:2],
            f"second success, {success_how}",
            "only one distinct success" if distinct else none,
        ),
        ("failure", failure_wanted, failures[:1], f"failure, {failure_how}", f"no failure {among}"),
    ]
    picked = {slot: (pick[0], reason) for slot, wanted, pick, reason, _ in slots if wanted and pick}
    texts = {slot: rollout.text for slot, (rollout, _) in picked.items()}
    return Peers(
        primary=texts.get("primary"),
        another=texts.get("another"),
        failure=texts.get("failure"),
        feedback=_own_feedback(group.outcomes[own]) if settings.include_environment_feedback else None,
        choices=tuple(PeerChoice(slot, rollout.rollout_id, reason) for slot, (rollout, reason) in picked.items()),
        fallbacks=tuple(f"{slot}: {cause}" for slot, wanted, pick, _, cause in slots if wanted and not pick),
    )


def _distinct(rollouts: Sequence[Rollout], settings: ContextSettings) -> list[Rollout]:
    """Without those that would read like one before them."""
    by_text: dict[str, Rollout] = {}
    for rollout in rollouts:
        by_text.setdefault(displayed(rollout.text, settings).strip(), rollout)
    return list(by_text.values())


def _own_feedback(outcome: Outcome) -> str | None:
    """What the environment said about a failed rollout."""
    return outcome.feedback if outcome.status == "wrong" and outcome.feedback.strip() else None


def peer_metrics(views: Sequence[View], groups: Sequence[Group], *, threshold: float = 1.0) -> dict[str, float]:
    """What the teachers of a step are shown, as fractions of its rollouts (the first one: of its groups).

    Only what a usable view really shows is counted; feedback is available where the verifier gave a failed
    rollout any, shown or not.

    Args:
        views: one per rollout, in the order of `groups` and of their rollouts.
        threshold: the reward from which a rollout is a success, as for `choose_peers`.

    Raises:
        ValueError: there is not one view per outcome.
    """
    outcomes = [outcome for group in groups for outcome in group.outcomes]
    if len(outcomes) != len(views):
        raise ValueError(f"one view per rollout is wanted; got {len(views)} views of {len(outcomes)} outcomes")
    shown = [view.peers if view.usable else Peers() for view in views]
    counts: dict[str, Iterator[bool]] = {
        "success_group": (any(verdict(outcome, threshold) for outcome in group.outcomes) for group in groups),
        "success_sample": (peers.primary is not None for peers in shown),
        "another_solution": (peers.another is not None for peers in shown),
        "failure_solution": (peers.failure is not None for peers in shown),
        "feedback_available": (_own_feedback(outcome) is not None for outcome in outcomes),
        "feedback_used": (peers.feedback is not None for peers in shown),
        "reprompt_sample": (view.usable for view in views),
    }
    return {f"self_distillation/{name}_fraction": _mean(values) for name, values in counts.items()}


def _mean(values: Iterator[bool]) -> float:
    """The share of True; 0 of nothing."""
    listed = list(values)
    return sum(listed) / max(1, len(listed))
