"""From YAML files, environment flags and overrides to one validated `Config`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError

from trainer.config import flags
from trainer.config.schema import Config
from trainer.errors import BadInputError

FOLDER = Path(__file__).resolve().parent
PROJECT = FOLDER.parent.parent
METHODS = ("mopd", "sdpo", "grpo")
MODEL_KEY = "actor_rollout_ref.model.path"


@dataclass(frozen=True)
class Resolved:
    """A configuration that holds, and what won over the files."""

    config: Config
    tree: dict[str, Any]
    """The same as plain nested dictionaries, for `config.yaml`."""
    won: tuple[str, ...]
    """Every flag and override in force, as a person wrote it."""


def resolve(config_name: str, overrides: Sequence[str], environment: Mapping[str, str]) -> Resolved:
    """The configuration that a command asks for.

    Raises:
        BadInputError: unknown method, unknown key, wrong type or impossible combination; all at once.
    """
    if config_name not in METHODS:
        raise BadInputError([f"--config-name {config_name}: no such method; known: {', '.join(METHODS)}"])
    from_flags = flags.overrides_from(environment)
    asked = [*from_flags.values(), *overrides]
    tree = compose_tree(config_name, asked)
    problems = flags.unsupported(environment)
    schema = TypeAdapter(Config)
    try:
        config = schema.validate_python(tree)
    except ValidationError as error:
        raise BadInputError([*problems, *explained(error, tree)]) from None
    problems += contradictions(config)
    if problems:
        raise BadInputError(problems)
    won = (*(f"{name} -> {override}" for name, override in from_flags.items()), *overrides)
    return Resolved(config, schema.dump_python(config, mode="json"), won)


def compose_tree(config_name: str, asked: Sequence[str]) -> dict[str, Any]:
    """The nested dictionaries after composition; unknown keys still in, for the schema to refuse them together."""
    OmegaConf.register_new_resolver("project", lambda path: str(PROJECT / path), replace=True)
    names_model = any(override.lstrip("+").startswith(f"{MODEL_KEY}=") for override in asked)
    names_profile = any(override.startswith("profile=") for override in asked)
    profile = ["profile=published"] if names_model and not names_profile else []
    # Forced, so that unknown keys reach the schema, which refuses all of them at once.
    forced = [override if override.startswith(("+", "~", "profile=")) else f"++{override}" for override in asked]
    try:
        with initialize_config_dir(str(FOLDER), version_base="1.3"):
            composed = compose(config_name, overrides=[*profile, *forced])
        tree = OmegaConf.to_container(composed, resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise BadInputError([f"{' '.join(asked)}: {error}; an override has the form key=value"]) from None
    assert isinstance(tree, dict)
    return {str(key): value for key, value in tree.items()}


def as_yaml(tree: Mapping[str, Any]) -> str:
    """The tree as a YAML file."""
    return str(OmegaConf.to_yaml(OmegaConf.create(dict(tree))))


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Every dotted key of a nested dictionary that holds a value."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def explained(error: ValidationError, tree: Mapping[str, Any]) -> list[str]:
    """One sentence for every fault that the schema found: key, value got, remedy."""
    faults = [(".".join(map(str, fault["loc"])), fault) for fault in error.errors()]
    unknown = [key for key, fault in faults if fault["type"] == "unexpected_keyword_argument"]
    known = [key for key in leaves(tree) if not any(f"{key}.".startswith(f"{bad}.") for bad in unknown)]
    sentences = []
    for key, fault in faults:
        if key not in unknown:
            sentences.append(f"{key}={fault['input']!r}: {fault['msg'].lower()}")
            continue
        inner = leaves(fault["input"], f"{key}.") if isinstance(fault["input"], Mapping) else [key]
        sentences += [f"{leaf}: unknown key{nearest(leaf, known)}" for leaf in inner]
    return sentences


def nearest(key: str, known: Sequence[str]) -> str:
    """A suggestion of the valid key most like `key`, by letters and by words."""

    def likeness(name: str) -> float:
        ours, theirs = set(re.split(r"[._]", key)), set(re.split(r"[._]", name))
        letters = difflib.SequenceMatcher(None, key, name).ratio()
        return letters + len(ours & theirs) / len(ours | theirs)

    best = max(known, key=likeness)
    return f"; did you mean {best}?" if likeness(best) > 1 else "; docs/configuration.md lists the keys"


def contradictions(config: Config) -> list[str]:
    """Sentences for combinations of valid values that cannot be run."""
    data, actor, rollout = config.data, config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    distill = actor.self_distillation
    problems = []
    if data.train_batch_size % actor.ppo_mini_batch_size and actor.ppo_mini_batch_size < data.train_batch_size:
        problems.append(
            f"actor_rollout_ref.actor.ppo_mini_batch_size={actor.ppo_mini_batch_size} does not divide "
            f"data.train_batch_size={data.train_batch_size}; choose a divisor"
        )
    longest = data.max_prompt_length + data.max_response_length
    if rollout.max_model_len is not None and rollout.max_model_len < longest:
        problems.append(
            f"actor_rollout_ref.rollout.max_model_len={rollout.max_model_len} is below data.max_prompt_length + "
            f"data.max_response_length = {longest}; raise it, or set it to null"
        )
    peers = distill.include_primary_solution or distill.include_another_solution or distill.include_failure_solution
    if actor.policy_loss.loss_mode == "sdpo" and peers and rollout.n < 2:
        problems.append(
            f"actor_rollout_ref.rollout.n={rollout.n}: a group of one has no peers; use 2 or more "
            f"(ROLLOUT_BATCH_SIZE), published 8"
        )
    if actor.policy_loss.loss_mode == "vanilla" and rollout.n < 2:
        problems.append(f"actor_rollout_ref.rollout.n={rollout.n}: group-relative advantages need 2 or more rollouts")
    return problems
