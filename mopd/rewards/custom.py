"""A user's own reward function as a verifier: `compute_score(data_source, solution_str, ground_truth, extra_info)`.

It runs in a process of its own (`custom_worker.py`), so that one that hangs, crashes or prints hurts nobody. Whatever
goes wrong with it is an unknown outcome, never a reward of zero.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mopd.types import Outcome

SCRIPT = Path(__file__).with_name("custom_worker.py")
START_S = 120.0
"""Longest wait for the user's file to be imported."""
KEYS = (
    *("WANDB_API_KEY", "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_URI"),
    *("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"),
)
"""Variables that the function does not get: keys of the trackers, an address that may hold one, keys of the hub."""
RIGHT = 1.0
"""A score from which a response counts as right, where the function does not say so itself (`acc`)."""


class CustomRewardError(Exception):
    """The function gave no reward that can be used."""

    def __init__(self, cause: str, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.cause = cause
        """`deadline`, `died`, `error` or `invalid`."""
        self.detail = detail
        """The traceback, where there is one."""


@dataclass(frozen=True)
class CustomSettings:
    """Which function, and how long it may take."""

    path: str
    """Python file."""
    name: str = "compute_score"
    deadline_s: float = 120.0
    """Longest wait for one reward, in seconds."""


def outcome_of(result: Any) -> Outcome:
    """What a returned value means: a number, a truth value, or a dictionary with `score`, `acc` and `feedback`.

    Raises:
        CustomRewardError: it is none of these, or not finite.
    """
    fields = result if isinstance(result, dict) else {"score": result}
    if "score" not in fields:
        raise CustomRewardError("invalid", "the custom reward is a dictionary without score")
    score, feedback = fields["score"], fields.get("feedback")
    if not isinstance(score, (bool, int, float)):
        wanted = "it must be a number, a truth value, or a dictionary with score"
        raise CustomRewardError("invalid", f"the custom reward is {score!r:.80}; {wanted}")
    try:
        reward = float(score)
    except OverflowError:
        reward = math.inf
    if not math.isfinite(reward):
        raise CustomRewardError("invalid", f"the custom reward is {reward}, which is not finite")
    right = fields.get("acc")
    if not isinstance(right, (bool, int, float, type(None))):
        raise CustomRewardError("invalid", f"the custom reward's acc is {right!r:.80}; it must be a truth value")
    success = reward >= RIGHT if right is None else bool(right)
    # A lone surrogate would break whatever writes or tokenises the text.
    text = "" if feedback is None else str(feedback).encode(errors="replace").decode()
    return Outcome(reward, success, "right" if success else "wrong", text)


class CustomReward:
    """The function in its process, which is replaced when it has died or was killed. For one thread."""

    def __init__(self, settings: CustomSettings) -> None:
        self.settings = settings
        self.process: subprocess.Popen[str] | None = None

    def verify(
        self, data_source: str, response: str, ground_truth: str, extra_info: Mapping[str, Any] | None = None
    ) -> Outcome:
        """The function's verdict on the whole response, thinking included.

        Raises:
            CustomRewardError: it gave none in time, raised, or returned what is no reward.
        """
        process = self.started()
        request = {
            "data_source": data_source,
            "solution_str": response,
            "ground_truth": ground_truth,
            "extra_info": dict(extra_info or {}),
        }
        # Rows of parquet may hold what JSON does not know, such as dates; the function gets them as text.
        answer = self.exchange(process, json.dumps(request, default=str), self.settings.deadline_s)
        if "error" in answer:
            reason = f"the custom reward function raised {answer['error']!s:.300}"
            raise CustomRewardError("error", reason, answer["traceback"])
        if "invalid" in answer:
            raise CustomRewardError("invalid", f"the custom reward is {answer['invalid']}; it must be a number")
        return outcome_of(answer["result"])

    def started(self) -> subprocess.Popen[str]:
        """The process, with the function loaded.

        Raises:
            CustomRewardError: the function cannot be loaded.
        """
        if self.process is not None and self.process.poll() is None:
            return self.process
        self.close()
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(SCRIPT), str(Path(self.settings.path).absolute()), self.settings.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
            env={name: value for name, value in os.environ.items() if name not in (*KEYS, "RAY_AUTH_TOKEN")},
            start_new_session=True,
        )
        hello = self.exchange(self.process, None, START_S)
        if "failed" in hello:
            self.close()
            raise CustomRewardError("error", str(hello["failed"]))
        return self.process

    def exchange(self, process: subprocess.Popen[str], request: str | None, limit_s: float) -> dict[str, Any]:
        """One line out, one line in; kills a process that takes longer than `limit_s` seconds.

        Raises:
            CustomRewardError: the process was killed so, or has died.
        """
        assert process.stdin is not None
        assert process.stdout is not None
        late = threading.Event()

        def give_up() -> None:
            late.set()
            kill(process)

        timer = threading.Timer(limit_s, give_up)
        timer.start()
        try:
            if request is not None:
                process.stdin.write(request + "\n")
                process.stdin.flush()
            line = process.stdout.readline()
        except OSError:  # it died while it was written to
            line = ""
        finally:
            timer.cancel()
        try:
            return dict(json.loads(line))
        except ValueError:
            self.close()
        if late.is_set():
            raise CustomRewardError("deadline", f"the custom reward function gave no reward within {limit_s:g} s")
        raise CustomRewardError("died", f"the process of the custom reward function died (exit {process.returncode})")

    def close(self) -> None:
        """Ends the process."""
        process, self.process = self.process, None
        if process is None:
            return
        kill(process)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            # What was not written yet is of no interest any more.
            with contextlib.suppress(OSError):
                pipe and pipe.close()


def kill(process: subprocess.Popen[str]) -> None:
    """Ends a process with whatever it has started."""
    with contextlib.suppress(ProcessLookupError):  # it has ended by itself
        os.killpg(process.pid, signal.SIGKILL)


def check(settings: CustomSettings) -> None:
    """Refuses a function that cannot be used: loads it in a process of its own, and does not call it.

    Raises:
        ValueError: no such file, it cannot be imported, or has no such function.
    """
    path = Path(settings.path)
    if not path.is_file():
        raise ValueError("no such file")
    function = CustomReward(settings)
    try:
        function.started()
    except CustomRewardError as error:
        raise ValueError(str(error)) from None
    finally:
        function.close()
