"""A long run of the small model: open files, processes and memory of the controller and all its workers stay flat."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from tests.e2e.conftest import ROOT

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

STEPS, EVERY, WARM = 300, 10, 100
"""Steps in all, between samples, and before the first that counts: pools and caches fill up first."""
SMALL = (
    "data.train_batch_size=2",
    "actor_rollout_ref.rollout.n=4",
    "data.max_response_length=12",
    "trainer.val_before_train=false",
    "trainer.test_freq=0",
    "actor_rollout_ref.rollout.val_kwargs.n=1",
    "trainer.save_freq=20",
    "trainer.health.stop_on=[]",
)
MOST = {"files": 4.0, "processes": 0.5, "mib": 20.0}
"""How much the straight line through the samples may rise over all of them together."""


def sample(output: Path) -> Mapping[str, float]:
    """Open files, processes and resident memory of all processes that were started for the run in `output`."""
    mark, files, processes, pages = f"OUTPUT_DIR={output}\0".encode(), 0, 0, 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark not in (folder / "environ").read_bytes():
                continue
            files += len(os.listdir(folder / "fd"))
            pages += int((folder / "statm").read_text().split()[1])
            processes += 1
        except OSError:  # ended meanwhile
            continue
    return {"files": files, "processes": processes, "mib": pages * os.sysconf("SC_PAGE_SIZE") / 2**20}


def test_files_processes_and_memory_stay_flat(tmp_path: Path) -> None:
    output = tmp_path / "run"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OUTPUT_DIR": str(output), "TOTAL_STEPS": str(STEPS)}
    command = [sys.executable, "-m", "trainer.main", "--config-name", "grpo", *SMALL]
    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=said, stderr=subprocess.STDOUT)
    taken: dict[int, Mapping[str, float]] = {}
    deadline = time.monotonic() + 3000
    while process.poll() is None and time.monotonic() < deadline:
        metrics = output / "metrics.jsonl"
        done = metrics.read_text().count("\n") if metrics.exists() else 0
        if 0 < done < STEPS and done // EVERY not in {step // EVERY for step in taken}:
            taken[done] = sample(output)
        time.sleep(0.1)
    process.kill()
    assert process.wait() == 0, (tmp_path / "said").read_text()
    steps = [step for step in taken if step >= WARM]
    assert len(steps) > 10
    rises = {
        name: float(np.polyfit(steps, [taken[step][name] for step in steps], 1)[0]) * (steps[-1] - steps[0])
        for name in MOST
    }
    print(json.dumps({"rises": rises, "samples": taken}))
    assert {name: rise for name, rise in rises.items() if rise > MOST[name]} == {}, taken
