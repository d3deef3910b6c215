"""The controller's side of the workers: fan out, wait aloud, put the answers together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mopd.types import FloatArray, Group, IntArray, Prompt, Rollout, Segment
from trainer import cluster
from trainer.meters import merged
from trainer.packing import MiniBatch, Sample, plan_mini_batch
from trainer.workers.policy import Update
from trainer.workers.sampler_types import Request, Response, SamplingSettings


@dataclass(frozen=True)
class Asked:
    """A prompt put to the student in one step."""

    uid: str
    """One occurrence of a prompt in a step."""
    prompt: Prompt
    prompt_ids: IntArray
    """[L]"""


def request_seed(*path: int) -> int:
    """A seed for one request, from the run's seed, step, prompt and rollout numbers; 31 bits."""
    return int(np.random.SeedSequence(path).generate_state(1)[0]) & 0x7FFFFFFF


@dataclass(frozen=True)
class Sampling:
    """Draws groups of rollouts, and keeps the sampler's weights current."""

    worker: Any
    seed: int
    deadline_s: float

    def sample(
        self, asked: Sequence[Asked], n: int, settings: SamplingSettings, seed_path: Sequence[int]
    ) -> tuple[Group, ...]:
        """One group of `n` rollouts per prompt, in the order asked."""
        requests = [
            Request(item.prompt_ids, request_seed(self.seed, *seed_path, position, number))
            for position, item in enumerate(asked)
            for number in range(n)
        ]
        reference = self.worker.sample.remote(requests, settings)
        [(version, responses)] = cluster.gather([reference], "sampling rollouts", self.deadline_s)
        return tuple(
            group_of(item, responses[position * n : (position + 1) * n], version) for position, item in enumerate(asked)
        )

    def load(self, weights: Any, version: int) -> None:
        """Gives the sampler the weights behind a reference."""
        cluster.gather([self.worker.load.remote(weights, version)], "publishing weights", self.deadline_s)

    def describe(self) -> dict[str, str]:
        """The running engine's version."""
        [answer] = cluster.gather([self.worker.describe.remote()], "starting the sampler", self.deadline_s)
        return dict(answer)


def group_of(item: Asked, responses: Sequence[Response], version: int) -> Group:
    """The rollouts of one prompt, named after its uid."""
    rollouts = tuple(
        Rollout(
            rollout_id=f"{item.uid}-{number}",
            segments=(Segment(response.token_ids, response.logprobs),),
            text=response.text,
            finish_reason=response.finish_reason,
            policy_version=version,
        )
        for number, response in enumerate(responses)
    )
    return Group(item.uid, item.prompt, item.prompt_ids, rollouts)


@dataclass(frozen=True)
class Verification:
    """Verifies groups in a process of its own."""

    worker: Any
    deadline_s: float

    def verify(self, groups: Sequence[Group]) -> tuple[Group, ...]:
        """The groups with an outcome for every rollout."""
        cases = [
            (group.prompt.data_source, rollout.text, group.prompt.ground_truth, group.prompt.extra_info)
            for group in groups
            for rollout in group.rollouts
        ]
        [outcomes] = cluster.gather([self.worker.verify.remote(cases)], "verifying responses", self.deadline_s)
        verdicts = iter(outcomes)
        return tuple(replace(group, outcomes=tuple(next(verdicts) for _ in group.rollouts)) for group in groups)


@dataclass(frozen=True)
class Policy:
    """The actor's ranks as one."""

    workers: Sequence[Any]
    distils: bool
    epochs: int
    mini_batch_rollouts: int
    """Rollouts per optimiser step."""
    token_budget: int
    lr_at: Callable[[int], float]
    deadline_s: float

    def join(self) -> dict[str, str | int]:
        """Builds the shards on every rank; returns what rank 0 says of itself."""
        [(host, port)] = cluster.gather([self.workers[0].rendezvous.remote()], "starting the actor", self.deadline_s)
        joining = [worker.join.remote(host, port) for worker in self.workers]
        answers = cluster.gather(joining, "loading student and teacher", self.deadline_s)
        return dict(answers[0])

    def update(
        self, samples: Sequence[Sample], step: int, record: frozenset[int]
    ) -> tuple[dict[str, float], dict[int, FloatArray]]:
        """One training step on a step's rollouts (in sampling order); metrics and the divergences asked for."""
        starts = range(0, len(samples), self.mini_batch_rollouts)
        once = [self.plan(samples[start : start + self.mini_batch_rollouts]) for start in starts]
        plans = once * self.epochs
        references = [
            worker.update.remote([plan[rank] for plan in plans], step, record)
            for rank, worker in enumerate(self.workers)
        ]
        updates = cluster.gather(references, "updating the student", self.deadline_s)
        divergences: dict[int, FloatArray] = {}
        for update in updates:
            divergences |= update.divergences
        return self.metrics(updates, samples, step), divergences

    def plan(self, samples: Sequence[Sample]) -> list[MiniBatch]:
        """One mini-batch over the ranks."""
        return plan_mini_batch(samples, len(self.workers), self.token_budget, self.distils)

    def metrics(self, updates: Sequence[Update], samples: Sequence[Sample], step: int) -> dict[str, float]:
        """What the ranks report, over all of them, under published names."""
        norms = updates[0].gradient_norms
        finite = [norm for norm in norms if np.isfinite(norm)]
        measured = merged(update.meter for update in updates)
        measured["actor/optimizer_steps"] = len(norms) - updates[0].skipped
        measured["actor/skipped_steps"] = updates[0].skipped
        measured["actor/lr"] = self.lr_at(step)
        if norms:
            measured["actor/loss"] = sum(update.loss for update in updates) / len(norms)
        if finite:
            measured["actor/grad_norm"] = float(np.mean(finite))
        response_tokens = sum(len(sample.response_ids) for sample in samples)
        seconds = max(update.seconds for update in updates)
        measured["perf/tokens_forwarded"] = sum(update.tokens_forwarded for update in updates)
        measured["perf/actor_response_tokens_per_s"] = response_tokens / seconds
        return measured

    def weights(self) -> Any:
        """A reference to the student's whole weights by name."""
        references = [worker.weights.remote() for worker in self.workers]
        cluster.wait(references, "gathering weights", self.deadline_s)
        return references[0]

    def logprobs(self, sequences: Sequence[tuple[IntArray, IntArray]]) -> list[FloatArray]:
        """The student's log-probs [T] of each (prompt, response), at the training temperature."""
        references = [worker.logprobs.remote(sequences) for worker in self.workers]
        answers: list[list[FloatArray]] = cluster.gather(references, "scoring responses", self.deadline_s)
        return answers[0]

    def save(self, folder: str) -> None:
        """Writes the student to `folder` in Hugging Face form."""
        references = [worker.save.remote(folder) for worker in self.workers]
        cluster.gather(references, f"saving {folder}", self.deadline_s)
