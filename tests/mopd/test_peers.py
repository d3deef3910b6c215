"""Which siblings fill which slot: properties of the choice, and what the metrics count."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from mopd.contexts import ContextSettings, build_view, fit_view
from mopd.peers import POLICIES, choose_peers, peer_metrics
from mopd.types import Group, Outcome, Peers, View
from tests.mopd.groups import PROMPT, RIGHT, UNKNOWN, WRONG, group_of, slots

SETTINGS = ContextSettings()


def choose(group: Group, settings: ContextSettings = SETTINGS, policy: str = "first") -> tuple[Peers, ...]:
    return choose_peers(group, settings, random.Random(0), threshold=1.0, policy=policy)


verified = st.lists(
    st.tuples(st.sampled_from([RIGHT, WRONG, UNKNOWN]), st.sampled_from(["a", "b ", "b", "c", " "])),
    max_size=8,
).map(lambda rows: group_of([outcome for outcome, _ in rows], [text for _, text in rows]))
switches = st.builds(
    ContextSettings,
    include_primary_solution=st.booleans(),
    include_another_solution=st.booleans(),
    include_failure_solution=st.booleans(),
    failure_solution_condition=st.sampled_from(["always", "when_no_solution"]),
    include_environment_feedback=st.booleans(),
)


@examples(deadline=None)
@given(verified, switches, st.integers(), st.sampled_from(sorted(POLICIES)))
def test_every_choice_keeps_its_promises(group: Group, settings: ContextSettings, seed: int, policy: str) -> None:
    everyone = choose_peers(group, settings, random.Random(seed), threshold=1.0, policy=policy)
    outcome_of = {r.rollout_id: o for r, o in zip(group.rollouts, group.outcomes, strict=True)}
    text_of = {rollout.rollout_id: rollout.text for rollout in group.rollouts}
    assert len(everyone) == len(group.rollouts)
    for rollout, peers in zip(group.rollouts, everyone, strict=True):
        chosen = slots(peers)
        assert rollout.rollout_id not in chosen.values()
        for slot, rollout_id in chosen.items():
            assert outcome_of[rollout_id] is (WRONG if slot == "failure" else RIGHT)
            assert text_of[rollout_id].strip()
        shown = {"primary": peers.primary, "another": peers.another, "failure": peers.failure}
        assert {slot: text_of[rollout_id] for slot, rollout_id in chosen.items()} == {
            slot: text for slot, text in shown.items() if text is not None
        }
        if peers.primary is not None and peers.another is not None:
            assert peers.primary.strip() != peers.another.strip()
        wanted = {
            "primary": settings.include_primary_solution,
            "another": settings.include_another_solution,
            "failure": settings.include_failure_solution,
        }
        empty = {fallback.split(":")[0] for fallback in peers.fallbacks}
        assert not empty & chosen.keys()
        assert empty | chosen.keys() <= {slot for slot, asked in wanted.items() if asked}
        if settings.failure_solution_condition == "always":
            assert empty | chosen.keys() == {slot for slot, asked in wanted.items() if asked}


@examples(deadline=None)
@given(verified, st.integers())
def test_the_same_seed_gives_the_same_peers(group: Group, seed: int) -> None:
    first, second = (choose_peers(group, SETTINGS, random.Random(seed), threshold=1.0) for _ in range(2))
    assert first == second


def test_a_cut_response_is_neither_a_success_nor_a_failure_unless_asked() -> None:
    whole = group_of([RIGHT, RIGHT, WRONG, WRONG])
    cut = tuple(
        replace(rollout, finish_reason="length") if index in (1, 3) else rollout
        for index, rollout in enumerate(whole.rollouts)
    )
    group = replace(whole, rollouts=cut)
    peers = choose_peers(group, SETTINGS, random.Random(0), threshold=1.0)
    shown = {choice.rollout_id for own in peers for choice in own.choices}
    assert shown == {"u0", "u2"}
    asked = replace(SETTINGS, include_truncated_peers=True)
    for one, other in zip(
        *(choose_peers(of, asked, random.Random(0), threshold=1.0) for of in (group, whole)), strict=True
    ):
        assert one == other


def test_one_success_and_no_failure_is_sdpo_without_feedback() -> None:
    sdpo = ContextSettings(
        include_another_solution=False, include_failure_solution=False, include_environment_feedback=False
    )
    for seed in range(20):
        group = group_of([UNKNOWN, RIGHT, UNKNOWN])
        both = [
            [
                build_view(PROMPT.messages, peers, settings)
                for peers in choose_peers(group, settings, random.Random(seed), threshold=1.0)
            ]
            for settings in (SETTINGS, sdpo)
        ]
        assert [view.messages for view in both[0]] == [view.messages for view in both[1]]
        assert [view.usable for view in both[0]] == [view.usable for view in both[1]] == [True, False, True]


@examples(deadline=None)
@given(verified, st.integers(), st.sampled_from(sorted(POLICIES)))
def test_the_first_success_is_the_same_whatever_else_is_shown(group: Group, seed: int, policy: str) -> None:
    narrow = replace(SETTINGS, include_another_solution=False, include_failure_solution=False)
    wide, alone = (
        choose_peers(group, settings, random.Random(seed), threshold=1.0, policy=policy)
        for settings in (SETTINGS, narrow)
    )
    assert [peers.primary for peers in wide] == [peers.primary for peers in alone]


def test_reasons_and_fallbacks_are_told_in_words() -> None:
    group = group_of([RIGHT, RIGHT, RIGHT, RIGHT, UNKNOWN])
    first = choose(group, policy="random")[0]
    assert [choice.reason for choice in first.choices] == [
        "success, drawn from 3 of the group",
        "second success, drawn from 3 of the group",
    ]
    assert first.fallbacks == ("failure: no failure among the 4 siblings (1 unknown)",)
    assert choose(group)[0].choices[0].reason == "success, first of 3 of the group"
    alone = choose(group_of([RIGHT, WRONG]))[1]
    assert alone.fallbacks == (
        "another: only one distinct success",
        "failure: no failure among the 1 siblings",
    )


def test_successes_of_one_text_are_one_peer() -> None:
    peers = choose(group_of([WRONG, RIGHT, RIGHT, RIGHT], ["w", "same", " same\n", "other"]))[0]
    assert (peers.primary, peers.another) == ("same", "other")
    peers = choose(group_of([WRONG, RIGHT, RIGHT], ["w", "same", " same\n"]))[0]
    assert (peers.primary, peers.another) == ("same", None)
    assert "another: only one distinct success" in peers.fallbacks


def test_texts_are_compared_as_the_teacher_reads_them() -> None:
    texts = ["w", "<think>this way</think>same", "<think>that way</think>same", "<think>nothing said</think>"]
    group = group_of([WRONG, RIGHT, RIGHT, RIGHT], texts)
    assert slots(choose(group)[0]) == {"primary": "u1"}
    kept = replace(SETTINGS, remove_thinking_from_demonstration=False)
    assert slots(choose(group, kept)[0]) == {"primary": "u1", "another": "u2"}


def test_a_success_may_be_its_own_demonstration_only_when_asked() -> None:
    group = group_of([RIGHT, WRONG])
    assert choose(group)[0].primary is None
    own = replace(SETTINGS, dont_reprompt_on_self_success=False)
    assert slots(choose(group, own)[0]) == {"primary": "u0", "failure": "u1"}
    assert slots(choose(group, own)[1]) == {"primary": "u0"}, "a failure never sees itself"


def test_the_threshold_divides_partial_rewards() -> None:
    half = Outcome(0.5, False, "wrong", "half of it")
    group = group_of([WRONG, half])
    strict = choose_peers(group, SETTINGS, random.Random(0), threshold=1.0)[0]
    lenient = choose_peers(group, SETTINGS, random.Random(0), threshold=0.5)[0]
    assert (strict.primary, strict.failure) == (None, "text 1")
    assert (lenient.primary, lenient.failure) == ("text 1", None)


def test_an_unknown_status_outweighs_a_reward() -> None:
    cut = [Outcome(1.0, None, "unknown", "cut"), Outcome(0.0, None, "unknown", "cut")]
    assert slots(choose(group_of([WRONG, *cut]))[0]) == {}


def test_a_slot_that_is_not_wanted_is_neither_filled_nor_missed() -> None:
    settings = replace(SETTINGS, include_another_solution=False, include_failure_solution=False)
    peers = choose(group_of([RIGHT, RIGHT, RIGHT, WRONG]), settings)[0]
    assert slots(peers) == {"primary": "u1"}
    assert peers.fallbacks == ()
    peers = choose(group_of([WRONG, WRONG]), settings)[0]
    assert peers.fallbacks == ("primary: no success among the 1 siblings",)


def test_a_failure_when_no_solution_needs_the_absence_of_any_success() -> None:
    settings = replace(SETTINGS, failure_solution_condition="when_no_solution")
    with_success, without = group_of([WRONG, WRONG, RIGHT]), group_of([WRONG, WRONG, UNKNOWN])
    assert slots(choose(with_success, settings)[0]) == {"primary": "u2"}
    assert slots(choose(without, settings)[0]) == {"failure": "u1"}
    hidden = replace(settings, include_primary_solution=False, include_another_solution=False)
    assert slots(choose(with_success, hidden)[0]) == {}


def test_another_is_always_a_second_success() -> None:
    settings = replace(SETTINGS, include_primary_solution=False, include_failure_solution=False)
    assert slots(choose(group_of([WRONG, RIGHT, RIGHT]), settings)[0]) == {"another": "u2"}
    assert slots(choose(group_of([WRONG, RIGHT]), settings)[0]) == {}


def test_feedback_is_that_of_the_failed_rollout_itself() -> None:
    outcomes = [
        Outcome.of(False, "too long"),
        Outcome.of(False, " \n"),
        Outcome.of(True, "well done"),
        UNKNOWN,
    ]
    assert [peers.feedback for peers in choose(group_of(outcomes))] == ["too long", None, None, None]
    silent = replace(SETTINGS, include_environment_feedback=False)
    assert [peers.feedback for peers in choose(group_of(outcomes), silent)] == [None] * 4


def test_one_row_twice_in_a_step_is_two_groups_that_never_mix() -> None:
    once, twice = group_of([RIGHT, WRONG, RIGHT], uid="a"), group_of([RIGHT, WRONG, RIGHT], uid="b")
    assert once.prompt.prompt_id == twice.prompt.prompt_id
    rng = random.Random(3)
    for group in (once, twice):
        everyone = choose_peers(group, SETTINGS, rng, threshold=1.0)
        chosen = {rollout_id for peers in everyone for rollout_id in slots(peers).values()}
        assert chosen == {rollout.rollout_id for rollout in group.rollouts}


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'randum'.*diverse, first, random, shortest.*'random'"):
        choose(group_of([RIGHT]), policy="randum")
    unverified = replace(group_of([RIGHT, RIGHT]), outcomes=())
    with pytest.raises(ValueError, match="group u has 2 rollouts and 0 outcomes"):
        choose(unverified)
    for order in ([0], [0, 0], [1, 2]):
        with pytest.raises(ValueError, match="each of 2 positions of group u"):
            choose_peers(group_of([RIGHT, RIGHT]), SETTINGS, random.Random(0), threshold=1.0, order=order)


def views_of(group: Group, settings: ContextSettings) -> list[View]:
    return [build_view(group.prompt.messages, peers, settings) for peers in choose(group, settings)]


def test_metrics_count_what_the_views_show() -> None:
    mixed, failed = group_of([RIGHT, RIGHT, WRONG, UNKNOWN]), group_of([WRONG, Outcome.of(False)], uid="f")
    views = [*views_of(mixed, SETTINGS), *views_of(failed, SETTINGS)]
    assert peer_metrics(views, [mixed, failed]) == {
        "self_distillation/success_group_fraction": 1 / 2,
        "self_distillation/success_sample_fraction": 4 / 6,
        "self_distillation/another_solution_fraction": 2 / 6,
        "self_distillation/failure_solution_fraction": 5 / 6,
        "self_distillation/feedback_available_fraction": 2 / 6,
        "self_distillation/feedback_used_fraction": 1 / 6,
        "self_distillation/reprompt_sample_fraction": 6 / 6,
        "self_distillation/fallback_primary_count": 2.0,
        "self_distillation/fallback_another_count": 4.0,
        "self_distillation/fallback_failure_count": 1.0,
        "self_distillation/fallback_summary_count": 0.0,
        "self_distillation/fallback_control_count": 0.0,
        "self_distillation/fallback_shortened_count": 0.0,
        "self_distillation/fallback_teacher_prompt_count": 0.0,
    }


def test_metrics_do_not_count_what_did_not_fit() -> None:
    group = group_of([RIGHT, RIGHT, WRONG])
    views = [
        fit_view(PROMPT.messages, peers, SETTINGS, limit=1, length=lambda _: 2, shorten=lambda text, n: text[:n])
        for peers in choose(group)
    ]
    shown = peer_metrics(views, [group])
    assert shown["self_distillation/success_group_fraction"] == 1.0
    assert shown["self_distillation/fallback_teacher_prompt_count"] == 3.0
    assert shown["self_distillation/fallback_another_count"] == 2.0, "what was missed is told of unusable views too"
    assert shown["self_distillation/feedback_available_fraction"] == 1 / 3
    for name in (
        "success_sample",
        "another_solution",
        "failure_solution",
        "feedback_used",
        "reprompt_sample",
    ):
        assert shown[f"self_distillation/{name}_fraction"] == 0.0


def test_peers_of_an_unusable_view_are_not_counted() -> None:
    group = group_of([RIGHT])
    metrics = peer_metrics([View(PROMPT.messages, False, Peers("P", "A", "F", "B"))], [group])
    assert {name for name, value in metrics.items() if value} == {"self_distillation/success_group_fraction"}


def test_metrics_use_the_threshold_and_refuse_a_view_too_few() -> None:
    group = group_of([Outcome(0.5, False, "wrong"), WRONG])
    views = views_of(group, SETTINGS)
    name = "self_distillation/success_group_fraction"
    assert peer_metrics(views, [group])[name] == 0.0
    assert peer_metrics(views, [group], threshold=0.5)[name] == 1.0
    assert peer_metrics([], [])[name] == 0.0
    with pytest.raises(ValueError, match="got 1 views of 2 outcomes"):
        peer_metrics(views[:1], [group])
