"""What becomes of a finding: a sentence that tells what to do, a line in `health.jsonl`, and perhaps the run's end."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mopd.health import Finding, HealthSettings, Kind, Monitor
from trainer.config.schema import Config
from trainer.errors import RunUnhealthyError
from trainer.settings import method_settings
from trainer.tracking import write_line

log = logging.getLogger("mopd")

DISTILL = "actor_rollout_ref.actor.self_distillation"
REMEDIES: Mapping[Kind, str] = {
    "non_finite": "a batch holds something extreme, or the weights are damaged: lower actor_rollout_ref.actor.optim.lr "
    "(LR), or go back to an earlier checkpoint",
    "divergence": "the student runs away from its teacher: lower actor_rollout_ref.actor.optim.lr (LR), or let the "
    f"teacher follow more slowly ({DISTILL}.teacher_update_rate)",
    "length": "read rollouts/ of this step for repetition or bare answers: lower actor_rollout_ref.actor.optim.lr "
    "(LR); against long ones set algorithm.overlong_buffer where rewards are learnt",
    "cut": "answers do not fit: raise data.max_response_length (ROLLOUT_RESPONSE_LENGTH)",
    "entropy": "the student has stopped exploring: lower actor_rollout_ref.actor.optim.lr (LR) or raise "
    "actor_rollout_ref.rollout.temperature; for policy gradients raise actor_rollout_ref.actor.clip_ratio_high",
    "sampler": "the sampler does not sample from the model that learns: keep "
    "algorithm.rollout_correction.rollout_is=token, and lower actor_rollout_ref.rollout.sync_tolerance to stop at once",
    "unknown": "verdicts are lost, and with them peers and rewards: the feedback in rollouts/ says why; raise "
    "reward.deadline_s where it is time, and give reward.workers fewer processes where it is load",
    "success": "the run undoes what it has learnt: go back to an earlier checkpoint, with a lower "
    "actor_rollout_ref.actor.optim.lr (LR)",
    "copying": "the student repeats one answer, perhaps a peer it was shown: compare peers and outputs in rollouts/; "
    f"show more varied ones ({DISTILL}.peer_policy=diverse), or lower actor_rollout_ref.actor.optim.lr (LR)",
}
"""Likely cause, and what to change; of `no_signal` they depend on the figures."""
MOST = 0.5
"""A share from which something is likely the cause."""


def advice(finding: Finding, metrics: Mapping[str, float]) -> str:
    """The likely cause of a finding and what to change."""
    if finding.kind != "no_signal":
        return REMEDIES[finding.kind]
    if finding.metric == "actor/optimizer_steps" and metrics.get("actor/skipped_steps", 0) > 0:
        return REMEDIES["non_finite"]
    if finding.metric == "actor/grad_norm":
        return (
            "rewards, or teacher and student, are alike at every token: show the teacher more than the student sees "
            f"({DISTILL}.view), and see that actor_rollout_ref.actor.clip_ratio_low and clip_ratio_high are above 0"
        )
    return why_nothing_teaches(metrics)


def why_nothing_teaches(metrics: Mapping[str, float]) -> str:
    """The likely cause of a step without usable views, pairs, successes or unequal rewards."""
    unknown, cut = metrics.get("critic/unknown_fraction", 0.0), metrics.get("response_length/clip_ratio", 0.0)
    success = metrics.get("critic/success_rate")
    if cut >= MOST:
        return f"{cut:.0%} of the responses are cut: raise data.max_response_length (ROLLOUT_RESPONSE_LENGTH)"
    if unknown >= MOST:
        return f"{unknown:.0%} of the verdicts are unknown: the feedback in rollouts/ says why; mend that first"
    if success == 0:
        return (
            "no attempt succeeds: take easier data (DATA_PATH) or more attempts (actor_rollout_ref.rollout.n), and see "
            "with python -m trainer.score whether the verifier can read these answers"
        )
    if success == 1:
        return "every attempt succeeds: take harder data (DATA_PATH)"
    return (
        "attempts at the same prompt are all right or all wrong, or their peers may not be shown: raise "
        f"actor_rollout_ref.rollout.n (ROLLOUT_BATCH_SIZE) or rollout.temperature, and look at the fallbacks in "
        f"rollouts/ for switches of {DISTILL} that leave peers out"
    )


def sentence(finding: Finding, step: int, since: int, metrics: Mapping[str, float]) -> str:
    """What was seen, since when, what is likely the cause, and what to change."""
    lasts = f", as in all steps since step {since}" if since < step else ""
    return f"health, {finding.kind}: in step {step} {finding.seen}{lasts}; {advice(finding, metrics)}"


@dataclass
class Health:
    """Watches a run: warns of what it finds, and says when the run had better end."""

    monitor: Monitor
    file: Path
    """`health.jsonl`; there only once something was found."""
    patience: int
    """Steps in a row with the same finding after which a run stops, where the finding stops runs."""
    remind_every: int
    """Steps between two warnings of one kind."""
    stop_on: frozenset[str]
    """Kinds that stop a run."""
    warned: dict[str, int] = field(default_factory=dict)
    """By kind, the step of the last warning."""
    fatal: str | None = None
    """Why the run is to stop after this step; None where it goes on."""
    warn: Callable[[str], None] = log.warning

    def watch(self, step: int, metrics: Mapping[str, float]) -> dict[str, float]:
        """Judges a step by its metrics, warns, and gives the metrics that this adds."""
        found = self.monitor.observe(step, metrics)
        self.fatal = None
        for finding in found:
            since = self.monitor.since[finding.kind]
            stops = finding.kind in self.stop_on and step - since + 1 >= self.patience
            told = sentence(finding, step, since, metrics)
            if stops and self.fatal is None:
                self.fatal = f"{told}. Stopped after {step - since + 1} such steps (trainer.health.patience)"
            if stops or step - self.warned.get(finding.kind, -self.remind_every) >= self.remind_every:
                self.report(step, since, finding, told, stops)
        return {"health/warnings": len(found)}

    def report(self, step: int, since: int, finding: Finding, told: str, stops: bool) -> None:
        """Warns, unless the run's last words will say the same, and keeps a line."""
        self.warned[finding.kind] = step
        if not stops:
            self.warn(told)
        line = {
            "step": step,
            "kind": finding.kind,
            "since": since,
            "metric": finding.metric,
            "value": finding.value if math.isfinite(finding.value) else None,
            "threshold": finding.threshold if math.isfinite(finding.threshold) else None,
            "stops": stops,
            "sentence": told,
        }
        with self.file.open("a") as file:
            write_line(file, line)

    def ending(self, step: int) -> RunUnhealthyError | None:
        """Why the run ends after this step, with the weights it has; None to go on."""
        return None if self.fatal is None else RunUnhealthyError(self.fatal, step)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs, as plain lists and dictionaries."""
        return {"monitor": self.monitor.state_dict(), "warned": dict(self.warned)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from `state_dict()`."""
        self.monitor.load_state_dict(state["monitor"])
        self.warned = {kind: int(step) for kind, step in state["warned"].items()}


def health_of(config: Config, output: Path) -> Health:
    """The watch over a run whose folder is `output`.

    A horizon shorter than the longest response cuts responses on purpose, and those have no verdict: neither is an
    alarm then.
    """
    asked = config.trainer.health
    cuts = config.actor_rollout_ref.rollout.horizon.kind != "const"
    settings = HealthSettings(
        window=asked.window,
        signal_fraction=asked.signal_fraction,
        min_grad_norm=asked.min_grad_norm,
        skipped_steps=asked.skipped_steps,
        divergence_factor=asked.divergence_factor,
        length_factor=asked.length_factor,
        cut_fraction=None if cuts else asked.cut_fraction,
        entropy_fraction=asked.entropy_fraction,
        sampler_kl=asked.sampler_kl,
        unknown_fraction=None if cuts else asked.unknown_fraction,
        success_fraction=asked.success_fraction,
        distinct_fraction=asked.distinct_fraction,
    )
    return Health(
        Monitor(method_settings(config).signal, settings),
        output / "health.jsonl",
        patience=asked.patience,
        remind_every=asked.remind_every,
        stop_on=frozenset(asked.stop_on),
    )
