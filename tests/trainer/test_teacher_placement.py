"""A teacher elsewhere teaches what one beside the student does; what it cannot do is refused at the start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from torch import Tensor

from tests.trainer.loss_cases import DISTILL, B, Bigram, Table, V, batch, sample
from trainer import assemble, cluster
from trainer.assemble import start_workers
from trainer.config.compose import resolve
from trainer.config.schema import Config
from trainer.inputs import breadth_faults
from trainer.meters import Meter, merged
from trainer.objectives import LossSettings
from trainer.placement import Placement, distance_faults, placement_of
from trainer.workers.gauging import note_bare
from trainer.workers.policy import PolicyWorker
from trainer.workers.teacher import DistantTeacher, Question, TeacherWorker
from trainer.workers.views import TeacherSettings

OWN = "actor_rollout_ref.ref.placement=own"


def table(rows: int) -> Tensor:
    """A teacher of so many logits: those of the next token by the last one alone."""
    return torch.randn(V, rows, generator=torch.Generator().manual_seed(7))


class Elsewhere(TeacherWorker):
    """A table in place of the model; it keeps what it was asked, and the order of events."""

    def __init__(self, rows: int, events: list[str]) -> None:
        super().__init__(device="cpu", model_path="", attn_implementation="sdpa")
        self.scorer: Any = Table(table(rows))
        self.events, self.questions = events, list[Question]()

    def ask(self, question: Question) -> Any:
        """As a remote call: the answer's place."""
        self.events.append("asked")
        self.questions.append(question)
        return self.answer(question)


class Student(Bigram):
    """An actor rank whose teacher is another model, beside it or elsewhere."""

    def __init__(self, name: str, rows: int, elsewhere: bool, **changes: Any) -> None:
        super().__init__(name)
        divergence = replace(self.loss.divergence, **changes)
        self.loss: LossSettings = replace(self.loss, temperature=0.7, divergence=divergence)
        self.teaching = TeacherSettings("frozen", 0.0, "another")
        self.events: list[str] = []
        self.other = Elsewhere(rows, self.events)
        self.teacher = None if elsewhere else Table(table(rows))
        way = SimpleNamespace(answer=SimpleNamespace(remote=self.other.ask))
        self.distant = DistantTeacher(way, "teacher 1 of 1", 1.0) if elsewhere else None
        self.student.called = lambda: self.events.append("student")
        self.views = self.seen()

    @property
    def tokens_forwarded(self) -> int:
        """By all models."""
        return sum(work.tokens for work in self.views.account.passes.values())


@pytest.fixture(autouse=True)
def answers_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """No Ray: what was asked has been answered."""
    monkeypatch.setattr(cluster, "gather", lambda references, doing, deadline_s: list(references))


def compare(beside: Student, elsewhere: Student) -> None:
    """Both learn the same from the same rollouts, on one rank and on four."""
    samples = [sample(index, batch()) for index in range(B)]
    metrics, others = beside.learn(40, 1, samples), elsewhere.learn(40, 1, samples)
    assert metrics == pytest.approx(others, rel=1e-6)
    assert beside.loss_sum == pytest.approx(elsewhere.loss_sum, rel=1e-6)
    assert beside.student.table.grad.norm() > 0
    torch.testing.assert_close(elsewhere.student.table.grad, beside.student.table.grad, rtol=1e-6, atol=1e-7)
    assert {"teacher", "gap"} <= beside.noted.keys() == elsewhere.noted.keys()
    for name, values in beside.noted.items():
        assert elsewhere.noted[name] == pytest.approx(values, rel=1e-5), name
    assert elsewhere.tokens_forwarded == beside.tokens_forwarded > 0


@pytest.mark.parametrize("rows", [V - 2, V, V + 3])
@pytest.mark.parametrize("support", ["student", "teacher", "union"])
@pytest.mark.parametrize("tail", ["bucket", "renormalize"])
def test_a_divergence_is_the_same_wherever_the_teacher_is(rows: int, support: str, tail: str) -> None:
    beside, elsewhere = (
        Student("divergence", rows, away, support=support, tail=tail, alpha=0.3) for away in (False, True)
    )
    compare(beside, elsewhere)
    for question in elsewhere.other.questions:
        assert question.asked.shape[-1] + question.own < V
        assert question.asked.shape[:-1] == question.batch.tokens.shape


@pytest.mark.parametrize("rows", [V - 2, V, V + 3])
def test_sampled_tokens_cost_the_same_wherever_the_teacher_is(rows: int) -> None:
    beside, elsewhere = (Student("sampled token", rows, away) for away in (False, True))
    compare(beside, elsewhere)
    assert {question.asked.shape[-1] + question.own for question in elsewhere.other.questions} == {1}


@pytest.mark.parametrize("name", ["divergence", "sampled token"])
def test_what_it_says_without_context_is_the_same_wherever_the_teacher_is(name: str) -> None:
    parts = [[sample(index, batch()) for index in rows] for rows in ((0, 3), (), (1,))]
    meters = [Meter(), Meter()]
    for meter, away in zip(meters, (False, True), strict=True):
        note_bare(meter, parts, Student(name, V - 2, away).views)
    beside, elsewhere = (meter.rollouts["bare"] for meter in meters)
    assert set(beside) == {0, 1, 3}
    assert elsewhere == pytest.approx(beside, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "changes", "early"),
    [
        ("divergence", {"support": "student"}, False),
        ("divergence", {"support": "union"}, False),
        ("divergence", {"support": "teacher"}, True),
        ("sampled token", {}, True),
    ],
)
def test_the_teacher_is_asked_before_the_student_has_answered_where_it_can_be(
    name: str, changes: dict[str, Any], early: bool
) -> None:
    student = Student(name, V, True, **changes)
    student.accumulate([sample(0, batch())], None, 5.0, Meter(), frozenset())
    assert student.events == (["asked", "student"] if early else ["student", "asked"])


@pytest.mark.parametrize("name", ["divergence", "sampled token"])
def test_a_rank_without_work_asks_nothing_and_adds_nothing(name: str) -> None:
    student, meter = Student(name, V, True), Meter()
    student.accumulate((), None, 5.0, meter, frozenset())
    assert student.events == ["student"], "the other ranks wait for its forward"
    assert torch.equal(student.student.table.grad, torch.zeros(V, V))
    assert merged([meter]) == {}


def config_of(method: str, *overrides: str) -> Config:
    return resolve(method, [OWN, "trainer.device=cpu", *overrides], {}).config


def faults_of(method: str, *overrides: str) -> Sequence[str]:
    config = config_of(method, *overrides)
    return [*distance_faults(config), *breadth_faults(config)]


@pytest.mark.parametrize("support", ["student", "teacher", "union"])
def test_a_frozen_teacher_may_have_a_placement_of_its_own(support: str) -> None:
    assert faults_of("ts_sdpo", f"{DISTILL}.distillation_support={support}") == []
    assert faults_of("opd") == []
    assert faults_of("ts_sdpo", "actor_rollout_ref.ref.n_gpus=2", "trainer.n_gpus_per_node=3") == []


@pytest.mark.parametrize(
    ("method", "overrides", "said"),
    [
        ("mopd", [], "teacher_regularization=ema needs the student's weights"),
        ("ts_sdpo", [f"{DISTILL}.teacher_regularization=trust-region"], "set it to frozen, or placement to colocate"),
        ("ts_sdpo", [f"{DISTILL}.teacher_regularization=live"], "needs the student's weights or logits"),
        ("ts_sdpo", [f"{DISTILL}.distillation_topk=null"], "whole distributions would have to be sent"),
        ("ts_sdpo", [f"{DISTILL}.distillation_topk=100000"], "is the whole vocabulary of"),
        ("ts_sdpo", ["actor_rollout_ref.ref.n_gpus=2"], "others would idle"),
        ("grpo", [], "asks no teacher of its own"),
        ("dpo", [], "asks no teacher of its own"),
    ],
)
def test_what_a_teacher_elsewhere_cannot_do_is_refused(method: str, overrides: list[str], said: str) -> None:
    [fault] = faults_of(method, *overrides)
    assert said in fault
    beside = resolve(method, [*overrides, "actor_rollout_ref.ref.placement=colocate"], {}).config
    assert [*distance_faults(beside), *breadth_faults(beside)] == []


def test_the_whole_vocabulary_may_be_named_where_only_sampled_tokens_are_asked_for() -> None:
    assert faults_of("ts_sdpo", f"{DISTILL}.full_logit_distillation=false", f"{DISTILL}.distillation_topk=null") == []


def test_teachers_take_gpus_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    two = ["trainer.device=cuda", "actor_rollout_ref.ref.n_gpus=2"]
    placement = placement_of(config_of("ts_sdpo", *two))
    assert (placement.ranks, placement.teachers) == (2, 2)
    assert faults_of("ts_sdpo", *two) == []
    [fault] = faults_of("ts_sdpo", *two, "trainer.n_gpus_per_node=3")
    assert "3 processes of actor and sampler and 2 of the teacher need as many GPUs, and 4 are visible" in fault
    assert placement_of(resolve("ts_sdpo", ["trainer.device=cuda"], {}).config).ranks == 4
    assert placement_of(resolve("ts_sdpo", ["trainer.device=cuda"], {}).config).teachers == 0


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_ranks_share_the_teachers_in_turn(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    spawned: list[tuple[type, dict[str, Any]]] = []
    handles: list[MagicMock] = []

    def spawn(worker: type, **arguments: Any) -> MagicMock:
        spawned.append((worker, arguments))
        handles.append(MagicMock())
        return handles[-1]

    monkeypatch.setattr(cluster, "spawn", spawn)
    monkeypatch.setattr(cluster, "start", lambda *_, **__: None)
    monkeypatch.setattr(assemble, "architectures", lambda _: {})  # there are no such models
    config = config_of("ts_sdpo", "actor_rollout_ref.ref.model.path=/another", "actor_rollout_ref.ref.n_gpus=2")
    policy = start_workers(config, Placement(device, ranks=3, teachers=2))[0]
    teachers = [arguments for worker, arguments in spawned if worker is TeacherWorker]
    assert [arguments["model_path"] for arguments in teachers] == ["/another"] * 2
    assert [arguments["num_gpus"] for arguments in teachers] == [float(device == "cuda")] * 2
    ways = [arguments["distant"] for worker, arguments in spawned if worker is PolicyWorker]
    assert [way.name.partition(" (")[0] for way in ways] == ["teacher 1 of 2", "teacher 2 of 2", "teacher 1 of 2"]
    assert ways[0].worker is ways[2].worker is not ways[1].worker
    monkeypatch.setattr(cluster, "gather", lambda _, doing, __: [("here", 1)] if "starting" in doing else [{}])
    policy.join()
    for handle, (worker, _) in zip(handles, spawned, strict=True):
        assert handle.load.remote.called is (worker is TeacherWorker), "loaded before the first question"
