"""Which siblings a teacher is shown for each rollout of a group (paper section 3).

Departures from the published code:

1. Peers are chosen in sampling order by a generator that is handed in, before any balancing over devices.
2. An unknown outcome is neither a success nor a failure, and neither is a response that was cut before its end.
3. Two successes of the same text are one peer, and a response that shows nothing is none.
4. Every choice says why it was made, every slot that stays empty says why not.
"""

from __future__ import annotations

import difflib
import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from mopd.contexts import ContextSettings, displayed
from mopd.summaries import Summaries, draw_summaries
from mopd.types import Group, Outcome, PeerChoice, Peers, Prompt, Slot, View

Policy = Callable[[Sequence[str], random.Random], tuple[list[int], str]]
"""Orders the positions of candidate texts, the preferred first, and says in words how."""
FALLBACKS = ("primary", "another", "failure", "summary", "control", "shortened", "teacher prompt")
"""What `Peers.fallbacks` begin with: a slot that stayed empty, or what fitting to the length limit cost."""
REFERENCE_KEYS = ("reference_solution", "solution")
"""Where a data row may hold a reference solution, the preferred first."""


def lowest(texts: Sequence[str], rng: random.Random) -> tuple[list[int], str]:
    """By the order given: what the published code does."""
    return list(range(len(texts))), f"first of {len(texts)} of the group"


def drawn(texts: Sequence[str], rng: random.Random) -> tuple[list[int], str]:
    """At random without replacement."""
    return rng.sample(range(len(texts)), len(texts)), f"drawn from {len(texts)} of the group"


def shortest(texts: Sequence[str], rng: random.Random) -> tuple[list[int], str]:
    """By number of characters; the generator decides between equals."""
    order, _ = drawn(texts, rng)
    return sorted(order, key=lambda index: len(texts[index])), f"shortest of {len(texts)} of the group"


def diverse(texts: Sequence[str], rng: random.Random) -> tuple[list[int], str]:
    """The first at random, the others by how few of their words they share with it (`likeness`)."""
    order, _ = drawn(texts, rng)
    rest = sorted(order[1:], key=lambda index: likeness(texts[order[0]], texts[index]))
    return order[:1] + rest, f"drawn for unlikeness from {len(texts)} of the group"


POLICIES: dict[str, Policy] = {"random": drawn, "first": lowest, "shortest": shortest, "diverse": diverse}


def likeness(one: str, other: str) -> float:
    """Share of the distinct words of two texts that both have (Jaccard); 1 where neither has any."""
    words, others = (set(re.findall(r"\w+", text.lower())) for text in (one, other))
    return len(words & others) / len(words | others) if words | others else 1.0


@dataclass(frozen=True)
class Siblings:
    """A verified group as peers are chosen from it; rollouts are named by their sampling position."""

    group: Group
    verdicts: tuple[bool | None, ...]
    """[G], whether each is a success; None for unknown, and for a cut response unless such are included."""
    texts: tuple[str, ...]
    """[G], as a teacher would read them, without outer white space."""
    order: tuple[int, ...]
    """[G], in which candidates are listed."""
    own_too: bool
    """A successful rollout may be its own demonstration."""

    @classmethod
    def of(
        cls, group: Group, settings: ContextSettings, threshold: float, order: Sequence[int] | None = None
    ) -> Siblings:
        """`group`, judged and read.

        Raises:
            ValueError: rollouts and outcomes are not as many, or `order` does not name every position once.
        """
        positions = range(len(group.rollouts))
        if len(group.outcomes) != len(positions):
            raise ValueError(
                f"group {group.uid} has {len(positions)} rollouts and {len(group.outcomes)} outcomes;"
                " verify every rollout before choosing peers"
            )
        if order is not None and sorted(order) != list(positions):
            raise ValueError(f"order must name each of {len(positions)} positions of group {group.uid}; got {order}")
        return cls(
            group,
            tuple(
                outcome.succeeds(threshold) if settings.include_truncated_peers or not rollout.truncated else None
                for rollout, outcome in zip(group.rollouts, group.outcomes, strict=True)
            ),
            tuple(displayed(rollout.text, settings).strip() for rollout in group.rollouts),
            tuple(positions if order is None else order),
            not settings.dont_reprompt_on_self_success,
        )

    def showable(self, own: int, success: bool) -> list[int]:
        """The successes (or failures) that may be shown to `own`; a failure is never shown to itself."""
        return [
            index
            for index in self.order
            if self.verdicts[index] is success and self.texts[index] and (index != own or (success and self.own_too))
        ]

    def distinct(self, positions: Iterable[int]) -> list[int]:
        """Without those that would read like one before them."""
        by_text: dict[str, int] = {}
        for index in positions:
            by_text.setdefault(self.texts[index], index)
        return list(by_text.values())

    def among(self, own: int) -> str:
        """In words, who was there to choose from."""
        unknown = sum(known is None for index, known in enumerate(self.verdicts) if index != own)
        return f"among the {len(self.verdicts) - 1} siblings" + (f" ({unknown} unknown)" if unknown else "")


def choose_peers(
    group: Group,
    settings: ContextSettings,
    rng: random.Random,
    *,
    threshold: float,
    policy: str = "random",
    order: Sequence[int] | None = None,
    failures_at_random: bool = False,
) -> tuple[Peers, ...]:
    """The peers of each rollout of a verified group, in sampling order.

    A failed rollout is never shown to itself, a successful one only without `dont_reprompt_on_self_success`.
    As published, the primary success is set aside even where `include_primary_solution` is off: `another` is
    always a second success, and `when_no_solution` asks whether there is a first.

    Args:
        order: sampling positions in the order in which policy `first` meets them; as sampled where None.
        failures_at_random: draws the failed sibling whatever the policy, as the published code does.

    Raises:
        ValueError: the policy is unknown, or as `Siblings.of`.
    """
    if policy not in POLICIES:
        near = difflib.get_close_matches(policy, POLICIES, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown peer policy {policy!r}; known: {', '.join(sorted(POLICIES))}{hint}")
    siblings = Siblings.of(group, settings, threshold, order)
    by_success = {True: POLICIES[policy], False: drawn if failures_at_random else POLICIES[policy]}
    return tuple(_peers_of(own, siblings, settings, by_success, rng) for own in range(len(group.rollouts)))


def _peers_of(
    own: int, siblings: Siblings, settings: ContextSettings, policies: Mapping[bool, Policy], rng: random.Random
) -> Peers:
    """The peers of the rollout at position `own`."""
    group = siblings.group

    def rank(success: bool) -> tuple[list[int], str]:
        candidates = siblings.showable(own, success)
        ranked, how = policies[success]([siblings.texts[index] for index in candidates], rng)
        return siblings.distinct(candidates[index] for index in ranked), how

    (successes, success_how), (failures, failure_how) = rank(True), rank(False)
    among = siblings.among(own)
    none = f"no success {among}"
    failure_wanted = settings.include_failure_solution and (
        settings.failure_solution_condition == "always" or not successes
    )
    slots: list[tuple[Slot, bool, list[int], str, str]] = [
        ("primary", settings.include_primary_solution, successes[:1], f"success, {success_how}", none),
        (
            "another",
            settings.include_another_solution,
            successes[1:2],
            f"second success, {success_how}",
            "only one distinct success" if successes else none,
        ),
        ("failure", failure_wanted, failures[:1], f"failure, {failure_how}", f"no failure {among}"),
    ]
    picked = {slot: (group.rollouts[pick[0]], reason) for slot, wanted, pick, reason, _ in slots if wanted and pick}
    texts = {slot: rollout.text for slot, (rollout, _) in picked.items()}
    summaries = _summaries_of(own, successes[:1], siblings, settings, rng)
    return Peers(
        primary=texts.get("primary"),
        another=texts.get("another"),
        failure=texts.get("failure"),
        feedback=_own_feedback(group.outcomes[own]) if settings.include_environment_feedback else None,
        summaries=summaries.texts,
        failed_summaries=summaries.failed,
        choices=(
            *(PeerChoice(slot, rollout.rollout_id, reason) for slot, (rollout, reason) in picked.items()),
            *summaries.choices,
        ),
        fallbacks=(
            *(f"{slot}: {cause}" for slot, wanted, pick, _, cause in slots if wanted and not pick),
            *summaries.fallbacks,
        ),
    )


def _summaries_of(
    own: int, primary: Sequence[int], siblings: Siblings, settings: ContextSettings, rng: random.Random
) -> Summaries:
    """Summaries of all but the primary peer, shown or not, and the rollout itself (unless it may be shown itself)."""
    if not settings.summarize_solutions:
        return Summaries()
    left_out = {*primary, *(() if siblings.own_too else (own,))}
    pool = [index for index in siblings.order if index not in left_out]
    return draw_summaries([(siblings.group.rollouts[index], siblings.verdicts[index]) for index in pool], settings, rng)


def _own_feedback(outcome: Outcome) -> str | None:
    """What the environment said about a failed rollout."""
    return outcome.feedback if outcome.status == "wrong" and outcome.feedback.strip() else None


def reference_peers(prompt: Prompt) -> Peers:
    """The reference solution of the data row in place of a successful peer (OPSD); nothing where the row has none."""
    for key in REFERENCE_KEYS:
        solution = prompt.extra_info.get(key)
        if isinstance(solution, str) and solution.strip():
            return Peers(primary=solution, choices=(PeerChoice("primary", "", f"extra_info.{key} of the data row"),))
    return Peers(fallbacks=(f"primary: no {' or '.join(REFERENCE_KEYS)} in extra_info of row {prompt.prompt_id}",))


def balanced_order(lengths: Sequence[int], ranks: int) -> list[int]:
    """The order in which the published code meets the samples of a step after balancing them over devices.

    Each device gets as many samples; its own come by length, the even positions first and then the odd ones in
    reverse. On one device that is the published order. Over several, the longest samples go first to the device
    with the fewest tokens, where the published code solves the same task by differencing.

    Example: `balanced_order([30, 10, 20, 40], 1)` is `[1, 0, 3, 2]`.

    Args:
        lengths: tokens of prompt and response of each sample, in sampling order.

    Raises:
        ValueError: the samples cannot be dealt evenly.
    """
    if ranks < 1 or len(lengths) % ranks:
        raise ValueError(f"{len(lengths)} samples cannot be dealt evenly to {ranks} devices")
    shares: list[list[int]] = [[] for _ in range(ranks)]
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        room = [share for share in shares if len(share) < len(lengths) // ranks]
        min(room, key=lambda share: sum(lengths[member] for member in share)).append(index)
    by_length = [sorted(share, key=lambda index: (lengths[index], index)) for share in shares]
    return [index for share in by_length for index in (*share[::2], *reversed(share[1::2]))]


def group_orders(order: Sequence[int], sizes: Sequence[int]) -> list[list[int]]:
    """An order of a step's samples as one order of sampling positions per group, for `choose_peers`.

    Args:
        sizes: rollouts of each group, in sampling order.
    """
    starts = [sum(sizes[:number]) for number in range(len(sizes))]
    return [
        [index - start for index in order if start <= index < start + size]
        for start, size in zip(starts, sizes, strict=True)
    ]


def peer_metrics(views: Sequence[View], groups: Sequence[Group], *, threshold: float = 1.0) -> dict[str, float]:
    """What the teachers of a step are shown, as fractions of its rollouts (the first one: of its groups).

    Only what a usable view really shows is counted; feedback is available where the verifier gave a failed
    rollout any, shown or not. Fallbacks are counted by kind, in unusable views too.

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
    fractions: dict[str, Iterable[bool]] = {
        "success_group": (any(outcome.succeeds(threshold) for outcome in group.outcomes) for group in groups),
        "success_sample": (peers.primary is not None for peers in shown),
        "another_solution": (peers.another is not None for peers in shown),
        "failure_solution": (peers.failure is not None for peers in shown),
        "feedback_available": (_own_feedback(outcome) is not None for outcome in outcomes),
        "feedback_used": (peers.feedback is not None for peers in shown),
        "reprompt_sample": (view.usable for view in views),
    }
    kinds = [fallback.partition(":")[0] for view in views for fallback in view.peers.fallbacks]
    return {f"self_distillation/{name}_fraction": _mean(values) for name, values in fractions.items()} | {
        f"self_distillation/fallback_{kind.replace(' ', '_')}_count": float(kinds.count(kind)) for kind in FALLBACKS
    }


def _mean(values: Iterable[bool]) -> float:
    """The share of True; 0 of nothing."""
    listed = list(values)
    return sum(listed) / max(1, len(listed))
