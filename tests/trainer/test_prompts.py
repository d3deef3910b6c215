"""Prompts: what is refused and how it is told, filtering, and the order of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mopd.types import Prompt
from trainer.errors import BadInputError
from trainer.prompts import COLUMNS, BadRowError, Renderer, batch_at, load, read_rows, read_tasks, to_prompt


class Words:
    """A tokenizer of words."""

    def apply_chat_template(self, conversation: list[dict[str, str]], **arguments: Any) -> str:
        return " ".join(f"{message['role']} {message['content']}" for message in conversation) + " assistant"

    def encode(self, text: str, **arguments: Any) -> list[int]:
        return [hash(word) % 1000 for word in text.split()]

    def decode(self, token_ids: Any, **arguments: Any) -> str:
        return " ".join(map(str, token_ids))


RENDERER = Renderer(Words(), {})


TRUTH = '{"steps": 1, "value": 3}'


def row(content: str = "calc 1 + 2", truth: str | None = TRUTH, source: str = "chain") -> dict[str, Any]:
    return {
        "prompt": [{"role": "user", "content": content}],
        "data_source": source,
        "reward_model": {"style": "rule", "ground_truth": truth},
        "extra_info": {"index": "7", "split": "train"},
    }


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def refused(path: str, **options: Any) -> str:
    with pytest.raises(BadInputError) as error:
        load(path, "data.train_files", RENDERER, **{"max_prompt_length": 100, "drop_overlong": True} | options)
    return str(error.value)


def test_a_row_becomes_a_prompt(tmp_path: Path) -> None:
    found = load(written(tmp_path / "a.parquet", [row()]), "k", RENDERER, max_prompt_length=100, drop_overlong=True)
    [prompt] = found.prompts
    assert (prompt.prompt_id, prompt.ground_truth, prompt.data_source, found.dropped) == ("7", TRUTH, "chain", 0)
    assert len(found.prompt_ids[0]) == 6


def test_prompts_over_the_limit_are_counted_and_left_out(tmp_path: Path) -> None:
    path = written(tmp_path / "a.parquet", [row(), row("word " * 50)])
    found = load(path, "k", RENDERER, max_prompt_length=20, drop_overlong=True)
    assert (len(found), found.dropped) == (1, 1)
    assert "1 of 2 prompts exceed" in refused(path, max_prompt_length=20, drop_overlong=False)
    assert "none of 2 prompts fits" in refused(path, max_prompt_length=2)


def test_a_missing_file_is_told_with_the_command_that_makes_it(tmp_path: Path) -> None:
    assert f"python data/preprocess.py --data_source {tmp_path}" in refused(str(tmp_path / "train.parquet"))


def test_a_file_that_is_no_parquet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_text("not parquet")
    assert "not a readable parquet file" in refused(str(tmp_path / "a.parquet"))


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    rows = [{"prompt": row()["prompt"], "data_source": "chain"}]
    assert "no column reward_model" in refused(written(tmp_path / "a.parquet", rows))


@pytest.mark.parametrize("fault", [row(truth=None), row(truth=" "), row(truth="3"), row(content=""), row(source="")])
def test_a_row_that_is_no_task_is_named_by_its_number(tmp_path: Path, fault: dict[str, Any]) -> None:
    assert "row 1:" in refused(written(tmp_path / "a.parquet", [row(), fault]))


def test_a_row_index_of_zero_is_an_index(tmp_path: Path) -> None:
    rows = [row(), row(), row()]
    rows[1]["extra_info"]["index"], rows[2]["extra_info"]["index"] = "0", ""
    found = load(written(tmp_path / "a.parquet", rows), "k", RENDERER, max_prompt_length=100, drop_overlong=True)
    assert [prompt.prompt_id for prompt in found.prompts] == ["7", "0", "2"]


def test_a_prompt_that_is_text_is_refused(tmp_path: Path) -> None:
    assert "must be messages" in refused(written(tmp_path / "a.parquet", [{**row(), "prompt": "calc 1 + 2"}]))
    assert "must hold a ground_truth" in refused(written(tmp_path / "b.parquet", [{**row(), "reward_model": "3"}]))


def test_an_epoch_meets_every_row_once_and_the_next_in_another_order() -> None:
    options: dict[str, Any] = {"rows": 12, "batch_size": 4, "shuffle": True, "seed": 5}
    epochs = [[batch_at(step, **options) for step in steps] for steps in ((1, 2, 3), (4, 5, 6))]
    assert all(sorted(np.concatenate(epoch).tolist()) == list(range(12)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert batch_at(5, **options) == epochs[1][1]


def test_without_shuffling_rows_come_in_file_order() -> None:
    assert batch_at(2, rows=5, batch_size=2, shuffle=False, seed=0) == [2, 3]
    assert batch_at(3, rows=5, batch_size=2, shuffle=False, seed=0) == [0, 1]


def test_columns_that_nobody_reads_are_left_where_they_are(tmp_path: Path) -> None:
    path = written(tmp_path / "a.parquet", [{**row(), "embedding": [0.5] * 8}])
    assert [list(found) for found in read_rows(path, "data.train_files")] == [[*COLUMNS, "extra_info"]]


def test_ground_truths_that_a_users_function_reads_are_not_checked(tmp_path: Path) -> None:
    row = {
        "prompt": [{"role": "user", "content": "q"}],
        "data_source": "sciknoweval",
        "reward_model": {"ground_truth": "not a letter"},
    }
    assert isinstance(to_prompt(0, row), BadRowError)
    assert isinstance(to_prompt(0, row, check_truth=False), Prompt)
    path = written(tmp_path / "a.parquet", [row])
    assert len(read_tasks(path, "data.train_files")[1]) == 1
    prompts, faults = read_tasks(path, "data.train_files", check_truth=False)
    assert ([prompt.ground_truth for prompt in prompts], faults) == (["not a letter"], [])
