"""A world with things worth attacking, and the checks that nothing of it was touched."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path

from mopd.rewards.sandbox import Job, Limits, Sandbox

LIMITS = Limits(cpu_s=0.5, wall_s=0.6, memory_bytes=1 << 30, output_bytes=1 << 20)
GENEROUS = Limits(cpu_s=10, wall_s=60)
MARKS = ("sandbox-fill", "left")


@dataclass
class World:
    """A checkpoint, a secret file and services that listen on this machine."""

    folder: Path
    secret: str
    tcp: socket.socket
    udp: socket.socket
    unix: socket.socket

    def fill(self, text: str) -> str:
        """A program with the names of this world in it."""
        names = {
            "@CANARY@": str(self.folder),
            "@SECRET@": str(self.folder.parent / "answer.txt"),
            "@PORT@": str(self.tcp.getsockname()[1]),
            "@PARENT@": str(os.getpid()),
        }
        for name, value in names.items():
            text = text.replace(name, value)
        return text

    def files(self) -> list[tuple[object, ...]]:
        """All that can be told about its files, and leftovers in the machine's common places."""
        found: list[tuple[object, ...]] = []
        for path in sorted(self.folder.rglob("*")):
            stat = path.lstat()
            content = path.read_bytes() if path.is_file() else b""
            found.append((path.name, stat.st_mode, stat.st_uid, stat.st_mtime_ns, content))
        for place in ("/tmp", "/dev/shm", "/var/tmp", "/", os.getcwd()):
            found += [(place, name) for name in os.listdir(place) if name.startswith(MARKS)]
        return found

    def visits(self) -> list[str]:
        """The services that somebody has spoken to."""
        heard = []
        for name in ("tcp", "udp", "unix"):
            listener = getattr(self, name)
            try:
                listener.recv(10) if name == "udp" else listener.accept()
                heard.append(name)
            except BlockingIOError:
                continue
        return heard


def make_world(folder: Path, secret: str) -> World:
    """Fills a folder and opens the services."""
    canary = folder / "checkpoint"
    canary.mkdir()
    (canary / "model.bin").write_text("weights")
    (folder / "answer.txt").write_text(secret)
    tcp = socket.create_server(("127.0.0.1", 0))
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(tcp.getsockname())
    unix = socket.socket(socket.AF_UNIX)
    unix.bind(str(canary / "socket"))
    unix.listen()
    for listener in (tcp, udp, unix):
        listener.setblocking(False)
    return World(canary, secret, tcp, udp, unix)


def descendants(root: int) -> set[int]:
    """The living processes below a process, and itself."""
    parents = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] not in "ZX":
            parents[int(name)] = int(fields[1])
    family = {root}
    while more := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= more
    return family


def is_well(sandbox: Sandbox) -> bool:
    """Whether a correct program passes, with nothing of an earlier one to be seen."""
    source = """
import builtins, json, math, os, re
seen = hasattr(builtins, "LEFT") or hasattr(json, "LEFT") or any(map(os.path.exists, ("/tmp/left", "/dev/shm/left")))
print(int(math.sqrt(int(input()))), seen, json.dumps([str(3)]))
"""
    (result,) = sandbox.run(source, [Job(b"49\n")], GENEROUS)
    return result.status == "ok" and result.stdout == b'7 False ["3"]\n'
