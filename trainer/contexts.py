"""The teacher's prompts of a step: peers chosen in sampling order, rendered and fitted to the length limit."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from mopd.contexts import ContextSettings, fit_view
from mopd.peers import choose_peers
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
class ContextBuilder:
    """Builds one context per rollout; without `settings` (a method without a teacher) none is usable."""

    settings: ContextSettings | None
    renderer: Renderer
    max_prompt_length: int
    success_threshold: float
    peer_policy: str
    seed: int

    def build(self, groups: Sequence[Group], step: int) -> list[Context]:
        """One context per rollout, in sampling order; the same for the same seed, step and rollouts."""
        if self.settings is None:
            return [
                Context(View(group.prompt.messages, usable=False), None, None)
                for group in groups
                for _ in group.rollouts
            ]
        rng = random.Random(f"peers {self.seed} {step}")
        return [
            self.context_of(group, peers)
            for group in groups
            for peers in choose_peers(
                group, self.settings, rng, threshold=self.success_threshold, policy=self.peer_policy
            )
        ]

    def context_of(self, group: Group, peers: Peers) -> Context:
        """The context of one rollout with these peers."""
        assert self.settings is not None
        view = fit_view(
            group.prompt.messages,
            peers,
            self.settings,
            limit=self.max_prompt_length,
            length=self.renderer.length,
            shorten=self.renderer.shorten,
        )
        if not view.usable:
            return Context(view, None, None)
        text = self.renderer.text(view.messages)
        return Context(view, text, self.renderer.ids(text))
