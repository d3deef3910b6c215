"""The algorithm, a turn per phase (arXiv 2605.12652, section 3).

for every step:
    sample    8 attempts at every prompt, by the student
    verify    each attempt (and, with dynamic sampling, draw others for groups that teach nothing)
    context   re-prompt the teacher with peers of the same group
    learn     move the student towards the teacher on the student's own tokens; then the teacher follows
    publish   the new weights to the sampler
    remember  what happened, and now and then how good the student has become
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainer.parts import Parts


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
        """Times one phase, and names it in whatever goes wrong."""
        self.begins(self.step, phase)
        begun = time.perf_counter()
        try:
            yield
        except Exception as error:
            raise PhaseError(f"step {self.step}, {phase}: {error}") from error
        self.timings[f"timing_s/{phase}"] = time.perf_counter() - begun

    def total(self) -> dict[str, float]:
        """Seconds by phase, and of the whole step so far."""
        return {**self.timings, "timing_s/step": time.perf_counter() - self.started}


def train(parts: Parts) -> None:
    """Runs every step; what is left behind is the journal's files and the last weights."""
    clock = Clock(0, parts.journal.begins)
    if parts.schedule.validates(0):
        with clock.turn("validate"):
            scores = parts.validate(step=0)
        parts.journal.remember(0, scores, clock.total())
    parts.stopper.begin()
    for step in parts.schedule.steps():
        clock = Clock(step, parts.journal.begins)
        with clock.turn("sample"):
            groups = parts.sample(step)
        with clock.turn("verify"):
            groups = parts.verify(groups, step)
        drawn: dict[str, float] = {}
        if parts.redraws:
            with clock.turn("redraw"):
                groups, drawn = parts.redraw(groups, step)
        with clock.turn("context"):
            contexts = parts.contexts.build(groups, step)
        with clock.turn("learn"):
            learned = parts.learn(groups, contexts, step)
        with clock.turn("publish"):
            published = parts.publish(groups, step)
        metrics = {**drawn, **learned.metrics, **published}
        if parts.schedule.validates(step):
            with clock.turn("validate"):
                metrics |= parts.validate(step=step)
        metrics |= parts.health.watch(step, metrics)
        with clock.turn("remember"):
            parts.journal.rollouts(step, groups, contexts, learned.divergences)
        parts.journal.remember(step, metrics, clock.total())
        ending = parts.ending(step)
        if ending or parts.schedule.saves(step):
            with clock.turn("save"):
                parts.saver.save(step, parts.state())
        if ending:
            parts.saver.finish()
            raise ending
    parts.saver.finish()
