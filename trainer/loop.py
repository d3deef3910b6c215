"""The algorithm, a turn per phase (arXiv 2605.12652, section 3).

for every step:
    sample    8 attempts at every prompt, by the student
    verify    each attempt (and, with dynamic sampling, draw others for groups that teach nothing)
    context   re-prompt the teacher with peers of the same group
    learn     move the student towards the teacher on the student's own tokens; then the teacher follows
    publish   the new weights to the sampler
    remember  what happened, and now and then how good the student has become

`trainer/overlapped.py` is the same with the first two under way while the actor learns.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainer.batch import Batch

if TYPE_CHECKING:
    from trainer.contexts import Context
    from trainer.parts import Learned, Parts


class PhaseError(RuntimeError):
    """A phase of a step failed; its message names both."""


class Clock:
    """Seconds by phase of the current step; whoever wants to know is told when a phase begins."""

    def __init__(self, step: int, begins: Callable[[int, str], None]) -> None:
        self.step = step
        self.begins = begins
        self.started = time.perf_counter()
        self.timings: dict[str, float] = {}

    @contextmanager
    def turn(self, phase: str) -> Iterator[None]:
        """Times one phase, which may come in several turns, and names it in whatever goes wrong."""
        self.begins(self.step, phase)
        begun = time.perf_counter()
        try:
            yield
        except Exception as error:
            raise PhaseError(f"step {self.step}, {phase}: {error}") from error
        name = f"timing_s/{phase}"
        self.timings[name] = self.timings.get(name, 0.0) + time.perf_counter() - begun

    def total(self) -> dict[str, float]:
        """Seconds by phase, and of the whole step so far."""
        return {**self.timings, "timing_s/step": time.perf_counter() - self.started}


@dataclass(frozen=True)
class Done:
    """A step whose new weights are published."""

    batch: Batch
    contexts: Sequence[Context]
    learned: Learned
    published: dict[str, float]
    """What the comparison of sampler and actor has shown."""


def train(parts: Parts) -> None:
    """Runs every step; what is left behind is the journal's files and the last weights."""
    before_the_first(parts)
    for step in parts.schedule.steps():
        clock = Clock(step, parts.journal.begins)
        batch = drawn(parts, step, clock)
        with clock.turn("context"):
            contexts = parts.contexts.build(batch.groups, step)
        with clock.turn("learn"):
            learned = parts.learn(batch.groups, contexts, step)
        with clock.turn("publish"):
            published = parts.publish(batch.groups, step)
        conclude(parts, clock, Done(batch, contexts, learned, published))
    parts.saver.finish()


def before_the_first(parts: Parts) -> None:
    """How good the student is that training begins with."""
    clock = Clock(0, parts.journal.begins)
    if parts.schedule.validates(0):
        with clock.turn("validate"):
            scores = parts.validate(step=0)
        parts.journal.remember(0, scores, clock.total())
    parts.stopper.begin()


def drawn(parts: Parts, step: int, clock: Clock) -> Batch:
    """What a step is to learn from: sampled, verified, and drawn again where it teaches nothing."""
    with clock.turn("sample"):
        groups = parts.sample(step)
    with clock.turn("verify"):
        groups = parts.verify(groups, step)
    figures: dict[str, float] = {}
    if parts.redraws:
        with clock.turn("redraw"):
            groups, figures = parts.redraw(groups, step)
    return Batch(groups, {**figures, **parts.verifier.report()})


def conclude(parts: Parts, clock: Clock, done: Done, ahead: Batch | None = None) -> None:
    """Measures, remembers and saves a step that is done; `ahead` is what was drawn of the next one.

    Raises:
        StoppedError, RunUnhealthyError: the run ends here.
    """
    step = clock.step
    metrics = {**done.batch.figures, **done.learned.metrics, **done.published}
    if parts.schedule.validates(step):
        with clock.turn("validate"):
            metrics |= parts.validate(step=step)
    metrics |= parts.health.watch(step, metrics)
    with clock.turn("remember"):
        parts.journal.rollouts(step, done.batch.groups, done.contexts, done.learned.recorded)
    parts.journal.remember(step, metrics, clock.total())
    ending = parts.ending(step)
    if ending or parts.schedule.saves(step):
        with clock.turn("save"):
            parts.saver.save(step, parts.state(ahead))
    if ending:
        parts.saver.finish()
        raise ending
