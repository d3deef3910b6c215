"""Training parquet to prompts: read, render, filter, and the order in which a run meets them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mopd.rewards import check_ground_truth, verifier_of
from mopd.summaries import with_summary_instruction
from mopd.types import IntArray, Message, Prompt
from trainer.errors import BadInputError

SHOWN_ROWS = 5
"""Faulty rows of a file that are told one by one."""
COLUMNS = ("prompt", "data_source", "reward_model")


class Tokenizer(Protocol):
    """What this project asks of a Hugging Face tokenizer."""

    def apply_chat_template(self, conversation: Any, **arguments: Any) -> Any:
        """Renders a conversation."""

    def encode(self, text: str, **arguments: Any) -> list[int]:
        """Token ids of a text."""

    def decode(self, token_ids: Any, **arguments: Any) -> str:
        """The text of token ids."""


@dataclass(frozen=True)
class Renderer:
    """Renders conversations as the model reads them, for the student and the teacher alike."""

    tokenizer: Tokenizer
    template_arguments: Mapping[str, Any]

    def text(self, messages: Sequence[Message]) -> str:
        """The conversation with the header of the assistant's answer, as text."""
        rendered = self.tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            add_generation_prompt=True,
            tokenize=False,
            **self.template_arguments,
        )
        return str(rendered)

    def ids(self, text: str) -> IntArray:
        """[L], token ids of a rendered conversation."""
        return np.asarray(self.tokenizer.encode(text, add_special_tokens=False), dtype=np.int32)

    def length(self, messages: Sequence[Message]) -> int:
        """Tokens of the rendered conversation."""
        return len(self.ids(self.text(messages)))

    def pieces(self, token_ids: IntArray) -> list[str]:
        """The text of each token by itself."""
        return [self.tokenizer.decode([int(token)]) for token in token_ids]

    def shorten(self, text: str, tokens: int) -> str:
        """The first `tokens` tokens of a text."""
        return self.tokenizer.decode(self.tokenizer.encode(text, add_special_tokens=False)[:tokens])


@dataclass(frozen=True)
class PromptSet:
    """The prompts of one file that fit the length limit, rendered."""

    prompts: tuple[Prompt, ...]
    prompt_ids: tuple[IntArray, ...]
    """[L] each."""
    dropped: int
    """Prompts over the limit, left out."""

    def __len__(self) -> int:
        return len(self.prompts)


def load(
    path: str,
    key: str,
    renderer: Renderer,
    *,
    max_prompt_length: int,
    drop_overlong: bool,
    instruction: str = "",
    check_truth: bool = True,
) -> PromptSet:
    """The prompts of a parquet file.

    `key` is the configuration key that named the file, for messages. `instruction` is what the student is asked
    beside the task: it is rendered, and is no part of the prompt's messages, from which teachers' are made.
    `check_truth` is false where a function of the user's own, and no verifier, reads the ground truths.

    Raises:
        BadInputError: no such file, a missing column, a row without prompt or ground truth, or prompts
            over the limit that may not be dropped.
    """
    good, faults = read_tasks(path, key, check_truth=check_truth)
    if faults:
        raise BadInputError(faults)
    asked = [with_summary_instruction(prompt.messages, instruction) for prompt in good]
    ids = rendered(asked, renderer, f"{key}={path}")
    fits = [len(prompt_ids) <= max_prompt_length for prompt_ids in ids]
    dropped = len(fits) - sum(fits)
    if dropped and not drop_overlong:
        raise BadInputError(
            [
                f"{key}={path}: {dropped} of {len(fits)} prompts exceed data.max_prompt_length={max_prompt_length} "
                f"(longest {max(map(len, ids))} tokens); raise ROLLOUT_PROMPT_LENGTH, or set "
                f"data.filter_overlong_prompts=true to leave them out"
            ]
        )
    if dropped == len(fits):
        longest = f" (shortest {min(map(len, ids))} tokens)" if ids else ""
        raise BadInputError(
            [
                f"{key}={path}: none of {len(fits)} prompts fits data.max_prompt_length={max_prompt_length}{longest}; "
                f"raise ROLLOUT_PROMPT_LENGTH"
            ]
        )
    kept = [index for index, fit in enumerate(fits) if fit]
    return PromptSet(tuple(good[index] for index in kept), tuple(ids[index] for index in kept), dropped)


def rendered(asked: Sequence[Sequence[Message]], renderer: Renderer, name: str) -> list[IntArray]:
    """[L] token ids of every conversation.

    Raises:
        BadInputError: the chat template refuses a conversation, or makes nothing of it.
    """
    ids = []
    for number, messages in enumerate(asked):
        try:
            ids.append(renderer.ids(renderer.text(messages)))
        # Templates and tokenizers are foreign code that may raise anything.
        except Exception as error:
            raise BadInputError(
                [f"{name}: the chat template refuses prompt {number} ({type(error).__name__}: {error!s:.200})"]
            ) from None
        if not len(ids[-1]):
            raise BadInputError(
                [f"{name}: prompt {number} becomes no tokens; the model's tokenizer or template is empty"]
            )
    return ids


class BadRowError(ValueError):
    """A row that is no task."""


def read_tasks(path: str, key: str, *, check_truth: bool = True) -> tuple[list[Prompt], list[str]]:
    """The rows of a parquet file that are tasks, and sentences for the file or for the rows that are none.

    `key` is the configuration key that named the file, for messages; `check_truth` is that of `load`.
    """
    try:
        rows = read_rows(path, key)
    except BadInputError as error:
        return [], error.problems
    found = [to_prompt(number, row, check_truth=check_truth) for number, row in enumerate(rows)]
    faulty = [f"{key}={path}: {fault}" for fault in found if isinstance(fault, BadRowError)]
    more = [f"{key}={path}: and {len(faulty) - SHOWN_ROWS} more such rows"] if len(faulty) > SHOWN_ROWS else []
    return [prompt for prompt in found if isinstance(prompt, Prompt)], [*faulty[:SHOWN_ROWS], *more]


def read_rows(path: str, key: str) -> list[dict[str, Any]]:
    """The rows of a parquet file that has the columns of a task."""
    file = Path(path)
    if not file.is_file():
        raise BadInputError([f"{key}={path}: no such file; {how_to_make(file)}"])
    try:
        table = pq.read_table(file, page_checksum_verification=True)
        # Others may be large, such as embeddings, and nobody reads them.
        read = [name for name in (*COLUMNS, "extra_info") if name in table.column_names]
        rows: list[dict[str, Any]] = table.select(read).to_pylist()
    except (OSError, ValueError, pa.ArrowException) as error:
        raise BadInputError([f"{key}={path}: not a readable parquet file ({error})"]) from None
    missing = [column for column in COLUMNS if column not in table.column_names]
    if missing:
        raise BadInputError(
            [
                f"{key}={path}: no column {', '.join(missing)}; it has {', '.join(table.column_names)}; "
                f"{how_to_make(file)}"
            ]
        )
    if not rows:
        raise BadInputError([f"{key}={path}: holds no rows; {how_to_make(file)}"])
    return rows


def how_to_make(file: Path) -> str:
    """The command that makes a missing data file."""
    folder = file.parent.absolute()
    return f"python data/preprocess.py --data_source {folder} makes it from train.json and test.json there"


def is_message(message: Any) -> bool:
    """Whether something is a message of a role and a text."""
    return isinstance(message, dict) and all(isinstance(message.get(part), str) for part in ("role", "content"))


def to_prompt(number: int, row: Mapping[str, Any], *, check_truth: bool = True) -> Prompt | BadRowError:
    """One row as a prompt, or what is wrong with it."""
    messages, verdict, extra = row["prompt"], row["reward_model"], row.get("extra_info") or {}
    listed = isinstance(messages, list) and messages and all(map(is_message, messages))
    if not listed or messages[-1]["role"] != "user" or not messages[-1]["content"].strip():
        return BadRowError(f"row {number}: prompt={messages!r:.80} must be messages that end with a user's")
    truth = verdict.get("ground_truth") if isinstance(verdict, dict) else None
    if truth is None or not str(truth).strip():
        return BadRowError(f"row {number}: reward_model={verdict!r:.80} must hold a ground_truth that is not empty")
    if not row["data_source"] or not isinstance(row["data_source"], str):
        return BadRowError(f"row {number}: data_source={row['data_source']!r} must name a verifier")
    if not isinstance(extra, dict):
        return BadRowError(f"row {number}: extra_info={extra!r:.80} must be a record")
    try:
        if check_truth and verifier_of(row["data_source"]) is not None:
            # All of it was checked when the file was made; a hundred thousand formulas would take minutes.
            check_ground_truth(row["data_source"], str(truth), thorough=False)
    except ValueError as error:
        return BadRowError(f"row {number}: reward_model.ground_truth={truth!r:.80}: {error!s:.300}")
    index = extra.get("index")
    prompt_id = str(number if index in (None, "") else index)
    return Prompt(prompt_id, tuple(messages), row["data_source"], str(truth), extra)


def other_rows(step: int, draw: int, *, rows: int, count: int, seed: int, used: Collection[int]) -> list[int]:
    """At most `count` rows that `used` does not name, for draw number `draw` (from 1) of a step, in a seeded order."""
    order = np.random.default_rng([seed, step, draw]).permutation(rows)
    return [int(row) for row in order if row not in used][:count]


def batch_at(step: int, *, rows: int, batch_size: int, shuffle: bool, seed: int) -> list[int]:
    """Rows of training step `step` (from 1): epochs of whole batches, each epoch in a fresh seeded order.

    A pure function of the step, so that a run can go on anywhere.
    """
    per_epoch = rows // batch_size
    epoch, position = divmod(step - 1, per_epoch)
    order = np.random.default_rng([seed, epoch]).permutation(rows) if shuffle else np.arange(rows)
    return [int(row) for row in order[position * batch_size : (position + 1) * batch_size]]
