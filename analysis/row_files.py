"""Files of rows, a JSON object on each line: read with every fault told by its place, written, and gone on with."""

from __future__ import annotations

import glob
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TextIO

from json_lines import BadInput, all_faults, brief, rows_of

Row = dict[str, Any]


def natural(name: str) -> list[tuple[int, str]]:
    """A sorting key by which `r2` comes before `r10`."""
    parts = re.split(r"([0-9]+)", name)
    return [
        (len(part.lstrip("0")), part.lstrip("0")) if place % 2 else (0, part) for place, part in enumerate(parts)
    ] + [(0, name)]


def files_of(name: str) -> list[Path]:
    """The JSON Lines files that a name means, in natural order.

    A file is itself, a folder every `*.jsonl` in it and below, a run (a folder with `metrics.jsonl`) its `rollouts`;
    whatever else is taken for a pattern.

    Raises:
        BadInput: there is none.
    """
    path = Path(name)
    if path.is_file():
        return [path]
    if (path / "metrics.jsonl").is_file():
        path = path / "rollouts"
    if path.is_dir():
        files = [file for file in path.rglob("*.jsonl") if file.is_file()]
        wanted = "holds no file *.jsonl; name a folder of rollouts"
    else:
        files = [Path(found) for found in glob.glob(name, recursive=True) if Path(found).is_file()]
        wanted = "no such file or folder, and no file matches it as a pattern; name rollouts, or a run"
    if not files:
        raise BadInput(f"{path}: {wanted}")
    return sorted(files, key=lambda file: natural(str(file)))


Needed = Mapping[str, type | tuple[type, ...]]
"""Fields that a row must have, and of which type."""


def each_row(file: Path, needed: Needed) -> Iterator[Row]:
    """Every row of a file that earlier steps wrote, one at a time.

    Raises:
        BadInput: the file cannot be read or is empty, or, once all are read, rows lack what is needed.
    """
    faults, empty = list[str](), True
    for number, row in rows_of(file):
        empty = False
        if fault := fault_of(row, needed):
            faults.append(f"{file}, line {number}: {fault}")
        else:
            yield row
    if faults:
        raise all_faults(faults)
    if empty:
        raise BadInput(f"{file}: holds no rows")


def read_rows(file: Path, needed: Needed) -> list[Row]:
    """Every row at once; raises as `each_row`."""
    return list(each_row(file, needed))


def fault_of(row: Any, needed: Needed) -> str:
    """What is wrong with a row, in words; empty where nothing is."""
    if not isinstance(row, dict):
        return f"is {brief(row)}; an object is wanted"
    for name, kind in needed.items():
        if name not in row:
            return f"has no `{name}`; it has {', '.join(row)[:200] or 'nothing'}"
        if not isinstance(row[name], kind) or (isinstance(row[name], bool) and not allows_bool(kind)):
            kinds = kind if isinstance(kind, tuple) else (kind,)
            names = " or ".join("null" if one is type(None) else one.__name__ for one in kinds)
            return f"has {brief(row[name])} as its `{name}`; {names} is wanted"
    return ""


def allows_bool(kind: type | tuple[type, ...]) -> bool:
    """Whether a truth value is of this type; Python takes it for an integer otherwise."""
    return bool in (kind if isinstance(kind, tuple) else (kind,))


def finite(value: Any) -> float | None:
    """A number as a float; None for null, for no number, and for NaN or infinity."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return float(value) if isinstance(value, bool) else None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def short_hash(*parts: str, length: int = 20) -> str:
    """The first characters of the SHA-1 of texts joined by `|`: the published identifiers."""
    return hashlib.sha1("|".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:length]


def as_line(row: Mapping[str, Any]) -> str:
    """A row on one line."""
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"


def open_lines(file: Path, mode: Literal["a", "w"]) -> TextIO:
    """A file for `as_line`; half a surrogate, which UTF-8 cannot hold, becomes what JSON writes for it.

    Raises:
        BadInput: it cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        return file.open(mode, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise BadInput(f"{file}: cannot be written ({error.strerror})") from None


def write_whole(file: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Writes rows aside and then in place, so that a file is never half there; returns how many."""
    part = file.with_name(f".{file.name}.part")
    try:
        with open_lines(part, "w") as lines:
            count = sum(1 for row in rows if lines.write(as_line(row)))
        part.replace(file)
    except OSError as error:
        raise BadInput(f"{file}: cannot be written ({error.strerror})") from None
    finally:
        part.unlink(missing_ok=True)
    return count


def write_json(file: Path, document: Mapping[str, Any]) -> None:
    """Writes one JSON document for people."""
    with open_lines(file, "w") as text:
        text.write(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def finished_rows(file: Path, check: Callable[[Row], str]) -> list[Row]:
    """The rows that an earlier, ended run wrote to `file`, which is cut to what of it is whole.

    A last line without its end is half a row, and dropped.

    Args:
        check: what is wrong with a row, in words; empty where nothing is.

    Raises:
        BadInput: the file cannot be read, or a row is another run's.
    """
    if not file.exists():
        return []
    try:
        with file.open("rb+") as stream:
            whole = whole_lines(stream.read())
            stream.truncate(whole)
    except OSError as error:
        raise BadInput(f"{file}: cannot be gone on with ({error.strerror})") from None
    rows = []
    for number, row in rows_of(file):
        fault = check(row) if isinstance(row, dict) else f"is {brief(row)}; an object is wanted"
        if fault:
            raise BadInput(f"{file}, line {number}: {fault}; name another file, or remove this one")
        rows.append(row)
    return rows


def whole_lines(content: bytes) -> int:
    """Bytes up to the end of the last line that has one."""
    return content.rfind(b"\n") + 1
