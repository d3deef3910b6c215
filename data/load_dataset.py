"""Fetches a published source and writes it in the published JSON form, one record per line inside `[ ]`.

    python data/load_dataset.py --dataset_name NAME --output_path FILE [--local DIR]

takes the rows from the hub, or from files of the same columns in DIR. --category, --start_idx and --num_el choose
among them. Another mode copies a data set of the hub as it is, one parquet file per split:

    python data/load_dataset.py --download_hf_dataset_name NAME --download_output_dir DIR

Exit codes: 0 the file was written, 1 the hub did not give the data, 2 something was wrong and stderr says what.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sources_choice
import sources_code
import sources_maths
from records import BadInput, json_array, read_values, write_files
from rich.console import Console
from rich.progress import track
from sources_base import Row, Source, record_of
from sources_rows import FetchError, download, from_folder, from_hub

SOURCES: dict[str, Source] = {
    source.name: source for module in (sources_choice, sources_code, sources_maths) for source in module.SOURCES
}
REFUSED = {
    "tooluse": "its records were never on the hub; put the published train.json and test.json in a folder, or split "
    "one file of records with data/split_tasks.py, and go on with data/preprocess.py",
}
"""Names that the published loader takes without being able to load them, and what to do instead."""
SHOWN = 20
"""Faults of rows that are told one by one."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    arguments = parse_arguments(argv)
    try:
        return fetch(arguments) if arguments.download_hf_dataset_name else load(arguments)
    except BadInput as error:
        print(error, file=sys.stderr)
        return 2
    except FetchError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        print(f"cannot write ({error}); choose another --output_path", file=sys.stderr)
        return 2


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments; exits with code 2 and a sentence where they do not fit together."""
    parser = argparse.ArgumentParser(description="Fetches a published source into the published JSON form.")
    parser.add_argument("--dataset_name", help=f"one of: {', '.join(SOURCES)}")
    parser.add_argument("--output_path", type=Path, help="the JSON file to write")
    parser.add_argument("--local", type=Path, help="folder with the source's files; then nothing is fetched")
    parser.add_argument("--revision", help="commit, tag or branch on the hub, instead of the one in the source table")
    parser.add_argument("--start_idx", type=int, default=0, help="first task to keep, by its idx; default: 0")
    parser.add_argument("--num_el", type=int, help="how many tasks to keep; default: all")
    parser.add_argument("--category", default="false", help="keeps the tasks of one category; `false`: of all")
    parser.add_argument("--embeddings_file", type=Path, help="one list of numbers per task: .npy, or JSON")
    parser.add_argument("--download_hf_dataset_name", help="copies this data set of the hub instead")
    parser.add_argument("--download_output_dir", type=Path, help="folder for the copy")
    for name in ("--push_dataset_path", "--push_hf_dataset_name"):
        parser.add_argument(name, help="not offered: upload with `hf upload NAME FILE --repo-type dataset`")
    for name in ("--test_ratio", "--seed"):
        parser.add_argument(name, help="not here: data/split_tasks.py splits")
    arguments = parser.parse_args(argv)
    if arguments.test_ratio or arguments.seed:
        parser.error("--test_ratio and --seed do nothing here; give them to data/split_tasks.py, which makes the split")
    if arguments.push_dataset_path or arguments.push_hf_dataset_name:
        parser.error("pushing is not offered; upload with `hf upload NAME FILE --repo-type dataset`")
    copies = (arguments.download_hf_dataset_name, arguments.download_output_dir)
    if any(copies) and not all(copies):
        parser.error("--download_hf_dataset_name and --download_output_dir belong together")
    if not any(copies) and not (arguments.dataset_name and arguments.output_path):
        parser.error("wanted --dataset_name and --output_path (or the two --download_... arguments)")
    if arguments.start_idx < 0 or (arguments.num_el is not None and arguments.num_el < 1):
        parser.error(
            f"--start_idx must be 0 or more and --num_el 1 or more; got {arguments.start_idx}, {arguments.num_el}"
        )
    return arguments


def fetch(arguments: argparse.Namespace) -> int:
    """The mode that copies a data set of the hub."""
    folder: Path = arguments.download_output_dir
    counts = download(arguments.download_hf_dataset_name, folder, arguments.revision or "main")
    for split, count in counts.items():
        print(f"{count} rows: {folder / f'{split}.parquet'}")
    return 0


def load(arguments: argparse.Namespace) -> int:
    """The mode that writes records."""
    source = source_of(arguments.dataset_name)
    if arguments.local:
        rows: Sequence[Row] = from_folder(source, arguments.local)
    else:
        revision = arguments.revision or source.revision
        print(f"fetching {source.hub} (split {source.split}, revision {revision}) ...", file=sys.stderr)
        rows = from_hub(source, revision)
    records = records_of(source, rows, arguments.category)
    if arguments.embeddings_file:
        add_embeddings(records, arguments.embeddings_file)
    end = None if arguments.num_el is None else arguments.start_idx + arguments.num_el
    chosen = records[arguments.start_idx : end]
    if not chosen:
        raise BadInput(f"--start_idx {arguments.start_idx} leaves none of the {len(records)} tasks; lower it")
    output: Path = arguments.output_path
    write_files(output.parent, {output.name: json_array(chosen)})
    print(f"{len(chosen)} rows: {output}")
    return 0


def source_of(name: str) -> Source:
    """The source of that name.

    Raises:
        BadInput: there is none, or it cannot be loaded.
    """
    if name in REFUSED:
        raise BadInput(f"--dataset_name {name}: {REFUSED[name]}")
    if name not in SOURCES:
        near = difflib.get_close_matches(name, SOURCES, 1, cutoff=0.4)
        hint = f"did you mean {near[0]}? " if near else ""
        raise BadInput(f"--dataset_name {name} is not known; {hint}known: {', '.join(SOURCES)}")
    return SOURCES[name]


def records_of(source: Source, rows: Sequence[Row], category: str = "false") -> list[dict[str, Any]]:
    """The records of the tasks among the rows; `idx` counts the tasks of the category, from 0.

    Raises:
        BadInput: rows cannot be read, or there is no task; every fault, up to a limit.
    """
    records: list[dict[str, Any]] = []
    problems: list[str] = []
    console = Console(stderr=True)
    for position, row in enumerate(track(rows, "reading", console=console, disable=not console.is_terminal)):
        try:
            if source.keep(row) and is_in(source, category, row):
                records.append(record_of(source.read(row, len(records)), len(records)))
        except KeyError as error:
            problems.append(f"{source.hub} row {position}: no column {error}; it has {', '.join(row)}")
        except (ValueError, TypeError, AttributeError) as error:
            problems.append(f"{source.hub} row {position}: {error}")
    if problems:
        more = [f"... and {len(problems) - SHOWN} rows more"] if len(problems) > SHOWN else []
        raise BadInput("\n".join([*problems[:SHOWN], *more]))
    if not records:
        raise BadInput(f"none of the {len(rows)} rows of {source.hub} is a task of {source.name}{having(source, rows)}")
    return records


def is_in(source: Source, category: str, row: Row) -> bool:
    """Whether a row is of the category.

    Raises:
        BadInput: the source has no categories.
    """
    if category.lower() == "false":
        return True
    if source.category is None:
        raise BadInput(f"--category {category}: {source.name} has no categories; leave it out")
    return source.category(row) == category


def having(source: Source, rows: Sequence[Row]) -> str:
    """What categories there are, for a message."""
    names = sorted({source.category(row) for row in rows if source.keep(row)}) if source.category else []
    return f" of the category asked for; there are: {', '.join(names)}" if names else ""


def add_embeddings(records: Sequence[dict[str, Any]], path: Path) -> None:
    """Puts the lists of numbers of a file into the records, in order.

    Raises:
        BadInput: the file cannot be read, or does not hold one list of numbers per record.
    """
    try:
        vectors = np.load(path, allow_pickle=False) if path.suffix == ".npy" else [v for _, v in read_values(path)]
        table = np.asarray(vectors, dtype=float)
    except (OSError, ValueError, TypeError) as error:
        raise BadInput(
            f"--embeddings_file {path}: cannot be read ({error}); wanted .npy, or lists of one length"
        ) from None
    if table.ndim != 2 or len(table) != len(records) or not np.isfinite(table).all():
        raise BadInput(
            f"--embeddings_file {path}: has shape {table.shape}; wanted {len(records)} lists of numbers, one per task"
        )
    for record, vector in zip(records, table.tolist(), strict=True):
        record["embedding"] = vector


if __name__ == "__main__":
    sys.exit(main())
