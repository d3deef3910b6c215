"""Tensors that lie in the host's memory while nobody needs them: optimiser states, a teacher's shards.

A tensor keeps its place: its storage is emptied and later filled again. Whatever else looks into that storage, FSDP's
own records of a shard or an optimiser's references, finds every bit as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


class Offload:
    """A set of tensors with a place on a device and one on the host; nobody may look at them while they are away."""

    def __init__(self, device: torch.device, tensors: Callable[[], Iterable[Tensor]]) -> None:
        """`tensors` names them each time anew, for an optimiser has none before its first step."""
        self.device, self.tensors = device, tensors
        self.copies: dict[int, Tensor] = {}
        """On the host, by storage; kept for the next time, since pinned memory is dear."""
        self.away: list[tuple[torch.UntypedStorage, Tensor]] = []

    def leave(self) -> None:
        """Copies the tensors to the host and frees their memory on the device; those that are away stay there."""
        if self.away:
            return
        copies = {}
        for storage in storages(self.tensors(), self.device):
            place = self.copies.get(storage._cdata)
            if place is None or place.numel() != storage.nbytes():
                pinned = self.device.type == "cuda"
                place = torch.empty(storage.nbytes(), dtype=torch.uint8, pin_memory=pinned)
            place.copy_(as_bytes(storage), non_blocking=True)
            copies[storage._cdata] = place
            self.away.append((storage, place))
        self.copies = copies
        settle(self.device)
        for storage, _ in self.away:
            storage.resize_(0)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # for the other process on this GPU

    def come_back(self) -> None:
        """Puts the tensors back where they were; those that are there stay."""
        for storage, place in self.away:
            storage.resize_(place.numel())
            as_bytes(storage).copy_(place, non_blocking=True)
        settle(self.device)
        self.away = []

    @contextmanager
    def at_hand(self) -> Iterator[None]:
        """Inside, the tensors are on the device; afterwards they are away, whatever happened."""
        self.come_back()
        try:
            yield
        finally:
            self.leave()


def storages(tensors: Iterable[Tensor], device: torch.device) -> list[torch.UntypedStorage]:
    """The storages on `device` that tensors, or their shards, lie in; each once."""
    found: dict[int, torch.UntypedStorage] = {}
    for tensor in tensors:
        local = tensor.detach()
        local = local.to_local() if isinstance(local, DTensor) else local
        storage = local.untyped_storage()
        if storage.device.type == device.type and storage.nbytes():
            found[storage._cdata] = storage
    return list(found.values())


def as_bytes(storage: torch.UntypedStorage) -> Tensor:
    """A storage as a tensor of bytes that shares its memory."""
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


def settle(device: torch.device) -> None:
    """Waits until what was copied is there."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The tensors of an optimiser's state, in the order of its parameters; none before its first step."""
    states: list[dict[str, Any]] = list(optimizer.state.values())
    return [value for state in states for value in state.values() if isinstance(value, Tensor)]
