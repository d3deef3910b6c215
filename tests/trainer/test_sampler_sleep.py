"""The order in which a sampler on a GPU gives up its memory and takes it back, on an engine that writes it down.

There is no engine without a GPU that sleeps: whether vLLM's does as it is told is not shown here.
"""

from __future__ import annotations

from typing import Any

import pytest

from trainer.workers.sampler import SamplerWorker
from trainer.workers.sampler_types import SamplingSettings


class Engine:
    """Writes down what it is asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def sleep(self, level: int) -> None:
        self.asked.append(f"sleep {level}")

    def wake_up(self, tags: list[str]) -> None:
        self.asked.append(f"wake {tags}")

    def collective_rpc(self, method: str, kwargs: Any = None) -> None:
        self.asked.append(method)

    def reset_prefix_cache(self) -> None:
        self.asked.append("reset")


def worker_on(engine: Engine, on_cpu: bool) -> SamplerWorker:
    """A sampler around an engine that is there already."""
    worker = object.__new__(SamplerWorker)
    worker.engine, worker.on_cpu, worker.version, worker.whole, worker.asleep = engine, on_cpu, 3, True, False
    return worker


def test_weights_have_room_before_they_come_and_the_cache_after() -> None:
    worker = worker_on(engine := Engine(), on_cpu=False)
    worker.sleep()
    with pytest.raises(RuntimeError, match="version 3 have not come"):
        next(worker.sample([], SamplingSettings(1.0, 1.0, 4)))
    for version in (4, 5):
        worker.start_weight_update()
        worker.update_weights({})
        worker.finish_weight_update(version)
    update = ["start_weight_update", "update_weights", "finish_weight_update"]
    assert engine.asked == [
        "sleep 2",
        "wake ['weights']",
        *update,
        "wake ['kv_cache']",
        "reset",
        *update,  # nobody slept in between
        "reset",
    ]
    assert (worker.version, worker.whole) == (5, True)


def test_without_a_gpu_there_is_nothing_to_give_up() -> None:
    worker = worker_on(engine := Engine(), on_cpu=True)
    worker.sleep()
    assert not engine.asked
    assert worker.whole
