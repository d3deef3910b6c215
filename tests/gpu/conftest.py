"""What one GPU can tell by itself, without Ray and vLLM. Where there is none, nothing is collected, and that is said.

`MOPD_GPU_TESTS=dry` runs the same tests on the CPU: it shows that they can run, and nothing about a GPU.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

DRY = os.environ.get("MOPD_GPU_TESTS") == "dry"
NOT_RUN = not DRY and not torch.cuda.is_available()
collect_ignore_glob = ["test_*.py"] if NOT_RUN else []


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Where these tests alone are asked for and none is there, that is no failure."""
    if NOT_RUN and session.exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED:
        session.exitstatus = pytest.ExitCode.OK


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where the tests compute."""
    return torch.device("cpu" if DRY else "cuda")


def on(device: torch.device, data: dict[str, Any], dtype: torch.dtype | None = None) -> dict[str, Any]:
    """Tensors by name, as leaves on a device; floats of another dtype, where one is named."""
    moved = {}
    for name, each in data.items():
        kind = dtype if dtype is not None and each.is_floating_point() else each.dtype
        moved[name] = each.detach().to(device, kind).requires_grad_(each.requires_grad)
    return moved
