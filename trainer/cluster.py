"""The one door to Ray: start it, place workers, wait for answers aloud, stop it."""

from __future__ import annotations

import gc
import logging
import os
import secrets
import signal
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

# Ray reads both while it is imported.
if "RAY_ADDRESS" not in os.environ:
    # A local Ray listens on the loopback interface alone: what Ray does by default on the systems of this name only.
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
if "RAY_ADDRESS" not in os.environ and "RAY_AUTH_MODE" not in os.environ:
    # A local Ray answers only to holders of a token made for this run.
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)

import ray
from ray._private.node import Node
from ray.exceptions import OutOfMemoryError, RayActorError, RayError, RayTaskError

from mopd.rewards.custom import KEYS

log = logging.getLogger("mopd")

SPEAK_EVERY_S = 60.0
"""A wait longer than this says what it waits for."""
POLL_S = 0.05
"""How often other work is looked after during a wait."""
FIRST_IMPORT = "trainer.workers.uncollected"
"""What a worker process of a local Ray imports before anything of ours."""
IDLE = ("start_monitor", "start_log_monitor", "start_api_server")
"""What starts Ray's autoscaler, the reader of its log files and its web server."""

running: tuple[Mapping[str, str], int] | None = None
"""What this process's Ray was started with, or is being started; None where it has none."""


class WorkerError(RuntimeError):
    """A worker failed, died or did not answer in time; the message says which, and in what."""


class WorkerDiedError(WorkerError):
    """The process of a worker is gone."""


class DeadlineError(WorkerError):
    """A worker did not answer in time."""


def start(environment: Mapping[str, str], num_cpus: int) -> None:
    """Starts a local Ray, or joins the cluster named by RAY_ADDRESS; one that was started so already is kept.

    `environment` is inherited by every worker.
    """
    global running
    if running == (environment, num_cpus) and ray.is_initialized():
        return
    if running is not None:
        stop()
    running = (dict(environment), num_cpus)
    address = os.environ.get("RAY_ADDRESS")
    os.environ.update(environment)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address is None:
        os.environ.setdefault("RAY_preload_python_modules", FIRST_IMPORT)
        # By default workers give way to every other process of the machine (15); they are what the run is for.
        os.environ.setdefault("RAY_worker_niceness", "0")
    local: dict[str, Any] = (
        {"num_cpus": num_cpus, "include_dashboard": False, "_node_ip_address": "127.0.0.1"} if address is None else {}
    )
    with withheld(KEYS), unheard(sent_to_all(os.environ)), spared():
        ray.init(
            # Without a name Ray would also join a cluster that somebody else has started on this machine.
            address=address or "local",
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=True,
            **local,
            # A cluster that is there already does not inherit this process's environment.
            runtime_env={} if address is None else {"env_vars": dict(environment)},
        )


@contextmanager
def spared() -> Iterator[None]:
    """A Ray that is started meanwhile has no processes that serve nobody here; each takes half a second of CPU."""
    kept = {name: getattr(Node, name) for name in IDLE}
    for name in IDLE:
        setattr(Node, name, lambda *_, **__: None)
    try:
        yield
    finally:
        for name, method in kept.items():
            setattr(Node, name, method)


@contextmanager
def withheld(names: Sequence[str]) -> Iterator[None]:
    """Hides variables from processes that are started meanwhile."""
    hidden = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


def sent_to_all(environment: Mapping[str, str]) -> set[signal.Signals]:
    """What Slurm sends to every process of a job, of which the controller alone knows what to do.

    Elsewhere SIGTERM is left as it is: without it the end of the local Ray takes some seconds longer.
    """
    return {signal.SIGUSR1, signal.SIGTERM} if "SLURM_JOB_ID" in environment else {signal.SIGUSR1}


@contextmanager
def unheard(numbers: Collection[signal.Signals]) -> Iterator[None]:
    """Keeps signals from processes that are started meanwhile, for good; this one hears them afterwards."""
    former = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


def stop() -> None:
    """Ends every worker that `spawn` placed, and the local Ray."""
    global running
    ray.shutdown()
    running = None


def version() -> str:
    """Ray's version."""
    return str(ray.__version__)


def this_address() -> str:
    """The address under which the cluster's other machines reach this one."""
    return str(ray.util.get_node_ip_address())


def spawn(worker: type, *, num_cpus: float, num_gpus: float, **arguments: Any) -> Any:
    """Places one worker process of class `worker`; its methods are called as `handle.method.remote(...)`."""
    remote = ray.remote(settled(worker)).options(num_cpus=num_cpus, num_gpus=num_gpus)
    return remote.remote(**arguments)


def settled(worker: type) -> type:
    """The class `worker`, under its own name; once one of it is there, its process collects garbage."""

    def __init__(self: Any, **arguments: Any) -> None:
        worker.__init__(self, **arguments)  # type: ignore[misc]
        gc.freeze()
        gc.enable()

    names = {"__init__": __init__, "__module__": worker.__module__, "__qualname__": worker.__qualname__}
    return type(worker.__name__, (worker,), names)


def gather(references: Sequence[Any], doing: str, deadline_s: float) -> list[Any]:
    """The answers behind `references`, in order; as `wait`, which see."""
    wait(references, doing, deadline_s)
    return [answer(reference, doing) for reference in references]


def wait(references: Sequence[Any], doing: str, deadline_s: float) -> None:
    """Waits until every answer is there; answers stay in the object store.

    Waiting speaks: every minute the log says what is awaited and for how long.

    Raises:
        WorkerError: a worker failed or died, or the deadline passed.
    """
    pending = list(references)
    started = time.monotonic()
    while pending:
        left = deadline_s - (time.monotonic() - started)
        if left <= 0:
            late = missing(references, pending)
            raise DeadlineError(f"{doing}: no answer within trainer.deadline_s={deadline_s:g} s{late}")
        # One at a time: when one rank is lost, the others may wait for it in a collective for as long as they may.
        ready, pending = ray.wait(pending, num_returns=1, timeout=min(left, SPEAK_EVERY_S))
        if pending and ready:
            fail_early(ready, pending, doing)
        elif pending:
            waited = time.monotonic() - started
            log.info(
                "still %s: %d of %d answers missing after %.0f s",
                doing,
                len(pending),
                len(references),
                waited,
            )


def missing(references: Sequence[Any], pending: Sequence[Any]) -> str:
    """Which of several answers are not there, by number, which is the rank where ranks are asked."""
    if len(references) == 1:
        return ""
    numbers = [str(number) for number, reference in enumerate(references) if reference in pending]
    return f"; of {len(references)} answers those of {', '.join(numbers)} are missing (ranks count from 0)"


def stream(
    call: Any, arguments: Sequence[Any], doing: str, deadline_s: float, between: Callable[[], None]
) -> Iterator[Any]:
    """What the worker's method `call` yields, as it comes; `between` is called all the while.

    Waiting speaks as in `wait`; the deadline is that of the wait for the next one.

    Raises:
        WorkerError: the worker failed or died, or the deadline passed.
    """
    items = call.options(num_returns="streaming").remote(*arguments)
    started = spoke = time.monotonic()
    while True:
        ready, _ = ray.wait([items], timeout=POLL_S)
        between()
        now = time.monotonic()
        if ready:
            try:
                reference = next(items)
            except StopIteration:
                return
            yield answer(reference, doing)
            started = spoke = time.monotonic()
        elif now - started > deadline_s:
            raise DeadlineError(f"{doing}: no answer within trainer.deadline_s={deadline_s:g} s")
        elif now - spoke > SPEAK_EVERY_S:
            log.info("still %s after %.0f s", doing, now - started)
            spoke = now


def ended(references: Sequence[Any], wait_s: float) -> list[Any]:
    """Those of `references` whose answer, or failure, is there; waits at most `wait_s` seconds for the first."""
    if not references:
        return []
    done, _ = ray.wait(list(references), num_returns=1, timeout=wait_s)
    if done:
        done, _ = ray.wait(list(references), num_returns=len(references), timeout=0)
    return list(done)


def kill(worker: Any) -> None:
    """Ends a worker's process, whatever it is doing."""
    ray.kill(worker)


def fail_early(references: Sequence[Any], pending: Sequence[Any], doing: str) -> None:
    """Raises at once when an answer that is there is a failure: the others may wait for it for ever."""
    for reference in references:
        if reference not in pending:
            answer(reference, doing)


def failed_within(references: Sequence[Any], doing: str, grace_s: float) -> None:
    """Raises the failure of a call that ends within `grace_s` seconds; says nothing of calls that go on."""
    _, pending = ray.wait(list(references), num_returns=len(references), timeout=grace_s)
    fail_early(references, pending, doing)


def answer(reference: Any, doing: str) -> Any:
    """One answer that has arrived; a worker's failure is raised with the phase's name.

    A worker that called another one, which died, has not failed itself: the death is passed on.
    """
    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, WorkerDiedError):
            raise WorkerDiedError(str(error.cause)) from error
        raise WorkerError(f"{doing}: {error.cause!r}\n{error}") from error
    except RayActorError as error:
        raise WorkerDiedError(f"{doing}: the worker process died ({error})") from error
    except OutOfMemoryError as error:
        raise WorkerDiedError(
            f"{doing}: the worker process was ended, the machine's memory was full ({error})"
        ) from error
    except RayError as error:
        raise WorkerError(f"{doing}: the answer is lost ({error!r})") from error
