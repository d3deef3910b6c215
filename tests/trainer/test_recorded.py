"""What is kept of a few rollouts token by token: the five likeliest tokens that the loss's own states give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mopd.types import Rollout, Segment
from tests.trainer.loss_cases import CASES, B, Bigram, Table, V, batch, sample
from trainer import cluster
from trainer.meters import Meter
from trainer.packing import Packing, Sample, plan_mini_batch
from trainer.recorded import LIKELIEST, Likeliest, Recorded, Side, arrays_of, divergences_of, recorded_in
from trainer.replaying.records import read_tokens
from trainer.tracking import write_tokens
from trainer.workers.teacher import DistantTeacher, TeacherWorker

RECORD = frozenset({0, 1, 3, 5})
OUT = 5
"""A rollout of `RECORD` from which nothing is learnt, so that no one forwards it."""


def samples_of(name: str) -> list[Sample]:
    """Ragged rollouts; in one of them some tokens do not count, and one does not count at all."""
    samples = [sample(index, batch(steps=name.endswith("otherwise"))) for index in range(B)]
    mask = samples[0].streams.mask.copy()
    mask[2:4] = 0
    samples[0] = replace(samples[0], streams=replace(samples[0].streams, mask=mask))
    nothing = np.zeros_like(samples[OUT].streams.weights)
    samples[OUT] = replace(samples[OUT], streams=replace(samples[OUT].streams, weights=nothing))
    return samples


def learnt(worker: Bigram, samples: Sequence[Sample], budget: int, ranks: int) -> dict[int, Recorded]:
    """What so many ranks keep together."""
    recorded: dict[int, Recorded] = {}
    packing = Packing(budget, worker.loss.denominator, worker.loss.method.pairs)
    for plan in plan_mini_batch(samples, ranks, packing):
        for part, denominator in zip(plan.micro_batches, plan.denominators, strict=True):
            recorded |= worker.accumulate(part, None, denominator, Meter(), RECORD)
    return recorded


def expected(table: Tensor, one: Sample, prompt: Any, temperature: float) -> tuple[Tensor, Tensor]:
    """The likeliest tokens by a table of logits: each token is predicted by the one before it."""
    before = torch.tensor([int(prompt[-1]), *one.response_ids[:-1].tolist()])
    found = torch.log_softmax(table.detach()[before] / temperature, dim=-1).topk(LIKELIEST, dim=-1)
    return found.indices, found.values


@pytest.mark.parametrize(("budget", "ranks"), [(1000, 1), (1, 2)])
@pytest.mark.parametrize("name", CASES)
def test_the_lists_are_the_likeliest_of_the_distributions_that_the_loss_saw(name: str, budget: int, ranks: int) -> None:
    worker, samples = Bigram(name), samples_of(name)
    recorded = learnt(worker, samples, budget, ranks)
    method = worker.loss.method
    assert sorted(recorded) == sorted(RECORD - {OUT})
    asked = method.distils or method.has_reference
    for index, one in recorded.items():
        assert one.likeliest is not None
        assert set(one.likeliest) == ({"student", "teacher"} if asked else {"student"})
        assert (one.divergence is not None) == (method.signal == "divergence")
        own, counts = samples[index], samples[index].streams.mask != 0
        other = own.teacher_prompt_ids if method.distils else own.prompt_ids
        for side, table, prompt in (
            ("student", worker.student.table, own.prompt_ids),
            ("teacher", worker.teacher.table, other),
        ):
            if side not in one.likeliest:
                continue
            lists = one.likeliest[side]  # type: ignore[index]
            ids, logprobs = expected(table, own, prompt, worker.loss.temperature)
            assert np.array_equal(lists.ids[counts], ids[counts].numpy())
            np.testing.assert_allclose(lists.logprobs[counts], logprobs[counts].numpy(), atol=0, rtol=2**-10)
            assert (lists.ids[~counts] == -1).all()
            assert np.isnan(lists.logprobs[~counts]).all()


@pytest.mark.parametrize("name", CASES)
def test_recording_changes_nothing_that_is_learnt(name: str) -> None:
    one, other, samples = Bigram(name), Bigram(name), samples_of(name)
    learnt(one, samples, 1000, 1)
    other.learn(1000, 1, samples)
    assert one.loss_sum == other.loss_sum
    assert torch.equal(one.student.table.grad, other.student.table.grad)


@pytest.mark.parametrize("name", ["divergence", "divergence otherwise", "sampled token"])
def test_a_teacher_elsewhere_tells_its_own_likeliest_whatever_it_is_asked_for_the_loss(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples, beside, elsewhere = samples_of(name), Bigram(name), Bigram(name)
    worker = TeacherWorker(device="cpu", model_path="", attn_implementation="")
    worker.scorer = Table(torch.cat([beside.teacher.table, 9 * torch.ones(V, 3)], dim=1))  # more rows than the student
    monkeypatch.setattr(cluster, "gather", lambda pending, *_: pending)
    way: Any = SimpleNamespace(answer=SimpleNamespace(remote=worker.answer))
    elsewhere.distant = DistantTeacher(way, "teacher", 1.0)
    elsewhere.views = elsewhere.seen()
    found, wanted = learnt(elsewhere, samples, 1, 2), learnt(beside, samples, 1, 2)
    for index, one in wanted.items():
        assert one.likeliest is not None
        told = found[index].likeliest
        assert told is not None
        for side, lists in one.likeliest.items():
            assert np.array_equal(told[side].ids, lists.ids)
            np.testing.assert_allclose(told[side].logprobs, lists.logprobs, rtol=2**-10)
    assert elsewhere.loss_sum == pytest.approx(beside.loss_sum, rel=1e-5)


def rollouts_of(lengths: Sequence[int]) -> list[Rollout]:
    """Rollouts of so many tokens."""
    segments = [Segment(np.arange(count, dtype=np.int32), np.full(count, -0.5, np.float32)) for count in lengths]
    return [Rollout(str(index), (segment,), "", "stop", 0) for index, segment in enumerate(segments)]


def lists_of(count: int, seed: int) -> Likeliest:
    """Lists at so many tokens."""
    rng = np.random.default_rng(seed)
    values = np.sort(rng.normal(size=(count, LIKELIEST)).astype(np.float16), axis=1)[:, ::-1]
    return Likeliest(rng.integers(-1, 9, (count, LIKELIEST)).astype(np.int32), values)


@pytest.mark.parametrize("sides", [("student",), ("student", "teacher")])
def test_what_was_recorded_comes_back_from_the_disk(tmp_path: Path, sides: Sequence[Side]) -> None:
    lengths = [4, 1, 3, 2]
    recorded = {
        index: Recorded(None, {side: lists_of(lengths[index], seed) for seed, side in enumerate(sides)})
        for index in (3, 0, 1)
    }
    write_tokens(tmp_path / "1.npz", rollouts_of(lengths), recorded)
    tokens = read_tokens(tmp_path / "1.npz", [{}] * len(lengths))
    assert tokens is not None
    assert sorted(tokens.likeliest) == [0, 1, 3]
    for index, one in recorded.items():
        assert one.likeliest is not None
        for side, lists in one.likeliest.items():
            assert np.array_equal(tokens.likeliest[index][side].ids, lists.ids)
            assert np.array_equal(tokens.likeliest[index][side].logprobs, lists.logprobs)
    assert [ids.tolist() for ids in tokens.token_ids] == [list(range(count)) for count in lengths]


def test_nothing_is_added_where_nothing_was_recorded(tmp_path: Path) -> None:
    assert arrays_of({}) == arrays_of({0: Recorded(np.zeros(2, np.float32))}) == {}
    write_tokens(tmp_path / "1.npz", rollouts_of([2]))
    with np.load(tmp_path / "1.npz") as arrays:
        assert sorted(arrays) == ["lengths", "sampler_logprobs", "token_ids"]
    one = np.ones(2, np.float32)
    assert divergences_of({1: Recorded(one), 2: Recorded()}) == {1: one}


def test_lists_of_other_tokens_are_refused() -> None:
    arrays = arrays_of({0: Recorded(None, {"student": lists_of(3, 0)})}) | {"lengths": np.asarray([4])}
    with pytest.raises(ValueError, match="lists of 3 tokens, of 4"):
        recorded_in(arrays)
