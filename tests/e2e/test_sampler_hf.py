"""The sampler without an engine, on real processes: it takes the trainer's weights, proves it, and trains as well."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from mopd.types import Prompt
from tests.e2e.conftest import ROOT, Run, train
from tests.e2e.test_publish import DEADLINE_S, MANY_BUCKETS, MODEL, SEQUENCES, ask, new_actor, shake
from trainer import cluster
from trainer.assemble import worker_environment
from trainer.sampling import Asked, Sampling, Slot
from trainer.services import Policy
from trainer.weights import PublishError
from trainer.workers.sampler import SamplerWorker
from trainer.workers.sampler_hf import HfSamplerWorker
from trainer.workers.sampler_types import Request, Sampler, SamplingSettings

pytestmark = pytest.mark.e2e
PROMPTS = [np.random.default_rng(number).integers(0, 430, 4 + 3 * number).astype(np.int32) for number in range(8)]


class Killable(HfSamplerWorker):
    """Tells its process."""

    def pid(self) -> int:
        return os.getpid()


def spawner(worker: type[Sampler]) -> Any:
    """Makes samplers of a class."""
    return partial(
        cluster.spawn,
        worker,
        num_cpus=0,
        num_gpus=0,
        model_path=MODEL,
        device="cpu",
        max_model_len=128,
        seed=0,
        enable_prefix_caching=True,
        gpu_memory_utilization=0.5,
        kv_cache_mib=16,
        transfer_backend="gloo",
    )


@pytest.fixture(scope="module")
def actor() -> Iterator[Policy]:
    cluster.start(worker_environment("cpu", offline=True), num_cpus=4)
    yield new_actor(MODEL)
    cluster.stop()


@pytest.fixture(scope="module")
def sampling(actor: Policy) -> Sampling:
    """Two samplers; weights travel in many buckets."""
    spawn = spawner(Killable)
    slots = [Slot(spawn(), spawn, MANY_BUCKETS) for _ in range(2)]
    return Sampling(slots, actor, tolerance=1e-3, seed=1, deadline_s=DEADLINE_S)


def draw(sampling: Sampling) -> list[tuple[int, list[int]]]:
    """Policy version and tokens of some rollouts."""
    asked = [Asked(str(number), Prompt(str(number), (), "chain", "0"), ids) for number, ids in enumerate(PROMPTS)]
    groups = sampling.sample(asked, 4, SamplingSettings(1.0, 1.0, 24), [4])
    return [(rollout.policy_version, rollout.token_ids.tolist()) for group in groups for rollout in group.rollouts]


def test_the_trainers_weights_arrive_and_are_drawn_from(sampling: Sampling) -> None:
    for version in (1, 2):
        shake(sampling.policy, version)
        published = sampling.publish(version, SEQUENCES)
        assert published["rollout_corr/publish_max_abs_diff"] < 1e-4
        assert {sampled for sampled, _ in draw(sampling)} == {version}


def test_a_tensor_corrupted_on_the_way_is_caught_and_named(sampling: Sampling) -> None:
    shake(sampling.policy, 3)
    ask(sampling.policy.workers[0], "corrupt", "model.layers.1.self_attn.k_proj.weight")
    with pytest.raises(PublishError, match=r"differing parameter groups: model.layers.1.self_attn.k_proj \(by [^;]*$"):
        sampling.publish(3, SEQUENCES)
    ask(sampling.policy.workers[0], "corrupt", None)
    assert sampling.publish(4, SEQUENCES)["rollout_corr/publish_max_abs_diff"] < 1e-4


def test_how_many_draw_and_whether_one_dies_changes_nothing(
    sampling: Sampling, caplog: pytest.LogCaptureFixture
) -> None:
    shake(sampling.policy, 5)
    sampling.publish(5, SEQUENCES)
    both = draw(sampling)
    assert len({tuple(tokens) for _, tokens in both}) > 20, "they are not all alike"
    alone = Sampling(sampling.slots[:1], sampling.policy, tolerance=1e-3, seed=1, deadline_s=DEADLINE_S)
    alone.version = 5
    assert draw(alone) == both
    os.kill(ask(sampling.slots[1].worker, "pid"), signal.SIGKILL)
    with caplog.at_level("WARNING", logger="mopd"):
        assert draw(sampling) == both
    assert "the sampler died; starting another (1 of 6)" in caplog.text
    assert sampling.publish(6, SEQUENCES)["rollout_corr/publish_max_abs_diff"] < 1e-4
    assert [tokens for _, tokens in draw(sampling)] == [tokens for _, tokens in both]


@pytest.mark.slow
@pytest.mark.parametrize(("temperature", "ignore_eos"), [(0.0, False), (0.0, True)])
def test_the_likeliest_response_is_vllms(actor: Policy, temperature: float, ignore_eos: bool) -> None:
    """Tokens, text, how it ended and log-probs, of real prompts."""
    tokenizer: Any = AutoTokenizer.from_pretrained(MODEL)
    rows = pq.read_table(ROOT / "datasets" / "chain" / "test.parquet", columns=["prompt"]).to_pylist()[:12]
    rendered = [
        tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False) for row in rows
    ]
    prompts = [np.array(tokenizer.encode(text), np.int32) for text in rendered]
    requests = [Request(tokens, number) for number, tokens in enumerate(prompts)]
    how = SamplingSettings(temperature, 1.0, 30, ignore_eos)
    found = []
    for kind in (HfSamplerWorker, SamplerWorker):
        worker = spawner(kind)()
        given: dict[int, Any] = {}
        for _, item in cluster.streams({0: (worker.sample, (requests, how))}, "sampling", DEADLINE_S, lambda: None):
            given |= dict(item[1])
        found.append([given[number] for number in range(len(requests))])
    assert {"stop"} <= {vllms.finish_reason for vllms in found[1]} or ignore_eos
    for ours, vllms in zip(*found, strict=True):
        assert ours.token_ids.tolist() == vllms.token_ids.tolist()
        assert (ours.text, ours.finish_reason) == (vllms.text, vllms.finish_reason)
        np.testing.assert_allclose(ours.logprobs, vllms.logprobs, atol=1e-4)


def test_a_run_learns_with_it(tmp_path: Path) -> None:
    run = train(tmp_path / "run", "mopd", "trainer.val_before_train=false", ROLLOUT_BACKEND="hf", TOTAL_STEPS="2")
    check(run)
    versions = run.manifest["versions"]
    assert versions["hf"] == versions["transformers"]
    assert "vllm" not in versions


def check(run: Run) -> None:
    """Both sides agree at every step, and every rollout is by the newest weights."""
    assert run.code == 0, run.said
    for record in run.metrics:
        if record["step"]:
            assert record["rollout_corr/publish_max_abs_diff"] < 1e-4
            assert record["rollout_corr/logprob_max_abs_diff"] < 1e-4
            versions = {line["policy_version"] for line in run.lines(f"rollouts/{record['step']}.jsonl")}
            assert versions == {record["step"] - 1}


@pytest.mark.slow
def test_thirty_steps_teach_as_much_as_with_vllm(tmp_path: Path) -> None:
    runs = {name: train(tmp_path / name, "mopd", ROLLOUT_BACKEND=name, TOTAL_STEPS="30") for name in ("hf", "vllm")}
    gains = {}
    for name, run in runs.items():
        check(run)
        quality = {record["step"]: record["val-core/chain/acc/mean@8"] for record in (run.metrics[0], run.metrics[-1])}
        gains[name] = quality[30] - quality[0]
    assert gains["hf"] > 0.15
    assert gains["hf"] > gains["vllm"] - 0.12, gains
