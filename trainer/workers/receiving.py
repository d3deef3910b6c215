"""The sampler's end of a gloo link: messages of weights from the trainer's rank 0, whatever engine loads them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroupGloo, TCPStore  # type: ignore[attr-defined]


class Receiver:
    """Takes the messages of one link."""

    def __init__(self, host: str, port: int, deadline_s: float) -> None:
        """Joins rank 0's group of two."""
        self.timeout = timedelta(seconds=deadline_s)
        store = TCPStore(host, port, 2, is_master=False, timeout=self.timeout)
        self.group: Any = ProcessGroupGloo(store, 1, 2, self.timeout)

    def take(
        self, names: Sequence[str], dtype_names: Sequence[str], shapes: Sequence[Sequence[int]]
    ) -> list[tuple[str, Tensor]]:
        """One message: its weights by name, on the CPU."""
        dtypes = [getattr(torch, name) for name in dtype_names]
        sizes = [prod(shape) * dtype.itemsize for shape, dtype in zip(shapes, dtypes, strict=True)]
        # A new one for every message: loaders keep views into it.
        message = torch.empty(sum(sizes), dtype=torch.uint8)
        self.group.recv([message], 0, 0).wait(self.timeout)
        parts = zip(names, message.split(sizes), dtypes, shapes, strict=True)
        return [(name, part.view(dtype).view(tuple(shape))) for name, part, dtype, shape in parts]
