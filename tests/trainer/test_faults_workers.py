"""Workers that lose answers, answer late or stale, run out of memory or hang, on a real Ray; and Ray itself."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

from mopd.rewards.settings import RewardSettings
from mopd.types import Outcome, Prompt
from tests.mopd.groups import PROMPT, group_of
from trainer import cluster
from trainer.assemble import worker_environment
from trainer.config.compose import PROJECT
from trainer.sampling import Asked, StandingSampling
from trainer.verification import Verification
from trainer.workers.sampler_types import Request, Response, SamplingSettings
from trainer.workers.verifier import VerifierWorker

names = map(str, itertools.count())
PROGRAM = "```python\nprint(int(input()) + {})\n```"
BATCHES = [
    ("chain", PROMPT.ground_truth, ["7 + 5 = 2", "7 + 5 = 3"] * 8),
    ("math", r"2\sqrt{2}", [r"\boxed{\sqrt{8}}", r"\boxed{\sqrt{7}}"] * 2),
    ("code", '{"inputs": ["1"], "outputs": ["2"], "testtype": "stdin"}', [PROGRAM.format(1), PROGRAM.format(2)]),
]
"""Rights and wrongs in turn."""


@pytest.fixture(scope="module")
def ray() -> Iterator[None]:
    cluster.start(worker_environment("cpu", offline=True), num_cpus=2)
    yield
    cluster.stop()


class Faulty:
    """A sampler with one fault; without, it answers every request by its own number."""

    fault = "none"

    def be(self, fault: str) -> None:
        self.fault = fault

    def describe(self) -> dict[str, str]:
        return {}

    def sample(
        self, requests: Sequence[Request], settings: SamplingSettings
    ) -> Iterator[tuple[int, list[tuple[int, Response]]]]:
        numbers = list(range(len(requests)))
        if self.fault == "loses one":
            numbers.remove(3)
        if self.fault == "is stale":
            yield -1, [(number, self.response(number)) for number in numbers]
        if self.fault == "has no memory":
            bytearray(1 << 62)
        yield 0, [(number, self.response(number)) for number in numbers]

    def response(self, number: int) -> Response:
        return Response(np.full(1, number, dtype=np.int32), np.zeros(1, dtype=np.float32), str(number), "stop")


class Rank:
    """Answers at once, raises, or waits for a file."""

    def work(self, how: str) -> str:
        if how == "raise":
            raise ArithmeticError("the first traceback")
        while how.startswith("/") and not Path(how).exists():
            time.sleep(0.05)
        return how


class Pid(VerifierWorker):
    """Tells what its process holds."""

    def holds(self) -> tuple[int, int, int]:
        """Open descriptors, children, resident KiB."""
        pid = os.getpid()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        status = Path(f"/proc/{pid}/status").read_text()
        resident = next(line for line in status.splitlines() if line.startswith("VmRSS"))
        return len(os.listdir("/proc/self/fd")), len(children), int(resident.split()[1])


@pytest.fixture(scope="module")
def faulty(ray: None) -> Any:
    return cluster.spawn(Faulty, num_cpus=0, num_gpus=0)


def drawn(worker: Any, fault: str) -> list[str]:
    """The texts that a sampler with a fault gives to eight requests."""
    cluster.gather([worker.be.remote(fault)], "telling", 60)
    sampling = StandingSampling(lambda: worker, seed=0, deadline_s=60)
    asked = [Asked(next(names), PROMPT, np.zeros(1, dtype=np.int32)) for _ in range(2)]
    groups = sampling.sample(asked, 4, SamplingSettings(1.0, 1.0, 16), [1])
    return [rollout.text for group in groups for rollout in group.rollouts]


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("loses one", "the sampler gave 7 responses to 8 requests"),
        ("is stale", "the sampler has weights of version -1, wanted 0"),
        ("has no memory", "sampling rollouts: MemoryError"),
    ],
)
def test_what_a_sampler_gets_wrong_ends_in_a_sentence(faulty: Any, fault: str, said: str) -> None:
    with pytest.raises(cluster.WorkerError, match=said):
        drawn(faulty, fault)
    assert drawn(faulty, "none") == list("01234567")


def test_whatever_becomes_of_an_answer_is_told_with_the_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray import exceptions  # not above: `cluster` sets what Ray reads while it is imported

    for failure, kind, said in (
        (exceptions.OutOfMemoryError("killed"), cluster.WorkerDiedError, "the machine's memory was full"),
        (exceptions.ObjectLostError("0" * 56, None, ""), cluster.WorkerError, "the answer is lost"),
        (exceptions.LocalRayletDiedError(), cluster.WorkerError, "the answer is lost"),
    ):
        monkeypatch.setattr("ray.get", Mock(side_effect=failure))
        with pytest.raises(kind, match=f"sampling: .*{said}"):
            cluster.answer(None, "sampling")


# ------------------------------------------------------------------ ranks


@pytest.fixture(scope="module")
def ranks(ray: None) -> list[Any]:
    return [cluster.spawn(Rank, num_cpus=0, num_gpus=0) for _ in range(2)]


def ask(ranks: Sequence[Any], *hows: str) -> list[Any]:
    return [rank.work.remote(how) for rank, how in zip(ranks, hows, strict=True)]


def test_one_rank_that_raises_is_told_at_once_and_with_its_traceback(ranks: list[Any], tmp_path: Path) -> None:
    """While another waits for it."""
    mark = tmp_path / "go on"
    references = ask(ranks, str(mark), "raise")
    with pytest.raises(cluster.WorkerError) as caught:
        cluster.gather(references, "updating the student", 600)
    mark.touch()
    said = str(caught.value)
    assert said.startswith("updating the student: ArithmeticError('the first traceback')")
    assert 'raise ArithmeticError("the first traceback")' in said
    assert cluster.gather(references[:1], "waiting", 60) == [str(mark)], "the other was waiting all the time"


def test_a_rank_that_hangs_is_named_with_what_was_awaited(ranks: list[Any], tmp_path: Path) -> None:
    mark = tmp_path / "go on"
    cluster.gather(ask(ranks, "a", "b"), "starting", 60)
    with pytest.raises(cluster.DeadlineError) as caught:
        cluster.gather(ask(ranks, "fine", str(mark)), "updating the student", 2.0)
    mark.touch()
    assert str(caught.value).startswith("updating the student: no answer within trainer.deadline_s=2 s")
    assert "of 2 answers those of 1 are missing" in str(caught.value)


# ------------------------------------------------------------------ verifiers


def pool(worker: type, workers: int) -> Verification:
    spawn = partial(cluster.spawn, worker, num_cpus=0, num_gpus=0, settings=RewardSettings(workers=1), custom=None)
    return Verification(spawn, workers=workers, deadline_s=60)


def verdicts(verification: Verification, source: str, truth: str, texts: Sequence[str]) -> list[bool | None]:
    """Successes of responses to one prompt."""
    bare = group_of([Outcome.of(True)] * len(texts), texts, f"group{next(names)}-", tokens=[3] * len(texts))
    waiting = replace(bare, prompt=Prompt("1", (), source, truth), outcomes=())
    [verified] = verification.verify([waiting])
    return [outcome.success for outcome in verified.outcomes]


def test_a_bomb_in_a_batch_costs_no_other_response_its_verdict(ray: None) -> None:
    """Nor time: what waits in the bomb's own process goes to another one."""
    verification = pool(VerifierWorker, workers=2)
    roots = [rf"\boxed{{\sqrt{{{4 * number}}}}}" for number in range(2, 42)]
    expected = [number == 2 for number in range(2, 42)]
    assert verdicts(verification, "math", r"2\sqrt{2}", roots) == expected
    verification.report()
    found = verdicts(verification, "math", r"2\sqrt{2}", [*roots[:20], r"\boxed{3^{3^{20}}}", *roots[20:]])
    assert found == [*expected[:20], False, *expected[20:]]
    figures = verification.report()
    assert figures["perf/verify_respawns"] == figures["perf/verify_retries"] == 0
    assert figures["perf/verify_latency_max"] < 30
    assert figures["perf/verify_latency_mean"] < figures["perf/verify_latency_max"] / 2


def test_verifying_leaves_nothing_open(ray: None) -> None:
    verification = pool(Pid, workers=1)

    def held() -> tuple[tuple[int, int, int], int]:
        [theirs] = cluster.gather([verification.slots[0].worker.holds.remote()], "asking", 60)
        return theirs, len(os.listdir("/proc/self/fd"))

    def round_of_all() -> None:
        for source, truth, texts in BATCHES:
            assert verdicts(verification, source, truth, texts) == [True, False] * (len(texts) // 2)

    for _ in range(3):
        round_of_all()
    (descriptors, children, resident), ours = held()
    for _ in range(12):
        round_of_all()
    (descriptors_after, children_after, resident_after), ours_after = held()
    assert (descriptors_after, children_after) == (descriptors, children)
    assert ours_after <= ours + 2, "the controller holds more descriptors than before"
    assert resident_after < resident + 30_000


# ------------------------------------------------------------------ Ray itself


def started(folder: Path, **environment: str) -> subprocess.Popen[str]:
    """A process that starts a Ray of its own, says its address and token, and waits for a line."""
    program = (
        "import os; from trainer import cluster; cluster.start({}, 1); import ray; "
        "print(ray.get_runtime_context().gcs_address, os.environ['RAY_AUTH_TOKEN'], flush=True); input()"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=PROJECT,
        env={**os.environ, "RAY_TMPDIR": str(folder), **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_runs_on_one_machine_do_not_meet_whatever_another_one_left_behind() -> None:
    """Two at once in one folder of Ray's, in which a session is noted that is gone and links lead nowhere."""
    folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))  # a socket's path may have 107 bytes
    try:
        (folder / "ray").mkdir()
        (folder / "ray" / "ray_current_cluster").write_text("127.0.0.1:9\n")
        (folder / "ray" / "session_latest").symlink_to(folder / "nowhere")
        runs = [started(folder) for _ in range(2)]
        said = [run.stdout.readline().split() if run.stdout else [] for run in runs]
        for run in runs:
            run.communicate("\n", timeout=60)
        assert [run.returncode for run in runs] == [0, 0], said
        (one, first), (other, second) = said
        assert one != other
        assert first != second or "RAY_AUTH_TOKEN" in os.environ
    finally:
        shutil.rmtree(folder, ignore_errors=True)
