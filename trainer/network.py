"""This machine's addresses: which one others reach it at, and the interface that traffic between machines takes."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import sys
from collections.abc import Sequence

SIOCGIFADDR = 0x8915
"""Linux's request for the address of an interface."""
ANY_PORT = 9
"""Of a connection that sends nothing: only the way to the other machine is looked up."""
INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
"""What gloo and NCCL are told by."""


def addresses() -> dict[str, str]:
    """The IPv4 address of every interface that has one."""
    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(asked.fileno(), SIOCGIFADDR, struct.pack("256s", name.encode()))
            except OSError:  # it has none
                continue
            found[name] = socket.inet_ntoa(answer[20:24])
    return found


def interface_of(address: str) -> str | None:
    """The interface that has an address; None where none has."""
    return next((name for name, own in addresses().items() if own == address), None)


def is_loopback(address: str) -> bool:
    """Whether other machines cannot reach an address."""
    return address.startswith("127.") or address in ("::1", "localhost", "0.0.0.0")


def use(address: str) -> None:
    """Makes this process's gloo, NCCL and vLLM talk at an address of this machine; what the user set is kept.

    Left to themselves they take what the host's name resolves to, which on many machines is the loopback interface.
    """
    interface = interface_of(address)
    if is_loopback(address) or interface is None:
        return
    for name in INTERFACES:
        os.environ.setdefault(name, interface)
    os.environ.setdefault("VLLM_HOST_IP", address)


def address_towards(host: str) -> str:
    """The address at which `host` sees this machine.

    Raises:
        OSError: there is no way to it, or nobody knows the name.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:
        way.connect((host, ANY_PORT))
        return str(way.getsockname()[0])


def own_address(interface: str, peer: str) -> str:
    """The address of `interface`, or for none the one that the machine `peer` sees.

    Raises:
        ValueError: there is none, or other machines cannot reach it.
    """
    known = addresses()
    if interface:
        if interface not in known:
            listed = ", ".join(f"{name} ({own})" for name, own in known.items())
            raise ValueError(f"there is no interface {interface} with an IPv4 address; there are {listed}")
        address = known[interface]
    else:
        try:
            address = address_towards(peer)
        except OSError as error:
            raise ValueError(f"no way to {peer} ({error}); name the interface to take with MOPD_INTERFACE") from None
    if is_loopback(address):
        raise ValueError(
            f"its address would be {address}, which no other machine reaches; name the interface to take with "
            f"MOPD_INTERFACE"
        )
    return address


def main(argv: Sequence[str]) -> int:
    """Prints this machine's address: `python -m trainer.network INTERFACE PEER`, either may be empty."""
    interface, peer = argv
    try:
        print(own_address(interface, peer))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
