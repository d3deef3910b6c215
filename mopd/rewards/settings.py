"""What whoever runs the verifiers decides; one setting per process, made before the first verdict."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1 << 20


@dataclass(frozen=True)
class RewardSettings:
    """How verifiers may work in this process."""

    workers: int = 1
    """Programs, or hard comparisons, that run at once in this process."""
    sandbox_tier: int | None = None
    """The isolation to use (1 strongest, 3 weakest; 4 none); None: the strongest that this machine offers."""
    allow_unsandboxed: bool = False
    """Runs programs with no isolation where the machine offers none; otherwise code is then not verified at all."""
    trust_assertions: bool = False
    """Lets assert-style tests that cannot be compared outside the program's process decide a training reward."""
    memory_bytes: int = 4096 * MIB
    """Address space of one program."""
    float_tolerance: float | None = None
    """Relative and absolute difference at which two printed numbers count as equal; None compares texts."""


_settings = RewardSettings()


def configure(settings: RewardSettings) -> None:
    """Sets how verifiers work in this process from now on; call it before the first verdict."""
    global _settings
    _settings = settings


def current() -> RewardSettings:
    """The settings of this process."""
    return _settings
