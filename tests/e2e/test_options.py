"""Every option on the real stack: twelve runs of two steps in which each takes another value than its default."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from mopd.contexts import CUT
from tests.e2e.conftest import ROOT, Run
from tests.e2e.options import CASES, UNCOVERED, UNREACHED
from trainer.config.compose import contradictions, resolve
from trainer.config.reference import leaves, lookup
from trainer.config.schema import Config

CHAIN = ROOT / "datasets" / "chain"


def rollouts(run: Run) -> list[dict[str, Any]]:
    """The rollouts of all steps."""
    return [line for record in run.metrics if record["step"] for line in run.lines(f"rollouts/{record['step']}.jsonl")]


def last(run: Run, name: str) -> float:
    """A figure after the last step."""
    return float(run.metrics[-1][name])


def summed(run: Run, name: str) -> float:
    """A figure over all steps."""
    return float(sum(record.get(name, 0) for record in run.metrics))


def peers_are_the_shortest_and_may_be_the_rollout_itself(run: Run) -> None:
    shown = rollouts(run)
    prompts = [line["teacher_prompt"] for line in shown if line["usable"]]
    assert all(prompt.endswith("Now answer.<|im_end|>\n<|im_start|>assistant\n") for prompt in prompts)
    slots = [{peer["slot"]: peer for peer in line["peers"]} for line in shown]
    assert any("failure" in own for own in slots)
    assert not any({"failure", "primary"} <= own.keys() for own in slots), "a failure only where there is no solution"
    assert all("shortest of" in peer["reason"] for own in slots for peer in own.values())
    owners = [
        line["rollout_id"] for line in shown for peer in line["peers"] if peer["rollout_id"] == line["rollout_id"]
    ]
    assert owners, "a success may be its own demonstration"
    for name, words in (("primary", "Right:"), ("another", "Right too:"), ("failure", "Wrong:")):
        said = [words in line["teacher_prompt"] for line, own in zip(shown, slots, strict=True) if name in own]
        assert said, name
        assert all(said), name
    assert last(run, "self_distillation/topk_mass_student") == pytest.approx(1, abs=1e-6), "the whole vocabulary"


def blocks_of_random_siblings_are_cut_on_the_right(run: Run) -> None:
    shown = rollouts(run)
    assert {peer["slot"] for line in shown for peer in line["peers"]} == {"control"}
    reasons = [peer["reason"] for line in shown for peer in line["peers"]]
    assert any("success of the group" in reason for reason in reasons)
    assert any("failure of the group" in reason for reason in reasons)
    assert last(run, "self_distillation/peer_control_active") == 1
    assert last(run, "self_distillation/teacher_prompt_length/max") == 56
    assert summed(run, "self_distillation/fallback_shortened_count") == 0
    assert [record["actor/optimizer_steps"] for record in run.metrics] == [4, 4], "two mini-batches, twice"
    assert [record["actor/lr"] for record in run.metrics] == [pytest.approx(1e-4), pytest.approx(2e-4)]
    assert 0 < last(run, "self_distillation/topk_mass_student") < 1
    assert all(abs(record["actor/ppo_kl"]) > 0 for record in run.metrics), "later mini-batches have moved"
    assert run.manifest["actors"]["ranks"] == 2


def published_behaviour_is_restored(run: Run) -> None:
    bests = [record["val-aux/chain/best@2"] for record in run.metrics]
    assert len(bests) == 3, "before, after the first step, and at the end"
    assert all(0 <= best <= 1 for best in bests)
    file_order = [f"calc {row['extra_info']['problem'].removeprefix('calc ')}" for row in train_rows()]
    met = list(dict.fromkeys(line["input"].split("\n")[1] for line in rollouts(run)))
    assert met == file_order[:8]
    assert run.manifest["seed"] == 7
    slots = {peer["slot"] for line in rollouts(run) for peer in line["peers"]}
    assert slots == {"control"}
    reasons = [peer["reason"] for line in rollouts(run) for peer in line["peers"]]
    assert all("success of" in reason for reason in reasons)


def blocks_come_from_other_prompts(run: Run) -> None:
    for line in rollouts(run):
        assert not line["peers"] or line["usable"]
        for peer in line["peers"]:
            assert peer["slot"] == "control"
            assert peer["rollout_id"].rsplit("-", 1)[0] != line["uid"]
            assert peer["reason"].startswith("as ")
    assert summed(run, "self_distillation/peer_control_failure_block_total") == 0
    assert summed(run, "self_distillation/peer_control_success_block_total") > 0
    assert max(record["self_distillation/peer_control_blocks_per_sample"] for record in run.metrics) <= 2
    assert {len(run.lines(f"rollouts/{step}.jsonl")) for step in (1, 2)} == {4 * 6}
    assert all(record["self_distillation/teacher_prompt_length/max"] <= 56 for record in run.metrics)


def summaries_are_asked_of_the_student_and_shown_to_the_teacher(run: Run) -> None:
    shown = rollouts(run)
    assert all("then a <gist>" in line["input"] for line in [*shown, *run.lines("validation/2.jsonl")])
    prompts = [line["teacher_prompt"] for line in shown if line["usable"]]
    assert not any("then a <gist>" in prompt for prompt in prompts)
    assert summed(run, "self_distillation/summary_sampled_failure_count") > 0
    assert any("Gist of a failure:" in prompt for prompt in prompts)
    with_summaries = [line for line in shown if any(peer["slot"] == "summary" for peer in line["peers"])]
    assert max(sum(peer["slot"] == "summary" for peer in line["peers"]) for line in with_summaries) == 2
    told = [line for line in shown if line["usable"] and "The form:" in line["teacher_prompt"]]
    assert all(line["feedback"] in line["teacher_prompt"] for line in told)
    assert bool(told) == (summed(run, "self_distillation/feedback_available_fraction") > 0)


def the_reference_solution_is_shortened_and_shown_to_cut_rollouts(run: Run) -> None:
    references = {row["prompt"][0]["content"]: row["extra_info"]["reference_solution"] for row in train_rows()}
    for line in rollouts(run):
        shown = line["teacher_prompt"].partition("Correct solution:\n\n")[2].partition(CUT)[0]
        assert references[line["input"].split("\n")[1]].startswith(shown)
        assert len(shown) >= len("the value")
        assert line["teacher_prompt"].endswith("original question.<|im_end|>\n<|im_start|>assistant\n")
        assert line["fallbacks"][-1].startswith("shortened: 1 of 1 peer texts")
        assert line["peers"] == [
            {"slot": "primary", "rollout_id": "", "reason": "extra_info.reference_solution of the data row"}
        ]
        assert line["response_length"] <= 8
        assert line["success"] is None if line["finish_reason"] == "length" else line["success"] is not None
    assert last(run, "critic/unknown_fraction") == 1
    assert last(run, "self_distillation/teacher_prompt_length/max") <= 56
    assert run.output.name == "named", "by its experiment name"


def another_model_teaches_along_a_growing_horizon(run: Run) -> None:
    longest = [max(line["response_length"] for line in run.lines(f"rollouts/{step}.jsonl")) for step in (1, 2, 3)]
    assert longest == [6, 6, 10]
    assert all(line["status"] == "unknown" for line in rollouts(run) if line["finish_reason"] == "length")
    for line in rollouts(run):
        assert line["usable"]
        assert line["peers"] == []
        assert line["teacher_prompt"].startswith("<|im_start|>system\nmark<|im_end|>\n"), "its own chat template"
    assert run.manifest["model"]["path"].endswith("/model")
    assert run.output.name.endswith("-suffix")


def groups_of_equal_credit_are_left_out(run: Run) -> None:
    for step, record in enumerate(run.metrics, start=1):
        credits: dict[str, set[float]] = {}
        for line in run.lines(f"rollouts/{step}.jsonl"):
            assert line["score"] == float(line["success"]), "a verdict does not fall with length, its credit does"
            lost = min(max((line["response_length"] - 12) / 20, 0), 1)
            credits.setdefault(line["uid"], set()).add(line["score"] - lost)
        kept = sum(len(own) > 1 for own in credits.values()) / len(credits)
        assert 4 <= record["sampling/prompts_drawn"] <= 12
        assert record["sampling/prompts_drawn"] == 12 or record["sampling/groups_teaching"] >= 4
        assert kept == min(1, record["sampling/groups_teaching"] / 4)
        assert record["actor/trained_fraction"] == pytest.approx(kept)
    assert summed(run, "actor/optimizer_steps") % 2 == 0, "every mini-batch twice"


def every_tracker_is_told(run: Run) -> None:
    assert list((run.output / "tensorboard").glob("events.out.tfevents.*"))
    [kept] = (run.output / "wandb").glob("offline-run-*/*.wandb")
    assert b"covering" in kept.read_bytes(), "the project's name"
    assert len(list((run.output / "wandb").glob("offline-run-*/files/media/table/rollouts_*.table.json"))) == 2
    [curve] = (run.output / "mlflow").glob("*/*/metrics/critic/rewards.mean")
    assert [line.split()[2] for line in curve.read_text().splitlines()] == ["1", "2"], "by step"


def pairs_are_measured(run: Run) -> None:
    method = run.metrics[-1]
    name = "dpo" if "dpo/accuracy" in method else "simpo"
    assert all(0 <= record[f"{name}/accuracy"] <= 1 for record in run.metrics if f"{name}/accuracy" in record)
    assert all(math.isfinite(record[f"{name}/reward_margin"]) for record in run.metrics)
    assert not any(key.startswith("self_distillation/") for key in method)


def pairs_are_measured_and_everything_lies_where_it_was_asked(run: Run) -> None:
    pairs_are_measured(run)
    kept = run.output.parent / "kept"
    assert sorted(path.name for path in (kept / "rollouts").glob("*.jsonl")) == ["1.jsonl", "2.jsonl"]
    assert [path.name for path in (kept / "validation").iterdir()] == ["2.jsonl"]
    assert (kept / "checkpoints" / "step_2" / "hf" / "model.safetensors").is_file()


def successes_alone_are_learnt(run: Run) -> None:
    for step, record in enumerate(run.metrics, start=1):
        successes = [line["success"] for line in run.lines(f"rollouts/{step}.jsonl")]
        assert record["actor/trained_fraction"] == pytest.approx(sum(successes) / len(successes))
        assert record["sft/nll"] > 0
        for line in run.lines(f"rollouts/{step}.jsonl"):
            odd = len(line["output"]) % 2 == 1
            assert (line["score"], line["feedback"]) == ((1, "odd") if odd else (0, "even"))
    assert last(run, "actor/grad_norm") > 0


TOLD: dict[str, Callable[[Run], None]] = {
    "peers": peers_are_the_shortest_and_may_be_the_rollout_itself,
    "random-peer": blocks_of_random_siblings_are_cut_on_the_right,
    "published": published_behaviour_is_restored,
    "unrelated": blocks_come_from_other_prompts,
    "summaries": summaries_are_asked_of_the_student_and_shown_to_the_teacher,
    "reference": the_reference_solution_is_shortened_and_shown_to_cut_rollouts,
    "prompt": another_model_teaches_along_a_growing_horizon,
    "gspo": groups_of_equal_credit_are_left_out,
    "drpo": every_tracker_is_told,
    "dpo": pairs_are_measured_and_everything_lies_where_it_was_asked,
    "simpo": pairs_are_measured,
    "verified-sft": successes_alone_are_learnt,
}
"""What only the options of a run make true of it."""


def train_rows() -> list[dict[str, Any]]:
    """Embedded training rows, each with a reference solution."""
    found: list[dict[str, Any]] = pq.read_table(CHAIN / "train.parquet").to_pylist()[:16]
    for row in found:
        value = json.loads(row["reward_model"]["ground_truth"])["value"]
        row["extra_info"]["reference_solution"] = f"the value is {value} " * 10
    return found


JUDGE = """
def judge(data_source, solution_str, ground_truth, extra_info=None):
    return {"score": float(len(solution_str) % 2), "feedback": "odd" if len(solution_str) % 2 else "even"}
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows, a copy of the model, and another model of its vocabulary as teacher, with a chat template of its own."""
    folder = tmp_path_factory.mktemp("data")
    rows = train_rows()
    pq.write_table(pa.Table.from_pylist(rows), folder / "train.parquet")
    pq.write_table(pa.Table.from_pylist(rows[:4]), folder / "few.parquet")
    pq.write_table(pq.read_table(CHAIN / "test.parquet").slice(0, 6), folder / "test.parquet")
    (folder / "judge.py").write_text(JUDGE)
    for name in ("model", "teacher"):
        shutil.copytree(CHAIN / "model", folder / name)
    weights, generator = load_file(folder / "teacher" / "model.safetensors"), torch.Generator().manual_seed(0)
    moved = {name: weight + 0.02 * torch.randn(weight.shape, generator=generator) for name, weight in weights.items()}
    save_file(moved, folder / "teacher" / "model.safetensors", metadata={"format": "pt"})
    template = folder / "teacher" / "chat_template.jinja"
    template.write_text("{% if mark %}<|im_start|>system\nmark<|im_end|>\n{% endif %}" + template.read_text())
    return folder


@pytest.mark.e2e
@pytest.mark.parametrize("name", CASES)
def test_a_run_with_these_options_trains_and_shows_them(
    name: str, data: Path, tmp_path: Path, trained: Callable[..., Run]
) -> None:
    run = trained(tmp_path / "run", CASES[name].method, *CASES[name].command(data, tmp_path))
    assert run.code == 0, run.said
    if not run.output.exists():
        [output] = (tmp_path / "outputs").iterdir()
        run = replace(run, output=output)
    steps = [record for record in run.metrics if record["step"]]
    assert [record["step"] for record in steps] == list(range(1, 4 if name == "prompt" else 3))
    for record in steps:
        assert all(math.isfinite(value) for value in record.values()), record
        assert record["actor/optimizer_steps"] > 0
        assert record["actor/skipped_steps"] == 0
        assert math.isfinite(record["actor/loss"])
        assert record["actor/grad_norm"] > 0
        assert record["rollout_corr/publish_max_abs_diff"] < 1e-4
        if "trainer.overlap" not in CASES[name].options:  # there the sampler is one update behind
            assert record["rollout_corr/logprob_max_abs_diff"] < 1e-4
    TOLD[name](run)


def resolved() -> Iterator[dict[str, Any]]:
    """The configurations of all runs."""
    for case in CASES.values():
        yield resolve(case.method, case.command(Path("data"), Path("here")), {}).tree


def test_every_option_takes_another_value_than_its_default_in_some_run() -> None:
    default, trees = resolve("sdpo", [], {}).tree, list(resolved())
    keys = [key for key, _, _ in leaves(Config)]
    same = {key for key in keys if all(lookup(tree, key) == lookup(default, key) for tree in trees)}
    assert same == set(UNCOVERED)
    assert len(trees) <= 12
    assert TOLD.keys() == CASES.keys()


def test_a_buffer_longer_than_any_response_is_refused() -> None:
    config = resolve("grpo", ["algorithm.overlong_buffer=33"], {}).config
    assert contradictions(config) == ["algorithm.overlong_buffer=33 is above data.max_response_length=32; lower it"]
    assert contradictions(resolve("grpo", ["algorithm.overlong_buffer=32"], {}).config) == []


def choices_of(hint: Any) -> set[Any]:
    """The values that a type lists one by one."""
    if hint is bool:
        return {True, False}
    if hint is type(None):
        return {None}
    if get_origin(hint) is Literal:
        return set(get_args(hint))
    return set().union(*(choices_of(part) for part in get_args(hint))) if get_origin(hint) is not dict else set()


def test_every_choice_of_an_option_is_taken_in_some_run() -> None:
    trees = [resolve("sdpo", [], {}).tree, *resolved()]
    missed = set()
    for key, hint, _ in leaves(Config):
        values = [lookup(tree, key) for tree in trees]
        taken = [item for value in values for item in (value if isinstance(value, list) else [value])]
        missed |= {f"{key}={choice}" for choice in choices_of(hint) if choice not in taken}
    assert missed == set(UNREACHED)
