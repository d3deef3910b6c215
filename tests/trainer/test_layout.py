"""The layout of a micro-batch: packed rows give the states and gradients of padded ones, token for token."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from tests.trainer.exact_models import ARCHITECTURES, VOCABULARY, WIDTH, exact_model
from trainer.attention import PACKED
from trainer.layout import batch_of, hidden_states

CPU = torch.device("cpu")
Rows = tuple[list[NDArray[np.int32]], list[NDArray[np.int32]]]
"""Prompts and responses."""


@st.composite
def rows_of_groups(draw: st.DrawFn) -> Rows:
    """Rows in any order; several may have one prompt."""
    drawn = np.random.default_rng(draw(st.integers(0, 10**6)))
    lengths = draw(st.lists(st.integers(1, 7), min_size=1, max_size=3))
    prompts = [drawn.integers(0, VOCABULARY, length, dtype=np.int32) for length in lengths]
    rows = draw(
        st.lists(st.tuples(st.integers(0, len(prompts) - 1), st.integers(1, 9)), min_size=1, max_size=8),
    )
    return (
        [prompts[place].copy() for place, _ in rows],
        [drawn.integers(0, VOCABULARY, length, dtype=np.int32) for _, length in rows],
    )


model_of = functools.cache(exact_model)


def outcome(model: Any, rows: Rows, *, packed: bool) -> tuple[Tensor, list[Tensor]]:
    """Hidden states [M, H], and the gradients of all weights that lead to them."""
    model.zero_grad()
    states = hidden_states(model, batch_of(*rows, CPU, packed=packed))
    (states * torch.linspace(-1, 1, states.numel(), dtype=states.dtype).reshape(states.shape)).sum().backward()
    return states.detach(), [weight.grad for weight in model.model.parameters()]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@settings(max_examples=12, deadline=None)
@given(rows_of_groups())
def test_packed_rows_give_the_states_and_gradients_of_padded_ones(architecture: str, rows: Rows) -> None:
    wanted, wanted_gradients = outcome(model_of(architecture, "sdpa"), rows, packed=False)
    found, found_gradients = outcome(model_of(architecture, PACKED), rows, packed=True)
    torch.testing.assert_close(found, wanted, atol=1e-10, rtol=0)
    for one, other in zip(found_gradients, wanted_gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-10)


@settings(deadline=None)
@given(rows_of_groups(), st.booleans())
def test_tokens_come_row_by_row_each_with_the_place_before_it(rows: Rows, packed: bool) -> None:
    prompts, responses = rows
    batch = batch_of(prompts, responses, CPU, packed=packed)
    assert batch.tokens.tolist() == np.concatenate(responses).tolist()
    assert batch.present.sum(1).tolist() == [len(response) for response in responses]
    assert all(sorted(row, reverse=True) == row for row in batch.present.tolist()), "padding is on the right"
    places, before = batch.position_ids.flatten()[batch.predictors], batch.input_ids.flatten()[batch.predictors]
    whole = [np.concatenate(pair) for pair in zip(prompts, responses, strict=True)]
    spans = [range(len(prompt) - 1, len(one) - 1) for prompt, one in zip(prompts, whole, strict=True)]
    assert places.tolist() == [place for span in spans for place in span]
    assert before.tolist() == [one[place] for one, span in zip(whole, spans, strict=True) for place in span]


@settings(deadline=None)
@given(rows_of_groups())
def test_packed_each_prompt_is_forwarded_once_and_no_last_token(rows: Rows) -> None:
    batch = batch_of(*rows, CPU, packed=True)
    prompts = {tuple(prompt): len(prompt) for prompt in rows[0]}
    assert batch.tokens_forwarded == sum(prompts.values()) + sum(len(response) - 1 for response in rows[1])
    assert batch.segments is not None
    covered = sorted((run.start, run.stop) for run in batch.segments.runs)
    assert [start for start, _ in covered] == [0, *(stop for _, stop in covered[:-1])]
    assert covered[-1][1] == batch.tokens_forwarded


def test_some_of_the_tokens_alone_have_the_states_that_they_have_among_all() -> None:
    rows = [np.array([3, 4]), np.array([3, 4])], [np.array([5, 6, 7]), np.array([8])]
    batch, chosen = batch_of(*rows, CPU, packed=True), torch.tensor([False, True, False, True])
    part, model = batch.only(chosen), model_of("qwen3", PACKED)
    assert part.tokens.tolist() == [6, 8]
    torch.testing.assert_close(hidden_states(model, part), hidden_states(model, batch)[chosen])


def test_a_packable_model_reads_padded_rows_too() -> None:
    rows = [np.array([3, 4, 9]), np.array([2])], [np.array([5, 6, 7]), np.array([8])]
    wanted, _ = outcome(model_of("qwen3", "sdpa"), rows, packed=False)
    found, _ = outcome(model_of("qwen3", PACKED), rows, packed=False)
    assert torch.equal(found, wanted)
    assert found.shape == (4, WIDTH)


def test_a_batch_moves_as_a_whole() -> None:
    batch = batch_of([np.array([3])], [np.array([5, 6])], CPU, packed=True).to(torch.device("meta"))
    tensors = [value for value in vars(batch).values() if isinstance(value, Tensor)]
    assert len(tensors) == 5
    assert all(tensor.is_meta for tensor in tensors)


@pytest.mark.parametrize("packed", [False, True])
def test_an_empty_prompt_is_refused(packed: bool) -> None:
    with pytest.raises(ValueError, match=r"prompts of rows \[1\] are empty"):
        batch_of([np.array([3]), np.array([])], [np.array([5]), np.array([6])], CPU, packed=packed)


def test_a_packed_batch_is_kept_from_a_model_that_would_look_across_sequences() -> None:
    batch = batch_of([np.array([3])], [np.array([5, 6])], CPU, packed=True)
    with pytest.raises(ValueError, match="needs attn_implementation='packed'; this model has 'sdpa'"):
        hidden_states(model_of("qwen3", "sdpa"), batch)
