"""`python benchmarks/overlap.py [--seeds 42,1,2] [--steps 30] [--json]`: the overlapped and the synchronous loop.

Whole runs of the embedded task with its defaults (`trainer.main --config-name mopd`), both loops in turn on the same
seed, the order changing from seed to seed. Quality is held-out mean@8 after the last step, in points. Time is the
wall-clock time of a step without validation and saving: of each run the median over its steps, of the runs the median
of the ratios of a seed. It holds for an idle machine alone, and the load before each run is told beside it: on cores
that are taken there is nothing to be gained by doing two things at once.

    quality_sync, quality_overlapped   mean over the seeds
    gap_points                         quality_sync - quality_overlapped; 0 where the overlapped loop is ahead
    time_ratio                         overlapped / synchronous
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
METHOD = "mopd"
QUALITY = "val-core/chain/acc/mean@8"
WARM_UP = 2
"""Steps at a run's beginning that are not timed."""
ASIDE = ("timing_s/validate", "timing_s/save")


@dataclass(frozen=True)
class Finished:
    """A run of one loop."""

    seed: int
    overlapped: bool
    load: float
    """Of the machine in the minute before."""
    before: float
    """Quality of the initial model, in points."""
    after: float
    seconds: float
    """Per step, median."""
    learn: float
    """Likewise, of the time for which the controller waits for the actor alone."""

    def line(self) -> str:
        """What a person reads of it."""
        name = "overlapped" if self.overlapped else "synchronous"
        return (
            f"seed {self.seed:>3}  {name:<11}  mean@8 {self.before:5.1f} -> {self.after:5.1f}   "
            f"step {1000 * self.seconds:6.0f} ms, learn {1000 * self.learn:6.0f} ms   load {self.load:.1f}"
        )


def run(seed: int, steps: int, *, overlapped: bool, overrides: Sequence[str]) -> Finished:
    """One run in a folder that is deleted afterwards.

    Raises:
        RuntimeError: it failed.
    """
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "run"
        command = [sys.executable, "-m", "trainer.main", "--config-name", METHOD]
        asked = [f"trainer.overlap={str(overlapped).lower()}", *overrides]
        flags = {"OUTPUT_DIR": str(output), "SEED": str(seed), "TOTAL_STEPS": str(steps), "PYTHONPATH": str(ROOT)}
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **flags}
        done = subprocess.run([*command, *asked], cwd=folder, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command + asked)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        records = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return finished(records, seed, overlapped, load)


def finished(records: Sequence[dict[str, Any]], seed: int, overlapped: bool, load: float) -> Finished:
    """What the records of a run tell."""
    timed = [record for record in records if record["step"] > WARM_UP]
    seconds = [record["timing_s/step"] - sum(record.get(name, 0.0) for name in ASIDE) for record in timed]
    learn = [record["timing_s/learn"] for record in timed]
    return Finished(
        seed,
        overlapped,
        load,
        100 * records[0][QUALITY],
        100 * records[-1][QUALITY],
        statistics.median(seconds),
        statistics.median(learn),
    )


def compared(runs: Sequence[Finished]) -> dict[str, float]:
    """Both loops' figures from their runs."""
    synchronous = {one.seed: one for one in runs if not one.overlapped}
    overlapped = {one.seed: one for one in runs if one.overlapped}
    quality_sync = statistics.mean(one.after for one in synchronous.values())
    quality_overlapped = statistics.mean(one.after for one in overlapped.values())
    ratios = [overlapped[seed].seconds / one.seconds for seed, one in synchronous.items()]
    return {
        "quality_sync": quality_sync,
        "quality_overlapped": quality_overlapped,
        "gap_points": max(0.0, quality_sync - quality_overlapped),
        "time_ratio": statistics.median(ratios),
    }


def main() -> None:
    """Runs and prints."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--seeds", default="42,1,2", help="by commas")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--json", action="store_true", help="the figures as JSON on the last line")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of both loops")
    asked = parser.parse_args()
    runs = []
    for number, seed in enumerate(int(text) for text in asked.seeds.split(",")):
        for overlapped in (False, True) if number % 2 == 0 else (True, False):
            runs.append(run(seed, asked.steps, overlapped=overlapped, overrides=asked.overrides))
            print(runs[-1].line(), flush=True)
    figures = {name: round(value, 3) for name, value in compared(runs).items()}
    print("\n".join(f"{name:<20} {value}" for name, value in figures.items()))
    if asked.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
