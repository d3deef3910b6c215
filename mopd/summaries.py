"""Short accounts of siblings in a teacher's prompt, instead of whole responses (the published third variant).

The student is asked to end its answer with a summary of itself (`with_summary_instruction`, in training and in
validation alike); the teacher, whose prompt is built from the task without that instruction, is shown the
summaries of up to `summary_k` siblings.

Departures from the published code: unknown outcomes have no part in any pool, summaries of one text are one, thinking
is stripped before the tag is looked for, and combinations that would contradict each other are refused.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from mopd.contexts import KEY, ContextSettings, displayed, map_text
from mopd.types import Group, Message, PeerChoice, Rollout, View

FALLBACK_CHARACTERS = 300
"""What is shown of a response that does not summarise itself."""


@dataclass(frozen=True)
class Summaries:
    """What `Peers` takes over of the summaries for one rollout."""

    texts: tuple[str, ...] = ()
    failed: tuple[int, ...] = ()
    """Positions in `texts` of those of failed siblings."""
    choices: tuple[PeerChoice, ...] = ()
    fallbacks: tuple[str, ...] = ()


def with_summary_instruction(messages: Sequence[Message], instruction: str) -> list[Message]:
    """The student's conversation with `instruction` at the end of its last user message.

    Raises:
        ValueError: no message is a user's, or the last of them has no text.
    """
    asked = [index for index, message in enumerate(messages) if message.get("role") == "user"]
    if not asked:
        raise ValueError(f"a prompt must have a user message; got roles {[m.get('role') for m in messages]}")
    last = asked[-1]
    return [*messages[:last], map_text(messages[last], lambda text: text + instruction), *messages[last + 1 :]]


def summary_conflicts(settings: ContextSettings, peer_control_mode: str = "none") -> list[str]:
    """What contradicts `summarize_solutions`, one sentence each; empty where nothing does or it is off."""
    if not settings.summarize_solutions:
        return []
    found = [
        f"{KEY}.summarize_solutions=true replaces whole peers by summaries and excludes {KEY}.{flag}=true; set one to"
        " false"
        for flag in ("include_another_solution", "include_failure_solution")
        if getattr(settings, flag)
    ]
    if peer_control_mode != "none":
        found.append(
            f"{KEY}.summarize_solutions=true excludes {KEY}.peer_control_mode={peer_control_mode}, which shows whole"
            " peers; set one to false or none"
        )
    if f"<{settings.summary_tag}>" not in settings.summary_instruction:
        found.append(
            f"{KEY}.summary_instruction does not ask for <{settings.summary_tag}>, the {KEY}.summary_tag that is"
            " looked for; name it there"
        )
    return found


def tagged_summary(text: str, settings: ContextSettings) -> str | None:
    """The content of the first `<tag>...</tag>` of a response as a teacher reads it; None without, or of a blank."""
    _, opened, rest = displayed(text, settings).partition(f"<{settings.summary_tag}>")
    content, closed, _ = rest.partition(f"</{settings.summary_tag}>")
    return content.strip() or None if opened and closed else None


def summary_of(text: str, settings: ContextSettings) -> str:
    """A response's account of itself, or else its beginning without thinking."""
    return tagged_summary(text, settings) or displayed(text, settings)[:FALLBACK_CHARACTERS]


def candidates(
    siblings: Sequence[tuple[Rollout, bool | None]], settings: ContextSettings
) -> list[tuple[Rollout, bool, str]]:
    """Whose summaries may be shown: rollout, whether it is a success, and the text; never of an unknown outcome."""
    everyone = settings.summary_from_all or settings.summary_source == "all"
    wanted = {True, False} if everyone else {settings.summary_source == "success"}
    return [
        (rollout, success, text)
        for rollout, success in siblings
        if success is not None and success in wanted and (text := summary_of(rollout.text, settings)).strip()
    ]


def draw_summaries(
    siblings: Sequence[tuple[Rollout, bool | None]], settings: ContextSettings, rng: random.Random
) -> Summaries:
    """Summaries of at most `summary_k` of `siblings`, drawn without replacement.

    Args:
        siblings: each with whether it is a success, None for unknown; without the rollout itself and its primary peer.
    """
    by_text: dict[str, tuple[Rollout, bool]] = {}
    for rollout, success, text in candidates(siblings, settings):
        by_text.setdefault(text, (rollout, success))
    if not by_text:
        return Summaries(fallbacks=(f"summary: nothing to summarize among {len(siblings)} siblings",))
    texts = rng.sample(list(by_text), min(settings.summary_k, len(by_text)))
    drawn = [by_text[text] for text in texts]
    return Summaries(
        texts=tuple(texts),
        failed=tuple(index for index, (_, success) in enumerate(drawn) if not success),
        choices=tuple(
            PeerChoice("summary", rollout.rollout_id, _reason(rollout, success, len(by_text), settings))
            for rollout, success in drawn
        ),
    )


def _reason(rollout: Rollout, success: bool, among: int, settings: ContextSettings) -> str:
    """Why this summary, and where its text is from."""
    tag, status = settings.summary_tag, "success" if success else "failure"
    source = f"its <{tag}>" if tagged_summary(rollout.text, settings) else f"no <{tag}>, so its beginning"
    return f"{status}, drawn from {among} of the group; {source}"


def summary_metrics(
    views: Sequence[View],
    groups: Sequence[Group],
    settings: ContextSettings,
    *,
    threshold: float,
) -> dict[str, float]:
    """What the usable views of a step show of summaries, by the published names.

    `candidate` counts the rollouts of the step that may be summarised, `tag_available` those that do it themselves;
    `sampled` counts summaries shown, of which `fallback` are beginnings of responses.

    Args:
        views: one per rollout, in the order of `groups` and of their rollouts.
        threshold: the reward from which a rollout is a success, as for `choose_peers`.

    Raises:
        ValueError: there is not one view and one outcome per rollout.
    """
    rollouts = [
        (rollout, outcome.succeeds(threshold))
        for group in groups
        for rollout, outcome in zip(group.rollouts, group.outcomes, strict=True)
    ]
    able = candidates(rollouts, settings)
    tagged = {rollout.rollout_id for rollout, _ in rollouts if tagged_summary(rollout.text, settings)}
    succeeded = {rollout.rollout_id for rollout, success in rollouts if success}
    shown = [
        [choice.rollout_id for choice in view.peers.choices if view.usable and choice.slot == "summary"]
        for view, _ in zip(views, rollouts, strict=True)
    ]
    sampled = [rollout_id for ids in shown for rollout_id in ids]
    counts = {
        "success": sum(rollout_id in succeeded for rollout_id in sampled),
        "failure": sum(rollout_id not in succeeded for rollout_id in sampled),
        "with_tag": sum(rollout_id in tagged for rollout_id in sampled),
        "fallback": sum(rollout_id not in tagged for rollout_id in sampled),
    }
    metrics = {
        "summary_sample_fraction": sum(bool(ids) for ids in shown) / max(1, len(shown)),
        "summary_candidate_count": float(len(able)),
        "summary_tag_available_count": float(sum(rollout.rollout_id in tagged for rollout, _, _ in able)),
        "summary_sampled_total_count": float(len(sampled)),
    }
    for kind, count in counts.items():
        metrics[f"summary_sampled_{kind}_count"] = float(count)
        metrics[f"summary_sampled_{kind}_fraction"] = count / max(1, len(sampled))
    return {f"self_distillation/{name}": value for name, value in metrics.items()}
