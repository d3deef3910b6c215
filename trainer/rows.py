"""What is wrong with the rows of a data file, whatever the tokenizer makes of them."""

from __future__ import annotations

from mopd.types import Prompt
from trainer.errors import BadInputError
from trainer.prompts import BadRowError, read_rows, to_prompt

SHOWN_ROWS = 5
"""Faulty rows of a file that are told one by one."""


def read_tasks(path: str, key: str, *, check_truth: bool = True) -> tuple[list[Prompt], list[str]]:
    """The rows of a parquet file that are tasks, and sentences for the file or for the rows that are none.

    `key` is the configuration key that named the file, for messages; `check_truth` is that of `trainer.prompts.load`.
    """
    try:
        rows = read_rows(path, key)
    except BadInputError as error:
        return [], error.problems
    found = [to_prompt(number, row, check_truth=check_truth) for number, row in enumerate(rows)]
    faulty = [f"{key}={path}: {fault}" for fault in found if isinstance(fault, BadRowError)]
    more = [f"{key}={path}: and {len(faulty) - SHOWN_ROWS} more such rows"] if len(faulty) > SHOWN_ROWS else []
    return [prompt for prompt in found if isinstance(prompt, Prompt)], [*faulty[:SHOWN_ROWS], *more]
