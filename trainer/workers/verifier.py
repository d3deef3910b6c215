"""A process that verifies responses: a slow or crashing verifier hurts no one else."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

from mopd.rewards import verify
from mopd.rewards.custom import CustomReward, CustomRewardError, CustomSettings
from mopd.rewards.settings import RewardSettings, configure
from mopd.types import Outcome

HAND_BACK_S = 0.5
"""A worker of several cases hands back what it has after so long; the others need not wait for the present one."""


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
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="verify")
        self.present: tuple[Case, Future[Verdict]] | None = None

    def ready(self) -> list[Verdict]:
        """Answers as soon as the process can work. To load the user's function takes no verdict's time."""
        if self.custom is not None:
            with suppress(CustomRewardError):  # then every verdict says why
                self.custom.started()
        return []

    def verify(self, cases: Sequence[Case]) -> list[Verdict]:
        """The verdicts of the first cases, in order: of one alone whenever it comes, of several after `HAND_BACK_S`.

        The first case without a verdict is at work then: who asks for it alone gets the verdict once it is there.
        """
        verdicts: list[Verdict] = []
        ends = None if len(cases) == 1 else time.monotonic() + HAND_BACK_S
        for case in cases:
            try:
                verdicts.append(self.begun(case).result(None if ends is None else max(0.0, ends - time.monotonic())))
            except TimeoutError:
                break
            self.present = None
        return verdicts

    def begun(self, case: Case) -> Future[Verdict]:
        """The verdict to come of a case; one that is at work is not begun again."""
        if self.present is None or self.present[0] != case:
            self.present = case, self.thread.submit(self.verdict, case)
        return self.present[1]

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
