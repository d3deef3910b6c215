"""Calls that nobody waits for: a tracker with a server behind it works in a thread beside the run."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping

from trainer.trackers.base import Memory, Sample, Tracker

LONGEST_QUEUE = 1000
"""Calls that may wait: some hundred steps. A tracker that is further behind does not answer."""
GRACE_S = 2.0
"""A tracker keeps a deadline of its own at the end; this much later it is left behind."""

Call = Callable[[Tracker], None]


class Aside:
    """A tracker that a thread opens and calls, in order; what fails there is raised by the next call here.

    A step that it was told before, by a process that was killed before its checkpoint, is not told again: no server
    takes anything back.
    """

    def __init__(self, name: str, make: Callable[[], Tracker], memory: Memory, patience_s: float) -> None:
        """Waits until it is open, or `patience_s`: the thread may go on opening it while the run begins.

        Raises:
            Exception: it cannot be opened.
        """
        self.name = name
        self.make = make
        self.memory = memory
        self.patience_s = patience_s
        self.place = "not answered yet"
        self.error: Exception | None = None
        self.calls: queue.Queue[tuple[int | None, Call] | None] = queue.Queue(LONGEST_QUEUE)
        self.opened = threading.Event()
        self.thread = threading.Thread(target=self.work, name=f"tracker-{name}", daemon=True)
        self.thread.start()
        self.opened.wait(patience_s)
        self.raise_error()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Hands over a step's metrics.

        Raises:
            Exception: what an earlier call has met, or a queue that only grows.
        """

        def tell(tracker: Tracker) -> None:
            tracker.log(step, metrics)
            self.memory.tell(self.name, step)

        self.hand_over((step, tell))

    def rollouts(self, step: int, sample: Sample) -> None:
        """Hands over a sample of a step's rollouts; raises as `log` does."""
        self.hand_over((step, lambda tracker: tracker.rollouts(step, sample)))

    def close(self, code: int) -> None:
        """Ends the run there, once all has been told; raises as `log` does, and where that takes too long."""
        self.hand_over((None, lambda tracker: tracker.close(code)))
        self.hand_over(None)
        self.thread.join(self.patience_s + GRACE_S)
        self.raise_error()
        if self.thread.is_alive():
            raise TimeoutError(f"no answer within {self.patience_s:.0f} s; the last steps may be missing there")

    def hand_over(self, call: tuple[int | None, Call] | None) -> None:
        """Queues a call, with the step that it tells of; None ends the thread."""
        self.raise_error()
        try:
            self.calls.put_nowait(call)
        except queue.Full:
            raise TimeoutError(f"{LONGEST_QUEUE} calls wait for an answer") from None

    def raise_error(self) -> None:
        """Raises what the thread has met."""
        if self.error is not None:
            raise self.error

    def work(self) -> None:
        """Opens the tracker and makes the calls, up to the first that fails."""
        try:
            tracker = self.make()
            self.place = tracker.place
            last = self.memory.last_step(self.name)
            self.opened.set()
            while (given := self.calls.get()) is not None:
                step, call = given
                if step is None or step > last:
                    call(tracker)
        except Exception as error:  # whatever it is, it is the tracker's and not the run's
            self.error = error
        finally:
            self.opened.set()
