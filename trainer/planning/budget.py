"""How full the teacher's prompts get: real prompts and templates, peers as long as responses are taken to be."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mopd.peers import reference_peers
from mopd.types import Group, IntArray, Peers, Prompt
from trainer.assemble import context_builder
from trainer.config.schema import Config
from trainer.contexts import ContextBuilder
from trainer.inputs import Inputs
from trainer.prompts import PromptSet, Renderer

SAMPLED = 12
"""Prompts of the training data whose teacher prompts are rendered, evenly spread over the file."""


@dataclass(frozen=True)
class Spread:
    """Lengths in tokens."""

    least: int
    mean: float
    most: int

    @classmethod
    def of(cls, lengths: Sequence[int]) -> Spread:
        """Of at least one length."""
        return cls(min(lengths), float(np.mean(lengths)), max(lengths))


@dataclass(frozen=True)
class Contexts:
    """What becomes of the teacher's prompts when every peer is of one length."""

    response: int
    """Tokens of a peer."""
    prompts: int
    """How many were rendered."""
    lengths: Spread
    peers: int
    """Peers that were to be shown, over all prompts."""
    cut: int
    """Peers shortened to fit, or over the limit where the prompt loses an end."""
    dropped: int
    """Peers that were not shown at all."""
    stopped: int
    """Prompts that would stop the run (reprompt_truncation=error)."""


def prompt_lengths(prompts: PromptSet) -> Spread:
    """Of the student's prompts that fit."""
    return Spread.of([len(ids) for ids in prompts.prompt_ids])


def teacher_contexts(config: Config, inputs: Inputs, response: int) -> Contexts | None:
    """The teacher's prompts when responses have `response` tokens; None for a method that shows a teacher nothing."""
    builder = context_builder(config, inputs.renderers, inputs.placement.ranks)
    if builder.kind not in ("peers", "reference"):
        return None
    chosen = spread_over(inputs.train, SAMPLED)
    texts = list(made_up(inputs, response, count=3))
    return summed([fitted(builder, prompt, ids, texts) for prompt, ids in chosen], response)


def spread_over(prompts: PromptSet, count: int) -> list[tuple[Prompt, IntArray]]:
    """At most `count` prompts, from the whole file."""
    rows = np.linspace(0, len(prompts) - 1, min(count, len(prompts))).round().astype(int)
    return [(prompts.prompts[row], prompts.prompt_ids[row]) for row in rows]


def made_up(inputs: Inputs, tokens: int, count: int) -> Iterator[str]:
    """Different texts of about so many tokens, in the words of the data."""
    renderer = inputs.renderers.student
    words = np.concatenate([renderer.ids(last_text(prompt)) for prompt in inputs.train.prompts[:50]])
    for number in range(count):
        yield text_of(renderer, np.roll(words, -number), tokens)


def last_text(prompt: Prompt) -> str:
    """What the task says."""
    content = prompt.messages[-1]["content"]
    return content if isinstance(content, str) else str(content)


def text_of(renderer: Renderer, words: IntArray, tokens: int) -> str:
    """The words, over and over, until there are so many tokens."""
    return renderer.tokenizer.decode(np.resize(words, tokens).tolist())


@dataclass(frozen=True)
class Fitted:
    """One teacher prompt."""

    length: int
    peers: int
    cut: int
    dropped: int
    stopped: bool = False


def fitted(builder: ContextBuilder, prompt: Prompt, ids: IntArray, texts: Sequence[str]) -> Fitted:
    """The teacher's prompt of a task whose peers are `texts`."""
    group = Group("plan", prompt, ids, ())
    peers = reference_peers(prompt) if builder.kind == "reference" else peers_of(builder, texts)
    wanted = shown_texts(peers, builder)
    try:
        view = builder.view_of(group, "plan", peers)
    except ValueError:
        return Fitted(builder.max_prompt_length, len(wanted), len(wanted), 0, stopped=True)
    shown = shown_texts(view.peers, builder)
    whole = sum(text in wanted for text in shown)
    whole_length = builder.teacher.length(view.messages)
    length, over = min(whole_length, builder.max_prompt_length), whole_length > builder.max_prompt_length
    return Fitted(length, len(wanted), len(shown) if over else len(shown) - whole, len(wanted) - len(shown))


def peers_of(builder: ContextBuilder, texts: Sequence[str]) -> Peers:
    """Every slot that the settings fill where all siblings of a rollout can be had."""
    settings = builder.settings
    failure = settings.include_failure_solution and settings.failure_solution_condition == "always"
    return Peers(
        primary=texts[0] if settings.include_primary_solution else None,
        another=texts[1] if settings.include_another_solution else None,
        failure=texts[2] if failure or not settings.include_primary_solution else None,
    )


def shown_texts(peers: Peers, builder: ContextBuilder) -> list[str]:
    """What a teacher is shown of peers."""
    settings = builder.settings
    slots = (
        (peers.primary, settings.include_primary_solution),
        (peers.another, settings.include_another_solution),
        (peers.failure, settings.include_failure_solution),
    )
    return [text for text, wanted in slots if wanted and text is not None and text.strip()]


def summed(found: Sequence[Fitted], response: int) -> Contexts:
    """All teacher prompts together."""

    def total(count: Callable[[Fitted], int]) -> int:
        return sum(map(count, found))

    return Contexts(
        response=response,
        prompts=len(found),
        lengths=Spread.of([one.length for one in found]),
        peers=total(lambda one: one.peers),
        cut=total(lambda one: one.cut),
        dropped=total(lambda one: one.dropped),
        stopped=total(lambda one: int(one.stopped)),
    )
