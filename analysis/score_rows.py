"""A pair of context and response in tokens, and the row that tells what a teacher says of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from json_lines import BadInput
from row_files import Row
from score_pairs import SELF, Pair
from teacher_model import Asked, Job, Reading
from teacher_prompts import Fitted, TeacherPrompts, sections_used, speakable

from mopd.types import IntArray


@dataclass(frozen=True)
class Known:
    """A known place in tokens."""

    place: Row
    index: int
    """Tokens of the response before it."""
    token: int
    """The right one."""


@dataclass(frozen=True)
class Prepared:
    """A pair as the model reads it."""

    pair: Pair
    fitted: Fitted
    response_ids: IntArray
    known: tuple[Known, ...]

    @property
    def job(self) -> Job:
        """What is to be computed."""
        return Job(self.fitted.ids, self.response_ids)

    @property
    def asked(self) -> Asked:
        """The tokens whose log-probs are asked for besides."""
        return tuple((one.index, one.token) for one in self.known)


class Preparer:
    """Turns pairs into tokens."""

    def __init__(self, prompts: TeacherPrompts) -> None:
        self.prompts = prompts
        self.tokenized = lru_cache(maxsize=1024)(self._tokenized)

    def _tokenized(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """The tokens of a response, and where in it each stands."""
        found = self.prompts.tokenizer(speakable(text), add_special_tokens=False, return_offsets_mapping=True)
        return found["input_ids"], found["offset_mapping"]

    def of(self, pair: Pair) -> Prepared | None:
        """A pair, ready; None where its prompt does not fit.

        Raises:
            BadInput: a row holds what cannot be read.
        """
        text = pair.target["response_text"]
        ids, _ = self.tokenized(text)
        fitted = self.prompts.of(pair.variant, len(ids))
        if fitted is None:
            return None
        try:
            places = pair.target.get("known_places") or []
            known = tuple(found for place in places if (found := self.known(text, place)) is not None)
        except (TypeError, KeyError, AttributeError) as error:
            name = pair.target["target_id"]
            raise BadInput(
                f"the known_places of target {name} cannot be read ({type(error).__name__}: {error})"
            ) from None
        return Prepared(pair, fitted, np.asarray(ids, dtype=np.int32), known)

    def known(self, text: str, place: Row) -> Known | None:
        """The right next token at a place: the first in which the response and its mended form differ.

        None where tokens do not tell: where they merge across the place, or one form ends.
        """
        start, written, right = place["start"], place["written"], place["right"]
        ids, spans = self.tokenized(text)
        index = next((number for number, (_, end) in enumerate(spans) if end > start), len(ids))
        if index == len(ids) or text[start : start + len(written)] != written:
            return None
        if right == written:
            return Known(place, index, ids[index])
        mended, _ = self.tokenized(text[:start] + right + text[start + len(written) :])
        while index < min(len(ids), len(mended)) and ids[index] == mended[index]:
            index += 1
        if index >= min(len(ids), len(mended)) or ids[:index] != mended[:index]:
            return None
        return Known(place, index, mended[index])


def scored(one: Prepared, reading: Reading | None, model: str) -> Row:
    """The row of a pair."""
    variant, target, shown = one.pair.variant, one.pair.target, one.fitted.view.peers
    total = None if reading is None else math.fsum(reading.logprobs.tolist())
    mean = None if total is None else total / len(one.response_ids)
    judged = variant if target["target_type"] == SELF else target
    texts = {text.strip() for text in (shown.primary, shown.another, shown.failure, *shown.more) if text is not None}
    return {
        "variant_id": variant["variant_id"],
        "target_id": target["target_id"],
        "condition": variant["condition"],
        "target_type": target["target_type"],
        "prompt_id": variant["prompt_id"],
        "response_id": variant["response_id"],
        "uid": variant.get("uid"),
        "source_model": target.get("source_model"),
        "teacher_model": model,
        "sections_used": sections_used(shown) if "peers" in variant else variant["sections_used"],
        "variant_spec": variant["variant_spec"],
        "teacher_seq_logprob": finite(total),
        "teacher_avg_token_logprob": finite(mean),
        "teacher_score": finite(mean),
        "teacher_response_len": len(one.response_ids),
        "teacher_prompt_len": len(one.fitted.ids),
        "teacher_prompt_truncated": one.fitted.truncated,
        "target_in_context": target["response_text"].strip() in texts,
        "reward": judged.get("reward"),
        "success": judged.get("success"),
        "difficulty_bucket": variant.get("difficulty_bucket"),
        **({} if reading is None else path_fields(one.known, reading)),
    }


def finite(value: float | None) -> float | None:
    """A number, or None where it is none."""
    return value if value is not None and math.isfinite(value) else None


def path_fields(known: Sequence[Known], reading: Reading) -> Row:
    """What the teacher says at known places; nothing where there are none."""
    told = [
        {**one.place, "probability": math.exp(value), "likeliest": best}
        for one, value, best in zip(known, reading.asked.tolist(), reading.likeliest.tolist(), strict=True)
        if math.isfinite(value)
    ]
    found: Row = {"places": told} if told else {}
    on_path = [place for place in told if not place["flawed"]]
    off_path = [place for place in told if place["flawed"]]
    for name, place in (("off_path", off_path[:1]), ("on_path", on_path[-1:])):
        if place:
            found |= {f"{name}_probability": place[0]["probability"], f"{name}_correct": place[0]["likeliest"]}
    return found


def only(reading: Reading, have: Asked, want: Asked) -> Reading:
    """The part of a reading that one of several equal pairs asked for."""
    chosen = [have.index(ask) for ask in want]
    return Reading(reading.logprobs, reading.asked[chosen], reading.likeliest[chosen])
