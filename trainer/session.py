"""One run from validated configuration to final table: inputs refused or read, workers started, and always stopped."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import mopd
from trainer import cluster
from trainer.assemble import Placement, build_parts, start_workers
from trainer.config.compose import PROJECT, Resolved, as_yaml, read_yaml
from trainer.config.schema import Config
from trainer.display import Screen
from trainer.errors import DONE, BadInputError
from trainer.folders import fresh
from trainer.inputs import read_inputs
from trainer.loop import train
from trainer.prompts import PromptSet
from trainer.schedule import Schedule
from trainer.tracking import Folders, Journal, open_trackers

METHOD_LINE = "# method:"
"""How the `config.yaml` of a run begins."""


def train_session(config_name: str, resolved: Resolved, screen: Screen) -> int:
    """Runs every step of a run; returns the exit code.

    Raises:
        BadInputError: configuration, devices, model, data or output folder cannot be used; before anything is started.
    """
    config = resolved.config
    screen.stage("reading model and data")
    inputs = read_inputs(config)
    for name, prompts in (("training", inputs.train), ("held-out", inputs.held_out)):
        left_out = f" ({prompts.dropped} over the length limit left out)" if prompts.dropped else ""
        screen.say(f"  {len(prompts)} {name} prompts{left_out}")
    schedule = schedule_of(config, inputs.train)
    folders = folders_of(config, config_name)
    if (steps_done := finished_steps(folders.output)) is not None:
        if faults := other_settings(folders.output, config_name, resolved):
            raise BadInputError(faults)
        return already_there(folders.output, steps_done, schedule.last, screen)
    prepare(folders, resolved, config_name)
    screen.say(f"  {schedule.last} steps on {inputs.placement.device}, into {folders.output}")
    try:
        screen.stage("starting Ray")
        services = start_workers(config, inputs.placement)
        policy, sampler, _ = services
        screen.stage("loading sampler and actor")
        versions = {**policy.join(), **sampler.describe(), "ray": cluster.version()}
        write_manifest(folders, config_name, config, inputs.placement, versions)
        trackers = open_trackers(config.trainer.logger, folders.output, config.trainer.project_name, resolved.tree)
        journal = Journal(folders, inputs.renderers.student, screen, schedule.last, trackers)
        with trackers:
            train(build_parts(config, inputs.renderers, inputs.train, inputs.held_out, services, journal, schedule))
    finally:
        cluster.stop()
    journal.farewell(folders.checkpoints / f"step_{schedule.last}" if schedule.last else None)
    return DONE


def schedule_of(config: Config, train_set: PromptSet) -> Schedule:
    """The steps of a run."""
    asked = config.trainer
    by_epochs = len(train_set) // config.data.train_batch_size * asked.total_epochs
    last = by_epochs if asked.total_training_steps is None else asked.total_training_steps
    return Schedule(last, asked.test_freq, asked.val_before_train)


def experiment_name(config: Config, config_name: str) -> str:
    """Method, data, model and key settings; safe as the name of a folder."""
    data, actor = config.data, config.actor_rollout_ref.actor
    parts = [
        config_name,
        Path(data.train_files).resolve().parent.name,
        Path(config.actor_rollout_ref.model.path).name,
        f"b{data.train_batch_size}x{config.actor_rollout_ref.rollout.n}",
        f"lr{actor.optim.lr:g}",
        f"seed{data.seed}",
        config.trainer.experiment_suffix,
    ]
    return re.sub(r"[^\w.=-]+", "_", "-".join(part for part in parts if part))


def folders_of(config: Config, config_name: str) -> Folders:
    """Where the run is kept: the folder asked for, or a fresh one."""
    asked = config.trainer
    name = asked.experiment_name or experiment_name(config, config_name)
    output = Path(asked.output_dir) if asked.output_dir else fresh(Path("outputs") / name)
    return Folders(
        output=output,
        checkpoints=Path(asked.default_local_dir) if asked.default_local_dir else output / "checkpoints",
        rollouts=Path(asked.rollout_data_dir) if asked.rollout_data_dir else output / "rollouts",
        validation=Path(asked.validation_data_dir) if asked.validation_data_dir else output / "validation",
    )


def finished_steps(output: Path) -> int | None:
    """The last step of the run that `output` holds; None where there is none to lose.

    Raises:
        BadInputError: the folder holds something else.
    """
    foreign = f"trainer.output_dir={output}: is not empty and holds no run of this project; name another OUTPUT_DIR"
    try:
        if not output.exists() or not any(output.iterdir()):
            return None
        if not (output / "config.yaml").read_text().startswith(METHOD_LINE):
            raise BadInputError([foreign])
        metrics = output / "metrics.jsonl"
        # A line without its end was cut off while it was written.
        lines = metrics.read_text().split("\n")[:-1] if metrics.exists() else []
        return int(json.loads(lines[-1])["step"]) if lines else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadInputError([f"{foreign} ({type(error).__name__}: {error!s:.80})"]) from None


ASIDE = (
    "trainer.total_training_steps",
    "trainer.experiment_suffix",
    "trainer.logger",
    "trainer.test_freq",
    "trainer.output_dir",  # the folder was found, by whichever of its names
)
"""Keys that may differ when a run is asked for again."""


def other_settings(output: Path, config_name: str, resolved: Resolved) -> list[str]:
    """What sets the run in `output` apart from the one asked for: a sentence, or nothing."""
    file = output / "config.yaml"
    there = read_yaml(file)
    method = file.read_text().splitlines()[0].removeprefix(METHOD_LINE).strip()
    ours, theirs = dict(flat(resolved.tree)), dict(flat(there))
    differing = [
        f"{key}={theirs.get(key)} there, {ours.get(key)} asked"
        for key in sorted(ours.keys() | theirs.keys())
        if ours.get(key) != theirs.get(key) and key not in ASIDE
    ]
    if method != config_name:
        differing.insert(0, f"method {method} there, {config_name} asked")
    if not differing:
        return []
    more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
    return [
        f"trainer.output_dir={output}: holds another run ({'; '.join(differing[:3])}{more}); name another OUTPUT_DIR"
    ]


def flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every dotted key of a nested dictionary with its value."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def already_there(output: Path, done: int, asked: int, screen: Screen) -> int:
    """A run that is there is never overwritten: done means done, and going on needs a checkpoint to go on from."""
    if done >= asked:
        screen.say(f"{output} already holds {done} steps of {asked} asked; nothing to do")
        return DONE
    raise BadInputError(
        [
            f"trainer.output_dir={output}: holds a run that ended at step {done} of {asked} asked; this version cannot "
            f"resume a run, so name another OUTPUT_DIR"
        ]
    )


def prepare(folders: Folders, resolved: Resolved, config_name: str) -> None:
    """Makes the folders, keeps the resolved configuration, and links ./rollouts/<name> for the analysis commands."""
    try:
        for folder in (folders.output, folders.checkpoints, folders.rollouts, folders.validation):
            folder.mkdir(parents=True, exist_ok=True)
        (folders.output / "config.yaml").write_text(f"{METHOD_LINE} {config_name}\n{as_yaml(resolved.tree)}")
        (folders.output / "metrics.jsonl").unlink(missing_ok=True)
    except OSError as error:
        raise BadInputError(
            [f"{error.filename}: cannot be written ({error.strerror}); name another OUTPUT_DIR"]
        ) from None
    link = Path("rollouts") / folders.output.name
    # A convenience for commands that look there; where it cannot be had nothing is lost.
    with contextlib.suppress(OSError):
        link.parent.mkdir(exist_ok=True)
        if link.is_symlink():
            link.unlink()
        if not link.exists():
            link.symlink_to(folders.rollouts.resolve(), target_is_directory=True)


def write_manifest(
    folders: Folders, config_name: str, config: Config, placement: Placement, versions: dict[str, str | int]
) -> None:
    """What ran where: versions as the running workers report them, seed, commit, machine, folders."""
    commit = subprocess.run(
        ["git", "-C", str(PROJECT), "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        check=False,
    )
    parameters = versions.pop("parameters")
    manifest = {
        "method": config_name,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {
            "mopd": mopd.__version__,
            **versions,
            "transformers": version("transformers"),
            "python": platform.python_version(),
        },
        "seed": config.data.seed,
        "commit": commit.stdout.strip() or None,
        "machine": {
            "platform": platform.platform(),
            "cpus": os.cpu_count(),
            "gpus": [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())],
        },
        "actors": {"device": placement.device, "ranks": placement.ranks},
        "model": {"path": config.actor_rollout_ref.model.path, "parameters": parameters},
        "sandbox_tier": None,
        "folders": {name: str(folder.resolve()) for name, folder in asdict(folders).items()},
    }
    (folders.output / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
