"""System calls of Linux that Python does not offer, by ctypes; the same on x86-64 and aarch64 but for `filters`."""

from __future__ import annotations

import ctypes
import errno
import os

NEW_MOUNTS = 0x0002_0000
NEW_CGROUP = 0x0200_0000
NEW_HOSTNAME = 0x0400_0000
NEW_IPC = 0x0800_0000
NEW_USER = 0x1000_0000
NEW_PIDS = 0x2000_0000
NEW_NETWORK = 0x4000_0000

BIND, RECURSIVE, PRIVATE, NOSUID, NODEV = 0x1000, 0x4000, 1 << 18, 2, 4
READ_ONLY_ATTRIBUTES, NODEV_ATTRIBUTE = 0x1 | 0x2, 0x4  # MOUNT_ATTR_RDONLY | NOSUID; NODEV
DETACH = 2

SET_DEATH_SIGNAL, SET_DUMPABLE, SET_NO_NEW_PRIVILEGES, SET_SECCOMP = 1, 4, 38, 22
SET_SUBREAPER = 36

# Numbers above 423 are the same on every architecture.
_MOUNT_SETATTR, _LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 442, 444, 445, 446
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _call(name: str, *arguments: object) -> int:
    """Calls a function of libc.

    Raises:
        OSError: it failed; the message names the function.
    """
    result: int = getattr(_libc, name)(*arguments)
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def _syscall(name: str, number: int, *arguments: object) -> int:
    result: int = _libc.syscall(ctypes.c_long(number), *arguments)
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
    return result


def unshare(flags: int) -> None:
    """Moves this process (for process ids: its later children) into namespaces of its own."""
    _call("unshare", ctypes.c_int(flags))


def mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    """Mounts a file system, or a part of one elsewhere."""
    texts = [None if text is None else os.fsencode(text) for text in (source, target, kind, options)]
    _call("mount", texts[0], texts[1], texts[2], ctypes.c_ulong(flags), texts[3])


def unmount(target: str) -> None:
    """Takes a mount and all below it out of sight."""
    _call("umount2", os.fsencode(target), ctypes.c_int(DETACH))


def pivot_root(new: str, old: str) -> None:
    """Makes `new` the root; what was the root appears at `old`."""
    number = _PIVOT_ROOT[os.uname().machine]
    _syscall("pivot_root", number, os.fsencode(new), os.fsencode(old))


def set_mount_attributes(path: str, attributes: int) -> None:
    """Sets attributes of the mount at `path` and of all mounts below it (Linux 5.12)."""
    wanted = (ctypes.c_uint64 * 4)(attributes, 0, 0, 0)
    arguments = (ctypes.c_int(-100), os.fsencode(path), ctypes.c_uint(0x8000), wanted, ctypes.c_size_t(32))
    _syscall("mount_setattr", _MOUNT_SETATTR, *arguments)


def set_hostname(name: str) -> None:
    """Names the machine in this namespace."""
    text = os.fsencode(name)
    _call("sethostname", text, ctypes.c_size_t(len(text)))


def control(option: int, value: int) -> None:
    """prctl with one value."""
    rest = [ctypes.c_ulong(0)] * 3
    _call("prctl", ctypes.c_int(option), ctypes.c_ulong(value), *rest)


def drop_capabilities() -> None:
    """Gives up every privilege of this process for good, also those that running another file could give."""
    header = (ctypes.c_uint32 * 2)(0x2008_0522, 0)
    _call("capset", header, (ctypes.c_uint32 * 6)())
    control(SET_NO_NEW_PRIVILEGES, 1)


def check_filters() -> None:
    """Finds out whether the kernel takes seccomp filters, without giving it one.

    Raises:
        OSError: it does not.
    """
    try:
        _call("prctl", ctypes.c_int(SET_SECCOMP), ctypes.c_ulong(2), None, ctypes.c_ulong(0), ctypes.c_ulong(0))
    except OSError as error:
        if error.errno != errno.EFAULT:  # what it says to no filter if it would take one
            raise


class _Filter(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))


def install_filter(code: bytes) -> None:
    """Puts a seccomp filter (BPF instructions) on this thread and what it starts; there is no way back."""
    program = _Filter(len(code) // 8, code)
    _call(
        "prctl",
        ctypes.c_int(SET_SECCOMP),
        ctypes.c_ulong(2),
        ctypes.byref(program),
        ctypes.c_ulong(0),
        ctypes.c_ulong(0),
    )


# ------------------------------------------------------------------ Landlock

_WRITE_FILE, _READ_FILE, _READ_DIRECTORY = 1 << 1, 1 << 2, 1 << 3
_FILE_RIGHTS_BY_VERSION = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
"""How many of the rights on files a version of Landlock knows; later ones know as many as version 5."""


def landlock_version() -> int:
    """The version of Landlock that the kernel offers; 0: none."""
    try:
        return _syscall("landlock", _LANDLOCK_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint(1))
    except OSError:
        return 0


def make_ruleset(readable: list[str], listable: list[str], writable: list[str]) -> int:
    """The descriptor of a Landlock rule set that forbids all but reading some paths and writing others.

    It forbids TCP from version 4 on, and signals and abstract sockets to the outside from version 6 on.

    Raises:
        OSError: the kernel offers no Landlock.
    """
    version = landlock_version()
    rights = (1 << _FILE_RIGHTS_BY_VERSION.get(version, 16)) - 1
    wanted = (ctypes.c_uint64 * 3)(rights, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    size = 8 if version < 4 else 16 if version < 6 else 24
    ruleset = _syscall("landlock", _LANDLOCK_CREATE, wanted, ctypes.c_size_t(size), ctypes.c_uint(0))
    for paths, allowed in ((readable, _READ_FILE | _READ_DIRECTORY), (listable, _READ_DIRECTORY), (writable, 6)):
        for path in filter(os.path.exists, paths):
            _allow(ruleset, path, allowed)
    return ruleset


def _allow(ruleset: int, path: str, rights: int) -> None:
    beneath = os.open(path, os.O_PATH | os.O_CLOEXEC)
    if not os.path.isdir(path):
        rights &= _READ_FILE | _WRITE_FILE
    rule = rights.to_bytes(8, "little") + beneath.to_bytes(4, "little")
    try:
        _syscall("landlock", _LANDLOCK_ADD, ctypes.c_int(ruleset), ctypes.c_int(1), rule, ctypes.c_uint(0))
    finally:
        os.close(beneath)


def restrict_to(ruleset: int) -> None:
    """Puts a Landlock rule set on this thread and what it starts; there is no way back."""
    _syscall("landlock", _LANDLOCK_RESTRICT, ctypes.c_int(ruleset), ctypes.c_uint(0))
