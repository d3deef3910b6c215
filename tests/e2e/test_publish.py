"""Publishing on real processes: weights arrive whole, what does not is caught and named, a dead sampler comes back."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from mopd.types import Prompt
from tests.e2e.conftest import ROOT, Run
from trainer import cluster, fsdp
from trainer.assemble import worker_environment
from trainer.config.compose import resolve
from trainer.packing import Packing
from trainer.sampling import Asked, Sampling, Slot
from trainer.services import Policy
from trainer.settings import loss_settings
from trainer.weights import Bucket, PublishError, Transfer
from trainer.workers.policy import OptimSettings, PolicyWorker, TeacherSettings
from trainer.workers.sampler import SamplerWorker
from trainer.workers.sampler_types import SamplingSettings

pytestmark = pytest.mark.e2e
MODEL = str(ROOT / "datasets" / "chain" / "model")
DEADLINE_S = 120.0
MANY_BUCKETS = Transfer("gloo", bucket_bytes=100_000, deadline_s=30.0)
SEQUENCES = [np.random.default_rng(length).integers(0, 430, length).astype(np.int32) for length in (5, 2, 90, 41)]


class Actor(PolicyWorker):
    """Moves its weights as told, and can lose a tensor on the way to the sampler."""

    corrupted: str | None = None

    def shake(self, seed: int) -> None:
        """Replaces every weight by one that the seed alone determines, on one rank as on two."""
        random = torch.Generator().manual_seed(seed)
        for shard in self.student.parameters():
            assert isinstance(shard, DTensor)
            whole = torch.randn(shard.shape, generator=random) * 0.1 + (shard.ndim == 1)
            shard.detach().to_local().copy_(whole.chunk(self.ranks)[self.rank])

    def corrupt(self, name: str | None) -> None:
        self.corrupted = name

    def connect(self, number: int, sampler: Any, transfer: Transfer) -> None:
        super().connect(number, sampler, transfer)
        if number not in self.links:
            return
        hand_over = self.links[number].hand_over

        def hand_over_all_but_one(bucket: Bucket) -> None:
            hand_over([(name, weight.roll(1, 0) if name == self.corrupted else weight) for name, weight in bucket])

        self.links[number].hand_over = hand_over_all_but_one  # type: ignore[method-assign]

    def names(self) -> list[str]:
        return [name for name, _ in fsdp.full_weights(self.student)]


class Sampler(SamplerWorker):
    """Tells its process, and can forget the output layer."""

    def pid(self) -> int:
        return os.getpid()

    def forget_the_head(self) -> None:
        """Once, the next time that weights come."""
        whole, found = self.transfer, self.transfer.fingerprints

        def forget(model: Any) -> None:
            self.transfer = whole

        self.transfer = SimpleNamespace(repack_tied_head=forget, fingerprints=found)


def ask(worker: Any, method: str, *arguments: Any) -> Any:
    [answer] = cluster.gather([getattr(worker, method).remote(*arguments)], method, DEADLINE_S)
    return answer


def new_actor(model: str, ranks: int = 1) -> Policy:
    """Ranks that have joined."""
    workers = [
        cluster.spawn(
            Actor,
            num_cpus=0,
            num_gpus=0,
            rank=rank,
            ranks=ranks,
            device="cpu",
            model_path=model,
            attn_implementation="packed",
            gradient_checkpointing=False,
            loss=loss_settings(resolve("grpo", ["actor_rollout_ref.rollout.temperature=0.7"], {}).config),
            optim=OptimSettings(1e-3, 0, 0.0, (0.9, 0.999), 1.0),
            teacher=TeacherSettings("frozen", 0.0, None),
            seed=0,
            deadline_s=DEADLINE_S,
        )
        for rank in range(ranks)
    ]
    policy = Policy(workers, 1, 8, Packing(4096, lambda samples: 1.0), lambda step: 0.0, DEADLINE_S)
    policy.join()
    return policy


def new_sampling(model: str, policy: Policy, transfer: Transfer) -> Sampling:
    """A sampler of a model, which `policy` publishes to."""
    spawn = partial(
        cluster.spawn,
        Sampler,
        num_cpus=0,
        num_gpus=0,
        model_path=model,
        device="cpu",
        max_model_len=128,
        seed=0,
        enable_prefix_caching=True,
        gpu_memory_utilization=0.5,
        kv_cache_mib=64,
        transfer_backend=transfer.backend,
    )
    slots = [Slot(spawn(), spawn, transfer)]
    return Sampling(slots, policy, tolerance=1e-3, seed=1, deadline_s=DEADLINE_S)


def the_one(sampling: Sampling) -> Slot:
    """The place of the only sampler."""
    [slot] = sampling.slots
    return slot


def shake(policy: Policy, seed: int) -> None:
    cluster.gather([worker.shake.remote(seed) for worker in policy.workers], "shaking", DEADLINE_S)


def draw(sampling: Sampling) -> list[tuple[int, list[int], list[float]]]:
    """Policy version, tokens and log-probs of some rollouts."""
    asked = [Asked(str(length), Prompt("row", (), "chain", "0"), SEQUENCES[length]) for length in range(3)]
    groups = sampling.sample(asked, 3, SamplingSettings(1.0, 1.0, 16), [4])
    return [
        (rollout.policy_version, rollout.token_ids.tolist(), rollout.logprobs.tolist())
        for group in groups
        for rollout in group.rollouts
    ]


def stale_gap(sampling: Sampling) -> float:
    """How far apart both sides are, without publishing."""
    theirs = ask(the_one(sampling).worker, "score", SEQUENCES)
    ours = ask(sampling.policy.workers[0], "logprobs", SEQUENCES)
    return max(float(np.abs(one - other).max()) for one, other in zip(ours, theirs, strict=True))


@pytest.fixture(scope="module")
def ray() -> Iterator[None]:
    cluster.start(worker_environment("cpu", offline=True), num_cpus=4)
    yield
    cluster.stop()


@pytest.fixture(scope="module")
def shared(ray: None) -> Sampling:
    """One rank and a sampler of the embedded model, whose output layer is tied; weights travel in many buckets."""
    return new_sampling(MODEL, new_actor(MODEL), MANY_BUCKETS)


@pytest.fixture
def tied(shared: Sampling) -> Sampling:
    """The same, connected anew."""
    the_one(shared).connected = False
    return shared


def check_healthy(sampling: Sampling) -> None:
    """Two publishes after large moves: before each both sides differ, after it they agree."""
    for version in (1, 2):
        shake(sampling.policy, version)
        sampling.ready()
        assert stale_gap(sampling) > 0.1
        published = sampling.publish(version, SEQUENCES)
        assert published["rollout_corr/publish_max_abs_diff"] < 1e-4
        assert published["rollout_corr/publish_tokens"] == sum(len(tokens) - 1 for tokens in SEQUENCES)
        assert {sampled for sampled, _, _ in draw(sampling)} == {version}


def test_a_tied_model_arrives_whole(tied: Sampling) -> None:
    check_healthy(tied)


def test_an_untied_model_arrives_whole(ray: None, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(MODEL, tie_word_embeddings=False)
    torch.nn.init.normal_(model.lm_head.weight, std=0.1)
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(MODEL).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"] is False
    policy = new_actor(str(tmp_path))
    assert "lm_head.weight" in ask(policy.workers[0], "names")
    sampling = new_sampling(str(tmp_path), policy, Transfer("gloo", bucket_bytes=1 << 28, deadline_s=30.0))
    check_healthy(sampling)
    sampling.tolerance = -1.0
    with pytest.raises(PublishError, match="differing parameter groups: none, so the two sides compute differently"):
        sampling.publish(3, SEQUENCES)


@pytest.mark.parametrize(
    ("weight", "group"),
    [
        ("model.layers.1.self_attn.k_proj.weight", "model.layers.1.self_attn.qkv_proj"),
        ("model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.gate_up_proj"),
        ("model.layers.2.mlp.down_proj.weight", "model.layers.2.mlp.down_proj"),
        ("model.norm.weight", "model.norm"),
    ],
)
def test_a_tensor_corrupted_on_the_way_is_caught_at_once_and_its_group_named(
    tied: Sampling, weight: str, group: str
) -> None:
    shake(tied.policy, 5)
    ask(tied.policy.workers[0], "corrupt", weight)
    with pytest.raises(PublishError) as caught:
        tied.publish(5, SEQUENCES)
    said = str(caught.value)
    assert "after publishing version 5" in said
    assert "sync_tolerance=0.001" in said
    assert said.count("of its largest value") == 1
    assert f"differing parameter groups: {group} (by " in said
    ask(tied.policy.workers[0], "corrupt", None)
    assert tied.publish(6, SEQUENCES)["rollout_corr/publish_max_abs_diff"] < 1e-4


def test_an_output_layer_left_stale_is_caught_and_named(tied: Sampling) -> None:
    tied.ready()
    shake(tied.policy, 7)
    ask(the_one(tied).worker, "forget_the_head")
    with pytest.raises(PublishError, match=r"differing parameter groups: lm_head \(by [^;]*$"):
        tied.publish(7, SEQUENCES)
    assert tied.publish(8, SEQUENCES)["rollout_corr/publish_max_abs_diff"] < 1e-4


def test_two_ranks_publish_what_one_publishes(tied: Sampling) -> None:
    one = tied.policy
    found = []
    try:
        for policy in (one, new_actor(MODEL, ranks=2)):
            shake(policy, 11)
            tied.policy, the_one(tied).connected = policy, False
            assert tied.publish(11, SEQUENCES)["rollout_corr/publish_max_abs_diff"] < 1e-4
            found.append(ask(the_one(tied).worker, "fingerprints"))
            shake(one, 12)
            tied.policy, the_one(tied).connected = one, False
            tied.publish(12, SEQUENCES)  # so that nothing of the first is left when the second is looked at
    finally:
        tied.policy = one
    assert found[0].keys() == found[1].keys()
    for name, fingerprint in found[0].items():
        np.testing.assert_array_equal(found[1][name].response, fingerprint.response, err_msg=name)


def test_a_killed_sampler_comes_back_with_the_current_weights_and_draws_the_same(
    tied: Sampling, caplog: pytest.LogCaptureFixture
) -> None:
    shake(tied.policy, 13)
    tied.publish(13, SEQUENCES)
    expected, restarts = draw(tied), tied.restarts
    os.kill(ask(the_one(tied).worker, "pid"), signal.SIGKILL)
    with caplog.at_level("WARNING", logger="mopd"):
        assert draw(tied) == expected
    assert {version for version, _, _ in expected} == {13}
    assert tied.restarts == restarts + 1
    assert f"the sampler died; starting another ({tied.restarts} of 3)" in caplog.text


def test_a_sampler_that_never_answers_ends_in_a_message_and_is_replaced_when_dead(tied: Sampling) -> None:
    the_one(tied).transfer = replace(MANY_BUCKETS, deadline_s=1.0)
    tied.ready()
    process, restarts = ask(the_one(tied).worker, "pid"), tied.restarts
    os.kill(process, signal.SIGSTOP)
    try:
        with pytest.raises(cluster.WorkerError, match=r"the sampler did not take bucket 1 of \d+ within 1 s"):
            tied.publish(17, SEQUENCES)
    finally:
        os.kill(process, signal.SIGKILL)
        the_one(tied).transfer = MANY_BUCKETS
    assert tied.restarts == restarts
    shake(tied.policy, 18)
    assert tied.publish(18, SEQUENCES)["rollout_corr/publish_max_abs_diff"] < 1e-4
    assert tied.restarts == restarts + 1


def test_a_run_beyond_the_bound_stops_in_the_same_step(tmp_path: Path, trained: Callable[..., Run]) -> None:
    run = trained(
        tmp_path / "run",
        "mopd",
        "actor_rollout_ref.rollout.sync_tolerance=1e-12",
        "trainer.val_before_train=false",
        TRAIN_BATCH_SIZE="2",
        TOTAL_STEPS="2",
    )
    assert run.code == 1
    assert "step 1, publish: after publishing version 1" in run.said
    assert "sync_tolerance=1e-12" in run.said
