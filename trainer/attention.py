"""Attention of a packed row: every sequence attends to its own prompt and to itself, and nothing is padded.

A row holds groups one after another, each a prompt and the responses to it. The first response continues the prompt as
one causal sequence. Each other response attends causally to itself, and all of them at once to the prompt's keys; the
two parts are joined by their log-sum-exps. A prompt's keys are neither copied nor computed again; no mask is made.
That is the way on a CPU; `attention_on` chooses among the others.

N  tokens of the row        h  query heads        k  key heads        d  width of a head
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.attention.bias import causal_lower_right
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

PACKED = "packed"
"""The name of this attention, as `attn_implementation`."""
PACKABLE = ("llama", "mistral", "qwen2", "qwen3")
"""Architectures whose layers are known to look at a token's own sequence through this attention alone."""


@dataclass(frozen=True)
class Run:
    """Sequences of one length, back to back: `count` times `length` tokens from `start` on."""

    start: int
    count: int
    length: int

    @property
    def stop(self) -> int:
        """Where the last sequence ends."""
        return self.start + self.count * self.length

    def of(self, row_N_h_d: Tensor) -> Tensor:
        """The run's part of a row, as a view [count, h, length, d]."""
        part: Tensor = row_N_h_d[self.start : self.stop].unflatten(0, (self.count, self.length))
        return part.transpose(1, 2)


def in_line(parts: Sequence[Tensor]) -> Tensor:
    """The row [N, h, d] of which a run after the other has [count, h, length, d]."""
    return torch.cat([part.transpose(1, 2).flatten(0, 1) for part in parts])


@dataclass(frozen=True)
class Branch:
    """Further responses to one prompt: every token of `rest` attends to all of `prefix`."""

    prefix: Run
    rest: Run
    """All tokens of these responses, as one sequence."""
    runs: tuple[Run, ...]
    """The same tokens, response by response."""


@dataclass(frozen=True)
class Segments:
    """Where the sequences of a packed row lie."""

    trunks: tuple[Run, ...]
    """Prompts with the first response to each."""
    branches: tuple[Branch, ...]

    @property
    def runs(self) -> tuple[Run, ...]:
        """Everything that attends causally to itself, in the row's order; each token once."""
        every = (*self.trunks, *(run for branch in self.branches for run in branch.runs))
        return tuple(sorted(every, key=lambda run: run.start))

    @property
    def prefixes(self) -> dict[int, Run]:
        """The prompt of every run of a branch, by where the run starts."""
        return {run.start: branch.prefix for branch in self.branches for run in branch.runs}


def check_packable(config: Any) -> None:
    """Refuses a model whose sequences cannot share a row. Raises ValueError that names what stands in the way."""
    layers = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None)
    dropout = getattr(config, "attention_dropout", 0.0)
    checks = {
        f"model_type={config.model_type!r} is none of {', '.join(PACKABLE)}": config.model_type in PACKABLE,
        f"layer_types holds {', '.join(sorted(layers))}; all must be full_attention": layers == {"full_attention"},
        f"sliding_window={window}; it must be null": window is None,
        f"attention_dropout={dropout}; it must be 0": not dropout,
    }
    faults = [fault for fault, holds in checks.items() if not holds]
    if faults:
        raise ValueError(
            f"this model cannot be forwarded as packed rows: in its config.json {'; '.join(faults)}. "
            "Set actor_rollout_ref.model.attn_implementation=sdpa to forward padded rows."
        )


def packed_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    segments: Segments | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention as a model of transformers calls it: query [1, h, N, d], key and value [1, k, N, d] to [1, N, h, d].

    Without `segments` the rows are ordinary ones [B, ...], padded on the right: causal attention without a mask.
    """
    if segments is None:
        ordinary: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )
        return ordinary
    attend = attention_on(query.device, query.dtype)
    q, k, v = (states.squeeze(0).transpose(0, 1) for states in (query, key, value))
    row_N_h_d = attend(q, k, v, segments, query.shape[-1] ** -0.5 if scaling is None else scaling)
    return row_N_h_d.unsqueeze(0), None


AttentionInterface.register(PACKED, packed_attention)


def attention_on(
    device: torch.device, dtype: torch.dtype
) -> Callable[[Tensor, Tensor, Tensor, Segments, float], Tensor]:
    """The fastest way that there is for a device and a dtype."""
    if device.type == "cpu":
        return segment_attention
    # Flash attention over sequences of different lengths is there for half precision, from Ampere on.
    half = dtype in (torch.bfloat16, torch.float16)
    if device.type == "cuda" and half and torch.cuda.get_device_capability(device) >= (8, 0):
        return ragged_attention
    return plain_attention


def plain_attention(query: Tensor, key: Tensor, value: Tensor, segments: Segments, scale: float) -> Tensor:
    """[N, h, d], by differentiable operations alone, on any device; a response's keys are joined to its prompt's."""
    prefixes, parts = segments.prefixes, list[Tensor]()
    every = [states.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for states in (key, value)]
    for run in segments.runs:
        prefix = prefixes.get(run.start)
        keys, values = (run.of(states) if prefix is None else behind(prefix, run, states) for states in every)
        mask = causal_lower_right(run.length, keys.shape[2])
        parts.append(scaled_dot_product_attention(run.of(query), keys, values, mask, scale=scale))
    return in_line(parts)


def behind(prefix: Run, run: Run, states: Tensor) -> Tensor:
    """The run's part of a row, each of its sequences behind a copy of the prefix."""
    return torch.cat([prefix.of(states).expand(run.count, -1, -1, -1), run.of(states)], dim=2)


@dataclass(frozen=True)
class Sequences:
    """The sequences of a row, in its order, each with the keys that it attends to."""

    keys: Tensor
    """Tokens of the row: those of a sequence's prompt and its own, sequence by sequence."""
    query_ends: Tensor
    """int32, where each sequence's queries end, from 0 on."""
    key_ends: Tensor
    """Likewise for `keys`."""
    longest_query: int
    longest_key: int


@lru_cache(maxsize=4)  # once for all layers
def sequences_of(segments: Segments, device: torch.device) -> Sequences:
    """The sequences of a row, on a device."""
    prefixes = segments.prefixes
    queries, keys = list[range](), list[list[int]]()
    for run in segments.runs:
        prefix = prefixes.get(run.start)
        for start in range(run.start, run.stop, run.length):
            queries.append(range(start, start + run.length))
            keys.append([*(range(prefix.start, prefix.stop) if prefix else ()), *queries[-1]])
    ends = [
        torch.tensor([0, *accumulate(map(len, spans))], dtype=torch.int32, device=device) for spans in (queries, keys)
    ]
    every = torch.tensor([key for span in keys for key in span], device=device)
    return Sequences(every, ends[0], ends[1], max(map(len, queries)), max(map(len, keys)))


def ragged_attention(query: Tensor, key: Tensor, value: Tensor, segments: Segments, scale: float) -> Tensor:
    """[N, h, d], in one call on a GPU; the keys of a prompt are copied for each response."""
    found = sequences_of(segments, query.device)
    row = varlen_attn(
        query,
        key.index_select(0, found.keys),
        value.index_select(0, found.keys),
        found.query_ends,
        found.key_ends,
        found.longest_query,
        found.longest_key,
        scale=scale,
        window_size=(-1, 0),  # causal, the last query with the last key
        enable_gqa=True,
    )
    assert isinstance(row, Tensor)
    return row


def segment_attention(query: Tensor, key: Tensor, value: Tensor, segments: Segments, scale: float) -> Tensor:
    """[N, h, d], on the CPU, without a copy of any key."""
    row: Tensor = SegmentAttention.apply(query, key, value, segments, scale)  # type: ignore[no-untyped-call]
    return row


class SegmentAttention(torch.autograd.Function):
    """Flash attention by parts.

    A part's gradient is flash attention's own, given the joined output and log-sum-exp in place of the part's: the
    probabilities are then those of the whole.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, segments: Segments, scale: float) -> Tensor:
        """[N, h, d]"""
        runs = segments.runs
        own = [flash(run.of(query), run.of(key), run.of(value), causal=True, scale=scale) for run in runs]
        row, spread_N_h_1 = in_line([part for part, _ in own]), in_line([spread for _, spread in own])
        for branch in segments.branches:
            prefix, rest = branch.prefix, branch.rest
            part, spread = flash(rest.of(query), prefix.of(key), prefix.of(value), causal=False, scale=scale)
            join_(rest.of(row), rest.of(spread_N_h_1), part, spread)
        ctx.save_for_backward(query, key, value, row, spread_N_h_1)
        ctx.segments, ctx.scale = segments, scale
        return row

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        """Gradients of query, key and value."""
        query, key, value, row, spread = ctx.saved_tensors
        gradient = gradient.contiguous()

        def parts(asking: Run, asked: Run, *, causal: bool) -> tuple[Tensor, Tensor, Tensor]:
            outer = (asking.of(row), asking.of(spread).squeeze(-1))
            inner = (asking.of(query), asked.of(key), asked.of(value))
            return flash_backward(asking.of(gradient), *inner, *outer, causal=causal, scale=ctx.scale)

        own = [parts(run, run, causal=True) for run in ctx.segments.runs]
        grad_query, grad_key, grad_value = (in_line(each) for each in zip(*own, strict=True))
        for branch in ctx.segments.branches:
            of_query, of_key, of_value = parts(branch.rest, branch.prefix, causal=False)
            branch.rest.of(grad_query).add_(of_query)
            branch.prefix.of(grad_key).add_(of_key)
            branch.prefix.of(grad_value).add_(of_value)
        return grad_query, grad_key, grad_value, None, None


def join_(row: Tensor, spread: Tensor, part: Tensor, part_spread: Tensor) -> None:
    """Joins attention over further keys, `part` [..., d] with log-sum-exp [..., 1], to what `row` and `spread` hold."""
    share = torch.sigmoid(part_spread - spread)
    row.copy_(torch.lerp(row.to(share.dtype), part.to(share.dtype), share))
    spread.copy_(torch.logaddexp(spread, part_spread))


def flash(query: Tensor, key: Tensor, value: Tensor, *, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """Attention [b, h, l, d] and its log-sum-exp [b, h, l, 1]."""
    part, spread = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default(
        query, key, value, 0.0, causal, scale=scale
    )
    return part, spread.unsqueeze(-1)


def flash_backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    row: Tensor,
    spread: Tensor,
    *,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value of a part, from the joined output and log-sum-exp [b, h, l]."""
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default
    found: tuple[Tensor, Tensor, Tensor] = backward(gradient, query, key, value, row, spread, 0.0, causal, scale=scale)
    return found
