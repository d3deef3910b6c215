"""What goes into the sandbox and what comes out of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MIB = 1 << 20
PATIENCE = 4
"""How many times its real time a program gets that is at work."""

Status = Literal["ok", "error", "timeout", "memory", "output", "infra"]


class SandboxError(RuntimeError):
    """No isolation could be had, or the sandbox does not start; the message says what is missing."""


@dataclass(frozen=True)
class Limits:
    """What one run of a program may use; beyond it, the run ends."""

    cpu_s: float = 2.0
    """Seconds of processor time, of all its threads together; the limit that decides."""
    wall_s: float | None = None
    """Seconds of real time, for programs that sleep; None: three times `cpu_s`, and two more. A program that works,
    but gets little of a busy processor, has `PATIENCE` times as long."""
    memory_bytes: int = 4096 * MIB
    """Address space, which exceeds the memory in use: thread stacks and reserved areas count."""
    output_bytes: int = 8 * MIB
    """Standard output, and the text of a returned value."""
    processes: int = 64
    """Threads at once, at tier 1; elsewhere memory bounds them. No program may start another process."""

    @property
    def wall(self) -> float:
        """Seconds of real time in effect."""
        return 3 * self.cpu_s + 2 if self.wall_s is None else self.wall_s


@dataclass(frozen=True)
class Call:
    """A call to make after the source has run, instead of running it as a script."""

    name: str
    """A function of the source, or a method of its class `Solution`."""
    arguments: str
    """The positional arguments: a JSON array."""
    kwargs: str = "{}"
    """The keyword arguments: a JSON object."""


@dataclass(frozen=True)
class Job:
    """One run: as a script that reads `stdin`, or one call."""

    stdin: bytes = b""
    call: Call | None = None


@dataclass(frozen=True)
class Result:
    """How one run ended; all of it but `exit_code`, `cpu_s` and `wall_s` was written by the program."""

    status: Status
    """`ok`: it ended by itself with exit status 0. `infra`: the sandbox failed, which says nothing of the program."""
    exit_code: int | None
    """Exit status, or minus the signal that ended it; None where it did not end by itself."""
    stdout: bytes
    stderr: bytes
    """The last 64 KiB."""
    value: str | None
    """JSON text of what the call returned, without NaN and infinities; None where nothing came or not such a text."""
    cpu_s: float
    wall_s: float
