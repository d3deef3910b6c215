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
from dataclasses import dataclass
from ipaddress import ip_address
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
from ray._private.state import available_resources_per_node
from ray.exceptions import AuthenticationError, ObjectLostError, OutOfMemoryError, RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mopd.rewards.custom import KEYS
from trainer import network
from trainer.errors import BadInputError

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


@dataclass(frozen=True)
class Machine:
    """A machine of the cluster."""

    name: str
    """Ray's, different for every one, also for two on the same computer."""
    address: str
    cpus: float
    """Free ones, by Ray's reckoning."""
    gpus: float
    here: bool
    """Whether this process is on it."""


class WorkerError(RuntimeError):
    """A worker failed, died or did not answer in time; the message says which, and in what."""


class WorkerDiedError(WorkerError):
    """The process of a worker is gone."""


class DeadlineError(WorkerError):
    """A worker did not answer in time."""


def start(environment: Mapping[str, str], num_cpus: int) -> None:
    """Starts a local Ray, or joins the cluster named by RAY_ADDRESS; one that was started so already is kept.

    `environment` is inherited by every worker.

    Raises:
        BadInputError: the cluster cannot be joined.
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
    with withheld(KEYS), unheard(sent_to_all(os.environ)), spared(), joining(address):
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


def joined() -> bool:
    """Whether this process's Ray is a cluster that others started."""
    return "RAY_ADDRESS" in os.environ


@contextmanager
def joining(address: str | None) -> Iterator[None]:
    """Turns what goes wrong on joining a cluster into a sentence."""
    try:
        yield
    except (ConnectionError, AuthenticationError, ValueError) as error:
        if address is None:
            raise
        raise BadInputError(
            [
                f"RAY_ADDRESS={address}: this cluster cannot be joined ({str(error).splitlines()[0]:.200}); name the "
                f"address that `ray start --head` printed, give RAY_AUTH_MODE and RAY_AUTH_TOKEN as it was given them, "
                f"or unset RAY_ADDRESS to run on this machine alone"
            ]
        ) from error


def machines() -> list[Machine]:
    """The machines of the cluster that are alive, with what is free there; this one first, the others by address."""
    free, own = available_resources_per_node(), ray.get_runtime_context().get_node_id()
    found = []
    for name, address in ((node["NodeID"], node["NodeManagerAddress"]) for node in ray.nodes() if node["Alive"]):
        there = free.get(name, {})
        found.append(Machine(name, address, there.get("CPU", 0.0), there.get("GPU", 0.0), name == own))
    return sorted(found, key=lambda machine: (not machine.here, ip_address(machine.address), machine.name))


def ask_machines(function: Callable[..., Any], these: Sequence[Machine], *arguments: Any) -> list[Any]:
    """Calls a function on each of these machines; references to the answers."""
    asked, places = ray.remote(function), [at(machine, bound=True) for machine in these]
    return [asked.options(num_cpus=0, max_retries=0, scheduling_strategy=one).remote(*arguments) for one in places]


def at(machine: Machine | None, *, bound: bool) -> Any:
    """Ray's word for a place: on a machine and, if not bound to it, elsewhere should it be gone or full."""
    if machine is None:
        return "DEFAULT"
    return NodeAffinitySchedulingStrategy(machine.name, soft=not bound, _spill_on_unavailable=not bound)


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


def spawn(
    worker: type,
    *,
    num_cpus: float,
    num_gpus: float,
    machine: Machine | None = None,
    bound: bool = False,
    **arguments: Any,
) -> Any:
    """Places one worker process of class `worker`; its methods are called as `handle.method.remote(...)`.

    It comes to `machine` where one is named: `bound`, to no other.
    """
    place = at(machine, bound=bound)
    remote = ray.remote(settled(worker)).options(num_cpus=num_cpus, num_gpus=num_gpus, scheduling_strategy=place)
    return remote.remote(**arguments)


def settled(worker: type) -> type:
    """The class `worker`, under its own name; once one of it is there, its process collects garbage.

    In a cluster of others it works in the controller's folder, where that is there: paths may be relative.
    """
    home = os.getcwd() if joined() else None

    def __init__(self: Any, **arguments: Any) -> None:
        network.use(this_address())
        if home is not None and os.path.isdir(home):
            os.chdir(home)
        worker.__init__(self, **arguments)  # type: ignore[misc]
        gc.freeze()
        gc.enable()

    names = {"__init__": __init__, "__module__": worker.__module__, "__qualname__": worker.__qualname__}
    return type(worker.__name__, (worker,), names)


def ask_many(call: Any, count: int, *arguments: Any) -> list[Any]:
    """Calls the worker's method `call`, which returns a list of so many; a reference to each of them."""
    found = call.options(num_returns=max(1, count)).remote(*arguments)
    return list(found) if count > 1 else [found][:count]


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


def streams(
    calls: Mapping[int, tuple[Any, Sequence[Any]]], doing: str, deadline_s: float, between: Callable[[], None]
) -> Iterator[tuple[int, Any]]:
    """What workers' methods yield, as it comes, each with its worker's number; `between` is called all the while.

    A worker that died ends its own stream, with the error in place of an item. Waiting speaks as in `wait`; the
    deadline is that of the wait for any next one.

    Args:
        calls: by number, a method and its arguments.

    Raises:
        WorkerError: a worker failed, or the deadline passed.
    """
    open_ones = {
        call.options(num_returns="streaming").remote(*arguments): number for number, (call, arguments) in calls.items()
    }
    started = spoke = time.monotonic()
    while open_ones:
        ready, _ = ray.wait(list(open_ones), timeout=POLL_S)
        between()
        now = time.monotonic()
        if ready:
            items = ready[0]
            number = open_ones.pop(items)  # and to the end of the line, so that none waits for ever
            found, goes_on = next_of(items, doing)
            if goes_on:
                open_ones[items] = number
            if found is not None:
                yield number, found
            started = spoke = time.monotonic()
        elif now - started > deadline_s:
            raise DeadlineError(f"{doing}: no answer within trainer.deadline_s={deadline_s:g} s")
        elif now - spoke > SPEAK_EVERY_S:
            log.info("still %s after %.0f s", doing, now - started)
            spoke = now


def next_of(items: Any, doing: str) -> tuple[Any, bool]:
    """What is next in a stream, or the death of its worker, or None at its end; and whether there is more to come."""
    try:
        return answer(next(items), doing), True
    except StopIteration:
        return None, False
    except WorkerDiedError as error:
        return error, False


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
    except ObjectLostError as error:
        raise WorkerDiedError(f"{doing}: the answer is lost with the machine that held it ({error!r})") from error
    except OutOfMemoryError as error:
        raise WorkerDiedError(
            f"{doing}: the worker process was ended, the machine's memory was full ({error})"
        ) from error
    except RayError as error:
        raise WorkerError(f"{doing}: the answer is lost ({error!r})") from error
