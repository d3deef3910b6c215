"""How well scores tell right responses from wrong ones, and what a response says: figures of groups of rollouts.

    pairwise_accuracy, auc     of one prompt's rollouts; None where they say nothing, never 0
    over_prompts               their mean over prompts, with a bootstrap by prompt
    copied_share               how much of a response stands in what its teacher was shown
    uncertainty                how often a response hesitates

A score is a number per rollout: the mean log-prob that a teacher gives to its tokens, say. A score or a reward that is
not a number is unknown, and its rollout is left out. Runs and the analysis of recorded rollouts share this.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Numbers = Sequence[float] | npt.NDArray[np.floating]
DoubleArray = npt.NDArray[np.float64]

DRAWS, SEED, CONFIDENCE = 2000, 12345, 0.95
"""Of the bootstrap, as published."""
LEAST_PROMPTS = 8
"""For an interval. Of fewer the bootstrap's is far too narrow: what is called 95 % misses the truth in 49 % of cases
for 2 prompts, 20 % for 4, 11 % for 8, 8 % for 16, 6 % for 32."""
NGRAM = 8
"""Words in a row that count as copied: long enough that two authors rarely agree on them by chance."""
WORD = re.compile(r"\w+|[^\w\s]")
"""A word, a number, or one other sign; blanks part them and count for nothing else."""
SPOKEN = re.compile(r"\w+(?:['\u2019]\w+)*")
"""A word or a number as it is spoken: signs are none."""
HEDGES = (
    *("actually", "alternatively", "apparently", "guess", "hmm", "hm", "likely", "maybe", "might", "perhaps"),
    *("possibly", "presumably", "probably", "seems", "uncertain", "unclear", "unsure", "wait"),
    *("double check", "i believe", "i think", "let me check", "let me see", "let me verify", "not sure"),
)
"""What hesitation sounds like, in English: words and phrases, each occurrence one."""
HEDGE = re.compile(rf"\b(?:{'|'.join(hedge.replace(' ', '[ -]') for hedge in HEDGES)})\b", re.IGNORECASE)


@dataclass(frozen=True)
class Estimate:
    """A mean over prompts, each weighing the same, with its bootstrap interval."""

    mean: float
    prompts: int
    """That have a value."""
    low: float | None
    """The interval's ends; None for fewer than `LEAST_PROMPTS` prompts."""
    high: float | None


def pairwise_accuracy(scores: Numbers, rewards: Numbers) -> float | None:
    """The share of pairs of unequal reward in which the better one has the higher score; equal scores count half.

    Args:
        scores, rewards: `[G]`, of one prompt's rollouts.

    Returns: None where no two known rewards differ. Raises ValueError on unequal lengths.
    """
    scores_G, rewards_G = np.asarray(scores, dtype=np.float64), np.asarray(rewards, dtype=np.float64)
    if scores_G.shape != rewards_G.shape or scores_G.ndim != 1:
        raise ValueError(f"scores have shape {scores_G.shape}, rewards {rewards_G.shape}; both must be [G]")
    known = ~(np.isnan(scores_G) | np.isnan(rewards_G))
    scores_G, rewards_G = scores_G[known], rewards_G[known]
    better_G_G = rewards_G[:, None] > rewards_G
    if not better_G_G.any():
        return None
    above_G_G = (scores_G[:, None] > scores_G) + 0.5 * (scores_G[:, None] == scores_G)
    return float(above_G_G[better_G_G].mean())


def auc(scores: Numbers, right: Numbers) -> float | None:
    """The area under the ROC curve: how often a right rollout has a higher score than a wrong one, ties half.

    This is the statistic of Mann and Whitney (1947) over the number of pairs.

    Args:
        scores, right: `[G]`, of one prompt's rollouts; `right` is 1 or 0, not-a-number where unknown.

    Returns: None where all that are known are right, or all wrong. Raises ValueError on unequal lengths.
    """
    return pairwise_accuracy(scores, right)


def over_prompts(
    values: Sequence[float | None], *, draws: int = DRAWS, seed: int = SEED, confidence: float = CONFIDENCE
) -> Estimate | None:
    """The mean over those prompts that have a value, with the percentile interval of a bootstrap by prompt.

    Whole prompts are drawn, with replacement (Efron and Tibshirani 1993, section 13.3): rollouts of one prompt are no
    independent witnesses. The same seed gives the same draws for every figure of as many prompts.

    Fewer than `LEAST_PROMPTS` prompts have no interval.

    Returns: None where no prompt has a value. Raises ValueError unless draws >= 1 and 0 < confidence < 1.
    """
    if draws < 1 or not 0.0 < confidence < 1.0:
        raise ValueError(f"draws={draws!r}, confidence={confidence!r}; need draws >= 1 and 0 < confidence < 1")
    known_P = np.asarray([value for value in values if value is not None], dtype=np.float64)
    if len(known_P) == 0:
        return None
    mean = float(known_P.mean())
    if len(known_P) < LEAST_PROMPTS:
        return Estimate(mean, len(known_P), None, None)
    beside = (1.0 - confidence) / 2
    low, high = np.quantile(resamples(len(known_P), draws, seed) @ known_P, [beside, 1.0 - beside])
    return Estimate(mean, len(known_P), float(low), float(high))


@lru_cache(maxsize=4)
def resamples(prompts: int, draws: int, seed: int) -> DoubleArray:
    """`[draws, prompts]`, the share of each prompt in every draw of as many with replacement."""
    chosen_D_P = np.random.default_rng(seed).integers(prompts, size=(draws, prompts))
    chosen_D_P += np.arange(draws)[:, None] * prompts
    counts = np.bincount(chosen_D_P.ravel(), minlength=draws * prompts)
    shares_D_P: DoubleArray = counts.reshape(draws, prompts) / prompts
    return shares_D_P


def ngrams(text: str, n: int = NGRAM) -> list[tuple[str, ...]]:
    """Every run of n words and signs of a text, in order; none of a shorter text."""
    words = WORD.findall(text)
    return list(zip(*(words[start:] for start in range(n)), strict=False))


def copied_share(
    response: Sequence[tuple[str, ...]], shown: Sequence[frozenset[tuple[str, ...]]], prompt: frozenset[tuple[str, ...]]
) -> float | None:
    """The share of a response's n-grams that stand in a text shown to its teacher and not in the prompt.

    Args:
        response: its n-grams, each occurrence.
        shown: the n-grams of each text.

    Returns: None where nothing was shown, or the response has no n-gram.
    """
    if not response or not shown:
        return None
    return sum(gram not in prompt and any(gram in text for text in shown) for gram in response) / len(response)


def uncertainty(texts: Sequence[str]) -> float | None:
    """How many of `HEDGES` stand in a thousand words of the texts, all together; None where there is no word."""
    words = sum(len(SPOKEN.findall(text)) for text in texts)
    return 1000 * sum(len(HEDGE.findall(text)) for text in texts) / words if words else None
