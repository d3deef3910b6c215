"""Named places at which a test makes the program fail; without MOPD_FAILPOINTS they do nothing.

    MOPD_FAILPOINTS="ckpt.before_manifest=kill;rank=0;step=3,step.after_opt=raise;rank=1"

Actions: `kill` (the process ends as by kill -9), `raise` (a FailpointError), `stop` (the process stands still),
`nan` and `inf` (a number that is not finite, only where the place asks for one with `factor`).
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass

VARIABLE = "MOPD_FAILPOINTS"
PLACES = (
    "step.after_opt",
    "step.loss",
    "ckpt.mid_shard",
    "ckpt.async",
    "ckpt.before_manifest",
    "ckpt.before_rename",
    "ckpt.before_purge",
    "ckpt.mid_purge",
    "sync.mid",
)
ACTIONS = ("kill", "raise", "stop", "nan", "inf")


class FailpointError(RuntimeError):
    """A failure that was asked for."""


@dataclass(frozen=True)
class Failpoint:
    """What to do at a place, and only at which step and rank."""

    place: str
    action: str
    step: int | None = None
    rank: int | None = None

    def meets(self, place: str, step: int | None, rank: int | None) -> bool:
        """Whether this is the moment."""
        return self.place == place and self.step in (None, step) and self.rank in (None, rank)


def parse(text: str) -> list[Failpoint]:
    """The failpoints of a specification.

    Raises:
        ValueError: an unknown place, action or condition.
    """
    points = []
    for entry in filter(None, text.split(",")):
        head, *conditions = entry.split(";")
        place, _, action = head.partition("=")
        if place not in PLACES or action not in ACTIONS:
            raise ValueError(
                f"{VARIABLE}={entry}: wanted PLACE=ACTION, of {', '.join(PLACES)} and {', '.join(ACTIONS)}"
            )
        limits = dict(condition.partition("=")[::2] for condition in conditions)
        if not limits.keys() <= {"step", "rank"} or not all(value.isdecimal() for value in limits.values()):
            raise ValueError(f"{VARIABLE}={entry}: conditions are step=NUMBER and rank=NUMBER")
        points.append(Failpoint(place, action, **{name: int(value) for name, value in limits.items()}))
    return points


def asked(place: str, step: int | None, rank: int | None) -> str | None:
    """The action asked for at this place and moment."""
    text = os.environ.get(VARIABLE, "")
    found = [point.action for point in parse(text) if point.meets(place, step, rank)] if text else []
    return found[0] if found else None


def hit(place: str, *, step: int | None = None, rank: int | None = None) -> None:
    """Fails here if that was asked for.

    Raises:
        FailpointError: the action is `raise`.
    """
    action = asked(place, step, rank)
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if action == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    if action == "raise":
        raise FailpointError(f"{VARIABLE}: asked to fail at {place} (step {step}, rank {rank})")


def factor(place: str, *, step: int | None = None, rank: int | None = None) -> float:
    """1, or the number that is not finite that is wanted here."""
    action = asked(place, step, rank)
    return float(action) if action in ("nan", "inf") else 1.0
