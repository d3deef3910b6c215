"""Programs that use up time, memory, processes, threads, descriptors or output; by name."""

# ruff: noqa: E501 - a program reads best as it was written

PROGRAMS = {
    "infinite loop": "while True: pass",
    "loop that ignores signals": """
import signal
for number in range(1, 65):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
while True: pass
""",
    "loop that catches everything": """
while True:
    try:
        while True: pass
    except BaseException: pass
""",
    "cancelled timers, then sleep": """
import signal, time
signal.alarm(0); signal.setitimer(signal.ITIMER_REAL, 0); signal.setitimer(signal.ITIMER_PROF, 0)
time.sleep(1000)
""",
    "hang in C": "print(len(bin(7 ** (10 ** 9))))",
    "regular expression that backtracks": "import re; re.match(r'(a+)+$', 'a' * 60 + 'b')",
    "memory bomb": "x = []\nwhile True: x.append(bytearray(1 << 26))",
    "memory bomb, shared": "import mmap\nx = []\nwhile True:\n    x.append(mmap.mmap(-1, 1 << 28)); x[-1][::4096] = bytes(1 << 16)",
    "memory bomb, one string": "print(len('x' * (1 << 36)))",
    "memory bomb, caught": """
x = []
while True:
    try: x.append(bytearray(1 << 28))
    except MemoryError: x = x[:1]
""",
    "unpacking bomb": "import zlib\nd = zlib.compress(bytes(1 << 26), 9)\nx = [zlib.decompress(d) for _ in range(10000)]",
    "fork bomb": "import os\nwhile True: os.fork()",
    "fork bomb that tries for ever": """
import os
while True:
    try: os.fork()
    except OSError: pass
""",
    "fork bomb by subprocess": "import subprocess, sys\nwhile True: subprocess.Popen([sys.executable or 'python3', '-c', 'pass'])",
    "fork bomb by ctypes": "import ctypes\nc = ctypes.CDLL(None)\nfor _ in range(1000): print(c.fork(), c.vfork())",
    "fork by raw system calls": """
import ctypes
c = ctypes.CDLL(None)
for number in (57, 58, 56, 435, 220):
    print(c.syscall(number, 17, 0, 0, 0, 0))
""",
    "thread bomb": "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(1000,)).start()",
    "thread bomb that tries for ever": """
import _thread, time
while True:
    try: _thread.start_new_thread(time.sleep, (1000,))
    except RuntimeError: pass
""",
    "daemon by double fork": """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(1000)
    os._exit(0)
""",
    "multiprocessing": "import multiprocessing\nmultiprocessing.Process(target=print).start()",
    "output without end": "while True: print('x' * (1 << 20))",
    "output without end, unbuffered": "import os\nwhile True: os.write(1, b'x' * (1 << 20))",
    "errors without end": "import sys\nwhile True: print('x' * (1 << 20), file=sys.stderr)",
    "a million flushed lines": "for i in range(10 ** 9): print(i, flush=True)",
    "file size signal ignored": """
import os, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
while True:
    try: os.write(1, b'x' * (1 << 20))
    except OSError: pass
""",
    "sparse output": "import os\nos.lseek(1, 1 << 40, 0); os.write(1, b'x')",
    "output grown by ftruncate": "import os\nos.ftruncate(1, 1 << 40)",
    "input grown": "import os\nwhile True: os.write(0, b'x' * (1 << 20))",
    "recursion without limit": "import sys\nsys.setrecursionlimit(10 ** 9)\ndef f(): f()\nf()",
    "deep nesting in C": "x = []\nfor _ in range(10 ** 6): x = [x]\nimport sys; sys.setrecursionlimit(10 ** 9)\nrepr(x)",
    "parser bomb": "eval('(' * 100000 + ')' * 100000)",
    "compiler bomb": "x = " + "-" * 50000 + "1",
    "huge integer to text": "import sys\nsys.set_int_max_str_digits(0)\nprint(10 ** (10 ** 7) // 3)",
    "thread that never ends": "import threading, time\nthreading.Thread(target=time.sleep, args=(1000,)).start()",
    "exit handler that never ends": "import atexit, time\natexit.register(time.sleep, 1000)",
    "pipes without end": "import os\nx = []\nwhile True: x.append(os.pipe())",
    "filled pipes": "import os\nr, w = os.pipe()\nwhile True: os.write(w, bytes(1 << 16))",
    "memory files": "import os\nwhile True: os.write(os.memfd_create('x'), bytes(1 << 20))",
    "locked memory": "import ctypes\nprint(ctypes.CDLL(None).mlockall(3)); 1 / 0",
    "stops itself": "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)",
    "waits for more input": "import sys\nsys.stdin.read()\nwhile True: input()",
    "raises its own limits": """
import resource
for name in ('RLIMIT_AS', 'RLIMIT_CPU', 'RLIMIT_FSIZE', 'RLIMIT_NOFILE'):
    resource.setrlimit(getattr(resource, name), (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
""",
    "raises the limits of another": "import resource\nresource.prlimit(@PARENT@, resource.RLIMIT_CPU, (1, 1))",
}
