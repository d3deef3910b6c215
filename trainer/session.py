"""One run from validated configuration to final table: inputs refused or read, workers started, and always stopped."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import mopd
from trainer import cluster, overlapped
from trainer.assemble import build_parts, start_workers
from trainer.config.compose import PROJECT, Resolved, as_yaml
from trainer.config.schema import Config
from trainer.display import Screen
from trainer.errors import DONE, BadInputError, RunUnhealthyError
from trainer.folders import fresh
from trainer.inputs import Inputs, read_inputs
from trainer.loop import train
from trainer.prompts import PromptSet
from trainer.report import report_at_end
from trainer.resume import (
    METHOD_LINE,
    AlreadyDone,
    Start,
    Wanted,
    describe_run,
    facts_of,
    history,
    lock,
    start_of,
    take_back,
    traces,
)
from trainer.saving import Saver
from trainer.schedule import Schedule
from trainer.services import Policy
from trainer.stopping import Stopper
from trainer.trackers.base import Run
from trainer.trackers.opening import open_trackers
from trainer.tracking import Folders, Journal


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
    if inputs.isolation is not None:
        screen.say(f"  programs of responses run isolated, {inputs.isolation.reason}")
    folders = folders_of(config, config_name)
    schedule = schedule_of(config, inputs.train)
    paths = config.actor_rollout_ref
    facts = facts_of(paths.model.path, paths.ref.model.path, inputs.train, config.data.seed)
    wanted = Wanted(config_name, resolved.tree, schedule.last, config.trainer.resume_mode, facts)
    try:
        before = traces(folders)
        start = start_of(folders, wanted)
        with contextlib.ExitStack() as locks:
            locks.enter_context(lock(folders.output))
            checkpoints = folders.checkpoints.resolve()
            if folders.output.resolve() not in (checkpoints, *checkpoints.parents):
                locks.enter_context(lock(folders.checkpoints))
            if traces(folders) != before:  # another process has ended in it just now
                start = start_of(folders, wanted)
            return steps(wanted, resolved, inputs, replace(schedule, done=start.step), folders, start, screen)
    except AlreadyDone as done:
        screen.say(str(done))
        return DONE


def steps(
    wanted: Wanted,
    resolved: Resolved,
    inputs: Inputs,
    schedule: Schedule,
    folders: Folders,
    start: Start,
    screen: Screen,
) -> int:
    """Starts the workers and takes the steps that are left; returns the exit code.

    Raises:
        StoppedError: a signal or the time budget ended the run, with a checkpoint.
    """
    config, config_name = resolved.config, wanted.method
    prepare(folders, resolved, config_name)
    take_back(folders, start.step)
    screen.say(f"  {schedule.last} steps on {inputs.placement.device}, into {folders.output}")
    stopper = Stopper(config.trainer.time_budget_s, os.environ)
    try:
        with stopper.listening():
            screen.stage("starting workers")
            services = start_workers(config, inputs.placement, [folders.output, folders.checkpoints])
            stopper.listen()  # Ray has taken the signals
            policy, sampler, _ = services
            screen.stage("loading sampler and actor")
            versions = policy.join()
            screen.say(f"  attention of the actor: {versions['attention']}")
            screen.stage("the actor is ready, loading sampler")
            versions |= {**sampler.describe(), "ray": cluster.version()}
            if start.checkpoint is not None:
                policy.restore(str(start.checkpoint.folder))
                sampler.version = start.step
            write_manifest(folders, config_name, config, inputs, versions, start.step)
            journal = open_journal(folders, resolved, inputs, schedule, screen)
            saver = saver_of(folders, config, policy, wanted.facts)
            parts = build_parts(
                config,
                inputs.renderers,
                inputs.train,
                inputs.held_out,
                services,
                journal,
                schedule,
                saver,
                stopper,
            )
            if start.checkpoint is not None:
                parts = parts.restore(start.checkpoint.facts["state"])
            with journal.trackers:
                (overlapped.train if config.trainer.overlap else train)(parts)
    except RunUnhealthyError as error:
        report_at_end(folders.output, inputs.renderers.student.pieces)
        journal.farewell(folders.checkpoints / f"step_{error.step}")
        raise
    finally:
        cluster.stop()
    report_at_end(folders.output, inputs.renderers.student.pieces)
    journal.farewell(folders.checkpoints / f"step_{schedule.last}" if schedule.last else None)
    return DONE


def open_journal(folders: Folders, resolved: Resolved, inputs: Inputs, schedule: Schedule, screen: Screen) -> Journal:
    """The journal and its trackers, going on where an earlier process ended."""
    asked, first = resolved.config.trainer, schedule.done + 1 if schedule.done else 0
    trackers = open_trackers(asked.logger, Run(folders.output, asked.project_name, resolved.tree, first))
    renderer, ranks = inputs.renderers.student, inputs.placement.ranks
    return Journal(folders, renderer, screen, schedule.last, trackers, history(folders.output), ranks)


def saver_of(folders: Folders, config: Config, policy: Policy, facts: Mapping[str, Any]) -> Saver:
    """What writes the run's checkpoints."""
    return Saver(
        policy=policy,
        folder=folders.checkpoints,
        config=(folders.output / "config.yaml").read_text(),
        keep=config.trainer.max_actor_ckpt_to_keep,
        on_error=config.trainer.on_save_error,
        facts=facts,
    )


def schedule_of(config: Config, train_set: PromptSet) -> Schedule:
    """The steps of a run."""
    asked = config.trainer
    by_epochs = len(train_set) // config.data.train_batch_size * asked.total_epochs
    last = by_epochs if asked.total_training_steps is None else asked.total_training_steps
    return Schedule(last, asked.test_freq, asked.val_before_train, asked.save_freq)


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


def prepare(folders: Folders, resolved: Resolved, config_name: str) -> None:
    """Makes the folders, keeps the resolved configuration, and links ./rollouts/<name> for the analysis commands."""
    try:
        describe_run(folders, f"{METHOD_LINE} {config_name}\n{as_yaml(resolved.tree)}")
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


def sandbox_told(config: Config, inputs: Inputs) -> dict[str, int | str | None]:
    """The isolation of programs, and why it is that one; tier None where no row needs any."""
    if inputs.isolation is None:
        return {"tier": None, "reason": "no row of the data needs programs to be run"}
    return {"tier": config.reward.sandbox_tier or inputs.isolation.tier, "reason": inputs.isolation.reason}


def commit_of(folder: Path) -> str | None:
    """The commit that a folder is at; None where it is no repository, or git is not installed."""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return told.stdout.strip() or None


def write_manifest(
    folders: Folders, config_name: str, config: Config, inputs: Inputs, versions: dict[str, str | int], done: int
) -> None:
    """What ran where: versions as the running workers report them, seed, commit, machine, folders."""
    parameters, attention = versions.pop("parameters"), versions.pop("attention")
    trained = versions.pop("trained_parameters", parameters)
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
        "resumed_after_step": done or None,
        "commit": commit_of(PROJECT),
        "machine": {
            "platform": platform.platform(),
            "cpus": os.cpu_count(),
            "gpus": [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())],
        },
        "actors": {
            "device": inputs.placement.device,
            "ranks": inputs.placement.ranks,
            "nodes": inputs.placement.nodes,
            "attention": attention,
        },
        "model": {"path": config.actor_rollout_ref.model.path, "parameters": parameters, "trained": trained},
        "sandbox": sandbox_told(config, inputs),
        "folders": {name: str(folder.resolve()) for name, folder in asdict(folders).items()},
    }
    (folders.output / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
