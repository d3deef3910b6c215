"""A causal language model that says how likely responses are: several at a time, by a budget of tokens.

Rows are padded on the right, where causal attention never looks, and lie beside others of their length. Of the
vocabulary's logits only those that predict response tokens are made, some thousand positions at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from json_lines import BadInput
from row_files import natural
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from mopd.types import IntArray

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LOGITS_AT_HAND = 2**26
"""How many logits exist at one time."""
EDGE = 2**20
"""Bytes at both ends of a file of weights by which it is told from another."""
SAME = 1e-3
"""Nats by which the two ways to a model's logits may differ."""


@dataclass(frozen=True)
class Job:
    """A response, read after a prompt."""

    prompt_ids: IntArray
    """[L], at least one."""
    response_ids: IntArray
    """[T], at least one."""

    @property
    def length(self) -> int:
        """Tokens of both."""
        return len(self.prompt_ids) + len(self.response_ids)

    @property
    def key(self) -> tuple[bytes, bytes]:
        """Equal for equal tokens."""
        return self.prompt_ids.tobytes(), self.response_ids.tobytes()


@dataclass(frozen=True)
class Reading:
    """What the model says of a response."""

    logprobs: Tensor
    """[T] fp32, of its tokens."""
    asked: Tensor
    """[P] fp32, log-probs of the tokens asked for."""
    likeliest: Tensor
    """[P] bool, whether no token is likelier there."""


Asked = tuple[tuple[int, int], ...]
"""Places in a response, each with a token whose log-prob is asked for there."""


def batches(jobs: Sequence[Job], budget: int) -> Iterator[list[int]]:
    """Positions of jobs, the longest first, in batches of one job or of at most `budget` tokens with their padding."""
    batch, width = list[int](), 0
    for index in sorted(range(len(jobs)), key=lambda index: -jobs[index].length):
        if batch and width * (len(batch) + 1) > budget:
            yield batch
            batch = []
        width = jobs[index].length if not batch else width
        batch.append(index)
    if batch:
        yield batch


UNUSABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, EOFError)
"""What loading raises where a folder holds something else than a model (RecursionError is a RuntimeError)."""
BROKEN = (*UNUSABLE, SafetensorError)
"""Where files of weights are damaged as well."""


def folder_of(model: str) -> str:
    """The folder with the weights: `model` itself, or `hf` inside a checkpoint of a run.

    Raises:
        BadInput: it is a whole run, of which only a checkpoint can be meant.
    """
    folder = Path(model)
    if (folder / "metrics.jsonl").is_file() and not (folder / "config.json").is_file():
        there = sorted(folder.glob("checkpoints/step_*/hf"), key=lambda found: natural(str(found)))
        hint = f"; name a checkpoint of it, such as {there[-1]}" if there else ", which has no checkpoints/step_N/hf"
        raise BadInput(f"--model {model}: is a whole run{hint}")
    return str(folder / "hf") if (folder / "hf").is_dir() else model


def unusable(model: str, what: str, error: Exception) -> BadInput:
    """Says why a model's part could not be loaded."""
    if not Path(model).is_dir():
        return BadInput(f"--model {model}: there is no such folder, and this machine's cache has no model of that name")
    first = (str(error).splitlines() or [type(error).__name__])[0]
    return BadInput(f"--model {model}: no {what} could be loaded ({first})")


def fingerprint(model: str) -> str:
    """Tells a folder of weights from another: by its configuration, and by the ends of its weights."""
    folder, digest = Path(model), hashlib.sha256()
    if not folder.is_dir():
        return model
    for file in sorted(folder.iterdir()):
        if file.suffix in (".json", ".jinja"):
            digest.update(file.read_bytes())
        elif file.suffix in (".safetensors", ".bin"):
            with file.open("rb") as stream:
                head, size = stream.read(EDGE), file.stat().st_size
                stream.seek(max(0, size - EDGE))
                digest.update(b"%d" % size + head + stream.read(EDGE))
    return digest.hexdigest()


def device_named(name: str) -> torch.device:
    """The device; `auto` is the GPU where there is one.

    Raises:
        BadInput: there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise BadInput(f"--device {name}: unknown; name auto, cpu or cuda") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BadInput(f"--device {name}: no GPU is visible; name cpu")
    return device


def load_tokenizer(model: str) -> Any:
    """The tokenizer of a model.

    Raises:
        BadInput: there is none, it has no chat template, or it cannot tell where in a text its tokens stand.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(model)
    except UNUSABLE as error:
        raise unusable(model, "tokenizer", error) from None
    if not tokenizer.chat_template:
        raise BadInput(f"--model {model}: its tokenizer has no chat template; take an instruct model")
    if not tokenizer.is_fast:
        raise BadInput(f"--model {model}: its tokenizer is none of the fast ones, whose tokens know their places")
    return tokenizer


class TeacherModel:
    """Scores responses; nothing is learnt."""

    def __init__(self, model: str, device: torch.device, dtype: torch.dtype) -> None:
        """Loads the weights of a folder, or of a name that the machine's cache knows.

        Raises:
            BadInput: there are none.
        """
        disable_progress_bar()
        try:
            loaded = AutoModelForCausalLM.from_pretrained(model, dtype=dtype, use_safetensors=True)
        except BROKEN as error:
            raise unusable(model, "model", error) from None
        self.model: Any = loaded.to(device).eval()
        self.device = device
        self.head: Any = self.model.get_output_embeddings()
        self.plain = self.is_plain()

    @property
    def vocabulary(self) -> int:
        """Entries of the output layer."""
        return int(self.head.weight.shape[0])

    @torch.no_grad()
    def is_plain(self) -> bool:
        """Whether logits are what the output layer makes of the last states; some models scale or bend them after."""
        ids = torch.arange(min(8, self.vocabulary), device=self.device)[None]
        whole = self.model(input_ids=ids, use_cache=False).logits.float()
        found: bool = bool((whole - self.head(self.states(ids)).float()).abs().max() < SAME)
        return found

    def states(self, ids: Tensor) -> Tensor:
        """The last hidden states [B, L, H] of padded rows [B, L]."""
        body = getattr(self.model, self.model.base_model_prefix)
        states: Tensor = body(input_ids=ids, use_cache=False).last_hidden_state
        return states

    @torch.no_grad()
    def read(self, jobs: Sequence[Job], asked: Sequence[Asked]) -> list[Reading]:
        """One reading per job, in order."""
        width = max(job.length for job in jobs)
        ids = np.zeros((len(jobs), width), dtype=np.int64)
        for row, job in enumerate(jobs):
            ids[row, : job.length] = np.concatenate([job.prompt_ids, job.response_ids])
        rows = torch.from_numpy(ids).to(self.device)
        places = torch.cat(
            [row * width + torch.arange(len(job.prompt_ids) - 1, job.length - 1) for row, job in enumerate(jobs)]
        ).to(self.device)
        tokens = torch.from_numpy(np.concatenate([job.response_ids for job in jobs]).astype(np.int64)).to(self.device)
        whole = self.states(rows) if self.plain else self.model(input_ids=rows, use_cache=False).logits
        chosen = whole.flatten(0, 1).index_select(0, places)
        starts = np.cumsum([0, *(len(job.response_ids) for job in jobs)])
        probes = [(int(starts[row]) + place, token) for row, one in enumerate(asked) for place, token in one]
        logprobs, others, best = self.through(chosen, tokens, probes)
        parts = logprobs.split([len(job.response_ids) for job in jobs])
        counts = [len(one) for one in asked]
        return [Reading(*one) for one in zip(parts, others.split(counts), best.split(counts), strict=True)]

    def through(
        self, chosen: Tensor, tokens: Tensor, probes: Sequence[tuple[int, int]]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probs of tokens [M], from states or logits `chosen` [M, ...]; and of the probes [P], as `Reading`."""
        logprobs = list[Tensor]()
        others, best = torch.zeros(len(probes)), torch.zeros(len(probes), dtype=torch.bool)
        size = max(1, LOGITS_AT_HAND // self.vocabulary)
        for start in range(0, len(tokens), size):
            part = chosen[start : start + size]
            logits = (self.head(part) if self.plain else part).float()
            normalisers = logits.logsumexp(-1)
            own = logits.gather(-1, tokens[start : start + size, None])[:, 0]
            logprobs.append((own - normalisers).cpu())
            for number, (place, token) in enumerate(probes):
                if start <= place < start + size:
                    row = logits[place - start]
                    others[number] = row[token] - normalisers[place - start]
                    best[number] = row[token] >= row.max()
        return torch.cat(logprobs), others, best
