"""The most memory that the processes of a run held since they were last asked, as metrics, in GiB."""

from __future__ import annotations

import resource
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

GIB = float(1 << 30)
PROCESS = Path("/proc/self")
MACHINE = Path("/proc/meminfo")
ANEW = "5"
"""What makes the kernel count a process's high-water mark from now on, written to its `clear_refs`."""


@dataclass(frozen=True)
class Peaks:
    """The most that one process held since it was last asked, in GiB."""

    host: float
    """Of the machine's memory, the libraries included; since its start where the kernel does not count anew."""
    allocated: float | None = None
    """Of its GPU's memory, in tensors; None without a GPU."""
    reserved: float | None = None
    """Of its GPU's memory, by PyTorch's allocator."""


def peaks(device: str) -> Peaks:
    """This process's, and counting begins anew; `device` is `cuda` or `cpu`."""
    if device != "cuda" or not torch.cuda.is_initialized():
        return Peaks(host_peak() / GIB)
    held = torch.cuda.max_memory_allocated() / GIB, torch.cuda.max_memory_reserved() / GIB
    torch.cuda.reset_peak_memory_stats()
    return Peaks(host_peak() / GIB, *held)


def host_peak(process: Path = PROCESS) -> int:
    """The most bytes of the machine's memory that this process held since the last call, or since its start."""
    found = figure(process / "status", "VmHWM")
    if found is None:
        unit = 1 if sys.platform == "darwin" else 1 << 10
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    with suppress(OSError):  # some containers forbid it
        (process / "clear_refs").write_text(ANEW)
    return found


def machine_used(table: Path = MACHINE) -> float | None:
    """GiB of the machine's memory that all its processes take together; None where the system does not tell."""
    whole, free = figure(table, "MemTotal"), figure(table, "MemAvailable")
    return None if whole is None or free is None else (whole - free) / GIB


def figure(table: Path, name: str) -> int | None:
    """Bytes behind a name in a table of the kernel; None where there is no table, or no such line."""
    try:
        lines = table.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:")), None)


def memory_metrics(part: str, processes: Sequence[Peaks]) -> dict[str, float]:
    """What the hungriest process of a part of the run held: `actor`, `sampler` or `teacher`.

    The actor's GPU memory has the published names; every other figure ends in the part.
    """
    if not processes:
        return {}
    found = {f"perf/max_cpu_memory_gb/{part}": max(each.host for each in processes)}
    ending = "" if part == "actor" else f"/{part}"
    for name in ("allocated", "reserved"):
        held = [value for each in processes if (value := getattr(each, name)) is not None]
        found |= {f"perf/max_memory_{name}_gb{ending}": max(held)} if held else {}
    return found


def machine_metrics() -> dict[str, float]:
    """The machine's memory in use now, under its published name."""
    used = machine_used()
    return {} if used is None else {"perf/cpu_memory_used_gb": used}
