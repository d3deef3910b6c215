"""Tasks that come more than once are told, with counts and examples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import preprocess
import pyarrow.parquet as pq
import pytest


def record(index: int, **changes: Any) -> dict[str, Any]:
    made = {
        "idx": index,
        "kind": "mcq",
        "dataset": "sciknoweval",
        "answer": "B",
        "prompt": f"Question {index}?\n\nA: 1\nB: 2\n",
    }
    return {**made, "description": f"Question {index}?", **changes}


def folder(where: Path, train: list[Any], test: list[Any]) -> Path:
    for split, records in (("train", train), ("test", test)):
        (where / f"{split}.json").write_text("".join(json.dumps(one) + "\n" for one in records))
    return where


def run(*arguments: object) -> int:
    return preprocess.main([str(argument) for argument in arguments])


def test_repeated_tasks_are_told_and_are_errors_when_strict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = [record(1), record(2), record(2, prompt="Question  1?\n\nA: 1\nB: 2\n"), record(4)]
    test = [record(4), record(9, description="Question 2?"), record(10)]
    source = folder(tmp_path, train, test)
    assert run("--data_source", source, "--strict") == 2
    told = capsys.readouterr().err.splitlines()
    assert [line.split(", such as ")[0] for line in told] == [
        "1 of 4 train rows repeat the prompt of an earlier one",
        "1 of 4 train rows repeat the `idx` of an earlier one",
        "1 of 3 test rows have the prompt of a train row",
        "1 of 3 test rows have the question text of a train row, with another prompt",
    ]
    assert "idx 9 " in told[3]
    assert sorted(path.name for path in source.iterdir()) == ["test.json", "train.json"]
    assert run("--data_source", source) == 0
    assert capsys.readouterr().err.splitlines() == [f"warning: {line}" for line in told]
    assert pq.read_metadata(source / "train.parquet").num_rows == 4


def test_tasks_that_differ_are_not_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--data_source", folder(tmp_path, [record(1), record(2)], [record(3)]), "--strict") == 0
    assert capsys.readouterr().err == ""


def test_the_questions_that_real_splits_share_are_counted(
    tmp_path: Path, real_rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = real_rows / "sciknoweval" / "physics"
    assert run("--data_source", source, "--output", tmp_path) == 0
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith("warning: 7 of 80 test rows have the question text of a train row, with another prompt")
