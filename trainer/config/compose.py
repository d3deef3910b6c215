"""From YAML files, environment flags and overrides to one validated `Config`."""

from __future__ import annotations

import difflib
import os
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

from mopd.contexts import ContextSettings
from mopd.methods import METHODS as LOSS_MODES
from mopd.summaries import summary_conflicts
from trainer.config import flags
from trainer.config.overlap import overlap_faults
from trainer.config.published import REASONS
from trainer.config.schema import Actor, Config
from trainer.errors import BadInputError

FOLDER = Path(__file__).resolve().parent
PROJECT = FOLDER.parent.parent
METHODS = (
    "mopd",
    "sdpo",
    "grpo",
    "ts_sdpo",
    "dpo",
    "simpo",
    "verified_sft",
    "opsd",
    "opd",
    "topd",
    "popd",
    "rloo",
    "gspo",
    "dppo",
    "drpo",
)
REFERENCE = "; docs/configuration.md lists the keys"
MODEL_KEY = "actor_rollout_ref.model.path"
DISTILL = "actor_rollout_ref.actor.self_distillation"


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
        BadInputError: unknown method, unknown keys, wrong types, and missing files beside them; all at once.
            Combinations that cannot be run are left to `contradictions`, to be told with what is wrong in the data.
    """
    if config_name not in METHODS:
        raise BadInputError([f"--config-name {config_name}: no such method; known: {', '.join(METHODS)}"])
    from_flags = flags.settings_from(environment)
    asked = [*(flags.as_override(key, value) for key, value in from_flags.values()), *overrides]
    tree, faults = composed(config_name, asked)
    make_absolute(tree)
    schema = TypeAdapter(Config)
    try:
        config = schema.validate_python(tree)
    except ValidationError as error:
        raise BadInputError([*faults, *explained(error, tree), *missing_paths(tree)]) from None
    if faults:
        raise BadInputError([*faults, *missing_paths(tree)])
    won = (*(f"{key}={value} ({name})" for name, (key, value) in from_flags.items()), *overrides)
    return Resolved(config, schema.dump_python(config, mode="json"), won)


PATHS = (
    "data.train_files",
    "data.val_files",
    MODEL_KEY,
    "actor_rollout_ref.ref.model.path",
    "custom_reward_function.path",
)
"""Keys of what a run reads."""


def make_absolute(tree: dict[str, Any]) -> None:
    """Makes paths absolute, in place, where something is there: the run is looked at and resumed from elsewhere too."""
    for key in PATHS:
        *parents, name = key.split(".")
        branch: Any = tree
        for parent in parents:
            branch = branch.get(parent) if isinstance(branch, dict) else None
        value = branch.get(name) if isinstance(branch, dict) else None
        if isinstance(value, str) and os.path.exists(value):
            branch[name] = os.path.abspath(value)


def composed(config_name: str, asked: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The tree of all overrides that can be composed, and sentences for the others.

    Raises:
        BadInputError: each can be composed by itself, but not all together.
    """
    try:
        return compose_tree(config_name, asked), []
    except BadInputError:
        faults = {override: composition_faults(config_name, override) for override in asked}
        good = [override for override in asked if not faults[override]]
        return compose_tree(config_name, good), [sentence for override in faults for sentence in faults[override]]


def composition_faults(config_name: str, override: str) -> list[str]:
    """Sentences for an override that cannot be composed even by itself."""
    try:
        compose_tree(config_name, [override])
    except BadInputError as error:
        return error.problems
    return []


def compose_tree(config_name: str, asked: Sequence[str]) -> dict[str, Any]:
    """The nested dictionaries after composition; unknown keys still in, for the schema to refuse them together."""
    OmegaConf.register_new_resolver("project", lambda path: str(PROJECT / path), replace=True)
    names_model = any(override.lstrip("+").startswith(f"{MODEL_KEY}=") for override in asked)
    names_profile = any(override.startswith("profile=") for override in asked)
    profile = ["profile=published"] if names_model and not names_profile else []
    odd = [override for override in asked if override.startswith(("~", "hydra")) or "=" not in override]
    if odd:
        wanted = "settings have the form key=value, with keys of docs/configuration.md"
        raise BadInputError([f"{override}: {wanted}" for override in odd])
    # Forced, so that unknown keys reach the schema, which refuses all of them at once.
    forced = [override if override.startswith(("+", "~", "profile=")) else f"++{override}" for override in asked]
    try:
        with initialize_config_dir(str(FOLDER), version_base="1.3"):
            composed = compose(config_name, overrides=[*profile, *forced])
        tree = OmegaConf.to_container(composed, resolve=True)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise BadInputError([f"{' '.join(asked)}: {error}; an override has the form key=value"]) from None
    assert isinstance(tree, dict)
    return {str(key): value for key, value in tree.items()}


def read_yaml(file: Path) -> dict[str, Any]:
    """The nested dictionaries of a YAML file."""
    try:
        tree = OmegaConf.to_container(OmegaConf.load(file))
    # Whatever the parser raises, the file is none of ours.
    except Exception as error:
        raise BadInputError([f"{file}: cannot be read ({str(error).splitlines()[0]})"]) from None
    if not isinstance(tree, dict):
        raise BadInputError([f"{file}: holds no settings"])
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
            sentences.append(f"{key}={fault['input']!r}: {fault['msg'].lower().removeprefix('value error, ')}")
            continue
        inner = leaves(fault["input"], f"{key}.") if isinstance(fault["input"], Mapping) else [key]
        sentences += [refusal(leaf, known) for leaf in inner]
    return sentences


def refusal(key: str, known: Sequence[str]) -> str:
    """Why an unknown key is refused: a published one with the reason, another with the nearest valid key."""
    if key in flags.NAMES:
        return f"{key}: a flag of the environment, no key; write {key}=... before the command"
    return f"{key}: {REASONS[key]}" if key in REASONS else f"{key}: unknown key{nearest(key, known)}"


def nearest(key: str, known: Sequence[str]) -> str:
    """A suggestion of the valid key most like `key`, by letters and by words."""

    def letters(name: str) -> float:
        return difflib.SequenceMatcher(None, key, name).ratio()

    def likeness(name: str) -> float:
        ours, theirs = set(re.split(r"[._]", key)), set(re.split(r"[._]", name))
        return letters(name) + len(ours & theirs) / len(ours | theirs)

    best = max(known, key=likeness)
    likely = likeness(best) > 1 or letters(best) >= 0.8
    return f"; did you mean {best}?" if likely else f"; known: {', '.join(known)}" if len(known) < 20 else REFERENCE


def missing_paths(tree: Mapping[str, Any]) -> list[str]:
    """Sentences for data files and model folders that are not there, from a tree that the schema refuses."""
    data, model = inner(tree, "data"), inner(inner(tree, "actor_rollout_ref"), "model")
    sentences = missing_files({f"data.{name}": data.get(name) for name in ("train_files", "val_files")})
    folder = model.get("path")
    if isinstance(folder, str) and folder.startswith(("/", ".", "~")) and not Path(folder).exists():
        sentences.append(f"{MODEL_KEY}={folder}: no such folder")
    return sentences


def inner(tree: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The dictionary under a key; an empty one where something else stands there."""
    found = tree.get(key)
    return found if isinstance(found, Mapping) else {}


def missing_files(named: Mapping[str, Any]) -> list[str]:
    """A sentence for every data file, by key, that is neither there nor to be made of JSON Lines beside it."""
    return [
        f"{key}={path}: no such file"
        for key, path in named.items()
        if isinstance(path, str) and not any(Path(path).with_suffix(end).is_file() for end in (".parquet", ".json"))
    ]


def contradictions(config: Config) -> list[str]:
    """Sentences for combinations of valid values that cannot be run."""
    actor = config.actor_rollout_ref.actor
    views = view_faults(config) if distils(actor) else teacherless_faults(config)
    return [*length_faults(config), *batch_faults(config), *views, *compat_faults(config), *overlap_faults(config)]


def distils(actor: Actor) -> bool:
    """True for a loss that asks a teacher."""
    return LOSS_MODES[actor.policy_loss.loss_mode].distils


def batch_faults(config: Config) -> list[str]:
    """Batches that do not divide, and groups too small to compare."""
    batch, actor, n = config.data.train_batch_size, config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout.n
    faults = []
    if actor.ppo_mini_batch_size < batch and batch % actor.ppo_mini_batch_size:
        faults.append(
            f"actor_rollout_ref.actor.ppo_mini_batch_size={actor.ppo_mini_batch_size} does not divide "
            f"data.train_batch_size={batch}; choose a divisor"
        )
    if n < 2:
        why = "a group of one has no peers" if distils(actor) else "an advantage is relative to a group"
        faults.append(
            f"actor_rollout_ref.rollout.n={n}: {why}; use 2 or more (ROLLOUT_BATCH_SIZE), the published value is 8"
        )
    return faults


def length_faults(config: Config) -> list[str]:
    """Lengths that exclude each other."""
    data, rollout, buffer = config.data, config.actor_rollout_ref.rollout, config.algorithm.overlong_buffer
    longest = data.max_prompt_length + data.max_response_length
    faults = []
    if rollout.max_model_len is not None and rollout.max_model_len < longest:
        faults.append(
            f"actor_rollout_ref.rollout.max_model_len={rollout.max_model_len} is below data.max_prompt_length + "
            f"data.max_response_length = {longest}; raise it, or set it to null"
        )
    if buffer > data.max_response_length:
        faults.append(
            f"algorithm.overlong_buffer={buffer} is above data.max_response_length={data.max_response_length}; lower it"
        )
    return faults


def compat_faults(config: Config) -> list[str]:
    """Settings that published behaviour would leave unread."""
    distill, gathered = config.actor_rollout_ref.actor.self_distillation, config.algorithm
    faults = []
    if gathered.max_num_gen_batches > 1 and not gathered.filter_groups:
        faults.append(
            f"algorithm.max_num_gen_batches={gathered.max_num_gen_batches}: prompts are drawn again only with "
            f"algorithm.filter_groups=true; set that, or 1 here"
        )
    if not config.reference_compat:
        return faults
    read = {"peer_policy": ("random", "first"), "reprompt_truncation": ("peers", "right")}
    for name, values in read.items():
        if getattr(distill, name) not in values:
            faults.append(
                f"{DISTILL}.{name}={getattr(distill, name)}: reference_compat=true sets it to {values[1]}; "
                f"leave one of them out"
            )
    return faults


def teacherless_faults(config: Config) -> list[str]:
    """Settings that a method without a teacher would ignore or misread."""
    loss_mode, other = config.actor_rollout_ref.actor.policy_loss.loss_mode, config.actor_rollout_ref.ref.model.path
    faults = []
    if other is not None:
        faults.append(
            f"actor_rollout_ref.ref.model.path={other}: the loss {loss_mode} asks no teacher; leave TEACHER_MODEL_PATH "
            f"unset"
        )
    if config.reference_compat and LOSS_MODES[loss_mode].signal != "policy":
        faults.append(f"reference_compat=true: not offered for the loss {loss_mode}; set it to false")
    return faults


def view_faults(config: Config) -> list[str]:
    """Teacher views that can never be."""
    distill = config.actor_rollout_ref.actor.self_distillation
    faults = []
    if distill.view == "prompt" and config.actor_rollout_ref.ref.model.path is None:
        faults.append(
            f"{DISTILL}.view=prompt: a teacher that sees what the student sees teaches nothing unless it is another "
            f"model; set TEACHER_MODEL_PATH"
        )
    if not distill.full_logit_distillation and distill.alpha != 1:
        faults.append(
            f"{DISTILL}.alpha={distill.alpha:g}: without full_logit_distillation only the reverse divergence can be "
            f"estimated; set alpha=1"
        )
    if distill.view == "reference" and not distill.include_primary_solution:
        faults.append(
            f"{DISTILL}.include_primary_solution=false: with view=reference it is the reference solution that would be "
            f"left out; set it to true"
        )
    if config.algorithm.overlong_buffer:
        faults.append(
            f"algorithm.overlong_buffer={config.algorithm.overlong_buffer}: the loss "
            f"{config.actor_rollout_ref.actor.policy_loss.loss_mode} learns from no reward; set it to 0"
        )
    if distill.view == "peers":
        faults += peer_faults(config)
    return [*faults, *teacher_faults(config)]


def peer_faults(config: Config) -> list[str]:
    """Peers that leave nothing to show."""
    distill = config.actor_rollout_ref.actor.self_distillation
    shown = (
        distill.include_primary_solution,
        distill.include_another_solution,
        distill.include_failure_solution,
        distill.include_environment_feedback,
        distill.summarize_solutions,
    )
    faults = []
    if not any(shown):
        faults.append(
            f"{DISTILL}: no peer and no feedback is included, so there is nothing to learn from; "
            f"set include_primary_solution=true"
        )
    if distill.max_reprompt_len <= config.data.max_prompt_length:
        faults.append(
            f"{DISTILL}.max_reprompt_len={distill.max_reprompt_len} leaves no room for peers beside a prompt of "
            f"data.max_prompt_length={config.data.max_prompt_length}; raise it (published: 10240)"
        )
    try:
        settings = context_settings(config)
    except ValueError as error:
        return [*faults, str(error)]
    return [*faults, *summary_conflicts(settings, distill.peer_control_mode)]


def context_settings(config: Config) -> ContextSettings:
    """The published switches and templates.

    Raises:
        ValueError: a template lacks a field it needs, or names one that is not there.
    """
    distill = config.actor_rollout_ref.actor.self_distillation
    asked = {name: getattr(distill, name) for name in ContextSettings.__dataclass_fields__}
    return ContextSettings(**asked | ({"include_truncated_peers": True} if config.reference_compat else {}))


def teacher_faults(config: Config) -> list[str]:
    """Teachers that contradict themselves."""
    distill, other = config.actor_rollout_ref.actor.self_distillation, config.actor_rollout_ref.ref.model.path
    if other is None or distill.teacher_regularization == "frozen":
        return []
    return [
        f"{DISTILL}.teacher_regularization={distill.teacher_regularization}: another model "
        f"(actor_rollout_ref.ref.model.path={other}) never follows the student; set it to frozen"
    ]
