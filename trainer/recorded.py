"""What a run keeps of a few rollouts of every step, token by token: divergence, and the likeliest tokens of both sides.

    of the actor    {index: Recorded}        by index in sampling order
    of the disk     arrays_of(recorded)      beside the tokens of the step's rollouts, in `rollouts/<step>.npz`
    of the reader   recorded_in(arrays)      the same again

T  tokens of a response        K  likeliest tokens, the likeliest first
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from mopd.types import FloatArray, IntArray

LIKELIEST = 5
"""K, unless the vocabulary is smaller."""
ROLLOUTS = "recorded_rollouts"
"""The array that names the rollouts, by index in sampling order."""

Side = Literal["student", "teacher"]
"""Whose tokens; where a method has a reference in place of a teacher, that is meant."""


@dataclass(frozen=True)
class Likeliest:
    """The likeliest next tokens at every token of a response, in falling order."""

    ids: IntArray
    """[T, K]; -1 at tokens that do not count in the loss."""
    logprobs: npt.NDArray[np.float16]
    """[T, K], at the temperature of the loss; not-a-number where there is no distribution."""


@dataclass(frozen=True)
class Recorded:
    """What is kept of one rollout; all of it of the moment at which the loss was taken."""

    divergence: FloatArray | None = None
    """[T], 0 at tokens that do not count; None where no distributions are compared."""
    likeliest: Mapping[Side, Likeliest] | None = None
    """Of whoever was asked; None where the actor kept none."""


def divergences_of(recorded: Mapping[int, Recorded]) -> dict[int, FloatArray]:
    """The divergences among what was recorded, by index."""
    return {index: one.divergence for index, one in recorded.items() if one.divergence is not None}


def arrays_of(recorded: Mapping[int, Recorded]) -> dict[str, npt.NDArray[Any]]:
    """The likeliest tokens as arrays for an `.npz`; nothing where there are none.

    `recorded_rollouts` [R] int32; for each side that all of them have, end to end, `<side>_likeliest_ids` int32 and
    `<side>_likeliest_logprobs` fp16, [sum of T, K].
    """
    kept = {index: one.likeliest for index, one in sorted(recorded.items()) if one.likeliest}
    if not kept:
        return {}
    arrays: dict[str, npt.NDArray[Any]] = {ROLLOUTS: np.asarray(list(kept), dtype=np.int32)}
    for side in get_args(Side):
        lists = [likeliest[side] for likeliest in kept.values() if side in likeliest]
        if len(lists) == len(kept):
            arrays[f"{side}_likeliest_ids"] = np.concatenate([one.ids for one in lists])
            arrays[f"{side}_likeliest_logprobs"] = np.concatenate([one.logprobs for one in lists])
    return arrays


def recorded_in(arrays: Mapping[str, npt.NDArray[Any]]) -> dict[int, dict[Side, Likeliest]]:
    """The likeliest tokens that `arrays_of` put into an `.npz`, which also has the `lengths` of all rollouts.

    Raises:
        ValueError, KeyError, IndexError: the arrays are not of one step.
    """
    if ROLLOUTS not in arrays:
        return {}
    names = arrays[ROLLOUTS]
    ends = np.cumsum(arrays["lengths"][names])
    found: dict[int, dict[Side, Likeliest]] = {int(name): {} for name in names}
    for side in get_args(Side):
        if f"{side}_likeliest_ids" not in arrays:
            continue
        ids, logprobs = arrays[f"{side}_likeliest_ids"], arrays[f"{side}_likeliest_logprobs"]
        if not ids.ndim == 2 or ids.shape != logprobs.shape or len(ids) != ends[-1]:
            raise ValueError(f"{side}: lists of {len(ids)} tokens, of {ends[-1]}")
        parts = zip(names, np.split(ids, ends[:-1]), np.split(logprobs, ends[:-1]), strict=True)
        for name, ids_T, logprobs_T in parts:
            found[int(name)][side] = Likeliest(ids_T, logprobs_T)
    return found
