"""`python benchmarks/startup.py [--json] [key=value ...]`: from the command to the first finished step.

Starts the embedded run (`bash run_local_sdpo.sh`) twice, each time into a folder of its own, and ends it once its first
step stands in `metrics.jsonl`. The first start may have to set up the environment; the second one is reported, in
seconds of wall time, because that is what one waits for. Wall time means little on a busy machine: the load average is
printed beside it, and the processor time of all the run's processes up to that moment.

first_step_seconds   until the first training step is finished, validation before it included
import_seconds       until all libraries of the controller are loaded
actor_seconds        of the actor, from the start of its process until its shards are built
engine_seconds       of the sampler, from the start of its process until vLLM can sample; both load at the same time
cpu_seconds          processor time of all processes until the first step is finished
timeline             what the run told, and after how many seconds
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
POLL_S = 0.02
PATIENCE_S = 900.0
"""Longest wait for a first step; setting up the environment is part of it."""
STOPPED = 75
"""The exit code of a run that was stopped and may go on."""


@dataclass
class Start:
    """What one start told, and what it took."""

    timeline: dict[str, float] = field(default_factory=dict)
    """Seconds after the command, by what was said."""
    cpu_seconds: float = 0.0
    load: float = 0.0

    def at(self, said: str) -> float:
        """When a line that holds `said` came.

        Raises:
            SystemExit: it never came.
        """
        found = [seconds for line, seconds in self.timeline.items() if said in line]
        if not found:
            sys.exit(f"the run never said '{said}'; it said: {list(self.timeline)}")
        return found[0]

    def figures(self) -> dict[str, float | dict[str, float]]:
        """What is reported, in seconds."""
        loading = self.at("loading sampler and actor")
        return {
            "first_step_seconds": self.at("step 1 finished"),
            "import_seconds": self.at("reading model and data"),
            "actor_seconds": round(self.at("the actor is ready") - loading, 2),
            "engine_seconds": round(self.at("ready after") - loading, 2),
            "cpu_seconds": self.cpu_seconds,
            "load": self.load,
            "timeline": self.timeline,
        }


def cpu_seconds(root: psutil.Process) -> float:
    """Processor time of a process and all below it, of those that have ended as well."""
    total = 0.0
    for process in [root, *root.children(recursive=True)]:
        try:
            total += sum(process.cpu_times()[:4])
        except psutil.NoSuchProcess:
            continue
    return round(total, 2)


def finished(metrics: Path, step: int) -> bool:
    """Whether a step's line is there, whole."""
    if not metrics.exists():
        return False
    lines = [line for line in metrics.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return any(json.loads(line)["step"] == step for line in lines)


def listen(run: subprocess.Popen[str], begun: float, start: Start) -> None:
    """Notes when each line came until the run has no more."""
    for line in run.stdout or []:
        start.timeline.setdefault(line.strip(), round(time.monotonic() - begun, 2))


def started(output: Path, overrides: list[str]) -> Start:
    """Starts a run and ends it after its first step.

    Raises:
        SystemExit: the run ended before, or the first step took too long.
    """
    start, begun = Start(), time.monotonic()
    command = ["bash", str(ROOT / "run_local_sdpo.sh"), *overrides]
    environment = {**os.environ, "OUTPUT_DIR": str(output)}
    run = subprocess.Popen(command, env=environment, cwd=output.parent, stdout=subprocess.PIPE, text=True)
    listener = threading.Thread(target=listen, args=(run, begun, start))
    listener.start()
    while not finished(output / "metrics.jsonl", step=1):
        if run.poll() is not None or time.monotonic() - begun > PATIENCE_S:
            run.kill()
            sys.exit(f"no first step; exit code {run.poll()}, the run said: {list(start.timeline)}")
        time.sleep(POLL_S)
    start.timeline["step 1 finished"] = round(time.monotonic() - begun, 2)
    start.cpu_seconds, start.load = cpu_seconds(psutil.Process(run.pid)), round(os.getloadavg()[0], 1)
    run.send_signal(signal.SIGTERM)
    code = run.wait()
    listener.join()
    if code != STOPPED:
        sys.exit(f"the run was to stop with exit code {STOPPED} and ended with {code}")
    return start


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Seconds from the command to the first finished step.")
    parser.add_argument("--json", action="store_true", help="the figures as JSON on the last line")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of the run")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name in ("first", "second"):
            start = started(Path(folder) / name, asked.overrides)
    for line, seconds in sorted(start.timeline.items(), key=lambda entry: entry[1]):
        print(f"{seconds:7.2f}  {line[:110]}")
    figures = start.figures()
    named = {name: value for name, value in figures.items() if name != "timeline"}
    print("  ".join(f"{name} {value}" for name, value in named.items()))
    if asked.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
