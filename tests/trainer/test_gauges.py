"""A step's gauges: equal to plain arithmetic over its rollouts, however the step is cut, and absent where undefined."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mopd.gauges import LEAST_PROMPTS
from mopd.types import Group, Outcome, Peers, View
from tests.mopd.groups import RIGHT, UNKNOWN, WRONG, group_of
from tests.trainer.loss_cases import B, Bigram, Table, batch, sample
from trainer.contexts import Context
from trainer.gauges import asked_bare, score_gauges, text_gauges
from trainer.meters import Meter, by_rollout
from trainer.packing import Packing, Sample, plan_mini_batch
from trainer.workers.gauging import note_bare
from trainer.workers.views import TeacherSettings

TEMPERATURE = 0.7


def judged(index: int, group: int, verdict: float | None) -> Sample:
    """A rollout with a verdict, which succeeds from 1 on."""
    known = sample(0, batch())
    right = None if verdict is None else verdict >= 1
    return replace(known, index=index, group=group, verdict=math.nan if verdict is None else verdict, right=right)


def test_figures_are_means_over_rollouts_and_over_prompts() -> None:
    verdicts = [[1.0, 0.5, 0.0, None], [1.0, 1.0], [0.0, 1.0, 0.0]]
    samples = [
        judged(index, group, verdict)
        for index, (group, verdict) in enumerate((number, one) for number, row in enumerate(verdicts) for one in row)
    ]
    teacher = dict(enumerate([-1.0, -2.0, -1.0, -9.0, -3.0, -5.0, -4.0, -2.0, -2.0]))
    scores = {"teacher": teacher, "student": {0: -2.0, 2: -1.0}, "bare": {0: -3.0, 2: -1.5, 4: -3.0}}
    found = score_gauges(samples, scores)
    wanted = {
        "teacher_logprob/right": (-1.0 - 3.0 - 5.0 - 2.0) / 4,
        "teacher_logprob/wrong": (-2.0 - 1.0 - 4.0 - 2.0) / 4,
        "student_logprob/right": -2.0,
        "student_logprob/wrong": -1.0,
        "context_gain/right": (2.0 + 0.0) / 2,
        "context_gain/wrong": 0.5,
        "student_auc": 0.0,
        "mixed_prompts": 1,
        "teacher_auc": (0.75 + 0.75) / 2,
        # 1 above 0.5: yes; 1 above 0: a tie; 0.5 above 0: no; and of the third prompt yes and a tie.
        "teacher_pairwise_accuracy": (1.5 / 3 + 1.5 / 2) / 2,
    }
    ends = {name for name in found if name.endswith(("_low", "_high"))}
    assert {name: value for name, value in found.items() if name not in ends} == pytest.approx(
        {f"gauges/{name}": value for name, value in wanted.items()}
    )
    assert not ends  # of two prompts


@pytest.mark.parametrize("prompts", [LEAST_PROMPTS - 1, LEAST_PROMPTS])
def test_intervals_are_given_from_enough_prompts_on(prompts: int) -> None:
    samples = [judged(index, index // 2, float(index % 2)) for index in range(2 * prompts)]
    found = score_gauges(samples, {"teacher": {index: -float(index % 3) for index in range(2 * prompts)}})
    ends = {name for name in found if name.endswith(("_low", "_high"))}
    wanted = {f"gauges/teacher_{name}_{end}" for name in ("auc", "pairwise_accuracy") for end in ("low", "high")}
    assert ends == (wanted if prompts == LEAST_PROMPTS else set())


def test_nothing_is_made_up_where_nothing_is_known() -> None:
    assert score_gauges([], {}) == {"gauges/mixed_prompts": 0}
    alike = [judged(index, index // 2, 1.0) for index in range(4)]
    found = score_gauges(alike, {name: dict.fromkeys(range(4), -1.0) for name in ("teacher", "student", "gap")})
    sides = {f"gauges/{name}/right" for name in ("teacher_logprob", "student_logprob", "gap")}
    assert set(found) == {*sides, "gauges/mixed_prompts"}
    unknown = [replace(each, right=None, verdict=math.nan) for each in alike]
    assert set(score_gauges(unknown, {"teacher": dict.fromkeys(range(4), -1.0)})) == {"gauges/mixed_prompts"}


def test_a_rollout_keeps_its_first_figure_and_none_that_is_no_number() -> None:
    meters = [Meter(), Meter()]
    meters[0].note("teacher", [3, 1], [-1.0, math.nan])
    meters[0].note("teacher", [3, 1], [-2.0, -4.0])
    meters[1].note("teacher", [0], [-3.0])
    assert by_rollout(meters) == {"teacher": {3: -1.0, 1: -4.0, 0: -3.0}}


# ------------------------------------------------------------------ what the models say


def actor(name: str, kind: Any = "frozen", rate: float = 0.3) -> Bigram:
    """An actor whose models know the last token only."""
    worker = Bigram(name)
    worker.loss = replace(worker.loss, temperature=TEMPERATURE)
    worker.teaching = TeacherSettings(kind, rate, None)
    worker.teacher = None if kind == "live" else worker.teacher
    worker.views = worker.seen()
    return worker


def step_of(samples: Sequence[Sample]) -> list[Sample]:
    """The samples, every other one to be asked without its context: behind a prompt that ends with another token."""
    bare = np.asarray([7, 6], dtype=np.int32)
    return [replace(one, bare_prompt_ids=bare if one.index % 2 else None) for one in samples]


def noted(worker: Bigram, samples: Sequence[Sample], budget: int, ranks: int) -> dict[str, dict[int, float]]:
    """What is noted of one mini-batch, by so many ranks."""
    meters = []
    for plan in plan_mini_batch(samples, ranks, Packing(budget, worker.loss.denominator, worker.loss.method.pairs)):
        meters.append(Meter())
        note_bare(meters[-1], plan.bare, worker.views)
        for part, denominator in zip(plan.micro_batches, plan.denominators, strict=True):
            worker.accumulate(part, None, denominator, meters[-1], frozenset())
    return by_rollout(meters)


def logprobs_of(table: torch.Tensor, one: Sample, prompt: Any) -> torch.Tensor:
    """[T], of a response behind a prompt."""
    tokens = torch.from_numpy(one.response_ids).long()
    before = torch.cat([torch.tensor([int(prompt[-1])]), tokens[:-1]])
    return (table[before].detach() / TEMPERATURE).log_softmax(-1).gather(-1, tokens[:, None])[:, 0]


@pytest.mark.parametrize(("budget", "ranks"), [(10_000, 1), (10, 1), (40, 3)])
@pytest.mark.parametrize("kind", ["frozen", "live", "trust-region"])
@pytest.mark.parametrize("name", ["divergence", "divergence otherwise", "sampled token"])
def test_what_is_noted_are_means_over_tokens_however_the_step_is_cut(
    name: str, kind: str, budget: int, ranks: int
) -> None:
    worker = actor(name, kind)
    student = worker.student.table.detach()
    table = {"live": student}.get(kind)
    if table is None:
        table = worker.teacher.table if kind == "frozen" else 0.7 * worker.teacher.table + 0.3 * student
    samples = step_of([sample(index, batch()) for index in range(B)])
    found = noted(worker, samples, budget, ranks)
    for one in samples:
        ours = logprobs_of(student, one, one.prompt_ids)
        theirs = logprobs_of(table, one, one.teacher_prompt_ids)
        spread = (student[[int(one.prompt_ids[-1]), *one.response_ids[:-1]]] / TEMPERATURE).log_softmax(-1)
        assert found["student"][one.index] == pytest.approx(float(ours.mean()), rel=1e-5)
        assert found["entropy"][one.index] == pytest.approx(float(-(spread.exp() * spread).sum(-1).mean()), rel=1e-5)
        assert found["teacher"][one.index] == pytest.approx(float(theirs.mean()), rel=1e-5)
        assert found["gap"][one.index] == pytest.approx(float((theirs - ours).mean()), rel=1e-4, abs=1e-6)
        if one.bare_prompt_ids is not None:
            bare = logprobs_of(table, one, one.bare_prompt_ids)
            assert found["bare"][one.index] == pytest.approx(float(bare.mean()), rel=1e-5)
    assert set(found["bare"]) == set(range(1, B, 2))


def test_a_token_that_the_teacher_cannot_rate_is_left_out() -> None:
    worker = actor("divergence")
    one = sample(0, batch())
    lost = int(one.response_ids[1])
    worker.teacher = Table(worker.teacher.table.clone())
    worker.teacher.table[lost] = torch.nan  # the token after it has no distribution
    worker.views = worker.seen()
    kept = torch.from_numpy(one.response_ids[:-1].astype(np.int64) != lost)
    kept = torch.cat([torch.tensor([int(one.teacher_prompt_ids[-1]) != lost]), kept])  # type: ignore[index]
    assert 0 < int(kept.sum()) < len(kept)
    found = noted(worker, [one], 1000, 1)
    theirs = logprobs_of(worker.teacher.table, one, one.teacher_prompt_ids)[kept]
    ours = logprobs_of(worker.student.table, one, one.prompt_ids)
    assert found["teacher"][0] == pytest.approx(float(theirs.mean()), rel=1e-5)
    assert found["gap"][0] == pytest.approx(float((theirs - ours[kept]).mean()), rel=1e-5)
    assert found["student"][0] == pytest.approx(float(ours.mean()), rel=1e-5)
    worker.teacher.table[:] = torch.nan
    assert set(noted(worker, [one], 1000, 1)) >= {"student", "entropy"}
    assert not noted(worker, [one], 1000, 1)["teacher"]


@pytest.mark.parametrize("name", ["vanilla", "dpo", "simpo", "verified sft"])
def test_without_a_teacher_the_student_alone_is_noted(name: str) -> None:
    samples = [sample(index, batch()) for index in range(B)]
    assert set(noted(actor(name), samples, 1000, 2)) == {"student", "entropy"}


# ------------------------------------------------------------------ who is asked without context


def builder(kind: str | None) -> Any:
    """A builder whose prompts are as many tokens as they have messages, and one."""
    return SimpleNamespace(kind=kind, rendered=lambda view: Context(view, "", np.arange(1 + len(view.messages))))


def test_right_and_wrong_rollouts_of_few_prompts_are_asked_without_context() -> None:
    groups = [group_of([RIGHT, RIGHT, WRONG, UNKNOWN, WRONG]), group_of([WRONG] * 5), group_of([RIGHT, WRONG] * 2)]
    outcomes = [(number, outcome.reward) for number, group in enumerate(groups) for outcome in group.outcomes]
    samples = [judged(index, number, reward) for index, (number, reward) in enumerate(outcomes)]
    samples[0] = replace(samples[0], teacher_prompt_ids=None)

    def asked(count: int, first: int = 100, kind: str | None = "peers") -> list[int]:
        found = asked_bare(samples, groups, builder(kind), count, first)
        assert [one.index for one in found] == list(range(len(samples)))
        assert all(one.bare_prompt_ids is None or len(one.bare_prompt_ids) == 2 for one in found)
        return [one.index for one in found if one.bare_prompt_ids is not None]

    assert asked(5) == [1, 2, 5, 10, 11]
    assert asked(5, first=5) == [1, 2, 4]
    assert asked(100) == [index for index in range(1, 14) if index != 3]
    assert asked(5, kind="prompt") == asked(5, kind=None) == []


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("ranks", [1, 2, 5])
def test_every_rank_asks_as_often_and_every_rollout_is_asked_about_once(ranks: int, shared: bool) -> None:
    samples = step_of([sample(index, batch()) for index in range(B)])
    plans = plan_mini_batch(samples, ranks, Packing(12, lambda _: 1.0, shared=shared))
    assert len({len(plan.bare) for plan in plans}) == 1
    asked = [one for plan in plans for micro_batch in plan.bare for one in micro_batch]
    assert sorted(one.index for one in asked) == [one.index for one in samples if one.bare_prompt_ids is not None]
    assert all(one.teacher_prompt_ids is one.bare_prompt_ids for one in asked)
    assert not any(plan.bare for plan in plan_mini_batch(samples[::2], ranks, Packing(12, lambda _: 1.0)))


# ------------------------------------------------------------------ what the rollouts say

SHOWN = "one two three four five six seven eight nine ten"


def viewed(group: Group, peers: Peers) -> list[Context]:
    """The same peers for every rollout."""
    return [Context(View(group.prompt.messages, True, peers), "", None) for _ in group.rollouts]


def test_texts_are_told_apart_by_verdict() -> None:
    half = Outcome(0.5, False, "wrong")
    texts = [SHOWN, "Hmm, maybe " + SHOWN[:39], "maybe so", "one wait"]
    group = group_of([RIGHT, half, WRONG, UNKNOWN], texts, tokens=[4, 2, 3, 9])
    contexts = viewed(group, Peers(primary=SHOWN, feedback=texts[1]))
    assert text_gauges([group], contexts, 1.0) == pytest.approx(
        {
            "gauges/response_length/right": 4.0,
            "gauges/response_length/wrong": 2.5,
            "gauges/copied_ngrams/right": 1.0,
            "gauges/copied_ngrams/wrong": 1 / 4,
            "gauges/uncertainty_words/right": 0.0,
            "gauges/uncertainty_words/wrong": 1000 * 3 / 12,
        }
    )
    assert text_gauges([group], contexts, 0.5)["gauges/response_length/right"] == 3.0


def test_what_a_prompt_says_is_not_copied_and_what_nobody_was_shown_is_undefined() -> None:
    group = group_of([RIGHT, RIGHT], [SHOWN, "short"], tokens=[1, 1])
    said = replace(group, prompt=replace(group.prompt, messages=({"role": "user", "content": f"Say {SHOWN}"},)))
    parts = [{"type": "text", "text": SHOWN}, {"type": "image"}]
    pictured = replace(group, prompt=replace(group.prompt, messages=({"role": "user", "content": parts},)))
    for one in (said, pictured):
        found = text_gauges([one], viewed(one, Peers(primary=SHOWN)), 1.0)
        assert found["gauges/copied_ngrams/right"] == 0.0
    for peers in (Peers(), Peers(feedback=SHOWN)):
        assert "gauges/copied_ngrams/right" not in text_gauges([group], viewed(group, peers), 1.0)
    assert "gauges/copied_ngrams/wrong" not in text_gauges([group], viewed(group, Peers(primary=SHOWN)), 1.0)
