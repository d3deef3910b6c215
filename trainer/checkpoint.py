"""Checkpoints on disk: written aside, then renamed, so that one that is there is whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoTokenizer


def save_hf(model: Any, weights: Mapping[str, Tensor], source: str, folder: str) -> None:
    """Writes `folder/hf`: weights, configuration and tokenizer, as transformers and vLLM load them.

    `model` gives the configuration, `source` is the folder of the initial model with the tokenizer.
    An older `folder` is replaced.
    """
    final = Path(folder)
    aside = final.with_name(f".{final.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    inner = aside / "hf"
    try:
        inner.mkdir(parents=True)
        model.config.save_pretrained(inner)
        if model.can_generate():
            model.generation_config.save_pretrained(inner)
        save_file(dict(weights), inner / "model.safetensors", metadata={"format": "pt"})
        # The library makes a file for its owner alone; colleagues read checkpoints.
        (inner / "model.safetensors").chmod((inner / "config.json").stat().st_mode)
        AutoTokenizer.from_pretrained(source).save_pretrained(inner)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    if final.exists():
        shutil.rmtree(final)
    os.replace(aside, final)
