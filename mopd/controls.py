"""Matched-budget controls: teachers shown as much as the method would show, but of other content.

| mode                 | blocks are                                           | shown as                    |
|----------------------|------------------------------------------------------|-----------------------------|
| random_peer          | any siblings, right or wrong                         | what the method would show: |
|                      |                                                      | labels may be false         |
| unrelated_prompt     | successes of other prompts of the step               | successes                   |
| success_only_matched | successes of the group, topped up from other prompts | successes                   |

The budget is what the method itself, with its switches and its policy, would have shown for that rollout: as many
blocks (`block`), or about as many response tokens (`token`). Without a budget there are no control blocks.

Departures from the published code: the budget is that of the very peers the method would choose, its failure
included; a token budget is met by the nearest count, not by the first one beyond it; texts are distinct; another
occurrence of the same row is no unrelated prompt; every shortfall is told; and the feedback rule and the metrics
describe the blocks shown, nothing else.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from mopd.contexts import KEY, ContextSettings
from mopd.peers import Siblings, choose_peers
from mopd.types import Group, PeerChoice, Peers, Rollout, View

ControlMode = Literal["none", "random_peer", "unrelated_prompt", "success_only_matched"]
ControlMatch = Literal["block", "token"]
TOPPED_UP = "topped up: "
"""How the reason goes on of a block from another prompt where the group had too few."""
SHORT = "control: short"
"""How the fallback begins of a rollout that is shown less than its budget, for want of candidates."""


@dataclass(frozen=True)
class Candidate:
    """A response that a control may show."""

    rollout: Rollout
    text: str
    """As a teacher would read it, without outer white space."""
    tokens: int
    origin: str
    """In words."""


@dataclass(frozen=True)
class Pools:
    """What a control may draw on for one rollout, in no order of preference."""

    right: Sequence[Candidate]
    """Successes of the group."""
    wrong: Sequence[Candidate]
    """Failures of the group."""
    others: Sequence[Candidate]
    """Successes of other prompts."""


@dataclass(frozen=True)
class Budget:
    """The response tokens of each block that the method would have shown."""

    successes: tuple[int, ...]
    failures: tuple[int, ...]
    by_tokens: bool
    """Counts tokens, not blocks."""

    @property
    def blocks(self) -> tuple[int, ...]:
        """All blocks, in the order in which they are filled."""
        return (*self.successes, *self.failures)


Control = Callable[[Budget, Pools, random.Random], tuple[list[Candidate], bool]]
"""The blocks of one rollout, and whether candidates ran out before the budget was met."""


def random_peer(budget: Budget, pools: Pools, rng: random.Random) -> tuple[list[Candidate], bool]:
    """A distinct sibling per block, whatever its outcome; for `token` the nearest in length to the block it replaces.

    Once a token budget is met no block follows, so that at most a part of the last one is too much.
    """
    left = _shuffled([*pools.right, *pools.wrong], rng)
    picked: list[Candidate] = []
    for size in budget.blocks:
        if budget.by_tokens and _tokens(picked) >= sum(budget.blocks):
            return picked, False
        if not left:
            return picked, True
        nearest = min(left, key=lambda one: abs(one.tokens - size) if budget.by_tokens else 0)
        left.remove(nearest)
        picked.append(nearest)
    return picked, False


def unrelated_prompt(budget: Budget, pools: Pools, rng: random.Random) -> tuple[list[Candidate], bool]:
    """Successes of other prompts."""
    return _filled(_shuffled(pools.others, rng), budget)


def success_only_matched(budget: Budget, pools: Pools, rng: random.Random) -> tuple[list[Candidate], bool]:
    """Successes of the group, then those of other prompts."""
    own = _shuffled(pools.right, rng)
    known = {candidate.text for candidate in own}
    others = [candidate for candidate in _shuffled(pools.others, rng) if candidate.text not in known]
    return _filled(own + [replace(one, origin=TOPPED_UP + one.origin) for one in others], budget)


CONTROLS: dict[str, Control] = {
    "random_peer": random_peer,
    "unrelated_prompt": unrelated_prompt,
    "success_only_matched": success_only_matched,
}


def _shuffled(candidates: Sequence[Candidate], rng: random.Random) -> list[Candidate]:
    """At random, without those that would read like one before them."""
    by_text: dict[str, Candidate] = {}
    for candidate in rng.sample(candidates, len(candidates)):
        by_text.setdefault(candidate.text, candidate)
    return list(by_text.values())


def _filled(candidates: list[Candidate], budget: Budget) -> tuple[list[Candidate], bool]:
    """The first candidates, as many as the budget has blocks, or to the count nearest to its tokens (at least one)."""
    wanted = len(budget.blocks)
    if not budget.by_tokens:
        return candidates[:wanted], len(candidates) < wanted
    target, picked = sum(budget.blocks), candidates[:1]
    for candidate in candidates[1:]:
        missing = target - _tokens(picked)
        if abs(missing - candidate.tokens) >= missing:
            return picked, False
        picked.append(candidate)
    return picked, _tokens(picked) < target


def _tokens(picked: Sequence[Candidate]) -> int:
    """Tokens of all blocks."""
    return sum(candidate.tokens for candidate in picked)


def response_tokens(rollout: Rollout) -> int:
    """Tokens of the whole response, thinking included: what the published code matches."""
    return sum(len(segment.token_ids) for segment in rollout.segments)


def choose_control_peers(
    groups: Sequence[Group],
    settings: ContextSettings,
    mode: str,
    match: str,
    rng: random.Random,
    threshold: float,
    *,
    policy: str = "random",
    orders: Sequence[Sequence[int]] | None = None,
    tokens: Callable[[Rollout], int] = response_tokens,
) -> tuple[Peers, ...]:
    """The control's peers of each rollout of a step, over groups and rollouts in sampling order.

    The first success fills `primary`, the second `another`, further ones `more`; each has a choice of slot
    `control` that says under which template it is shown.

    Args:
        mode: a key of `CONTROLS`.
        match: `block` or `token`.
        policy: chooses the peers whose budget is matched.
        orders: for each group, the `order` of `choose_peers`.
        tokens: the size of a response, for `token`.

    Raises:
        ValueError: mode or match is unknown, or as `choose_peers`.
    """
    if mode not in CONTROLS:
        raise ValueError(f"{KEY}.peer_control_mode must be {' or '.join(CONTROLS)} for a control; got {mode!r}")
    if match not in get_args(ControlMatch):
        raise ValueError(f"{KEY}.peer_control_match must be {' or '.join(get_args(ControlMatch))}; got {match!r}")
    plain = replace(settings, summarize_solutions=False)
    read = [
        Siblings.of(group, plain, threshold, orders[number] if orders else None) for number, group in enumerate(groups)
    ]
    by_group = [_candidates(siblings, tokens) for siblings in read]
    chosen: list[Peers] = []
    for siblings, candidates in zip(read, by_group, strict=True):
        others = _others(siblings.group, read, by_group)
        references = choose_peers(siblings.group, plain, rng, threshold=threshold, policy=policy, order=siblings.order)
        for own, reference in enumerate(references):
            right, wrong = ([candidates[index] for index in siblings.showable(own, label)] for label in (True, False))
            budget = _budget(reference, candidates, match)
            chosen.append(_control(mode, reference, budget, Pools(right, wrong, others), rng))
    return tuple(chosen)


def _candidates(siblings: Siblings, tokens: Callable[[Rollout], int]) -> list[Candidate]:
    """Every rollout of a group, by sampling position."""
    return [
        Candidate(rollout, text, tokens(rollout), "success of the group" if success else "failure of the group")
        for rollout, text, success in zip(siblings.group.rollouts, siblings.texts, siblings.verdicts, strict=True)
    ]


def _others(group: Group, read: Sequence[Siblings], by_group: Sequence[Sequence[Candidate]]) -> list[Candidate]:
    """The successes of the prompts that are not that of `group`."""
    return [
        replace(candidates[index], origin=f"success of prompt {siblings.group.prompt.prompt_id}")
        for siblings, candidates in zip(read, by_group, strict=True)
        if siblings.group.prompt.prompt_id != group.prompt.prompt_id
        for index in siblings.showable(-1, True)
    ]


def _budget(reference: Peers, candidates: Sequence[Candidate], match: str) -> Budget:
    """What the method would have shown."""
    sizes = {candidate.rollout.rollout_id: candidate.tokens for candidate in candidates}
    failures = tuple(sizes[choice.rollout_id] for choice in reference.choices if choice.slot == "failure")
    successes = tuple(sizes[choice.rollout_id] for choice in reference.choices if choice.slot != "failure")
    return Budget(successes, failures, match == "token")


def _control(mode: str, reference: Peers, budget: Budget, pools: Pools, rng: random.Random) -> Peers:
    """The peers of one rollout."""
    if not budget.blocks:
        cause = f"control: no budget, as the method would show no peer ({'; '.join(reference.fallbacks)})"
        return Peers(feedback=reference.feedback, fallbacks=(cause,))
    picked, short = CONTROLS[mode](budget, pools, rng)
    split = len(budget.successes) if mode == "random_peer" else len(picked)
    labels = ["solution"][:split] + ["another solution"] * (split - 1) + ["failure"] * len(budget.failures)
    texts = [candidate.rollout.text for candidate in picked]
    successes, failures = texts[:split], texts[split:]
    had = f"{_tokens(picked)} of {sum(budget.blocks)} tokens"
    if not budget.by_tokens:
        had = f"{len(picked)} of {len(budget.blocks)} blocks"
    return Peers(
        primary=next(iter(successes), None),
        another=next(iter(successes[1:]), None),
        more=tuple(successes[2:]),
        failure=next(iter(failures), None),
        feedback=reference.feedback,
        choices=tuple(
            PeerChoice("control", candidate.rollout.rollout_id, f"as {label}: {candidate.origin}")
            for candidate, label in zip(picked, labels, strict=False)
        ),
        fallbacks=(f"{SHORT}, {had}",) if short else (),
    )


def control_metrics(views: Sequence[View], mode: str) -> dict[str, float]:
    """What the usable views of a step show of a control, by the published names; zeros for mode `none`.

    A block counts as the success or failure it is shown as. `topup` counts blocks from other prompts where the
    group had too few successes, `shortfall` the rollouts that are shown less than their budget.
    """
    shown = [view.peers for view in views if view.usable and view.peers.controlled]
    right = sum(len(peers.more) + sum(text is not None for text in (peers.primary, peers.another)) for peers in shown)
    wrong = sum(peers.failure is not None for peers in shown)
    metrics = {
        "active": float(mode != "none"),
        "block_total": float(right + wrong),
        "success_block_total": float(right),
        "failure_block_total": float(wrong),
        "blocks_per_sample": (right + wrong) / max(1, len(views)),
        "topup_count": float(sum(TOPPED_UP in choice.reason for peers in shown for choice in peers.choices)),
        "shortfall_count": float(sum(cause.startswith(SHORT) for view in views for cause in view.peers.fallbacks)),
    }
    return {f"self_distillation/peer_control_{name}": value for name, value in metrics.items()}
