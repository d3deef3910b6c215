"""What a replay compares: every rollout line, every metric, every recorded divergence, and how near they must be."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from mopd.types import FloatArray
from trainer.replaying.rebuild import Rebuilt
from trainer.replaying.records import Line, PastRun, PastStep, told
from trainer.tracking import context_fields, described, every_rollout, rounded

FIELDS: Mapping[str, Sequence[str]] = {
    "prompts": ("input", "gts", "prompt_id", "data_source"),
    "names and versions": ("rollout_id", "step", "policy_version"),
    "lengths": ("response_length",),
    "peers": ("peers", "fallbacks"),
    "usable": ("usable",),
    "teacher prompts": ("teacher_prompt",),
}
"""What is compared of every rollout line, under the names of the table's rows."""
TEXTS = "texts of the tokens"
HEADLINES = ("actor/loss", "actor/grad_norm", "self_distillation/divergence")
"""Metrics that have a row of their own whether they differ or not."""
NOISE = ("rollout_corr/", "actor/ppo_kl", "gauges/gap/", "gauges/context_gain/")
"""Metrics that are differences of nearly equal log-probs; what can be asked of them is a share of a log-prob."""
DIGITS = 2e-6
"""By how much two divergences may differ that are written with six decimals."""


@dataclass(frozen=True)
class Tolerance:
    """How near two numbers must be."""

    relative: float
    """0: equal to the last digit."""
    why: str

    def holds(self, logged: float | None, replayed: float | None, least: float = 0.0) -> bool:
        """Whether two numbers count as the same; `least` is the scale below which differences mean nothing."""
        if not isinstance(logged, int | float) or replayed is None or not self.relative:
            return logged == replayed
        return abs(logged - replayed) <= self.relative * max(abs(logged), abs(replayed), least)


@dataclass(frozen=True)
class Row:
    """A row of the table."""

    quantity: str
    logged: str
    replayed: str
    difference: str
    same: bool


@dataclass
class Comparison:
    """What was compared, and what differs."""

    rows: list[Row] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    """A sentence each, in the order of the rollouts."""
    unchecked: str | None = None
    """Why the loss could not be compared; None where it was."""


def tolerance_of(past: PastStep, run: PastRun, device: str, asked: float | None) -> Tolerance:
    """How near the replay must come, and why so near."""
    if asked is not None:
        return Tolerance(asked, "as --tolerance asks")
    made, here = told(run.manifest, "versions", "torch"), str(torch.__version__)
    reasons = [
        (past.device != device, f"recorded on {past.device}, replayed on {device}"),
        (made != here, f"recorded with torch {made}, replayed with {here}"),
        (not same_machine(run), "recorded on another machine"),
        (past.ranks != 1, f"recorded on {past.ranks} ranks, replayed on one"),
        (past.config.actor_rollout_ref.ref.placement == "own", "the teacher had a placement of its own"),
    ]
    found = [text for holds, text in reasons if holds]
    if device == "cuda" or past.device == "cuda":
        return Tolerance(1e-2, "; ".join([*found, "a GPU computes in bf16, which keeps 8 bits"]))
    return Tolerance(1e-4, "; ".join(found)) if found else Tolerance(0.0, "one rank on the CPU, then as now")


def same_machine(run: PastRun) -> bool:
    """Whether this machine is like the run's: another kind of processor may round differently."""
    here = (platform.platform(), os.cpu_count())
    return (told(run.manifest, "machine", "platform"), told(run.manifest, "machine", "cpus")) == here


def line_differences(line: Line, mine: Line) -> list[str]:
    """A sentence for every field in which a line as logged and as written now differ."""
    keys = [key for keys in FIELDS.values() for key in keys]
    return [told_apart(line, key, line.get(key), mine[key]) for key in keys if line.get(key) != mine[key]]


def compare_lines(past: PastStep, rebuilt: Rebuilt, result: Comparison) -> None:
    """Compares what every line tells of prompt, peers and teacher prompt with what was built again."""
    counts = dict.fromkeys([*FIELDS, *([] if past.tokens is None else [TEXTS])], 0)
    for index, (line, mine) in enumerate(zip(past.lines, lines_of(past, rebuilt), strict=True)):
        for name, keys in FIELDS.items():
            found = [told_apart(line, key, line.get(key), mine[key]) for key in keys if line.get(key) != mine[key]]
            counts[name] += bool(found)
            result.differences += found
        if past.tokens is not None:
            text = decoded(rebuilt, past.tokens.token_ids[index])
            found = [] if alike(line["output"], text) else [told_apart(line, "output", line["output"], text)]
            counts[TEXTS] += bool(found)
            result.differences += found
    whole = str(len(past.lines))
    for name, differing in counts.items():
        said = f"{differing} differ" if differing else "none"
        result.rows.append(Row(name, whole, str(len(past.lines) - differing), said, not differing))


def lines_of(past: PastStep, rebuilt: Rebuilt) -> list[Line]:
    """The lines as the run would write them now, in sampling order, without divergences."""
    renderer = rebuilt.parts.contexts.renderer
    every = zip(every_rollout(rebuilt.groups), rebuilt.contexts, strict=True)
    return [described(renderer, past.step, *one) | context_fields(context) for one, context in every]


def decoded(rebuilt: Rebuilt, token_ids: Any) -> str:
    """The text of a response's tokens."""
    return rebuilt.parts.contexts.renderer.tokenizer.decode(
        token_ids.tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )


def alike(text: str, other: str) -> bool:
    """Whether two decoded texts are the same, whatever was made of bytes that are no character.

    The sampler decodes behind the prompt, where some tokenizers keep a space that they drop at the beginning of a text.
    """
    return text.replace("\ufffd", "").lstrip(" ") == other.replace("\ufffd", "").lstrip(" ")


def told_apart(line: Line, name: str, logged: Any, replayed: Any) -> str:
    """A sentence on a field that differs; of texts the place where they part."""
    if isinstance(logged, str) and isinstance(replayed, str):
        place = next(
            (at for at, pair in enumerate(zip(logged, replayed, strict=False)) if pair[0] != pair[1]),
            min(len(logged), len(replayed)),
        )
        start = max(0, place - 20)
        logged, replayed = logged[start : place + 40], replayed[start : place + 40]
        name = f"{name}, character {place + 1}"
    return f"rollout {line['rollout_id']}: {name}: logged {logged!r:.200}, replayed {replayed!r:.200}"


def compare_metrics(past: PastStep, figures: Mapping[str, float], tolerance: Tolerance, result: Comparison) -> None:
    """Compares metrics with the step's record; times and speeds aside."""
    replayed = {name: value for name, value in rounded(figures).items() if not name.startswith(("perf/", "timing_s/"))}
    alike = 0
    for name, value in sorted(replayed.items(), key=lambda item: item[0] not in HEADLINES):
        logged = past.metrics.get(name)
        same = name in past.metrics and tolerance.holds(logged, value, 1.0 if name.startswith(NOISE) else 0.0)
        if same and name not in HEADLINES:
            alike += 1
            continue
        there = number(logged) if name in past.metrics else "not logged"
        result.rows.append(Row(name, there, number(value), gap(logged, value), same))
        if not same:
            result.differences.append(f"{name}: logged {there}, replayed {number(value)}")
    result.rows.append(Row("other metrics that agree", str(alike), str(alike), "none", True))


def compare_divergences(
    past: PastStep, divergences: Mapping[int, FloatArray], tolerance: Tolerance, result: Comparison
) -> None:
    """Compares the per-token divergences of the rollouts that have them."""
    recorded = {index: line["divergence"] for index, line in enumerate(past.lines) if "divergence" in line}
    if not recorded and not divergences:
        return
    worst, differing = 0.0, 0
    for index in sorted(recorded.keys() | divergences.keys()):
        logged = recorded.get(index, [])
        mine = [round(float(value), 6) if math.isfinite(value) else None for value in divergences.get(index, ())]
        name = f"rollout {past.lines[index]['rollout_id']}: divergence"
        if not isinstance(logged, list) or len(logged) != len(mine):
            differing += 1
            result.differences.append(f"{name}: logged {logged!r:.60}, replayed {len(mine)} tokens")
            continue
        pairs = list(zip(logged, mine, strict=True))
        worst = max([worst, *(abs(one - other) for one, other in pairs if None not in (one, other))])
        apart = [at for at, pair in enumerate(pairs) if not near(*pair, tolerance)]
        differing += bool(apart)
        result.differences += [
            f"{name}, token {at + 1}: logged {number(pairs[at][0])}, replayed {number(pairs[at][1])}"
            for at in apart[:1]
        ]
    row = Row("divergence by token", f"{len(recorded)} rollouts", f"{len(divergences)}", number(worst), not differing)
    result.rows.append(row)


def near(logged: float | None, replayed: float | None, tolerance: Tolerance) -> bool:
    """Whether two divergences, written with six decimals, count as the same."""
    if logged is None or replayed is None or not tolerance.relative:
        return logged == replayed
    return abs(logged - replayed) <= DIGITS + tolerance.relative * max(logged, replayed)


def number(value: Any) -> str:
    """A number as `metrics.jsonl` has it."""
    return f"{value:.9g}" if isinstance(value, float) else "none" if value is None else str(value)


def gap(logged: Any, replayed: float | None) -> str:
    """By how much a replayed number differs."""
    if not isinstance(logged, int | float) or replayed is None:
        return "" if logged is replayed else "differs"
    return "none" if logged == replayed else f"{replayed - logged:+.2g}"
