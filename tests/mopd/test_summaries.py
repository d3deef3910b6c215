"""Summaries of siblings: which, of what text, how they read, and what is counted."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from mopd.contexts import KEY, ContextSettings, build_view, teacher_messages
from mopd.peers import choose_peers
from mopd.summaries import summary_conflicts, summary_metrics, summary_of, tagged_summary, with_summary_instruction
from mopd.types import Group, Message, Outcome, PeerChoice, Peers
from tests.mopd.groups import PROMPT, RIGHT, UNKNOWN, WRONG, group_of, slots

SETTINGS = ContextSettings(include_another_solution=False, include_failure_solution=False, summarize_solutions=True)
INSTRUCTION = (
    "\n\nAfter your answer, briefly summarize your key approach in one sentence inside <summary> tags,"
    " e.g. <summary>...</summary>."
)


def choose(group: Group, seed: int = 0, policy: str = "first", **flags: Any) -> tuple[Peers, ...]:
    settings = replace(SETTINGS, **flags)
    return choose_peers(group, settings, random.Random(seed), threshold=1.0, policy=policy)


def summarized(peers: Peers) -> list[str]:
    return [choice.rollout_id for choice in peers.choices if choice.slot == "summary"]


def test_summaries_byte_for_byte() -> None:
    peers = Peers(primary="P", summaries=("adds", "guesses"), failed_summaries=(1,))
    (message,) = teacher_messages(PROMPT.messages, peers, SETTINGS)
    assert message["content"] == (
        "calc 7 + 5"
        "\nCorrect solution:\n\nP"
        "\nSummary of another successful solution:\n\nadds\n\n"
        "\nSummary of another unsuccessful solution:\n\nguesses\n\n"
        "\n\nCorrectly solve the original question."
    )
    (message,) = teacher_messages(PROMPT.messages, Peers(summaries=("adds", " \n")), SETTINGS)
    assert message["content"] == (
        "calc 7 + 5\nSummary of another successful solution:\n\nadds\n\n\n\nCorrectly solve the original question."
    )


def test_a_group_from_rollouts_to_the_teachers_prompt_byte_for_byte() -> None:
    group = group_of([WRONG, RIGHT, RIGHT], ["no", "yes <summary>one</summary>", "yes! <summary> two </summary>"])
    messages = [build_view(group.prompt.messages, peers, SETTINGS).messages[-1]["content"] for peers in choose(group)]
    assert messages[0] == (
        "calc 7 + 5"
        "\nCorrect solution:\n\nyes <summary>one</summary>"
        "\nSummary of another successful solution:\n\ntwo\n\n"
        "\n\nCorrectly solve the original question."
    )
    assert INSTRUCTION not in messages[0], "the teacher is not asked to summarize"


def test_the_student_alone_is_asked_and_only_in_its_last_turn() -> None:
    assert ContextSettings().summary_instruction == INSTRUCTION
    turns: tuple[Message, ...] = (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "reply"},
        {"role": "user", "content": "second", "name": "ann"},
    )
    asked = with_summary_instruction(turns, INSTRUCTION)
    assert asked == [*turns[:-1], {"role": "user", "content": "second" + INSTRUCTION, "name": "ann"}]
    assert turns[-1]["content"] == "second", "the prompt itself is left alone"
    image = {"type": "image", "image": "a.png"}
    parts = [{"role": "user", "content": [{"type": "text", "text": "q"}, image]}]
    assert with_summary_instruction(parts, "!") == [
        {"role": "user", "content": [{"type": "text", "text": "q!"}, image]}
    ]
    prefilled = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    assert with_summary_instruction(prefilled, "!") == [{"role": "user", "content": "q!"}, prefilled[1]]
    with pytest.raises(ValueError, match=r"must have a user message; got roles \['system'\]"):
        with_summary_instruction(turns[:1], INSTRUCTION)


@pytest.mark.parametrize(
    ("text", "tagged"),
    [
        ("a <summary> one\nline </summary> b <summary>two</summary>", "one\nline"),
        ("<think><summary>thought</summary></think><summary>said</summary>", "said"),
        ("<summary> </summary><summary>late</summary>", None),
        ("<summary>open", None),
        ("closed</summary>", None),
        ("</summary> a <summary>b</summary>", "b"),
        ("<Summary>b</Summary>", None),
    ],
)
def test_the_first_tag_of_what_is_said_counts(text: str, tagged: str | None) -> None:
    assert tagged_summary(text, SETTINGS) == tagged


def test_without_a_tag_the_beginning_is_shown() -> None:
    assert summary_of("<think>hm</think>" + "x" * 299 + "yz", SETTINGS) == "x" * 299 + "y"
    kept = replace(SETTINGS, remove_thinking_from_demonstration=False)
    assert summary_of("<think>hm</think>" + "x" * 299, kept) == "<think>hm</think>" + "x" * 283
    other = replace(SETTINGS, summary_tag="gist")
    assert summary_of("a <gist>b</gist> <summary>c</summary>", other) == "b"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({}, [{"u2", "u5"}, {"u5"}, {"u5"}, {"u2", "u5"}, {"u2", "u5"}, {"u2"}]),
        ({"summary_source": "failure"}, [{"u3"}, {"u0", "u3"}, {"u0", "u3"}, {"u0"}, {"u0", "u3"}, {"u0", "u3"}]),
        (
            {"summary_source": "all"},
            [
                {"u2", "u3", "u5"},
                {"u0", "u3", "u5"},
                {"u0", "u3", "u5"},
                {"u0", "u2", "u5"},
                {"u0", "u2", "u3", "u5"},
                {"u0", "u2", "u3"},
            ],
        ),
        (
            {"dont_reprompt_on_self_success": False},
            [{"u2", "u5"}] * 6,
        ),
    ],
)
def test_the_pool_is_without_the_rollout_itself_its_primary_and_the_unknown(
    flags: dict[str, Any], expected: list[set[str]]
) -> None:
    group = group_of([WRONG, RIGHT, RIGHT, WRONG, UNKNOWN, RIGHT])
    # The primary peer is u1, and u2 for u1 itself; a rollout that may see itself has u1 too.
    assert [set(summarized(peers)) for peers in choose(group, summary_k=9, **flags)] == expected
    hidden = choose(group, summary_k=9, include_primary_solution=False, **flags)
    assert [set(summarized(peers)) for peers in hidden] == expected, "set aside even where it is not shown"
    if flags.get("summary_source") == "all":
        both = choose(group, summary_k=9, summary_from_all=True)
        assert [set(summarized(peers)) for peers in both] == expected


def test_at_most_k_are_drawn_by_the_seed_and_every_one_can_be() -> None:
    group = group_of([WRONG, *[RIGHT] * 5])
    seen = set()
    for seed in range(60):
        drawn = summarized(choose(group, seed, summary_k=2)[0])
        assert len(drawn) == 2
        seen.add(tuple(drawn))
    assert {rollout_id for drawn in seen for rollout_id in drawn} == {"u2", "u3", "u4", "u5"}
    assert choose(group, 3, summary_k=2) == choose(group, 3, summary_k=2)


def test_summaries_of_one_text_are_one() -> None:
    texts = ["w", "p", *(f"{index} <summary>same</summary>" for index in range(3))]
    peers = choose(group_of([WRONG, *[RIGHT] * 4], texts), summary_k=9)[0]
    assert peers.summaries == ("same",)


def test_choices_say_where_the_text_is_from_and_a_lack_is_told() -> None:
    texts = ["bad", "p", "x <summary>s</summary>", "y"]
    peers = choose(group_of([WRONG, RIGHT, RIGHT, WRONG], texts), summary_k=2, summary_source="all")[0]
    reasons = {choice.rollout_id: choice for choice in peers.choices}
    assert reasons["u2"] == PeerChoice("summary", "u2", "success, drawn from 2 of the group; its <summary>")
    assert reasons["u3"] == PeerChoice(
        "summary", "u3", "failure, drawn from 2 of the group; no <summary>, so its beginning"
    )
    assert dict(zip(peers.summaries, summarized(peers), strict=True)) == {"s": "u2", "y": "u3"}
    assert [peers.summaries[index] for index in peers.failed_summaries] == ["y"]
    alone = choose(group_of([WRONG, RIGHT]))[0]
    assert (alone.summaries, alone.fallbacks) == ((), ("summary: nothing to summarize among 0 siblings",))


def test_nothing_is_drawn_where_summaries_are_off() -> None:
    group = group_of([WRONG, RIGHT, RIGHT])
    peers = choose(group, summarize_solutions=False)[0]
    assert (slots(peers), peers.summaries, peers.fallbacks) == ({"primary": "u1"}, (), ())


@examples(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([RIGHT, WRONG, UNKNOWN]), st.sampled_from("abc ")), max_size=8),
    st.integers(),
    st.sampled_from(["success", "failure", "all"]),
    st.integers(1, 4),
    st.booleans(),
)
def test_every_summary_keeps_its_promises(
    rows: Sequence[tuple[Outcome, str]], seed: int, source: Any, most: int, own_too: bool
) -> None:
    group = group_of([outcome for outcome, _ in rows], [text for _, text in rows])
    outcome_of = {r.rollout_id: o for r, o in zip(group.rollouts, group.outcomes, strict=True)}
    flags: dict[str, Any] = {"summary_source": source, "summary_k": most, "dont_reprompt_on_self_success": not own_too}
    everyone = choose(group, seed, "random", **flags)
    assert everyone == choose(group, seed, "random", **flags)
    for rollout, peers in zip(group.rollouts, everyone, strict=True):
        drawn = summarized(peers)
        assert len(drawn) == len(set(drawn)) == len(peers.summaries) == len(set(peers.summaries)) <= most
        assert own_too or rollout.rollout_id not in drawn
        allowed = {"success": [RIGHT], "failure": [WRONG], "all": [RIGHT, WRONG]}[source]
        assert all(outcome_of[rollout_id] in allowed for rollout_id in drawn)
        assert all(text.strip() for text in peers.summaries)
        failed = {index for index, rollout_id in enumerate(drawn) if outcome_of[rollout_id] is WRONG}
        assert set(peers.failed_summaries) == failed


def test_contradictions_are_told_together_and_by_key() -> None:
    assert summary_conflicts(ContextSettings()) == summary_conflicts(SETTINGS) == []
    assert summary_conflicts(ContextSettings(), "random_peer") == []
    bad = ContextSettings(summarize_solutions=True, summary_tag="gist")
    found = summary_conflicts(bad, "random_peer")
    for wanted, conflict in zip(
        ["include_another_solution=true", "include_failure_solution=true", "peer_control_mode=random_peer", "<gist>"],
        found,
        strict=True,
    ):
        assert wanted in conflict
        assert conflict.startswith(KEY)


def test_metrics_count_what_the_views_show() -> None:
    texts = ["w", "p <summary>primary</summary>", "x <summary>s</summary>", "y", "u"]
    group = group_of([WRONG, RIGHT, RIGHT, WRONG, UNKNOWN], texts)
    settings = replace(SETTINGS, summary_source="all", summary_k=9)
    views = [build_view(PROMPT.messages, peers, settings) for peers in choose(group, summary_source="all", summary_k=9)]
    # u0 sees u2, u3; u1 (whose primary is u2) u0, u3; u2 u0, u3; u3 u0, u2; u4 u0, u2, u3
    assert [set(summarized(view.peers)) for view in views] == [
        {"u2", "u3"},
        {"u0", "u3"},
        {"u0", "u3"},
        {"u0", "u2"},
        {"u0", "u2", "u3"},
    ]
    expected = {
        "summary_sample_fraction": 1.0,
        "summary_candidate_count": 4.0,
        "summary_tag_available_count": 2.0,
        "summary_sampled_total_count": 11.0,
        "summary_sampled_success_count": 3.0,
        "summary_sampled_failure_count": 8.0,
        "summary_sampled_with_tag_count": 3.0,
        "summary_sampled_fallback_count": 8.0,
        "summary_sampled_success_fraction": 3 / 11,
        "summary_sampled_failure_fraction": 8 / 11,
        "summary_sampled_with_tag_fraction": 3 / 11,
        "summary_sampled_fallback_fraction": 8 / 11,
    }
    prefixed = {f"self_distillation/{name}": value for name, value in expected.items()}
    assert summary_metrics(views, [group], settings, threshold=1.0) == prefixed
    unusable = [replace(view, usable=False) for view in views]
    hidden = summary_metrics(unusable, [group], settings, threshold=1.0)
    assert hidden["self_distillation/summary_sampled_total_count"] == 0.0
    assert hidden["self_distillation/summary_sample_fraction"] == 0.0
    assert hidden["self_distillation/summary_candidate_count"] == 4.0
    with pytest.raises(ValueError, match="zip"):
        summary_metrics(views[:2], [group], settings, threshold=1.0)
