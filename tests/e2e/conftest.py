"""Real runs, once a session each: the tests look at what they left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.metric_names import GLOSSARY, glossary, undocumented

ROOT = Path(__file__).resolve().parents[2]
ENTRIES = glossary(GLOSSARY.read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Run:
    """A finished command and its output folder."""

    output: Path
    code: int
    said: str

    def lines(self, name: str) -> list[dict[str, Any]]:
        """The records of a JSON Lines file."""
        # Not splitlines(): a response may hold other signs that Unicode takes for ends of lines.
        return [json.loads(line) for line in (self.output / name).read_text().split("\n") if line]

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """A record per step."""
        return self.lines("metrics.jsonl")

    @property
    def manifest(self) -> dict[str, Any]:
        """What ran where."""
        content: dict[str, Any] = json.loads((self.output / "manifest.json").read_text())
        return content


def train(output: Path, method: str, *overrides: str, **flags: str) -> Run:
    """Runs the real command, without a terminal and without flags of the caller's environment.

    Whatever it measures must be in docs/metrics.md.
    """
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "OMP_NUM_THREADS", "TMPDIR")}
    command = [sys.executable, "-m", "trainer.main", "--config-name", method, *overrides]
    done = subprocess.run(
        command,
        cwd=output.parent,
        env={**kept, "PYTHONPATH": str(ROOT), "OUTPUT_DIR": str(output), **flags},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    run = Run(output, done.returncode, done.stdout + done.stderr)
    if run.code == 0 and (output / "metrics.jsonl").is_file():
        assert not undocumented({name for record in run.metrics for name in record}, ENTRIES)
    return run


@pytest.fixture(scope="session")
def trained() -> Callable[..., Run]:
    """The command that trains."""
    return train


@pytest.fixture(scope="session")
def mopd_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Three steps of MOPD on the embedded task."""
    return train(tmp_path_factory.mktemp("mopd") / "run", "mopd", TOTAL_STEPS="3")


@pytest.fixture(scope="session")
def grpo_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two steps of GRPO on the embedded task."""
    return train(tmp_path_factory.mktemp("grpo") / "run", "grpo", TOTAL_STEPS="2")
