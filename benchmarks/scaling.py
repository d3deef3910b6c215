"""`python benchmarks/scaling.py [--json]`: what it costs to let two actor ranks do the work of one, on the CPU.

The same update, `sdpo` on the tiny model with 8 prompts x 8 rollouts x 64 tokens, is done by one rank and by two, each
in a process of its own with one thread, again and again and in changing order. Both must find the same loss and the
same norm of the gradient. Sampling and Ray have no part in it.

ratio           processor seconds of both ranks together / of the one; the median of the pairs
cpu_seconds_1   processor seconds of one rank's update, median
cpu_seconds_2   of two ranks' update, added up, median
wall_ratio      seconds on the clock, two ranks / one; on a busy machine it says little
imbalance       processor seconds of the busier of two ranks / of their mean, median
pairs           how many there were
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

SETTINGS = {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": str(1 << 20), "TRANSFORMERS_VERBOSITY": "error"}
"""As every worker of a run has them."""
os.environ.update(SETTINGS)
ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

PROMPTS, ROLLOUTS, TOKENS = 8, 8, 64
PROMPT_TOKENS, TEACHER_TOKENS = 70, 210
WARM_UP = 1
CLOSE = 1e-3
"""How far, relatively, loss and gradient of one rank and of two may be apart."""


@dataclass(frozen=True)
class Took:
    """One update of one rank."""

    cpu_seconds: float
    seconds: float
    loss: float
    gradient_norm: float


def serve(pipe: Connection, rank: int, ranks: int, model: str) -> None:
    """One actor rank: joins the others, then does every mini-batch that comes through the pipe."""
    from trainer import settings
    from trainer.workers.policy import PolicyWorker

    config = resolved(model)
    asked = config.actor_rollout_ref.model
    worker = PolicyWorker(
        rank=rank,
        ranks=ranks,
        device="cpu",
        model_path=model,
        attn_implementation=asked.attn_implementation,
        gradient_checkpointing=False,
        loss=settings.loss_settings(config),
        optim=settings.optim_settings(config),
        teacher=settings.teacher_settings(config),
        seed=0,
        deadline_s=300.0,
    )
    pipe.send(worker.rendezvous() if rank == 0 else None)
    worker.join(*pipe.recv())
    step = 0
    while (mini_batch := pipe.recv()) is not None:
        step += 1
        begun, cpu_begun = time.perf_counter(), time.process_time()
        update = worker.update([mini_batch], step, frozenset())
        took = time.process_time() - cpu_begun, time.perf_counter() - begun
        pipe.send(Took(*took, update.loss, update.gradient_norms[0]))


def resolved(model: str) -> Any:
    """The settings of the run whose update this is."""
    from trainer.config.compose import resolve

    actor = "actor_rollout_ref.actor"
    overrides = [
        f"actor_rollout_ref.model.path={model}",
        f"data.max_response_length={TOKENS}",
        f"{actor}.self_distillation.distillation_topk=50",
        "trainer.device=cpu",
    ]
    return resolve("sdpo", overrides, {}).config


class Actor:
    """Some ranks in processes of their own."""

    def __init__(self, ranks: int, model: str) -> None:
        spawning = get_context("spawn")
        self.pipes: list[Connection] = []
        self.processes = []
        for rank in range(ranks):
            ours, theirs = spawning.Pipe()
            process = spawning.Process(target=serve, args=(theirs, rank, ranks, model), daemon=True)
            process.start()
            theirs.close()
            self.pipes.append(ours)
            self.processes.append(process)

    def join(self) -> None:
        """Builds the shards."""
        found = [pipe.recv() for pipe in self.pipes]
        for pipe in self.pipes:
            pipe.send(found[0])

    def update(self, plans: Sequence[Any]) -> list[Took]:
        """One update, by all ranks; loss and norm are those of all together."""
        for pipe, plan in zip(self.pipes, plans, strict=True):
            pipe.send(plan)
        return [pipe.recv() for pipe in self.pipes]

    def end(self) -> None:
        """Ends the processes."""
        for pipe in self.pipes:
            pipe.send(None)
        for process in self.processes:
            process.join(30)


def samples(vocabulary: int) -> list[Any]:
    """The rollouts of a step: random tokens, a prompt per group, and two teacher prompts per group."""
    import numpy as np

    from mopd.types import TokenStreams
    from trainer.packing import Sample

    drawn = np.random.default_rng(0)

    def ids(length: int) -> Any:
        return drawn.integers(3, vocabulary, size=length, dtype=np.int32)

    ones = np.ones(TOKENS, dtype=np.float32)
    found = []
    for group in range(PROMPTS):
        prompt, teacher_prompts = ids(PROMPT_TOKENS), [ids(TEACHER_TOKENS), ids(TEACHER_TOKENS)]
        found += [
            Sample(
                index=group * ROLLOUTS + number,
                group=group,
                reward=float(number % 2),
                prompt_ids=prompt,
                response_ids=ids(TOKENS),
                sampler_logprobs=-4.6 * ones,
                teacher_prompt_ids=teacher_prompts[number % 2],
                streams=TokenStreams(ones, ones, ones),
            )
            for number in range(ROLLOUTS)
        ]
    return found


def measure(model: str, updates: int, budget_s: float) -> dict[str, float]:
    """All figures; the module says what they mean."""
    from transformers import AutoConfig

    from trainer.packing import Packing, plan_mini_batch
    from trainer.settings import loss_settings

    config = resolved(model)
    actors = {ranks: Actor(ranks, model) for ranks in (1, 2)}
    asked = config.actor_rollout_ref
    packing = Packing(
        asked.actor.ppo_max_token_len_per_gpu,
        loss_settings(config).denominator,
        shared=asked.model.attn_implementation == "packed",
    )
    rollouts = samples(AutoConfig.from_pretrained(model).vocab_size)
    plans = {ranks: plan_mini_batch(rollouts, ranks, packing) for ranks in actors}
    for actor in actors.values():
        actor.join()
    took: dict[int, list[list[Took]]] = {1: [], 2: []}
    begun = time.monotonic()
    for number in range(WARM_UP + updates):
        if number > WARM_UP and time.monotonic() - begun > budget_s:
            break
        for ranks in (1, 2) if number % 2 else (2, 1):
            took[ranks].append(actors[ranks].update(plans[ranks]))
        same_work(took[1][-1], took[2][-1])
    for actor in actors.values():
        actor.end()
    one, two = took[1][WARM_UP:], took[2][WARM_UP:]
    cpu_1 = [parts[0].cpu_seconds for parts in one]
    cpu_2 = [sum(part.cpu_seconds for part in parts) for parts in two]
    clock = [max(part.seconds for part in parts) / alone[0].seconds for parts, alone in zip(two, one, strict=True)]
    busier = [2 * max(part.cpu_seconds for part in parts) / sum(part.cpu_seconds for part in parts) for parts in two]
    return {
        "ratio": median(both / alone for both, alone in zip(cpu_2, cpu_1, strict=True)),
        "cpu_seconds_1": median(cpu_1),
        "cpu_seconds_2": median(cpu_2),
        "wall_ratio": median(clock),
        "imbalance": median(busier),
        "pairs": len(one),
    }


def same_work(one: Sequence[Took], two: Sequence[Took]) -> None:
    """Raises RuntimeError where one rank and two have not found the same: then a comparison of their times is moot."""
    pairs = {
        "loss": (one[0].loss, sum(part.loss for part in two)),
        "norm of the gradient": (one[0].gradient_norm, two[0].gradient_norm),
    }
    for name, (alone, both) in pairs.items():
        if not abs(both - alone) <= CLOSE * abs(alone):
            raise RuntimeError(f"one rank's {name} is {alone:.6g}, two ranks' {both:.6g}: this is not the same work")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python benchmarks/scaling.py", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--model", help="folder of a model; by default the tiny one of random weights")
    parser.add_argument("--updates", type=int, default=7, help="pairs of updates that count (default: 7)")
    parser.add_argument("--budget", type=float, default=120.0, metavar="SECONDS", help="then no further pair is begun")
    parser.add_argument("--json", action="store_true", help="prints the figures as JSON, on the last line")
    asked = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        model = asked.model
        if model is None:
            from benchmarks.tiny import write_model

            model = scratch
            write_model(Path(scratch))
        figures = {name: round(value, 4) for name, value in measure(model, asked.updates, asked.budget).items()}
    sys.stdout.write(f"{json.dumps(figures)}\n" if asked.json else "".join(f"{n:<14}{v}\n" for n, v in figures.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
