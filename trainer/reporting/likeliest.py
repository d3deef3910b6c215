"""The likeliest tokens of both sides as the page has them: small, and apart from all else of a group."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mopd.types import IntArray
from trainer.recorded import Likeliest, Side
from trainer.replaying.records import Tokens

PARTS = 1000
"""A probability is a whole number of these parts."""


def lists_of(tokens: Tokens, pieces: Callable[[IntArray], list[str]] | None) -> dict[str, Any] | None:
    """The likeliest tokens of a group's rollouts, as JSON has them; None where none were recorded.

    Args:
        tokens: of the group's rollouts, with `likeliest` by place in the group.
        pieces: the text of each token by itself; None shows numbers.

    Returns: `table`, texts or ids of the tokens, the most frequent first; `rollouts`, for each None or by side `ids`
    [T K] places in the table (-1: does not count), `chances` [T K] in thousandths (-1: none), and `sampled` [T], the
    place of the sampled token among the K (-1: not among them).
    """
    if not tokens.likeliest:
        return None
    sides = [lists for of_rollout in tokens.likeliest.values() for lists in of_rollout.values()]
    counts = Counter(np.concatenate([lists.ids[lists.ids >= 0] for lists in sides]).tolist())
    table = [token for token, _ in counts.most_common()]
    places = {token: place for place, token in enumerate(table)} | {-1: -1}
    told: Sequence[Any] = table if pieces is None else pieces(np.asarray(table, dtype=np.int32))
    rollouts = [
        by_side(tokens.likeliest.get(index, {}), token_ids, places) for index, token_ids in enumerate(tokens.token_ids)
    ]
    return {"table": list(told), "rollouts": rollouts}


def by_side(
    likeliest: Mapping[Side, Likeliest], token_ids: IntArray, places: Mapping[int, int]
) -> dict[str, Any] | None:
    """One rollout's lists, of either side that fits its tokens."""
    found: dict[str, Any] = {}
    for side, lists in likeliest.items():
        if len(lists.ids) != len(token_ids):
            continue
        same = lists.ids == token_ids[:, None]
        with np.errstate(invalid="ignore"):
            parts = np.rint(np.exp(lists.logprobs.astype(np.float64)) * PARTS)
        found[side] = {
            "ids": [places[token] for token in lists.ids.ravel().tolist()],
            "chances": np.where(np.isfinite(parts), parts, -1).astype(int).ravel().tolist(),
            "sampled": np.where(same.any(axis=1), same.argmax(axis=1), -1).tolist(),
        }
    return found or None
