"""Operations as torch counts them, tokens as they are laid out, and no figure of nothing."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from benchmarks import gpu, gpu_step
from mopd.types import TokenStreams
from trainer.accounting import (
    PEAKS,
    Account,
    Pass,
    Tally,
    actor_metrics,
    causal_pairs,
    ideal_tokens,
    model_flops,
    pass_of,
    pass_over,
    peak_of,
    step_metrics,
)
from trainer.layout import batch_of, hidden_states
from trainer.memory_use import Peaks
from trainer.packing import Sample
from trainer.planning.architecture import architecture_of
from trainer.planning.costs import DEVICES

MODEL = str(Path(__file__).resolve().parents[2] / "datasets" / "chain" / "model")
CPU = torch.device("cpu")


def sample(prompt, response, teacher_prompt=None, usable=True):
    """A rollout whose token ids are those of a range: prompts of one length are equal."""
    ones = np.ones(response, dtype=np.float32)
    ids = [np.arange(length, dtype=np.int32) for length in (prompt, response)]
    view = None if teacher_prompt is None else np.arange(teacher_prompt, dtype=np.int32)
    return Sample(0, 0, 1.0, *ids, -ones, view, TokenStreams(ones, ones * usable, ones))


def laid_out(prompts, responses, *, packed):
    """A batch of prompts and responses of these lengths, of ids that are known to the model."""
    rows = [[np.arange(length, dtype=np.int32) for length in lengths] for lengths in (prompts, responses)]
    return batch_of(*rows, CPU, packed=packed)


# ------------------------------------------------------------------ operations


def test_operations_are_those_that_torch_counts():
    """Eager attention computes the part of the square that the mask hides; all else must agree."""
    model = AutoModelForCausalLM.from_pretrained(MODEL, attn_implementation="eager")
    sizes, (rows, length, labels) = architecture_of(MODEL), (2, 96, 40)
    batch = laid_out([length - labels] * rows, [labels] * rows, packed=False)
    with FlopCounterMode(display=False) as forward:
        value = model.lm_head(hidden_states(model, batch)).square().mean()
    with FlopCounterMode(display=False) as backward:
        value.backward()
    work = pass_of(batch, [length] * rows, rows=rows * labels, labels=rows * labels)
    hidden_square = 4 * sizes.layers * sizes.query_width * rows * (length**2 - causal_pairs(length))
    norms = 2 * rows * length * sizes.layers * (2 * sizes.hidden + 2 * sizes.head_dim)
    wanted = model_flops({"student": work}, sizes) + hidden_square - norms
    assert forward.get_total_flops() == pytest.approx(wanted, rel=1e-6)
    assert backward.get_total_flops() == pytest.approx(2 * wanted, rel=1e-6)
    assert model_flops({"trained": work}, sizes) == pytest.approx(3 * model_flops({"student": work}, sizes))


def test_only_what_has_to_be_computed_is_credited():
    """Neither padding nor rows without a loss."""
    sizes = architecture_of(MODEL)
    padded = laid_out([5, 5], [7, 1], packed=False)
    work = pass_of(padded, [12, 6], rows=8, labels=4)
    assert (work.tokens, work.useful) == (24, 18)
    exact = replace(work, tokens=18, rows=4)
    assert model_flops({"trained": work}, sizes) == model_flops({"trained": exact}, sizes)


def test_a_teacher_of_another_shape_counts_with_its_own():
    sizes, work = architecture_of(MODEL), Pass(12, 12, 78, 7, 7)
    twice = replace(sizes, layers=2 * sizes.layers)
    assert model_flops({"teacher": work}, sizes) == model_flops({"student": work}, sizes)
    assert model_flops({"teacher": work}, sizes, twice) > 1.5 * model_flops({"teacher": work}, sizes)


@pytest.mark.parametrize("responses", [[1], [30], [4, 9, 1], [6, 6, 6]])
@pytest.mark.parametrize("prompt", [1, 11])
def test_a_packed_row_counts_every_key_that_a_token_sees(prompt, responses):
    """A shared prompt's keys are seen by all responses; a response's last token is not forwarded."""
    lengths = [prompt + response for response in responses]
    other = [3, 5]  # another group in the same row
    batch = laid_out([prompt] * len(responses) + [2, 2], [*responses, *other], packed=True)
    work = pass_of(batch, [*lengths, 5, 7], rows=1, labels=1)
    shared = prompt + sum(response - 1 for response in responses)
    assert work.tokens == work.useful == shared + 2 + 2 + 4
    seen = sum(range(1, prompt + 1)) + sum(sum(range(prompt + 1, length)) for length in lengths)
    assert work.pairs == seen + sum(range(1, 3)) + sum(range(3, 5)) + sum(range(3, 7))


@pytest.mark.parametrize("packed", [True, False])
def test_a_pass_over_samples_counts_their_loss_and_their_own_prompts(packed):
    """One sample is seen behind a prompt of the teacher's; of the other's response half has a loss."""
    samples = [sample(4, 6, teacher_prompt=9), sample(4, 8)]
    samples[1].streams.mask[4:] = 0
    whole = laid_out([9, 4], [6, 8], packed=packed)
    work = pass_over(whole, samples, on_view=True)
    assert (work.rows, work.labels) == (14, 10)
    assert (work.tokens, work.useful) == ((25, 25) if packed else (30, 27))
    kept = whole.only(torch.arange(14) < 10)
    assert pass_over(kept, samples, on_view=True) == replace(work, rows=10)
    own = pass_over(laid_out([4, 4], [6, 8], packed=False), samples, on_view=False)
    assert (own.tokens, own.useful) == (24, 22)


def test_a_rank_without_work_forwards_padding():
    work = pass_over(laid_out([1], [1], packed=False), [], on_view=False)
    assert work == Pass(tokens=2, rows=1)


# ------------------------------------------------------------------ devices


@pytest.mark.parametrize(
    ("name", "known_as"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA GH200 480GB", "GH200"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
    ],
)
def test_a_device_is_known_by_its_name(name, known_as):
    assert peak_of(name) == PEAKS[known_as]


@pytest.mark.parametrize("name", [None, "NVIDIA GeForce RTX 4090", "NVIDIA H20", ""])
def test_of_any_other_device_no_peak_is_guessed(name):
    assert peak_of(name) is None


def test_plan_and_run_agree_on_peaks():
    assert all(PEAKS[name] == device.flops for name, device in DEVICES.items() if name != "CPU")


def test_utilisation_is_of_all_ranks_peaks():
    """Two ranks that each work at half their peak for as long as the slower takes."""
    sizes = architecture_of(MODEL)
    work = {"trained": Pass(12, 12, 78, 7, 7)}
    seconds = 2 * model_flops(work, sizes) / PEAKS["H200"]
    ranks = [Tally(work, {}, "NVIDIA H200")] * 2
    figures = actor_metrics(ranks, ideal=24, seconds=seconds, student=sizes)
    assert figures["perf/mfu/actor"] == pytest.approx(0.5)


@pytest.mark.parametrize("device", [None, "NVIDIA GeForce RTX 4090"])
def test_without_a_known_peak_there_is_no_utilisation(device):
    ranks = [Tally({"trained": Pass(12, 12, 78, 7, 7)}, {}, name) for name in ("NVIDIA H200", device)]
    figures = actor_metrics(ranks, ideal=24, seconds=1.0, student=architecture_of(MODEL))
    assert "perf/mfu/actor" not in figures


# ------------------------------------------------------------------ tokens


def test_the_ideal_is_every_teacher_prompt_once():
    samples = [sample(3, 10, 50), sample(3, 20, 50), sample(3, 30, 60), sample(9, 40, 70, usable=False)]
    assert ideal_tokens(samples, student_passes=1, teacher_passes=0) == 9 + 60
    assert ideal_tokens(samples, student_passes=0, teacher_passes=1) == 50 + 60 + 60
    assert ideal_tokens(samples, student_passes=2, teacher_passes=1) == 2 * 69 + 170


def test_a_reference_answers_on_the_prompt_of_the_group():
    samples = [sample(3, 10), sample(3, 20)]
    assert ideal_tokens(samples, student_passes=0, teacher_passes=1) == 3 + 30


def test_memory_is_that_of_the_fullest_rank():
    ranks = [Tally({}, {}, "NVIDIA H200", Peaks(1.0, gib, gib)) for gib in (3.0, 5.0)]
    assert actor_metrics(ranks, ideal=0, seconds=1.0)["perf/max_memory_allocated_gb"] == 5.0


def test_ratios_are_over_all_ranks_and_passes():
    own, teacher = Pass(20, 18, 91, 12, 10), Pass(20, 20, 146, 10, 10)
    tallies = [
        Tally({"trained": own}, {"forward": 1.0}, None),
        Tally({"teacher": teacher}, {"forward": 3.0, "teacher": 2.0}, None),
    ]
    figures = actor_metrics(tallies, ideal=32, seconds=1.0)
    assert figures["perf/tokens_forwarded"] == 40
    assert figures["perf/tokens_forwarded_ratio"] == 40 / 32
    assert figures["perf/rows_projected_ratio"] == 22 / 20
    assert figures["perf/padding_fraction"] == pytest.approx(2 / 40)
    assert figures["timing_s/learn/forward"] == 3.0, "the slowest rank's"


def test_of_nothing_there_is_no_figure():
    figures = actor_metrics([Tally({}, {}, None)], ideal=0, seconds=0.0)
    assert figures == {"timing_s/update_actor": 0.0, "perf/tokens_forwarded": 0, "perf/rows_projected": 0}


def test_an_account_adds_up_passes_and_turns():
    account = Account(CPU)
    for _ in range(2):
        with account.turn("forward"):
            account.forwarded("trained", Pass(5, 4, 3, 2, 1))
    with account.turn("teacher"):
        account.forwarded("teacher", Pass(1, 1, 1, 1, 1))
    tally = account.closed()
    assert tally.passes == {"trained": Pass(10, 8, 6, 4, 2), "teacher": Pass(1, 1, 1, 1, 1)}
    assert set(tally.seconds) == {"forward", "teacher"}
    assert all(seconds > 0 for seconds in tally.seconds.values())
    assert tally.device is None


# ------------------------------------------------------------------ steps

TIMINGS = {
    "timing_s/sample": 4.0,
    "timing_s/learn": 3.0,
    "timing_s/publish": 1.0,
    "timing_s/verify": 1.0,
    "timing_s/validate": 5.0,
    "timing_s/save": 2.0,
    "timing_s/step": 17.0,
}


def test_pace_leaves_validation_and_saving_aside():
    figures = step_metrics(TIMINGS, tokens=400, response_tokens=100, devices=2)
    assert figures["perf/time_per_step"] == 10.0
    assert figures["perf/throughput"] == 20.0
    assert figures["perf/response_tokens_per_s"] == 10.0
    assert figures["perf/total_num_tokens"] == 400


def test_overhead_is_what_nobody_worked():
    """All of `learn` is work at first; then only what a rank took of it."""
    share = {"tokens": 1, "response_tokens": 1, "devices": 1}
    assert step_metrics(TIMINGS, **share)["perf/framework_overhead"] == pytest.approx(0.2)
    measured = {**TIMINGS, **actor_metrics([], ideal=0, seconds=2.5)}
    assert step_metrics(measured, **share)["perf/framework_overhead"] == pytest.approx(0.25)
    overlapped = {**TIMINGS, "timing_s/step": 12.0}
    assert step_metrics(overlapped, **share)["perf/framework_overhead"] == 0.0
    assert step_metrics({"timing_s/validate": 2.0, "timing_s/step": 2.0}, **share) == {}


# ------------------------------------------------------------------ the benchmark that counts with all this


def test_every_part_of_the_gpu_benchmark_runs_dry(capsys):
    """At a toy size: every way is measured, and float32 logits are what makes a gradient accurate."""
    assert gpu.main(["--dry", "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(told) >= {"gemm", "loss", "actor", "transfer", "device", "torch", "seconds"}
    errors = {record["way"]: record.get("gradient_error") for record in told["loss"]}
    assert set(errors) == set(gpu.WAYS)
    assert errors["precise"] < 5e-3 < errors["exact"] < errors["naive"]
    ways = {record["way"]: record for record in told["actor"]}
    assert set(ways) == set(gpu_step.WAYS)
    assert ways["fused"]["forwarded"] < ways["packed"]["forwarded"] <= 1 < ways["padded"]["forwarded"]
    assert all(0 < record["tflops"] < float("inf") for record in ways.values())
    assert not any("mfu" in record for record in ways.values())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to measure")
def test_without_a_gpu_nothing_is_made_up(capsys):
    assert gpu.main([]) == 0
    sentence, last = capsys.readouterr().out.splitlines()
    assert sentence.startswith("not measured: ")
    assert json.loads(last) == {"not_measured": sentence}


def test_every_way_of_the_step_has_the_same_loss():
    """Else their times could not be compared. Prompts that differ in their first tokens are another batch."""
    bench, shape = gpu_step.Bench(CPU, 60.0, quiet=True), gpu_step.TOY
    rows = gpu_step.make_rows(shape, shape.tokens[0])
    found = {}
    with gpu_step.alone(bench):
        models = [gpu_step.build(shape, bench, trained=trained) for trained in (True, False)]
        for weight in models[1].parameters():
            weight.to_local().mul_(1.1)
        trio = gpu_step.Trio(*models, torch.optim.SGD(models[0].parameters(), lr=0.0))
        for name, way in gpu_step.WAYS.items():
            if name == "packed":
                continue
            account = Account(CPU)
            parts = gpu_step.micro_batches(rows, way, shape)
            found[name] = sum(gpu_step.forward(trio, part, way, shape, account).item() for part in parts)
    assert len(gpu_step.micro_batches(rows, gpu_step.WAYS["padded"], shape)) > 1
    assert found["fused"] > 0
    assert found == pytest.approx(dict.fromkeys(found, found["fused"]), rel=1e-4)


@pytest.mark.slow
def test_one_rank_and_two_do_the_same_work(tmp_path, root):
    """The benchmark refuses to compare what is not the same; here it finds nothing to refuse."""
    done = subprocess.run(
        [sys.executable, str(root / "benchmarks" / "scaling.py"), "--updates", "1", "--json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["pairs"] == 1
    assert told["ratio"] == pytest.approx(told["cpu_seconds_2"] / told["cpu_seconds_1"], rel=1e-2)
    assert 1 <= told["imbalance"] < 2
