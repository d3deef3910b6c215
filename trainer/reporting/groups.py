"""Which rollouts a report shows, and a group of them packed for the page: prompt, responses, peers, teacher prompts."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mopd.types import IntArray
from trainer.errors import BadInputError
from trainer.replaying.records import Line, Tokens, checked, read_tokens
from trainer.reporting.likeliest import lists_of

SNIPPET = 120
"""Characters of a text that the list shows."""
MARKED = 12
"""Characters of a peer's text that is looked for in a teacher prompt: a shorter one may stand there by chance."""
STRIPPED = "</think>"
"""What ends the thinking that is left out of a peer's text."""
STATUSES = ("right", "wrong", "unknown")
HASH = "teacher_prompt_sha256"
"""Field of a rollout line by which a teacher prompt can be checked, where the run kept it."""

Pieces = Callable[[IntArray], list[str]]
"""The text of each token by itself, token ids [T]."""


@dataclass(frozen=True)
class ShownGroup:
    """One group as the page has it."""

    head: Mapping[str, Any]
    """What the list shows of it."""
    packed: str
    """Everything else but what is told token by token: JSON, deflated, in base64."""
    tokens: str
    """The recorded rollouts by token, likewise; empty where there are none."""
    likeliest: str
    """The likeliest tokens at each, likewise."""
    divergences: tuple[float, ...]
    """Of all its tokens that have one."""


@dataclass
class StepFile:
    """A step's rollout file, read group by group and no further than is asked; between two groups it is closed."""

    step: int
    file: Path
    offset: int = 0
    """Bytes of the groups that were read."""
    count: int = 0
    """Rollouts of the groups that were read."""

    def group(self) -> list[Line]:
        """The lines of its next group, in sampling order; none at its end.

        Raises:
            BadInputError: the file cannot be read, or a line is no rollout.
        """
        lines: list[Line] = []
        try:
            for line, size in self.following():
                if lines and line["uid"] != lines[0]["uid"]:
                    break
                lines.append(line)
                self.offset += size
                self.count += 1
        except OSError as error:
            raise BadInputError([f"{self.file.name}: cannot be read ({error.strerror})"]) from None
        except (ValueError, RecursionError) as error:
            raise BadInputError([f"{self.file.name}, rollout {self.count}: is no JSON ({error!s:.80})"]) from None
        return lines

    def following(self) -> Iterator[tuple[Line, int]]:
        """The lines that were not read yet, each with its bytes."""
        with self.file.open("rb") as stream:
            stream.seek(self.offset)
            # Bytes, since a text may hold characters at which other ways of reading would part it.
            for number, raw in enumerate(stream, start=self.count):
                yield (
                    checked(json.loads(raw.decode("utf-8", "replace")), f"{self.file.name}, rollout {number}"),
                    len(raw),
                )


def once_each(pieces: Pieces) -> Pieces:
    """The same texts, each token decoded once only: tokenizers are slow at that, and tokens are few."""
    known: dict[int, str] = {}

    def of_tokens(token_ids: IntArray) -> list[str]:
        wanted = token_ids.tolist()
        fresh = sorted(set(wanted) - known.keys())
        known.update(zip(fresh, pieces(np.asarray(fresh, dtype=np.int32)), strict=True))
        return [known[token] for token in wanted]

    return of_tokens


def step_files(folder: Path) -> list[StepFile]:
    """The rollout files of a run, by step."""
    found = [StepFile(int(file.stem), file) for file in folder.glob("*.jsonl") if file.stem.isdecimal()]
    return sorted(found, key=lambda entry: entry.step)


def spread(count: int) -> list[int]:
    """The numbers below `count`, so ordered that the first few of them lie evenly over all: the ends come first."""
    if count < 3:
        return list(range(count))
    order, gap = [0, count - 1], count - 1
    while gap > 1:
        gap = math.ceil(gap / 2)
        order += range(0, count, gap)
    return list(dict.fromkeys(order))


class Picker:
    """Groups of a run one after the other, evenly over its steps, those with recorded divergences first."""

    def __init__(self, files: Sequence[StepFile], pieces: Pieces | None) -> None:
        self.files = [files[index] for index in spread(len(files))]
        self.pieces = None if pieces is None else once_each(pieces)
        self.notes: list[str] = []
        """A sentence for every file that could not be read to its end."""
        self.tokens: dict[int, Tokens | None] = {}
        """Of the steps met so far."""

    def groups(self) -> Iterator[ShownGroup]:
        """First the first group of every step, then the second of every step, and so on."""
        waiting = self.files
        while waiting:
            further = []
            for entry in waiting:
                if lines := self.taken(entry):
                    yield shown(entry.step, lines, self.tokens_of(entry, lines), self.pieces)
                    further.append(entry)
            waiting = further

    def taken(self, entry: StepFile) -> list[Line]:
        """The next group of a file; nothing at its end, or where it cannot be read on."""
        try:
            return entry.group()
        except BadInputError as error:
            self.notes += error.problems
            return []

    def tokens_of(self, entry: StepFile, lines: Sequence[Line]) -> Tokens | None:
        """The tokens of the group just read; None where it needs none, or where the run did not keep them."""
        if entry.step not in self.tokens:
            self.tokens[entry.step] = self.read_tokens(entry)
        of_step, start = self.tokens[entry.step], entry.count - len(lines)
        if of_step is None:
            return None
        part = slice(start, entry.count)
        lists = {index - start: one for index, one in of_step.likeliest.items() if start <= index < entry.count}
        recorded = lists or any("divergence" in line for line in lines)
        return Tokens(of_step.token_ids[part], of_step.logprobs[part], lists) if recorded else None

    def read_tokens(self, entry: StepFile) -> Tokens | None:
        """The tokens of a step."""
        try:
            with entry.file.open("rb") as stream:
                count = sum(1 for _ in stream)
            return read_tokens(entry.file.with_suffix(".npz"), [{}] * count)
        except (BadInputError, OSError) as error:
            self.notes.append(error.problems[0] if isinstance(error, BadInputError) else str(error))
            return None


def shown(step: int, lines: Sequence[Line], tokens: Tokens | None, pieces: Pieces | None) -> ShownGroup:
    """One group, packed."""
    first = lines[0]
    names = {str(line["rollout_id"]): index for index, line in enumerate(lines)}
    rollouts = [details(line, lines, names) for line in lines]
    told = [{} if tokens is None else by_token(line, tokens, index, pieces) for index, line in enumerate(lines)]
    head = {
        "step": step,
        "uid": text(first["uid"]),
        "row": text(first.get("prompt_id")),
        "source": text(first.get("data_source")),
        "prompt": snippet(text(first.get("input"))),
        "rollouts": [listed(line, bool(one)) for line, one in zip(lines, told, strict=True)],
    }
    body = {"input": text(first.get("input")), "truth": text(first.get("gts")), "rollouts": rollouts}
    measured = [value for one in told for value in one.get("divergence", ()) if value is not None]
    lists = None if tokens is None else lists_of(tokens, pieces)
    return ShownGroup(
        head,
        packed(body),
        packed(told) if any(told) else "",
        "" if lists is None else packed(lists),
        tuple(measured),
    )


def listed(line: Line, recorded: bool) -> dict[str, Any]:
    """What the list shows of a rollout; `recorded`: whether something is known of each of its tokens."""
    status = line["status"] if line["status"] in STATUSES else "unknown"
    score = line["score"]
    return {
        "id": text(line["rollout_id"]),
        "status": status,
        "score": score if score is not None and math.isfinite(score) else None,
        "length": line["response_length"],
        "recorded": recorded,
        "text": snippet(line["output"]),
    }


def details(line: Line, lines: Sequence[Line], names: Mapping[str, int]) -> dict[str, Any]:
    """What the page shows of a rollout once its group is open."""
    peers = [
        {name: text(peer.get(name)) for name in ("slot", "rollout_id", "reason")}
        for peer in of_kind(line.get("peers"), list)
        if isinstance(peer, dict)
    ]
    prompt = line.get("teacher_prompt")
    found = {
        "output": line["output"],
        "feedback": line["feedback"],
        "finish": line["finish_reason"],
        "version": text(line.get("policy_version")),
        "peers": peers,
        "fallbacks": [text(entry) for entry in of_kind(line.get("fallbacks"), list)],
        "usable": line.get("usable") is True,
        "teacher": parts_of(prompt, peers, lines, names) if isinstance(prompt, str) else None,
    }
    if isinstance(prompt, str) and HASH in line:
        own = hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()
        found["hash"] = {"kept": text(line[HASH]), "same": own == line[HASH]}
    return found


def parts_of(
    prompt: str, peers: Sequence[Mapping[str, str]], lines: Sequence[Line], names: Mapping[str, int]
) -> list[Any]:
    """A teacher prompt in parts: texts, and where a peer of the group speaks [slot, index of the rollout] and its text.

    The text is left out where it is the whole of that rollout's response: the page has it already.

    A peer's text is found where it stands once; one that was shortened, or that stands there twice, is left unmarked.
    The parts together are the prompt, character by character.
    """
    places = []
    for peer in peers:
        if peer["rollout_id"] not in names:
            continue
        index = names[peer["rollout_id"]]
        output = lines[index]["output"]
        for told in (output, output.strip(), output.rpartition(STRIPPED)[2].strip()):
            if len(told) >= MARKED and prompt.count(told) == 1:
                start = prompt.index(told)
                places.append((start, start + len(told), [peer["slot"], index, *([] if told is output else [told])]))
                break
    parts: list[Any] = []
    end = 0
    for start, stop, part in sorted(places, key=lambda place: place[0]):
        if start >= end:
            parts += [prompt[end:start], part]
            end = stop
    return [part for part in [*parts, prompt[end:]] if part != ""]


def by_token(line: Line, tokens: Tokens, index: int, pieces: Pieces | None) -> dict[str, Any]:
    """Divergence, sampler's probability and text of every token, as far as they are known and of one length.

    Nothing where neither divergence nor likeliest tokens were recorded.
    """
    values, token_ids = line.get("divergence"), tokens.token_ids[index]
    found: dict[str, Any] = {}
    if isinstance(values, list) and len(values) == len(token_ids):
        told = [value if isinstance(value, int | float) and math.isfinite(value) else None for value in values]
        found["divergence"] = told
    if index in tokens.likeliest:
        found["likeliest"] = True
    if found:
        chances = np.exp(np.asarray(tokens.logprobs[index], dtype=np.float64))
        found["chance"] = [float(f"{chance:.3g}") if math.isfinite(chance) else None for chance in chances]
        found["pieces"] = None if pieces is None else pieces(token_ids)
    return found


def packed(body: Any) -> str:
    """JSON, deflated, in base64: a tenth of its size, and nothing in it can be taken for markup."""
    return base64.b64encode(zlib.compress(json.dumps(body, separators=(",", ":")).encode("ascii"), 6)).decode("ascii")


def of_kind(value: Any, kind: type[list[Any]]) -> list[Any]:
    """A value if it is of this kind, and else an empty one."""
    return value if isinstance(value, kind) else kind()


def snippet(told: str) -> str:
    """The beginning of a text on one line."""
    return " ".join(told[: 4 * SNIPPET].split())[:SNIPPET]


def text(value: Any) -> str:
    """A value as text; nothing for None."""
    return value if isinstance(value, str) else "" if value is None else json.dumps(value)
