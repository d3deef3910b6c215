"""Attention of a packed row: by parts it is what a dense mask gives, in every dtype, sharded and checkpointed too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM

from tests.trainer.exact_models import ARCHITECTURES, VOCABULARY, WIDTH, config_of
from trainer import attention
from trainer.attention import PACKED, Segments, check_packable, plain_attention, segment_attention
from trainer.layout import batch_of, hidden_states, packed_row

HEADS, KEY_HEADS, HEAD = 4, 2, 8
BOUND = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 4e-2}
"""How far values and gradients may be from those in float64, relative to the largest."""

Groups = list[tuple[int, list[int]]]
"""Lengths of a prompt and of the responses to it."""
groups = st.lists(
    st.tuples(st.integers(1, 9), st.lists(st.integers(1, 12), min_size=1, max_size=5)), min_size=1, max_size=4
)


def segments_of(drawn: Groups) -> Segments:
    prompts = [np.full(prompt, number) for number, (prompt, responses) in enumerate(drawn) for _ in responses]
    responses = [np.zeros(length, dtype=np.int64) for _, lengths in drawn for length in lengths]
    _, _, segments, _ = packed_row(prompts, responses)
    assert segments is not None
    return segments


def seen_of(drawn: Groups) -> Tensor:
    """Which token sees which [N, N]: those of its prompt and of its own response that are not behind it."""
    size = sum(prompt + sum(length - 1 for length in responses) for prompt, responses in drawn)
    seen, begin = torch.zeros(size, size, dtype=torch.bool), 0
    for prompt, responses in drawn:
        end = begin + prompt
        seen[begin:end, begin:end] = torch.ones(prompt, prompt).tril().bool()
        for length in sorted(responses, reverse=True):
            seen[end : end + length - 1, begin : begin + prompt] = True
            seen[end : end + length - 1, end : end + length - 1] = torch.ones(length - 1, length - 1).tril().bool()
            end += length - 1
        begin = end
    return seen


def rows_of(size: int, dtype: torch.dtype) -> list[Tensor]:
    drawn = torch.Generator().manual_seed(size)
    shapes = [(size, HEADS, HEAD), (size, KEY_HEADS, HEAD), (size, KEY_HEADS, HEAD)]
    return [(2 * torch.randn(shape, generator=drawn, dtype=torch.float64)).to(dtype) for shape in shapes]


def outcome(attend: Callable[..., Tensor], rows: list[Tensor], *others: Any) -> list[Tensor]:
    """The attention, and the gradients of its three inputs."""
    leaves = [row.clone().requires_grad_() for row in rows]
    row = attend(*leaves, *others)
    weights = torch.linspace(-1, 1, row.numel(), dtype=torch.float64).reshape(row.shape).cos().to(row.dtype)
    return [row.detach(), *torch.autograd.grad((row * weights).sum(), leaves)]


def dense(query: Tensor, key: Tensor, value: Tensor, seen: Tensor) -> Tensor:
    """By definition, with all scores at once."""
    key, value = (row.repeat_interleave(HEADS // KEY_HEADS, dim=1) for row in (key, value))
    scores = torch.einsum("nhd,mhd->hnm", query, key) * HEAD**-0.5
    return torch.einsum("hnm,mhd->nhd", scores.masked_fill(~seen, -torch.inf).softmax(-1), value)


def by_sequences(
    query: Tensor, key: Tensor, value: Tensor, query_ends: Tensor, key_ends: Tensor, *longest: int, **others: Any
) -> Tensor:
    """What torch's attention over sequences of different lengths does on a GPU, one after the other."""
    assert longest == (int(query_ends.diff().max()), int(key_ends.diff().max()))
    assert others["window_size"] == (-1, 0)
    parts = []
    for place in range(len(query_ends) - 1):
        asking = query[query_ends[place] : query_ends[place + 1]]
        keys, values = (row[key_ends[place] : key_ends[place + 1]] for row in (key, value))
        seen = torch.ones(len(asking), len(keys)).tril(len(keys) - len(asking)).bool()
        parts.append(dense(asking.double(), keys.double(), values.double(), seen).to(query.dtype))
    return torch.cat(parts)


def ragged_here(*arguments: Any) -> Tensor:
    """The way of a GPU, with its kernel stood in for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "varlen_attn", by_sequences)
        return attention.ragged_attention(*arguments)


@pytest.mark.parametrize("attend", [segment_attention, plain_attention, ragged_here])
@pytest.mark.parametrize("dtype", list(BOUND))
@settings(deadline=None)
@given(groups)
def test_it_is_attention_under_the_dense_mask(attend: Callable[..., Tensor], dtype: torch.dtype, drawn: Groups) -> None:
    seen = seen_of(drawn)
    rows = rows_of(len(seen), dtype)
    wanted = outcome(dense, [row.double() for row in rows], seen)
    found = outcome(attend, rows, segments_of(drawn), HEAD**-0.5)
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == dtype
        assert (one.double() - other).abs().max() <= BOUND[dtype] * (1 + other.abs().max())


def test_prompts_and_responses_of_several_blocks_are_joined_exactly() -> None:
    """Longer than the blocks in which attention is computed."""
    drawn = [(700, [300, 300, 41]), (1, [900, 2])]
    seen = seen_of(drawn)
    rows = rows_of(len(seen), torch.float64)
    for one, other in zip(
        outcome(segment_attention, rows, segments_of(drawn), HEAD**-0.5), outcome(dense, rows, seen), strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-10)


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation makes, in entries."""

    entries = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(tensor, Tensor):
                self.entries = max(self.entries, tensor.numel())
        return made


def test_nothing_grows_with_the_square_of_the_tokens() -> None:
    drawn = [(300, [200] * 4), (200, [100] * 5)]
    rows = rows_of(len(seen_of(drawn)), torch.float32)
    with Largest() as largest:
        outcome(segment_attention, rows, segments_of(drawn), HEAD**-0.5)
    assert 0 < largest.entries <= rows[0].numel()


def test_the_way_depends_on_device_and_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    capability = (9, 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    gpu, way = torch.device("cuda", 0), attention.attention_on
    assert way(torch.device("cpu"), torch.bfloat16) is segment_attention
    assert way(gpu, torch.bfloat16) is attention.ragged_attention
    assert way(gpu, torch.float32) is plain_attention
    capability = (7, 5)
    assert way(gpu, torch.float16) is plain_attention


# ------------------------------------------------------------------ in a model


def small_batch() -> Any:
    drawn = np.random.default_rng(0)
    prompts = [drawn.integers(0, VOCABULARY, length) for length in (5, 1, 5)]
    rows = [prompts[place] for place in (0, 1, 0, 2, 0, 1)]
    responses = [drawn.integers(0, VOCABULARY, length) for length in (4, 3, 1, 6, 4, 7)]
    return batch_of(rows, responses, torch.device("cpu"), packed=True)


def small_model() -> Any:
    torch.manual_seed(0)
    config = config_of("qwen3")
    return AutoModelForCausalLM.from_config(config, attn_implementation=PACKED, dtype=torch.float32).train()


def gradients(model: Any) -> tuple[Tensor, list[Tensor]]:
    """The hidden states of the small batch, and the gradients that a weighing of them leaves."""
    states = hidden_states(model, small_batch())
    (states * torch.linspace(-1, 1, states.numel()).reshape(states.shape)).sum().backward()
    found = [weight.grad for name, weight in model.named_parameters() if not name.startswith("lm_head")]
    assert all(gradient is not None for gradient in found)
    return states.detach(), found


def assert_alike(one: tuple[Tensor, list[Tensor]], other: tuple[Tensor, list[Tensor]]) -> None:
    torch.testing.assert_close(one[0], other[0])
    for found, wanted in zip(one[1], other[1], strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-4)


def test_recomputed_activations_give_the_same_gradient() -> None:
    model = small_model()
    calls: list[int] = []
    model.model.layers[0].self_attn.register_forward_pre_hook(lambda *_: calls.append(1))
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert_alike(gradients(model), gradients(small_model()))
    assert len(calls) == 2, "computed again on the way back"


@pytest.fixture
def alone() -> Iterator[None]:
    """A process group of this process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("checkpointing", [False, True])
def test_layers_may_be_sharded(checkpointing: bool) -> None:
    model = small_model()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    mesh = init_device_mesh("cpu", (1,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model.model, mesh=mesh)
    states, found = gradients(model)
    assert_alike((states, [gradient.full_tensor() for gradient in found]), gradients(small_model()))


# ------------------------------------------------------------------ which models


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_known_architectures_are_packable(architecture: str) -> None:
    check_packable(config_of(architecture))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (AutoConfig.for_model("gemma2"), "model_type='gemma2' is none of llama"),
        (AutoConfig.for_model("mistral", sliding_window=128), "sliding_window=128; it must be null"),
        (
            AutoConfig.for_model("qwen2", use_sliding_window=True, sliding_window=64, max_window_layers=1),
            "layer_types holds full_attention, sliding_attention",
        ),
        (config_of("llama", attention_dropout=0.1), "attention_dropout=0.1; it must be 0"),
    ],
)
def test_what_cannot_be_packed_is_refused_with_the_reason(config: Any, said: str) -> None:
    with pytest.raises(ValueError, match="cannot be forwarded as packed rows") as refused:
        check_packable(config)
    assert said in str(refused.value)
    assert "attn_implementation=sdpa" in str(refused.value), "what to do instead"


def test_the_name_of_the_attention_is_kept_out_of_the_saved_configuration() -> None:
    model = small_model()
    assert hidden_states(model, small_batch()).shape == (25, WIDTH)
    assert PACKED not in model.config.to_json_string()
