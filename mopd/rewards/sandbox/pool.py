"""The outside of the sandbox: starts the processes that programs are forked from, and reads what programs leave."""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any

from mopd.rewards.sandbox import tiers, values
from mopd.rewards.sandbox.launch import Lost, Zygote
from mopd.rewards.sandbox.types import PATIENCE, Job, Limits, Result, SandboxError, Status
from mopd.rewards.settings import RewardSettings, current

_GRACE_S = 10.0
"""Seconds beyond the limits of both attempts, after which a zygote counts as lost."""
_ATTEMPTS = 3
_STDERR_BYTES = 64 << 10


class Sandbox:
    """Runs programs, as many at once as there are workers; further calls wait for their turn.

    It may be used from any thread. A forked process gets zygotes of its own at its first call.
    """

    def __init__(self, settings: RewardSettings | None = None) -> None:
        """Chooses the tier; zygotes start with the first programs.

        Raises:
            SandboxError: the machine offers no isolation, and programs may not run without.
        """
        self.settings = current() if settings is None else settings
        self.tier = tiers.choose(self.settings)
        self._closed = False
        self._open()
        _sandboxes.add(self)

    def _open(self) -> None:
        self._slots: list[list[Zygote]] = [[] for _ in range(self.settings.workers)]
        self._idle: queue.LifoQueue[list[Zygote]] = queue.LifoQueue()
        for slot in self._slots:
            self._idle.put(slot)

    def __enter__(self) -> Sandbox:
        """The sandbox itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes it."""
        self.close()

    def close(self) -> None:
        """Ends all zygotes and programs; a call under way gets `infra`."""
        self._closed = True
        for slot in self._slots:
            self._drop(slot)

    def processes(self) -> list[int]:
        """The ids of its zygotes, for tests and for whoever looks after the machine."""
        return [zygote.process.pid for slot in self._slots for zygote in slot]

    def after_fork(self) -> None:
        """Leaves the zygotes to the parent process; called in a forked child."""
        for zygote in (zygote for slot in self._slots for zygote in slot):
            zygote.forget()
        self._open()

    def run(
        self, source: str | bytes, jobs: Sequence[Job], limits: Limits, stop_at_first_failure: bool = False
    ) -> list[Result]:
        """Runs a program once for each job, one after another, each time from its beginning.

        Args:
            source: the program.
            jobs: what to run it on.
            limits: for each run.
            stop_at_first_failure: leaves out the jobs after the first whose status is not `ok`.

        Returns:
            One result for each job that ran.

        Raises:
            SandboxError: the sandbox is closed or does not start.
        """
        results: list[Result] = []
        with self._slot() as slot, _memory(_bytes(source)) as program:
            for job in jobs:
                results.append(self._attempt(slot, functools.partial(_run, program=program, job=job, limits=limits)))
                if stop_at_first_failure and results[-1].status != "ok":
                    break
        return results

    def pair(self, program: str | bytes, tests: str | bytes, names: Sequence[str], limits: Limits) -> Result:
        """Runs tests against a program that never sees them: each runs in a process of its own.

        In the tests, the program's functions `names` send their arguments to the program and give back a copy of
        what it returned, of plain types only: None, bool, int, float, complex, str, bytes, list, tuple, set,
        frozenset, dict and its views, range, deque, and iterators, which are read to their end. An exception
        arrives as one of the same built-in type, else as RuntimeError. Lists, sets and dicts that a function changed
        are changed, if it returned None.

        Returns:
            The status is `ok` where the tests ended without an exception; standard output and error are the
            program's, for those of the tests could tell what they expect.

        Raises:
            SandboxError: the sandbox is closed or does not start.
        """
        with self._slot() as slot, _memory(_bytes(program)) as source, _memory(_bytes(tests)) as checks:
            work = functools.partial(_run_pair, source=source, checks=checks, names=list(names), limits=limits)
            return self._attempt(slot, work)

    @contextlib.contextmanager
    def _slot(self) -> Iterator[list[Zygote]]:
        """Waits for a turn; a list of the zygote to use, empty where one is to be started."""
        idle = self._idle
        slot = idle.get()
        try:
            yield slot
        finally:
            if self._closed:  # perhaps only since the zygote in there was started
                self._drop(slot)
            idle.put(slot)

    def _attempt(self, slot: list[Zygote], work: Callable[[Zygote], Result]) -> Result:
        """Does work on the zygote in `slot`, on a fresh one where it is lost."""
        start = time.monotonic()
        for _ in range(_ATTEMPTS):
            zygote = self._started(slot)
            try:
                return work(zygote)
            except Lost as error:
                self._drop(slot)
                reason = str(error)
            except BaseException:  # an interrupt: its answer would be taken for that of the next request
                self._drop(slot)
                raise
        return Result("infra", None, b"", reason.encode(), None, 0.0, time.monotonic() - start)

    def _started(self, slot: list[Zygote]) -> Zygote:
        if self._closed:
            raise SandboxError("this sandbox is closed")
        if not slot:
            slot.append(Zygote(self.tier))
        return slot[0]

    def _drop(self, slot: list[Zygote]) -> None:
        with contextlib.suppress(IndexError):  # another thread closes the sandbox
            slot.pop().close()


def _bytes(source: str | bytes) -> bytes:
    return source if isinstance(source, bytes) else source.encode(errors="surrogatepass")


def _ask(zygote: Zygote, fds: list[int], limits: Limits, **what: Any) -> dict[str, Any]:
    """Sends a request.

    Raises:
        Lost: the zygote is lost, or the program never began.
    """
    request = {
        "names": None,
        "cpu": limits.cpu_s,
        "wall": limits.wall,
        "longest": PATIENCE * limits.wall,
        "memory": limits.memory_bytes,
        "output": limits.output_bytes,
        "processes": limits.processes,
    }
    answer = zygote.ask(request | what, fds, 2 * PATIENCE * limits.wall + _GRACE_S)
    if not answer["ready"]:
        raise Lost("the program could not be started")
    return answer


def _run(zygote: Zygote, program: int, job: Job, limits: Limits) -> Result:
    """One run on a zygote."""
    has_call = job.call is not None
    call = json.dumps(vars(job.call) if has_call else None).encode()
    with contextlib.ExitStack() as stack:
        given = [stack.enter_context(_memory(content)) for content in (job.stdin, b"", b"", b"", call)]
        answer = _ask(zygote, [program, *given], limits, link=has_call)
        text = values.checked_json(_content(given[3], limits.output_bytes + 1)) if has_call else None
        return _result(answer, limits, given[1], given[2], text, needs_value=has_call)


def _run_pair(zygote: Zygote, source: int, checks: int, names: list[str], limits: Limits) -> Result:
    """One run of tests on a zygote."""
    with _memory() as stdout, _memory() as stderr:
        answer = _ask(zygote, [source, checks, stdout, stderr], limits, names=names, link=True)
        return _result(answer, limits, stdout, stderr, None, needs_value=False)


def _result(
    answer: dict[str, Any], limits: Limits, stdout: int, stderr: int, value: str | None, needs_value: bool
) -> Result:
    errors = _content(stderr, _STDERR_BYTES, tail=True)
    status = _status(answer, limits, os.fstat(stdout).st_size, errors)
    if status == "ok" and needs_value and value is None:
        status = "error"
    code = answer["exit"] if answer["ended"] == "itself" else None
    output = _content(stdout, limits.output_bytes)
    return Result(status, code, output, errors, value, answer["cpu"], answer["wall"])


def _status(answer: dict[str, Any], limits: Limits, size: int, errors: bytes) -> Status:
    if answer["ended"] != "itself" or answer["cpu"] > limits.cpu_s:
        return "timeout"
    if size >= limits.output_bytes:
        return "output"
    if answer["exit"] == 0:
        return "ok"
    last = errors.rstrip().rpartition(b"\n")[2].partition(b":")[0]
    return "memory" if last.endswith(b"MemoryError") else "error"


@contextlib.contextmanager
def _memory(content: bytes = b"") -> Iterator[int]:
    """A file in memory with some content, read from its beginning."""
    fd = os.memfd_create("mopd", os.MFD_CLOEXEC)
    try:
        written = 0
        while written < len(content):
            written += os.pwrite(fd, memoryview(content)[written:], written)
        yield fd
    finally:
        os.close(fd)


def _content(fd: int, limit: int, tail: bool = False) -> bytes:
    """The first, or last, bytes of a file in memory."""
    size = os.fstat(fd).st_size
    return os.pread(fd, limit, max(0, size - limit) if tail else 0)


# ------------------------------------------------------------------ one for the process

_sandboxes: weakref.WeakSet[Sandbox] = weakref.WeakSet()
_shared: Sandbox | None = None
_lock = threading.Lock()


def shared() -> Sandbox:
    """The sandbox of this process, made at the first call from the settings in effect then.

    Raises:
        SandboxError: the machine offers no isolation, and programs may not run without.
    """
    global _shared
    with _lock:
        if _shared is None:
            _shared = Sandbox()
            atexit.register(_shared.close)
        return _shared


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()
    for sandbox in list(_sandboxes):
        sandbox.after_fork()


os.register_at_fork(after_in_child=_after_fork)
