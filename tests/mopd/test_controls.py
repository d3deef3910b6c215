"""Matched-budget controls: what is shown instead of the method's peers, how much of it, and what is counted."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from mopd.contexts import ContextSettings, build_view, fit_view
from mopd.controls import CONTROLS, SHORT, TOPPED_UP, choose_control_peers, control_metrics, response_tokens
from mopd.peers import choose_peers, peer_metrics
from mopd.types import Group, Outcome, Peers, View
from tests.mopd.groups import PROMPT, RIGHT, UNKNOWN, WRONG, group_of, slots

SETTINGS = ContextSettings()
CLOSING = "\n\nCorrectly solve the original question."


def choose(groups: Sequence[Group], mode: str, match: str = "block", seed: int = 0, **flags: Any) -> tuple[Peers, ...]:
    settings = replace(SETTINGS, **flags)
    return choose_control_peers(groups, settings, mode, match, random.Random(seed), 1.0, policy="first")


def asked(peers: Peers, settings: ContextSettings = SETTINGS) -> str:
    return str(build_view(PROMPT.messages, peers, settings).messages[-1]["content"])


def shown(peers: Peers) -> list[str]:
    return [choice.rollout_id for choice in peers.choices]


def labels(peers: Peers) -> list[str]:
    return [choice.reason for choice in peers.choices]


# --- byte for byte ---


def test_random_peer_byte_for_byte_under_the_templates_of_the_method() -> None:
    group = group_of([WRONG, RIGHT, WRONG], ["own", "good", "<think>hm</think>bad"])
    seen = {asked(choose([group], "random_peer", seed=seed, include_another_solution=False)[0]) for seed in range(20)}
    assert seen == {
        "calc 7 + 5\nCorrect solution:\n\ngood"
        "\nA known failed solution (avoid repeating this mistake):\n\nbad"
        "\n\nCorrectly solve the original question.",
        "calc 7 + 5\nCorrect solution:\n\nbad"
        "\nA known failed solution (avoid repeating this mistake):\n\ngood"
        "\n\nCorrectly solve the original question.",
    }


def test_unrelated_prompt_byte_for_byte() -> None:
    group = group_of([WRONG, RIGHT, RIGHT, WRONG])
    other = group_of([RIGHT, RIGHT, RIGHT, WRONG], ["x", "y", "z", "w"], "v", row="8")
    peers = choose([group, other], "unrelated_prompt")[0]
    one, two, three = peers.primary, peers.another, *peers.more
    assert {one, two, three} == {"x", "y", "z"}
    assert asked(peers) == (
        f"calc 7 + 5\nCorrect solution:\n\n{one}"
        f"\nAnother successful solution:\n\n{two}"
        f"\nAnother successful solution:\n\n{three}"
        "\n\nCorrectly solve the original question."
    )


def test_success_only_byte_for_byte_with_its_top_up() -> None:
    group = group_of([WRONG, RIGHT, WRONG], ["own", "good", "bad"])
    other = group_of([RIGHT, UNKNOWN], ["<think>hm</think>else", "?"], "v", row="8")
    peers = choose([group, other], "success_only_matched")[0]
    assert asked(peers) == (
        "calc 7 + 5\nCorrect solution:\n\ngood"
        "\nAnother successful solution:\n\nelse"
        "\n\nCorrectly solve the original question."
    )
    assert [(choice.slot, choice.rollout_id, choice.reason) for choice in peers.choices] == [
        ("control", "u1", "as solution: success of the group"),
        ("control", "v0", "as another solution: topped up: success of prompt 8"),
    ]
    assert peers.fallbacks == ()


# --- which, and how many ---


def test_random_peer_is_blind_to_labels_and_keeps_the_slots() -> None:
    group = group_of([WRONG, RIGHT, RIGHT, WRONG, WRONG, UNKNOWN])
    under: dict[str, set[str]] = {"solution": set(), "another solution": set(), "failure": set()}
    for seed in range(100):
        peers = choose([group], "random_peer", seed=seed)[0]
        assert len(set(shown(peers))) == 3
        assert peers.more == ()
        for choice in peers.choices:
            under[choice.reason.removeprefix("as ").partition(":")[0]].add(choice.rollout_id)
    assert list(under.values()) == [{"u1", "u2", "u3", "u4"}] * 3
    assert labels(peers)[0].removeprefix("as solution: ") in ("success of the group", "failure of the group")


def test_the_budget_is_what_the_method_would_show() -> None:
    group = group_of([RIGHT, RIGHT, WRONG, UNKNOWN])
    other = group_of([RIGHT] * 5, uid="v", row="8")
    # u0 and u1 would see a success and the failure, u2 two successes, u3 all three; the others two successes.
    by_match = [len(shown(peers)) for peers in choose([group, other], "unrelated_prompt")]
    assert by_match == [2, 2, 2, 3, *[2] * 5]
    narrow = {"include_another_solution": False, "failure_solution_condition": "when_no_solution"}
    assert [len(shown(peers)) for peers in choose([group, other], "unrelated_prompt", **narrow)] == [1] * 9
    only_second = {"include_primary_solution": False, "include_failure_solution": False}
    peers = choose([group, other], "unrelated_prompt", **only_second)
    assert [len(shown(one)) for one in peers] == [0, 0, 1, 1, *[1] * 5]
    assert asked(peers[2], replace(SETTINGS, **only_second)).startswith("calc 7 + 5\nCorrect solution:\n\ntext ")


def test_without_a_budget_nothing_is_shown_but_feedback() -> None:
    group = group_of([WRONG, UNKNOWN])
    other = group_of([RIGHT, RIGHT], uid="v", row="8")
    for mode in CONTROLS:
        peers = choose([group, other], mode)[0]
        assert peers.choices == ()
        assert peers.fallbacks == (
            "control: no budget, as the method would show no peer"
            " (primary: no success among the 1 siblings (1 unknown);"
            " another: no success among the 1 siblings (1 unknown);"
            " failure: no failure among the 1 siblings (1 unknown))",
        )
        assert asked(peers) == (
            "calc 7 + 5\nThe following is feedback from your unsuccessful earlier attempt:\n\nwrong form" + CLOSING
        )


def test_feedback_yields_to_the_solutions_that_a_control_shows_and_to_nothing_else() -> None:
    failed = group_of([WRONG, WRONG], ["own", "bad"])
    other = group_of([RIGHT, RIGHT], ["x", "y"], "v", row="8")
    blind = asked(choose([failed], "random_peer")[0])
    assert blind == (
        "calc 7 + 5\nA known failed solution (avoid repeating this mistake):\n\nbad"
        "\nThe following is feedback from your unsuccessful earlier attempt:\n\nwrong form" + CLOSING
    )
    unrelated = choose([failed, other], "unrelated_prompt")[0]
    assert asked(unrelated) == f"calc 7 + 5\nCorrect solution:\n\n{unrelated.primary}{CLOSING}"


def test_another_occurrence_of_the_same_row_is_no_unrelated_prompt() -> None:
    groups = [group_of([RIGHT, RIGHT], uid="u"), group_of([RIGHT, RIGHT], uid="v")]
    for mode in ("unrelated_prompt", "success_only_matched"):
        assert not {i for peers in choose(groups, mode)[:2] for i in shown(peers)} & {"v0", "v1"}
    assert choose(groups, "unrelated_prompt")[0].fallbacks == ("control: short, 0 of 1 blocks",)


def test_a_budget_that_cannot_be_met_is_told() -> None:
    group = group_of([WRONG, RIGHT, RIGHT, WRONG], tokens=[5, 5, 5, 5])
    other = group_of([RIGHT], uid="v", row="8", tokens=[5])
    assert choose([group, other], "unrelated_prompt")[0].fallbacks == ("control: short, 1 of 3 blocks",)
    assert choose([group, other], "unrelated_prompt", "token")[0].fallbacks == ("control: short, 5 of 15 tokens",)
    same = group_of([WRONG, RIGHT, WRONG], ["own", "one text", "one text"])
    peers = choose([same], "random_peer")[0]
    assert len(shown(peers)) == 1
    assert peers.fallbacks == ("control: short, 1 of 2 blocks",)


# --- tokens ---


def test_random_peer_by_tokens_takes_the_nearest_sibling_for_each_block() -> None:
    group = group_of([WRONG, RIGHT, RIGHT, WRONG, WRONG], tokens=[9, 10, 40, 42, 12])
    peers = choose([group], "random_peer", "token")[0]
    # The method shows u1 (10), u2 (40) and the failure u3 (42), each its own nearest.
    assert shown(peers) == ["u1", "u2", "u3"]
    wide = group_of([WRONG, RIGHT, WRONG], tokens=[9, 10, 50])
    without = choose([wide], "random_peer", "token", failure_solution_condition="when_no_solution")[0]
    assert shown(without) == ["u1"]


def test_random_peer_by_tokens_stops_when_the_budget_is_met() -> None:
    outcomes = [WRONG, RIGHT, RIGHT, WRONG, WRONG, WRONG]
    # As read, u4 is u1 and u5 is u2: where the long ones stay, one of them is more than the budget of 3.
    texts = ["own", "a", "b", "c", "<think>long</think>a", "<think>long</think>b"]
    group = group_of(outcomes, texts, tokens=[1, 1, 1, 1, 100, 100])
    seen = {tuple(shown(choose([group], "random_peer", "token", seed)[0])) for seed in range(60)}
    assert ("u3", "u4") in seen
    assert ("u3", "u5") in seen
    assert not [ids for ids in seen if {"u4", "u5"} <= set(ids)]


@pytest.mark.parametrize(
    ("sizes", "count"),
    [
        ([30, 30, 30], 2),  # 60 exactly
        ([25, 25, 25], 2),  # 50 is nearer than 75
        ([45, 45, 45], 1),  # 45 is nearer than 90
        ([40, 40, 40], 1),  # 40 and 80 are as near: the smaller
        ([39, 39, 39], 2),  # 78 is nearer than 39
        ([200, 200], 1),  # never none
        ([10, 10, 10], 3),  # all there is
    ],
)
def test_a_token_budget_is_met_by_the_nearest_count(sizes: list[int], count: int) -> None:
    group = group_of([WRONG, RIGHT, WRONG], tokens=[7, 20, 40])
    other = group_of([RIGHT] * len(sizes), uid="v", row="8", tokens=sizes)
    peers = choose([group, other], "unrelated_prompt", "token")[0]
    assert len(shown(peers)) == count
    assert bool(peers.fallbacks) == (sum(sizes) < 60)


def test_success_only_by_tokens_tops_up_to_the_budget() -> None:
    group = group_of([WRONG, RIGHT, WRONG], tokens=[7, 20, 40])
    other = group_of([RIGHT] * 4, uid="v", row="8", tokens=[20] * 4)
    peers = choose([group, other], "success_only_matched", "token")[0]
    assert shown(peers)[0] == "u1"
    assert len(shown(peers)) == 3
    assert [TOPPED_UP in reason for reason in labels(peers)] == [False, True, True]


def test_the_size_of_a_response_may_be_counted_otherwise() -> None:
    group = group_of([WRONG, RIGHT, WRONG], tokens=[7, 20, 40])
    other = group_of([RIGHT] * 9, uid="v", row="8", tokens=[20] * 9)
    assert response_tokens(group.rollouts[1]) == 20
    sized = choose_control_peers(
        [group, other], SETTINGS, "unrelated_prompt", "token", random.Random(0), 1.0, tokens=lambda rollout: 10
    )
    assert len(shown(sized[0])) == 2


# --- properties ---

kinds = st.sampled_from([RIGHT, WRONG, UNKNOWN])
members = st.lists(st.tuples(kinds, st.sampled_from(["a", "b", "c", "d ", " "]), st.integers(0, 40)), max_size=6)


@examples(deadline=None, max_examples=300)
@given(
    st.lists(members, min_size=1, max_size=3),
    st.integers(),
    st.sampled_from(sorted(CONTROLS)),
    st.sampled_from(["block", "token"]),
    st.booleans(),
    st.booleans(),
)
def test_every_control_keeps_its_promises(
    rows: list[list[tuple[Outcome, str, int]]], seed: int, mode: str, match: str, own_too: bool, lone: bool
) -> None:
    groups = [
        group_of([o for o, _, _ in row], [t for _, t, _ in row], f"g{n}-", row=str(n // 2), tokens=[c for *_, c in row])
        for n, row in enumerate(rows)
    ]
    settings = replace(SETTINGS, dont_reprompt_on_self_success=not own_too, include_another_solution=not lone)
    made = choose_control_peers(groups, settings, mode, match, random.Random(seed), 1.0, policy="first")
    assert made == choose_control_peers(groups, settings, mode, match, random.Random(seed), 1.0, policy="first")
    references = [
        peers
        for group in groups
        for peers in choose_peers(group, settings, random.Random(seed), threshold=1.0, policy="first")
    ]
    known = {
        rollout.rollout_id: (group, rollout, outcome)
        for group in groups
        for rollout, outcome in zip(group.rollouts, group.outcomes, strict=True)
    }
    everyone = [(group, rollout) for group in groups for rollout in group.rollouts]
    for (group, rollout), peers, reference in zip(everyone, made, references, strict=True):
        blocks = shown(peers)
        texts = [known[rollout_id][1].text for rollout_id in blocks]
        assert len({text.strip() for text in texts}) == len(blocks)
        in_order = [peers.primary, peers.another, *peers.more, peers.failure]
        assert [text for text in in_order if text is not None] == texts
        for rollout_id in blocks:
            home, _, outcome = known[rollout_id]
            assert outcome is not UNKNOWN
            assert mode == "random_peer" or outcome is RIGHT
            same_prompt = home.prompt.prompt_id == group.prompt.prompt_id
            assert not same_prompt if mode == "unrelated_prompt" else (home is group or not same_prompt)
            assert home is group or mode != "random_peer"
            assert rollout_id != rollout.rollout_id or (own_too and outcome is RIGHT)
        short = any(cause.startswith(SHORT) for cause in peers.fallbacks)
        wanted = [response_tokens(known[choice.rollout_id][1]) for choice in reference.choices]
        got = [response_tokens(known[rollout_id][1]) for rollout_id in blocks]
        if not wanted:
            assert not blocks
        elif match == "block":
            assert len(blocks) + short * (len(wanted) - len(blocks)) == len(wanted)
            assert short == (len(blocks) < len(wanted))
        else:
            assert sum(got) - sum(wanted) <= max(got, default=0), "too much by a part of one block at most"
            assert not short or sum(got) < sum(wanted)
        assert peers.feedback == reference.feedback


@pytest.mark.parametrize(("mode", "match"), [("none", "block"), ("random", "block"), ("random_peer", "length")])
def test_unknown_modes_are_refused_by_their_key(mode: str, match: str) -> None:
    with pytest.raises(ValueError, match=r"self_distillation.peer_control_m\w+ must be .*; got '(none|random|length)'"):
        choose([group_of([RIGHT])], mode, match)


def test_a_control_has_no_summaries() -> None:
    peers = choose([group_of([WRONG, RIGHT, RIGHT])], "random_peer", summarize_solutions=True)[0]
    assert peers.summaries == ()
    assert set(slots(peers)) == {"control"}
    assert (len(peers.choices), peers.fallbacks) == (2, ()), "nor are they part of the budget"


def test_the_reference_follows_another_order() -> None:
    group = group_of([WRONG, RIGHT, RIGHT], tokens=[1, 10, 50])
    lone = replace(SETTINGS, include_another_solution=False, include_failure_solution=False)
    for order, expected in (([0, 1, 2], "u1"), ([0, 2, 1], "u2")):
        rng = random.Random(0)
        peers = choose_control_peers([group], lone, "random_peer", "token", rng, 1.0, policy="first", orders=[order])
        assert shown(peers[0]) == [expected]


# --- metrics ---


def test_metrics_describe_the_blocks_shown_and_nothing_else() -> None:
    group = group_of([WRONG, RIGHT, WRONG], ["own", "good", "bad"])
    other = group_of([RIGHT, UNKNOWN], ["else", "?"], "v", row="8")
    peers = choose([group, other], "success_only_matched")
    views = [build_view(PROMPT.messages, one, SETTINGS) for one in peers]
    # u0: good, else. u1 (budget: one failure): else. u2: good, else. v0 has no budget, v1 (v0): else.
    assert [shown(view.peers) for view in views] == [["u1", "v0"], ["v0"], ["u1", "v0"], [], ["v0"]]
    assert control_metrics(views, "success_only_matched") == {
        "self_distillation/peer_control_active": 1.0,
        "self_distillation/peer_control_block_total": 6.0,
        "self_distillation/peer_control_success_block_total": 6.0,
        "self_distillation/peer_control_failure_block_total": 0.0,
        "self_distillation/peer_control_blocks_per_sample": 6 / 5,
        "self_distillation/peer_control_topup_count": 3.0,
        "self_distillation/peer_control_shortfall_count": 0.0,
    }
    described = peer_metrics(views, [group, other])
    assert described["self_distillation/success_sample_fraction"] == 4 / 5
    assert described["self_distillation/another_solution_fraction"] == 2 / 5
    assert described["self_distillation/failure_solution_fraction"] == 0.0
    assert described["self_distillation/fallback_control_count"] == 1.0
    assert described["self_distillation/fallback_another_count"] == 0.0


def test_metrics_count_three_successes_failures_and_shortfalls() -> None:
    more = View((), True, choose_more())
    group = group_of([WRONG, RIGHT, WRONG])
    blind = [build_view(PROMPT.messages, one, SETTINGS) for one in choose([group], "random_peer")]
    metrics = control_metrics([more, blind[0], View((), False)], "random_peer")
    assert metrics["self_distillation/peer_control_success_block_total"] == 4.0
    assert metrics["self_distillation/peer_control_failure_block_total"] == 1.0
    assert metrics["self_distillation/peer_control_blocks_per_sample"] == 5 / 3
    short = choose([group_of([WRONG, RIGHT, RIGHT, WRONG]), group_of([RIGHT], uid="v", row="8")], "unrelated_prompt")
    view = build_view(PROMPT.messages, short[0], SETTINGS)
    assert control_metrics([view], "unrelated_prompt")["self_distillation/peer_control_shortfall_count"] == 1.0
    assert set(control_metrics([], "none").values()) == {0.0}
    assert (
        control_metrics([replace(more, usable=False)], "random_peer")["self_distillation/peer_control_block_total"] == 0
    )


def choose_more() -> Peers:
    group = group_of([WRONG, RIGHT, RIGHT, WRONG])
    other = group_of([RIGHT] * 3, ["x", "y", "z"], "v", row="8")
    return choose([group, other], "unrelated_prompt")[0]


def test_a_control_that_does_not_fit_is_not_counted() -> None:
    view = fit_view(
        PROMPT.messages, choose_more(), SETTINGS, limit=1, length=lambda _: 2, shorten=lambda text, n: text[:n]
    )
    assert not view.usable
    assert control_metrics([view], "unrelated_prompt")["self_distillation/peer_control_block_total"] == 0.0
