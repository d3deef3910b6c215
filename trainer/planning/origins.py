"""Where every setting of a run comes from: file, preset, profile, flag or override."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainer.config import flags
from trainer.config.compose import MODEL_KEY, compose_tree, composed, leaves
from trainer.planning.preflight import Asked


@dataclass(frozen=True)
class Setting:
    """One key of a run."""

    key: str
    value: Any
    default: Any
    """What base.yaml and actor.yaml say."""
    origin: str

    @property
    def stands_out(self) -> bool:
        """Whether somebody set it, or it differs from the default."""
        return self.value != self.default or self.origin.startswith(("override", "flag"))


def settings_of(asked: Asked, method: str, tree: Mapping[str, Any]) -> list[Setting]:
    """Every setting of the resolved `tree`, in the schema's order."""
    base, preset = compose_tree("base", []), compose_tree(method, ["profile=published"])
    chosen = [override for override in asked.overrides if override.startswith("profile=")][-1:]
    model = [override for override in asked.settings if override.lstrip("+").startswith(f"{MODEL_KEY}=")][-1:]
    # What cannot be composed was told and left out.
    profile, _ = composed(method, [*model, *chosen])
    name = chosen[0].partition("=")[2] if chosen else "published" if model else "embedded"
    from_flags = {key: flag for flag, (key, _) in flags.settings_from(asked.environment).items()}
    overridden = {override.lstrip("+").partition("=")[0] for override in asked.overrides}

    def origin(key: str) -> str:
        if key in overridden:
            return "override"
        if key in from_flags:
            return f"flag {from_flags[key]}"
        if lookup(profile, key) != lookup(preset, key):
            return f"profile {name}"
        if lookup(preset, key) != lookup(base, key):
            return f"{method}.yaml"
        return "actor.yaml" if key.startswith("actor_rollout_ref.actor.") else "base.yaml"

    return [Setting(key, lookup(tree, key), lookup(base, key), origin(key)) for key in leaves(tree)]


def lookup(tree: Mapping[str, Any], key: str) -> Any:
    """The value under a dotted key; None where there is none."""
    value: Any = tree
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value
