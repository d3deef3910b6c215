"""Groups are shown to the teacher once they are finished: each once, whatever order its rollouts come in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mopd.types import Group, Outcome, Rollout, TokenStreams
from tests.mopd.groups import RIGHT, group_of
from trainer.config.compose import contradictions, resolve
from trainer.early import Watch, key_of
from trainer.packing import Sample

GROUPS, N = 3, 2


@given(st.permutations(range(2 * GROUPS * N)))
def test_a_group_is_told_once_when_its_last_rollout_has_its_outcome(order: list[int]) -> None:
    """The first half of the events are rollouts that arrive, the others verdicts."""
    whole = [group_of([RIGHT] * N, uid=f"g{number}-") for number in range(GROUPS)]
    rollouts = [rollout for group in whole for rollout in group.rollouts]
    found: dict[int, Rollout] = {}
    verdicts: set[str] = set()
    told: list[str] = []

    def outcomes(asked: Sequence[Rollout]) -> tuple[Outcome, ...] | None:
        return (RIGHT,) * len(asked) if all(one.rollout_id in verdicts for one in asked) else None

    def finished(groups: Sequence[Group]) -> None:
        for group in groups:
            assert group in whole
            told.append(group.uid)

    watch = Watch([replace(group, rollouts=(), outcomes=()) for group in whole], N, outcomes, finished)
    for event in order:
        number = event % (GROUPS * N)
        if event < GROUPS * N:
            found[number] = rollouts[number]
        else:
            verdicts.add(rollouts[number].rollout_id)
        watch.look(found)
        there = {rollouts[index].rollout_id for index in found} & verdicts
        ready = {group.uid for group in whole if all(one.rollout_id in there for one in group.rollouts)}
        assert set(told) == ready
    assert sorted(told) == [group.uid for group in whole]


def test_states_are_of_a_prompt_a_response_and_the_tokens_that_count() -> None:
    def sample(index: int, prompt: list[int] | None, response: list[int], counts: list[int]) -> Sample:
        ones = np.ones(len(response), dtype=np.float32)
        ids = None if prompt is None else np.asarray(prompt, dtype=np.int32)
        streams = TokenStreams(np.asarray(counts, dtype=np.float32), ones, ones)
        own = np.zeros(1, dtype=np.int32)
        return Sample(index, 0, 0.0, own, np.asarray(response, dtype=np.int32), -ones, ids, streams)

    same = [sample(0, [1, 2], [3, 4], [1, 1]), sample(5, [1, 2], [3, 4], [1, 1])]
    others = [
        sample(0, [1], [2, 3, 4], [1, 1, 1]),
        sample(0, [1, 2, 3], [4], [1]),
        sample(0, [1, 2], [3, 5], [1, 1]),
        sample(0, [1, 2], [3, 4], [0, 1]),
        sample(0, None, [3, 4], [1, 1]),
    ]
    assert key_of(same[0]) == key_of(same[1])
    assert len({key_of(one) for one in [same[0], *others]}) == 1 + len(others)


@pytest.mark.parametrize(
    ("method", "overrides", "words"),
    [
        ("grpo", [], "asks no teacher"),
        ("mopd", ["trainer.overlap=true"], "is learning while rollouts are drawn"),
        ("mopd", ["actor_rollout_ref.actor.self_distillation.teacher_regularization=live"], "within the update"),
    ],
)
def test_a_teacher_that_cannot_be_asked_early_is_refused(method: str, overrides: list[str], words: str) -> None:
    config = resolve(method, ["trainer.early_teacher=true", *overrides], {}).config
    [fault] = [fault for fault in contradictions(config) if "early_teacher" in fault]
    assert words in fault


def test_a_sampler_that_sleeps_cannot_draw_ahead(tmp_path: Path) -> None:
    sleeping = "actor_rollout_ref.rollout.free_cache_engine=true"
    assert not contradictions(resolve("mopd", [sleeping], {}).config)
    [fault] = contradictions(resolve("mopd", [sleeping, "trainer.overlap=true"], {}).config)
    assert "cannot sleep" in fault
