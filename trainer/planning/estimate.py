"""What a configuration needs on a machine: memory by device and part, and seconds by phase."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from trainer.config.schema import Config
from trainer.placement import Placement
from trainer.planning.architecture import Architecture
from trainer.planning.budget import Contexts, Spread
from trainer.planning.costs import GIB, Device, Site, Work, kv_bytes_per_token, seconds_of
from trainer.planning.memory import (
    ActorPlan,
    Away,
    MicroBatch,
    memory_of,
    offloaded,
    staged,
    total,
    while_publishing,
    while_sampling,
)
from trainer.planning.rollouts import Lengths, PackingPlan, is_packed
from trainer.planning.vocabulary import FP32, forward_bytes
from trainer.settings import horizon_of, loss_settings, method_settings, teacher_forwards, teacher_settings

CONTEXT = 1.5 * GIB
"""Of a GPU's memory, what each process loses to the CUDA context, NCCL and the libraries' workspaces."""
SLACK = 0.05
"""Share by which PyTorch's allocator holds more of a GPU's memory than is in use."""
CPU_SLACK = 0.18
"""The same of an actor on a CPU, where glibc keeps freed blocks of up to 32 MiB; see benchmarks/memory.py."""
ENGINE = 3.0 * GIB
"""Of the sampler's share, what vLLM takes for activations and graphs."""
IMPORTS = 0.45 * GIB
"""Of a CPU's memory, what an actor process holds after its imports."""
CPU_ENGINE = 0.75 * GIB
"""The same of the sampler."""
LARGE_SHARE = 0.2
"""Of what a process holds: a part beyond it is what to make smaller first."""


@dataclass(frozen=True)
class Models:
    """Sizes of the models of a run."""

    student: Architecture
    teacher: Architecture
    """The student's own where it teaches itself."""
    adapters: int = 0
    """Weights of the student's adapters; 0: all of its own are trained."""


@dataclass(frozen=True)
class Holder:
    """A process on a device, and what it holds at its peak, in bytes by part."""

    name: str
    parts: dict[str, float]
    limit: float
    """Bytes that are there for it; 0 where nothing is known."""

    @property
    def total(self) -> float:
        """Bytes."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class Cost:
    """A step's time, if all responses have one length."""

    response: int
    seconds: dict[str, float]
    sampled_tokens: int
    at_once: int
    """Rollouts that the sampler draws at once."""
    overlap: bool = False
    """Whether the sampler draws while the actor learns."""

    @property
    def total(self) -> float:
        """Seconds of the step."""
        if not self.overlap:
            return sum(self.seconds.values())
        sampling = sum(value for phase, value in self.seconds.items() if phase.startswith("sample"))
        learning = sum(value for phase, value in self.seconds.items() if phase.startswith("learn"))
        return sum(self.seconds.values()) - min(sampling, learning)


def longest_response(config: Config) -> int:
    """Tokens of a response at the end of the horizon's growth."""
    return horizon_of(config)(10**9)


def worst_micro_batches(config: Config, prompt: Spread, placement: Placement) -> list[MicroBatch]:
    """The micro-batches that take most: many short prompts with the longest responses, and the longest sequence."""
    actor, n = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout.n
    method, response = method_settings(config), longest_response(config)
    unit = n if method.pairs else 1
    share = -(-min(actor.ppo_mini_batch_size, config.data.train_batch_size) * n // placement.ranks)
    budget = 0 if config.reference_compat else actor.ppo_max_token_len_per_gpu
    teacher = actor.self_distillation.max_reprompt_len if method.distils else prompt.most
    longest = max(unit, min(budget // (max(teacher, prompt.most) + response), share) // unit * unit)
    # In a packed row the rollouts of a group share its prompt.
    alike = n if is_packed(config) else 1
    fitting = [rows for rows in range(1, share + 1) if -(-rows // alike) * prompt.least + rows * response <= budget]
    rows = max(unit, max(fitting, default=0) // unit * unit)
    return [
        MicroBatch(rows, -(-rows // alike), prompt.least, response),
        MicroBatch(longest, longest, prompt.most, response),
    ]


def actor_plans(config: Config, placement: Placement, models: Models, prompt: Spread) -> list[ActorPlan]:
    """What decides the memory of an actor process, for each of the worst micro-batches."""
    method, kind = method_settings(config), teacher_settings(config).kind
    beside = method.has_reference or (method.distils and kind != "live" and not placement.teachers)
    loss, model = loss_settings(config), config.actor_rollout_ref.model
    other = method.distils and config.actor_rollout_ref.ref.model.path is not None
    on_base = beside and bool(models.adapters) and not other
    return [
        ActorPlan(
            student=models.student,
            beside=(models.teacher if method.distils else models.student) if beside and not on_base else None,
            method=method,
            topk=loss.divergence.topk,
            union=loss.divergence.support == "union",
            mixes=kind == "trust-region",
            distant=bool(placement.teachers),
            ranks=placement.ranks,
            on_gpu=placement.device == "cuda",
            recompute=model.enable_gradient_checkpointing,
            packed=is_packed(config),
            fused=loss.head == "fused",
            eager=model.attn_implementation == "eager",
            micro_batch=batch,
            away=parts_away(config),
            adapters=models.adapters,
            teacher_adapters=models.adapters if on_base and method.distils and kind == "ema" else 0,
        )
        for batch in worst_micro_batches(config, prompt, placement)
    ]


def parts_away(config: Config) -> frozenset[Away]:
    """What an actor rank keeps in the host's memory while it is not needed."""
    fsdp, beside = config.actor_rollout_ref.actor.fsdp_config, config.actor_rollout_ref.ref.fsdp_config
    asked: dict[Away, bool] = {
        "weights (fp32)": fsdp.param_offload,
        "optimiser": fsdp.optimizer_offload,
        "teacher beside": beside.param_offload,
    }
    return frozenset(name for name, away in asked.items() if away)


def checkpoint_bytes(config: Config, plan: ActorPlan) -> tuple[float, float]:
    """Host memory of a checkpoint that is written: per rank, and on rank 0."""
    there = plan.beside is not None or bool(plan.teacher_adapters)
    follows = plan.method.distils and teacher_settings(config).kind == "ema" and there
    return staged(plan, follows=follows)


def holders(config: Config, placement: Placement, models: Models, prompt: Spread, device: Device) -> list[Holder]:
    """Every kind of process with what it holds and what is there for it."""
    plans = actor_plans(config, placement, models, prompt)
    actor = max(map(memory_of, plans), key=total)
    if placement.device == "cpu":
        # One that is written after the last step has the room of what training no longer needs.
        each, first = checkpoint_bytes(config, plans[0]) if config.trainer.save_freq else (0.0, 0.0)
        parts = {"imports": IMPORTS, **actor, "allocator's slack": CPU_SLACK * total(actor)} | (
            {"checkpoint being written": first} if first else {}
        )
        whole = {"engine": CPU_ENGINE, "weights (twice: packed)": 2.0 * FP32 * models.student.parameters}
        cache = {"key-value cache": float(config.actor_rollout_ref.rollout.kv_cache_mib << 20)}
        together = placement.ranks * total(parts) - (placement.ranks - 1) * (first - each) + total(whole) + total(cache)
        return [
            Holder("actor rank 0", parts, device.memory),
            Holder("sampler", whole | cache, device.memory),
            Holder("all together", {"all processes": together}, device.memory),
        ]
    taken = config.actor_rollout_ref.rollout.gpu_memory_utilization * device.memory
    weights = 2.0 * models.student.parameters
    sampler = {"weights (bf16)": weights, "engine": ENGINE, "key-value cache": max(taken - weights - ENGINE, 0.0)}
    beside = actor.get("teacher beside", 0.0)
    element = 2.0 if models.adapters else FP32
    loading = {"whole model": element * models.student.parameters + beside, "CUDA context": CONTEXT}
    parts = {**actor, "allocator's slack": SLACK * total(actor), "CUDA context": CONTEXT}
    found = [Holder("sampler (on GPU 0)", sampler, taken)]
    if config.actor_rollout_ref.rollout.free_cache_engine:
        teaches = config.trainer.early_teacher
        idle = max((while_sampling(plan, teaches=teaches) for plan in plans), key=total)
        sends = max(map(while_publishing, plans), key=total)
        found.append(Holder("actor rank 0, sampler asleep", parts, device.memory - CONTEXT))
        found.append(Holder("actor rank 0 while sampling", {**idle, "CUDA context": CONTEXT}, device.memory - taken))
        found.append(Holder("actor rank 0 while publishing", {**sends, "CUDA context": CONTEXT}, device.memory - taken))
    else:
        found.append(Holder("actor rank 0 (on GPU 0)", parts, device.memory - taken))
    found.append(Holder("rank 0 while loading", loading, device.memory - taken))
    if placement.ranks > 1:
        found.append(Holder(f"actor, each of {placement.ranks - 1} more", parts, device.memory))
    if placement.teachers:
        found.append(Holder("teacher, each", distant_parts(config, models, prompt, placement), device.memory))
    return found


def distant_parts(config: Config, models: Models, prompt: Spread, placement: Placement) -> dict[str, float]:
    """Bytes by part of a teacher with a placement of its own, on a GPU."""
    plan = max(actor_plans(config, placement, models, prompt), key=lambda plan: plan.micro_batch.response_tokens)
    way = replace(plan.way, hidden=models.teacher.hidden, vocabulary=models.teacher.vocabulary, mixes=False)
    if plan.fused:
        logits = forward_bytes(replace(way, union=False))
    else:
        logits = 2.5 * FP32 * way.tokens * way.vocabulary
    return {
        "weights (bf16)": 2.0 * models.teacher.parameters,
        "states and logits": way.states + logits,
        "CUDA context": CONTEXT,
    }


def cache_tokens(config: Config, placement: Placement, models: Models, device: Device) -> float:
    """Tokens that the sampler's cache holds."""
    return cache_bytes(config, placement, models, device) / kv_bytes_per_token(
        models.student, 2 if placement.device == "cuda" else FP32
    )


def cache_bytes(config: Config, placement: Placement, models: Models, device: Device) -> float:
    """Bytes of the sampler's cache."""
    rollout = config.actor_rollout_ref.rollout
    if placement.device == "cpu":
        return float(rollout.kv_cache_mib << 20)
    return max(rollout.gpu_memory_utilization * device.memory - 2.0 * models.student.parameters - ENGINE, 0.0)


def cost_of(
    config: Config, placement: Placement, models: Models, lengths: Lengths, plan: PackingPlan, device: Device
) -> Cost:
    """A step's seconds by phase."""
    work = Work(
        prompts=config.data.train_batch_size,
        rollouts=plan.rollouts,
        prompt=lengths.prompt.mean,
        teacher_prompt=max(lengths.teacher_prompt, lengths.prompt.mean),
        response=lengths.response,
        teacher_forwards=teacher_forwards(config),
        student_tokens=plan.student_tokens,
        teacher_tokens=plan.teacher_tokens,
        fused=config.actor_rollout_ref.model.use_fused_kernels,
        epochs=config.actor_rollout_ref.actor.ppo_epochs,
        scored_first=plan.optimizer_steps > 1,
        micro_batches=plan.micro_batches,
        prefix_caching=config.actor_rollout_ref.rollout.enable_prefix_caching,
        recompute=config.actor_rollout_ref.model.enable_gradient_checkpointing,
        samplers=config.actor_rollout_ref.rollout.n_samplers,
        adapters=models.adapters,
    )
    element = 2 if placement.device == "cuda" else FP32
    site = Site(device, placement.ranks, element, cache_bytes(config, placement, models, device))
    teacher = models.teacher if work.teacher_forwards else None
    seconds, at_once = seconds_of(models.student, teacher, work, site)
    sampled = plan.rollouts * lengths.response
    return Cost(lengths.response, seconds, sampled, at_once, config.trainer.overlap)


def misfits(config: Config, placement: Placement, models: Models, found: Sequence[Holder], device: Device) -> list[str]:
    """Sentences for what cannot fit, each with what would help."""
    faults = []
    for holder in found:
        if holder.name.startswith("sampler") or not holder.limit or holder.total <= holder.limit:
            continue
        faults.append(
            f"memory: {holder.name} needs {holder.total / GIB:.1f} GiB and has {max(holder.limit, 0) / GIB:.1f} GiB; "
            f"{remedy(holder, config, placement)}"
        )
    longest = config.data.max_prompt_length + longest_response(config)
    held = cache_tokens(config, placement, models, device)
    if held < longest:
        key = "gpu_memory_utilization" if placement.device == "cuda" else "kv_cache_mib"
        faults.append(
            f"actor_rollout_ref.rollout.{key}={getattr(config.actor_rollout_ref.rollout, key)}: the sampler's cache "
            f"holds {held:,.0f} tokens, and the longest sequence has {longest}; raise it"
        )
    return faults


def remedy(holder: Holder, config: Config, placement: Placement) -> str:
    """What to change where a process does not fit."""
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    shared = (
        f"lower actor_rollout_ref.rollout.gpu_memory_utilization={rollout.gpu_memory_utilization:g} (the sampler's)"
    )
    more = "or take more devices (N_GPUS_PER_NODE)"
    if "loading" in holder.name:
        return f"{shared}: every rank loads the whole model before it is sharded"
    if " while " in holder.name and "loading" not in holder.name:
        return f"{shared}, or set actor_rollout_ref.actor.fsdp_config.param_offload and optimizer_offload to true"
    asleep = "set actor_rollout_ref.rollout.free_cache_engine=true (the sampler then sleeps while the actor learns)"
    hints = [shared, asleep] if "rank 0 (" in holder.name else []
    model, parts = config.actor_rollout_ref.model, holder.parts
    shares = [parts.get(name, 0) / holder.total for name in ("logits and divergence", "activations")]
    if shares[0] > LARGE_SHARE and not model.use_fused_kernels:
        hints.append("set actor_rollout_ref.model.use_fused_kernels=true")
    elif max(shares) > LARGE_SHARE:
        hints.append(
            f"lower actor_rollout_ref.actor.ppo_max_token_len_per_gpu={actor.ppo_max_token_len_per_gpu} or "
            f"ROLLOUT_RESPONSE_LENGTH={config.data.max_response_length}"
        )
    if not model.enable_gradient_checkpointing:
        hints.append("set actor_rollout_ref.model.enable_gradient_checkpointing=true")
    return "; ".join([*hints, more])


def host_notes(config: Config, placement: Placement, models: Models, prompt: Spread) -> list[str]:
    """Sentences on the memory beside the GPUs: for models on their way in, and checkpoints on their way out."""
    if placement.device == "cpu":
        return []
    ranks, each = placement.ranks, FP32 * max(models.student.parameters, models.teacher.parameters) / GIB
    plan = actor_plans(config, placement, models, prompt)[0]
    shards, first = checkpoint_bytes(config, plan)
    rollouts = config.data.train_batch_size * config.actor_rollout_ref.rollout.n
    taught = rollouts * longest_response(config) * models.teacher.hidden * plan.element / GIB
    notes = [
        f"host memory: {each:.1f} GiB in each of {ranks} actor processes while models load, {ranks * each:.0f} together"
    ]
    written = ((ranks - 1) * shards + first) / GIB
    notes.append(f"host memory: {written:.0f} GiB in all actor processes while a checkpoint is written")
    if config.trainer.early_teacher:
        notes.append(f"host memory: up to {taught:.0f} GiB of the teacher's states wait for the update (early_teacher)")
    if away := ranks * offloaded(plan) / GIB:
        notes.append(f"host memory: {away:.0f} GiB in all actor processes for what is not on the GPUs between phases")
    return notes


def assumed_lengths(config: Config, prompt: Spread, contexts: Contexts | None, response: int) -> Lengths:
    """Lengths of a step's rollouts, from the context budget where there is one."""
    method, distill = method_settings(config), config.actor_rollout_ref.actor.self_distillation
    if contexts is not None:
        return Lengths(prompt, contexts.lengths.mean, response)
    if not method.distils or distill.view == "prompt":
        return Lengths(prompt, 0.0, response)
    peers = sum((distill.include_primary_solution, distill.include_another_solution, distill.include_failure_solution))
    return Lengths(prompt, float(min(prompt.mean + peers * response, distill.max_reprompt_len)), response)
