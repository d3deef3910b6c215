"""`python benchmarks/memory.py [--json FILE] [CASE ...]`: what an actor process takes, predicted and measured.

Makes Qwen3-shaped models of random weights, about 100M and 300M parameters, and runs one real update of
`PolicyWorker` on the CPU in a process of its own for every case. Measured is the process's high-water mark above what
it held after its imports. The prediction is `trainer.planning.memory`'s, as `python -m trainer.plan` shows it.

By default glibc keeps blocks under 32 MiB that were freed; the prediction has a share for that, CPU_SLACK of the plan.
`--exact` measures once more with glibc told to give blocks of 1 MiB and more back at once, and leaves out the share.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

GIB = float(1 << 30)
RETURNING = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
"""For glibc: blocks of 1 MiB and more are given back as soon as they are free."""
SHAPES: dict[str, dict[str, int | bool]] = {
    "100M": {
        "hidden_size": 640,
        "num_hidden_layers": 16,
        "num_attention_heads": 10,
        "num_key_value_heads": 5,
        "head_dim": 64,
        "intermediate_size": 1920,
        "vocab_size": 32768,
        "tie_word_embeddings": True,
    },
    "300M": {
        "hidden_size": 1024,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "intermediate_size": 3072,
        "vocab_size": 49152,
        "tie_word_embeddings": False,
    },
}
"""Architectures by name."""


@dataclass(frozen=True)
class Case:
    """One measurement."""

    model: str
    """A key of `SHAPES`."""
    method: str
    """As `--config-name`."""
    checkpointing: bool
    fused: bool
    """Packed rows and the vocabulary by parts, as is the default; else padded rows and all logits at once."""
    rows: int
    """Sequences of a micro-batch, all of one length; all to one prompt, with a teacher prompt each."""
    prompt: int
    teacher_prompt: int
    response: int
    """Tokens."""

    @property
    def name(self) -> str:
        """As the command line names it."""
        name = f"{self.model}-{self.method}-{'recompute' if self.checkpointing else 'keep'}"
        return name if self.fused else f"{name}-dense"

    @property
    def overrides(self) -> list[str]:
        """The settings of the case."""
        return [
            f"data.max_prompt_length={self.prompt}",
            f"data.max_response_length={self.response}",
            f"actor_rollout_ref.actor.self_distillation.max_reprompt_len={self.teacher_prompt}",
            f"actor_rollout_ref.actor.ppo_max_token_len_per_gpu={self.rows * (self.longest + self.response)}",
            f"actor_rollout_ref.model.enable_gradient_checkpointing={str(self.checkpointing).lower()}",
            f"actor_rollout_ref.model.attn_implementation={'packed' if self.fused else 'sdpa'}",
            f"actor_rollout_ref.model.use_fused_kernels={str(self.fused).lower()}",
            "trainer.device=cpu",
        ]

    @property
    def longest(self) -> int:
        """Tokens of the longer prompt that the method forwards."""
        return self.teacher_prompt if self.method == "mopd" else self.prompt


CASES = tuple(
    Case(model, method, checkpointing, fused, rows, 128, 384, 256)
    for model, rows in (("100M", 4), ("300M", 2))
    for method, checkpointing, fused in (
        ("mopd", True, True),
        ("mopd", False, True),
        ("grpo", True, True),
        ("mopd", True, False),
    )
)


def make_model(shape: str, folder: Path) -> None:
    """Writes a model of random weights, with the embedded model's tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen3Config

    config = Qwen3Config(max_position_embeddings=4096, **SHAPES[shape])
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    embedded = ROOT / "datasets" / "chain" / "model"
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(embedded / name, folder)


def status_bytes(name: str) -> int:
    """A figure of /proc/self/status, in bytes: VmRSS now, VmHWM at most."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) << 10
    raise RuntimeError(f"/proc/self/status has no {name}: this needs Linux")


def peak_since(mark: int) -> int:
    """The high-water mark above `mark` bytes; the mark then starts anew from what is held now."""
    found = status_bytes("VmHWM") - mark
    Path("/proc/self/clear_refs").write_text("5")
    return found


def measure(case: Case, folder: Path) -> dict[str, int]:
    """Runs an update in this process; bytes above what the imports took, by phase."""
    from trainer import settings
    from trainer.config.compose import resolve
    from trainer.workers.policy import PolicyWorker

    config = resolve(case.method, [f"actor_rollout_ref.model.path={folder}", *case.overrides], {}).config
    model = config.actor_rollout_ref.model
    worker = PolicyWorker(
        rank=0,
        ranks=1,
        device="cpu",
        model_path=model.path,
        attn_implementation=model.attn_implementation,
        gradient_checkpointing=model.enable_gradient_checkpointing,
        loss=settings.loss_settings(config),
        optim=settings.optim_settings(config),
        teacher=settings.teacher_settings(config),
        seed=0,
        deadline_s=600.0,
    )
    host, port = worker.rendezvous()
    Path("/proc/self/clear_refs").write_text("5")
    mark = status_bytes("VmRSS")
    worker.join(host, port)
    found = {"load": peak_since(mark)}

    def drawn(*rows: int) -> tuple[object, ...]:
        return tuple(samples(*rows, vocabulary=worker.views.vocabulary))

    small, large = drawn(8, 8, 8, 1), drawn(case.prompt, case.teacher_prompt, case.response, case.rows)
    # The first step makes the optimiser's states; in the second one a large micro-batch meets a small one's gradients.
    for step, batches in enumerate(([small], [small, large]), start=1):
        begun = time.process_time()
        held = worker.update([mini_batch(batches)], step, frozenset()).tally.memory
        assert held is not None
        found |= {"update": round(held.host * GIB) - mark, "cpu_s": round(time.process_time() - begun)}
    return found


def samples(prompt: int, teacher_prompt: int, response: int, rows: int, *, vocabulary: int) -> Iterator[object]:
    """Rollouts of random tokens, all of which count, to one prompt."""
    import numpy as np

    from mopd.types import TokenStreams
    from trainer.packing import Sample

    drawn = np.random.default_rng(0)
    ones = np.ones(response, dtype=np.float32)
    asked = drawn.integers(vocabulary, size=prompt, dtype=np.int32)
    for index in range(rows):
        answer, told = (drawn.integers(vocabulary, size=size, dtype=np.int32) for size in (response, teacher_prompt))
        yield Sample(
            index=index,
            group=0,
            reward=float(index % 2),
            prompt_ids=asked,
            response_ids=answer,
            sampler_logprobs=-10 * ones,
            teacher_prompt_ids=told,
            streams=TokenStreams(ones, ones, ones),
        )


def mini_batch(batches: Sequence[tuple[object, ...]]) -> Any:
    """One optimiser step over these micro-batches."""
    from trainer.packing import MiniBatch

    return MiniBatch(tuple(batches), (1000.0,) * len(batches))  # type: ignore[arg-type]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python benchmarks/memory.py", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(case.name for case in CASES)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="writes the figures there too")
    parser.add_argument("--exact", action="store_true", help="measures too where freed blocks are given back at once")
    parser.add_argument("--inside", nargs=2, metavar=("CASE", "FOLDER"), help=argparse.SUPPRESS)
    asked = parser.parse_args(argv)
    by_name = {case.name: case for case in CASES}
    if asked.inside:
        name, folder = asked.inside
        sys.stdout.write(json.dumps(measure(by_name[name], Path(folder))) + "\n")
        return 0
    if unknown := [name for name in asked.cases if name not in by_name]:
        parser.error(f"unknown case {unknown[0]}; known: {', '.join(by_name)}")
    found = measured_cases([by_name[name] for name in asked.cases or by_name], exact_too=asked.exact)
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=2) + "\n")
    return 0


def measured_cases(cases: Sequence[Case], *, exact_too: bool) -> list[dict[str, object]]:
    """Measures every case in processes of its own, and prints a line for each."""
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        for case in cases:
            folder = Path(scratch) / case.model
            if not folder.exists():
                make_model(case.model, folder)
            line = compared(case, folder, exact_too=exact_too)
            found.append(line)
            print("  ".join(f"{key} {value}" for key, value in line.items()), flush=True)
    return found


def compared(case: Case, folder: Path, *, exact_too: bool) -> dict[str, object]:
    """One case: GiB predicted and measured at the peak of an update."""
    from trainer.planning.estimate import CPU_SLACK

    held = sum(predicted_parts(case, folder).values())
    predicted, found = (1 + CPU_SLACK) * held, in_a_process(case, folder, {})
    line: dict[str, object] = {
        "case": case.name,
        "predicted_GiB": round(predicted / GIB, 3),
        "measured_GiB": round(found["update"] / GIB, 3),
        "ratio": round(predicted / found["update"], 3),
        "cpu_s": found["cpu_s"],
    }
    if exact_too:
        exact = in_a_process(case, folder, RETURNING)
        line |= {
            "exact_predicted_GiB": round(held / GIB, 3),
            "exact_measured_GiB": round(exact["update"] / GIB, 3),
            "exact_ratio": round(held / exact["update"], 3),
            "exact_cpu_s": exact["cpu_s"],
        }
    return line


def predicted_parts(case: Case, folder: Path) -> dict[str, float]:
    """What the plan says of the case, in bytes by part."""
    from trainer.config.compose import resolve
    from trainer.planning.architecture import architecture_of
    from trainer.planning.memory import ActorPlan, MicroBatch, memory_of
    from trainer.settings import loss_settings

    loss = loss_settings(resolve(case.method, case.overrides, {}).config)
    model = architecture_of(str(folder))
    plan = ActorPlan(
        student=model,
        beside=model if loss.method.distils else None,
        method=loss.method,
        topk=loss.divergence.topk,
        union=loss.divergence.support == "union",
        mixes=False,
        distant=False,
        ranks=1,
        on_gpu=False,
        recompute=case.checkpointing,
        packed=case.fused,
        fused=loss.head == "fused",
        eager=False,
        micro_batch=MicroBatch(case.rows, 1, case.prompt, case.response),
    )
    return memory_of(plan)


def in_a_process(case: Case, folder: Path, environment: dict[str, str]) -> dict[str, int]:
    """Bytes by phase, and CPU seconds of the update, measured in a process with these variables more."""
    command = [sys.executable, __file__, "--inside", case.name, str(folder)]
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**plain, **environment})
    if done.returncode:
        raise RuntimeError(f"{case.name}: {done.stderr[-2000:]}")
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    sys.exit(main())
