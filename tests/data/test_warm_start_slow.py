"""The warm start's command, run in full: the rebuilt weights are held to the figures of the shipped ones."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from chain_acceptance import acceptance
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_command_rebuilds_a_model_that_is_accepted(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "data" / "warm_start.py"), "--output", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stdout + done.stderr
    rebuilt = AutoModelForCausalLM.from_pretrained(tmp_path)
    # Other prompts and samples than those of the command's own check.
    figures = acceptance(rebuilt, AutoTokenizer.from_pretrained(tmp_path), seed=1)
    assert figures.problems(slack=0.02) == []
