"""Which steps a run takes, and what happens after which."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """Steps are counted from 1; step 0 is the initial model."""

    last: int
    test_freq: int
    val_before_train: bool
    save_freq: int = 0
    done: int = 0
    """Steps that an earlier process has finished."""

    def steps(self) -> range:
        """Every training step that is left."""
        return range(self.done + 1, self.last + 1)

    def validates(self, step: int) -> bool:
        """True where held-out quality is measured after `step`."""
        if step == 0:
            return self.val_before_train and not self.done
        return step == self.last or (self.test_freq > 0 and step % self.test_freq == 0)

    def saves(self, step: int) -> bool:
        """True where a checkpoint is written after `step`."""
        return step == self.last or (self.save_freq > 0 and step % self.save_freq == 0)
