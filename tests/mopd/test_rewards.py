"""The door to the verifiers: dispatch, thinking, and breakage that is nobody's failure."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest

from mopd.rewards import VERIFIERS, check_ground_truth, verify
from mopd.rewards.base import Verifier
from mopd.types import Outcome

GOLD = '{"steps": 1, "value": 2}'


def test_the_data_source_picks_the_verifier() -> None:
    assert verify("chain", "7 + 5 = 2", GOLD) == Outcome.of(True)
    assert verify("sciknoweval", "<answer>B</answer>", "B", {"split": "train"}) == Outcome.of(True)
    assert verify("sciknoweval", "<answer>A</answer>", "B") == Outcome.of(False)


def test_an_unknown_data_source_is_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"'sciknowevel'.*known: .*chain, .*sciknoweval.*mean 'sciknoweval'"):
        verify("sciknowevel", "", "A")
    with pytest.raises(ValueError, match=r"known: .*chain, .*sciknoweval") as caught:
        verify("???", "", "A")
    assert "did you mean" not in str(caught.value)


@pytest.mark.parametrize(
    ("response", "success"),
    [
        ("<think><answer>B</answer></think><answer>A</answer>", False),
        ("<think><answer>A</answer></think><answer>B</answer>", True),
        ("<think><answer>B</answer></think>", False),
        ("opened by the prompt: <answer>A</answer></think> <answer>B</answer>", True),
        ("<think>x</think><answer>A</answer><think>y</think><answer>B</answer>", True),
    ],
)
def test_only_what_follows_the_last_thought_counts(response: str, success: bool) -> None:
    assert verify("sciknoweval", response, "B").success is success


def test_a_verifier_that_breaks_gives_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(response: str, ground_truth: str, extra_info: object) -> Outcome:
        raise ZeroDivisionError("over and out")

    monkeypatch.setitem(VERIFIERS, "broken", Verifier(broken, str))
    outcome = verify("broken", "anything", "gold")
    assert (outcome.reward, outcome.success, outcome.status) == (None, None, "unknown")
    assert outcome.feedback == "the broken verifier failed: ZeroDivisionError: over and out"


@pytest.mark.parametrize("reward", [math.nan, math.inf, -math.inf])
def test_a_reward_that_is_not_finite_is_unknown(monkeypatch: pytest.MonkeyPatch, reward: float) -> None:
    monkeypatch.setitem(VERIFIERS, "odd", Verifier(lambda response, gold, info: Outcome(reward, True, "right"), str))
    outcome = verify("odd", "anything", "gold")
    assert (outcome.reward, outcome.status) == (None, "unknown")
    assert str(reward) in outcome.feedback


def test_an_unknown_verdict_passes_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    timed_out = Outcome.unknown("timed out")
    monkeypatch.setitem(VERIFIERS, "slow", Verifier(lambda response, gold, info: timed_out, str))
    assert verify("slow", "anything", "gold") == timed_out


def test_an_interrupt_is_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(response: str, ground_truth: str, extra_info: object) -> Outcome:
        raise KeyboardInterrupt

    monkeypatch.setitem(VERIFIERS, "interrupted", Verifier(interrupted, str))
    with pytest.raises(KeyboardInterrupt):
        verify("interrupted", "", "")


def test_a_malformed_ground_truth_is_unknown_to_a_run_and_refused_before_it() -> None:
    assert verify("sciknoweval", "<answer>B</answer>", "B or C").status == "unknown"
    for data_source, bad in [("sciknoweval", "B or C"), ("chain", "2"), ("nowhere", "A")]:
        with pytest.raises(ValueError, match=f"(?s){data_source}.*"):
            check_ground_truth(data_source, bad)
    check_ground_truth("sciknoweval", "J")
    check_ground_truth("chain", GOLD)


def test_verifying_needs_no_torch() -> None:
    code = "import sys, mopd.rewards, mopd.peers; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
