"""Faults while a run goes on, on the real engines: what can go on does, what cannot ends in a sentence and in order."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mopd.types import Prompt, TokenStreams
from tests.e2e.conftest import ROOT
from tests.e2e.test_ranks import ragged_samples
from tests.trainer.test_security import LOOPBACK, listeners, processes
from trainer import cluster
from trainer.assemble import worker_environment
from trainer.config.compose import resolve
from trainer.packing import Packing, Sample
from trainer.sampling import MAX_RESTARTS, Asked, Sampling, Slot
from trainer.services import Policy
from trainer.settings import loss_settings
from trainer.weights import Transfer
from trainer.workers.policy import OptimSettings, PolicyWorker, TeacherSettings
from trainer.workers.sampler import SamplerWorker
from trainer.workers.sampler_types import Request, Response, SamplingSettings

pytestmark = pytest.mark.e2e
MODEL = str(ROOT / "datasets" / "chain" / "model")
DEADLINE_S = 120.0
SEQUENCES = [np.random.default_rng(length).integers(0, 430, length).astype(np.int32) for length in (5, 2, 60)]


class Actor(PolicyWorker):
    """Fails where it is told to, and shows its weights."""

    def fail(self, failpoints: str) -> int:
        """From now on; returns the process."""
        os.environ["MOPD_FAILPOINTS"] = failpoints
        return os.getpid()

    def shake(self) -> None:
        """Moves every weight."""
        for shard in self.student.parameters():
            shard.detach().mul_(1.5)

    def weight(self) -> float:
        """Changes with any weight."""
        return sum(float(shard.detach().to_local().double().square().sum()) for shard in self.student.parameters())


class Doomed(SamplerWorker):
    """Dies once it has given its first response, as long as there is a file of that name."""

    def __init__(self, *, mark: str, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.mark = Path(mark)

    def sample(
        self, requests: Sequence[Request], settings: SamplingSettings
    ) -> Iterator[tuple[int, list[tuple[int, Response]]]]:
        for version, finished in super().sample(requests, settings):
            if self.mark.exists():
                yield version, finished[:1]
                self.mark.unlink()
                os.kill(os.getpid(), signal.SIGKILL)
            yield version, finished


@dataclass(frozen=True)
class Stage:
    """Two ranks and a sampler that can be made to die."""

    policy: Policy
    sampling: Sampling
    mark: Path


def ask(worker: Any, method: str, *arguments: Any) -> Any:
    [answer] = cluster.gather([getattr(worker, method).remote(*arguments)], method, DEADLINE_S)
    return answer


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    mark = tmp_path_factory.mktemp("marks") / "die"
    cluster.start({**worker_environment("cpu", offline=True), "STAGE": str(mark)}, num_cpus=4)
    loss = loss_settings(resolve("grpo", [], {}).config)
    spawn = partial(
        cluster.spawn,
        Doomed,
        num_cpus=0,
        num_gpus=0,
        mark=str(mark),
        model_path=MODEL,
        device="cpu",
        max_model_len=128,
        seed=0,
        enable_prefix_caching=True,
        gpu_memory_utilization=0.5,
        kv_cache_mib=64,
        transfer_backend="gloo",
    )
    sampler = spawn()
    ranks = [
        cluster.spawn(
            Actor,
            num_cpus=0,
            num_gpus=0,
            rank=rank,
            ranks=2,
            device="cpu",
            model_path=MODEL,
            attn_implementation="packed",
            gradient_checkpointing=False,
            loss=loss,
            optim=OptimSettings(1e-3, 0, 0.0, (0.9, 0.999), 1.0),
            teacher=TeacherSettings("frozen", 0.0, None),
            seed=0,
            deadline_s=DEADLINE_S,
        )
        for rank in range(2)
    ]
    policy = Policy(ranks, 1, 4, Packing(4096, loss.denominator), lambda step: 0.0, DEADLINE_S)
    policy.join()
    transfer = Transfer("gloo", bucket_bytes=100_000, deadline_s=30.0)
    slots = [Slot(sampler, spawn, transfer)]
    sampling = Sampling(slots, policy, tolerance=1e-3, seed=1, deadline_s=DEADLINE_S)
    yield Stage(policy, sampling, mark)
    cluster.stop()


def draw(sampling: Sampling) -> list[tuple[int, list[int]]]:
    """Policy version and tokens of some rollouts."""
    asked = [Asked(str(index), Prompt("row", (), "chain", "0"), SEQUENCES[index]) for index in range(3)]
    groups = sampling.sample(asked, 3, SamplingSettings(1.0, 1.0, 16), [4])
    return [(rollout.policy_version, rollout.token_ids.tolist()) for group in groups for rollout in group.rollouts]


def test_every_door_of_actor_sampler_and_ray_opens_to_this_machine_alone(stage: Stage) -> None:
    stage.sampling.ready()
    running = processes(f"STAGE={stage.mark}")
    found = listeners(list(running))
    assert len({pid for _, pid in found}) >= 5, "two ranks, a sampler and Ray's own"
    assert [entry for entry in found if entry[0] not in LOOPBACK] == []


# ------------------------------------------------------------------ the sampler


def test_a_sampler_killed_while_it_answers_is_asked_again_with_the_current_weights(stage: Stage) -> None:
    cluster.gather([rank.shake.remote() for rank in stage.policy.workers], "shaking", DEADLINE_S)
    stage.sampling.publish(7, SEQUENCES)
    expected = draw(stage.sampling)
    stage.mark.touch()
    assert draw(stage.sampling) == expected
    assert not stage.mark.exists()
    assert {version for version, _ in expected} == {7}
    assert stage.sampling.restarts == 1


def test_a_publish_that_ends_halfway_leaves_nobody_to_answer_by_half_the_weights(stage: Stage) -> None:
    rank = stage.policy.workers[0]
    ask(rank, "fail", "sync.mid=raise;step=8")
    with pytest.raises(
        cluster.WorkerError, match=r"publishing weights: FailpointError\('MOPD_FAILPOINTS: asked to fail"
    ):
        stage.sampling.publish(8, SEQUENCES)
    with pytest.raises(cluster.WorkerError, match="the weights after version 7 have not come, or in part only"):
        draw(stage.sampling)
    ask(rank, "fail", "")
    with pytest.raises(cluster.WorkerError, match="a weight update is already active"):
        stage.sampling.publish(9, SEQUENCES)
    cluster.kill(stage.sampling.slots[0].worker)  # only another one can go on
    assert stage.sampling.publish(9, SEQUENCES)["rollout_corr/publish_max_abs_diff"] < 1e-3
    assert {version for version, _ in draw(stage.sampling)} == {9}


def test_a_sampler_with_other_weights_than_it_should_have_is_not_listened_to(stage: Stage) -> None:
    stage.sampling.version = 10
    with pytest.raises(cluster.WorkerError, match="the sampler has weights of version 9, wanted 10"):
        draw(stage.sampling)
    stage.sampling.version = 9


def test_a_sampler_that_dies_again_and_again_ends_the_run(stage: Stage) -> None:
    stage.sampling.restarts = MAX_RESTARTS
    stage.mark.touch()
    with pytest.raises(cluster.WorkerDiedError, match="sampling rollouts: the worker process died"):
        draw(stage.sampling)


# ------------------------------------------------------------------ the ranks


def without(sample: Sample, *, response: bool) -> Sample:
    """A sample that carries no loss, and perhaps no response at all."""
    length = 0 if response else len(sample.response_ids)
    nothing = np.zeros(length, dtype=np.float32)
    return replace(
        sample,
        response_ids=sample.response_ids[:length],
        sampler_logprobs=sample.sampler_logprobs[:length],
        streams=TokenStreams(nothing, nothing, nothing),
    )


def weights(policy: Policy) -> list[float]:
    return [float(value) for value in cluster.gather([rank.weight.remote() for rank in policy.workers], "", DEADLINE_S)]


def test_a_step_without_a_token_to_learn_from_moves_nothing_on_any_rank(stage: Stage) -> None:
    before, samples = weights(stage.policy), ragged_samples(8)
    nothing = [without(sample, response=index % 2 == 0) for index, sample in enumerate(samples)]
    metrics, _ = stage.policy.update(nothing, 1, frozenset())
    assert weights(stage.policy) == before
    assert metrics["actor/optimizer_steps"] == metrics["actor/skipped_steps"] == 0
    assert all(np.isfinite(value) for value in metrics.values())


def test_an_empty_response_among_others_changes_nothing_for_them(stage: Stage) -> None:
    samples = ragged_samples(8)
    mixed = [without(sample, response=True) if index % 2 else sample for index, sample in enumerate(samples)]
    metrics, _ = stage.policy.update(mixed, 2, frozenset())
    assert metrics["actor/optimizer_steps"] == 2
    assert np.isfinite(metrics["actor/loss"])
    assert metrics["actor/grad_norm"] > 0


def test_a_rank_that_stands_still_ends_in_a_sentence(stage: Stage) -> None:
    pid = ask(stage.policy.workers[1], "fail", "")
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(cluster.DeadlineError) as caught:
            replace(stage.policy, deadline_s=3.0).update(ragged_samples(8), 3, frozenset())
    finally:
        os.kill(pid, signal.SIGCONT)
    assert str(caught.value) == (
        "updating the student: no answer within trainer.deadline_s=3 s; of 2 answers those of 0, 1 are missing "
        "(ranks count from 0)"
    )


def test_a_rank_that_raises_before_a_collective_is_told_at_once(stage: Stage) -> None:
    """The other rank waits for it in the next forward pass; this comes last, for it waits for ever."""
    ask(stage.policy.workers[1], "fail", "step.after_opt=raise;step=4;rank=1")
    with pytest.raises(
        cluster.WorkerError, match=r"updating the student: FailpointError.*step.after_opt .step 4, rank 1"
    ):
        stage.policy.update(ragged_samples(8), 4, frozenset())
