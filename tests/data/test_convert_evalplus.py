"""EvalPlus and HMMT straight to parquet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import convert_evalplus_to_parquet as convert
import pyarrow.parquet as pq
import pytest

from mopd.rewards import verify
from tests.data.source_rows import HUMANEVAL, MBPP

SOLVED = {
    "humaneval": (HUMANEVAL, "humanevalplus", "```python\ndef root(n):\n    return math.sqrt(n)\n```"),
    "mbpp": (MBPP, "mbppplus", "```python\ndef double(n):\n    return n * 2\n```"),
    "hmmt25_feb": ({"problem_idx": 3, "problem": "P", "answer": 103}, "hmmt25_feb", "\\boxed{103}"),
    "hmmt25_nov": ({"problem_idx": 3, "problem": "P", "answer": "\\frac{1}{2}"}, "hmmt25_nov", "\\boxed{0.5}"),
}


def run(dataset: str, source: Path, target: Path) -> int:
    return convert.main(["--dataset", dataset, "--input_path", str(source), "--output_path", str(target)])


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("dataset", SOLVED)
def test_a_row_has_the_published_columns_and_can_be_solved(tmp_path: Path, dataset: str) -> None:
    row, source, response = SOLVED[dataset]
    target = tmp_path / "deep" / "y.parquet"
    assert run(dataset, lines(tmp_path / "x.jsonl", [row, row]), target) == 0
    first, second = pq.read_table(target).to_pylist()
    assert {"id", "kind", "dataset", "description", "problem", "tests"} < set(first)
    assert (first["data_source"], first["reward_model"]["style"]) == (source, "rule")
    assert first["prompt"] == [{"role": "user", "content": first["problem"]}]
    assert [one["extra_info"]["index"] for one in (first, second)] == ["0", "1"]
    assert first["extra_info"]["split"] == "test"
    truth = first["reward_model"]["ground_truth"]
    assert verify(source, response, truth, first["extra_info"]).success is True
    wrong = response.replace("2", "3").replace("103", "104").replace("sqrt", "exp").replace("0.5", "0.6")
    assert verify(source, wrong, truth, first["extra_info"]).success is False


def test_faulty_lines_are_all_told_and_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inputs_alone = {name: value for name, value in HUMANEVAL.items() if name != "test"} | {"base_input": [[4]]}
    rows = [HUMANEVAL, inputs_alone, {"prompt": "p"}, {**HUMANEVAL, "entry_point": "other"}]
    source = lines(tmp_path / "x.jsonl", rows)
    assert run("humaneval", source, tmp_path / "y.parquet") == 2
    told = capsys.readouterr().err.splitlines()
    for line, (number, words) in zip(
        told, [(2, "cannot be made from inputs"), (3, "no field 'entry_point'"), (4, "does not define")], strict=True
    ):
        assert line.startswith(f"{source}:{number}: ")
        assert words in line
    assert [path.name for path in tmp_path.iterdir()] == ["x.jsonl"]
    assert run("mbpp", tmp_path / "none.jsonl", tmp_path / "y.parquet") == 2
    assert run("humaneval", lines(source, [HUMANEVAL]), source / "y.parquet") == 2
    assert "--output_path" in capsys.readouterr().err
