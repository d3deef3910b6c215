"""The schema's section `trainer.health`: when a run is warned of, and when it stops."""

from __future__ import annotations

from pydantic import Field
from pydantic.dataclasses import dataclass

from mopd.health import Kind
from trainer.config.strict import STRICT


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RunHealth:
    patience: int = Field(ge=1)
    """Steps in a row with a finding of `stop_on`, after which the run stops with exit code 3."""
    stop_on: tuple[Kind, ...]
    """Findings that stop a run; the others only warn. docs/health.md tells what each one sees."""
    remind_every: int = Field(ge=1)
    """Steps between two warnings of one kind."""
    window: int = Field(ge=1)
    """Steps whose median a figure is compared with; before as many have been seen, nothing is compared."""
    signal_fraction: float | None = Field(ge=0, lt=1)
    """no_signal: share of rollouts (policy gradients: of groups) with anything to teach; null switches it off."""
    min_grad_norm: float | None = Field(ge=0)
    """no_signal: gradient norm that counts as zero; null: never, nor does a step without an optimiser step."""
    skipped_steps: int | None = Field(ge=0)
    """non_finite: optimiser steps of a training step that may be skipped; null switches it off."""
    divergence_factor: float | None = Field(gt=1)
    """divergence: most, as a multiple of its median; null switches it off."""
    length_factor: float | None = Field(gt=1)
    """length: most and least mean length, as a multiple and a fraction of its median; null switches it off."""
    cut_fraction: float | None = Field(ge=0, le=1)
    """cut: largest share of responses cut at the length limit; null switches it off."""
    entropy_fraction: float | None = Field(gt=0, lt=1)
    """entropy: least, as a share of that of the first `window` steps; null switches it off."""
    sampler_kl: float | None = Field(gt=0)
    """sampler: largest divergence of sampler and actor, in nats per token; null switches it off."""
    unknown_fraction: float | None = Field(ge=0, le=1)
    """unknown: largest share of unknown verdicts; null switches it off."""
    success_fraction: float | None = Field(gt=0, lt=1)
    """success: least median success rate, as a share of the best such median; null switches it off."""
    distinct_fraction: float | None = Field(gt=0, lt=1)
    """copying: least share of distinct responses in groups, against the first `window` steps; null switches it off."""
