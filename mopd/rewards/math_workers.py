"""Processes that compare mathematical answers, each of which can be killed without harm to anybody else.

Computer algebra on text that a model wrote may run for ever inside one machine instruction of the interpreter, where
neither threads nor timers help. So it runs elsewhere: a pool of processes with pipes, one request at a time in each.
Nothing is unpickled. The pool is made on first need, works from any thread, and a forked process makes its own.
"""

from __future__ import annotations

import atexit
import json
import os
import queue
import select
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Literal, cast, get_args

from mopd.rewards import settings

Verdict = Literal["right", "wrong", "unparsable", "bad_gold", "too_hard"]

PROGRAM = Path(__file__).with_name("math_worker.py")
SECONDS = 4.0
"""For one comparison by the clock, after which its process is killed; its own limit is on processor time."""
START_SECONDS = 120.0
"""For a process to be ready: the imports take half a second, and long on a machine that is busy."""
CALLS = 1000
"""Comparisons of one process: caches of computer algebra only grow."""
STARVED = 0.5
"""Seconds of processor time below which a comparison that was killed was not too hard: it did not get to work."""
ENVIRONMENT = ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV")
"""What a process inherits: enough to find the same libraries, and no secret."""


class WorkerLost(Exception):
    """The process could not be started, ended, or got no processor time: no fault of the answers."""


class Worker:
    """One comparing process.

    Raises:
        WorkerLost: it does not start.
    """

    def __init__(self) -> None:
        environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
        # -P: the folder of the program, with its math.py, must not come before the standard library.
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(PROGRAM), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment | {"OMP_NUM_THREADS": "1"},
            bufsize=0,
            start_new_session=True,  # an interrupt from the keyboard is for the process that asks
        )
        self.calls = 0
        try:
            line = self._line(START_SECONDS)
        except BaseException:
            self.close()
            raise
        if line != "ready":
            self.close()
            raise WorkerLost(f"math-verify does not work in {sys.executable}: {line or 'it did not get ready in time'}")

    def ask(self, gold: str, answer: str) -> Verdict:
        """The verdict on two answers; `too_hard` after `SECONDS`.

        Raises:
            WorkerLost: the process ended, or was given no processor time.
        """
        assert self.process.stdin is not None
        self.calls += 1
        used = self._processor_seconds()
        try:
            self.process.stdin.write(json.dumps([gold, answer]).encode("ascii") + b"\n")
        except OSError as error:
            raise WorkerLost(f"a comparing process ended before it was asked: {error}") from error
        reply = self._line(SECONDS)
        if not reply:
            worked = self._processor_seconds() - used
            if worked < STARVED:
                raise WorkerLost(f"a comparison got {worked:.2f} s of processor time in {SECONDS:.1f} s")
            return "too_hard"
        if reply not in get_args(Verdict):
            raise WorkerLost(f"a comparing process said {reply!r}")
        return cast(Verdict, reply)

    def _line(self, seconds: float) -> str:
        """The next reply; empty when there is none in time."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + seconds
        received = b""
        poll = select.poll()
        poll.register(self.process.stdout, select.POLLIN)
        while not received.endswith(b"\n"):
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                return ""
            arrived = os.read(self.process.stdout.fileno(), 1 << 16)
            if not arrived:
                raise WorkerLost(f"a comparing process ended with status {self.process.wait()}")
            received += arrived
        return str(json.loads(received))

    def _processor_seconds(self) -> float:
        """Processor time that the process has used; the clock where this cannot be read."""
        try:
            fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return time.monotonic()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        """Kills the process and waits until it is gone."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


class Pool:
    """`size` comparing processes, each started when it is first needed and replaced when it was killed or is old."""

    def __init__(self, size: int) -> None:
        self.counts: Counter[str] = Counter()
        """How often each verdict was given, and `lost` for processes that were."""
        self._free: queue.LifoQueue[Worker | None] = queue.LifoQueue()
        for _ in range(max(1, size)):
            self._free.put(None)

    def compare(self, gold: str, answer: str) -> Verdict:
        """The verdict on two answers, in LaTeX without delimiters; waits while all processes are at work.

        Raises:
            WorkerLost: the process was lost twice in a row, for no fault of the answers.
        """
        try:
            verdict = self._once(gold, answer)
        except WorkerLost:
            self.counts["lost"] += 1
            verdict = self._once(gold, answer)
        self.counts[verdict] += 1
        return verdict

    def _once(self, gold: str, answer: str) -> Verdict:
        worker = self._free.get()
        keep = False
        try:
            worker = worker or Worker()
            verdict = worker.ask(gold, answer)
            # A comparison that was cut short may have left anything behind.
            keep = verdict != "too_hard" and worker.calls < CALLS
            return verdict
        finally:
            if worker is not None and not keep:
                worker.close()
            self._free.put(worker if keep else None)

    def warm(self) -> None:
        """Starts one process now, so that the first comparison need not wait for it.

        Raises:
            WorkerLost: it does not start.
        """
        worker = self._free.get()
        try:
            worker = worker or Worker()
        finally:
            self._free.put(worker)

    def close(self) -> None:
        """Ends the processes that are not at work; others end with this one."""
        for _ in range(self._free.qsize()):
            worker = self._free.get()
            if worker is not None:
                worker.close()
            self._free.put(None)


_lock = threading.Lock()
_pool: Pool | None = None


def shared() -> Pool:
    """The pool of this process, of `settings.current().workers` processes; made on the first call."""
    global _pool
    with _lock:
        if _pool is None:
            _pool = Pool(settings.current().workers)
        return _pool


def close() -> None:
    """Ends the pool of this process; the next comparison makes a new one, as the settings then say."""
    global _pool
    with _lock:
        pool, _pool = _pool, None
    if pool is not None:
        pool.close()


def _forget() -> None:
    """In a forked process: pipes and locks are its parent's, who goes on using them."""
    global _pool, _lock
    _pool, _lock = None, threading.Lock()


os.register_at_fork(after_in_child=_forget)
atexit.register(close)
