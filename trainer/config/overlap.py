"""What doing two things at once asks of the other settings."""

from __future__ import annotations

from mopd.methods import METHODS
from trainer.config.schema import Config


def overlap_faults(config: Config) -> list[str]:
    """Sentences for settings with which phases could not overlap as they are asked to."""
    return [*off_policy_faults(config), *early_faults(config)]


def off_policy_faults(config: Config) -> list[str]:
    """Sentences for settings with which the sampler could not draw while the actor learns."""
    if not config.trainer.overlap:
        return []
    faults = []
    if config.algorithm.rollout_correction.rollout_is is None:
        faults.append(
            "algorithm.rollout_correction.rollout_is=null: with trainer.overlap=true rollouts are by the policy one "
            "step before, and nothing would make up for it; set it to token (the default), or trainer.overlap=false"
        )
    if config.actor_rollout_ref.rollout.free_cache_engine:
        faults.append(
            "actor_rollout_ref.rollout.free_cache_engine=true: with trainer.overlap=true the sampler draws while the "
            "actor learns, and cannot sleep; set one of both to false"
        )
    return faults


def early_faults(config: Config) -> list[str]:
    """Sentences for settings with which no teacher could be shown groups before the update."""
    if not config.trainer.early_teacher:
        return []
    actor = config.actor_rollout_ref.actor
    kind = actor.self_distillation.teacher_regularization
    why = None
    if not METHODS[actor.policy_loss.loss_mode].distils:
        why = f"actor_rollout_ref.actor.policy_loss.loss_mode={actor.policy_loss.loss_mode} asks no teacher"
    elif config.trainer.overlap:
        why = "with trainer.overlap=true the actor is learning while rollouts are drawn"
    elif config.actor_rollout_ref.ref.placement == "own":
        why = "actor_rollout_ref.ref.placement=own: that teacher is asked by the update itself"
    elif kind not in ("ema", "frozen"):
        why = f"teacher_regularization={kind} makes the teacher of the student within the update"
    return [] if why is None else [f"trainer.early_teacher=true: {why}; set it to false"]
