"""The parts of the fused functions: the choice of entries, precision, and weights that are not plain parameters."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from benchmarks.loss import Inputs, dense_gradient, make_inputs
from mopd.divergence import Support, full_logprobs
from mopd.fused import linear_distillation_loss, linear_divergence, linear_logprobs
from mopd.fused_kernels import GROUP, peaks_of
from mopd.fused_logits import Options, likeliest, read
from mopd.fused_support import linear_answer, linear_divergence_on, linear_ids
from mopd.losses import token_logprobs

N, V, H = 48, 1500, 8


def problem(dtype: torch.dtype = torch.float64, sharpness: float = 1.0) -> tuple[Tensor, ...]:
    """Hidden states and weights of a student and of a teacher near it, and tokens."""
    drawn = torch.Generator().manual_seed(0)
    hidden, noise = (torch.randn(N, H, generator=drawn) for _ in range(2))
    weight = torch.randn(V, H, generator=drawn) * sharpness
    student = hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_()
    return *student, (hidden + 0.3 * noise).to(dtype), weight.to(dtype), torch.randint(V, (N,), generator=drawn)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(0, 5), size=st.integers(1, 4000), count=st.integers(1, 60), levels=st.integers(1, 200),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_the_likeliest_entries_are_those_of_a_whole_search(
    rows: int, size: int, count: int, levels: int, seed: int
) -> None:
    """Many are equal, as in bfloat16: which of them are chosen is open, their values are not."""
    drawn = torch.Generator().manual_seed(seed)
    logits = torch.randint(levels, (rows, size), generator=drawn).float()
    logits[torch.rand(rows, size, generator=drawn) < 0.1] = -torch.inf
    count = min(count, size)
    ids = likeliest(logits, count, peaks_of(logits))
    assert all(len(set(row)) == count for row in ids.tolist())
    assert torch.equal(logits.gather(-1, ids).sort(-1).values, logits.topk(count).values.sort(-1).values)


@pytest.mark.parametrize("size", [1, GROUP - 1, GROUP, 5 * GROUP + 3])
def test_a_reading_is_that_of_log_softmax(size: int) -> None:
    logits = 30 * torch.randn(4, size, generator=torch.Generator().manual_seed(size), dtype=torch.float64)
    logits[0, 0] = 400.0
    logits[1, : size - 1] = -torch.inf
    ids = torch.randint(size, (4, 3))
    options = Options("cpu", temperature=2.0, entropy=True)
    found, logprobs = read(logits, ids, options.scan(logits), options), full_logprobs(logits / 2.0)
    torch.testing.assert_close(found.logprobs, logprobs.gather(-1, ids))
    torch.testing.assert_close(found.entropy, -(logprobs.exp() * logprobs).sum(-1), rtol=1e-9, atol=1e-9)
    logits[2], logits[3, -1] = -torch.inf, torch.nan
    faulty = torch.isfinite(read(logits, ids, options.scan(logits), options).normaliser)
    assert faulty.tolist() == [True, True, False, False]


def test_precise_logits_make_the_gradient_precise() -> None:
    def gradients(inputs: tuple[Tensor, ...], precise: bool) -> tuple[Tensor, ...]:
        loss = linear_distillation_loss(*inputs, precise=precise)
        pulled = linear_logprobs(inputs[0], inputs[1], inputs[-1], precise=precise).logprobs
        grads = (torch.autograd.grad(each, inputs[:2]) for each in (loss, pulled.sum()))
        return tuple(each.double() for pair in grads for each in pair)

    narrow = problem(torch.bfloat16, sharpness=3.0)
    exact = tuple(
        each.detach().double().requires_grad_(each.requires_grad) if each.is_floating_point() else each
        for each in narrow
    )
    true = gradients(exact, False)
    errors = {
        precise: [
            float((ours - each).norm() / each.norm())
            for ours, each in zip(gradients(narrow, precise), true, strict=True)
        ]
        for precise in (True, False)
    }
    assert max(errors[True]) <= 5e-3
    assert min(errors[False][:2]) > 2 * max(errors[True])  # the measure would notice


@pytest.mark.parametrize("distant", [False, True])
@pytest.mark.parametrize("support", ["student", "union"])
def test_a_sure_student_near_its_teacher_keeps_six_digits_in_float32(support: Support, distant: bool) -> None:
    """The divergence is then a small difference of large logits, of which float32 logits alone keep five."""
    own = 100 if support == "union" else 0

    def gradients(inputs: Inputs) -> tuple[Tensor, ...]:
        student, teacher = (
            (inputs.student_hidden, inputs.student_weight),
            (inputs.teacher_hidden, inputs.teacher_weight),
        )
        if distant:
            asked = linear_ids(*exact(inputs.student_hidden, inputs.student_weight), 100)
            answer = linear_answer(*teacher, asked, own, len(inputs.student_weight))
            found = linear_divergence_on(*student, answer, inputs.tokens)
        else:
            found = linear_divergence(*student, *teacher, inputs.tokens, support=support)
        return torch.autograd.grad(found.values.sum(), student)

    def exact(*tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(each.detach().double() for each in tensors)

    inputs = make_inputs(16, 8000, 128, torch.float32)
    states = exact(inputs.student_hidden, inputs.student_weight, inputs.teacher_hidden, inputs.teacher_weight)
    wide_inputs = Inputs(states[0].requires_grad_(), states[1].requires_grad_(), *states[2:], inputs.tokens)
    for ours, true in zip(gradients(inputs), gradients(wide_inputs), strict=True):
        assert ours.dtype == torch.float32
        assert float((ours - true).norm() / true.norm()) <= 1e-6
    if support == "student":  # the measure would notice
        true, dense = (dense_gradient(inputs, 16, kind) for kind in (torch.float64, torch.float32))
        assert float((dense - true).norm() / true.norm()) > 1e-5


@pytest.mark.parametrize("narrow", [False, True])
def test_autocast_changes_nothing(narrow: bool) -> None:
    hidden, weight, *_, tokens = problem(torch.bfloat16 if narrow else torch.float32)
    plain = linear_logprobs(hidden, weight, tokens).logprobs
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = linear_logprobs(hidden, weight, tokens).logprobs
        pulled = torch.autograd.grad(cast.sum(), (hidden, weight))
    assert cast.dtype == torch.float32
    assert torch.equal(cast, plain)
    for ours, theirs in zip(pulled, torch.autograd.grad(plain.sum(), (hidden, weight)), strict=True):
        assert torch.equal(ours, theirs)


class Tied(nn.Module):
    """A model of one layer whose output matrix is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(V, H)
        self.layer = nn.Linear(H, H)

    def forward(self, tokens: Tensor) -> Tensor:
        """Hidden states `[N, H]`."""
        states: Tensor = self.layer(self.embedding(tokens)).tanh()
        return states


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    """A process group of one."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("group")
def test_a_sharded_and_tied_model_has_the_gradients_of_a_plain_one() -> None:
    torch.manual_seed(0)
    plain, sharded = Tied(), Tied()
    sharded.load_state_dict(plain.state_dict())
    fully_shard(sharded, mesh=init_device_mesh("cpu", (1,)), mp_policy=MixedPrecisionPolicy(torch.float32))
    words = torch.arange(N) * 7 % V
    tokens = torch.arange(N) * 11 % V
    token_logprobs(plain(words) @ plain.embedding.weight.T, tokens).sum().backward()
    with pytest.raises(ValueError, match="unshard its module"):
        linear_logprobs(torch.zeros(N, H), sharded.embedding.weight, tokens)
    hidden = sharded(words)
    linear_logprobs(hidden, sharded.embedding.weight, tokens, logits_at_hand=7 * V).logprobs.sum().backward()
    for ours, theirs in zip(sharded.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad.full_tensor(), theirs.grad, rtol=1e-4, atol=1e-5)


def test_a_shard_is_refused_wherever_it_stands() -> None:
    class Shard(Tensor):
        """What has parts elsewhere."""

        def full_tensor(self) -> Tensor:
            """All of it."""
            return self.as_subclass(Tensor)

    hidden, weight, *teacher, tokens = problem()
    with pytest.raises(ValueError, match="teacher_weight is a shard"):
        linear_divergence(hidden, weight, teacher[0], teacher[1].as_subclass(Shard), tokens)
