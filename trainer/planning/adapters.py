"""What the adapters of a configuration are: how many weights they have, and why they cannot be."""

from __future__ import annotations

from trainer.adapters import ALL_LINEAR, parameters_added, target_names
from trainer.config.schema import Config
from trainer.planning.architecture import skeleton_of
from trainer.settings import adapter_settings

MODEL = "actor_rollout_ref.model"


def adapter_faults(config: Config) -> list[str]:
    """A sentence for layers that are named where there are no adapters."""
    model = config.actor_rollout_ref.model
    if model.lora_rank or model.target_modules == ALL_LINEAR:
        return []
    return [
        f"{MODEL}.target_modules=[{','.join(model.target_modules)}]: without adapters all weights are trained; set "
        f"{MODEL}.lora_rank (16 is usual), or leave it out"
    ]


def target_faults(config: Config) -> list[str]:
    """A sentence for layers that the model does not have, or that cannot be adapted; its description must be whole."""
    settings = adapter_settings(config)
    if settings is None:
        return []
    try:
        target_names(skeleton_of(config.actor_rollout_ref.model.path), settings.targets)
    except ValueError as error:
        return [f"{MODEL}.{error}"]
    return []


def adapter_parameters(config: Config) -> int:
    """How many weights the student's adapters have; 0 without any. Raises as `skeleton_of` and `target_names` do."""
    settings = adapter_settings(config)
    return 0 if settings is None else parameters_added(skeleton_of(config.actor_rollout_ref.model.path), settings)
