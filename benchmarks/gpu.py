"""`python benchmarks/gpu.py [--dry]`: the distillation loss and the actor's step on one GPU; no Ray, no vLLM.

Needs torch 2.11 or later and transformers. Ends within 8 minutes on an H200; what finds no time is told as left out.
The last line is JSON. `--dry` runs every part at a toy size on the CPU, where its figures mean nothing.

gemm       TFLOP/s of [T, H] x [H, V] in bf16 on random data, by shape: the ceiling of what follows
loss       forward and backward of the divergence with the top 100 and a tail, V = 151,936, bf16, for every way of it:
           ms (median), naive_ratio, ceiling_share (of 8TVH operations, which is what the full gradient takes), peak_gib
           and transient_gib (above the inputs; and above the gradients, too), gradient_error (of 256 rows, against
           float64). `naive` keeps all logits in bf16; `naive_fp32` has them in float32; `precise` has float32 logits a
           few at a time, `exact` bf16 ones, `sparse` is `precise` with the gradient of the support alone; `liger` is
           liger-kernel's divergence of the full vocabulary, where that is installed, so without an error. Their kernels
           are the faster ones; `precise_torch` and `precise_triton` have those of one way (MOPD_KERNEL)
kernels    GB/s of what is done beside the products, by kernel, kind of logits and way: as many as are there at one time
actor      a step of the actor on a Qwen3-4B of random weights with a teacher beside it: see benchmarks/gpu_step.py
transfer   GB/s from the GPU to the host of a teacher's answer: its top 100, and its hidden states
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks.gpu_step import REAL, TOY, Bench, actor_part, rounded  # noqa: E402
from mopd.divergence import closed, generalized_jsd  # noqa: E402
from mopd.fused import linear_divergence  # noqa: E402
from mopd.fused_kernels import outside, scan  # noqa: E402
from mopd.fused_logits import LOGITS_AT_HAND  # noqa: E402
from mopd.losses import distillation_loss  # noqa: E402

BUDGET_S = 450.0
"""After so many seconds nothing new is begun."""
LOSS_SHARE = 0.45
"""Of that, after which the loss leaves the rest to the others."""
CHECKED_ROWS = 256
GIB = float(1 << 30)


@dataclass(frozen=True)
class Sizes:
    """How large the loss is."""

    tokens: Sequence[int]
    hidden: Sequence[int]
    vocabulary: int
    topk: int


LOSS = Sizes((8192, 16384, 32768), (2560, 4096), 151_936, 100)
TOY_LOSS = Sizes((64, 128), (32,), 512, 8)


@dataclass(frozen=True)
class Inputs:
    """A batch: a student that is rather sure of one entry, and a teacher near it. The student's two have gradients."""

    hidden: Tensor
    weight: Tensor
    teacher_hidden: Tensor
    teacher_weight: Tensor
    tokens: Tensor
    topk: int

    @property
    def gradient_bytes(self) -> int:
        """Of both gradients together."""
        return sum(each.numel() * each.element_size() for each in (self.hidden, self.weight))


def make_inputs(tokens: int, hidden: int, sizes: Sizes, bench: Bench) -> Inputs:
    """Logits of the other entries are normal with deviation 2; the chosen one outweighs them about fifty to one."""
    torch.manual_seed(0)
    where: dict[str, Any] = {"device": bench.device}
    weight = torch.randn(sizes.vocabulary, hidden, **where) / hidden**0.5
    ids = torch.randint(sizes.vocabulary, (tokens,), **where)
    height = torch.tensor(float(sizes.vocabulary)).log().item() + 6.0
    states = 2.0 * torch.randn(tokens, hidden, **where) + height * weight[ids]
    teacher_states = states + 0.3 * torch.randn(tokens, hidden, **where)
    teacher_weight = (weight + 0.02 * torch.randn_like(weight) / hidden**0.5).to(torch.bfloat16)
    return Inputs(
        states.to(torch.bfloat16).requires_grad_(),
        weight.to(torch.bfloat16).requires_grad_(),
        teacher_states.to(torch.bfloat16),
        teacher_weight,
        ids,
        sizes.topk,
    )


# ------------------------------------------------------------------ ways to the same loss


def naive(inputs: Inputs) -> Tensor:
    """The mean divergence from full logits in bf16, as published trainers have it."""
    logits = inputs.hidden @ inputs.weight.T
    with torch.no_grad():
        teacher_logits = inputs.teacher_hidden @ inputs.teacher_weight.T
        ids = logits.topk(inputs.topk, dim=-1).indices.sort(dim=-1).values
        teacher_K = (teacher_logits.gather(-1, ids) - teacher_logits.logsumexp(-1, keepdim=True)).float()
        del teacher_logits
    student_K = (logits.gather(-1, ids) - logits.logsumexp(-1, keepdim=True)).float()
    return generalized_jsd(closed(student_K, ids), closed(teacher_K, ids), 0.5).mean()


def naive_fp32(inputs: Inputs) -> Tensor:
    """The specification on full logits that are made in bf16 and kept in float32."""
    return specification(inputs, torch.float32, len(inputs.tokens))


def specification(inputs: Inputs, dtype: torch.dtype, denominator: int) -> Tensor:
    """`mopd.losses.distillation_loss` on full logits of a dtype."""
    logits = (inputs.hidden @ inputs.weight.T).to(dtype)
    with torch.no_grad():
        teacher_logits = (inputs.teacher_hidden @ inputs.teacher_weight.T).to(dtype)
    mask = torch.ones_like(inputs.tokens[None], dtype=torch.float32)
    return distillation_loss(
        logits[None], teacher_logits[None], inputs.tokens[None], mask, topk=inputs.topk, denominator=denominator
    )


def fused(inputs: Inputs, **options: Any) -> Tensor:
    """The mean divergence from hidden states."""
    states = (inputs.hidden, inputs.weight, inputs.teacher_hidden, inputs.teacher_weight, inputs.tokens)
    return linear_divergence(*states, topk=inputs.topk, **options).values.mean()


def liger(inputs: Inputs) -> Tensor:
    """liger-kernel's divergence of the full vocabulary."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    loss = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.5)
    states = (inputs.hidden, inputs.weight, inputs.teacher_hidden, inputs.teacher_weight, inputs.tokens)
    value: Tensor = loss(*states, None, None)
    return value


WAYS: Mapping[str, Callable[[Inputs], Tensor]] = {
    "naive": naive,
    "precise": lambda inputs: fused(inputs, precise=True),
    "exact": lambda inputs: fused(inputs, precise=False),
    "sparse": lambda inputs: fused(inputs, precise=True, grad_mode="sparse"),
    "precise_torch": lambda inputs: fused(inputs, precise=True),
    "precise_triton": lambda inputs: fused(inputs, precise=True),
    "naive_fp32": naive_fp32,
    "liger": liger,
}
"""By name; `naive` first, for the others are held against it."""


@contextmanager
def kernels_of(way: str) -> Iterator[None]:
    """Meanwhile the kernels are those that the end of a name asks for, the faster ones if it asks for none."""
    before, asked = os.environ.get("MOPD_KERNEL", "auto"), way.rpartition("_")[2]
    os.environ["MOPD_KERNEL"] = asked if asked in ("torch", "triton") else "auto"
    try:
        yield
    finally:
        os.environ["MOPD_KERNEL"] = before


def lacks(way: str, bench: Bench) -> str | None:
    """Why a way cannot be gone here, if it cannot."""
    if way == "liger" and importlib.util.find_spec("liger_kernel") is None:
        return "liger-kernel is not installed"
    if way.endswith("triton") and (bench.device.type != "cuda" or importlib.util.find_spec("triton") is None):
        return "Triton needs a GPU, and its package"
    return None


def gradient_of(way: Callable[[Inputs], Tensor], inputs: Inputs) -> Tensor:
    """The gradient of the first hidden states; none is left behind."""
    way(inputs).backward()
    gradient = inputs.hidden.grad
    if gradient is None:
        raise RuntimeError("the loss did not reach the hidden states")
    rows = gradient[:CHECKED_ROWS].double()
    inputs.hidden.grad = inputs.weight.grad = None
    return rows


def true_gradient(inputs: Inputs) -> Tensor:
    """Of the first hidden states in the mean over all tokens, by the specification in float64."""
    rows = min(CHECKED_ROWS, len(inputs.tokens))
    wide = Inputs(
        inputs.hidden.detach()[:rows].double().requires_grad_(),
        inputs.weight.detach().double(),
        inputs.teacher_hidden[:rows].double(),
        inputs.teacher_weight.double(),
        inputs.tokens[:rows],
        inputs.topk,
    )
    return torch.autograd.grad(specification(wide, torch.float64, len(inputs.tokens)), wide.hidden)[0]


# ------------------------------------------------------------------ the parts


def gemm_part(bench: Bench, sizes: Sizes) -> dict[str, float]:
    """TFLOP/s by shape, of the one product that the loss is made of."""
    found = {}
    for hidden, tokens in product(sizes.hidden, sizes.tokens):
        left = torch.randn(tokens, hidden, device=bench.device, dtype=torch.bfloat16)
        right = torch.randn(sizes.vocabulary, hidden, device=bench.device, dtype=torch.bfloat16)
        out = torch.empty(tokens, sizes.vocabulary, device=bench.device, dtype=torch.bfloat16)
        seconds = bench.seconds(lambda a=left, b=right, c=out: torch.mm(a, b.T, out=c))
        found[f"{tokens}x{hidden}"] = 2e-12 * tokens * hidden * sizes.vocabulary / seconds
    return found


def loss_part(bench: Bench, sizes: Sizes, ceilings: Mapping[str, float]) -> list[dict[str, Any]]:
    """A record per shape and way."""
    found: list[dict[str, Any]] = []
    for hidden, tokens in product(sizes.hidden, sizes.tokens):
        inputs = make_inputs(tokens, hidden, sizes, bench)
        truth = true_gradient(inputs)
        naive_ms: float | None = None
        for name in WAYS:
            record = {"tokens": tokens, "hidden": hidden, "way": name}
            with kernels_of(name):
                record |= measured(name, inputs, truth, bench, ceilings[f"{tokens}x{hidden}"])
            naive_ms = record.get("ms") if name == "naive" else naive_ms
            if naive_ms and "ms" in record:
                record["naive_ratio"] = record["ms"] / naive_ms
            found.append(record)
            bench.say(record)
    return found


def measured(name: str, inputs: Inputs, truth: Tensor, bench: Bench, ceiling: float) -> dict[str, Any]:
    """The figures of one way, or why there are none."""
    if missing := lacks(name, bench):
        return {"left_out": missing}
    if bench.share() > LOSS_SHARE:
        return {"left_out": "no time left"}

    def once() -> None:
        WAYS[name](inputs).backward()
        inputs.hidden.grad = inputs.weight.grad = None

    try:
        gradient = gradient_of(WAYS[name], inputs)
        peak = bench.peak(once)
        seconds = bench.seconds(once)
    except torch.OutOfMemoryError:
        inputs.hidden.grad = inputs.weight.grad = None
        bench.free()
        return {"left_out": "out of memory"}
    work = 8e-12 * len(inputs.tokens) * inputs.weight.numel()
    record = {"ms": 1000 * seconds, "tflops": work / seconds, "ceiling_share": work / seconds / ceiling}
    if name != "liger":
        record["gradient_error"] = float((gradient - truth).norm() / truth.norm())
    if peak is not None:
        record |= {"peak_gib": peak / GIB, "transient_gib": (peak - inputs.gradient_bytes) / GIB}
    return record


def kernels_part(bench: Bench, sizes: Sizes) -> dict[str, float | str]:
    """GB/s by kernel, kind and way: bytes that have to be read and written, by the time of it."""
    rows = max(1, LOGITS_AT_HAND["cuda"] // sizes.vocabulary) if bench.device.type == "cuda" else sizes.tokens[0]
    found: dict[str, float | str] = {}
    for kind, way in product((torch.float32, torch.bfloat16), ("torch", "triton")):
        name = f"{str(kind).removeprefix('torch.')} {way}"
        if missing := lacks(way, bench):
            found[name] = missing
            continue
        logits = torch.randn(rows, sizes.vocabulary, device=bench.device, dtype=kind)
        normaliser, shift = logits.float().logsumexp(dim=-1), torch.zeros(rows, device=bench.device)
        out = torch.empty_like(logits, dtype=torch.bfloat16)
        read, written = (each.numel() * each.element_size() for each in (logits, out))
        with kernels_of(way):
            found[f"scan {name}"] = 1e-9 * read / bench.seconds(lambda z=logits: scan(z, 1.0, True))
            took = bench.seconds(lambda z=logits, n=normaliser, s=shift, o=out: outside(z, n, s, 1.0, o))
            found[f"outside {name}"] = 1e-9 * (read + written) / took
    return found


def transfer_part(bench: Bench, sizes: Sizes) -> dict[str, float]:
    """GB/s from the device to the host."""
    tokens, hidden = sizes.tokens[0], sizes.hidden[0]
    pinned = bench.device.type == "cuda"
    logits = torch.randn(min(tokens, 2048), sizes.vocabulary, device=bench.device, dtype=torch.bfloat16)
    ids = logits.topk(sizes.topk, dim=-1).indices
    states = torch.randn(tokens, hidden, device=bench.device, dtype=torch.bfloat16)
    few = torch.empty(ids.shape, dtype=torch.float32, pin_memory=pinned)
    all_of_it = torch.empty(states.shape, dtype=torch.bfloat16, pin_memory=pinned)
    took = {
        "topk_gather": (few, bench.seconds(lambda: few.copy_(logits.gather(-1, ids).float()))),
        "hidden_states": (all_of_it, bench.seconds(lambda: all_of_it.copy_(states))),
    }
    return {name: 1e-9 * to.numel() * to.element_size() / seconds for name, (to, seconds) in took.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python benchmarks/gpu.py", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--dry", action="store_true", help="every part at a toy size, on the CPU")
    parser.add_argument(
        "--only", choices=["loss", "kernels", "actor", "transfer"], help="one part alone (with the ceiling)"
    )
    parser.add_argument("--budget", type=float, default=BUDGET_S, metavar="SECONDS", help="default: %(default)g")
    parser.add_argument("--json", action="store_true", help="says nothing but the last line")
    asked = parser.parse_args(argv)
    if not asked.dry and not torch.cuda.is_available():
        sentence = "not measured: torch sees no GPU here; --dry runs every part at a toy size on the CPU"
        sys.stdout.write(f"{sentence}\n{json.dumps({'not_measured': sentence})}\n")
        return 0
    bench = Bench(torch.device("cpu" if asked.dry else "cuda"), asked.budget, quiet=asked.json)
    sizes, step = (TOY_LOSS, TOY) if asked.dry else (LOSS, REAL)
    name = "cpu" if asked.dry else torch.cuda.get_device_name()
    found: dict[str, Any] = {"device": name, "torch": torch.__version__, "dry": asked.dry}
    found["gemm"] = gemm_part(bench, sizes)
    bench.say({"gemm TFLOP/s": found["gemm"]})
    ceiling = median(found["gemm"].values())
    parts: dict[str, Callable[[], Any]] = {
        "loss": lambda: loss_part(bench, sizes, found["gemm"]),
        "kernels": lambda: kernels_part(bench, sizes),
        "transfer": lambda: transfer_part(bench, sizes),
        "actor": lambda: actor_part(bench, step, ceiling, None if asked.dry else name),
    }
    for part in [asked.only] if asked.only else parts:
        try:
            found[part] = parts[part]()
        except Exception as error:
            if asked.dry:
                raise
            # Time on a GPU is dear: what the other parts have found is told all the same.
            found[part] = {"failed": f"{type(error).__name__}: {error}"[:500]}
        bench.free()
    found["seconds"] = time.monotonic() - bench.began
    sys.stdout.write(json.dumps(rounded(found)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
