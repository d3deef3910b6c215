"""The controller's side of the actor: fan out, wait aloud, put the answers together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mopd.types import FloatArray, IntArray
from trainer import cluster
from trainer.accounting import actor_metrics, ideal_tokens
from trainer.gauges import score_gauges
from trainer.memory_use import Peaks, machine_metrics, memory_metrics
from trainer.meters import by_rollout, merged
from trainer.packing import MiniBatch, Packing, Sample, plan_mini_batch
from trainer.planning.architecture import Architecture
from trainer.recorded import Recorded
from trainer.weights import Transfer
from trainer.workers.policy import Update
from trainer.workers.state import Saving
from trainer.workers.teacher import DistantTeacher


def no_counts(samples: Sequence[Sample]) -> dict[str, float]:
    """Where a step's rollouts are not counted."""
    return {}


@dataclass(frozen=True)
class Policy:
    """The actor's ranks as one."""

    workers: Sequence[Any]
    epochs: int
    mini_batch_rollouts: int
    """Rollouts per optimiser step."""
    packing: Packing
    lr_at: Callable[[int], float]
    deadline_s: float
    counts: Callable[[Sequence[Sample]], dict[str, float]] = no_counts
    """What a step's rollouts give to learn from, by metric name."""
    teachers: Sequence[DistantTeacher] = ()
    """Those with a placement of their own."""
    teacher_forwards: int = 0
    """Forward passes of whoever answers beside the student, in an epoch."""
    student: Architecture | None = None
    """The student's shape, where the use of the devices is to be told."""
    teacher: Architecture | None = None
    """The teacher's, where it is not the student's."""

    def join(self) -> dict[str, str | int]:
        """Builds the shards on every rank; returns what rank 0 says of itself."""
        [(host, port)] = cluster.gather([self.workers[0].rendezvous.remote()], "starting the actor", self.deadline_s)
        joining = [worker.join.remote(host, port) for worker in self.workers]
        loading = [(teacher.name, teacher.worker.load.remote()) for teacher in self.teachers]
        answers = cluster.gather(joining, "loading student and teacher", self.deadline_s)
        for name, reference in loading:
            cluster.gather([reference], f"loading {name}", self.deadline_s)
        return dict(answers[0])

    def update(
        self, samples: Sequence[Sample], step: int, record: frozenset[int]
    ) -> tuple[dict[str, float], dict[int, Recorded]]:
        """One training step on a step's rollouts (in sampling order); metrics, and what is kept of `record`."""
        return self.begin(samples, step, record)()

    def begin(
        self,
        samples: Sequence[Sample],
        step: int,
        record: frozenset[int],
        taught: Mapping[int, Any] | None = None,
    ) -> Callable[[], tuple[dict[str, float], dict[int, Recorded]]]:
        """Has the ranks begin with a training step; what is returned waits for its end, and gives what `update` does.

        Whatever the ranks are asked in the meantime they do afterwards. `taught` has references to the teacher's
        states of every sample that carries loss, by index; None: the ranks forward the teacher themselves.
        """
        starts = range(0, len(samples), self.mini_batch_rollouts)
        once = [self.plan(samples[start : start + self.mini_batch_rollouts]) for start in starts]
        plans = once * self.epochs
        references = [
            worker.update.remote([plan[rank] for plan in plans], step, record, taught)
            for rank, worker in enumerate(self.workers)
        ]

        def ended() -> tuple[dict[str, float], dict[int, Recorded]]:
            updates = cluster.gather(references, "updating the student", self.deadline_s)
            recorded: dict[int, Recorded] = {}
            for update in updates:
                recorded |= update.recorded
            return self.metrics(updates, samples, step), recorded

        return ended

    def plan(self, samples: Sequence[Sample]) -> list[MiniBatch]:
        """One mini-batch over the ranks."""
        return plan_mini_batch(
            samples,
            len(self.workers),
            self.packing,
        )

    def metrics(self, updates: Sequence[Update], samples: Sequence[Sample], step: int) -> dict[str, float]:
        """What the ranks report, over all of them, under published names."""
        norms = updates[0].gradient_norms
        finite = [norm for norm in norms if np.isfinite(norm)]
        measured = merged(update.meter for update in updates)
        measured |= self.counts(samples)
        measured |= score_gauges(samples, by_rollout(update.meter for update in updates))
        measured["actor/optimizer_steps"] = len(norms) - updates[0].skipped
        measured["actor/skipped_steps"] = updates[0].skipped
        measured["actor/lr"] = self.lr_at(step)
        if norms:
            measured["actor/loss"] = sum(update.loss for update in updates) / len(norms)
        if finite:
            measured["actor/grad_norm"] = float(np.mean(finite))
        response_tokens = sum(len(sample.response_ids) for sample in samples)
        seconds = max(update.seconds for update in updates)
        measured |= machine_metrics() | memory_metrics("teacher", self.teacher_memory())
        tallies = [update.tally for update in updates]
        measured |= actor_metrics(
            tallies, ideal=self.ideal(samples), seconds=seconds, student=self.student, teacher=self.teacher
        )
        measured["perf/actor_response_tokens_per_s"] = response_tokens / seconds
        return measured

    def teacher_memory(self) -> list[Peaks]:
        """The most that each teacher with a placement of its own held since it was last asked."""
        asked = [teacher.worker.memory.remote() for teacher in self.teachers]
        return cluster.gather(asked, "asking the teachers for their memory", self.deadline_s)

    def ideal(self, samples: Sequence[Sample]) -> int:
        """The fewest tokens that an update on these rollouts can forward."""
        again = self.epochs > 1 or len(samples) > self.mini_batch_rollouts
        student, teacher = self.epochs + again, self.epochs * self.teacher_forwards
        return ideal_tokens(samples, student_passes=student, teacher_passes=teacher)

    def connect(self, number: int, sampler: Any, transfer: Transfer) -> None:
        """Opens the way to a sampler; an earlier one of this number is given up."""
        cluster.gather(
            [worker.connect.remote(number, sampler, transfer) for worker in self.workers],
            "connecting actor and sampler",
            self.deadline_s,
        )

    def publish(
        self, version: int, sequences: Sequence[IntArray], numbers: Sequence[int]
    ) -> tuple[list[FloatArray], list[list[FloatArray]]]:
        """Gives the samplers of these numbers the student's weights; ours and each one's log-probs [L - 1] of
        `sequences`."""
        references = [worker.publish.remote(version, sequences, numbers) for worker in self.workers]
        answers = cluster.gather(references, "publishing weights", self.deadline_s)
        ours, theirs = answers[0]
        return ours, theirs

    def responses(self, backend: str) -> dict[str, FloatArray]:
        """How every weight of the student answers the probe."""
        references = [worker.responses.remote(backend) for worker in self.workers]
        return dict(cluster.gather(references, "comparing weights", self.deadline_s)[0])

    def save(self, saving: Saving) -> None:
        """Begins to write a checkpoint, once the last one is whole."""
        self.all_ranks("save", saving, doing=f"saving {saving.folder}")

    def settle(self, *, wait: bool) -> bool:
        """Whether the last checkpoint is written; with `wait`, once it is. Raises what went wrong with it."""
        doing = "writing the checkpoint"
        # The ranks end together, or one is about to: nobody's error is heard before all can be asked for theirs.
        if not wait and not all(
            cluster.gather([worker.saved.remote() for worker in self.workers], doing, self.deadline_s)
        ):
            return False
        cluster.gather([worker.settle.remote() for worker in self.workers], doing, self.deadline_s)
        return True

    def restore(self, folder: str) -> None:
        """Goes on from a checkpoint."""
        self.all_ranks("restore", folder, doing=f"reading {folder}")

    def all_ranks(self, method: str, argument: Any, *, doing: str) -> None:
        """Calls a method of every rank."""
        references = [getattr(worker, method).remote(argument) for worker in self.workers]
        cluster.gather(references, doing, self.deadline_s)
