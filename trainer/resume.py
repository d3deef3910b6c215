"""Where a run begins: at the beginning, or after the newest whole checkpoint of its folder.

A finished or foreign run is never silently resumed, and what a killed run wrote after its checkpoint is taken back.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from trainer import checkpoint
from trainer.checkpoint import Checkpoint, CheckpointError
from trainer.config.compose import read_yaml
from trainer.errors import BadInputError
from trainer.tracking import Folders

log = logging.getLogger("mopd")

METHOD_LINE = "# method:"
"""How the `config.yaml` of a run begins."""
MAY_CHANGE = (
    "actor_rollout_ref.actor.optim.",
    "actor_rollout_ref.actor.ppo_max_token_len_per_gpu",
    "actor_rollout_ref.model.enable_gradient_checkpointing",
    "actor_rollout_ref.model.attn_implementation",
    "actor_rollout_ref.rollout.val_kwargs.",
    "actor_rollout_ref.rollout.gpu_memory_utilization",
    "actor_rollout_ref.rollout.kv_cache_mib",
    "actor_rollout_ref.rollout.update_weights_bucket_megabytes",
    "actor_rollout_ref.rollout.sync_tolerance",
    "actor_rollout_ref.ref.n_gpus",
    "reward.",
    "trainer.",
)
"""Beginnings of the keys with which a run may go on otherwise than it began: none changes what the method is."""
UNSAID = (
    "trainer.total_training_steps",
    "trainer.experiment_suffix",
    "trainer.experiment_name",
    "trainer.output_dir",  # the folder was found, by whichever of its names
    "trainer.resume_mode",
)
"""Of these, keys whose change goes without saying."""
DESCRIBING = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
"""Files of a model's folder that must be the same when a run goes on."""


@dataclass(frozen=True)
class Start:
    """Where a run begins."""

    step: int = 0
    """Steps that are done."""
    checkpoint: Checkpoint | None = None
    """What it goes on from; None at the beginning."""


class AlreadyDone(Exception):
    """The folder holds all the steps that were asked for."""


def start_of(
    folders: Folders, tree: Mapping[str, Any], config_name: str, mode: str, last: int, model_path: str
) -> Start:
    """Where the run that is asked for begins.

    `tree` is its resolved configuration, `last` its last step.

    Raises:
        BadInputError: the folder holds another run or something else, or the checkpoint that was named is damaged.
        AlreadyDone: nothing is left to do.
    """
    occupied = holds_run(folders.output)
    if occupied and mode == "disable":
        raise BadInputError(
            [
                f"trainer.output_dir={folders.output}: holds a run, and trainer.resume_mode=disable forbids to go on "
                f"with it; name another OUTPUT_DIR"
            ]
        )
    if mode not in ("auto", "disable"):
        start = named(Path(mode))
        settings = Path(mode) / "config.yaml"
    elif occupied:
        start = found(folders)
        settings = folders.output / "config.yaml"
    else:
        return Start()
    if faults := other_settings(settings, tree, config_name, folders.output):
        raise BadInputError(faults)
    if start.checkpoint is not None and start.checkpoint.facts.get("model") not in (None, described(model_path)):
        raise BadInputError(
            [
                f"actor_rollout_ref.model.path={model_path}: its configuration or tokenizer is not the one that "
                f"{start.checkpoint.folder} was trained with; put the former model back, or begin another run"
            ]
        )
    if start.step >= last and (start.checkpoint is not None or history(folders.output)):
        raise AlreadyDone(f"{folders.output} already holds {start.step} steps of {last} asked; nothing to do")
    return start


def named(folder: Path) -> Start:
    """After a checkpoint that was named: a damaged one is an error."""
    try:
        whole = checkpoint.read(folder)
    except CheckpointError as error:
        raise BadInputError([f"trainer.resume_mode={folder}: {error}; name a whole one, or auto"]) from None
    return Start(whole.step, whole)


def found(folders: Folders) -> Start:
    """After the newest whole checkpoint of the folder; at the beginning where there is none."""
    whole = checkpoint.newest(folders.checkpoints)
    if whole is None:
        log.warning("%s holds a run without a whole checkpoint; it begins again at step 0", folders.output)
        return Start()
    log.warning("going on after step %d, from %s", whole.step, whole.folder)
    return Start(whole.step, whole)


def holds_run(output: Path) -> bool:
    """Whether a folder holds a run, whole or broken off.

    Raises:
        BadInputError: the folder holds something else.
    """
    foreign = f"trainer.output_dir={output}: is not empty and holds no run of this project; name another OUTPUT_DIR"
    try:
        if not output.exists() or not any(path.name != LOCK for path in output.iterdir()):
            return False
        if not (output / "config.yaml").read_text().startswith(METHOD_LINE):
            raise BadInputError([foreign])
        history(output)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadInputError([f"{foreign} ({type(error).__name__}: {error!s:.80})"]) from None
    return True


def other_settings(file: Path, tree: Mapping[str, Any], config_name: str, output: Path) -> list[str]:
    """What sets the run described in `file` apart from the one asked for: a sentence, or nothing.

    Differences with which a run may go on are told in the log.
    """
    there = read_yaml(file)
    method = file.read_text().splitlines()[0].removeprefix(METHOD_LINE).strip()
    ours, theirs = dict(flat(tree)), dict(flat(there))
    keys = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
    told = {key: f"{key}={theirs.get(key)} there, {ours.get(key)} asked" for key in keys}
    differing = [sentence for key, sentence in told.items() if not key.startswith(MAY_CHANGE)]
    if method != config_name:
        differing.insert(0, f"method {method} there, {config_name} asked")
    if differing:
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        what = f"{'; '.join(differing[:3])}{more}"
        return [f"trainer.output_dir={output}: holds another run ({what}); name another OUTPUT_DIR"]
    for key in keys:
        if key not in UNSAID:
            log.warning("going on with another setting: %s", told[key])
    return []


def flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every dotted key of a nested dictionary with its value."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def described(model_path: str) -> str:
    """A checksum of what describes a model and its tokenizer."""
    digest = hashlib.blake2b(digest_size=16)
    for name in DESCRIBING:
        file = Path(model_path) / name
        digest.update(name.encode() + (file.read_bytes() if file.is_file() else b""))
    return digest.hexdigest()


def take_back(folders: Folders, step: int) -> None:
    """Removes what a run wrote after `step`: it will be written again."""
    for name in ("metrics.jsonl", "health.jsonl"):
        trim(folders.output / name, step)
    for folder in (folders.rollouts, folders.validation):
        for file in folder.glob("*.jsonl"):
            if file.stem.isdecimal() and int(file.stem) > step:
                file.unlink()
    checkpoint.clear_aside(folders.checkpoints)
    for number, path in checkpoint.listed(folders.checkpoints):
        if number > step:
            shutil.rmtree(path)  # damaged, or it would be where the run goes on


def trim(file: Path, step: int) -> None:
    """Keeps the records of JSON Lines up to `step`."""
    if not file.is_file():
        return
    aside = file.with_name(f".{file.name}.partial")
    aside.write_text("".join(line for number, line in records(file) if number <= step))
    os.replace(aside, file)


def records(file: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file of records, each after its step; one without its end was cut off while it was written."""
    for line in file.read_text().splitlines(keepends=True):
        if line.endswith("\n"):
            yield int(json.loads(line)["step"]), line


def history(output: Path) -> list[dict[str, Any]]:
    """The steps that a run has told of so far.

    Raises:
        ValueError, KeyError, TypeError: the file holds something else.
    """
    file = output / "metrics.jsonl"
    return [json.loads(line) for _, line in records(file)] if file.is_file() else []


LOCK = ".lock"


def lock(output: Path) -> IO[str]:
    """Keeps a second process from writing into the same folder, for as long as the file that is returned lives.

    Raises:
        BadInputError: another process does.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        file = (output / LOCK).open("a+")
    except OSError as error:
        raise BadInputError(
            [f"{error.filename}: cannot be written ({error.strerror}); name another OUTPUT_DIR"]
        ) from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise BadInputError(
            [f"trainer.output_dir={output}: another process trains in this folder; wait for it, or name another"]
        ) from None
    except OSError as error:  # a file system without locks
        log.warning("%s cannot be locked (%s); see to it that no other process trains in it", output, error)
    return file
