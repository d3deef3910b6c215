"""The teacher at work while others are still decoded: finished groups are shown to it as they come.

Its hidden states of the tokens that count wait in the object store until the update, which then forwards no teacher.
What was not shown early is shown at the update's beginning: all ranks forward the same number of micro-batches, so
either all of an update's states are there or none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from mopd.types import Group, Outcome, Rollout
from trainer import cluster
from trainer.packing import Packing, Sample, loss_mask, plan_mini_batch

Finished = Callable[[Sequence[Group]], None]
"""Is told of groups whose rollouts all have their outcomes."""


class EarlyTeacher:
    """Asks the actor's ranks for a teacher's states, group by group, and knows where they are."""

    def __init__(self, workers: Sequence[Any], packing: Packing) -> None:
        self.workers, self.packing = workers, packing
        self.states: dict[bytes, Any] = {}
        """References to states [M, H], by what they are of."""

    def begin(self) -> None:
        """Forgets what was asked for: a new step's rollouts are about to be drawn."""
        self.states.clear()

    def show(self, samples: Sequence[Sample]) -> None:
        """Asks for the states of those that are not known yet and carry loss; returns at once."""
        fresh = {key_of(sample): sample for sample in samples if loss_mask(sample).any()}
        fresh = {key: sample for key, sample in fresh.items() if key not in self.states}
        if not fresh:
            return
        plans = plan_mini_batch(list(fresh.values()), len(self.workers), self.packing)
        for worker, plan in zip(self.workers, plans, strict=True):
            shown = [sample for micro_batch in plan.micro_batches for sample in micro_batch]
            answers = cluster.ask_many(worker.teach, len(shown), plan)
            self.states |= zip(map(key_of, shown), answers, strict=True)

    def complete(self, samples: Sequence[Sample]) -> tuple[dict[int, Any], dict[str, float]]:
        """A reference to the states of every sample that carries loss, by index; how many of them were early."""
        wanted = {sample.index: key_of(sample) for sample in samples if loss_mask(sample).any()}
        early = [key in self.states for key in wanted.values()]
        self.show(samples)
        figures = {"perf/teacher_early_fraction": sum(early) / len(early)} if early else {}
        return {index: self.states[key] for index, key in wanted.items()}, figures


def key_of(sample: Sample) -> bytes:
    """What a teacher's states depend on: its prompt, the response, and which tokens count."""
    prompt = b"" if sample.teacher_prompt_ids is None else sample.teacher_prompt_ids.tobytes()
    whole = hashlib.sha256(len(prompt).to_bytes(8, "little") + prompt)
    whole.update(sample.response_ids.tobytes())
    whole.update((loss_mask(sample) != 0).tobytes())
    return whole.digest()


class Watch:
    """Tells of groups once all their rollouts have outcomes, while others are still decoded."""

    def __init__(
        self,
        groups: Sequence[Group],
        n: int,
        outcomes: Callable[[Sequence[Rollout]], tuple[Outcome, ...] | None],
        finished: Finished,
    ) -> None:
        """`groups` have no rollouts yet, each will have `n`; `outcomes` gives those of rollouts that all have one."""
        self.waiting = dict(enumerate(groups))
        self.n, self.outcomes, self.finished = n, outcomes, finished

    def look(self, found: Mapping[int, Rollout]) -> None:
        """Looks at the rollouts that are there, by the numbers of their requests."""
        ready = {}
        for number, group in self.waiting.items():
            rollouts = [found.get(request) for request in range(number * self.n, (number + 1) * self.n)]
            there = tuple(rollout for rollout in rollouts if rollout is not None)
            outcomes = self.outcomes(there) if len(there) == self.n else None
            if outcomes is not None:
                ready[number] = replace(group, rollouts=there, outcomes=outcomes)
        if ready:
            self.waiting = {number: group for number, group in self.waiting.items() if number not in ready}
            self.finished(list(ready.values()))
