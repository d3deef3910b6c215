"""The process that programs are forked from: isolated once, warm with common imports, then one fork per run.

It is started by `pool` as a Python of its own, with an empty environment and one descriptor: the control
socket. A request is a JSON text with descriptors for source, standard input, output, error and the value of a
call; the answer tells how the process ended. At tier 1 it is the first process of its process-id namespace:
no signal from inside reaches it, and its end is the end of everything in there.
"""

from __future__ import annotations

import contextlib
import gc
import json
import math
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

from mopd.rewards.sandbox import filters, kernel, pairs, program, rooms

CONTROL = 3
"""The descriptor of the control socket, here and in no program."""
_LINK, _READY = 3, 4
_HIGHEST = 1 << 20
_AT_WORK = 0.05
"""The share of a processor above which a program counts as at work."""
_PRELOADED = """abc array bisect builtins cmath collections contextlib copy dataclasses datetime decimal enum fractions
functools heapq io itertools json math operator os pprint queue random re statistics string struct sys textwrap
threading time traceback types typing"""


def main(descriptor: int, settings: dict[str, Any]) -> None:
    """Isolates this process, says hello and serves until the other end closes.

    Args:
        descriptor: the control socket.
        settings: `tier`; `paths`, the directories that the interpreter and its packages need; `site`, the
            directory of packages or None; `preload`, whether to import the common ones now.
    """
    os.dup2(descriptor, CONTROL, inheritable=False)
    os.closerange(CONTROL + 1, _HIGHEST)
    control = socket.socket(fileno=CONTROL)
    try:
        if settings["tier"] < 4:
            kernel.check_filters()
            filters.build(os.uname().machine, 0, settings["tier"] == 3)  # children find it in memory
        ruleset = rooms.isolate(settings["tier"], settings["paths"], settings["site"])
        hello: dict[str, Any] = {"landlock": kernel.landlock_version(), "error": None}
    except OSError as error:
        control.send(json.dumps({"error": str(error)}).encode())
        return
    prepare(settings["site"], settings["preload"])
    control.send(json.dumps(hello).encode())
    while request := receive(control):
        control.send(json.dumps(answer(request[0], request[1], settings["tier"], ruleset)).encode())
        for fd in request[1]:
            os.close(fd)


def prepare(site: str | None, preload: bool) -> None:
    """Imports what programs commonly use, and removes what is ours from their sight."""
    builtin_names = __import__("_sitebuiltins")
    for name in ("exit", "quit"):
        setattr(sys.modules["builtins"], name, builtin_names.Quitter(name, "Ctrl-D (i.e. EOF)"))
    names = _PRELOADED.split() if preload else []
    if site is not None:
        sys.path.append(site)
        names += ["numpy"] if preload else []
    for name in names:
        try:
            __import__(name)
        except ImportError:
            continue
    os.environ.clear()
    sys.argv[:] = ["solution.py"]
    for name in [name for name in sys.modules if name.startswith("mopd")]:
        del sys.modules[name]
    gc.collect()
    gc.freeze()  # a child's collections then leave these objects, and the memory shared with it, alone


def receive(control: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """The next request and its descriptors; None at the end."""
    message, fds, _, _ = socket.recv_fds(control, 1 << 16, 8)
    return (json.loads(message), fds) if message else None


def answer(request: dict[str, Any], fds: list[int], tier: int, ruleset: int | None) -> dict[str, Any]:
    """Runs what is asked for; once more if it hardly got the processor before its time was over."""
    run = run_once if request["names"] is None else run_pair
    result = run(request, fds, tier, ruleset)
    if result["ended"] == "wall" and result["cpu"] < 0.5 * request["cpu"]:
        for fd in fds[2:5]:
            os.ftruncate(fd, 0)
        for fd in fds[1:5]:
            os.lseek(fd, 0, os.SEEK_SET)
        result = run(request, fds, tier, ruleset)
    return result


def run_once(request: dict[str, Any], fds: list[int], tier: int, ruleset: int | None) -> dict[str, Any]:
    """Runs a program on its input.

    Args:
        fds: source, standard input, output and error, where the value of a call goes, and the call as JSON or null.

    Returns:
        `ready`: the program began; `ended`: by `itself`, `cpu` or `wall`; `exit`: status or minus signal;
        `cpu` and `wall` in seconds.
    """
    given = dict(enumerate(fds[1:5]))
    child = Child(
        request, tier, ruleset, [fds[0], fds[5]], given, lambda source, call: program.run(source, call, _LINK)
    )
    ended = watch(child.pid, [child.pid], request)
    child.end()
    sweep([child.pid], tier)
    return {"ready": child.is_ready, "ended": ended, "exit": child.exit, "cpu": child.cpu, "wall": child.wall}


def run_pair(request: dict[str, Any], fds: list[int], tier: int, ruleset: int | None) -> dict[str, Any]:
    """Runs tests against a program, each in a process of its own; the result is that of the tests.

    Args:
        fds: source, tests, and standard output and error of the program.

    Returns:
        As `run_once`; the processor time is that of both.
    """
    ours, theirs = socket.socketpair()
    names, size = request["names"], request["output"]
    given = {1: fds[2], 2: fds[3], _LINK: theirs.fileno()}
    answers = Child(request, tier, ruleset, [fds[0]], given, lambda source: pairs.serve(source, _LINK, size))
    given = {_LINK: ours.fileno()}
    asks = Child(request, tier, ruleset, [fds[1]], given, lambda tests: pairs.run_tests(tests, names, _LINK, size))
    ours.close()
    theirs.close()
    children = [asks.pid, answers.pid]
    ended = watch(asks.pid, children, request)
    os.kill(answers.pid, signal.SIGKILL)
    asks.end()
    answers.end()
    sweep(children, tier)
    is_ready, cpu = asks.is_ready and answers.is_ready, asks.cpu + answers.cpu
    return {"ready": is_ready, "ended": ended, "exit": asks.exit, "cpu": cpu, "wall": asks.wall}


class Child:
    """A forked process that gave up all but some descriptors and then runs `body`."""

    def __init__(
        self,
        request: dict[str, Any],
        tier: int,
        ruleset: int | None,
        sources: list[int],
        given: dict[int, int],
        body: Callable[..., int],
    ) -> None:
        """Forks it.

        Args:
            sources: files whose contents `body` gets. The zygote itself never reads them: what it once had in
                memory, every later child could find there.
            given: the descriptors of the child, by the number that they get.
        """
        self.start = time.monotonic()
        self.begun, ready = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            become_program(request, tier, ruleset, sources, given, ready, body)
        os.close(ready)

    def end(self) -> None:
        """Waits for its end, and fills in what became of it."""
        _, status, usage = os.wait4(self.pid, 0)
        self.is_ready = os.read(self.begun, 1) == b"1"
        os.close(self.begun)
        self.exit = os.waitstatus_to_exitcode(status)
        self.cpu = usage.ru_utime + usage.ru_stime
        self.wall = time.monotonic() - self.start


def watch(pid: int, family: list[int], request: dict[str, Any]) -> str:
    """Waits until a child ends, and ends it at a limit; ends this process too once nobody waits for its answer.

    Args:
        pid: the child.
        family: the children whose processor time counts, together.
        request: `cpu`, seconds of processor time; `wall`, seconds of real time for a child that hardly uses any;
            `longest`, seconds of real time for one that works but has to share a busy processor.
    """
    pidfd = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.register(CONTROL, 0)  # that the other end closed is told without being asked for
    start = time.monotonic()
    ended = ""
    while not ended:
        used, elapsed = sum(map(cpu_of, family)), time.monotonic() - start
        allowed = request["longest"] if used > _AT_WORK * elapsed else request["wall"]
        cpu_left, wall_left = request["cpu"] - used, allowed - elapsed
        events = poll.poll(max(1, math.ceil(1000 * min(cpu_left, wall_left, 0.25))))
        if any(fd == pidfd for fd, _ in events):
            ended = "itself"
        elif events:
            for child in family:
                os.kill(child, signal.SIGKILL)
            os._exit(0)
        elif cpu_left <= 0 or wall_left <= 0:
            os.kill(pid, signal.SIGKILL)
            ended = "cpu" if cpu_left <= 0 else "wall"
    os.close(pidfd)
    return ended


def cpu_of(pid: int) -> float:
    """Seconds of processor time of all threads of a process; 0 for one that has ended."""
    try:
        return time.clock_gettime((~pid << 3) | 2)  # as clock_getcpuclockid makes it
    except OSError:
        return 0.0


def sweep(pids: list[int], tier: int) -> None:
    """Ends whatever a program may have left; its filter lets it start nothing, so this is a second lock."""
    for pid in [-1] if tier == 1 else [-pid for pid in pids]:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, 0)[0]:
            pass


def become_program(
    request: dict[str, Any],
    tier: int,
    ruleset: int | None,
    sources: list[int],
    given: dict[int, int],
    ready: int,
    body: Callable[..., int],
) -> None:
    """Gives up everything but the program's own descriptors and limits, then runs it; does not return."""
    status = 1
    try:
        kernel.control(kernel.SET_DEATH_SIGNAL, signal.SIGKILL)
        if tier > 1:
            os.setsid()
        if ruleset is not None:
            kernel.restrict_to(ruleset)
        texts = [os.pread(fd, os.fstat(fd).st_size, 0) for fd in sources]
        for number, fd in given.items():
            os.dup2(fd, number)
        os.dup2(ready, _READY)
        os.closerange(_READY + 1, _HIGHEST)
        if not request["link"]:
            os.close(_LINK)
        limit(request, tier)
        if tier < 4:
            kernel.install_filter(filters.build(os.uname().machine, os.getpid(), read_only=tier == 3))
        os.write(_READY, b"1")
        os.close(_READY)
        status = body(*texts)
    finally:
        os._exit(status)


def limit(request: dict[str, Any], tier: int) -> None:
    """Sets the limits of the kernel. Seconds of processor time are whole here: `watch` is finer and comes first."""
    limits = {
        resource.RLIMIT_AS: request["memory"],
        resource.RLIMIT_CPU: math.ceil(request["cpu"]) + 1,
        resource.RLIMIT_FSIZE: request["output"],
        resource.RLIMIT_NOFILE: 128,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    if tier == 1:  # outside a user namespace the account's other processes would count
        limits[resource.RLIMIT_NPROC] = request["processes"] + 3
    for name, value in limits.items():
        hard = resource.getrlimit(name)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(name, (value, value))
    stack, hard = 128 << 20, resource.getrlimit(resource.RLIMIT_STACK)[1]
    resource.setrlimit(resource.RLIMIT_STACK, (stack if hard == resource.RLIM_INFINITY else min(stack, hard), hard))
