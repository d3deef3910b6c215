"""Verified groups for the tests of what a teacher is shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mopd.types import Group, Outcome, Peers, Prompt, Rollout, Segment

PROMPT = Prompt("7", ({"role": "user", "content": "calc 7 + 5"},), "chain", '{"steps": 1, "value": 2}')
RIGHT, WRONG, UNKNOWN = Outcome.of(True), Outcome.of(False, "wrong form"), Outcome.unknown("timed out")


def group_of(
    outcomes: Sequence[Outcome],
    texts: Sequence[str] | None = None,
    uid: str = "u",
    *,
    row: str = "7",
    tokens: Sequence[int] | None = None,
) -> Group:
    """A verified group; by default every rollout has a text of its own, and no tokens."""
    texts = texts or [f"text {index}" for index in range(len(outcomes))]
    segments = [(_segment(count),) for count in tokens] if tokens else [()] * len(outcomes)
    rollouts = tuple(Rollout(f"{uid}{index}", segments[index], text, "stop", 0) for index, text in enumerate(texts))
    return Group(uid, replace(PROMPT, prompt_id=row), np.zeros(1, dtype=np.int32), rollouts, tuple(outcomes))


def _segment(count: int) -> Segment:
    """So many tokens."""
    return Segment(np.zeros(count, dtype=np.int32), np.zeros(count, dtype=np.float32))


def slots(peers: Peers) -> dict[str, str]:
    """Which rollout fills which slot."""
    return {choice.slot: choice.rollout_id for choice in peers.choices}
