"""A real run replayed: the same to the last digit as it is, and found out wherever its records were changed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.e2e.conftest import ROOT, Run, train
from trainer.replay import main

pytestmark = pytest.mark.e2e

SMALL = (
    "data.train_batch_size=4",
    "actor_rollout_ref.actor.ppo_mini_batch_size=2",
    "data.max_response_length=24",
    "trainer.val_before_train=false",
    "trainer.test_freq=0",
    "actor_rollout_ref.rollout.val_kwargs.n=1",
    "trainer.save_freq=1",
    "trainer.max_actor_ckpt_to_keep=3",
)


@pytest.fixture(scope="session")
def past(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Three steps of MOPD, each with its checkpoint."""
    run = train(tmp_path_factory.mktemp("past") / "run", "mopd", *SMALL, TOTAL_STEPS="3")
    assert run.code == 0, run.said
    return run


@pytest.fixture
def copy(past: Run, tmp_path: Path) -> Path:
    """The run, to be tampered with."""
    return Path(shutil.copytree(past.output, tmp_path / "copy"))


def replayed(capsys: pytest.CaptureFixture[str], output: Path, step: int, *more: str) -> tuple[int, str]:
    """The exit code, and everything that was said."""
    code = main([str(output), "--step", str(step), *more])
    captured = capsys.readouterr()
    return code, captured.out + captured.err


def change_line(output: Path, step: int, change: Callable[[list[dict[str, Any]]], Any]) -> None:
    """Rewrites the rollout lines of a step."""
    file = output / "rollouts" / f"{step}.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    change(lines)
    file.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def change_metric(output: Path, step: int, name: str, change: Callable[[float], float]) -> None:
    """Rewrites one metric of a step."""
    file = output / "metrics.jsonl"
    records = [json.loads(line) for line in file.read_text().splitlines()]
    for record in records:
        if record["step"] == step:
            record[name] = change(record[name])
    file.write_text("".join(json.dumps(record) + "\n" for record in records))


def change_tokens(output: Path, step: int, name: str, change: Callable[[Any], None]) -> None:
    """Rewrites an array of a step's tokens."""
    file = output / "rollouts" / f"{step}.npz"
    with np.load(file) as stored:
        arrays = dict(stored)
    change(arrays[name])
    np.savez(file, **arrays)


def test_every_step_is_what_was_logged_to_the_last_digit(past: Run, capsys: pytest.CaptureFixture[str]) -> None:
    for step in (1, 2, 3):
        code, said = replayed(capsys, past.output, step)
        assert code == 0, said
        assert "compared to the last digit" in said
        assert f"step {step} is what was logged (views, loss and gradient norm were compared)" in said
        record = past.metrics[step - 1]
        for name in ("actor/loss", "actor/grad_norm", "self_distillation/divergence"):
            [row] = [line for line in said.splitlines() if f" {name} " in line]
            assert row.count(f" {record[name]:.9g} ") == 2
        assert "divergence by token" in said


def test_no_ray_is_started_and_nothing_is_left_behind(past: Run) -> None:
    before = sorted(path for path in past.output.rglob("*"))
    script = f"""
import ray, torch.distributed
from trainer.replay import main
assert main([{str(past.output)!r}, "--step", "2"]) == 0
assert not ray.is_initialized()
assert not torch.distributed.is_initialized()
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert sorted(path for path in past.output.rglob("*")) == before


# ------------------------------------------------------------------ records that were changed


def shown(line: dict[str, Any]) -> bool:
    return bool(line["peers"])


LINES: dict[str, tuple[Callable[..., Any], str]] = {
    "a peer's text": (lambda lines: [line.update(output=line["output"] + "0") for line in lines], "output, character"),
    "verdicts": (
        lambda lines: [line.update(score=1 - line["score"], success=not line["success"]) for line in lines[:8]],
        "critic/rewards/mean",
    ),
    "a reason": (lambda lines: next(filter(shown, lines))["peers"][0].update(reason="because"), "peers: logged"),
    "a prompt": (lambda lines: lines[3].update(teacher_prompt="It is 7."), "teacher_prompt, character 1: logged"),
    "usability": (lambda lines: lines[3].update(usable=not lines[3]["usable"]), "usable: logged"),
    "a fallback": (lambda lines: lines[3].update(fallbacks=["control: x"]), "fallbacks: logged"),
    "a data row": (lambda lines: lines[3].update(prompt_id="-1"), "prompt_id, character 1: logged"),
    "a name": (lambda lines: lines[3].update(rollout_id="3-0-99"), "rollout_id, character 5: logged '3-0-99'"),
    "a length": (lambda lines: lines[3].update(response_length=99), "response_length: logged 99"),
    "the order": (lambda lines: lines.reverse(), "differ"),
}


@pytest.mark.parametrize("what", LINES)
def test_a_changed_line_is_found_even_without_a_checkpoint(
    what: str, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(copy / "checkpoints")
    change, said_of_it = LINES[what]
    change_line(copy, 3, change)
    code, said = replayed(capsys, copy, 3)
    assert code == 1, said
    assert said_of_it in said
    assert "step 3 differs from what was logged" in said


def other_weights(output: Path) -> None:
    shutil.rmtree(output / "checkpoints" / "step_1")
    shutil.copytree(output / "checkpoints" / "step_2", output / "checkpoints" / "step_1")


UPDATES: dict[str, tuple[Callable[..., Any], str]] = {
    "the loss": (
        lambda output: change_metric(output, 2, "actor/loss", lambda value: value * (1 + 1e-8)),
        "actor/loss: logged",
    ),
    "the gradient": (
        lambda output: change_metric(output, 2, "actor/grad_norm", lambda value: value + 1e-9),
        "actor/grad_norm: logged",
    ),
    "a divergence": (
        lambda output: change_line(output, 2, lambda lines: lines[1]["divergence"].__setitem__(0, 0.5)),
        "rollout 2-0-1: divergence, token 1: logged 0.5",
    ),
    "a token": (
        lambda output: change_tokens(output, 2, "token_ids", lambda tokens: tokens.__setitem__(4, tokens[4] + 1)),
        "rollout 2-0-0: output, character",
    ),
    "a log-prob": (
        lambda output: change_tokens(output, 2, "sampler_logprobs", lambda values: values.__setitem__(4, -9.0)),
        "rollout_corr/logprob_max_abs_diff",
    ),
    "the weights": (
        other_weights,
        "actor/loss: logged",
    ),
}


@pytest.mark.parametrize("what", UPDATES)
def test_whatever_the_update_came_from_or_led_to_is_checked(
    what: str, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, said_of_it = UPDATES[what]
    change(copy)
    code, said = replayed(capsys, copy, 2)
    assert code == 1, said
    assert said_of_it in said


# ------------------------------------------------------------------ what cannot be checked is said


def test_without_a_checkpoint_the_views_are_checked_and_that_is_said(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(copy / "checkpoints" / "step_2")
    code, said = replayed(capsys, copy, 3)
    assert code == 0, said
    assert "the loss was NOT checked" in said
    assert "max_actor_ckpt_to_keep=3" in said
    assert "Steps that can be replayed whole: 1, 2" in said
    assert "actor/loss" not in said
    assert "views and figures of the rollouts were compared" in said


def test_with_views_only_no_model_is_asked(past: Run, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = replayed(capsys, past.output, 3, "--views-only")
    assert code == 0, said
    assert "the loss was NOT checked: --views-only was given" in said
    assert "actor/loss" not in said


def test_a_damaged_checkpoint_and_missing_tokens_are_named(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / "checkpoints" / "step_1" / "hf" / "model.safetensors").write_bytes(b"damaged")
    code, said = replayed(capsys, copy, 2)
    assert code == 0
    assert "the loss was NOT checked" in said
    assert "model.safetensors is damaged" in said
    (copy / "rollouts" / "1.npz").unlink()
    code, said = replayed(capsys, copy, 1)
    assert code == 0
    assert "1.npz, where the tokens should be, is not there" in said


def foreign(output: Path) -> None:
    (output / "config.yaml").write_text("x: 1\n")


def other_version(output: Path) -> None:
    for file in output.rglob("config.yaml"):
        file.write_text(file.read_text().replace("max_prompt_length", "longest_prompt"))


BAD: dict[str, tuple[Callable[..., Any], int, tuple[str, ...], str]] = {
    "no run": (shutil.rmtree, 2, (), "no such folder; name the OUTPUT_DIR of a run"),
    "another folder": (foreign, 2, (), "holds no run of this project"),
    "no such step": (lambda output: None, 9, (), "--step 9: "),
    "the initial model": (lambda output: None, 0, (), "has steps 1 to 3"),
    "another version": (other_version, 2, (), "data.longest_prompt: unknown key"),
    "no lines": (lambda output: (output / "rollouts" / "2.jsonl").unlink(), 2, (), "2.jsonl: cannot be read"),
    "half a line": (
        lambda output: (output / "rollouts" / "2.jsonl").write_text('{"uid": "2-0"'),
        2,
        (),
        "2.jsonl, line 1: is no JSON",
    ),
    "no rollout": (
        lambda output: (output / "rollouts" / "2.jsonl").write_text('{"uid": 3}\n'),
        2,
        (),
        "2.jsonl, line 1: no rollout of this version (uid: 3)",
    ),
    "a line too few": (lambda output: change_line(output, 2, list.pop), 2, (), "2.jsonl has 31 lines"),
    "no prompt of the step": (
        lambda output: change_line(output, 2, lambda lines: lines[0].update(uid="2-77")),
        2,
        (),
        "uid '2-77' names no prompt",
    ),
    "no such rollout": (lambda output: None, 2, ("--rollout", "2-0-9"), "it has 2-0-"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_cannot_be_replayed_is_told_plainly(what: str, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoil, step, more, said_of_it = BAD[what]
    spoil(copy)
    code, said = replayed(capsys, copy, step, *more)
    assert code == 2, said
    assert said_of_it in said
    assert "Traceback" not in said


def test_a_rollout_is_explained(past: Run, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = next(line for line in past.lines("rollouts/2.jsonl") if line["peers"] and "divergence" in line)
    code, said = replayed(capsys, past.output, 2, "--rollout", line["rollout_id"])
    assert code == 0, said
    assert line["teacher_prompt"] in said
    for peer in line["peers"]:
        assert f"{peer['rollout_id']}: {peer['reason']}" in said
    worst = max(value for value in line["divergence"])
    assert f"disagreed by {worst:.6f} at token {line['divergence'].index(worst) + 1}," in said

    def alter(lines: list[dict[str, Any]]) -> None:
        next(one for one in lines if one["rollout_id"] == line["rollout_id"])["peers"][0]["reason"] = "because"

    change_line(copy, 2, alter)
    code, said = replayed(capsys, copy, 2, "--rollout", line["rollout_id"])
    assert code == 1
    assert "'because'" in said


# ------------------------------------------------------------------ other methods and settings

SUMMARIES = ("summarize_solutions=true", "include_another_solution=false", "include_failure_solution=false")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "overrides"),
    [
        ("grpo", ()),
        ("dpo", ()),
        ("verified_sft", ()),
        ("ts_sdpo", (f"actor_rollout_ref.ref.model.path={ROOT / 'datasets' / 'chain' / 'model'}",)),
        ("grpo", ("algorithm.filter_groups=true", "algorithm.max_num_gen_batches=3")),
        ("mopd", ("actor_rollout_ref.actor.self_distillation.peer_control_mode=unrelated_prompt",)),
        ("mopd", tuple(f"actor_rollout_ref.actor.self_distillation.{flag}" for flag in SUMMARIES)),
        ("mopd", ("reference_compat=true",)),
    ],
)
def test_every_kind_of_run_can_be_replayed(
    method: str, overrides: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(tmp_path / "run", method, *SMALL, *overrides, TOTAL_STEPS="2")
    assert run.code == 0, run.said
    for step in (1, 2):
        code, said = replayed(capsys, run.output, step)
        assert code == 0, said
        assert "compared to the last digit" in said
        assert "NOT" not in said


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("actor_rollout_ref.ref.placement=own",), ("reference_compat=true",)])
def test_a_run_of_two_ranks_is_the_same_within_rounding(
    more: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frozen = ("actor_rollout_ref.actor.self_distillation.teacher_regularization=frozen",) if "own" in str(more) else ()
    run = train(tmp_path / "run", "mopd", *SMALL, *more, *frozen, TOTAL_STEPS="2", N_GPUS_PER_NODE="2")
    assert run.code == 0, run.said
    code, said = replayed(capsys, run.output, 2)
    assert code == 0, said
    assert "within 0.0001 of each other" in said
    assert "recorded on 2 ranks, replayed on one" in said
    change_metric(run.output, 2, "actor/loss", lambda value: value * 1.001)
    code, said = replayed(capsys, run.output, 2)
    assert code == 1
    assert "actor/loss: logged" in said
