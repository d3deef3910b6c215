"""The place where programs run: namespaces with an almost empty file system, or a Landlock rule set."""

from __future__ import annotations

import contextlib
import os
import signal
import sys

from mopd.rewards.sandbox import kernel

_OUTSIDER = 65534
"""The account for programs where the trainer is root."""
_INSIDER = 1000
"""How a program sees its own account."""
_DEVICES = ["/dev/null", "/dev/urandom"]
_NAMESPACES = (
    kernel.NEW_USER
    | kernel.NEW_MOUNTS
    | kernel.NEW_NETWORK
    | kernel.NEW_IPC
    | kernel.NEW_HOSTNAME
    | kernel.NEW_CGROUP
    | kernel.NEW_PIDS
)


def isolate(tier: int, paths: list[str], site: str | None) -> int | None:
    """Isolates this process as far as it can be done before a program starts, without privileges left.

    Args:
        tier: 1 to 4.
        paths: what the interpreter and its packages read.
        site: a directory of packages, of which names may be listed.

    Returns:
        The descriptor of the rule set for programs; None without Landlock.

    Raises:
        OSError: the machine does not offer this tier; the message says what failed.
    """
    with contextlib.suppress(OSError):
        _write("/proc/self/oom_score_adj", "1000")  # when memory runs out, a program goes before the trainer
    if tier == 1:
        _enter_namespaces()
        _build_root(paths)
        os.chdir("/w")
        paths, site = ["/"], None
    else:
        kernel.control(kernel.SET_SUBREAPER, 1)
        os.chdir("/")
    _leave_root_account(tier, paths)
    kernel.drop_capabilities()
    kernel.control(kernel.SET_DUMPABLE, 0)
    if tier == 1:  # only now: a change of account forgets it
        kernel.control(kernel.SET_DEATH_SIGNAL, signal.SIGKILL)
    if tier == 2 or (tier == 1 and kernel.landlock_version()):
        return kernel.make_ruleset(paths, [] if site is None else [site], _DEVICES)
    return None


def _enter_namespaces() -> None:
    """Continues in a child that is the first process in there; this one waits for its end, and ends with it."""
    user, group = os.geteuid(), os.getegid()
    maps = {"setgroups": "deny", "uid_map": f"{_INSIDER} {user} 1", "gid_map": f"{_INSIDER} {group} 1"}
    if user != 0 or not _mapped_by_helper():
        if user != 0:
            kernel.unshare(_NAMESPACES)
        for name, text in maps.items():
            _write(f"/proc/self/{name}", text)
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def _mapped_by_helper() -> bool:
    """Enters the namespaces with root and an outsider in them, which only a process outside may write."""
    told, tell = os.pipe()
    target = os.getpid()
    helper = os.fork()
    if helper == 0:
        os.close(tell)
        os.read(told, 1)
        status = 1
        try:
            for name in ("uid_map", "gid_map"):
                _write(f"/proc/{target}/{name}", f"0 0 1\n{_INSIDER} {_OUTSIDER} 1")
            status = 0
        finally:
            os._exit(status)
    try:
        kernel.unshare(_NAMESPACES)
    finally:
        os.close(tell)
        os.close(told)
        _, status = os.waitpid(helper, 0)
    return status == 0


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def _build_root(paths: list[str]) -> None:
    """Makes a root of its own: the given paths and two devices, no file writable, no /proc, no /sys."""
    sources = {path: os.path.realpath(path) for path in [*paths, *_DEVICES] if os.path.exists(path)}
    kernel.mount("none", "/", None, kernel.PRIVATE | kernel.RECURSIVE)
    kernel.mount("tmpfs", "/tmp", "tmpfs", kernel.NOSUID | kernel.NODEV, "size=1m,mode=755")
    os.mkdir("/tmp/host")
    os.mkdir("/tmp/w")
    kernel.pivot_root("/tmp", "/tmp/host")
    os.chdir("/")
    bound: list[str] = []
    for path in sorted(sources, key=len):
        if any(path.startswith(f"{other}/") for other in bound):
            continue
        _bind(f"/host{sources[path]}", path)
        bound.append(path)
    kernel.unmount("/host")
    os.rmdir("/host")
    kernel.set_mount_attributes("/", kernel.READ_ONLY_ATTRIBUTES)
    kernel.set_hostname("sandbox")


def _bind(source: str, target: str) -> None:
    """Shows a file or directory of the host, for reading, under its own name."""
    if os.path.isdir(source):
        os.makedirs(target, mode=0o755, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), mode=0o755, exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_CLOEXEC, 0o444))
    kernel.mount(source, target, None, kernel.BIND | kernel.RECURSIVE)
    device = 0 if target in _DEVICES else kernel.NODEV_ATTRIBUTE
    kernel.set_mount_attributes(target, kernel.READ_ONLY_ATTRIBUTES | device)


def _leave_root_account(tier: int, paths: list[str]) -> None:
    """Goes on as an account that owns nothing, where this one is root and the interpreter stays readable."""
    if os.geteuid() != 0:
        return
    account = _INSIDER if tier == 1 else _OUTSIDER
    if tier > 1 and not all(_open_to_all(path) for path in (*paths, *sys.path) if os.path.exists(path)):
        return
    os.setgroups([])
    os.setresgid(account, account, account)
    os.setresuid(account, account, account)


def _open_to_all(path: str) -> bool:
    """Whether every account may read below a path."""
    while path != "/":
        if os.stat(path).st_mode & 0o5 != 0o5 and os.path.isdir(path):
            return False
        path = os.path.dirname(path)
    return True
