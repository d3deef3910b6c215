"""The filter, run by a small interpreter, for both architectures: what it allows, refuses and ends."""

import ctypes
import struct

import pytest

from mopd.rewards.sandbox import filters

ALLOW, REFUSE, ABSENT, KILL = "allow", "refuse", "absent", "kill"
ANSWERS = {0x7FFF_0000: ALLOW, 0x0005_0001: REFUSE, 0x0005_0026: ABSENT, 0x8000_0000: KILL}
PID = 77
NAMES = {"x86_64": 0xC000_003E, "aarch64": 0xC000_00B7}


def answer(code, architecture, number, *arguments):
    """What the filter says of a system call, by the rules of classic BPF."""
    data = struct.pack("<IIQ6Q", number, architecture, 0, *arguments, *[0] * (6 - len(arguments)))
    place, value = 0, 0
    while True:
        operation, yes, no, constant = struct.unpack_from("<HBBI", code, 8 * place)
        place += 1
        if operation == 0x06:
            return ANSWERS[constant]
        if operation == 0x20:
            (value,) = struct.unpack_from("<I", data, constant)
        else:
            holds = {0x15: value == constant, 0x35: value >= constant, 0x45: bool(value & constant)}[operation]
            place += yes if holds else no


# By name: numbers on x86-64 and aarch64, arguments, answer.
CASES = [
    ("read", 0, 63, (), ALLOW),
    ("write", 1, 64, (), ALLOW),
    ("mmap", 9, 222, (), ALLOW),
    ("futex", 202, 98, (), ALLOW),
    ("exit_group", 231, 94, (), ALLOW),
    ("getrandom", 318, 278, (), ALLOW),
    ("clone of a thread", 56, 220, (0x3D0F00,), ALLOW),
    ("clone of a process", 56, 220, (17,), REFUSE),
    ("clone of a thread in a namespace", 56, 220, (0x1000_0000 | 0x3D0F00,), REFUSE),
    ("clone3", 435, 435, (), ABSENT),
    ("openat2", 437, 437, (), ABSENT),
    ("fork", 57, None, (), REFUSE),
    ("vfork", 58, None, (), REFUSE),
    ("execve", 59, 221, (), REFUSE),
    ("execveat", 322, 281, (), REFUSE),
    ("kill of itself", 62, 129, (PID, 9), ALLOW),
    ("kill of another", 62, 129, (1, 9), REFUSE),
    ("kill of all", 62, 129, (2**64 - 1, 9), REFUSE),
    ("kill of its group", 62, 129, (0, 9), REFUSE),
    ("tgkill of its thread", 234, 131, (PID, 78, 9), ALLOW),
    ("tgkill of another", 234, 131, (1, 1, 9), REFUSE),
    ("tkill", 200, 130, (PID, 9), REFUSE),
    ("socket", 41, 198, (2, 1), REFUSE),
    ("connect", 42, 203, (), REFUSE),
    ("bind", 49, 200, (), REFUSE),
    ("socketpair", 53, 199, (1,), ALLOW),
    ("socketpair of another family", 53, 199, (16,), REFUSE),
    ("sendto without an address", 44, 206, (3, 1, 1, 0, 0), ALLOW),
    ("sendto an address", 44, 206, (3, 1, 1, 0, 1), REFUSE),
    ("sendto a high address", 44, 206, (3, 1, 1, 0, 1 << 40), REFUSE),
    ("sendmsg", 46, 211, (), REFUSE),
    ("recvmsg", 47, 212, (), REFUSE),
    ("ptrace", 101, 117, (), REFUSE),
    ("process_vm_readv", 310, 270, (), REFUSE),
    ("process_vm_writev", 311, 271, (), REFUSE),
    ("mount", 165, 40, (), REFUSE),
    ("unshare", 272, 97, (), REFUSE),
    ("setns", 308, 268, (), REFUSE),
    ("memfd_create", 319, 279, (), REFUSE),
    ("io_uring_setup", 425, 425, (), REFUSE),
    ("bpf", 321, 280, (), REFUSE),
    ("userfaultfd", 323, 282, (), REFUSE),
    ("perf_event_open", 298, 241, (), REFUSE),
    ("keyctl", 250, 219, (), REFUSE),
    ("pidfd_open", 434, 434, (), REFUSE),
    ("pidfd_getfd", 438, 438, (), REFUSE),
    ("unlinkat", 263, 35, (), REFUSE),
    ("renameat2", 316, 276, (), REFUSE),
    ("mkdirat", 258, 34, (), REFUSE),
    ("fchmodat", 268, 53, (), REFUSE),
    ("fchownat", 260, 54, (), REFUSE),
    ("utimensat", 280, 88, (), REFUSE),
    ("shmget", 29, 194, (), REFUSE),
    ("prlimit of itself", 302, 261, (0,), ALLOW),
    ("prlimit of another", 302, 261, (1,), REFUSE),
    ("fcntl F_SETFL", 72, 25, (1, 4), ALLOW),
    ("fcntl F_SETOWN", 72, 25, (1, 8), REFUSE),
    ("ioctl TCGETS", 16, 29, (1, 0x5401), ALLOW),
    ("ioctl TIOCSTI", 16, 29, (1, 0x5412), REFUSE),
    ("prctl PR_SET_NAME", 157, 167, (15,), ALLOW),
    ("prctl PR_SET_DUMPABLE", 157, 167, (4,), REFUSE),
    ("seccomp", 317, 277, (), REFUSE),
    ("a call of the future", 999, 999, (), REFUSE),
]


@pytest.mark.parametrize("machine", NAMES)
@pytest.mark.parametrize("read_only", [False, True])
def test_every_call_gets_its_answer(machine, read_only):
    code = filters.build(machine, PID, read_only)
    wrong = []
    for name, intel, arm, arguments, expected in CASES:
        number = intel if machine == "x86_64" else arm
        if number is not None and answer(code, NAMES[machine], number, *arguments) != expected:
            wrong.append(name)
    assert not wrong


@pytest.mark.parametrize("machine", NAMES)
def test_files_open_for_reading_alone_where_nothing_else_guards_them(machine):
    number = {"x86_64": 257, "aarch64": 56}[machine]
    for flags in (0o1, 0o2, 0o100, 0o1000, 0o20000000 | 0o2, 0o2101):
        assert answer(filters.build(machine, PID, True), NAMES[machine], number, 0, 0, flags) == REFUSE
        assert answer(filters.build(machine, PID, False), NAMES[machine], number, 0, 0, flags) == ALLOW
    assert answer(filters.build(machine, PID, True), NAMES[machine], number, 0, 0, 0o2000000) == ALLOW


def test_another_architecture_ends_the_program():
    for machine, other in (("x86_64", "aarch64"), ("aarch64", "x86_64")):
        code = filters.build(machine, PID, False)
        assert answer(code, NAMES[other], 0) == KILL
        assert answer(code, 0x4000_0003, 3) == KILL  # i386
    assert answer(filters.build("x86_64", PID, False), NAMES["x86_64"], 0x4000_0000) == KILL  # x32


def test_another_machine_has_no_filter():
    with pytest.raises(OSError, match="riscv64"):
        filters.build("riscv64", PID, False)


def test_the_kernel_would_take_it():
    """No jump leaves the program, and it is short enough."""
    for machine in NAMES:
        code = filters.build(machine, PID, True)
        count = len(code) // 8
        assert len(code) == 8 * count <= 8 * 4096
        for place in range(count):
            operation, yes, no, _ = struct.unpack_from("<HBBI", code, 8 * place)
            assert operation == 0x06 or place + 1 + max(yes, no) < count
    assert ctypes.sizeof(ctypes.c_void_p) == 8
