"""Teacher prompts fitted to a budget of tokens: what is cut, what never is, and what the publication does."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from mopd.contexts import CUT, ContextSettings, build_view, fit_view, truncate_ids, water_level
from mopd.types import Message, PeerChoice, Peers, View

SETTINGS = ContextSettings()
CLOSING = "\n\nCorrectly solve the original question."
QUESTION = ({"role": "user", "content": "What is 7 + 5?"},)


def tokens(text: str) -> list[str]:
    """A toy tokenizer that loses nothing; runs of white space merge, as they do in real ones."""
    return re.findall(r"\s+|\w+|[^\w\s]", text)


def length(messages: Sequence[Message]) -> int:
    rendered = "".join(f"<{message['role']}>{message['content']}\n" for message in messages)
    return len(tokens(rendered + "<assistant>"))


def shorten(text: str, count: int) -> str:
    return "".join(tokens(text)[:count])


def fit(peers: Peers, limit: int, prompt: Sequence[Message] = QUESTION, **flags: Any) -> Any:
    settings = replace(SETTINGS, **flags)
    return fit_view(prompt, peers, settings, limit=limit, length=length, shorten=shorten)


responses = st.none() | st.lists(st.sampled_from(["word", " ", "\n", ".", "{x}", "</think>", "42"])).map("".join)
several = st.lists(responses.map(lambda text: text or "s"), max_size=2).map(tuple)
anything = st.builds(
    Peers,
    primary=responses,
    another=responses,
    failure=responses,
    feedback=responses,
    summaries=several,
    more=several,
)


def texts_of(peers: Peers) -> list[str | None]:
    return [peers.primary, peers.another, peers.failure, peers.feedback, *peers.summaries, *peers.more]


@examples(deadline=None)
@given(anything, st.integers(0, 160), st.booleans())
def test_a_fitted_view_fits_and_leaves_all_but_the_peers_whole(peers: Peers, limit: int, feedback_too: bool) -> None:
    settings = replace(SETTINGS, environment_feedback_only_without_solution=feedback_too)
    prompt: tuple[Message, ...] = ({"role": "system", "content": "Be  brief."}, *QUESTION)
    whole = build_view(prompt, peers, settings)
    view = fit_view(prompt, peers, settings, limit=limit, length=length, shorten=shorten)
    if not whole.usable or length(whole.messages) <= limit:
        assert view == whole
        return
    if not view.usable:
        assert view.messages == prompt
        assert view.peers == Peers(fallbacks=view.peers.fallbacks)
        assert str(limit) in view.peers.fallbacks[-1]
        return
    assert length(view.messages) <= limit
    assert view.messages[:-1] == prompt[:-1]
    content = view.messages[-1]["content"]
    assert content.startswith("What is 7 + 5?\n")
    assert content.endswith(CLOSING)
    pairs = list(zip(texts_of(whole.peers), texts_of(view.peers), strict=True))
    for before, after in pairs:
        if before is None or after is None:
            assert before is after
        else:
            assert after in content or not after.strip()
            assert after == before or (after.endswith(CUT) and before.startswith(after.removesuffix(CUT)))
    cut = sum(before != after for before, after in pairs)
    assert cut > 0
    assert view.peers.fallbacks[-1].startswith(f"shortened: {cut} of ")


@examples(deadline=None)
@given(anything, st.integers(20, 160))
def test_a_view_is_given_up_only_when_one_token_of_each_peer_is_too_much(peers: Peers, limit: int) -> None:
    whole = build_view(QUESTION, peers, SETTINGS).peers

    def least(text: str | None) -> str | None:
        return None if text is None else shorten(text, 1) + (CUT if shorten(text, 1) != text else "")

    smallest = replace(
        whole,
        primary=least(whole.primary),
        another=least(whole.another),
        failure=least(whole.failure),
        feedback=least(whole.feedback),
        summaries=tuple(map(least, whole.summaries)),
        more=tuple(map(least, whole.more)),
    )
    built = build_view(QUESTION, smallest, replace(SETTINGS, remove_thinking_from_demonstration=False))
    fits = built.usable and length(built.messages) <= limit
    assert fit(peers, limit).usable or not fits


def test_the_longest_are_cut_first_and_little_is_wasted() -> None:
    long, longer, short = "w " * 200, "v " * 300, "brief . "
    view = fit(Peers(primary=long, another=longer, failure=short), 300)
    primary, another = view.peers.primary.removesuffix(CUT), view.peers.another.removesuffix(CUT)
    assert view.peers.failure == short
    assert len(tokens(primary)) == len(tokens(another))
    assert view.peers.fallbacks == (
        f"shortened: 2 of 3 peer texts cut to {len(tokens(primary))} tokens each, to fit 300",
    )
    assert 300 - 4 <= length(view.messages) <= 300


def test_one_peer_beyond_the_limit_does_not_empty_the_others() -> None:
    view = fit(Peers(primary="w " * 160, another="v " * 100, failure="u " * 90), 300)
    shown = [view.peers.primary, view.peers.another, view.peers.failure]
    assert len({len(tokens(text.removesuffix(CUT))) for text in shown}) == 1
    assert 300 - 6 <= length(view.messages) <= 300


@pytest.mark.parametrize("scale", [0, 10])
def test_a_misleading_count_of_single_texts_never_costs_the_view(scale: int) -> None:
    def misleading(messages: Sequence[Message]) -> int:
        content = messages[-1]["content"]
        return length(messages) if content.endswith(CLOSING) else scale * len(content)

    peers = Peers(primary="w " * 50, another="v " * 50, failure="u " * 50 + ".")
    view = fit_view(QUESTION, peers, SETTINGS, limit=105, length=misleading, shorten=shorten)
    assert view.usable
    assert length(view.messages) <= 105


def test_feedback_shares_the_budget() -> None:
    view = fit(Peers(primary="w " * 200, feedback="f " * 200), 150, environment_feedback_only_without_solution=False)
    assert view.peers.primary.endswith(CUT)
    assert view.peers.feedback.endswith(CUT)
    assert length(view.messages) <= 150


def test_summaries_and_further_successes_share_the_budget_and_are_marked_where_cut() -> None:
    peers = Peers(more=("m " * 100,), summaries=("short", "s " * 200), failed_summaries=(1,))
    view = fit(peers, 120)
    assert view.peers.summaries[0] == "short"
    assert view.peers.summaries[1].endswith(CUT)
    assert view.peers.more[0].endswith(CUT)
    assert f"Summary of another unsuccessful solution:\n\n{view.peers.summaries[1]}\n\n" in view.messages[-1]["content"]
    assert 120 - 4 <= length(view.messages) <= 120
    assert view.peers.fallbacks[0].startswith("shortened: 2 of 3 peer texts")


def test_a_view_that_does_not_fit_can_be_an_error() -> None:
    def view_of(peers: Peers, limit: int, truncation: Any) -> View:
        how: Any = {"length": length, "shorten": shorten, "truncation": truncation, "rollout_id": "r7"}
        return fit_view(QUESTION, peers, SETTINGS, limit=limit, **how)

    long = Peers(primary="w " * 100)
    with pytest.raises(ValueError, match=r"rollout r7 has 233 tokens, over .*max_reprompt_len=150"):
        view_of(long, 150, "error")
    assert view_of(long, 300, "error") == build_view(QUESTION, long, SETTINGS)
    assert view_of(Peers(), 1, "error") == build_view(QUESTION, Peers(), SETTINGS), "no teacher reads it"
    for side in ("right", "left"):
        assert view_of(long, 150, side) == build_view(QUESTION, long, SETTINGS)
    assert view_of(long, 150, "peers") == fit(long, 150)
    with pytest.raises(ValueError, match="reprompt_truncation must be peers or error or right or left; got 'middle'"):
        view_of(long, 300, "middle")


def test_published_truncation_keeps_one_end_of_the_tokens() -> None:
    ids = np.arange(5, dtype=np.int32)
    assert truncate_ids(ids, 2, "right").tolist() == [0, 1]
    assert truncate_ids(ids, 2, "left").tolist() == [3, 4]
    sides: tuple[Literal["right"], Literal["left"]] = ("right", "left")
    for side in sides:
        assert truncate_ids(ids, 5, side).tolist() == truncate_ids(ids, 9, side).tolist() == [0, 1, 2, 3, 4]
        assert truncate_ids(ids, 0, side).tolist() == []


def test_thinking_costs_nothing_where_it_is_stripped() -> None:
    peers = Peers(primary=f"<think>{'hm ' * 500}</think>short")
    assert fit(peers, 60) == build_view(QUESTION, peers, SETTINGS)
    assert fit(peers, 60, remove_thinking_from_demonstration=False).peers.primary.endswith(CUT)


def test_a_problem_that_fills_the_limit_is_never_cut() -> None:
    prompt = ({"role": "user", "content": "q " * 100},)
    peers = Peers(primary="P", choices=(PeerChoice("primary", "r1", "x"),), fallbacks=("another: none",))
    view = fit(peers, 100, prompt)
    assert not view.usable
    assert view.messages == prompt
    assert view.peers.choices == ()
    first, second = view.peers.fallbacks
    assert first == "another: none"
    assert re.fullmatch(r"teacher prompt: \d+ tokens even .* the limit is 100", second)


def test_few_renderings_are_enough() -> None:
    calls: list[int] = []

    def counted(messages: Sequence[Message]) -> int:
        calls.append(1)
        return length(messages)

    peers = Peers(primary="w " * 4000, another="v " * 3000, failure="u " * 2000)
    view = fit_view(QUESTION, peers, SETTINGS, limit=5000, length=counted, shorten=shorten)
    assert view.usable
    assert len(calls) <= 8


@examples(deadline=None)
@given(st.lists(st.integers(0, 50), max_size=5), st.integers(0, 200))
def test_the_water_level_is_the_largest_cap_within_the_budget(sizes: list[int], budget: int) -> None:
    def used(cap: int) -> int:
        return sum(min(size, cap) for size in sizes)

    cap = water_level(sizes, budget)
    assert used(cap) <= budget
    assert cap == max(sizes, default=0) or used(cap + 1) > budget
