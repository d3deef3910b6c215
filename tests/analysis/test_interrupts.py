"""Whoever interrupts a command while its libraries are loaded sees no traceback."""

import os
import signal
import subprocess
import sys

import pytest

COMMANDS = (
    "build_context_variants", "build_target_responses", "compute_teacher_signal_metrics", "generate_strong_success",
    "plot_heatmap_grid", "plot_teacher_metrics", "prepare_rollout_dataset", "score_teacher_contexts",
)  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_an_interruption_while_loading_is_told_without_a_traceback(root, tmp_path, name):
    for library in ("rich", "numpy", "torch"):
        (tmp_path / f"{library}.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    command = [sys.executable, str(root / f"analysis/{name}.py"), "--help"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == -signal.SIGINT  # a shell says 130
    assert done.stderr == "interrupted\n"


def test_other_errors_keep_their_traceback(root, tmp_path):
    (tmp_path / "rich.py").write_text("raise ValueError('broken')\n")
    command = [sys.executable, str(root / "analysis/prepare_rollout_dataset.py"), "--help"]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 1
    assert "ValueError: broken" in done.stderr
