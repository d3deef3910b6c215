"""The verdicts that training uses: none for a rollout that a horizon cut short."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from mopd.credit import CreditSettings, token_streams
from mopd.horizon import Constant, Horizon, Ratio
from mopd.methods import METHODS
from mopd.preference import preference_pairs
from mopd.types import Group, Outcome, Rollout, View
from tests.mopd.groups import PROMPT, RIGHT, UNKNOWN, WRONG, group_of
from trainer.contexts import Context
from trainer.parts import Parts, Sizes, rollout_metrics
from trainer.prompts import PromptSet
from trainer.sampling import Asked
from trainer.workers.sampler_types import SamplingSettings

LONGEST = 20


class Verifier:
    """Gives every rollout the outcomes that were agreed on."""

    def __init__(self, outcomes: tuple[Outcome, ...]) -> None:
        self.outcomes = outcomes

    def verify(self, groups: tuple[Group, ...]) -> tuple[Group, ...]:
        return tuple(replace(group, outcomes=self.outcomes) for group in groups)


def parts_with(**some: Any) -> Parts:
    """Parts of which only some are there."""
    unused: dict[str, Any] = dict.fromkeys(Parts.__dataclass_fields__)
    return Parts(**(unused | {"sizes": Sizes(1, 4, False, 0, None)} | some))


def verified(outcomes: list[Outcome], tokens: list[int], horizon: Horizon) -> tuple[Outcome, ...]:
    """What training makes of the verifier's outcomes; a rollout as long as the horizon was cut."""
    verifier, sampling = Verifier(tuple(outcomes)), SamplingSettings(1.0, 1.0, LONGEST)
    group = group_of([], [str(count) for count in tokens], tokens=tokens)
    rollouts = tuple(ended(one, horizon(0)) for one in group.rollouts)
    parts = parts_with(horizon=horizon, verifier=verifier, sampling=sampling)
    [found] = parts.verify((replace(group, rollouts=rollouts),), 1)
    return found.outcomes


def ended(rollout: Rollout, limit: int) -> Rollout:
    return replace(rollout, finish_reason="length" if len(rollout.token_ids) >= limit else "stop")


def test_a_rollout_that_the_horizon_cut_has_no_verdict() -> None:
    found = verified([RIGHT, WRONG, WRONG], [4, 9, 10], Ratio(0.5, LONGEST))
    assert found[:2] == (RIGHT, WRONG)
    assert (found[2].status, found[2].reward, found[2].success) == ("unknown", None, None)


def test_a_rollout_of_the_longest_length_keeps_its_verdict() -> None:
    assert verified([WRONG], [LONGEST], Constant(LONGEST)) == (WRONG,)


class Sampler:
    """Gives every prompt a group of two, named after its row."""

    def sample(
        self, asked: list[Asked], n: int, settings: SamplingSettings, path: list[int], *, newest: int
    ) -> tuple[Group, ...]:
        return tuple(group_of([WRONG, WRONG], None, item.uid, row=item.prompt.prompt_id) for item in asked)


class TellingVerifier:
    """Groups of the rows in `telling` have one success, all others none."""

    def __init__(self, telling: set[int]) -> None:
        self.telling = telling

    def verify(self, groups: tuple[Group, ...]) -> tuple[Group, ...]:
        return tuple(
            replace(group, outcomes=(RIGHT if int(group.prompt.prompt_id) in self.telling else WRONG, WRONG))
            for group in groups
        )


@pytest.mark.parametrize(
    ("telling", "draws", "teaching", "drawn"),
    [
        (set(range(10)), 4, 4, 4),  # all teach: nothing is drawn again
        (set(), 2, 0, 8),  # none teaches: as many draws as allowed
        (set(), 9, 0, 10),  # and never a prompt twice
        ({0, 5, 9}, 9, 3, 10),
        ({0, 1, 4, 5, 6, 7, 8, 9}, 9, 4, 8),
    ],
)
def test_groups_that_teach_nothing_give_way(telling: set[int], draws: int, teaching: int, drawn: int) -> None:
    prompts = PromptSet(
        tuple(replace(PROMPT, prompt_id=str(row)) for row in range(10)), (np.zeros(1, np.int32),) * 10, 0
    )
    parts = parts_with(
        sizes=Sizes(4, 2, False, 0, None, draws),
        sampling=SamplingSettings(1.0, 1.0, LONGEST),
        horizon=Constant(LONGEST),
        credit=CreditSettings(),
        prompts=prompts,
        sampler=Sampler(),
        verifier=TellingVerifier(telling),
    )
    groups, figures = parts.redraw(parts.verify(parts.sample(1), 1), 1)
    told = [int(group.prompt.prompt_id) in telling for group in groups]
    assert len(groups) == 4
    assert len({group.uid for group in groups}) == 4
    assert sum(told) == min(4, figures["sampling/groups_teaching"])
    assert figures["sampling/prompts_drawn"] == drawn
    assert sum(told) == teaching
    again, _ = parts.redraw(parts.verify(parts.sample(1), 1), 1)
    assert [group.uid for group in groups] == [group.uid for group in again]


def test_the_actor_compares_the_rewards_that_credit_compares() -> None:
    credit = CreditSettings(overlong_buffer=4, max_response_length=6)
    group = group_of([RIGHT, RIGHT, UNKNOWN], tokens=[2, 4, 6])
    method = METHODS["dpo"]
    streams = token_streams(method, [group], None, credit)
    samples = parts_with(credit=credit).samples_of([group], [Context(View((), False), None, None)] * 3, streams)
    np.testing.assert_allclose([sample.reward for sample in samples], [1.0, 0.5, np.nan])
    pairs = preference_pairs(torch.tensor([sample.reward for sample in samples]), [0, 0, 0])
    assert [bool(one.weights.all()) for one in streams] == [index in pairs for index in range(3)]


def test_metrics_leave_unknown_rewards_out_and_count_them() -> None:
    group = group_of([RIGHT, WRONG, UNKNOWN, UNKNOWN], tokens=[1, 2, 3, 4])
    figures = rollout_metrics([group])
    assert figures["critic/rewards/mean"] == figures["critic/success_rate"] == 0.5
    assert figures["critic/unknown_fraction"] == 0.5
    assert (figures["response_length/min"], figures["response_length/max"]) == (1, 4)
    nothing = rollout_metrics([group_of([UNKNOWN], tokens=[1])])
    assert "critic/success_rate" not in nothing
    assert "critic/rewards/mean" not in nothing


def test_the_prompt_length_is_that_of_the_student() -> None:
    group = replace(group_of([RIGHT], tokens=[1]), prompt_ids=np.zeros(7, dtype=np.int32))
    assert rollout_metrics([group])["prompt_length/mean"] == 7
