"""Starts the processes that programs are forked from, and talks with them."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from typing import Any

from mopd.rewards.sandbox.types import SandboxError

_BOOT = """
import sys, types
for name in ("mopd", "mopd.rewards", "mopd.rewards.sandbox"):
    sys.modules[name] = types.ModuleType(name)
sys.modules["mopd.rewards.sandbox"].__path__ = [sys.argv[1]]
import json
from mopd.rewards.sandbox.zygote import main
main(int(sys.argv[2]), json.loads(sys.argv[3]))
"""
_ENVIRONMENT = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "MALLOC_ARENA_MAX"), "1")
"""One thread for sums, and one area of memory for all threads: each further one would reserve address space."""
_START_S = 60.0
"""Seconds for a zygote to say hello, on a machine that may be very busy."""


@functools.cache
def interpreter() -> dict[str, Any]:
    """What the interpreter in the sandbox reads: `paths`, and the directory `site` of its packages, or None."""
    names = sysconfig.get_paths()
    wanted = [
        names["stdlib"],
        names["platstdlib"],
        f"{sys.base_prefix}/lib",
        "/usr/lib",
        "/usr/lib64",
        "/lib",
        "/lib64",
    ]
    wanted += ["/etc/ld.so.cache"]
    site = None
    found = importlib.util.find_spec("numpy")
    if found is not None and found.submodule_search_locations:
        package = found.submodule_search_locations[0]
        site = os.path.dirname(package)
        wanted += [package, f"{package}.libs"]
    return {"paths": [path for path in dict.fromkeys(wanted) if os.path.exists(path)], "site": site}


class Lost(Exception):
    """A zygote ended, or did not answer in time."""


class Zygote:
    """One process that forks programs, and the socket to it.

    Raises:
        SandboxError: it does not start, for instance since the machine does not offer the tier.
    """

    def __init__(self, tier: int, preload: bool = True) -> None:
        """Starts it."""
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        settings = {"tier": tier, "preload": preload, **interpreter()}
        arguments = [os.path.dirname(__file__), str(theirs.fileno()), json.dumps(settings)]
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-B", "-X", "utf8", "-c", _BOOT, *arguments],
                pass_fds=[theirs.fileno()],
                env=_ENVIRONMENT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        try:
            self.hello = self._receive(_START_S)
        except Lost as error:
            self.close()
            raise SandboxError(f"the sandbox of tier {tier} does not start: {error}") from None
        if self.hello["error"]:
            self.close()
            raise SandboxError(f"the sandbox of tier {tier} does not start: {self.hello['error']}")

    def ask(self, request: dict[str, Any], fds: Sequence[int], timeout_s: float) -> dict[str, Any]:
        """Sends a request with descriptors and waits for its answer.

        Raises:
            Lost: there is no answer.
        """
        try:
            socket.send_fds(self.socket, [json.dumps(request).encode()], fds)
        except OSError as error:
            raise Lost(f"no request can be sent ({error})") from None
        return self._receive(timeout_s)

    def _receive(self, timeout_s: float) -> dict[str, Any]:
        self.socket.settimeout(timeout_s)
        try:
            message = self.socket.recv(1 << 16)
        except OSError as error:
            raise Lost(f"no answer within {timeout_s:.0f} s ({error})") from None
        if not message:
            raise Lost("it ended")
        answer: dict[str, Any] = json.loads(message)
        return answer

    def close(self) -> None:
        """Ends it and all that it started."""
        self.socket.close()
        self.process.kill()
        self.process.wait()

    def forget(self) -> None:
        """Lets go of it in a forked process, whose parent goes on using it."""
        self.socket.close()
        self.process.returncode = 0
