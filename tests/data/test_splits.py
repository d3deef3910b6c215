"""The published splits, of tasks and of tests."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import records
import split_tasks
import split_tests


def write(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(records.json_array(rows), encoding="utf-8")
    return path


def read(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def tasks(source: Path, target: Path, *more: object) -> int:
    line = ["--json_path", source, "--output_dir", target, *more]
    return split_tasks.main([str(argument) for argument in line])


def halve(source: Path, target: Path) -> int:
    return split_tests.main(["--json_path", str(source), "--output_dir", str(target)])


def task(index: int, count: int, **more: Any) -> dict[str, Any]:
    inputs = [f"{index} {number}\n" for number in range(count)]
    body = {"inputs": inputs, "outputs": [text[::-1] for text in inputs], "testtype": "stdin", "time_limit": 6, **more}
    return {"idx": index, "prompt": f"P{index}", "tests": json.dumps(body)}


@pytest.mark.parametrize("domain", ["chemistry", "physics"])
def test_the_published_files_come_out_byte_for_byte(tmp_path: Path, real_rows: Path, domain: str) -> None:
    published = real_rows / "sciknoweval" / domain
    rows = [row for split in ("train", "test") for row in read(published / f"{split}.json")]
    everything = write(tmp_path / "all.json", sorted(rows, key=lambda row: row["idx"]))
    assert tasks(everything, tmp_path) == 0
    for split in ("train", "test"):
        assert (tmp_path / f"{split}.json").read_bytes() == (published / f"{split}.json").read_bytes()


@pytest.mark.parametrize(("count", "ratio", "seed"), [(2, 0.1, 42), (11, 0.1, 42), (57, 0.25, 7), (10, 0.9, 0)])
def test_a_permutation_is_cut(tmp_path: Path, count: int, ratio: float, seed: int) -> None:
    source = write(tmp_path / "all.json", [{"idx": index, "prompt": f"ä/{index}"} for index in range(count)])
    assert tasks(source, tmp_path / "out", "--test_ratio", ratio, "--seed", seed) == 0
    order = np.random.default_rng(seed).permutation(count).tolist()
    size = math.ceil(ratio * count)
    for split, wanted in (("test", order[:size]), ("train", order[size:])):
        rows = read(tmp_path / "out" / f"{split}.json")
        assert [row["idx"] for row in rows] == wanted
        assert all(row["prompt"] == f"ä/{row['idx']}" for row in rows)


def test_json_lines_are_split_like_an_array(tmp_path: Path) -> None:
    rows = [{"idx": index, "prompt": "p"} for index in range(30)]
    lines = tmp_path / "lines.json"
    lines.write_text("".join(map(records.json_line, rows)))
    assert tasks(write(tmp_path / "all.json", rows), tmp_path / "a") == tasks(lines, tmp_path / "b") == 0
    for name in ("train.json", "test.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_half_of_the_tests_go_to_train_and_all_to_test(tmp_path: Path) -> None:
    counts = [1, 2, 3, 9, 40]
    rows = [task(index, count, fn_name=None) for index, count in enumerate(counts)]
    assert halve(write(tmp_path / "all.json", rows), tmp_path) == 0
    assert read(tmp_path / "test.json") == rows
    train = read(tmp_path / "train.json")
    np.random.seed(0)  # the published loop draws from numpy's global generator, task after task
    for row, one, count in zip(rows, train, counts, strict=True):
        kept = sorted(np.random.choice(count, max(1, int(0.5 * count)), replace=False))
        whole = json.loads(row["tests"])
        expected = {**whole, **{name: [whole[name][place] for place in kept] for name in ("inputs", "outputs")}}
        assert json.loads(one["tests"]) == expected
        assert {**one, "tests": None} == {**row, "tests": None}
    assert [len(json.loads(one["tests"])["inputs"]) for one in train] == [1, 1, 1, 4, 20]


def test_tasks_whose_tests_cannot_be_split_are_all_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad: list[Any] = [
        task(0, 3),
        {"idx": 1, "tests": "-"},
        {"idx": 2},
        task(3, 0),
        task(4, 2, outputs=["x"]),
        task(5, 2, inputs="ab"),
        {"idx": 6, "tests": "[1]"},
    ]
    source = write(tmp_path / "all.json", bad)
    assert halve(source, tmp_path / "out") == 2
    told = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[0] for line in told] == [f"{source}:{number}" for number in (3, 4, 5, 6, 7, 8)]
    assert not (tmp_path / "out").exists()


def test_bad_arguments_and_files_are_refused_in_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "all.json", [{"idx": 1}, {"idx": 2}])
    for more, words in [
        (["--test_ratio", "0"], "between 0 and 1"),
        (["--test_ratio", "nan"], "between 0 and 1"),
        (["--test_ratio", "0.9"], "leave nothing for train"),
        (["--seed", "-1"], "must be 0 or more"),
    ]:
        assert tasks(source, tmp_path / "out", *more) == 2
        assert words in capsys.readouterr().err
    assert tasks(tmp_path / "none.json", tmp_path / "out") == 2
    assert "No such file" in capsys.readouterr().err
    source.write_text('{"idx": 1}\n[2]\n{"idx"\n')
    assert tasks(source, tmp_path / "out") == 2
    assert [line.split(": ")[0] for line in capsys.readouterr().err.splitlines()] == [f"{source}:2", f"{source}:3"]
    assert not (tmp_path / "out").exists()


def test_the_source_is_never_replaced_by_its_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "train.json", [task(index, 4) for index in range(20)])
    before = source.read_bytes()
    assert tasks(source, tmp_path) == halve(source, tmp_path) == 2
    assert "would be replaced" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["train.json"]
    assert source.read_bytes() == before


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "all.json", [task(index, 4) for index in range(20)])
    assert tasks(source, source) == halve(source, source) == 2
    assert "--output_dir" in capsys.readouterr().err
