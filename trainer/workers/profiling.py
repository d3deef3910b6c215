"""Workers that note what they do and when; `trainer.profile` puts them in the others' places."""

from __future__ import annotations

import json
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from mopd.types import FloatArray, IntArray
from trainer.packing import MiniBatch
from trainer.workers.policy import PolicyWorker, Update
from trainer.workers.sampler import SamplerWorker
from trainer.workers.sampler_types import Request, Response, SamplingSettings
from trainer.workers.state import Saving

MAX_OPERATORS = 40_000
"""Operators of a process that a trace keeps, the longest ones: some 6 MB."""
TOP = 40
"""Names of operators that are told with their own time."""
MARK = "trainer.profile"
"""By this span torch's clock is set to everybody's."""


@dataclass(frozen=True)
class Event:
    """Something that took a while."""

    name: str
    lane: str
    """What it lies in, of its process: a thread, or a GPU's queue."""
    begun_us: float
    """Microseconds of the machine's clock."""
    took_us: float
    details: Mapping[str, int] = field(default_factory=dict)

    @property
    def ended_us(self) -> float:
        """When it ended."""
        return self.begun_us + self.took_us


@dataclass(frozen=True)
class Own:
    """What operators of one name took, without what they called."""

    name: str
    calls: int
    seconds: float


@dataclass(frozen=True)
class Trace:
    """What one process did."""

    process: str
    spans: tuple[Event, ...]
    operators: tuple[Event, ...] = ()
    own: tuple[Own, ...] = ()
    """The operators that took most, the longest first."""
    dropped: int = 0
    """Short operators that are left out of `operators`; `own` has them."""


class Watch:
    """Notes spans of this process; of one that forwards models, torch's operators too."""

    def __init__(self, process: str) -> None:
        self.process = process
        self.spans: list[Event] = []
        self.running: tuple[profile, float] | None = None

    @contextmanager
    def span(self, name: str, **details: int) -> Iterator[None]:
        """Notes how long something takes."""
        begun = time.time_ns()
        try:
            yield
        finally:
            took = time.time_ns() - begun
            lane = threading.current_thread().name
            self.spans.append(Event(name, lane, begun / 1000, took / 1000, details))

    def record_operators(self) -> None:
        """Begins to note operators, unless that has begun."""
        if self.running is not None:
            return
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
        running = profile(activities=activities)
        running.start()
        with record_function(MARK):  # the first one is slow to begin
            pass
        self.running = running, time.time_ns() / 1000
        with record_function(MARK):
            pass

    def trace(self) -> Trace:
        """Everything that was noted; operators are noted no longer."""
        if self.running is None:
            return Trace(self.process, tuple(self.spans))
        (running, marked_us), self.running = self.running, None
        running.stop()
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "torch.json"
            running.export_chrome_trace(str(file))
            told = json.loads(file.read_text())["traceEvents"]
        operators = events_of(told, marked_us, os.getpid())
        kept = sorted(operators, key=lambda event: event.took_us)[-MAX_OPERATORS:]
        return Trace(self.process, tuple(self.spans), tuple(kept), own_times(operators), len(operators) - len(kept))


def events_of(told: Sequence[Mapping[str, Any]], marked_us: float, process: int) -> list[Event]:
    """Torch's events, on the machine's clock, of which the last `MARK` began at `marked_us`."""
    lasting = [event for event in told if event.get("ph") == "X" and event.get("cat") != "Trace"]
    mark = [event["ts"] for event in lasting if event["name"] == MARK][-1]
    return [
        Event(
            event["name"],
            f"operators {event['tid']}" if event["pid"] == process else f"GPU {event['pid']} queue {event['tid']}",
            event["ts"] - mark + marked_us,
            event.get("dur", 0.0),
        )
        for event in lasting
        if event["name"] != MARK
    ]


def own_times(events: Sequence[Event]) -> tuple[Own, ...]:
    """What operators took themselves, by name: their time without that of operators within."""
    own: dict[str, list[float]] = {}
    open_ends: dict[str, list[tuple[float, str]]] = {}
    """By lane, the events that are going on: their ends and names, the innermost last."""
    for event in sorted(events, key=lambda event: (event.begun_us, -event.took_us)):
        around = open_ends.setdefault(event.lane, [])
        while around and around[-1][0] <= event.begun_us:
            around.pop()
        if around:
            own[around[-1][1]][1] -= event.took_us
        sums = own.setdefault(event.name, [0, 0.0])
        sums[0] += 1
        sums[1] += event.took_us
        around.append((event.ended_us, event.name))
    longest = sorted(own.items(), key=lambda item: -item[1][1])[:TOP]
    return tuple(Own(name, int(calls), took_us / 1e6) for name, (calls, took_us) in longest)


class ProfiledPolicy(PolicyWorker):
    """An actor rank that notes its calls, and from the second update on torch's operators."""

    def __init__(self, *, rank: int, **arguments: Any) -> None:
        self.watch = Watch(f"actor rank {rank}")
        super().__init__(rank=rank, **arguments)

    def join(self, host: str, port: int) -> dict[str, str | int]:
        """As `PolicyWorker.join`."""
        with self.watch.span("join"):
            return super().join(host, port)

    def update(
        self,
        mini_batches: Sequence[MiniBatch],
        step: int,
        record: frozenset[int],
        taught: Mapping[int, Any] | None = None,
    ) -> Update:
        """As `PolicyWorker.update`."""
        if any(span.name == "learn" for span in self.watch.spans):
            self.watch.record_operators()
        with self.watch.span("learn", step=step, rank=self.rank):
            return super().update(mini_batches, step, record, taught)

    def publish(
        self, version: int, sequences: Sequence[IntArray], numbers: Sequence[int]
    ) -> tuple[list[FloatArray], list[list[FloatArray]]]:
        """As `PolicyWorker.publish`."""
        with self.watch.span("publish", version=version):
            return super().publish(version, sequences, numbers)

    def save(self, saving: Saving) -> None:
        """As `PolicyWorker.save`."""
        with self.watch.span("save"):
            super().save(saving)

    def trace(self) -> Trace:
        """What this process did."""
        return self.watch.trace()


class ProfiledSampler(SamplerWorker):
    """A sampler that notes its calls."""

    def __init__(self, **arguments: Any) -> None:
        self.watch = Watch("sampler")
        with self.watch.span("start"):
            super().__init__(**arguments)

    def sample(
        self, requests: Sequence[Request], settings: SamplingSettings
    ) -> Iterator[tuple[int, list[tuple[int, Response]]]]:
        """As `SamplerWorker.sample`."""
        with self.watch.span("sample", requests=len(requests), max_tokens=settings.max_tokens):
            yield from super().sample(requests, settings)

    def update_weights(self, update_info: Mapping[str, Any]) -> None:
        """As `SamplerWorker.update_weights`."""
        with self.watch.span("update weights"):
            super().update_weights(update_info)

    def finish_weight_update(self, version: int) -> None:
        """As `SamplerWorker.finish_weight_update`."""
        with self.watch.span("finish weight update", version=version):
            super().finish_weight_update(version)

    def score(self, sequences: Sequence[IntArray]) -> list[FloatArray]:
        """As `SamplerWorker.score`."""
        with self.watch.span("score", sequences=len(sequences)):
            return super().score(sequences)

    def trace(self) -> Trace:
        """What this process did."""
        return self.watch.trace()
