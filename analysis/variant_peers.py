"""Which siblings each condition shows: chosen once per response, by the rule of training, and then shown in part.

All conditions choose from the same draw, so that `solution` and `solution+another_solution` show the same first sibling
and differ by the second alone. A response's draw depends on the seed and on its own group, and on nothing else.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from context_conditions import EVERYTHING, SCORE_ORDERED, Condition, Selection
from row_files import Row, natural

from mopd.contexts import ContextSettings
from mopd.controls import choose_control_peers
from mopd.peers import Siblings, choose_peers
from mopd.summaries import candidates, draw_summaries
from mopd.types import Group, Outcome, PeerChoice, Peers, Prompt, Rollout, Segment

NOTHING = Segment(np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.float32))
"""Rows know texts, not tokens, and nothing here counts tokens."""
CROSS_PROMPT = ("unrelated_prompt", "success_only_matched")
"""Controls that take from other prompts."""
ENOUGH = 16
"""Responses of other prompts that are looked at for each summary that is wanted; some may be blank or equal."""


def group_of(rows: Sequence[Row]) -> Group:
    """The candidate rows of one prompt as a verified group, in sampling order."""
    first = rows[0]
    messages = first.get("prompt_messages") or [{"role": "user", "content": first["prompt"]}]
    prompt = Prompt(first["prompt_id"], tuple(messages), str(first.get("data_source") or ""), "")
    rollouts = tuple(
        Rollout(row["response_id"], (NOTHING,), row["response_text"], str(row.get("finish_reason") or "stop"), 0)
        for row in rows
    )
    return Group(first["prompt_id"], prompt, np.zeros(0, dtype=np.int32), rollouts, tuple(map(outcome_of, rows)))


def outcome_of(row: Row) -> Outcome:
    """The verdict in a candidate row, whatever the reward was from which it is a success."""
    if row["success"] is None:
        return Outcome.unknown(str(row.get("feedback_text") or ""))
    return Outcome.of(row["success"], str(row.get("feedback_text") or ""))


@dataclass(frozen=True)
class GroupPeers:
    """What may be shown to every response of a group."""

    rows: Sequence[Row]
    group: Group
    selection: Selection
    seed: int
    others: Sequence[tuple[Rollout, bool | None]]
    """Successes of other prompts."""
    controls: Mapping[str, tuple[Peers, ...]]
    """By condition, the peers of a matched-budget control."""

    @property
    def full(self) -> ContextSettings:
        """The switches with which every slot is filled."""
        return self.selection.settings(EVERYTHING)

    @cached_property
    def siblings(self) -> Siblings:
        """The group, judged and read."""
        return Siblings.of(self.group, self.full, 1.0)

    @cached_property
    def chosen(self) -> tuple[Peers, ...]:
        """2S1F and feedback for every response."""
        draw = random.Random(f"peers {self.seed} {self.group.uid}")
        return choose_peers(self.group, self.full, draw, threshold=1.0, policy=self.selection.peer_policy)

    def of(self, own: int, condition: Condition) -> Peers:
        """The peers of a condition for the response at position `own`, some of which its settings may still hide."""
        if condition.force_raw_prompt or condition.force_reprompt:
            return Peers()
        if condition.peer_control is not None:
            peers = self.controlled(own, condition)
        else:
            peers = self.chosen[own]
        if condition.include_all_solutions and condition.peer_control is None:
            peers = replace(peers, more=self.further(own))
        return self.summarised(own, peers, condition)

    def further(self, own: int) -> tuple[str, ...]:
        """Successes of texts that neither the first nor the second has."""
        shown = {text.strip() for text in (self.chosen[own].primary, self.chosen[own].another) if text is not None}
        distinct = self.siblings.distinct(self.siblings.showable(own, True))
        texts = [self.group.rollouts[index].text for index in distinct]
        return tuple(text for text, index in zip(texts, distinct, strict=True) if not self.reads_like(index, shown))

    def reads_like(self, index: int, shown: set[str]) -> bool:
        """Whether a teacher reads the response at `index` as one of `shown`, thinking aside."""
        return self.siblings.texts[index] in shown or self.group.rollouts[index].text.strip() in shown

    def controlled(self, own: int, condition: Condition) -> Peers:
        """The blocks of a control; no feedback unless the condition has it."""
        if condition.peer_control == SCORE_ORDERED:
            peers = self.by_score(own)
        else:
            peers = self.controls[condition.name][own]
        return replace(peers, feedback=self.chosen[own].feedback if condition.include_feedback else None)

    def by_score(self, own: int) -> Peers:
        """As many siblings as 2S1F shows, those of the highest reward, then by number; each with its true label."""
        budget = len(self.chosen[own].choices)
        able = self.siblings.distinct(
            index
            for index in sorted(range(len(self.rows)), key=self.rank)
            if self.siblings.verdicts[index] is not None and self.siblings.texts[index] and index != own
        )[:budget]
        right = [self.group.rollouts[index] for index in able if self.siblings.verdicts[index]]
        wrong = [self.group.rollouts[index] for index in able if not self.siblings.verdicts[index]]
        labels = [*("success" for _ in right), *("failure" for _ in wrong)]
        return Peers(
            primary=right[0].text if right else None,
            another=right[1].text if len(right) > 1 else None,
            more=tuple(rollout.text for rollout in right[2:]),
            failure=wrong[0].text if wrong else None,
            choices=tuple(
                PeerChoice("control", rollout.rollout_id, f"{label}, by reward")
                for rollout, label in zip([*right, *wrong[:1]], labels, strict=False)
            ),
            fallbacks=() if budget else ("control: no budget, as the method would show no peer",),
        )

    def rank(self, index: int) -> tuple[float, list[tuple[int, str]]]:
        """The place of a response in an order by reward."""
        reward = self.rows[index].get("reward")
        return -(0.0 if reward is None else float(reward)), natural(self.rows[index]["response_id"])

    def summarised(self, own: int, peers: Peers, condition: Condition) -> Peers:
        """The peers with the summaries of a condition."""
        if not condition.include_summary and condition.summary_control is None:
            return peers
        settings = self.selection.settings(condition)
        first = next((choice.rollout_id for choice in self.chosen[own].choices if choice.slot == "primary"), None)
        left_out = {own if self.selection.dont_reprompt_on_self_success else None}
        pool = [
            (rollout, verdict)
            for index, (rollout, verdict) in enumerate(zip(self.group.rollouts, self.siblings.verdicts, strict=True))
            if index not in left_out and rollout.rollout_id != first
        ]
        kind = "other" if condition.summary_control else "all" if condition.summary_from_all else "success"
        draw = random.Random(f"summaries {kind} {self.seed} {self.rows[own]['response_id']}")
        if condition.summary_control is not None:
            count = min(settings.summary_k, len({text for _, _, text in candidates(pool, settings)}))
            pool = draw.sample(self.others, min(len(self.others), ENOUGH * count))
            settings = replace(settings, summary_k=max(1, count))
        found = draw_summaries(pool, settings, draw)
        return replace(
            peers,
            summaries=found.texts,
            failed_summaries=found.failed,
            choices=(*peers.choices, *found.choices),
            fallbacks=(*peers.fallbacks, *found.fallbacks),
        )


def control_peers(
    groups: Sequence[Group], condition: Condition, selection: Selection, seed: int
) -> list[tuple[Peers, ...]]:
    """For every group the peers of a matched-budget control, as many blocks as 2S1F would show.

    A control that takes from the group alone is drawn for each group by itself, others for all at once.
    """
    mode = str(condition.peer_control)
    settings = selection.settings(replace(EVERYTHING, include_feedback=condition.include_feedback))

    def drawn(some: Sequence[Group], name: str) -> tuple[Peers, ...]:
        draw = random.Random(f"control {mode} {seed} {name}")
        return choose_control_peers(some, settings, mode, "block", draw, 1.0, policy=selection.peer_policy)

    if mode not in CROSS_PROMPT:
        return [drawn([group], group.uid) for group in groups]
    peers = iter(drawn(groups, "all"))
    return [tuple(next(peers) for _ in group.rollouts) for group in groups]
