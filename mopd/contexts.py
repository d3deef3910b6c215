"""From peers to the messages that the teacher sees (paper section 3; templates byte for byte as published).

`build_view` shows the peers as they are; `fit_view` shortens them, and only them, to a token budget. The
publication instead cuts off the end of the rendered prompt, and with it the closing instruction (`truncate_ids`).
"""

from __future__ import annotations

import dataclasses
import re
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from mopd.types import IntArray, Message, Peers, View

Truncation = Literal["peers", "error", "right", "left"]
"""What becomes of a teacher prompt over its limit: peers shortened, refused, or an end of its tokens cut off."""

THINKING = re.compile(r"<think>.*?</think>\s*", re.DOTALL)
CUT = "\n[... shortened ...]"
"""Marks the place where a peer was cut."""
KEY = "actor_rollout_ref.actor.self_distillation"
"""Where users set what `ContextSettings` holds."""
SECTION_FIELDS = {
    "include_primary_solution": "solution",
    "summarize_solutions": "solution_summaries",
    "include_another_solution": "another_solution",
    "include_failure_solution": "failure",
    "include_environment_feedback": "feedback",
}
"""A flag, and the field of the re-prompt template that it fills."""
TEMPLATE_FIELDS = {
    "reprompt_template": ("prompt", *SECTION_FIELDS.values()),
    "solution_template": ("successful_previous_attempt",),
    "another_solution_template": ("another_successful_attempt",),
    "failure_solution_template": ("failed_attempt",),
    "feedback_template": ("feedback_raw",),
    "summary_item_template": ("summary_text",),
    "summary_failed_item_template": ("summary_text",),
}
"""The fields that a template may name; the first one it must."""
CHOICES = {
    "failure_solution_condition": ("when_no_solution", "always"),
    "summary_source": ("success", "all", "failure"),
}
"""What a setting may be."""


@dataclass(frozen=True)
class ContextSettings:
    """The published switches and templates; the defaults are the method MOPD (two successes, one failure).

    Raises:
        ValueError: a template lacks a field it needs or names an unknown one, or another setting is none of what
            it may be; the message names the key.
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
    include_truncated_peers: bool = False
    """Takes a response that was cut by the length limit for a success or a failure, by its reward."""
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
    summarize_solutions: bool = False
    """Shows short accounts of siblings (`mopd.summaries`), which the student is asked to write."""
    summary_k: int = 1
    """At most so many."""
    summary_tag: str = "summary"
    """What encloses a response's account of itself, as in `<summary>...</summary>`."""
    summary_source: Literal["success", "all", "failure"] = "success"
    """Whose accounts are shown."""
    summary_from_all: bool = False
    """As `summary_source=all`."""
    summary_instruction: str = (
        "\n\nAfter your answer, briefly summarize your key approach in one sentence inside <summary> tags,"
        " e.g. <summary>...</summary>."
    )
    """Appended to the student's prompt, never to the teacher's."""
    summary_item_template: str = "\nSummary of another successful solution:\n\n{summary_text}\n\n"
    summary_failed_item_template: str = "\nSummary of another unsuccessful solution:\n\n{summary_text}\n\n"

    def __post_init__(self) -> None:
        """Refuses what could not be shown as asked."""
        values = dataclasses.asdict(self)
        for name, known in CHOICES.items():
            if values[name] not in known:
                raise ValueError(f"{KEY}.{name} must be {' or '.join(known)}; got {values[name]!r}")
        if self.summary_k < 1:
            raise ValueError(f"{KEY}.summary_k must be at least 1; got {self.summary_k}")
        if not re.fullmatch(r"[\w-]+", self.summary_tag):
            raise ValueError(f"{KEY}.summary_tag must be one word, without brackets; got {self.summary_tag!r}")
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
    """What of `peers` a teacher is shown: unwanted and blank slots become empty and lose their choice.

    The blocks of a matched-budget control are all wanted; feedback yields to a shown solution all the same.
    """

    def text(response: str | None, wanted: bool) -> str | None:
        clean = displayed(response, settings) if response is not None and (wanted or peers.controlled) else ""
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
        more=tuple(clean for response in peers.more if (clean := text(response, True)) is not None),
        choices=tuple(choice for choice in peers.choices if filled.get(choice.slot, "") is not None),
    )


def sections(peers: Peers, settings: ContextSettings) -> dict[str, str]:
    """The filled sections of a teacher prompt by template field; an absent section is the empty string."""
    return _fill(shown_peers(peers, settings), settings)


def _fill(shown: Peers, settings: ContextSettings) -> dict[str, str]:
    """As `sections`, of peers that are shown as they are."""

    def section(template: str, name: str, *texts: str | None) -> str:
        return "".join(template.format(**{name: text}) for text in texts if text is not None and text.strip())

    def summary(index: int, text: str) -> str:
        failed = index in shown.failed_summaries
        template = settings.summary_failed_item_template if failed else settings.summary_item_template
        return section(template, "summary_text", text)

    another = (shown.another, *shown.more)
    return {
        "solution": section(settings.solution_template, "successful_previous_attempt", shown.primary),
        "solution_summaries": "".join(summary(index, text) for index, text in enumerate(shown.summaries)),
        "another_solution": section(settings.another_solution_template, "another_successful_attempt", *another),
        "failure": section(settings.failure_solution_template, "failed_attempt", shown.failure),
        "feedback": section(settings.feedback_template, "feedback_raw", shown.feedback),
    }


def teacher_messages(prompt_messages: Sequence[Message], peers: Peers, settings: ContextSettings) -> list[Message]:
    """The conversation that the teacher sees: earlier turns verbatim, the last user message re-prompted.

    Without a single filled section the conversation comes back as it was. `prompt_messages` are the task's own,
    without `summary_instruction`: what the student alone is asked for must not reach the teacher.

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
    last = map_text(prompt_messages[-1], lambda text: settings.reprompt_template.format(prompt=text, **filled))
    return [*prompt_messages[:-1], last]


def map_text(message: Message, change: Callable[[str], str]) -> Message:
    """`message` with its text changed, or its last text part where the content is in parts (images among them).

    Raises:
        ValueError: it has no text.
    """
    content: Any = message["content"]
    if isinstance(content, str):
        return {**message, "content": change(content)}
    parts = list(content)
    texts = [index for index, part in enumerate(parts) if part.get("type") == "text"]
    if not texts:
        raise ValueError(f"the last user message must have text; got {content!r:.200}")
    parts[texts[-1]] = {**parts[texts[-1]], "text": change(parts[texts[-1]]["text"])}
    return {**message, "content": parts}


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
    truncation: Truncation = "peers",
    rollout_id: str = "",
) -> View:
    """`build_view`, made to fit `limit` tokens by cutting the longest peers, summaries and feedback to one length.

    The problem, earlier turns, the closing instruction and what the chat template adds stay whole. Where not even
    one token of each peer fits, the view is unusable and shows the bare prompt.

    Args:
        length: counts the tokens of the rendered teacher prompt.
        shorten: keeps the first n tokens of a text.
        truncation: `peers` is the above; `error` refuses a view that does not fit; `right` and `left` leave it
            whole, for the caller to cut its tokens with `truncate_ids` (published behaviour).
        rollout_id: whose view it is, for the refusal.

    Raises:
        ValueError: as `teacher_messages`; an unknown `truncation`; a view that does not fit where that is an error.
    """
    if truncation not in get_args(Truncation):
        raise ValueError(f"{KEY}.reprompt_truncation must be {' or '.join(get_args(Truncation))}; got {truncation!r}")
    view = build_view(prompt_messages, peers, settings)
    if truncation in ("right", "left") or not view.usable or (total := length(view.messages)) <= limit:
        return view
    if truncation == "error":
        raise ValueError(
            f"the teacher prompt of rollout {rollout_id or '(unnamed)'} has {total} tokens, over"
            f" {KEY}.max_reprompt_len={limit}; raise it, show fewer peers, or set reprompt_truncation=peers"
        )
    blank = length([{"role": "user", "content": ""}])
    fitted = _shortened(
        view.peers,
        total,
        limit,
        measure=lambda shown: length(_messages(prompt_messages, shown, settings)),
        size=lambda text: length([{"role": "user", "content": text}]) - blank,
        shorten=shorten,
    )
    return View(tuple(_messages(prompt_messages, fitted, settings)), bool(_texts(fitted)), fitted)


def _shortened(
    peers: Peers,
    total: int,
    limit: int,
    *,
    measure: Callable[[Peers], int],
    size: Callable[[str], int],
    shorten: Callable[[str, int], str],
) -> Peers:
    """`peers`, whose teacher prompt has `total` tokens, cut so that it has `limit`; none where that cannot be."""
    texts = _texts(peers)
    sizes = [size(text) for text in texts]
    # An estimate, since tokens may merge at the edges and cut marks cost some too; the loop below measures.
    cap = max(1, water_level(sizes, limit - (total - sum(sizes))))
    while cap > 0:
        kept = {text: shorten(text, cap) for text in texts}
        cut = {text: short if short == text else short + CUT for text, short in kept.items()}
        changed = sum(cut[text] != text for text in texts)
        note = f"shortened: {changed} of {len(texts)} peer texts cut to {cap} tokens each, to fit {limit}"
        fitted = _with_texts(peers, cut, note)
        total = measure(fitted)
        if total <= limit:
            return fitted
        excess_each = -(-(total - limit) // max(1, changed))
        cap = max(1, cap - excess_each) if cap > 1 else 0
    note = f"teacher prompt: {total} tokens even with its peers cut to almost nothing; the limit is {limit}"
    return Peers(fallbacks=(*peers.fallbacks, note))


def truncate_ids(token_ids: IntArray, limit: int, side: Literal["right", "left"]) -> IntArray:
    """The published truncation of a rendered teacher prompt: its tokens without what exceeds `limit` at one end.

    `right` loses the closing instruction and the assistant's header, `left` the system prompt and the problem.
    """
    return token_ids[:limit] if side == "right" else token_ids[max(0, len(token_ids) - limit) :]


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


def _texts(peers: Peers) -> tuple[str, ...]:
    """What may be shortened."""
    slots = (peers.primary, peers.another, *peers.more, peers.failure, peers.feedback, *peers.summaries)
    return tuple(text for text in slots if text is not None)


def _with_texts(peers: Peers, cut: dict[str, str], note: str) -> Peers:
    """`peers` with every text replaced, and one fallback more."""
    return replace(
        peers,
        primary=None if peers.primary is None else cut[peers.primary],
        another=None if peers.another is None else cut[peers.another],
        failure=None if peers.failure is None else cut[peers.failure],
        feedback=None if peers.feedback is None else cut[peers.feedback],
        more=tuple(cut[text] for text in peers.more),
        summaries=tuple(cut[text] for text in peers.summaries),
        fallbacks=(*peers.fallbacks, note),
    )
