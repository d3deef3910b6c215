"""The teacher's prompts of a step: views chosen in sampling order, rendered and fitted to the length limit."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from mopd.contexts import ContextSettings, Truncation, build_view, fit_view, truncate_ids
from mopd.controls import choose_control_peers, control_metrics
from mopd.methods import ViewKind
from mopd.peers import balanced_order, choose_peers, group_orders, peer_metrics, reference_peers
from mopd.summaries import summary_metrics
from mopd.types import Group, IntArray, Peers, View
from trainer.prompts import Renderer


@dataclass(frozen=True)
class Context:
    """What the teacher sees for one rollout."""

    view: View
    text: str | None
    """The rendered teacher prompt; None where the view is not usable."""
    prompt_ids: IntArray | None
    """[L]; None where the view is not usable."""


@dataclass(frozen=True)
class PeerRule:
    """How the siblings of a rollout are chosen."""

    policy: str
    success_threshold: float
    control: str
    """Matched-budget control in place of peers; `none` for peers."""
    control_match: str
    published_order: bool
    """Meets candidates in the order of the published code, after its balancing."""
    ranks: int
    """Devices of that balancing."""
    seed: int


@dataclass(frozen=True)
class ContextBuilder:
    """Builds one context per rollout; for a method without a teacher (`kind` None) none is usable."""

    kind: ViewKind | None
    settings: ContextSettings
    rule: PeerRule
    renderer: Renderer
    """Of the student's prompts; what it decodes are the student's tokens."""
    teacher: Renderer
    """Of the teacher's prompts."""
    max_prompt_length: int
    truncation: Truncation

    def build(self, groups: Sequence[Group], step: int) -> list[Context]:
        """One context per rollout, in sampling order; the same for the same seed, step and rollouts."""
        rollouts = [(group, rollout.rollout_id) for group in groups for rollout in group.rollouts]
        if self.kind is None or self.kind == "prompt":
            usable = self.kind == "prompt"
            return [self.rendered(View(group.prompt.messages, usable)) for group, _ in rollouts]
        shown = zip(rollouts, self.peers_of(groups, step), strict=True)
        return [self.rendered(self.view_of(group, rollout_id, peers)) for (group, rollout_id), peers in shown]

    @property
    def by_group(self) -> bool:
        """Whether what a rollout's teacher sees depends on its own group alone."""
        return self.rule.control == "none" and not self.rule.published_order

    def peers_of(self, groups: Sequence[Group], step: int) -> list[Peers]:
        """What may be shown for every rollout, in sampling order."""
        if self.kind == "reference":
            return [reference_peers(group.prompt) for group in groups for _ in group.rollouts]
        rule = self.rule
        orders = published_orders(groups, rule.ranks) if rule.published_order else [None] * len(groups)
        if rule.control == "none":
            return [
                peers
                for group, order in zip(groups, orders, strict=True)
                for peers in choose_peers(
                    group,
                    self.settings,
                    # Of its own for every group, so that a group's peers are the same whenever it is looked at.
                    random.Random(f"peers {rule.seed} {step} {group.uid}"),
                    threshold=rule.success_threshold,
                    policy=rule.policy,
                    order=order,
                    failures_at_random=rule.published_order,
                )
            ]
        known = [order for order in orders if order is not None]
        return list(
            choose_control_peers(
                groups,
                self.settings,
                rule.control,
                rule.control_match,
                random.Random(f"peers {rule.seed} {step}"),
                rule.success_threshold,
                policy=rule.policy,
                orders=known or None,
            )
        )

    def view_of(self, group: Group, rollout_id: str, peers: Peers) -> View:
        """The view of one rollout, made to fit."""
        if self.truncation in ("right", "left"):
            return build_view(group.prompt.messages, peers, self.settings)
        return fit_view(
            group.prompt.messages,
            peers,
            self.settings,
            limit=self.max_prompt_length,
            length=self.teacher.length,
            shorten=self.teacher.shorten,
            truncation=self.truncation,
            rollout_id=rollout_id,
        )

    def rendered(self, view: View) -> Context:
        """A view as the teacher reads it."""
        if not view.usable:
            return Context(view, None, None)
        text = self.teacher.text(view.messages)
        ids = self.teacher.ids(text)
        if self.truncation not in ("right", "left") or len(ids) <= self.max_prompt_length:
            return Context(view, text, ids)
        kept = truncate_ids(ids, self.max_prompt_length, self.truncation)
        return Context(view, self.teacher.tokenizer.decode(kept), kept)

    def metrics(self, views: Sequence[View], groups: Sequence[Group]) -> dict[str, float]:
        """What the teachers of a step were shown, under published names."""
        if self.kind == "prompt":
            usable = sum(view.usable for view in views) / max(1, len(views))
            return {"self_distillation/reprompt_sample_fraction": usable}
        threshold = self.rule.success_threshold
        found = peer_metrics(views, groups, threshold=threshold)
        if self.rule.control != "none":
            found |= control_metrics(views, self.rule.control)
        if self.settings.summarize_solutions:
            found |= summary_metrics(views, groups, self.settings, threshold=threshold)
        return found


def published_orders(groups: Sequence[Group], ranks: int) -> list[list[int]]:
    """For each group, its sampling positions in the order in which the published code meets them."""
    lengths = [len(group.prompt_ids) + len(rollout.token_ids) for group in groups for rollout in group.rollouts]
    return group_orders(balanced_order(lengths, ranks), [len(group.rollouts) for group in groups])
