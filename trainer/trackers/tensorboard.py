"""TensorBoard: curves and texts in event files of the run's folder. The only door to it."""

from __future__ import annotations

from collections.abc import Mapping

from trainer.trackers.base import Run, Sample


class TensorBoard:
    """Scalars, and a sample of rollouts as texts."""

    def __init__(self, run: Run) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.place = str(run.folder / "tensorboard")
        # A run that was killed may have written steps that it now repeats; they are to be forgotten.
        self.writer = SummaryWriter(self.place, purge_step=run.first_step or None)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes one step, to the disk: what is read while the run goes on is complete."""
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def rollouts(self, step: int, sample: Sample) -> None:
        """Writes a step's sample as one text."""
        self.writer.add_text("rollouts", "\n\n".join(map(paragraphs, sample)), step)

    def close(self, code: int) -> None:
        """Ends the file."""
        self.writer.close()


def paragraphs(rollout: Mapping[str, object]) -> str:
    """A rollout in Markdown; its texts are indented, which keeps whatever they hold from being Markdown."""
    parts = [f"**{rollout['group']}: {rollout['verdict']}, reward {rollout['reward']}**"]
    for name in ("prompt", "response", "teacher prompt"):
        if rollout[name] is not None:
            parts += [name, "\n".join(f"    {line}" for line in str(rollout[name]).split("\n"))]
    return "\n\n".join(parts)
