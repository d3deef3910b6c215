"""The memory model counts what the code keeps; the slow test measures real updates against it."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from mopd.fused_logits import LOGITS_AT_HAND
from mopd.methods import METHODS
from trainer.config.compose import PROJECT
from trainer.layout import batch_of
from trainer.planning.architecture import Architecture, architecture_of
from trainer.planning.memory import (
    ActorPlan,
    Away,
    MicroBatch,
    loss_moment,
    memory_of,
    offloaded,
    proof_moment,
    publish_moment,
    staged,
    steady_parts,
    total,
    while_sampling,
)

CHAIN = PROJECT / "datasets" / "chain" / "model"
QWEN3_4B = {"hidden_size": 2560, "intermediate_size": 9728, "tie_word_embeddings": True}
QWEN3_8B = {"hidden_size": 4096, "intermediate_size": 12288, "tie_word_embeddings": False}


def described(folder: Path, **changes: Any) -> str:
    """A folder with nothing but the published config.json of a large model."""
    shape = {"num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128}
    large = {**shape, "vocab_size": 151936, "max_position_embeddings": 40960, "layer_types": ["full_attention"] * 36}
    folder.mkdir(exist_ok=True)
    config = {**json.loads((CHAIN / "config.json").read_text()), **large, **changes}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.fixture(scope="module")
def qwen3_4b(tmp_path_factory: pytest.TempPathFactory) -> Architecture:
    return architecture_of(described(tmp_path_factory.mktemp("shapes") / "4b", **QWEN3_4B))


def plan_of(model: Architecture, **changes: Any) -> ActorPlan:
    """A rank of eight GPUs with a teacher beside."""
    usual = ActorPlan(
        student=model,
        beside=model,
        method=METHODS["sdpo"],
        topk=100,
        union=False,
        mixes=False,
        distant=False,
        ranks=8,
        on_gpu=True,
        recompute=True,
        packed=True,
        fused=True,
        eager=False,
        micro_batch=MicroBatch(2, 1, 1000, 4096),
    )
    return replace(usual, **changes)


def test_published_models_are_counted_from_their_description_alone(tmp_path: Path, qwen3_4b: Architecture) -> None:
    larger = architecture_of(described(tmp_path / "8b", **QWEN3_8B))
    assert qwen3_4b.parameters == 4_022_468_096  # as published
    assert larger.parameters == 8_190_735_360
    assert larger.root == 2 * 151936 * 4096 + 4096


def test_the_embedded_model_is_counted_as_it_loads() -> None:
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(CHAIN))
    found = architecture_of(str(CHAIN))
    assert found.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert found.layer == sum(parameter.numel() for parameter in model.model.layers[0].parameters())
    assert found.matrices + found.root == found.parameters


@pytest.mark.parametrize("ranks", [1, 2, 8])
def test_masters_gradients_moments_and_teacher_are_dealt_over_the_ranks(qwen3_4b: Architecture, ranks: int) -> None:
    assert total(steady_parts(plan_of(qwen3_4b, ranks=ranks))) == 20 * qwen3_4b.parameters / ranks
    assert total(steady_parts(plan_of(qwen3_4b, ranks=ranks, beside=None))) == 16 * qwen3_4b.parameters / ranks


def test_what_is_away_is_missing_where_it_is_not_needed(qwen3_4b: Architecture) -> None:
    share = 4 * qwen3_4b.parameters / 8
    usual = plan_of(qwen3_4b)
    assert total(while_sampling(usual)) == 4 * share
    assert offloaded(usual) == 0
    away = frozenset[Away]({"optimiser"})
    assert total(while_sampling(replace(usual, away=away))) == 2 * share
    peak, slim = memory_of(usual), memory_of(replace(usual, away=away))
    assert total(peak) - total(slim) == pytest.approx(2 * share)  # the loss is the peak, or the optimiser's step
    everything = replace(usual, away=frozenset(get_args(Away)))
    assert total(while_sampling(everything)) == 0
    assert offloaded(everything) == 4 * share
    # Without a GPU there is no other memory to go to.
    assert total(while_sampling(replace(everything, on_gpu=False))) == 4 * share
    assert offloaded(replace(everything, on_gpu=False)) == 0


def test_all_logits_at_once_are_whole_fp32_tensors_of_the_responses(qwen3_4b: Architecture) -> None:
    one, states = 4 * 2 * 4096 * 151936, 2 * 2 * 4096 * 2560
    for loss, number in {"sdpo": 6, "vanilla": 4, "dpo": 5}.items():
        plan = plan_of(qwen3_4b, method=METHODS[loss], fused=False)
        others = 0 if loss == "vanilla" else states
        assert loss_moment(plan)["logits and divergence"] == number * one + others
    assert loss_moment(plan_of(qwen3_4b, fused=False, distant=True))["logits and divergence"] == 5 * one


def test_by_parts_there_are_so_many_logits_whatever_the_responses(qwen3_4b: Architecture) -> None:
    limit = 4 * LOGITS_AT_HAND["cuda"]
    for rows in (1, 8):
        plan = plan_of(qwen3_4b, micro_batch=MicroBatch(rows, 1, 1000, 4096))
        states = 2 * rows * 4096 * 2560
        beyond = loss_moment(plan)["logits and divergence"] - states
        assert limit < beyond < 1.25 * limit
    tokens = plan_of(qwen3_4b, method=METHODS["vanilla"], micro_batch=MicroBatch(1, 1, 1000, 10))
    assert 4 * 10 * 151936 <= loss_moment(tokens)["logits and divergence"] < 1.1 * 4 * 10 * 151936


def test_a_packed_row_has_every_prompt_once_and_no_last_token(qwen3_4b: Architecture) -> None:
    rows = [np.full(6, number) for number in (1, 1, 2)]
    responses = [np.arange(4)] * 3
    laid = [batch_of(rows, responses, torch.device("cpu"), packed=packed) for packed in (True, False)]
    batch = MicroBatch(3, 2, 6, 4)
    plans = [plan_of(qwen3_4b, packed=packed, micro_batch=batch) for packed in (True, False)]
    assert [plan.tokens for plan in plans] == [one.tokens_forwarded for one in laid]
    assert batch.response_tokens == len(laid[0].tokens)


def test_publishing_has_no_gradients_and_its_proof_few_logits(qwen3_4b: Architecture) -> None:
    plan = plan_of(qwen3_4b)
    sent, proof = publish_moment(plan), proof_moment(plan)
    assert sent["gradients"] == proof["gradients"] == 0.0
    assert sent["gathered weights, buffers"] == 6 * qwen3_4b.largest
    all_at_once = proof_moment(plan_of(qwen3_4b, fused=False))["logits and divergence"]
    assert all_at_once == 4 * 4 * 512 * 151936
    assert proof["logits and divergence"] < 0.3 * all_at_once
    assert memory_of(plan)["gradients"] == 4 * qwen3_4b.parameters / 8


def test_a_checkpoint_holds_shards_on_every_rank_and_the_whole_student_on_the_first(qwen3_4b: Architecture) -> None:
    shards, first = staged(plan_of(qwen3_4b), follows=True)
    assert shards == 16 * qwen3_4b.parameters / 8
    assert first - shards == 4 * qwen3_4b.parameters
    assert staged(plan_of(qwen3_4b), follows=False)[0] == 12 * qwen3_4b.parameters / 8


def test_what_saves_memory_lowers_the_prediction(qwen3_4b: Architecture) -> None:
    usual = total(memory_of(plan_of(qwen3_4b)))
    assert total(memory_of(plan_of(qwen3_4b, recompute=False))) > usual
    kept = plan_of(qwen3_4b, recompute=False)
    assert total(memory_of(replace(kept, eager=True))) > total(memory_of(kept))
    loss = total(loss_moment(plan_of(qwen3_4b)))
    assert total(loss_moment(plan_of(qwen3_4b, topk=None))) > loss
    assert total(loss_moment(plan_of(qwen3_4b, union=True))) > loss
    assert total(loss_moment(plan_of(qwen3_4b, beside=None))) < loss
    assert total(memory_of(plan_of(qwen3_4b, fused=False))) > usual
    assert total(memory_of(plan_of(qwen3_4b, packed=False))) > usual
    assert total(memory_of(plan_of(qwen3_4b, ranks=16))) < usual
    assert total(memory_of(plan_of(qwen3_4b, micro_batch=MicroBatch(1, 1, 1000, 4096)))) < usual
    assert total(memory_of(plan_of(qwen3_4b, micro_batch=MicroBatch(2, 1, 1000, 2048)))) < usual


def benchmark() -> ModuleType:
    """benchmarks/memory.py, which is no package."""
    spec = importlib.util.spec_from_file_location("benchmarks_memory", PROJECT / "benchmarks" / "memory.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["100M-mopd-recompute", "100M-mopd-keep", "100M-mopd-recompute-dense", "300M-grpo-recompute"]
)
def test_the_prediction_is_within_fifteen_percent_of_a_real_update(tmp_path: Path, name: str) -> None:
    memory = benchmark()
    case = {case.name: case for case in memory.CASES}[name]
    memory.make_model(case.model, tmp_path)
    line = memory.compared(case, tmp_path, exact_too=True)
    assert line["exact_ratio"] == pytest.approx(1.0, abs=0.15), line
    assert line["ratio"] == pytest.approx(1.0, abs=0.15), line
