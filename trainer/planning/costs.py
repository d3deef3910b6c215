"""Seconds of a step by phase, from floating-point operations and bytes moved; docs/planning.md states the assumptions.

Decoding is bound by memory, prefill and training by arithmetic. These are estimates of what a well-fed device does: no
padding beyond the packing plan's, no stragglers, no start-up, and no verifier, whose time depends on the task.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from trainer.planning.architecture import Architecture

GIB = float(1 << 30)


@dataclass(frozen=True)
class Device:
    """What one device does at best."""

    name: str
    flops: float
    """Per second, dense, in the precision that this project computes in there."""
    bandwidth: float
    """Bytes per second of its memory."""
    link: float
    """Bytes per second to its neighbours."""
    memory: float
    """Bytes."""
    compute_share: float
    """Of `flops`, what prefill and training reach."""
    bandwidth_share: float = 0.7
    """Of `bandwidth`, what decoding reaches."""


DEVICES: Mapping[str, Device] = {
    device.name: device
    for device in (
        Device("H100", 989e12, 3.35e12, 450e9, 80 * GIB, 0.4),
        Device("H200", 989e12, 4.8e12, 450e9, 141 * GIB, 0.4),
        Device("A100", 312e12, 2.04e12, 300e9, 80 * GIB, 0.5),
        Device("GH200", 989e12, 4.0e12, 450e9, 96 * GIB, 0.4),
        # One thread of a server's core in fp32: what every process of this project computes with on a CPU.
        Device("CPU", 110e9, 20e9, 2e9, 0.0, 0.8),
    )
}
"""By name: bf16 and datasheet figures; of the CPU what benchmarks have shown."""


@dataclass(frozen=True)
class Work:
    """What a step is asked to do, as means over its rollouts."""

    prompts: int
    rollouts: int
    """Of all prompts together."""
    prompt: float
    """Tokens of a student's prompt."""
    teacher_prompt: float
    response: float
    teacher_forwards: float
    """Forward passes of a teacher or reference per rollout: 0, 1, or 2 where two models are mixed."""
    student_tokens: float
    """What the student forwards in a step: padding included, shared prompts once, all epochs."""
    teacher_tokens: float
    """The teacher likewise, in all its passes."""
    fused: bool
    """Whether logits are made once more for the gradient, by parts of the vocabulary."""
    epochs: int
    scored_first: bool
    """Whether the student's log-probs are taken once more, before the first of several mini-batches."""
    micro_batches: int
    """Of a step, on one rank."""
    prefix_caching: bool
    recompute: bool
    samplers: int = 1
    adapters: int = 0
    """Weights of adapters, where these alone are trained."""


@dataclass(frozen=True)
class Site:
    """Where a step runs."""

    device: Device
    ranks: int
    element: int
    """Bytes of an element in forward passes."""
    kv_bytes: float
    """Of the sampler's cache."""


def forward_flops(model: Architecture, tokens: float, length: float, projected: float) -> float:
    """Operations of a forward pass over `tokens` in sequences of `length`; `projected` of them reach the vocabulary."""
    attention = 2.0 * model.layers * model.query_width * length
    return tokens * (2.0 * model.matrices + attention) + projected * 2.0 * model.hidden * model.vocabulary


def kv_bytes_per_token(model: Architecture, element: int) -> float:
    """Bytes of keys and values that a token leaves in the sampler's cache."""
    return 2.0 * model.layers * model.kv_width * element


def decode_seconds(model: Architecture, work: Work, site: Site) -> tuple[float, int]:
    """Seconds of drawing all rollouts, dealt to the samplers, and how many each draws at once.

    Every token reads all weights once for the whole batch, and each sequence's own keys and values.
    """
    per_token = kv_bytes_per_token(model, site.element)
    own = work.response + (work.prompt * work.prompts / work.rollouts if work.prefix_caching else work.prompt)
    share = math.ceil(work.rollouts / work.samplers)
    at_once = max(1, min(share, int(site.kv_bytes / (per_token * max(own, 1.0)))))
    waves = math.ceil(share / at_once)
    live = share / waves
    context = work.prompt + work.response / 2
    moved = site.element * (model.matrices + model.hidden * model.vocabulary) + live * context * per_token
    operations = forward_flops(model, live, 2 * context, live)
    device = site.device
    per_step = max(
        moved / (device.bandwidth * device.bandwidth_share), operations / (device.flops * device.compute_share)
    )
    return waves * work.response * per_step, at_once


def seconds_of(
    model: Architecture, teacher: Architecture | None, work: Work, site: Site
) -> tuple[dict[str, float], int]:
    """Seconds by phase, in order, and how many rollouts are drawn at once."""
    computing = site.device.flops * site.device.compute_share
    decode, at_once = decode_seconds(model, work, site)
    read = (work.prompts if work.prefix_caching else work.rollouts) * work.prompt
    prefill = forward_flops(model, read, work.prompt, 0) / computing / work.samplers
    phases = {"sample: prefill": prefill, "sample: decode": decode}
    scored, computing = work.epochs * work.rollouts * work.response, computing * site.ranks
    if work.teacher_forwards and teacher is not None:
        length = work.teacher_prompt + work.response
        read_out = work.teacher_forwards * scored
        phases["learn: teacher"] = forward_flops(teacher, work.teacher_tokens, length, read_out) / computing
    # Backward is twice a forward pass; what is not kept is made again; before several updates all rollouts are scored.
    layers, head = 4 if work.recompute else 3, 4 if work.fused else 3
    before = 1 if work.scored_first else 0
    tokens, projected = (layers + before) * work.student_tokens, (head + before) * scored
    phases["learn: student"] = forward_flops(model, tokens, work.prompt + work.response, projected) / computing
    phases["learn: gather, reduce"] = exchanged(model, teacher, work, site) / site.device.link
    steady = site.device.bandwidth * site.device.bandwidth_share
    # AdamW reads weight, gradient and two moments and writes three of them; the average reads two and writes one.
    trained = work.adapters or model.parameters
    phases["learn: optimiser"] = 4.0 * trained / site.ranks * (7 + 3 * (work.teacher_forwards > 0)) / steady
    phases["publish"] = site.element * model.parameters / site.device.link + 4.0 * model.parameters / steady
    return phases, at_once


def exchanged(model: Architecture, teacher: Architecture | None, work: Work, site: Site) -> float:
    """Bytes that a rank receives and sends in a step: weights for every pass, and fp32 gradients."""
    if site.ranks == 1:
        return 0.0
    student = 2 * site.element * model.parameters + 4 * (work.adapters or model.parameters)
    other = work.teacher_forwards * site.element * teacher.parameters if teacher is not None else 0.0
    return work.micro_batches * (student + other) * (site.ranks - 1) / site.ranks
