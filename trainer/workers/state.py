"""What a rank of the actor keeps in a checkpoint: student, optimiser, EMA teacher, random state (torch DCP).

Staging copies the state, so that training goes on while a thread writes the copy.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from transformers import AutoTokenizer

from trainer import checkpoint, failpoints
from trainer.adapters import Adapter, is_factor
from trainer.workers.reading import Planner, Reader


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

    def __init__(self, rank: int, ranks: int, deadline_s: float) -> None:
        self.rank, self.ranks = rank, ranks
        # Of its own, so that the writing thread's collectives never meet those of training.
        timeout = timedelta(seconds=deadline_s)
        self.group = dist.new_group(backend="gloo", timeout=timeout) if ranks > 1 else None
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
        adapter: Adapter | None = None,
    ) -> None:
        """Copies the state and begins to write it; the write before was settled.

        `weights`, on rank 0, are the student's whole ones by Hugging Face name; `describe` is the model that
        gives their configuration, `source` the folder of the initial model, `adapter` the student's without its base.
        A collective: all ranks call it.
        """
        if self.running is not None:
            raise checkpoint.CheckpointError("the checkpoint before this one was begun on some ranks only")
        state: dict[str, Any] | Exception
        try:
            state = {name: copied(part) for name, part in self.state(models, optimizer).items()}
        except Exception as error:  # the other ranks are to hear of it where they wait for this one
            state = error

        def finish(aside: Path) -> None:
            save_hf(describe, weights, source, aside / "hf")
            if adapter is not None:
                adapter.save(aside / "adapter")

        self.running = self.pool.submit(self.write, saving, state, finish)

    def state(self, models: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Everything that is kept, sharded as it is; an optimiser that never stepped has nothing to keep."""
        parts: dict[str, Any] = {name: kept_of(model) for name, model in models.items()}
        if optimizer.state:
            parts["optimizer"] = get_optimizer_state_dict(models["student"], optimizer)
        parts["random"] = self.random_states()
        return parts

    def random_states(self) -> dict[str, Tensor]:
        """The states of this rank's generators, under names of its own."""
        states = {f"torch_{self.rank}": torch.get_rng_state()}
        return states | ({f"cuda_{self.rank}": torch.cuda.get_rng_state()} if torch.cuda.is_initialized() else {})

    def write(self, saving: Saving, state: dict[str, Any] | Exception, finish: Callable[[Path], None]) -> None:
        """Writes a staged state aside; rank 0 adds the rest with `finish` and makes it the checkpoint.

        Raises:
            CheckpointError: on every rank, if anything failed on any.
        """
        final = Path(saving.folder)
        aside = checkpoint.aside_of(final)

        def begin() -> None:
            failpoints.hit("ckpt.async", step=saving.step, rank=self.rank)
            if isinstance(state, Exception):
                raise state
            if self.rank == 0:
                checkpoint.clear_aside(final.parent)
                aside.mkdir(parents=True)

        def end() -> None:
            if self.rank == 0:
                finish(aside)
                (aside / "config.yaml").write_text(saving.config)
                checkpoint.seal(final, saving.step, {**saving.facts, "ranks": self.ranks}, saving.keep)

        try:
            self.together(begin)
            writer = Writer(aside / checkpoint.STATE, saving.step, self.rank)
            save(state, storage_writer=writer, process_group=self.group, no_dist=self.group is None)
            self.together(end)
        except (Exception, CheckpointException) as error:  # torch's own is no Exception
            if self.rank == 0:
                shutil.rmtree(aside, ignore_errors=True)
            raise checkpoint.CheckpointError(f"{final} could not be written: {cause(error)}") from None

    def together(self, work: Callable[[], None]) -> None:
        """Does this rank's part of some work; a failure on any rank is raised on all, so that none waits for another.

        Raises:
            CheckpointError: with the first failing rank's error.
        """
        told = None
        try:
            work()
        except Exception as error:
            told = cause(error)
        every = [told]
        if self.group is not None:
            every = [None] * self.ranks
            dist.all_gather_object(every, told, self.group)
        for rank, failure in enumerate(every):
            if failure is not None:
                raise checkpoint.CheckpointError(f"rank {rank}: {failure}")

    def ended(self) -> bool:
        """Whether no checkpoint is being written."""
        return self.running is None or self.running.done()

    def settle(self) -> None:
        """Waits until the last checkpoint is written, and raises what went wrong with it, once.

        Raises:
            CheckpointError: the last checkpoint could not be written.
        """
        if self.running is None:
            return
        running, self.running = self.running, None
        running.result()

    def load(self, folder: str, models: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer) -> None:
        """Takes the state of a checkpoint, written by however many ranks. A collective: all ranks call it.

        The optimiser's settings stay as they are: a run may go on with others. A rank that was not there has no
        random state to take.
        """
        reader = Reader(Path(folder) / checkpoint.STATE)
        kept = reader.read_metadata().state_dict_metadata.keys()
        parts: dict[str, Any] = {name: kept_of(model) for name, model in models.items()}
        parts["random"] = {name: state for name, state in self.random_states().items() if f"random.{name}" in kept}
        settings = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
        if any(name.startswith("optimizer.") for name in kept):
            parts["optimizer"] = get_optimizer_state_dict(models["student"], optimizer)
        load(parts, storage_reader=reader, planner=Planner(), process_group=self.group, no_dist=self.group is None)
        for name, model in models.items():
            set_model_state_dict(model, parts[name], options=StateDictOptions(strict=not adapted(model)))
        if "optimizer" in parts:
            set_optimizer_state_dict(models["student"], optimizer, parts["optimizer"])
        for group, asked in zip(optimizer.param_groups, settings, strict=True):
            group.update(asked)
        for name, state in parts["random"].items():
            (torch.cuda if name.startswith("cuda") else torch).set_rng_state(state)


def adapted(model: nn.Module) -> bool:
    """Whether a model has adapters."""
    return getattr(model, "adapters", None) is not None


def kept_of(model: nn.Module) -> dict[str, Any]:
    """What a checkpoint keeps of a model, by name: all weights, or of one with adapters these alone, every voice's."""
    state = get_model_state_dict(model)
    return {name: weight for name, weight in state.items() if is_factor(name)} if adapted(model) else state


def cause(error: BaseException) -> str:
    """What went wrong, in a line: of torch's report over all ranks the first rank's error."""
    if isinstance(error, CheckpointException) and error.failures:
        rank, (first, _) = next(iter(error.failures.items()))
        return f"rank {rank}: {cause(first)}"
    if isinstance(error, checkpoint.CheckpointError):
        return str(error)
    return f"{type(error).__name__}: {error}".splitlines()[0]


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
