"""Teacher prompts: the published bytes, what is shown when, and fitting them to a token budget."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from mopd.contexts import (
    CUT,
    ContextSettings,
    build_view,
    fit_view,
    sections,
    strip_thinking,
    teacher_messages,
    water_level,
)
from mopd.types import Message, PeerChoice, Peers

SETTINGS = ContextSettings()
CLOSING = "\n\nCorrectly solve the original question."
QUESTION = ({"role": "user", "content": "What is 7 + 5?"},)
KEY = "actor_rollout_ref.actor.self_distillation"


def asked(peers: Peers, settings: ContextSettings = SETTINGS) -> str:
    """The teacher's user message for `QUESTION`."""
    (message,) = teacher_messages(QUESTION, peers, settings)
    return str(message["content"])


def test_two_successes_and_a_failure_byte_for_byte() -> None:
    assert asked(Peers(primary="P", another="A", failure="F", feedback="B")) == (
        "What is 7 + 5?"
        "\nCorrect solution:\n\nP"
        "\nAnother successful solution:\n\nA"
        "\nA known failed solution (avoid repeating this mistake):\n\nF"
        "\n\nCorrectly solve the original question."
    )


def test_one_success_byte_for_byte() -> None:
    assert asked(Peers(primary="P")) == (
        "What is 7 + 5?\nCorrect solution:\n\nP\n\nCorrectly solve the original question."
    )


def test_a_failure_alone_byte_for_byte() -> None:
    assert asked(Peers(failure="F")) == (
        "What is 7 + 5?\nA known failed solution (avoid repeating this mistake):\n\nF"
        "\n\nCorrectly solve the original question."
    )


def test_feedback_byte_for_byte() -> None:
    assert asked(Peers(feedback="B")) == (
        "What is 7 + 5?\nThe following is feedback from your unsuccessful earlier attempt:\n\nB"
        "\n\nCorrectly solve the original question."
    )


def test_without_peers_the_conversation_comes_back_and_teaches_nothing() -> None:
    conversation = ({"role": "system", "content": "Be brief."}, *QUESTION)
    for nothing in (Peers(), Peers(primary=" \n", feedback="\t"), Peers(failure="<think>hm</think>")):
        assert teacher_messages(conversation, nothing, SETTINGS) == list(conversation)
        assert build_view(conversation, nothing, SETTINGS).usable is False


def test_earlier_turns_and_other_keys_of_the_last_message_are_kept() -> None:
    conversation: tuple[Message, ...] = (
        {"role": "system", "content": " \nsystem {prompt}"},
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "<think>kept</think>reply"},
        {"role": "user", "content": "second", "name": "ann"},
    )
    messages = teacher_messages(conversation, Peers(primary="P"), SETTINGS)
    assert messages[:-1] == list(conversation[:-1])
    assert messages[-1] == {
        "role": "user",
        "content": f"second\nCorrect solution:\n\nP{CLOSING}",
        "name": "ann",
    }


def test_braces_in_problem_and_peers_are_shown_literally() -> None:
    strange = "{prompt} {0} {{x}} {unknown!r} }{"
    shown = asked(Peers(primary=strange, failure=strange, summaries=(strange,)))
    assert shown.count(strange) == 3
    (message,) = teacher_messages([{"role": "user", "content": strange}], Peers(primary="P"), SETTINGS)
    assert message["content"] == f"{strange}\nCorrect solution:\n\nP{CLOSING}"


def test_a_prompt_must_end_with_a_users_text() -> None:
    for bad in ([], [{"role": "assistant", "content": "hi"}]):
        with pytest.raises(ValueError, match="must end with a user message"):
            teacher_messages(bad, Peers(), SETTINGS)
    with pytest.raises(ValueError, match="must be text; got list"):
        teacher_messages([{"role": "user", "content": []}], Peers(primary="P"), SETTINGS)


def test_feedback_and_conditional_failure_yield_to_a_shown_solution() -> None:
    full = Peers(primary="P", another="A", failure="F", feedback="B")
    settings = replace(SETTINGS, failure_solution_condition="when_no_solution")
    assert {name for name, text in sections(full, settings).items() if text} == {
        "solution",
        "another_solution",
    }
    hidden = replace(settings, include_primary_solution=False)
    assert {name for name, text in sections(full, hidden).items() if text} == {
        "another_solution",
        "failure",
        "feedback",
    }
    always = replace(SETTINGS, environment_feedback_only_without_solution=False)
    assert sections(full, always)["feedback"].endswith("\n\nB")
    silent = replace(always, include_environment_feedback=False)
    assert sections(full, silent)["feedback"] == ""


def test_thinking_is_stripped_from_every_peer_or_from_none() -> None:
    thinking = "<think>a\nb</think>\n\n said <think>c</think>more"
    peers = Peers(primary=thinking, another=thinking + "!", failure=thinking + "?")
    assert build_view(QUESTION, peers, SETTINGS).peers == Peers("said more", "said more!", "said more?")
    whole = replace(SETTINGS, remove_thinking_from_demonstration=False)
    assert build_view(QUESTION, peers, whole).peers == peers


@examples(deadline=None)
@given(st.lists(st.sampled_from(["<think>", "</think>", "x", " ", "\n", "<"])).map("".join))
def test_strip_thinking_matches_the_published_expression(text: str) -> None:
    assert strip_thinking(text) == re.sub(r"<think>.*?</think>\s*", "", text, flags=re.DOTALL)


def test_strip_thinking_takes_linear_time() -> None:
    hostile = "<think></think>" * 50_000 + "<think>" * 150_000
    start = time.process_time()
    assert strip_thinking(hostile) == "<think>" * 150_000
    assert time.process_time() - start < 2.0


def test_a_view_keeps_only_what_it_shows() -> None:
    choices = (
        PeerChoice("primary", "r1", "x"),
        PeerChoice("failure", "r2", "y"),
        PeerChoice("control", "r3", "z"),
    )
    peers = Peers(primary="P", failure="F", feedback="B", choices=choices, fallbacks=("another: none",))
    view = build_view(QUESTION, peers, replace(SETTINGS, include_failure_solution=False))
    assert view.peers == Peers(primary="P", choices=(choices[0], choices[2]), fallbacks=("another: none",))


@pytest.mark.parametrize(
    ("name", "template", "complaint"),
    [
        ("reprompt_template", "{solution}{another_solution}{failure}{feedback}", r"must contain \{prompt\}"),
        ("reprompt_template", "{prompt}{solution}{another_solution}{failure}", r"no place for \{feedback\}"),
        ("reprompt_template", "{prompt}{solution}{another_solution}{failure}{feedback}{x}", r"names \{x\}"),
        ("solution_template", "Correct solution:", r"must contain \{successful_previous_attempt\}"),
        (
            "another_solution_template",
            "{successful_previous_attempt}",
            r"names \{successful_previous_attempt\}",
        ),
        ("failure_solution_template", "{failed_attempt!r}", r"names \{failed_attempt!r\}"),
        ("failure_solution_template", "{failed_attempt:>9}", r"names \{failed_attempt:>9\}"),
        ("feedback_template", "{feedback_raw}{}", r"names \{\}"),
        ("feedback_template", "{feedback_raw", "cannot be read"),
    ],
)
def test_a_template_that_cannot_be_filled_is_refused_by_its_key(name: str, template: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=f"{re.escape(KEY)}.{name}.*{complaint}"):
        ContextSettings(**{name: template})  # type: ignore[arg-type]


def test_a_template_needs_no_place_for_what_is_never_shown() -> None:
    narrow = ContextSettings(
        include_another_solution=False,
        include_failure_solution=False,
        reprompt_template="{{q}} {prompt}{solution}{feedback} go",
    )
    assert asked(Peers(primary="P"), narrow) == "{q} What is 7 + 5?\nCorrect solution:\n\nP go"


def test_an_unknown_condition_is_refused() -> None:
    with pytest.raises(ValueError, match=f"{re.escape(KEY)}.failure_solution_condition.*'never'"):
        ContextSettings(failure_solution_condition="never")  # type: ignore[arg-type]


# --- fitting: a budget of tokens ---


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
anything = st.builds(
    Peers, primary=responses, another=responses, failure=responses, feedback=responses, summaries=st.just(())
)


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
    pairs = [
        (whole.peers.primary, view.peers.primary),
        (whole.peers.another, view.peers.another),
        (whole.peers.failure, view.peers.failure),
        (whole.peers.feedback, view.peers.feedback),
    ]
    for before, after in pairs:
        if before is None or after is None:
            assert before is after
        else:
            assert after in content
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
