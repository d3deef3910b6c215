"""From groups of attempts to a row of metrics per prompt, and from these rows to a run's summary.

What attempts do not define is absent from a row: no metric is 0 for want of data.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from attempts import Attempt
from text_diversity import (
    DISTANCES,
    distinct,
    mean_distance,
    mean_tree_distance,
    node_counts,
    self_bleu,
    tokens_of,
    unique_ratio,
)

from mopd.metrics import pass_at_k
from mopd.rewards.programs import read_program

Task = Literal["generic", "code"]
Row = dict[str, Any]
COUNTS = ("n_groups", "n_rollouts", "n_known", "success_count")
"""Sums over a prompt's groups; every other figure is their mean."""


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    task: Task = "generic"
    ks: tuple[int, ...] = (1, 2, 4, 8)
    """Of pass@k."""
    across: bool = False
    """n-grams over the attempts put end to end, as published."""
    distance: str = "subsequence"
    """Of `text_diversity.DISTANCES`."""


def measured_text(text: str, task: Task) -> str:
    """What is compared: of code the program that the verifier runs, or the whole response where it has none."""
    program = read_program(text) if task == "code" else None
    return text if program is None else program


def text_metrics(texts: Sequence[str], settings: Settings) -> dict[str, float | None]:
    """The diversity of some attempts at one prompt; nothing below two, since one attempt has no diversity."""
    if len(texts) < 2:
        return {}
    tokens = [tokens_of(text) for text in texts]
    figures = {
        "self_bleu4": self_bleu(tokens),
        "pairwise_text_distance": mean_distance(texts, DISTANCES[settings.distance]),
        "distinct1": distinct(tokens, 1, across=settings.across),
        "distinct2": distinct(tokens, 2, across=settings.across),
        "unique_response_ratio": unique_ratio(texts),
    }
    if settings.task == "code":
        trees = [tree for tree in map(node_counts, texts) if tree is not None]
        figures |= {
            "unique_code_ratio": unique_ratio(texts),
            "parsable_ratio": len(trees) / len(texts),
            "ast_node_jaccard_distance": mean_tree_distance(trees),
        }
    return figures


OF_SUCCESSES = (
    "distinct2",
    "self_bleu4",
    "pairwise_text_distance",
    "unique_response_ratio",
    "ast_node_jaccard_distance",
)
"""Measured once more, as `success_...`, on the right attempts alone."""


def group_metrics(group: Sequence[Attempt], settings: Settings) -> dict[str, float]:
    """Every figure that one group of attempts defines. Unknown verdicts are left out of what counts successes."""
    texts = [measured_text(attempt.text, settings.task) for attempt in group]
    known = [attempt.success for attempt in group if attempt.success is not None]
    rewards = [attempt.reward for attempt in group if attempt.reward is not None]
    right = [text for text, attempt in zip(texts, group, strict=True) if attempt.success]
    of_right = text_metrics(right, settings)
    figures: dict[str, float | None] = {
        "n_groups": 1,
        "n_rollouts": len(group),
        "n_known": len(known),
        "success_count": sum(known) if known else None,
        "success_rate": sum(known) / len(known) if known else None,
        "mean_reward": math.fsum(rewards) / len(rewards) if rewards else None,
        **text_metrics(texts, settings),
        **{f"success_{name}": of_right.get(name) for name in OF_SUCCESSES},
        **{f"pass@{k}": pass_at_k(len(known), sum(known), k) for k in settings.ks if k <= len(known)},
    }
    return {name: value for name, value in figures.items() if value is not None}


def prompt_row(groups: Sequence[Sequence[Attempt]], settings: Settings) -> Row:
    """A prompt's figures: those of its groups, summed (counts) or averaged over the groups that define them."""
    tables = [group_metrics(group, settings) for group in groups]
    row: Row = {}
    for name in dict.fromkeys(name for table in tables for name in table):
        values = [table[name] for table in tables if name in table]
        row[name] = sum(values) if name in COUNTS else math.fsum(values) / len(values)
    return row


def summarise(rows: Sequence[Mapping[str, Any]], ks: Sequence[int]) -> Row:
    """A run's figures over its prompts, each prompt weighing the same.

    `{metric}_mean`, `{metric}_std` (of the population of prompts) and `{metric}_prompts`, how many define it.
    """
    summary: Row = {"num_prompts": len(rows), "num_responses": sum(row["n_rollouts"] for row in rows)}
    for name in metric_names(rows):
        values = [row[name] for row in rows if name in row]
        summary |= {
            f"{name}_mean": statistics.fmean(values),
            f"{name}_std": statistics.pstdev(values),
            f"{name}_prompts": len(values),
        }
    name = f"pass@{max(ks)}"
    correlation = pearson([(row["pairwise_text_distance"], row[name]) for row in rows if is_paired(row, name)])
    if correlation is not None:
        summary[f"corr_pairwise_text_distance_vs_{name}"] = correlation
    return summary


def metric_names(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """The names of all figures that any row has, in order; counts and texts aside."""
    names = dict.fromkeys(name for row in rows for name in row)
    return [name for name in names if name not in (*COUNTS, "method", "prompt_id", "prompt") or name == "success_count"]


def is_paired(row: Mapping[str, Any], name: str) -> bool:
    """Whether a row has a distance and this figure."""
    return "pairwise_text_distance" in row and name in row


def pearson(pairs: Sequence[tuple[float, float]]) -> float | None:
    """The correlation of pairs; None below three of them, or where one side does not vary."""
    if len(pairs) < 3 or any(len(set(side)) < 2 for side in zip(*pairs, strict=True)):
        return None
    return statistics.correlation(*zip(*pairs, strict=True))
