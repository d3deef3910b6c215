"""Which devices the workers take, and what is wrong with what was asked of them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from trainer.config.compose import distils
from trainer.config.schema import Config

PLACEMENT_KEY = "actor_rollout_ref.ref.placement"


@dataclass(frozen=True)
class Placement:
    """Which devices the workers take."""

    device: str
    ranks: int
    """On all nodes together."""
    teachers: int = 0
    """Processes of a teacher with a placement of its own."""
    samplers: int = 1
    nodes: int = 1
    engine: str = "vllm"
    """What samplers draw with: actor_rollout_ref.rollout.name."""

    @property
    def per_node(self) -> int:
        """Actor ranks of a node."""
        return self.ranks // self.nodes

    def gpus(self, rank: int) -> float:
        """Share of a GPU of an actor rank. Rank 0 and the sampler halve one; whole ones keep the others apart."""
        if self.device == "cpu":
            return 0.0
        return 1.0 if rank else 0.5

    def transfer_backend(self, number: int) -> str:
        """How weights go from rank 0 to sampler `number`; the first is on its GPU, and vLLM has ways of its own."""
        vllms = "nccl" if number else "ipc"
        on_gpu = vllms if self.engine == "vllm" else "gloo-bf16"
        return "gloo" if self.device == "cpu" else on_gpu

    @property
    def sync_tolerance(self) -> float:
        """Nats by which both sides' log-probs of the same tokens may differ: fp32 on the CPU, bf16 on GPUs."""
        return 1e-3 if self.device == "cpu" else 1.0


def device_of(config: Config, gpus: int | None = None) -> str:
    """cuda where it is asked for, or where a GPU is visible and nothing was said; `gpus` stands for those visible."""
    asked, visible = config.trainer.device, torch.cuda.device_count() if gpus is None else gpus
    return ("cuda" if visible else "cpu") if asked == "auto" else asked


def placement_of(config: Config, gpus: int | None = None) -> Placement:
    """The devices of the workers; `gpus` stands for those visible."""
    device, visible = device_of(config, gpus), torch.cuda.device_count() if gpus is None else gpus
    asked, beside = config.actor_rollout_ref.ref.n_gpus, config.actor_rollout_ref.ref.placement == "colocate"
    teachers, samplers = 0 if beside else asked, config.actor_rollout_ref.rollout.n_samplers
    nodes = config.trainer.nnodes
    others = -(-(teachers + samplers - 1) // nodes)
    by_default = max(visible - others, 1) if device == "cuda" else 1
    ranks, engine = nodes * (config.trainer.n_gpus_per_node or by_default), config.actor_rollout_ref.rollout.name
    return Placement(device, ranks, teachers, samplers, nodes, engine)


def placement_faults(config: Config, gpus: int | None = None, environment: Mapping[str, str] = os.environ) -> list[str]:
    """Sentences for devices that are not there; `gpus` stands for those visible.

    What a cluster has is told once it is joined.
    """
    asked, visible, faults = config.trainer, torch.cuda.device_count() if gpus is None else gpus, []
    here = "RAY_ADDRESS" not in environment
    if here and device_of(config, gpus) == "cuda" and (asked.n_gpus_per_node or 1) > visible:
        faults.append(
            f"trainer.device={asked.device}, trainer.n_gpus_per_node={asked.n_gpus_per_node}: {visible} GPUs are "
            f"visible; lower N_GPUS_PER_NODE, or set trainer.device=cpu"
        )
    placement = placement_of(config, gpus)
    others = placement.samplers - 1
    if here and placement.device == "cuda" and others and placement.per_node + others > visible:
        faults.append(
            f"actor_rollout_ref.rollout.n_samplers={placement.samplers}: {placement.per_node} actor processes and "
            f"{others} of the samplers need as many GPUs, and {visible} are visible; lower it or N_GPUS_PER_NODE"
        )
    rollouts = config.data.train_batch_size * config.actor_rollout_ref.rollout.n
    ranks = placement.ranks
    if config.reference_compat and distils(config.actor_rollout_ref.actor) and rollouts % ranks:
        faults.append(
            f"reference_compat=true: a step's {rollouts} rollouts (TRAIN_BATCH_SIZE x ROLLOUT_BATCH_SIZE) cannot be "
            f"dealt evenly to {ranks} devices, as the published order wants; choose a multiple of {ranks}"
        )
    if here and asked.nnodes > 1:
        faults.append(
            f"trainer.nnodes={asked.nnodes}: RAY_ADDRESS names no cluster of so many machines; start one "
            f"(docs/cluster.md), or set NNODES=1"
        )
    return faults


def distance_faults(config: Config, gpus: int | None = None, environment: Mapping[str, str] = os.environ) -> list[str]:
    """Sentences for what a teacher with a placement of its own cannot do, and for devices that it would lack; `gpus`
    stands for those visible."""
    ref, actor = config.actor_rollout_ref.ref, config.actor_rollout_ref.actor
    if ref.placement != "own":
        return []
    asked, distill, placement = f"{PLACEMENT_KEY}=own", actor.self_distillation, placement_of(config, gpus)
    if not distils(actor):
        return [f"{asked}: the loss {actor.policy_loss.loss_mode} asks no teacher of its own; set it to colocate"]
    faults = []
    if distill.teacher_regularization != "frozen":
        faults.append(
            f"{asked}: a teacher with teacher_regularization={distill.teacher_regularization} needs the student's "
            f"weights or logits, so it computes beside it; set it to frozen, or placement to colocate"
        )
    if distill.full_logit_distillation and distill.distillation_topk is None:
        faults.append(
            f"{asked}: with self_distillation.distillation_topk=null whole distributions would have to be sent for "
            f"every token; name a number (published: 100), or set placement to colocate"
        )
    if placement.teachers > placement.ranks:
        faults.append(
            f"actor_rollout_ref.ref.n_gpus={placement.teachers}: {placement.ranks} actor processes ask one teacher "
            f"each, so others would idle; lower it"
        )
    visible = torch.cuda.device_count() if gpus is None else gpus
    taken = placement.per_node + placement.samplers - 1
    here = "RAY_ADDRESS" not in environment
    if here and placement.device == "cuda" and taken + placement.teachers > visible:
        faults.append(
            f"{asked}: {taken} processes of actor and sampler and {placement.teachers} of the teacher need as many "
            f"GPUs, and {visible} are visible; lower N_GPUS_PER_NODE or actor_rollout_ref.ref.n_gpus, or set it to "
            f"colocate"
        )
    return faults
