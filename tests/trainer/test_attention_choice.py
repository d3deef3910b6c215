"""Which kernels attention takes, by device and by what is installed."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch

from trainer import attention_choice
from trainer.attention_choice import choose_attention

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_a_processor_has_its_own_way_and_padded_rows_torchs() -> None:
    assert (
        choose_attention("packed", CPU, torch.float32) == "torch, flash attention for processors, packed rows, float32"
    )
    assert choose_attention("sdpa", CPU, torch.float32) == "torch, sdpa, padded rows, float32"
    assert choose_attention("eager", CPU, torch.float32).endswith("padded rows, float32")


@pytest.mark.parametrize(
    ("capability", "installed", "said"),
    [
        ((9, 0), True, "torch, varlen, flash attention 3, packed rows, bfloat16"),
        ((9, 0), False, "torch, varlen, flash attention 2, packed rows, bfloat16"),
        ((8, 0), True, "torch, varlen, flash attention 2, packed rows, bfloat16"),
        ((7, 5), True, "torch, sdpa sequence by sequence, packed rows, bfloat16"),
    ],
)
def test_a_gpu_takes_the_newest_that_it_can(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], installed: bool, said: str
) -> None:
    taken: list[str] = []
    found: Any = importlib.util.find_spec("torch") if installed else None
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(attention_choice.importlib.util, "find_spec", lambda name: found)
    monkeypatch.setattr(attention_choice, "activate_flash_attention_impl", taken.append)
    assert choose_attention("packed", GPU, torch.bfloat16) == said
    assert taken == (["FA3"] if "3" in said else [])


def test_what_is_installed_and_does_not_work_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise RuntimeError("Module 'flash_attn_interface' does not expose FA3 backward kernels")

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(attention_choice.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(attention_choice, "activate_flash_attention_impl", broken)
    said = choose_attention("packed", GPU, torch.bfloat16)
    assert "flash attention 2 (flash attention 3 is installed and cannot be used: Module" in said
