"""`python benchmarks/rollout.py [--model DIR] [--rounds 5] [--json]`: rollouts against vLLM by itself and Hugging Face.

8 prompts x 8 rollouts of exactly 64 tokens, fp32, on one thread of a CPU. The project's sampler is asked as the trainer
asks it: a Ray worker, a seed for every rollout, log-probs of what was sampled, answers streamed as they finish. In the
same process, by turns and with fresh prompts each time, so that only siblings share a prefix:

ratio_vllm      processor time of the project's way over that of the same engine driven directly: `generate` with n=8,
                no seeds, and the answers left where they are; prompts of 70 tokens, as in a step.
ratio_vllm_512  the same with prompts of 512 tokens.
ratio_hf        processor time of Hugging Face's `generate` on all 64 rows over that of the project's way; prompts of
                512 tokens. How many times as fast, then.

Processor time is that of all processes of the benchmark; medians over rounds of the ratios within each.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import psutil  # noqa: E402

from mopd.types import IntArray  # noqa: E402
from trainer import cluster  # noqa: E402
from trainer.assemble import worker_environment  # noqa: E402
from trainer.workers.sampler import SamplerWorker  # noqa: E402
from trainer.workers.sampler_types import Request, SamplingSettings  # noqa: E402

PROMPTS, ROLLOUTS, TOKENS = 8, 8, 64
LENGTHS = {"short": 70, "long": 512}
"""Tokens of a prompt."""
DEADLINE_S = 600.0


class Rivals(SamplerWorker):
    """The project's sampler, and in its process what a user would pick instead."""

    def direct(self, prompts: Sequence[IntArray]) -> int:
        """Tokens that the same engine samples when it is driven directly."""
        from vllm import SamplingParams, TokensPrompt

        asked = SamplingParams(n=ROLLOUTS, temperature=1.0, max_tokens=TOKENS, ignore_eos=True, logprobs=0)
        given = [TokensPrompt(prompt_token_ids=ids.tolist()) for ids in prompts]
        found = self.engine.generate(given, asked, use_tqdm=False)
        return sum(len(output.token_ids) for request in found for output in request.outputs)

    def hugging_face(self, prompts: Sequence[IntArray], path: str) -> int:
        """Tokens that `generate` of Hugging Face's library samples, all rows in one batch."""
        import torch
        from transformers import AutoModelForCausalLM

        if not hasattr(self, "plain"):
            self.plain = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        rows = torch.from_numpy(np.stack([ids for ids in prompts for _ in range(ROLLOUTS)]).astype(np.int64))
        with torch.no_grad():
            found = self.plain.generate(
                rows,
                attention_mask=torch.ones_like(rows),
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                max_new_tokens=TOKENS,
                min_new_tokens=TOKENS,
                pad_token_id=0,
            )
        return int(found.numel() - rows.numel())


def drawn_prompts(length: int, number: int, vocabulary: int) -> list[IntArray]:
    """Prompts of random tokens, others for every number; the first few ids, which are special, are left out."""
    drawn = np.random.default_rng([length, number])
    return [drawn.integers(3, min(vocabulary, 99), size=length, dtype=np.int32) for _ in range(PROMPTS)]


def as_the_trainer(worker: Any, prompts: Sequence[IntArray], seed: int) -> int:
    """Tokens that the project's sampler samples."""
    requests = [
        Request(ids, seed * PROMPTS * ROLLOUTS + number)
        for number, ids in enumerate(ids for ids in prompts for _ in range(ROLLOUTS))
    ]
    asked = (requests, SamplingSettings(1.0, 1.0, TOKENS, ignore_eos=True))
    answers = cluster.streams({0: (worker.sample, asked)}, "sampling", DEADLINE_S, lambda: None)
    return sum(len(response.token_ids) for _, (_, finished) in answers for _, response in finished)


def cpu_seconds(processes: Sequence[psutil.Process]) -> float:
    """Processor time of processes so far."""
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def timed(run: Callable[[], int], processes: Sequence[psutil.Process]) -> float:
    """Processor seconds of a run of the full number of tokens.

    Raises:
        RuntimeError: it gave another number.
    """
    before = cpu_seconds(processes)
    tokens = run()
    if tokens != PROMPTS * ROLLOUTS * TOKENS:
        raise RuntimeError(f"{tokens} tokens were sampled, wanted {PROMPTS * ROLLOUTS * TOKENS}")
    return cpu_seconds(processes) - before


def measure(model: Path, rounds: int) -> dict[str, list[float]]:
    """Processor seconds of every way, by round, after one of warm-up."""
    cluster.start(worker_environment("cpu", offline=True), num_cpus=2)
    try:
        worker = cluster.spawn(
            Rivals,
            num_cpus=1,
            num_gpus=0,
            device="cpu",
            transfer_backend="gloo",
            model_path=str(model),
            max_model_len=max(LENGTHS.values()) + TOKENS,
            seed=0,
            enable_prefix_caching=True,
            gpu_memory_utilization=0.5,
            kv_cache_mib=1024,
        )
        cluster.gather([worker.describe.remote()], "starting the sampler", DEADLINE_S)
        vocabulary = int(json.loads((model / "config.json").read_text())["vocab_size"])
        own = psutil.Process()
        processes = [own, *own.children(recursive=True)]
        found: dict[str, list[float]] = {}
        for number in range(rounds + 1):
            for name, run in ways(worker, model, number, vocabulary).items():
                seconds = timed(run, processes)
                found.setdefault(name, []).extend([seconds] if number else [])
        return found
    finally:
        cluster.stop()


def ways(worker: Any, model: Path, number: int, vocabulary: int) -> dict[str, Callable[[], int]]:
    """What is timed in a round, each with prompts of its own."""

    def ask(method: Any, *arguments: Any) -> int:
        return int(cluster.gather([method.remote(*arguments)], "sampling", DEADLINE_S)[0])

    def prompts(name: str, shift: int) -> list[IntArray]:
        return drawn_prompts(LENGTHS[name], 3 * number + shift, vocabulary)

    return {
        "short": lambda: as_the_trainer(worker, prompts("short", 0), number),
        "short direct": lambda: ask(worker.direct, prompts("short", 1)),
        "long": lambda: as_the_trainer(worker, prompts("long", 0), number),
        "long direct": lambda: ask(worker.direct, prompts("long", 1)),
        "long hugging_face": lambda: ask(worker.hugging_face, prompts("long", 2), str(model)),
    }


def figures(found: dict[str, list[float]]) -> dict[str, float]:
    """What is printed."""

    def ratio(over: str, under: str) -> float:
        return round(median(a / b for a, b in zip(found[over], found[under], strict=True)), 3)

    return {
        "ratio_vllm": ratio("short", "short direct"),
        "ratio_vllm_512": ratio("long", "long direct"),
        "ratio_hf": ratio("long hugging_face", "long"),
        **{f"cpu_seconds {name}": round(median(seconds), 3) for name, seconds in found.items()},
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python benchmarks/rollout.py", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--model", type=Path, help="folder of a model; else a tiny one is made")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="prints the figures as JSON on the last line")
    asked = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        model = asked.model.resolve() if asked.model else Path(scratch)
        if asked.model is None:
            from benchmarks.tiny import write_model

            write_model(model)
        found = figures(measure(model, asked.rounds))
    print(json.dumps(found) if asked.json else "\n".join(f"{name:<34}{value}" for name, value in found.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
