"""The overlapped loop over a small world of its own: who waits for whom, and that nothing depends on who is faster."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import pytest

from mopd.credit import CreditSettings
from mopd.horizon import Constant
from mopd.methods import METHODS
from mopd.types import FloatArray, Group, IntArray, Outcome, Rollout, Segment, View
from tests.mopd.groups import PROMPT, RIGHT, UNKNOWN, WRONG, group_of
from trainer import cluster, loop, overlapped
from trainer.batch import Batch, kept, restored
from trainer.contexts import Context
from trainer.errors import StoppedError
from trainer.packing import Sample
from trainer.parts import Parts, Sizes
from trainer.prompts import PromptSet
from trainer.sampling import Asked, Sampling, Slot
from trainer.schedule import Schedule
from trainer.workers.sampler_types import SamplingSettings

LONGEST = 12
ROWS = PromptSet(tuple(replace(PROMPT, prompt_id=f"row {row}") for row in range(12)), (np.ones(3, np.int32),) * 12, 0)


def mixed(*parts: object) -> int:
    """A number that any change of the parts changes."""
    return zlib.crc32(repr(parts).encode())


@dataclass
class World:
    """Actor, sampler and verifier at once: weights are a number, and rollouts and updates are functions of it."""

    quick: bool = False
    """The actor has done an update before anything else happens; otherwise only when it is waited for."""
    dies_at: int | None = None
    """The step whose sampling kills the sampler, once."""
    weights: int = 1
    published: int | None = None
    """The sampler's weights; None before it is connected."""
    version: int = 0
    learning: Callable[[], None] | None = None
    verified: int = 0
    happened: list[str] = field(default_factory=list)
    lengths: dict[str, float] = field(default_factory=dict)

    # the actor

    def rest(self) -> None:
        """The sampler has nothing to free."""

    def begin(
        self, samples: Sequence[Sample], step: int, record: frozenset[int], taught: object = None
    ) -> Callable[[], tuple[dict[str, float], dict[int, FloatArray]]]:
        self.happened.append(f"begin {step}")
        seen = [(one.response_ids.tolist(), one.sampler_logprobs.tolist(), one.reward) for one in samples]

        def learn() -> None:
            self.weights, self.learning = mixed(self.weights, seen, step), None

        self.learning = learn
        if self.quick:
            learn()

        def ended() -> tuple[dict[str, float], dict[int, FloatArray]]:
            self.has_learnt()
            self.happened.append(f"end {step}")
            return {"weights": float(self.weights)}, {}

        return ended

    def has_learnt(self) -> None:
        if self.learning is not None:
            self.learning()

    # the sampler

    def prepare(self) -> None:
        if self.published is None:
            assert self.learning is None, "the weights that it gets would be those of a later version"
            self.published = self.weights

    def sample(
        self, asked: Sequence[Asked], n: int, settings: SamplingSettings, path: Sequence[int], *, newest: int
    ) -> tuple[Group, ...]:
        self.prepare()
        step, *draw = path
        self.happened.append(f"sample {step}" + (f" draw {draw[0]}" if draw else ""))
        if step == self.dies_at:
            self.dies_at = None
            self.has_learnt()  # what another one is given comes after what the actor is at
            self.published, self.version = self.weights, newest
        return tuple(
            Group(
                item.uid, item.prompt, item.prompt_ids, tuple(self.rollout(item, path, number) for number in range(n))
            )
            for item in asked
        )

    def rollout(self, item: Asked, path: Sequence[int], number: int) -> Rollout:
        chosen = np.random.default_rng(mixed(self.published, list(path), item.uid, number))
        tokens = chosen.integers(0, 9, LONGEST).astype(np.int32)
        segment = Segment(tokens, np.log(chosen.random(LONGEST)).astype(np.float32))
        return Rollout(f"{item.uid}-{number}", (segment,), str(tokens), "stop", self.version)

    def publish(self, version: int, sequences: Sequence[IntArray]) -> dict[str, float]:
        assert self.learning is None
        self.happened.append(f"publish {version}")
        self.published, self.version = self.weights, version
        return {"published": float(self.published)}

    # the verifier

    def verify(self, groups: Sequence[Group]) -> tuple[Group, ...]:
        self.verified += len(groups)
        return tuple(replace(group, outcomes=tuple(map(self.outcome, group.rollouts))) for group in groups)

    @staticmethod
    def outcome(rollout: Rollout) -> Outcome:
        return (RIGHT, WRONG, WRONG, WRONG, UNKNOWN)[int(rollout.token_ids.sum()) % 5]

    def report(self) -> dict[str, float]:
        told, self.verified = {"verified": float(self.verified), "perf/verify_latency_mean": 0.5}, 0
        return told

    # held-out quality

    def __call__(self, *, step: int) -> dict[str, float]:
        assert self.learning is None
        if step:
            assert self.published == self.weights, "not the newest weights"
        self.happened.append(f"validate {step}")
        return {"val": float(self.weights)}


@dataclass
class Books:
    """Journal, saver, stopper and health: keeps what a run leaves, and ends it after a step where asked to."""

    world: World
    ends_after: int | None = None
    steps: dict[int, Any] = field(default_factory=dict)
    rollouts_of: dict[int, list[tuple[str, int, list[int]]]] = field(default_factory=dict)
    saved: dict[int, tuple[int, str]] = field(default_factory=dict)
    """By step: the actor's weights and the controller's state, as a checkpoint has them."""
    longest_s: float = 0.0
    folders: Any = field(default_factory=lambda: type("Folders", (), {"output": "out"}))

    def begins(self, step: int, phase: str) -> None:
        pass

    def begin(self) -> None:
        pass

    def remember(self, step: int, metrics: dict[str, float], timings: dict[str, float]) -> None:
        self.steps[step] = {name: value for name, value in metrics.items() if not name.startswith("perf/")}

    def rollouts(self, step: int, groups: Sequence[Group], contexts: object, divergences: object) -> None:
        every = [rollout for group in groups for rollout in group.rollouts]
        self.rollouts_of[step] = [(one.rollout_id, one.policy_version, one.token_ids.tolist()) for one in every]

    def save(self, step: int, state: dict[str, Any]) -> None:
        self.saved[step] = self.world.weights, json.dumps(state)

    def settle(self, *, wait: bool) -> None:
        pass

    def finish(self) -> None:
        pass

    def reason(self, saving_s: float) -> str | None:
        return "SIGTERM" if max(self.steps) == self.ends_after else None

    def watch(self, step: int, metrics: dict[str, float]) -> dict[str, float]:
        return {}

    def ending(self, step: int) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class Contexts:
    """Shows nobody anything."""

    def build(self, groups: Sequence[Group], step: int) -> list[Context]:
        return [Context(View((), False), None, None) for group in groups for _ in group.rollouts]


def parts_of(world: World, books: Books, schedule: Schedule, draws: int = 1) -> Parts:
    every: dict[str, Any] = dict.fromkeys(("sampler", "verifier", "policy", "validator"), world)
    every |= dict.fromkeys(("journal", "health", "saver", "stopper"), books)
    return Parts(
        sizes=Sizes(3, 2, True, 5, None, draws),
        sampling=SamplingSettings(1.0, 1.0, LONGEST),
        method=METHODS["vanilla"],
        credit=CreditSettings(),
        horizon=Constant(LONGEST),
        prompts=ROWS,
        contexts=cast(Any, Contexts()),
        schedule=schedule,
        **every,
    )


def run(
    last: int,
    *,
    train: Callable[[Parts], None] = overlapped.train,
    after: Books | None = None,
    ends_after: int | None = None,
    draws: int = 1,
    save_freq: int = 3,
    **world: Any,
) -> Books:
    """A run to step `last`, or one that goes on after the newest checkpoint of `after`."""
    here = World(**world)
    books = Books(here, ends_after)
    if after is None:
        train(parts_of(here, books, Schedule(last, 2, True, save_freq), draws))
        return books
    done = max(after.saved)
    here.weights, state = after.saved[done]
    here.version = done
    books.steps = {step: told for step, told in after.steps.items() if step <= done}
    books.rollouts_of = {step: told for step, told in after.rollouts_of.items() if step <= done}
    train(parts_of(here, books, Schedule(last, 2, True, save_freq, done), draws).restore(json.loads(state)))
    return books


def results(books: Books) -> tuple[Any, Any]:
    return books.steps, books.rollouts_of


def stopped(last: int, ends_after: int, **options: Any) -> Books:
    """What a run that a signal ended has left."""
    left: list[Books] = []

    def train(parts: Parts) -> None:
        left.append(cast(Any, parts.journal))
        overlapped.train(parts)

    with pytest.raises(StoppedError, match=f"ended after step {ends_after} with a checkpoint"):
        run(last, train=train, ends_after=ends_after, **options)
    return left[0]


def test_the_sampler_draws_while_the_actor_learns_and_weights_change_when_neither_works() -> None:
    happened = run(3).world.happened
    assert happened == [
        *("validate 0", "sample 1"),
        *("begin 1", "sample 2", "end 1", "publish 1"),
        *("begin 2", "sample 3", "end 2", "publish 2", "validate 2"),
        *("begin 3", "sample 4", "end 3", "publish 3", "validate 3"),
    ]


def test_rollouts_are_one_update_older_than_the_policy_but_for_the_first() -> None:
    books = run(5)
    versions = {step: {version for _, version, _ in told} for step, told in books.rollouts_of.items()}
    assert versions == {1: {0}, 2: {0}, 3: {1}, 4: {2}, 5: {3}}
    assert [books.steps[step]["rollout/staleness_mean"] for step in range(1, 6)] == [0, 1, 1, 1, 1]
    synchronous = run(3, train=loop.train)
    assert [synchronous.steps[step]["rollout/staleness_mean"] for step in (1, 2, 3)] == [0, 0, 0]


@pytest.mark.parametrize("draws", [1, 3])
def test_nothing_depends_on_who_is_faster(draws: int) -> None:
    slow, quick = run(6, draws=draws), run(6, draws=draws, quick=True)
    assert results(slow) == results(quick)


def test_what_drawing_has_told_belongs_to_the_step_that_learns_from_it() -> None:
    books = run(6, draws=4)
    drawn = [books.steps[step]["sampling/prompts_drawn"] for step in range(1, 7)]
    assert [books.steps[step]["verified"] for step in range(1, 7)] == drawn
    assert len(set(drawn)) > 1
    happened = " ".join(books.world.happened)
    for step, count in enumerate(drawn, start=1):
        assert happened.count(f"sample {step} draw") == count / 3 - 1, "three prompts a draw"


@pytest.mark.parametrize("draws", [1, 3])
@pytest.mark.parametrize("done", range(1, 7))
def test_a_run_that_was_killed_or_stopped_or_short_goes_on_as_if_it_had_not_been(done: int, draws: int) -> None:
    """However it ended after a step, whether or not one at which checkpoints are written."""
    whole = run(8, draws=draws)
    killed = Books(World(), None, whole.steps, whole.rollouts_of, {3: whole.saved[3]})
    assert results(run(8, after=killed, draws=draws)) == results(whole)
    assert results(run(8, after=stopped(8, done, draws=draws), draws=draws)) == results(whole)
    short = run(done, draws=draws)
    again = run(8, after=short, draws=draws)
    # Validation after the last step is of the shorter run alone.
    short_told = {step: {**told, "val": None} for step, told in again.steps.items()}
    assert short_told == {step: {**told, "val": None} for step, told in whole.steps.items()}
    assert again.rollouts_of == whole.rollouts_of


def test_it_goes_on_from_the_other_loop_and_the_other_loop_from_it() -> None:
    first = run(3)
    books = run(6, after=run(5, after=first, train=loop.train))
    versions = {step: {version for _, version, _ in told} for step, told in books.rollouts_of.items()}
    assert versions == {1: {0}, 2: {0}, 3: {1}, 4: {3}, 5: {4}, 6: {5}}


def test_another_sampler_draws_from_the_weights_that_the_actor_has_by_then() -> None:
    books = run(4, dies_at=3)
    versions = {step: {version for _, version, _ in told} for step, told in books.rollouts_of.items()}
    assert versions == {1: {0}, 2: {0}, 3: {2}, 4: {2}}
    assert books.steps[3]["rollout/staleness_mean"] == 0


class Mortal(Sampling):
    """A sampler that dies at its first draw, and an actor that notes what it publishes."""

    def __init__(self) -> None:
        policy: Any = self
        slots = [Slot(object(), object, cast(Any, object()))]
        super().__init__(slots, policy, tolerance=None, seed=0, deadline_s=1.0)
        self.noted: list[int] = []

    def connect(self, number: int, sampler: object, transfer: object) -> None:
        pass

    def publish(self, version: int, sequences: object, numbers: object = None) -> Any:
        self.noted.append(version)

    def ask(self, method: str, doing: str, slots: object = None) -> list[Any]:
        return [{}]

    def lives(self, slot: object) -> bool:
        return False

    def draw(self, requests: Sequence[object], *_: object) -> list[Rollout]:
        if not self.restarts:
            raise cluster.WorkerDiedError("sampling rollouts: the worker process died")
        return [Rollout("", (), "", "stop", self.version) for _ in requests]


@pytest.mark.parametrize(("newest", "version"), [(None, 6), (7, 7)])
def test_the_version_of_what_another_sampler_is_given_is_told(newest: int | None, version: int) -> None:
    sampling = Mortal()
    sampling.version = 6
    [group] = sampling.sample(
        [Asked("u", PROMPT, np.ones(1, np.int32))], 2, SamplingSettings(1.0, 1.0, 4), [8], newest=newest
    )
    assert {rollout.policy_version for rollout in group.rollouts} == {version}
    assert sampling.noted == [6, version], "once when it was connected, once for the other one"


def arrays(batch: Batch) -> Iterator[tuple[bytes, bytes]]:
    for group in batch.groups:
        for rollout in group.rollouts:
            yield rollout.token_ids.tobytes(), rollout.logprobs.tobytes()


def test_a_checkpoint_keeps_what_was_drawn_to_the_last_bit() -> None:
    odd = np.asarray([-0.1, -0.0, -np.inf, np.nan, -1e-42, -3.4e38], np.float32)
    outcomes = (RIGHT, UNKNOWN, Outcome(0.1, False, "wrong", "half\ud800 and \u2028"))
    texts = ("", "\x00 \ud83d", "line\r\nline \U0001f40d")
    tokens = np.asarray([0, 1, 2**31 - 1, -(2**31), 5, 6], np.int32)
    ends = ("stop", "length", "error")
    rollouts = tuple(
        Rollout(f"r{number}", (Segment(tokens[number:], odd[number:]),), text, end, 3)
        for number, (text, end) in enumerate(zip(texts, ends, strict=True))
    )
    group = replace(group_of(outcomes, row="row 4"), rollouts=rollouts, prompt_ids=ROWS.prompt_ids[4])
    batch = Batch((group, replace(group, uid="other")), {"sampling/prompts_drawn": 7, "perf/x": float(np.float32(0.1))})
    again = restored(json.loads(json.dumps(kept(batch))), ROWS)
    assert list(arrays(again)) == list(arrays(batch))
    assert json.dumps(again.figures) == json.dumps(batch.figures)
    for one, other in zip(batch.groups, again.groups, strict=True):
        assert (one.uid, one.outcomes, one.prompt) == (other.uid, other.outcomes, other.prompt)
        for ours, theirs in zip(one.rollouts, other.rollouts, strict=True):
            assert replace(ours, segments=()) == replace(theirs, segments=())
