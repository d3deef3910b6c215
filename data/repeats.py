"""Tasks that come more than once, within a split or on both sides of it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from itertools import combinations

from records import Record, brief, is_given

SHOWN = 3
"""How many examples a sentence gives."""


def repeats(splits: Mapping[str, Sequence[Record]]) -> list[str]:
    """A sentence for each way in which well-formed records repeat each other, with counts and examples.

    The same prompt twice in a split counts double in training; on both sides of a split it is not held out. The same
    question with other options is milder, but an answer may be remembered. Equal `idx` are told too, since
    published tools tell tasks apart by it.
    """
    found = []
    for split, records in splits.items():
        for name, key in (("prompt", asked), ("`idx`", named)):
            found += sentence(
                f"of {len(records)} {split} rows repeat the {name} of an earlier one", again(records, key)
            )
    for (first, known), (second, records) in combinations(splits.items(), 2):
        prompts, questions = {asked(record) for record in known}, {question(record) for record in known} - {None}
        same = [record for record in records if asked(record) in prompts]
        close = [record for record in records if question(record) in questions and asked(record) not in prompts]
        text = f"of {len(records)} {second} rows have the {{}} of a {first} row"
        found += sentence(text.format("prompt"), same)
        found += sentence(text.format("question text") + ", with another prompt", close)
    return found


def asked(record: Record) -> Hashable:
    """What the student is asked, but for white space."""
    return tuple(" ".join((record.get(name) or "").split()) for name in ("system", "prompt"))


def question(record: Record) -> Hashable:
    """The question without its options, but for white space; None where the record has none."""
    text = record.get("description")
    return " ".join(text.split()) if isinstance(text, str) and is_given(text) else None


def named(record: Record) -> Hashable:
    """The name of the row."""
    return str(record["idx"])


def again(records: Sequence[Record], key: Callable[[Record], Hashable]) -> list[Record]:
    """The records whose key an earlier one has."""
    seen: set[Hashable] = set()
    found = []
    for record in records:
        value = key(record)
        if value in seen:
            found.append(record)
        seen.add(value)
    return found


def sentence(text: str, found: Sequence[Record]) -> list[str]:
    """`text` after the count of what was found, with examples; nothing where nothing was."""
    if not found:
        return []
    examples = "; ".join(f"idx {record['idx']} {brief(record['prompt'][:50])}" for record in found[:SHOWN])
    return [f"{len(found)} {text}, such as {examples}"]
