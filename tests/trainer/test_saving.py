"""Writing beside training: one write at a time, errors heard by all ranks, state read back to the last bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from trainer import checkpoint
from trainer.checkpoint import CheckpointError
from trainer.cluster import DeadlineError, WorkerDiedError, WorkerError
from trainer.failpoints import VARIABLE
from trainer.saving import Saver
from trainer.workers.state import Saving, StateKeeper

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "datasets" / "chain" / "model"


class Ranks:
    """The actor as the saver sees it: writes end when the test says, and fail as it says."""

    def __init__(self, *failures: Exception | None, busy: int = 0) -> None:
        self.failures, self.busy, self.told = list(failures), busy, list[str]()

    def save(self, saving: Saving) -> None:
        assert "writing" not in self.told[-1:]
        self.told += [Path(saving.folder).name, "writing"]

    def settle(self, *, wait: bool) -> bool:
        if self.busy and not wait:
            self.busy -= 1
            return False
        self.told.append("whole")
        failure = self.failures.pop(0) if self.failures else None
        if failure is not None:
            raise failure
        return True


def saver_with(ranks: Ranks, folder: Path, on_error: Any = "warn") -> Saver:
    policy: Any = ranks
    return Saver(policy=policy, folder=folder, config="", keep=2, on_error=on_error, facts={"model": "m"})


def test_a_write_is_waited_for_before_the_next_begins(tmp_path: Path) -> None:
    ranks = Ranks(busy=2)
    saver = saver_with(ranks, tmp_path)
    saver.save(1, {})
    saver.settle(wait=False)
    assert ranks.told == ["step_1", "writing"]
    saver.save(2, {})
    saver.finish()
    saver.finish()
    assert ranks.told == ["step_1", "writing", "whole", "step_2", "writing", "whole"]
    assert saver.longest_s > 0


def test_a_failure_stops_the_run_at_the_next_step(tmp_path: Path) -> None:
    saver = saver_with(Ranks(WorkerError("disk full")), tmp_path, "stop")
    saver.save(1, {})
    with pytest.raises(WorkerError, match="disk full"):
        saver.settle(wait=False)


def test_where_it_may_one_failure_is_told_and_the_second_in_a_row_stops(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    full = WorkerError("disk full")
    saver = saver_with(Ranks(full, None, full, full), tmp_path)
    for step in (1, 2, 3):
        saver.save(step, {})
    saver.save(4, {})
    assert caplog.text.count("disk full; training goes on") == 2
    with pytest.raises(WorkerError):
        saver.settle(wait=True)


@pytest.mark.parametrize("error", [WorkerDiedError("rank 1 died"), DeadlineError("no answer")])
def test_a_rank_that_is_lost_stops_the_run_in_any_case(tmp_path: Path, error: Exception) -> None:
    saver = saver_with(Ranks(error), tmp_path)
    saver.save(1, {})
    with pytest.raises(type(error)):
        saver.settle(wait=True)


def test_a_run_whose_last_checkpoint_failed_has_failed(tmp_path: Path) -> None:
    saver = saver_with(Ranks(None, WorkerError("disk full")), tmp_path)
    saver.save(1, {})
    saver.save(2, {})
    saver.settle(wait=False)
    with pytest.raises(WorkerError, match="disk full"):
        saver.finish()


def test_a_failure_that_was_mended_is_none_at_the_end(tmp_path: Path) -> None:
    saver = saver_with(Ranks(WorkerError("disk full")), tmp_path)
    for step in (1, 2):
        saver.save(step, {})
    saver.finish()
    assert saver.failures == 0


def trained(lr: float, seed: int) -> tuple[dict[str, nn.Module], torch.optim.AdamW]:
    """A student with tied weights that has taken a step, and a teacher beside it."""
    models = {name: AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32) for name in ("student", "teacher")}
    optimizer = torch.optim.AdamW(models["student"].parameters(), lr=lr, betas=(0.8, 0.9), weight_decay=lr)
    torch.manual_seed(seed)
    ids = torch.randint(0, 50, (1, 8))
    models["student"](input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    with torch.no_grad():
        for parameter in models["teacher"].parameters():
            parameter.add_(torch.randn_like(parameter))
    return models, optimizer


def values(models: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Every number that a checkpoint keeps."""
    weights = [weight.detach().clone() for model in models.values() for weight in model.state_dict().values()]
    return weights + [part.clone() for state in optimizer.state.values() for part in state.values()]


def stage(keeper: StateKeeper, final: Path, models: Any, optimizer: torch.optim.Optimizer) -> None:
    weights = {name: weight.detach().clone() for name, weight in models["student"].named_parameters()}
    saving = Saving(str(final), 1, {}, "", keep=2)
    keeper.stage(saving, models, optimizer, weights, models["student"], str(MODEL))


def test_state_comes_back_to_the_last_bit_and_settings_stay_as_they_are_asked(tmp_path: Path) -> None:
    """Student with tied weights, teacher, optimiser and generators; whatever training does while they are written."""
    models, optimizer = trained(1e-3, seed=1)
    wanted, keeper = values(models, optimizer), StateKeeper(0, 1, 60.0)
    stage(keeper, tmp_path / "step_1", models, optimizer)
    drawn = torch.rand(10)
    with torch.no_grad():
        for parameter in models["student"].parameters():
            parameter.zero_()
    keeper.settle()
    assert checkpoint.read(tmp_path / "step_1").step == 1
    others, other_optimizer = trained(5e-4, seed=2)
    keeper.load(str(tmp_path / "step_1"), others, other_optimizer)
    found = values(others, other_optimizer)
    assert len(found) == len(wanted)
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
    assert torch.equal(torch.rand(10), drawn)
    student = others["student"]
    assert student.lm_head.weight is student.model.embed_tokens.weight
    [group] = other_optimizer.param_groups
    assert (group["lr"], group["weight_decay"], tuple(group["betas"])) == (5e-4, 5e-4, (0.8, 0.9))


def test_an_optimiser_that_never_stepped_comes_back_without_state(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters())
    keeper = StateKeeper(0, 1, 60.0)
    stage(keeper, tmp_path / "step_1", {"student": model}, optimizer)
    keeper.settle()
    keeper.load(str(tmp_path / "step_1"), {"student": model}, optimizer)
    assert not optimizer.state


def test_a_state_that_cannot_be_copied_is_an_error_of_the_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: StateKeeper, *_: Any) -> dict[str, Any]:
        raise MemoryError("no memory")

    monkeypatch.setattr(StateKeeper, "state", full)
    models, optimizer = trained(1e-3, seed=1)
    keeper = StateKeeper(0, 1, 60.0)
    stage(keeper, tmp_path / "step_1", models, optimizer)
    with pytest.raises(CheckpointError, match=r"step_1 could not be written: rank 0: MemoryError: no memory"):
        keeper.settle()
    assert keeper.ended()
    keeper.settle()  # heard once
    assert list(tmp_path.iterdir()) == []


RANK = """
import json, os, sys
from pathlib import Path
import torch, torch.distributed as dist
from trainer.checkpoint import CheckpointError
from trainer.workers.state import Saving, StateKeeper

rank, folder = int(sys.argv[1]), Path(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
keeper, told = StateKeeper(rank, 2, 120.0), []

def write(final, step, state, finish=lambda aside: None):
    try:
        keeper.write(Saving(str(final), step, {"seed": 1}, "config", 2), state, finish)
        told.append(None)
    except CheckpointError as error:
        told.append(str(error))

def spoil(aside):
    raise OSError(28, "No space left on device")

whole = {"random": {f"torch_{rank}": torch.full((4,), float(rank))}}
write(folder / "runs" / "step_1", 1, whole)
write(folder / "runs" / "step_2", 2, whole)  # rank 1 fails by a failpoint
write(folder / "runs" / "step_3", 3, MemoryError("no memory") if rank else whole)
write(folder / "store" / "step_4", 4, whole)  # a file stands where the folder should be made
write(folder / "runs" / "step_5", 5, whole, spoil)
write(folder / "runs" / "step_6", 6, {"random": {f"torch_{rank}": lambda: None}} if rank else whole)
write(folder / "runs" / "step_7", 7, whole)
print(json.dumps(told))
dist.barrier()
dist.destroy_process_group()
"""


def test_what_fails_on_one_rank_is_told_on_all_and_the_next_write_goes_well(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), VARIABLE: "ckpt.async=raise;rank=1;step=2"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(rank), str(tmp_path)], env=environment, stdout=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    said = [json.loads(process.communicate(timeout=300)[0]) for process in ranks]
    assert said[0] == said[1]
    first, async_raise, staging, place, disk, shard, last = said[0]
    assert (first, last) == (None, None)
    assert "step_2 could not be written: rank 1: FailpointError" in async_raise
    assert "rank 1: MemoryError: no memory" in staging
    assert "rank 0: NotADirectoryError" in place
    assert "rank 0: OSError: [Errno 28] No space left on device" in disk
    assert "step_6 could not be written: rank 1: " in shard
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["step_1", "step_7"]
    assert checkpoint.read(tmp_path / "runs" / "step_7").facts == {"seed": 1, "ranks": 2}
