"""What adapters (LoRA) ask of the other settings."""

from __future__ import annotations

from trainer.config.schema import Config

MODEL = "actor_rollout_ref.model"


def adapter_faults(config: Config) -> list[str]:
    """Sentences for settings that adapters leave without meaning, or that have no meaning without adapters."""
    model = config.actor_rollout_ref.model
    targets = model.target_modules
    if not model.lora_rank:
        if targets == "all-linear":
            return []
        named = ",".join(targets)
        return [
            f"{MODEL}.target_modules=[{named}]: without adapters all weights are trained; set {MODEL}.lora_rank (16 is "
            f"usual), or leave it out"
        ]
    faults = []
    if len(set(targets)) < len(targets) and targets != "all-linear":
        faults.append(f"{MODEL}.target_modules=[{','.join(targets)}]: names a layer twice; leave one out")
    return faults
