"""Buckets of weights, and the comparison of both sides' answers to the probe."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.weights import differing_groups, largest_gap, note_of, packed, plan_buckets, responses_of
from trainer.workers.sampler_types import Fingerprint, probe


@given(st.lists(st.integers(0, 50)), st.integers(1, 60))
def test_buckets_hold_every_weight_in_order_within_the_limit_and_are_as_few_as_can_be(
    sizes: list[int], limit: int
) -> None:
    plan = plan_buckets(sizes, limit)
    assert sum(plan) == len(sizes)
    assert all(plan)
    starts = np.cumsum([0, *plan]).tolist()
    filled = [sum(sizes[start:end]) for start, end in pairwise(starts)]
    assert all(size <= limit or count == 1 for size, count in zip(filled, plan, strict=True))
    for size, following in zip(filled, starts[1:-1], strict=False):
        assert size + sizes[following] > limit, "the next weight would have fitted"


def test_a_message_is_read_back_by_its_note() -> None:
    bucket = [("a", torch.arange(6.0).reshape(2, 3).T), ("b", torch.tensor(7.0)), ("c", torch.ones(4))]
    note, message = note_of(bucket), packed(bucket)
    assert note["dtype_names"] == ["float32"] * 3
    parts = message.split([4 * int(np.prod(shape)) for shape in note["shapes"]])
    for (name, weight), told, part, shape in zip(bucket, note["names"], parts, note["shapes"], strict=True):
        assert told == name
        assert torch.equal(part.view(torch.float32).view(shape), weight)


def test_the_gap_of_log_probs_does_not_hide_what_is_not_a_number() -> None:
    ours = [np.array([-1.0, -2.0], dtype=np.float32), np.array([-3.0], dtype=np.float32)]
    theirs = [np.array([-1.0, -2.5], dtype=np.float32), np.array([-3.0], dtype=np.float32)]
    assert largest_gap(ours, theirs) == 0.5
    theirs[1][0] = np.nan
    assert not largest_gap(ours, theirs) <= 100


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    """A model of an embedding, a fused layer with bias and a norm; the output layer is tied."""
    random = torch.Generator().manual_seed(0)
    shapes = {
        "model.embed_tokens.weight": (7, 4),
        "q.weight": (3, 4),
        "k.weight": (2, 4),
        "q.bias": (3,),
        "k.bias": (2,),
        "norm.weight": (4,),
    }
    return {name: torch.randn(shape, generator=random) for name, shape in shapes.items()}


def answers(weights: dict[str, torch.Tensor]) -> dict[str, Fingerprint]:
    """A sampler's fingerprints, computed from whole weights."""
    groups = {
        "model.embed_tokens": ("model.embed_tokens.weight",),
        "lm_head": ("lm_head.weight",),
        "qk": ("q.weight", "k.weight", "q.bias", "k.bias"),
        "norm": ("norm.weight",),
    }
    known = {**weights, "lm_head.weight": weights.get("lm_head.weight", weights["model.embed_tokens.weight"])}
    vectors = {
        name: (value @ torch.from_numpy(probe(4)) if value.ndim == 2 else value).numpy()
        for name, value in known.items()
    }
    return {
        name: Fingerprint(parts, np.concatenate([vectors[part] for part in parts])) for name, parts in groups.items()
    }


def test_equal_weights_differ_nowhere(weights: dict[str, torch.Tensor]) -> None:
    assert differing_groups(responses_of(weights.items(), torch.float32), answers(weights), torch.float32) == {}


@pytest.mark.parametrize(
    ("name", "group"),
    [("k.weight", "qk"), ("q.bias", "qk"), ("norm.weight", "norm"), ("lm_head.weight", "lm_head")],
)
def test_one_changed_number_names_its_group_alone(weights: dict[str, torch.Tensor], name: str, group: str) -> None:
    ours = responses_of(weights.items(), torch.float32)
    changed = weights.get(name, weights["model.embed_tokens.weight"]).clone()
    changed.view(-1)[1] += 0.01
    found = differing_groups(ours, answers({**weights, name: changed}), torch.float32)
    assert list(found) == [group]
    assert 0 < found[group] < 0.1


def test_a_group_of_other_size_or_of_no_number_differs(weights: dict[str, torch.Tensor]) -> None:
    ours, theirs = responses_of(weights.items(), torch.float32), answers(weights)
    theirs["norm"] = Fingerprint(("norm.weight",), np.zeros(5, dtype=np.float32))
    theirs["lm_head"] = Fingerprint(("lm_head.weight",), np.full(7, np.nan, dtype=np.float32))
    assert set(differing_groups(ours, theirs, torch.float32)) == {"norm", "lm_head"}
