"""Held-out quality: published names, unknown outcomes left out, votes by what a response answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mopd.metrics import best_at_k_bootstrap
from mopd.types import Group, Outcome
from tests.mopd.groups import RIGHT, UNKNOWN, WRONG, group_of
from trainer.prompts import PromptSet
from trainer.sampling import Asked
from trainer.validate import VALIDATION_PHASE, Validator, scores
from trainer.workers.sampler_types import SamplingSettings

ANSWERS = ["1 + 1 = 2", "1 + 1 = 3", "1 + 1 = 3", "none"]


def of_source(group: Group, source: str) -> Group:
    return replace(group, prompt=replace(group.prompt, data_source=source))


def test_figures_have_published_names_by_data_source() -> None:
    figures = scores([group_of([RIGHT, WRONG]), of_source(group_of([RIGHT, RIGHT]), "sciknoweval")], 2)
    for source in ("chain", "sciknoweval"):
        assert {name.removeprefix(f"val-core/{source}/acc/") for name in figures if name.startswith("val-core")} >= {
            "mean@2",
            "pass@2",
            "maj@2",
        }
        for name in ("prompts", "unknown", "short_prompts", "credit@2"):
            assert f"val-aux/{source}/{name}" in figures
    assert figures["val-core/chain/acc/mean@2"] == 0.5
    assert figures["val-core/chain/acc/pass@2"] == 1
    assert figures["val-core/sciknoweval/acc/mean@2"] == 1
    assert all(name.split("/")[0] in ("val-core", "val-aux") for name in figures)


def test_prompts_weigh_the_same() -> None:
    figures = scores([group_of([RIGHT, RIGHT]), group_of([WRONG, WRONG]), group_of([RIGHT, WRONG])], 2)
    assert figures["val-core/chain/acc/mean@2"] == pytest.approx(0.5)
    assert figures["val-core/chain/acc/pass@2"] == pytest.approx(2 / 3)


def test_unknown_outcomes_are_counted_and_left_out() -> None:
    figures = scores([group_of([RIGHT, UNKNOWN]), group_of([WRONG, RIGHT]), group_of([UNKNOWN, UNKNOWN])], 2)
    assert figures["val-aux/chain/prompts"] == 3
    assert figures["val-aux/chain/unknown"] == 3
    assert figures["val-aux/chain/short_prompts"] == 2
    assert figures["val-core/chain/acc/mean@2"] == pytest.approx((1 + 0.5) / 2)
    assert figures["val-core/chain/acc/pass@2"] == 1, "of the one prompt with two known outcomes"


def test_a_figure_that_nothing_supports_is_absent() -> None:
    figures = scores([group_of([UNKNOWN, UNKNOWN])], 2)
    assert figures == {"val-aux/chain/prompts": 1, "val-aux/chain/unknown": 2, "val-aux/chain/short_prompts": 1}
    assert scores([], 2) == {}


@pytest.mark.parametrize(
    ("outcomes", "majority"), [([WRONG, RIGHT, RIGHT, WRONG], 1), ([RIGHT, WRONG, WRONG, WRONG], 0)]
)
def test_the_vote_is_over_what_responses_answer(outcomes: Sequence[Outcome], majority: int) -> None:
    assert scores([group_of(outcomes, ANSWERS)], 4)["val-core/chain/acc/maj@4"] == majority


def test_ways_to_the_same_answer_vote_together() -> None:
    ways = ["1 + 1 = 2", "1 + 1 = 2", "1 + 1 = 3", "2 + 1 = 3", "4 - 1 = 3"]
    assert scores([group_of([RIGHT, RIGHT, WRONG, WRONG, WRONG], ways)], 5)["val-core/chain/acc/maj@5"] == 0


def test_thinking_has_no_vote() -> None:
    thought = [f"<think>1 + 1 = 3</think>{text}" for text in ("1 + 1 = 2", "1 + 1 = 2", "1 + 1 = 3")]
    assert scores([group_of([RIGHT, RIGHT, WRONG], thought)], 3)["val-core/chain/acc/maj@3"] == 1


def test_an_unknown_outcome_has_no_vote() -> None:
    outcomes = [RIGHT, UNKNOWN, UNKNOWN, WRONG]
    assert scores([group_of(outcomes, ANSWERS)], 4)["val-core/chain/acc/maj@4"] == 1


def test_partial_credit_stands_beside_success() -> None:
    half = Outcome(0.5, False, "wrong")
    figures = scores([group_of([half, RIGHT])], 2)
    assert figures["val-aux/chain/credit@2"] == 0.75
    assert figures["val-core/chain/acc/mean@2"] == 0.5


def test_the_published_bootstrap_is_there_only_where_it_is_asked_for() -> None:
    groups = [group_of([RIGHT, *[WRONG] * 7])]
    plain, more = scores(groups, 8), scores(groups, 8, bootstrap=True)
    assert not any("best@" in name for name in plain)
    assert more == plain | {"val-aux/chain/best@8": best_at_k_bootstrap([1.0, *[0.0] * 7], 8)}
    assert more["val-aux/chain/best@8"] < more["val-core/chain/acc/pass@8"] == 1


class Sampler:
    """Remembers what it is asked."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def sample(self, asked: Sequence[Asked], n: int, settings: SamplingSettings, seed_path: Sequence[int]) -> Any:
        self.asked.append(([item.prompt for item in asked], n, settings, list(seed_path)))
        return tuple(replace(group_of([WRONG] * n, uid=item.uid), outcomes=()) for item in asked)


class Verifier:
    """Finds the first response of every group right."""

    def verify(self, groups: Sequence[Group]) -> tuple[Group, ...]:
        return tuple(replace(group, outcomes=(RIGHT, *[WRONG] * (len(group.rollouts) - 1))) for group in groups)


def test_every_validation_asks_the_same_with_the_same_seeds_and_records_verdicts() -> None:
    prompts = tuple(group_of([RIGHT], row=row).prompt for row in "12")
    sampler: Any = Sampler()
    verifier: Any = Verifier()
    kept: list[tuple[int, Sequence[Group]]] = []
    validator = Validator(
        sampler=sampler,
        verifier=verifier,
        prompts=PromptSet(prompts, (np.zeros(1, dtype=np.int32),) * 2, 0),
        settings=SamplingSettings(0.6, 0.95, 32),
        k=4,
        record=lambda step, groups: kept.append((step, groups)),
        bootstrap=False,
    )
    figures = [validator(step=step) for step in (0, 10)]
    assert sampler.asked[0] == sampler.asked[1]
    assert sampler.asked[0][1:] == (4, SamplingSettings(0.6, 0.95, 32), [VALIDATION_PHASE])
    assert figures[0] == figures[1]
    assert figures[0]["val-core/chain/acc/mean@4"] == 0.25
    assert [step for step, _ in kept] == [0, 10]
    assert all(group.outcomes for _, groups in kept for group in groups)
    assert [group.uid for group in kept[1][1]] == ["val10-0", "val10-1"]
