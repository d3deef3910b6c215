"""Which kernels the actor's attention takes: the fastest that are installed, and a sentence on them for the log."""

from __future__ import annotations

import importlib.util
from importlib.metadata import version

import torch
from torch.nn.attention import activate_flash_attention_impl

from trainer.attention import PACKED, attention_on, ragged_attention, segment_attention

HOPPER = (9, 0)
"""The compute capability that flash attention 3 is made for."""


def choose_attention(name: str, device: torch.device, dtype: torch.dtype) -> str:
    """Takes the fastest kernels for attention `name`, an `attn_implementation`; says in words which these are."""
    kind = str(dtype).removeprefix("torch.")
    if name == "flash_attention_2":
        return f"flash-attn {version('flash_attn')}, padded rows, {kind}"
    if name != PACKED:
        return f"{'torch, matrix by matrix' if name == 'eager' else 'torch, sdpa'}, padded rows, {kind}"
    attend = attention_on(device, dtype)
    if attend is segment_attention:
        return f"torch, flash attention for processors, packed rows, {kind}"
    if attend is not ragged_attention:
        return f"torch, sdpa sequence by sequence, packed rows, {kind}"
    return f"torch, varlen, flash attention {flash_version(device)}, packed rows, {kind}"


def flash_version(device: torch.device) -> str:
    """Has torch's attention over sequences of different lengths take flash attention 3, where that is installed.

    Written from torch's source; not run yet.
    """
    if torch.cuda.get_device_capability(device) != HOPPER or importlib.util.find_spec("flash_attn_interface") is None:
        return "2"
    try:
        activate_flash_attention_impl("FA3")
    except (ImportError, RuntimeError) as error:
        return f"2 (flash attention 3 is installed and cannot be used: {str(error).splitlines()[0]})"
    return "3"
