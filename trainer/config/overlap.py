"""What the overlapped loop asks of the other settings."""

from __future__ import annotations

from trainer.config.schema import Config


def overlap_faults(config: Config) -> list[str]:
    """Sentences for settings with which rollouts one step older than the policy could not be learnt from."""
    if not config.trainer.overlap or config.algorithm.rollout_correction.rollout_is is not None:
        return []
    return [
        "algorithm.rollout_correction.rollout_is=null: with trainer.overlap=true rollouts are by the policy one step "
        "before, and nothing would make up for it; set it to token (the default), or trainer.overlap=false"
    ]
