"""Workers that misbehave when told to. They live apart from their tests so that a process of them starts quickly."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trainer.workers.sampler_types import Request, Response, SamplingSettings
from trainer.workers.verifier import Case, Verdict, VerifierWorker

RIGHT, WRONG = "7 + 5 = 2", "7 + 5 = 3"


class Fragile(VerifierWorker):
    """Does what a response of these words asks; others it verifies."""

    def verdict(self, case: Case) -> Verdict:
        word, _, argument = case.response.partition(" ")
        if "seen" in case.extra_info:
            Path(case.extra_info["seen"]).touch()
        if word == "once":
            mark = Path(argument)
            first = not mark.exists()
            mark.touch()
            word = "die" if first else word
        if word == "hang":
            time.sleep(600)
        if word == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if word == "raise":
            raise RuntimeError("over and out")
        return super().verdict(case)

    def pid(self) -> int:
        return os.getpid()


class Stillborn(VerifierWorker):
    """Cannot start."""

    def __init__(self, **arguments: Any) -> None:
        raise RuntimeError("no licence for this machine")


class Decoder:
    """A sampler that gives its first responses at once, and may die before the others."""

    def __init__(self, mark: str | None = None, seen: str | None = None) -> None:
        self.mark, self.seen = mark, seen

    def describe(self) -> dict[str, str]:
        return {}

    def sample(
        self, requests: Sequence[Request], settings: SamplingSettings
    ) -> Iterator[tuple[int, list[tuple[int, Response]]]]:
        numbers = list(range(len(requests)))[::-1]
        half = len(numbers) // 2
        yield 5, [self.response(number) for number in numbers[:half]]
        if self.mark is not None and not Path(self.mark).exists():
            Path(self.mark).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if self.seen is not None:
            self.wait_for(Path(self.seen))
        yield 5, [self.response(number) for number in numbers[half:]]

    def wait_for(self, file: Path) -> None:
        """Decodes on until the first responses are verified."""
        begun = time.monotonic()
        while not file.exists():
            time.sleep(0.01)
            if time.monotonic() - begun > 60:
                raise TimeoutError("nobody verifies what is finished")

    def response(self, number: int) -> tuple[int, Response]:
        one = np.full(1, number)
        return number, Response(one.astype(np.int32), one.astype(np.float32), [WRONG, RIGHT][number % 2], "stop")
