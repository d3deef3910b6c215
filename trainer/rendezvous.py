"""Where processes of a run find each other."""

from __future__ import annotations

import socket
from datetime import timedelta

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from trainer import cluster


def open_store(members: int, timeout: timedelta) -> TCPStore:
    """A store for so many processes, of which this one is the first; the port is held from now on.

    It listens at the address that this machine has in the cluster, the loopback interface for a local one. A store that
    opens its socket itself listens at every address.
    """
    address = cluster.this_address()
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.create_server((address, 0), family=family)
    port = listener.getsockname()[1]
    return TCPStore(
        address,
        port,
        members,
        is_master=True,
        wait_for_workers=False,
        timeout=timeout,
        master_listen_fd=listener.detach(),
    )
