"""`python -m trainer.profile --config-name NAME key=value ...`: a few steps of a run, and where their time went.

Writes a trace that chrome://tracing and ui.perfetto.dev show: the phases of the loop, every rank's part in them with
torch's operators, and the sampler's. Prints the same as a table. Steps are slower than in a run that nobody watches,
most of all those of small models; the first is left out of the table. Exit codes are those of `python -m trainer.main`.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.config.compose import METHODS, resolve
from trainer.errors import BadInputError
from trainer.folders import fresh

if TYPE_CHECKING:
    from trainer.workers.profiling import Event, Trace

log = logging.getLogger("mopd")

ANSWER_S = 120.0
"""How long a worker may take to tell what it did."""
OPERATORS_SHOWN = 12
ASIDE = ("validate", "save")
"""Phases that are in the trace, but not in the table."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m trainer.profile", description="Takes a few steps and tells where their time went."
    )
    parser.add_argument("--config-name", default="mopd", help=f"the method: {', '.join(METHODS)}")
    parser.add_argument("--steps", type=int, default=3, help="at least 2, for the first does not count (default: 3)")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="default: trace.json in the run's folder")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="keys of docs/configuration.md")
    asked = parser.parse_intermixed_args(argv)
    if asked.steps < 2:
        parser.error(f"--steps {asked.steps}: at least 2, for the first warms up and does not count")
    overrides = [
        *["trainer.test_freq=0", "trainer.val_before_train=false", "trainer.save_freq=0"],
        *asked.overrides,
        f"trainer.total_training_steps={asked.steps}",
    ]
    folder = output_folder(asked.config_name, overrides)
    from trainer import main as training

    with recording() as traces:
        code = training.main(["--config-name", asked.config_name, *overrides, f"trainer.output_dir={folder}"])
    if len(traces) > 1:
        file = asked.trace or folder / "trace.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(chrome(traces)))
        sys.stdout.write("\n".join([*table(traces), "", f"trace: {file}", ""]))
    return code


def output_folder(config_name: str, overrides: Sequence[str]) -> Path:
    """Where the run is kept: as asked for, or a fresh folder. The run itself tells of faults in the configuration."""
    try:
        asked = resolve(config_name, overrides, os.environ).config.trainer.output_dir
    except BadInputError:
        asked = None
    return Path(asked) if asked else fresh(Path("outputs") / f"profile-{config_name}")


@contextmanager
def recording() -> Iterator[list[Trace]]:
    """Notes what a run does that is made meanwhile; the list has every process's part once the workers have ended.

    Nothing of the run knows: its workers are replaced as they are placed, asked as they are stopped, and the loop's
    clock is listened to.
    """
    from trainer import cluster, loop
    from trainer.workers.policy import PolicyWorker
    from trainer.workers.profiling import ProfiledPolicy, ProfiledSampler, Watch
    from trainer.workers.sampler import SamplerWorker

    profiled = {PolicyWorker: ProfiledPolicy, SamplerWorker: ProfiledSampler}
    controller, handles, traces = Watch("controller"), list[Any](), list["Trace"]()
    spawn, stop, turn = cluster.spawn, cluster.stop, loop.Clock.turn

    def watched_spawn(worker: type, **arguments: Any) -> Any:
        handle = spawn(profiled.get(worker, worker), **arguments)
        if worker in profiled:
            handles.append(handle)
        return handle

    def watched_stop() -> None:
        try:
            if handles:  # a Ray that gives way to another before the run has none of ours
                traces[:] = [controller.trace(), *told(handles)]
                handles.clear()
        finally:
            stop()

    @contextmanager
    def watched_turn(clock: loop.Clock, phase: str) -> Iterator[None]:
        with controller.span(phase, step=clock.step), turn(clock, phase):
            yield

    with ExitStack() as stack:
        stack.enter_context(replaced(cluster, "spawn", watched_spawn))
        stack.enter_context(replaced(cluster, "stop", watched_stop))
        stack.enter_context(replaced(loop.Clock, "turn", watched_turn))
        yield traces


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Gives an attribute another value for a while."""
    former = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, former)


def told(handles: Iterable[Any]) -> Iterator[Trace]:
    """What every worker did that still answers."""
    from trainer import cluster

    for handle in handles:
        try:
            yield from cluster.gather([handle.trace.remote()], "collecting the trace", ANSWER_S)
        except cluster.WorkerError as error:
            log.warning("the trace lacks a worker: %s", str(error).splitlines()[0])


def chrome(traces: Sequence[Trace]) -> dict[str, Any]:
    """Chrome's trace format: a process each, with a lane for its spans and others for operators. From time 0."""
    origin = min((event.begun_us for trace in traces for event in trace.spans), default=0.0)
    events: list[dict[str, Any]] = []
    for process, trace in enumerate(traces):
        every = [*trace.spans, *trace.operators]
        lanes = {lane: number for number, lane in enumerate(dict.fromkeys(event.lane for event in every))}
        events.append(named("process_name", process, 0, trace.process))
        events += [named("thread_name", process, number, lane) for lane, number in lanes.items()]
        events += [
            {
                "ph": "X",
                "name": event.name,
                "pid": process,
                "tid": lanes[event.lane],
                "ts": round(event.begun_us - origin, 3),
                "dur": round(event.took_us, 3),
                "args": dict(event.details),
            }
            for event in every
        ]
    dropped = {trace.process: trace.dropped for trace in traces if trace.dropped}
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": {"short operators left out": dropped}}


def named(kind: str, process: int, lane: int, name: str) -> dict[str, Any]:
    """What a viewer calls a process or a lane."""
    return {"ph": "M", "name": kind, "pid": process, "tid": lane, "args": {"name": name}}


def table(traces: Sequence[Trace]) -> list[str]:
    """Where the steps after the first went: by phase, by worker, and by operator on one rank."""
    controller, *workers = traces
    every = [event for event in controller.spans if event.details.get("step", 0) > 1]
    phases = [event for event in every if event.name not in ASIDE]
    if not phases:
        return ["no step after the first was taken: there is nothing to tell"]
    aside = [event for event in every if event.name in ASIDE]
    begun, ended = min(event.begun_us for event in phases), max(event.ended_us for event in phases)
    whole = ended - begun - sum(event.took_us for event in aside if event.ended_us < ended)
    lines = ["", f"{'where the steps after the first went':<44}{'seconds':>10}{'share':>8}"]
    lines += [line(f"  {name}", took, whole) for name, took in sums(phases).items()]
    lines.append(line("  between phases", whole - sum(event.took_us for event in phases), whole))
    for trace in workers:
        spans = [
            event
            for event in trace.spans
            if begun <= event.begun_us < ended
            and not any(other.begun_us <= event.begun_us < other.ended_us for other in aside)
        ]
        lines += [line(f"  {trace.process}: {name}", took, whole) for name, took in sums(spans).items()]
    return [*lines, *next((operator_lines(trace) for trace in workers if trace.own), [])]


def operator_lines(trace: Trace) -> list[str]:
    """The operators that took most of one rank's time."""
    own = sum(operator.seconds for operator in trace.own)
    title = f"operators of {trace.process}, own time"
    rows = [
        f"{line(f'  {operator.name}', operator.seconds * 1e6, own * 1e6)}{operator.calls:>10}"
        for operator in trace.own[:OPERATORS_SHOWN]
    ]
    return ["", f"{title:<44}{'seconds':>10}{'share':>8}{'calls':>10}", *rows]


def sums(events: Iterable[Event]) -> dict[str, float]:
    """Microseconds by name, in the order of their beginning."""
    found: dict[str, float] = {}
    for event in sorted(events, key=lambda event: event.begun_us):
        found[event.name] = found.get(event.name, 0.0) + event.took_us
    return found


def line(name: str, took_us: float, whole_us: float) -> str:
    """A row of the table."""
    return f"{name[:43]:<44}{took_us / 1e6:>10.3f}{took_us / whole_us if whole_us else 0.0:>8.1%}"


if __name__ == "__main__":
    sys.exit(main())
