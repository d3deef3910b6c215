"""A user's reward function: what its values mean, and that nothing it does becomes a reward of zero or a crash here."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mopd.rewards.custom import CustomReward, CustomRewardError, CustomSettings, check, outcome_of
from mopd.types import Outcome

DEADLINE_S = 2.0
FUNCTION = '''
import os, signal, subprocess, sys, time
from helper import BONUS

calls = 0

class Scalar:
    """As numpy and torch have them."""
    shape = ()
    def item(self):
        return 0.25

class Text:
    """JSON does not know it."""

def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    global calls
    calls += 1
    print("said on stdout")
    if solution_str == "hang":
        subprocess.Popen(["sleep", "600"])
        time.sleep(600)
    if solution_str == "hang in C":
        return 7 ** (7 ** 12) > 1
    if solution_str == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if solution_str == "exit":
        sys.exit(0)
    if solution_str == "raise":
        raise KeyError("over and out")
    if solution_str == "read":
        return float(sys.stdin.read() == "")
    values = {
        "equal": solution_str == ground_truth, "source": data_source == "mine", "number": 1 + BONUS, "scalar": Scalar(),
        "info": extra_info["index"], "partial": {"score": 0.5, "acc": True, "feedback": "half", "other": Text()},
        "nan": float("nan"), "infinite": {"score": float("-inf")}, "none": None, "text": "1", "list": [1.0, 0.0],
        "bare": {"acc": True}, "odd": Text(), "tuple": (1.0,), "empty": [], "null score": {"score": None},
        "large": 10 ** 400, "calls": calls,
    }
    return values.get(solution_str, len(solution_str))

async def later(data_source, solution_str, ground_truth, extra_info=None):
    return 1.0

def too_few(solution_str):
    return 1.0

value = 3
'''


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's file, which imports another one beside it."""
    folder = tmp_path_factory.mktemp("my rewards")
    (folder / "helper.py").write_text("BONUS = 0.5\n")
    (folder / "reward.py").write_text(FUNCTION)
    return folder / "reward.py"


@pytest.fixture(scope="module")
def function(file: Path) -> Iterator[CustomReward]:
    started = CustomReward(CustomSettings(str(file), deadline_s=DEADLINE_S))
    yield started
    started.close()


def asked(function: CustomReward, response: str) -> Outcome:
    return function.verify("mine", response, "equal", {"index": 7})


@pytest.mark.parametrize(
    ("response", "outcome"),
    [
        ("equal", Outcome(1.0, True, "right")),
        ("source", Outcome(1.0, True, "right")),
        ("number", Outcome(1.5, True, "right")),
        ("scalar", Outcome(0.25, False, "wrong")),
        ("info", Outcome(7.0, True, "right")),
        ("partial", Outcome(0.5, True, "right", "half")),
        ("read", Outcome(1.0, True, "right")),
        ("", Outcome(0.0, False, "wrong")),
        ("\ud800\n\x00<think>x</think>é", Outcome(20.0, True, "right")),
        ("y" * 200_000, Outcome(200_000.0, True, "right")),
    ],
)
def test_a_number_a_truth_value_or_a_dictionary_is_a_reward(
    function: CustomReward, response: str, outcome: Outcome
) -> None:
    assert asked(function, response) == outcome


@pytest.mark.parametrize(
    ("response", "cause", "said"),
    [
        ("nan", "invalid", "nan, which is not finite"),
        ("infinite", "invalid", "-inf, which is not finite"),
        ("large", "invalid", "inf, which is not finite"),
        ("none", "invalid", "None"),
        ("null score", "invalid", "None"),
        ("text", "invalid", "'1'"),
        ("list", "invalid", "a list of length 2"),
        ("tuple", "invalid", "a tuple of length 1"),
        ("empty", "invalid", "a list of length 0"),
        ("odd", "invalid", "a Text"),
        ("bare", "invalid", "without score"),
        ("raise", "error", "KeyError: 'over and out'"),
        ("exit", "error", "SystemExit"),
        ("kill", "died", "died"),
    ],
)
def test_whatever_is_no_reward_is_told_and_the_next_is_verified(
    function: CustomReward, response: str, cause: str, said: str
) -> None:
    with pytest.raises(CustomRewardError) as caught:
        asked(function, response)
    assert caught.value.cause == cause
    assert said in str(caught.value)
    assert ("Traceback" in caught.value.detail) == (cause == "error")
    assert asked(function, "equal") == Outcome(1.0, True, "right")


@pytest.mark.parametrize("response", ["hang", "hang in C"])
def test_one_that_hangs_is_killed_with_what_it_started(function: CustomReward, response: str) -> None:
    function.started()
    assert function.process is not None
    group, begun = function.process.pid, time.monotonic()
    with pytest.raises(CustomRewardError, match="no reward within 2 s") as caught:
        asked(function, response)
    assert caught.value.cause == "deadline"
    assert time.monotonic() - begun < DEADLINE_S + 30
    gone = time.monotonic() + 10
    while alive(group) and time.monotonic() < gone:
        time.sleep(0.05)
    assert not alive(group)
    assert asked(function, "equal").success


def alive(group: int) -> bool:
    """Whether a process group has members that are no corpses."""
    listed = subprocess.run(["ps", "-eo", "pgid=,stat="], capture_output=True, text=True, check=True).stdout
    return any(int(line.split()[0]) == group and "Z" not in line.split()[1] for line in listed.splitlines())


def test_the_process_stays_for_the_next_response(function: CustomReward) -> None:
    before = asked(function, "calls").reward
    assert before is not None
    assert asked(function, "calls").reward == before + 1


def test_the_process_ends_with_whoever_asks(file: Path) -> None:
    code = (
        "import os, sys; from mopd.rewards.custom import CustomReward, CustomSettings;"
        f"function = CustomReward(CustomSettings({str(file)!r})); function.started();"
        "print(function.process.pid, flush=True); os._exit(0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    group, gone = int(done.stdout.split()[-1]), time.monotonic() + 10
    while alive(group) and time.monotonic() < gone:
        time.sleep(0.05)
    assert not alive(group)


def test_what_can_be_used_is_accepted_without_a_call(file: Path) -> None:
    check(CustomSettings(str(file)))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("missing", "has no function missing"),
        ("value", "has no function value"),
        ("later", "is async"),
        ("too_few", "cannot be called as too_few(data_source=..., solution_str=..."),
    ],
)
def test_a_function_that_cannot_be_used_is_refused(file: Path, name: str, said: str) -> None:
    with pytest.raises(ValueError, match=r"function|later|too_few") as caught:
        check(CustomSettings(str(file), name))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("import nothing_of_this_name", "ModuleNotFoundError"),
        ("def compute_score(:", "SyntaxError"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("import os; os._exit(3)", "died (exit 3)"),
    ],
)
def test_a_file_that_cannot_be_imported_is_refused(tmp_path: Path, content: str, said: str) -> None:
    file = tmp_path / "broken.py"
    file.write_text(content)
    with pytest.raises(ValueError, match=r"import|died") as caught:
        check(CustomSettings(str(file)))
    assert said in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        check(CustomSettings(str(tmp_path / "none.py")))


@pytest.mark.parametrize("result", [math.nan, math.inf, None, "1.0", [1.0], {}, {"score": math.nan}, {"score": [1]},
                                    {"score": 1, "acc": "false"}])  # fmt: skip
def test_the_boundary_refuses_by_itself(result: Any) -> None:
    with pytest.raises(CustomRewardError):
        outcome_of(result)


def test_feedback_can_be_written_and_tokenised() -> None:
    assert outcome_of({"score": 0, "feedback": "é\ud800"}).feedback == "é?"


def test_a_relative_path_is_taken_from_here(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)
    check(CustomSettings("reward.py"))
    assert os.getcwd() == str(file.parent)
