"""From JSON Lines of EvalPlus or HMMT straight to the parquet file that evaluation reads.

    python data/convert_evalplus_to_parquet.py --dataset {humaneval,mbpp,hmmt25_feb,hmmt25_nov} \\
        --input_path x.jsonl --output_path y.parquet

Columns are those of training with the extra ones of the published converter: id, kind, dataset, description, problem,
tests. All rows are of the split `test`.

Exit codes: 0 the file was written, 2 something was wrong and stderr says what.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from records import BadInput, read_records
from sources_base import Row, Task
from sources_code import humaneval, mbpp
from sources_maths import problem

from mopd.rewards import check_ground_truth

READERS: dict[str, Callable[[Row, int], Task]] = {
    "humaneval": humaneval,
    "mbpp": mbpp,
    "hmmt25_feb": problem("hmmt25_feb"),
    "hmmt25_nov": problem("hmmt25_nov"),
}
NAMES = ("task_id", "id", "problem_idx", "idx")
"""Where a row may have its name."""
TEXT = pa.large_string()
INFO = ("split", "index", "description", "problem")
SCHEMA = pa.schema(
    [
        *((name, TEXT) for name in ("id", "kind", "dataset", "description", "problem", "tests")),
        ("prompt", pa.large_list(pa.struct([("role", TEXT), ("content", TEXT)]))),
        ("data_source", TEXT),
        ("ability", TEXT),
        ("reward_model", pa.struct([("style", TEXT), ("ground_truth", TEXT)])),
        (
            "extra_info",
            pa.struct([*((name, TEXT) for name in INFO), ("elo", pa.int64()), ("achievement_prior", pa.int64())]),
        ),
    ]
)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(description="Converts JSON Lines of EvalPlus or HMMT to parquet.")
    parser.add_argument("--dataset", choices=READERS, required=True)
    parser.add_argument("--input_path", type=Path, required=True, help="JSON Lines, or one JSON array")
    parser.add_argument("--output_path", type=Path, required=True, help="the parquet file to write")
    arguments = parser.parse_args(argv)
    output: Path = arguments.output_path
    try:
        rows = convert(arguments.input_path, READERS[arguments.dataset])
        write(pa.Table.from_pylist(rows, schema=SCHEMA), output)
    except BadInput as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"cannot write {output} ({error}); choose another --output_path", file=sys.stderr)
        return 2
    print(f"{len(rows)} rows: {output}")
    return 0


def convert(path: Path, read: Callable[[Row, int], Task]) -> list[dict[str, Any]]:
    """The rows of the parquet file.

    Raises:
        BadInput: lines cannot be read; every one of them.
    """
    rows, problems = [], []
    for index, (line, value) in enumerate(read_records(path)):
        try:
            task = read(value, index)
            check_ground_truth(task.dataset, truth_of(task))
            rows.append(row(task, str(next((value[name] for name in NAMES if name in value), index)), index))
        except KeyError as error:
            problems.append(f"{path}:{line}: no field {error}; it has {', '.join(value)}")
        except (ValueError, TypeError) as error:
            problems.append(f"{path}:{line}: {error}")
    if problems:
        raise BadInput("\n".join(problems))
    return rows


def truth_of(task: Task) -> str:
    """What the verifier compares a response with."""
    return task.tests if task.kind == "code" else task.answer


def row(task: Task, name: str, index: int) -> dict[str, Any]:
    """The columns of one task."""
    return {
        "id": name,
        "kind": task.kind,
        "dataset": task.dataset,
        "description": task.question,
        "problem": task.prompt,
        "tests": task.tests,
        "prompt": [{"role": "user", "content": task.prompt}],
        "data_source": task.dataset,
        "ability": task.kind,
        "reward_model": {"style": "rule", "ground_truth": truth_of(task)},
        "extra_info": {
            "split": "test",
            "index": str(index),
            "description": task.question,
            "problem": task.prompt,
            "elo": task.elo,
            "achievement_prior": 0,
        },
    }


def write(table: pa.Table, output: Path) -> None:
    """Writes the table aside, then moves it into place.

    Raises:
        OSError: it cannot be written there.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".converting-") as aside:
        pq.write_table(
            table, Path(aside) / "rows.parquet", compression="zstd", row_group_size=32, write_page_checksum=True
        )
        os.replace(Path(aside) / "rows.parquet", output)


if __name__ == "__main__":
    sys.exit(main())
