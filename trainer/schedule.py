"""Which steps a run takes, and what happens after which."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """Steps are counted from 1; step 0 is the initial model."""

    last: int
    test_freq: int
    val_before_train: bool

    def steps(self) -> range:
        """Every training step."""
        return range(1, self.last + 1)

    def validates(self, step: int) -> bool:
        """True where held-out quality is measured after `step`."""
        if step == 0:
            return self.val_before_train
        return step == self.last or (self.test_freq > 0 and step % self.test_freq == 0)

    def saves(self, step: int) -> bool:
        """True where the weights are kept after `step`."""
        return step == self.last
