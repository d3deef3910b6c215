"""Where the rows of a source come from: the hub, or files in a local folder."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from records import BadInput, read_records
from sources_base import Row, Source

SPLIT_NAMES = {"train", "test", "validation", "val", "dev"}
SUFFIXES = (".parquet", ".jsonl", ".json", ".csv")


class FetchError(Exception):
    """The hub could not be reached, or did not give what was asked for."""


def from_hub(source: Source, revision: str) -> Sequence[Row]:
    """The rows of the source as the hub has them at `revision`; the download shows its progress.

    Raises:
        FetchError: it cannot be fetched; says what to do.
    """
    try:
        from datasets import load_dataset  # takes seconds, and local files do without

        rows: Sequence[Row] = load_dataset(source.hub, source.config, split=source.split, revision=revision)
    # The one broad door: the hub's client raises errors of half a dozen libraries.
    except Exception as error:
        terms = f"accept its terms at huggingface.co/datasets/{source.hub} and log in (hf auth login); " * source.gated
        raise FetchError(
            f"{source.hub} cannot be fetched at revision {revision} ({type(error).__name__}: {error}); {terms}"
            f"check the network, or bring the files of the data set in a folder: --local DIR"
        ) from None
    return rows


def download(name: str, folder: Path, revision: str) -> dict[str, int]:
    """Writes `{split}.parquet` in `folder` for every split of a data set of the hub; the rows of each.

    Raises:
        FetchError: it cannot be fetched or stored.
    """
    try:
        from datasets import load_dataset

        splits = load_dataset(name, revision=revision)
        folder.mkdir(parents=True, exist_ok=True)
        for split, rows in splits.items():
            rows.to_parquet(str(folder / f"{split}.parquet"))
    except Exception as error:  # as in from_hub
        raise FetchError(f"{name} cannot be fetched at revision {revision} ({type(error).__name__}: {error})") from None
    return {split: len(rows) for split, rows in splits.items()}


def from_folder(source: Source, folder: Path) -> list[Row]:
    """The rows of the source's split in files that were brought by hand, in the order of their names.

    Raises:
        BadInput: there is no such folder, no file of that split, or one cannot be read.
    """
    if not folder.is_dir():
        raise BadInput(f"--local {folder}: no such folder; it must hold the files of {source.hub}")
    files = files_of(source, folder)
    if not files:
        raise BadInput(
            f"--local {folder}: no file of the split {source.split!r} of {source.hub}; wanted one or more of "
            f"{', '.join(f'{source.split}*{suffix}' for suffix in SUFFIXES)}, also in folders below"
        )
    return [row for file in files for row in read_file(file)]


def files_of(source: Source, folder: Path) -> list[Path]:
    """The files that hold the split of the source: those that name it, or all where none names any split."""
    files = sorted(file for file in folder.rglob("*") if file.suffix in SUFFIXES and file.is_file())
    if source.config:
        files = [file for file in files if source.config in file.relative_to(folder).as_posix()] or files
    naming = [file for file in files if words_of(file, folder) & SPLIT_NAMES]
    return [file for file in naming if source.split in words_of(file, folder)] if naming else files


def words_of(file: Path, folder: Path) -> set[str]:
    """The words in the path of a file below `folder`; `test2.jsonl` has the word `test`."""
    return set(re.split(r"[^a-z]+", file.relative_to(folder).as_posix().lower()))


def read_file(file: Path) -> Iterable[dict[str, Any]]:
    """The rows of a file, by its suffix.

    Raises:
        BadInput: it cannot be read.
    """
    if file.suffix in (".json", ".jsonl"):
        return [record for _, record in read_records(file)]
    try:
        if file.suffix == ".parquet":
            rows: list[dict[str, Any]] = pq.read_table(file).to_pylist()
            return rows
        with file.open(encoding="utf-8-sig", newline="") as lines:
            return list(csv.DictReader(lines))
    except (OSError, ValueError, csv.Error) as error:  # pyarrow's errors are ValueErrors or OSErrors
        raise BadInput(f"{file}: cannot be read ({error})") from None
