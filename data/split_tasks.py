"""Splits tasks into train and test, as the published splits were made.

    python data/split_tasks.py --json_path FILE --output_dir DIR [--test_ratio 0.1] [--seed 42]

reads records (one JSON array, or JSON Lines) and writes DIR/train.json and DIR/test.json as JSON Lines. With p a
random permutation of the n records, test is the first ceil(test_ratio * n) of it and train the rest, in that order.

Exit codes: 0 both files were written, 2 something was wrong and stderr says what.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from records import BadInput, read_records, write_splits


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(description="Splits tasks into train.json and test.json.")
    parser.add_argument("--json_path", type=Path, required=True, help="file of records: an array, or JSON Lines")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder for train.json and test.json")
    parser.add_argument("--test_ratio", type=float, default=0.1, help="share of test tasks; default: 0.1, as published")
    parser.add_argument("--seed", type=int, default=42, help="of the permutation; default: 42, as published")
    arguments = parser.parse_args(argv)
    try:
        records = [record for _, record in read_records(arguments.json_path)]
        train, test = split(len(records), arguments.test_ratio, arguments.seed)
        write_splits(arguments.json_path, arguments.output_dir, [records[i] for i in train], [records[i] for i in test])
    except BadInput as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"cannot write to {arguments.output_dir} ({error}); choose another --output_dir", file=sys.stderr)
        return 2
    return 0


def split(count: int, test_ratio: float, seed: int) -> tuple[list[int], list[int]]:
    """Positions of the train and of the test tasks among `count`.

    Raises:
        BadInput: one of the splits would be empty, or the seed is negative.
    """
    if seed < 0:
        raise BadInput(f"--seed is {seed}; it must be 0 or more")
    if not 0 < test_ratio < 1:
        raise BadInput(f"--test_ratio is {test_ratio}; it must lie between 0 and 1, such as 0.1")
    order = [int(position) for position in np.random.default_rng(seed).permutation(count)]
    size = math.ceil(test_ratio * count)
    if size >= count:
        raise BadInput(f"{count} records leave nothing for train with --test_ratio {test_ratio}; lower it")
    return order[size:], order[:size]


if __name__ == "__main__":
    sys.exit(main())
