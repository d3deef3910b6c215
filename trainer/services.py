"""The controller's side of the workers: fan out, wait aloud, put the answers together."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mopd.types import FloatArray, Group, IntArray, Prompt, Rollout, Segment
from trainer import cluster
from trainer.accounting import actor_metrics, ideal_tokens
from trainer.memory_use import machine_metrics
from trainer.meters import merged
from trainer.packing import MiniBatch, Packing, Sample, plan_mini_batch
from trainer.planning.architecture import Architecture
from trainer.verification import Verification
from trainer.weights import LINKS, PublishError, Transfer, differing_groups, largest_gap
from trainer.workers.policy import Update
from trainer.workers.sampler_types import Request, Response, SamplingSettings
from trainer.workers.state import Saving
from trainer.workers.teacher import DistantTeacher

log = logging.getLogger("mopd")

ANSWER_S = 10.0
"""How long a sampler that is suspected dead has to answer."""
MAX_RESTARTS = 3
"""How often in a run a sampler that died is replaced."""


@dataclass(frozen=True)
class Asked:
    """A prompt put to the student in one step."""

    uid: str
    """One occurrence of a prompt in a step."""
    prompt: Prompt
    prompt_ids: IntArray
    """[L]"""


def nothing() -> None:
    """Where nobody has anything to do between two answers."""


def request_seed(*path: int) -> int:
    """A seed for one request, from the run's seed, step, prompt and rollout numbers; 31 bits."""
    return int(np.random.SeedSequence(path).generate_state(1)[0]) & 0x7FFFFFFF


def rollout_of(rollout_id: str, response: Response, version: int) -> Rollout:
    """A response as the loop knows it."""
    segment = Segment(response.token_ids, response.logprobs)
    return Rollout(rollout_id, (segment,), response.text, response.finish_reason, version)


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
    ) -> tuple[dict[str, float], dict[int, FloatArray]]:
        """One training step on a step's rollouts (in sampling order); metrics and the divergences asked for."""
        return self.begin(samples, step, record)()

    def begin(
        self, samples: Sequence[Sample], step: int, record: frozenset[int]
    ) -> Callable[[], tuple[dict[str, float], dict[int, FloatArray]]]:
        """Has the ranks begin with a training step; what is returned waits for its end, and gives what `update` does.

        Whatever the ranks are asked in the meantime they do afterwards.
        """
        starts = range(0, len(samples), self.mini_batch_rollouts)
        once = [self.plan(samples[start : start + self.mini_batch_rollouts]) for start in starts]
        plans = once * self.epochs
        references = [
            worker.update.remote([plan[rank] for plan in plans], step, record)
            for rank, worker in enumerate(self.workers)
        ]

        def ended() -> tuple[dict[str, float], dict[int, FloatArray]]:
            updates = cluster.gather(references, "updating the student", self.deadline_s)
            divergences: dict[int, FloatArray] = {}
            for update in updates:
                divergences |= update.divergences
            return self.metrics(updates, samples, step), divergences

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
        measured["actor/optimizer_steps"] = len(norms) - updates[0].skipped
        measured["actor/skipped_steps"] = updates[0].skipped
        measured["actor/lr"] = self.lr_at(step)
        if norms:
            measured["actor/loss"] = sum(update.loss for update in updates) / len(norms)
        if finite:
            measured["actor/grad_norm"] = float(np.mean(finite))
        response_tokens = sum(len(sample.response_ids) for sample in samples)
        seconds = max(update.seconds for update in updates)
        measured |= machine_metrics()
        tallies = [update.tally for update in updates]
        measured |= actor_metrics(
            tallies, ideal=self.ideal(samples), seconds=seconds, student=self.student, teacher=self.teacher
        )
        measured["perf/actor_response_tokens_per_s"] = response_tokens / seconds
        return measured

    def ideal(self, samples: Sequence[Sample]) -> int:
        """The fewest tokens that an update on these rollouts can forward."""
        again = self.epochs > 1 or len(samples) > self.mini_batch_rollouts
        student, teacher = self.epochs + again, self.epochs * self.teacher_forwards
        return ideal_tokens(samples, student_passes=student, teacher_passes=teacher)

    def connect(self, sampler: Any, transfer: Transfer) -> None:
        """Opens the way to a sampler."""
        cluster.gather(
            [worker.connect.remote(sampler, transfer) for worker in self.workers],
            "connecting actor and sampler",
            self.deadline_s,
        )

    def publish(self, version: int, sequences: Sequence[IntArray]) -> tuple[list[FloatArray], list[FloatArray]]:
        """Gives the sampler the student's weights; ours and the sampler's log-probs [L - 1] of `sequences`."""
        references = [worker.publish.remote(version, sequences) for worker in self.workers]
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


class Sampling:
    """Draws groups of rollouts, and keeps the sampler alive and its weights current."""

    def __init__(
        self,
        worker: Any,
        spawn: Callable[[], Any],
        policy: Policy,
        transfer: Transfer,
        *,
        tolerance: float | None,
        seed: int,
        deadline_s: float,
        verification: Verification | None = None,
    ) -> None:
        self.worker, self.spawn, self.policy, self.transfer = worker, spawn, policy, transfer
        self.tolerance, self.seed, self.deadline_s, self.verification = tolerance, seed, deadline_s, verification
        self.version, self.restarts, self.connected = 0, 0, False

    def describe(self) -> dict[str, str]:
        """The running engine's version."""
        [answer] = cluster.gather([self.worker.describe.remote()], "starting the sampler", self.deadline_s)
        return dict(answer)

    def sample(
        self,
        asked: Sequence[Asked],
        n: int,
        settings: SamplingSettings,
        seed_path: Sequence[int],
        *,
        newest: int | None = None,
    ) -> tuple[Group, ...]:
        """One group of `n` rollouts per prompt, in the order asked.

        `newest` is the version that the actor's weights have once it has done what it was asked: a sampler that takes
        the place of one that died draws from those. None: they are the published ones.
        """
        requests = [
            Request(item.prompt_ids, request_seed(self.seed, *seed_path, position, number))
            for position, item in enumerate(asked)
            for number in range(n)
        ]

        owners = [(item, f"{item.uid}-{number}") for item in asked for number in range(n)]
        rollouts = self.insist(lambda: self.draw(requests, owners, settings), newest)
        return tuple(
            Group(item.uid, item.prompt, item.prompt_ids, tuple(rollouts[position * n : (position + 1) * n]))
            for position, item in enumerate(asked)
        )

    def draw(
        self, requests: Sequence[Request], owners: Sequence[tuple[Asked, str]], settings: SamplingSettings
    ) -> list[Rollout]:
        """A rollout per request, in order; each goes to verification as soon as it is there.

        `owners` has the prompt and the rollout's name for every request.
        """
        verification, found = self.verification, dict[int, Rollout]()
        if verification is not None:
            verification.begin()
        between = nothing if verification is None else verification.pump
        arguments = (requests, settings)
        for version, finished in cluster.stream(
            self.worker.sample, arguments, "sampling rollouts", self.deadline_s, between
        ):
            if version != self.version:
                raise cluster.WorkerError(f"the sampler has weights of version {version}, wanted {self.version}")
            for number, response in finished:
                item, name = owners[number]
                found[number] = rollout_of(name, response, version)
                if verification is not None:
                    verification.submit(item.prompt, found[number])
        if len(found) != len(requests):
            raise cluster.WorkerError(f"the sampler gave {len(found)} responses to {len(requests)} requests")
        return [found[number] for number in range(len(requests))]

    def publish(self, version: int, sequences: Sequence[IntArray]) -> dict[str, float]:
        """Gives the sampler the actor's weights as `version`, and proves it on `sequences`.

        Raises:
            PublishError: both sides' log-probs of the same tokens differ by more than the bound.
        """
        self.version = version
        ours, theirs = self.insist(lambda: self.policy.publish(version, sequences))
        gap = largest_gap(ours, theirs)
        if self.tolerance is not None and not gap <= self.tolerance:
            raise PublishError(self.difference(gap))
        tokens = sum(len(row) for row in ours)
        return {"rollout_corr/publish_max_abs_diff": gap, "rollout_corr/publish_tokens": tokens}

    def difference(self, gap: float) -> str:
        """Sentences on a failed proof: how much, and which parameter groups."""
        [theirs] = cluster.gather([self.worker.fingerprints.remote()], "comparing weights", self.deadline_s)
        dtype = LINKS[self.transfer.backend].dtype
        groups = differing_groups(self.policy.responses(self.transfer.backend), theirs, dtype)
        listed = [f"{name} (by {share:.2g} of its largest value)" for name, share in groups.items()]
        where = "; ".join(listed) if listed else "none, so the two sides compute differently with the same weights"
        return (
            f"after publishing version {self.version} the sampler's log-probs differ from the trainer's by up to "
            f"{gap:.3g} nats, more than actor_rollout_ref.rollout.sync_tolerance={self.tolerance:g}; "
            f"differing parameter groups: {where}"
        )

    def insist(self, ask: Callable[[], Any], newest: int | None = None) -> Any:
        """The answer to what `ask` asks of the sampler; a sampler that died is replaced and asked again.

        Another one is given the weights that the actor has by then, of version `newest`; None: those published last.
        """
        while True:
            try:
                self.ready()
                return ask()
            except cluster.WorkerDiedError as error:
                if self.restarts == MAX_RESTARTS or self.lives():
                    raise
                self.restarts += 1
                log.warning("the sampler died; starting another (%d of %d): %s", self.restarts, MAX_RESTARTS, error)
                self.worker, self.connected = self.spawn(), False
                self.version = self.version if newest is None else newest

    def lives(self) -> bool:
        """Whether the sampler answers: then it was another worker that died."""
        try:
            cluster.gather([self.worker.describe.remote()], "asking the sampler", ANSWER_S)
        except cluster.WorkerError:
            return False
        return True

    def prepare(self) -> None:
        """Makes sure that the sampler has the weights it is to draw from."""
        self.insist(nothing)

    def ready(self) -> None:
        """Connects a new sampler; one that took another's place gets the current weights before it serves."""
        if self.connected:
            return
        self.describe()
        self.policy.connect(self.worker, self.transfer)
        if self.restarts or self.version:
            self.policy.publish(self.version, [])
        self.connected = True


class StandingSampling(Sampling):
    """Draws from weights that stay as they were loaded; a sampler that died is replaced all the same."""

    def __init__(
        self, spawn: Callable[[], Any], *, seed: int, deadline_s: float, verification: Verification | None = None
    ) -> None:
        self.worker, self.spawn, self.seed, self.deadline_s, self.restarts = spawn(), spawn, seed, deadline_s, 0
        self.verification, self.version = verification, 0

    def ready(self) -> None:
        """There is nothing to publish."""
