"""Damaged and unusual data: refused by name before anything starts, or carried through unharmed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from transformers import AutoTokenizer

from mopd.types import Outcome
from tests.mopd.groups import group_of
from trainer.config.compose import PROJECT
from trainer.display import Screen
from trainer.errors import BAD_INPUT, BadInputError
from trainer.main import main
from trainer.prompts import Renderer, batch_at, load
from trainer.tracking import Folders, Journal

CHAIN = PROJECT / "datasets" / "chain"
KEY = "data.train_files"


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer(AutoTokenizer.from_pretrained(CHAIN / "model"), {})


def rows_of(path: Path, renderer: Renderer) -> list[Any] | str:
    """The prompts of a file, or why it is refused."""
    try:
        return list(load(str(path), KEY, renderer, max_prompt_length=512, drop_overlong=False).prompts)
    except BadInputError as error:
        return str(error)


# ------------------------------------------------------------------ parquet


@pytest.mark.parametrize("kept", [0, 3, 100, -9, -500, -1])
def test_a_file_that_was_cut_is_refused_by_its_name(tmp_path: Path, renderer: Renderer, kept: int) -> None:
    path = tmp_path / "train.parquet"
    path.write_bytes((CHAIN / "test.parquet").read_bytes()[:kept])
    said = rows_of(path, renderer)
    assert isinstance(said, str)
    assert f"{KEY}={path}: not a readable parquet file" in said


def test_a_damaged_file_is_refused_by_its_name_or_gives_tasks(tmp_path: Path, renderer: Renderer) -> None:
    """Bytes changed anywhere, of whole kilobytes or one: never another error, never a row that is no task."""
    table = pq.read_table(CHAIN / "train.parquet").slice(0, 40)
    path, random = tmp_path / "train.parquet", np.random.default_rng(5)
    pq.write_table(table, path, write_page_checksum=True)
    whole, expected = path.read_bytes(), rows_of(path, renderer)
    refused = 0
    for number in range(120):
        damaged, size = bytearray(whole), (1, 16, 1024)[number % 3]
        start = int(random.integers(0, len(whole) - size))
        damaged[start : start + size] = random.integers(0, 256, size, dtype=np.uint8).tobytes()
        path.write_bytes(damaged)
        found = rows_of(path, renderer)
        if isinstance(found, str):
            refused += 1
            assert f"{KEY}={path}" in found
        else:
            # What the file's own sums do not cover, such as statistics, may change without harm.
            assert found == expected
    assert refused > 60


def test_data_smaller_than_a_batch_is_refused_and_a_rest_waits_for_another_epoch() -> None:
    batches = [batch_at(step, rows=7, batch_size=3, shuffle=True, seed=1) for step in range(1, 41)]
    assert all(len(set(batch)) == 3 for batch in batches)
    for first, second in zip(batches[::2], batches[1::2], strict=True):
        assert not set(first) & set(second)
    assert {row for batch in batches for row in batch} == set(range(7))


# ------------------------------------------------------------------ models


def test_a_teacher_of_another_vocabulary_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("trainer.session.start_workers", lambda *_: pytest.fail("workers were started"))
    shutil.copytree(CHAIN / "model", tmp_path / "teacher")
    file = tmp_path / "teacher" / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    words = tokenizer["model"]["vocab"]
    one, other = list(words)[300:302]
    words[one], words[other] = words[other], words[one]
    file.write_text(json.dumps(tokenizer))
    monkeypatch.setenv("TEACHER_MODEL_PATH", str(tmp_path / "teacher"))
    assert main(["--config-name", "ts_sdpo"]) == BAD_INPUT
    said = capsys.readouterr().err
    assert f"actor_rollout_ref.ref.model.path={tmp_path}/teacher: " in said
    assert "nothing was started" in said


# ------------------------------------------------------------------ text


def journal(folder: Path, renderer: Renderer) -> Journal:
    folder.mkdir(exist_ok=True)
    return Journal(Folders(folder, folder, folder, folder), renderer, Screen(Console(quiet=True)), 1)


@given(text=st.text(st.characters(), max_size=40), feedback=st.text(st.characters(), max_size=40))
def test_any_text_is_kept_in_lines_of_json(
    tmp_path_factory: pytest.TempPathFactory, renderer: Renderer, text: str, feedback: str
) -> None:
    """NUL, line ends of all kinds and halves of surrogates, which a user's function may give as feedback."""
    folder = tmp_path_factory.getbasetemp() / "journal"
    group = group_of([Outcome(0.0, False, "wrong", feedback)], [text], tokens=[1])
    journal(folder, renderer).validation(0, [group])
    [line] = (folder / "0.jsonl").read_bytes().rstrip(b"\n").split(b"\n")
    record = json.loads(line)
    assert (record["output"], record["feedback"]) == (text, feedback)


def test_lines_are_utf_8_whatever_the_locale(tmp_path: Path) -> None:
    file = tmp_path / "lines.jsonl"
    program = (
        "import sys, locale, pathlib; from trainer.tracking import open_lines, write_line\n"
        "assert locale.getpreferredencoding().lower() not in ('utf-8', 'utf8'), locale.getpreferredencoding()\n"
        "with open_lines(pathlib.Path(sys.argv[1]), 'a') as file: write_line(file, {'output': 'gr\\u00f6\\u00dfer'})"
    )
    environment = {**os.environ, "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "LC_ALL": "C"}
    subprocess.run([sys.executable, "-c", program, str(file)], env=environment, cwd=PROJECT, check=True, timeout=120)
    assert json.loads(file.read_text(encoding="utf-8")) == {"output": "größer"}
