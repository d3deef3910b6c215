"""Which contexts are scored on which responses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from row_files import Needed, Row, each_row, short_hash

SELF = "self_response"
"""The kind of a target that is the very response for which a context was made."""
VARIANT: Needed = {
    "variant_id": str,
    "condition": str,
    "prompt_id": str,
    "response_id": str,
    "assembled_context_text": str,
    "sections_used": dict,
    "variant_spec": dict,
}
TARGET: Needed = {"target_id": str, "target_type": str, "prompt_id": str, "response_text": str}


@dataclass(frozen=True)
class Pair:
    """A context, and a response to be judged under it."""

    variant: Row
    target: Row

    @property
    def key(self) -> tuple[str, str]:
        """Tells it from all other pairs."""
        return self.variant["variant_id"], self.target["target_id"]


def own_target(variant: Row, by_response: Mapping[str, Row]) -> Row | None:
    """The response that a context was made for; None where neither file has its text."""
    found = by_response.get(variant["response_id"], {})
    text = variant.get("response_text", found.get("response_text"))
    if not isinstance(text, str):
        return None
    names = (variant["prompt_id"], variant["response_id"])
    return {
        **{name: variant.get(name) for name in ("reward", "success", "known_places")},
        "target_id": short_hash(SELF, *names, text),
        "target_type": SELF,
        "source_response_id": variant["response_id"],
        "response_text": text,
        "source_model": found.get("source_model", "student"),
    }


@dataclass(frozen=True)
class Work:
    """What is to be scored. Contexts are read one by one, for all of them may be more than fits into memory."""

    variants: Path
    by_prompt: Mapping[str, Sequence[Row]]
    """The targets of each prompt that are asked for."""
    by_response: Mapping[str, Row]
    """The targets that are a student's response, by its name."""
    conditions: frozenset[str] | None
    """None for all."""
    own: bool
    """Whether each context is scored on its own response."""
    most: int | None

    def __iter__(self) -> Iterator[Pair]:
        """The pairs, in the order of the contexts."""
        return islice(self.every(), self.most)

    def every(self) -> Iterator[Pair]:
        """All pairs."""
        for variant in each_row(self.variants, VARIANT):
            if self.conditions is None or variant["condition"] in self.conditions:
                own = own_target(variant, self.by_response) if self.own else None
                others = self.by_prompt.get(variant["prompt_id"], [])
                yield from (Pair(variant, target) for target in (others if own is None else [own, *others]))
