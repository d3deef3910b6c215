"""What a step did with its time: operations, tokens and seconds, as metrics; docs/performance.md says how to read them.

A rank counts as it goes (`Account`) and hands over its sums (`Tally`); the controller makes figures of all ranks' sums.
Credited is what the model has to compute: no padding, no position projected that no loss asks for, no recomputation.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Literal

import torch
from torch.profiler import record_function

from mopd.types import IntArray
from trainer.memory_use import Peaks, memory_metrics, peaks
from trainer.packing import Sample, loss_mask

if TYPE_CHECKING:
    from trainer.layout import TokenBatch
    from trainer.planning.architecture import Architecture

Role = Literal["trained", "student", "teacher", "early", "distant"]
"""Whose forward passes: the student's that a backward pass follows, its others, the teacher's or reference's beside it,
that teacher's before the update began, and those of a teacher elsewhere, which takes no time of this rank's device."""

PEAKS: Mapping[str, float] = {
    "GH200": 989e12,
    "H200 NVL": 835e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
}
"""Operations per second, dense, in bf16, by what the device's name contains; from datasheets."""
ASIDE = ("validate", "save")
"""Phases that belong to no step in particular."""
WORKING = ("sample", "redraw", "publish")
"""Phases that are not the framework's own doing; of `learn`, that is what the slowest rank took."""
UPDATE = "timing_s/update_actor"
"""What the slowest rank took."""


def peak_of(name: str | None) -> float | None:
    """The peak of a device, by what `torch.cuda.get_device_name` says; None where it is unknown, or there is none.

    The longest name counts: a GH200 is no H200, and an H100 PCIe is slower than the others.
    """
    known = [part for part in sorted(PEAKS, key=len, reverse=True) if name is not None and part in name]
    return PEAKS[known[0]] if known else None


def causal_pairs(tokens: int) -> int:
    """How many pairs attend in a sequence: each token to itself and to those ahead of it."""
    return tokens * (tokens + 1) // 2


@dataclass(frozen=True)
class Pass:
    """Sums over forward passes of one kind."""

    tokens: int = 0
    """Forwarded, padding included."""
    useful: int = 0
    """Of these, all but padding."""
    pairs: int = 0
    """Of a useful token with one that it attends to; see `causal_pairs`."""
    rows: int = 0
    """Hidden states that were multiplied by the output layer."""
    labels: int = 0
    """Response tokens that count in the loss: the rows that had to be."""

    def __add__(self, other: Pass) -> Pass:
        return Pass(
            self.tokens + other.tokens,
            self.useful + other.useful,
            self.pairs + other.pairs,
            self.rows + other.rows,
            self.labels + other.labels,
        )


def pass_of(batch: TokenBatch, lengths: Sequence[int], *, rows: int, labels: int) -> Pass:
    """The sums of one forward pass; nothing is read back from a GPU.

    Args:
        batch: the layout that was forwarded.
        lengths: of prompt and response of each of its rows, together; they tell padding from tokens.
        rows: hidden states that were multiplied by the output layer.
        labels: response tokens that count in the loss.
    """
    if batch.segments is None:
        pairs = sum(causal_pairs(length) for length in lengths)
        return Pass(batch.tokens_forwarded, sum(lengths), pairs, rows, labels)
    pairs = sum(run.count * causal_pairs(run.length) for run in batch.segments.runs)
    pairs += sum(branch.rest.length * branch.prefix.length for branch in batch.segments.branches)
    return Pass(batch.tokens_forwarded, batch.tokens_forwarded, pairs, rows, labels)


def pass_over(batch: TokenBatch, samples: Sequence[Sample], *, on_view: bool) -> Pass:
    """The sums of a forward pass over these samples, behind the teacher's prompts if `on_view`, else the student's.

    All response tokens that `batch` still has are projected. Of no samples, whatever is forwarded is padding.
    """
    if not samples:
        return Pass(tokens=batch.tokens_forwarded, rows=len(batch.tokens))
    lengths = [len(prompt_of(sample, on_view)) + len(sample.response_ids) for sample in samples]
    labels = sum(int((loss_mask(sample) != 0).sum()) for sample in samples)
    return pass_of(batch, lengths, rows=len(batch.tokens), labels=labels)


def prompt_of(sample: Sample, on_view: bool) -> IntArray:
    """What a response is forwarded behind; without a prompt for the teacher, the student's."""
    view = sample.teacher_prompt_ids if on_view else None
    return sample.prompt_ids if view is None else view


@dataclass(frozen=True)
class Tally:
    """What one rank did in one update."""

    passes: Mapping[Role, Pass]
    seconds: Mapping[str, float]
    """By phase of the update."""
    device: str | None
    """The name of the rank's GPU; None on a CPU."""
    memory: Peaks | None = None
    """The most that its process held since the last update."""


@dataclass
class Account:
    """Counts what one rank does in one update."""

    device: torch.device
    passes: dict[Role, Pass] = field(default_factory=dict)
    turns: list[tuple[str, float | torch.cuda.Event, float | torch.cuda.Event]] = field(default_factory=list)
    """Phase, beginning and end."""

    def forwarded(self, role: Role, work: Pass) -> None:
        """Adds a forward pass."""
        self.passes[role] = self.passes.get(role, Pass()) + work

    @contextmanager
    def turn(self, phase: str) -> Iterator[None]:
        """Times a phase of the update, and names it in a profile. Turns do not overlap."""
        begun = self.now()
        with record_function(phase):
            yield
        self.turns.append((phase, begun, self.now()))

    def now(self) -> float | torch.cuda.Event:
        """This moment: on a GPU that of its queue of work, which nobody waits for."""
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def closed(self) -> Tally:
        """The sums; on a GPU this waits for the work to end."""
        name = None
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            name = torch.cuda.get_device_name(self.device)
        seconds: dict[str, float] = {}
        for phase, begun, ended in self.turns:
            seconds[phase] = seconds.get(phase, 0.0) + between(begun, ended)
        return Tally(dict(self.passes), seconds, name, peaks(self.device.type))


def between(begun: float | torch.cuda.Event, ended: float | torch.cuda.Event) -> float:
    """Seconds from one moment to another, both of one kind."""
    if isinstance(begun, float) or isinstance(ended, float):
        return float(ended) - float(begun)  # type: ignore[arg-type]
    return float(begun.elapsed_time(ended)) / 1000


def model_flops(passes: Mapping[Role, Pass], student: Architecture, teacher: Architecture | None = None) -> float:
    """Operations that these passes and their backward passes had to take.

    A backward pass is two forward passes. `teacher` is None where it is shaped like the student.
    """
    from trainer.planning.costs import forward_flops  # here, for it imports the models' library

    def forward(role: Role, model: Architecture) -> float:
        work = passes.get(role, Pass())
        length = 2 * work.pairs / work.useful if work.useful else 0.0
        return forward_flops(model, work.useful, length, work.labels)

    return 3 * forward("trained", student) + forward("student", student) + forward("teacher", teacher or student)


def ideal_tokens(samples: Sequence[Sample], *, student_passes: int, teacher_passes: int) -> int:
    """The fewest tokens that an update can forward.

    For the student prompt and response of every sample that has a loss; for whoever answers beside it every different
    prompt once, and the responses. A sample without a prompt for the teacher is answered on the student's.
    """
    usable = [sample for sample in samples if loss_mask(sample).any()]
    responses = sum(len(sample.response_ids) for sample in usable)
    own = sum(len(sample.prompt_ids) for sample in usable) + responses
    distinct = {prompt.tobytes(): len(prompt) for prompt in (prompt_of(sample, True) for sample in usable)}
    return student_passes * own + teacher_passes * (sum(distinct.values()) + responses)


def actor_metrics(
    tallies: Sequence[Tally],
    *,
    ideal: int,
    seconds: float,
    student: Architecture | None = None,
    teacher: Architecture | None = None,
) -> dict[str, float]:
    """Figures of an update over its ranks. `seconds` is what the slowest took, `ideal` from `ideal_tokens`.

    Of nothing there is no figure: no ratio to 0 tokens, and no utilisation where `student` is not given or a rank's
    peak is not known.
    """
    passes = reduce(add, (work for tally in tallies for work in tally.passes.values()), Pass())
    figures: dict[str, float] = {
        UPDATE: seconds,
        "perf/tokens_forwarded": passes.tokens,
        "perf/rows_projected": passes.rows,
    }
    if ideal:
        figures["perf/tokens_forwarded_ratio"] = passes.tokens / ideal
    if passes.labels:
        figures["perf/rows_projected_ratio"] = passes.rows / passes.labels
    if passes.tokens:
        figures["perf/padding_fraction"] = 1 - passes.useful / passes.tokens
    for phase in dict.fromkeys(phase for tally in tallies for phase in tally.seconds):
        figures[f"timing_s/learn/{phase}"] = max(tally.seconds.get(phase, 0.0) for tally in tallies)
    figures |= memory_metrics("actor", [tally.memory for tally in tallies if tally.memory is not None])
    peaks = [peak_of(tally.device) for tally in tallies]
    known = [peak for peak in peaks if peak is not None]
    if student is not None and known and len(known) == len(peaks) and seconds > 0:
        operations = sum(model_flops(tally.passes, student, teacher) for tally in tallies)
        figures["perf/mfu/actor"] = operations / (seconds * sum(known))
    return figures


def step_metrics(timings: Mapping[str, float], *, tokens: int, response_tokens: int, devices: int) -> dict[str, float]:
    """Figures of a step, validation and saving aside.

    Args:
        timings: seconds by phase, `timing_s/step`, and `timing_s/update_actor`, without which all of `learn` counts as
            work; other metrics may be among them.
        tokens: of all prompts and responses of the step.
        response_tokens: of the responses alone.
        devices: that the actor takes.
    """
    seconds = timings["timing_s/step"] - sum(timings.get(f"timing_s/{phase}", 0.0) for phase in ASIDE)
    if seconds <= 0:
        return {}
    working = sum(timings.get(f"timing_s/{phase}", 0.0) for phase in WORKING)
    working += timings.get(UPDATE, timings.get("timing_s/learn", 0.0))
    return {
        "perf/total_num_tokens": tokens,
        "perf/time_per_step": seconds,
        "perf/throughput": tokens / (seconds * devices),
        "perf/response_tokens_per_s": response_tokens / seconds,
        # Phases that overlap add up to more than the step.
        "perf/framework_overhead": max(0.0, 1 - working / seconds),
    }
