"""How a step's rollouts would be packed: the run's own planning, on rollouts of assumed lengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mopd.types import IntArray, TokenStreams
from trainer.assemble import packing_of
from trainer.attention import PACKED
from trainer.config.schema import Config
from trainer.packing import MiniBatch, Sample, plan_mini_batch
from trainer.placement import Placement
from trainer.planning.budget import Spread
from trainer.settings import loss_settings, teacher_forwards


@dataclass(frozen=True)
class Lengths:
    """What is assumed of a step's rollouts, in tokens."""

    prompt: Spread
    teacher_prompt: float
    """0 where whoever answers beside the student sees the student's prompt."""
    response: int


@dataclass(frozen=True)
class PackingPlan:
    """How a step's rollouts are cut, if all responses have one length."""

    response: int
    rollouts: int
    optimizer_steps: int
    per_optimizer_step: int
    """Rollouts."""
    micro_batches: int
    """Of a step on one rank."""
    largest: int
    """Sequences of the largest micro-batch."""
    asked_tokens: int
    """Of student and teacher forwards of a step, over all ranks: prompt and response of every rollout."""
    student_tokens: int
    """What the student forwards of these: padding included, and prompts that are shared once."""
    teacher_tokens: int
    """The teacher likewise, in all its passes."""

    @property
    def forwarded_tokens(self) -> int:
        """Of both."""
        return self.student_tokens + self.teacher_tokens


def packing_plan(config: Config, placement: Placement, lengths: Lengths, prompts: Sequence[int]) -> PackingPlan:
    """Cuts a step of rollouts on prompts of these lengths, as a run would."""
    data, actor, n = config.data, config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout.n
    samples = [
        made_up(index, prompts[index // n % len(prompts)], lengths, n) for index in range(data.train_batch_size * n)
    ]
    each = min(actor.ppo_mini_batch_size, data.train_batch_size) * n
    packing = packing_of(config, loss_settings(config))
    plans = [
        plan_mini_batch(samples[start : start + each], placement.ranks, packing)
        for start in range(0, len(samples), each)
    ]
    parts = [part for plan in plans for share in plan for part in share.micro_batches if part]
    epochs, passes = actor.ppo_epochs, teacher_forwards(config)
    forwarded = packed_tokens if is_packed(config) else padded_tokens
    student = [[(sample.prompt_ids, sample.response_ids) for sample in part] for part in parts]
    teacher = [[(told(sample), sample.response_ids) for sample in part] for part in parts]
    asked = [sum(len(own) + len(answer) for part in view for own, answer in part) for view in (student, teacher)]
    return PackingPlan(
        response=lengths.response,
        rollouts=len(samples),
        optimizer_steps=len(plans) * epochs,
        per_optimizer_step=each,
        micro_batches=epochs * sum(most_parts(plan) for plan in plans),
        largest=max(map(len, parts)),
        asked_tokens=epochs * (asked[0] + passes * asked[1]),
        student_tokens=epochs * sum(map(forwarded, student)),
        teacher_tokens=epochs * passes * sum(map(forwarded, teacher)),
    )


def is_packed(config: Config) -> bool:
    """Whether the actor forwards packed rows."""
    return config.actor_rollout_ref.model.attn_implementation == PACKED


def most_parts(plan: Sequence[MiniBatch]) -> int:
    """Micro-batches of the rank that has most; the others keep it company."""
    return max(len(share.micro_batches) for share in plan)


def made_up(index: int, prompt: int, lengths: Lengths, n: int) -> Sample:
    """A rollout of assumed lengths; groups hold one success each, so that every pair can be compared.

    A group has one prompt. A teacher that sees more than that sees something else for each rollout.
    """
    ones = np.ones(lengths.response, dtype=np.float32)
    teacher = max(prompt, round(lengths.teacher_prompt)) if lengths.teacher_prompt else None
    return Sample(
        index=index,
        group=index // n,
        reward=float(index % n == 0),
        prompt_ids=np.full(prompt, index // n, dtype=np.int32),
        response_ids=np.zeros(lengths.response, dtype=np.int32),
        sampler_logprobs=ones,
        teacher_prompt_ids=None if teacher is None else np.full(teacher, index, dtype=np.int32),
        streams=TokenStreams(ones, ones, ones),
    )


def told(sample: Sample) -> IntArray:
    """What the teacher, or the reference, sees before a response."""
    return sample.prompt_ids if sample.teacher_prompt_ids is None else sample.teacher_prompt_ids


Rows = Sequence[tuple[IntArray, IntArray]]
"""Prompts and the responses to them."""


def padded_tokens(rows: Rows) -> int:
    """Tokens of a micro-batch's forward pass in padded rows."""
    return len(rows) * max(len(prompt) + len(response) for prompt, response in rows)


def packed_tokens(rows: Rows) -> int:
    """Tokens of a micro-batch's forward pass in a packed row; see `trainer.layout.packed_row`."""
    prompts = {prompt.tobytes(): len(prompt) for prompt, _ in rows}
    return sum(prompts.values()) + sum(max(0, len(response) - 1) for _, response in rows)
