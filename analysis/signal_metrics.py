"""How well a teacher's scores tell good responses from bad ones: the formulas, on paper, without files or prompts.

A score is the mean log-prob per token that the teacher gives a response. What the responses do not define is None:
there is no 0 for want of data. Ties count as neither order: tau-b, average ranks, one half.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mopd.gauges import auc, pairwise_accuracy

Array = NDArray[np.float64]

METRICS = (
    "mean_spearman",
    "mean_kendall_tau",
    "pairwise_accuracy",
    "success_auc",
    "point_biserial",
    "brier_sigmoid",
    "brier_minmax",
    "top1_hit_rate",
    "off_path_accuracy",
    "off_path_probability",
    "on_path_accuracy",
    "on_path_probability",
    "mean_prompt_length",
    "truncation_rate",
    "target_in_context_rate",
)
"""What a prompt's responses may define, by the names in the files."""


@dataclass(frozen=True)
class Scored:
    """One response as a teacher saw it under one condition; None stands for unknown, throughout."""

    score: float | None
    reward: float | None
    success: bool | None
    prompt_length: float | None = None
    """Tokens of the teacher's prompt."""
    truncated: bool | None = None
    """Whether the teacher's prompt was shortened."""
    shown: bool | None = None
    """Whether it showed the very text that is judged: a sibling may have written the same."""
    off_path_probability: float | None = None
    """What the teacher gives the right next token after a flawed prefix."""
    off_path_correct: bool | None = None
    """Whether that token is the teacher's first choice."""
    on_path_probability: float | None = None
    """The same after a prefix without a flaw."""
    on_path_correct: bool | None = None


def prompt_metrics(rows: Sequence[Scored]) -> dict[str, float]:
    """Every figure that the rows of one prompt and condition define."""
    rewarded = [(row.score, row.reward) for row in rows if row.score is not None and row.reward is not None]
    judged = [(row.score, float(row.success)) for row in rows if row.score is not None and row.success is not None]
    scores, rewards = columns(rewarded)
    judged_scores, labels = columns(judged)
    found = {
        "mean_spearman": spearman(scores, rewards),
        "mean_kendall_tau": kendall_tau_b(scores, rewards),
        "pairwise_accuracy": pairwise_accuracy(scores, rewards),
        "success_auc": auc(judged_scores, labels),
        "point_biserial": pearson(judged_scores, labels),
        "brier_sigmoid": brier(sigmoid(judged_scores), labels),
        "brier_minmax": brier(min_max(judged_scores), labels),
        "top1_hit_rate": top1_hit_rate(rows),
        "off_path_accuracy": mean([row.off_path_correct for row in rows]),
        "off_path_probability": mean([row.off_path_probability for row in rows]),
        "on_path_accuracy": mean([row.on_path_correct for row in rows]),
        "on_path_probability": mean([row.on_path_probability for row in rows]),
        "mean_prompt_length": mean([row.prompt_length for row in rows]),
        "truncation_rate": mean([row.truncated for row in rows]),
        "target_in_context_rate": mean([row.shown for row in rows]),
    }
    return {name: value for name, value in found.items() if value is not None}


def columns(pairs: Sequence[tuple[float, float]]) -> tuple[Array, Array]:
    """Pairs as two arrays."""
    table = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def mean(values: Sequence[float | None]) -> float | None:
    """The mean of what is known; None where nothing is."""
    known = [float(value) for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def order(values: Array) -> Array:
    """[n, n] for every two values 1 where the first is the larger, -1 where it is the smaller, 0 where they tie."""
    larger = values[:, None] > values[None, :]
    return larger.astype(np.float64) - larger.T


def kendall_tau_b(first: Array, second: Array) -> float | None:
    """Kendall's tau-b: (concordant - discordant) / sqrt(pairs not tied in the first * pairs not tied in the second).

    None where one side does not vary.
    """
    one, other = order(first), order(second)
    untied = np.abs(one).sum() * np.abs(other).sum()
    return float((one * other).sum() / math.sqrt(untied)) if untied else None


def spearman(first: Array, second: Array) -> float | None:
    """Pearson's correlation of average ranks; None where one side does not vary."""
    # The row sums of `order` are twice the average ranks, less a constant, which a correlation does not see.
    return pearson(order(first).sum(axis=1), order(second).sum(axis=1))


def pearson(first: Array, second: Array) -> float | None:
    """Pearson's correlation, with labels the point-biserial one; None where one side does not vary."""
    one, other = min_max(first), min_max(second)  # of one size, so that no square is 0 or infinite
    if one is None or other is None:
        return None
    one, other = one - one.mean(), other - other.mean()
    return float(np.clip(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)), -1.0, 1.0))


def sigmoid(scores: Array) -> Array:
    """1 / (1 + exp(-score)). A log-prob is never above 0, so this never is above one half."""
    return np.asarray(np.exp(-np.logaddexp(0.0, -scores)))


def min_max(scores: Array) -> Array | None:
    """Scores moved and stretched onto 0 to 1; None where they do not vary."""
    low, high = scores.min(initial=math.inf), scores.max(initial=-math.inf)
    return np.asarray((scores - low) / (high - low)) if low < high else None


def brier(probabilities: Array | None, labels: Array) -> float | None:
    """The mean squared distance of probabilities from labels; None without any."""
    if probabilities is None or len(labels) == 0:
        return None
    return float(np.square(probabilities - labels).mean())


def top1_hit_rate(rows: Sequence[Scored]) -> float | None:
    """Whether the response with the largest score is a success or has the largest reward of all; of several, the share.

    None where all responses are such, or none is: then any choice would do as well.
    """
    rewards = [row.reward for row in rows if row.score is not None and row.reward is not None]
    best = max(rewards, default=None)
    hits = [
        (row.score, bool(row.success) or (row.reward is not None and row.reward == best))
        for row in rows
        if row.score is not None and (row.success is not None or row.reward is not None)
    ]
    if len({hit for _, hit in hits}) < 2:
        return None
    top = max(score for score, _ in hits)
    return mean([hit for score, hit in hits if score == top])
