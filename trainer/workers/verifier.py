"""A process that verifies responses: a slow or crashing verifier hurts no one else."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

from mopd.rewards import verify
from mopd.rewards.custom import CustomReward, CustomRewardError, CustomSettings
from mopd.rewards.settings import RewardSettings, configure
from mopd.types import Outcome

HAND_BACK_S = 0.5
"""A worker that has verified for so long hands back what it has; the other cases may go to idle workers."""


class Case(NamedTuple):
    """What is verified."""

    data_source: str
    response: str
    ground_truth: str
    extra_info: Mapping[str, Any]


@dataclass(frozen=True)
class Verdict:
    """An outcome, and why it is unknown where it is."""

    outcome: Outcome
    cause: str = ""
    """Of an unknown outcome, in a word: deadline, died, error, invalid, or undecided (the verifier's own word)."""
    detail: str = ""
    """For the log only: a traceback."""


class VerifierWorker:
    """Verifies batches of responses, with the user's own function where there is one."""

    def __init__(self, *, settings: RewardSettings, custom: CustomSettings | None) -> None:
        configure(settings)
        self.custom = None if custom is None else CustomReward(custom)

    def ready(self) -> list[Verdict]:
        """Answers as soon as the process can work. To load the user's function takes no verdict's time."""
        if self.custom is not None:
            with suppress(CustomRewardError):  # then every verdict says why
                self.custom.started()
        return []

    def verify(self, cases: Sequence[Case]) -> list[Verdict]:
        """The verdicts of the first cases, in order: of all that took `HAND_BACK_S`, and of one at least."""
        verdicts = []
        begun = time.monotonic()
        for case in cases:
            verdicts.append(self.verdict(case))
            if time.monotonic() - begun > HAND_BACK_S:
                break
        return verdicts

    def verdict(self, case: Case) -> Verdict:
        """The verdict of one case."""
        return verdict_of(case, self.custom)


def verdict_of(case: Case, custom: CustomReward | None) -> Verdict:
    """The verdict of the user's function, or of the data source's verifier where there is none."""
    if custom is None:
        outcome = verify(*case)
        return Verdict(outcome, "undecided" if outcome.status == "unknown" else "")
    try:
        return Verdict(custom.verify(*case))
    except CustomRewardError as error:
        return Verdict(Outcome.unknown(str(error)), error.cause, error.detail)
