"""From records in the published JSON form to the parquet files that training reads.

    python data/preprocess.py --data_source DIR [--output DIR2] [--splits train test] [--strict] [--drop]

reads `train.json` and `test.json` in DIR (JSON Lines, or one JSON array each) and writes `train.parquet` and
`test.parquet` beside them or in DIR2. Every malformed record of both files is reported with its line before
anything is written; repeated tasks are reported too, and are errors with --strict. With --drop, records that are
well-formed but whose ground truth the verifier cannot use are told and left out. Fields of a record that the
published columns have no place for are left out.

Exit codes: 0 the files were written, 2 something was wrong and stderr says what.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from records import MISSING, BadInput, Record, brief, is_given, read_values, shape_problem
from repeats import repeats

from mopd.rewards import check_ground_truth

SPLITS = ("train", "test")
ROW_GROUP = 32
LARGEST = 2**53
"""Up to here, integers and floats hold the same whole numbers."""
CODE = "code"
"""The kind of tasks whose ground truth is their tests."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(description="Converts train.json and test.json to parquet.")
    parser.add_argument("--data_source", type=Path, required=True, help="folder with train.json and test.json")
    parser.add_argument("--output", type=Path, help="folder for the parquet files; default: the same")
    parser.add_argument(
        "--splits",
        nargs="+",
        choices=SPLITS,
        default=list(SPLITS),
        help="`test` alone where nothing is to be trained on",
    )
    parser.add_argument("--missing", action="store_true", help="leaves parquet files that are there as they are")
    parser.add_argument("--drop", action="store_true", help="leaves out records with unusable ground truths")
    parser.add_argument("--strict", action="store_true", help="repeated tasks are errors, not warnings")
    arguments = parser.parse_args(argv)
    output: Path = arguments.output or arguments.data_source
    there = [split for split in SPLITS if arguments.missing and (output / f"{split}.parquet").exists()]
    wanted = [split for split in SPLITS if split in arguments.splits and split not in there]
    try:
        records, dropped = read(arguments.data_source, wanted, arguments.drop)
        repeated = repeats(records)
        if arguments.strict and repeated:
            raise BadInput("\n".join(repeated))
        tables = tabulate(records)
        write_all(tables, output)
    except BadInput as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"cannot write to {output} ({error}); choose another folder with --output", file=sys.stderr)
        return 2
    for line in [*dropped, *repeated]:
        print(f"warning: {line}", file=sys.stderr)
    for split, table in tables.items():
        print(f"{table.num_rows} rows: {output / f'{split}.parquet'}")
    return 0


def read(folder: Path, splits: Sequence[str], drop: bool = False) -> tuple[dict[str, list[Record]], list[str]]:
    """The records of each of `splits` in `folder`, and a sentence for each that was left out.

    Raises:
        BadInput: a file is missing, unreadable or empty, or a record is malformed; or, without `drop`, unusable.
    """
    problems: list[str] = []
    left_out: list[str] = []
    records: dict[str, list[Record]] = {}
    for split in splits:
        path = folder / f"{split}.json"
        try:
            values = read_values(path)
        except BadInput as error:
            problems.append(f"{error}{advice(path)}")
            continue
        records[split] = []
        for line, value in values:
            malformed, unusable = complaints(value), truth_faults(value)
            told = left_out if drop and unusable and not malformed else problems
            told.extend(f"{path}:{line}: {fault}" for fault in [*malformed, *unusable])
            records[split] += [] if malformed or unusable else [value]
    problems = problems or [f"{folder}: no {split} record can be used" for split, kept in records.items() if not kept]
    if problems:
        raise BadInput("\n".join(problems))
    return records, [f"left out: {fault}" for fault in left_out]


def advice(path: Path) -> str:
    """What to do where `path` is not there."""
    if path.exists():
        return ""
    others = sorted(other for other in path.parent.glob("*.json") if other.stem not in SPLITS)
    if len(others) == 1 and not any((path.parent / f"{split}.json").exists() for split in SPLITS):
        return (
            f"; split the one file first: python data/split_tasks.py --json_path {others[0]} --output_dir {path.parent}"
        )
    alone = (
        "; with --splits test it is not needed" if path.stem == "train" and (path.parent / "test.json").exists() else ""
    )
    return f"; --data_source wants a folder with train.json and test.json{alone}"


def tabulate(records: Mapping[str, Sequence[Record]]) -> dict[str, pa.Table]:
    """The table of each split of well-formed records."""
    whole = all(not isinstance(record.get("elo"), float) for rows in records.values() for record in rows)
    columns = schema(pa.int64() if whole else pa.float64())
    return {
        split: pa.Table.from_pylist([row(record, split) for record in rows], schema=columns)
        for split, rows in records.items()
    }


def _is_text(value: Any) -> bool:
    """Text that can be stored and says something."""
    return isinstance(value, str) and _is_optional_text(value) and bool(value.strip())


def _is_optional_text(value: Any) -> bool:
    """Text that can be stored, or nothing; JSON can spell half a character, UTF-8 cannot."""
    return value is None or (isinstance(value, str) and not re.search("[\ud800-\udfff]", value))


def _is_number(value: Any) -> bool:
    """A finite number that both integers and floats can hold."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST


def _is_elo(value: Any) -> bool:
    """A number, or what stands for a missing one."""
    return value is None or value == MISSING or _is_number(value)


def is_truth(value: Any) -> bool:
    """Text that can be stored and is not the mark of a missing one."""
    return _is_text(value) and is_given(value)


FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "idx": (lambda value: _is_text(value) or type(value) is int, "the number or name of the row"),
    "prompt": (_is_text, "the question, as text that is not blank"),
    "answer": (is_truth, "the ground truth, as text that is not blank"),
    "dataset": (_is_text, "the data source that names the verifier, such as sciknoweval"),
    "kind": (_is_text, "the kind of the task, such as mcq"),
    "description": (_is_optional_text, "text, or null"),
    "system": (_is_optional_text, "the system message as text, or null"),
    "elo": (_is_elo, "a number, or null"),
    "embedding": (
        lambda value: value is None or (isinstance(value, list) and all(map(_is_number, value))),
        "a list of numbers, or null",
    ),
}
"""The fields of a record that are read: what is accepted, and in words."""


def complaints(value: Any) -> list[str]:
    """All that is wrong with one record: the field, the value got and what is wanted instead."""
    if problem := shape_problem(value):
        return [problem]
    truth = truth_field(value)
    fields = {truth if name == "answer" else name: rule for name, rule in FIELDS.items()}
    wrong = {name: wanted for name, (accepts, wanted) in fields.items() if not accepts(value.get(name))}
    return [
        f"`{name}` is {brief(value[name]) if name in value else 'missing'}; wanted {wanted}"
        for name, wanted in wrong.items()
    ]


def truth_faults(value: Any) -> list[str]:
    """Why the verifier of a record cannot use its ground truth, as far as the record names both."""
    truth = truth_field(value) if isinstance(value, dict) else ""
    if not truth or not is_truth(value.get(truth)) or not _is_text(value.get("dataset")):
        return []
    try:
        check_ground_truth(value["dataset"], value[truth])
    except ValueError as error:
        return [f"`{truth}` or `dataset` cannot be used: {error}"]
    return []


def truth_field(record: Record) -> str:
    """Which field holds the ground truth: `tests` for programming tasks and where no answer is given."""
    has_tests, has_answer = is_given(record.get("tests")), is_given(record.get("answer"))
    by_tests = has_tests or not has_answer if record.get("kind") == CODE else has_tests and not has_answer
    return "tests" if by_tests else "answer"


def spoken(text: str, dataset: str) -> str:
    """A text of the record as the student reads it.

    Published LiveCodeBench rows show the method's signature without its class, so `self` is taken out of it. A text
    that shows the class keeps it: a method without `self` could not be called.
    """
    return text.replace("(self, ", "(") if dataset == "livecodebench" and "class Solution" not in text else text


def row(record: Record, split: str) -> dict[str, Any]:
    """The published columns of one well-formed record; texts are kept byte for byte."""
    system, description, elo = (record.get(name) for name in ("system", "description", "elo"))
    problem = spoken(record["prompt"], record["dataset"])
    messages = [{"role": "system", "content": system}] if is_given(system) else []
    return {
        "prompt": [*messages, {"role": "user", "content": problem}],
        "data_source": record["dataset"],
        "ability": record["kind"],
        "reward_model": {"style": record["kind"], "ground_truth": record[truth_field(record)]},
        "extra_info": {
            "split": split,
            "index": str(record["idx"]),
            "description": description and spoken(description, record["dataset"]),
            "problem": problem,
            "elo": None if elo == MISSING else elo,
            "achievement_prior": 0,
        },
        "system": system,
        "embedding": record.get("embedding"),
    }


def schema(elo: pa.DataType) -> pa.Schema:
    """The published columns; `elo` has the type it has in the records."""
    text = pa.large_string()
    info = [(name, text) for name in ("split", "index", "description", "problem")]
    return pa.schema(
        [
            ("prompt", pa.large_list(pa.struct([("role", text), ("content", text)]))),
            ("data_source", text),
            ("ability", text),
            ("reward_model", pa.struct([("style", text), ("ground_truth", text)])),
            ("extra_info", pa.struct([*info, ("elo", elo), ("achievement_prior", pa.int64())])),
            ("system", text),
            ("embedding", pa.large_list(pa.float64())),
        ]
    )


def write_all(tables: Mapping[str, pa.Table], output: Path) -> None:
    """Writes every table aside, then moves them all into place.

    Raises:
        OSError: `output` cannot be written to.
    """
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output, prefix=".preprocess-") as aside:
        for split, table in tables.items():
            path = Path(aside) / f"{split}.parquet"
            # With checksums damage inside values is seen when they are read.
            pq.write_table(table, path, compression="zstd", row_group_size=ROW_GROUP, write_page_checksum=True)
        for split in tables:
            os.replace(Path(aside) / f"{split}.parquet", output / f"{split}.parquet")


if __name__ == "__main__":
    sys.exit(main())
