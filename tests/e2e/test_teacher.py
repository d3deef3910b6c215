"""A teacher in processes of its own, on real Ray: what the student learns is what one beside it teaches."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.e2e.conftest import ROOT, Run
from tests.e2e.test_ranks import norm, ragged_samples
from trainer import cluster
from trainer.assemble import worker_environment
from trainer.config.compose import resolve
from trainer.meters import Meter, merged
from trainer.objectives import LossSettings
from trainer.packing import MiniBatch, Packing, plan_mini_batch
from trainer.settings import loss_settings, teacher_settings
from trainer.workers.policy import OptimSettings, PolicyWorker
from trainer.workers.teacher import DistantTeacher, TeacherWorker

pytestmark = pytest.mark.e2e
CHAIN = ROOT / "datasets" / "chain"
DEADLINE_S = 120.0
RANKS = 2
DISTILL = "actor_rollout_ref.actor.self_distillation"


class Rank(PolicyWorker):
    """Has its teacher beside it and elsewhere, and shows what either makes of a mini-batch."""

    def learn(self, plan: MiniBatch, loss: LossSettings, distant: DistantTeacher | None) -> tuple[float, Any, Meter]:
        """Loss, gradient and figures."""
        self.loss, self.loss_sum, meter = loss, 0.0, Meter()
        self.views.loss, self.views.distant = loss, distant
        for micro_batch, denominator in zip(plan.micro_batches, plan.denominators, strict=True):
            self.accumulate(micro_batch, None, denominator, meter, frozenset())
        whole = {name: weight.grad.full_tensor().numpy() for name, weight in self.student.named_parameters()}
        self.optimizer.zero_grad(set_to_none=True)
        return self.loss_sum, whole, meter


class Teacher(TeacherWorker):
    """Tells its process."""

    def pid(self) -> int:
        return os.getpid()


@dataclass(frozen=True)
class Stage:
    """Ranks with a teacher beside each, and one of their own that they share."""

    ranks: list[Any]
    teacher: DistantTeacher


@pytest.fixture(scope="module")
def teacher_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A perturbed copy of the embedded model, with more padding rows."""
    folder = tmp_path_factory.mktemp("teacher") / "teacher"
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(CHAIN / "model", dtype=torch.float32)
    model.resize_token_embeddings(model.config.vocab_size + 8, mean_resizing=False)
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(CHAIN / "model").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def stage(teacher_path: Path) -> Iterator[Stage]:
    cluster.start(worker_environment("cpu", offline=True), num_cpus=4)
    config = resolve("ts_sdpo", [f"actor_rollout_ref.ref.model.path={teacher_path}"], {}).config
    ranks = [
        cluster.spawn(
            Rank,
            num_cpus=0,
            num_gpus=0,
            rank=rank,
            ranks=RANKS,
            device="cpu",
            model_path=str(CHAIN / "model"),
            attn_implementation="packed",
            gradient_checkpointing=False,
            loss=loss_settings(config),
            optim=OptimSettings(1e-3, 0, 0.01, (0.9, 0.999), 1.0),
            teacher=teacher_settings(config),
            seed=0,
            deadline_s=DEADLINE_S,
        )
        for rank in range(RANKS)
    ]
    worker = cluster.spawn(
        Teacher, num_cpus=0, num_gpus=0, device="cpu", model_path=str(teacher_path), attn_implementation="packed"
    )
    loading = [worker.load.remote()]
    [(host, port)] = cluster.gather([ranks[0].rendezvous.remote()], "rendezvous", DEADLINE_S)
    cluster.gather([rank.join.remote(host, port) for rank in ranks], "joining", DEADLINE_S)
    cluster.gather(loading, "loading", DEADLINE_S)
    yield Stage(ranks, DistantTeacher(worker, "teacher 1 of 1", DEADLINE_S))
    cluster.stop()


def begin(stage: Stage, loss: LossSettings, *, own: bool) -> list[Any]:
    """The ranks' work on one mini-batch of many micro-batches, under way."""
    # Nine usable sequences of which none shares a micro-batch: a rank has an empty one.
    samples = [sample for sample in ragged_samples(12) if sample.teacher_prompt_ids is not None]
    plans = plan_mini_batch(samples, RANKS, Packing(1, loss.denominator))
    assert {len(micro_batch) for plan in plans for micro_batch in plan.micro_batches} == {0, 1}
    return [
        rank.learn.remote(plan, loss, stage.teacher if own else None)
        for rank, plan in zip(stage.ranks, plans, strict=True)
    ]


@pytest.mark.parametrize(
    "overrides",
    [
        (f"{DISTILL}.distillation_support=student",),
        (f"{DISTILL}.distillation_support=teacher", f"{DISTILL}.alpha=0"),
        (f"{DISTILL}.distillation_support=union", f"{DISTILL}.distillation_add_tail=false"),
        (f"{DISTILL}.full_logit_distillation=false", f"{DISTILL}.alpha=1"),
    ],
)
def test_loss_gradient_and_figures_are_those_of_a_teacher_beside_the_student(
    stage: Stage, overrides: tuple[str, ...]
) -> None:
    settings = resolve("ts_sdpo", [f"{DISTILL}.distillation_topk=20", *overrides], {}).config
    loss = loss_settings(settings)
    beside, apart = (cluster.gather(begin(stage, loss, own=own), "learning", DEADLINE_S) for own in (False, True))
    assert sum(part[0] for part in apart) == pytest.approx(sum(part[0] for part in beside), rel=1e-5)
    wanted, found = beside[0][1], apart[0][1]
    assert norm(wanted) > 1e-4
    assert norm({name: found[name] - values for name, values in wanted.items()}) / norm(wanted) < 1e-5
    figures = [merged(part[2] for part in parts) for parts in (apart, beside)]
    assert any(name.startswith("self_distillation/") for name in figures[0])
    assert figures[0] == pytest.approx(figures[1], rel=1e-4, abs=1e-6)


def test_a_dead_teacher_is_named(stage: Stage) -> None:
    loss = loss_settings(resolve("ts_sdpo", [f"{DISTILL}.distillation_topk=20"], {}).config)
    [pid] = cluster.gather([stage.teacher.worker.pid.remote()], "asking", DEADLINE_S)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(cluster.WorkerDiedError, match="asking teacher 1 of 1: the worker process died"):
        cluster.gather(begin(stage, loss, own=True), "learning", DEADLINE_S)


@pytest.mark.slow
def test_a_whole_run_with_teachers_of_their_own_is_that_with_one_beside_the_student(
    teacher_path: Path, tmp_path: Path, trained: Callable[..., Run]
) -> None:
    rows = pq.read_table(CHAIN / "train.parquet").slice(0, 8).to_pylist()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    common = (
        "profile=embedded",
        f"data.train_files={tmp_path}/train.parquet",
        "data.train_batch_size=4",
        "actor_rollout_ref.actor.ppo_mini_batch_size=2",
        "actor_rollout_ref.rollout.val_kwargs.n=1",
        "trainer.val_before_train=false",
        "trainer.test_freq=0",
        f"actor_rollout_ref.ref.model.path={teacher_path}",
    )
    runs = []
    for name, overrides in (
        ("beside", ()),
        ("apart", ("actor_rollout_ref.ref.placement=own", "actor_rollout_ref.ref.n_gpus=1")),
    ):
        (tmp_path / name).mkdir()
        runs.append(trained(tmp_path / name / "run", "ts_sdpo", *common, *overrides, TOTAL_STEPS="2"))
        assert runs[-1].code == 0, runs[-1].said
    beside, apart = (run.metrics for run in runs)
    for ours, wanted in zip(apart, beside, strict=True):
        assert ours.keys() == wanted.keys()
        for name in ("actor/loss", "actor/grad_norm", "self_distillation/divergence", "perf/tokens_forwarded"):
            assert ours[name] == pytest.approx(wanted[name], rel=1e-3), name
