"""Whole runs that lose their workers, Ray, their screen or their words, and what becomes of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.e2e.conftest import ROOT, Run, train
from tests.e2e.test_resume import SMALL, gone, processes, until

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
MODEL = str(ROOT / "datasets" / "chain" / "model")


def process_of(output: Path, name: str) -> int:
    """A process of a run whose command has a name in it."""
    running = processes(output)
    return next(pid for pid, command in running.items() if name in command)


def going(output: Path, *overrides: str, **flags: str) -> subprocess.Popen[str]:
    """A run of two ranks that has taken a step more than there were when it began."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OUTPUT_DIR": str(output), "N_GPUS_PER_NODE": "2", **flags}
    file = output / "metrics.jsonl"
    there = file.read_text().count("\n") if file.exists() else 0
    process = subprocess.Popen(
        [sys.executable, "-m", "trainer.main", "--config-name", "grpo", *SMALL, "trainer.deadline_s=60", *overrides],
        env={"TOTAL_STEPS": "1000", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    until(file, there + 1, process)
    return process


def ends_badly(process: subprocess.Popen[str], output: Path, *sentences: str) -> None:
    """Within a minute, with exit code 1 and one of the sentences; no process is left."""
    begun = time.monotonic()
    said = process.communicate(timeout=180)[0]
    assert process.returncode == 1, said
    assert any(sentence in said for sentence in sentences), said
    assert time.monotonic() - begun < 90
    assert gone(output, 20), processes(output)


def test_a_run_outlives_its_sampler_and_goes_on_after_every_other_death(tmp_path: Path) -> None:
    """One run, struck by one fault after the other, each time started again."""
    output = tmp_path / "run"
    file = output / "metrics.jsonl"

    process = going(output)
    os.kill(process_of(output, "ray::SamplerWorker"), signal.SIGKILL)
    until(file, file.read_text().count("\n") + 3, process)
    os.kill(process_of(output, "ray::PolicyWorker"), signal.SIGKILL)
    ends_badly(process, output, "the worker process died")

    process = going(output)
    os.kill(process_of(output, "ray::PolicyWorker"), signal.SIGSTOP)
    ends_badly(process, output, "no answer within trainer.deadline_s=60 s")

    process = going(output)
    os.kill(process_of(output, "ray::SamplerWorker"), signal.SIGSTOP)
    ends_badly(process, output, "sampling rollouts: no answer within trainer.deadline_s=60 s", "publishing weights: ")

    process = going(output)
    os.kill(process_of(output, "/raylet/raylet"), signal.SIGKILL)
    said = process.communicate(timeout=180)[0]
    assert process.returncode == 1, said
    assert gone(output, 30), processes(output)

    done = file.read_text().count("\n")
    failed = train(
        output,
        "grpo",
        *SMALL,
        TOTAL_STEPS="1000",
        N_GPUS_PER_NODE="2",
        MOPD_FAILPOINTS=f"sync.mid=kill;step={done + 2}",
    )
    assert failed.code == 1, failed.said
    assert "publish" in failed.said
    failed = train(
        output, "grpo", *SMALL, TOTAL_STEPS="1000", N_GPUS_PER_NODE="2", MOPD_FAILPOINTS="step.after_opt=raise;rank=1"
    )
    assert failed.code == 1, failed.said
    assert "updating the student: FailpointError" in failed.said
    assert 'failpoints.hit("step.after_opt"' in failed.said, "the traceback of the rank itself"

    done = file.read_text().count("\n")
    finished = train(output, "grpo", *SMALL, TOTAL_STEPS=str(done + 1), N_GPUS_PER_NODE="2")
    assert finished.code == 0, finished.said
    assert [record["step"] for record in finished.metrics] == list(range(1, done + 2))


def unheard(output: Path, method: str, stdout: int) -> tuple[int, str]:
    """Exit code and standard error of a run of two steps that tells of itself to `stdout`."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OUTPUT_DIR": str(output), "TOTAL_STEPS": "2"}
    command = [sys.executable, "-m", "trainer.main", "--config-name", method, *SMALL]
    done = subprocess.run(
        command, env=environment, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False, timeout=600
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("kind", ["a pipe that nobody reads", "a full disk"])
def test_a_run_that_cannot_tell_of_itself_goes_on(tmp_path: Path, kind: str) -> None:
    if kind == "a full disk":
        stdout = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, stdout = os.pipe()
        os.close(reader)
    code, said = unheard(tmp_path / "run", "mopd", stdout)
    os.close(stdout)
    assert code == 0, said
    assert said.count("what the run tells cannot be written") == 1
    run = Run(tmp_path / "run", code, said)
    assert [record["step"] for record in run.metrics] == [1, 2]
    assert (run.output / "checkpoints" / "step_2" / "hf").is_dir()


def test_two_runs_on_one_machine_do_not_disturb_each_other(tmp_path: Path) -> None:
    flags = {"TOTAL_STEPS": "2", "N_GPUS_PER_NODE": "2", "SEED": "3"}
    alone = train(tmp_path / "alone", "grpo", *SMALL, **flags)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **flags}
    command = [sys.executable, "-m", "trainer.main", "--config-name", "grpo", *SMALL]
    pair = [
        subprocess.Popen(command, env={**environment, "OUTPUT_DIR": str(tmp_path / name)}, cwd=tmp_path)
        for name in ("one", "other")
    ]
    assert [process.wait(600) for process in pair] == [0, 0]
    texts = [(tmp_path / name / "rollouts" / "2.jsonl").read_bytes() for name in ("alone", "one", "other")]
    assert alone.code == 0
    assert texts[0] == texts[1] == texts[2]


def silent_model(folder: Path) -> None:
    """A model that ends every response with its first token."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model = AutoModelForCausalLM.from_pretrained(MODEL, tie_word_embeddings=False, dtype=torch.float32)
    asked = tokenizer.apply_chat_template([{"role": "user", "content": "calc"}], add_generation_prompt=True)
    last = (asked["input_ids"] if hasattr(asked, "keys") else asked)[-1]
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        seen = model.model.norm(model.model.embed_tokens.weight[last])
        model.lm_head.weight.zero_()
        model.lm_head.weight[model.generation_config.eos_token_id or tokenizer.eos_token_id] = 50 * seen / seen.norm()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize("method", ["grpo", "mopd"])
def test_a_model_that_says_nothing_trains_without_a_number_that_is_none(tmp_path: Path, method: str) -> None:
    """All rollouts are empty and wrong: for GRPO every advantage is zero. MOPD's teacher sees failures all the same,
    but this model looks at nothing but its last token, so that teacher and student agree to the last digit.
    """
    silent_model(tmp_path / "model")
    run = train(
        tmp_path / "run",
        method,
        *SMALL,
        "profile=embedded",
        f"actor_rollout_ref.model.path={tmp_path}/model",
        TOTAL_STEPS="2",
        N_GPUS_PER_NODE="2",
    )
    assert run.code == 0, run.said
    for record in run.metrics:
        assert (record["response_length/max"], record["critic/success_rate"]) == (1, 0)
        assert record["critic/informative_group_fraction"] == 0
        assert [name for name, value in record.items() if value is None] == []
        assert record["actor/grad_norm"] < 1e-6
        assert (record.get("self_distillation/divergence") == 0) == (method == "mopd")
    assert {line["output"] for line in run.lines("rollouts/1.jsonl")} == {""}
