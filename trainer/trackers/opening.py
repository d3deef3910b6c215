"""The trackers of a run: asked for by name, opened, told the same, and dropped when they fail."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from trainer.trackers.aside import Aside
from trainer.trackers.base import Memory, Run, Tracker, sample_of, told
from trainer.trackers.mlflow import Mlflow
from trainer.trackers.tensorboard import TensorBoard
from trainer.trackers.wandb import Wandb

log = logging.getLogger("mopd")

REQUIREMENTS = Path(__file__).resolve().parents[2] / "requirements-trackers.txt"
NAMES = ("tensorboard", "wandb", "mlflow")
"""Trackers, each named as the library it needs."""


@dataclass
class Trackers:
    """The trackers of a run. One that fails is told once and dropped: no run is lost for the sake of its curves."""

    open: dict[str, Tracker] = field(default_factory=dict)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.each(lambda tracker: tracker.close(0 if kind is None else 1))

    def log(self, record: Mapping[str, Any]) -> None:
        """A step to every tracker, without what was not measured."""
        metrics = {name: float(value) for name, value in record.items() if name != "step" and value is not None}
        self.each(lambda tracker: tracker.log(record["step"], metrics))

    def rollouts(self, step: int, lines: Sequence[Mapping[str, Any]]) -> None:
        """A sample of a step's rollout lines to every tracker; before the step itself."""
        sample = sample_of(lines) if self.open else ()
        self.each(lambda tracker: tracker.rollouts(step, sample))

    def each(self, call: Callable[[Tracker], None]) -> None:
        """Calls every tracker."""
        for name in list(self.open):
            try:
                call(self.open[name])
            except Exception as error:  # whatever it is, it is the tracker's and not the run's
                del self.open[name]
                switched_off(name, error)


def open_trackers(names: Sequence[str], run: Run) -> Trackers:
    """Opens those of `names` that are trackers; a library that was not asked for is not imported."""
    memory = Memory(run.folder / "trackers.json", fresh=run.first_step == 0)
    makers: dict[str, Callable[[], Tracker]] = {
        "tensorboard": lambda: TensorBoard(run),
        "wandb": lambda: Aside("wandb", lambda: Wandb(run, memory), memory, run.patience_s),
        "mlflow": lambda: Aside("mlflow", lambda: Mlflow(run, memory), memory, run.patience_s),
    }
    trackers = Trackers()
    for name in (name for name in NAMES if name in names):
        try:
            trackers.open[name] = makers[name]()
        except Exception as error:  # as in Trackers
            switched_off(name, error)
    return trackers


def switched_off(name: str, error: Exception) -> None:
    """Says that a tracker is no more."""
    log.warning("%s failed and is switched off; metrics.jsonl goes on (%s)", name, told(error))


def missing_trackers(names: Sequence[str]) -> list[str]:
    """A sentence for every tracker of `names` that is not installed, with the line that installs it."""
    # A folder `wandb` where the command is started, which wandb itself makes, looks like a package without origin.
    specs = {name: importlib.util.find_spec(name) for name in NAMES if name in names}
    asked = ",".join(names)
    return [
        f"trainer.logger=[{asked}]: {name} is not installed; pip install -r {REQUIREMENTS}, or leave it out"
        for name, spec in specs.items()
        if spec is None or spec.origin is None
    ]
