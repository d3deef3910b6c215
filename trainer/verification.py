"""Verification as a service: every response is verified while others are still decoded.

A pool of processes takes responses as they finish. One that dies or hangs is replaced, and what it had is asked
again, alone, so that one response cannot take others with it. What stays without a verdict is unknown, never wrong.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from mopd.types import Group, Outcome, Prompt, Rollout
from trainer import cluster
from trainer.workers.verifier import HAND_BACK_S, Case, Verdict

log = logging.getLogger("mopd")

MOST_WORKERS = 16
"""Processes at most, where nobody says how many."""
MOST_TOGETHER = 32
"""Responses at most that go to a process at once: a message each would cost more than most verdicts."""
MAX_ATTEMPTS = 2
"""How often a response is asked alone of processes that die over it."""
MAX_FAILED_STARTS = 3
"""How many processes in a row may die before they can work."""
START_S = 300.0
"""Longest wait for a process to be able to work."""
SLACK_S = 0.5
"""Beyond the deadline of a verdict, for the message to arrive."""
POLL_S = 0.2
"""How often deadlines are looked at while verdicts are awaited."""


def pool_size(asked: int | None) -> int:
    """How many processes verify: as many as asked, or as there are cores to use."""
    return asked or min(len(os.sched_getaffinity(0)), MOST_WORKERS)


@dataclass
class Job:
    """A response that waits for its verdict."""

    name: str
    case: Case
    since: float
    alone: bool = False
    """To be asked alone, since a process died or hung over it and others."""
    attempts: int = 0
    """How often it was asked alone in vain."""


@dataclass
class Call:
    """What a process is asked; no jobs: whether it can work."""

    jobs: list[Job]
    reference: Any
    limit_s: float
    since: float = field(default_factory=time.monotonic)
    dropped: bool = False
    """Nobody waits for the verdicts any more."""


@dataclass
class Slot:
    """A place in the pool, and the process that fills it."""

    worker: Any
    call: Call | None


class Verification:
    """A pool of verifier processes. `submit` and `pump` return at once; `verify` waits for what is missing."""

    def __init__(self, spawn: Callable[[], Any], *, workers: int, deadline_s: float) -> None:
        self.spawn, self.deadline_s = spawn, deadline_s
        self.queue: deque[Job] = deque()
        self.verdicts: dict[str, Verdict] = {}
        self.tally: Counter[str] = Counter()
        self.latencies: list[float] = []
        self.failed_starts = 0
        self.told: set[str] = set()
        self.slots = [self.filled() for _ in range(workers)]

    # ------------------------------------------------------------------ what the loop calls

    def begin(self) -> None:
        """Forgets what was submitted: verdicts that are still to come are thrown away."""
        self.queue.clear()
        self.verdicts.clear()
        for slot in self.slots:
            if slot.call is not None:
                slot.call.dropped = True

    def submit(self, prompt: Prompt, rollout: Rollout) -> None:
        """Asks for a verdict on a rollout; the next `pump` sends it off."""
        extra = {**prompt.extra_info, "truncated": rollout.truncated}
        case = Case(prompt.data_source, rollout.text, prompt.ground_truth, extra)
        self.queue.append(Job(rollout.rollout_id, case, time.monotonic()))

    def pump(self, wait_s: float = 0.0) -> None:
        """Sends off what can be, and takes in what has arrived; waits at most `wait_s` seconds for the first.

        Raises:
            WorkerError: one process after another dies before it can work.
        """
        self.dispatch()
        calls = {slot.call.reference: slot for slot in self.slots if slot.call is not None}
        for reference in cluster.ended(list(calls), wait_s):
            self.take(calls[reference])
        for slot in self.slots:
            if slot.call is not None and time.monotonic() - slot.call.since > slot.call.limit_s:
                self.overdue(slot)
        self.dispatch()

    def verify(self, groups: Sequence[Group]) -> tuple[Group, ...]:
        """The groups with an outcome for every rollout; asks for those that nobody has asked for.

        Raises:
            WorkerError: as in `pump`.
        """
        wanted = {rollout.rollout_id: (group.prompt, rollout) for group in groups for rollout in group.rollouts}
        for name in wanted.keys() - self.known():
            self.submit(*wanted[name])
        started = spoke = time.monotonic()
        while missing := wanted.keys() - self.verdicts.keys():
            self.pump(POLL_S)
            now = time.monotonic()
            if now - spoke > cluster.SPEAK_EVERY_S:
                log.info(
                    "still verifying: %d of %d verdicts missing after %.0f s", len(missing), len(wanted), now - started
                )
                spoke = now
        return tuple(
            replace(group, outcomes=tuple(self.verdicts.pop(rollout.rollout_id).outcome for rollout in group.rollouts))
            for group in groups
        )

    def outcomes(self, rollouts: Sequence[Rollout]) -> tuple[Outcome, ...] | None:
        """The outcome of every rollout that was submitted, as far as `verify` has not given it; None until all are."""
        found = [self.verdicts.get(rollout.rollout_id) for rollout in rollouts]
        return tuple(verdict.outcome for verdict in found if verdict) if all(found) else None

    def report(self) -> dict[str, float]:
        """Figures since the last report: unknown verdicts by cause, seconds from submission to verdict, mishaps."""
        tally, latencies = self.tally, self.latencies
        self.tally, self.latencies = Counter(), []
        figures = {f"reward/unknown_{cause}": float(count) for cause, count in self.unknown(tally)}
        figures |= {f"perf/verify_{name}": float(tally[name]) for name in ("retries", "respawns")}
        if latencies:
            figures |= {
                "perf/verify_latency_mean": float(np.mean(latencies)),
                "perf/verify_latency_max": max(latencies),
            }
        return figures

    # ------------------------------------------------------------------ the pool

    @staticmethod
    def unknown(tally: Counter[str]) -> Iterable[tuple[str, int]]:
        """Causes of unknown verdicts with their counts."""
        return ((name.partition("/")[2], count) for name, count in sorted(tally.items()) if name.startswith("unknown/"))

    def known(self) -> set[str]:
        """The rollouts that have a verdict, or wait for one."""
        asked = [job.name for slot in self.slots if slot.call and not slot.call.dropped for job in slot.call.jobs]
        return {*self.verdicts, *asked, *(job.name for job in self.queue)}

    def filled(self) -> Slot:
        """A slot with a new process that was asked whether it can work."""
        worker = self.spawn()
        return Slot(worker, Call([], worker.ready.remote(), START_S))

    def dispatch(self) -> None:
        """Shares the queue out among idle processes."""
        idle = [slot for slot in self.slots if slot.call is None]
        for position, slot in enumerate(idle):
            share = -(-len(self.queue) // (len(idle) - position))
            jobs = self.next_jobs(min(share, MOST_TOGETHER))
            if jobs:
                self.ask(slot, jobs)

    def ask(self, slot: Slot, jobs: list[Job], *, dropped: bool = False) -> None:
        """Asks a process for verdicts; of `dropped` ones only whether it is done with them."""
        reference = slot.worker.verify.remote([job.case for job in jobs])
        slot.call = Call(jobs, reference, HAND_BACK_S + self.deadline_s + SLACK_S, dropped=dropped)

    def next_jobs(self, most: int) -> list[Job]:
        """What a process is asked next: one job that must be alone, or several of the others."""
        jobs: list[Job] = []
        while self.queue and len(jobs) < most and not (jobs and self.queue[0].alone):
            jobs.append(self.queue.popleft())
            if jobs[0].alone:
                break
        return jobs

    def take(self, slot: Slot) -> None:
        """Takes what a process answers; one that died is replaced."""
        call = slot.call
        assert call is not None
        slot.call = None
        try:
            verdicts = cluster.answer(call.reference, "verifying responses")
        except cluster.WorkerDiedError as error:
            self.refill(slot, str(error), started=bool(call.jobs))
            self.again(call, "died", f"the verifier's process died over it {MAX_ATTEMPTS} times")
            return
        except cluster.WorkerError as error:
            self.again(call, "error", f"the verifier's process failed: {str(error).splitlines()[0]:.300}", str(error))
            return
        self.failed_starts = 0
        if len(verdicts) > len(call.jobs) or (len(call.jobs) == 1 and not verdicts):
            self.again(call, "invalid", f"{len(verdicts)} verdicts came for {len(call.jobs)} responses")
            return
        for job, verdict in zip(call.jobs, verdicts, strict=False):
            self.settle(call, job, verdict)
        if len(verdicts) < len(call.jobs):
            # The first that is left is at work there; the others need not wait for it.
            present, *others = call.jobs[len(verdicts) :]
            self.queue.extendleft(() if call.dropped else reversed(others))
            self.ask(slot, [present], dropped=call.dropped)

    def overdue(self, slot: Slot) -> None:
        """Replaces a process that gives no answer."""
        call = slot.call
        assert call is not None
        cluster.kill(slot.worker)
        why = "it did not become able to work" if not call.jobs else "it gave no answer"
        self.refill(slot, f"{why} within {call.limit_s:g} s", started=bool(call.jobs))
        if len(call.jobs) == 1:
            call.jobs[0].attempts = MAX_ATTEMPTS
        self.again(call, "deadline", f"no verdict within reward.deadline_s={self.deadline_s:g} s")

    def refill(self, slot: Slot, why: str, *, started: bool) -> None:
        """Puts a new process in the place of one that is gone."""
        self.failed_starts = 0 if started else self.failed_starts + 1
        if self.failed_starts == MAX_FAILED_STARTS:
            raise cluster.WorkerError(f"{MAX_FAILED_STARTS} verifier processes in a row could not start: {why}")
        self.tally["respawns"] += 1
        fresh = self.filled()
        slot.worker, slot.call = fresh.worker, fresh.call

    def again(self, call: Call, cause: str, reason: str, detail: str = "") -> None:
        """Queues the jobs of a call that came to nothing, each alone; one that was alone often enough is unknown."""
        for job in call.jobs:
            job.attempts += len(call.jobs) == 1
            job.alone = True
            if job.attempts >= MAX_ATTEMPTS:
                self.settle(call, job, Verdict(Outcome.unknown(reason), cause, detail))
            elif not call.dropped:
                self.tally["retries"] += 1
                self.queue.append(job)

    def settle(self, call: Call, job: Job, verdict: Verdict) -> None:
        """Keeps a verdict; the first of each cause of unknown ones is told."""
        if call.dropped:
            return
        self.verdicts[job.name] = verdict
        self.latencies.append(time.monotonic() - job.since)
        if verdict.outcome.status != "unknown":
            return
        self.tally[f"unknown/{verdict.cause}"] += 1
        if verdict.cause not in self.told:
            self.told.add(verdict.cause)
            log.warning(
                "a response of %s has no verdict and is left out: %s (more are counted as reward/unknown_%s)%s",
                job.case.data_source,
                verdict.outcome.feedback,
                verdict.cause,
                f"\n{verdict.detail}" if verdict.detail else "",
            )
