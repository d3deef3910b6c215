"""`python benchmarks/loss.py [--json]`: the fused distillation loss against full logits: time, memory, accuracy.

The reference is the published arithmetic: both models' logits whole and in the dtype of the weights, their logsumexp in
that dtype too, the student's top-k, the tail as one bucket, and autograd; what concerns K entries only is in float32.
Both run forward and backward on the same random inputs, one after the other in one process with one thread, and only
their ratios are told, the medians of the pairs: of CPU seconds, and of memory, the process's high-water mark above what
it held before, in backward also above both gradients. Accuracy is that of the gradient of some hidden states against
float64; there the reference is the dense specification, all in float32 but its logits, and so more accurate.

    time_ratio, sparse_time_ratio               fused / reference, all of the gradient or that of the support
    transient_ratio                             likewise for memory
    transient_growth                            fused, memory with twice the tokens / with a quarter of them
    gradient_error, reference_gradient_error    |difference| / |gradient|
    precise_gradient_error, precise_time_ratio  with logits in float32, which a CPU pays for: of one pair
    reference_gemm_share                        the four products' part of the reference's time: a fair one has half
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from mopd.divergence import closed, generalized_jsd  # noqa: E402
from mopd.fused import GradMode, linear_distillation_loss  # noqa: E402
from mopd.losses import distillation_loss  # noqa: E402

SETTINGS = {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": str(2 << 20)}
"""One thread; and blocks of 2 MiB and more go back as soon as they are free, as in every worker of a run."""
TOPK = 100
ROWS = 32
"""Tokens whose gradient is held against float64."""

Loss = Callable[["Inputs"], Tensor]


@dataclass(frozen=True)
class Inputs:
    """A batch: a student that is rather sure of one entry, and a teacher near it. The student's two have gradients."""

    student_hidden: Tensor
    student_weight: Tensor
    teacher_hidden: Tensor
    teacher_weight: Tensor
    tokens: Tensor

    def at(self, tokens: int) -> Inputs:
        """The first few tokens."""
        hidden = self.student_hidden.detach()[:tokens].clone().requires_grad_()
        return Inputs(
            hidden, self.student_weight, self.teacher_hidden[:tokens], self.teacher_weight, self.tokens[:tokens]
        )

    @property
    def gradient_bytes(self) -> int:
        """Of both gradients together."""
        return sum(each.numel() * each.element_size() for each in (self.student_hidden, self.student_weight))


def make_inputs(tokens: int, vocabulary: int, hidden: int, dtype: torch.dtype) -> Inputs:
    """Logits of the other entries are normal with deviation 2; the chosen one outweighs them about fifty to one."""
    drawn = torch.Generator().manual_seed(0)
    weight = torch.randn(vocabulary, hidden, generator=drawn) / hidden**0.5
    ids = torch.randint(vocabulary, (tokens,), generator=drawn)
    height = torch.tensor(float(vocabulary)).log() + 2.0 + 4.0
    states = 2.0 * torch.randn(tokens, hidden, generator=drawn) + height * weight[ids]
    teacher_states = states + 0.3 * torch.randn(tokens, hidden, generator=drawn)
    teacher_weight = (weight + 0.02 * torch.randn(weight.shape, generator=drawn) / hidden**0.5).to(dtype)
    return Inputs(
        states.to(dtype).requires_grad_(),
        weight.to(dtype).requires_grad_(),
        teacher_states.to(dtype),
        teacher_weight,
        ids,
    )


def reference(inputs: Inputs) -> Tensor:
    """The mean divergence, from full logits."""
    logits = inputs.student_hidden @ inputs.student_weight.T
    with torch.no_grad():
        teacher_logits = inputs.teacher_hidden @ inputs.teacher_weight.T
        ids = logits.topk(TOPK, dim=-1).indices.sort(dim=-1).values
        teacher_K = (teacher_logits.gather(-1, ids) - teacher_logits.logsumexp(-1, keepdim=True)).float()
        del teacher_logits
    student_K = (logits.gather(-1, ids) - logits.logsumexp(-1, keepdim=True)).float()
    return generalized_jsd(closed(student_K, ids), closed(teacher_K, ids), 0.5).mean()


def fused(inputs: Inputs, grad_mode: GradMode = "exact", precise: bool = False) -> Tensor:
    """The same, without them."""
    return linear_distillation_loss(
        inputs.student_hidden, inputs.student_weight, inputs.teacher_hidden, inputs.teacher_weight, inputs.tokens,
        topk=TOPK, grad_mode=grad_mode, precise=precise,
    )  # fmt: skip


def sparse(inputs: Inputs) -> Tensor:
    """The same, with the gradient of the support alone."""
    return fused(inputs, "sparse")


def precise(inputs: Inputs) -> Tensor:
    """The same, with logits in float32."""
    return fused(inputs, precise=True)


def run(loss: Loss, inputs: Inputs) -> tuple[float, int, Tensor]:
    """Forward and backward: CPU seconds, bytes (see the module), and the gradient of the hidden states."""
    inputs.student_hidden.grad = inputs.student_weight.grad = None
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    mark, begun = status_bytes("VmRSS"), time.process_time()
    value = loss(inputs)
    forward = status_bytes("VmHWM") - mark
    value.backward()
    seconds, both = time.process_time() - begun, status_bytes("VmHWM") - mark
    gradient = inputs.student_hidden.grad
    if gradient is None:
        raise RuntimeError("the loss did not reach the hidden states")
    inputs.student_hidden.grad = inputs.student_weight.grad = None
    return seconds, max(1, forward, both - inputs.gradient_bytes), gradient


def status_bytes(name: str) -> int:
    """A figure of /proc/self/status, in bytes: VmRSS now, VmHWM at most."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) << 10
    raise RuntimeError(f"/proc/self/status has no {name}: this needs Linux")


def product_seconds(inputs: Inputs) -> float:
    """One product of all hidden states with the weight, into memory that is there already."""
    with torch.no_grad():
        out = torch.zeros(len(inputs.tokens), len(inputs.student_weight), dtype=inputs.student_weight.dtype)
        begun = time.process_time()
        torch.mm(inputs.student_hidden, inputs.student_weight.T, out=out)
        return time.process_time() - begun


def dense_gradient(inputs: Inputs, rows: int, dtype: torch.dtype) -> Tensor:
    """Of the first few hidden states in the mean over all tokens, by the specification on logits of this dtype."""
    hidden = inputs.student_hidden.detach()[:rows].to(dtype).requires_grad_()
    with torch.no_grad():
        teacher_logits = inputs.teacher_hidden[:rows].to(dtype) @ inputs.teacher_weight.to(dtype).T
    logits = hidden @ inputs.student_weight.detach().to(dtype).T
    mask = torch.ones(1, len(hidden))
    tokens = inputs.tokens[None, :rows]
    loss = distillation_loss(
        logits[None], teacher_logits[None], tokens, mask, topk=TOPK, denominator=len(inputs.tokens)
    )
    return torch.autograd.grad(loss, hidden)[0].double()


def measure(tokens: int, vocabulary: int, hidden: int, pairs: int, dtype: torch.dtype) -> dict[str, float]:
    """All figures; the module says what they mean."""
    longest = make_inputs(2 * tokens, vocabulary, hidden, dtype)
    inputs = longest.at(tokens)
    for warm in (reference, fused, sparse, precise):
        run(warm, inputs.at(min(tokens, 64)))
    ratios: dict[str, list[float]] = {"time": [], "sparse": [], "memory": [], "products": []}
    for _ in range(pairs):
        seconds, transient, _ = run(reference, inputs)
        fused_seconds, fused_transient, gradient = run(fused, inputs)
        ratios["time"].append(fused_seconds / seconds)
        ratios["memory"].append(fused_transient / transient)
        ratios["sparse"].append(run(sparse, inputs)[0] / seconds)
        ratios["products"].append(4 * product_seconds(inputs) / seconds)
    precise_seconds, _, precise_gradient = run(precise, inputs)
    quarter, double = (run(fused, longest.at(size))[1] for size in (tokens // 4, 2 * tokens))
    rows = min(ROWS, tokens)
    true, dense = (dense_gradient(inputs, rows, each) for each in (torch.float64, dtype))
    error, precise_error, reference_error = (
        float((each[:rows].double() - true).norm() / true.norm()) for each in (gradient, precise_gradient, dense)
    )
    return {
        "time_ratio": statistics.median(ratios["time"]),
        "sparse_time_ratio": statistics.median(ratios["sparse"]),
        "transient_ratio": statistics.median(ratios["memory"]),
        "transient_growth": double / quarter,
        "gradient_error": error,
        "reference_gradient_error": reference_error,
        "precise_gradient_error": precise_error,
        "precise_time_ratio": precise_seconds / seconds,
        "reference_gemm_share": statistics.median(ratios["products"]),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python benchmarks/loss.py", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--tokens", type=int, default=2048, help="at least 4")
    parser.add_argument("--vocab", type=int, default=151_936, help=f"more than {TOPK}")
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--json", action="store_true", help="the last line is a JSON object of all figures")
    asked = parser.parse_args(argv)
    if asked.tokens < 4 or asked.vocab <= TOPK or asked.hidden < 1 or asked.pairs < 1:
        parser.error(f"needs --tokens >= 4, --vocab > {TOPK}, --hidden >= 1 and --pairs >= 1")
    torch.set_num_threads(1)
    found = measure(asked.tokens, asked.vocab, asked.hidden, asked.pairs, getattr(torch, asked.dtype))
    for name, value in found.items():
        print(f"{name:26} {value:.4g}")
    if asked.json:
        print(json.dumps({name: float(f"{value:.4g}") for name, value in found.items()}))
    return 0


if __name__ == "__main__":
    if any(name not in os.environ for name in SETTINGS):  # read when a process starts
        os.execve(sys.executable, [sys.executable, *sys.argv], SETTINGS | os.environ)
    sys.exit(main())
