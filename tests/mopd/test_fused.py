"""The fused loss is the dense one, in value and gradient, and keeps no logits."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mopd.divergence import divergence
from mopd.fused import linear_distillation_loss, linear_divergence
from mopd.losses import distillation_loss

LENGTHS = (5, 2, 7, 3)
N, V, H = sum(LENGTHS), 61, 8
IDS = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
MODES = ("token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm")


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def problem(n: int = N, v: int = V, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """The tensors that a call needs, by name; the teacher is wider than the student."""
    return {
        "student_hidden": normal(n, H, seed=seed, dtype=dtype).requires_grad_(),
        "student_weight": normal(v, H, seed=seed + 1, dtype=dtype).requires_grad_(),
        "teacher_hidden": normal(n, H + 3, seed=seed + 2, dtype=dtype),
        "teacher_weight": normal(v, H + 3, seed=seed + 3, dtype=dtype),
        "tokens": torch.randint(v, (n,), generator=torch.Generator().manual_seed(seed)),
    }


def padded(values: Tensor) -> Tensor:
    """Tokens of the sequences `LENGTHS`, packed in order, as a batch."""
    return torch.nn.utils.rnn.pad_sequence(values.split(LENGTHS), batch_first=True)


def dense(data: dict[str, Tensor], temperature: float = 1.0, **options: Any) -> Tensor:
    """The specification on the same tensors; per-token options are packed and become padded."""
    for name in ("old_logprobs", "importance_weights", "step_ids"):
        if name in options:
            options[name] = padded(options[name])
    student = data["student_hidden"] @ data["student_weight"].T / temperature
    teacher = data["teacher_hidden"] @ data["teacher_weight"].T / temperature
    return distillation_loss(
        padded(student), padded(teacher), padded(data["tokens"]), padded(torch.ones(N)), **options
    )  # fmt: skip


def gradients(loss: Tensor, data: dict[str, Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, (data["student_hidden"], data["student_weight"]))


def widened(data: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same numbers in float64."""
    return {
        name: each.detach().double().requires_grad_(each.requires_grad) if each.is_floating_point() else each
        for name, each in data.items()
    }


def relative(value: Tensor, true: Tensor) -> float:
    return float((value.double() - true).norm() / true.norm())


def assert_same(data: dict[str, Tensor], tolerance: float = 1e-9, at_hand: int = 4 * V, **options: Any) -> None:
    expected = dense(data, **options)
    loss = linear_distillation_loss(**data, sequence_ids=IDS, logits_at_hand=at_hand, **options)
    assert loss.dtype == expected.dtype
    torch.testing.assert_close(loss, expected, rtol=tolerance, atol=tolerance)
    pairs = zip(gradients(loss, data), gradients(expected, data), strict=True)
    for ours, theirs in pairs:
        assert float((ours - theirs).norm()) <= tolerance * max(1e-3, float(theirs.norm()))


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("topk", [1, 7, V - 1, V, None])
@pytest.mark.parametrize("support", ["student", "teacher", "union"])
def test_value_and_gradient_are_the_dense_ones(alpha: float, topk: int | None, support: str) -> None:
    for tail in ("bucket", "renormalize"):
        assert_same(problem(), alpha=alpha, topk=topk, support=support, tail=tail, temperature=0.7)


@pytest.mark.parametrize("support", ["student", "teacher", "union"])
@pytest.mark.parametrize("topk", [7, None])
def test_float32_is_as_near_to_the_truth_as_the_dense_loss(topk: int | None, support: str) -> None:
    """A small tail costs both of them digits: the log of one minus a mass near one."""
    data, options = problem(dtype=torch.float32), {"topk": topk, "support": support}
    exact = widened(data)
    truth, plain = dense(exact, **options), dense(data, **options)
    loss = linear_distillation_loss(**data, **options)
    assert loss.item() == pytest.approx(truth.item(), rel=1e-5)
    triples = zip(gradients(loss, data), gradients(plain, data), gradients(truth, exact), strict=True)
    for ours, theirs, true in triples:
        assert relative(ours, true) <= 1.5 * relative(theirs, true) + 1e-6
        assert relative(ours, theirs) <= 5e-5


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("steps", [False, True])
def test_weights_masks_and_aggregation_are_the_dense_ones(mode: str, steps: bool) -> None:
    options: dict[str, Any] = {
        "topk": 5,
        "old_logprobs": -4 + normal(N, seed=5),
        "is_clip": 1.5,
        "importance_weights": normal(N, seed=6).exp(),
        "sequence_mask": torch.tensor([1, 1, 0, 1]),
        "aggregation": mode,
        "denominator": 11.0 if mode == "seq-mean-token-sum-norm" else None,
    }
    if steps:
        options["step_ids"] = torch.tensor([0, 0, 1, -1, 2, -1, -1, *range(7), 3, 3, 4])
    assert_same(problem(), **options)


@settings(max_examples=30, deadline=None)
@given(at_hand=st.integers(1, 3 * N * V), topk=st.sampled_from([3, 20, None]), mode=st.sampled_from(["exact", "auto"]))
def test_the_size_of_chunks_and_tiles_changes_nothing(at_hand: int, topk: int | None, mode: str) -> None:
    data = problem(seed=9)
    one, many = (
        linear_distillation_loss(
            **data, topk=topk, support="union", grad_mode=mode, tolerance=0.02, logits_at_hand=size
        )
        for size in (N * V * 4, at_hand)
    )
    for ours, theirs in zip(gradients(one, data), gradients(many, data), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_the_order_of_packed_tokens_changes_nothing() -> None:
    data, order = problem(), torch.randperm(N, generator=torch.Generator().manual_seed(1))
    shuffled = {name: each if name.endswith("weight") else each[order] for name, each in data.items()}
    for mode in ("seq-mean-token-mean", "seq-mean-token-sum"):
        plain = linear_distillation_loss(**data, sequence_ids=IDS, topk=4, aggregation=mode)
        moved = linear_distillation_loss(**shuffled, sequence_ids=IDS[order], topk=4, aggregation=mode)
        torch.testing.assert_close(plain, moved)


def test_parts_of_a_batch_add_up_under_a_global_denominator() -> None:
    data = problem()
    whole = linear_distillation_loss(**data, topk=4)
    parts = [
        linear_distillation_loss(
            **{name: each if name.endswith("weight") else each[rows] for name, each in data.items()},
            topk=4,
            denominator=N,
        )
        for rows in (slice(0, 6), slice(6, 6), slice(6, N))
    ]
    torch.testing.assert_close(torch.stack(parts).sum(), whole)


def test_a_weight_tied_to_the_embedding_has_both_gradients() -> None:
    data = problem()
    words = torch.arange(N) % V

    def loss(fused: bool) -> Tensor:
        tied = {**data, "student_hidden": torch.tanh(data["student_weight"][words] + data["student_hidden"])}
        return linear_distillation_loss(**tied, topk=5) if fused else dense(tied, topk=5)

    for ours, theirs in zip(gradients(loss(True), data), gradients(loss(False), data), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("grad_mode", ["exact", "sparse", "auto"])
@pytest.mark.parametrize("topk", [5, None])
def test_no_tokens_cost_nothing(grad_mode: str, topk: int | None) -> None:
    data = problem(0)
    loss = linear_distillation_loss(**data, topk=topk, grad_mode=grad_mode)
    assert loss.item() == 0.0
    assert all(bool((grad == 0.0).all()) for grad in gradients(loss, data))
    masked = problem()
    loss = linear_distillation_loss(**masked, topk=topk, sequence_ids=IDS, sequence_mask=torch.zeros(4))
    assert loss.item() == 0.0
    assert all(bool((grad == 0.0).all()) for grad in gradients(loss, masked))


def test_masked_tokens_do_not_exist() -> None:
    data, off = problem(), IDS == 1
    options: dict[str, Any] = {
        "topk": 5,
        "is_clip": 2.0,
        "sequence_ids": IDS,
        "sequence_mask": torch.tensor([1, 0, 1, 1]),
    }
    clean = linear_distillation_loss(**data, **options)
    expected = gradients(clean, data)
    dirty = {**data, "tokens": data["tokens"].masked_fill(off, -100)}
    for name in ("student_hidden", "teacher_hidden"):
        dirty[name] = data[name].detach().masked_fill(off[:, None], torch.nan).requires_grad_()
    loss = linear_distillation_loss(**dirty, **options)
    assert torch.equal(loss, clean)
    for ours, theirs in zip(gradients(loss, dirty), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("topk", [5, None])
@pytest.mark.parametrize("grad_mode", ["exact", "sparse"])
def test_a_teacher_without_a_distribution_costs_nothing_there(topk: int | None, grad_mode: str) -> None:
    data = problem()
    broken = {**data, "teacher_hidden": data["teacher_hidden"].clone()}
    broken["teacher_hidden"][3] = torch.nan
    loss = linear_distillation_loss(**broken, topk=topk, grad_mode=grad_mode)
    torch.testing.assert_close(loss, dense(broken, topk=topk))
    grad = gradients(loss, broken)[0]
    assert bool((grad[3] == 0.0).all())
    assert bool(torch.isfinite(grad).all())


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("sharpness", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("support", ["student", "teacher", "union"])
def test_what_sparse_leaves_out_is_within_its_bound(alpha: float, sharpness: float, support: str) -> None:
    data = problem(seed=20)
    options: dict[str, Any] = {"alpha": alpha, "topk": 9, "temperature": 1 / sharpness, "support": support}
    exact, sparse = (linear_divergence(**data, **options, grad_mode=mode) for mode in ("exact", "sparse"))
    assert torch.equal(exact.values, sparse.values)
    true, ours = (gradients(found.values.sum(), data)[0] for found in (exact, sparse))
    error = (true - ours).norm(dim=-1)
    longest = data["student_weight"].detach().norm(dim=-1).max()
    assert bool((error > 0.0).all())
    assert bool((error <= sparse.gradient_bound * longest * sharpness + 1e-12).all())
    # The bound is not only large: it is the sum of the dropped gradient at the logits.
    logits = (data["student_hidden"] @ data["student_weight"].T * sharpness).detach().requires_grad_()
    teacher = data["teacher_hidden"] @ data["teacher_weight"].T * sharpness
    (at_logits,) = torch.autograd.grad(
        divergence(logits, teacher, alpha=alpha, topk=9, support=support).sum(), logits
    )  # fmt: skip
    kept = torch.zeros_like(logits, dtype=torch.bool)
    for chooser in {"student": [logits], "teacher": [teacher], "union": [logits, teacher]}[support]:
        kept.scatter_(-1, chooser.topk(9).indices, True)
    torch.testing.assert_close(
        sparse.gradient_bound, at_logits.masked_fill(kept, 0.0).abs().sum(-1), rtol=1e-6, atol=1e-7
    )


def test_sparse_is_exact_without_a_tail() -> None:
    data = problem()
    for options in ({"topk": 9, "tail": "renormalize"}, {"topk": V}):
        exact, sparse = (
            gradients(linear_distillation_loss(**data, **options, grad_mode=mode), data) for mode in ("exact", "sparse")
        )
        for ours, theirs in zip(exact, sparse, strict=True):
            torch.testing.assert_close(ours, theirs)


def test_auto_is_exact_just_where_the_bound_is_too_large() -> None:
    data = problem(seed=30)
    found = {
        mode: linear_divergence(**data, topk=25, grad_mode=mode, tolerance=0.2) for mode in ("exact", "sparse", "auto")
    }
    grads = {mode: gradients(each.values.sum(), data)[0] for mode, each in found.items()}
    as_exact, as_sparse = (
        torch.isclose(grads["auto"], grads[mode], rtol=1e-9, atol=1e-12).all(dim=-1) for mode in ("exact", "sparse")
    )
    assert bool((as_exact ^ as_sparse).all())
    assert bool(as_exact.any())
    assert bool(as_sparse.any())
    bound = found["auto"].gradient_bound
    assert float(bound[as_sparse].mean()) < float(bound[as_exact].mean())
    for tolerance, same in ((0.0, "exact"), (1.0, "sparse")):
        ends = linear_divergence(**data, topk=25, grad_mode="auto", tolerance=tolerance)
        torch.testing.assert_close(gradients(ends.values.sum(), data)[0], grads[same])


@pytest.mark.parametrize("topk", [5, None])
def test_by_products_are_those_of_the_logits(topk: int | None) -> None:
    data = problem()
    found = linear_divergence(**data, topk=topk, temperature=0.6, entropy=True, logits_at_hand=3 * V)
    logprobs = torch.log_softmax(data["student_hidden"] @ data["student_weight"].T / 0.6, dim=-1)
    torch.testing.assert_close(found.logprobs, logprobs.gather(-1, data["tokens"][:, None])[:, 0].detach())
    assert found.entropy is not None
    torch.testing.assert_close(found.entropy, -(logprobs.exp() * logprobs).sum(-1).detach())
    assert not any(each.requires_grad for each in (found.logprobs, found.entropy, found.gradient_bound))
    assert linear_divergence(**data, topk=topk).entropy is None


@pytest.mark.parametrize("frozen", ["student_hidden", "student_weight"])
@pytest.mark.parametrize("grad_mode", ["exact", "sparse"])
def test_what_is_frozen_gets_no_gradient(frozen: str, grad_mode: str) -> None:
    data = problem()
    expected = gradients(linear_distillation_loss(**data, topk=5, grad_mode=grad_mode), data)
    other = ("student_weight", "student_hidden")[frozen == "student_weight"]
    part = {**data, frozen: data[frozen].detach()}
    linear_distillation_loss(**part, topk=5, grad_mode=grad_mode).backward()
    torch.testing.assert_close(part[other].grad, expected[other == "student_weight"])
    assert part[frozen].grad is None


def test_bfloat16_is_no_worse_than_the_dense_loss_and_autocast_leaves_it_alone() -> None:
    data = problem(64, 2000, seed=40, dtype=torch.bfloat16)
    exact = widened(data)
    true = gradients(linear_distillation_loss(**exact), exact)
    student, teacher = (data[f"{who}_hidden"] @ data[f"{who}_weight"].T for who in ("student", "teacher"))
    plain = gradients(distillation_loss(student[None], teacher[None], data["tokens"][None], torch.ones(1, 64)), data)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = linear_distillation_loss(**data)
    assert loss.dtype == torch.float32
    ours = gradients(loss, data)
    for right, theirs, mine in zip(true, plain, ours, strict=True):
        assert relative(mine, right) <= 1.2 * relative(theirs, right) + 4e-3


class Sizes(TorchDispatchMode):
    """Notes how many elements the largest tensor has that any operation makes."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for each in out if isinstance(out, tuple | list) else (out,):
            if isinstance(each, Tensor):
                self.largest = max(self.largest, each.numel())
        return out


@pytest.mark.parametrize(("support", "topk"), list(itertools.product(["student", "teacher", "union"], [5, None])))
def test_no_tensor_holds_the_logits_of_all_tokens(support: str, topk: int | None) -> None:
    n, v, at_hand = 200, 1000, 20_000
    data = problem(n, v)
    for grad_mode in ("exact", "sparse", "auto"):
        with Sizes() as sizes:
            options: dict[str, Any] = {"support": support, "topk": topk, "grad_mode": grad_mode}
            linear_distillation_loss(**data, logits_at_hand=at_hand, **options).backward()
        assert sizes.largest <= max(at_hand, v * (H + 3))
    with Sizes() as sizes:  # the measure would notice
        (data["student_hidden"] @ data["student_weight"].T).sum().backward()
    assert sizes.largest == n * v


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0.0; it must be positive"),
        ({"alpha": 1.5}, "alpha is 1.5"),
        ({"topk": 0}, "topk is 0"),
        ({"tail": "none"}, "one of bucket, renormalize"),
        ({"support": "both"}, "one of student, teacher, union"),
        ({"grad_mode": "fast"}, "one of exact, sparse, auto"),
        ({"tolerance": -1.0}, "tolerance is -1.0"),
        ({"aggregation": "seq-mean-token-sum-norm"}, "give denominator"),
        ({"aggregation": "mean"}, "aggregation is 'mean'"),
        ({"sequence_mask": torch.ones(4)}, "give sequence_ids"),
        ({"sequence_mask": torch.ones(2), "sequence_ids": IDS}, r"sequence_ids in 0 .. S - 1"),
        ({"old_logprobs": torch.zeros(3)}, r"old_logprobs has shape \(3,\)"),
        ({"tokens": torch.zeros(1, N, dtype=torch.long)}, r"it must be \[N\]"),
        ({"teacher_hidden": torch.zeros(N - 1, H + 3)}, "teacher_hidden"),
        ({"teacher_weight": torch.zeros(V, H + 3)}, "must be one float type"),
        ({"logits_at_hand": -1}, "logits_at_hand is -1"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        linear_distillation_loss(**{**problem(), **change})
