"""From records in the published JSON form to the parquet files that training reads.

    python data/preprocess.py --data_source DIR [--output DIR2]

reads `train.json` and `test.json` in DIR (JSON Lines, or one JSON array each) and writes `train.parquet` and
`test.parquet` beside them or in DIR2. Every malformed record of both files is reported with its line before
anything is written. Fields of a record that the published columns have no place for are left out.

Exit codes: 0 both files were written, 2 something was wrong and stderr says what.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
from bisect import bisect
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mopd.rewards import check_ground_truth

SPLITS = ("train", "test")
ROW_GROUP = 32
MISSING = "-"
"""What the published loader writes for a system message that a record lacks."""
LARGEST = 2**53
"""Up to here, integers and floats hold the same whole numbers."""
SPACE = re.compile(r"[ \t\r\n]*")
"""What JSON calls white space."""

Record = Mapping[str, Any]


class BadInput(Exception):
    """All that is wrong with the input, one line each."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(description="Converts train.json and test.json to parquet.")
    parser.add_argument("--data_source", type=Path, required=True, help="folder with train.json and test.json")
    parser.add_argument("--output", type=Path, help="folder for the parquet files; default: the same")
    parser.add_argument("--missing", action="store_true", help="leaves parquet files that are there as they are")
    arguments = parser.parse_args(argv)
    output: Path = arguments.output or arguments.data_source
    try:
        there = [split for split in SPLITS if arguments.missing and (output / f"{split}.parquet").exists()]
        tables = convert(arguments.data_source, [split for split in SPLITS if split not in there])
        write_all(tables, output)
    except BadInput as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"cannot write to {output} ({error}); choose another folder with --output", file=sys.stderr)
        return 2
    for split, table in tables.items():
        print(f"{table.num_rows} rows: {output / f'{split}.parquet'}")
    return 0


def convert(folder: Path, splits: Sequence[str] = SPLITS) -> dict[str, pa.Table]:
    """The table of each of `splits` of the records in `folder`.

    Raises:
        BadInput: a file is missing, unreadable or empty, or a record is malformed.
    """
    problems: list[str] = []
    records: dict[str, list[Record]] = {}
    for split in splits:
        path = folder / f"{split}.json"
        values = _read(path, problems)
        problems += [f"{path}:{line}: {problem}" for line, value in values for problem in complaints(value)]
        records[split] = [value for _, value in values]
    if problems:
        raise BadInput("\n".join(problems))
    whole = all(isinstance(record.get("elo") or 0, int) for rows in records.values() for record in rows)
    columns = schema(pa.int64() if whole else pa.float64())
    return {
        split: pa.Table.from_pylist([row(record, split) for record in rows], schema=columns)
        for split, rows in records.items()
    }


def _read(path: Path, problems: list[str]) -> list[tuple[int, Any]]:
    """The values in a file by line; what is wrong with the file itself goes to `problems`."""
    try:
        values = list(parse(path.read_text(encoding="utf-8-sig")))
    except OSError as error:
        wanted = "--data_source wants a folder with train.json and test.json"
        problems.append(f"{path}: cannot be read ({error.strerror}); {wanted}")
        return []
    except UnicodeDecodeError as error:
        problems.append(f"{path}: is not UTF-8 (byte {error.start}); save it as UTF-8")
        return []
    if not values:
        problems.append(f"{path}: holds no record; wanted JSON Lines or one JSON array of objects")
    return values


def parse(text: str) -> Iterator[tuple[int, Any]]:
    """The values of JSON Lines or of one JSON array, each after the number of its line.

    What cannot be read comes as a ValueError in the place of the value. It ends an array, but no JSON Lines.
    """
    start = _skip(text, 0)
    if text.startswith("[", start):
        yield from _parse_array(text, start + 1)
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            value, end = _decode(line, _skip(line, 0))
            yield number, value if end == len(line) else ValueError("text follows the end of the value")


def _parse_array(text: str, start: int) -> Iterator[tuple[int, Any]]:
    """The elements of the array that opens before `start`."""
    newlines = [match.start() for match in re.finditer("\n", text)]
    position, mark = _skip(text, start), ","
    if text.startswith("]", position):
        position, mark = _skip(text, position + 1), "]"
    while mark == ",":
        line = bisect(newlines, position) + 1
        value, position = _decode(text, _skip(text, position))
        yield line, value
        if isinstance(value, ValueError):
            return
        mark = text[position : position + 1]
        position = _skip(text, position + 1)
    if mark != "]" or position < len(text):
        yield bisect(newlines, position) + 1, ValueError("wanted `,` between records or `]` as the end")


def _decode(text: str, position: int) -> tuple[Any, int]:
    """The value at `position`, or a ValueError in its place, and where the text goes on after it."""
    try:
        value, end = json.JSONDecoder().raw_decode(text, position)
    except json.JSONDecodeError as error:
        return ValueError(f"{error.msg} at character {error.pos - text.rfind(chr(10), 0, error.pos)}"), len(text)
    except (ValueError, RecursionError) as error:  # a number too long to read, or too many brackets
        return ValueError(str(error)), len(text)
    return value, _skip(text, end)


def _skip(text: str, position: int) -> int:
    """Where white space ends."""
    match = SPACE.match(text, position)
    return match.end() if match else position


def _is_text(value: Any) -> bool:
    """Text that can be stored and says something."""
    return isinstance(value, str) and _is_optional_text(value) and bool(value.strip())


def _is_optional_text(value: Any) -> bool:
    """Text that can be stored, or nothing; JSON can spell half a character, UTF-8 cannot."""
    return value is None or (isinstance(value, str) and not re.search("[\ud800-\udfff]", value))


def _is_number(value: Any) -> bool:
    """A finite number that both integers and floats can hold."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST


FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "idx": (lambda value: _is_text(value) or type(value) is int, "the number or name of the row"),
    "prompt": (_is_text, "the question, as text that is not blank"),
    "answer": (_is_text, "the ground truth, as text that is not blank"),
    "dataset": (_is_text, "the data source that names the verifier, such as sciknoweval"),
    "kind": (_is_text, "the kind of the task, such as mcq"),
    "description": (_is_optional_text, "text, or null"),
    "system": (_is_optional_text, "the system message as text, or null"),
    "elo": (lambda value: value is None or _is_number(value), "a number, or null"),
    "embedding": (
        lambda value: value is None or (isinstance(value, list) and all(map(_is_number, value))),
        "a list of numbers, or null",
    ),
}
"""The fields of a record that are read: what is accepted, and in words."""


def complaints(value: Any) -> list[str]:
    """All that is wrong with one record: the field, the value got and what is wanted instead."""
    if isinstance(value, ValueError):
        return [f"is not JSON: {value}; wanted one object per line, or one array of objects"]
    if not isinstance(value, dict):
        return [f"a record must be a JSON object; got {_brief(value)}"]
    wrong = {name: wanted for name, (accepts, wanted) in FIELDS.items() if not accepts(value.get(name))}
    problems = [
        f"`{name}` is {_brief(value[name]) if name in value else 'missing'}; wanted {wanted}"
        for name, wanted in wrong.items()
    ]
    if not wrong.keys() & {"answer", "dataset"}:
        try:
            check_ground_truth(value["dataset"], value["answer"])
        except ValueError as error:
            problems.append(f"`answer` or `dataset` cannot be used: {error}")
    return problems


def _brief(value: Any) -> str:
    """A value as a message shows it."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:60]}... ({len(text)} characters)"


def row(record: Record, split: str) -> dict[str, Any]:
    """The published columns of one well-formed record; texts are kept byte for byte."""
    system = record.get("system")
    spoken = system is not None and system.strip() not in ("", MISSING)
    messages = [{"role": "system", "content": system}] if spoken else []
    return {
        "prompt": [*messages, {"role": "user", "content": record["prompt"]}],
        "data_source": record["dataset"],
        "ability": record["kind"],
        "reward_model": {"style": record["kind"], "ground_truth": record["answer"]},
        "extra_info": {
            "split": split,
            "index": str(record["idx"]),
            "description": record.get("description"),
            "problem": record["prompt"],
            "elo": record.get("elo"),
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
            pq.write_table(table, path, compression="zstd", row_group_size=ROW_GROUP)
        for split in tables:
            os.replace(Path(aside) / f"{split}.parquet", output / f"{split}.parquet")


if __name__ == "__main__":
    sys.exit(main())
