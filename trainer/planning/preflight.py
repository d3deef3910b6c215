"""Every fault that a run would be refused for, at once: what composition and schema find does not hide the rest."""

from __future__ import annotations

import copy
import difflib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from trainer.config import flags
from trainer.config.compose import METHODS, Resolved, compose_tree, composed, explained, missing_paths
from trainer.config.schema import Config
from trainer.errors import BadInputError
from trainer.inputs import Inputs, examined
from trainer.resume import Wanted, start_of
from trainer.session import folders_of

NO_TOKENIZER = ("no tokenizer", "its tokenizer")
"""How sentences begin on a model's folder whose tokenizer cannot be used."""


@dataclass(frozen=True)
class Asked:
    """What the command line and the environment ask for."""

    method: str
    overrides: tuple[str, ...]
    environment: Mapping[str, str]

    @property
    def settings(self) -> list[str]:
        """Flags and overrides, in the order in which they win."""
        from_flags = flags.settings_from(self.environment).values()
        return [*(flags.as_override(key, value) for key, value in from_flags), *self.overrides]


@dataclass(frozen=True)
class Examined:
    """What was found of a run that is asked for."""

    method: str
    """The one asked for, or one that stands in for an unknown one."""
    resolved: Resolved | None
    """None where not even a part of the settings can be composed."""
    inputs: Inputs | None
    """None where there are problems, or no tokenizer."""
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    """What a run would refuse and a plan can do without."""


def examine(asked: Asked, gpus: int) -> Examined:
    """Every problem of a run on a machine of so many GPUs; faulty settings are left out to find those of the others."""
    method, problems = known_method(asked.method)
    try:
        tree, faults = composed(method, asked.settings)
        config, more, replaced = repaired(tree, compose_tree(method, []))
    except BadInputError as error:
        return Examined(method, None, None, (*problems, *error.problems), ())
    problems += [*faults, *more]
    if config is None:
        return Examined(method, None, None, (*problems, *missing_paths(tree)), ())
    inputs, found = examined(config, gpus, weights=False)
    told, notes = set_apart(config, [fault for fault in found if not caused_by(fault, replaced)])
    resolved = Resolved(config, TypeAdapter(Config).dump_python(config, mode="json"), tuple(asked.settings))
    problems += told
    if not replaced and method == asked.method:
        problems += folder_faults(resolved, method)
    return Examined(method, resolved, None if problems else inputs, tuple(dict.fromkeys(problems)), tuple(notes))


def known_method(name: str) -> tuple[str, list[str]]:
    """The method, or the likeliest one and a sentence on the name that is none."""
    if name in METHODS:
        return name, []
    likely = difflib.get_close_matches(name, METHODS, n=1, cutoff=0.0)[0]
    return likely, [
        f"--config-name {name}: no such method; known: {', '.join(METHODS)} (what follows is checked for {likely})"
    ]


def repaired(tree: dict[str, Any], default: Mapping[str, Any]) -> tuple[Config | None, list[str], list[str]]:
    """The configuration with every faulty value replaced by its default; sentences for them, and their keys.

    None where the defaults do not mend it.
    """
    schema = TypeAdapter(Config)
    try:
        return schema.validate_python(tree), [], []
    except ValidationError as error:
        sentences, mended = explained(error, tree), copy.deepcopy(tree)
        keys = [mend(mended, default, tuple(map(str, fault["loc"]))) for fault in error.errors()]
    try:
        return schema.validate_python(mended), sentences, keys
    except ValidationError:
        return None, sentences, keys


def mend(tree: dict[str, Any], default: Mapping[str, Any], path: Sequence[str]) -> str:
    """Puts the default of the value at `path` in its place, or takes out what has none; returns its dotted key.

    The path may end within a value, where the schema looked into a list or tried several types.
    """
    name = path[0]
    inner, wanted = tree.get(name), default.get(name)
    if len(path) > 1 and isinstance(inner, dict) and isinstance(wanted, Mapping):
        return f"{name}.{mend(inner, wanted, path[1:])}"
    if name in default:
        tree[name] = copy.deepcopy(wanted)
    else:
        tree.pop(name, None)
    return name


def caused_by(fault: str, replaced: Sequence[str]) -> bool:
    """Whether a sentence speaks of a value that only stands in for a faulty one."""
    return any(f"{key}=" in fault for key in replaced)


def folder_faults(resolved: Resolved, method: str) -> list[str]:
    """Sentences for an output folder that holds something else, or that cannot be made."""
    config = resolved.config
    folders = folders_of(config, method)
    try:
        # As if there were steps left: a run that has taken all of them is no fault.
        start_of(folders, Wanted(method, resolved.tree, sys.maxsize, config.trainer.resume_mode, {}))
    except BadInputError as error:
        return error.problems
    faults = []
    for folder in (folders.output, folders.checkpoints, folders.rollouts, folders.validation):
        nearest = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        if not nearest.is_dir() or not os.access(nearest, os.W_OK):
            faults.append(f"{nearest}: cannot be written; name another OUTPUT_DIR")
    return list(dict.fromkeys(faults))


def set_apart(config: Config, faults: Sequence[str]) -> tuple[list[str], list[str]]:
    """Faults, and notes in their place where a model's folder holds its description alone."""
    ref = config.actor_rollout_ref
    bare = [path for path in (ref.model.path, ref.ref.model.path) if path is not None and is_bare(Path(path))]
    unread = [fault for fault in faults if any(f"{path}: {what}" in fault for path in bare for what in NO_TOKENIZER)]
    notes = [
        f"{path} has no weights: this is planned from its config.json; a run needs the whole folder" for path in bare
    ]
    if unread:
        notes.append("no tokenizer, so prompts are taken to be as long as data.max_prompt_length, teachers' likewise")
    return [fault for fault in faults if fault not in unread], list(dict.fromkeys(notes))


def is_bare(folder: Path) -> bool:
    """Whether a folder describes a model and has no weights."""
    return (folder / "config.json").is_file() and not any(folder.glob("*.safetensors"))
