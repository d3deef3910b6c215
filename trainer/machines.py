"""The machines of a cluster: waited for aloud, looked at, and dealt out to the workers of a run."""

from __future__ import annotations

import logging
import os
import platform
import secrets
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

import mopd
from trainer import cluster, network
from trainer.cluster import Machine
from trainer.errors import BadInputError
from trainer.placement import Placement

log = logging.getLogger("mopd")

LOOK_EVERY_S = 1.0
"""How often the cluster is asked what it has."""
SPEAK_EVERY_S = 15.0
"""A wait for machines longer than this says what is awaited, and again so often."""


@dataclass(frozen=True)
class Seats:
    """Which machine every worker goes to; None: to the one there is, or wherever Ray finds room."""

    ranks: tuple[Machine | None, ...]
    samplers: tuple[Machine | None, ...]
    verifiers: tuple[Machine | None, ...] = (None,)
    """In turns."""
    cpus: int | None = None
    """Cores of the verifiers' machines; None: of this one."""

    @property
    def used(self) -> list[Machine]:
        """Every machine that gets a worker, once."""
        return list(dict.fromkeys(seat for seat in (*self.ranks, *self.samplers, *self.verifiers) if seat is not None))


def anywhere(placement: Placement) -> Seats:
    """Where there is one machine."""
    return Seats((None,) * placement.ranks, (None,) * placement.samplers)


def hosts_of_ranks(machines: Sequence[Machine], placement: Placement) -> list[Machine]:
    """The machines with room for the actor ranks of a node, as many as are asked or fewer."""
    gpus = float(placement.per_node) if placement.device == "cuda" else 0.0
    fit = [machine for machine in machines if machine.cpus >= placement.per_node and machine.gpus >= gpus]
    return fit[: placement.nodes]


def lacking(machines: Sequence[Machine], placement: Placement) -> str | None:
    """What is asked and what is there, in words; None where all workers find room."""
    of_node = f"{placement.per_node} free CPU cores" + (
        f" and {placement.per_node} free GPUs" if placement.device == "cuda" else ""
    )
    there = "; ".join(
        f"{machine.address} has {machine.cpus:g} cores and {machine.gpus:g} GPUs free" for machine in machines
    )
    hosts = hosts_of_ranks(machines, placement)
    if len(hosts) < placement.nodes:
        asked = f"{placement.nodes} machines with {of_node} each (NNODES={placement.nodes}, {placement.per_node} ranks)"
        return f"asked: {asked}; there: {len(machines)} machines: {there}"
    workers = placement.ranks + placement.samplers + placement.teachers
    cores = sum(machine.cpus for machine in machines)
    gpus = placement.ranks + placement.samplers - 1 + placement.teachers if placement.device == "cuda" else 0
    if cores < workers or sum(machine.gpus for machine in machines) < gpus:
        asked = f"{workers} cores and {gpus} GPUs for {placement.ranks} ranks, {placement.samplers} samplers"
        return f"asked: {asked} and {placement.teachers} teachers; there: {there}"
    return None


def wait_for(
    placement: Placement, deadline_s: float, look: Callable[[], Sequence[Machine]] = cluster.machines
) -> list[Machine]:
    """The machines of the cluster, once all workers find room.

    Raises:
        DeadlineError: they do not within `deadline_s`; the message says what is asked and what is there.
    """
    started = spoke = time.monotonic()
    while True:
        found = list(look())
        missing = lacking(found, placement)
        if missing is None:
            return found
        now = time.monotonic()
        if now - started > deadline_s:
            raise cluster.DeadlineError(f"no room in the cluster within trainer.deadline_s={deadline_s:g} s; {missing}")
        if now - spoke > SPEAK_EVERY_S or spoke == started:
            log.info("waiting for room in the cluster for %.0f s; %s", now - started, missing)
            spoke = now
        time.sleep(min(LOOK_EVERY_S, deadline_s))


def deal(machines: Sequence[Machine], placement: Placement) -> Seats:
    """Actor ranks in blocks, a node after the other; samplers and verifiers where most is free.

    On GPUs the first sampler is beside rank 0, whose GPU it shares. Verifiers go to machines without GPUs, if there
    are any with cores.
    """
    hosts = hosts_of_ranks(machines, placement)
    ranks = tuple(hosts[rank // placement.per_node] for rank in range(placement.ranks))
    on_gpu = placement.device == "cuda"
    taken = Counter(ranks)
    held: Counter[Machine] = Counter()
    samplers = []
    for number in range(placement.samplers):

        def room(machine: Machine) -> tuple[bool, int, float, int]:
            free = (machine.gpus if on_gpu else machine.cpus) - taken[machine]
            return free < 1, held[machine], -free, -machines.index(machine)

        chosen = ranks[0] if on_gpu and number == 0 else min(machines, key=room)
        samplers.append(chosen)
        held[chosen] += 1
        taken[chosen] += 0 if on_gpu and number == 0 else 1
    with_cores = [machine for machine in machines if machine.cpus >= 1] or list(machines)
    plain = [machine for machine in with_cores if machine.gpus == 0] if on_gpu else []
    verifiers = plain or with_cores
    return Seats(ranks, tuple(samplers), tuple(verifiers), int(sum(machine.cpus for machine in verifiers)))


# ------------------------------------------------------------------ what every machine must see


@dataclass(frozen=True)
class Sight:
    """What a machine sees."""

    address: str
    interface: str | None
    """The one that has the address by which the cluster knows it."""
    versions: Mapping[str, str]
    folders: Mapping[str, str | None]
    """Of every folder that is read what is in it; None where there is none."""
    unwritable: Mapping[str, str]
    """Of folders that are written why they cannot be, or are not the controller's."""


def contents(folder: str) -> str | None:
    """The files of a folder with their sizes; or the size of a file; None where there is nothing."""
    path = Path(folder)
    if path.is_file():
        return str(path.stat().st_size)
    if not path.is_dir():
        return None
    return ", ".join(f"{file.name} {file.stat().st_size}" for file in sorted(path.iterdir()) if file.is_file())


def look(address: str, read: Sequence[str], written: Sequence[str], mark: str) -> Sight:
    """What this machine sees; in folders that are written lies a file `mark`, where they are the controller's."""
    unwritable = {}
    for folder in written:
        if not (Path(folder) / mark).is_file():
            unwritable[folder] = "is not the one that the controller sees"
        elif not os.access(folder, os.W_OK):
            unwritable[folder] = "cannot be written"
    versions = {"python": platform.python_version(), "torch": torch.__version__, "mopd": mopd.__version__}
    found = {folder: contents(folder) for folder in read}
    return Sight(address, network.interface_of(address), versions, found, unwritable)


def differing(sight: Sight, own: Sight) -> list[str]:
    """Sentences for what a machine sees otherwise than this one."""
    who, faults = f"machine {sight.address}", []
    for folder, inside in sight.folders.items():
        if inside is None:
            faults.append(f"{who}: there is no {folder}; every machine must see it under this path")
        elif inside != own.folders[folder]:
            faults.append(f"{who}: {folder} holds other files there than here; put it where all machines see the same")
    faults += [
        f"{who}: {folder} {why}; name an OUTPUT_DIR (and CKPT_DIR) on a file system that all machines share"
        for folder, why in sight.unwritable.items()
    ]
    for name, version in sight.versions.items():
        if version != own.versions[name]:
            faults.append(f"{who}: {name} is {version} there and {own.versions[name]} here; install the same")
    if network.is_loopback(sight.address):
        faults.append(
            f"{who}: others cannot reach this address; give `ray start` --node-ip-address of an interface between them"
        )
    elif sight.interface is None:
        faults.append(
            f"{who}: none of its interfaces has this address; give `ray start` --node-ip-address of one that it has"
        )
    return faults


def check(machines: Sequence[Machine], read: Sequence[str], written: Sequence[str], deadline_s: float) -> None:
    """Refuses machines that do not see what the run reads and writes.

    Raises:
        BadInputError: with every fault, and the machine at fault.
    """
    mark = f".seen-{secrets.token_hex(4)}"
    for folder in written:
        (Path(folder) / mark).touch()
    faults = []
    try:
        own = look("", read, written, mark)
        answers = [cluster.ask_machines(look, [one], one.address, read, written, mark)[0] for one in machines]
        for machine, reference in zip(machines, answers, strict=True):
            doing = f"looking at machine {machine.address}"
            try:
                [sight] = cluster.gather([reference], doing, deadline_s)
            except cluster.WorkerError as error:
                faults.append(
                    f"{str(error).splitlines()[0]}; the project and its packages must be there, under one path"
                )
                continue
            faults += differing(sight, own)
    finally:
        for folder in written:
            (Path(folder) / mark).unlink(missing_ok=True)
    if faults:
        raise BadInputError(faults)


def seats_of(placement: Placement, read: Sequence[str], written: Sequence[str], deadline_s: float) -> Seats:
    """Where the workers go, once there is room for them and every machine sees what it needs."""
    if not cluster.joined():
        return anywhere(placement)
    seats = deal(wait_for(placement, deadline_s), placement)
    check(seats.used, read, written, deadline_s)
    if len(seats.used) > 1:
        log.info(
            "ranks on %s; samplers on %s; verifiers on %s",
            *(", ".join(told(places)) for places in (seats.ranks, seats.samplers, seats.verifiers)),
        )
    return seats


def told(places: Sequence[Machine | None]) -> list[str]:
    """Addresses, each with how often it comes."""
    return [f"{address} ({count})" for address, count in Counter(one.address for one in places if one).items()]
