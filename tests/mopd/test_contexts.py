"""Teacher prompts: the published bytes, and what is shown when."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from mopd.contexts import (
    ContextSettings,
    build_view,
    sections,
    strip_thinking,
    teacher_messages,
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
    with pytest.raises(ValueError, match=r"must have text; got \[\]"):
        teacher_messages([{"role": "user", "content": []}], Peers(primary="P"), SETTINGS)


def test_images_are_kept_and_the_last_text_part_is_reprompted() -> None:
    image, caption = {"type": "image", "image": "a.png"}, {"type": "text", "text": "Figure 1:"}
    asks = {"type": "text", "text": "What is shown?", "cache": True}
    turns = ({"role": "user", "content": "first"}, {"role": "assistant", "content": "reply"})
    conversation = (*turns, {"role": "user", "content": [caption, image, asks, image]})
    assert teacher_messages(conversation, Peers(primary="P"), SETTINGS) == [
        *turns,
        {
            "role": "user",
            "content": [
                caption,
                image,
                {"type": "text", "text": f"What is shown?\nCorrect solution:\n\nP{CLOSING}", "cache": True},
                image,
            ],
        },
    ]
    assert teacher_messages(conversation, Peers(), SETTINGS) == list(conversation)
    assert conversation[-1]["content"] == [caption, image, asks, image], "the prompt itself is left alone"


def test_blocks_of_a_control_are_shown_whatever_the_switches_say() -> None:
    off = replace(
        SETTINGS,
        include_primary_solution=False,
        include_another_solution=False,
        include_failure_solution=False,
    )
    blocks = Peers("P", "A", "F", feedback="B", more=("<think>hm</think>M", " "))
    control = replace(blocks, choices=(PeerChoice("control", "r1", "x"),))
    assert asked(blocks, off) == (
        "What is 7 + 5?\nAnother successful solution:\n\nM"
        "\nThe following is feedback from your unsuccessful earlier attempt:\n\nB"
        "\n\nCorrectly solve the original question."
    )
    assert asked(control, off) == (
        "What is 7 + 5?"
        "\nCorrect solution:\n\nP"
        "\nAnother successful solution:\n\nA"
        "\nAnother successful solution:\n\nM"
        "\nA known failed solution (avoid repeating this mistake):\n\nF"
        "\n\nCorrectly solve the original question."
    )


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
        PeerChoice("summary", "r3", "z"),
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
        ("summary_item_template", "Summary: {text}", r"names \{text\}"),
        ("summary_failed_item_template", "Summary:", r"must contain \{summary_text\}"),
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
    narrow = "{prompt}{solution}{another_solution}{failure}{feedback}"
    with pytest.raises(ValueError, match=r"no place for \{solution_summaries\}.*summarize_solutions=True"):
        ContextSettings(summarize_solutions=True, reprompt_template=narrow)


def test_a_template_needs_no_place_for_what_is_never_shown() -> None:
    narrow = ContextSettings(
        include_another_solution=False,
        include_failure_solution=False,
        reprompt_template="{{q}} {prompt}{solution}{feedback} go",
    )
    assert asked(Peers(primary="P"), narrow) == "{q} What is 7 + 5?\nCorrect solution:\n\nP go"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("failure_solution_condition", "never"),
        ("summary_source", "mine"),
        ("summary_k", 0),
        ("summary_tag", "<b>"),
        ("summary_tag", ""),
    ],
)
def test_a_setting_outside_its_range_is_refused_by_its_key(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{re.escape(KEY)}.{name} must be .*{re.escape(repr(value))}"):
        ContextSettings(**{name: value})
