"""The models of one actor rank: the student, a teacher or reference beside it or on its base, and the optimiser."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from trainer import fsdp
from trainer.adapters import Adapter, AdapterSettings, Voice, factors
from trainer.forward import ResponseScorer
from trainer.objectives import LossSettings
from trainer.workers.views import TeacherSettings


@dataclass(frozen=True)
class OptimSettings:
    """AdamW with linear warm-up to a constant rate."""

    lr: float
    warmup_steps: int
    weight_decay: float
    betas: tuple[float, float]
    grad_clip: float

    def rate(self, step: int) -> float:
        """The learning rate of training step `step`, counted from 1."""
        return self.lr * min(1.0, step / self.warmup_steps) if self.warmup_steps else self.lr


@dataclass(frozen=True)
class ModelSettings:
    """What the models are made from."""

    path: str
    attn_implementation: str
    gradient_checkpointing: bool
    adapters: AdapterSettings | None
    """What is trained of the student; None: all of it."""
    seed: int
    """What adapters begin with."""


@dataclass(frozen=True)
class Models:
    """A rank's shards."""

    student: ResponseScorer
    teacher: ResponseScorer | None
    """The teacher beside the student, or the reference; None where there is none."""
    voice: Voice | None
    """Whose factors the student's base has where it answers in their place."""
    optimizer: torch.optim.AdamW


def build_models(
    settings: ModelSettings,
    mesh: DeviceMesh,
    loss: LossSettings,
    teaching: TeacherSettings,
    optim: OptimSettings,
    *,
    distant: bool,
) -> Models:
    """The shards of student, teacher and optimiser; `distant`: a teacher elsewhere answers. All ranks build alike.

    A reference is the initial model whoever teaches; a live teacher is the student itself. With adapters the student's
    base is the initial model already, and a teacher that follows the student is nothing but factors on it.
    """
    method = loss.method
    asked = method.has_reference or (method.distils and teaching.kind != "live" and not distant)
    source = teaching.model_path if method.distils else None
    shared = asked and source is None and settings.adapters is not None
    averages = method.distils and teaching.kind == "ema"

    def build(path: str, adapting: fsdp.Adapting | None = None, *, checkpointing: bool = False) -> ResponseScorer:
        return fsdp.build_scorer(
            path,
            mesh,
            attn_implementation=settings.attn_implementation,
            gradient_checkpointing=checkpointing,
            adapting=adapting,
        )

    adapting = None
    if settings.adapters is not None:
        adapting = fsdp.Adapting(settings.adapters, settings.seed, teacher=shared and averages)
    student = build(settings.path, adapting, checkpointing=settings.gradient_checkpointing).train()
    beside = asked and not shared
    teacher = build(source or settings.path).eval().requires_grad_(False) if beside else None
    voice: Voice | None = ("teacher" if averages else "base") if shared else None
    optimizer = torch.optim.AdamW(
        [parameter for parameter in student.parameters() if parameter.requires_grad],
        lr=optim.lr,
        betas=optim.betas,
        weight_decay=optim.weight_decay,
    )
    return Models(student, teacher, voice, optimizer)


def averaged(student: ResponseScorer, teacher: ResponseScorer | None) -> tuple[list[Tensor], list[Tensor]]:
    """The shards of a teacher that follows the student, and those that they follow: all weights, or factors alone."""
    if teacher is not None:
        return fsdp.shards(teacher), fsdp.shards(student)
    own, theirs = (factors(student, voice).values() for voice in ("student", "teacher"))
    return fsdp.local(theirs), fsdp.local(own)


def sizes(student: ResponseScorer) -> dict[str, int]:
    """How many weights a student has, and how many of them are trained."""
    trained = sum(parameter.numel() for parameter in student.parameters() if parameter.requires_grad)
    return {"parameters": sum(fsdp.full_sizes(student)), "trained_parameters": trained}


def on_rank_0(rank: int, gathered: Callable[[], Iterator[tuple[str, Tensor]]]) -> dict[str, Tensor]:
    """Whole tensors by name, copied to the CPU of rank 0; nothing on the others, which gather them all the same."""
    if not rank:
        return {name: weight.to("cpu", copy=True) for name, weight in gathered()}
    for _ in gathered():
        pass
    return {}


def adapter_of(student: ResponseScorer, rank: int, base: str) -> Adapter | None:
    """The student's adapter apart from its base, whole on rank 0; None without adapters. A collective."""
    if student.adapters is None:
        return None
    return Adapter(student.adapters.settings, on_rank_0(rank, lambda: fsdp.full_factors(student)), base)
