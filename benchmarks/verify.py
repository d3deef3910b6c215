"""Programs verified per second: the sandbox against cold Python processes, in one run on one machine.

    python benchmarks/verify.py [--seconds 5] [--workers 2] [--tests 10] [--preamble]

Both run the same short programs, each with `--tests` tests, on the same number of workers, in turns, so that other
load on the machine meets both. The cold processes are `python -I -S` without any isolation. Besides the rates it
prints processor time per test, which other load changes less.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from mopd.rewards.sandbox import Job, Limits, Sandbox, probe
from mopd.rewards.settings import RewardSettings

PROGRAM = "a, b = map(int, input().split())\nprint(a + b)\n"
MODULES = """string re datetime collections heapq bisect copy math random statistics itertools functools operator io sys
json typing"""
PREAMBLE = "\n".join(f"from {name} import *" for name in MODULES.split())
TURNS = 4


@dataclass
class Tally:
    """What one way of running programs did."""

    tests: int = 0
    programs: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0

    def line(self, name: str) -> str:
        """Its rates."""
        rates = (self.tests / self.seconds, self.programs / self.seconds, 1000 * self.cpu_seconds / self.tests)
        return f"{name:<8} {rates[0]:8.1f} tests/s {rates[1]:8.1f} programs/s {rates[2]:7.2f} CPU-ms per test"


def run_cold(source: str, inputs: Sequence[str]) -> list[str]:
    """Each test in a new Python without isolation."""
    command = [sys.executable, "-I", "-S", "-B", "-c", source]
    return [subprocess.run(command, input=text, capture_output=True, text=True).stdout for text in inputs]


def cpu_of(who: int) -> float:
    """Seconds of processor time so far of this process, or of those that it started and that have ended."""
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime


def cpu_below(zygotes: Sequence[int]) -> float:
    """Seconds of processor time of zygotes, of the processes that they wait for, and of all that ended below them."""
    total = 0.0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        fields = stat.read_text().rpartition(")")[2].split()
        if int(stat.parent.name) in zygotes or int(fields[1]) in zygotes:
            total += sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    return total


def measure(
    tally: Tally, run: Callable[[str, Sequence[str]], list[str]], source: str, tests: int, workers: int, seconds: float
) -> None:
    """Verifies programs for some seconds.

    Raises:
        RuntimeError: a correct program did not pass.
    """
    inputs = [f"{number} 1\n" for number in range(tests)]
    expected = [f"{number + 1}\n" for number in range(tests)]
    start = time.monotonic()

    def work(_: int) -> int:
        count = 0
        while time.monotonic() - start < seconds:
            if run(source, inputs) != expected:
                raise RuntimeError("a correct program did not pass")
            count += 1
        return count

    with ThreadPoolExecutor(workers) as threads:
        programs = sum(threads.map(work, range(workers)))
    tally.programs += programs
    tally.tests += programs * tests
    tally.seconds += time.monotonic() - start


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="for each of both, in all")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--tests", type=int, default=10, help="of each program")
    parser.add_argument("--preamble", action="store_true", help="begin each program with the usual star imports")
    options = parser.parse_args()
    source = f"{PREAMBLE}\n{PROGRAM}" if options.preamble else PROGRAM
    sandboxed, cold = Tally(), Tally()
    with Sandbox(RewardSettings(workers=options.workers)) as sandbox:

        def run_sandboxed(text: str, inputs: Sequence[str]) -> list[str]:
            results = sandbox.run(text, [Job(line.encode()) for line in inputs], Limits())
            return [result.stdout.decode() for result in results]

        measure(Tally(), run_sandboxed, source, options.tests, options.workers, 0.2)  # starts the zygotes
        for _ in range(TURNS):
            part = options.seconds / TURNS
            zygotes = sandbox.processes()
            before = cpu_of(resource.RUSAGE_SELF) + cpu_below(zygotes)
            measure(sandboxed, run_sandboxed, source, options.tests, options.workers, part)
            sandboxed.cpu_seconds += cpu_of(resource.RUSAGE_SELF) + cpu_below(zygotes) - before
            before = cpu_of(resource.RUSAGE_SELF) + cpu_of(resource.RUSAGE_CHILDREN)
            measure(cold, run_cold, source, options.tests, options.workers, part)
            cold.cpu_seconds += cpu_of(resource.RUSAGE_SELF) + cpu_of(resource.RUSAGE_CHILDREN) - before
    print(f"{probe().reason}; {options.workers} workers, {options.tests} tests per program")
    print(sandboxed.line("sandbox"))
    print(cold.line("cold"))
    rates = [tally.tests / tally.seconds for tally in (sandboxed, cold)]
    print(f"the sandbox verifies {rates[0] / rates[1]:.2f} times as many tests")


if __name__ == "__main__":
    main()
