"""The controller's side of checkpoints: asks the ranks to write, and hears of what went wrong at a step's end."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trainer.cluster import DeadlineError, WorkerDiedError, WorkerError
from trainer.services import Policy
from trainer.workers.state import Saving

log = logging.getLogger("mopd")

MOST_FAILURES = 2
"""Writes that may fail one after the other, where a failure does not stop the run at once."""


@dataclass
class Saver:
    """Writes a run's checkpoints beside its training."""

    policy: Policy
    folder: Path
    config: str
    """The text of `config.yaml`."""
    keep: int
    on_error: Literal["stop", "warn"]
    facts: Mapping[str, Any]
    """What every checkpoint's manifest tells of the run."""
    failures: int = 0
    """Writes that have failed since the last one that went well."""
    failure: WorkerError | None = None
    """Why the last write failed; None where it did not, or goes on."""
    pending: bool = False
    """A write goes on, or has ended unheard."""
    began: float = 0.0
    longest_s: float = 0.0
    """The longest that a write has taken, as far as it was seen."""

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """Begins to write the checkpoint of a step, once the one before is whole.

        What it holds is of this step, whatever comes while it is written. `state` is the controller's own.

        Raises:
            WorkerError: this or the last one could not be written, and that stops the run.
        """
        self.settle(wait=True)
        folder = str((self.folder / f"step_{step}").resolve())
        saving = Saving(folder, step, {**self.facts, "state": dict(state)}, self.config, self.keep)
        self.began, self.failure = time.monotonic(), None
        try:
            self.policy.save(saving)
        except WorkerError as error:
            self.failed(error)
        else:
            self.pending = True

    def settle(self, *, wait: bool) -> None:
        """Hears whether the last checkpoint was written; with `wait`, once it is.

        Raises:
            WorkerError: it was not, and that stops the run.
        """
        if not self.pending:
            return
        try:
            self.pending = not self.policy.settle(wait=wait)
        except WorkerError as error:
            self.pending = False
            self.failed(error)
        else:
            self.failures = self.failures if self.pending else 0
            self.longest_s = max(self.longest_s, time.monotonic() - self.began)

    def finish(self) -> None:
        """Waits for the run's last checkpoint.

        Raises:
            WorkerError: it was not written: whatever `on_error` says, a run without its result has failed.
        """
        self.settle(wait=True)
        if self.failure is not None:
            raise self.failure

    def failed(self, error: WorkerError) -> None:
        """Raises a failure that stops the run, and tells of any other."""
        self.failures, self.failure = self.failures + 1, error
        lost = isinstance(error, WorkerDiedError | DeadlineError)
        if lost or self.on_error == "stop" or self.failures >= MOST_FAILURES:
            raise error
        log.warning("%s; training goes on (trainer.on_save_error=warn)", str(error).splitlines()[0])
