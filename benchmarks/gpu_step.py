"""The part of benchmarks/gpu.py that takes the actor's step: a model of random weights, a teacher beside it, one GPU.

Student and teacher are sharded over the one rank as the trainer has them: masters in fp32, products in bf16,
activations computed again in backward, AdamW, the teacher following. A batch is 8 groups that share a prompt of 1024
tokens, and 2048 for the teacher. Ways:

padded          padded rows, as many at a time as fit the budget of tokens; all logits of the responses in bf16
packed          every sequence in one row, its prompt too; likewise all logits
shared          the same with the prompt of a group once
fused           the same with the loss from hidden states: what the trainer does

seconds         of a step, median             tokens_per_s    prompt and response tokens of all sequences, by that
tflops          model operations a second, recomputation not credited
mfu             the same of the device's datasheet peak
ceiling_share   and of the measured GEMM rate
forwarded       tokens forwarded by student and teacher, of those that sequences have (prompts repeated)
loss            of the last step
phases          its seconds by phase
peak_gib        most memory at once
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from mopd.divergence import closed, generalized_jsd
from mopd.fused import linear_divergence
from mopd.teacher import ema_
from mopd.types import IntArray
from trainer.accounting import Account, Tally, model_flops, pass_of, peak_of
from trainer.attention import PACKED
from trainer.layout import TokenBatch, batch_of, hidden_states

GROUPS = 8
WARM_UP, REPEATS, LONGEST_S = 2, 10, 2.5
"""Of a timing: runs before it, runs at most, and seconds after which there are fewer."""


@dataclass
class Bench:
    """A device, and the time that is left on it."""

    device: torch.device
    budget_s: float
    quiet: bool = False
    began: float = field(default_factory=time.monotonic)

    held: int = 0
    """Bytes that were taken before the last `peak`."""

    def share(self) -> float:
        """Of the budget, what is spent."""
        return (time.monotonic() - self.began) / self.budget_s

    def say(self, record: Mapping[str, Any]) -> None:
        """A line for whoever waits."""
        if not self.quiet:
            sys.stdout.write("  ".join(f"{name} {rounded(value)}" for name, value in record.items()) + "\n")
            sys.stdout.flush()

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, call: Callable[[], object]) -> float:
        """The median of some runs, after warming up; fewer of long ones."""
        took: list[float] = []
        most = REPEATS if self.device.type == "cuda" else 1
        while len(took) < WARM_UP + most and (len(took) < WARM_UP + 2 or sum(took) < LONGEST_S):
            self.wait()
            begun = time.perf_counter()
            call()
            self.wait()
            took.append(time.perf_counter() - begun)
        return median(took[WARM_UP:])

    def peak(self, call: Callable[[], object]) -> int | None:
        """The most bytes that a run takes above what is held before; None where it is not known."""
        if self.device.type != "cuda":
            call()
            return None
        self.wait()
        torch.cuda.reset_peak_memory_stats()
        self.held = torch.cuda.memory_allocated()
        call()
        self.wait()
        return torch.cuda.max_memory_allocated() - self.held

    def free(self) -> None:
        """Gives cached memory back."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def rounded(found: Any) -> Any:
    """Figures to four digits."""
    if isinstance(found, float):
        return float(f"{found:.4g}")
    if isinstance(found, dict):
        return {name: rounded(value) for name, value in found.items()}
    return [rounded(value) for value in found] if isinstance(found, list) else found


@dataclass(frozen=True)
class Shape:
    """The model, and the batches that it is given."""

    model: Mapping[str, int | bool]
    tokens: Sequence[int]
    """Of a batch, with every prompt once."""
    prompt: int
    teacher_prompt: int
    shortest: int
    """Tokens of the shortest responses."""
    padded_tokens: int
    """Of a micro-batch of padded rows."""
    topk: int


REAL = Shape(
    {
        "vocab_size": 151_936, "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True,
        "max_position_embeddings": 16_384,
    },
    (16_384, 32_768), 1024, 2048, 512, 8192, 100,
)  # fmt: skip
"""Qwen3-4B."""
TOY = Shape(
    {
        "vocab_size": 512, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "tie_word_embeddings": True,
        "max_position_embeddings": 1024,
    },
    (256,), 16, 24, 8, 128, 8,
)  # fmt: skip


@dataclass(frozen=True)
class Rows:
    """Prompts, and the responses to them, row by row."""

    prompts: list[IntArray]
    teacher_prompts: list[IntArray]
    responses: list[IntArray]

    def part(self, rows: slice) -> Rows:
        """Some of them."""
        return Rows(self.prompts[rows], self.teacher_prompts[rows], self.responses[rows])

    def apart(self) -> Rows:
        """The same lengths, with no prompt like another."""
        return Rows(*(distinct(prompts) for prompts in (self.prompts, self.teacher_prompts)), self.responses)

    def lengths(self, *, teacher: bool) -> list[int]:
        """Of prompt and response of each row."""
        prompts = self.teacher_prompts if teacher else self.prompts
        return [len(prompt) + len(response) for prompt, response in zip(prompts, self.responses, strict=True)]


def distinct(prompts: Sequence[IntArray]) -> list[IntArray]:
    """Prompts whose first tokens are their numbers."""
    return [np.concatenate([np.array([number], np.int32), prompt[1:]]) for number, prompt in enumerate(prompts)]


def make_rows(shape: Shape, tokens: int) -> Rows:
    """`GROUPS` groups with so many tokens in all; the longest response of a group is twice its shortest."""
    drawn = np.random.default_rng(0)
    own = tokens // GROUPS - shape.prompt
    count = max(2, own // (2 * shape.shortest))
    weights = np.linspace(1.0, 2.0, count)
    lengths = [max(shape.shortest, int(own * weight / weights.sum())) for weight in weights]

    def ids(length: int) -> IntArray:
        return drawn.integers(0, int(shape.model["vocab_size"]), size=length, dtype=np.int32)

    rows = Rows([], [], [])
    for _ in range(GROUPS):
        prompt, teacher_prompt = ids(shape.prompt), ids(shape.teacher_prompt)
        rows.prompts.extend([prompt] * count)
        rows.teacher_prompts.extend([teacher_prompt] * count)
        rows.responses.extend(ids(length) for length in lengths)
    return rows


class Actor(nn.Module):
    """A causal language model whose forward pass ends in the loss, so that the head is gathered all the while."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: TokenBatch, teacher: tuple[Tensor, Tensor] | None, fused: bool, topk: int) -> Any:
        """The sum of divergences from a teacher's states and head; without a teacher, one's own of both."""
        states = hidden_states(self.model, batch)
        head = self.model.lm_head.weight
        if teacher is None:
            return states, head.detach().clone()
        if fused:
            return linear_divergence(states, head, *teacher, batch.tokens, topk=topk).values.sum()
        return dense(states, head, *teacher, topk).sum()


def dense(states: Tensor, head: Tensor, teacher_states: Tensor, teacher_head: Tensor, topk: int) -> Tensor:
    """[M], the divergence from full logits."""
    logits = states @ head.T
    with torch.no_grad():
        teacher_logits = teacher_states @ teacher_head.T
        ids = logits.topk(topk, dim=-1).indices.sort(dim=-1).values
        teacher_K = (teacher_logits.gather(-1, ids) - teacher_logits.logsumexp(-1, keepdim=True)).float()
        del teacher_logits
    student_K = (logits.gather(-1, ids) - logits.logsumexp(-1, keepdim=True)).float()
    return generalized_jsd(closed(student_K, ids), closed(teacher_K, ids), 0.5)


def build(shape: Shape, bench: Bench, *, trained: bool) -> Actor:
    """A model of random weights on the device, sharded layer by layer over the one rank."""
    from transformers import AutoModelForCausalLM, Qwen3Config

    config = Qwen3Config(**shape.model)
    config.use_cache = False
    torch.manual_seed(0)
    with bench.device:
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=PACKED)
    if trained:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    actor = Actor(model).train(trained).requires_grad_(trained)
    on_gpu = bench.device.type == "cuda"
    precision = MixedPrecisionPolicy(torch.bfloat16 if on_gpu else torch.float32, torch.float32)
    mesh = init_device_mesh(bench.device.type, (1,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=precision)
    fully_shard(actor, mesh=mesh, mp_policy=precision)
    return actor


@contextmanager
def alone(bench: Bench) -> Iterator[None]:
    """A process group of this process."""
    backend = "nccl" if bench.device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


@dataclass(frozen=True)
class Way:
    """How a step goes about its batch."""

    packed: bool
    shared: bool
    fused: bool


WAYS: Mapping[str, Way] = {
    "fused": Way(packed=True, shared=True, fused=True),
    "shared": Way(packed=True, shared=True, fused=False),
    "packed": Way(packed=True, shared=False, fused=False),
    "padded": Way(packed=False, shared=False, fused=False),
}
"""The trainer's own first: where time is short the others are left out."""


@dataclass(frozen=True)
class Trio:
    """Who takes part in a step."""

    student: Actor
    teacher: Actor
    optimizer: torch.optim.Optimizer


def step(trio: Trio, rows: Rows, way: Way, shape: Shape, bench: Bench) -> tuple[Tally, float]:
    """One step of the actor: teacher, forward, backward, optimiser, and the teacher follows. Also tells the loss."""
    account, parts = Account(bench.device), list[Tensor]()
    for part in micro_batches(rows, way, shape):
        loss = forward(trio, part, way, shape, account) / sum(map(len, rows.responses))
        with account.turn("backward"):
            loss.backward()
        parts.append(loss.detach())
    with account.turn("optimiser"):
        nn.utils.clip_grad_norm_(trio.student.parameters(), 1.0)
        trio.optimizer.step()
        trio.optimizer.zero_grad(set_to_none=True)
        ema_(
            [whole.to_local() for whole in trio.teacher.parameters()],  # type: ignore[attr-defined]
            [whole.to_local() for whole in trio.student.parameters()],  # type: ignore[attr-defined]
            0.05,
        )
    return account.closed(), float(torch.stack(parts).sum())


def forward(trio: Trio, part: Rows, way: Way, shape: Shape, account: Account) -> Tensor:
    """The sum of a micro-batch's divergences, with what the teacher says of it."""
    batch, view = (
        batch_of(prompts, part.responses, account.device, packed=way.packed)
        for prompts in (part.prompts, part.teacher_prompts)
    )
    labels = len(batch.tokens)
    with account.turn("teacher"), torch.no_grad():
        answer = trio.teacher(view, None, way.fused, shape.topk)
        trio.teacher.reshard()  # type: ignore[operator]
    with account.turn("forward"):
        loss: Tensor = trio.student(batch, answer, way.fused, shape.topk)
    account.forwarded("trained", pass_of(batch, part.lengths(teacher=False), rows=labels, labels=labels))
    account.forwarded("teacher", pass_of(view, part.lengths(teacher=True), rows=labels, labels=labels))
    return loss


def micro_batches(rows: Rows, way: Way, shape: Shape) -> list[Rows]:
    """All in one where nothing is padded; else as many rows at a time as the budget of tokens allows."""
    if way.packed:
        return [rows if way.shared else rows.apart()]
    at_once = max(1, shape.padded_tokens // max(rows.lengths(teacher=True)))
    return [rows.part(slice(start, start + at_once)) for start in range(0, len(rows.prompts), at_once)]


def actor_part(bench: Bench, shape: Shape, ceiling: float, name: str | None) -> list[dict[str, Any]]:
    """A record per size of batch and way. `ceiling` in TFLOP/s."""
    from transformers import Qwen3Config

    from trainer.planning.architecture import architecture_of

    with tempfile.TemporaryDirectory() as folder:
        Qwen3Config(**shape.model).save_pretrained(folder)
        sizes = architecture_of(folder)
    found: list[dict[str, Any]] = []
    peak = peak_of(name)
    with alone(bench):
        student, teacher = build(shape, bench, trained=True), build(shape, bench, trained=False)
        adam = torch.optim.AdamW(student.parameters(), lr=1e-5, fused=bench.device.type == "cuda")
        trio = Trio(student, teacher, adam)
        for tokens, way in product(shape.tokens, WAYS):
            record = {"tokens": tokens, "way": way}
            rows = make_rows(shape, tokens)
            record |= measured(trio, rows, WAYS[way], shape, bench, lambda tally: model_flops(tally.passes, sizes))
            if "tflops" in record:
                record["ceiling_share"] = record["tflops"] / ceiling
                record |= {} if peak is None else {"mfu": 1e12 * record["tflops"] / peak}
            found.append(record)
            bench.say(record)
    return found


def measured(
    trio: Trio, rows: Rows, way: Way, shape: Shape, bench: Bench, operations: Callable[[Tally], float]
) -> dict[str, Any]:
    """The figures of one way, or why there are none."""
    if bench.share() > 1:
        return {"left_out": "no time left"}
    last: list[tuple[Tally, float]] = []

    def once() -> None:
        last[:] = [step(trio, rows, way, shape, bench)]

    try:
        peak = bench.peak(once)
        seconds = bench.seconds(once)
    except torch.OutOfMemoryError:
        for actor in (trio.student, trio.teacher):
            actor.zero_grad(set_to_none=True)
            actor.reshard()  # type: ignore[operator]
        bench.free()
        return {"left_out": "out of memory"}
    (tally, loss), asked = last[0], {teacher: sum(rows.lengths(teacher=teacher)) for teacher in (False, True)}
    forwarded = sum(work.tokens for work in tally.passes.values())
    record = {
        "seconds": seconds,
        "tokens_per_s": asked[False] / seconds,
        "tflops": 1e-12 * operations(tally) / seconds,
        "forwarded": forwarded / sum(asked.values()),
        "loss": loss,
        "phases": dict(tally.seconds),
    }
    return record if peak is None else record | {"peak_gib": (peak + bench.held) / (1 << 30)}
