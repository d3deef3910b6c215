"""A real Slurm on this machine: a controller and two nodes, with folders, ports and a munge of their own."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.machines import KEPT, until

CPUS = 8
"""Which a node pretends to have."""
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "scancel", "srun", "sinfo")
SETTINGS = """
ClusterName=mopd
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=10
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/pgid
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
NodeName=n[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{second}] CPUs={cpus} State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def free_ports() -> tuple[int, int]:
    """Two ports, one after the other, on which nobody listens."""
    while True:
        with socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", 0))
            port = int(one.getsockname()[1])
            if other.connect_ex(("127.0.0.1", port + 1)):
                return port, port + 1


@dataclass(frozen=True)
class Slurm:
    """Where the cluster's files are, and commands to it."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """What commands need."""
        kept = {name: value for name, value in os.environ.items() if name in KEPT}
        return {**kept, "SLURM_CONF": str(self.folder / "slurm.conf"), "OMP_NUM_THREADS": "1"}

    def call(self, *words: str, **flags: str) -> str:
        """A command of Slurm's that must succeed; what it said."""
        environment = {**self.environment, **flags}
        done = subprocess.run(words, env=environment, cwd=self.folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(words)}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def facts(self, job: str) -> dict[str, str]:
        """What Slurm knows of a job."""
        said = self.call("scontrol", "show", "job", "-o", job).split("\n")[0]
        return dict(word.split("=", 1) for word in said.split() if "=" in word)

    def ended(self, job: str, within_s: float = 900) -> dict[str, str]:
        """Waits for the end of a job; what Slurm knows of it then."""
        open_states = ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED")
        until(lambda: self.facts(job)["JobState"] not in open_states, f"the end of job {job}", within_s)
        return self.facts(job)


@contextmanager
def slurm_of_two_nodes(folder: Path) -> Iterator[Slurm]:
    """A cluster of the nodes n1 and n2, for as long as it is needed."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    assert not missing, f"{', '.join(missing)} not installed; `bash run_tests.sh --cluster` does that"
    slurm, host = Slurm(folder), socket.gethostname().split(".")[0]
    first, second = free_ports()
    settings = {"host": host, "folder": folder, "first": first, "second": second, "cpus": CPUS}
    (folder / "state").mkdir()
    (folder / "slurm.conf").write_text(SETTINGS.format(port=free_ports()[0], **settings))
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    at = [
        f"--{name}={folder}/munge.{name.split('-')[0]}"
        for name in ("socket", "key-file", "pid-file", "log-file", "seed-file")
    ]
    commands = [
        ["munged", "--foreground", "--force", *at],
        ["slurmctld", "-D"],
        *(["slurmd", "-D", "-N", node] for node in ("n1", "n2")),
    ]
    running: list[subprocess.Popen[bytes]] = []
    try:
        for number, command in enumerate(commands):
            with (folder / f"{command[0]}-{number}.log").open("wb") as said:
                running.append(subprocess.Popen(command, env=slurm.environment, stdout=said, stderr=said))
            if number == 0:
                until((folder / "munge.socket").exists, "munge", 30)
        until(lambda: slurm.call("sinfo", "-h", "-o", "%T %D").startswith("idle 2"), "two idle nodes", 60)
        yield slurm
    finally:
        if len(running) == len(commands):
            subprocess.run(["scancel", "--user=root"], env=slurm.environment, check=False)
        for process in reversed(running):
            process.terminate()
            process.wait(60)
