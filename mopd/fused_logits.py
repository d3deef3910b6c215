"""Logits that exist for a few tokens at a time: how they are made and what is read off them.

    logits = hidden @ weight.T      [C, V], of C tokens; not yet divided by the temperature
    read(logits, ids)               K entries, the normaliser and the entropy of every token: what outlives the logits

Sums are carried in float32 (float64 for float64). Of bfloat16 inputs the logits come out in float32 where `precise`,
as they do on a GPU unless told otherwise; a CPU rounds them to bfloat16, as a dense layer does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import pad

from mopd.divergence import LOG_FLOOR, Support, Tail, wide
from mopd.fused_kernels import GROUP, Scan, scan
from mopd.support import own_ids

GradMode = Literal["exact", "sparse", "auto"]

LOGITS_AT_HAND = {"cpu": 1 << 25, "cuda": 1 << 27}
"""How many logits may exist at one time, by device."""
TILES = {"cpu": 16, "cuda": 4}
"""Into how many times smaller a tile backward cuts them, for it has them in several forms, and caches are small."""
UPCAST = 1 << 22
"""Of how many entries a weight is made wide at one time, where no product of narrow inputs has a wide result."""
EXACT_FROM = 4096
"""Entries of a vocabulary from which float32 inputs are worth float64 logits: below, rounding is that of full logits,
and gathering rows would take longer than all else."""
GATHERED = 1 << 20
"""How many entries of a weight are gathered at one time, for logits in float64."""


@dataclass(frozen=True)
class Options:
    """The settings of one call, checked; see `mopd.fused.linear_divergence`."""

    device: str
    """`cpu`, `cuda`."""
    temperature: float = 1.0
    grad_mode: GradMode = "exact"
    tolerance: float = 1e-3
    alpha: float = 0.5
    topk: int | None = None
    tail: Tail = "bucket"
    support: Support = "student"
    entropy: bool = False
    precise: bool | None = None
    logits_at_hand: int | None = None

    def __post_init__(self) -> None:
        choices = {"grad_mode": get_args(GradMode), "tail": get_args(Tail), "support": get_args(Support)}
        demands = {
            "temperature": (0.0 < self.temperature < float("inf"), "positive"),
            "alpha": (0.0 <= self.alpha <= 1.0, "in [0, 1] (0 forward KL, 1 reverse KL)"),
            "tolerance": (self.tolerance >= 0.0, "a share of the gradient, 0 or more"),
            "topk": (self.topk is None or self.topk > 0, "positive, or None for the full vocabulary"),
            "logits_at_hand": (self.logits_at_hand is None or self.logits_at_hand > 0, "positive, or None"),
            **{name: (getattr(self, name) in one, f"one of {', '.join(one)}") for name, one in choices.items()},
        }
        for name, (holds, right) in demands.items():
            if not holds:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be {right}")

    @property
    def at_hand(self) -> int:
        """How many logits may exist at one time."""
        return self.logits_at_hand or LOGITS_AT_HAND.get(self.device, LOGITS_AT_HAND["cpu"])

    @property
    def tile(self) -> int:
        """How many logits a tile of backward has."""
        return self.at_hand // TILES.get(self.device, TILES["cpu"])

    @property
    def wide_logits(self) -> bool:
        """Whether the logits of narrow inputs are float32."""
        return self.device == "cuda" if self.precise is None else self.precise

    def scan(self, logits: Tensor) -> Scan:
        """What logits `[C, V]` tell at one look."""
        return scan(logits, self.temperature, self.entropy)

    def chunk(self, vocabulary: int) -> int:
        """How many tokens' logits may exist at one time: at least one's."""
        return max(1, self.at_hand // vocabulary)


@dataclass(frozen=True)
class Reading:
    """What outlives the logits of C tokens, over the temperature; wide floats, float64 of float32 inputs (`Rows`). All
    counts from the largest logit, for a difference of small numbers is the more precise."""

    entries: Tensor
    """[C, K], the logits asked for, less the largest."""
    normaliser: Tensor
    """[C], the logsumexp, less the largest; finite just where the logits are a distribution
    (`mopd.divergence.is_distribution`)."""
    largest: Tensor
    """[C]."""
    entropy: Tensor
    """[C], nats; 0 unless asked for."""

    @property
    def logprobs(self) -> Tensor:
        """[C, K]."""
        return (self.entries - self.normaliser[:, None]).clamp(min=LOG_FLOOR)


@dataclass(frozen=True)
class Head:
    """An output layer, a constant; entries beyond the vocabulary are cut, entries that it lacks are impossible."""

    weight: Tensor
    """[V', H]."""
    vocabulary: int
    """V."""
    wide_logits: bool
    buffer: Tensor | None
    """Flat, at least C V' long, where the logits are put; None for memory of their own."""

    def __call__(self, hidden_C_H: Tensor) -> Tensor:
        """The logits `[C, V]`; in a buffer they last until it is used again."""
        weight = self.weight[: self.vocabulary]
        shape = len(hidden_C_H), len(weight)
        out = None if self.buffer is None else self.buffer[: shape[0] * shape[1]].view(shape)
        logits = product(hidden_C_H, weight.t(), self.wide_logits, out)
        return logits if shape[1] == self.vocabulary else pad(logits, (0, self.vocabulary - shape[1]), value=-torch.inf)


@dataclass(frozen=True)
class Rows:
    """An output layer and the hidden states that it is asked of."""

    head: Head
    hidden: Tensor
    """[C, H]."""

    def logits(self) -> Tensor:
        """As of the head."""
        return self.head(self.hidden)

    def exactly(self, ids: Tensor) -> Tensor | None:
        """The logits at ids `[C, K]` of float32 inputs, in float64; None of narrow ones, which lose more elsewhere, and
        of small vocabularies.

        What is compared is a small difference of large logits, which in float32 keeps five digits.
        """
        weight = self.head.weight[: self.head.vocabulary]
        if weight.dtype != torch.float32 or len(weight) < EXACT_FROM:
            return None
        known, size = ids < len(weight), max(1, GATHERED // max(1, ids.shape[1] * weight.shape[1]))
        parts = zip(self.hidden.split(size), ids.long().where(known, 0).split(size), strict=True)
        found = [(weight[names].double() @ states.double()[:, :, None])[:, :, 0] for states, names in parts]
        return torch.cat(found).masked_fill(~known, -torch.inf)


def heads(options: Options, tokens: int, vocabulary: int, *weights: Tensor) -> tuple[Head, ...]:
    """One head per weight `[V', H]`, for chunks of at most `tokens` tokens.

    Fresh memory is dear on a CPU: there all of them put their logits into one place, so that only the last ones last.
    """
    buffers: dict[torch.dtype, Tensor] = {}
    if options.device == "cpu":
        size = min(options.chunk(vocabulary), tokens) * vocabulary
        for kind in {logits_dtype(weight, options.wide_logits) for weight in weights}:
            buffers[kind] = torch.empty(size, dtype=kind)
    return tuple(
        Head(
            weight.detach(),
            vocabulary,
            options.wide_logits,
            buffers.get(logits_dtype(weight, options.wide_logits)),
        )
        for weight in weights
    )


def logits_dtype(weight: Tensor, wide_logits: bool) -> torch.dtype:
    """The dtype of the logits that a weight gives."""
    return torch.float32 if wide_logits and weight.dtype != torch.float64 else weight.dtype


def product(left: Tensor, right: Tensor, wide_out: bool, out: Tensor | None = None) -> Tensor:
    """left @ right, `[C, H]` and `[H, V]`: of narrow floats in float32 if `wide_out`; in `out` if given."""
    if not wide_out or wide(left).dtype == left.dtype:
        return torch.mm(left, right, out=out)
    if left.is_cuda:
        return torch.mm(left, right, out_dtype=torch.float32)
    out = torch.empty(len(left), right.shape[1], dtype=torch.float32, device=left.device) if out is None else out
    left, width = left.float(), max(1, UPCAST // len(right))
    for start in range(0, right.shape[1], width):
        columns = slice(start, start + width)
        torch.mm(left, right[:, columns].float(), out=out[:, columns])
    return out


def read(logits: Tensor, ids: Tensor, seen: Scan, options: Options, exact: Tensor | None = None) -> Reading:
    """Of logits `[C, V]`: the entries at `ids` `[C, K]`, the normaliser and, if asked for, the entropy.

    With x = (logit - largest) / temperature, the normaliser is log sum exp(x), and the entropy that less the mean of x.

    Args:
        seen: the scan of these logits.
        exact: the same entries in float64. The normaliser then counts them instead, as far as the ids ascend.
    """
    near = (logits.gather(-1, ids.long()) - seen.largest[:, None]) / options.temperature
    total = seen.total.to(near)
    entropy = total.log() - seen.weighted / total if options.entropy else torch.zeros_like(total)
    if exact is None:
        return Reading(near, total.log(), seen.largest / options.temperature, entropy)
    largest, once = seen.largest.double(), ids.diff(dim=-1, prepend=ids[:, :1] - 1) > 0
    entries = (exact - largest[:, None]) / options.temperature
    change = (entries.exp() - near.exp().double()).where(once, 0.0).sum(dim=-1)
    return Reading(entries, (seen.total + change).log(), largest / options.temperature, entropy.double())


def likeliest(logits: Tensor, count: int, peaks: Tensor) -> Tensor:
    """As `mopd.support.own_ids`, of logits `[C, V]` and their peaks: they lie in the `count` highest groups."""
    groups = logits.shape[-1] // GROUP
    if count >= groups // 4:
        return own_ids(logits, count)
    highest = peaks[:, :groups].topk(count, dim=-1, sorted=False).indices
    starts = torch.arange(0, groups * GROUP, groups, device=logits.device)
    rest = torch.arange(groups * GROUP, logits.shape[-1], device=logits.device).expand(len(logits), -1)
    ids = torch.cat([(highest[:, None, :] + starts[:, None]).flatten(1), rest], dim=-1)
    return ids.gather(-1, logits.gather(-1, ids).topk(count, dim=-1, sorted=False).indices)


def check_states(owner: str, hidden: Tensor, weight: Tensor, tokens: Tensor) -> None:
    """Raises ValueError unless tokens `[N]`, hidden states `[N, H]` and weight `[V, H]` pair up, of one float type.

    Args:
        owner: how the names of the two begin, `student_`.
    """
    if tokens.dim() != 1:
        raise ValueError(f"tokens has shape {tuple(tokens.shape)}; it must be [N], the packed response tokens")
    if hasattr(weight, "full_tensor"):
        raise ValueError(f"{owner}weight is a shard ({type(weight).__name__}); unshard its module before the call")
    if weight.dim() != 2 or not len(weight) or hidden.shape != (len(tokens), weight.shape[1]):
        shapes = f"{owner}hidden {tuple(hidden.shape)} and {owner}weight {tuple(weight.shape)}"
        raise ValueError(f"{shapes} must be [N, H] and [V, H] with V >= 1, and N = {len(tokens)} as of tokens")
    if hidden.dtype != weight.dtype or not hidden.is_floating_point():
        raise ValueError(f"{owner}hidden is {hidden.dtype}, {owner}weight {weight.dtype}; must be one float type")
