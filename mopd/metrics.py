"""Evaluation of sampled answers: mean@k and unbiased pass@k (HumanEval, arXiv 2107.03374)."""

from __future__ import annotations

import math
from collections.abc import Sequence

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


def evaluate_groups(successes_by_prompt: Sequence[Sequence[bool | None]], k: int) -> dict[str, float]:
    """mean@k and pass@k over the prompts of one data source, each prompt weighing the same.

    A success of None is unknown: neither right nor wrong, it is left out and counted. mean@k is over prompts
    with any known sample; pass@k over those with at least k, since fewer cannot estimate it. A figure that no
    prompt supports is absent.

    Returns `prompts`, `unknown` (samples left out), `short_prompts` (prompts left out of pass@k), and, with k
    filled in, `mean@k` and `pass@k`. Raises ValueError unless k >= 1.

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
    if some:
        figures[f"mean@{k}"] = mean_at_k(some)
    if enough:
        figures[f"pass@{k}"] = math.fsum(pass_at_k(len(p), sum(p), k) for p in enough) / len(enough)
    return figures
