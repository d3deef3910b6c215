"""What a run leaves behind, and what it says while it runs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table

from mopd.types import FloatArray, Group, Outcome, Rollout
from trainer.contexts import Context
from trainer.prompts import Renderer


@dataclass(frozen=True)
class Folders:
    """Where the parts of a run lie."""

    output: Path
    checkpoints: Path
    rollouts: Path
    validation: Path


@dataclass
class Journal:
    """Writes metrics, rollouts and validation responses, and a line per step to the terminal."""

    folders: Folders
    renderer: Renderer
    console: Console
    last_step: int
    history: list[dict[str, Any]] = field(default_factory=list)

    def remember(self, step: int, metrics: Mapping[str, float], timings: Mapping[str, float]) -> None:
        """Appends a step's flat record to `metrics.jsonl` and tells the terminal."""
        record = {"step": step, **rounded(metrics), **rounded(timings)}
        self.history.append(record)
        with (self.folders.output / "metrics.jsonl").open("a") as file:
            write_line(file, record)
        self.console.print(step_line(record, self.last_step, self.seconds_left(step)), highlight=False, soft_wrap=True)

    def seconds_left(self, step: int) -> float:
        """Seconds to the end at the mean pace of the steps so far."""
        took = [float(record["timing_s/step"]) for record in self.history if record["step"]]
        return (self.last_step - step) * sum(took) / len(took) if took else math.nan

    def rollouts(
        self,
        step: int,
        groups: Sequence[Group],
        contexts: Sequence[Context],
        divergences: Mapping[int, FloatArray],
    ) -> None:
        """Writes `rollouts/<step>.jsonl`, a line per rollout in sampling order."""
        with (self.folders.rollouts / f"{step}.jsonl").open("w") as file:
            for index, (group, rollout, outcome) in enumerate(every_rollout(groups)):
                line = self.described(step, group, rollout, outcome) | context_fields(contexts[index])
                if index in divergences:
                    line["divergence"] = [round(float(value), 6) for value in divergences[index]]
                write_line(file, line)

    def validation(self, step: int, groups: Sequence[Group]) -> None:
        """Writes `validation/<step>.jsonl`, a line per response."""
        with (self.folders.validation / f"{step}.jsonl").open("w") as file:
            for group, rollout, outcome in every_rollout(groups):
                write_line(file, self.described(step, group, rollout, outcome))

    def described(self, step: int, group: Group, rollout: Rollout, outcome: Outcome) -> dict[str, Any]:
        """The published fields of a rollout, and what identifies it."""
        return {
            "input": self.renderer.tokenizer.decode(group.prompt_ids, skip_special_tokens=True),
            "output": rollout.text,
            "gts": group.prompt.ground_truth,
            "score": outcome.reward,
            "step": step,
            "uid": group.uid,
            "prompt_id": group.prompt.prompt_id,
            "rollout_id": rollout.rollout_id,
            "data_source": group.prompt.data_source,
            "success": outcome.success,
            "status": outcome.status,
            "feedback": outcome.feedback,
            "finish_reason": rollout.finish_reason,
            "response_length": len(rollout.token_ids),
            "policy_version": rollout.policy_version,
        }

    def farewell(self, checkpoint: Path | None) -> None:
        """The table of before and after, and where everything lies."""
        self.console.print(final_table(self.history))
        places = {
            "metrics": self.folders.output / "metrics.jsonl",
            "rollouts": self.folders.rollouts,
            "validation": self.folders.validation,
            "manifest": self.folders.output / "manifest.json",
        }
        if checkpoint is not None:
            places["model"] = checkpoint / "hf"
        for name, place in places.items():
            self.console.print(f"  {name:<11}{place}", highlight=False, soft_wrap=True)


def every_rollout(groups: Sequence[Group]) -> Iterator[tuple[Group, Rollout, Outcome]]:
    """Every rollout with its group and outcome, in sampling order."""
    for group in groups:
        for rollout, outcome in zip(group.rollouts, group.outcomes, strict=True):
            yield group, rollout, outcome


def context_fields(context: Context) -> dict[str, Any]:
    """Which peers the teacher saw and why, and the exact prompt."""
    peers = context.view.peers
    return {
        "peers": [
            {"slot": choice.slot, "rollout_id": choice.rollout_id, "reason": choice.reason} for choice in peers.choices
        ],
        "fallbacks": list(peers.fallbacks),
        "teacher_prompt": context.text,
        "usable": context.view.usable,
    }


def write_line(file: TextIO, record: Mapping[str, Any]) -> None:
    """One JSON object on one line."""
    file.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")


def rounded(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """Metrics as JSON has them: integers as they are, others to 9 significant digits, not-a-number as null."""
    return {
        name: value if isinstance(value, int) else float(f"{value:.9g}") if math.isfinite(value) else None
        for name, value in metrics.items()
    }


def step_line(record: Mapping[str, Any], last_step: int, seconds_left: float) -> str:
    """What the terminal says of a step."""
    parts = [f"step {record['step']:>{len(str(last_step))}}/{last_step}"]
    shown = {
        "critic/rewards/mean": "reward {:.3f}",
        "self_distillation/reprompt_sample_fraction": "usable {:.0%}",
        "self_distillation/divergence": "divergence {:.4f}",
        "actor/grad_norm": "grad {:.2f}",
        "rollout_corr/publish_max_abs_diff": "sync {:.0e}",
    }
    parts += [form.format(record[name]) for name, form in shown.items() if record.get(name) is not None]
    for name, value in record.items():
        if name.startswith("val-core/") and value is not None:
            _, source, _, metric = name.split("/")
            parts.append(f"{source} {metric} {100 * value:.1f}")
    parts.append(f"{record['timing_s/step']:.1f} s")
    if record["step"] < last_step and math.isfinite(seconds_left):
        parts.append(f"{seconds_left:.0f} s left")
    return "  ".join(parts)


def final_table(history: Sequence[Mapping[str, Any]]) -> Table:
    """Held-out quality before and after, in per cent."""
    validated = [record for record in history if any(name.startswith("val-core/") for name in record)]
    table = Table(title="held-out quality, per cent")
    for column in ("data source", "metric", "before", "after", "gain"):
        table.add_column(column, justify="right" if column in ("before", "after", "gain") else "left")
    if not validated:
        return table
    first, last = validated[0], validated[-1]
    for name in (name for name in last if name.startswith("val-core/")):
        _, source, _, metric = name.split("/")
        before, after = 100 * float(first[name]), 100 * float(last[name])
        table.add_row(source, metric, f"{before:.1f}", f"{after:.1f}", f"{after - before:+.1f}")
    table.caption = f"steps {first['step']} and {last['step']}"
    return table
