"""The controller's side of the sampler: ask, wait aloud, replace one that died, publish weights and prove it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mopd.types import Group, IntArray, Prompt, Rollout, Segment
from trainer import cluster
from trainer.early import Finished, Watch
from trainer.memory_use import Peaks, memory_metrics
from trainer.services import Policy
from trainer.verification import Verification
from trainer.weights import LINKS, PublishError, Transfer, differing_groups, largest_gap
from trainer.workers.sampler_types import Request, Response, SamplingSettings

log = logging.getLogger("mopd")

ANSWER_S = 10.0
"""How long a sampler that is suspected dead has to answer."""
MAX_RESTARTS = 3
"""How often in a run samplers that died are replaced, for each of them."""


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


@dataclass
class Slot:
    """A sampler's place, and the process that fills it."""

    worker: Any
    spawn: Callable[[], Any]
    """Makes another one, in place of one that died."""
    transfer: Transfer | None = None
    """How weights come to it; None where they never change."""
    connected: bool = False
    """Whether it has the weights that it is to draw from."""
    alive: bool = True
    """False from the death of its worker until another one answers."""


class Sampling:
    """Draws groups of rollouts on one or several samplers, and keeps these alive and their weights current."""

    def __init__(
        self,
        slots: Sequence[Slot],
        policy: Policy,
        *,
        tolerance: float | None,
        seed: int,
        deadline_s: float,
        verification: Verification | None = None,
        sleeps: bool = False,
    ) -> None:
        self.slots, self.policy, self.sleeps = slots, policy, sleeps
        self.tolerance, self.seed, self.deadline_s, self.verification = tolerance, seed, deadline_s, verification
        self.version, self.restarts = 0, 0
        self.lengths: dict[str, float] = {}
        """Tokens of a row's responses, their mean when they were last drawn."""

    def describe(self) -> dict[str, str]:
        """The running engine's version."""
        return dict(self.ask("describe", "starting the sampler")[0])

    def ask(self, method: str, doing: str, slots: Sequence[Slot] | None = None) -> list[Any]:
        """The answers of all samplers to a call, or of those in `slots`."""
        calls = [getattr(slot.worker, method).remote() for slot in (self.slots if slots is None else slots)]
        return cluster.gather(calls, doing, self.deadline_s)

    def sample(
        self,
        asked: Sequence[Asked],
        n: int,
        settings: SamplingSettings,
        seed_path: Sequence[int],
        *,
        newest: int | None = None,
        finished: Finished | None = None,
    ) -> tuple[Group, ...]:
        """One group of `n` rollouts per prompt, in the order asked.

        `finished` is told of groups that have all their outcomes while others are still decoded. `newest` is the
        version that the actor's weights have once it has done what it was asked: samplers that take the place of ones
        that all died draw from those. None: they are the published ones.
        """
        requests = [
            Request(item.prompt_ids, request_seed(self.seed, *seed_path, position, number))
            for position, item in enumerate(asked)
            for number in range(n)
        ]

        owners = [(item, f"{item.uid}-{number}") for item in asked for number in range(n)]
        groups = [Group(item.uid, item.prompt, item.prompt_ids, ()) for item in asked]
        watch = None
        if finished is not None and self.verification is not None:
            watch = Watch(groups, n, self.verification.outcomes, finished)
        rollouts = self.insist(lambda: self.draw(requests, owners, settings, watch), newest)
        for position, item in enumerate(asked):
            own = [segment for rollout in rollouts[position * n : (position + 1) * n] for segment in rollout.segments]
            self.lengths[item.prompt.prompt_id] = sum(len(segment.token_ids) for segment in own) / n
        return tuple(
            replace(group, rollouts=tuple(rollouts[position * n : (position + 1) * n]))
            for position, group in enumerate(groups)
        )

    def draw(
        self,
        requests: Sequence[Request],
        owners: Sequence[tuple[Asked, str]],
        settings: SamplingSettings,
        watch: Watch | None = None,
    ) -> list[Rollout]:
        """A rollout per request, in order; each goes to verification as soon as it is there.

        What a sampler that died has not given is asked of the others.

        Args:
            owners: the prompt and the rollout's name for every request.

        Raises:
            WorkerDiedError: the last sampler died.
        """
        verification, found = self.verification, dict[int, Rollout]()
        if verification is not None:
            verification.begin()

        def between() -> None:
            if verification is not None:
                verification.pump()
            if watch is not None:
                watch.look(found)

        def take(number: int, response: Response) -> None:
            item, name = owners[number]
            found[number] = rollout_of(name, response, self.version)
            if verification is not None:
                verification.submit(item.prompt, found[number])

        while len(found) < len(requests):
            missing = [number for number in range(len(requests)) if number not in found]
            for number, response in self.responses(missing, requests, owners, settings, between):
                take(number, response)
        return [found[number] for number in range(len(requests))]

    def responses(
        self,
        numbers: Sequence[int],
        requests: Sequence[Request],
        owners: Sequence[tuple[Asked, str]],
        settings: SamplingSettings,
        between: Callable[[], None],
    ) -> Iterator[tuple[int, Response]]:
        """Responses to the requests of these numbers as they come, short of those of a sampler that dies meanwhile."""
        live = [slot for slot in self.slots if slot.connected]
        shares = spread([self.unit(number, owners) for number in numbers], len(live))
        own = [[numbers[place] for place in share] for share in shares]
        calls = {
            place: (slot.worker.sample, ([requests[number] for number in own[place]], settings))
            for place, slot in enumerate(live)
            if own[place]
        }
        given = dict.fromkeys(calls, 0)
        for place, item in cluster.streams(calls, "sampling rollouts", self.deadline_s, between):
            if isinstance(item, cluster.WorkerDiedError):
                self.lost(live[place], item)
                if not any(slot.connected for slot in live):
                    raise item
                continue
            version, finished = item
            if version != self.version:
                raise cluster.WorkerError(f"the sampler has weights of version {version}, wanted {self.version}")
            given[place] += len(finished)
            yield from ((own[place][number], response) for number, response in finished)
        short = [place for place in calls if live[place].connected and given[place] != len(own[place])]
        for place in short:
            raise cluster.WorkerError(f"the sampler gave {given[place]} responses to {len(own[place])} requests")

    def unit(self, number: int, owners: Sequence[tuple[Asked, str]]) -> tuple[str, float]:
        """What a request is to be drawn with, for they share a prompt, and the tokens it is expected to take."""
        item, _ = owners[number]
        usual = sum(self.lengths.values()) / len(self.lengths) if self.lengths else 0.0
        return item.uid, self.lengths.get(item.prompt.prompt_id, usual)

    def rest(self) -> None:
        """Nothing is drawn until weights are published: samplers free their memory, if they are some that do."""
        if self.sleeps:
            self.insist(lambda: self.ask("sleep", "freeing its memory"))

    def publish(self, version: int, sequences: Sequence[IntArray]) -> dict[str, float]:
        """Gives every sampler the actor's weights as `version`, and proves it on `sequences`.

        Raises:
            PublishError: both sides' log-probs of the same tokens differ by more than the bound.
        """
        self.version = version
        everyone = range(len(self.slots))
        ours, theirs = self.insist(lambda: self.policy.publish(version, sequences, everyone))
        gaps = [largest_gap(ours, each) for each in theirs]
        for number, gap in enumerate(gaps):
            if self.tolerance is not None and not gap <= self.tolerance:
                raise PublishError(self.difference(gap, self.slots[number]))
        tokens = sum(len(row) for row in ours)
        proof = {"rollout_corr/publish_max_abs_diff": max(gaps), "rollout_corr/publish_tokens": tokens}
        return proof | memory_metrics("sampler", self.insist(self.memory))

    def memory(self) -> list[Peaks]:
        """The most that each sampler's process held since it was last asked."""
        return self.ask("memory", "asking for its memory")

    def difference(self, gap: float, slot: Slot) -> str:
        """Sentences on a failed proof: how much, and which parameter groups."""
        assert slot.transfer is not None
        backend = slot.transfer.backend
        [theirs] = self.ask("fingerprints", "comparing weights", [slot])
        groups = differing_groups(self.policy.responses(backend), theirs, LINKS[backend].dtype)
        listed = [f"{name} (by {share:.2g} of its largest value)" for name, share in groups.items()]
        where = "; ".join(listed) if listed else "none, so the two sides compute differently with the same weights"
        return (
            f"after publishing version {self.version} the sampler's log-probs differ from the trainer's by up to "
            f"{gap:.3g} nats, more than actor_rollout_ref.rollout.sync_tolerance={self.tolerance:g}; "
            f"differing parameter groups: {where}"
        )

    def insist(self, ask: Callable[[], Any], newest: int | None = None) -> Any:
        """The answer to what `ask` asks of the samplers; those that died are replaced and asked again.

        Where all have died, others are given the weights that the actor has by then, of version `newest`; otherwise, or
        for None, those published last.
        """
        while True:
            try:
                if not self.served_by_others(newest):
                    self.ready()
                return ask()
            except cluster.WorkerDiedError as error:
                for slot in [slot for slot in self.slots if slot.alive and not self.lives(slot)]:
                    self.lost(slot, error)
                if all(slot.alive for slot in self.slots):
                    raise  # it was another worker that died
                if newest is not None and not any(slot.connected for slot in self.slots):
                    self.version = newest

    def served_by_others(self, newest: int | None) -> bool:
        """Whether new samplers are to wait, for the actor's weights are about to be others than the published ones."""
        about_to_move = newest is not None and newest != self.version
        return about_to_move and any(slot.connected for slot in self.slots)

    def lost(self, slot: Slot, error: cluster.WorkerDiedError) -> None:
        """Starts another sampler in the place of one that died.

        Raises:
            WorkerDiedError: that was done too often.
        """
        if self.restarts == MAX_RESTARTS * len(self.slots):
            raise error
        self.restarts += 1
        most = MAX_RESTARTS * len(self.slots)
        log.warning("the sampler died; starting another (%d of %d): %s", self.restarts, most, error)
        slot.worker, slot.connected, slot.alive = slot.spawn(), False, False

    def lives(self, slot: Slot) -> bool:
        """Whether a sampler's process is there: otherwise it was another worker that died."""
        try:
            cluster.gather([slot.worker.describe.remote()], "asking the sampler", ANSWER_S)
        except cluster.WorkerDiedError:
            return False
        except cluster.WorkerError:
            return True
        return True

    def prepare(self) -> None:
        """Makes sure that the samplers have the weights they are to draw from."""
        self.insist(nothing)

    def ready(self) -> None:
        """Connects new samplers; those that took others' places get the current weights before they serve."""
        fresh = {number: slot for number, slot in enumerate(self.slots) if not slot.connected}
        if not fresh:
            return
        for slot in fresh.values():
            slot.alive = True  # or it is found dead once more
        self.ask("describe", "starting the sampler", list(fresh.values()))
        self.give_weights(fresh)
        for slot in fresh.values():
            slot.connected = True

    def give_weights(self, fresh: Mapping[int, Slot]) -> None:
        """Opens the way for weights to new samplers, by number, and sends them where they are not the initial ones."""
        for number, slot in fresh.items():
            assert slot.transfer is not None
            self.policy.connect(number, slot.worker, slot.transfer)
        if self.restarts or self.version:
            self.policy.publish(self.version, [], list(fresh))


def spread(units: Sequence[tuple[str, float]], ways: int) -> list[list[int]]:
    """Deals requests to samplers: those of one name together, the longest first, each to whoever has least to do.

    Args:
        units: for every request its name, and how long it is expected to take.
    """
    groups: dict[str, list[int]] = {}
    for number, (name, _) in enumerate(units):
        groups.setdefault(name, []).append(number)
    costs = {name: sum(units[number][1] for number in group) for name, group in groups.items()}
    shares: list[list[int]] = [[] for _ in range(ways)]
    loads = [(0.0, 0)] * ways
    for name in sorted(groups, key=lambda name: -costs[name]):
        lightest = loads.index(min(loads))
        shares[lightest] += groups[name]
        seconds, count = loads[lightest]
        loads[lightest] = seconds + costs[name], count + len(groups[name])
    return shares


class StandingSampling(Sampling):
    """Draws from weights that stay as they were loaded; a sampler that died is replaced all the same."""

    def __init__(
        self,
        spawn: Callable[[], Any],
        *,
        seed: int,
        deadline_s: float,
        verification: Verification | None = None,
        count: int = 1,
    ) -> None:
        self.slots = [Slot(spawn(), spawn) for _ in range(count)]
        self.seed, self.deadline_s, self.restarts, self.sleeps = seed, deadline_s, 0, False
        self.verification, self.version, self.lengths = verification, 0, {}

    def give_weights(self, fresh: Mapping[int, Slot]) -> None:
        """They never change."""
