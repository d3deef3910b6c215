"""Runs programs of unknown intent: they get their input and the processor, and nothing else."""

from mopd.rewards.sandbox.pool import Sandbox, shared
from mopd.rewards.sandbox.tiers import Probe, probe
from mopd.rewards.sandbox.types import Call, Job, Limits, Result, SandboxError

__all__ = ["Call", "Job", "Limits", "Probe", "Result", "Sandbox", "SandboxError", "probe", "shared"]
