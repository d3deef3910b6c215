"""What a rank of the actor keeps in a checkpoint: student, optimiser, EMA teacher, random state (torch DCP).

Staging copies the state, so that training goes on while a thread writes the copy.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from transformers import AutoTokenizer

from trainer import checkpoint, failpoints


@dataclass(frozen=True)
class Saving:
    """One checkpoint to write."""

    folder: str
    """Where it will lie: `.../step_N`."""
    step: int
    facts: Mapping[str, Any]
    """What its manifest tells beside the files."""
    config: str
    """The text of `config.yaml`."""
    keep: int
    """Checkpoints kept at most."""


class Writer(FileSystemWriter):
    """Writes shards, and fails in the middle where a test asks for it."""

    def __init__(self, folder: Path, step: int, rank: int) -> None:
        super().__init__(folder)
        self.moment = {"step": step, "rank": rank}

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Any:
        """Writes this rank's shards."""
        written = super().write_data(plan, planner)
        failpoints.hit("ckpt.mid_shard", **self.moment)
        return written


class StateKeeper:
    """Writes and reads one rank's part of checkpoints, one at a time."""

    def __init__(self, rank: int, ranks: int) -> None:
        self.rank, self.ranks = rank, ranks
        # Of its own, so that the writing thread's collectives never meet those of training.
        self.group = dist.new_group(backend="gloo") if ranks > 1 else None
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self.running: Future[None] | None = None

    def stage(
        self,
        saving: Saving,
        models: Mapping[str, nn.Module],
        optimizer: torch.optim.Optimizer,
        weights: Mapping[str, Tensor],
        describe: Any,
        source: str,
    ) -> None:
        """Copies the state and begins to write it; a write that still goes on is waited for.

        `weights`, on rank 0, are the student's whole ones by Hugging Face name; `describe` is the model that
        gives their configuration, `source` the folder of the initial model.
        A collective: all ranks call it.
        """
        self.settle()
        state = {name: copied(part) for name, part in self.state(models, optimizer).items()}
        self.running = self.pool.submit(self.write, saving, state, weights, describe, source)

    def state(self, models: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Everything that is kept, sharded as it is; an optimiser that never stepped has nothing to keep."""
        parts: dict[str, Any] = {name: get_model_state_dict(model) for name, model in models.items()}
        if optimizer.state:
            parts["optimizer"] = get_optimizer_state_dict(models["student"], optimizer)
        parts["random"] = {f"torch_{self.rank}": torch.get_rng_state()}
        return parts

    def write(
        self, saving: Saving, state: dict[str, Any], weights: Mapping[str, Tensor], describe: Any, source: str
    ) -> None:
        """Writes a staged state aside; rank 0 adds the rest and makes it the checkpoint."""
        failpoints.hit("ckpt.async", step=saving.step, rank=self.rank)
        final = Path(saving.folder)
        aside = checkpoint.aside_of(final)
        if self.rank == 0:
            checkpoint.clear_aside(final.parent)
            aside.mkdir(parents=True)
        if self.group is not None:
            dist.barrier(self.group)
        try:
            writer = Writer(aside / checkpoint.STATE, saving.step, self.rank)
            save(state, storage_writer=writer, process_group=self.group, no_dist=self.group is None)
            if self.rank == 0:
                save_hf(describe, weights, source, aside / "hf")
                (aside / "config.yaml").write_text(saving.config)
                checkpoint.seal(final, saving.step, {**saving.facts, "ranks": self.ranks}, saving.keep)
        except Exception as error:
            if self.rank == 0:
                shutil.rmtree(aside, ignore_errors=True)
            raise checkpoint.CheckpointError(
                f"{final} could not be written: {type(error).__name__}: {error}"
            ) from error

    def settle(self, *, wait: bool = True) -> None:
        """Raises what went wrong with the last write; with `wait`, once it has ended.

        Raises:
            CheckpointError: the last checkpoint could not be written.
        """
        if self.running is None or not (wait or self.running.done()):
            return
        ended, self.running = self.running, None
        ended.result()

    def load(self, folder: str, models: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer) -> None:
        """Takes the state of a checkpoint, written by however many ranks. A collective: all ranks call it."""
        reader = FileSystemReader(Path(folder) / checkpoint.STATE)
        kept = {name.split(".")[0] for name in reader.read_metadata().state_dict_metadata}
        parts: dict[str, Any] = {name: get_model_state_dict(model) for name, model in models.items()}
        if "optimizer" in kept:
            parts["optimizer"] = get_optimizer_state_dict(models["student"], optimizer)
        own = {f"torch_{self.rank}": torch.get_rng_state()}
        if f"random.torch_{self.rank}" in reader.read_metadata().state_dict_metadata:
            parts["random"] = own
        load(parts, storage_reader=reader, process_group=self.group, no_dist=self.group is None)
        for name, model in models.items():
            set_model_state_dict(model, parts[name])
        if "optimizer" in parts:
            set_optimizer_state_dict(models["student"], optimizer, parts["optimizer"])
        if "random" in parts:
            torch.set_rng_state(parts["random"][f"torch_{self.rank}"])


def save_hf(model: Any, weights: Mapping[str, Tensor], source: str, folder: Path) -> None:
    """Writes weights, configuration and tokenizer into `folder`, as transformers and vLLM load them.

    `model` gives the configuration, `source` is the folder of the initial model with the tokenizer.
    """
    folder.mkdir(parents=True)
    model.config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)
    save_file(dict(weights), folder / "model.safetensors", metadata={"format": "pt"})
    # The library makes a file for its owner alone; colleagues read checkpoints.
    (folder / "model.safetensors").chmod((folder / "config.json").stat().st_mode)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)


def copied(value: Any) -> Any:
    """A state with every tensor copied to the CPU."""
    if isinstance(value, Mapping):
        return {key: copied(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(copied(inner) for inner in value)
    return value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else value
