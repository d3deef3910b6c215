"""The seccomp filter: which system calls a program may make. What is not listed here fails with EPERM."""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterable

# name:x86-64:aarch64. Reading, memory, time, threads and its own descriptors: nothing that reaches another process.
_ALLOWED = """
read:0:63 write:1:64 close:3:57 fstat:5:80 lseek:8:62 pread64:17:67 pwrite64:18:68 readv:19:65 writev:20:66
preadv:295:69 pwritev:296:70 preadv2:327:286 pwritev2:328:287 poll:7:- ppoll:271:73 select:23:- pselect6:270:72
mmap:9:222 mprotect:10:226 munmap:11:215 mremap:25:216 brk:12:214 madvise:28:233 mincore:27:232 msync:26:227
openat:257:56 open:2:- stat:4:- lstat:6:- newfstatat:262:79 statx:332:291 access:21:- faccessat:269:48
faccessat2:439:439 readlink:89:- readlinkat:267:78 getcwd:79:17 getdents64:217:61 getdents:78:- statfs:137:43
fstatfs:138:44 ftruncate:77:46 fsync:74:82 fdatasync:75:83 fadvise64:221:223 dup:32:23 dup2:33:- dup3:292:24
pipe:22:- pipe2:293:59 close_range:436:436 eventfd:284:- eventfd2:290:19 epoll_create:213:- epoll_create1:291:20
epoll_ctl:233:21 epoll_wait:232:- epoll_pwait:281:22 recvfrom:45:207 rt_sigaction:13:134 rt_sigprocmask:14:135
rt_sigreturn:15:139 rt_sigpending:127:136 rt_sigsuspend:130:133 rt_sigtimedwait:128:137 sigaltstack:131:132
pause:34:- alarm:37:- getitimer:36:102 setitimer:38:103 nanosleep:35:101 clock_nanosleep:230:115
clock_gettime:228:113 clock_getres:229:114 gettimeofday:96:169 time:201:- times:100:153 futex:202:98
set_robust_list:273:99 get_robust_list:274:100 set_tid_address:218:96 rseq:334:293 membarrier:324:283
restart_syscall:219:128 getpid:39:172 gettid:186:178 getppid:110:173 getpgid:121:155 getpgrp:111:-
getsid:124:156 getuid:102:174 geteuid:107:175 getgid:104:176 getegid:108:177 getresuid:118:148 getresgid:120:150
getgroups:115:158 umask:95:166 getrlimit:97:163 setrlimit:160:164 getrusage:98:165 sysinfo:99:179 uname:63:160
getcpu:309:168 sched_yield:24:124 sched_getaffinity:204:123 sched_getparam:143:121 sched_getscheduler:145:120
sched_get_priority_max:146:125 sched_get_priority_min:147:126 getpriority:140:141 getrandom:318:278 wait4:61:260
waitid:247:95 exit:60:93 exit_group:231:94
"""
# Allowed with some arguments only, by the rules below.
_CHECKED = """
clone:56:220 kill:62:129 tgkill:234:131 ioctl:16:29 fcntl:72:25 prctl:157:167 prlimit64:302:261 socketpair:53:199
sendto:44:206
"""
# "Not implemented": the C library then takes the older call, whose arguments a filter can read.
_ABSENT = "clone3:435:435 openat2:437:437"
_OPENING = "openat:257:56 open:2:-"

MACHINES = {"x86_64": (0, 0xC000_003E), "aarch64": (1, 0xC000_00B7)}
"""By the name of the machine: its column in the lists above, and its name for seccomp."""

_KILL, _ALLOW = 0x8000_0000, 0x7FFF_0000
_EPERM, _ENOSYS = 0x0005_0001, 0x0005_0026
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06

_THREAD = 0x0001_0000
_NEW_NAMESPACES = 0x7E02_0000
_WRITING = 0o3 | 0o100 | 0o1000 | 0o20000000  # anything but O_RDONLY; O_CREAT, O_TRUNC, O_TMPFILE
_TERMINAL_AND_BLOCKING = (
    0x5401,
    0x5413,
    0x541B,
    0x5421,
    0x5450,
    0x5451,
)  # TCGETS TIOCGWINSZ FIONREAD FIONBIO FIO(N)CLEX
_DUPLICATE_AND_FLAGS = (0, 1, 2, 3, 4, 1030, 1034)  # not F_SETOWN, by which a process sends signals to another
_THREAD_NAME = (15, 16, 0x5356_4D41)

_SELF = 0x7FED_CBA9

Instruction = tuple[int, int, int, int]


def _numbers(table: str, column: int) -> dict[str, int]:
    """The numbers of the calls in a table that this machine has."""
    rows = (entry.split(":") for entry in table.split())
    return {row[0]: int(row[1 + column]) for row in rows if row[1 + column] != "-"}


def _load_argument(index: int, high: bool = False) -> Instruction:
    return (_LOAD, 0, 0, 16 + 8 * index + 4 * high)


def _answer(value: int) -> Instruction:
    return (_RETURN, 0, 0, value)


def _one_of(index: int, values: Iterable[int]) -> list[Instruction]:
    """Allows a call if the lower half of an argument (all that the kernel reads of an int) is one of `values`."""
    allowed = list(values)
    tests = [(_EQUAL, len(allowed) - place, 0, value) for place, value in enumerate(allowed)]
    return [_load_argument(index), *tests, _answer(_EPERM), _answer(_ALLOW)]


def _thread_only() -> list[Instruction]:
    """Allows clone for threads, in no new namespace."""
    flags = [(_ANY_BIT, 0, 1, _THREAD), (_ANY_BIT, 0, 1, _NEW_NAMESPACES)]
    return [_load_argument(0), *flags, _answer(_EPERM), _answer(_ALLOW)]


def _without(index: int, bits: int) -> list[Instruction]:
    """Allows a call if none of `bits` is set in an argument."""
    return [_load_argument(index), (_ANY_BIT, 0, 1, bits), _answer(_EPERM), _answer(_ALLOW)]


def _null(index: int) -> list[Instruction]:
    """Allows a call if a pointer is null."""
    halves = [_load_argument(index), (_EQUAL, 0, 2, 0), _load_argument(index, high=True), (_EQUAL, 1, 0, 0)]
    return [*halves, _answer(_EPERM), _answer(_ALLOW)]


def build(machine: str, pid: int, read_only: bool) -> bytes:
    """The filter as BPF instructions.

    Args:
        machine: `x86_64` or `aarch64`.
        pid: the process that it is for, which may send signals to itself.
        read_only: refuses to open files for writing, where neither mounts nor Landlock do.

    Raises:
        OSError: there is no filter for this machine.
    """
    if machine not in MACHINES:
        raise OSError(f"no seccomp filter for a machine of type {machine}: there is one for {' and '.join(MACHINES)}")
    return _template(machine, read_only).replace(struct.pack("<I", _SELF), struct.pack("<I", pid))


@functools.cache
def _template(machine: str, read_only: bool) -> bytes:
    """The filter for the process `_SELF`, which costs too much to be built for each."""
    column, architecture = MACHINES[machine]
    rules: dict[str, list[Instruction]] = {
        "clone": _thread_only(),
        "kill": _one_of(0, [_SELF]),
        "tgkill": _one_of(0, [_SELF]),
        "ioctl": _one_of(1, _TERMINAL_AND_BLOCKING),
        "fcntl": _one_of(1, _DUPLICATE_AND_FLAGS),
        "prctl": _one_of(0, _THREAD_NAME),
        "prlimit64": _one_of(0, [0]),
        "socketpair": _one_of(0, [1]),
        "sendto": _null(4),
    }
    numbers = _numbers(_CHECKED, column)
    if read_only:
        numbers |= _numbers(_OPENING, column)
        rules |= {"openat": _without(2, _WRITING), "open": _without(1, _WRITING)}
    # Another architecture's calls, and those of x32 on x86-64, have other numbers: whoever makes them ends.
    code: list[Instruction] = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, architecture), _answer(_KILL), (_LOAD, 0, 0, 0)]
    if machine == "x86_64":
        code += [(_AT_LEAST, 0, 1, 0x4000_0000), _answer(_KILL)]
    for name, number in numbers.items():
        code += [(_EQUAL, 0, len(rules[name]), number), *rules[name]]
    for number in _numbers(_ABSENT, column).values():
        code += [(_EQUAL, 0, 1, number), _answer(_ENOSYS)]
    allowed = sorted(set(_numbers(_ALLOWED, column).values()) - set(numbers.values()))
    code += [(_EQUAL, len(allowed) - place, 0, number) for place, number in enumerate(allowed)]
    code += [_answer(_EPERM), _answer(_ALLOW)]
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in code)
