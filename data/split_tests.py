"""Splits the hidden tests of programming tasks, not the tasks, as the published splits were made.

    python data/split_tests.py --json_path FILE --output_dir DIR

reads records (one JSON array, or JSON Lines) and writes DIR/test.json with every task and all its tests, and
DIR/train.json with the same tasks and half of the tests of each (rounded down, at least one), in their order. So a
score on test.json is on the tasks of training: it asks whether solutions hold under tests that were kept back.

Exit codes: 0 both files were written, 2 something was wrong and stderr says what.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from records import BadInput, Record, brief, read_records, write_splits

SEED = 0
"""Of the legacy generator, one for all tasks in their order; part of the published split."""
TRAIN_SHARE = 0.5


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(description="Splits the tests of programming tasks.")
    parser.add_argument("--json_path", type=Path, required=True, help="file of records: an array, or JSON Lines")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder for train.json and test.json")
    arguments = parser.parse_args(argv)
    try:
        records = read_records(arguments.json_path)
        train = halve(arguments.json_path, records)
        write_splits(arguments.json_path, arguments.output_dir, train, [record for _, record in records])
    except BadInput as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"cannot write to {arguments.output_dir} ({error}); choose another --output_dir", file=sys.stderr)
        return 2
    return 0


def halve(path: Path, records: Sequence[tuple[int, Record]]) -> list[Record]:
    """The records with half of their tests; `path` and the line of each are for messages.

    Raises:
        BadInput: the tests of some records cannot be split; every one of them.
    """
    problems, tests = [], []
    for line, record in records:
        try:
            tests.append(read_tests(record.get("tests")))
        except ValueError as error:
            problems.append(f"{path}:{line}: {error}")
    if problems:
        raise BadInput("\n".join(problems))
    generator = np.random.RandomState(SEED)
    return [
        {**record, "tests": json.dumps(choose(one, generator))} for (_, record), one in zip(records, tests, strict=True)
    ]


def read_tests(text: Any) -> Any:
    """The tests of a record: an object whose `inputs` and `outputs` are lists of one length.

    Raises:
        ValueError: they are anything else.
    """
    wanted = "wanted a JSON object, as text, with lists `inputs` and `outputs` of the same length, at least 1"
    try:
        tests: Any = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        tests = None
    if not isinstance(tests, dict):
        raise ValueError(f"`tests` is {brief(text)}; {wanted} (tasks without tests are split by split_tasks.py)")
    inputs, outputs = tests.get("inputs"), tests.get("outputs")
    if not isinstance(inputs, list) or not isinstance(outputs, list) or not 1 <= len(inputs) == len(outputs):
        raise ValueError(f"`tests` has inputs {brief(inputs)} and outputs {brief(outputs)}; {wanted}")
    return tests


def choose(tests: Record, generator: np.random.RandomState) -> dict[str, Any]:
    """The tests with a random half of them, in their order."""
    count = len(tests["inputs"])
    kept = sorted(generator.choice(count, max(1, int(TRAIN_SHARE * count)), replace=False))
    return {**tests, **{name: [tests[name][place] for place in kept] for name in ("inputs", "outputs")}}


if __name__ == "__main__":
    sys.exit(main())
