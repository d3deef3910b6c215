"""Checkpoints are read without running what somebody may have put into them.

torch wraps what goes wrong into an error that is no Exception.
"""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from trainer.workers.reading import Planner, Reader


class Hostile:
    """Something that makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


def written(folder: Path, rate: object) -> Path:
    """A checkpoint of a tensor, a number format of every width, and a value that is no tensor."""
    tensors = {str(dtype): torch.ones(3, dtype=dtype) for dtype in (torch.float32, torch.bfloat16, torch.uint8)}
    save({"model": tensors, "settings": {"rate": rate}}, checkpoint_id=folder, no_dist=True)
    return folder


def read(folder: Path, rate: object) -> Any:
    state = {"model": {"torch.float32": torch.zeros(3)}, "settings": {"rate": rate}}
    load(state, storage_reader=Reader(folder), planner=Planner(), no_dist=True)
    return state


def test_what_was_written_is_read(tmp_path: Path) -> None:
    state = read(written(tmp_path / "state", (0.9, 0.999, None, "text")), None)
    assert state["settings"]["rate"] == (0.9, 0.999, None, "text")
    assert torch.equal(state["model"]["torch.float32"], torch.ones(3))


def test_an_index_that_asks_for_more_than_an_index_needs_is_refused(tmp_path: Path) -> None:
    folder = written(tmp_path / "state", 0.5)
    (folder / ".metadata").write_bytes(pickle.dumps(Hostile(tmp_path / "made")))
    with pytest.raises(BaseException, match=r"asks for posix\.mkdir"):
        read(folder, 0.0)
    assert not (tmp_path / "made").exists()


def test_a_value_that_is_no_plain_data_is_refused(tmp_path: Path) -> None:
    folder = written(tmp_path / "state", Hostile(tmp_path / "made"))
    with pytest.raises(BaseException, match=r"weights_only|Unsupported"):
        read(folder, 0.0)
    assert not (tmp_path / "made").exists()
    file = io.BytesIO(pickle.dumps(Hostile(tmp_path / "made")))
    pickle.load(file)  # what a reader without care would have done
    assert (tmp_path / "made").exists()
