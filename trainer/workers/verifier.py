"""A process that verifies responses: a slow or crashing verifier hurts no one else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mopd.rewards import verify
from mopd.types import Outcome


class VerifierWorker:
    """Verifies batches of responses."""

    def verify(self, cases: Sequence[tuple[str, str, str, Mapping[str, Any]]]) -> list[Outcome]:
        """The verdicts of `(data_source, response, ground_truth, extra_info)`, in order."""
        return [verify(*case) for case in cases]
