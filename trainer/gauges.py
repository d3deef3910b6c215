"""The gauges of a step, as metrics: is what the teacher says any good, and what becomes of the responses?

    score_gauges    from what the models said of single rollouts
    text_gauges     from what the rollouts say, and what their teachers were shown
    asked_bare      chooses the rollouts on which the teacher is asked without its context as well

Figures by verdict are `gauges/<name>/right` and `/wrong`; rollouts of unknown outcome are in neither. What is undefined
is absent. docs/gauges.md says what each means.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from mopd.gauges import Estimate, auc, copied_share, ngrams, over_prompts, pairwise_accuracy, uncertainty
from mopd.types import Group, IntArray, Message, Peers, View
from trainer.packing import Sample, loss_mask

if TYPE_CHECKING:
    from trainer.contexts import Context, ContextBuilder

Judged = Iterable[tuple[bool | None, float | None]]
"""Of rollouts: whether each is right, and a figure; None where unknown."""
PREFIX = "gauges"
BARE_EVERY = 2
"""Of so many steps the first is one in which the teacher is asked without its context: that takes a forward pass."""


def by_verdict(name: str, judged: Judged) -> dict[str, float]:
    """The mean figure of the right and of the wrong rollouts, each weighing the same."""
    known = [(right, value) for right, value in judged if right is not None and value is not None]
    means = {}
    for side, wanted in (("right", True), ("wrong", False)):
        values = [value for right, value in known if right == wanted]
        if values:
            means[f"{PREFIX}/{name}/{side}"] = float(np.mean(values))
    return means


# ------------------------------------------------------------------ what the models said


def score_gauges(samples: Sequence[Sample], scores: Mapping[str, Mapping[int, float]]) -> dict[str, float]:
    """The gauges of what `trainer.workers.gauging` noted of a step's rollouts, by name and index."""
    verdicts = {sample.index: sample.right for sample in samples}
    teacher, bare = scores.get("teacher", {}), scores.get("bare", {})
    figures = {
        "student_logprob": scores.get("student", {}),
        "teacher_logprob": teacher,
        "gap": scores.get("gap", {}),
        "entropy": scores.get("entropy", {}),
        "context_gain": {index: teacher[index] - value for index, value in bare.items() if index in teacher},
    }
    found: dict[str, float] = {}
    for name, values in figures.items():
        found |= by_verdict(name, ((verdicts[index], value) for index, value in values.items()))
    for name in ("student", "teacher", "gap"):
        found |= discrimination(name, samples, scores.get(name, {}))
    return found


def discrimination(name: str, samples: Sequence[Sample], scores: Mapping[int, float]) -> dict[str, float]:
    """How well scores tell the rollouts of a prompt apart: means over prompts, with their intervals."""
    groups: dict[int, list[Sample]] = {}
    for sample in samples:
        if sample.index in scores:
            groups.setdefault(sample.group, []).append(sample)
    accuracies, areas = [], []
    for group in groups.values():
        values = [scores[sample.index] for sample in group]
        accuracies.append(pairwise_accuracy(values, [sample.verdict for sample in group]))
        areas.append(auc(values, [math.nan if sample.right is None else sample.right for sample in group]))
    found = interval(f"{name}_auc", over_prompts(areas))
    if name == "student":
        return found | {f"{PREFIX}/mixed_prompts": len(areas) - areas.count(None)}
    return found | interval(f"{name}_pairwise_accuracy", over_prompts(accuracies))


def interval(name: str, estimate: Estimate | None) -> dict[str, float]:
    """A mean over prompts, and the ends of its interval where there is one."""
    if estimate is None:
        return {}
    ends = {f"{PREFIX}/{name}_low": estimate.low, f"{PREFIX}/{name}_high": estimate.high}
    return {f"{PREFIX}/{name}": estimate.mean} | {end: value for end, value in ends.items() if value is not None}


def asked_bare(
    samples: Sequence[Sample], groups: Sequence[Group], contexts: ContextBuilder, count: int, first: int
) -> list[Sample]:
    """The samples; `count` of the `first` ones with the teacher's prompt without context, if so many have a context.

    Right and wrong rollouts in turn, a right and a wrong one of every prompt before a second one.
    """
    if contexts.kind in (None, "prompt"):
        return list(samples)
    usable = [sample for sample in samples[:first] if sample.teacher_prompt_ids is not None]
    usable = [sample for sample in usable if loss_mask(sample).any()]
    seen: Counter[tuple[int, bool | None]] = Counter()
    turns: dict[int, int] = {}
    for sample in usable:
        turns[sample.index] = seen[sample.group, sample.right]
        seen[sample.group, sample.right] += 1
    known = [sample for sample in usable if sample.right is not None]
    chosen = sorted(known, key=lambda sample: (turns[sample.index], sample.group, sample.right))[:count]
    prompts: dict[int, IntArray | None] = {
        number: contexts.rendered(View(groups[number].prompt.messages, True)).prompt_ids
        for number in {sample.group for sample in chosen}
    }
    bare = {sample.index: prompts[sample.group] for sample in chosen}
    return [replace(sample, bare_prompt_ids=bare.get(sample.index)) for sample in samples]


# ------------------------------------------------------------------ what the rollouts say


def text_gauges(groups: Sequence[Group], contexts: Sequence[Context], threshold: float) -> dict[str, float]:
    """The gauges of a step's texts; `contexts` in sampling order, `threshold` the reward of a success."""
    verdicts = [outcome.succeeds(threshold) for group in groups for outcome in group.outcomes]
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    lengths = [float(len(rollout.token_ids)) for rollout in rollouts]
    found = by_verdict("response_length", zip(verdicts, lengths, strict=True))
    found |= by_verdict("copied_ngrams", zip(verdicts, copied_shares(groups, contexts), strict=True))
    for side, wanted in (("right", True), ("wrong", False)):
        texts = [rollout.text for rollout, right in zip(rollouts, verdicts, strict=True) if right == wanted]
        rate = uncertainty(texts)
        found |= {} if rate is None else {f"{PREFIX}/uncertainty_words/{side}": rate}
    return found


def copied_shares(groups: Sequence[Group], contexts: Sequence[Context]) -> list[float | None]:
    """Of every rollout, in sampling order, the share of its n-grams that stand in peers shown to its teacher."""
    shares: list[float | None] = []
    for group in groups:
        # Of a group alone, whose rollouts are one another's peers: n-grams take room.
        grams_of = cache(different_ngrams)
        prompt = frozenset[tuple[str, ...]]().union(*(ngrams(text_of(message)) for message in group.prompt.messages))
        for rollout in group.rollouts:
            shown = [grams_of(text) for text in peer_texts(contexts[len(shares)].view.peers)]
            shares.append(copied_share(ngrams(rollout.text), shown, prompt) if shown else None)
    return shares


def different_ngrams(text: str) -> frozenset[tuple[str, ...]]:
    """The n-grams of a text, each once."""
    return frozenset(ngrams(text))


def peer_texts(peers: Peers) -> list[str]:
    """The siblings' texts that a teacher was shown, or the reference in their place; feedback is no peer's."""
    slots = (peers.primary, peers.another, *peers.more, peers.failure, *peers.summaries)
    return [text for text in slots if text is not None]


def text_of(message: Message) -> str:
    """The text of a message, whose content may be in parts."""
    content = message["content"]
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content if part.get("type") == "text")
