"""Random problems for the fused functions, and the dense logits that they are held against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True)
class Problem:
    """A student and a teacher at N tokens, in float64; at some tokens the teacher's logits are faulty."""

    hidden: Tensor
    """[N, H], differentiable; its last state is always 1."""
    weight: Tensor
    """[V, H], differentiable."""
    teacher_hidden: Tensor
    """[N, H']; its last state is 1, or not-a-number at faulty tokens."""
    teacher_weight: Tensor
    """[V', H']; a bias stands last, -inf for entries that are impossible."""
    tokens: Tensor
    """[N]."""
    temperature: float
    at_hand: int

    @property
    def logits(self) -> Tensor:
        """[N, V] of the student."""
        return self.hidden @ self.weight.T / self.temperature

    @property
    def teacher_logits(self) -> Tensor:
        """[N, V] of the teacher, on the student's vocabulary."""
        vocabulary = len(self.weight)
        logits = (self.teacher_hidden @ self.teacher_weight.T / self.temperature)[:, :vocabulary]
        return pad(logits, (0, vocabulary - logits.shape[-1]), value=-torch.inf)

    def gradients(self, value: Tensor) -> tuple[Tensor, ...]:
        """Of the hidden states and of the weight, each token's value weighted by a number of its own."""
        weights = torch.linspace(-1.0, 2.0, value.numel(), dtype=value.dtype)
        return torch.autograd.grad((value * weights).sum(), (self.hidden, self.weight))


@st.composite
def problems(draw: Any, faults: bool = True) -> Problem:
    """Of random shapes, N = 0 included, with a teacher of another width and of more or fewer entries."""
    n, v, h = draw(st.integers(0, 9)), draw(st.integers(2, 70)), draw(st.integers(1, 7))
    other_v = draw(st.sampled_from([v, v, v + 5, max(1, v - 3)]))
    drawn = torch.Generator().manual_seed(draw(st.integers(0, 1 << 30)))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=drawn, dtype=torch.float64)

    hidden, weight = normal(n, h).requires_grad_(), normal(v, h).requires_grad_()
    teacher_hidden, teacher_weight = normal(n, h + 2), normal(other_v, h + 2)
    teacher_hidden[:, -1] = 1.0
    if faults:
        teacher_weight[1:, -1][
            torch.rand(other_v - 1, generator=drawn) < draw(st.sampled_from([0.0, 0.3]))
        ] = -torch.inf
        teacher_hidden[torch.rand(n, generator=drawn) < 0.2] = torch.nan
    tokens = torch.randint(v, (n,), generator=drawn)
    temperature = draw(st.sampled_from([1.0, 0.7]))
    return Problem(hidden, weight, teacher_hidden, teacher_weight, tokens, temperature, draw(st.integers(1, 4 * v)))


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    """To 1e-9, not-a-number included."""
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9, equal_nan=True)
