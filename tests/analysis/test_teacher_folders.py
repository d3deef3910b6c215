"""Folders that hold no usable model are told, with what to name instead."""

import shutil

import pytest
import torch
from json_lines import BadInput
from teacher_model import TeacherModel, folder_of, load_tokenizer

from tests.analysis.chain_rollouts import write


@pytest.fixture
def model(root, tmp_path):
    """A copy of the embedded model."""
    return shutil.copytree(root / "datasets/chain/model", tmp_path / "model")


@pytest.mark.parametrize("part", [0.0, 0.5])
def test_damaged_weights_are_told(model, part):
    weights = model / "model.safetensors"
    content = weights.read_bytes()
    for damaged in (content[: int(part * len(content))], b"no weights at all"):
        weights.write_bytes(damaged)
        with pytest.raises(BadInput, match=f"--model {model}: no model could be loaded"):
            TeacherModel(str(model), torch.device("cpu"), torch.float32)


def test_a_folder_that_is_not_there_is_told_as_such(model):
    assert load_tokenizer(str(model)).chat_template
    with pytest.raises(BadInput, match="gone: there is no such folder"):
        load_tokenizer(f"{model}/gone")


def test_a_run_is_told_with_its_newest_checkpoint(model, tmp_path):
    run = tmp_path / "run"
    write(run / "metrics.jsonl", [{"step": 1}])
    with pytest.raises(BadInput, match="is a whole run, which has no checkpoints"):
        folder_of(str(run))
    for step in (2, 10):
        (run / f"checkpoints/step_{step}/hf").mkdir(parents=True)
    with pytest.raises(
        BadInput, match=f"is a whole run; name a checkpoint of it, such as {run}/checkpoints/step_10/hf"
    ):
        folder_of(str(run))
    assert folder_of(str(run / "checkpoints/step_2")) == str(run / "checkpoints/step_2/hf")
    assert folder_of(str(model)) == str(model)
