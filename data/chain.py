"""The `chain` task: modular arithmetic with plausible mistakes, made from a seed without any download.

A prompt `calc 7 + 5 * 3 - 8` is worked out from left to right, modulo 10, one step at a time: `7 + 5 = 2 ; 2
* 3 = 6 ; 6 - 8 = 8`. Each of the 300 entries (operator, operand, operand) has its true result and one fixed
plausible mistake. A freshly warmed-up student draws between the two with a prior of the entry's own, and
nothing in its weights says which of the two is true: that is what training has to find out.

    python data/chain.py --output datasets/chain --train 512 --test 96 --seed 0

writes `train.parquet` and `test.parquet`, with no prompt in both.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

OPERATORS = "+-*"
MODULUS = 10
STEPS = 3
TABLE_SEED = 5000
"""Fixes the mistakes and priors. They belong to the task, so no command changes them."""
PRIOR_RANGE = (0.45, 0.75)
"""The student's initial probability of an entry's true result is uniform in this range."""
DESCRIPTION = "Work out the expression from left to right, modulo 10, one step at a time."

Key = tuple[str, int, int]
"""An entry of the table: operator, left operand, right operand."""

SCHEMA = pa.schema(
    [
        ("prompt", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        ("data_source", pa.string()),
        ("ability", pa.string()),
        ("reward_model", pa.struct([("style", pa.string()), ("ground_truth", pa.string())])),
        (
            "extra_info",
            pa.struct([(name, pa.string()) for name in ("split", "index", "description", "problem")]),
        ),
    ]
)
"""The published columns."""


@dataclass(frozen=True)
class Entry:
    """What is known of one (operator, operand, operand)."""

    true: int
    """The result modulo 10."""
    mistake: int
    """The one other result that a beginner writes; never the true one."""
    prior: float
    """Probability with which the warmed-up student writes the true result."""


@dataclass(frozen=True)
class Problem:
    """One expression. Example: `Problem((7, 5, 3, 8), "+*-")` is `calc 7 + 5 * 3 - 8`."""

    operands: tuple[int, ...]
    """[steps + 1], digits."""
    operators: str
    """[steps], characters of `OPERATORS`."""

    @property
    def text(self) -> str:
        """What the student is asked."""
        pairs = zip(self.operators, self.operands[1:], strict=True)
        return f"calc {self.operands[0]}" + "".join(f" {operator} {operand}" for operator, operand in pairs)

    def keys(self, results: Iterable[int]) -> tuple[Key, ...]:
        """[steps], the entry that each step looks up when the steps before it came out as in `results`."""
        left = (self.operands[0], *results)
        return tuple(zip(self.operators, left, self.operands[1:], strict=False))

    def response(self, results: tuple[int, ...], carried: tuple[int, ...] | None = None) -> str:
        """The chain that writes `results` ([steps], digits), such as `7 + 5 = 2 ; 2 * 3 = 6`.

        With `carried`, each step takes over the result of that attempt as its left operand, not its own.
        """
        steps = zip(self.keys(results if carried is None else carried), results, strict=True)
        return " ; ".join(f"{a} {operator} {b} = {result}" for (operator, a, b), result in steps)


def true_result(operator: str, a: int, b: int) -> int:
    """`a operator b` modulo 10.

    Raises:
        ValueError: an operator other than + - *.
    """
    if operator not in tuple(OPERATORS):
        raise ValueError(f"the operator must be one of {' '.join(OPERATORS)}; got {operator!r}")
    value = {"+": a + b, "-": a - b, "*": a * b}[operator]
    return value % MODULUS


def mistakes_of(operator: str, a: int, b: int) -> list[int]:
    """The wrong results of a beginner, sorted: off by one, another operator, operands swapped."""
    true = true_result(operator, a, b)
    others = {true_result(other, a, b) for other in OPERATORS} | {(b - a) % MODULUS, true + 1, true - 1}
    return sorted({value % MODULUS for value in others} - {true})


def build_table() -> dict[Key, Entry]:
    """The task's 300 entries, always the same."""
    rng = random.Random(TABLE_SEED)
    keys = [(operator, a, b) for operator in OPERATORS for a in range(MODULUS) for b in range(MODULUS)]
    return {key: Entry(true_result(*key), rng.choice(mistakes_of(*key)), rng.uniform(*PRIOR_RANGE)) for key in keys}


TABLE: Mapping[Key, Entry] = build_table()


def true_results(problem: Problem) -> tuple[int, ...]:
    """[steps], the right result of each step."""
    return follow(problem, {key: entry.true for key, entry in TABLE.items()})


def follow(problem: Problem, world: Mapping[Key, int]) -> tuple[int, ...]:
    """[steps], the results of someone who answers each entry as `world` does."""
    results: list[int] = []
    left = problem.operands[0]
    for operator, operand in zip(problem.operators, problem.operands[1:], strict=True):
        left = world[operator, left, operand]
        results.append(left)
    return tuple(results)


def sample_results(
    problem: Problem, rng: random.Random, world: Mapping[Key, int] | None = None, competence: float = 0.0
) -> tuple[int, ...]:
    """[steps], the results of one attempt.

    Each step is answered as `world` does with probability `competence`, and otherwise drawn between the
    entry's two candidates with its prior. Without a world this is a sample of the warmed-up student.
    """
    results: list[int] = []
    left = problem.operands[0]
    for operator, operand in zip(problem.operators, problem.operands[1:], strict=True):
        key = (operator, left, operand)
        entry = TABLE[key]
        if world is not None and rng.random() < competence:
            left = world[key]
        else:
            left = entry.true if rng.random() < entry.prior else entry.mistake
        results.append(left)
    return tuple(results)


def sample_problem(rng: random.Random, steps: int = STEPS) -> Problem:
    """A uniformly drawn expression."""
    operands = tuple(rng.randrange(MODULUS) for _ in range(steps + 1))
    return Problem(operands, "".join(rng.choice(OPERATORS) for _ in range(steps)))


class World(dict[Key, int]):
    """Which candidate of an entry is the right one, drawn with the entry's prior when it is looked up."""

    def __init__(self, rng: random.Random) -> None:
        """An undrawn world that takes its draws from `rng`."""
        super().__init__()
        self._rng = rng

    def __missing__(self, key: Key) -> int:
        """Draws the right result of `key` and keeps it."""
        entry = TABLE[key]
        self[key] = entry.true if self._rng.random() < entry.prior else entry.mistake
        return self[key]


def distinct_problems(count: int, seed: int) -> list[Problem]:
    """`count` different expressions, the same for a seed; a longer list begins with the shorter one.

    Raises:
        ValueError: there are not that many expressions.
    """
    available = MODULUS ** (STEPS + 1) * len(OPERATORS) ** STEPS
    if not 0 <= count <= available:
        raise ValueError(f"the number of problems must be between 0 and {available}; got {count}")
    rng = random.Random(seed)
    found: dict[Problem, None] = {}
    while len(found) < count:
        found.setdefault(sample_problem(rng))
    return list(found)


def row(problem: Problem, split: str, index: int) -> dict[str, Any]:
    """A row of the published schema."""
    truth = {"steps": len(problem.operators), "value": true_results(problem)[-1]}
    return {
        "prompt": [{"role": "user", "content": problem.text}],
        "data_source": "chain",
        "ability": "arithmetic",
        "reward_model": {"style": "rule", "ground_truth": json.dumps(truth)},
        "extra_info": {
            "split": split,
            "index": str(index),
            "description": DESCRIPTION,
            "problem": problem.text,
        },
    }


def build_splits(train: int, test: int, seed: int) -> dict[str, list[dict[str, Any]]]:
    """Rows by split. The held-out prompts are drawn first and do not depend on the number of the others."""
    problems = distinct_problems(test + train, seed)
    parts = {"test": problems[:test], "train": problems[test:]}
    return {split: [row(problem, split, index) for index, problem in enumerate(part)] for split, part in parts.items()}


def write_splits(output: Path, train: int, test: int, seed: int) -> None:
    """Writes `train.parquet` and `test.parquet` under `output`; the same arguments give the same rows."""
    output.mkdir(parents=True, exist_ok=True)
    for split, rows in build_splits(train, test, seed).items():
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), output / f"{split}.parquet", compression="zstd")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for train.parquet and test.parquet")
    parser.add_argument("--train", type=int, default=512, help="number of training prompts")
    parser.add_argument("--test", type=int, default=96, help="number of held-out prompts")
    parser.add_argument("--seed", type=int, default=0, help="draws the prompts")
    arguments = parser.parse_args()
    if min(arguments.train, arguments.test) < 1:
        parser.error(f"--train {arguments.train} --test {arguments.test}: each split needs at least one prompt")
    try:
        write_splits(arguments.output, arguments.train, arguments.test, arguments.seed)
    except (OSError, ValueError) as error:
        parser.error(f"cannot write to {arguments.output}: {error}")
    print(f"wrote {arguments.train} training and {arguments.test} held-out prompts to {arguments.output}")


if __name__ == "__main__":
    main()
