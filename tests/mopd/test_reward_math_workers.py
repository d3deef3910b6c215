"""Computer algebra in processes that can be killed: the same verdict from anywhere, and nobody waits for a bomb."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mopd.rewards import math_workers, settings
from mopd.rewards.math import check, verify
from mopd.rewards.settings import RewardSettings
from mopd.types import Outcome
from tests.mopd.test_reward_math import OTHER, SAME, boxed, hostile

RIGHT, WRONG = Outcome.of(True), Outcome.of(False)
PROC = Path("/proc")

# Pairs that neither text nor plain numbers decide.
ALGEBRA = [
    ("\\sqrt{2}", "\\sqrt2", True),
    ("2\\sqrt{3}", "\\sqrt{12}", True),
    ("x+1", "1+x", True),
    ("\\frac{\\pi}{4}", "\\pi/4", True),
    ("{1,2}", "2,1", True),
    ("1,2,3", "3, 2, 1", True),
    ("1<x<2", "(1,2)", True),
    ("(1,2)", "1<x<2", True),
    ("x>3", "(3,\\infty)", True),
    ("(-\\infty,1)\\cup(2,\\infty)", "(2,\\infty)\\cup(-\\infty,1)", True),
    ("3\\frac{1}{2}", "7/2", True),
    ("10^{10}", "10000000000", True),
    ("1/3", "0.333", False),
    ("1/3", "0.33333333", True),
    ("(1,2)", "(2,1)", False),
    ("[0,1)", "(0,1)", False),
    ("x=5", "y=5", False),
    ("1,2", "1", False),
    ("\\infty", "-\\infty", False),
    ("12", "1 2", False),
    ("5", "\\frac{1}{0}+1", False),
    ("5", "2+3=5", True),
    ("5", "a+b=5", True),
    ("5", "P(X=2)=5", True),
    ("5", "f(2)=5", True),
    ("5", "4+8=5", False),
    ("5", "x=2+3=5", True),
    ("12", "2^2\\cdot 3=12", True),
    ("3.33", "10/3=3.33", True),
    ("5", "5x=5", False),
    ("5", "-x=5", False),
    ("x=5", "5x=5", False),
    ("2", "2 log x", False),
    ("2516_8", "2516_{8}", True),
    ("5", "0=0", False),
    ("3", "__import__('os').system('touch breached')", False),
    ("3", "2^{1000000}", False),
    ("\\sqrt{2}", "9" * 512, False),
]
BOMBS = [
    "10^{10^{10}}",
    "((100!)!)!",
    "9^{9^{9^{9}}}",
    "3^{3^{20}}",
    "3^{3^{15}}",
    "2^{2^{32}}",
    "10^{10^9}+1",
    "(10^8)!",
    "\\binom{10^8}{10^7}",
    "0.1^{-10^{10}}",
    "\\log_{2}(3^{3^{20}})",
    "\\int_0^\\infty e^{-x^{x^x}}\\sin x^3\\,dx",
    "\\sum_{n=1}^{10^{12}} n^{-n}",
    "\\prod_{n=1}^{10^9} n",
    "\\lim_{x\\to0}\\frac{\\sin(\\tan x)-\\tan(\\sin x)}{x^7}",
    "\\sin^{20}x+\\cos^{20}x-\\tan^{20}x",
    "(x+y+z)^{200}+1",
    "{" * 250 + "}" * 250,
    "\\frac{1}{" * 50 + "2" + "}" * 50,
    "\\sqrt{" * 70 + "2" + "}" * 70,
    "(" * 250 + "1" + ")" * 250,
    "x^{" * 120 + "2" + "}" * 120,
    "-" * 500 + "1",
    "1+" * 250 + "1",
]


@pytest.fixture(autouse=True)
def _fresh() -> None:
    """Two workers, shared by the tests of this file unless one of them changes that."""
    if settings.current().workers != 2:
        math_workers.close()
        settings.configure(RewardSettings(workers=2))


@pytest.fixture(scope="module", autouse=True)
def _restored() -> Iterator[None]:
    before = settings.current()
    yield
    settings.configure(before)
    math_workers.close()


@pytest.fixture
def pool() -> Iterator[math_workers.Pool]:
    """A pool of one worker, started, for tests that do it harm."""
    pool = math_workers.Pool(1)
    pool.warm()
    yield pool
    pool.close()


def pid_of(pool: math_workers.Pool) -> int:
    worker = pool._free.get()
    pool._free.put(worker)
    assert worker is not None
    return worker.process.pid


def wait_for(condition, seconds: float = 30.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return bool(condition())


# ------------------------------------------------------------------ verdicts


@pytest.mark.parametrize(("gold", "answer", "right"), ALGEBRA)
def test_algebra_decides(gold: str, answer: str, right: bool) -> None:
    assert verify(boxed(answer), gold) == Outcome.of(right)
    assert not Path("breached").exists()


def test_a_ground_truth_must_equal_itself() -> None:
    for gold in [gold for gold, _ in SAME] + [gold for gold, *_ in ALGEBRA]:
        check(gold)
    for bad in ["\\frac{1}{", "\\begin{tabular}", "1 + + * 2"]:
        with pytest.raises(ValueError, match="cannot be read as mathematics"):
            check(bad)
        with pytest.raises(ValueError, match="cannot be read as mathematics"):
            verify(boxed("x+1"), bad)


def test_plain_ground_truths_and_answers_start_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(math_workers, "shared", lambda: pytest.fail("a process was asked"))
    check.cache_clear()
    for gold in ["7", "-7", "1,000", "0.25", "3/4", "\\frac{3}{4}", "50\\%", "5\\text{ cm}", "#### 12", "Monday"]:
        check(gold)
        assert verify(boxed(gold.removeprefix("#### ")), gold) == RIGHT
    for gold, answer in SAME + OTHER:
        verify(boxed(answer), gold)


@pytest.mark.parametrize("bomb", BOMBS[3:4])
def test_a_bomb_is_wrong_in_bounded_time(bomb: str) -> None:
    too_hard = math_workers.shared().counts["too_hard"]
    start = time.monotonic()
    assert verify(boxed(bomb), "\\sqrt{2}") == WRONG
    assert time.monotonic() - start < 60
    assert math_workers.shared().counts["too_hard"] == too_hard + 1


@pytest.mark.slow
@pytest.mark.parametrize("bomb", BOMBS)
def test_every_bomb_is_wrong_as_an_answer_and_bounded_as_a_ground_truth(bomb: str) -> None:
    start = time.monotonic()
    assert [verify(boxed(bomb), gold).reward for gold in ["3", "x+1"]] == [0.0, 0.0]
    with contextlib.suppress(ValueError):
        check(bomb)
    assert time.monotonic() - start < 120


# ------------------------------------------------------------------ from anywhere


def sample_verdicts() -> list[bool | None]:
    cases = [*ALGEBRA[::3], *((gold, answer, True) for gold, answer in SAME[::6])]
    return [verify(boxed(answer), gold).success for gold, answer, _ in cases]


def test_verdicts_are_the_same_from_main_thread_threads_asyncio_and_a_forked_process() -> None:
    expected = sample_verdicts()
    assert True in expected
    assert False in expected
    found: dict[str, list[bool | None]] = {}
    threads = [
        threading.Thread(target=lambda name=name: found.update({name: sample_verdicts()})) for name in ("one", "two")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    async def both() -> None:
        found["coroutine"] = sample_verdicts()
        found["executor"] = await asyncio.get_running_loop().run_in_executor(None, sample_verdicts)

    asyncio.run(both())
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    forked = context.Process(target=lambda: answers.put(sample_verdicts()))
    forked.start()
    found["forked"] = answers.get()
    forked.join()
    found["main again"] = sample_verdicts()
    assert found == dict.fromkeys(["one", "two", "coroutine", "executor", "forked", "main again"], expected)


def easy_while_bombs(easy: list[tuple[str, str]], bombs: list[str]) -> list[str]:
    """The order in which bombs in a row, in a thread, and easy comparisons in this one came to an end."""
    order: list[str] = []
    started = threading.Event()

    def explode() -> None:
        started.set()
        for bomb in bombs:
            verify(boxed(bomb), "\\sqrt{2}")
        order.append("bombs")

    thread = threading.Thread(target=explode)
    thread.start()
    started.wait()
    time.sleep(0.2)
    for gold, answer in easy:
        assert verify(boxed(answer), gold) == RIGHT
    order.append("easy")
    thread.join()
    return order


def test_a_bomb_delays_nobody_else() -> None:
    verify(boxed("\\sqrt2"), "\\sqrt{2}")
    plain = [(str(number), f"{number}.0") for number in range(180)]
    algebra = [(f"\\sqrt{{{number}}}", f"\\sqrt{{{number}}}+0") for number in range(20, 40)]
    assert easy_while_bombs(plain + algebra, ["3^{3^{20}}", "10^{10^{10}}"]) == ["easy", "bombs"]


def test_a_bomb_in_the_only_worker_delays_no_plain_answer() -> None:
    settings.configure(RewardSettings(workers=1))
    math_workers.close()
    plain = [(str(number), f"{number}.0") for number in range(200)]
    assert easy_while_bombs(plain, ["3^{3^{20}}"]) == ["easy", "bombs"]


# ------------------------------------------------------------------ when processes fail


def test_a_killed_worker_is_replaced_and_the_verdict_stands(pool: math_workers.Pool) -> None:
    first = pid_of(pool)
    os.kill(first, signal.SIGKILL)
    assert pool.compare("x+1", "1+x") == "right"
    assert pid_of(pool) != first
    assert pool.counts == {"right": 1, "lost": 1}


def test_a_worker_that_gets_no_processor_time_makes_no_answer_wrong(
    pool: math_workers.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.kill(pid_of(pool), signal.SIGSTOP)
    monkeypatch.setattr(math_workers, "SECONDS", 1.5)
    assert pool.compare("x+1", "1+x") == "right"
    assert pool.counts["lost"] == 1


def test_a_worker_that_hangs_is_killed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "busy.py"
    program.write_text("print('\"ready\"', flush=True)\ninput()\nwhile True: pass\n")
    monkeypatch.setattr(math_workers, "PROGRAM", program)
    monkeypatch.setattr(math_workers, "SECONDS", 1.5)
    monkeypatch.setattr(math_workers, "STARVED", 0.01)
    pool = math_workers.Pool(1)
    pool.warm()
    pid = pid_of(pool)
    assert pool.compare("x+1", "1+x") == "too_hard"
    assert not (PROC / str(pid)).exists()


@pytest.mark.parametrize(
    "program", ["print('\"No module named sympy\"')", "import os; os._exit(3)", "print('\"ready\"')"]
)
def test_where_comparing_does_not_work_the_outcome_is_unknown(
    program: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "broken.py").write_text(program)
    monkeypatch.setattr(math_workers, "PROGRAM", tmp_path / "broken.py")
    math_workers.close()
    try:
        outcome = verify(boxed("1+x"), "x+1")
        assert (outcome.status, outcome.reward) == ("unknown", None)
        assert "could not be compared" in outcome.feedback
        assert verify(boxed("7"), "7") == RIGHT
        with pytest.raises(math_workers.WorkerLost):
            check("x+1+0")
    finally:
        math_workers.close()


def test_workers_are_replaced_after_their_share_and_leave_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(math_workers, "CALLS", 2)
    pool = math_workers.Pool(1)
    pool.warm()
    before = len(os.listdir("/proc/self/fd"))
    first = pid_of(pool)
    assert [pool.compare("x+1", "1+x") for _ in range(5)] == ["right"] * 5
    assert pid_of(pool) != first
    assert not (PROC / str(first)).exists()
    assert len(os.listdir("/proc/self/fd")) == before
    pool.close()
    assert len(os.listdir("/proc/self/fd")) == before - 2


def test_a_worker_ends_when_its_parent_is_killed() -> None:
    code = (
        "import os, signal\nfrom mopd.rewards import math_workers\npool = math_workers.shared()\npool.warm()\n"
        "print(pool._free.get().process.pid, flush=True)\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == -signal.SIGKILL
    assert wait_for(lambda: not (PROC / run.stdout.strip()).exists())


def test_a_worker_is_limited_and_knows_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "secret")
    pool = math_workers.Pool(1)
    pool.warm()
    home = PROC / str(pid_of(pool))
    limit = next(line for line in (home / "limits").read_text().splitlines() if line.startswith("Max address space"))
    assert limit.split()[3] == str(2 << 30)
    assert b"SOME_API_KEY" not in (home / "environ").read_bytes()
    pool.close()


def test_random_answers_break_nothing() -> None:
    generator = random.Random(1)
    for _ in range(150):
        assert verify(boxed(hostile(generator)), "\\sqrt{2}").reward == 0.0


@pytest.mark.slow
def test_ten_thousand_random_answers_break_nothing() -> None:
    generator = random.Random(2)
    outcomes = [verify(boxed(hostile(generator)), "\\sqrt{2}") for _ in range(10_000)]
    assert {outcome.reward for outcome in outcomes} == {0.0}
    assert math_workers.shared().counts["lost"] == 0
