"""Weights on their way to several samplers, one of which is lost."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from trainer import cluster
from trainer.weights import Bucket, Link, Transfer, publish


class Told(Link):
    """A way that only notes what is done on it, and may be lost at a bucket."""

    dtype = torch.float32

    def __init__(self, lost_at: str | None = None) -> None:
        self.lost_at, self.heard = lost_at, list[str]()
        super().__init__(None, Transfer("gloo", 8, 1.0))

    def connect(self) -> None:
        """It is open."""

    def call(self, method: str, *arguments: Any) -> Any:
        self.heard.append(method)

    def hand_over(self, bucket: Bucket) -> None:
        """See `send`."""

    def send(self, bucket: Bucket, place: str) -> None:
        if place == self.lost_at:
            raise cluster.WorkerDiedError(f"lost at {place}")
        self.heard.append(place)


def weights() -> Any:
    """Three buckets of one weight each."""
    return iter([(str(number), torch.zeros(2)) for number in range(3)])


@pytest.mark.parametrize("lost_at", ["1 of 3", "2 of 3", "3 of 3"])
@pytest.mark.parametrize("first", [True, False])
def test_a_sampler_that_is_lost_leaves_no_other_with_half_the_weights(lost_at: str, first: bool) -> None:
    dead, alive = Told(lost_at), Told()
    with pytest.raises(cluster.WorkerDiedError, match=f"lost at {lost_at}"):
        publish([dead, alive] if first else [alive, dead], weights(), [2, 2, 2], 7, [])
    every = ["1 of 3", "2 of 3", "3 of 3"]
    assert alive.heard == ["start_weight_update", *every, "finish_weight_update", "score"]
    assert "finish_weight_update" not in dead.heard


def test_where_all_are_lost_nothing_more_is_sent() -> None:
    one, other = Told("1 of 3"), Told("2 of 3")
    with pytest.raises(cluster.WorkerDiedError, match="lost at 1 of 3"):
        publish([one, other], weights(), [2, 2, 2], 7, [])
    assert other.heard == ["start_weight_update", "1 of 3"]
