"""One run from validated configuration to final table: inputs refused or read, workers started, and always stopped."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch
from rich.console import Console
from transformers import AutoTokenizer

import mopd
from mopd.rewards import VERIFIERS
from trainer import cluster
from trainer.assemble import Placement, build_parts, start_workers
from trainer.config.compose import Resolved, as_yaml
from trainer.config.schema import Config
from trainer.errors import DONE, BadInputError
from trainer.loop import train
from trainer.prompts import PromptSet, Renderer, load
from trainer.schedule import Schedule
from trainer.tracking import Folders, Journal

PROJECT = Path(__file__).resolve().parent.parent


def train_session(config_name: str, resolved: Resolved, console: Console) -> int:
    """Runs every step of a run; returns the exit code.

    Raises:
        BadInputError: the model, the data or the output folder cannot be used; before anything is started.
    """
    config = resolved.config
    placement = place(config)
    renderer = Renderer(load_tokenizer(config), config.data.apply_chat_template_kwargs)
    train_set, held_out = load_prompts(config, renderer)
    for name, prompts in (("training", train_set), ("held-out", held_out)):
        left_out = f" ({prompts.dropped} over the length limit left out)" if prompts.dropped else ""
        console.print(f"  {len(prompts)} {name} prompts{left_out}", highlight=False)
    schedule = schedule_of(config, train_set)
    folders = folders_of(config, config_name)
    if (steps_done := finished_steps(folders.output)) is not None:
        return already_there(folders.output, steps_done, schedule.last, console)
    prepare(folders, resolved, config_name)
    console.print(f"  {schedule.last} steps on {placement.device}, into {folders.output}", highlight=False)
    try:
        services = start_workers(config, placement)
        policy, sampler, _ = services
        versions = {**policy.join(), **sampler.describe(), "ray": cluster.version()}
        write_manifest(folders, config_name, config, placement, versions)
        journal = Journal(folders, renderer, console, schedule.last)
        train(build_parts(config, renderer, train_set, held_out, services, journal, schedule))
    finally:
        cluster.stop()
    journal.farewell(folders.checkpoints / f"step_{schedule.last}" if schedule.last else None)
    return DONE


def place(config: Config) -> Placement:
    """The devices of a run.

    Raises:
        BadInputError: more GPUs are asked for than are visible, or several nodes.
    """
    asked = config.trainer
    visible = torch.cuda.device_count()
    device = ("cuda" if visible else "cpu") if asked.device == "auto" else asked.device
    problems = []
    if device == "cuda" and (asked.n_gpus_per_node or 1) > visible:
        problems.append(
            f"trainer.device={asked.device}, trainer.n_gpus_per_node={asked.n_gpus_per_node}: {visible} GPUs are "
            f"visible; lower N_GPUS_PER_NODE, or set trainer.device=cpu"
        )
    if asked.nnodes > 1:
        problems.append(f"trainer.nnodes={asked.nnodes}: this version runs on one node; set NNODES=1")
    if problems:
        raise BadInputError(problems)
    return Placement(device, asked.n_gpus_per_node or (visible if device == "cuda" else 1))


def load_tokenizer(config: Config) -> AutoTokenizer:
    """The tokenizer of the model's folder.

    Raises:
        BadInputError: there is no such model, or its tokenizer has no chat template.
    """
    path = config.actor_rollout_ref.model.path
    key = f"actor_rollout_ref.model.path={path}"
    if os.path.isdir(path) and not (Path(path) / "config.json").is_file():
        raise BadInputError([f"{key}: the folder has no config.json; MODEL_PATH must name a Hugging Face model folder"])
    if not os.path.isdir(path) and not re.fullmatch(r"[\w.-]+/[\w.-]+", path):
        raise BadInputError([f"{key}: no such folder; MODEL_PATH must name a Hugging Face model folder"])
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise BadInputError([f"{key}: no tokenizer could be loaded ({str(error).splitlines()[0]})"]) from None
    if not tokenizer.chat_template:
        raise BadInputError([f"{key}: its tokenizer has no chat template; take an instruction-tuned model"])
    return tokenizer


def load_prompts(config: Config, renderer: Renderer) -> tuple[PromptSet, PromptSet]:
    """Training and held-out prompts; the problems of both files at once."""
    data, sets, problems = config.data, [], []
    for key, path in (("data.train_files", data.train_files), ("data.val_files", data.val_files)):
        convert_beside(Path(path))
        try:
            found = load(
                path,
                key,
                renderer,
                max_prompt_length=data.max_prompt_length,
                drop_overlong=data.filter_overlong_prompts,
            )
        except BadInputError as error:
            problems += error.problems
            continue
        problems += unknown_sources(key, path, found)
        sets.append(found)
    if sets and not problems and len(sets[0]) < data.train_batch_size:
        problems.append(
            f"data.train_batch_size={data.train_batch_size}: {data.train_files} has {len(sets[0])} prompts that fit; "
            f"lower TRAIN_BATCH_SIZE"
        )
    if problems:
        raise BadInputError(problems)
    return sets[0], sets[1]


def unknown_sources(key: str, path: str, prompts: PromptSet) -> list[str]:
    """A sentence for every data source without a verifier."""
    names = sorted({prompt.data_source for prompt in prompts.prompts} - set(VERIFIERS))
    return [
        f"{key}={path}: data_source {name!r} has no verifier; known: {', '.join(sorted(VERIFIERS))}" for name in names
    ]


def convert_beside(file: Path) -> None:
    """Converts published JSON Lines that lie beside a missing parquet file."""
    script = PROJECT / "data" / "preprocess.py"
    if file.exists() or not file.with_suffix(".json").is_file() or not script.is_file():
        return
    done = subprocess.run(
        [sys.executable, str(script), "--data_source", str(file.parent)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise BadInputError([line.strip() for line in done.stderr.splitlines() if line.strip()])


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


def fresh(folder: Path) -> Path:
    """`folder`, or the first of folder-2, folder-3, ... that is not there."""
    number, candidate = 1, folder
    while candidate.exists():
        number += 1
        candidate = folder.with_name(f"{folder.name}-{number}")
    return candidate


def finished_steps(output: Path) -> int | None:
    """The last step of the run that `output` holds; None where there is none."""
    metrics = output / "metrics.jsonl"
    lines = metrics.read_text().splitlines() if metrics.is_file() else []
    return int(json.loads(lines[-1])["step"]) if lines else None


def already_there(output: Path, done: int, asked: int, console: Console) -> int:
    """A run that is there is never overwritten: done means done, and going on needs a checkpoint to go on from."""
    if done >= asked:
        console.print(f"{output} already holds {done} steps of {asked} asked; nothing to do")
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
        (folders.output / "config.yaml").write_text(f"# method: {config_name}\n{as_yaml(resolved.tree)}")
    except OSError as error:
        raise BadInputError(
            [f"{error.filename}: cannot be written ({error.strerror}); name another OUTPUT_DIR"]
        ) from None
    link = Path("rollouts") / folders.output.name
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
