"""Draws responses by a model's own forward passes, with a cache of keys and values; no engine is needed.

Rows that end leave the batch at once, and others take their places. Every request has random numbers of its own, so
that what is drawn depends neither on the other rows nor on how many there are.

B  rows that are drawn at the same time        V  vocabulary        L  columns of the cache, padded on the left
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache

from mopd.types import IntArray
from trainer.workers.sampler_types import Request, SamplingSettings

MOST_ROWS = 256
"""Drawn at the same time, however much memory there is."""
PREFILL_TOKENS = 8192
"""Prompt tokens forwarded in one go; a longer prompt goes alone."""
CACHED_LAYERS = {"full_attention", "sliding_attention"}
"""Kinds of layers whose state is keys and values of every token."""


@dataclass(frozen=True)
class Drawn:
    """A response, before it is made text."""

    token_ids: list[int]
    logprobs: list[float]
    finish_reason: str
    """`stop` or `length`."""


@dataclass
class Rows:
    """What is being drawn: the state of B responses."""

    numbers: list[int]
    """The request of each row."""
    logits: Tensor
    """[B, V], of the next token."""
    present: Tensor
    """[B, L], 1 where a row has a token in the cache."""
    cache: Any
    noise: Tensor
    """[B, N], the uniform random numbers of each row's tokens, in their order."""
    drawn: Tensor
    """[B], tokens drawn so far."""

    def only(self, rows: Tensor) -> Rows:
        """Some of the rows, by index, without the columns that none of them has."""
        present = self.present[rows]
        first = int(present.any(dim=0).int().argmax())
        self.cache.batch_select_indices(rows)
        if first:
            for layer in self.cache.layers:
                layer.keys, layer.values = layer.keys[:, :, first:], layer.values[:, :, first:]
        numbers = [self.numbers[row] for row in rows.tolist()]
        return Rows(numbers, self.logits[rows], present[:, first:], self.cache, self.noise[rows], self.drawn[rows])

    def beside(self, other: Rows) -> Rows:
        """These rows and others."""
        columns = max(self.present.shape[1], other.present.shape[1])
        for own, its in zip(self.cache.layers, other.cache.layers, strict=True):
            own.keys = torch.cat([widened(layer.keys, columns, dim=2) for layer in (own, its)])
            own.values = torch.cat([widened(layer.values, columns, dim=2) for layer in (own, its)])
        return Rows(
            self.numbers + other.numbers,
            torch.cat([self.logits, other.logits]),
            torch.cat([widened(rows.present, columns, dim=1) for rows in (self, other)]),
            self.cache,
            torch.cat([self.noise, other.noise]),
            torch.cat([self.drawn, other.drawn]),
        )


def widened(states: Tensor, columns: int, dim: int) -> Tensor:
    """The same with so many columns in a dimension, zeros in front."""
    behind = [0, 0] * (states.ndim - 1 - dim)
    return pad(states, [*behind, columns - states.shape[dim], 0])


def check_cacheable(config: Any) -> None:
    """Refuses a model whose layers keep another state than keys and values. Raises ValueError that names them."""
    others = set(getattr(config, "layer_types", None) or []) - CACHED_LAYERS
    if others:
        raise ValueError(
            f"actor_rollout_ref.rollout.name=hf: the model's layer_types hold {', '.join(sorted(others))}, and this "
            "sampler keeps keys and values only; take a model of attention layers, or ROLLOUT_BACKEND=vllm"
        )


def noise_of(seed: int, tokens: int) -> Tensor:
    """[tokens], uniform in [0, 1), of one request: fewer are the first ones of more."""
    return torch.rand(tokens, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def draw(logits: Tensor, noise: Tensor, settings: SamplingSettings) -> tuple[Tensor, Tensor]:
    """A token for every row and its log-prob [B], of the distribution drawn from, by random numbers [B].

    Temperature 0 takes the likeliest; its log-prob is then that of temperature 1 and of the whole vocabulary.
    """
    logits = logits.float()
    if settings.temperature == 0:
        tokens = logits.argmax(dim=-1)
        return tokens, logits.log_softmax(dim=-1).gather(-1, tokens[:, None])[:, 0]
    logprobs = nucleus(logits / settings.temperature, settings.top_p).log_softmax(dim=-1)
    mass = logprobs.double().exp().cumsum(dim=-1)
    whole = mass[:, -1:]
    # Never the whole itself, which rounding could make of it: behind it there is no token.
    point = torch.minimum(noise[:, None] * whole, torch.nextafter(whole, torch.zeros_like(whole)))
    tokens = torch.searchsorted(mass, point, right=True)
    return tokens[:, 0], logprobs.gather(-1, tokens)[:, 0]


def nucleus(logits: Tensor, top_p: float) -> Tensor:
    """Minus infinity for all but the fewest likeliest tokens that have at least the share `top_p`."""
    if top_p >= 1:
        return logits
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    shares = ordered.softmax(dim=-1)
    before = shares.cumsum(dim=-1) - shares
    before[:, 0] = 0.0  # the likeliest is always there
    kept = torch.empty_like(before, dtype=torch.bool).scatter_(-1, order, before < top_p)
    return logits.masked_fill(~kept, -torch.inf)


@dataclass
class Decoder:
    """A model that draws."""

    model: Any
    ends: Collection[int]
    """Tokens that end a response."""
    max_model_len: int
    cache_tokens: int
    """Rows times columns of the cache that find room."""
    share_prompts: bool
    """Whether a prompt that several requests have is forwarded once."""
    device: torch.device = field(init=False)

    def __post_init__(self) -> None:
        self.device = next(self.model.parameters()).device

    def __call__(self, requests: Sequence[Request], settings: SamplingSettings) -> Iterator[list[tuple[int, Drawn]]]:
        """Yields responses as they end, with the numbers of their requests.

        Raises:
            ValueError: a prompt leaves no room for a response.
        """
        if not requests:
            return
        horizons = [self.horizon(request, settings) for request in requests]
        longest = max(len(request.prompt_ids) + horizon for request, horizon in zip(requests, horizons, strict=True))
        most = max(1, min(MOST_ROWS, self.cache_tokens // longest))
        waiting, rows = deque(range(len(requests))), None
        drawn: list[tuple[list[int], list[float]]] = [([], []) for _ in requests]
        while waiting or rows is not None:
            free = most - (0 if rows is None else len(rows.numbers))
            # Not for every row that ends: joining batches copies the cache.
            while waiting and free >= (most + 3) // 4:
                more = self.begin(next_rows(waiting, requests, free), requests, settings)
                free -= len(more.numbers)
                rows = more if rows is None else rows.beside(more)
            assert rows is not None
            tokens, ended = self.step(rows, drawn, horizons, settings)
            if ended:
                rows, tokens = self.without(rows, tokens, set(ended))
                yield [(number, Drawn(*drawn[number], reason)) for number, reason in ended.items()]
            if rows is not None:
                self.forward(rows, tokens)

    def horizon(self, request: Request, settings: SamplingSettings) -> int:
        """The most tokens of a response."""
        room = self.max_model_len - len(request.prompt_ids)
        if room < 1 or not len(request.prompt_ids):
            raise ValueError(
                f"a prompt of {len(request.prompt_ids)} tokens: it must have at least one, and fewer than "
                f"actor_rollout_ref.rollout.max_model_len={self.max_model_len}"
            )
        return min(settings.max_tokens, room)

    def begin(self, numbers: Sequence[int], requests: Sequence[Request], settings: SamplingSettings) -> Rows:
        """Forwards the prompts of some requests."""
        prompts = [requests[number].prompt_ids for number in numbers]
        places = places_of(prompts) if self.share_prompts else list(range(len(prompts)))
        distinct = [prompts[places.index(place)] for place in range(max(places) + 1)]
        columns = max(map(len, distinct))
        ids, present = np.zeros((2, len(distinct), columns), dtype=np.int64)
        for row, prompt in enumerate(distinct):
            ids[row, columns - len(prompt) :], present[row, columns - len(prompt) :] = prompt, 1
        noise = torch.stack([noise_of(requests[number].seed, settings.max_tokens) for number in numbers])
        mask, cache = torch.from_numpy(present).to(self.device), DynamicCache()
        logits = self.logits(torch.from_numpy(ids).to(self.device), mask, (mask.cumsum(1) - 1).clamp(min=0), cache)
        index = torch.tensor(places, device=self.device)
        cache.batch_select_indices(index)
        drawn = torch.zeros(len(numbers), dtype=torch.int64, device=self.device)
        return Rows(list(numbers), logits[index], mask[index], cache, noise.to(self.device), drawn)

    def logits(self, ids: Tensor, present: Tensor, positions: Tensor, cache: Any) -> Tensor:
        """[B, V], after the last column."""
        answer = self.model(
            input_ids=ids,
            attention_mask=present,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        found: Tensor = answer.logits[:, -1]
        return found

    def step(
        self,
        rows: Rows,
        drawn: Sequence[tuple[list[int], list[float]]],
        horizons: Sequence[int],
        settings: SamplingSettings,
    ) -> tuple[Tensor, dict[int, str]]:
        """Draws a token [B] for every row, and tells which requests have ended and why."""
        tokens, logprobs = draw(rows.logits, rows.noise.gather(1, rows.drawn[:, None])[:, 0], settings)
        rows.drawn = rows.drawn + 1
        ended = {}
        for number, token, logprob in zip(rows.numbers, tokens.tolist(), logprobs.tolist(), strict=True):
            own, spread = drawn[number]
            own.append(token)
            spread.append(logprob)
            if token in self.ends and not settings.ignore_eos:
                ended[number] = "stop"
            elif len(own) == horizons[number]:
                ended[number] = "length"
        return tokens, ended

    def without(self, rows: Rows, tokens: Tensor, ended: Collection[int]) -> tuple[Rows | None, Tensor]:
        """The rows that go on, and their tokens; None where all have ended."""
        left = [row for row, number in enumerate(rows.numbers) if number not in ended]
        index = torch.tensor(left, dtype=torch.int64, device=self.device)
        return (rows.only(index) if left else None), tokens[index]

    def forward(self, rows: Rows, tokens: Tensor) -> None:
        """Takes the tokens just drawn into the cache, and the logits of the next ones from there."""
        rows.present = pad(rows.present, [0, 1], value=1)
        positions = rows.present.sum(dim=1, keepdim=True) - 1
        rows.logits = self.logits(tokens[:, None], rows.present, positions, rows.cache)


def places_of(prompts: Sequence[IntArray]) -> list[int]:
    """For every prompt its number among the distinct ones, in their order."""
    seen: dict[bytes, int] = {}
    return [seen.setdefault(np.asarray(prompt, dtype=np.int64).tobytes(), len(seen)) for prompt in prompts]


def next_rows(waiting: deque[int], requests: Sequence[Request], free: int) -> list[int]:
    """Takes the next requests for which there is room, as many as can be forwarded in one go; at least one."""
    taken, longest, distinct = list[int](), 0, set[bytes]()
    while waiting and len(taken) < free:
        prompt = requests[waiting[0]].prompt_ids
        longest = max(longest, len(prompt))
        distinct.add(prompt.tobytes())
        if taken and longest * len(distinct) > PREFILL_TOKENS:
            break
        taken.append(waiting.popleft())
    return taken
