"""FSDP2 on real processes: ranks and micro-batches change no gradient; bad gradients are skipped alike."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mopd.types import TokenStreams
from tests.e2e.conftest import ROOT
from trainer import cluster, fsdp
from trainer.assemble import worker_environment
from trainer.config.compose import resolve
from trainer.early import EarlyTeacher
from trainer.meters import Meter, by_rollout
from trainer.packing import MiniBatch, Packing, Sample, loss_mask, plan_mini_batch
from trainer.settings import loss_settings, teacher_settings
from trainer.workers.gauging import note_bare
from trainer.workers.policy import OptimSettings, PolicyWorker

pytestmark = pytest.mark.e2e
DISTILL = "actor_rollout_ref.actor.self_distillation"
MODEL = str(ROOT / "datasets" / "chain" / "model")
DEADLINE_S = 120.0


class GradientWorker(PolicyWorker):
    """Shows the gradient that a mini-batch adds up to, before any clipping, and the teacher."""

    def teacher_weights(self) -> dict[str, Any]:
        assert self.teacher is not None
        return dict(fsdp.full_weights(self.teacher))

    def noted(self, mini_batch: MiniBatch) -> Meter:
        """What is noted of single rollouts."""
        meter, self.loss_sum, self.views.known = Meter(), 0.0, None
        note_bare(meter, mini_batch.bare, self.views)
        for micro_batch, denominator in zip(mini_batch.micro_batches, mini_batch.denominators, strict=True):
            self.accumulate(micro_batch, None, denominator, meter, frozenset())
        self.optimizer.zero_grad(set_to_none=True)
        return meter

    def gradient(
        self, mini_batch: MiniBatch, taught: dict[int, Any] | None = None
    ) -> tuple[float, dict[str, np.ndarray[Any, Any]]]:
        self.loss_sum, self.views.known = 0.0, taught
        for micro_batch, denominator in zip(mini_batch.micro_batches, mini_batch.denominators, strict=True):
            self.accumulate(micro_batch, None, denominator, Meter(), frozenset())
        whole = {name: weight.grad.full_tensor().numpy() for name, weight in self.student.named_parameters()}
        self.optimizer.zero_grad(set_to_none=True)
        return self.loss_sum, whole


@pytest.fixture(scope="module")
def ray() -> Iterator[None]:
    cluster.start(worker_environment("cpu", offline=True), num_cpus=4)
    yield
    actors.cache_clear()
    cluster.stop()


@functools.lru_cache(maxsize=4)
def actors(
    ranks: int, method: str, *overrides: str, checkpointing: bool = False, attention: str = "packed"
) -> list[Any]:
    """Ranks of an actor that have joined; the same ones when asked again, unless others were asked for in between."""
    config = resolve(method, overrides, {}).config
    workers = [
        cluster.spawn(
            GradientWorker,
            num_cpus=0,
            num_gpus=0,
            rank=rank,
            ranks=ranks,
            device="cpu",
            model_path=MODEL,
            attn_implementation=attention,
            gradient_checkpointing=checkpointing,
            loss=loss_settings(config),
            optim=OptimSettings(1e-3, 0, 0.01, (0.9, 0.999), 1.0),
            teacher=replace(teacher_settings(config), rate=0.5),
            seed=0,
            deadline_s=DEADLINE_S,
        )
        for rank in range(ranks)
    ]
    [(host, port)] = cluster.gather([workers[0].rendezvous.remote()], "rendezvous", DEADLINE_S)
    cluster.gather([worker.join.remote(host, port) for worker in workers], "joining", DEADLINE_S)
    return workers


def ragged_samples(count: int) -> list[Sample]:
    """Sequences of many lengths; every fourth has no usable view."""
    rng = np.random.default_rng(3)
    samples = []
    for index in range(count):
        length = int(rng.integers(1, 24))
        ones = np.ones(length, dtype=np.float32)
        usable = index % 4 != 3
        samples.append(
            Sample(
                index,
                index // 4,
                float(index % 2),
                rng.integers(0, 300, int(rng.integers(3, 20))).astype(np.int32),
                rng.integers(0, 300, length).astype(np.int32),
                -rng.random(length).astype(np.float32) * 5,
                rng.integers(0, 300, int(rng.integers(5, 60))).astype(np.int32) if usable else None,
                TokenStreams(ones, ones * usable, ones * float(rng.normal())),
            )
        )
    return samples


def plans_of(samples: Sequence[Sample], ranks: int, budget: int, method: str, *overrides: str) -> list[MiniBatch]:
    """One mini-batch over ranks, as the service plans it."""
    loss = loss_settings(resolve(method, overrides, {}).config)
    return plan_mini_batch(samples, ranks, Packing(budget, loss.denominator, loss.method.pairs))


def norm(gradient: dict[str, np.ndarray[Any, Any]]) -> float:
    """The norm of a whole gradient."""
    return float(np.sqrt(sum((values.astype(np.float64) ** 2).sum() for values in gradient.values())))


def gradient(
    workers: Sequence[Any],
    samples: Sequence[Sample],
    budget: int,
    method: str,
    *overrides: str,
    taught: dict[int, Any] | None = None,
) -> tuple[float, dict[str, np.ndarray[Any, Any]]]:
    """Loss and gradient of one mini-batch over all ranks."""
    plans = plans_of(samples, len(workers), budget, method, *overrides)
    references = [worker.gradient.remote(plan, taught) for worker, plan in zip(workers, plans, strict=True)]
    answers = cluster.gather(references, "adding up gradients", DEADLINE_S)
    return sum(loss for loss, _ in answers), answers[0][1]


@pytest.mark.parametrize("attention", ["packed", "sdpa"])
@pytest.mark.parametrize(
    "overrides",
    [
        (),
        (f"{DISTILL}.distillation_topk=null",),
        (f"{DISTILL}.distillation_topk=100000",),
        (f"{DISTILL}.teacher_regularization=trust-region",),
    ],
)
def test_packed_and_fused_is_padded_and_dense(ray: None, attention: str, overrides: tuple[str, ...]) -> None:
    samples = ragged_samples(13)
    dense = "actor_rollout_ref.model.use_fused_kernels=false"
    loss, wanted = gradient(actors(2, "mopd", *overrides, dense, attention="sdpa"), samples, 300, "mopd", *overrides)
    other_loss, found = gradient(actors(2, "mopd", *overrides, attention=attention), samples, 300, "mopd", *overrides)
    assert other_loss == pytest.approx(loss, rel=1e-5)
    gap = norm({name: found[name] - values for name, values in wanted.items()}) / norm(wanted)
    assert gap < 1e-5


@pytest.mark.parametrize(
    ("method", "aggregation"),
    [("mopd", "token-mean"), ("mopd", "seq-mean-token-mean"), ("grpo", "token-mean"), ("dpo", "token-mean")],
)
def test_ranks_and_micro_batches_change_neither_loss_nor_gradient(ray: None, method: str, aggregation: str) -> None:
    samples = ragged_samples(13)
    override = [f"actor_rollout_ref.actor.loss_agg_mode={aggregation}"] if aggregation != "token-mean" else []
    one, two = actors(1, method, *override), actors(2, method, *override)
    loss, wanted = gradient(one, samples, 100_000, method, *override)
    assert norm(wanted) > 0
    for workers, budget in ((one, 90), (two, 100_000), (two, 90)):
        other_loss, found = gradient(workers, samples, budget, method, *override)
        assert other_loss == pytest.approx(loss, rel=1e-5)
        gap = norm({name: found[name] - values for name, values in wanted.items()}) / norm(wanted)
        assert gap < 1e-5, (gap, len(workers), budget)


@pytest.mark.parametrize("overrides", [(), (f"{DISTILL}.teacher_regularization=live",)])
def test_ranks_and_micro_batches_change_nothing_that_is_noted_of_a_rollout(
    ray: None, overrides: tuple[str, ...]
) -> None:
    bare = np.asarray([5, 6], dtype=np.int32)
    samples = [replace(one, bare_prompt_ids=bare if one.index % 3 == 0 else None) for one in ragged_samples(13)]
    found = []
    for ranks, budget in ((1, 100_000), (2, 90)):
        workers, plans = actors(ranks, "mopd", *overrides), plans_of(samples, ranks, budget, "mopd", *overrides)
        references = [worker.noted.remote(plan) for worker, plan in zip(workers, plans, strict=True)]
        found.append(by_rollout(cluster.gather(references, "noting", DEADLINE_S)))
    one, two = found
    assert set(one["teacher"]) == {index for index in range(13) if index % 4 != 3}
    assert set(one["bare"]) == {0, 6, 9, 12}
    for name in ("student", "entropy", "teacher", "gap", "bare"):
        assert two[name] == pytest.approx(one[name], rel=1e-4, abs=1e-5), name


@pytest.mark.parametrize("method", ["mopd", "opd"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_teacher_that_was_shown_groups_early_teaches_the_same(ray: None, ranks: int, method: str) -> None:
    """Whatever was shown together, by whichever rank, and however the update is cut."""
    workers, samples = actors(ranks, method), ragged_samples(13)
    samples.append(replace(samples[0], index=13))  # the same once more
    loss, wanted = gradient(workers, samples, 100_000, method)
    early = EarlyTeacher(workers, Packing(200, lambda _: 1.0))
    for start in (8, 0):
        early.show(samples[start : start + 4])
    early.show(samples[8:12])
    taught, figures = early.complete(samples)
    useful = [sample.index for sample in samples if loss_mask(sample).any()]
    assert sorted(taught) == useful
    assert figures["perf/teacher_early_fraction"] == sum(index in {0, 1, 2, 8, 9, 10, 13} for index in useful) / len(
        useful
    )
    for budget in (90, 100_000):
        other_loss, found = gradient(workers, samples, budget, method, taught=taught)
        assert other_loss == pytest.approx(loss, rel=1e-5)
        assert norm({name: found[name] - values for name, values in wanted.items()}) < 1e-5 * norm(wanted)
    early.begin()
    assert early.complete(samples)[1] == {"perf/teacher_early_fraction": 0.0}


def test_a_gradient_that_is_not_finite_is_skipped_on_all_ranks_alike(ray: None) -> None:
    workers = actors(2, "grpo")
    samples = ragged_samples(4)
    poisoned = [
        samples[0],
        samples[1],
        replace(samples[2], sampler_logprobs=np.full(len(samples[2].response_ids), np.nan, dtype=np.float32)),
    ]
    before = cluster.gather([worker.weights.remote() for worker in workers], "weights", DEADLINE_S)[0]
    plans = plans_of(poisoned, 2, 100_000, "grpo")
    references = [worker.update.remote([plan], 1, frozenset()) for worker, plan in zip(workers, plans, strict=True)]
    updates = cluster.gather(references, "updating", DEADLINE_S)
    assert [update.skipped for update in updates] == [1, 1]
    after = cluster.gather([worker.weights.remote() for worker in workers], "weights", DEADLINE_S)[0]
    assert all((before[name] == after[name]).all() for name in before)
    plans = plans_of(samples, 2, 100_000, "grpo")
    references = [worker.update.remote([plan], 2, frozenset()) for worker, plan in zip(workers, plans, strict=True)]
    updates = cluster.gather(references, "updating", DEADLINE_S)
    assert [update.skipped for update in updates] == [0, 0]
    moved = cluster.gather([worker.weights.remote() for worker in workers], "weights", DEADLINE_S)[0]
    assert any((before[name] != moved[name]).any() for name in before)


def test_gradient_checkpointing_changes_no_gradient(ray: None) -> None:
    samples = ragged_samples(6)
    loss, wanted = gradient(actors(1, "mopd"), samples, 100_000, "mopd")
    other_loss, found = gradient(actors(1, "mopd", checkpointing=True), samples, 100_000, "mopd")
    assert other_loss == pytest.approx(loss, rel=1e-6)
    for name, values in wanted.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-4, atol=1e-8)


def test_the_teacher_follows_the_student_by_its_rate(ray: None) -> None:
    [worker] = actors(1, "mopd")
    before = cluster.gather([worker.weights.remote()], "weights", DEADLINE_S)[0]
    plans = plans_of(ragged_samples(4), 1, 100_000, "mopd")
    cluster.gather([worker.update.remote(plans, 1, frozenset())], "updating", DEADLINE_S)
    student = cluster.gather([worker.weights.remote()], "weights", DEADLINE_S)[0]
    teacher = cluster.gather([worker.teacher_weights.remote()], "weights", DEADLINE_S)[0]
    for name, weight in teacher.items():
        np.testing.assert_allclose(weight, 0.5 * before[name] + 0.5 * student[name], atol=1e-6)


def test_the_reference_of_dpo_stays_the_initial_model(ray: None) -> None:
    [worker] = actors(1, "dpo")
    before = cluster.gather([worker.teacher_weights.remote()], "weights", DEADLINE_S)[0]
    plans = plans_of(ragged_samples(8), 1, 100_000, "dpo")
    [update] = cluster.gather([worker.update.remote(plans, 1, frozenset())], "updating", DEADLINE_S)
    assert update.gradient_norms[0] > 0
    student = cluster.gather([worker.weights.remote()], "weights", DEADLINE_S)[0]
    reference = cluster.gather([worker.teacher_weights.remote()], "weights", DEADLINE_S)[0]
    assert all((before[name] == reference[name]).all() for name in before)
    assert any((student[name] != reference[name]).any() for name in before)
