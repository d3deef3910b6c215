"""Ends a run early and in order: signals, and a budget of time. The step is finished and saved first."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from trainer.errors import StoppedError

log = logging.getLogger("mopd")

SPARE = 1.5
"""A step is begun only if one and a half times the longest so far fits into the budget."""
REQUEUE = (signal.SIGTERM, signal.SIGUSR1)
"""What Slurm sends before it ends a job: by default, and with `--signal=B:USR1@120`."""


class Stopper:
    """Knows whether a run is to end after the present step, and why."""

    def __init__(self, budget_s: float | None, environment: Mapping[str, str]) -> None:
        self.asked: str | None = None
        self.longest = 0.0
        self.last: float | None = None
        left = seconds_left(budget_s, environment, time.time())
        # Monotonic from here on: a clock that is set while the run goes on moves no deadline.
        self.deadline = None if left is None else time.monotonic() + left

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Takes the signals while the run goes on."""
        former = {number: signal.getsignal(number) for number in (*REQUEUE, signal.SIGINT)}
        self.listen()
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    def listen(self) -> None:
        """Takes the signals, from whoever took them in the meantime."""
        for number in (*REQUEUE, signal.SIGINT):
            signal.signal(number, self.heard)

    def heard(self, number: int, frame: FrameType | None) -> None:
        """A signal came: the first asks for an end after the step, a second Ctrl-C for one at once."""
        if number == signal.SIGINT and self.asked == "SIGINT":
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # what is left to do is to clean up
            raise KeyboardInterrupt
        if self.asked is None or number == signal.SIGINT:
            self.asked = signal.Signals(number).name
            more = "; Ctrl-C once more ends it within seconds" if number == signal.SIGINT else ""
            when = "before its first step" if self.last is None else "with a checkpoint after this step"
            log.warning("%s: the run ends %s%s", self.asked, when, more)

    def begin(self) -> None:
        """The first step begins.

        Raises:
            StoppedError: the end was asked for before.
        """
        self.last = time.monotonic()
        if self.asked is not None:
            raise StoppedError(f"{self.asked} came before the first step; nothing was trained")

    def reason(self, saving_s: float = 0.0) -> str | None:
        """Why the run ends after the step that has just been finished; None to go on.

        `saving_s` is how long the checkpoint takes that ends a run.
        """
        now = time.monotonic()
        if self.last is not None:
            self.longest = max(self.longest, now - self.last)
        self.last = now
        if self.asked is not None:
            return self.asked
        if self.deadline is not None and now + SPARE * self.longest + saving_s > self.deadline:
            return "the time budget does not hold another step"
        return None


def seconds_left(budget_s: float | None, environment: Mapping[str, str], now: float) -> float | None:
    """How long the run may take from `now`: the budget counts from the start of the job, not of the process.

    The start and the end of a Slurm job are told by SLURM_JOB_START_TIME and SLURM_JOB_END_TIME.
    """
    limits = []
    if budget_s is not None:
        limits.append(number(environment, "SLURM_JOB_START_TIME", now) + budget_s - now)
    if "SLURM_JOB_END_TIME" in environment:
        limits.append(number(environment, "SLURM_JOB_END_TIME", float("inf")) - now)
    return min(limits) if limits and min(limits) != float("inf") else None


def number(environment: Mapping[str, str], name: str, otherwise: float) -> float:
    """A variable that holds seconds since 1970."""
    try:
        return float(environment.get(name) or otherwise)
    except ValueError:
        return otherwise


def how_to_go_on(output: Path, environment: Mapping[str, str] = os.environ) -> str:
    """The command that goes on with the stopped run in `output`."""
    job = environment.get("SLURM_JOB_ID")
    return f"scontrol requeue {job}" if job else f"the same command with OUTPUT_DIR={output}"
