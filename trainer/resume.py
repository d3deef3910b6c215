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
from typing import IO, Any, NoReturn

import mopd
from trainer import checkpoint
from trainer.checkpoint import Checkpoint, CheckpointError
from trainer.config.compose import read_yaml
from trainer.errors import BadInputError
from trainer.nested import flat
from trainer.prompts import PromptSet
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
LOOKED_AT = 1 << 20
"""Bytes of a file of weights that are looked at, at its beginning and at its end: weights are large."""
DESCRIBING = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
"""Files of a model's folder that must be the same when a run goes on."""
LOCK, ASIDE = ".lock", ".config.yaml.partial"
"""Files that may lie in a folder before a run does."""


MODES = ("auto", "must", "disable")
"""Values of `trainer.resume_mode`; any other is the folder of a checkpoint."""


@dataclass(frozen=True)
class Wanted:
    """The run that is asked for."""

    method: str
    settings: Mapping[str, Any]
    """The resolved configuration."""
    last: int
    """Its last step."""
    mode: str
    """`trainer.resume_mode`."""
    facts: Mapping[str, Any]
    """What a checkpoint's manifest tells of it, see `facts_of`; what is not there is not compared."""


@dataclass(frozen=True)
class Start:
    """Where a run begins."""

    step: int = 0
    """Steps that are done."""
    checkpoint: Checkpoint | None = None
    """What it goes on from; None at the beginning."""


class AlreadyDone(Exception):
    """The folder holds all the steps that were asked for."""


def start_of(folders: Folders, wanted: Wanted) -> Start:
    """Where the run that is asked for begins.

    Raises:
        BadInputError: the folder holds something else or another run, no checkpoint of it is whole, or the one that
            was named is damaged or another run's.
        AlreadyDone: nothing is left to do.
    """
    named = None if wanted.mode in MODES else checkpoint_named(wanted)
    occupied = holds_run(folders.output)
    if occupied:
        refuse_other(folders.output / "config.yaml", wanted, f"trainer.output_dir={folders.output}: holds another run")
        if wanted.mode == "disable":
            refuse(
                f"trainer.output_dir={folders.output}: holds a run, and trainer.resume_mode=disable forbids to go on "
                f"with it; name another OUTPUT_DIR"
            )
    own = newest_own(folders, wanted, occupied=occupied, named=named)
    chosen = own or named
    if own is not None and named is not None and own.folder.resolve() != named.folder.resolve():
        log.warning("%s went on from %s before: it is further", folders.output, named.folder)
    if chosen is None and wanted.mode == "must":
        refuse(f"trainer.resume_mode=must: {folders.checkpoints} holds no checkpoint to go on from")
    start = Start() if chosen is None else Start(chosen.step, chosen)
    if start.step >= wanted.last and (chosen is not None or history(folders.output)):
        where = folders.output if occupied or chosen is None else chosen.folder
        raise AlreadyDone(f"{where} already holds {start.step} steps of {wanted.last} asked; nothing to do")
    if chosen is not None:
        refuse_other_facts(chosen, wanted)
        tell_changes(chosen.folder / "config.yaml", wanted)
        log.warning("going on after step %d, from %s", start.step, chosen.folder)
    elif occupied:
        log.warning("%s holds a run without a checkpoint; it begins again at step 0", folders.output)
    return start


def checkpoint_named(wanted: Wanted) -> Checkpoint:
    """The checkpoint that `trainer.resume_mode` names: a damaged one is an error, never passed over."""
    asked = f"trainer.resume_mode={wanted.mode}"
    folder = Path(wanted.mode).expanduser()
    if not folder.is_dir():
        refuse(
            f"{asked}: there is no such folder (from {Path.cwd()}); it is {', '.join(MODES)} or a checkpoint's folder"
        )
    for beside in (folder, folder / "checkpoints"):
        if inside := checkpoint.listed(beside):
            refuse(f"{asked}: is the folder of a whole run; name one of its checkpoints, like {inside[-1][1]}")
    try:
        found = checkpoint.read(folder)
    except CheckpointError as error:
        refuse(f"{asked}: {error}; name a whole one, or auto")
    refuse_other(folder / "config.yaml", wanted, f"{asked}: is a checkpoint of another run")
    return found


def newest_own(folders: Folders, wanted: Wanted, *, occupied: bool, named: Checkpoint | None) -> Checkpoint | None:
    """The newest whole checkpoint of the run in OUTPUT_DIR; None where it has not written any."""
    there = checkpoint.listed(folders.checkpoints)
    inside = named is not None and named.folder.resolve().parent == folders.checkpoints.resolve()
    if not there:
        return None
    if not occupied and not inside:
        refuse(
            f"trainer.default_local_dir={folders.checkpoints}: holds checkpoints of another run ({there[-1][1].name}); "
            f"name another CKPT_DIR, or go on from one of them with trainer.resume_mode"
        )
    own = checkpoint.newest(folders.checkpoints)
    if own is None:
        refuse(
            f"{folders.checkpoints}: none of its checkpoints is whole; name another OUTPUT_DIR, or delete them to "
            f"begin again at step 0"
        )
    refuse_other(own.folder / "config.yaml", wanted, f"trainer.default_local_dir: {own.folder} is of another run")
    if inside and named is not None and named.step != own.step:
        refuse(
            f"trainer.resume_mode={wanted.mode}: {own.folder.name} there is newer; to go back, name a fresh OUTPUT_DIR "
            f"(and CKPT_DIR)"
        )
    return own


def refuse(problem: str) -> NoReturn:
    """Raises the one problem there is."""
    raise BadInputError([problem]) from None


def holds_run(output: Path) -> bool:
    """Whether a folder holds a run, whole or broken off.

    Raises:
        BadInputError: the folder holds something else.
    """
    foreign = f"trainer.output_dir={output}: is not empty and holds no run of this project; name another OUTPUT_DIR"
    try:
        if not output.exists() or all(path.name in (LOCK, ASIDE) for path in output.iterdir()):
            return False
        if not (output / "config.yaml").read_text().startswith(METHOD_LINE):
            raise BadInputError([foreign])
        history(output)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadInputError([f"{foreign} ({type(error).__name__}: {error!s:.80})"]) from None
    return True


def refuse_other(file: Path, wanted: Wanted, finding: str) -> None:
    """Refuses to go on with what the run described in `file` has left, if it is not the one that is wanted.

    Raises:
        BadInputError: it is not; the message begins with `finding`.
    """
    try:
        method, told = differences(file, wanted)
    except (OSError, ValueError, IndexError) as error:
        refuse(f"{file} cannot be read ({type(error).__name__}: {error!s:.80})")
    differing = [sentence for key, sentence in told.items() if not key.startswith(MAY_CHANGE)]
    if method != wanted.method:
        differing.insert(0, f"method {method} there, {wanted.method} asked")
    if differing:
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        refuse(f"{finding} ({'; '.join(differing[:3])}{more}); name another OUTPUT_DIR")


def tell_changes(file: Path, wanted: Wanted) -> None:
    """Tells in the log with which other settings a run goes on than those in `file`."""
    for key, sentence in differences(file, wanted)[1].items():
        if key not in UNSAID:
            log.warning("going on with another setting: %s", sentence)


def differences(file: Path, wanted: Wanted) -> tuple[str, dict[str, str]]:
    """The method that is told in `file`, and by key what is set otherwise there than wanted, in words."""
    method = file.read_text().splitlines()[0].removeprefix(METHOD_LINE).strip()
    ours, theirs = dict(flat(wanted.settings)), dict(flat(read_yaml(file)))
    keys = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
    return method, {key: f"{key}={theirs.get(key)} there, {ours.get(key)} asked" for key in keys}


def facts_of(model_path: str, teacher_path: str | None, prompts: PromptSet, seed: int) -> dict[str, Any]:
    """What tells, beside the settings, whether a run goes on with the same models and data."""
    data = hashlib.blake2b(digest_size=16)
    for prompt, prompt_ids in zip(prompts.prompts, prompts.prompt_ids, strict=True):
        data.update(prompt_ids.tobytes() + prompt.ground_truth.encode(errors="surrogatepass"))
    return {
        "model": model_digest(model_path),
        "teacher": None if teacher_path is None else model_digest(teacher_path),
        "data": data.hexdigest(),
        "seed": seed,
        "mopd": mopd.__version__,
    }


def model_digest(folder: str) -> str:
    """A checksum of a model's configuration and tokenizer, and of the size, beginning and end of its weights."""
    digest = hashlib.blake2b(digest_size=16)
    for name in DESCRIBING:
        file = Path(folder) / name
        digest.update(name.encode() + (file.read_bytes() if file.is_file() else b""))
    for file in sorted(Path(folder).glob("*.safetensors")):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}".encode())
        with file.open("rb") as weights:
            digest.update(weights.read(LOOKED_AT))
            weights.seek(max(0, size - LOOKED_AT))
            digest.update(weights.read())
    return digest.hexdigest()


def refuse_other_facts(chosen: Checkpoint, wanted: Wanted) -> None:
    """Refuses to go on with another model or other data under the same name."""
    keys = {
        "model": ("actor_rollout_ref.model.path", "the model's configuration, tokenizer or weights"),
        "teacher": ("actor_rollout_ref.ref.model.path", "the teacher's configuration, tokenizer or weights"),
        "data": ("data.train_files", "the training prompts"),
    }
    settings = dict(flat(wanted.settings))
    for fact, (key, what) in keys.items():
        if fact in wanted.facts and chosen.facts.get(fact) not in (None, wanted.facts[fact]):
            refuse(
                f"{key}={settings.get(key)}: {what} are not those that {chosen.folder} was trained with; put the "
                f"former ones back, or begin another run"
            )


def take_back(folders: Folders, step: int) -> None:
    """Removes what a run wrote after `step`: it will be written again. At step 0 that is all of it."""
    kept = step or -1  # what begins again measures the initial model again
    for name in ("metrics.jsonl", "health.jsonl"):
        trim(folders.output / name, kept)
    for folder in (folders.rollouts, folders.validation):
        for file in folder.glob("*.*"):
            if file.suffix in (".jsonl", ".npz") and file.stem.isdecimal() and int(file.stem) > kept:
                file.unlink()
    if step == 0:  # TensorBoard's files are told to forget the steps after one that is done, which is none
        for name in ("tensorboard", "mlflow"):
            shutil.rmtree(folders.output / name, ignore_errors=True)
    checkpoint.clear_aside(folders.checkpoints)
    for number, path in checkpoint.listed(folders.checkpoints):
        if number > step:
            shutil.rmtree(path, ignore_errors=True)  # damaged, or it would be where the run goes on


def trim(file: Path, step: int) -> None:
    """Keeps the records of JSON Lines up to `step`."""
    if not file.is_file():
        return
    aside = file.with_name(f".{file.name}.partial")
    aside.write_text("".join(line for number, line in records(file) if number <= step), encoding="utf-8")
    os.replace(aside, file)


def records(file: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file of records, each after its step; one without its end was cut off while it was written."""
    # Not `splitlines`, which parts lines at characters that the name of a data source may hold too.
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            if line.endswith("\n"):
                yield int(json.loads(line)["step"]), line


def history(output: Path) -> list[dict[str, Any]]:
    """The steps that a run has told of so far.

    Raises:
        ValueError, KeyError, TypeError: the file holds something else.
    """
    file = output / "metrics.jsonl"
    return [json.loads(line) for _, line in records(file)] if file.is_file() else []


def traces(folders: Folders) -> list[tuple[str, int]]:
    """What changes when a process trains in a run's folders."""
    steps = [(str(path), step) for step, path in checkpoint.listed(folders.checkpoints)]
    metrics = folders.output / "metrics.jsonl"
    return [*steps, ("metrics", metrics.stat().st_size if metrics.is_file() else 0)]


def describe_run(folders: Folders, text: str) -> None:
    """Makes a run's folders and writes its `config.yaml`, which is what makes them a run's: whole, and first of all."""
    folders.output.mkdir(parents=True, exist_ok=True)
    aside = folders.output / ASIDE
    aside.write_text(text)
    os.replace(aside, folders.output / "config.yaml")
    for folder in (folders.checkpoints, folders.rollouts, folders.validation):
        folder.mkdir(parents=True, exist_ok=True)


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
            [f"{output}: another process trains in this folder; wait for it, or name another"]
        ) from None
    except OSError as error:  # a file system without locks
        log.warning("%s cannot be locked (%s); see to it that no other process trains in it", output, error)
    return file
