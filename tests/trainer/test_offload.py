"""What lay on the host between phases comes back to the bit, in its place; training goes on as if it never left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from mopd.teacher import ema_
from trainer import fsdp
from trainer.workers.offload import Offload, optimizer_tensors, storages

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A process group of one."""
    store = tmp_path_factory.mktemp("group") / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def model_of(seed: int) -> nn.Module:
    """Two layers, sharded over one rank."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 4))
    mesh = init_device_mesh("cpu", (1,))
    fully_shard(model[0], mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def train(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> Tensor:
    """One step on inputs of its own; the loss."""
    torch.manual_seed(step)
    loss: Tensor = (model(torch.randn(8, 16)) ** 2).mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.detach()


def held(tensors: list[Tensor]) -> int:
    """Bytes of the storages that tensors lie in."""
    return sum(storage.nbytes() for storage in storages(tensors, CPU))


@pytest.mark.usefixtures("alone")
def test_adamw_goes_on_as_if_its_state_had_never_left() -> None:
    plain, offloaded = trained(away=False), trained(away=True)
    assert len(plain) == len(offloaded)
    for one, two in zip(plain, offloaded, strict=True):
        assert torch.equal(one, two)


def trained(*, away: bool) -> list[Tensor]:
    """Losses of four steps, then weights and optimiser's state; `away` between the steps or there all the time."""
    model = model_of(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    offload = Offload(CPU, lambda: optimizer_tensors(optimizer))
    losses = []
    for step in range(4):
        with offload.at_hand() if away else nullcontext():
            losses.append(train(model, optimizer, step))
        assert not away or held(optimizer_tensors(optimizer)) == 0
    offload.come_back()
    return [*losses, *map(local, [*fsdp.shards(model), *optimizer_tensors(optimizer)])]


def local(tensor: Tensor) -> Tensor:
    """A tensor, or its shard."""
    part: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return part.detach()


@pytest.mark.usefixtures("alone")
def test_shards_come_back_to_the_bit_into_the_tensors_that_fsdp_knows() -> None:
    teacher, student = model_of(1), model_of(2)
    inputs = torch.randn(3, 16)
    shards = fsdp.shards(teacher)
    with torch.no_grad():
        shards[0].view(-1)[0] = float("nan")  # a bit pattern that no arithmetic keeps
        shards[0].view(-1)[1] = -0.0
    before = [shard.detach().clone().view(torch.int32) for shard in shards]
    offload = Offload(CPU, lambda: fsdp.shards(teacher))
    offload.leave()
    assert held(shards) == 0
    offload.leave()
    offload.come_back()
    offload.come_back()
    for shard, bits in zip(fsdp.shards(teacher), before, strict=True):
        assert torch.equal(shard.detach().view(torch.int32), bits)
    with torch.no_grad():
        shards[0].view(-1)[0] = 0.0
    ema_(fsdp.shards(teacher), fsdp.shards(student), 1.0)
    with torch.no_grad():
        assert torch.equal(teacher(inputs), student(inputs))


def test_an_optimiser_that_never_stepped_has_nothing_to_move() -> None:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    offload = Offload(CPU, lambda: optimizer_tensors(optimizer))
    with offload.at_hand():
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    assert held(optimizer_tensors(optimizer)) == 0
    with offload.at_hand():
        assert torch.isfinite(optimizer_tensors(optimizer)[1]).all()


def test_views_of_one_storage_move_once_and_stay_views() -> None:
    whole = torch.arange(6.0)
    parts = [whole[:3], whole[3:]]
    offload = Offload(CPU, lambda: parts)
    offload.leave()
    assert len(offload.away) == 1
    offload.come_back()
    whole[4] = 9.0
    assert parts[1].tolist() == [3.0, 9.0, 5.0]


def test_what_fails_inside_leaves_nothing_behind() -> None:
    tensor = torch.ones(3)
    offload = Offload(CPU, lambda: [tensor])
    with pytest.raises(RuntimeError, match="broken"), offload.at_hand():
        raise RuntimeError("broken")
    assert tensor.untyped_storage().nbytes() == 0
    offload.come_back()
    assert tensor.tolist() == [1.0, 1.0, 1.0]
