"""From peers to the messages that the teacher sees (paper section 3; templates byte for byte as published).

`build_view` shows the peers as they are; `fit_view` shortens them, and only them, to a token budget. The
publication instead cuts off the end of the rendered prompt, and with it the closing instruction.
"""

from __future__ import annotations

import dataclasses
import re
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from mopd.types import Message, Peers, View

THINKING = re.compile(r"<think>.*?</think>\s*", re.DOTALL)
CUT = "\n[... shortened ...]"
"""Marks the place where a peer was cut."""
KEY = "actor_rollout_ref.actor.self_distillation"
"""Where users set what `ContextSettings` holds."""
SECTION_FIELDS = {
    "include_primary_solution": "solution",
    "include_another_solution": "another_solution",
    "include_failure_solution": "failure",
    "include_environment_feedback": "feedback",
}
"""A flag, and the field of the re-prompt template that it fills."""
TEMPLATE_FIELDS = {
    "reprompt_template": ("prompt", "solution_summaries", *SECTION_FIELDS.values()),
    "solution_template": ("successful_previous_attempt",),
    "another_solution_template": ("another_successful_attempt",),
    "failure_solution_template": ("failed_attempt",),
    "feedback_template": ("feedback_raw",),
}
"""The fields that a template may name; the first one it must."""


@dataclass(frozen=True)
class ContextSettings:
    """The published switches and templates; the defaults are the method MOPD (two successes, one failure).

    Raises:
        ValueError: a template lacks a field it needs or names an unknown one; the message names the key.
    """

    include_primary_solution: bool = True
    include_another_solution: bool = True
    include_failure_solution: bool = True
    failure_solution_condition: Literal["when_no_solution", "always"] = "always"
    """`when_no_solution` shows the failed peer only where no successful one can be shown."""
    include_environment_feedback: bool = True
    environment_feedback_only_without_solution: bool = True
    dont_reprompt_on_self_success: bool = True
    """A successful rollout is never its own demonstration."""
    remove_thinking_from_demonstration: bool = True
    """Strips `<think>...</think>` from every peer, failed ones included."""
    reprompt_template: str = (
        "{prompt}{solution}{solution_summaries}{another_solution}{failure}{feedback}"
        "\n\nCorrectly solve the original question."
    )
    solution_template: str = "\nCorrect solution:\n\n{successful_previous_attempt}"
    another_solution_template: str = "\nAnother successful solution:\n\n{another_successful_attempt}"
    failure_solution_template: str = "\nA known failed solution (avoid repeating this mistake):\n\n{failed_attempt}"
    feedback_template: str = "\nThe following is feedback from your unsuccessful earlier attempt:\n\n{feedback_raw}"

    def __post_init__(self) -> None:
        """Refuses what could not be shown as asked."""
        if self.failure_solution_condition not in ("when_no_solution", "always"):
            raise ValueError(
                f"{KEY}.failure_solution_condition must be when_no_solution or always;"
                f" got {self.failure_solution_condition!r}"
            )
        values = dataclasses.asdict(self)
        for name, known in TEMPLATE_FIELDS.items():
            _check_template(name, values[name], known)
        placed = _fields("reprompt_template", self.reprompt_template)
        for flag, section in SECTION_FIELDS.items():
            if values[flag] and section not in placed:
                raise ValueError(
                    f"{KEY}.reprompt_template has no place for {{{section}}}, which {flag}=True asks for;"
                    f" add {{{section}}} to it or set {KEY}.{flag}=False; got {self.reprompt_template!r}"
                )


def _fields(name: str, template: str) -> list[str]:
    """The fields as written in `template`, with conversion and format, which no known field has."""
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(
            f"{KEY}.{name} cannot be read ({error}); write a literal brace twice; got {template!r}"
        ) from error
    return [
        field + (f"!{conversion}" if conversion else "") + (f":{form}" if form else "")
        for _, field, form, conversion in parsed
        if field is not None
    ]


def _check_template(name: str, template: str, known: tuple[str, ...]) -> None:
    """Refuses a template without its own field or with an unknown one."""
    found = _fields(name, template)
    unknown = sorted(set(found) - set(known))
    if unknown:
        raise ValueError(
            f"{KEY}.{name} names {', '.join(f'{{{field}}}' for field in unknown)}; it may name only"
            f" {', '.join(f'{{{field}}}' for field in known)} (write a literal brace twice); got {template!r}"
        )
    if known[0] not in found:
        raise ValueError(f"{KEY}.{name} must contain {{{known[0]}}}; got {template!r}")


def strip_thinking(text: str) -> str:
    """`text` without its closed `<think>` blocks; an unclosed block is left as it is."""
    head, close, tail = text.rpartition("</think>")
    rest = tail.lstrip()
    # Nothing can match beyond the last close, and searching there takes time quadratic in the opened blocks.
    return THINKING.sub("", head + close + tail[: len(tail) - len(rest)]) + rest


def displayed(text: str, settings: ContextSettings) -> str:
    """A peer's response as a teacher would read it."""
    return strip_thinking(text) if settings.remove_thinking_from_demonstration else text


def shown_peers(peers: Peers, settings: ContextSettings) -> Peers:
    """What of `peers` a teacher is shown: unwanted and blank slots become empty and lose their choice."""

    def text(response: str | None, wanted: bool) -> str | None:
        clean = displayed(response, settings) if response is not None and wanted else ""
        return clean if clean.strip() else None

    primary = text(peers.primary, settings.include_primary_solution)
    another = text(peers.another, settings.include_another_solution)
    failure_wanted = settings.include_failure_solution and (
        settings.failure_solution_condition == "always" or primary is None
    )
    failure = text(peers.failure, failure_wanted)
    feedback_wanted = settings.include_environment_feedback and not (
        settings.environment_feedback_only_without_solution and primary is not None
    )
    has_feedback = feedback_wanted and peers.feedback is not None and bool(peers.feedback.strip())
    filled = {"primary": primary, "another": another, "failure": failure}
    return replace(
        peers,
        primary=primary,
        another=another,
        failure=failure,
        feedback=peers.feedback if has_feedback else None,
        choices=tuple(choice for choice in peers.choices if filled.get(choice.slot, "") is not None),
    )


def sections(peers: Peers, settings: ContextSettings) -> dict[str, str]:
    """The filled sections of a teacher prompt by template field; an absent section is the empty string."""
    return _fill(shown_peers(peers, settings), settings)


def _fill(shown: Peers, settings: ContextSettings) -> dict[str, str]:
    """As `sections`, of peers that are shown as they are."""

    def section(template: str, name: str, text: str | None) -> str:
        return "" if text is None else template.format(**{name: text})

    return {
        "solution": section(settings.solution_template, "successful_previous_attempt", shown.primary),
        "solution_summaries": "".join(shown.summaries),
        "another_solution": section(settings.another_solution_template, "another_successful_attempt", shown.another),
        "failure": section(settings.failure_solution_template, "failed_attempt", shown.failure),
        "feedback": section(settings.feedback_template, "feedback_raw", shown.feedback),
    }


def teacher_messages(prompt_messages: Sequence[Message], peers: Peers, settings: ContextSettings) -> list[Message]:
    """The conversation that the teacher sees: earlier turns verbatim, the last user message re-prompted.

    Without a single filled section the conversation comes back as it was.

    Raises:
        ValueError: the conversation is empty or does not end with a user's text.
    """
    return _messages(prompt_messages, shown_peers(peers, settings), settings)


def _messages(prompt_messages: Sequence[Message], shown: Peers, settings: ContextSettings) -> list[Message]:
    """As `teacher_messages`, of peers that are shown as they are."""
    if not prompt_messages or prompt_messages[-1].get("role") != "user":
        got = [message.get("role") for message in prompt_messages]
        raise ValueError(f"a prompt must end with a user message; got roles {got}")
    filled = _fill(shown, settings)
    if not any(filled.values()):
        return list(prompt_messages)
    last = prompt_messages[-1]
    if not isinstance(last["content"], str):
        raise ValueError(f"the last user message must be text; got {type(last['content']).__name__}")
    content = settings.reprompt_template.format(prompt=last["content"], **filled)
    return [*prompt_messages[:-1], {**last, "content": content}]


def build_view(prompt_messages: Sequence[Message], peers: Peers, settings: ContextSettings) -> View:
    """The teacher's view of one rollout, with the peers it shows; usable when at least one section is filled.

    Raises:
        ValueError: as `teacher_messages`.
    """
    shown = shown_peers(peers, settings)
    usable = any(_fill(shown, settings).values())
    return View(tuple(_messages(prompt_messages, shown, settings)), usable, shown)


def fit_view(
    prompt_messages: Sequence[Message],
    peers: Peers,
    settings: ContextSettings,
    *,
    limit: int,
    length: Callable[[Sequence[Message]], int],
    shorten: Callable[[str, int], str],
) -> View:
    """`build_view`, made to fit `limit` tokens by cutting the longest peers and feedback to one length.

    The problem, earlier turns, the closing instruction and what the chat template adds stay whole; summaries
    are not cut. Where not even one token of each peer fits, the view is unusable and shows the bare prompt.

    Args:
        length: counts the tokens of the rendered teacher prompt.
        shorten: keeps the first n tokens of a text.

    Raises:
        ValueError: as `teacher_messages`.
    """
    view = build_view(prompt_messages, peers, settings)
    if not view.usable or (total := length(view.messages)) <= limit:
        return view
    texts = _texts(view.peers)
    blank = length([{"role": "user", "content": ""}])
    sizes = [length([{"role": "user", "content": text}]) - blank for text in texts.values()]
    # An estimate, since tokens may merge at the edges and cut marks cost some too; the loop below measures.
    cap = max(1, water_level(sizes, limit - (total - sum(sizes)))) if texts else 0
    while cap > 0:
        kept = {slot: shorten(text, cap) for slot, text in texts.items()}
        cut = {slot: text + CUT for slot, text in kept.items() if text != texts[slot]}
        note = f"shortened: {len(cut)} of {len(texts)} peer texts cut to {cap} tokens each, to fit {limit}"
        fitted = _with_texts(view.peers, {**kept, **cut}, note)
        messages = tuple(_messages(prompt_messages, fitted, settings))
        total = length(messages)
        if total <= limit:
            return View(messages, True, fitted)
        excess_each = -(-(total - limit) // max(1, len(cut)))
        cap = max(1, cap - excess_each) if cap > 1 else 0
    note = f"teacher prompt: {total} tokens even with its peers cut to almost nothing; the limit is {limit}"
    return View(tuple(prompt_messages), False, Peers(fallbacks=(*view.peers.fallbacks, note)))


def water_level(sizes: Sequence[int], budget: int) -> int:
    """The largest cap for which sizes cut to it sum to at most `budget`; the largest size where all fit.

    Example: `water_level([2, 10, 9], 12)` is 5: the short one stays whole, the others share what it leaves.
    """
    left = budget
    for index, size in enumerate(sorted(sizes)):
        share = left // (len(sizes) - index)
        if size > share:
            return share
        left -= size
    return max(sizes, default=0)


def _texts(peers: Peers) -> dict[str, str]:
    """What may be shortened."""
    texts = {
        "primary": peers.primary,
        "another": peers.another,
        "failure": peers.failure,
        "feedback": peers.feedback,
    }
    return {slot: text for slot, text in texts.items() if text is not None}


def _with_texts(peers: Peers, texts: dict[str, str], note: str) -> Peers:
    """`peers` with other texts, and one fallback more."""
    return replace(
        peers,
        primary=texts.get("primary"),
        another=texts.get("another"),
        failure=texts.get("failure"),
        feedback=texts.get("feedback"),
        fallbacks=(*peers.fallbacks, note),
    )
