"""Four mini-benchmarks, made from a seed without any download, in the published prompt formats.

    python data/mini.py --output datasets/mini --train 256 --test 64 --seed 0

writes `train.parquet` and `test.parquet` for science, math, code and tooluse. No problem is in both splits, or twice
in one.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import mini_code
import mini_math
import mini_science
import mini_tooluse
from mini_problem import Problem
from preprocess import tabulate, write_all
from sources_base import record_of

FAMILIES: dict[str, Callable[[random.Random], Problem]] = {
    "science": mini_science.draw,
    "math": mini_math.draw,
    "code": mini_code.draw,
    "tooluse": mini_tooluse.draw,
}
TRIES = 100
"""Draws per problem wanted, after which a family is taken to have no more."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(description="Writes the four mini-benchmarks.")
    parser.add_argument("--output", type=Path, required=True, help="folder for one folder per family")
    parser.add_argument("--train", type=int, default=256, help="training problems of each family")
    parser.add_argument("--test", type=int, default=64, help="held-out problems of each family")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    try:
        if min(arguments.train, arguments.test) < 1:
            raise ValueError(f"--train and --test must be 1 or more; got {arguments.train}, {arguments.test}")
        for family in FAMILIES:
            write_family(arguments.output / family, family, arguments.train, arguments.test, arguments.seed)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def build(family: str, count: int, seed: int) -> list[Problem]:
    """`count` problems of different content, the same for a seed; a longer list begins with the shorter one.

    Raises:
        ValueError: the family does not have that many.
    """
    rng = random.Random(f"{family} {seed}")
    found: dict[str, Problem] = {}
    for _ in range(TRIES * count):
        problem = FAMILIES[family](rng)
        found.setdefault(problem.content, problem)
        if len(found) == count:
            return list(found.values())
    raise ValueError(f"{family} has no {count} different problems; ask for fewer with --train and --test")


def splits(family: str, train: int, test: int, seed: int) -> dict[str, list[Problem]]:
    """The problems of both splits; held-out ones come first, so that a longer training set keeps them."""
    problems = build(family, train + test, seed)
    return {"train": problems[test:], "test": problems[:test]}


def write_family(folder: Path, family: str, train: int, test: int, seed: int) -> None:
    """Writes `train.parquet` and `test.parquet` of one family.

    Raises:
        ValueError: the family does not have that many problems. OSError: `folder` cannot be written to.
    """
    drawn = splits(family, train, test, seed)
    records = {
        split: [record_of(problem.task, index) for index, problem in enumerate(problems)]
        for split, problems in drawn.items()
    }
    write_all(tabulate(records), folder)
    for split, rows in records.items():
        print(f"{len(rows)} rows: {folder / f'{split}.parquet'}")


if __name__ == "__main__":
    sys.exit(main())
