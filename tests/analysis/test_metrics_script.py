"""`run_ana.sh` calls the steps in order with what the environment says, and the whole of it runs on real rollouts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.analysis.chain_rollouts import lines, write

ROOT = Path(__file__).parents[2]
STEPS = [
    "prepare_rollout_dataset.py",
    "build_context_variants.py",
    "build_target_responses.py",
    "score_teacher_contexts.py",
    "compute_teacher_signal_metrics.py",
    "plot_teacher_metrics.py",
    "plot_teacher_metrics.py",
]


def call(*arguments, cwd, **environment):
    names = ("ROLLOUT_DIR", "MODEL", "OUTPUT_DIR", "CONDITIONS", "DEVICE", "DTYPE", "SEED", "STRONG_SUCCESS", "PROMPTS")
    asked = {name: value for name, value in os.environ.items() if name not in names}
    asked |= {"MOPD_PYTHON": sys.executable, "NO_COLOR": "1", **environment}
    command = ["bash", str(ROOT / "analysis/run_ana.sh"), *arguments]
    return subprocess.run(command, cwd=cwd, env=asked, capture_output=True, text=True)


@pytest.fixture
def run_folder(tmp_path):
    """A run's folder with two checkpoints, of which the newer has the larger number."""
    for step in (9, 10):
        (tmp_path / f"a run/checkpoints/step_{step}/hf").mkdir(parents=True)
    return tmp_path / "a run"


def test_the_steps_are_called_in_order(run_folder, tmp_path):
    flags = {"OUTPUT_DIR": "out", "SEED": "7", "NUM_BOOTSTRAP": "11", "MAX_PROMPTS": "3", "CONDITIONS": "base solution"}
    done = call("--dry-run", "--max-examples", "5", cwd=tmp_path, ROLLOUT_DIR="a run", **flags)
    assert done.returncode == 0, done.stderr
    commands = done.stdout.splitlines()
    assert [Path(line.split()[1]).name for line in commands] == STEPS
    for number, told in (
        (0, r"--input a\ run --output-dir out --max-prompts 3 --max-responses-per-prompt 8 --seed 7"),
        (1, "--seed 7 --condition-filter base solution"),
        (3, r"--model a\ run/checkpoints/step_10/hf --max-model-len 8192 --self-target-only --max-examples 5"),
        (4, "--num-bootstrap 11 --seed 7"),
        (5, "--sample-set effective_only"),
        (6, "--sample-set both_present_effective_only"),
    ):
        assert commands[number].endswith(told)
    assert not (tmp_path / "out").exists()


def test_flags_change_the_commands(run_folder, tmp_path):
    flags = {
        "CONDITIONS": "all",
        "STRONG_SUCCESS": "s.jsonl",
        "DEVICE": "cpu",
        "DTYPE": "float32",
        "PROMPTS": "t.parquet",
    }
    done = call("--dry-run", cwd=tmp_path, ROLLOUT_DIR="a run", MODEL=str(tmp_path), **flags)
    commands = done.stdout.splitlines()
    assert commands[0].endswith("--data t.parquet")
    assert "--condition-filter" not in commands[1]
    assert commands[2].endswith("--strong-success s.jsonl")
    assert commands[3].endswith(f"--model {tmp_path} --max-model-len 8192 --device cpu --dtype float32")


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({}, "set ROLLOUT_DIR"),
        ({"ROLLOUT_DIR": "/nowhere"}, "which is not there"),
        ({"ROLLOUT_DIR": "."}, "set MODEL"),
        ({"ROLLOUT_DIR": ".", "MODEL": "org/name"}, "no folder"),
    ],
)
def test_what_is_missing_is_told(tmp_path, environment, told):
    done = call(cwd=tmp_path, **environment)
    assert (done.returncode, done.stdout) == (2, "")
    assert told in done.stderr


def test_a_step_that_fails_ends_it(run_folder, tmp_path):
    done = call(cwd=tmp_path, ROLLOUT_DIR="a run")
    assert done.returncode == 2
    assert STEPS[0] in done.stderr
    assert STEPS[1] not in done.stderr


@pytest.mark.slow
def test_the_whole_of_it_runs_and_goes_on(tmp_path):
    pytest.importorskip("matplotlib")
    write(tmp_path / "rollouts.jsonl", lines(prompts=6, attempts=8))
    flags = {"ROLLOUT_DIR": "rollouts.jsonl", "MODEL": str(ROOT / "datasets/chain/model"), "OUTPUT_DIR": "out"}
    done = call(cwd=tmp_path, **flags, CONDITIONS="base solution failure_only")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out/teacher_signal_metrics.json").read_text())["sample_sets"]
    conditions = found["all_samples"]["conditions"]
    assert list(conditions) == ["base", "solution", "failure_only"]
    for summary in conditions.values():
        assert 1 <= summary["success_auc_prompts"] <= summary["count_prompts"] == 6
        assert 0.0 <= summary["off_path_accuracy"] <= 1.0
    lengths = [conditions[name]["mean_prompt_length"] for name in ("base", "failure_only")]
    assert lengths[0] < lengths[1]
    figures = {path.name for path in (tmp_path / "out/figures/effective_only").glob("*.png")}
    assert figures == {f"teacher_metrics_{name}.png" for name in ("main", "by_bucket", "off_path")}
    before = (tmp_path / "out/teacher_scores.jsonl").read_text()
    assert call(cwd=tmp_path, **flags, CONDITIONS="base solution failure_only").returncode == 0
    assert (tmp_path / "out/teacher_scores.jsonl").read_text() == before
