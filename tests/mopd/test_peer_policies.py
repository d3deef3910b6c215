"""The orders in which peers are met: policies, the published balancing, and a reference solution instead of any."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from mopd.contexts import ContextSettings, build_view
from mopd.peers import balanced_order, choose_peers, group_orders, likeness, reference_peers
from mopd.types import PeerChoice, Peers
from tests.mopd.groups import PROMPT, RIGHT, WRONG, group_of, slots

SETTINGS = ContextSettings()


def test_the_random_policy_reaches_every_sibling_and_the_seed_decides() -> None:
    group = group_of([RIGHT] * 5 + [WRONG] * 3)
    seen: dict[str, set[str]] = {"primary": set(), "another": set(), "failure": set()}
    for seed in range(100):
        peers = choose_peers(group, SETTINGS, random.Random(seed), threshold=1.0)[0]
        for slot, rollout_id in slots(peers).items():
            seen[slot].add(rollout_id)
    successes, failures = {"u1", "u2", "u3", "u4"}, {"u5", "u6", "u7"}
    assert seen == {"primary": successes, "another": successes, "failure": failures}


def test_the_first_policy_takes_the_lowest_positions() -> None:
    group = group_of([WRONG, RIGHT, WRONG, RIGHT, RIGHT])
    assert [
        slots(peers) for peers in choose_peers(group, SETTINGS, random.Random(0), threshold=1.0, policy="first")
    ] == [
        {"primary": "u1", "another": "u3", "failure": "u2"},
        {"primary": "u3", "another": "u4", "failure": "u0"},
        {"primary": "u1", "another": "u3", "failure": "u0"},
        {"primary": "u1", "another": "u4", "failure": "u0"},
        {"primary": "u1", "another": "u3", "failure": "u0"},
    ]


def test_the_first_policy_follows_another_order() -> None:
    group = group_of([RIGHT, WRONG, RIGHT, WRONG, RIGHT])
    chosen = choose_peers(group, SETTINGS, random.Random(0), threshold=1.0, policy="first", order=[3, 4, 1, 0, 2])
    assert [slots(peers) for peers in chosen] == [
        {"primary": "u4", "another": "u2", "failure": "u3"},
        {"primary": "u4", "another": "u0", "failure": "u3"},
        {"primary": "u4", "another": "u0", "failure": "u3"},
        {"primary": "u4", "another": "u0", "failure": "u1"},
        {"primary": "u0", "another": "u2", "failure": "u3"},
    ]


def test_the_shortest_policy_goes_by_length_as_read_and_the_seed_decides_between_equals() -> None:
    texts = ["own", "<think>a long thought</think>ab", "abcd", "abc", "cba", "long failure", "bad"]
    group = group_of([RIGHT] * 5 + [WRONG] * 2, texts)
    seen = set()
    for seed in range(30):
        peers = choose_peers(group, SETTINGS, random.Random(seed), threshold=1.0, policy="shortest")[0]
        assert (slots(peers)["primary"], slots(peers)["failure"]) == ("u1", "u6")
        seen.add(slots(peers)["another"])
    assert seen == {"u3", "u4"}
    assert peers.choices[0].reason == "success, shortest of 4 of the group"


def test_the_diverse_policy_takes_a_second_success_least_like_the_first() -> None:
    texts = ["own", "one two three", "One, two; THREE four", "five six", "one five six"]
    least_like = {"u1": {"u3"}, "u2": {"u3"}, "u3": {"u1", "u2"}, "u4": {"u2"}}
    group = group_of([RIGHT] * 5, texts)
    seen: dict[str, set[str]] = {}
    for seed in range(60):
        chosen = slots(choose_peers(group, SETTINGS, random.Random(seed), threshold=1.0, policy="diverse")[0])
        seen.setdefault(chosen["primary"], set()).add(chosen["another"])
    assert seen == least_like


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [("a b", "B, a!", 1.0), ("a b c", "a b d", 0.5), ("a", "b", 0.0), ("", "+", 1.0), ("", "a", 0.0)],
)
def test_likeness_is_the_share_of_common_words(one: str, other: str, expected: float) -> None:
    assert likeness(one, other) == likeness(other, one) == expected


def test_the_published_order_of_one_device() -> None:
    assert balanced_order([30, 10, 20, 40, 50], 1) == [1, 0, 4, 3, 2]
    assert balanced_order([5, 5, 5, 5], 1) == [0, 2, 3, 1]
    assert balanced_order([], 1) == []


def test_the_published_order_of_several_devices() -> None:
    assert balanced_order([40, 30, 20, 10], 2) == [3, 0, 2, 1]
    assert group_orders([3, 0, 2, 1], [2, 2]) == [[0, 1], [1, 0]]
    for lengths, ranks in (([1, 2, 3], 2), ([1], 0)):
        with pytest.raises(ValueError, match=f"{len(lengths)} samples cannot be dealt evenly to {ranks} devices"):
            balanced_order(lengths, ranks)


@examples(deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 99)] * 4), max_size=6), st.sampled_from([1, 2, 4]))
def test_balancing_moves_every_sample_once_and_shares_the_tokens(rows: list[tuple[int, ...]], ranks: int) -> None:
    lengths = [length for row in rows for length in row]
    order = balanced_order(lengths, ranks)
    assert sorted(order) == list(range(len(lengths)))
    share = len(lengths) // ranks
    loads = [sum(lengths[index] for index in order[rank * share : (rank + 1) * share]) for rank in range(ranks)]
    assert max(loads) - min(loads) <= max(lengths, default=0)
    per_group = group_orders(order, [4] * len(rows))
    assert [sorted(group) for group in per_group] == [[0, 1, 2, 3]] * len(rows)
    places = {index: place for place, index in enumerate(order)}
    for number, group in enumerate(per_group):
        assert sorted(group, key=lambda member: places[4 * number + member]) == group


def test_a_reference_solution_stands_for_a_success() -> None:
    rows = {"reference_solution": "7 + 5 = 12", "solution": "12", "index": 3}
    peers = reference_peers(replace(PROMPT, extra_info=rows))
    assert peers.choices == (PeerChoice("primary", "", "extra_info.reference_solution of the data row"),)
    view = build_view(PROMPT.messages, peers, SETTINGS)
    assert view.messages[-1]["content"] == (
        "calc 7 + 5\nCorrect solution:\n\n7 + 5 = 12\n\nCorrectly solve the original question."
    )
    assert reference_peers(replace(PROMPT, extra_info={"reference_solution": " ", "solution": "12"})).primary == "12"
    nothing = reference_peers(replace(PROMPT, extra_info={"solution": None}))
    assert nothing == Peers(fallbacks=("primary: no reference_solution or solution in extra_info of row 7",))
    assert not build_view(PROMPT.messages, nothing, SETTINGS).usable
