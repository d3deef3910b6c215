"""Held-out quality: sample, verify, report mean@k and unbiased pass@k per data source."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mopd.metrics import evaluate_groups
from mopd.types import Group
from trainer.prompts import PromptSet
from trainer.services import Asked, Sampling, Verification
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
        return scores(groups, self.k)


def scores(groups: Sequence[Group], k: int) -> dict[str, float]:
    """Published metric names to figures; unknown outcomes are counted and left out of the figures."""
    by_source: dict[str, list[list[bool | None]]] = defaultdict(list)
    for group in groups:
        by_source[group.prompt.data_source].append([outcome.success for outcome in group.outcomes])
    figures = {}
    for source, successes in by_source.items():
        found = evaluate_groups(successes, k)
        for name in (f"mean@{k}", f"pass@{k}"):
            if name in found:
                figures[f"val-core/{source}/acc/{name}"] = found[name]
        figures[f"val-aux/{source}/prompts"] = found["prompts"]
        figures[f"val-aux/{source}/unknown"] = found["unknown"]
    return figures
