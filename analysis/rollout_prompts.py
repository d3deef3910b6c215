"""From the flattened prompt of a rollout line back to the messages that were asked.

A line's `input` is the prompt as decoded without special tokens, so that of its messages only lines such as `user` are
left. The messages themselves are taken, in this order, from
`line`    the line, where it holds `prompt_messages`,
`data`    the parquet files of the run's prompts (`--data`), by the flattened text or by the row's index,
`parsed`  the text, where it has the form that ChatML (Qwen) leaves: an optional system message, one user message,
`text`    the text as a whole, as one user message: roles that cannot be told apart are then read as text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from json_lines import BadInput

from mopd.contexts import ContextSettings

Messages = list[dict[str, str]]
NO_THOUGHT = re.compile(r"<think>\s*</think>\s*\Z")
"""What is left of the answer's header where thinking was switched off."""
HEADER = "\nassistant\n"
CHATML = re.compile(r"(?:system\n(?P<system>.*?)\n)?user\n(?P<user>.*)\nassistant", re.DOTALL)


def bare(text: str) -> str:
    """A flattened prompt without what follows the answer's header."""
    return NO_THOUGHT.sub("", text).rstrip()


def flattened(messages: Sequence[Mapping[str, str]]) -> str:
    """What ChatML leaves of a conversation once special tokens are dropped, as `bare` has it."""
    return bare("\n".join(f"{message['role']}\n{message['content']}" for message in messages) + HEADER)


def is_conversation(messages: Any) -> bool:
    """Whether something is messages of a role and a text, a user's at the end."""
    return (
        isinstance(messages, list)
        and bool(messages)
        and all(isinstance(one, dict) and isinstance(one.get("role"), str) for one in messages)
        and all(isinstance(one.get("content"), str) for one in messages)
        and messages[-1]["role"] == "user"
    )


@dataclass
class PromptBook:
    """The prompts of data files, found again by what a rollout line says of them."""

    by_text: dict[str, Messages] = field(default_factory=dict)
    by_row: dict[str, list[Messages]] = field(default_factory=dict)

    @classmethod
    def of(cls, files: Iterable[Path]) -> PromptBook:
        """The prompts of parquet files.

        Raises:
            BadInput: a file cannot be read, or has no prompts.
        """
        book = cls()
        for file in files:
            for number, row in enumerate(parquet_rows(file)):
                if not is_conversation(row["prompt"]):
                    raise BadInput(f"--data {file}: row {number} has no messages that end with a user's")
                book.add(number, row)
        return book

    def add(self, number: int, row: Mapping[str, Any]) -> None:
        """Takes one row."""
        messages = [{"role": one["role"], "content": one["content"]} for one in row["prompt"]]
        index = (row.get("extra_info") or {}).get("index")
        self.by_text.setdefault(flattened(messages), messages)
        self.by_row.setdefault(str(number if index in (None, "") else index), []).append(messages)

    def find(self, text: str, row: str) -> Messages | None:
        """The prompt of this flattened text, else the one of this row whose texts all stand in it."""
        found = self.by_text.get(bare(text))
        inside = (one for one in self.by_row.get(row, []) if all(part["content"] in text for part in one))
        return found or next(inside, None)


def parquet_rows(file: Path) -> list[dict[str, Any]]:
    """Prompts of a parquet file, and what names them.

    Raises:
        BadInput: it cannot be read, or has no column `prompt`.
    """
    try:
        names = pq.read_schema(file).names
        if "prompt" not in names:
            raise BadInput(f"--data {file}: has no column prompt; it has {', '.join(names)}")
        rows: list[dict[str, Any]] = pq.read_table(file, columns=[*({"prompt", "extra_info"} & {*names})]).to_pylist()
    except (OSError, ValueError, pa.ArrowException) as error:
        raise BadInput(f"--data {file}: not a readable parquet file ({error!s:.200})") from None
    return rows


def messages_of(line: Mapping[str, Any], text: str, book: PromptBook) -> tuple[Messages, str]:
    """The messages of a line, without the instruction that only students are given, and where they are from."""
    if is_conversation(line.get("prompt_messages")):
        return line["prompt_messages"], str(line.get("prompt_source", "line"))
    if found := book.find(text, str(line.get("prompt_id", ""))):
        return found, "data"
    if parts := CHATML.fullmatch(bare(text)):
        asked = {"role": "user", "content": without_instruction(parts["user"])}
        system = parts["system"]
        return ([] if system is None else [{"role": "system", "content": system}]) + [asked], "parsed"
    return [{"role": "user", "content": without_instruction(text)}], "text"


def without_instruction(text: str) -> str:
    """The user's text without the published request for a summary, which teachers are never shown."""
    return text.removesuffix(ContextSettings.summary_instruction)
