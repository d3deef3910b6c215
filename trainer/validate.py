"""Held-out quality: sample, verify, report mean@k and unbiased pass@k per data source."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mopd.metrics import evaluate_groups
from mopd.rewards import predicted
from mopd.types import Group
from trainer.prompts import PromptSet
from trainer.sampling import Asked, Sampling
from trainer.verification import Verification
from trainer.workers.sampler_types import SamplingSettings

VALIDATION_PHASE = 1_000_000
"""Sets validation seeds apart from those of training steps."""


@dataclass(frozen=True)
class Validator:
    """Scores the sampler's current weights on the held-out prompts, with the same request seeds each time."""

    sampler: Sampling
    verifier: Verification
    prompts: PromptSet
    settings: SamplingSettings
    k: int
    record: Callable[[int, Sequence[Group]], None]
    bootstrap: bool
    """Reports the published best@k, drawn with replacement, as well."""

    def __call__(self, *, step: int) -> dict[str, float]:
        """`val-core/<data source>/acc/{mean,pass}@k` after `step`; the responses are recorded."""
        asked = [
            Asked(f"val{step}-{number}", prompt, prompt_ids)
            for number, (prompt, prompt_ids) in enumerate(
                zip(self.prompts.prompts, self.prompts.prompt_ids, strict=True)
            )
        ]
        groups = self.sampler.sample(asked, self.k, self.settings, [VALIDATION_PHASE])
        groups = self.verifier.verify(groups)
        self.record(step, groups)
        return scores(groups, self.k, bootstrap=self.bootstrap)


def scores(groups: Sequence[Group], k: int, *, bootstrap: bool = False) -> dict[str, float]:
    """Published metric names to figures; unknown outcomes are counted and left out of the figures."""
    by_source: dict[str, list[Group]] = defaultdict(list)
    for group in groups:
        by_source[group.prompt.data_source].append(group)
    figures = {}
    for source, own in by_source.items():
        found = evaluate_groups(
            [[outcome.success for outcome in group.outcomes] for group in own],
            k,
            predictions_by_prompt=[[predicted(source, rollout.text) for rollout in group.rollouts] for group in own],
            rewards_by_prompt=[[outcome.reward for outcome in group.outcomes] for group in own],
            bootstrap=bootstrap,
        )
        for name, value in found.items():
            core = name in (f"mean@{k}", f"pass@{k}", f"maj@{k}")
            figures[f"val-core/{source}/acc/{name}" if core else f"val-aux/{source}/{name}"] = value
    return figures
