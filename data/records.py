"""Records in the published JSON form: how files of them are read, with lines to blame, and written.

A record is an object with the fields of `COLUMNS`; `-` stands for what a source does not have. A file is a
JSON array with one record per line, or JSON Lines.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from bisect import bisect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

COLUMNS = ("idx", "kind", "dataset", "answer", "elo", "prompt", "description", "tests", "embedding", "system")
"""The fields of a published record, in order."""
MISSING = "-"
"""What the published loader writes for a text that a source does not have."""
SPACE = re.compile(r"[ \t\r\n]*")
"""What JSON calls white space."""

Record = Mapping[str, Any]


class BadInput(Exception):
    """All that is wrong with the input, one line each."""


def is_given(value: Any) -> bool:
    """Text that says something: neither null nor blank nor the mark of a missing text."""
    return isinstance(value, str) and value.strip() not in ("", MISSING)


def brief(value: Any) -> str:
    """A value as a message shows it."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:60]}... ({len(text)} characters)"


def read_values(path: Path) -> list[tuple[int, Any]]:
    """The values in a file, each after the number of its line; a ValueError stands where one cannot be read.

    Raises:
        BadInput: the file is missing, is not UTF-8 or holds nothing; in one line that names it.
    """
    try:
        values = list(parse(path.read_text(encoding="utf-8-sig")))
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: is not UTF-8 (byte {error.start}); save it as UTF-8") from None
    if not values:
        raise BadInput(f"{path}: holds no record; wanted JSON Lines or one JSON array of objects")
    return values


def read_records(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """The objects in a file, each after the number of its line.

    Raises:
        BadInput: the file cannot be read, or some value in it is no object; every line that is wrong.
    """
    values = read_values(path)
    problems = [f"{path}:{line}: {problem}" for line, value in values if (problem := shape_problem(value))]
    if problems:
        raise BadInput("\n".join(problems))
    return values


def shape_problem(value: Any) -> str | None:
    """Why a value that was read cannot be a record; None where it can."""
    if isinstance(value, ValueError):
        return f"is not JSON: {value}; wanted one object per line, or one array of objects"
    return None if isinstance(value, dict) else f"a record must be a JSON object; got {brief(value)}"


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


def json_line(record: Record) -> str:
    """One line of JSON Lines, written as the published split files are: ASCII, no spaces, escaped slashes."""
    return json.dumps(record, separators=(",", ":")).replace("/", "\\/") + "\n"


def json_array(records: Iterable[Record]) -> str:
    """One JSON array with a record per line."""
    return "[\n" + ",\n".join(json.dumps(record) for record in records) + "\n]\n"


def write_files(folder: Path, texts: Mapping[str, str]) -> None:
    """Writes every file (name -> text) aside, then moves them all into `folder`, which is made if need be.

    Raises:
        OSError: `folder` cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".writing-") as aside:
        for name, text in texts.items():
            (Path(aside) / name).write_text(text, encoding="utf-8", newline="\n")
        for name in texts:
            os.replace(Path(aside) / name, folder / name)


def write_splits(source: Path, folder: Path, train: Sequence[Record], test: Sequence[Record]) -> None:
    """Writes `train.json` and `test.json` as JSON Lines and prints what was written.

    Raises:
        BadInput: one of them would replace `source`, from which they were made.
        OSError: `folder` cannot be written to.
    """
    rows = {"train.json": train, "test.json": test}
    if any((folder / name).resolve() == source.resolve() for name in rows):
        raise BadInput(f"{source}: would be replaced by its own split; name another --output_dir, or rename the file")
    write_files(folder, {name: "".join(map(json_line, records)) for name, records in rows.items()})
    for name, records in rows.items():
        print(f"{len(records)} rows: {folder / name}")
