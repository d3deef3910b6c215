"""The outside of the sandbox: limits, lost zygotes, threads, forks, ends, and nothing that grows."""

import asyncio
import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mopd.rewards import sandbox as package
from mopd.rewards.sandbox import Call, Job, Limits, Sandbox, SandboxError, launch, pool, probe, tiers
from mopd.rewards.settings import RewardSettings, configure, current
from tests.mopd.sandbox.world import GENEROUS, LIMITS, descendants

SOURCE = "import sys\nprint(sum(map(int, sys.stdin)))"
PATIENCE_S = 30


def told(sandbox):
    """All of a result that does not depend on the clock."""
    (result,) = sandbox.run(SOURCE, [Job(b"1\n2\n")], GENEROUS)
    return result.status, result.exit_code, result.stdout, result.stderr, result.value


RIGHT = ("ok", 0, b"3\n", b"", None)


def until(condition):
    """Waits until something holds."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# ------------------------------------------------------------------ results


@pytest.mark.parametrize(
    ("source", "status", "code"),
    [
        ("while True: pass", "timeout", None),
        ("x = bytearray(1 << 36)", "memory", 1),
        ("import numpy\nnumpy.ones(1 << 36)", "memory", 1),
        ("while True: print('x' * 1000)", "output", 1),
        ("1 / 0", "error", 1),
        ("raise SystemExit(3)", "error", 3),
        ("import os; os.abort()", "error", -signal.SIGABRT),
        ("x = ", "error", 1),
        ("import sys; sys.exit('no')", "error", 1),
        ("import sys; sys.exit(0)", "ok", 0),
    ],
)
def test_how_a_run_ended(sandbox, source, status, code):
    (result,) = sandbox.run(source, [Job()], LIMITS)
    assert (result.status, result.exit_code) == (status, code)


def test_processor_time_is_what_counts(sandbox):
    (result,) = sandbox.run("while True: pass", [Job()], Limits(cpu_s=0.3, wall_s=60))
    assert result.status == "timeout"
    assert 0.3 <= result.cpu_s < 2
    (result,) = sandbox.run("import time; time.sleep(0.5); print(1)", [Job()], Limits(cpu_s=0.3, wall_s=60))
    assert result.status == "ok"


def test_whoever_only_waits_gets_a_second_chance(sandbox):
    start = time.monotonic()
    (result,) = sandbox.run("import time; print(1, flush=True); time.sleep(60)", [Job()], Limits(cpu_s=5, wall_s=0.3))
    assert result.status == "timeout"
    assert result.stdout == b"1\n"
    assert 0.6 <= time.monotonic() - start < 30


def test_a_program_at_work_has_longer(sandbox):
    """It uses a fifth of a processor, as if it had to share it."""
    source = """
import time
for _ in range(10):
    begun = time.process_time()
    while time.process_time() - begun < 0.02: pass
    time.sleep(0.08)
print(3)
"""
    (result,) = sandbox.run(source, [Job()], Limits(cpu_s=5, wall_s=0.4))
    assert (result.status, result.stdout) in [("ok", b"3\n"), ("timeout", b"")]
    assert result.wall_s >= 0.8
    (result,) = sandbox.run("while True: pass", [Job()], Limits(cpu_s=60, wall_s=0.1))
    assert result.status == "timeout"


def test_the_traceback_tells_of_the_program_alone(sandbox):
    (result,) = sandbox.run("def f():\n    return 1 / 0\nf()\n", [Job()], LIMITS)
    lines = result.stderr.decode().splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert [line.strip() for line in lines if "File" in line] == [
        'File "solution.py", line 3, in <module>',
        'File "solution.py", line 2, in f',
    ]
    assert "    return 1 / 0" in lines
    assert lines[-1] == "ZeroDivisionError: division by zero"


def test_the_end_of_long_errors_is_kept(sandbox):
    (result,) = sandbox.run("import sys\nsys.stderr.write('x' * 100000 + 'end'); sys.exit(1)", [Job()], LIMITS)
    assert len(result.stderr) == 64 << 10
    assert result.stderr.endswith(b"xend")


def test_jobs_are_apart_and_in_order(sandbox):
    source = "import builtins\nassert not hasattr(builtins, 'x')\nbuiltins.x = 1\nprint(10 // int(input()))"
    results = sandbox.run(source, [Job(b"1"), Job(b"0"), Job(b"2")], GENEROUS)
    assert [(result.status, result.stdout) for result in results] == [("ok", b"10\n"), ("error", b""), ("ok", b"5\n")]
    results = sandbox.run(source, [Job(b"1"), Job(b"0"), Job(b"2")], GENEROUS, stop_at_first_failure=True)
    assert [result.status for result in results] == ["ok", "error"]
    assert sandbox.run(source, [], GENEROUS) == []


def test_a_program_sees_next_to_nothing(sandbox):
    source = """
import os, sys, json
def opens(path):
    try: return bool(os.open(path, os.O_RDONLY)) if not os.path.isdir(path) else bool(os.listdir(path))
    except OSError: return False
fds = [fd for fd in range(3, 1024) if os.path.exists(fd)]
paths = ["/proc/self/status", "/proc", "/sys", "/etc/passwd", "/root", "/home", "/tmp", os.getcwd(), "/etc/hostname"]
print(json.dumps([dict(os.environ), fds, [path for path in paths if opens(path)], sys.argv, sys.flags.isolated]))
"""
    (result,) = sandbox.run(source, [Job()], GENEROUS)
    environment, fds, opened, arguments, isolated = json.loads(result.stdout)
    assert (environment, fds, arguments, isolated) == ({}, [], ["solution.py"], 1)
    if sandbox.tier == 1:  # its own /root and /tmp hold the way to the interpreter, if anything
        opened = [path for path in opened if path not in ("/root", "/tmp", "/home")]
    assert opened == []


# ------------------------------------------------------------------ lost zygotes


def test_a_killed_zygote_is_replaced(sandbox):
    assert told(sandbox) == RIGHT
    (zygote,) = sandbox.processes()
    os.kill(zygote, signal.SIGKILL)
    assert told(sandbox) == RIGHT
    assert sandbox.processes() != [zygote]


def test_a_zygote_killed_during_a_run_changes_no_verdict(sandbox):
    assert told(sandbox) == RIGHT
    (zygote,) = sandbox.processes()
    family = descendants(zygote)
    killer = threading.Timer(0.2, os.kill, (zygote, signal.SIGKILL))
    killer.start()
    (result,) = sandbox.run("import time; time.sleep(0.6); print(3)", [Job()], GENEROUS)
    killer.join()
    assert (result.status, result.stdout) == ("ok", b"3\n")
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in family))


def test_a_stopped_zygote_is_replaced(sandbox, monkeypatch):
    assert told(sandbox) == RIGHT
    monkeypatch.setattr(pool, "_GRACE_S", 0.5)
    (zygote,) = sandbox.processes()
    os.kill(zygote, signal.SIGSTOP)
    for pid in descendants(zygote):
        os.kill(pid, signal.SIGSTOP)
    (result,) = sandbox.run(SOURCE, [Job(b"1\n2\n")], Limits(cpu_s=5, wall_s=0.3))
    assert (result.status, result.stdout) == ("ok", b"3\n")
    assert sandbox.processes() != [zygote]


def test_what_always_fails_is_no_verdict(sandbox, monkeypatch):
    attempts = []

    def lose(self, *_):
        attempts.append(self)
        raise launch.Lost("gone")

    with monkeypatch.context() as patch:
        patch.setattr(launch.Zygote, "ask", lose)
        (result,) = sandbox.run(SOURCE, [Job()], LIMITS)
    assert (result.status, result.exit_code, result.stdout) == ("infra", None, b"")
    assert len(attempts) == 3
    assert told(sandbox) == RIGHT


def test_an_interrupted_call_leaves_no_answer_behind(sandbox, monkeypatch):
    def interrupt(self, *_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(launch.Zygote, "_receive", interrupt)
        with pytest.raises(KeyboardInterrupt):
            sandbox.run("print('stale')", [Job()], LIMITS)
    assert told(sandbox) == RIGHT


# ------------------------------------------------------------------ where it is called from


def test_threads_and_asyncio_get_the_same(sandbox):
    async def from_loop():
        loop = asyncio.get_running_loop()
        return await asyncio.gather(*(loop.run_in_executor(None, told, sandbox) for _ in range(4)))

    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(told, [sandbox] * 8))
    assert {*results, *asyncio.run(from_loop())} == {RIGHT}
    assert len(sandbox.processes()) == 1


def test_a_forked_process_gets_its_own(sandbox):
    assert told(sandbox) == RIGHT
    (zygote,) = sandbox.processes()
    child = os.fork()
    if child == 0:
        is_right = told(sandbox) == RIGHT and sandbox.processes() != [zygote]
        sandbox.close()
        os._exit(0 if is_right else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert told(sandbox) == RIGHT
    assert sandbox.processes() == [zygote]


def test_no_more_programs_at_once_than_workers():
    with Sandbox(RewardSettings(workers=2)) as two, ThreadPoolExecutor(6) as threads:
        two.run("", [Job()], GENEROUS)
        start = time.monotonic()
        list(threads.map(lambda _: two.run("import time; time.sleep(0.2)", [Job()], GENEROUS), range(6)))
        assert time.monotonic() - start >= 0.6
        assert len(two.processes()) <= 2


@pytest.mark.parametrize("tier", [1, 2])
def test_zygotes_end_with_a_killed_parent(tier, root):
    if tier < probe().tier:
        pytest.skip(probe().reason)
    script = f"""
import sys, time
from mopd.rewards.sandbox import Job, Limits, Sandbox
from mopd.rewards.settings import RewardSettings
sandbox = Sandbox(RewardSettings(sandbox_tier={tier}))
sandbox.run("", [Job()], Limits())
print(*sandbox.processes(), flush=True)
sandbox.run("import time; time.sleep(1000)", [Job()], Limits(cpu_s=1000))
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=root, text=True) as parent:
        zygote = int(parent.stdout.readline())
        until(lambda: len(descendants(zygote)) == (3 if tier == 1 else 2))  # the program runs
        family = descendants(zygote)
        parent.kill()
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in family))


def test_an_ordinary_account_has_a_sandbox_too(root):
    if os.geteuid() != 0:
        pytest.skip("these tests are no root, so all others show it already")
    account = {"user": 12345, "group": 12345, "extra_groups": []}
    site = launch.interpreter()["site"]
    script = """
from mopd.rewards.sandbox import *
from mopd.rewards.settings import RewardSettings
for tier in range(probe().tier, 3):
    with Sandbox(RewardSettings(sandbox_tier=tier)) as sandbox:
        print(sandbox.run("print(sum(map(int, open(0))))", [Job(b"1\\n2\\n")], Limits(cpu_s=10))[0].stdout)
"""
    for python in (sys.executable, "/usr/bin/python3"):
        command = [python, "-B", "-c", script]
        try:
            done = subprocess.run(
                command, **account, cwd="/", env={"PYTHONPATH": f"{root}:{site}"}, capture_output=True, text=True
            )
        except PermissionError:
            continue
        if "ModuleNotFoundError" in done.stderr or "SyntaxError" in done.stderr:
            continue  # a Python of another version, or files that this account cannot read
        assert done.returncode == 0, done.stderr
        assert set(done.stdout.splitlines()) == {"b'3\\n'"}
        return
    pytest.skip("no Python here that an ordinary account can run this with")


# ------------------------------------------------------------------ ends, refusals, growth


def test_a_closed_sandbox_refuses_and_leaves_no_process():
    made = Sandbox(RewardSettings())
    assert told(made) == RIGHT
    (zygote,) = made.processes()
    family = descendants(zygote)
    made.close()
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in family))
    with pytest.raises(SandboxError, match="closed"):
        made.run(SOURCE, [Job()], LIMITS)


def test_closing_while_a_zygote_starts_leaves_no_process(monkeypatch):
    made = Sandbox(RewardSettings())
    original = pool.Zygote

    def closes_meanwhile(*arguments, **kwargs):
        made.close()
        return original(*arguments, **kwargs)

    monkeypatch.setattr(pool, "Zygote", closes_meanwhile)
    assert made.run("print(1)", [Job()], LIMITS)[0].status == "ok"
    assert made.processes() == []


def test_isolation_that_lets_programs_read_takes_the_users_word(monkeypatch):
    monkeypatch.setattr(tiers, "probe", lambda: tiers.Probe(3, "tier 3", 0, {}))
    with pytest.raises(SandboxError, match=r"reward\.sandbox_tier=3 accepts"):
        tiers.choose(RewardSettings())
    assert tiers.choose(RewardSettings(sandbox_tier=3)) == 3
    assert tiers.choose(RewardSettings(allow_unsandboxed=True)) == 3


def test_no_isolation_is_refused_unless_allowed():
    with pytest.raises(SandboxError, match=r"reward\.allow_unsandboxed=true"):
        Sandbox(RewardSettings(sandbox_tier=4))
    with pytest.raises(SandboxError, match=r"reward\.sandbox_tier"):
        Sandbox(RewardSettings(sandbox_tier=5))
    with Sandbox(RewardSettings(sandbox_tier=4, allow_unsandboxed=True)) as made:
        assert told(made) == RIGHT
        assert made.run("while True: pass", [Job()], LIMITS)[0].status == "timeout"


def test_a_machine_without_isolation_says_what_is_missing(monkeypatch):
    def fail(tier, preload=True):
        raise SandboxError(f"tier {tier}: unshare: Operation not permitted")

    monkeypatch.setattr("mopd.rewards.sandbox.tiers.Zygote", fail)
    probe.cache_clear()
    try:
        assert probe().tier == 4
        assert set(probe().missing) == {1, 2, 3}
        with pytest.raises(SandboxError, match="unshare"):
            Sandbox(RewardSettings())
    finally:
        probe.cache_clear()


def test_the_shared_sandbox_follows_the_settings(monkeypatch):
    before = current()
    monkeypatch.setattr(pool, "_shared", None)
    configure(RewardSettings(sandbox_tier=2 if 2 not in probe().missing else None))
    try:
        made = package.shared()
        assert package.shared() is made
        assert made.tier == (2 if 2 not in probe().missing else probe().tier)
        made.close()
    finally:
        configure(before)


def memory_of(pids):
    """KiB in memory that is not shared with others."""
    texts = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in pids]
    return sum(int(line.split()[1]) for text in texts for line in text.splitlines() if line.startswith("Private_Dirty"))


@pytest.mark.parametrize("runs", [63, pytest.param(5000, marks=pytest.mark.slow)])
def test_nothing_grows(sandbox, runs):
    jobs = [Job(b"1\n2\n")] * 20 + [Job(call=Call("f", "[]"))]

    def work(count):
        for _ in range(count // 21):
            sandbox.run(SOURCE, jobs, GENEROUS)

    work(42)
    gc.collect()
    (zygote,) = sandbox.processes()
    family = descendants(zygote) - {zygote} or {zygote}
    watched = [os.getpid(), *family]
    open_to_us = [pid for pid in watched if os.access(f"/proc/{pid}/fd", os.R_OK)]  # all of them, as root
    files = [len(os.listdir(f"/proc/{pid}/fd")) for pid in open_to_us]
    memory = memory_of(watched)
    work(runs)
    gc.collect()
    assert sandbox.processes() == [zygote]
    assert [len(os.listdir(f"/proc/{pid}/fd")) for pid in open_to_us] == files
    assert memory_of(watched) < memory + 2048
