"""The pool of verifiers on real processes: what hangs, dies or raises costs itself a verdict and no one else."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mopd.credit import CreditSettings, token_streams
from mopd.methods import METHODS
from mopd.rewards import verifier_of, verify
from mopd.rewards.custom import CustomSettings
from mopd.rewards.settings import RewardSettings
from mopd.types import Group, Outcome, Prompt
from tests.mopd.groups import PROMPT, group_of
from tests.trainer.fragile import RIGHT, WRONG, Decoder, Fragile, Stillborn
from trainer import cluster
from trainer.assemble import worker_environment
from trainer.sampling import Asked, StandingSampling
from trainer.verification import MAX_ATTEMPTS, MAX_FAILED_STARTS, MOST_TOGETHER, Verification
from trainer.workers.sampler_types import SamplingSettings
from trainer.workers.verifier import HAND_BACK_S, VerifierWorker

DEADLINE_S = 1.0
names = map(str, itertools.count())


@pytest.fixture(scope="module", autouse=True)
def ray() -> Iterator[None]:
    cluster.start(worker_environment("cpu", offline=True), num_cpus=2)
    yield
    cluster.stop()


def pool(
    worker: type = Fragile, workers: int = 2, custom: CustomSettings | None = None, deadline_s: float = DEADLINE_S
) -> Verification:
    spawn = partial(cluster.spawn, worker, num_cpus=0, num_gpus=0, settings=RewardSettings(), custom=custom)
    return Verification(spawn, workers=workers, deadline_s=deadline_s)


@pytest.fixture(scope="module")
def shared() -> Verification:
    return pool()


@pytest.fixture(scope="module")
def patient() -> Verification:
    """A pool that waits for the slowest verifier."""
    return pool(deadline_s=120.0)


@pytest.fixture
def verification(shared: Verification) -> Verification:
    """A pool with nothing to report."""
    shared.report()
    shared.told.clear()
    return shared


def group(texts: Sequence[str], prompt: Prompt = PROMPT) -> Group:
    """A group that waits for verdicts."""
    bare = group_of([Outcome.of(True)] * len(texts), texts, f"group{next(names)}-", tokens=[3] * len(texts))
    return replace(bare, prompt=prompt, outcomes=())


def outcomes(verification: Verification, *texts: str) -> list[Outcome]:
    [verified] = verification.verify([group(texts)])
    return list(verified.outcomes)


def test_every_rollout_gets_the_verdict_on_its_own_text(verification: Verification) -> None:
    texts = [RIGHT, WRONG, "nonsense", f"<think>{WRONG}</think>{RIGHT}"] * 30
    expected = [verify("chain", text, PROMPT.ground_truth) for text in texts]
    groups = verification.verify([group(texts), group(texts[::-1]), group([])])
    assert [list(one.outcomes) for one in groups] == [expected, expected[::-1], []]
    figures = verification.report()
    assert figures["perf/verify_retries"] == figures["perf/verify_respawns"] == 0
    assert 0 < figures["perf/verify_latency_mean"] <= figures["perf/verify_latency_max"]
    assert not any(name.startswith("reward/unknown") for name in figures)


@pytest.mark.parametrize(
    ("word", "cause", "said"),
    [
        ("hang", "deadline", "no verdict within reward.deadline_s=1 s"),
        ("die", "died", f"process died over it {MAX_ATTEMPTS} times"),
        ("raise", "error", "RuntimeError('over and out')"),
    ],
)
def test_a_response_that_breaks_its_verifier_is_unknown_and_the_others_are_not(
    verification: Verification, word: str, cause: str, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("WARNING", logger="mopd"):
        found = outcomes(verification, RIGHT, word, WRONG, *[RIGHT] * 20)
    assert [outcome.success for outcome in found] == [True, None, False, *[True] * 20]
    assert (found[1].status, found[1].reward) == ("unknown", None)
    assert said in found[1].feedback
    figures = verification.report()
    assert figures[f"reward/unknown_{cause}"] == 1
    # Over one that hangs nothing is asked again: the others were handed back before.
    assert (figures["perf/verify_retries"] >= 1) == (word != "hang")
    assert (figures["perf/verify_respawns"] >= 1) == (cause != "error")
    assert caplog.text.count("has no verdict and is left out") == 1
    assert outcomes(verification, RIGHT) == [Outcome.of(True)]


def test_what_died_once_is_asked_again_and_right(verification: Verification, tmp_path: Path) -> None:
    found = outcomes(verification, f"once {tmp_path / 'mark'}", WRONG, RIGHT)
    assert [outcome.status for outcome in found] == ["wrong", "wrong", "right"]
    assert verification.report()["perf/verify_respawns"] == 1


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_processes_that_are_killed_or_stopped_from_outside_change_no_verdict(
    verification: Verification, number: signal.Signals
) -> None:
    outcomes(verification, RIGHT)  # all are idle now
    references = [slot.worker.pid.remote() for slot in verification.slots]
    pids = cluster.gather(references, "asking for processes", 60)
    for pid in pids:
        os.kill(pid, number)
    try:
        found = outcomes(verification, *[RIGHT, WRONG] * 20)
    finally:
        for pid in pids:
            kill(pid)
    assert [outcome.success for outcome in found] == [True, False] * 20
    assert verification.report()["perf/verify_respawns"] == 2


def kill(pid: int) -> None:
    """Ends a process that may be gone."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def test_a_hung_response_is_masked_and_its_group_trains(verification: Verification) -> None:
    [verified] = verification.verify([group([RIGHT, "hang", WRONG, WRONG])])
    streams = token_streams(METHODS["vanilla"], [verified], None, CreditSettings())
    assert [bool(stream.advantages.any()) for stream in streams] == [True, False, True, True]


@pytest.mark.parametrize("handed_back", [False, True])
def test_verdicts_of_a_draw_that_is_given_up_are_thrown_away(verification: Verification, handed_back: bool) -> None:
    first = group([RIGHT, "hang", WRONG])
    for rollout in first.rollouts:
        verification.submit(first.prompt, rollout)
    verification.pump()
    verification.begin()
    if handed_back:  # a process that is at work on what nobody waits for is not asked anything else
        time.sleep(1.4 * HAND_BACK_S)
        verification.pump()
    again = replace(first, rollouts=tuple(replace(rollout, text=WRONG) for rollout in first.rollouts))
    [verified] = verification.verify([again])
    assert [outcome.status for outcome in verified.outcomes] == ["wrong"] * 3
    assert not verification.verdicts
    assert not any(name.startswith("reward/unknown") for name in verification.report())


def test_a_pool_that_cannot_start_says_why_and_ends() -> None:
    broken = pool(Stillborn, workers=1)
    with pytest.raises(cluster.WorkerError, match=f"(?s){MAX_FAILED_STARTS} verifier processes in a row.*no licence"):
        outcomes(broken, RIGHT)


def test_a_response_cut_at_the_limit_says_so(tmp_path: Path) -> None:
    file = tmp_path / "reward.py"
    file.write_text("def compute_score(data_source, solution_str, ground_truth, extra_info):\n    return extra_info\n")
    file.write_text(file.read_text().replace("extra_info\n", "{'score': extra_info['truncated'] + extra_info['a']}\n"))
    verification = pool(VerifierWorker, 1, CustomSettings(str(file), deadline_s=DEADLINE_S))
    waiting = group(["one", "two"], replace(PROMPT, data_source="nowhere", extra_info={"a": 2}))
    ended = tuple(
        replace(rollout, finish_reason=reason)
        for rollout, reason in zip(waiting.rollouts, ("stop", "length"), strict=True)
    )
    [verified] = verification.verify([replace(waiting, rollouts=ended)])
    assert [outcome.reward for outcome in verified.outcomes] == [2, 3]


def test_what_a_user_function_gets_wrong_is_counted_by_cause(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "reward.py"
    file.write_text(
        "import os, time\n"
        "def compute_score(data_source, solution_str, ground_truth, extra_info=None):\n"
        "    if solution_str == 'hang': time.sleep(600)\n"
        "    if solution_str == 'die': os._exit(1)\n"
        "    return {'nan': float('nan'), 'none': None, 'two': [1, 0], 'good': 0.5}[solution_str]\n"
    )
    verification = pool(VerifierWorker, 2, CustomSettings(str(file), deadline_s=DEADLINE_S))
    waiting = group(["good", "nan", "none", "two", "hang", "die", "error", "good"])
    with caplog.at_level("WARNING", logger="mopd"):
        [verified] = verification.verify([waiting])
    assert [outcome.reward for outcome in verified.outcomes] == [0.5, *[None] * 6, 0.5]
    figures = verification.report()
    counted = {cause: figures[f"reward/unknown_{cause}"] for cause in ("invalid", "deadline", "died", "error")}
    assert counted == {"invalid": 3, "deadline": 1, "died": 1, "error": 1}
    assert figures["perf/verify_respawns"] == 0, "the pool's own processes are none the worse"
    assert "KeyError: 'error'" in caplog.text
    assert "Traceback" in caplog.text
    assert caplog.text.count("has no verdict") == 4


def test_to_load_a_user_function_may_take_longer_than_a_verdict(tmp_path: Path) -> None:
    file = tmp_path / "reward.py"
    file.write_text(
        f"import time\ntime.sleep({3 * DEADLINE_S})\n"
        "def compute_score(data_source, solution_str, ground_truth, extra_info=None):\n    return 0.5\n"
    )
    verification = pool(VerifierWorker, 1, CustomSettings(str(file), deadline_s=DEADLINE_S))
    assert [outcome.reward for outcome in outcomes(verification, "one", "two")] == [0.5, 0.5]
    assert verification.report()["perf/verify_respawns"] == 0


def drawn(verification: Verification, spawn: Callable[[], Any], prompt: Prompt = PROMPT) -> tuple[Group, ...]:
    """Two groups of four, drawn by a `Decoder`."""
    sampling = StandingSampling(spawn, seed=0, deadline_s=60, verification=verification)
    sampling.version = 5  # the Decoder's
    asked = [Asked(f"{next(names)}", prompt, np.zeros(1, dtype=np.int32)) for _ in range(2)]
    return sampling.sample(asked, 4, SamplingSettings(1.0, 1.0, 16), [1])


def check_drawn(groups: Sequence[Group]) -> None:
    """Rollouts are in the order asked, whatever the order they came in, and so are their verdicts."""
    rollouts = [rollout for one in groups for rollout in one.rollouts]
    assert [int(rollout.token_ids[0]) for rollout in rollouts] == list(range(8))
    assert [rollout.rollout_id for rollout in rollouts] == [f"{one.uid}-{n}" for one in groups for n in range(4)]
    assert {rollout.policy_version for rollout in rollouts} == {5}
    assert [outcome.success for one in groups for outcome in one.outcomes] == [False, True] * 4


def test_responses_are_verified_while_others_are_decoded(verification: Verification, tmp_path: Path) -> None:
    """The second half is decoded only once the first is verified."""
    seen = str(tmp_path / "seen")
    spawn = partial(cluster.spawn, Decoder, num_cpus=0, num_gpus=0, seen=seen)
    check_drawn(verification.verify(drawn(verification, spawn, replace(PROMPT, extra_info={"seen": seen}))))


def test_after_the_death_of_a_sampler_all_is_asked_and_verified_again(
    verification: Verification, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spawn = partial(cluster.spawn, Decoder, num_cpus=0, num_gpus=0, mark=str(tmp_path / "mark"))
    with caplog.at_level("WARNING", logger="mopd"):
        groups = drawn(verification, spawn)
    assert "the sampler died; starting another (1 of 3)" in caplog.text
    check_drawn(verification.verify(groups))


def test_a_sampler_that_gives_nothing_more_ends_in_a_message(verification: Verification, tmp_path: Path) -> None:
    spawn = partial(cluster.spawn, Decoder, num_cpus=0, num_gpus=0, seen=str(tmp_path / "never"))
    sampling = StandingSampling(spawn, seed=0, deadline_s=30, verification=verification)
    sampling.describe()
    sampling.deadline_s, sampling.version = 1.0, 5
    with pytest.raises(cluster.DeadlineError, match=r"sampling rollouts: no answer within trainer.deadline_s=1 s"):
        sampling.sample([Asked("stuck", PROMPT, np.zeros(1, dtype=np.int32))], 4, SamplingSettings(1.0, 1.0, 16), [1])
    cluster.kill(sampling.slots[0].worker)


def test_the_queue_is_shared_out_in_parts(verification: Verification) -> None:
    waiting = group([RIGHT] * (3 * MOST_TOGETHER))
    outcomes(verification, RIGHT)
    for rollout in waiting.rollouts:
        verification.submit(waiting.prompt, rollout)
    verification.dispatch()
    assert [len(slot.call.jobs) for slot in verification.slots if slot.call] == [MOST_TOGETHER] * 2
    verification.verify([waiting])


CASES = [
    ("chain", RIGHT, PROMPT.ground_truth),
    ("chain", WRONG, PROMPT.ground_truth),
    ("sciknoweval", "<answer>B</answer>", "B"),
    ("sciknoweval", "B", "B"),
    ("math", r"\boxed{\frac{2}{4}}", r"\frac{1}{2}"),
    ("math", r"\boxed{(0, 1]}", r"[0, 1]"),
    (
        "tooluse",
        'Action: look\nAction Input: {"at": {"x": 1}}',
        '[{"Action": "look", "Action_Input": "{\\"at\\": {}}"}]',
    ),
    ("code", "```python\nprint(int(input()) + 1)\n```", '{"inputs": ["1"], "outputs": ["2"], "testtype": "stdin"}'),
    ("code", "```python\nwhile True: pass\n```", '{"inputs": ["1"], "outputs": ["2"], "testtype": "stdin"}'),
]


@pytest.mark.parametrize(("data_source", "response", "truth"), [one for one in CASES if verifier_of(one[0])])
def test_the_verdict_is_the_same_wherever_it_is_asked_for(
    patient: Verification, data_source: str, response: str, truth: str
) -> None:
    here = verify(data_source, response, truth)
    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(verify, data_source, response, truth).result() == here

    async def asked() -> Outcome:
        return verify(data_source, response, truth)

    assert asyncio.run(asked()) == here
    prompt = replace(PROMPT, data_source=data_source, ground_truth=truth)
    [verified] = patient.verify([group([response], prompt)])
    assert verified.outcomes == (here,)
