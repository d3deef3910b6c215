"""The same algorithm, one step off-policy: while the actor learns, the sampler draws what the next step learns from.

for every step:
    learn     the actor begins with what was drawn before
    sample    meanwhile, for the next step, by the weights that were published last; verify; draw again
    publish   the new weights, once both are done
    remember  as in `trainer/loop.py`

A step's rollouts are thus by the policy one update older than the one they train, but for the first step's. Truncated
importance weights between trainer and sampler (`algorithm.rollout_correction`) make up for it.

Nothing depends on which of both is done first: the sampler's weights change only when neither is at work, and
validation finds it idle. A checkpoint holds what was drawn ahead, so that a resumed run learns from the very same; it
is drawn after the last step too, for a run that is asked for more steps later.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainer.loop import Clock, Done, before_the_first, conclude, drawn

if TYPE_CHECKING:
    from trainer.parts import Parts


def train(parts: Parts) -> None:
    """Runs every step, as `trainer.loop.train` does."""
    before_the_first(parts)
    parts.sampler.prepare()  # before the actor's weights move: what it publishes is what it has by then
    batch = parts.ahead
    for step in parts.schedule.steps():
        clock = Clock(step, parts.journal.begins)
        if batch is None:
            batch = drawn(parts, step, clock)
        with clock.turn("context"):
            contexts = parts.contexts.build(batch.groups, step)
        with clock.turn("learn"):
            learning = parts.begin(batch.groups, contexts, step)
        ahead = drawn(parts, step + 1, clock)
        with clock.turn("learn"):
            learned = learning()
        with clock.turn("publish"):
            published = parts.publish(batch.groups, step)
        conclude(parts, clock, Done(batch, contexts, learned, published), ahead)
        batch = ahead
    parts.saver.finish()
