"""What a step learns from, and how a checkpoint keeps it where it was sampled before its time."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mopd.types import FloatArray, Group, IntArray, Outcome, Rollout, Segment

if TYPE_CHECKING:
    from trainer.prompts import PromptSet


@dataclass(frozen=True)
class Batch:
    """The verified groups of one step."""

    groups: tuple[Group, ...]
    figures: dict[str, float]
    """What drawing and verifying them has told, by metric name."""


def kept(batch: Batch) -> dict[str, Any]:
    """A batch as JSON has it, exact to the last bit; of prompts their row alone, as the run has the data."""
    groups = [
        {
            "uid": group.uid,
            "prompt_id": group.prompt.prompt_id,
            "rollouts": [
                kept_rollout(rollout, outcome) for rollout, outcome in zip(group.rollouts, group.outcomes, strict=True)
            ],
        }
        for group in batch.groups
    ]
    figures = {name: value if isinstance(value, int) else float(value) for name, value in batch.figures.items()}
    return {"groups": groups, "figures": figures}


def kept_rollout(rollout: Rollout, outcome: Outcome) -> dict[str, Any]:
    """A rollout with its verdict; tokens and log-probs as base64 of little-endian int32 and float32."""
    return {
        "rollout_id": rollout.rollout_id,
        "token_ids": base64.b64encode(rollout.token_ids.astype("<i4").tobytes()).decode(),
        "logprobs": base64.b64encode(rollout.logprobs.astype("<f4").tobytes()).decode(),
        "text": rollout.text,
        "finish_reason": rollout.finish_reason,
        "policy_version": rollout.policy_version,
        "outcome": [outcome.reward, outcome.success, outcome.status, outcome.feedback],
    }


def restored(state: Mapping[str, Any], prompts: PromptSet) -> Batch:
    """The batch of `kept(batch)`, for the same prompts.

    Raises:
        KeyError: a row is not among them.
    """
    rows = {prompt.prompt_id: row for row, prompt in enumerate(prompts.prompts)}
    groups = []
    for stored in state["groups"]:
        row = rows[stored["prompt_id"]]
        rollouts = tuple(restored_rollout(each) for each in stored["rollouts"])
        outcomes = tuple(Outcome(*each["outcome"]) for each in stored["rollouts"])
        groups.append(Group(stored["uid"], prompts.prompts[row], prompts.prompt_ids[row], rollouts, outcomes))
    return Batch(tuple(groups), dict(state["figures"]))


def restored_rollout(state: Mapping[str, Any]) -> Rollout:
    """A rollout of `kept_rollout`."""
    token_ids: IntArray = np.frombuffer(base64.b64decode(state["token_ids"]), "<i4").astype(np.int32)
    logprobs: FloatArray = np.frombuffer(base64.b64decode(state["logprobs"]), "<f4").astype(np.float32)
    return Rollout(
        state["rollout_id"],
        (Segment(token_ids, logprobs),),
        state["text"],
        state["finish_reason"],
        state["policy_version"],
    )
