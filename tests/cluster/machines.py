"""Machines of a Ray cluster, played by network namespaces: each has a link, an address and processes of its own."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KEPT = ("PATH", "HOME", "TMPDIR")
PORT = 26379
CPUS = 8
"""Which a machine pretends to have: its workers mostly wait for each other."""


def until(done: Callable[[], bool], what: str, within_s: float = 300) -> None:
    """Waits until something is so, or fails."""
    end = time.monotonic() + within_s
    while not done():
        assert time.monotonic() < end, f"not within {within_s:g} s: {what}"
        time.sleep(0.2)


def call(*command: str) -> str:
    """Runs a command that must succeed; what it said."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
    return done.stdout


@dataclass
class Cluster:
    """A head and other machines on one wire; Ray answers to a token."""

    folder: Path
    net: str = field(default_factory=lambda: f"mo{secrets.token_hex(3)}")
    subnet: int = field(default_factory=lambda: secrets.randbelow(200) + 20)
    token: str = field(default_factory=lambda: secrets.token_hex(32))
    rays: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)
    plugged: set[int] = field(default_factory=set)

    def name(self, number: int) -> str:
        """The namespace of a machine."""
        return f"{self.net}-{number}"

    def address(self, number: int) -> str:
        """The address of a machine; the head is number 1."""
        return f"10.{self.subnet}.77.{number}"

    @property
    def environment(self) -> dict[str, str]:
        """What every process of the cluster needs."""
        kept = {name: value for name, value in os.environ.items() if name in KEPT}
        return {
            **kept,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_USAGE_STATS_ENABLED": "0",
        }

    def command(self, number: int, *words: str) -> list[str]:
        """A command, to be run on a machine."""
        return ["ip", "netns", "exec", self.name(number), *words]

    def wire(self) -> None:
        """Lays the wire to which machines are plugged."""
        call("ip", "link", "add", self.net, "type", "bridge")
        call("ip", "link", "set", self.net, "up")

    def plug(self, number: int) -> None:
        """Makes a machine with an interface eth0 on the wire."""
        name, wire = self.name(number), f"{self.net}v{number}"
        call("ip", "netns", "add", name)
        self.plugged.add(number)
        call("ip", "link", "add", wire, "type", "veth", "peer", "name", "eth0", "netns", name)
        call("ip", "link", "set", wire, "master", self.net, "up")
        call(*self.command(number, "ip", "link", "set", "lo", "up"))
        call(*self.command(number, "ip", "address", "add", f"{self.address(number)}/24", "dev", "eth0"))
        call(*self.command(number, "ip", "link", "set", "eth0", "up"))

    def start(self, number: int) -> None:
        """Starts Ray on a machine: the head, or one that joins it."""
        own = f"--node-ip-address={self.address(number)}"
        head = f"{self.address(1)}:{PORT}"
        role = ["--head", f"--port={PORT}", "--include-dashboard=false"] if number == 1 else [f"--address={head}"]
        ray = Path(sys.executable).with_name("ray")
        words = [str(ray), "start", "--block", own, *role, f"--num-cpus={CPUS}", "--object-store-memory=200000000"]
        with (self.folder / f"ray-{number}.log").open("ab") as said:
            self.rays[number] = subprocess.Popen(
                self.command(number, *words), env=self.environment, stdout=said, stderr=said, cwd=self.folder
            )

    def lose(self, number: int) -> None:
        """A machine is gone from one moment to the next: the wire is cut, then everything on it ends."""
        call("ip", "link", "set", f"{self.net}v{number}", "down")
        self.unplug(number)

    def unplug(self, number: int) -> None:
        """Ends everything on a machine, and the machine."""
        for pid in call("ip", "netns", "pids", self.name(number)).split():
            try:
                os.kill(int(pid), signal.SIGKILL)
            except ProcessLookupError:
                continue
        if number in self.rays:
            self.rays.pop(number).wait()
        until(lambda: not call("ip", "netns", "pids", self.name(number)).split(), f"machine {number} is empty", 30)
        call("ip", "link", "delete", f"{self.net}v{number}")  # else it goes some time after the machine
        call("ip", "netns", "delete", self.name(number))
        self.plugged.discard(number)

    def clear(self) -> None:
        """Takes everything down."""
        for number in list(self.plugged):
            self.unplug(number)
        call("ip", "link", "delete", self.net)

    def train(self, output: Path, method: str, *overrides: str, **flags: str) -> subprocess.Popen[str]:
        """Starts a run, with the controller on the head."""
        words = [sys.executable, "-m", "trainer.main", "--config-name", method, *overrides]
        address = {"RAY_ADDRESS": f"{self.address(1)}:{PORT}", "OUTPUT_DIR": str(output)}
        return subprocess.Popen(
            self.command(1, *words),
            cwd=output.parent,
            env={**self.environment, **address, **flags},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


@contextmanager
def two_machines(folder: Path) -> Iterator[Cluster]:
    """A cluster of a head, number 1, and another machine, number 2."""
    cluster = Cluster(folder)
    cluster.wire()
    try:
        for number in (1, 2):
            cluster.plug(number)
            cluster.start(number)
        yield cluster
    finally:
        cluster.clear()
