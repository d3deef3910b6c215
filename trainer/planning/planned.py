"""A plan as data: what a run would be refused for, and what it would need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainer.planning.budget import Contexts, Spread
    from trainer.planning.costs import Device
    from trainer.planning.estimate import Cost, Holder
    from trainer.planning.origins import Setting
    from trainer.planning.rollouts import PackingPlan


@dataclass(frozen=True)
class Machine:
    """Where the run is to be."""

    gpus: int
    device: Device
    elsewhere: bool
    """Whether it was described rather than found."""


@dataclass(frozen=True)
class Plan:
    """Everything that is told of a run."""

    method: str
    machine: Machine
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    settings: tuple[Setting, ...]
    prompts: Spread | None = None
    """Tokens of the student's prompts."""
    left_out: int = 0
    """Training prompts over the limit."""
    contexts: tuple[Contexts, ...] = ()
    packing: tuple[PackingPlan, ...] = ()
    memory: tuple[Holder, ...] = ()
    cache_tokens: float = 0.0
    costs: tuple[Cost, ...] = ()
