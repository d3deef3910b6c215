"""From a row of contexts to the tokens that a teacher reads: by the chat template, and made to fit as in training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jinja2 import TemplateError
from json_lines import BadInput
from row_files import Row

from mopd.contexts import ContextSettings, Truncation, build_view, fit_view, truncate_ids
from mopd.types import IntArray, Message, PeerChoice, Peers, View


def last_text(messages: Sequence[Message], settings: ContextSettings, *, closing: bool) -> str:
    """The text of the last message, with the closing instruction where it is asked for and nothing else is shown."""
    text = str(messages[-1]["content"])
    if not closing:
        return text
    empty = dict.fromkeys(("solution", "solution_summaries", "another_solution", "failure", "feedback"), "")
    closed: str = settings.reprompt_template.format(prompt=text, **empty)
    return closed


def sections_used(shown: Peers) -> dict[str, bool]:
    """Which sections a teacher prompt has, by their published names."""
    return {
        "solution": shown.primary is not None,
        "another_solution": shown.another is not None,
        "failure_solution": shown.failure is not None,
        "feedback": shown.feedback is not None,
        "summary": bool(shown.summaries),
    }


def speakable(text: str) -> str:
    """A text that tokenizers take: half a surrogate, which UTF-8 cannot hold, becomes a question mark."""
    return text.encode("utf-8", "replace").decode("utf-8")


def peers_of(told: Mapping[str, Any]) -> Peers:
    """The peers of a row, as `dataclasses.asdict` told them.

    Raises:
        TypeError: something in it is no part of peers.
    """
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in told.items()}
    return Peers(**{**values, "choices": tuple(PeerChoice(**choice) for choice in told.get("choices", ()))})


@dataclass(frozen=True)
class Fitted:
    """A teacher's prompt."""

    ids: IntArray
    """[L]"""
    view: View
    truncated: bool
    """Whether something had to be cut."""


@dataclass(frozen=True)
class TeacherPrompts:
    """Renders contexts for one model."""

    tokenizer: Any
    template_arguments: Mapping[str, Any]
    max_reprompt_len: int
    """Tokens of a teacher's prompt, as in training."""
    max_model_len: int
    """Tokens of prompt and response."""
    truncation: Truncation

    def of(self, row: Row, response_tokens: int) -> Fitted | None:
        """The prompt of a row before a response of so many tokens; None where not even the bare prompt fits.

        Raises:
            BadInput: the row's context cannot be shown, or is too long where that is an error.
        """
        try:
            return self.fitted(row, min(self.max_reprompt_len, self.max_model_len - response_tokens))
        except (TypeError, ValueError, KeyError, AttributeError, TemplateError) as error:
            raise BadInput(f"--variants: {row['variant_id']} ({row['condition']}) cannot be shown: {error}") from None

    def fitted(self, row: Row, limit: int) -> Fitted | None:
        """As `of`, within `limit` tokens."""
        settings = ContextSettings(**row.get("context_settings", {}))
        # A row that the published script wrote has the text alone.
        messages = row.get("prompt_messages") or [{"role": "user", "content": row["assembled_context_text"]}]
        peers = peers_of(row.get("peers", {}))
        if row.get("variant_spec", {}).get("force_reprompt"):
            closed = {**messages[-1], "content": last_text(messages, settings, closing=True)}
            return self.within(View((*messages[:-1], closed), True), limit)
        whole = self.within(build_view(messages, peers, settings), limit)
        if whole is not None or self.truncation in ("right", "left"):
            return whole
        view = fit_view(
            messages,
            peers,
            settings,
            limit=limit,
            length=self.length,
            shorten=self.shorten,
            truncation=self.truncation,
            rollout_id=row["response_id"],
        )
        fit = self.within(view, limit)
        return None if fit is None else Fitted(fit.ids, view, True)

    def within(self, view: View, limit: int) -> Fitted | None:
        """A view's tokens, at one end without those beyond `limit` where `truncation` says so; else None."""
        ids = self.ids(view.messages)
        if len(ids) <= limit:
            return Fitted(ids, view, False)
        if self.truncation not in ("right", "left") or limit < 1:
            return None
        return Fitted(truncate_ids(ids, limit, self.truncation), view, True)

    def text(self, messages: Sequence[Message]) -> str:
        """The conversation with the header of the answer."""
        asked = [dict(message) for message in messages]
        return str(
            self.tokenizer.apply_chat_template(
                asked, add_generation_prompt=True, tokenize=False, **self.template_arguments
            )
        )

    def ids(self, messages: Sequence[Message]) -> IntArray:
        """[L], the tokens of a rendered conversation; the template writes special ones itself."""
        return np.asarray(
            self.tokenizer.encode(speakable(self.text(messages)), add_special_tokens=False), dtype=np.int32
        )

    def length(self, messages: Sequence[Message]) -> int:
        """Tokens of a rendered conversation."""
        return len(self.ids(messages))

    def shorten(self, text: str, tokens: int) -> str:
        """The first tokens of a text."""
        return str(self.tokenizer.decode(self.tokenizer.encode(speakable(text), add_special_tokens=False)[:tokens]))
