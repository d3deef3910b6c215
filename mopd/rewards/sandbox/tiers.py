"""Which isolation this machine offers, found by trying it."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

from mopd.rewards.sandbox.launch import Zygote
from mopd.rewards.sandbox.types import SandboxError
from mopd.rewards.settings import RewardSettings

DESCRIPTIONS = {
    1: "namespaces, Landlock where there is one, seccomp, limits",
    2: "Landlock, seccomp, limits",
    3: "seccomp, limits: programs can read the files, environments and memory of this account",
    4: "limits only: programs can do what this account can",
}


@dataclass(frozen=True)
class Probe:
    """What this machine offers."""

    tier: int
    """The strongest isolation, 1 to 4; `DESCRIPTIONS` says what each is."""
    reason: str
    """Why it is that one, and what a stronger one lacks."""
    landlock: int = 0
    """The version of Landlock; 0: none."""
    missing: dict[int, str] = field(default_factory=dict)
    """By tier that does not work: what failed."""


@functools.cache
def probe() -> Probe:
    """Tries the tiers from the strongest on, each by starting what runs programs; some tenths of a second."""
    missing: dict[int, str] = {}
    for tier in (1, 2, 3):
        try:
            zygote = Zygote(tier, preload=False)
        except SandboxError as error:
            missing[tier] = str(error)
            continue
        zygote.close()
        return Probe(tier, _reason(tier, missing), zygote.hello["landlock"], missing)
    return Probe(4, _reason(4, missing), 0, missing)


def _reason(tier: int, missing: dict[int, str]) -> str:
    return "; ".join([f"tier {tier}: {DESCRIPTIONS[tier]}", *missing.values()])


def choose(settings: RewardSettings) -> int:
    """The tier that the settings ask for, else the strongest.

    At tier 3 a program can read this account's processes, and with them what is expected of it: it takes the user's
    word, as no isolation at all does.

    Raises:
        SandboxError: there is too little isolation, and the settings do not allow it.
    """
    tier = probe().tier if settings.sandbox_tier is None else settings.sandbox_tier
    if tier not in DESCRIPTIONS:
        raise SandboxError(f"no sandbox tier {tier}: reward.sandbox_tier is one of {sorted(DESCRIPTIONS)} or null")
    if tier == 3 and settings.sandbox_tier is None and not settings.allow_unsandboxed:
        raise SandboxError(
            f"programs can only be isolated in part here ({probe().reason}): they could read this account's files and"
            " processes, expected outputs among them. reward.sandbox_tier=3 accepts that"
        )
    if tier == 4 and not settings.allow_unsandboxed:
        raise SandboxError(
            f"programs cannot be isolated here ({probe().reason}), so code is not verified. On a machine of its own,"
            " reward.allow_unsandboxed=true runs them with the rights of this account"
        )
    return tier
