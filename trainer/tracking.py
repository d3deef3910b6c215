"""What a run leaves behind: its own files, and what the trackers are told."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TextIO

import numpy as np

from mopd.types import Group, Outcome, Rollout
from trainer.accounting import step_metrics
from trainer.contexts import Context
from trainer.display import Screen, final_table, summary
from trainer.prompts import Renderer
from trainer.recorded import Recorded, arrays_of, divergences_of
from trainer.trackers.base import SHOWN_ROLLOUTS
from trainer.trackers.opening import Trackers


@dataclass(frozen=True)
class Folders:
    """Where the parts of a run lie."""

    output: Path
    checkpoints: Path
    rollouts: Path
    validation: Path


@dataclass
class Journal:
    """Writes metrics, rollouts and validation responses, and tells the screen and the trackers."""

    folders: Folders
    renderer: Renderer
    screen: Screen
    last_step: int
    trackers: Trackers = field(default_factory=Trackers)
    history: list[dict[str, Any]] = field(default_factory=list)
    devices: int = 1
    """That the actor takes."""
    sampled: tuple[int, int] | None = None
    """Tokens of all prompts and responses, and of the responses alone, of the step that is about to be remembered."""

    def begins(self, step: int, phase: str) -> None:
        """A phase of a step begins."""
        self.screen.phase(step, self.last_step, phase)

    def remember(self, step: int, metrics: Mapping[str, float], timings: Mapping[str, float]) -> None:
        """Appends a step's flat record to `metrics.jsonl`, and tells the screen and the trackers."""
        figures = self.throughput({**metrics, **timings})
        record = {"step": step, **rounded(metrics), **rounded(figures), **rounded(timings)}
        self.history.append(record)
        with open_lines(self.folders.output / "metrics.jsonl", "a") as file:
            write_line(file, record)
        self.screen.step(record, self.last_step, self.seconds_left(step))
        self.trackers.log(record)

    def throughput(self, timings: Mapping[str, float]) -> dict[str, float]:
        """Tokens per second and the like, validation and saving aside; nothing where none were sampled."""
        sampled, self.sampled = self.sampled, None
        if sampled is None:
            return {}
        return step_metrics(timings, tokens=sampled[0], response_tokens=sampled[1], devices=self.devices)

    def seconds_left(self, step: int) -> float:
        """Seconds to the end at the mean pace of the steps so far."""
        took = [float(record["timing_s/step"]) for record in self.history if record["step"]]
        return (self.last_step - step) * sum(took) / len(took) if took else math.nan

    def rollouts(
        self,
        step: int,
        groups: Sequence[Group],
        contexts: Sequence[Context],
        recorded: Mapping[int, Recorded],
    ) -> None:
        """Writes `rollouts/<step>.jsonl`, a line per rollout in sampling order, and beside it their tokens.

        The trackers are given the first of them.
        """
        shown: list[dict[str, Any]] = []
        whole = [rollout for _, rollout, _ in every_rollout(groups)]
        write_tokens(self.folders.rollouts / f"{step}.npz", whole, recorded)
        divergences = divergences_of(recorded)
        with open_lines(self.folders.rollouts / f"{step}.jsonl", "w") as file:
            for index, (group, rollout, outcome) in enumerate(every_rollout(groups)):
                line = described(self.renderer, step, group, rollout, outcome) | context_fields(contexts[index])
                if index in divergences:
                    line["divergence"] = [
                        round(float(value), 6) if math.isfinite(value) else None for value in divergences[index]
                    ]
                write_line(file, line)
                shown += [line] if index < SHOWN_ROLLOUTS else []
        self.trackers.rollouts(step, shown)
        lengths = [(len(group.prompt_ids), len(rollout.token_ids)) for group, rollout, _ in every_rollout(groups)]
        self.sampled = sum(prompt + response for prompt, response in lengths), sum(response for _, response in lengths)

    def validation(self, step: int, groups: Sequence[Group]) -> None:
        """Writes `validation/<step>.jsonl`, a line per response."""
        with open_lines(self.folders.validation / f"{step}.jsonl", "w") as file:
            write_responses(file, self.renderer, step, groups)

    def farewell(self, checkpoint: Path | None) -> None:
        """The table of before and after, how it went, and where everything lies."""
        self.screen.close()
        if table := final_table(self.history):
            self.screen.show(table)
        places = {
            "metrics": self.folders.output / "metrics.jsonl",
            "rollouts": self.folders.rollouts,
            "validation": self.folders.validation,
            "manifest": self.folders.output / "manifest.json",
            **{name: path for name, path in {"report": self.folders.output / "report.html"}.items() if path.exists()},
            **{name: tracker.place for name, tracker in self.trackers.open.items()},
        }
        if checkpoint is not None:
            places["model"] = checkpoint / "hf"
        told = summary(self.history, self.last_step, time.monotonic() - self.screen.started)
        for name, text in {**told, **places}.items():
            self.screen.say(f"  {name:<11} {text}")


def every_rollout(groups: Sequence[Group]) -> Iterator[tuple[Group, Rollout, Outcome]]:
    """Every rollout with its group and outcome, in sampling order."""
    for group in groups:
        for rollout, outcome in zip(group.rollouts, group.outcomes, strict=True):
            yield group, rollout, outcome


def described(renderer: Renderer, step: int, group: Group, rollout: Rollout, outcome: Outcome) -> dict[str, Any]:
    """The published fields of a rollout, and what identifies it."""
    return {
        "input": renderer.tokenizer.decode(group.prompt_ids, skip_special_tokens=True),
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


def write_tokens(file: Path, rollouts: Sequence[Rollout], recorded: Mapping[int, Recorded] | None = None) -> None:
    """Every rollout's tokens and the sampler's log-probs of them, end to end: 8 bytes a token, exact to the last bit.

    `lengths` [N] int32, `token_ids` [sum of T] int32, `sampler_logprobs` [sum of T] fp32; then the likeliest tokens at
    those of `recorded`, as `trainer.recorded.arrays_of` has them.
    """
    likeliest: dict[str, Any] = arrays_of(recorded or {})
    np.savez(
        file,
        lengths=np.asarray([len(rollout.token_ids) for rollout in rollouts], dtype=np.int32),
        token_ids=np.concatenate([rollout.token_ids for rollout in rollouts]),
        sampler_logprobs=np.concatenate([rollout.logprobs for rollout in rollouts]),
        **likeliest,
    )


def write_responses(file: TextIO, renderer: Renderer, step: int, groups: Sequence[Group]) -> None:
    """A line per response, in sampling order."""
    for group, rollout, outcome in every_rollout(groups):
        write_line(file, described(renderer, step, group, rollout, outcome))


def context_fields(context: Context) -> dict[str, Any]:
    """Which peers the teacher saw and why, and the exact prompt."""
    peers = context.view.peers
    return {
        "peers": [
            {"slot": choice.slot, "rollout_id": choice.rollout_id, "reason": choice.reason} for choice in peers.choices
        ],
        "fallbacks": list(peers.fallbacks),
        "teacher_prompt": context.text,
        "teacher_prompt_sha256": None if context.text is None else sha256_of(context.text),
        "usable": context.view.usable,
    }


def sha256_of(text: str) -> str:
    """The SHA-256 of a text as UTF-8, half surrogates as they are."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def open_lines(path: Path, mode: Literal["a", "w"]) -> TextIO:
    """A file for `write_line`. Half a surrogate, which UTF-8 cannot hold, becomes what JSON writes for it."""
    return path.open(mode, encoding="utf-8", errors="backslashreplace")


def write_line(file: TextIO, record: Mapping[str, Any]) -> None:
    """One JSON object on one line."""
    file.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")


def rounded(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """Metrics as JSON has them: integers as they are, others to 9 significant digits, not-a-number as null."""
    return {
        name: value if isinstance(value, int) else float(f"{value:.9g}") if math.isfinite(value) else None
        for name, value in metrics.items()
    }
