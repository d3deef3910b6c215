"""`python benchmarks/step.py [--model DIR] [--method sdpo] [--steps 8] [--json]`: what a whole training step costs.

A run as a user has it (Ray, vLLM sampler, verifier processes, FSDP2 actor, files of every step) on a tiny model:
8 prompts x 8 rollouts of exactly 64 tokens, AdamW, one optimiser step, one thread per process. Printed are medians over
steps after warm-up:

cpu_seconds            processor time of a step, summed over all processes of the run: controller, sampler, actor ranks,
                       verifiers, and Ray's own daemons. From the beginning of a step to that of the next.
tokens_per_cpu_second  response tokens of a step, by that time.
peak_rss_mb            the largest resident memory of an actor process so far, its imports included.
overhead               share of the processor time that is none of: the sampler process while it samples, the actor
                       processes while they learn (forward, backward, optimiser, the teacher's average), and both while
                       weights are published. So it holds the controller, Ray's daemons, verifying, the making of
                       teacher prompts, and everything that is written.

`--by-process` prints where the time goes, process by phase.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

if TYPE_CHECKING:
    import psutil

    from trainer.parts import Parts

PROMPTS, ROLLOUTS, TOKENS = 8, 8, 64
WARM_UP = 3
"""Steps that are not counted: the first ones make optimiser states and fill caches."""
ROLES = {"ray::SamplerWorker": "sampler", "ray::PolicyWorker": "actor", "ray::VerifierWorker": "verifier"}
"""Names that Ray gives its workers' processes, and the part that each plays."""
WORK = {("sampler", "sample"), ("actor", "learn"), ("sampler", "publish"), ("actor", "publish")}
"""Process and phase of what is no overhead."""

Ledger = Counter[tuple[str, str]]
"""Processor seconds by process and phase."""


def settings(model: Path, method: str, data: Path, output: Path, steps: int) -> list[str]:
    """The run's settings; what is not named is as every run has it."""
    actor = "actor_rollout_ref.actor"
    return [
        f"actor_rollout_ref.model.path={model}",
        "actor_rollout_ref.model.enable_gradient_checkpointing=false",
        f"actor_rollout_ref.rollout.n={ROLLOUTS}",
        "actor_rollout_ref.rollout.val_kwargs.n=1",
        f"{actor}.ppo_mini_batch_size={PROMPTS}",
        f"{actor}.self_distillation.distillation_topk=50",
        # No response ends by itself here.
        f"{actor}.self_distillation.include_truncated_peers=true",
        f"{actor}.self_distillation.max_reprompt_len=1024",
        f"data.train_files={data}",
        f"data.val_files={data}",
        f"data.train_batch_size={PROMPTS}",
        "data.max_prompt_length=512",
        f"data.max_response_length={TOKENS}",
        f"custom_reward_function.path={ROOT / 'benchmarks' / 'tiny.py'}",
        "custom_reward_function.name=parity",
        f"trainer.total_training_steps={steps}",
        "trainer.val_before_train=false",
        "trainer.test_freq=0",
        "trainer.save_freq=0",
        "trainer.device=cpu",
        "trainer.health.stop_on=[]",
        "trainer.logger=[]",
        f"trainer.output_dir={output}",
    ]


@dataclass
class Meter:
    """Reads the processor time of every process of this run whenever a phase begins."""

    now: tuple[int, str] = (0, "start")
    """Step and phase that are under way."""
    steps: dict[int, Ledger] = field(default_factory=dict)
    last: Counter[str] = field(default_factory=Counter)
    """Processor seconds by part so far."""
    peak_mb: float = 0.0
    family: list[tuple[str, psutil.Process]] = field(default_factory=list)

    def begins(self, step: int, phase: str) -> None:
        """A phase begins: what was used since the last one is the last one's."""
        import psutil

        if step != self.now[0]:
            self.family = family(psutil.Process())
        used = self.used()
        ledger = self.steps.setdefault(self.now[0], Counter())
        for part in used:
            ledger[part, self.now[1]] += used[part] - self.last[part]
        self.last, self.now = used, (step, phase)

    def used(self) -> Counter[str]:
        """Processor seconds by part, those of its ended children included."""
        import psutil

        found: Counter[str] = Counter()
        for part, process in self.family:
            with contextlib.suppress(psutil.NoSuchProcess):
                found[part] += sum(process.cpu_times()[:4])
                if part == "actor":
                    self.peak_mb = max(self.peak_mb, high_water_mb(process.pid))
        return found

    def counted(self) -> list[Ledger]:
        """The ledgers of steps after warm-up that were seen from beginning to end."""
        return [self.steps[step] for step in sorted(self.steps)[:-1] if step > WARM_UP]


def family(root: psutil.Process) -> list[tuple[str, psutil.Process]]:
    """A process and everything that it has started, each with the part it plays."""
    return [("controller", root), *((part_of(child), child) for child in root.children(recursive=True))]


def part_of(process: psutil.Process) -> str:
    """The part a process plays in the run: that of a worker, or of its parent, or Ray's."""
    import psutil

    titles = []
    with contextlib.suppress(psutil.NoSuchProcess):
        titles = [" ".join(own.cmdline()) for own in (process, process.parent()) if own is not None]
    known = (part for title in titles for name, part in ROLES.items() if title.startswith(name))
    return next(known, "ray")


def high_water_mb(pid: int) -> float:
    """The largest resident memory of a process so far."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0


def measure(model: Path, method: str, steps: int, scratch: Path) -> Meter:
    """Runs `steps` steps after warm-up, and one more, which ends the last."""
    from rich.console import Console

    from benchmarks.tiny import write_data
    from trainer import loop, session
    from trainer.config.compose import resolve
    from trainer.display import Screen

    meter = Meter()

    def train(parts: Parts) -> None:
        tell = parts.journal.begins

        def begins(step: int, phase: str) -> None:
            meter.begins(step, phase)
            tell(step, phase)

        parts.journal.begins = begins  # type: ignore[method-assign]
        loop.train(replace(parts, sampling=replace(parts.sampling, ignore_eos=True)))

    data = scratch / "train.parquet"
    write_data(data)
    resolved = resolve(method, settings(model, method, data, scratch / "run", WARM_UP + steps + 1), os.environ)
    session.train = train
    os.chdir(scratch)
    with Screen(Console(file=sys.stderr), steps=False) as screen:
        session.train_session(method, resolved, screen)
    return meter


def figures(ledgers: list[Ledger], peak_mb: float) -> dict[str, float]:
    """What is printed, medians over steps."""
    totals = [sum(ledger.values()) for ledger in ledgers]
    work = [sum(ledger[entry] for entry in WORK) for ledger in ledgers]
    seconds = median(totals)
    return {
        "cpu_seconds": round(seconds, 3),
        "tokens_per_cpu_second": round(PROMPTS * ROLLOUTS * TOKENS / seconds, 1),
        "peak_rss_mb": round(peak_mb),
        "overhead": round(median(1 - own / total for own, total in zip(work, totals, strict=True)), 4),
    }


def table(ledgers: list[Ledger]) -> str:
    """Mean milliseconds of processor time in a step, by process and phase."""
    mean: Ledger = Counter()
    for ledger in ledgers:
        for entry, seconds in ledger.items():
            mean[entry] += 1000 * seconds / len(ledgers)
    return "\n".join(f"{part:<11}{phase:<10}{ms:8.1f} ms" for (part, phase), ms in mean.most_common() if ms >= 0.5)


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python benchmarks/step.py", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--model", type=Path, help="folder of a model and tokenizer; else a tiny one is made")
    parser.add_argument("--method", default="sdpo", help="as --config-name of trainer.main")
    parser.add_argument("--steps", type=int, default=8, help="steps that are counted")
    parser.add_argument("--json", action="store_true", help="prints the figures as JSON on the last line")
    parser.add_argument("--by-process", action="store_true", help="prints where the time goes")
    asked = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        model = asked.model.resolve() if asked.model else scratch / "model"
        if asked.model is None:
            from benchmarks.tiny import write_model

            write_model(model)
        meter = measure(model, asked.method, asked.steps, scratch)
    found: dict[str, Any] = figures(meter.counted(), meter.peak_mb)
    if asked.by_process:
        print(table(meter.counted()))
    print(json.dumps(found) if asked.json else "  ".join(f"{name} {value}" for name, value in found.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
