"""Unpacks the configuration into parts with plain arguments; below this file nobody knows the tree."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

from mopd.rewards.custom import CustomSettings
from mopd.rewards.settings import RewardSettings
from trainer import cluster
from trainer.attention import PACKED
from trainer.cluster import Machine
from trainer.config.compose import context_settings
from trainer.config.schema import Config
from trainer.contexts import ContextBuilder, PeerRule
from trainer.early import EarlyTeacher
from trainer.health import health_of
from trainer.machines import seats_of
from trainer.objectives import LossSettings
from trainer.packing import Packing
from trainer.parts import Parts, Sizes
from trainer.placement import Placement
from trainer.planning.architecture import Architecture, architecture_of
from trainer.prompts import PromptSet, Renderer
from trainer.sampling import Sampling, Slot
from trainer.saving import Saver
from trainer.schedule import Schedule
from trainer.services import Policy
from trainer.settings import (
    adapter_settings,
    credit_settings,
    horizon_of,
    loss_settings,
    method_settings,
    optim_settings,
    teacher_forwards,
    teacher_settings,
)
from trainer.startup import ray_settings
from trainer.startup import worker_environment as worker_environment
from trainer.stopping import Stopper
from trainer.tracking import Journal
from trainer.validate import Validator
from trainer.verification import MOST_WORKERS, Verification, pool_size
from trainer.weights import Transfer
from trainer.workers.policy import PolicyWorker
from trainer.workers.sampler import SamplerWorker
from trainer.workers.sampler_hf import HfSamplerWorker
from trainer.workers.sampler_types import Sampler, SamplingSettings
from trainer.workers.teacher import place_teachers
from trainer.workers.verifier import VerifierWorker

BUCKET_DEADLINE_S = 60.0
"""Longest wait for the sampler to take a bucket of weights."""
LOST_MACHINE_S = 120.0
"""The same in a cluster: it takes Ray about a minute to know that a machine is gone."""


SAMPLERS: Mapping[str, type[Sampler]] = {"vllm": SamplerWorker, "hf": HfSamplerWorker}
"""By actor_rollout_ref.rollout.name; all take the same arguments."""


def place_sampler(placement: Placement, number: int = 0, **arguments: Any) -> Any:
    """A new sampler process; `arguments` are `SamplerWorker`'s. The first shares a GPU with rank 0."""
    return cluster.spawn(
        SAMPLERS[placement.engine],
        num_cpus=1,
        num_gpus=placement.gpus(rank=number),
        device=placement.device,
        transfer_backend=placement.transfer_backend(number),
        **arguments,
    )


def slot_of(
    placement: Placement, number: int, transfer: Transfer, spawn: Callable[..., Any], machine: Machine | None = None
) -> Slot:
    """The place of sampler `number`, filled; `spawn` makes a sampler of a number.

    Should its machine be gone, another sampler comes elsewhere, unless it shares a GPU with rank 0.
    """
    bound = placement.device == "cuda" and number == 0 and machine is not None
    again = partial(spawn, number=number, machine=machine, bound=bound)
    return Slot(again(), again, replace(transfer, backend=placement.transfer_backend(number)))


def reward_settings(config: Config) -> RewardSettings:
    """How each verifier process works; it works on one response at a time."""
    asked = config.reward
    return RewardSettings(
        workers=1,
        sandbox_tier=asked.sandbox_tier,
        allow_unsandboxed=asked.allow_unsandboxed,
        trust_assertions=asked.trust_assertions,
        float_tolerance=asked.float_tolerance,
    )


def custom_reward(config: Config) -> CustomSettings | None:
    """The user's own reward function, where there is one."""
    asked = config.custom_reward_function
    if asked.path is None:
        return None
    return CustomSettings(os.path.abspath(asked.path), asked.name, config.reward.deadline_s)


def place_verifiers(
    config: Config, machines: Sequence[Machine | None] = (None,), cores: int | None = None
) -> Verification:
    """The pool of verifier processes, on these machines in turns, which have so many cores."""
    turns, settings, custom = cycle(machines), reward_settings(config), custom_reward(config)

    def spawn() -> Any:
        return cluster.spawn(
            VerifierWorker, num_cpus=0, num_gpus=0, machine=next(turns), settings=settings, custom=custom
        )

    workers = config.reward.workers or (None if cores is None else min(max(cores, 1), MOST_WORKERS))
    return Verification(spawn, workers=pool_size(workers), deadline_s=config.reward.deadline_s)


def read_everywhere(config: Config) -> list[str]:
    """The folders and files that workers read, on whichever machine they are."""
    paths = config.actor_rollout_ref
    named = [paths.model.path, paths.ref.model.path, config.custom_reward_function.path]
    return [os.path.abspath(path) for path in dict.fromkeys(named) if path is not None]


def sampler_slots(config: Config, placement: Placement, machines: Sequence[Machine | None]) -> list[Slot]:
    """A new sampler for each of these machines, with the way for weights to it."""
    model, rollout, data = config.actor_rollout_ref.model, config.actor_rollout_ref.rollout, config.data
    spawn_sampler = partial(
        place_sampler,
        placement,
        model_path=model.path,
        max_model_len=rollout.max_model_len or data.max_prompt_length + data.max_response_length,
        seed=data.seed,
        enable_prefix_caching=rollout.enable_prefix_caching,
        gpu_memory_utilization=rollout.gpu_memory_utilization,
        free_cache_engine=rollout.free_cache_engine,
        kv_cache_mib=rollout.kv_cache_mib,
    )
    transfer = Transfer(
        placement.transfer_backend(0),
        rollout.update_weights_bucket_megabytes << 20,
        min(config.trainer.deadline_s, LOST_MACHINE_S if cluster.joined() else BUCKET_DEADLINE_S),
    )
    return [slot_of(placement, number, transfer, spawn_sampler, machine) for number, machine in enumerate(machines)]


def start_workers(
    config: Config, placement: Placement, written: Sequence[Path] = ()
) -> tuple[Policy, Sampling, Verification]:
    """Starts Ray and places actor ranks, sampler and verifier; they load at the same time.

    Args:
        written: folders that workers write, which every machine of a cluster must see.

    Raises:
        BadInputError: the cluster cannot be joined, or a machine of it does not see what it needs.
        DeadlineError: the cluster has no room for all workers.
    """
    model, rollout = config.actor_rollout_ref.model, config.actor_rollout_ref.rollout
    actor, data, deadline = config.actor_rollout_ref.actor, config.data, config.trainer.deadline_s
    loss = loss_settings(config)
    optim = optim_settings(config)
    cluster.start(*ray_settings(config, placement.device, placement.ranks, placement.teachers))
    seats = seats_of(placement, read_everywhere(config), [str(folder.resolve()) for folder in written], deadline)
    slots = sampler_slots(config, placement, seats.samplers)
    teachers = place_teachers(
        placement.teachers,
        num_gpus=placement.gpus(rank=1),
        deadline_s=deadline,
        device=placement.device,
        model_path=config.actor_rollout_ref.ref.model.path or model.path,
        attn_implementation=model.attn_implementation,
    )
    ranks = [
        cluster.spawn(
            PolicyWorker,
            num_cpus=1,
            num_gpus=placement.gpus(rank),
            machine=seats.ranks[rank],
            bound=True,
            rank=rank,
            ranks=placement.ranks,
            device=placement.device,
            model_path=model.path,
            attn_implementation=model.attn_implementation,
            gradient_checkpointing=model.enable_gradient_checkpointing,
            loss=loss,
            optim=optim,
            teacher=teacher_settings(config),
            seed=data.seed,
            deadline_s=deadline,
            distant=teachers[rank % len(teachers)] if teachers else None,
            student_offload=actor.fsdp_config.param_offload,
            optimizer_offload=actor.fsdp_config.optimizer_offload,
            teacher_offload=config.actor_rollout_ref.ref.fsdp_config.param_offload,
            adapters=adapter_settings(config),
        )
        for rank in range(placement.ranks)
    ]
    verification = place_verifiers(config, seats.verifiers, seats.cpus)
    policy = Policy(
        ranks,
        epochs=actor.ppo_epochs,
        mini_batch_rollouts=min(actor.ppo_mini_batch_size, data.train_batch_size) * rollout.n,
        packing=packing_of(config, loss),
        lr_at=optim.rate,
        deadline_s=deadline,
        counts=loss.counts,
        teachers=teachers,
        teacher_forwards=teacher_forwards(config),
        **(architectures(config) if placement.device == "cuda" else {}),
    )
    sampler = Sampling(
        slots,
        policy,
        tolerance=placement.sync_tolerance if rollout.sync_tolerance == "auto" else rollout.sync_tolerance,
        seed=data.seed,
        deadline_s=deadline,
        verification=verification,
        sleeps=rollout.free_cache_engine,
    )
    return policy, sampler, verification


def packing_of(config: Config, loss: LossSettings) -> Packing:
    """How mini-batches are cut."""
    return Packing(
        budget=config.actor_rollout_ref.actor.ppo_max_token_len_per_gpu,
        denominator=loss.denominator,
        whole_groups=loss.method.pairs,
        published=config.reference_compat,
        shared=config.actor_rollout_ref.model.attn_implementation == PACKED,
    )


def architectures(config: Config) -> dict[str, Architecture | None]:
    """The shapes of student and teacher, by which the use of the devices is told."""
    paths = config.actor_rollout_ref
    other = paths.ref.model.path
    return {"student": architecture_of(paths.model.path), "teacher": None if other is None else architecture_of(other)}


@dataclass(frozen=True)
class Renderers:
    """Chat templates and tokenizers: one and the same where the student teaches itself."""

    student: Renderer
    teacher: Renderer


def context_builder(config: Config, renderers: Renderers, ranks: int) -> ContextBuilder:
    """What builds the teacher's prompts."""
    distill = config.actor_rollout_ref.actor.self_distillation
    rule = PeerRule(
        policy="first" if config.reference_compat else distill.peer_policy,
        success_threshold=distill.success_reward_threshold,
        control=distill.peer_control_mode,
        control_match=distill.peer_control_match,
        published_order=config.reference_compat,
        ranks=ranks,
        seed=config.data.seed,
    )
    return ContextBuilder(
        kind=distill.view if method_settings(config).distils else None,
        settings=context_settings(config),
        rule=rule,
        renderer=renderers.student,
        teacher=renderers.teacher,
        max_prompt_length=distill.max_reprompt_len,
        truncation="right" if config.reference_compat else distill.reprompt_truncation,
    )


def build_parts(
    config: Config,
    renderers: Renderers,
    train: PromptSet,
    held_out: PromptSet,
    services: tuple[Policy, Sampling, Verification],
    journal: Journal,
    schedule: Schedule,
    saver: Saver,
    stopper: Stopper,
) -> Parts:
    """Puts the parts of a run together."""
    policy, sampler, verifier = services
    distill, val = (
        config.actor_rollout_ref.actor.self_distillation,
        config.actor_rollout_ref.rollout.val_kwargs,
    )
    contexts = context_builder(config, renderers, len(policy.workers))
    validator = Validator(
        sampler=sampler,
        verifier=verifier,
        prompts=held_out,
        settings=SamplingSettings(val.temperature, val.top_p, config.data.max_response_length),
        k=val.n,
        record=journal.validation,
        bootstrap=config.reference_compat,
    )
    sizes = Sizes(
        prompts=config.data.train_batch_size,
        rollouts=config.actor_rollout_ref.rollout.n,
        shuffle=config.data.shuffle,
        seed=config.data.seed,
        step_separator=distill.step_separator if distill.step_level_kl else None,
        draws=config.algorithm.max_num_gen_batches if config.algorithm.filter_groups else 1,
        bare=config.trainer.context_gain_rollouts,
        success_threshold=distill.success_reward_threshold,
    )
    return Parts(
        sizes=sizes,
        sampling=SamplingSettings(config.actor_rollout_ref.rollout.temperature, 1.0, config.data.max_response_length),
        method=method_settings(config),
        credit=credit_settings(config),
        horizon=horizon_of(config),
        prompts=train,
        sampler=sampler,
        verifier=verifier,
        contexts=contexts,
        policy=policy,
        validator=validator,
        journal=journal,
        health=health_of(config, journal.folders.output),
        schedule=schedule,
        saver=saver,
        stopper=stopper,
        early=EarlyTeacher(policy.workers, policy.packing) if config.trainer.early_teacher else None,
    )
