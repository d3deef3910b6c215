"""The controller's side of checkpoints: asks the ranks to write, and hears of what went wrong at a step's end."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trainer.cluster import WorkerDiedError, WorkerError
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
    facts: Callable[[], Mapping[str, Any]]
    """What a checkpoint's manifest tells of the run."""
    failures: int = 0
    pending: bool = False

    def save(self, step: int) -> None:
        """Begins to write the checkpoint of a step, once the one before is whole.

        What it holds is of this step, whatever comes while it is written.
        """
        self.settle(wait=True)
        folder = str((self.folder / f"step_{step}").resolve())
        saving = Saving(folder, step, dict(self.facts()), self.config, self.keep)
        self.pending = self.guarded(lambda: self.policy.save(saving))

    def settle(self, *, wait: bool) -> None:
        """Hears whether the last checkpoint was written; with `wait`, once it is.

        Raises:
            WorkerError: it was not, and that stops the run.
        """
        if not self.pending:
            return
        if self.guarded(lambda: self.policy.settle(wait=wait)) and wait:
            self.pending, self.failures = False, 0

    def guarded(self, call: Callable[[], None]) -> bool:
        """Whether a call went well; a failure is told, and raised where it stops the run."""
        try:
            call()
        except WorkerDiedError:
            raise
        except WorkerError as error:
            self.failures, self.pending = self.failures + 1, False
            if self.on_error == "stop" or self.failures >= MOST_FAILURES:
                raise
            log.warning("%s; training goes on (trainer.on_save_error=warn)", str(error).splitlines()[0])
            return False
        return True
