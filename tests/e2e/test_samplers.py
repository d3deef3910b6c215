"""Several samplers beside each other: who draws what changes no rollout, and others finish what a dead one began."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mopd.types import Group, Prompt, Rollout
from tests.e2e.conftest import train
from tests.e2e.test_faults import DEADLINE_S, MODEL, SEQUENCES, Actor, Doomed, ask
from trainer import cluster
from trainer.assemble import worker_environment
from trainer.config.compose import resolve
from trainer.packing import Packing
from trainer.sampling import Asked, Sampling, Slot, spread
from trainer.services import Policy
from trainer.settings import loss_settings
from trainer.weights import Transfer
from trainer.workers.policy import OptimSettings, TeacherSettings
from trainer.workers.sampler_types import SamplingSettings

pytestmark = pytest.mark.e2e
PROMPTS = [np.random.default_rng(number).integers(0, 430, 4 + 3 * number).astype(np.int32) for number in range(12)]


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.floats(0, 100)), max_size=40), st.integers(1, 5))
def test_requests_are_dealt_whole_by_prompt_and_nearly_even(units: list[tuple[str, float]], ways: int) -> None:
    shares = spread(units, ways)
    assert sorted(number for share in shares for number in share) == list(range(len(units)))
    for name in {name for name, _ in units}:
        assert sum(any(units[number][0] == name for number in share) for share in shares) == 1
    loads = [sum(units[number][1] for number in share) for share in shares]
    costs = [sum(cost for other, cost in units if other == name) for name in {name for name, _ in units}]
    # Whoever has most had least to do when its last prompt came.
    assert max(loads) - min(loads) <= max(costs, default=0) + 1e-9


def test_the_longest_are_drawn_first_and_nothing_known_changes_no_order() -> None:
    assert spread([("a", 1.0), ("b", 5.0), ("a", 1.0), ("c", 3.0)], 1) == [[1, 3, 0, 2]]
    assert spread([("a", 0.0), ("b", 0.0), ("a", 0.0), ("c", 0.0)], 1) == [[0, 2, 1, 3]]
    assert spread([("a", 0.0), ("b", 0.0), ("a", 0.0), ("c", 0.0)], 2) == [[0, 2], [1, 3]]


@dataclass(frozen=True)
class Stage:
    """An actor whose weights are not the model's, and samplers of which one can be made to die."""

    policy: Policy
    slots: list[Slot]
    mark: Path


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    mark = tmp_path_factory.mktemp("marks") / "die"
    cluster.start({**worker_environment("cpu", offline=True), "STAGE": str(mark)}, num_cpus=4)
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
    transfer = Transfer("gloo", bucket_bytes=1_000_000, deadline_s=30.0)
    slots = [Slot(spawn(), spawn, transfer) for _ in range(4)]
    loss = loss_settings(resolve("grpo", [], {}).config)
    actor = cluster.spawn(
        Actor,
        num_cpus=0,
        num_gpus=0,
        rank=0,
        ranks=1,
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
    policy = Policy([actor], 1, 4, Packing(4096, loss.denominator), lambda step: 0.0, DEADLINE_S)
    policy.join()
    ask(actor, "shake")
    yield Stage(policy, slots, mark)
    cluster.stop()


def sampling_on(stage: Stage, count: int) -> Sampling:
    """So many of the samplers, which have the actor's weights."""
    found = Sampling(stage.slots[:count], stage.policy, tolerance=1e-3, seed=1, deadline_s=DEADLINE_S)
    found.publish(1, SEQUENCES)
    return found


def draw(sampling: Sampling) -> tuple[Group, ...]:
    asked = [Asked(str(number), Prompt(str(number), (), "chain", "0"), tokens) for number, tokens in enumerate(PROMPTS)]
    return sampling.sample(asked, 4, SamplingSettings(1.0, 1.0, 24), [4])


def rollouts_of(groups: tuple[Group, ...]) -> list[Rollout]:
    return [rollout for group in groups for rollout in group.rollouts]


def tokens_of(groups: tuple[Group, ...]) -> list[tuple[str, list[int]]]:
    return [(rollout.rollout_id, rollout.token_ids.tolist()) for rollout in rollouts_of(groups)]


@pytest.mark.slow
def test_rollouts_do_not_depend_on_the_number_of_samplers(stage: Stage) -> None:
    one = draw(sampling_on(stage, 1))
    assert len({tuple(tokens) for _, tokens in tokens_of(one)}) > 20, "they are not all alike"
    for count in (2, 4):
        several = sampling_on(stage, count)
        for groups in (draw(several), draw(several)):  # the second time in another order, since lengths are known
            pairs = list(zip(rollouts_of(groups), rollouts_of(one), strict=True))
            same = [pair for pair in pairs if pair[0].token_ids.tolist() == pair[1].token_ids.tolist()]
            assert len(same) >= 0.999 * len(pairs)
            for ours, theirs in same:
                np.testing.assert_allclose(ours.logprobs, theirs.logprobs, atol=1e-5)


@pytest.mark.slow
def test_what_a_sampler_that_dies_has_not_drawn_is_drawn_by_the_others(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    sampling = sampling_on(stage, 2)
    expected = tokens_of(draw(sampling))
    stage.mark.touch()
    with caplog.at_level("WARNING", logger="mopd"):
        assert tokens_of(draw(sampling)) == expected
    assert "the sampler died; starting another (1 of 6)" in caplog.text
    assert sum(slot.connected for slot in sampling.slots) == 1, "the other one has served alone"
    assert sampling.publish(2, SEQUENCES)["rollout_corr/publish_max_abs_diff"] < 1e-4
    assert all(slot.connected for slot in sampling.slots)
    assert tokens_of(draw(sampling)) == expected


@pytest.mark.slow
def test_a_run_on_two_samplers_is_the_run_on_one(tmp_path: Path) -> None:
    runs = [
        train(
            tmp_path / f"run{count}",
            "mopd",
            "trainer.test_freq=0",
            "trainer.val_before_train=false",
            f"actor_rollout_ref.rollout.n_samplers={count}",
            TOTAL_STEPS="3",
        )
        for count in (1, 2)
    ]
    for run in runs:
        assert run.code == 0, run.said
    for one, two in zip(runs[0].metrics, runs[1].metrics, strict=True):
        assert two["actor/loss"] == pytest.approx(one["actor/loss"], abs=1e-5)
        assert two["critic/rewards/mean"] == one["critic/rewards/mean"]
