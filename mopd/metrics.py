"""Evaluation of sampled answers: mean@k, unbiased pass@k (HumanEval, arXiv 2107.03374), majority vote.

An unknown outcome (None) is neither right nor wrong: it is left out, and counted.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np

Flags = Sequence[bool | float]
"""The successes of one prompt's samples: booleans, or fractions in [0, 1]."""


def mean_at_k(successes: Flags | Sequence[Flags]) -> float:
    """The mean success of one prompt's k samples.

    Of several prompts' samples (nested) it is the mean over prompts, each prompt weighing the same.

    Raises ValueError if there is no prompt or no sample, or if a success lies outside [0, 1] (None included:
    leave unknown outcomes out, as `evaluate_groups` does).
    """
    if len(successes) == 0:
        raise ValueError("successes are empty; mean@k needs at least one sample")
    if np.ndim(successes[0]) > 0:
        return float(np.mean([mean_at_k(prompt) for prompt in successes]))  # type: ignore[arg-type]
    flags_K = np.asarray(successes, dtype=float)
    if not bool(np.all((flags_K >= 0.0) & (flags_K <= 1.0))):
        raise ValueError(f"successes are {list(successes)!r}; each must lie in [0, 1]")
    return float(flags_K.mean())


def pass_at_k(n: int, c: int, k: int) -> float:
    """The probability that k samples, drawn without replacement from n of which c succeed, hold a success.

    1 - C(n - c, k) / C(n, k), the unbiased estimator of pass@k; computed in integers and rounded once.
    Raises ValueError unless 0 <= c <= n and 1 <= k <= n.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"n={n!r}, c={c!r}, k={k!r}; need 0 <= c <= n successes and 1 <= k <= n draws")
    every = math.comb(n, k)
    return (every - math.comb(n - c, k)) / every


def best_at_k_bootstrap(scores: Sequence[float], k: int, *, draws: int = 1000, seed: int = 42) -> float:
    """The mean over draws of the best of k scores, drawn *with* replacement: the published best@k.

    Here for `reference_compat` only, and digit by digit: with replacement it is too low (one success of eight
    gives a best@8 of about 0.66). `pass_at_k` is the unbiased figure. The same seed is used for every prompt.
    Raises ValueError without a score, or unless k and draws are at least 1.
    """
    if len(scores) == 0 or k < 1 or draws < 1:
        raise ValueError(f"{len(scores)} scores, k={k!r}, draws={draws!r}; each must be at least 1")
    chosen_D_K = np.random.RandomState(seed).choice(len(scores), size=(draws, k), replace=True)
    return float(np.asarray(scores, dtype=float)[chosen_D_K].max(axis=1).mean())


def maj_at_k(predictions: Sequence[Hashable | None], successes: Sequence[bool | float | None]) -> float | None:
    """The success of the answer that most of one prompt's k samples gave.

    Args:
        predictions: `[k]` the answer extracted from each sample; None where there is none, which is no vote.
        successes: `[k]`; a sample of unknown success (None) has no vote either.

    Of answers with equally many votes the first seen wins; of its samples the first one's success counts.

    Returns: 0 if no sample gave an answer, None if no success is known. Raises ValueError on unequal lengths.
    """
    samples = [(p, float(s)) for p, s in zip(predictions, successes, strict=True) if s is not None]
    votes = Counter(prediction for prediction, _ in samples if prediction is not None)
    if not votes:
        return 0.0 if samples else None
    ((winner, _),) = votes.most_common(1)
    return next(success for prediction, success in samples if prediction == winner)


def evaluate_groups(
    successes_by_prompt: Sequence[Sequence[bool | None]],
    k: int,
    *,
    predictions_by_prompt: Sequence[Sequence[Hashable | None]] | None = None,
    rewards_by_prompt: Sequence[Sequence[float | None]] | None = None,
    bootstrap: bool = False,
) -> dict[str, float]:
    """The figures of the prompts of one data source, each prompt weighing the same.

    Args:
        successes_by_prompt: of every prompt's samples; None is unknown.
        k: of `mean@k` and the others. mean@k is over prompts with any known sample, pass@k over those with at
            least k, since fewer cannot estimate it.
        predictions_by_prompt: of the same samples, for `maj@k`; see `maj_at_k`.
        rewards_by_prompt: of the same samples, for partial credit beside success, such as the share of unit
            tests that passed.
        bootstrap: adds the published `best@k`, over prompts with any known sample.

    Returns: `prompts`, `unknown` (samples left out), `short_prompts` (prompts left out of pass@k), and, with k
    filled in, `mean@k`, `pass@k`, and as asked `maj@k`, `credit@k` (the mean reward), `best@k`. A figure that no
    prompt supports is absent. Raises ValueError unless k >= 1 and predictions pair up with successes.

    Example: `evaluate_groups([[True, False], [False, None]], 2)` is
    `{"prompts": 2.0, "unknown": 1.0, "short_prompts": 1.0, "mean@2": 0.25, "pass@2": 1.0}`
    """
    if k < 1:
        raise ValueError(f"k is {k!r}; it must be at least 1")
    known = [[bool(flag) for flag in prompt if flag is not None] for prompt in successes_by_prompt]
    some = [prompt for prompt in known if prompt]
    enough = [prompt for prompt in known if len(prompt) >= k]
    figures = {
        "prompts": float(len(known)),
        "unknown": float(sum(flag is None for prompt in successes_by_prompt for flag in prompt)),
        "short_prompts": float(len(known) - len(enough)),
    }
    by_figure: dict[str, list[float]] = {
        "mean": [mean_at_k(prompt) for prompt in some],
        "pass": [pass_at_k(len(prompt), sum(prompt), k) for prompt in enough],
        "maj": _majorities(predictions_by_prompt, successes_by_prompt),
        "credit": [mean_at_k(prompt) for prompt in map(_known, rewards_by_prompt or ()) if prompt],
        "best": [best_at_k_bootstrap(prompt, k) for prompt in some] if bootstrap else [],
    }
    return figures | {f"{name}@{k}": math.fsum(values) / len(values) for name, values in by_figure.items() if values}


def _majorities(
    predictions: Sequence[Sequence[Hashable | None]] | None, successes: Sequence[Sequence[bool | None]]
) -> list[float]:
    """maj@k of every prompt that has one."""
    if predictions is None:
        return []
    return _known([maj_at_k(p, s) for p, s in zip(predictions, successes, strict=True)])


def _known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]
